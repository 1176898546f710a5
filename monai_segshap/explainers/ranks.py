# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Several processes: each explains its own cases, or all share the coalitions of one case."""

from __future__ import annotations

from dataclasses import dataclass

import ignite.distributed as idist
import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Ranks"]

#: What several processes do: each explains its own cases, or all share the coalitions of one case.
RANKS = ("alone", "share")


@dataclass(frozen=True)
class Ranks:
    """The processes that work on one case.

    Attributes:
        how: "alone": this process does everything and talks to no other; "share": all processes take part.
    """

    how: str = "alone"

    def __post_init__(self) -> None:
        if self.how not in RANKS:
            raise ValueError(f"unknown ranks {self.how!r}; expected one of {', '.join(RANKS)}.")

    @property
    def count(self) -> int:
        """Processes that share the case."""
        return int(idist.get_world_size()) if self.how == "share" else 1

    @property
    def own(self) -> int:
        """Number of this process among them."""
        return int(idist.get_rank()) if self.how == "share" else 0

    def require_one_case(self, case_digest: str) -> None:
        """Raise on every process unless all of them ask the same question of the same case.

        Raises:
            ValueError: if the digests differ.
        """
        if self.count == 1:
            return
        own = torch.tensor(list(bytes.fromhex(case_digest)), dtype=torch.uint8, device=idist.device())
        gathered = torch.as_tensor(idist.all_gather(own)).reshape(self.count, -1)
        if not bool((gathered == gathered[0]).all()):
            raise ValueError(
                "the processes work on different cases or questions, so they can not share coalitions. Give all of "
                "them the same case (no distributed sampler), or use ranks='alone'."
            )

    def text_of_first(self, text: str) -> str:
        """The text of process 0, on all of them."""
        if self.count == 1:
            return text
        length = int(self.array_of_first(np.array([len(text.encode())]))[0])
        own = np.zeros(length, dtype=np.uint8)
        if self.own == 0:
            own[:] = np.frombuffer(text.encode(), dtype=np.uint8)
        return self.array_of_first(own).tobytes().decode()

    def array_of_first(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """The array of process 0, on all of them; they must have one of its shape and type."""
        if self.count == 1:
            return array
        sent = idist.broadcast(torch.from_numpy(array.copy()).to(idist.device()), src=0)
        return np.asarray(torch.as_tensor(sent).cpu().numpy())

    def sum(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sum over the processes."""
        if self.count == 1:
            return counts
        # a copy: gloo adds in place
        summed = idist.all_reduce(torch.from_numpy(counts.copy()).to(idist.device()), "SUM")
        return np.asarray(torch.as_tensor(summed).cpu().numpy())

    def merge_rows(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows (K, ...) of all processes; each row is on exactly one of them, the others hold NaN.

        Raises:
            RuntimeError: if a row is on none or on several.
        """
        if self.count == 1:
            return table
        gathered = idist.all_gather(torch.from_numpy(table).to(idist.device()))
        parts = torch.as_tensor(gathered).cpu().numpy().reshape(self.count, *table.shape)
        present = ~np.isnan(parts).any(axis=tuple(range(2, parts.ndim)))
        if not (present.sum(axis=0) == 1).all():
            raise RuntimeError(
                "a coalition was evaluated by no rank or by several; the ranks do not work on the same case."
            )
        return np.asarray(parts[present.argmax(axis=0), np.arange(len(table))])
