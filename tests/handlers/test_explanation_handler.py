# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The handler explains what the network said, whatever the evaluator does with it afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.inferers import SlidingWindowInferer
from monai.transforms import Activationsd, AsDiscreted, Compose, Flipd, Invertd

from monai_segshap.explainers import Explanation
from monai_segshap.handlers import ExplanationHandler
from monai_segshap.transforms import CubeUnitsd, KernelSHAPd, PredictLogitsd, SaveExplanationd, SelectRegiond

SHAPE = (12, 10, 10)
INFERER = {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
REGION = {"mode": "box", "box_ijk": [[4, 4, 4], [7, 6, 6]]}


@pytest.fixture(scope="module")
def network(make_network):
    return make_network("conv")


def raw_case(number: int) -> dict:
    """An image whose file lies on a grid of its own, and a label."""
    rng = np.random.default_rng(number)
    affine = np.diag([-1.5, 1.0, 2.0, 1.0])
    meta = {"filename_or_obj": f"case{number}.nii.gz", "original_affine": affine, "spatial_shape": np.array(SHAPE)}
    image = MetaTensor(rng.normal(size=(1, *SHAPE)).astype(np.float32), affine=affine.copy(), meta=dict(meta))
    label = MetaTensor((rng.random((1, *SHAPE)) < 0.3).astype(np.float32), affine=affine.copy(), meta=dict(meta))
    return {"image": image, "label": label, "number": number}


def explain(network) -> Compose:
    """From raw logits to explanations."""
    return Compose(
        [
            SelectRegiond("pred", 1, REGION),
            CubeUnitsd("image", scale_mm=8.0),
            KernelSHAPd(
                "image", network, SlidingWindowInferer(**INFERER), budget=60, progress=False, scores=("tp", "fp")
            ),
        ]
    )


def evaluator(network, n_cases=3, batch_size=1, decollate=True, postprocess=True, **options):
    flip = Flipd(["image", "label"], spatial_axis=0)
    data = Dataset([raw_case(n) for n in range(n_cases)], transform=Compose([flip]))
    post = Compose(
        [
            Activationsd("pred", softmax=True),
            AsDiscreted("pred", argmax=True, to_onehot=3),
            AsDiscreted("label", to_onehot=3),
        ]
    )
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(data, batch_size=batch_size),
        network=network,
        inferer=SlidingWindowInferer(**INFERER),
        postprocessing=post if postprocess else None,
        decollate=decollate,
        **options,
    )


def alone(network, number: int) -> Explanation:
    """The same case without an engine."""
    case = Flipd(["image", "label"], spatial_axis=0)(raw_case(number))
    case = PredictLogitsd("image", network, SlidingWindowInferer(**INFERER))(case)
    (found,) = explain(network)(case)["explanations"]
    return found


@pytest.mark.parametrize(
    ("batch_size", "decollate", "postprocess"), [(1, True, True), (2, True, True), (2, False, False), (3, True, False)]
)
def test_each_case_is_explained_as_it_would_be_alone(network, batch_size, decollate, postprocess):
    engine = evaluator(network, 3, batch_size, decollate, postprocess)
    ExplanationHandler(explain(network)).attach(engine)
    engine.run()
    assert len(engine.state.explanations) == 3
    assert max(np.abs(found.values).max() for found in engine.state.explanations) > 1e-3
    for number, found in enumerate(engine.state.explanations):
        expected = alone(network, number)
        assert found.case == expected.case == f"case{number}"
        np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
        np.testing.assert_array_equal(found.file_grid.affine, np.diag([-1.5, 1.0, 2.0, 1.0]))


def test_metrics_and_outputs_are_those_without_the_handler(network):
    results = []
    for attach in (True, False):
        metric = {"dice": MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))}
        engine = evaluator(network, 3, 2, key_val_metric=metric)
        if attach:
            ExplanationHandler(explain(network)).attach(engine)
        engine.run()
        results.append((engine.state.metrics["dice"], engine.state.output[0]["pred"]))
    (with_it, prediction), (without, same) = results
    assert with_it == without
    assert torch.equal(prediction, same)


def test_inverting_afterwards_does_not_move_what_is_explained(network):
    flip = Compose([Flipd(["image", "label"], spatial_axis=0)])
    data = Dataset([raw_case(0)], transform=flip)
    post = Compose(
        [Activationsd("pred", softmax=True), Invertd("pred", flip, "image"), AsDiscreted("pred", argmax=True)]
    )
    engine = SupervisedEvaluator(
        torch.device("cpu"), DataLoader(data), network, inferer=SlidingWindowInferer(**INFERER), postprocessing=post
    )
    ExplanationHandler(explain(network)).attach(engine)
    engine.run()
    np.testing.assert_allclose(engine.state.explanations[0].values, alone(network, 0).values, atol=1e-5)


def test_selection_counts_and_epochs(network):
    chosen = []

    def odd(case):
        chosen.append(case["pred"].shape)
        return int(case["number"]) % 2 == 1

    engine = evaluator(network, 5, 2)
    ExplanationHandler(explain(network), select=odd).attach(engine)
    engine.run()
    assert [e.case for e in engine.state.explanations] == ["case1", "case3"]
    assert chosen == [(3, *SHAPE)] * 5
    engine = evaluator(network, 5, 2)
    ExplanationHandler(explain(network), max_cases=3).attach(engine)
    for _ in range(2):  # each epoch starts anew
        engine.run()
        assert [e.case for e in engine.state.explanations] == ["case0", "case1", "case2"]


def test_files_that_were_written_are_listed(network, tmp_path):
    save = SaveExplanationd("explanations", tmp_path, overview=False, print_table=False)
    engine = evaluator(network, 2)
    ExplanationHandler(Compose([explain(network), save])).attach(engine)
    engine.run()
    written = [files["explanation.json"] for files in engine.state.explanation_files]
    assert [path.parent.name for path in written] == ["case0", "case1"]
    assert all(path.is_file() for path in written)


def test_a_case_that_can_not_be_explained_stops_the_evaluation_or_is_noted(network):
    def fails(case):
        if int(case["number"]) == 1:
            raise ValueError("the prediction holds no voxel of it")
        return explain(network)(case)

    engine = evaluator(network, 3)
    ExplanationHandler(fails, on_error="warn").attach(engine)
    engine.run()
    assert [e.case for e in engine.state.explanations] == ["case0", "case2"]
    assert engine.state.unexplained == [(1, "case1", "the prediction holds no voxel of it")]
    engine = evaluator(network, 3)
    ExplanationHandler(fails).attach(engine)
    with pytest.raises(ValueError, match="no voxel of it"):
        engine.run()


def test_wrong_settings_and_other_engines_are_refused():
    with pytest.raises(ValueError, match="max_cases is 0; expected 1 or more"):
        ExplanationHandler(dict, max_cases=0)
    with pytest.raises(ValueError, match="on_error is 'skip'; expected 'raise' or 'warn'"):
        ExplanationHandler(dict, on_error="skip")
    with pytest.raises(ValueError, match="does not fire FORWARD_COMPLETED; expected a MONAI engine"):
        ExplanationHandler(dict).attach(Engine(lambda engine, batch: None))
