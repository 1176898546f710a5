# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Loaded models equal those of nnU-Net's own predictor; what cannot be loaded is refused in words."""

from __future__ import annotations

import json
import pydoc
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_nnunet import TinyPlan

from monai_segshap.nnunet import load_nnunet

pytest.importorskip("nnunetv2")
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

pytestmark = pytest.mark.xdist_group("test_model")

FIXTURES = ("tiny_3d", "tiny_3d_folds", "tiny_regions", "tiny_2d", "tiny_two_channels", "tiny_lowres")
PLAN = TinyPlan("Dataset920_Plain", features=(4, 8), patch_size=(8, 16, 16))
FINDER = "nnunetv2.utilities.find_objects.recursive_find_trainer_class_by_name"


@pytest.fixture(scope="module")
def untrained(make_results):
    return make_results(PLAN, folds=(0, 1))


@pytest.fixture
def plain(untrained, tmp_path):
    """A copy of a model with folds 0 and 1 that a test may spoil."""
    return Path(shutil.copytree(untrained, tmp_path / PLAN.name / PLAN.folder_name))


def predictor_of(folder, folds=None):
    found = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    found.initialize_from_trained_model_folder(str(folder), folds)
    return found


def assert_equal_to_predictor(model, predictor):
    shape = tuple(model.config.patch_size)
    torch.manual_seed(3)
    for n in (1, 2):
        window = torch.randn(n, model.n_channels, *shape)
        for network, parameters in zip(model.networks, predictor.list_of_parameters, strict=True):
            predictor.network.load_state_dict(parameters)
            with torch.inference_mode():
                expected = predictor.network.eval()(window)
                assert torch.equal(network(window), expected)
            assert expected.shape == (n, model.n_heads, *shape)


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_checkpoint(folder, change, fold=0):
    path = folder / f"fold_{fold}" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    changed = change(content)
    torch.save(content if changed is None else changed, path)
    return path


def edit_architecture(folder, **changes):
    def change(plans):
        plans["configurations"]["3d_fullres"]["architecture"].update(changes)

    edit_json(folder / "plans.json", change)


@pytest.mark.parametrize("name", FIXTURES)
def test_networks_equal_those_of_nnunets_predictor(name, request):
    folder = request.getfixturevalue(name)
    model, predictor = load_nnunet(folder), predictor_of(folder)
    assert len(model.networks) == len(model.folds) == (2 if name == "tiny_3d_folds" else 1)
    assert_equal_to_predictor(model, predictor)
    assert model.mirror_axes == predictor.allowed_mirroring_axes
    assert model.plans.plans == predictor.plans_manager.plans
    assert model.config.configuration == predictor.configuration_manager.configuration
    assert model.dataset == predictor.dataset_json
    for network in model.networks:
        assert not any(m.training for m in network.modules())
        assert not any(p.requires_grad for p in network.parameters())
        assert {p.device.type for p in network.parameters()} == {"cpu"}


def test_properties(request):
    organs = ("background", "liver", "spleen", "kidney")
    models = {name: load_nnunet(request.getfixturevalue(name)) for name in FIXTURES}
    assert {n: m.configuration for n, m in models.items()} == {
        **dict.fromkeys(FIXTURES, "3d_fullres"),
        "tiny_2d": "2d",
        "tiny_lowres": "3d_lowres",
    }
    for name, model in models.items():
        regions = name == "tiny_regions"
        assert model.class_names == (("whole", "core", "inner") if regions else organs)
        assert model.n_heads == len(model.class_names)
        assert model.has_regions == regions
        assert model.regions_class_order == ((1, 2, 3) if regions else None)
        assert model.channel_names == (("CT", "T2") if name == "tiny_two_channels" else ("CT",))
        assert model.n_channels == len(model.channel_names)
        assert model.is_2d == (name == "tiny_2d")
        assert model.folder == request.getfixturevalue(name)
    assert models["tiny_3d"].patch_size == (16, 32, 32)
    assert models["tiny_2d"].patch_size == (1, 32, 32)
    assert models["tiny_2d"].mirror_axes == (0, 1)
    assert models["tiny_lowres"].patch_size == (16, 12, 16)
    assert models["tiny_3d_folds"].folds == ("0", "1")


def test_labels_in_any_order_with_an_ignore_label_and_old_channel_key(make_results):
    labels = {"spleen": 2, "background": 0, "ignore": 4, "kidney": [3], "liver": 1}
    folder = make_results(TinyPlan("Dataset921_Labels", labels=labels, features=(4, 8), patch_size=(8, 16, 16)))
    edit_json(folder / "dataset.json", lambda d: d.update(modality=d.pop("channel_names")))
    model = load_nnunet(folder)
    assert model.class_names == ("background", "liver", "spleen", "kidney")
    assert model.n_heads == 4
    assert model.channel_names == ("CT",)
    assert_equal_to_predictor(model, predictor_of(folder))


def test_regions_are_named_in_the_order_of_the_heads(make_results):
    labels = {"inner": 3, "background": 0, "whole": [1, 2, 3], "ignore": 4, "core": [2, 3]}
    plan = TinyPlan("Dataset922_Regions", labels=labels, regions_class_order=(3, 1, 2), features=(4, 8))
    model = load_nnunet(make_results(plan))
    assert model.class_names == ("inner", "whole", "core")
    assert model.labels.foreground_regions == [3, (1, 2, 3), (2, 3)]
    assert model.regions_class_order == (3, 1, 2)


def test_channels_are_named_in_the_order_of_their_numbers(make_results):
    folder = make_results(TinyPlan("Dataset923_Channels", channels=tuple("abcdefghijk"), features=(2, 2)))
    edit_json(folder / "dataset.json", lambda d: d.update(channel_names=dict(sorted(d["channel_names"].items()))))
    assert list(load_nnunet(folder).dataset["channel_names"])[1] == "1"
    edit_json(folder / "dataset.json", lambda d: d.update(channel_names=dict(reversed(d["channel_names"].items()))))
    assert load_nnunet(folder).channel_names == tuple("abcdefghijk")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, ("0", "1")),
        (1, ("1",)),
        ("0", ("0",)),
        ("all", ("all",)),
        ([1, "0"], ("1", "0")),
        (("all", 1), ("all", "1")),
        ("fold_1", ("1",)),
    ],
)
def test_folds_are_chosen(wanted, expected, plain):
    shutil.copytree(plain / "fold_1", plain / "fold_all")
    (plain / "fold_2").mkdir()
    model = load_nnunet(plain, folds=wanted)
    assert model.folds == expected
    assert_equal_to_predictor(model, predictor_of(plain, [f if f == "all" else int(f) for f in expected]))


def test_fold_all_alone_is_found(plain):
    shutil.rmtree(plain / "fold_1")
    (plain / "fold_0").rename(plain / "fold_all")
    assert load_nnunet(plain).folds == ("all",)


def test_checkpoint_is_chosen(plain):
    shutil.copy(plain / "fold_1" / "checkpoint_final.pth", plain / "fold_0" / "checkpoint_best.pth")
    best, last = load_nnunet(plain, checkpoint="checkpoint_best.pth"), load_nnunet(plain, folds=1)
    assert best.folds == ("0",)
    for a, b in zip(best.networks[0].parameters(), last.networks[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_dataset_folder_with_one_model_stands_for_it(plain):
    assert load_nnunet(plain.parent).folder == plain
    assert load_nnunet(str(plain.parent)).folds == ("0", "1")


def test_monai_bundle_layout(plain, tmp_path):
    models = tmp_path / "bundle" / "models"
    for fold in (0, 1):
        content = torch.load(plain / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)
        (models / f"fold_{fold}").mkdir(parents=True)
        torch.save({"network_weights": content["network_weights"]}, models / f"fold_{fold}" / "model.pt")
    header = {k: content[k] for k in ("trainer_name", "init_args", "inference_allowed_mirroring_axes")}
    torch.save(header, models / "nnunet_checkpoint.pth")
    for name in ("plans.json", "dataset.json"):
        shutil.copy(plain / name, models)
    for folder in (tmp_path / "bundle", models):
        model = load_nnunet(folder)
        assert model.folder == models
        assert model.mirror_axes == (0, 1, 2)
        assert_equal_to_predictor(model, predictor_of(plain))
    assert load_nnunet(models, folds=1, checkpoint="model.pt").folds == ("1",)
    with pytest.raises(FileNotFoundError, match=r"no 'best_model\.pt'; it holds model\.pt"):
        load_nnunet(models, folds=0, checkpoint="checkpoint_best.pth")


def test_global_random_state_is_left_alone(plain):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_nnunet(plain)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("axes", [None, ()])
def test_no_mirroring(axes, plain):
    edit_checkpoint(plain, lambda c: c.update(inference_allowed_mirroring_axes=axes))
    assert load_nnunet(plain).mirror_axes == ()
    edit_checkpoint(plain, lambda c: {k: v for k, v in c.items() if k != "inference_allowed_mirroring_axes"})
    assert load_nnunet(plain).mirror_axes == ()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_parallel_and_compiled_networks_are_taken_off(prefix, plain):
    expected = load_nnunet(plain, folds=0).networks[0].state_dict()

    def change(content):
        content["network_weights"] = {prefix + k: v for k, v in content["network_weights"].items()}

    edit_checkpoint(plain, change)
    found = load_nnunet(plain, folds=0).networks[0].state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in found)


def test_plans_from_before_architectures_were_written(plain):
    def change(plans):
        config = plans["configurations"]["3d_fullres"]
        old = config.pop("architecture")["arch_kwargs"]
        config |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 4,
            "unet_max_num_features": 320,
            "n_conv_per_stage_encoder": old["n_conv_per_stage"],
            "n_conv_per_stage_decoder": old["n_conv_per_stage_decoder"],
            "conv_kernel_sizes": old["kernel_sizes"],
            "pool_op_kernel_sizes": old["strides"],
            "num_pool_per_axis": [1, 1, 1],
        }

    edit_json(plain / "plans.json", change)
    with pytest.warns(UserWarning, match="old nnU-Net plans format"):
        model = load_nnunet(plain)
    with pytest.warns(UserWarning, match="old nnU-Net plans format"):
        predictor = predictor_of(plain)
    assert_equal_to_predictor(model, predictor)


def test_trainer_with_the_old_signature(plain, monkeypatch):
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    class OldTrainer:
        @staticmethod
        def build_network_architecture(name, arguments, imports, n_inputs, n_outputs, enable_deep_supervision=True):
            return get_network_from_plans(
                name, arguments, imports, n_inputs, n_outputs, deep_supervision=enable_deep_supervision
            )

    monkeypatch.setattr(FINDER, lambda name: OldTrainer)
    assert_equal_to_predictor(load_nnunet(plain), predictor_of(plain))


# What must not run without trust


RAN: list[str] = []


def _note(text):
    RAN.append(text)
    return text


class _Noted:
    def __reduce__(self):
        return _note, ("ran",)


def test_pickles_that_run_code_need_trust(plain):
    path = edit_checkpoint(plain, lambda c: c.update(extra=_Noted()))
    RAN.clear()
    with pytest.raises(ValueError, match=r"more than weights and plain values: .*_note.*pass trust=True") as caught:
        load_nnunet(plain, folds=0)
    assert str(path) in str(caught.value)
    assert RAN == []
    assert load_nnunet(plain, folds=0, trust=True).folds == ("0",)
    assert RAN == ["ran"]


def test_numpy_scalars_of_both_numpy_generations_are_read(plain):
    path = plain / "fold_0" / "checkpoint_final.pth"
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path, weights_only=True)
    before = torch.serialization.get_safe_globals()
    with zipfile.ZipFile(path) as archive:
        read = {info.filename: archive.read(info) for info in archive.infolist()}
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in read.items():
                for old in (b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"):
                    content = content.replace(old, b"c" + module + b"\n") if name.endswith("data.pkl") else content
                archive.writestr(name, content)
        assert load_nnunet(plain, folds=0).folds == ("0",)
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_networks_of_other_packages_need_trust(plain, monkeypatch):
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    other = types.ModuleType("other_networks")
    other.Net = type("Net", (PlainConvUNet,), {"__module__": "other_networks"})
    monkeypatch.setitem(sys.modules, "other_networks", other)
    edit_architecture(plain, network_class_name="other_networks.Net")
    with pytest.raises(ValueError, match=r"name 'other_networks\.Net' as network class.*trust=True"):
        load_nnunet(plain)
    assert_equal_to_predictor(load_nnunet(plain, trust=True), predictor_of(plain))


@pytest.mark.parametrize(
    "changes",
    [
        {"network_class_name": "torch.nn.Sequential"},
        {"network_class_name": "dynamic_network_architectures.architectures.unet.nn.Linear"},
        {"network_class_name": ["torch.nn.ReLU"]},
    ],
)
def test_plans_cannot_name_other_things_as_network(changes, plain):
    edit_architecture(plain, **changes)
    with pytest.raises(ValueError, match=r"as network class; expected .* dynamic_network_architectures, nnunetv2\. "):
        load_nnunet(plain)


@pytest.mark.parametrize("name", ["os.system", "torch.nn.modules.module.functools.partial", "torch.nn.functional.relu"])
def test_plans_cannot_name_other_things_as_building_block(name, plain):
    assert pydoc.locate(name) is not None

    def change(plans):
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["nonlin"] = name

    edit_json(plain / "plans.json", change)
    with pytest.raises(ValueError, match=r"as nonlin; expected .*torch\.nn\. .*trust=True"):
        load_nnunet(plain)


# What cannot be loaded


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist"):
        load_nnunet(tmp_path / "nowhere")


def test_file_for_a_folder(plain, tmp_path):
    with pytest.raises(NotADirectoryError, match="is a file; expected the results folder"):
        load_nnunet(plain / "plans.json")
    (tmp_path / "model.zip").touch()
    with pytest.raises(NotADirectoryError, match="nnUNetv2_install_pretrained_model_from_zip"):
        load_nnunet(tmp_path / "model.zip")


def test_dataset_folder_with_several_models(plain):
    shutil.copytree(plain, plain.parent / "nnUNetTrainer__nnUNetPlans__3d_lowres")
    message = r"holds 2 trained models: nnUNetTrainer__nnUNetPlans__3d_fullres, nnUNetTrainer__nnUNetPlans__3d_lowres"
    with pytest.raises(ValueError, match=message):
        load_nnunet(plain.parent)


def test_folder_of_a_fold(plain):
    with pytest.raises(ValueError, match=r"is one fold of a model\. Give its parent, .* with folds='0'"):
        load_nnunet(plain / "fold_0")


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_missing_and_damaged_json(name, plain):
    (plain / name).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=rf"{name}' is not JSON"):
        load_nnunet(plain)
    (plain / name).write_text("[1]")
    with pytest.raises(ValueError, match=rf"{name}' holds a list; expected a JSON object"):
        load_nnunet(plain)
    (plain / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"has no {name}\. Copy"):
        load_nnunet(plain)


def test_model_of_nnunet_v1(plain):
    def change(plans):
        plans["plans_per_stage"] = plans.pop("configurations")

    edit_json(plain / "plans.json", change)
    with pytest.raises(ValueError, match=r"have no configurations; expected plans as nnU-Net v2 .* nnU-Net v1"):
        load_nnunet(plain)
    (plain / "plans.json").rename(plain / "plans.pkl")
    with pytest.raises(ValueError, match=r"plans\.pkl: a model of nnU-Net v1"):
        load_nnunet(plain)


def test_foreign_plans(plain):
    edit_json(plain / "plans.json", lambda p: (p.pop("transpose_forward"), p.pop("image_reader_writer")))
    with pytest.raises(ValueError, match="have no transpose_forward, image_reader_writer; expected plans as nnU-Net"):
        load_nnunet(plain)


def test_dataset_without_labels_or_channels(plain):
    edit_json(plain / "dataset.json", lambda d: (d.pop("labels"), d.pop("channel_names")))
    with pytest.raises(ValueError, match="has no labels and no channel_names; expected nnU-Net v2's format"):
        load_nnunet(plain)


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background"},
        {"background": 1, "liver": 2},
        {"background": 0, "whole": [1, 2]},
        {"background": 0, "ignore": 7, "a": 1},
    ],
)
def test_labels_that_nnunet_does_not_accept(labels, plain):
    edit_json(plain / "dataset.json", lambda d: d.update(labels=labels))
    with pytest.raises(ValueError, match=r"nnU-Net does not accept the labels .* Expected names with numbers from 0"):
        load_nnunet(plain)


def test_unknown_label_manager(plain):
    edit_json(plain / "plans.json", lambda p: p.update(label_manager="NoSuchManager"))
    with pytest.raises(ValueError, match="nnU-Net does not accept the labels"):
        load_nnunet(plain)


def test_missing_fold(plain):
    with pytest.raises(FileNotFoundError, match=r"fold 3 is not in .*; there are 0, 1\. Choose with folds="):
        load_nnunet(plain, folds=[0, 3])
    with pytest.raises(FileNotFoundError, match=r"fold all is not in"):
        load_nnunet(plain, folds="all")
    for fold in (0, 1):
        shutil.rmtree(plain / f"fold_{fold}")
    with pytest.raises(FileNotFoundError, match=r"has no fold_0, fold_1, \.\.\. or fold_all"):
        load_nnunet(plain)


def test_missing_checkpoint(plain):
    shutil.copy(plain / "fold_0" / "checkpoint_final.pth", plain / "fold_0" / "checkpoint_latest.pth")
    message = r"fold 0 of .* has no 'checkpoint_best\.pth'; it holds checkpoint_final\.pth, checkpoint_latest\.pth"
    for folds in (None, 0):
        with pytest.raises(FileNotFoundError, match=message):
            load_nnunet(plain, folds=folds, checkpoint="checkpoint_best.pth")


@pytest.mark.parametrize(
    ("folds", "error", "message"),
    [
        ([], ValueError, r"got folds \[\]; expected one or more"),
        ([0, "0"], ValueError, "each once"),
        (-1, ValueError, r"got the fold -1; expected 0, 1, 2, \.\.\. or 'all'"),
        ("best", ValueError, "got the fold 'best'"),
        (True, TypeError, "got the fold True; expected a whole number or 'all'"),
        ([0.0], TypeError, r"got the fold 0\.0"),
        (1.5, TypeError, r"got the fold 1\.5; expected"),
    ],
)
def test_folds_that_are_none(folds, error, message, plain):
    with pytest.raises(error, match=message):
        load_nnunet(plain, folds=folds)


def test_damaged_checkpoints(plain):
    path = plain / "fold_0" / "checkpoint_final.pth"
    whole = path.read_bytes()
    for content in (b"version https://git-lfs.github.com/spec/v1\n", whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        for trust in (False, True):
            with pytest.raises(ValueError, match=r"could not be read .*: it is not a file as torch.save writes it"):
                load_nnunet(plain, trust=trust)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list; expected nnU-Net's dictionary"):
        load_nnunet(plain)


def test_trusted_pickle_of_something_that_is_not_installed(plain, monkeypatch):
    gone = types.ModuleType("gone_package")
    gone.Thing = type("Thing", (), {"__module__": "gone_package"})
    monkeypatch.setitem(sys.modules, "gone_package", gone)
    edit_checkpoint(plain, lambda c: c.update(extra=gone.Thing()))
    monkeypatch.delitem(sys.modules, "gone_package")
    with pytest.raises(
        ValueError, match=r"ModuleNotFoundError: No module named 'gone_package'.*Is everything installed"
    ):
        load_nnunet(plain, trust=True)


def test_checkpoints_that_are_not_the_trainers(plain):
    edit_checkpoint(plain, lambda c: c.pop("trainer_name") and None)
    with pytest.raises(ValueError, match=r"does not say which trainer and configuration .*its keys: _best_ema, "):
        load_nnunet(plain)
    edit_checkpoint(plain, lambda c: {"state_dict": c["network_weights"]})
    with pytest.raises(ValueError, match=r"has no 'network_weights' \(its keys: state_dict\)"):
        load_nnunet(plain)


def test_configuration_that_is_not_in_the_plans(plain):
    for fold in (0, 1):
        edit_checkpoint(plain, lambda c: c.update(init_args={"configuration": "3d_lowres"}), fold)
    with pytest.raises(ValueError, match=r"configuration '3d_lowres', .*Configurations there: 3d_fullres"):
        load_nnunet(plain)


def test_folds_of_different_trainings(plain):
    edit_checkpoint(plain, lambda c: c.update(trainer_name="nnUNetTrainerDA5"), 1)
    with pytest.raises(ValueError, match="do not belong together: fold 0 is of nnUNetTrainer and 3d_fullres, fold 1"):
        load_nnunet(plain)


def test_cascade(make_results):
    folder = make_results(
        TinyPlan("Dataset924_Cascade", "3d_cascade_fullres", features=(4, 8), previous_stage="3d_lowres")
    )
    with pytest.raises(ValueError, match=r"second stage of a cascade: .* segmentation of '3d_lowres' .* '3d_fullres'"):
        load_nnunet(folder)


def test_patch_sizes_of_four_axes(plain):
    edit_json(plain / "plans.json", lambda p: p["configurations"]["3d_fullres"].update(patch_size=[1, 2, 3, 4]))
    with pytest.raises(ValueError, match="has 4 axes; expected 2 or 3"):
        load_nnunet(plain)


def test_mirror_axis_that_the_network_does_not_have(plain):
    edit_checkpoint(plain, lambda c: c.update(inference_allowed_mirroring_axes=(0, 3)))
    with pytest.raises(ValueError, match=r"along the axes \(0, 3\); the network has 3 spatial axes, 0 to 2"):
        load_nnunet(plain)


def test_unknown_trainer(plain, monkeypatch):
    def find(name):
        raise RuntimeError(f"Could not find requested nnunet trainer {name} in nnunetv2.training.nnUNetTrainer")

    monkeypatch.setattr(FINDER, find)
    with pytest.raises(ValueError, match=r"trainer 'nnUNetTrainer' of the checkpoint is not .* nnUNet_extTrainer"):
        load_nnunet(plain)


def test_trainer_that_is_none(plain):
    edit_checkpoint(plain, lambda c: c.update(trainer_name="autocast"))  # a name in the trainer's module
    with pytest.raises(ValueError, match="'autocast' of the checkpoint is no class derived from"):
        load_nnunet(plain, folds=0)


def test_torchvision_of_another_torch(plain, monkeypatch):
    def find(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(FINDER, find)
    with pytest.raises(ImportError, match=r"torchvision::nms does not exist.* Install the torchvision that belongs"):
        load_nnunet(plain)


def test_trainer_variant_loads_where_torchvision_does(plain):
    edit_checkpoint(plain, lambda c: c.update(trainer_name="nnUNetTrainerNoMirroring"))
    try:
        import torchvision
    except (ImportError, RuntimeError):
        with pytest.raises(ImportError, match="search for the trainer 'nnUNetTrainerNoMirroring' failed"):
            load_nnunet(plain, folds=0)
    else:
        assert torchvision
        assert load_nnunet(plain, folds=0).folds == ("0",)


def test_network_that_cannot_be_built(plain):
    edit_json(
        plain / "plans.json", lambda p: p["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].pop("strides")
    )
    with pytest.raises(ValueError, match=r"nnUNetTrainer\.build_network_architecture cannot build .* 'strides'"):
        load_nnunet(plain)


def test_trainer_that_builds_no_network(plain, monkeypatch):
    trainer = type("Odd", (), {"build_network_architecture": staticmethod(lambda plans_manager, *a, **k: [a])})
    monkeypatch.setattr(FINDER, lambda name: trainer)
    with pytest.raises(ValueError, match=r"Odd built a list; expected a torch\.nn\.Module"):
        load_nnunet(plain)


def test_weights_of_another_network(plain):
    edit_json(plain / "dataset.json", lambda d: d["labels"].update(stomach=4))
    with pytest.raises(ValueError, match=r"do not fit the network .*size mismatch for .* Take all three files"):
        load_nnunet(plain)


def test_weights_that_are_missing(plain):
    edit_checkpoint(plain, lambda c: c["network_weights"].popitem() and None)
    with pytest.raises(ValueError, match=r"do not fit the network .*Missing key"):
        load_nnunet(plain)


def test_nnunetv2_missing_or_unsupported(plain, monkeypatch):
    from importlib.metadata import PackageNotFoundError

    from monai_segshap.nnunet import requirements

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(requirements, "version", missing)
    with pytest.raises(ImportError, match=r'pip install "monai_segshap\[nnunet\]"'):
        load_nnunet(plain)
    for number in ("2.6.4", "3.0.0"):
        monkeypatch.setattr(requirements, "version", lambda name, n=number: n)
        with pytest.raises(ImportError, match=rf"nnunetv2 {number} is installed"):
            load_nnunet(plain)


def test_package_is_imported_without_nnunetv2():
    code = "import sys; sys.modules['nnunetv2'] = None; import monai_segshap.nnunet as n; print(n.load_nnunet.__name__)"
    result = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "load_nnunet", result.stderr
