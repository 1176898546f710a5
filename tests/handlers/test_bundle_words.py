# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What a bundle says about itself: names of classes, and its preprocessing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from monai.data import CacheDataset, DataLoader, Dataset
from monai.transforms import Compose, Identityd
from torch.utils.data import Subset

from monai_segshap.handlers import class_names_of, preprocessing_of


def metadata(**outputs):
    return {"network_data_format": {"inputs": {}, "outputs": outputs}}


def test_class_names_in_the_order_of_the_channels():
    named = {"channel_def": {"1": "spleen", "0": "background", "3": "liver"}}
    assert class_names_of(metadata(pred=named)) == ["background", "spleen", "class 2", "liver"]
    assert class_names_of(metadata(logits={"channel_def": {0: "background", 1: "tumor"}})) == ["background", "tumor"]
    both = metadata(other={"channel_def": {"0": "a"}}, pred=named)
    assert class_names_of(both)[1] == "spleen"


@pytest.mark.parametrize(
    "meta", [None, {}, {"network_data_format": None}, metadata(), metadata(pred={}), metadata(pred="image")]
)
def test_metadata_without_names_has_none(meta):
    assert class_names_of(meta) is None
    assert class_names_of(metadata(pred={"channel_def": {"first": "background"}})) is None


def test_preprocessing_of_datasets_and_of_their_parts():
    transform, data = Compose([Identityd("image")]), [{"image": 0}, {"image": 1}]
    for dataset in (Dataset(data, transform), CacheDataset(data, transform, progress=False)):
        assert preprocessing_of(SimpleNamespace(data_loader=DataLoader(dataset))) is transform
        assert preprocessing_of(SimpleNamespace(data_loader=DataLoader(Subset(dataset, [1])))) is transform


def test_data_without_transforms_are_named_with_the_way_out():
    with pytest.raises(ValueError, match=r"data of the SimpleNamespace has no transform.*explain#preprocessing"):
        preprocessing_of(SimpleNamespace(data_loader=[{"image": 0}]))
