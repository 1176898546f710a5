# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of explanations (needs the ``plots`` extra; importing this package does not)."""

from __future__ import annotations

from .overview import plot_overview, save_overview

__all__ = ["plot_overview", "save_overview"]
