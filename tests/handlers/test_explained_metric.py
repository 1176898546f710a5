# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Metrics of the explanations that a handler chose."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from evaluated_files import INFERER, evaluator, explain, network, preprocessing, write_files
from monai.handlers import MetricsSaver
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose

from monai_segshap.handlers import ExplanationHandler, ExplanationMetricHandler
from monai_segshap.metrics import ConvergenceMetric, PerturbationCurveMetric, perturbation_curves
from monai_segshap.transforms import PerturbationCurvesd, PredictLogitsd


@pytest.fixture(scope="module")
def net():
    return network()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"), ["a", "b", "c"])


def with_curves(net):
    whole = explain(net)
    return Compose([whole, PerturbationCurvesd("explanations", whole.transforms[-1], bounds="none")])


def curves_alone(net, file):
    """Of the case alone, every coalition from its game."""
    case = PredictLogitsd("image", net, SlidingWindowInferer(**INFERER))(preprocessing()(dict(file)))
    whole = explain(net)
    (found,) = whole(case)["explanations"]
    game = whole.transforms[-1].explainer.game(case["image"], found.partition, found.region, case["pred"])
    return perturbation_curves(game.score("tp"), found.values[:, 0], bounds="none")


@pytest.mark.parametrize("first", ["handler", "metric"])
def test_curves_of_the_chosen_cases_reach_the_metrics_of_the_engine(files, net, tmp_path, first):
    engine = evaluator(files, net)
    handlers = [
        ExplanationHandler(with_curves(net), select=lambda case: "b.nii" not in case["image"].meta["filename_or_obj"]),
        ExplanationMetricHandler(
            PerturbationCurveMetric("tp", ["abpc", "aopc"], named=True), "curves", output_dir=tmp_path
        ),
    ]
    for handler in handlers if first == "handler" else reversed(handlers):
        handler.attach(engine)
    MetricsSaver(str(tmp_path), metrics="*").attach(engine)
    for _ in range(2):  # each epoch starts anew
        engine.run()
        assert [e.case for e in engine.state.explanations] == ["a", "c"]
    wanted = [curves_alone(net, file) for file in files[::2]]
    rows = pd.read_csv(tmp_path / "curves.csv")
    assert rows["case"].tolist() == ["a class 1", "c class 1"]
    np.testing.assert_allclose(rows["tp_abpc"], [c.abpc for c in wanted], atol=1e-6)
    assert engine.state.metrics["tp_abpc"] == pytest.approx(np.mean([c.abpc for c in wanted]), abs=1e-6)
    assert engine.state.metrics["tp_aopc"] == pytest.approx(np.mean([c.aopc for c in wanted]), abs=1e-6)
    assert "curves" not in engine.state.metrics
    text = (tmp_path / "metrics.csv").read_text(encoding="utf-8")
    assert "tp_abpc" in text
    assert "tp_aopc" in text


def test_a_metric_of_explanations_alone_has_one_entry(files, net):
    engine = evaluator(files[:1], net)
    ExplanationHandler(explain(net)).attach(engine)
    ExplanationMetricHandler(ConvergenceMetric("tp", ["budget"]), "budget", "explanations").attach(engine)
    engine.run()
    assert engine.state.metrics["budget"].shape == (1,)


def test_what_is_missing_is_named(files, net):
    metric = PerturbationCurveMetric("tp")
    engine = evaluator(files[:1], net)
    ExplanationHandler(explain(net)).attach(engine)
    ExplanationMetricHandler(metric, "curves").attach(engine)
    with pytest.raises(ValueError, match=r"needs 'curves' of case 'a', which has .*PerturbationCurvesd makes"):
        engine.run()
    engine = evaluator(files[:1], net)
    ExplanationMetricHandler(metric, "curves").attach(engine)
    with pytest.raises(ValueError, match="attached to an engine that explains nothing"):
        engine.run()
    with pytest.raises(ValueError, match="expected one or two entries"):
        ExplanationMetricHandler(metric, "curves", ())
