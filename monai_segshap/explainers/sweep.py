# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Evaluate all coalitions of a case: in chunks, over ranks, resumed from a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import ignite.distributed as idist
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from monai_segshap.games import RegionGame
from monai_segshap.inferers import CoalitionEvaluator, EvaluationPlan, ForwardCounts, total_forwards
from monai_segshap.region import Region, box_slices
from monai_segshap.shapley import ValueStore

__all__ = ["RANKS", "Sweep", "SweepResult"]

#: What several processes do: each explains its own cases, or all share the coalitions of one case.
RANKS = ("alone", "share")


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        references: for each region bool (h, w, d) inside its box: predicted as the target with all units kept (P_0).
        scores: float64 (K, regions, T), rows in the order of the sweep.
        forwards: network passes; ``run`` is over all ranks and all sessions of a resumed run.
    """

    references: list[NDArray[np.bool_]]
    scores: NDArray[np.float64]
    forwards: ForwardCounts


@dataclass(frozen=True)
class Sweep:
    """Coalitions of one case, in chunks.

    Chunk i belongs to rank i modulo the number of ranks. A chunk is planned by itself, so that scores and passes are
    the same for any number of ranks, and after any interruption.

    Attributes:
        evaluator: of the case.
        rows: bool (K, M), the full coalition first.
        chunks: row numbers and plan of each chunk; the first one is the full coalition alone.
        regions: what is explained.
        scores: names of the scores.
        signal: see `RegionGame`.
        ranks: "alone": this process does everything and talks to no other; "share": chunks are shared out.
    """

    evaluator: CoalitionEvaluator
    rows: NDArray[np.bool_]
    chunks: list[tuple[NDArray[np.int64], EvaluationPlan]]
    regions: Sequence[Region]
    scores: tuple[str, ...]
    signal: str
    ranks: str = "alone"

    @property
    def world_size(self) -> int:
        """Processes that share this sweep."""
        return idist.get_world_size() if self.ranks == "share" else 1

    @property
    def rank(self) -> int:
        """Number of this process among them."""
        return idist.get_rank() if self.ranks == "share" else 0

    @property
    def planned(self) -> ForwardCounts:
        """Passes of all chunks, before any has run."""
        return total_forwards([plan for _, plan in self.chunks])

    def require_one_case(self, case_digest: str) -> None:
        """Raise on every rank unless all ranks that share this sweep ask the same question of the same case.

        Raises:
            ValueError: if the digests of the ranks differ.
        """
        if self.world_size == 1:
            return
        own = torch.tensor(list(bytes.fromhex(case_digest)), dtype=torch.uint8, device=idist.device())
        gathered = torch.as_tensor(idist.all_gather(own)).reshape(self.world_size, -1)
        if not bool((gathered == gathered[0]).all()):
            raise ValueError(
                "the processes work on different cases or questions, so they can not share coalitions. Give all of "
                "them the same case (no distributed sampler), or use ranks='alone'."
            )

    def run(self, store: ValueStore | None = None, progress: bool = True) -> SweepResult:
        """Evaluate every chunk that the store does not have.

        Args:
            store: where finished chunks go; None: nowhere.
            progress: show a bar of network passes (rank 0 only).

        Returns:
            the same result on every rank.
        """
        rank, world = self.rank, self.world_size
        table = np.full((len(self.rows), len(self.regions), len(self.scores)), np.nan)
        passes = np.zeros(len(self.chunks), dtype=np.int64)
        counts = self.planned
        with _bar(counts.planned, progress and rank == 0, world) as advance, _kept_when_interrupted(store):
            references: list[NDArray[np.bool_]] = []
            for number, (rows, plan) in enumerate(self.chunks):
                if number % world == rank:
                    found = self._stored(store, number)
                    if found is None:
                        found = self._run_chunk(number, plan, references, advance)
                        if store is not None:
                            store.write(number, **found)
                    else:
                        advance(int(found["passes"]))
                    table[rows] = found["scores"]
                    passes[number] = int(found["passes"])
                    if number == 0:
                        references = [found[f"reference_{r}"].astype(bool) for r in range(len(self.regions))]
                if number == 0:
                    references = self._share_references(references)
        if world > 1:
            table, passes = _merge(table), _sum_over_ranks(passes)
        return SweepResult(references, table, replace(counts, run=int(passes.sum())))

    def _stored(self, store: ValueStore | None, number: int) -> dict[str, NDArray[np.generic]] | None:
        """A chunk from the store, if it is there and holds the same coalitions."""
        found = store.read(number) if store is not None else None
        if found is None or "kept" not in found or not np.array_equal(found["kept"], self._kept(number)):
            return None
        return found

    def _kept(self, number: int) -> NDArray[np.uint8]:
        return np.packbits(self.rows[self.chunks[number][0]], axis=1)

    def _run_chunk(
        self,
        number: int,
        plan: EvaluationPlan,
        references: list[NDArray[np.bool_]],
        advance: Callable[[int], None],
    ) -> dict[str, NDArray[np.generic]]:
        before = self.evaluator.n_forwards
        scores = np.empty((len(plan.rows), len(self.regions), len(self.scores)))
        games: list[RegionGame] = []
        for row, fused in self.evaluator.run(plan, advance):
            if not games:
                if number == 0:
                    references = [_reference(r, logits) for r, logits in zip(self.regions, fused, strict=True)]
                games = [self._game(*parts) for parts in zip(self.regions, references, fused, strict=True)]
            scores[row] = [game(logits) for game, logits in zip(games, fused, strict=True)]
        found: dict[str, NDArray[np.generic]] = {
            "scores": scores,
            "kept": self._kept(number),
            "passes": np.array(self.evaluator.n_forwards - before),
        }
        if number == 0:
            found |= {f"reference_{r}": reference for r, reference in enumerate(references)}
        return found

    def _game(self, region: Region, reference: NDArray[np.bool_], logits: torch.Tensor) -> RegionGame:
        mask = region.mask[box_slices(region.box)]
        tensors = [torch.from_numpy(np.ascontiguousarray(x)).to(logits.device) for x in (mask, reference)]
        return RegionGame(tensors[0], tensors[1], region.target, self.scores, self.signal)

    def _share_references(self, references: list[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
        """Rank 0 has them; give them to the others."""
        if self.world_size == 1:
            return references
        shared = []
        for number, region in enumerate(self.regions):
            shape = tuple(b - a + 1 for a, b in zip(*region.box, strict=True))
            own = references[number] if references else np.zeros(shape, dtype=bool)
            sent = idist.broadcast(torch.from_numpy(own.astype(np.uint8)).to(idist.device()), src=0)
            shared.append(torch.as_tensor(sent).cpu().numpy().astype(bool))
        return shared


def _reference(region: Region, logits: torch.Tensor) -> NDArray[np.bool_]:
    return (logits.argmax(dim=0) == region.target).cpu().numpy()


def _merge(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of all ranks; each row is on exactly one of them, the others hold NaN."""
    world = idist.get_world_size()
    gathered = idist.all_gather(torch.from_numpy(table).to(idist.device()))
    parts = torch.as_tensor(gathered).cpu().numpy().reshape(world, *table.shape)
    present = ~np.isnan(parts).any(axis=(2, 3))
    if not (present.sum(axis=0) == 1).all():
        raise RuntimeError(
            "a coalition was evaluated by no rank or by several; the ranks do not work on the same case."
        )
    return parts[present.argmax(axis=0), np.arange(len(table))]


def _sum_over_ranks(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    summed = idist.all_reduce(torch.from_numpy(counts).to(idist.device()), "SUM")
    return np.asarray(torch.as_tensor(summed).cpu().numpy())


@contextmanager
def _kept_when_interrupted(store: ValueStore | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if store is not None:
            print(f"\ninterrupted; finished coalitions are kept in {store.folder}; the same call continues there")
        raise


@contextmanager
def _bar(total: int, visible: bool, world: int) -> Iterator[Callable[[int], None]]:
    """A bar of network passes; with several ranks it shows rank 0's share times their number."""
    with tqdm(total=total, disable=not visible, unit="pass", desc="network passes", smoothing=0.05) as bar:

        def advance(n: int) -> None:
            bar.update(min(n * world, total - bar.n))

        yield advance
        if not bar.disable:
            bar.update(total - bar.n)
