# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["whole_file", "whole_folder", "write_whole"]


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A file to write under another name; it gets its own when the block ends without an error.

    Args:
        path: in a folder that exists.

    Yields:
        the path to write to, beside the file.

    Raises:
        OSError: if it can not be written; what was there stays.
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        with open(partial, "rb") as stream:
            os.fsync(stream.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Write a file (text as UTF-8) and give it its name when it is complete.

    Raises:
        OSError: if it can not be written; what was there stays.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


@contextmanager
def whole_folder(folder: str | Path, last: Callable[[str], Any] | None = None) -> Iterator[Path]:
    """A folder to fill elsewhere; its files move to their place when the block ends without an error.

    Args:
        folder: made if absent, with its parents. Files of the same names are replaced, others stay.
        last: name -> order in which files move; what comes last says that everything else is there.

    Yields:
        the folder to write to.

    Raises:
        OSError: if it can not be written; nothing half-written stays.
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = not target.exists()
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield staging
        target.mkdir(exist_ok=True)
        for name in sorted((p.name for p in staging.iterdir()), key=last):
            os.replace(staging / name, target / name)
    except BaseException:
        if made and target.exists() and not any(target.iterdir()):
            target.rmdir()
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
