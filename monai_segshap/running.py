# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Run a bundle: over several cases and processes, and with clear sentences where the input is wrong."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.engines import Workflow

__all__ = [
    "case_name",
    "cases_of_rank",
    "datalist_entries",
    "file_stem",
    "gather_objects",
    "join_ranks",
    "leave_ranks",
    "list_cases",
    "local_device",
    "read_datalist",
    "require_distinct_cases",
    "root_cause",
    "run_evaluator",
]

logger = logging.getLogger(__name__)

#: Errors that speak of the input. Anything else keeps its whole traceback.
_INPUT_ERRORS = (ValueError, OSError)
_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def file_stem(path: str | Path) -> str:
    """Name of an image file without folder and ending; the whole name of any other file."""
    name = Path(path).name
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name


def case_name(path: str | Path) -> str:
    """Name of an image file without folder and ending, and without nnU-Net's number of the first channel (_0000)."""
    stem = file_stem(path)
    return stem.removesuffix("_0000") or stem


def list_cases(
    images: str | Path | Sequence[str | Path],
    organs: str | Path | Sequence[str | Path] | None = None,
    names: str | Sequence[str] | None = None,
) -> list[dict[str, str]]:
    """Cases for a MONAI `Dataset`.

    Args:
        images: one image file, or a list.
        organs: label map of each image, or its folder of masks; None: there are none.
        names: name of each case; None: the name of the image file, with the folder's where files share a name.

    Returns:
        a dictionary with "image", "case" and, where given, "organs" for each case.

    Raises:
        ValueError: for lists of different lengths, no image, or two cases of one name (their results would go to one
            folder).
    """
    paths = _as_list(images)
    maps = _as_list(organs) if organs is not None else [None] * len(paths)
    chosen = _as_list(names) if names is not None else _distinct_names([Path(str(p)) for p in paths])
    if not paths or len(maps) != len(paths) or len(chosen) != len(paths):
        raise ValueError(
            f"got {len(paths)} images, {len(maps)} organ maps and {len(chosen)} case names; expected at least one "
            "image and equal numbers."
        )
    require_distinct_cases(chosen)
    return [
        {"image": str(image), "case": str(name)} | ({"organs": str(labels)} if labels is not None else {})
        for image, labels, name in zip(paths, maps, chosen, strict=True)
    ]


def require_distinct_cases(names: Sequence[Any]) -> None:
    """Raise if two cases have one name: their results would go to one folder.

    Raises:
        ValueError: with these names.
    """
    twice = [name for name, count in Counter(map(str, names)).items() if count > 1]
    if twice:
        raise ValueError(f"several cases are named {', '.join(twice)}; give each one a name of its own (case).")


def read_datalist(
    source: str | Path | Sequence[Mapping[str, Any]], files: Sequence[str] = ("image", "organs")
) -> list[dict[str, Any]]:
    """Cases from a JSON or CSV file, or a list of dictionaries.

    Args:
        source: entries with "image" and, where wanted, other files, "case" (a name) and anything else that is known of
            a case. A JSON file holds a list of them, or a dictionary of one list (such as MONAI's {"testing": [...]}),
            a CSV file has a column for each. Paths in files are relative to the file's folder.
        files: entries that are paths; an empty one is left out.

    Returns:
        a dictionary for each case, with "image" and "case".

    Raises:
        ValueError: for another content; an entry without image; two cases of one name.
        OSError: if the file can not be read.
    """
    entries, folder, named = datalist_entries(source)
    bad = [number for number, entry in enumerate(entries) if not entry.get("image")]
    if bad:
        raise ValueError(f"entries {bad[:10]} (numbered from 0) of the data list {named} have no 'image'.")
    names = [entry.get("case") for entry in entries]
    if any(names) and not all(names):
        raise ValueError(f"some entries of the data list {named} have a 'case' and some do not; name all.")
    placed = [
        {key: str(folder / Path(str(entry[key])).expanduser()) for key in files if entry.get(key)} for entry in entries
    ]
    known = [{key: value for key, value in entry.items() if key not in files} for entry in entries]
    cases = list_cases([p["image"] for p in placed], None, [str(n) for n in names] if all(names) else None)
    return [more | paths | case for more, paths, case in zip(known, placed, cases, strict=True)]


def datalist_entries(source: str | Path | Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], Path, str]:
    """Entries of a data list as they are, the folder that their paths are relative to, and what to call the list.

    Args:
        source: see `read_datalist`.

    Raises:
        ValueError: if it is no list of dictionaries, or empty.
        OSError: if the file can not be read.
    """
    folder, named = Path(), "given"
    entries: Any = source
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        entries, folder, named = _read_entries(path), path.parent, str(source)
    if not isinstance(entries, Sequence) or not entries or not all(isinstance(e, Mapping) for e in entries):
        raise ValueError(f"the data list {named} holds no list of cases, dictionaries with 'image'.")
    return entries, folder, named


def _read_entries(path: Path) -> Any:
    if path.suffix.lower() == ".csv":
        return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"the data list {path} is neither CSV nor JSON: {error}.") from error
    if isinstance(content, Mapping):
        lists = {key: value for key, value in content.items() if isinstance(value, list) and _holds_cases(value)}
        if len(lists) != 1:
            raise ValueError(
                f"the data list {path} holds {len(lists)} lists of cases ({', '.join(map(str, lists)) or 'none'}); "
                "expected one: give a file with these cases alone."
            )
        return next(iter(lists.values()))
    return content


def _holds_cases(entries: Sequence[Any]) -> bool:
    return bool(entries) and all(isinstance(entry, Mapping) and "image" in entry for entry in entries)


def cases_of_rank(cases: Sequence[dict[str, str]], ranks: str = "share") -> list[dict[str, str]]:
    """The cases that this process explains.

    Args:
        cases: all of them.
        ranks: "share": every process takes part in every case; "alone": each has its own cases.
    """
    if ranks == "share" or not dist.is_initialized():
        return list(cases)
    return list(cases[dist.get_rank() :: dist.get_world_size()])


def _as_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, (str, Path)) else list(value)


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    names = [case_name(path) for path in paths]
    if len(set(names)) == len(names):
        return names
    return [f"{path.parent.name}_{name}" for path, name in zip(paths, names, strict=True)]


def join_ranks() -> None:
    """Join the process group if torchrun started several processes (NCCL on CUDA, otherwise gloo)."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        device = local_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def leave_ranks() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def gather_objects(own: Any) -> list[Any]:
    """What each process has, in the order of their ranks; a list of ``own`` alone where there is one process.

    Args:
        own: anything that pickles.
    """
    if not dist.is_available() or not dist.is_initialized():
        return [own]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def local_device() -> torch.device:
    """The CUDA device of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def root_cause(error: BaseException) -> BaseException:
    """The first error of a chain of "raised from"."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if before is None:
            break
        error = before
    return error


def run_evaluator(evaluator: Workflow) -> Any:
    """Run an evaluator; an error about the input is raised alone, without the transforms that it passed through.

    Args:
        evaluator: for example MONAI's `SupervisedEvaluator`.

    Returns:
        what ``evaluator.run()`` returns; None if there is no case, as for a process beyond the number of cases: then
        only the epoch's start and end are fired, so that handlers that gather over processes find all of them.

    Raises:
        ValueError, OSError: the error about the input itself. The full chain goes to the log at level DEBUG.
    """
    if hasattr(evaluator.data_loader, "__len__") and len(evaluator.data_loader) == 0:
        if dist.is_available() and dist.is_initialized():
            evaluator.fire_event(Events.EPOCH_STARTED)
            evaluator.fire_event(Events.EPOCH_COMPLETED)
        return None
    quiet = logging.getLogger(f"ignite.engine.engine.{type(evaluator).__name__}")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        return evaluator.run()
    except Exception as error:
        cause = root_cause(error)
        if not isinstance(cause, _INPUT_ERRORS):
            raise
        logger.debug("the error came from here", exc_info=error)
    finally:
        quiet.setLevel(level)
    # outside the handler, so that the wrappers do not become its context
    raise cause.with_traceback(None) from None
