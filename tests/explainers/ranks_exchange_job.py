# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What processes give each other, as a script for torchrun; each writes what it received."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ignite.distributed as idist
import numpy as np

from monai_segshap.explainers.ranks import Ranks
from monai_segshap.running import join_ranks, leave_ranks

TEXT = "größer als 1 µs — \N{SNOWMAN}\N{MUSICAL SYMBOL G CLEF}\n" * 5000


def error_of(call):
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def rows_of(present):
    """A table of four rows that holds the given ones."""
    table = np.full((4, 2, 3), np.nan)
    table[present] = np.arange(24.0).reshape(4, 2, 3)[present]
    return table


def exchange(ranks):
    own = idist.get_rank()
    texts = (TEXT, "", "ü") if own == 0 else ("", "another text, much longer than that of the first", "b" * 9)
    arrays = (np.arange(6.0).reshape(2, 3), np.array([True, False]), np.zeros((0, 2), np.int32))
    mine = [array if own == 0 else np.ones_like(array) for array in arrays]
    received = [ranks.array_of_first(array) for array in mine]
    return {
        "count": ranks.count,
        "own": ranks.own,
        "texts": [ranks.text_of_first(text) for text in texts],
        "arrays": [array.tolist() for array in received],
        "types": [str(array.dtype) for array in received],
        "kept": [array.tolist() for array in mine],
        "sum": ranks.sum(np.array([own, 10, 0])).tolist(),
        "merged": ranks.merge_rows(rows_of([0, 2] if own == 0 else [1, 3])).tolist(),
        "missing": error_of(lambda: ranks.merge_rows(rows_of([0, 2] if own == 0 else [1]))),
        "twice": error_of(lambda: ranks.merge_rows(rows_of([0, 2, 3] if own == 0 else [1, 3]))),
        "same": error_of(lambda: ranks.require_one_case("ab" * 32)),
        "different": error_of(lambda: ranks.require_one_case(("ab" if own == 0 else "cd") * 32)),
    }


if __name__ == "__main__":
    join_ranks()
    found = {how: exchange(Ranks(how)) for how in ("share", "alone")}
    Path(sys.argv[1], f"rank{idist.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    leave_ranks()
