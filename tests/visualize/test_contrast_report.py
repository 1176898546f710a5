# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A cohort of contrast values from its tables alone: files, numbers, words, and what is left out."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from contrast_rows import BY_HAND, NAMES, contrast_rows, random_rows
from matplotlib.image import imread

from monai_segshap.metrics import (
    ReferenceRanking,
    contrast_agreement,
    contrast_associations,
    contrast_stability,
    read_contrast_table,
)
from monai_segshap.visualize import (
    analyze_contrasts,
    contrast_report,
    plot_contrast_agreement,
    plot_contrast_ranks,
    plot_contrast_stability,
    plot_contrast_values,
)

ALWAYS = {"values.csv", "values.png", "ranks.csv", "ranks.png", "summary.md"}
WITH_REFERENCE = {"agreement.csv", "agreement.png"}
WITH_FOLDS = {"stability.csv", "stability.png"}
EVERYTHING = ALWAYS | WITH_REFERENCE | WITH_FOLDS | {"associations.csv"}
NAN = (math.nan,) * 4
REFERENCE = ReferenceRanking(
    {"ET": ["t1c", "t1n", "t2w", "t2f"], "WT": ["t1n", "t2w", "t2f", "t1c"]}, "planted by this test"
)
DICE = {("p", "0"): 0.9, ("p", "1"): 0.8, ("q", "0"): 0.1, ("q", "1"): 0.7}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A table of twelve cases and three folds, of which one lacks a fold, and its report."""
    folder = tmp_path_factory.mktemp("contrasts")
    table = random_rows(12, 3, seed=1)
    table = table[~((table.case == "c4") & (table.fold == "2"))]
    table.to_csv(folder / "contrasts.csv", index=False)
    return folder, analyze_contrasts(folder / "contrasts.csv", folder / "out", REFERENCE, n_resamples=200)


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(contrast_report, "_draw", lambda *_, **__: None)


def drawn_texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [
        axes.get_title(loc="left") for axes in figure.axes
    ]


def test_everything_comes_from_the_table_alone(report):
    folder, files = report
    assert set(files) == EVERYTHING
    assert {p.name for p in (folder / "out").iterdir()} == EVERYTHING
    assert sorted(p.name for p in folder.iterdir()) == ["contrasts.csv", "out"]
    sizes = {"values": 2 * 4, "ranks": 2 * 3 * 4, "agreement": 12 * 3 * 2, "stability": 12 * 2, "associations": 6}
    tables = {name: pd.read_csv(files[f"{name}.csv"]) for name in sizes}
    assert {name: len(table) for name, table in tables.items()} == sizes
    for name in files:
        if name.endswith(".png"):
            assert imread(files[name]).std() > 0.01
    cohort = read_contrast_table(folder / "contrasts.csv")
    agreement, stability = contrast_agreement(cohort, REFERENCE), contrast_stability(cohort)
    np.testing.assert_allclose(tables["agreement"]["agreement"], agreement["agreement"])
    np.testing.assert_allclose(tables["stability"]["rank_variance"], stability["rank_variance"])
    expected = contrast_associations(agreement, stability, n_resamples=200)
    np.testing.assert_allclose(tables["associations"]["bootstrap_low"], expected["bootstrap_low"])
    assert tables["stability"]["n_folds"].value_counts().to_dict() == {3: 22, 2: 2}
    lacking = tables["agreement"][tables["agreement"]["agreement"].isna()]
    assert lacking["reason"].str.contains("no row of this case").tolist() == [True, True]


def test_the_summary_says_what_was_analyzed_and_what_was_found(report):
    text = report[1]["summary.md"].read_text(encoding="utf-8")
    assert "12 cases, 3 folds (0, 1, 2), 2 sub-regions (ET, WT), 4 contrasts (t1c, t1n, t2w, t2f)." in text
    assert "`dice_truth`: Dice against ground truth" in text
    assert "Reference ranking: planted by this test" in text
    assert "does not say what removed contrasts became" in text
    order = [line for line in text.splitlines() if line.startswith("| ET | 12 | ")]
    firsts = [cell.strip().split(" ")[0] for cell in order[0].split("|")[4:8]]
    values = pd.read_csv(report[1]["values.csv"])
    means = values[values.sub_region == "ET"].sort_values("mean", ascending=False)
    assert firsts == list(means["contrast"])
    assert firsts[0] == "t1c"
    agreement = pd.read_csv(report[1]["agreement.csv"])
    part = agreement[agreement.sub_region == "WT"]
    assert f"| WT | 35 | {part['agreement'].mean():.3g} [" in text
    assert f"| 0.375 | {part['spearman'].mean():.3g} |" in text
    assert f"| {part['reference_first'].mean():.0%} |" in text
    assert "| 1.25 |" in text
    assert "1 of 36 pairs of case and fold are not in the table: c4 lacks fold 2." in text
    assert "can not say whether a fold's network was trained on a case" in text
    assert text.count("* Agreement, ") == text.count("* Rank variance, ") == 3
    for name in ("values", "ranks", "agreement", "stability"):
        assert f"![{name}]({name}.png)" in text
    assert "confidence" not in text.lower()


def test_numbers_by_hand_reach_the_files(tmp_path, no_pictures):
    files = analyze_contrasts(contrast_rows(BY_HAND, dice=DICE), tmp_path / "out", REFERENCE, n_resamples=2000)
    values = pd.read_csv(files["values.csv"]).set_index("contrast")
    np.testing.assert_allclose(values["mean"], [3.25, 2.5, 2.25, 2.0])
    np.testing.assert_allclose(values["first_share"], [0.75, 0, 0, 0.25])
    agreement = pd.read_csv(files["agreement.csv"])
    assert agreement["agreement"].tolist() == [1, 0.75, 0, 0.75]
    assert agreement["dice"].tolist() == list(DICE.values())
    stability = pd.read_csv(files["stability.csv"])
    assert stability["rank_variance"].tolist() == [0.25, 2.25]
    row = pd.read_csv(files["associations.csv"]).set_index("measure").loc["agreement"]
    assert row["r"] == pytest.approx(np.corrcoef([1, 0.75, 0, 0.75], list(DICE.values()))[0, 1])
    assert (row["n_high"], row["n_low"], row["u_statistic"]) == (3, 1, 3)
    text = files["summary.md"].read_text(encoding="utf-8")
    assert "| ET | 2 | 0.625 | t1c 3.25 [2.5, 4] | t1n 2.5 [2, 3] | t2w 2.25 [1.5, 3] | t2f 2 [1.5, 2.5] |" in text
    assert "| ET | 4 | 0.625 [0.375, 0.875] | 0.375 | 0.4 | 0.333 | 75% |" in text
    assert "| ET | 2 | 1.25 [0.25, 2.25] | 1.25 |  |" in text  # the means of fold 0 are all 2.5
    assert "With 2 cases the intervals over cases are rough." in text


def test_one_network_without_reference_or_dice_is_described_as_far_as_it_goes(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("stability.png", "agreement.csv", "values.csv", "notes.txt"):
        (out / name).write_text("old")
    rows = {(f"c{n}", None): (0.1 * n, 0.3, 0.2, 0.0) for n in range(3)}
    files = analyze_contrasts(contrast_rows(rows, score="tp", dice=2.0), out)
    assert set(files) == ALWAYS
    assert {p.name for p in out.iterdir()} == ALWAYS | {"notes.txt"}
    text = files["summary.md"].read_text(encoding="utf-8")
    assert "3 cases, one network, 1 sub-region (ET)" in text
    assert "ranks are given over cases only" in text
    assert "There is no reference ranking" in text
    assert "holds no Dice against ground truth" in text
    assert "rank variance over folds\n" not in text
    assert "agreement.png" not in text
    ranks = pd.read_csv(files["ranks.csv"])
    assert ranks["fold"].isna().all()
    assert ranks.set_index("contrast")["rank"].to_dict() == {"t1n": 1, "t2w": 2, "t1c": 3, "t2f": 4}
    assert ranks["reference_rank"].isna().all()


def test_absent_sub_regions_ties_and_what_the_reference_lacks_are_remarks(tmp_path):
    table = pd.concat(
        [
            contrast_rows({**BY_HAND, ("r", "0"): (0.0,) * 4, ("r", "1"): (0.0,) * 4}, dice=0.5),
            contrast_rows(dict.fromkeys([*BY_HAND, ("r", "0"), ("r", "1")], NAN), "TC", dice=math.nan, reason="gone"),
            contrast_rows(BY_HAND, "WT"),
        ]
    )
    only = ReferenceRanking({"ET": list(NAMES), "TC": list(NAMES)}, "x")
    files = analyze_contrasts(table, tmp_path / "out", only, n_resamples=20)
    assert set(files) == EVERYTHING
    text = files["summary.md"].read_text(encoding="utf-8")
    assert "The reference does not rank WT" in text
    assert "where all values are equal, for example all 0: ET (2)" in text
    assert "TC has no value in 3 of 3 cases, which means leave out; the first is p: gone." in text
    assert "WT has no row in 1 of 3 cases." in text
    assert "| TC | 0 |  | no value |  |  |  |" in text
    agreement = pd.read_csv(files["agreement.csv"])
    assert set(agreement["sub_region"]) == {"ET", "TC"}
    assert agreement[agreement.sub_region == "TC"]["reason"].tolist() == ["gone"] * 6
    assert agreement[agreement.case == "r"]["agreement"].isna().all()
    assert pd.read_csv(files["ranks.csv"]).query("sub_region == 'TC'")["rank"].isna().all()
    bare = analyze_contrasts(contrast_rows({("p", None): BY_HAND["p", "0"]}, "ED"), tmp_path / "bare", only)
    assert set(bare) == ALWAYS
    assert "The reference does not rank ED" in bare["summary.md"].read_text(encoding="utf-8")


def test_three_contrasts_have_a_chance_level_of_their_own(tmp_path, no_pictures):
    rows = {pair: values[:3] for pair, values in BY_HAND.items()}
    table = contrast_rows(rows, names=NAMES[:3])
    files = analyze_contrasts(table, tmp_path / "out", ReferenceRanking({"ET": list(NAMES[:3])}, "x"))
    assert pd.read_csv(files["agreement.csv"])["chance"].tolist() == pytest.approx([1 / 3] * 4)
    assert pd.read_csv(files["stability.csv"])["chance"].tolist() == pytest.approx([2 / 3] * 2)
    text = files["summary.md"].read_text(encoding="utf-8")
    assert "| 0.333 |" in text
    assert "| 0.667 |" in text


def test_what_can_not_be_analyzed_writes_nothing(tmp_path):
    table, out = contrast_rows(BY_HAND), tmp_path / "out"
    two = pd.concat([contrast_rows(BY_HAND, score=score) for score in ("tp", "fp")])
    for wrong, words in ((table.drop(columns="score"), "no column score"), (two, "scores tp, fp; say which one")):
        with pytest.raises(ValueError, match=words):
            analyze_contrasts(wrong, out)
    with pytest.raises(ValueError, match="without a value"):
        analyze_contrasts(
            contrast_rows({("p", "0"): (1.0, 2.0)}, names=NAMES[:2]), out, ReferenceRanking({"ET": list(NAMES)}, "x")
        )
    with pytest.raises(ValueError, match=r"low is 0\.7 and high 0\.6"):
        analyze_contrasts(table, out, REFERENCE, low=0.7)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_half_written(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(contrast_report, "save_contrast_ranks", fails)
    with pytest.raises(OSError, match="no space left"):
        analyze_contrasts(contrast_rows(BY_HAND), tmp_path / "out", n_resamples=10)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        analyze_contrasts(contrast_rows(BY_HAND), tmp_path / "file" / "out", n_resamples=10)
    monkeypatch.undo()

    def without(name, *arguments):
        raise ImportError(name)

    path = tmp_path / "reference.yaml"
    path.write_text("source: x\nregions: {ET: [t1c]}\n")
    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r"monai_segshap\[bundle\]"):
        analyze_contrasts(contrast_rows(BY_HAND), tmp_path / "out", path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "reference.yaml"]


def test_several_files_and_what_removed_contrasts_became(tmp_path, no_pictures):
    sources = []
    for case, removal in (("p", "constant 0.0"), ("q", "channel_mean")):
        part = contrast_rows({k: v for k, v in BY_HAND.items() if k[0] == case}, removal=removal)
        sources.append(tmp_path / f"{case}.csv")
        part.to_csv(sources[-1], index=False)
    files = analyze_contrasts(sources, tmp_path / "out", n_resamples=10)
    text = files["summary.md"].read_text(encoding="utf-8")
    assert "Removed contrasts became: constant 0.0 (1 case); channel_mean (1 case)." in text
    assert "removed in several ways" in text
    assert pd.read_csv(files["values.csv"])["n"].tolist() == [4] * 4
    one = analyze_contrasts(sources[0], tmp_path / "one", n_resamples=10)["summary.md"].read_text(encoding="utf-8")
    assert "Removed contrasts became: constant 0.0 (1 case)." in one
    assert "several ways" not in one


# --- pictures ---


def test_the_heat_map_shows_every_value_with_its_interval():
    table = pd.concat([contrast_rows(BY_HAND), contrast_rows(dict.fromkeys(BY_HAND, NAN), "WT")])
    figure = plot_contrast_values(read_contrast_table(table), n_resamples=2000)
    image = figure.axes[0].images[0]
    np.testing.assert_allclose(image.get_array()[:, 0], [3.25, 2.5, 2.25, 2.0])
    assert image.get_array().mask[:, 1].all()
    assert image.get_clim() == (-3.25, 3.25)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("no value") == 4
    assert texts[:2] == ["3.2", "[2.5, 4.0]"]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["ET", "WT"]


def test_the_ranking_lines_follow_the_folds_and_tied_ones_stay_apart():
    rows = {("p", "0"): (4.0, 3.0, 2.0, 1.0), ("p", "1"): (3.0, 4.0, 1.0, 1.0)}
    figure = plot_contrast_ranks(read_contrast_table(contrast_rows(rows)), REFERENCE)
    (axes,) = figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.8]
    found = np.array([line.get_ydata() for line in lines])
    np.testing.assert_allclose(found[:, 0], [1, 2, 3, 4])
    np.testing.assert_allclose(found[:2, 1], [2, 1])
    assert found[2, 1] < 3.5 < found[3, 1]
    assert axes.get_ylim() == (4.4, 0.6)
    variance = (0.5 + 0.5 + 0.125 + 0.125) / 4
    assert f"rank variance of fold means {variance:.2g}" in axes.get_title(loc="left")
    squares = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "s"]
    assert squares == [1, 2, 3, 4]


def test_scatter_panels_hold_every_pair_and_the_chance_level():
    cohort = read_contrast_table(contrast_rows(BY_HAND, dice=DICE))
    figure = plot_contrast_agreement(contrast_agreement(cohort, REFERENCE), high=0.6)
    (axes,) = figure.axes
    points = axes.collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 0], list(DICE.values()))
    shift = points[:, 1] - np.array([1, 0.75, 0, 0.75])
    assert 0 < np.abs(shift).max() <= 0.022
    assert "chance 0.375" in drawn_texts(figure)
    assert axes.get_title(loc="left").startswith("ET: 4 points, 2 cases\nr = 0.")
    figure = plot_contrast_stability(contrast_stability(cohort))
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets(), [[0.85, 0.25], [0.4, 2.25]])
    assert "chance 1.25" in drawn_texts(figure)
    without = read_contrast_table(contrast_rows(BY_HAND, score="tp"))
    with pytest.raises(ValueError, match="none of 4 rows has both agreement"):
        plot_contrast_agreement(contrast_agreement(without, REFERENCE))
