# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Evaluate all coalitions of a case: in chunks, over ranks, resumed from a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from monai_segshap.explainers.ranks import Ranks
from monai_segshap.games import RegionGame
from monai_segshap.inferers import CoalitionEvaluator, EvaluationPlan, ForwardCounts, total_forwards
from monai_segshap.region import Region, box_slices
from monai_segshap.shapley import ValueStore

__all__ = ["Sweep", "SweepResult"]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        references: for each region bool (h, w, d) inside its box: predicted as the target with all units kept (P_0).
        prediction_differences: float64 (regions,), largest difference of a logit in the region's box, with all units
            kept, from the whole-volume prediction; 0 for the same bits.
        scores: float64 (K, regions, T), rows in the order of the sweep.
        forwards: network passes; ``run`` is over all ranks and all sessions of a resumed run.
        lowered_to: largest part of a batch that memory allowed, the least of all ranks and sessions; None: whole ones.
    """

    references: list[NDArray[np.bool_]]
    prediction_differences: NDArray[np.float64]
    scores: NDArray[np.float64]
    forwards: ForwardCounts
    lowered_to: int | None


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
        predictions: for each region the logits (classes, h, w, d) of the whole-volume prediction inside its box.
        scores: names of the scores.
        signal: see `RegionGame`.
        ranks: the processes that share the chunks.
    """

    evaluator: CoalitionEvaluator
    rows: NDArray[np.bool_]
    chunks: list[tuple[NDArray[np.int64], EvaluationPlan]]
    regions: Sequence[Region]
    predictions: Sequence[torch.Tensor]
    scores: tuple[str, ...]
    signal: str
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def planned(self) -> ForwardCounts:
        """Passes of all chunks, before any has run."""
        return total_forwards([plan for _, plan in self.chunks])

    def remaining(self, store: ValueStore | None) -> int:
        """Passes of the chunks that a store does not have."""
        missing = [n for n in range(len(self.chunks)) if self._stored(store, n) is None]
        return sum(self.chunks[n][1].forwards.planned for n in missing)

    def run(self, store: ValueStore | None = None, progress: bool = True) -> SweepResult:
        """Evaluate every chunk that the store does not have.

        Args:
            store: where finished chunks go; None: nowhere.
            progress: show a bar of network passes (rank 0 only).

        Returns:
            the same result on every rank.
        """
        ranks = self.ranks
        table = np.full((len(self.rows), len(self.regions), len(self.scores)), np.nan)
        passes, lowered = np.zeros((2, len(self.chunks)), dtype=np.int64)
        differences = np.zeros(len(self.regions))
        counts = self.planned
        with _bar(counts.planned, progress and ranks.own == 0, ranks.count) as advance, _kept_when_interrupted(store):
            references: list[NDArray[np.bool_]] = []
            for number, (rows, plan) in enumerate(self.chunks):
                if number % ranks.count == ranks.own:
                    found = self._stored(store, number)
                    if found is None:
                        found = self._run_chunk(number, plan, references, advance)
                        if store is not None:
                            store.write(number, **found)
                    else:
                        advance(int(found["passes"]))
                    table[rows] = found["scores"]
                    passes[number], lowered[number] = int(found["passes"]), int(found["lowered_to"])
                    if number == 0:
                        references = [found[f"reference_{r}"].astype(bool) for r in range(len(self.regions))]
                        differences = found["prediction_differences"].astype(np.float64)
                if number == 0:
                    references = self._share_references(references)
                    differences = ranks.array_of_first(differences).astype(np.float64)
        passes, lowered = ranks.sum(passes), ranks.sum(lowered)
        least = int(lowered[lowered > 0].min()) if lowered.any() else None
        counts = replace(counts, run=int(passes.sum()))
        return SweepResult(references, differences, ranks.merge_rows(table), counts, least)

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
        found: dict[str, NDArray[np.generic]] = {}
        for row, fused in self.evaluator.run(plan, advance):
            if number == 0:
                references = [_reference(r, logits) for r, logits in zip(self.regions, fused, strict=True)]
                found |= {f"reference_{r}": reference for r, reference in enumerate(references)}
                found["prediction_differences"] = np.array(
                    [_difference(given, own) for given, own in zip(self.predictions, fused, strict=True)]
                )
            if not games:
                games = [self._game(*parts) for parts in zip(self.regions, references, fused, strict=True)]
            scores[row] = [game(logits) for game, logits in zip(games, fused, strict=True)]
        return {
            **found,
            "scores": scores,
            "kept": self._kept(number),
            "passes": np.array(self.evaluator.n_forwards - before),
            "lowered_to": np.array(self.evaluator.passes.lowered_to or 0),
        }

    def _game(self, region: Region, reference: NDArray[np.bool_], logits: torch.Tensor) -> RegionGame:
        mask = region.mask[box_slices(region.box)]
        tensors = [torch.from_numpy(np.ascontiguousarray(x)).to(logits.device) for x in (mask, reference)]
        return RegionGame(tensors[0], tensors[1], region.target, self.scores, self.signal)

    def _share_references(self, references: list[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
        """Rank 0 has them; give them to the others."""
        shared = []
        for number, region in enumerate(self.regions):
            shape = tuple(b - a + 1 for a, b in zip(*region.box, strict=True))
            own = references[number] if references else np.zeros(shape, dtype=bool)
            shared.append(self.ranks.array_of_first(own.astype(np.uint8)).astype(bool))
        return shared


def _reference(region: Region, logits: torch.Tensor) -> NDArray[np.bool_]:
    return (logits.argmax(dim=0) == region.target).cpu().numpy()


def _difference(given: torch.Tensor, own: torch.Tensor) -> float:
    difference = (given.to(own.device, torch.float64) - own.to(torch.float64)).abs()
    return float(difference.nan_to_num(nan=torch.finfo(torch.float64).max).max())


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
