# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Cases x kinds of units: what runs, what is there already, what failed, and what a changed setting does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose
from study_records import made

from monai_segshap.explainers import Ranks
from monai_segshap.metrics import perturbation_curves
from monai_segshap.study import ExplanationStudy
from monai_segshap.transforms import CubeUnitsd, FCCUnitsd, KernelSHAPd, PredictLogitsd, SelectRegiond
from monai_segshap.units import Partition

SHAPE, BOX = (14, 14, 14), {"mode": "box", "box_ijk": [[6, 5, 4], [8, 7, 7]]}
KINDS = ("cubes", "fcc")


@pytest.fixture
def network(make_network, counting):
    return counting(make_network("conv"))


def load(case: dict[str, Any]) -> dict[str, Any]:
    if case.get("broken"):
        raise ValueError("this case can not be read")
    noise = np.random.default_rng(case["number"]).normal(size=(1, *SHAPE)).astype(np.float32)
    return {**case, "image": MetaTensor(torch.from_numpy(noise), affine=torch.eye(4))}


def study(network, folder, cases=("a", "b"), scores=("tp", "dice"), **options) -> ExplanationStudy:
    inferer = SlidingWindowInferer((8, 8, 8), 2, overlap=options.pop("overlap", 0.5), mode="gaussian")
    entries = [c if isinstance(c, dict) else {"case": c, "number": n} for n, c in enumerate(cases)]
    explaining = {"budget": options.pop("budget", 40), "store_dir": options.pop("store_dir", None)}
    explaining |= {"scores": scores, "method": "kernelshap", "tolerance": None}
    explain = KernelSHAPd("image", network, inferer, **explaining)
    prepare = Compose([load, PredictLogitsd("image", network, inferer), SelectRegiond("pred", 1, BOX, inferer=inferer)])
    units = {"cubes": CubeUnitsd("image", scale_mm=7.0), "fcc": FCCUnitsd("image", scale_mm=11.0)}
    return ExplanationStudy(
        entries, prepare, units, explain, folder, **{"curves": {"bounds": "none"}, "resamples": 50, **options}
    )


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures have tests of their own."""
    monkeypatch.setattr("monai_segshap.study.summary._pictures", lambda *_: {})


@pytest.fixture
def instant(monkeypatch, no_pictures) -> list[tuple[str, str]]:
    """Results from nowhere, where only the bookkeeping counts; the pairs that were asked for."""
    asked: list[tuple[str, str]] = []

    def result(self, case, kind, data, seconds):
        asked.append((case["case"], kind))
        record = made(case["case"], kind, {"tp": [3.0, 1.0]})
        return replace(record, identity=self.identity(case, kind))

    monkeypatch.setattr(ExplanationStudy, "_result", result)
    return asked


def test_every_pair_is_explained_and_measured(network, tmp_path):
    job = study(network, tmp_path, scores=("tp", "dice", "fp"))
    records = job.run()
    assert [(r.case, r.kind) for r in records] == [(c, k) for c in "ab" for k in KINDS]
    assert {p.name for p in tmp_path.iterdir()} >= {
        "results.csv",
        "table_1.csv",
        "costs.csv",
        "study.md",
        "curves_fp.png",
    }
    record = records[1]
    found = json.loads((tmp_path / "results" / "a" / "fcc.json").read_text())
    assert found["explanation"]["units"] == record.explanation["units"]
    assert set(record.curves) == {"tp", "dice", "fp"}
    # the curves are those of the network itself: removing units by the values on file, scored by a game of its own
    data = job.units["fcc"](job.prepare({"case": "a", "number": 0}))
    explain = job.explain["fcc"]
    (explanation,) = explain(dict(data))["explanations"]
    game = explain.explainer.game(
        data["image"], Partition.from_metatensor(data["units"]), explanation.region, data["pred"]
    )
    values = np.array([row["tp"] for row in record.explanation["attributions"]])
    np.testing.assert_allclose(values, explanation.values[:, 0], atol=1e-9)
    visible = explanation.visible
    column = game.scores.index("tp")
    again = perturbation_curves(lambda rows: game.of_visible(rows)[:, column], values[visible], bounds="none")
    assert record.curves["tp"]["summary"]["abpc"] == pytest.approx(again.abpc, abs=1e-9)
    np.testing.assert_allclose(record.curves["tp"]["table"]["lerf"], again.lerf, atol=1e-9)


def test_a_finished_run_needs_no_pass(network, tmp_path, no_pictures, capsys):
    study(network, tmp_path, ["a"]).run()
    before, text = network.n_windows, (tmp_path / "study.md").read_text()
    capsys.readouterr()
    records = study(network, tmp_path, ["a"]).run()
    assert network.n_windows == before
    assert len(records) == 2
    assert (tmp_path / "study.md").read_text() == text
    assert "2 of 2 results are there already" in capsys.readouterr().out


class Stopped(BaseException):
    """What a kill looks like from inside."""


def test_a_stopped_run_continues_without_repeating(network, tmp_path, no_pictures, monkeypatch):
    study(network, tmp_path / "whole", ["a"]).run()
    whole = network.n_windows
    first = study(network, tmp_path / "other", ["a"])
    original = first._curves

    def stop_before_the_second(explain, data, explanation):
        if explanation.partition.kind == "fcc":
            raise Stopped
        return original(explain, data, explanation)

    monkeypatch.setattr(first, "_curves", stop_before_the_second)
    with pytest.raises(Stopped):
        first.run()
    assert [p.name for p in (tmp_path / "other" / "results" / "a").iterdir()] == ["cubes.json"]
    lost = network.n_windows
    study(network, tmp_path / "other", ["a"]).run()
    records = [json.loads((tmp_path / f / "results" / "a" / "fcc.json").read_text()) for f in ("whole", "other")]
    assert records[0]["curves"] == records[1]["curves"]
    # the second session segments, calibrates, and does the one pair that is missing, from its explanation on
    passes = records[1]["explanation"]["forwards"]
    assert network.n_windows - lost == 27 + passes["calibration"] + passes["run"] + records[1]["curve_forwards"]
    assert network.n_windows - lost < whole


def test_the_store_keeps_the_explanation_that_a_stopped_run_had(network, tmp_path, no_pictures, monkeypatch):
    first = study(network, tmp_path, ["a"], store_dir=tmp_path / "evaluations")
    monkeypatch.setattr(first, "_curves", lambda *_: (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
        first.run()
    before = network.n_windows
    (record, _) = study(network, tmp_path, ["a"], store_dir=tmp_path / "evaluations", budgets={"fcc": 4}).run()
    assert network.n_windows - before == 27 + record.curve_forwards


def test_a_failure_is_kept_with_its_reason_and_tried_again(network, tmp_path, instant, capsys):
    cases = [{"case": "a", "number": 0}, {"case": "broken", "number": 1, "broken": True}]
    records = study(network, tmp_path, cases).run()
    assert [r.failed for r in records] == [False, False, True, True]
    assert records[2].reason == "ValueError: this case can not be read"
    assert "study: broken, cubes failed: ValueError: this case can not be read" in capsys.readouterr().out
    assert "| broken | cubes | ValueError: this case can not be read |" in (tmp_path / "study.md").read_text()
    instant.clear()
    records = study(network, tmp_path, [cases[0], {**cases[1], "broken": False}]).run()
    assert not any(r.failed for r in records)
    assert instant == [("broken", "cubes"), ("broken", "fcc")]


def test_one_kind_may_fail_alone(network, tmp_path, no_pictures):
    records = study(network, tmp_path, ["a"], budgets={"fcc": 4}).run()
    assert [r.failed for r in records] == [False, True]
    assert "budget of 4" in records[1].reason


def test_nothing_but_failures_is_an_error(network, tmp_path, instant):
    with pytest.raises(ValueError, match="no case could be explained; the first one: x: ValueError: this case"):
        study(network, tmp_path, [{"case": "x", "number": 0, "broken": True}]).run()
    assert (tmp_path / "results.csv").exists()
    assert instant == []


def test_a_missing_file_is_a_failure_of_its_case(network, tmp_path, instant):
    cases = [{"case": "a", "number": 0}, {"case": "b", "number": 1, "image": str(tmp_path / "nowhere.nii.gz")}]
    records = study(network, tmp_path, cases).run()
    assert [r.failed for r in records] == [False, False, True, True]
    assert "nowhere.nii.gz" in records[2].reason


def test_a_changed_setting_is_refused_before_anything_runs(network, tmp_path, instant):
    study(network, tmp_path, ["a"]).run()
    instant.clear()
    for options, message in (
        ({"budget": 44}, r"explainer\.settings\.budget was 40, is 44.*if_changed 'rerun'"),
        ({"curves": {"bounds": "none", "random_orders": 1}}, r"curves\.random_orders was absent, is 1"),
        ({"settings": {"center": "B"}}, r"settings\.center was absent, is B"),
        ({"overlap": 0.25}, r"inferer\.overlap was 0\.5, is 0\.25"),
    ):
        with pytest.raises(ValueError, match=message):
            study(network, tmp_path, ["new", "a"], **options).run()
    assert instant == []


def test_a_changed_file_is_a_changed_setting(network, tmp_path, instant):
    (tmp_path / "ct.nii.gz").write_bytes(b"before")
    case = {"case": "a", "number": 0, "image": str(tmp_path / "ct.nii.gz")}
    study(network, tmp_path / "out", [case]).run()
    (tmp_path / "ct.nii.gz").write_bytes(b"after")
    with pytest.raises(ValueError, match=r"files\.image was \w+, is \w+"):
        study(network, tmp_path / "out", [case]).run()
    (tmp_path / "ct.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"can not be read any more.*ct\.nii\.gz"):
        study(network, tmp_path / "out", [case]).run()


def test_a_changed_setting_reruns_on_request_what_it_concerns(network, tmp_path, instant, capsys):
    study(network, tmp_path, ["a"]).run()
    instant.clear()
    study(network, tmp_path, ["a"], budgets={"fcc": 44}, if_changed="rerun").run()
    assert instant == [("a", "fcc")]
    assert "a, fcc is run again: explain.explainer.settings.budget was 40, is 44" in capsys.readouterr().out


def test_explanations_are_saved_on_request(network, tmp_path, no_pictures, monkeypatch):
    monkeypatch.setattr("monai_segshap.writers.save_overview", lambda path, **_: path.write_bytes(b""))
    study(network, tmp_path, ["a"], save_explanations=True, budgets={"fcc": 4}).run()
    assert (tmp_path / "results" / "a" / "cubes" / "attribution_tp.nii.gz").exists()


def test_progress_says_what_is_next_and_how_long(network, tmp_path, instant, capsys):
    study(network, tmp_path, ["a", "b"]).run()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("study:")]
    assert lines == [
        "study: 1 of 4: a, cubes; 4 left",
        "study: 2 of 4: a, fcc; 3 left, about 0.6 min",  # twelve seconds each
        "study: 3 of 4: b, cubes; 2 left, about 0.4 min",
        "study: 4 of 4: b, fcc; 1 left, about 0.2 min",
    ]


def test_processes_have_cases_of_their_own(network, tmp_path):
    done = study(network, tmp_path)
    ranks = type("Two", (Ranks,), {"count": 2, "own": 0})
    object.__setattr__(done.explain["fcc"].explainer.settings, "ranks", ranks("alone"))
    with pytest.raises(ValueError, match="ranks='alone'"):
        ExplanationStudy(done.cases, done.prepare, done.units, done.explain["fcc"], tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": []}, "got 0 cases"),
        ({"cases": ["a", "a"]}, "2 cases, 1 different names"),
        ({"budgets": {"organs": 5}}, "kinds \\['organs'\\]; the study has cubes, fcc"),
        ({"if_changed": "ask"}, "expected 'refuse' or 'rerun'"),
    ],
)
def test_bad_options_are_named(network, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        study(network, tmp_path, **options)
