# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Scripts and modules run by several processes under torchrun, as tests start them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run_processes(
    arguments: Sequence[object], count: int = 2, cwd: Path | None = None, timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """Run ``torchrun --nproc_per_node COUNT ARGUMENTS`` on one thread each; fails with the end of what they said.

    Args:
        arguments: a script or "-m MODULE", and what it gets. It can import what this process can.
        count: of processes.
        cwd: where they run; None: here.
        timeout: seconds.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [*launcher, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done
