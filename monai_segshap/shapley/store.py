# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Scores of evaluated coalitions on disk: append-only, crash-safe, and refused by any other question."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from monai_segshap.files import whole_file

__all__ = ["ValueStore", "digest"]

_FORMAT = "1"


def digest(*parts: NDArray[np.generic] | bytes | str) -> str:
    """Hexadecimal SHA-256 of arrays (with dtype and shape), bytes and strings."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype.str}{part.shape}".encode())
            state.update(np.ascontiguousarray(part).tobytes())
        else:
            state.update(part.encode() if isinstance(part, str) else part)
        state.update(b"\x00")
    return state.hexdigest()


class ValueStore:
    """Finished chunks of a run, one file each.

    A chunk file is written under another name and then renamed: it is there whole or not at all. A process killed at
    any moment loses the chunk it was working on, nothing else. Several processes may write different chunks.

    Args:
        folder: made if absent.
        identity: what the scores depend on, as name and digest or short text. A folder with another identity is
            refused.

    Raises:
        ValueError: if the folder holds scores of another identity, or is no store.
        OSError: if it can not be written.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        self.identity = {"format": _FORMAT, **{k: str(v) for k, v in identity.items()}}
        self.folder.mkdir(parents=True, exist_ok=True)
        manifest = self.folder / "manifest.json"
        if not manifest.exists():
            text = json.dumps(self.identity, indent=1, sort_keys=True)
            self._write(manifest, lambda stream: stream.write(text.encode()))
        self._compare(manifest)

    def read(self, chunk: int) -> dict[str, NDArray[np.generic]] | None:
        """Arrays of a finished chunk, or None if it is not finished (or its file is damaged: then it is run again)."""
        path = self._path(chunk)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as content:
                return {name: content[name] for name in content.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError):
            return None

    def write(self, chunk: int, **arrays: NDArray[np.generic]) -> None:
        """Store the arrays of a finished chunk.

        Raises:
            OSError: if the disk is full or the folder can not be written; finished chunks stay as they are.
        """
        self._write(self._path(chunk), lambda stream: np.savez(stream, allow_pickle=False, **arrays))

    def read_note(self, name: str) -> dict[str, Any] | None:
        """What `write_note` kept under a name, or None if there is nothing or it is damaged."""
        try:
            found = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write_note(self, name: str, note: Mapping[str, Any]) -> None:
        """Keep plain values beside the chunks, for the sessions that continue the run.

        Raises:
            OSError: if it can not be written.
        """
        text = json.dumps(note, indent=1, sort_keys=True)
        self._write(self.folder / f"{name}.json", lambda stream: stream.write(text.encode()))

    def _path(self, chunk: int) -> Path:
        return self.folder / f"chunk_{chunk:06d}.npz"

    def _write(self, path: Path, fill: Callable[[BinaryIO], Any]) -> None:
        with whole_file(path) as partial, open(partial, "wb") as stream:
            fill(stream)

    def _compare(self, manifest: Path) -> None:
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{manifest} is no manifest of a value store: {error}. Name an empty folder.") from error
        differing = sorted(k for k in {*found, *self.identity} if found.get(k) != self.identity.get(k))
        if differing:
            lines = [f"{k} (there {_short(found.get(k))}, here {_short(self.identity.get(k))})" for k in differing]
            raise ValueError(
                f"the value store {self.folder} belongs to another run; these differ: {', '.join(lines)}. Resume with "
                "the settings of that run, name another folder, or delete this one."
            )


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value[:12] + "..." if len(value) > 24 else value
