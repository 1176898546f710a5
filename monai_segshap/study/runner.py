# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Explain every case with every kind of units, measure the explanations, and continue where a run stopped."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from monai_segshap.explainers import Explanation
from monai_segshap.metrics import PerturbationCurves, case_curves
from monai_segshap.running import cases_of_rank, root_cause
from monai_segshap.study.identity import changed_settings, describe, file_digest
from monai_segshap.study.records import StudyRecord, read_record, record_of
from monai_segshap.study.summary import write_study
from monai_segshap.transforms import KernelSHAPd
from monai_segshap.units import Partition
from monai_segshap.writers import write_explanation

__all__ = ["ExplanationStudy"]

logger = logging.getLogger(__name__)

Case = dict[str, Any]
Step = Callable[[Case], Mapping[Any, Any]]


class ExplanationStudy:
    """The study of paper 000: cases x kinds of units x scores, judged by perturbation curves.

    Each case is loaded, segmented and given its region once; for each kind of units one sweep of coalitions gives the
    values of all scores, and one more evaluation their MoRF and LeRF curves. A finished pair of case and kind is a
    file of its own, ``results/CASE/KIND.json``; a run that was stopped continues with the others. A pair that fails is
    kept with its reason, and tried again by the next run. Tables, pictures and the summary are made from the files, see
    `monai_segshap.study.write_study`.

    Args:
        cases: dictionaries for ``prepare``, with "case", a name of their own; the files under "image" and "organs"
            belong to what results depend on.
        prepare: from such a dictionary to image, raw prediction and region, for example a Compose of loading,
            `PredictLogitsd` and `SelectRegiond` with one region.
        units: for each kind a transform that adds the units.
        explain: the explainer; its coalitions come from ``budgets``.
        output_dir: where everything goes.
        budgets: coalitions for each kind; a kind that is not named, and None, has the budget of ``explain``.
        curves: options of `monai_segshap.metrics.case_curves`, such as {"random_orders": 10, "bounds": "none"}.
        settings: further settings, as plain values, to be kept with the results and compared.
        if_changed: what to do with a result of other settings: "refuse", or "rerun".
        save_explanations: whether to write each explanation's maps and tables, to ``results/CASE/KIND``.
        resamples: for the bootstrap intervals.

    Raises:
        ValueError: for no case or kind, cases of one name, budgets of unknown kinds, another ``if_changed``, or an
            explainer whose processes share a case: here each process has cases of its own.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        prepare: Step,
        units: Mapping[str, Step],
        explain: KernelSHAPd,
        output_dir: str | Path,
        *,
        budgets: Mapping[str, int | None] | None = None,
        curves: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        if_changed: str = "refuse",
        save_explanations: bool = False,
        resamples: int = 10_000,
    ) -> None:
        self.cases, self.prepare, self.units = [dict(case) for case in cases], prepare, dict(units)
        self.output_dir, self.curves = Path(output_dir), dict(curves or {})
        self.if_changed, self.save_explanations, self.resamples = if_changed, save_explanations, resamples
        names = [str(case.get("case", "")) for case in self.cases]
        if not names or not self.units or not all(names) or len(set(names)) < len(names):
            raise ValueError(
                f"got {len(names)} cases, {len(set(names) - {''})} different names and {len(self.units)} kinds of "
                "units; expected at least one of each, and a 'case' of its own for every case."
            )
        unknown = sorted(set(budgets or {}) - set(self.units))
        if unknown:
            raise ValueError(f"budgets name the kinds {unknown}; the study has {', '.join(self.units)}.")
        if if_changed not in ("refuse", "rerun"):
            raise ValueError(f"if_changed is {if_changed!r}; expected 'refuse' or 'rerun'.")
        if explain.explainer.settings.ranks.count > 1:
            raise ValueError("the processes of a study have cases of their own; use an explainer with ranks='alone'.")
        self.explain = {kind: _with_budget(explain, (budgets or {}).get(kind)) for kind in self.units}
        shared = {"prepare": describe(prepare), "curves": describe(self.curves), "settings": describe(settings or {})}
        self._identity = {
            kind: {**shared, "units": describe(step), "explain": describe(self.explain[kind])}
            for kind, step in self.units.items()
        }

    def run(self) -> list[StudyRecord]:
        """Do what is missing, then write tables and pictures to ``output_dir``.

        Returns:
            all records, those of failed pairs included; on processes but the first, those of their own cases.

        Raises:
            ValueError: if a result of other settings is there and ``if_changed`` is "refuse" (nothing has run then), or
                if every pair failed.
        """
        own = cases_of_rank(self.cases, "alone")
        known = {(case["case"], kind): self._known(case, kind) for case in own for kind in self.units}
        clock = _Clock(known)
        for case in own:
            missing = [kind for kind in self.units if known[case["case"], kind] is None]
            if missing:
                for record in self._do(case, missing, clock):
                    known[record.case, record.kind] = record
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
            if dist.get_rank() > 0:
                return [record for record in known.values() if record is not None]
        records = [self._read(case, kind) for case in self.cases for kind in self.units]
        found = [record for record in records if record is not None]
        write_study(found, self.output_dir, resamples=self.resamples)
        if all(record.failed for record in found):
            raise ValueError(f"no case could be explained; the first one: {found[0].case}: {found[0].reason}")
        return found

    def path(self, case: str, kind: str) -> Path:
        """The file of a case and a kind of units."""
        return self.output_dir / "results" / case / f"{kind}.json"

    def identity(self, case: Mapping[str, Any], kind: str) -> dict[str, Any]:
        """What the result of a case depends on: its files, and every setting that can change a number."""
        files = {key: file_digest(case[key]) for key in ("image", "organs") if case.get(key)}
        return {"files": files, **self._identity[kind]}

    def _read(self, case: Mapping[str, Any], kind: str) -> StudyRecord | None:
        return read_record(self.path(str(case["case"]), kind))

    def _known(self, case: Mapping[str, Any], kind: str) -> StudyRecord | None:
        """A finished result of these very settings."""
        record = self._read(case, kind)
        if record is None or record.failed:
            return None
        try:
            changed = changed_settings(record.identity, self.identity(case, kind))
        except OSError as error:
            raise ValueError(
                f"{self.path(record.case, kind)} holds a result, but its case can not be read any more: {error}. Bring "
                "the file back, or take the case from the list."
            ) from error
        if changed and self.if_changed == "refuse":
            more = f", and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise ValueError(
                f"{self.path(record.case, kind)} was made with other settings: {'; '.join(changed[:4])}{more}. Give "
                "another output_dir, take the settings back, or rerun what differs (if_changed 'rerun')."
            )
        if changed:
            print(f"study: {record.case}, {kind} is run again: {'; '.join(changed[:4])}", flush=True)
        return None if changed else record

    def _do(self, case: Case, kinds: Sequence[str], clock: _Clock) -> list[StudyRecord]:
        """The missing kinds of a case; each record is written as soon as it is there."""
        found, started = [], time.perf_counter()
        try:
            data = self.prepare(dict(case))
        except Exception as error:
            for kind in kinds:
                found.append(self._failure(case, kind, error))
                clock.done(found[-1])
            return found
        seconds = {"case": time.perf_counter() - started}
        for kind in kinds:
            clock.start(str(case["case"]), kind)
            try:
                record = self._result(case, kind, dict(data), seconds)
                record.write(self.path(record.case, kind))
            except Exception as error:
                record = self._failure(case, kind, error)
            found.append(record)
            clock.done(record)
        return found

    def _failure(self, case: Case, kind: str, error: Exception) -> StudyRecord:
        """A record of what went wrong; the whole traceback goes to the log at level DEBUG."""
        cause = root_cause(error)
        logger.debug("%s, %s failed", case["case"], kind, exc_info=error)
        try:
            identity = self.identity(case, kind)
        except OSError:  # the file that is missing may be the reason
            identity = self._identity[kind]
        record = StudyRecord(str(case["case"]), kind, identity, f"{type(cause).__name__}: {cause}")
        record.write(self.path(record.case, kind))
        return record

    def _result(self, case: Case, kind: str, data: Case, seconds: Mapping[str, float]) -> StudyRecord:
        name, explain = str(case["case"]), self.explain[kind]
        started = time.perf_counter()
        ready: Case = {str(key): value for key, value in explain(dict(self.units[kind](data))).items()}
        found: list[Explanation] = ready[explain.output_key]
        if len(found) != 1:
            raise ValueError(f"a study explains one region of a case; {name} has {len(found)}.")
        between = time.perf_counter()
        curves, forwards = self._curves(explain, ready, found[0])
        spent = {**seconds, "explanation": between - started, "curves": time.perf_counter() - between}
        if self.save_explanations:
            write_explanation(found[0], self.path(name, kind).with_suffix(""))
        return record_of(name, kind, self.identity(case, kind), found[0], curves, forwards, spent)

    def _curves(
        self, explain: KernelSHAPd, data: Case, explanation: Explanation
    ) -> tuple[dict[str, PerturbationCurves], int]:
        """The curves of all scores, and the network passes that they needed."""
        (key,) = explain.keys
        game = explain.explainer.game(
            data[key],
            Partition.from_metatensor(data[explain.units_key]),
            explanation.region,
            data[explain.pred_key],
            data.get(explain.perturbed_key),
        )
        return case_curves(explanation, game, **self.curves), game.n_forwards


class _Clock:
    """Says which pair is next, how many are left, and about how long they take."""

    def __init__(self, known: Mapping[tuple[str, str], StudyRecord | None]) -> None:
        self._left = [pair for pair, record in known.items() if record is None]
        self._total, self._failed = len(known), 0
        self._seconds: dict[str, list[float]] = {}
        for record in known.values():
            if record is not None:
                self._note(record)
        finished = self._total - len(self._left)
        if finished:
            print(f"study: {finished} of {self._total} results are there already", flush=True)

    def start(self, case: str, kind: str) -> None:
        number = self._total - len(self._left) + 1
        print(f"study: {number} of {self._total}: {case}, {kind}; {self._remaining()}", flush=True)

    def done(self, record: StudyRecord) -> None:
        self._left = [pair for pair in self._left if pair != (record.case, record.kind)]
        if record.failed:
            self._failed += 1
            print(f"study: {record.case}, {record.kind} failed: {record.reason}", flush=True)
        else:
            self._note(record)

    def _note(self, record: StudyRecord) -> None:
        spent = record.seconds["explanation"] + record.seconds["curves"]
        self._seconds.setdefault(record.kind, []).append(spent)

    def _remaining(self) -> str:
        text = f"{len(self._left)} left" + (f", {self._failed} failed" if self._failed else "")
        every = [value for values in self._seconds.values() for value in values]
        if not every:
            return text
        means = {kind: sum(values) / len(values) for kind, values in self._seconds.items()}
        seconds = sum(means.get(kind, sum(every) / len(every)) for _, kind in self._left)
        return f"{text}, about {max(seconds / 60, 0.1):.3g} min"


def _with_budget(explain: KernelSHAPd, budget: int | None) -> KernelSHAPd:
    """The same transform, silent, with another budget; calibrations are shared."""
    found, explainer = copy.copy(explain), copy.copy(explain.explainer)
    explainer.progress = False
    if budget is not None:
        explainer.settings = replace(explainer.settings, budget=int(budget))
    found.explainer = explainer
    return found
