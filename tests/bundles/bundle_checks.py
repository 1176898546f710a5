# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What the tests of several bundles share: MONAI's own checks, workflows, commands, and why something failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out

from monai_segshap.networks import load_weights

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = ("LICENSE", "configs/metadata.json", "configs/inference.yaml", "configs/train.yaml", "docs/README.md")


@dataclass(frozen=True)
class BundleUnderTest:
    """A bundle of this repository, by name."""

    name: str

    @property
    def folder(self) -> Path:
        return ROOT / "bundles" / self.name

    @property
    def config(self) -> str:
        return str(self.folder / "configs" / "inference.yaml")

    @property
    def meta(self) -> str:
        return str(self.folder / "configs" / "metadata.json")

    @property
    def weights(self) -> Path:
        return self.folder / "models" / "model.pt"

    def workflow(self, output_dir: Path, **options: Any) -> ConfigWorkflow:
        """The inference workflow on the CPU, not initialized yet."""
        options = {"output_dir": str(output_dir), "device": "cpu", **options}
        return ConfigWorkflow(self.config, self.meta, logging_file=False, workflow_type="inference", **options)

    def run(self, output_dir: Path, **options: Any) -> ConfigWorkflow:
        """The same from start to end; what it made is in its parser."""
        job = self.workflow(output_dir, **options)
        job.initialize()
        job.run()
        job.finalize()
        return job

    def command(self, timeout: float = 500, **options: Any) -> subprocess.CompletedProcess[str]:
        """The main job from the command line, in the root of the repository."""
        command = [sys.executable, "-m", "monai.bundle", "run"]
        command += ["--config_file", f"bundles/{self.name}/configs/inference.yaml"]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env={**os.environ})

    def check_files(self, required: Sequence[str] = REQUIRED, largest_bytes: int = 2_000_000) -> None:
        for name in required:
            assert (self.folder / name).is_file(), name
        assert self.weights.stat().st_size <= largest_bytes
        assert all(v.dtype.is_floating_point for v in torch.load(self.weights, weights_only=True).values())

    def check_metadata(self, class_names: Sequence[str]) -> None:
        verify_metadata(self.meta, filepath=str(Path(__file__).with_name("metadata_schema.json")))
        meta = json.loads(Path(self.meta).read_text(encoding="utf-8"))
        assert meta["version"] in meta["changelog"]
        channels = meta["network_data_format"]["outputs"]["pred"]["channel_def"]
        assert channels == {str(i): n for i, n in enumerate(class_names)}

    def check_network(self, inputs: int, outputs: int) -> None:
        found = json.loads(Path(self.meta).read_text(encoding="utf-8"))["network_data_format"]
        assert (found["inputs"]["image"]["num_channels"], found["outputs"]["pred"]["num_channels"]) == (inputs, outputs)
        # raises if it differs
        verify_net_in_out(net_id="network_def", config_file=self.config, meta_file=self.meta, device="cpu")

    def check_torchscript(self, path: Path, window: Sequence[int]) -> None:
        export = {"ckpt_file": str(self.weights), "meta_file": self.meta, "config_file": self.config}
        ckpt_export(net_id="network_def", filepath=str(path), **export)
        parser = ConfigParser(ConfigParser.load_config_file(self.config))
        network = load_weights(parser.get_parsed_content("network_def"), self.weights)
        x = torch.rand(2, 1, *window)
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.load(str(path))(x), network(x))


def reasons(error: BaseException | None) -> list[str]:
    """The sentences of an error and of those that it was raised from, the last one first."""
    chain = []
    while error is not None:
        chain.append(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain
