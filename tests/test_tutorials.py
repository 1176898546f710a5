# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The tutorials run from start to end, and what is committed is what a run shows.

``python tests/test_tutorials.py`` runs every notebook and writes its outputs into the committed file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
KERNEL = "python3"
CELL_SECONDS = 600
LARGEST_BYTES = 1_500_000

#: Absolute paths of a machine, in text outputs.
MACHINE_PATHS = re.compile(
    r"(?<![\w./])/(?:home|root|tmp|opt|usr|var|work|mnt|private|Users|content)/|\b[A-Za-z]:\\|site-packages"
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run a notebook in place with this interpreter, as if it lay in the tutorials of a repository in a folder."""
    shutil.copytree(ROOT / "bundles", folder / "bundles", ignore=shutil.ignore_patterns("__pycache__", "explanations"))
    tutorials, jupyter = folder / "tutorials", folder / "jupyter"
    tutorials.mkdir()
    spec = jupyter / "kernels" / KERNEL / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}), encoding="utf-8")
    # the first kernel found is this one, and nobody's startup files or connection files are touched
    places = {"JUPYTER_PATH": jupyter, "JUPYTER_RUNTIME_DIR": jupyter / "runtime", "IPYTHONDIR": folder / "ipython"}
    with pytest.MonkeyPatch.context() as patch:
        for name, place in places.items():
            patch.setenv(name, str(place))
        patch.setenv("TMPDIR", str(tutorials))
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name=KERNEL,
            resources={"metadata": {"path": str(tutorials)}},
            coalesce_streams=True,  # a progress bar is one line, as on a screen
        ).execute()


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """All text that the outputs show; pictures are left out."""
    found = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            found.append(output.get("text", ""))
            data = output.get("data", {})
            found += [str(content) for kind, content in data.items() if not kind.startswith("image/")]
    return found


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What each cell prints, without progress bars and what a machine has of time and memory."""
    shown = ["".join(o.text for o in cell.outputs if o.get("name") == "stdout") for cell in code_cells(notebook)]
    return ["\n".join(x for x in text.split("\n") if not x.startswith(("memory:", "expected time:"))) for text in shown]


def pictures_and_tables(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Kinds of rich output of each cell."""
    kinds = ("image/png", "text/html")
    return [[k for o in cell.outputs for k in kinds if k in o.get("data", {})] for cell in code_cells(notebook)]


def outputs_of_type(notebook: nbformat.NotebookNode, kind: str) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == kind]


def test_there_are_tutorials():
    assert [p.name for p in NOTEBOOKS][:1] == ["01_explain_one_case.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebook_has_clean_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run all cells, from the top"
    assert cells[-1].outputs
    assert outputs_of_type(notebook, "error") == []
    assert notebook.metadata.kernelspec.name == KERNEL
    assert path.stat().st_size < LARGEST_BYTES
    shown = texts(notebook)
    assert [t for t in shown if "Traceback (most recent call last)" in t] == []
    assert [match.group() for t in shown for match in MACHINE_PATHS.finditer(t)] == []
    streams = [output.text for output in outputs_of_type(notebook, "stream")]
    assert [t for t in streams if "\r" in t or t.count("\n") > 40] == [], "a progress bar left its lines"


@pytest.mark.slow
@pytest.mark.timeout(2 * CELL_SECONDS)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path):
    committed, notebook = nbformat.read(path, as_version=4), nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    execute(notebook, tmp_path)  # raises CellExecutionError for any error
    assert pictures_and_tables(notebook) == pictures_and_tables(committed), "the committed outputs are of other kinds"
    for old, new in zip(printed(committed), printed(notebook), strict=True):
        assert NUMBER.sub("#", new).split() == NUMBER.sub("#", old).split()
        for expected, got in zip(NUMBER.findall(old), NUMBER.findall(new), strict=True):
            # the last bits of a network differ from machine to machine, and with them a voxel or two
            close = pytest.approx(float(expected), rel=0.1, abs=0.02 if "." in expected else 3)
            assert float(got) == close, f"the text speaks of other numbers:\n{old}\n{new}"


def main() -> None:
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
        for cell in code_cells(notebook):
            cell.metadata.pop("execution", None)  # time stamps
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data.pop("image/jpeg", None)  # the same picture again
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
