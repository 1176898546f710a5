# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_segshap.cohort import MassAccuracyMetric, global_importance, local_importance

CLASSES = ["background", "liver", "spleen"]


def batch(seed, n=2, channels=None):
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 3, 4, 5, 6) if channels is None else (n, 3, channels, 4, 5, 6)
    maps = torch.randn(shape, generator=generator)
    labels = torch.randint(0, 3, (n, 1, 4, 5, 6), generator=generator)
    return maps, labels


def test_matrices_of_batches_and_their_mean_over_present_classes():
    metric = MassAccuracyMetric(CLASSES)
    maps, labels = batch(0)
    maps[1, 2] = 0  # the spleen is absent in the second case
    first = metric(maps, labels)
    assert first.dtype == torch.float64
    assert first.shape == (2, 3, 3)
    for n in range(2):
        np.testing.assert_array_equal(first[n], local_importance(maps[n], labels[n, 0]))
    more, more_labels = batch(1, n=3)
    metric(list(more), list(more_labels))
    found = metric.aggregate()
    values = torch.cat([first, metric(more, more_labels)]).numpy()
    assert np.isnan(values[1, 2]).all()
    np.testing.assert_allclose(found, np.nanmean(values, axis=0))
    np.testing.assert_allclose(found.sum(dim=1), 1)
    metric.reset()
    with pytest.raises(ValueError, match="no case was counted yet"):
        metric.aggregate()


def test_masks_may_overlap_and_have_names_of_their_own():
    metric = MassAccuracyMetric(CLASSES, regions=["liver", "tumor"], variant="enrichment", part="positive")
    maps, labels = batch(2, channels=2)
    masks = torch.cat([labels == 1, labels > 0], dim=1)
    for kind in (torch.bool, torch.float32):
        found = metric(maps, masks.to(kind))
        for n in range(2):
            expected = local_importance(maps[n], masks[n].numpy(), variant="enrichment", part="positive")
            np.testing.assert_array_equal(found[n], expected)
    table = metric.table(["a", "b", "c", "d"])
    assert (table.regions, table.variant, table.part) == (("liver", "tumor"), "enrichment", "positive")
    assert table.cases == ("a", "b", "c", "d")
    np.testing.assert_array_equal(metric.summary(n_resamples=20).mean, global_importance(table, n_resamples=20).mean)


@pytest.mark.parametrize(
    ("shape", "regions"),
    [((2, 2, 4, 5, 6), (2, 1, 4, 5, 6)), ((2, 3, 4, 5), (2, 1, 4, 5, 6)), ((2, 3, 4, 5, 6), (2, 2, 4, 5, 6))],
)
def test_other_shapes_are_refused(shape, regions):
    metric = MassAccuracyMetric(CLASSES)
    with pytest.raises(ValueError, match="expected"):
        metric(torch.ones(shape), torch.ones(regions))
    with pytest.raises(ValueError, match="None"):
        metric(torch.ones(2, 3, 4, 5, 6))


def test_labels_beyond_the_names_are_refused():
    maps, labels = batch(3)
    with pytest.raises(ValueError, match="holds number 2"):
        MassAccuracyMetric(CLASSES, regions=["background", "liver"])(maps, labels)


JOB = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_mass_accuracy_metric import MassAccuracyMetric, count
rank, folder = int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
metric = MassAccuracyMetric(["a", "b"])
for case in ([0, 1, 2], [3])[rank]:  # the ranks have unequal numbers of cases
    count(metric, case)
torch.save((metric.aggregate(), len(metric)), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def count(metric, case):
    maps = torch.randn(1, 2, 2, 3, 4, generator=torch.Generator().manual_seed(case))
    metric(maps, (maps[:, :1] > 0).long())


def test_two_processes_gather_their_cases(tmp_path):
    here = Path(__file__).parent
    jobs = [
        subprocess.Popen([sys.executable, "-c", JOB, str(here), str(rank), str(tmp_path)], cwd=here.parents[1])
        for rank in range(2)
    ]
    assert [job.wait(timeout=240) for job in jobs] == [0, 0]
    alone = MassAccuracyMetric(["a", "b"])
    for case in range(4):
        count(alone, case)
    for rank in range(2):
        found, n_cases = torch.load(tmp_path / f"{rank}.pt")
        assert n_cases == 4
        torch.testing.assert_close(found, alone.aggregate(), rtol=1e-12, atol=0)
