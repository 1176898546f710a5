# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""How the network ran: recorded, announced, kept beside the scores, and said aloud where it is not as deployed."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from execution_job import INSIDE, ask, explainer_of, image_of, record, stored, whole_volume

NOISE = ("fast mode", "memory ran out", "bits")


@pytest.fixture(scope="module")
def network(make_network: Any) -> torch.nn.Module:
    return make_network("conv")


@pytest.fixture(scope="module")
def logits(network: torch.nn.Module) -> torch.Tensor:
    return whole_volume(network, image_of())


@pytest.fixture(scope="module")
def plain(network: torch.nn.Module, logits: torch.Tensor) -> Any:
    return ask(explainer_of(network), logits)


class SizeDependent(torch.nn.Module):
    """Logits that differ by a known step for each further window in the batch."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.network(windows) + 1e-3 * len(windows)


class Watched(torch.nn.Module):
    """Counts its batches."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.network(windows)


# --- as deployed ---


def test_by_default_the_network_runs_as_deployed_and_nothing_is_said(plain):
    assert plain.execution == {
        "numerics": "exact",
        "accumulator": "float32",
        "folds": 1,
        "mirror_axes": [],
        "runs_per_pass": 1,
        "batch_sizes": {"2": 2, "1": 2},
        "lowered_to": None,
        "library_bits": True,
        "largest_difference": 0.0,
        "prediction_difference": 0.0,
    }
    assert not any(noise in warning for warning in plain.warnings for noise in NOISE)
    assert plain.seconds["window"] > 0


def test_the_record_is_part_of_the_dictionary_for_json(plain):
    assert json.loads(json.dumps(plain.to_dict()))["execution"] == plain.execution


@pytest.mark.parametrize("library", [1, 2, 3])
def test_a_run_repeated_is_the_same_but_for_its_seconds(network, library):
    logits = whole_volume(network, image_of(), library)
    first, again = (ask(explainer_of(network, library), logits) for _ in range(2))
    assert record(first) == record(again)
    assert np.array_equal(first.values, again.values)


def test_batches_of_one_become_two_without_changing_a_value(network):
    logits = whole_volume(network, image_of(), 1)
    auto, library = (ask(explainer_of(network, 1, batch_size=b), logits) for b in ("auto", "library"))
    assert auto.execution["library_bits"]
    assert library.execution["library_bits"]
    assert library.execution["batch_sizes"] == {"1": 1}
    assert np.array_equal(auto.values, library.values)


def test_prediction_difference_is_that_of_the_prediction_given_inside_the_box(network, logits):
    changed, outside = logits.clone(), logits.clone()
    changed[2, INSIDE[0].start, INSIDE[1].start, INSIDE[2].stop - 1] += 0.5
    outside[:, 0, 0, 0] += 0.5
    outside[:, INSIDE[0].stop, INSIDE[1].start, INSIDE[2].start] += 0.5
    explainer = explainer_of(network)
    assert ask(explainer, changed).execution["prediction_difference"] == pytest.approx(0.5, abs=1e-6)
    assert ask(explainer, outside).execution["prediction_difference"] == 0.0


def test_a_crop_has_a_prediction_of_its_own(network, logits):
    found = ask(explainer_of(network, grid="crop"), logits)
    assert found.execution["prediction_difference"] > 0
    assert found.execution["library_bits"]


# --- fast modes and batch sizes ---


def test_a_fast_mode_is_named_in_record_and_warnings_and_changes_values(network, logits, plain):
    fast = ask(explainer_of(network, numerics="bf16"), logits)
    assert fast.execution["numerics"] == "fast: bf16 autocast"
    assert not fast.execution["library_bits"]
    assert 0 < fast.execution["largest_difference"] < 0.1
    assert 0 < fast.execution["prediction_difference"] < 0.1
    said = [warning for warning in fast.warnings if "fast mode" in warning]
    assert len(said) == 1
    assert "(bf16 autocast)" in said[0]
    assert f"{fast.execution['largest_difference']:.2g}" in said[0]
    assert not np.array_equal(fast.values, plain.values)
    np.testing.assert_allclose(fast.values, plain.values, rtol=0, atol=0.1 * np.abs(plain.values).max())


def test_a_fast_mode_has_a_store_of_its_own_beside_the_exact_one(network, logits, plain, tmp_path):
    def explain(network: torch.nn.Module, **options: Any) -> Any:
        return ask(explainer_of(network, store_dir=tmp_path, **options), logits)

    fast = explain(Watched(network), numerics="bf16")
    exact = explain(Watched(network))
    assert len(list(tmp_path.iterdir())) == 2
    assert record(exact) == record(plain)
    for options, expected in (({}, exact), ({"numerics": "bf16"}, fast)):
        counted = Watched(network)
        again = explain(counted, **options)
        assert record(again) == record(expected)
        assert counted.calls == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_autocast_of_the_caller_has_a_store_of_its_own(network, logits, tmp_path):
    exact = ask(explainer_of(network, store_dir=tmp_path), logits)
    with torch.autocast("cpu", torch.bfloat16):
        cast = ask(explainer_of(network, store_dir=tmp_path), logits)
    assert len(list(tmp_path.iterdir())) == 2
    assert not np.array_equal(exact.values, cast.values)
    assert record(ask(explainer_of(network, store_dir=tmp_path), logits)) == record(exact)


def test_a_batch_size_given_is_used_and_has_a_store_of_its_own(network, logits, plain, counting, tmp_path):
    counted = counting(network)
    found = ask(explainer_of(counted, batch_size=3, store_dir=tmp_path), logits)
    assert found.execution["batch_sizes"] == {"2": 3, "1": 3}
    run = [len(batch) for batch in counted.batches[-found.forwards.run // 3 :]]
    assert set(run) == {3}
    assert sum(run) == found.forwards.run == counted.n_windows - found.forwards.calibration
    np.testing.assert_allclose(found.values, plain.values, rtol=0, atol=1e-5)
    ask(explainer_of(counted, store_dir=tmp_path), logits)
    ask(explainer_of(counted, store_dir=tmp_path, batch_size="library"), logits)
    assert len(list(tmp_path.iterdir())) == 2


def test_bits_that_depend_on_the_batch_size_are_said(network):
    sized = SizeDependent(network)
    logits = whole_volume(sized, image_of())
    found = ask(explainer_of(sized, batch_size=5), logits)
    assert not found.execution["library_bits"]
    assert found.execution["largest_difference"] == pytest.approx(4e-3, abs=1e-5)  # the ragged batch of one
    assert 3e-3 - 1e-5 < found.execution["prediction_difference"] < 4e-3
    assert any("do not have the bits of the library's batches: on those tested" in w for w in found.warnings)
    kept = ask(explainer_of(sized), logits)
    assert kept.execution["library_bits"]
    assert kept.execution["prediction_difference"] == 0.0


@pytest.mark.parametrize("choice", [0, -1, True, "big"])
def test_a_bad_batch_size_is_refused_before_any_case(network, choice):
    with pytest.raises(ValueError, match="batch_size"):
        explainer_of(network, batch_size=choice)


def test_bad_numerics_are_refused_before_any_case(network):
    with pytest.raises(ValueError, match="numerics 'quick'"):
        explainer_of(network, numerics="quick")


# --- memory that runs out ---


def test_memory_that_runs_out_during_a_run_lowers_batches_and_is_said(network, logits, plain, limited, tmp_path):
    narrow = limited(network, 1, after=40)
    found = ask(explainer_of(narrow, store_dir=tmp_path), logits)
    assert len(narrow.failed) == 1
    assert found.execution["lowered_to"] == 1
    assert any("memory ran out, and batches were lowered to 1 windows" in warning for warning in found.warnings)
    assert found.forwards.run == found.forwards.planned == plain.forwards.run
    assert narrow.n_windows == found.forwards.run + found.forwards.calibration
    np.testing.assert_allclose(found.values, plain.values, rtol=0, atol=1e-5)
    again = ask(explainer_of(limited(network, 100), store_dir=tmp_path), logits)
    assert record(again) == record(found)


def test_the_flag_survives_when_another_session_with_enough_memory_finishes(network, logits, limited, tmp_path):
    class Narrow(limited):  # type: ignore[misc, valid-type]
        stop = 10**9

        def forward(self, windows: torch.Tensor) -> Any:
            if len(self.sizes) >= self.stop:
                raise KeyboardInterrupt
            return super().forward(windows)

    narrow = Narrow(network, 1, after=10)
    narrow.stop = 150
    with pytest.raises(KeyboardInterrupt):
        ask(explainer_of(narrow, store_dir=tmp_path), logits)
    kept = stored(tmp_path)
    assert any(int(np.load(path)["lowered_to"]) == 1 for path in kept)
    roomy = Narrow(network, 100)
    found = ask(explainer_of(roomy, store_dir=tmp_path), logits)
    assert 0 < roomy.n_windows < found.forwards.run
    assert set(roomy.sizes) == {2}
    assert found.execution["lowered_to"] == 1
    assert any("lowered to 1" in warning for warning in found.warnings)
    assert len(stored(tmp_path)) > len(kept)


def test_memory_that_runs_out_during_the_calibration_is_said_too(network, logits, limited):
    found = ask(explainer_of(limited(network, 1)), logits)
    assert found.execution["lowered_to"] == 1
    assert not found.execution["library_bits"]
    assert any("may differ in the last digits" in warning for warning in found.warnings)


def test_a_network_for_which_one_window_is_too_large_says_what_to_do(network, logits, limited):
    with pytest.raises(MemoryError, match=r"numerics='bf16', or a smaller max_bytes"):
        ask(explainer_of(limited(network, 0)), logits)


def test_lowered_batches_with_other_bits_do_not_claim_the_librarys(network, limited):
    sized = SizeDependent(network)
    logits = whole_volume(sized, image_of())
    lowered = ask(explainer_of(limited(sized, 1, after=60)), logits)
    whole = ask(explainer_of(sized), logits)
    assert lowered.execution["lowered_to"] == 1
    assert not np.array_equal(lowered.values, whole.values)
    assert not lowered.execution["library_bits"]


# --- passes before the run ---


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"batch_size": "library"}, {"grid": "crop"}], ids=str)
def test_passes_of_segmentation_calibration_and_run_are_all_that_the_network_sees(network, counting, options):
    counted = counting(network)
    logits = whole_volume(counted, image_of())
    segmentation = counted.n_windows
    found = ask(explainer_of(counted, **options), logits)
    assert found.forwards.calibration > 0
    assert found.forwards.run == found.forwards.planned
    assert counted.n_windows == segmentation + found.forwards.calibration + found.forwards.run
    assert found.to_dict()["forwards"]["calibration"] == found.forwards.calibration


def test_the_next_case_of_an_explainer_needs_no_calibration(network, counting):
    counted = counting(network)
    explainer = explainer_of(counted)
    first = ask(explainer, whole_volume(network, image_of()))
    seen = counted.n_windows
    assert seen == first.forwards.run + first.forwards.calibration
    second = ask(explainer, whole_volume(network, image_of(1)), seed=1)
    assert second.forwards.calibration == 0
    assert counted.n_windows - seen == second.forwards.run
    fresh = ask(explainer_of(network), whole_volume(network, image_of(1)), seed=1)
    assert np.array_equal(second.values, fresh.values)
    assert second.execution == fresh.execution


def test_a_resumed_run_takes_its_calibration_from_the_store(network, logits, counting, tmp_path):
    ask(explainer_of(counting(network), store_dir=tmp_path), logits)
    (note,) = stored(tmp_path, "calibration.json")
    content = json.loads(note.read_text())
    note.write_text(json.dumps({**content, "batch_sizes": {"2": 5, "1": 5}, "passes": 77}))
    for path in stored(tmp_path):
        path.unlink()
    counted = counting(network)
    found = ask(explainer_of(counted, store_dir=tmp_path), logits)
    assert found.execution["batch_sizes"] == {"2": 5, "1": 5}
    assert {len(batch) for batch in counted.batches} == {5}
    assert found.forwards.calibration == 77
    assert counted.n_windows == found.forwards.run == found.forwards.planned


@pytest.mark.parametrize(
    "damage",
    ['{"passes": ', "[]", "{}"],
)
def test_a_damaged_calibration_is_made_again(network, logits, plain, tmp_path, damage):
    ask(explainer_of(network, store_dir=tmp_path), logits)
    (note,) = stored(tmp_path, "calibration.json")
    note.write_text(damage)
    assert record(ask(explainer_of(network, store_dir=tmp_path), logits)) == record(plain)
    assert json.loads(note.read_text())["passes"] == plain.forwards.calibration


# --- the announcement ---


def announced(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Lines by what stands before their colon; the last word of a line with several colons is no matter."""
    lines = capsys.readouterr().out.strip().splitlines()
    return {line.split(":")[0]: line for line in lines}


def test_the_plan_is_announced_before_the_run(network, logits, plain, capsys, monkeypatch):
    ask(explainer_of(network, progress=True), logits)
    lines = announced(capsys)
    counts = plain.forwards
    passes = lines["network passes (windows)"]
    assert f"naive {counts.naive}, published cache {counts.published_cache}, planned {counts.planned} " in passes
    assert f"(1/{counts.naive / counts.planned:.1f} of naive); {counts.calibration} to calibrate" in passes
    sizes = "batches of 2, batches of 2 (library: 1)"
    assert lines["numbers"] == f"numbers: exact; {sizes}: the library's bits, tested on this device"
    assert re.fullmatch(
        r"memory: up to [\d.]+ [kM]B of logits \(to be kept at most 4\.0 GB\), [\d.]+ [kM]B for image and units.*",
        lines["memory"],
    )
    assert re.fullmatch(r"expected time: \d+ s \([\d.e-]+ s a window\)", lines["expected time"])
    assert "finished coalitions" not in "".join(lines)


def test_expected_time_is_that_of_the_passes_left(network, logits, capsys, tmp_path):
    found = ask(explainer_of(network, store_dir=tmp_path), logits)
    (note,) = stored(tmp_path, "calibration.json")
    note.write_text(json.dumps({**json.loads(note.read_text()), "seconds_per_window": 100.0}))
    chunks = stored(tmp_path)
    assert len(chunks) > 2
    gone = sum(int(np.load(path)["passes"]) for path in chunks[-2:])
    for path in chunks[-2:]:
        path.unlink()
    ask(explainer_of(network, store_dir=tmp_path, progress=True), logits)
    lines = announced(capsys)
    hours, minutes = divmod(round(gone * 100 / 60), 60)
    time = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
    already = found.forwards.planned - gone
    assert lines["expected time"] == f"expected time: {time} (100 s a window), {already} passes are already there"
    assert any(f"kept in {chunks[0].parent}; the same call continues" in line for line in lines.values())


def test_a_finished_run_is_announced_as_such(network, logits, capsys, tmp_path):
    found = ask(explainer_of(network, store_dir=tmp_path), logits)
    ask(explainer_of(network, store_dir=tmp_path, progress=True), logits)
    line = announced(capsys)["expected time"]
    assert line.startswith("expected time: 0 s ")
    assert line.endswith(f", {found.forwards.planned} passes are already there")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"numerics": "bf16", "batch_size": "library"}, "fast: bf16 autocast; batches of 2, batches of "),
        ({"batch_size": 5}, "exact; batches of 5 (library: 2), batches of 5 (library: 1)"),
    ],
    ids=["fast", "batches"],
)
def test_numbers_that_are_not_the_librarys_are_announced(network, capsys, options, expected):
    sized = SizeDependent(network)
    ask(explainer_of(sized, progress=True, **options), whole_volume(sized, image_of()))
    line = announced(capsys)["numbers"]
    assert line.startswith(f"numbers: {expected}")
    assert re.search(r": a logit differs from the library's batches by up to 0\.0\d+$", line)
