# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Convergence report of an explanation, from the coalitions that it has evaluated."""

from __future__ import annotations

from typing import Any

import numpy as np

from monai_segshap.explainers import Explanation
from monai_segshap.explainers.preparation import PRIORS
from monai_segshap.metrics.convergence import ConvergenceReport, convergence_report
from monai_segshap.shapley import CoalitionPlan, Locality, all_coalitions, plan_coalitions
from monai_segshap.units import typical_unit_size, unit_distances

__all__ = ["case_convergence"]


def case_convergence(explanation: Explanation, *, prior: str = "distance", **options: Any) -> ConvergenceReport:
    """Was the budget of an explanation large enough? No network pass; see `convergence_report`.

    Args:
        explanation: with ``evaluated`` coalitions.
        prior: as the explainer had it: "distance" or "flat"; only "gaussian_process" and "ridge" have one.
        options: of `convergence_report`: method, budgets, held_out, tolerance.

    Returns:
        the report, over the V units that the region's windows see, with the names of the explanation's scores.

    Raises:
        ValueError: without evaluated coalitions; where they are not a plan as it was drawn, because several regions
            with different visible units shared a sweep; or as `convergence_report`.
    """
    check_prior(prior)
    if explanation.evaluated is None:
        raise ValueError(f"the explanation of {explanation.case} has no evaluated coalitions; explain the case again.")
    plan = _plan(explanation)
    if options.get("locality") is None and (options.get("method") or plan.method) in ("gaussian_process", "ridge"):
        options["locality"] = _locality(explanation, prior)
    return convergence_report(plan, explanation.evaluated.scores, names=explanation.scores, **options)


def check_prior(prior: str) -> None:
    """Raise for an unknown prior.

    Raises:
        ValueError: if it is none of `PRIORS`.
    """
    if prior not in PRIORS:
        raise ValueError(f"unknown prior {prior!r}; expected one of {', '.join(PRIORS)}.")


def _plan(explanation: Explanation) -> CoalitionPlan:
    """The plan that the evaluated coalitions are."""
    rows = explanation.evaluated.rows if explanation.evaluated is not None else np.zeros((0, 0), dtype=bool)
    n_rows, n_units = rows.shape
    method, seed = explanation.method, explanation.seed
    if method == "exact":
        if n_rows == 2**n_units and np.array_equal(rows, all_coalitions(n_units)):
            return CoalitionPlan(rows, "exact", seed)
    else:
        found = plan_coalitions(n_units, n_rows - 2, method, seed)
        if np.array_equal(found.rows, rows):
            return found
    raise ValueError(
        f"the {n_rows} evaluated coalitions of {n_units} visible units are no plan of method {method!r} and seed "
        f"{seed} as it was drawn; this happens where several regions with different visible units share their "
        "coalitions. Explain this region alone, or give plan and scores to convergence_report."
    )


def _locality(explanation: Explanation, prior: str) -> Locality:
    """What the explainer's estimator knew of the units, without blocks."""
    visible, partition = explanation.visible, explanation.partition
    size = typical_unit_size(partition, visible)
    if prior == "flat":
        return Locality(unit_size_mm=size)
    mask = explanation.region.mask
    distances, _ = unit_distances(partition, mask, np.zeros(int(mask.sum()), dtype=np.int64))
    return Locality(distances, size).restricted_to(visible)
