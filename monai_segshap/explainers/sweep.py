# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Evaluate all coalitions of a case: in chunks, over ranks, resumed from a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from monai_segshap.explainers.ranks import Ranks
from monai_segshap.games import CHANNELS, RegionGame
from monai_segshap.heads import OutputHeads
from monai_segshap.inferers import (
    CoalitionEvaluator,
    EvaluationPlan,
    ForwardCounts,
    largest_difference,
    total_forwards,
)
from monai_segshap.region import Region, box_slices
from monai_segshap.shapley import ValueStore

__all__ = ["Sweep", "SweepResult", "kept_when_interrupted", "passes_bar"]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found, for the first K coalitions of its order.

    Attributes:
        references: for each region bool (h, w, d) inside its box: predicted as the target with all units kept (P_0).
        prediction_differences: float64 (regions,), largest difference of a logit in the region's box, with all units
            kept, from the whole-volume prediction; 0 for the same bits.
        empty_classes: int64 (regions, classes), voxels of each class that are predicted in the region with no unit.
        channels: for each region float64 (K, blocks, channels), see `monai_segshap.games.CHANNELS`.
        games: for each region its game, which composes scores of channels.
        forwards: network passes; ``run`` is over all ranks and all sessions of a resumed run.
        lowered_to: largest part of a batch that memory allowed, the least of all ranks and sessions; None: whole ones.
    """

    references: list[NDArray[np.bool_]]
    prediction_differences: NDArray[np.float64]
    empty_classes: NDArray[np.int64]
    channels: list[NDArray[np.float64]]
    games: list[RegionGame]
    forwards: ForwardCounts
    lowered_to: int | None

    @property
    def n_rows(self) -> int:
        """Coalitions evaluated."""
        return len(self.channels[0])

    def scores(self, region: int) -> NDArray[np.float64]:
        """Float64 (K, T) of one region."""
        return self.games[region].compose(self.channels[region].sum(axis=1))


@dataclass(frozen=True)
class Sweep:
    """Coalitions of one case, in chunks.

    Chunk i belongs to rank i modulo the number of ranks. A chunk is planned by itself, so that scores and passes are
    the same for any number of ranks, and after any interruption.

    Attributes:
        evaluator: of the case.
        rows: bool (K, M), the full coalition first, the empty one second.
        chunks: row numbers and plan of each chunk; the first one is the full coalition alone.
        regions: what is explained.
        blocks: for each region int64 (its voxels,), block of each voxel, see `monai_segshap.units.region_blocks`.
        predictions: for each region the logits (classes, h, w, d) of the whole-volume prediction inside its box.
        scores: names of the scores.
        signal: see `RegionGame`.
        ranks: the processes that share the chunks.
        heads: how logits become a prediction.
    """

    evaluator: CoalitionEvaluator
    rows: NDArray[np.bool_]
    chunks: list[tuple[NDArray[np.int64], EvaluationPlan]]
    regions: Sequence[Region]
    blocks: Sequence[NDArray[np.int64]]
    predictions: Sequence[torch.Tensor]
    scores: tuple[str, ...]
    signal: str
    ranks: Ranks = field(default_factory=Ranks)
    heads: OutputHeads = field(default_factory=OutputHeads)

    @property
    def planned(self) -> ForwardCounts:
        """Passes of all chunks, before any has run."""
        return total_forwards([plan for _, plan in self.chunks])

    def remaining(self, store: ValueStore | None) -> int:
        """Passes of the chunks that a store does not have."""
        missing = [n for n in range(len(self.chunks)) if self._stored(store, n) is None]
        return sum(self.chunks[n][1].forwards.planned for n in missing)

    def run(
        self,
        store: ValueStore | None = None,
        progress: bool = True,
        stops: Sequence[int] = (),
        enough: Callable[[SweepResult], bool] | None = None,
    ) -> SweepResult:
        """Evaluate every chunk that the store does not have.

        Args:
            store: where finished chunks go; None: nowhere.
            progress: show a bar of network passes (rank 0 only).
            stops: numbers of coalitions after which ``enough`` is asked, see `looks`.
            enough: whether the coalitions so far will do; then no more are evaluated.

        Returns:
            the same result on every rank.
        """
        found, looks = _Findings(self), self.looks(stops)
        visible = progress and self.ranks.own == 0
        with (
            passes_bar(self.planned.planned, visible, self.ranks.count) as advance,
            kept_when_interrupted(None if store is None else store.folder),
        ):
            for number, (rows, _) in enumerate(self.chunks):
                if number % self.ranks.count == self.ranks.own:
                    chunk = self._stored(store, number)
                    if chunk is None:
                        chunk = self._run_chunk(number, found, advance)
                        if store is not None:
                            store.write(number, **chunk)
                    else:
                        advance(int(chunk["passes"]))
                    found.add(number, rows, chunk)
                if number == 0:
                    found.share_references()
                done = int(rows[-1]) + 1
                if enough is not None and done in looks and enough(found.result(number + 1)):
                    return found.result(number + 1)
        return found.result(len(self.chunks))

    def looks(self, stops: Sequence[int]) -> list[int]:
        """Those of the numbers of coalitions at which a chunk, but not the run, ends."""
        ends = {int(rows[-1]) + 1 for rows, _ in self.chunks[:-1]}
        return [n for n in stops if n in ends]

    def _stored(self, store: ValueStore | None, number: int) -> dict[str, NDArray[np.generic]] | None:
        """A chunk from the store, if it is there and holds the same coalitions."""
        found = store.read(number) if store is not None else None
        if found is None or "kept" not in found or not np.array_equal(found["kept"], self._kept(number)):
            return None
        return found

    def _kept(self, number: int) -> NDArray[np.uint8]:
        return np.packbits(self.rows[self.chunks[number][0]], axis=1)

    def _run_chunk(
        self, number: int, so_far: _Findings, advance: Callable[[int], None]
    ) -> dict[str, NDArray[np.generic]]:
        rows, plan = self.chunks[number]
        before = self.evaluator.n_forwards
        channels: list[list[NDArray[np.float64]]] = [[] for _ in self.regions]
        found: dict[str, NDArray[np.generic]] = {}
        games = so_far.games
        for row, fused in self.evaluator.run(plan, advance):
            if number == 0:
                references = [
                    self.heads.predicted(logits, region.target).cpu().numpy()
                    for region, logits in zip(self.regions, fused, strict=True)
                ]
                found |= {f"reference_{r}": reference for r, reference in enumerate(references)}
                found["prediction_differences"] = np.array(
                    [largest_difference(given, own) for given, own in zip(self.predictions, fused, strict=True)]
                )
                games = self.games(references)
            for r, (game, logits) in enumerate(zip(games, fused, strict=True)):
                channels[r].append(game.channels(logits.to(game.mask.device)))
            if rows[row] == 1:
                found["empty_classes"] = np.stack(
                    [game.class_counts(x.to(game.mask.device)) for game, x in zip(games, fused, strict=True)]
                )
        return {
            **found,
            **{f"channels_{r}": np.stack(values) for r, values in enumerate(channels)},
            "kept": self._kept(number),
            "passes": np.array(self.evaluator.n_forwards - before),
            "lowered_to": np.array(self.evaluator.passes.lowered_to or 0),
        }

    def games(self, references: Sequence[NDArray[np.bool_]]) -> list[RegionGame]:
        """The game of each region, on the device on which windows are added up."""
        device = self.evaluator.stitch_device
        found = []
        for region, reference, blocks in zip(self.regions, references, self.blocks, strict=True):
            arrays = (region.mask[box_slices(region.box)], reference, blocks)
            mask, p_0, block = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in arrays)
            found.append(RegionGame(mask, p_0, region.target, self.scores, self.signal, blocks=block, heads=self.heads))
        return found


class _Findings:
    """What the chunks of a sweep gave so far, on this rank."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        n_classes = sweep.chunks[0][1].n_classes
        self.channels = [
            np.full((len(sweep.rows), int(blocks.max()) + 1, len(CHANNELS)), np.nan) for blocks in sweep.blocks
        ]
        self.passes, self.lowered = np.zeros((2, len(sweep.chunks)), dtype=np.int64)
        self.differences = np.zeros(len(sweep.regions))
        self.empty_classes = np.zeros((len(sweep.regions), n_classes), dtype=np.int64)
        self.references: list[NDArray[np.bool_]] = []
        self.games: list[RegionGame] = []

    def add(self, number: int, rows: NDArray[np.int64], chunk: dict[str, NDArray[np.generic]]) -> None:
        """Take over a finished chunk."""
        for r, table in enumerate(self.channels):
            table[rows] = chunk[f"channels_{r}"]
        self.passes[number], self.lowered[number] = int(chunk["passes"]), int(chunk["lowered_to"])
        if number == 0:
            self.references = [chunk[f"reference_{r}"].astype(bool) for r in range(len(self.channels))]
            self.differences = chunk["prediction_differences"].astype(np.float64)
        if "empty_classes" in chunk:
            self.empty_classes = chunk["empty_classes"].astype(np.int64)

    def share_references(self) -> None:
        """Rank 0 has them; give them to the others."""
        ranks, shared = self.sweep.ranks, []
        for number, region in enumerate(self.sweep.regions):
            shape = tuple(b - a + 1 for a, b in zip(*region.box, strict=True))
            own = self.references[number] if self.references else np.zeros(shape, dtype=bool)
            shared.append(ranks.array_of_first(own.astype(np.uint8)).astype(bool))
        self.references = shared
        self.differences = ranks.array_of_first(self.differences).astype(np.float64)
        self.games = self.sweep.games(shared)

    def result(self, n_chunks: int) -> SweepResult:
        """The first chunks of all ranks together."""
        sweep, ranks = self.sweep, self.sweep.ranks
        n_rows = int(sweep.chunks[n_chunks - 1][0][-1]) + 1
        passes, lowered = ranks.sum(self.passes[:n_chunks]), ranks.sum(self.lowered[:n_chunks])
        return SweepResult(
            self.references,
            self.differences,
            ranks.sum(self.empty_classes),
            [ranks.merge_rows(table[:n_rows]) for table in self.channels],
            self.games,
            replace(total_forwards([plan for _, plan in sweep.chunks[:n_chunks]]), run=int(passes.sum())),
            int(lowered[lowered > 0].min()) if lowered.any() else None,
        )


@contextmanager
def kept_when_interrupted(folder: Path | None, what: str = "finished coalitions") -> Iterator[None]:
    """Say at an interruption where results are kept; None: they are not."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is not None:
            print(f"\ninterrupted; {what} are kept in {folder}; the same call continues there")
        raise


@contextmanager
def passes_bar(total: int, visible: bool, world: int) -> Iterator[Callable[[int], None]]:
    """A bar of network passes; with several ranks it shows rank 0's share times their number."""
    with tqdm(total=total, disable=not visible, unit="pass", desc="network passes", smoothing=0.05) as bar:

        def advance(n: int) -> None:
            bar.update(min(n * world, total - bar.n))

        yield advance
        if not bar.disable and bar.n < total:
            bar.total = bar.n  # stopped early, or fewer passes on this rank
            bar.refresh()
