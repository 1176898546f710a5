# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest

from monai_segshap import files
from monai_segshap.shapley import ValueStore, digest
from monai_segshap.shapley import store as store_module

IDENTITY = {"network": "a" * 64, "coalitions": "kernelshap, 20 units, seed 0"}


def test_finished_chunks_come_back_and_others_are_missing(tmp_path):
    scores = np.random.default_rng(0).normal(size=(5, 2, 4))
    ValueStore(tmp_path / "s", IDENTITY).write(3, scores=scores, passes=np.array(7))
    again = ValueStore(tmp_path / "s", IDENTITY)
    assert np.array_equal(again.read(3)["scores"], scores)
    assert int(again.read(3)["passes"]) == 7
    assert again.read(2) is None


def test_another_identity_is_refused_with_what_differs(tmp_path):
    ValueStore(tmp_path, IDENTITY)
    with pytest.raises(
        ValueError, match=r"these differ: coalitions.*network \(there aaaaaaaaaaaa\.\.\., here bbbbbbbbbbbb"
    ):
        ValueStore(tmp_path, {"network": "b" * 64, "coalitions": "exact, 5 units, seed 0"})


def test_a_missing_field_is_a_difference(tmp_path):
    ValueStore(tmp_path, IDENTITY)
    with pytest.raises(ValueError, match=r"image \(there nothing, here abc\)"):
        ValueStore(tmp_path, {**IDENTITY, "image": "abc"})


def test_a_folder_with_another_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("not json")
    with pytest.raises(ValueError, match="is no manifest of a value store"):
        ValueStore(tmp_path, IDENTITY)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off", b"\x00" * 100])
def test_a_damaged_chunk_counts_as_not_finished(damage, tmp_path):
    store = ValueStore(tmp_path, IDENTITY)
    store.write(0, scores=np.ones(3))
    (path,) = tmp_path.glob("chunk_*.npz")
    path.write_bytes(damage)
    assert store.read(0) is None
    store.write(0, scores=np.zeros(3))
    assert np.array_equal(store.read(0)["scores"], np.zeros(3))


@pytest.mark.parametrize("where", ["savez", "fsync", "replace"])
def test_a_full_disk_keeps_what_is_finished_and_leaves_nothing_else(where, tmp_path, monkeypatch):
    store = ValueStore(tmp_path, IDENTITY)
    store.write(0, scores=np.ones(3))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.np if where == "savez" else files.os, where, full)
    with pytest.raises(OSError, match="No space left"):
        store.write(1, scores=np.ones(3))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_note_comes_back_and_another_one_replaces_it(tmp_path):
    store = ValueStore(tmp_path, IDENTITY)
    assert store.read_note("calibration") is None
    store.write_note("calibration", {"passes": 7})
    store.write_note("calibration", {"sizes": {"2": 4}, "seconds": 0.25, "words": "größer als 1 µs", "none": None})
    expected = {"sizes": {"2": 4}, "seconds": 0.25, "words": "größer als 1 µs", "none": None}
    assert ValueStore(tmp_path, IDENTITY).read_note("calibration") == expected
    assert store.read_note("another") is None


@pytest.mark.parametrize("damage", [b"", b'{"passes": ', b"\xff\xfe\x00", b"[1, 2]", b"null", b"7"])
def test_a_damaged_note_counts_as_none_and_can_be_written_again(damage, tmp_path):
    store = ValueStore(tmp_path, IDENTITY)
    store.write_note("calibration", {"passes": 7})
    (tmp_path / "calibration.json").write_bytes(damage)
    assert store.read_note("calibration") is None
    store.write_note("calibration", {"passes": 8})
    assert store.read_note("calibration") == {"passes": 8}


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_note_on_a_full_disk_leaves_nothing_half_written(where, tmp_path, monkeypatch):
    store = ValueStore(tmp_path, IDENTITY)
    store.write_note("calibration", {"passes": 7})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, where, full)
    for name in ("calibration", "another"):
        with pytest.raises(OSError, match="No space left"):
            store.write_note(name, {"passes": 8})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert store.read_note("calibration") == {"passes": 7}


def test_digest_sees_values_types_shapes_and_order():
    a = np.arange(6, dtype=np.int32)
    others = [a + 1, a.astype(np.int64), a.reshape(2, 3), a[::-1]]
    assert len({digest(x) for x in [a, *others]}) == 5
    assert digest(a, "x") != digest(a, "y") != digest("y", a)
    assert digest(a.reshape(2, 3).T) == digest(a.reshape(2, 3).T.copy())
