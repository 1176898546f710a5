# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Shapley values by their definition, for games of a few units."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def shapley_over_all_orders(game: Mapping[tuple[bool, ...], Any], n_units: int) -> np.ndarray:
    """Mean marginal contribution (M, T) over every order in which units can join, from scores by coalition."""
    values = np.zeros((n_units, len(np.atleast_1d(next(iter(game.values()))))))
    for order in itertools.permutations(range(n_units)):
        kept = [False] * n_units
        before = game[tuple(kept)]
        for unit in order:
            kept[unit] = True
            after = game[tuple(kept)]
            values[unit] += after - before
            before = after
    return values / math.factorial(n_units)
