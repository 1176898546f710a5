# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What `estimators.py` runs: games with known values and tables of real networks. Finished parts stay in a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from estimators_games import known_values, long_walks, make_game
from estimators_methods import Found, Sample, make_reference, overlap, own_estimates, paired_estimates, relative_error

Result = dict[str, Any]

#: Pairs of walks for the truth of a Dice game.
TRUTH_WALKS = 8000
SEEDS = 5
MULTIPLES = (1, 2, 4, 8)
_CHUNKS = 3


@dataclass(frozen=True)
class Setting:
    """A family of games: units, whether local, whether Dice, and the budgets."""

    n_units: int
    local: bool
    ratio: bool
    budgets: tuple[int, ...]

    @property
    def name(self) -> str:
        """For tables."""
        return f"{'local' if self.local else 'non-local'}{', Dice' if self.ratio else ''}, M = {self.n_units}"

    @property
    def default(self) -> str:
        """What `method="auto"` takes."""
        if self.n_units <= 20:
            return "kernelshap"
        return "gaussian process, blocks" if self.local else "gaussian process"


_BUDGETS = {9: (100, 256, 512), 64: (128, 256, 512), 200: (400, 800, 1600), 400: (800, 1600)}
SETTINGS = (
    *(Setting(m, local, False, budgets) for local in (True, False) for m, budgets in _BUDGETS.items()),
    Setting(64, True, True, _BUDGETS[64]),
)
TINY = (Setting(9, True, False, (100, 512)), Setting(9, False, False, (100,)), Setting(30, True, False, (120,)))


class Cache:
    """Results in a JSON file, each with its date and CPU seconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Result] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, key: str, run: Callable[[], Result]) -> Result:
        """What is stored, or else what ``run`` returns."""
        if key not in self.found:
            started = time.process_time()
            made = run()
            made["seconds"] = round(time.process_time() - started, 1)
            made["date"] = time.strftime("%Y-%m-%d")
            self.found[key] = made
            self.path.write_text(json.dumps(self.found, indent=1), encoding="utf-8")
            print(f"{key}: {made['seconds']} s", flush=True)
        return self.found[key]


def run_games(cache: Cache, settings: tuple[Setting, ...], seeds: int = SEEDS) -> dict[str, list[Result]]:
    """For each setting one result for each seed."""
    return {
        setting.name: [
            cache.get(f"{setting.name}, seed {seed}", lambda setting=setting, seed=seed: _game(setting, seed))
            for seed in range(seeds)
        ]
        for setting in settings
    }


def _game(setting: Setting, seed: int) -> Result:
    game, error = make_game(setting.n_units, setting.local, seed, setting.ratio), 0.0
    if setting.ratio:
        truth, error = long_walks(game, TRUTH_WALKS)
    else:
        truth = known_values(game)
    budgets = {}
    for budget in setting.budgets:
        found = paired_estimates(game.sample(budget, seed))
        found |= own_estimates(game, setting.n_units, budget, seed)
        budgets[str(budget)] = {name: _judged(made, truth) for name, made in found.items()}
    return {"truth_error": error, "budgets": budgets}


def _judged(found: Found, truth: np.ndarray) -> Result:
    judged: Result = {"error": float(relative_error(found.values, truth)[0])}
    if found.errors is not None:
        off = np.abs(found.values - truth)
        judged["coverage"] = float((off <= 1.96 * found.errors + 1e-12).mean())
        judged["stated"] = float(np.linalg.norm(found.errors) / np.linalg.norm(truth))
    return judged


def run_table(cache: Cache, key: str, sample: Sample, names: tuple[str, ...], least_rest: int = 3) -> dict[int, Result]:
    """Errors at each multiple of M for which enough other pairs are left.

    Args:
        cache: of results.
        key: of the table and region.
        sample: all pairs.
        names: of the scores.
        least_rest: pairs that must be left for the reference, in M.
    """
    found = {}
    for multiple in MULTIPLES:
        if sample.n_pairs - multiple * sample.n_units // 2 < least_rest * sample.n_units:
            continue
        found[multiple] = cache.get(
            f"{key}, {sample.n_pairs} pairs, {multiple} M", lambda m=multiple: _chunks(sample, m, names)
        )
    return found


def _chunks(sample: Sample, multiple: int, names: tuple[str, ...]) -> Result:
    """Disjoint chunks of pairs, each judged by pairs outside it."""
    m, n_pairs = sample.n_units, multiple * sample.n_units // 2
    count = min(_CHUNKS, sample.n_pairs // n_pairs) if multiple < 8 else 2
    count = max(1, min(count, sample.n_pairs // n_pairs))
    squared: dict[str, list[np.ndarray]] = {}
    stated: dict[str, list[np.ndarray]] = {}
    values: list[dict[str, Found]] = []
    references, norms = [], []
    for number in range(count):
        used = np.arange(number * n_pairs, (number + 1) * n_pairs)
        rest = np.setdiff1d(np.arange(sample.n_pairs), used)
        n_control = min(2 * m, len(rest) // 3)
        reference = make_reference(sample.pairs(rest[n_control:]), sample.pairs(rest[:n_control]), seed=number)
        made = paired_estimates(sample.pairs(used))
        values.append(made)
        references.append(reference.error)
        norms.append(reference.squared_norm)
        for name, found in made.items():
            squared.setdefault(name, []).append(reference.squared_error(found.values))
            spread = (found.errors**2).sum(axis=0) / np.abs(reference.squared_norm)
            stated.setdefault(name, []).append(np.sqrt(spread))

    def by_score(numbers: np.ndarray) -> dict[str, float]:
        return {name: float(x) for name, x in zip(names, numbers, strict=True)}

    result: Result = {"units": m, "evaluations": 2 * n_pairs, "chunks": count, "pairs": sample.n_pairs}
    result["squared_norm"] = by_score(np.mean(norms, axis=0))
    result["reference"] = by_score(np.mean(references, axis=0))
    result["squared_error"] = {name: by_score(np.mean(found, axis=0)) for name, found in squared.items()}
    result["spread"] = {name: by_score(np.std(found, axis=0)) for name, found in squared.items()}
    result["stated"] = {name: by_score(np.mean(found, axis=0)) for name, found in stated.items()}
    if count > 1:
        result["overlap"] = {
            name: by_score(np.array(overlap(values[0][name].values, values[1][name].values)))
            for name in values[0]
            if name in values[1]
        }
    return result
