# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""An nnU-Net checkpoint as a plain MONAI evaluator, with an explanation attached to its post-processing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.transforms import (
    AsDiscreted,
    Compose,
    CopyItemsd,
    EnsureChannelFirstd,
    KeepLargestConnectedComponentd,
    LoadImaged,
)
from tiny_nnunet import TinyCase, dice_of, make_phantom_case

pytest.importorskip("nnunetv2")

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from monai_segshap.explainers import Explanation
from monai_segshap.geometry import current_grid
from monai_segshap.nnunet import NNUNetExportd, NNUNetModel, NNUNetPreprocessd, baseline_of, load_nnunet
from monai_segshap.running import run_evaluator
from monai_segshap.transforms import (
    KernelSHAPd,
    MatchGridd,
    OrganUnitsd,
    PredictLogitsd,
    SaveExplanationd,
    SelectRegiond,
)

pytestmark = pytest.mark.xdist_group("test_monai_pipeline")

NAMES = {1: "liver", 2: "spleen", 3: "kidney"}
TARGET = 2


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> TinyCase:
    return make_phantom_case(tmp_path_factory.mktemp("pipeline"), 1, name="ct", shape=(20, 37, 40))


@pytest.fixture(scope="module")
def model(tiny_3d: Path) -> NNUNetModel:
    return load_nnunet(tiny_3d)


@pytest.fixture(scope="module")
def reference(tiny_3d: Path, case: TinyCase, model: NNUNetModel) -> torch.Tensor:
    """nnU-Net's own logits for the case, preprocessed by nnU-Net."""
    predictor = nnUNetPredictor(
        use_mirroring=False,
        device=torch.device("cpu"),
        perform_everything_on_device=False,
        verbose=False,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(tiny_3d), use_folds=None)
    preprocessor = model.config.preprocessor_class(verbose=False)
    data, _, _ = preprocessor.run_case(case.image_names, None, model.plans, model.config, model.dataset)
    return predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))


def loader(model: NNUNetModel, case: TinyCase) -> DataLoader:
    """The CT through nnU-Net's preprocessing, the labels brought after it."""
    steps = [
        NNUNetPreprocessd("image", model, display_key="ct"),
        LoadImaged("label"),
        EnsureChannelFirstd("label"),
        MatchGridd("label", of_file=True),
        CopyItemsd("label", names="organs"),
    ]
    data = [{"image": case.image_names[0], "label": str(case.labels)}]
    return DataLoader(Dataset(data, Compose(steps)), batch_size=1)


def explaining(network: Any, inferer: Any, model: NNUNetModel, **options: Any) -> list[Any]:
    return [
        SelectRegiond("pred", "spleen", {"margin_mm": 2}, model.class_names, inferer, heads=model.heads),
        OrganUnitsd("organs", names=NAMES),
        KernelSHAPd(
            "image",
            network,
            inferer,
            baseline=baseline_of(model),
            class_names=model.class_names,
            heads=model.heads,
            display_key="ct",
            progress=False,
            **options,
        ),
    ]


def evaluator(
    model: NNUNetModel, case: TinyCase, postprocessing: list[Any], accumulate: str = "float32", **options: Any
) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader(model, case),
        network=model.network(accumulate=accumulate),
        inferer=model.inferer(accumulate=accumulate),
        postprocessing=Compose(postprocessing),
        **options,
    )


def plain(volume: Any) -> torch.Tensor:
    return torch.as_tensor(volume).as_subclass(torch.Tensor)


def check_explanation(explanation: Explanation, logits: torch.Tensor) -> None:
    """It speaks of these logits, in its own region."""
    mask = torch.from_numpy(explanation.region.mask)
    predicted = logits.argmax(dim=0)
    z, hit = logits[TARGET][mask].double(), predicted[mask] == TARGET
    tp = explanation.full[explanation.score_index("tp")]
    np.testing.assert_allclose(tp, float((z * hit).mean()), rtol=1e-6)
    assert explanation.full[explanation.score_index("dice")] == pytest.approx(1.0)
    np.testing.assert_array_equal(explanation.prediction, predicted.numpy())
    assert explanation.target_name == "spleen"
    assert explanation.method == "exact"
    assert np.abs(explanation.efficiency_gap).max() < 1e-9
    assert np.abs(explanation.values).max() > 0
    assert not any("differs from the network's own" in sentence for sentence in explanation.warnings)


@pytest.fixture(scope="module")
def whole_run(model: NNUNetModel, case: TinyCase, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """MONAI's defaults, nnU-Net's bits, MONAI's own post-processing around ours, and a metric."""
    out = tmp_path_factory.mktemp("out")
    network, inferer = model.network(accumulate="nnunet"), model.inferer(accumulate="nnunet")
    steps = [
        CopyItemsd("pred", names="discrete"),
        AsDiscreted("discrete", argmax=True, to_onehot=4),
        KeepLargestConnectedComponentd("discrete", applied_labels=[1, 2, 3]),
        AsDiscreted("label", to_onehot=4),
        NNUNetExportd("pred", model),
        *explaining(network, inferer, model),
        SaveExplanationd("explanations", out, overview=False, print_table=False),
    ]
    metric = {"dice": MeanDice(include_background=False, output_transform=from_engine(["discrete", "label"]))}
    engine = evaluator(model, case, steps, "nnunet", key_val_metric=metric)
    engine.run()
    return engine, out


def test_logits_of_the_engine_have_nnunets_bits(whole_run, reference):
    engine, _ = whole_run
    assert isinstance(engine.state.output, list)  # decollated, MONAI's default
    pred = plain(engine.state.output[0]["pred"])
    assert pred.dtype == reference.dtype == torch.half
    assert torch.equal(pred, reference)


def test_the_logits_are_explained_and_not_what_post_processing_made_of_a_copy(whole_run, reference):
    engine, _ = whole_run
    output = engine.state.output[0]
    assert plain(output["discrete"]).unique().tolist() == [0, 1]
    (explanation,) = output["explanations"]
    check_explanation(explanation, reference)
    assert explanation.execution["library_bits"]
    assert explanation.execution["prediction_difference"] == 0.0


def test_a_metric_works_beside_it(whole_run, case, reference, model):
    engine, _ = whole_run
    truth = plain(engine.state.batch[0]["organs"])[0].numpy()
    kept = plain(engine.state.output[0]["discrete"]).argmax(dim=0).numpy()
    expected = dice_of(kept, truth, 3)
    assert engine.state.metrics["dice"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert engine.state.metrics["dice"] > 0.3
    # the labels really came to the network's grid
    np.testing.assert_array_equal(truth, np.asarray(nib.load(case.labels).dataobj).transpose(2, 1, 0))


def test_files_lie_on_the_grid_of_the_ct(whole_run, case):
    _, out = whole_run
    folder = out / "ct"
    source = nib.load(case.image_names[0])
    record = json.loads((folder / "explanation.json").read_text())
    assert [row["name"] for row in record["attributions"]] == ["liver", "spleen", "kidney"]
    assert record["baseline"]["hu"] == -1004.0
    assert record["heads"]["kind"] == "softmax"
    for name in ("prediction", "units", "attribution_tp"):
        volume = nib.load(folder / f"{name}.nii.gz")
        assert volume.shape == source.shape
        np.testing.assert_allclose(volume.affine, source.affine, atol=1e-4)
    np.testing.assert_array_equal(
        np.asarray(nib.load(folder / "units.nii.gz").dataobj), np.asarray(nib.load(case.labels).dataobj)
    )


def test_one_hot_predictions_change_no_value_because_the_network_is_asked_again(model, case):
    network, inferer = model.network(), model.inferer()
    found = []
    for before in ([], [AsDiscreted("pred", argmax=True, to_onehot=4)]):
        engine = evaluator(model, case, [*before, *explaining(network, inferer, model, scores=("dice",))])
        engine.run()
        found.append(engine.state.output[0]["explanations"][0])
    np.testing.assert_array_equal(found[0].values, found[1].values)


def test_an_argmax_before_the_explanation_is_refused(model, case):
    network, inferer = model.network(), model.inferer()
    steps = [AsDiscreted("pred", argmax=True), *explaining(network, inferer, model)]
    with pytest.raises(ValueError, match=r"'pred' has 1 channel\(s\); expected logits of at least two classes"):
        run_evaluator(evaluator(model, case, steps))


def run_with_batch_axis(model: NNUNetModel, case: TinyCase) -> str:
    """What is said if MONAI does not take the batch apart."""
    steps = explaining(model.network(), model.inferer(), model)
    with pytest.raises(ValueError, match="'pred' has") as caught:
        run_evaluator(evaluator(model, case, steps, decollate=False))
    return str(caught.value)


def test_batches_that_are_not_taken_apart_are_refused(model, case):
    assert run_with_batch_axis(model, case)


def test_the_message_about_a_batch_axis_speaks_of_it(model, case):
    assert "sigmoid" not in run_with_batch_axis(model, case)


def test_without_an_engine_the_same_bits_and_values(model, case, reference, whole_run):
    network, inferer = model.network(accumulate="nnunet"), model.inferer(accumulate="nnunet")
    chain = Compose(
        [
            NNUNetPreprocessd("image", model, display_key="ct"),
            LoadImaged("organs"),
            EnsureChannelFirstd("organs"),
            MatchGridd("organs", of_file=True),
            PredictLogitsd("image", network, inferer),
            *explaining(network, inferer, model),
        ]
    )
    found = chain({"image": case.image_names[0], "organs": str(case.labels)})
    assert torch.equal(plain(found["pred"]), reference)
    assert isinstance(found["pred"], MetaTensor)
    assert current_grid(found["pred"]).same_as(current_grid(found["image"]))
    (explanation,) = found["explanations"]
    check_explanation(explanation, reference)
    (engine_s,) = whole_run[0].state.output[0]["explanations"]
    np.testing.assert_array_equal(explanation.values, engine_s.values)


def test_the_network_and_its_training_mode_are_left_alone(model, case):
    network, inferer = model.network(), model.inferer()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    chain = Compose([NNUNetPreprocessd("image", model), PredictLogitsd("image", network, inferer)])
    network.train()
    logits = plain(chain({"image": case.image_names[0]})["pred"])
    assert network.training
    network.eval()
    assert torch.equal(plain(chain({"image": case.image_names[0]})["pred"]), logits)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not logits.requires_grad


def test_region_models_are_explained_by_their_overlapping_heads(tiny_regions, case, tmp_path):
    model = load_nnunet(tiny_regions)
    network, inferer = model.network(accumulate="nnunet"), model.inferer(accumulate="nnunet")
    steps = [
        NNUNetExportd("pred", model),
        SelectRegiond("pred", "whole", {"extent": "component"}, model.class_names, inferer, heads=model.heads),
        OrganUnitsd("organs", names=NAMES),
        KernelSHAPd(
            "image", network, inferer, baseline=baseline_of(model), class_names=model.class_names, heads=model.heads,
            scores=("tp", "dice"), progress=False,
        ),
        SaveExplanationd("explanations", tmp_path, overview=False, print_table=False),
    ]  # fmt: skip
    engine = evaluator(model, case, steps, "nnunet")
    engine.run()
    output = engine.state.output[0]
    logits, (explanation,) = plain(output["pred"]).float(), output["explanations"]
    positive = (torch.sigmoid(logits) > 0.5).numpy()
    assert (positive[0] & positive[1]).sum() > 100
    np.testing.assert_array_equal(explanation.target_mask, positive[0])
    # painted one after the other, as nnU-Net paints; nothing was resampled or cropped, so the file says the same
    painted = np.zeros(positive.shape[1:], dtype=int)
    for head, number in enumerate(model.regions_class_order):
        painted[positive[head]] = number
    np.testing.assert_array_equal(explanation.prediction, painted)
    written = np.asarray(nib.load(tmp_path / "ct" / "prediction.nii.gz").dataobj)
    np.testing.assert_array_equal(written, painted.transpose(2, 1, 0))
    # the region is a component of the head, with the voxels that other heads claim, too
    assert explanation.region.voxels == explanation.region.target_voxels
    assert (explanation.region.mask & positive[1]).any()
    mask = torch.from_numpy(explanation.region.mask)
    assert explanation.full[0] == pytest.approx(float(logits[0][mask].double().mean()), rel=1e-6)
    assert explanation.heads == {"kind": "sigmoid", "paint": [1, 2, 3]}
    assert explanation.execution["prediction_difference"] == 0.0
