# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Interruptions, resumed runs and several processes change no number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ranks_job
import torch
from ranks_job import Fragile

ROOT = Path(__file__).resolve().parents[2]
JOB = Path(__file__).with_name("ranks_job.py")


def run(store, limit=10**9, budget=130):
    network = Fragile(limit)
    return ranks_job.record(ranks_job.job(store, budget, network)), network.seen


@pytest.fixture(scope="module")
def undisturbed():
    return run(None)


@pytest.mark.parametrize("share", [0.34, 0.9])
def test_an_interrupted_run_continues_and_ends_alike(share, undisturbed, tmp_path, capsys):
    expected, passes = undisturbed
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, limit=int(share * passes))
    assert "the same call continues there" in capsys.readouterr().out
    finished = len(list(tmp_path.glob("*/chunk_*.npz")))
    assert finished >= 1
    found, again = run(tmp_path)
    assert found == expected
    assert again < passes
    assert len(list(tmp_path.iterdir())) == 1


def test_passes_are_counted_over_all_sessions(undisturbed, tmp_path):
    expected, _ = undisturbed
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, limit=400)
    found, _ = run(tmp_path)
    for entry, whole in zip(found, expected, strict=True):
        assert entry["forwards"] == whole["forwards"]
        assert entry["forwards"]["run"] == entry["forwards"]["planned"]


def test_a_finished_run_needs_no_pass_for_its_coalitions(undisturbed, tmp_path):
    _, passes = run(tmp_path)
    found, again = run(tmp_path)
    assert found == undisturbed[0]
    windows_of_the_prediction = found[0]["forwards"]["segmentation"]
    assert again == windows_of_the_prediction < passes


def test_a_larger_budget_extends_what_is_there(tmp_path):
    small, _ = run(tmp_path / "a", budget=130)
    larger, passes = run(tmp_path / "a", budget=200)
    fresh, all_passes = run(tmp_path / "b", budget=200)
    assert larger == fresh
    assert larger[0]["evaluations"] > small[0]["evaluations"]
    assert passes < all_passes


def test_another_question_has_a_store_of_its_own(tmp_path):
    first, _ = run(tmp_path)
    network = Fragile(10**9)
    with torch.no_grad():
        network.layers[0].weight.mul_(1.5)
    second = ranks_job.record(ranks_job.job(tmp_path, 130, network))
    assert second != first
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_chunk_is_run_again(undisturbed, tmp_path):
    run(tmp_path)
    chunks = sorted(tmp_path.glob("*/chunk_*.npz"))
    chunks[-1].write_bytes(b"damaged")
    assert run(tmp_path)[0] == undisturbed[0]


def test_a_full_disk_stops_with_everything_finished_kept(undisturbed, tmp_path, monkeypatch):
    from monai_segshap.shapley import ValueStore

    write = ValueStore.write

    def until_full(self, chunk, **arrays):
        if chunk >= 2:
            raise OSError(28, "No space left on device")
        write(self, chunk, **arrays)

    monkeypatch.setattr(ValueStore, "write", until_full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path)
    assert len(list(tmp_path.glob("*/chunk_*.npz"))) == 2
    monkeypatch.setattr(ValueStore, "write", write)
    assert run(tmp_path)[0] == undisturbed[0]


def _launch(processes, folder, *arguments):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(JOB), str(folder), *arguments]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [*launcher, *command[1:]]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_change_no_number(processes, undisturbed, tmp_path):
    alone = _launch(1, tmp_path / "one")
    assert _launch(processes, tmp_path / "several", "store") == alone
    assert alone[0]["attributions"] == ranks_job.record(ranks_job.job())[0]["attributions"]


@pytest.mark.xdist_group("ranks")
def test_ranks_with_cases_of_their_own_do_not_wait_for_each_other(undisturbed, tmp_path):
    assert _launch(2, tmp_path / "job", "different", "alone") == undisturbed[0]
    other = json.loads((tmp_path / "job" / "result1.json").read_text())
    assert other == ranks_job.record(ranks_job.job(seed=1))


@pytest.mark.xdist_group("ranks")
def test_ranks_that_share_different_cases_are_refused(tmp_path):
    with pytest.raises(AssertionError, match="the processes work on different cases or questions"):
        _launch(2, tmp_path / "job", "different")


@pytest.mark.xdist_group("ranks")
def test_a_run_continues_with_another_number_of_ranks(undisturbed, tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        ranks_job.job(folder / "store", 130, Fragile(500))
    assert len(list(folder.glob("store/*/chunk_*.npz"))) >= 1
    finished = {p.name: p.stat().st_mtime_ns for p in folder.glob("store/*/chunk_*.npz")}
    assert _launch(2, folder, "store") == undisturbed[0]
    assert finished.items() <= {p.name: p.stat().st_mtime_ns for p in folder.glob("store/*/chunk_*.npz")}.items()
    assert len(list(folder.glob("store/*"))) == 1


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_a_killed_bundle_run_resumes_to_the_same_files(tmp_path):
    options = ["--units", "fcc", "--unit_scale_mm", "110", "--budget", "60", "--scores", "['dice']", "--device", "cpu"]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
    command += ["bundles/torso_kernelshap/configs/inference.yaml", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out):
        arguments = [*command, "--output_dir", str(tmp_path / out)]
        return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    victim = start("killed")
    for _ in range(600):
        if len(list((tmp_path / "killed").glob("evaluations/*/chunk_*.npz"))) >= 2 or victim.poll() is not None:
            break
        time.sleep(0.5)
    assert victim.poll() is None, "the run ended before it could be killed"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "killed" / "torso" / "explanation.json").exists()
    for out in ("killed", "whole"):
        process = start(out)
        output, _ = process.communicate(timeout=500)
        assert process.returncode == 0, output[-3000:]
    records = [json.loads((tmp_path / o / "torso" / "explanation.json").read_text()) for o in ("killed", "whole")]
    for entry in records:
        entry.pop("seconds")
    assert records[0] == records[1]
    tables = [(tmp_path / o / "torso" / "attributions.csv").read_bytes() for o in ("killed", "whole")]
    assert tables[0] == tables[1]
    assert np.isfinite(records[0]["scores"]["dice"]["full"])
