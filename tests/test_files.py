# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Files appear whole or not at all."""

from __future__ import annotations

import os

import pytest

from monai_segshap.files import whole_file, whole_folder, write_whole


def test_a_file_gets_its_name_at_the_end(tmp_path):
    path = tmp_path / "table.csv"
    with whole_file(path) as partial:
        partial.write_text("a")
        assert not path.exists()
        assert partial.parent == tmp_path
    assert path.read_text() == "a"
    assert write_whole(path, "höher") == path
    assert path.read_bytes() == "höher".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("where", ["inside", "replace", "fsync"])
def test_an_error_leaves_what_was_there(where, tmp_path, monkeypatch):
    write_whole(tmp_path / "a", b"before")

    def full(*args):
        raise OSError(28, "No space left on device")

    if where != "inside":
        monkeypatch.setattr(os, where, full)

    def write() -> None:
        with whole_file(tmp_path / "a") as partial:
            partial.write_text("half")
            if where == "inside":
                full()

    with pytest.raises(OSError, match="No space left"):
        write()
    assert (tmp_path / "a").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def test_files_of_a_folder_move_in_order(tmp_path, monkeypatch):
    moved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(b.name), replace(a, b)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with whole_folder(tmp_path / "out", lambda name: name == "a.json") as staging:
        for name in ("a.json", "b", "c"):
            (staging / name).write_text(name)
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
    assert moved[-1] == "a.json"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.json", "b", "c", "mine"]


def test_a_failed_folder_is_not_there(tmp_path):
    def fill() -> None:
        with whole_folder(tmp_path / "deep" / "out") as staging:
            (staging / "a").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert list((tmp_path / "deep").iterdir()) == []
