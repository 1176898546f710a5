# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table of texts, without a line break at its end; a "|" inside a cell stays a sign."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])
