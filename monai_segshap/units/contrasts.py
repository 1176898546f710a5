# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Input contrasts as units: groups of channels with names, and whether files and metadata agree with their order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "CONTRAST_SYNONYMS",
    "Contrasts",
    "canonical_contrast",
    "check_contrast_sources",
    "contrast_of_file",
    "order_contrast_files",
]

#: One contrast, many names: first that of BraTS since 2023, then BraTS 2012 to 2021, the Decathlon and others, all in
#: small letters without other signs.
CONTRAST_SYNONYMS: dict[str, tuple[str, ...]] = {
    "t1n": ("t1n", "t1", "t1w", "t1native", "t1pre"),
    "t1c": ("t1c", "t1ce", "t1gd", "t1wce", "t1post", "ct1"),
    "t2w": ("t2w", "t2"),
    "t2f": ("t2f", "flair", "t2flair"),
}
_CANONICAL = {name: first for first, names in CONTRAST_SYNONYMS.items() for name in names}
_ENDINGS = re.compile(r"\.(nii|nrrd|mha|mhd|npy|npz|img|hdr|dcm)(\.gz)?$", re.IGNORECASE)
#: BIDS: a T1-weighted image after contrast agent is a T1w with an entity "ce".
_BIDS_AGENT = re.compile(r"(^|_)ce-[0-9a-z]+_", re.IGNORECASE)


@dataclass(frozen=True)
class Contrasts:
    """The input channels of a network, grouped into N contrasts that can be removed.

    Attributes:
        names: N names, in the order in which values are given.
        channels: for each contrast the input channels that it owns; channels of no contrast are never removed.
        channel_names: C names, one for each input channel, "" where unknown; default the contrasts' own names where
            they have one channel, and as many channels as the contrasts need.

    Raises:
        ValueError: for no contrast, names that repeat (t1ce and t1c are one contrast), or channels that are negative,
            belong to two contrasts or to none that is named.

    Example:
        >>> Contrasts.parse(["t1c", "t1n", "t2w", "t2f"]).channels
        ((0,), (1,), (2,), (3,))
        >>> Contrasts.parse({"T1": [0, 1], "T2": [2, 3]}).names
        ('T1', 'T2')
    """

    names: tuple[str, ...]
    channels: tuple[tuple[int, ...], ...]
    channel_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = tuple(str(name) for name in self.names)
        channels = tuple(tuple(int(c) for c in group) for group in self.channels)
        if not names or len(names) != len(channels) or not all(channels):
            raise ValueError(
                f"got {len(names)} contrast names and channels {channels}; expected at least one contrast, and one or "
                "more channels for each."
            )
        _require_distinct(names, "contrasts")
        used = [c for group in channels for c in group]
        if len(set(used)) != len(used) or min(used) < 0:
            raise ValueError(f"contrasts own the channels {channels}; expected each of 0, 1, ... at most once.")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "channels", channels)
        object.__setattr__(self, "channel_names", self._channel_names(max(used) + 1))

    @classmethod
    def parse(cls, value: Any, channel_names: Sequence[str] | None = None) -> Contrasts:
        """Read contrasts from a configuration.

        Args:
            value: a `Contrasts`; names in the order of the channels; or a mapping from name to one channel or a list of
                them, each a number or one of ``channel_names``.
            channel_names: names of the input channels, in their order.

        Raises:
            ValueError: for anything else, or an unknown channel.
        """
        if isinstance(value, Contrasts):
            return value
        known = tuple(str(name) for name in channel_names or ())
        if isinstance(value, Mapping):
            groups = [group if _is_list(group) else [group] for group in value.values()]
            numbers = tuple(tuple(_channel_number(c, known) for c in group) for group in groups)
            return cls(tuple(map(str, value)), numbers, known)
        if not _is_list(value):
            raise ValueError(
                f"contrasts are {value!r}; expected their names in the order of the input channels, or a mapping from "
                "name to channels."
            )
        names = tuple(map(str, value))
        if known:
            return cls(names, tuple((_channel_number(name, known),) for name in names), known)
        return cls(names, tuple((c,) for c in range(len(names))))

    @property
    def n_contrasts(self) -> int:
        """Number of contrasts N."""
        return len(self.names)

    @property
    def n_channels(self) -> int:
        """Number of input channels C."""
        return len(self.channel_names)

    def labels(self, shape: Sequence[int]) -> torch.Tensor:
        """Int64 (C, H, W, D): number 1..N of the contrast that owns each channel, 0 for none. One number a channel."""
        numbers = torch.zeros(self.n_channels, dtype=torch.int64)
        for number, group in enumerate(self.channels, start=1):
            numbers[list(group)] = number
        return numbers.reshape(-1, 1, 1, 1).expand(-1, *(int(n) for n in shape))

    def require_channels(self, n_channels: int) -> None:
        """Raise unless an image has as many channels as the contrasts say.

        Raises:
            ValueError: with both numbers.
        """
        if n_channels != self.n_channels:
            raise ValueError(
                f"the image has {n_channels} channels; the contrasts describe {self.n_channels}: {self.describe()}. "
                "Name every input channel of the network, in its order; channels that are never removed go into "
                "channel_names only."
            )

    def describe(self) -> str:
        """Which channels belong to which contrast, on one line."""
        return ", ".join(
            f"{name} = {'channel' if len(group) == 1 else 'channels'} {', '.join(map(str, group))}"
            for name, group in zip(self.names, self.channels, strict=True)
        )

    def _channel_names(self, least: int) -> tuple[str, ...]:
        if self.channel_names:
            names = tuple(str(name) for name in self.channel_names)
            if len(names) < least:
                raise ValueError(f"got {len(names)} channel names; the contrasts use channels up to {least - 1}.")
            _require_distinct([name for name in names if name], "channels")
            return names
        own = {group[0]: name for name, group in zip(self.names, self.channels, strict=True) if len(group) == 1}
        return tuple(own.get(c, "") for c in range(least))


def canonical_contrast(name: str) -> str:
    """One spelling for all names of a contrast: "FLAIR" and "T2-FLAIR" give "t2f"; unknown names small letters."""
    plain = re.sub(r"[^0-9a-z]", "", str(name).lower())
    return _CANONICAL.get(plain, plain)


def contrast_of_file(name: str | Path, known: Iterable[str] = ()) -> str | None:
    """The contrast that a file name or a channel's name speaks of, see `canonical_contrast`; None: no word is known.

    The last word counts: "BraTS2021_00000_t1ce.nii.gz" and "BraTS-GLI-00000-000-t1c.nii.gz" are both "t1c".

    Args:
        name: of the file, with or without folder and ending; or of a channel.
        known: further names of contrasts beside `CONTRAST_SYNONYMS`.
    """
    stem = _stem(name)
    words = [word for word in re.split(r"[^0-9A-Za-z]+", stem) if word]
    table = _CANONICAL | {canonical_contrast(other): canonical_contrast(other) for other in known if other}
    for last in range(len(words) - 1, -1, -1):
        pair = "".join(words[max(last - 1, 0) : last + 1]).lower()
        found = table.get(pair) or table.get(words[last].lower())
        if found is not None:
            return "t1c" if found == "t1n" and _BIDS_AGENT.search(stem) else found
    return None


def check_contrast_sources(
    contrasts: Contrasts, sources: Sequence[str | Path] | Mapping[Any, str]
) -> tuple[str | None, ...]:
    """Raise if file names, or the names of channels in metadata, contradict the order of the contrasts.

    Args:
        contrasts: what the channels are said to be.
        sources: one file name or channel name for each input channel, in their order, or by number as in nnU-Net's
            ``channel_names``. Names without a known word ("case_0000.nii.gz") agree with anything, but nnU-Net's
            numbers must ascend from 0000.

    Returns:
        for each channel the contrast that its name speaks of, or None.

    Raises:
        ValueError: for another number of channels, a wrong order, or a missing or repeated contrast.
    """
    if isinstance(sources, Mapping):
        sources = [str(sources[key]) for key in sorted(sources, key=lambda key: int(key))]
    names = [str(source) for source in sources]
    if len(names) != contrasts.n_channels:
        raise ValueError(
            f"got {len(names)} files or channel names ({_shown(names)}); the contrasts describe "
            f"{contrasts.n_channels} channels: {contrasts.describe()}."
        )
    found = tuple(contrast_of_file(name, contrasts.channel_names) for name in names)
    expected = [canonical_contrast(name) for name in contrasts.channel_names]
    wrong = [
        f"channel {c} should be {contrasts.channel_names[c]}, but {Path(names[c]).name} is {found[c]}"
        for c in range(len(names))
        if expected[c] and found[c] is not None and found[c] != expected[c]
    ]
    if wrong:
        raise ValueError(f"{_reason(expected, found)}: {'; '.join(wrong)}. {_WAY_OUT}")
    _require_distinct([name for name in found if name is not None], "files")
    _require_numbers(names)
    return found


def order_contrast_files(contrasts: Contrasts, files: Sequence[str | Path]) -> list[str]:
    """Files of one case in the order of the input channels, found by the words in their names.

    Args:
        contrasts: every channel must have a name.
        files: one for each channel, in any order.

    Raises:
        ValueError: if a contrast has no file or several, or a file speaks of none of them.
    """
    expected = [canonical_contrast(name) for name in contrasts.channel_names]
    nameless = [c for c, name in enumerate(expected) if not name]
    if nameless:
        raise ValueError(
            f"the channel(s) {', '.join(map(str, nameless))} have no name ({contrasts.describe()}), so that files "
            "can not be found by name; give channel_names, or a list of the files in the order of the channels."
        )
    found: dict[str, list[str]] = {name: [] for name in expected}
    strange: list[str] = []
    for file in files:
        name = contrast_of_file(file, contrasts.channel_names)
        found.get(name or "", strange).append(str(file))
    missing = [contrasts.channel_names[c] for c, name in enumerate(expected) if not found[name]]
    twice = [Path(file).name for group in found.values() if len(group) > 1 for file in group]
    if missing or twice or strange:
        raise ValueError(
            f"the files can not be ordered by contrast ({contrasts.describe()}): missing {missing}, several for one "
            f"contrast {twice}, of none of them {[Path(file).name for file in strange]}. {_WAY_OUT}"
        )
    return [found[name][0] for name in expected]


_WAY_OUT = "Give files and contrasts in the order of the network's input channels; names may follow any BraTS year."


def _reason(expected: Sequence[str], found: Sequence[str | None]) -> str:
    named = [name for name in found if name is not None]
    repeated = sorted({name for name in named if named.count(name) > 1})
    missing = [name for name in expected if name and name not in named] if len(named) == len(found) else []
    if not repeated and not missing:
        return "the contrasts are in the wrong order"
    return "; ".join(
        ([f"{', '.join(repeated)} occurs more than once"] if repeated else [])
        + ([f"{', '.join(missing)} is missing"] if missing else [])
    )


def _require_distinct(names: Sequence[str], what: str) -> None:
    plain = [canonical_contrast(name) for name in names]
    twice = [name for name, other in zip(names, plain, strict=True) if plain.count(other) > 1]
    if twice:
        raise ValueError(f"{what} repeat: {', '.join(twice)} name the same contrast. {_WAY_OUT}")


def _require_numbers(names: Sequence[str]) -> None:
    """nnU-Net's CASE_0000, CASE_0001, ...: one case, ascending from 0."""
    parts = [re.fullmatch(r"(.*)_(\d{4})", _stem(name)) for name in names]
    matches = [part for part in parts if part is not None]
    if len(matches) < len(names) or len({m.group(1) for m in matches}) > 1 or len(names) < 2:
        return
    if [int(m.group(2)) for m in matches] != list(range(len(names))):
        raise ValueError(f"the files are numbered {_shown(names)}; expected _0000, _0001, ... in the channels' order.")


def _shown(names: Sequence[str]) -> str:
    return ", ".join(Path(name).name for name in names)


def _stem(name: str | Path) -> str:
    return _ENDINGS.sub("", Path(str(name)).name)


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))


def _channel_number(channel: Any, known: Sequence[str]) -> int:
    if isinstance(channel, str) and not channel.isdigit():
        plain = [canonical_contrast(name) for name in known]
        if canonical_contrast(channel) not in plain:
            raise ValueError(
                f"channel {channel!r} is none of the channel names {list(known)}; give its number, or one."
            )
        return plain.index(canonical_contrast(channel))
    return int(channel)
