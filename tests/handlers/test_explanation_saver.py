# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What ExplanationSaver writes, when, and where."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluated_files import alone, evaluator, explain, network, write_files
from processes import run_processes

from monai_segshap.handlers import ExplanationHandler, ExplanationSaver, explanation_rows
from monai_segshap.handlers.saver import _own_folder

JOB = Path(__file__).with_name("ranks_saver_job.py")


@pytest.fixture(scope="module")
def net():
    return network()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"), ["a", "b", "c"])


def run(files, net, out, make=None, saver_first=False, **options):
    engine = evaluator(files, net)
    handlers = [
        ExplanationHandler(make or explain(net), **options),
        ExplanationSaver(out, overview=False, print_table=False),
    ]
    for handler in reversed(handlers) if saver_first else handlers:
        handler.attach(engine)
    engine.run()
    return engine


def fails_at(net, name):
    whole = explain(net)

    def make(case):
        if name in case["image"].meta["filename_or_obj"]:
            raise ValueError(f"no voxel of it in {name}")
        return whole(case)

    return make


@pytest.mark.parametrize("saver_first", [False, True])
def test_folders_and_table_in_either_order_of_attaching(files, net, tmp_path, saver_first):
    engine = run(files, net, tmp_path, saver_first=saver_first)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c", "explanations.csv", "unexplained.csv"]
    table = pd.read_csv(tmp_path / "explanations.csv")
    assert table[["case", "score"]].values.tolist() == [[c, s] for c in "abc" for s in ("tp", "fp")]
    for row in table.to_dict("records"):
        (expected,) = alone(files["abc".index(row["case"])], net)
        t = expected.score_index(row["score"])
        best = int(np.abs(expected.values[:, t]).argmax())
        assert row["folder"] == row["case"]
        assert (row["class"], row["class_index"], row["region"]) == (expected.target_name, 1, "box")
        assert row["top_1_unit"] == expected.partition.names[best]
        assert row["top_1_value"] == pytest.approx(expected.values[best, t], abs=1e-5)
        assert row["top_1_se"] == pytest.approx(expected.standard_errors[best, t], abs=1e-5)
        assert abs(row["top_1_value"]) >= abs(row["top_2_value"]) >= abs(row["top_3_value"])
        assert row["full"] == pytest.approx(expected.full[t], abs=1e-5)
        assert row["empty"] == pytest.approx(expected.empty[t], abs=1e-5)
        assert row["evaluations"] == expected.evaluations
        assert row["forwards"] == expected.forwards.run
        assert row["converged"] == expected.converged[t]
        assert row["units"] == expected.partition.n_units
    assert pd.read_csv(tmp_path / "unexplained.csv").empty
    paths = [files["explanation.json"] for files in engine.state.explanation_files]
    assert paths == [tmp_path / name / "explanation.json" for name in "abc"]
    assert all(path.is_file() for path in paths)


def test_nothing_finished_is_lost_when_a_later_case_fails(files, net, tmp_path):
    with pytest.raises(ValueError, match="no voxel of it in c"):
        run(files, net, tmp_path, fails_at(net, "c.nii"))
    assert (tmp_path / "a" / "explanation.json").is_file()
    assert (tmp_path / "b" / "explanation.json").is_file()
    assert pd.read_csv(tmp_path / "explanations.csv")["case"].unique().tolist() == ["a", "b"]


def test_cases_without_explanation_are_listed_with_their_reasons(files, net, tmp_path):
    run(files, net, tmp_path, fails_at(net, "b.nii"), on_error="warn")
    assert pd.read_csv(tmp_path / "explanations.csv")["case"].unique().tolist() == ["a", "c"]
    missed = pd.read_csv(tmp_path / "unexplained.csv")
    assert missed.values.tolist() == [["b", 1, 0, "no voxel of it in b.nii"]]
    run(files[:1], net, tmp_path)
    assert pd.read_csv(tmp_path / "unexplained.csv").empty, "the tables are those of the last epoch"
    assert pd.read_csv(tmp_path / "explanations.csv")["case"].unique().tolist() == ["a"]
    assert (tmp_path / "c" / "explanation.json").is_file()


def test_a_saver_without_a_handler_says_so(files, net, tmp_path):
    engine = evaluator(files, net)
    ExplanationSaver(tmp_path).attach(engine)
    with pytest.raises(ValueError, match="attach an ExplanationHandler to it"):
        engine.run()


def test_explanations_of_another_type_are_refused(files, net, tmp_path):
    def make(case):
        return {"explanations": "a text"}

    with pytest.raises(TypeError, match="got a str of case 'a'; expected an Explanation"):
        run(files, net, tmp_path, make)


def test_two_patients_whose_files_have_one_name_get_folders_of_their_own(net, tmp_path):
    files = write_files(tmp_path, ["one/ct", "two/ct"])
    out = tmp_path / "out"
    run(files, net, out)
    run(files[::-1], net, out)  # later, in another order
    for folder, file in zip(("ct", "ct_2"), files, strict=True):
        assert json.loads((out / folder / "case.json").read_text()) == {"case": "ct", "image": file["image"]}
        record = json.loads((out / folder / "explanation.json").read_text())
        expected = alone(file, net)[0].values[:, 0]
        np.testing.assert_allclose([a["tp"] for a in record["attributions"]], expected, atol=1e-5)
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["ct", "ct_2"]
    table = pd.read_csv(out / "explanations.csv")
    assert table[["case", "folder"]].drop_duplicates().values.tolist() == [["ct", "ct_2"], ["ct", "ct"]]


def test_a_folder_whose_owner_can_not_be_read_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_segshap.handlers.saver._owner.__defaults__", (0.0,))
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "case.json").write_text("", encoding="utf-8")  # of a process that was killed
    assert _own_folder(tmp_path, "ct", "x.nii.gz") == tmp_path / "ct"


def test_several_explanations_of_a_case_are_numbered_also_over_several_handlers(files, net, tmp_path):
    engine = evaluator(files[:1], net)
    box = {"mode": "box", "box_ijk": [[5, 6, 1], [7, 9, 3]]}
    ExplanationHandler(explain(net)).attach(engine)
    ExplanationHandler(explain(net, target=[2, 0], region=[box, box])).attach(engine)
    ExplanationSaver(tmp_path, overview=False, print_table=False).attach(engine)
    engine.run()
    written = [p["explanation.json"].parent.relative_to(tmp_path).as_posix() for p in engine.state.explanation_files]
    assert written == ["a", "a/2_class_2", "a/3_class_0"]
    table = pd.read_csv(tmp_path / "explanations.csv")
    assert table["folder"].unique().tolist() == written
    assert [e.target for e in engine.state.explanations] == [1, 2, 0]


def test_a_case_that_a_sampler_repeats_is_written_once(files, net, tmp_path):
    run([files[0], files[1], files[0]], net, tmp_path)
    assert pd.read_csv(tmp_path / "explanations.csv")["folder"].tolist() == ["a", "a", "b", "b"]
    assert not list((tmp_path / "a").glob("[0-9]*"))


def test_the_report_is_printed(files, net, tmp_path, capsys):
    engine = evaluator(files[:1], net)
    ExplanationHandler(explain(net)).attach(engine)
    ExplanationSaver(tmp_path, overview=False).attach(engine)
    engine.run()
    shown = capsys.readouterr().out
    assert "a: why is this class 1?" in shown
    assert f"1 cases explained in {tmp_path}" in shown


def test_rows_of_an_explanation_that_was_not_asked_to_converge(files, net):
    (found,) = alone(files[0], net, tolerance=None)
    rows = explanation_rows(found, "a")
    assert [row["converged"] for row in rows] == [None, None]
    assert [row["score"] for row in rows] == ["tp", "fp"]
    assert rows[0]["notes"] == len(found.warnings)


@pytest.mark.xdist_group("ranks")
def test_two_processes_explain_their_own_cases_and_one_writes_the_table(net, tmp_path):
    names = ["a", "b", "one/ct", "two/ct", "e"]  # process 0 has a, one/ct and e, process 1 b and two/ct
    files = write_files(tmp_path, names)
    (tmp_path / "files.json").write_text(json.dumps(files), encoding="utf-8")
    out = tmp_path / "out"
    run_processes([JOB, tmp_path])
    table = pd.read_csv(out / "explanations.csv")
    assert table["folder"].value_counts().to_dict() == dict.fromkeys(["a", "b", "ct", "ct_2", "e"], 2)
    owners = {}
    for name in ("ct", "ct_2"):
        owners[json.loads((out / name / "case.json").read_text())["image"]] = name
    for file, name in zip(files, ["a", "b", owners[files[2]["image"]], owners[files[3]["image"]], "e"], strict=True):
        (expected,) = alone(file, net)
        top = table[(table["folder"] == name) & (table["score"] == "tp")]["top_1_value"].item()
        assert top == pytest.approx(expected.values[np.abs(expected.values[:, 0]).argmax(), 0], abs=1e-5)
        assert (out / name / "attributions.csv").is_file()
    missed = pd.read_csv(out / "unexplained.csv")
    assert missed[["case", "number", "rank"]].values.tolist() == [["bad", 3, 0], ["bad", 2, 1]]
    assert not list(out.glob("explanations.rank*.csv"))
    parts = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [part["part"] for part in parts] == ["explanations.rank0.csv", "explanations.rank1.csv"]
    assert [part["cases"] for part in parts] == [["a", "ct", "e"], ["b", "ct"]]
    assert set(pd.read_csv(tmp_path / "one" / "explanations.csv")["case"]) == {
        "a"
    }  # nobody waits for the other process
