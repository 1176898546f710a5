# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""In an evaluator with softmax, Invertd and argmax the raw logits are explained, and the maps lie on the file."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from evaluated_files import AFFINE, SHAPE, alone, evaluator, explain, network, preprocessing, write_files

from monai_segshap.handlers import ExplanationEvents, ExplanationHandler, ExplanationSaver


@pytest.fixture(scope="module")
def net():
    return network()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"), ["a", "b", "c"])


def on_file(explanation, values, case):
    """A volume of the network's grid at the voxels of the file, by world coordinates; NaN half-way and outside."""
    ijk = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1).reshape(-1, 3)
    world = np.c_[ijk, np.ones(len(ijk))] @ AFFINE.T
    place = (world @ np.linalg.inv(case["image"].affine.numpy()).T)[:, :3]
    nearest = np.round(place).astype(int)
    sure = np.abs(place - nearest).max(axis=1) < 0.49
    sure &= ((nearest >= 0) & (nearest < explanation.partition.labels.shape)).all(axis=1)
    found = np.full(len(ijk), np.nan)
    found[sure] = values[tuple(nearest[sure].T)]
    return found.reshape(SHAPE)


@pytest.mark.parametrize(("batch_size", "decollate"), [(1, True), (2, True), (2, False)])
def test_raw_logits_are_explained_and_maps_lie_on_the_file(files, net, tmp_path, batch_size, decollate):
    engine = evaluator(files, net, batch_size, decollate, invert=decollate)
    ExplanationHandler(explain(net)).attach(engine)
    ExplanationSaver(tmp_path, overview=False, print_table=False).attach(engine)
    engine.run()
    assert [e.case for e in engine.state.explanations] == ["a", "b", "c"]
    for file, found in zip(files, engine.state.explanations, strict=True):
        (expected,) = alone(file, net)
        assert np.abs(expected.values).max() > 1e-2
        np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
        case = preprocessing()(dict(file))
        assert case["image"].shape[1:] != SHAPE
        written = nib.load(tmp_path / found.case / "attribution_fp.nii.gz")
        np.testing.assert_allclose(written.affine, AFFINE, atol=1e-6)
        values = np.concatenate([[0.0], expected.values[:, 1]])[expected.partition.labels]
        wanted = on_file(expected, values, case)
        sure = ~np.isnan(wanted)
        assert sure.mean() > 0.5
        np.testing.assert_allclose(np.asarray(written.dataobj)[sure], wanted[sure], atol=1e-5)


def test_predictions_of_the_engine_are_inverted_as_ever(files, net):
    outputs = []
    for attach in (True, False):
        engine = evaluator(files, net, 2)
        if attach:
            ExplanationHandler(explain(net)).attach(engine)
        engine.run()
        outputs.append(engine.state.output[0]["pred"])
    assert tuple(outputs[0].shape) == (1, *SHAPE)
    assert torch.equal(*outputs)
    assert len(outputs[0].unique()) > 1


@pytest.mark.filterwarnings("ignore:.*autocast")  # MONAI asks for CUDA's, which may not be there
def test_mixed_precision_of_an_engine_on_the_cpu_changes_nothing(files, net):
    engine = evaluator(files[:1], net, amp=True)
    ExplanationHandler(explain(net)).attach(engine)
    engine.run()
    (found,) = engine.state.explanations
    assert np.array_equal(found.values, alone(files[0], net)[0].values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_of_an_engine_is_that_of_the_explanation(files, net):
    device, seen = torch.device("cuda"), []
    on_device = network().to(device)
    on_device[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    engine = evaluator(files[:1], on_device, amp=True)
    engine.state.device = device
    ExplanationHandler(explain(on_device)).attach(engine)
    engine.run()
    (found,) = engine.state.explanations
    assert len(seen) > 10
    assert set(seen) == {torch.float16}
    assert not [w for w in found.warnings if "differs from the network's own" in w]


def test_a_case_is_announced_with_what_was_made_of_it(files, net):
    told = []
    engine = evaluator(files, net)
    ExplanationHandler(explain(net), keep=False).attach(engine)
    engine.add_event_handler(ExplanationEvents.CASE_EXPLAINED, lambda e: told.append(e.state.explained_case))
    engine.run()
    assert [(c.number, c.name, c.file) for c in told] == [(n, "abc"[n], f["image"]) for n, f in enumerate(files)]
    assert [c.explanations[0].case for c in told] == ["a", "b", "c"]
    assert all("attribution_tp" in c.made for c in told)
    assert [e.case for e in engine.state.explanations] == ["c"], "keep=False holds the last ones"
