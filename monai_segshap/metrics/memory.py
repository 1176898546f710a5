# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A game that remembers: each distinct coalition is asked once, and stored scores are never asked again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from monai_segshap.shapley import MAX_EXACT_UNITS, Game, all_coalitions

__all__ = ["Known", "ScoreMemory"]

Floats = NDArray[np.float64]
Rows = NDArray[np.bool_]

#: Stored scores: a table of all 2**M coalitions (row index = bit mask), or coalitions (K, M) and their scores.
Known = NDArray[np.floating] | tuple[NDArray[np.bool_], NDArray[np.floating]]


class ScoreMemory:
    """A game behind a memory of its coalitions.

    One evaluation serves all scores: ``memory.score(t)`` is the game of one of them, and what one has asked for is
    there for the next.

    Args:
        game: bool (K, M), True keeps a unit -> (K, T) or (K,) scores; None: everything is in ``known``.
        n_units: number of units M >= 1.
        known: scores of this very game that need no evaluation: (2**M, T) or (2**M,), row index = bit mask with unit 0
            as the lowest bit; or a pair of coalitions, bool (K, M), and scores (K, T) or (K,). Of a coalition that
            occurs twice the first score counts.
        n_scores: T that the game must have; None: whatever it returns.

    Attributes:
        n_evaluations: coalitions asked of the game so far, each once.
        n_calls: calls of the game so far.

    Raises:
        ValueError: for no units, or known scores of another shape or that are not finite.

    Example:
        >>> memory = ScoreMemory(lambda rows: rows.sum(axis=1, keepdims=True), 3)
        >>> memory([[True, False, True], [True, False, True]]).ravel().tolist(), memory.n_evaluations
        ([2.0, 2.0], 1)
    """

    def __init__(
        self, game: Game | None, n_units: int, known: Known | None = None, n_scores: int | None = None
    ) -> None:
        if n_units < 1:
            raise ValueError(f"got {n_units} units; there is nothing to remove without at least one.")
        self.n_units, self.n_evaluations, self.n_calls = n_units, 0, 0
        self._game, self._n_scores = game, n_scores
        self._place: dict[bytes, int] = {}
        self._scores = np.empty((0, 0))
        self._used: set[int] = set()
        if known is not None:
            self._add(*self._read(known))
        self._n_known = len(self._place)

    def __call__(self, rows: NDArray[np.generic]) -> Floats:
        """Scores (K, T) of coalitions (K, M); those not known yet are asked in one call, in the order given.

        Raises:
            ValueError: for coalitions of another shape, a game that returns another shape or no finite number, or if
                there is no game to ask.
        """
        wanted = _as_rows(rows, self.n_units, "the coalitions")
        keys = _keys(wanted)
        first = {key: number for number, key in reversed(list(enumerate(keys))) if key not in self._place}
        if first:
            new = wanted[sorted(first.values())]
            self._add(new, self._ask(new))
        places = [self._place[key] for key in keys]
        self._used.update(place for place in places if place < self._n_known)
        return np.asarray(self._scores[places])

    @property
    def n_reused(self) -> int:
        """Distinct coalitions that were needed and found in ``known``."""
        return len(self._used)

    @property
    def known(self) -> tuple[Rows, Floats]:
        """Everything that is there: distinct coalitions, bool (K, M), and their scores, float64 (K, T)."""
        if not self._place:
            return np.zeros((0, self.n_units), dtype=bool), np.zeros((0, self._n_scores or 0))
        packed = np.frombuffer(b"".join(self._place), dtype=np.uint8).reshape(len(self._place), -1)
        return np.unpackbits(packed, axis=1, count=self.n_units).astype(bool), self._scores.copy()

    @property
    def n_missing(self) -> int:
        """Coalitions of the 2**M that are not known yet."""
        return int(2**self.n_units) - len(self._place)

    def score(self, number: int) -> Callable[[Rows], Floats]:
        """The game of one score: bool (K, M) -> (K,)."""
        return lambda rows: self(rows)[:, number]

    def table(self) -> Floats:
        """Scores (2**M, T) of all coalitions, row index = bit mask; asks for those that are missing.

        Raises:
            ValueError: for more than ``MAX_EXACT_UNITS`` units.
        """
        return self(all_coalitions(self.n_units))

    def _read(self, known: Known) -> tuple[Rows, Floats]:
        if isinstance(known, tuple):
            if len(known) != 2:
                raise ValueError(f"known is a tuple of {len(known)}; expected coalitions (K, M) and their scores (K,).")
            rows = _as_rows(known[0], self.n_units, "the known coalitions")
            return rows, self._check(known[1], rows, "known scores")
        shape, m = np.shape(known), self.n_units
        if m > MAX_EXACT_UNITS or len(shape) not in (1, 2) or shape[0] != 2**m:
            raise ValueError(
                f"known has shape {shape}; a table of all coalitions of {m} units has 2**{m} rows (at most "
                f"{MAX_EXACT_UNITS} units). Give a part of them as a pair: (coalitions (K, {m}), scores (K,))."
            )
        rows = all_coalitions(m)
        return rows, self._check(known, rows, "known scores")

    def _ask(self, rows: Rows) -> Floats:
        if self._game is None:
            raise ValueError(
                f"{len(rows)} coalitions are not among the {len(self._place)} known ones, and game is None: give the "
                "game, or the scores of all coalitions."
            )
        answer = self._check(self._game(rows), rows, "the game's scores")
        self.n_evaluations += len(rows)
        self.n_calls += 1
        return answer

    def _check(self, scores: object, rows: Rows, what: str) -> Floats:
        found = np.asarray(scores, dtype=np.float64)
        if found.ndim not in (1, 2) or len(found) != len(rows):
            raise ValueError(
                f"{what} have shape {found.shape}; expected ({len(rows)},) or ({len(rows)}, T), a row each."
            )
        table = found[:, None] if found.ndim == 1 else found
        expected = self._n_scores if self._n_scores is not None else table.shape[1]
        if table.shape[1] != expected:
            choose = "Choose a column: lambda rows: game(rows)[:, t], or ScoreMemory(game, n_units).score(t)."
            raise ValueError(f"{what} have shape {found.shape}; expected {expected} score(s) a coalition. {choose}")
        if not np.isfinite(table).all():
            bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
            kept = np.flatnonzero(rows[bad[0]]).tolist()
            raise ValueError(
                f"{what} are not finite for {len(bad)} of {len(rows)} coalitions; the first keeps the units {kept} of "
                f"{self.n_units} and has {table[bad[0]].tolist()}. Expected finite numbers: define the score there, as "
                "Dice of two empty masks has to be."
            )
        self._n_scores = expected
        return table

    def _add(self, rows: Rows, scores: Floats) -> None:
        first: dict[bytes, int] = {}
        for number, key in enumerate(_keys(rows)):
            first.setdefault(key, number)
        start = len(self._place)
        self._place.update((key, start + n) for n, key in enumerate(first))
        new = scores[list(first.values())]
        self._scores = np.concatenate([self._scores, new]) if start else new


def _keys(rows: Rows) -> list[bytes]:
    return [row.tobytes() for row in np.packbits(rows, axis=1)]


def _as_rows(rows: object, n_units: int, what: str) -> Rows:
    found = np.asarray(rows)
    if found.ndim != 2 or found.shape[1] != n_units:
        raise ValueError(f"{what} have shape {found.shape}; expected (K, {n_units}), a column for each unit.")
    if found.dtype != bool and not np.isin(found, (0, 1)).all():
        raise ValueError(
            f"{what} have type {found.dtype} and values other than 0 and 1; expected True for a kept unit."
        )
    return np.ascontiguousarray(found, dtype=bool)
