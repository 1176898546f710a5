# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""nnunetv2 is an extra: it is imported where it is used, and its absence is said in words."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

__all__ = ["require_nnunet"]

#: Lowest version that is supported, and the first that is not.
_LEAST, _BEYOND = (2, 7), (3, 0)


def require_nnunet() -> str:
    """Version of nnunetv2.

    Raises:
        ImportError: if it is not installed, or in a version that builds networks in another way.
    """
    try:
        found = version("nnunetv2")
    except PackageNotFoundError:
        raise ImportError('nnunetv2 is not installed; pip install "monai_segshap[nnunet]".') from None
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if not _LEAST <= numbers < _BEYOND:
        raise ImportError(
            f'nnunetv2 {found} is installed; expected 2.7 or later, below 3: pip install "monai_segshap[nnunet]".'
        )
    return found
