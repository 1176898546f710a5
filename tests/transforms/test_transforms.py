# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The dictionary transforms, from files to files."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    Lambdad,
    LoadImaged,
    Orientationd,
    SaveImaged,
    ScaleIntensityRange,
    Spacingd,
)

from monai_segshap.inferers import CachingSlidingWindowInferer
from monai_segshap.perturbation import ConstantBaseline
from monai_segshap.transforms import (
    CheckImaged,
    CubeUnitsd,
    FCCUnitsd,
    HybridUnitsd,
    KernelSHAPd,
    MatchGridd,
    OrganUnitsd,
    PerturbationCurvesd,
    PredictedClassUnitsd,
    PredictLogitsd,
    SaveExplanationd,
    SelectRegiond,
    UnitsOfKindd,
)
from monai_segshap.units import Partition

AFFINE = np.array([[-2.0, 0, 0, 60], [0, -2.0, 0, 40], [0, 0, 4.0, -30], [0, 0, 0, 1]])
SCALE = ScaleIntensityRange(-1024, 1024, 0, 1, clip=True)
NAMES = {1: "ball", 2: "bar", 3: "far", 9: "absent"}


class Bright(torch.nn.Module):
    """Class 1 where the neighborhood is brighter than a threshold."""

    def __init__(self):
        super().__init__()
        self.pool = torch.nn.AvgPool3d(3, 1, 1)

    def forward(self, x):
        z = 40 * (self.pool(x) - 0.52) + 5 * (x.mean(dim=(2, 3, 4), keepdim=True) - 0.3)
        return torch.cat([-z, z], dim=1)


@pytest.fixture
def network():
    return Bright()


@pytest.fixture
def inferer():
    return CachingSlidingWindowInferer(roi_size=(12, 12, 8), sw_batch_size=2, overlap=0.5, mode="gaussian")


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    shape = (36, 20, 10)
    i, j, k = np.indices(shape)
    organs = np.zeros(shape, np.uint8)
    organs[(i - 8) ** 2 + (j - 8) ** 2 + 4 * (k - 4) ** 2 < 16] = 1
    organs[12:15, 4:12, 2:7] = 2
    organs[32:35, 15:19, 7:10] = 3
    ct = rng.normal(-100, 20, shape)
    ct[organs == 1] += 300
    ct[organs == 2] += 120
    ct[organs == 3] += 150
    paths = {"image": tmp_path / "case_7.nii.gz", "organs": tmp_path / "organs.nii.gz"}
    nib.save(nib.Nifti1Image(ct.astype(np.float32), AFFINE), paths["image"])
    nib.save(nib.Nifti1Image(organs, AFFINE), paths["organs"])
    return {k: str(v) for k, v in paths.items()}


def chain(network, inferer, tmp_path, units, spatial=(), **options):
    return Compose(
        [
            LoadImaged(["image", "organs"]),
            EnsureChannelFirstd(["image", "organs"]),
            *spatial,
            Lambdad("image", SCALE),
            PredictLogitsd("image", network, inferer),
            SelectRegiond("pred", 1, {"mode": "largest", "margin_mm": 4}, ["background", "ball"], inferer=inferer),
            units,
            KernelSHAPd(
                "image", network, inferer, baseline=ConstantBaseline.from_hu(-1024, SCALE), progress=False, **options
            ),
            SaveExplanationd("explanations", tmp_path / "out", overview=False, print_table=False),
            SaveImaged("attribution_tp", output_dir=tmp_path / "maps", resample=True, mode="nearest", print_log=False),
        ]
    )


UNITS = {
    "organs": OrganUnitsd("organs", names=NAMES),
    "fcc": FCCUnitsd("image", scale_mm=30.0, within_key="receptive_field"),
    "hybrid": HybridUnitsd("organs", scale_mm=16.0, names=NAMES, within_key="receptive_field"),
    "cubes": CubeUnitsd("image", scale_mm=24.0, within_key="receptive_field"),
    "predicted": PredictedClassUnitsd("pred", class_names=["background", "ball"], include_background=True),
}


@pytest.mark.parametrize("kind", UNITS)
def test_compose_from_load_to_save(kind, files, network, inferer, tmp_path):
    case = chain(network, inferer, tmp_path, UNITS[kind], budget=400)(files)
    (explanation,) = case["explanations"]
    record = json.loads((tmp_path / "out" / "case_7" / "explanation.json").read_text())
    assert record["units"]["kind"] == kind
    assert record["forwards"]["run"] == record["forwards"]["planned"] <= record["forwards"]["naive"]
    assert abs(explanation.efficiency_gap).max() < 1e-9
    assert np.abs(explanation.values).max() > 0
    table = pd.read_csv(tmp_path / "out" / "case_7" / "attributions.csv")
    assert table["tp"].to_numpy() == pytest.approx(explanation.values[:, 0])
    assert table["volume_ml"].sum() <= 36 * 20 * 10 * 0.016 + 1e-6


def test_missing_organs_are_skipped_and_listed(files, network, inferer, tmp_path):
    case = chain(network, inferer, tmp_path, UNITS["organs"])(files)
    record = json.loads((tmp_path / "out" / "case_7" / "explanation.json").read_text())
    assert record["units"]["skipped"] == ["absent"]
    assert [a["name"] for a in record["attributions"]] == ["ball", "bar", "far"]
    assert case["explanations"][0].visible.tolist() == [True, True, False]
    assert record["attributions"][2]["tp"] == 0.0


SPATIAL = {
    "none": (),
    "flip": (Orientationd(["image", "organs"], "RAS", labels=None),),
    "permute": (Orientationd(["image", "organs"], "SAL", labels=None),),
    "resample": (
        Orientationd(["image", "organs"], "RAS", labels=None),
        Spacingd(["image", "organs"], (2.0, 2.0, 3.0), mode=("bilinear", "nearest")),
    ),
}


@pytest.mark.parametrize("name", SPATIAL)
def test_written_maps_lie_on_the_grid_of_the_file(name, files, network, inferer, tmp_path):
    chain(network, inferer, tmp_path, UNITS["organs"], SPATIAL[name])(files)
    source = nib.load(files["image"])
    out = tmp_path / "out" / "case_7"
    written = ["attribution_tp", "attribution_fp", "units", "prediction", "region"]
    for path in [*(out / f"{n}.nii.gz" for n in written), tmp_path / "maps" / "case_7" / "case_7_trans.nii.gz"]:
        volume = nib.load(path)
        assert volume.shape[:3] == source.shape, path.name
        np.testing.assert_allclose(volume.affine, source.affine, atol=1e-4)
    organs = np.asarray(nib.load(files["organs"]).dataobj)
    units = np.asarray(nib.load(out / "units.nii.gz").dataobj)
    overlap = ((units == 1) & (organs == 1)).sum() / (organs == 1).sum()
    assert overlap == 1.0 if name != "resample" else overlap > 0.8


def test_box_in_the_json_is_that_of_the_written_region(files, network, inferer, tmp_path):
    chain(network, inferer, tmp_path, UNITS["organs"], SPATIAL["flip"])(files)
    out = tmp_path / "out" / "case_7"
    low, high = json.loads((out / "explanation.json").read_text())["region"]["box_ijk"]
    found = np.argwhere(np.asarray(nib.load(out / "region.nii.gz").dataobj) > 0)
    assert found.min(axis=0).tolist() == low
    assert found.max(axis=0).tolist() == high


def test_flips_change_no_value(files, inferer, tmp_path):
    values = []
    for name in ("none", "flip"):
        network = Bright()
        # windows that divide the image evenly, so that a flipped grid has the same windows
        even = CachingSlidingWindowInferer(roi_size=(12, 10, 10), sw_batch_size=2, overlap=0.5)
        case = chain(network, even, tmp_path, UNITS["organs"], SPATIAL[name])(files)
        values.append(case["explanations"][0].values)
    np.testing.assert_allclose(values[0], values[1], atol=1e-5)


def test_invertd_brings_maps_back(files, network, inferer, tmp_path):
    spatial = Compose(SPATIAL["resample"])
    case = chain(network, inferer, tmp_path, UNITS["organs"], SPATIAL["resample"])(files)
    assert isinstance(case["attribution_tp"], MetaTensor)
    back = Invertd("attribution_tp", spatial, orig_keys="image", nearest_interp=True)(case)["attribution_tp"]
    assert tuple(back.shape[1:]) == nib.load(files["image"]).shape
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-4)


def test_several_classes_and_regions_share_one_sweep(files, network, inferer, tmp_path):
    regions = [{"mode": "largest", "margin_mm": 4}, {"mode": "box", "box_ijk": [[6, 6, 2], [14, 12, 6]]}]
    case = Compose(
        [
            LoadImaged(["image", "organs"]),
            EnsureChannelFirstd(["image", "organs"]),
            Lambdad("image", SCALE),
            PredictLogitsd("image", network, inferer),
            SelectRegiond("pred", ["ball", 1], regions, ["background", "ball"], inferer=inferer),
            UNITS["organs"],
            KernelSHAPd("image", network, inferer, progress=False, class_names=["background", "ball"]),
            SaveExplanationd("explanations", tmp_path / "out", overview=False),
        ]
    )(files)
    first, second = case["explanations"]
    assert first.forwards == second.forwards
    assert (tmp_path / "out" / "case_7" / "1_ball" / "explanation.json").exists()
    assert (tmp_path / "out" / "case_7" / "2_ball" / "explanation.json").exists()
    assert case["attribution_tp"].shape[0] == 2


def test_units_of_kind_makes_what_the_kind_says(files, network, inferer):
    loaded = Compose([LoadImaged(["image", "organs"]), EnsureChannelFirstd(["image", "organs"])])(files)
    loaded["pred"] = network(SCALE(loaded["image"])[None])[0]
    for kind in UNITS:
        units = UnitsOfKindd("image", kind, 20.0, names=NAMES, within_key=None)(loaded)["units"]
        assert Partition.from_metatensor(units).kind == kind


def test_units_of_kind_without_organs_says_what_to_do(files):
    loaded = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])({"image": files["image"]})
    with pytest.raises(ValueError, match="choose units 'fcc', 'cubes' or 'predicted'"):
        UnitsOfKindd("image", "hybrid", within_key=None)(loaded)


def test_unknown_kind_of_units():
    with pytest.raises(ValueError, match="unknown units 'slic'; expected one of organs, fcc"):
        UnitsOfKindd("image", "slic")


def test_label_maps_with_fractions_are_refused(files):
    with pytest.raises(ValueError, match="holds fractions"):
        OrganUnitsd("image")({"image": torch.rand(1, 4, 4, 4)})


def test_aliases_follow_the_convention_of_monai():
    from monai_segshap.transforms import units

    for name in ("FCCUnits", "CubeUnits", "OrganUnits", "HybridUnits", "PredictedClassUnits"):
        assert getattr(units, f"{name}D") is getattr(units, f"{name}Dict") is getattr(units, f"{name}d")


def test_images_that_are_not_finite_are_refused():
    image = torch.zeros(1, 3, 4, 5)
    image[0, 1, 2, 3] = float("nan")
    with pytest.raises(ValueError, match=r"1 values that are not finite.*\[0, 1, 2, 3\]"):
        CheckImaged("image")({"image": image})


def test_wrong_channel_count_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\); expected \(C, H, W, D\) with 1 channel"):
        CheckImaged("image", channels=1)({"image": torch.zeros(2, 3, 4, 5)})


def test_labels_on_another_grid_are_refused_with_both_grids():
    image = MetaTensor(torch.zeros(1, 8, 8, 4), affine=torch.diag(torch.tensor([2.0, 2, 4, 1])))
    labels = MetaTensor(torch.ones(1, 4, 4, 4), affine=torch.diag(torch.tensor([4.0, 4, 4, 1])))
    with pytest.raises(ValueError, match=r"shape \(4, 4, 4\).*shape \(8, 8, 4\).*resample_organs True"):
        MatchGridd("organs")({"image": image, "organs": labels})


def test_labels_on_another_grid_are_resampled_when_asked():
    image = MetaTensor(torch.zeros(1, 8, 8, 4), affine=torch.diag(torch.tensor([2.0, 2, 4, 1])))
    affine = torch.diag(torch.tensor([4.0, 4, 4, 1]))
    affine[:2, 3] = 1.0  # the big voxels cover the small ones pairwise
    labels = MetaTensor(torch.arange(64).reshape(1, 4, 4, 4), affine=affine)
    moved = MatchGridd("organs", resample=True)({"image": image, "organs": labels})["organs"]
    expected = labels.as_subclass(torch.Tensor).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(moved.as_subclass(torch.Tensor), expected)
    np.testing.assert_allclose(moved.affine, image.affine)


def test_a_prediction_without_classes_is_refused(inferer):
    data = {"image": torch.zeros(1, 8, 8, 8), "pred": torch.zeros(1, 8, 8, 8)}
    with pytest.raises(ValueError, match="logits of at least two classes, before argmax"):
        SelectRegiond("pred", 1)(data)


@pytest.mark.parametrize(
    ("target", "message"), [("heart", "not among the class names"), (7, "none of the network's 2")]
)
def test_unknown_target_classes_are_named(target, message):
    data = {"image": torch.zeros(1, 8, 8, 8), "pred": torch.zeros(2, 8, 8, 8)}
    with pytest.raises(ValueError, match=message):
        SelectRegiond("pred", target, class_names=["background", "spleen"])(data)


def test_the_message_stands_at_the_bottom_of_a_compose(files, network, inferer):
    steps = [LoadImaged("image"), EnsureChannelFirstd("image"), PredictLogitsd("image", network, inferer)]
    with pytest.raises(RuntimeError) as caught:
        Compose([*steps, SelectRegiond("pred", "heart", class_names=["background", "spleen"])])(files)
    assert "target class 'heart' is not among the class names" in str(caught.value.__cause__)


def test_the_paths_of_the_files_come_back(files, network, inferer, tmp_path):
    case = chain(network, inferer, tmp_path, UNITS["organs"])(files)
    (written,) = case["explanation_files"]
    assert written["explanation.json"] == tmp_path / "out" / "case_7" / "explanation.json"
    assert all(path.is_file() for path in written.values())


def test_a_neighbor_in_the_box_is_pointed_out(files, network, inferer, tmp_path):
    volume = nib.load(files["image"])
    data = volume.get_fdata().astype(np.float32)
    data[17:20, 7:10, 3:6] += 300
    nib.save(nib.Nifti1Image(data, volume.affine), files["image"])
    wide = SelectRegiond("pred", 1, {"mode": "nearest", "point_ijk": [8, 8, 4], "margin_mm": 14.0}, inferer=inferer)
    steps = chain(network, inferer, tmp_path, UNITS["organs"]).transforms
    steps = [wide if isinstance(step, SelectRegiond) else step for step in steps]
    (explanation,) = Compose(steps)(files)["explanations"]
    assert any("voxels of other components" in sentence for sentence in explanation.warnings)


@pytest.mark.parametrize(("method", "budget"), [("exact", 2**12), ("kernelshap", 60)])
def test_curves_of_the_explanations_of_a_case(method, budget, files, network, inferer, tmp_path):
    explain = chain(network, inferer, tmp_path, UNITS["cubes"], method=method, budget=budget, scores=("tp", "dice"))
    case = explain(files)
    before = dict(case)
    curved = PerturbationCurvesd("explanations", explain.transforms[6], random_orders=2, bounds="none")(case)
    (curves,), (explanation,) = curved["curves"], case["explanations"]
    assert list(curves) == ["tp", "dice"]
    assert set(curved) - set(before) == {"curves"}
    assert (sum(c.n_evaluations for c in curves.values()) > 0) == (method != "exact")
    n_visible = int(explanation.visible.sum())
    for t, one in enumerate(curves.values()):
        assert len(one.morf) == n_visible + 1
        assert one.morf[0] == pytest.approx(explanation.full[t], abs=1e-12)
        assert one.morf[-1] == pytest.approx(explanation.empty[t], abs=1e-12)
    with pytest.raises(ValueError, match="explain is a Compose; expected the KernelSHAPd"):
        PerturbationCurvesd("explanations", explain)
