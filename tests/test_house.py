# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The house itself: names, layers, types, format, and the commands of the README."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle.config_item import ComponentLocator

import monai_segshap

ROOT = Path(__file__).resolve().parents[1]
LICENSE_LINE = "# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0."


def _modules():
    found = [monai_segshap]
    for info in pkgutil.walk_packages(monai_segshap.__path__, "monai_segshap."):
        found.append(importlib.import_module(info.name))
    return found


def _sources():
    folders = ("monai_segshap", "tests", "bundles", "benchmarks")
    return [p for folder in folders for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts]


def _run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)


def test_no_public_name_is_a_monai_name():
    _modules()
    table = ComponentLocator().get_component_module_name
    clashes = {}
    names = {n for m in _modules() for n, o in vars(m).items() if getattr(o, "__module__", "") == m.__name__}
    for name in names:
        places = table(name)
        places = places if isinstance(places, list) else [places]
        foreign = [p for p in places if p and not str(p).startswith("monai_segshap")]
        if foreign:
            clashes[name] = foreign
    assert "SlidingWindowInferer" not in names
    assert isinstance(table("SlidingWindowInferer"), str), "MONAI's own name must have one origin"
    assert "CachingSlidingWindowInferer" in names
    assert clashes == {}


def test_every_name_in_all_exists_and_all_is_sorted_by_case():
    for module in _modules():
        public = getattr(module, "__all__", [])
        assert len(public) == len(set(public)), module.__name__
        missing = [n for n in public if not hasattr(module, n)]
        assert missing == [], module.__name__


def test_every_public_function_and_class_has_a_docstring():
    bare = []
    for path in (ROOT / "monai_segshap").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                bare.append(f"{path.name}:{node.name}")
    assert bare == []


def test_files_start_with_the_license_and_stay_short():
    long = [
        f"{p.name}: {len(p.read_text().splitlines())}"
        for p in (ROOT / "monai_segshap").rglob("*.py")
        if len(p.read_text().splitlines()) > 400
    ]
    unlicensed = [str(p.relative_to(ROOT)) for p in _sources() if not p.read_text().startswith(LICENSE_LINE)]
    assert long == []
    assert unlicensed == []


def test_input_is_never_validated_with_assert():
    found = [
        str(p)
        for p in (ROOT / "monai_segshap").rglob("*.py")
        if any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(p.read_text(encoding="utf-8"))))
    ]
    assert found == []


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("import-linter",)],
    ids=lambda c: " ".join(c),
)
def test_tool_is_content(command):
    tool = Path(sys.executable).parent / ("lint-imports" if command[0] == "import-linter" else command[0])
    if not tool.exists():
        pytest.skip(f"{tool.name} is not installed; it comes with the 'dev' extra")
    result = _run(str(tool), *command[1:])
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]


def test_shapley_imports_neither_torch_nor_monai():
    code = "import sys, monai_segshap.shapley; print([m for m in ('torch', 'monai', 'ignite') if m in sys.modules])"
    result = _run(sys.executable, "-c", code)
    assert result.stdout.strip() == "[]", result.stderr


def test_readme_holds_one_line_for_each_of_its_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for tag in ("run", "test"):
        blocks = re.findall(rf"```bash {tag}\n(.*?)```", text, flags=re.S)
        assert len(blocks) == 1
        assert len(blocks[0].strip().splitlines()) == 1
    assert "bash test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "bundles/torso_kernelshap/configs/inference.yaml" in text


def test_no_machine_paths_in_tracked_text():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout to list the tracked files of")
    listed = _run("git", "ls-files").stdout.split()
    endings = (".py", ".md", ".yaml", ".json", ".cfg", ".toml", ".ipynb", ".sh", ".txt")
    places = "|".join(("work", "root", "home", "tmp"))
    found = []
    for name in listed:
        path = ROOT / name
        if name.endswith(endings) and path.exists():
            found += [
                f"{name}: {m}" for m in re.findall(rf"(?<![\w.])/(?:{places})/\w+", path.read_text(encoding="utf-8"))
            ]
    assert found == []
