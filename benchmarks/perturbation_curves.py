# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Perturbation curves of our attributions and of captum's, from the same number of evaluated coalitions.

From the repository root: ``python benchmarks/perturbation_curves.py --results FOLDER``. The folder keeps what is
finished; a run that was stopped goes on from there, and with a full folder only the report is written. The whole run
takes about 45 minutes of one core.

`perturbation_curves_cases.py` has the questions, `perturbation_curves_methods.py` the compared methods and what judges
them, and `perturbation_curves_report.py` the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from perturbation_curves_cases import phantom_question, tiny_question
from perturbation_curves_methods import Question, attributions, judge
from perturbation_curves_report import report

#: Phantoms of the run; the network was trained on other seeds.
FIRST_SEED, CASES = 1000, 5
#: Units and the size of their cells, in mm.
KINDS: tuple[tuple[str, float | None], ...] = (("organs", None), ("fcc", 90.0))
#: Draws of each method; a method of one draw is there for orientation.
SEEDS = {"auto": 2, "kernelshap": 1, "captum": 2, "published": 1, "random": 2}


#: Seeds used so far by kind and number of units, so that no two cases share their draws.
Drawn = Counter[tuple[str, int]]


def budgets(kind: str, n_units: int) -> tuple[int, ...]:
    """Coalitions that each attribution may evaluate, the full and the empty one included."""
    return (64, 128) if kind == "organs" else (4 * n_units,)


def study(question: Question, counts: Sequence[int], seeds: dict[str, int], drawn: Drawn) -> dict[str, Any]:
    """Attributions with each number of coalitions, then the curves of all of them on one memory.

    Args:
        question: the game.
        counts: numbers of coalitions.
        seeds: draws of each method.
        drawn: seeds that cases of the same kind and number of units have used; this one takes the next.
    """
    started = time.process_time()
    first = drawn[question.kind, question.n_units]
    # the largest first: smaller plans are its beginning
    found = [a for n in sorted(counts, reverse=True) for a in attributions(question, seeds, n, first)]
    sampled = question.memory.n_evaluations
    results = judge(question, found)
    facts = {k: v for k, v in question.facts.items() if isinstance(v, int)}
    facts |= {"case": question.case, "kind": question.kind, "n_units": question.n_units, "sampled": sampled}
    facts |= {"judged": question.memory.n_evaluations - sampled, "seconds": time.process_time() - started}
    facts["forwards"] = getattr(question.outputs, "n_forwards", 0)
    return {"facts": facts, "results": results}


def cached(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file keeps, or else what is made, and kept there."""
    if not path.exists():
        partial_path = path.with_suffix(".part")
        partial_path.write_text(json.dumps(make(), indent=1), encoding="utf-8")
        partial_path.replace(path)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def run_phantom(seed: int, units: str, scale_mm: float | None, drawn: Drawn) -> dict[str, Any]:
    """One phantom with one kind of units."""
    question = phantom_question(seed, units, scale_mm)
    return study(question, budgets(units, question.n_units), SEEDS, drawn)


def run_tiny(seed: int, drawn: Drawn) -> dict[str, Any]:
    """A game by hand."""
    question = tiny_question(8, seed)
    return study(question, (40, 64), SEEDS, drawn)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path(tempfile.gettempdir()) / "segshap_perturbation_curves")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--cases", type=int, default=CASES, help=f"phantoms, seeds from {FIRST_SEED} on")
    parser.add_argument("--quick", action="store_true", help="tiny games by hand, no network: a smoke test")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    drawn: Drawn = Counter()
    jobs: dict[str, Callable[[], dict[str, Any]]] = {}
    for number in range(options.cases):
        if options.quick:
            jobs[f"game_{number}"] = partial(run_tiny, number, drawn)
            continue
        for units, scale_mm in KINDS:
            name = units if scale_mm is None else f"{units}{scale_mm:g}"
            jobs[f"phantom_{FIRST_SEED + number}_{name}"] = partial(
                run_phantom, FIRST_SEED + number, units, scale_mm, drawn
            )
    found = []
    for name, make in jobs.items():
        found.append(cached(options.results / f"{name}.json", make))
        facts = found[-1]["facts"]
        drawn[facts["kind"], facts["n_units"]] += max(SEEDS.values())
        print(f"{name}: {facts['sampled']} + {facts['judged']} coalitions, {facts['seconds']:.0f} s", flush=True)
    options.out.write_text(report(found, SEEDS, options.quick), encoding="utf-8")
    print(f"wrote {options.out.name}")


if __name__ == "__main__":
    sys.exit(main())
