# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Do outlier scores go with bad segmentations, or with groups of patients? Rank tests, corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from monai_segshap.cohort.matrix import column_name
from monai_segshap.cohort.table import ImportanceTable

__all__ = ["MEAN_ROW", "adjust_p_values", "group_differences", "outlier_correlation", "planted_auc"]

#: Name of the row that speaks of the mean over all classes.
MEAN_ROW = "(mean over classes)"

_MAX_GROUPS = 12


def adjust_p_values(p_values: ArrayLike, method: str) -> NDArray[np.float64]:
    """Correct p-values for their number.

    Args:
        p_values: (N,), in [0, 1]; NaN: no test, which counts for nothing and stays NaN.
        method: "bh": Benjamini and Hochberg, the share of false discoveries; "holm": Holm, the chance of any false one.

    Returns:
        float64 (N,), never below the p-value and at most 1.

    Raises:
        ValueError: for another method or values outside [0, 1].
    """
    given = np.asarray(p_values, dtype=np.float64)
    there = np.isfinite(given)
    known = given[there]
    if given.ndim != 1 or np.any((known < 0) | (known > 1)) or np.isinf(given).any():
        raise ValueError(f"got p-values {given.tolist()}; expected a list of numbers in [0, 1], or NaN for no test.")
    adjusted = np.full(given.shape, np.nan)
    if not len(known):
        return adjusted
    if method == "bh":
        adjusted[there] = stats.false_discovery_control(known, method="bh")
    elif method == "holm":
        order = np.argsort(known, kind="stable")
        steps = np.minimum(1.0, np.maximum.accumulate(known[order] * np.arange(len(known), 0, -1)))
        back = np.empty(len(known))
        back[order] = steps
        adjusted[there] = back
    else:
        raise ValueError(f"got method {method!r}; expected 'bh' (Benjamini-Hochberg) or 'holm'.")
    return adjusted


def outlier_correlation(scores: pd.DataFrame, dice: pd.DataFrame) -> pd.DataFrame:
    """Spearman correlation of outlier scores with Dice, for each class (paper 001, Table 2).

    Scores are those of `OutlierModel.scores`: LOW means abnormal. So a POSITIVE correlation means: the more abnormal
    the explanation, the worse the segmentation.

    Args:
        scores: index cases, columns explained classes.
        dice: index cases, columns classes; cases and classes that only one of the two has are left out, and n says how
            many cases a row rests on.

    Returns:
        a row for each class of both, and one for the means over classes (`MEAN_ROW`: cases where every class has score
        and Dice; not among the corrected tests): n, rho, p (two-sided), p_bh, p_holm, note (why a row has no test).

    Raises:
        ValueError: if no class or no case is in both.
    """
    classes = [name for name in scores.columns if name in dice.columns]
    cases = [case for case in scores.index if case in dice.index]
    if not classes or not cases:
        raise ValueError(
            f"scores and Dice share {len(classes)} classes and {len(cases)} cases; expected the same names in both, "
            f"got classes {list(scores.columns)[:5]} and {list(dice.columns)[:5]}."
        )
    left, right = scores.loc[cases, classes], dice.loc[cases, classes]
    table = pd.DataFrame([_spearman(name, left[name], right[name]) for name in classes])
    table["p_bh"], table["p_holm"] = adjust_p_values(table["p"], "bh"), adjust_p_values(table["p"], "holm")
    whole = _spearman(MEAN_ROW, left.mean(axis=1, skipna=False), right.mean(axis=1, skipna=False))
    rows = pd.concat([table, pd.DataFrame([{**whole, "p_bh": np.nan, "p_holm": np.nan}])], ignore_index=True)
    return rows[["class", "n", "rho", "p", "p_bh", "p_holm", "note"]].set_index("class")


def _spearman(name: str, scores: pd.Series, dice: pd.Series) -> dict[str, Any]:
    both = np.isfinite(scores.to_numpy(dtype=np.float64)) & np.isfinite(dice.to_numpy(dtype=np.float64))
    x, y = scores.to_numpy(dtype=np.float64)[both], dice.to_numpy(dtype=np.float64)[both]
    row: dict[str, Any] = {"class": name, "n": int(both.sum()), "rho": np.nan, "p": np.nan, "note": ""}
    if len(x) < 4:
        return {**row, "note": "fewer than 4 cases with both"}
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return {**row, "note": "all scores or all Dice are equal"}
    found = stats.spearmanr(x, y)
    return {**row, "rho": float(found.statistic), "p": float(found.pvalue)}


def group_differences(
    values: pd.DataFrame | ImportanceTable, metadata: pd.DataFrame | None, column: str, min_size: int = 3
) -> pd.DataFrame:
    """Do groups of patients differ, for example sexes or scanners, in outlier scores or in importances?

    Two groups: Mann-Whitney U, two-sided; more: Kruskal-Wallis. Numbers with many values, such as age, have to be cut
    into groups first (``pandas.qcut``).

    Args:
        values: index cases, a column for each feature (for example `OutlierModel.scores`); or a table, whose features
            are its cells.
        metadata: index cases; None: the table's own.
        column: of the metadata. Cases without a value are left out.
        min_size: groups with fewer values of a feature are left out for that feature, and named in its note.

    Returns:
        a row for each feature: test, n, groups (with sizes), medians, statistic, effect, p, p_bh, p_holm, note. The
        effect is for two groups the chance that a case of the first has the larger value (0.5: no difference), for
        more epsilon squared (H / (n - 1), 0 to 1).

    Raises:
        ValueError: for an unknown column, or not 2 to 12 groups.
    """
    if isinstance(values, ImportanceTable):
        metadata = values.metadata if metadata is None else metadata
        names = [column_name(e, r, values.variant, values.part) for e in values.explained for r in values.regions]
        values = pd.DataFrame(
            values.values.reshape(values.n_cases, -1), index=pd.Index(values.cases, name="case"), columns=names
        )
    if metadata is None or column not in metadata.columns:
        there = [] if metadata is None else list(metadata.columns)[:20]
        raise ValueError(f"the metadata has no column {column!r}; it has {there}.")
    named = metadata.set_axis(pd.Index([str(case) for case in metadata.index]), axis=0)[column]
    if named.index.duplicated().any():
        raise ValueError(f"the metadata has several rows for {named.index[named.index.duplicated()][0]}; expected one.")
    groups = named.reindex([str(case) for case in values.index])
    kinds = list(pd.unique(groups.dropna()))
    if not 2 <= len(kinds) <= _MAX_GROUPS:
        raise ValueError(
            f"{column} has {len(kinds)} different values among the cases; expected 2 to {_MAX_GROUPS} groups. Cut "
            "numbers into groups first, for example with pandas.qcut."
        )
    kinds = sorted(kinds, key=str)
    rows = [_compare(str(name), values[name].to_numpy(), groups.to_numpy(), kinds, min_size) for name in values.columns]
    table = pd.DataFrame(rows)
    table["p_bh"], table["p_holm"] = adjust_p_values(table["p"], "bh"), adjust_p_values(table["p"], "holm")
    order = ["test", "n", "groups", "medians", "statistic", "effect", "p", "p_bh", "p_holm", "note"]
    return table.set_index("feature")[order]


def _compare(
    feature: str, values: NDArray[Any], groups: NDArray[Any], kinds: Sequence[Any], min_size: int
) -> dict[str, Any]:
    numbers = values.astype(np.float64)
    parts: Mapping[str, NDArray[np.float64]] = {
        str(kind): numbers[(groups == kind) & np.isfinite(numbers)] for kind in kinds
    }
    used = {kind: part for kind, part in parts.items() if len(part) >= min_size}
    small = [f"{kind} ({len(part)})" for kind, part in parts.items() if kind not in used]
    everything = np.concatenate(list(used.values())) if used else np.empty(0)
    row: dict[str, Any] = {
        "feature": feature,
        "test": "",
        "n": len(everything),
        "groups": "; ".join(f"{kind} ({len(part)})" for kind, part in used.items()),
        "medians": "; ".join(f"{kind} {np.median(part):.4g}" for kind, part in used.items()),
        "statistic": np.nan,
        "effect": np.nan,
        "p": np.nan,
        "note": f"left out, fewer than {min_size} values: {', '.join(small)}" if small else "",
    }
    if len(used) < 2:
        return row
    if np.ptp(everything) == 0:
        return {**row, "note": "; ".join(filter(None, [row["note"], "all values are equal"]))}
    if len(used) == 2:
        first, second = used.values()
        found = stats.mannwhitneyu(first, second, alternative="two-sided")
        effect = float(found.statistic) / (len(first) * len(second))
        return {
            **row,
            "test": "Mann-Whitney U",
            "statistic": float(found.statistic),
            "effect": effect,
            "p": float(found.pvalue),
        }
    found = stats.kruskal(*used.values())
    effect = float(found.statistic) / (len(everything) - 1)
    return {
        **row,
        "test": "Kruskal-Wallis",
        "statistic": float(found.statistic),
        "effect": effect,
        "p": float(found.pvalue),
    }


def planted_auc(scores: pd.DataFrame, is_abnormal: pd.Series | Mapping[str, bool] | Sequence[bool]) -> pd.DataFrame:
    """How well outlier scores find cases that are known to be abnormal.

    The area under the ROC curve: the chance that an abnormal case has the LOWER score (more abnormal) than a normal
    one, ties counting half. 1: all found first; 0.5: chance.

    Args:
        scores: index cases, columns explained classes, LOW = abnormal, as `OutlierModel.scores`.
        is_abnormal: case -> whether it is abnormal; or one entry for each row.

    Returns:
        a row for each class and one for the mean of the scores over classes (`MEAN_ROW`, over the classes that a case
        has): auc, n_abnormal, n_normal. Cases without a score are left out; NaN where a group is empty.

    Raises:
        ValueError: if a case is not named, or the entries are not as many as the rows.
    """
    if isinstance(is_abnormal, (pd.Series, Mapping)):
        known = {str(case): bool(flag) for case, flag in is_abnormal.items()}
        missing = [str(case) for case in scores.index if str(case) not in known]
        if missing:
            raise ValueError(f"it is not said whether {missing[:5]} are abnormal; expected an entry for each case.")
        flags = np.array([known[str(case)] for case in scores.index], dtype=bool)
    else:
        flags = np.asarray(is_abnormal, dtype=bool)
    if flags.shape != (len(scores),):
        raise ValueError(f"got {flags.shape} entries for {len(scores)} cases; expected one for each.")
    columns = {str(name): scores[name].to_numpy(dtype=np.float64) for name in scores.columns}
    columns[MEAN_ROW] = scores.mean(axis=1).to_numpy(dtype=np.float64)
    rows = [{"class": name, **_auc(-values, flags)} for name, values in columns.items()]
    return pd.DataFrame(rows).set_index("class")


def _auc(anomaly: NDArray[np.float64], flags: NDArray[np.bool_]) -> dict[str, float]:
    """Rank formula of the area under the ROC curve."""
    known = np.isfinite(anomaly)
    ranks, found = stats.rankdata(anomaly[known]), flags[known]
    n_abnormal, n_normal = int(found.sum()), int((~found).sum())
    auc = np.nan
    if n_abnormal and n_normal:
        auc = (ranks[found].sum() - n_abnormal * (n_abnormal + 1) / 2) / (n_abnormal * n_normal)
    return {"auc": float(auc), "n_abnormal": n_abnormal, "n_normal": n_normal}
