# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What all tests of bundles start from."""

from __future__ import annotations

import pytest
from bundle_checks import ROOT


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    """Bundles are run in the root of the repository, as README says."""
    monkeypatch.chdir(ROOT)
