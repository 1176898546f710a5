# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Shapley explanations of 3D medical image segmentation for MONAI."""

from __future__ import annotations

__version__ = "0.1.0"
