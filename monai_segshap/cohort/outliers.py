# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Abnormal cases without ground truth: an isolation forest for each class, on what the class relies on."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.cohort.table import ImportanceTable
from monai_segshap.files import write_whole

__all__ = ["OutlierModel"]

_FORMAT = "1"
_MIN_CASES = 2


@dataclass(frozen=True, eq=False)
class OutlierModel:
    """Isolation forests (Liu et al. 2012) on the rows of importance matrices, one for each explained class.

    Fit it on one cohort (paper 001: the training cases), apply it to that or another one. A class's features are its
    importances in all regions, found by name.

    Scores are scikit-learn's ``decision_function``: LOW means abnormal, below 0 is what the forest calls an outlier.
    `anomaly` is minus that: HIGH means abnormal.

    Attributes:
        table: the cohort that it was fitted on.
        seed: of the forests.
        n_estimators: trees of each forest.
        left_out: class -> names of the cases that had no complete row (the class is absent) and took no part.
        forests: class -> fitted ``sklearn.ensemble.IsolationForest``, for classes with at least two complete rows.
        sklearn_version: scikit-learn's version at the fit.
    """

    table: ImportanceTable
    seed: int
    n_estimators: int
    left_out: Mapping[str, tuple[str, ...]]
    forests: Mapping[str, Any] = field(repr=False)
    sklearn_version: str = ""

    @classmethod
    def fit(cls, table: ImportanceTable, seed: int = 123, n_estimators: int = 100) -> OutlierModel:
        """Fit the forests.

        Args:
            table: the reference cohort.
            seed: of the forests; the same seed, cases and scikit-learn version give the same scores.
            n_estimators: trees of each forest (paper 001: 100).

        Raises:
            ImportError: if scikit-learn is not installed.
            ValueError: if no class has two cases with complete rows, or for no tree.
        """
        if n_estimators < 1:
            raise ValueError(f"got {n_estimators} trees; expected at least 1.")
        ensemble, version = _sklearn()
        forests: dict[str, Any] = {}
        left_out: dict[str, tuple[str, ...]] = {}
        for t, name in enumerate(table.explained):
            rows = table.values[:, t]
            complete = _complete(rows)
            left_out[name] = tuple(case for case, whole in zip(table.cases, complete, strict=True) if not whole)
            if complete.sum() >= _MIN_CASES:
                forest = ensemble.IsolationForest(n_estimators=n_estimators, random_state=seed)
                forests[name] = forest.fit(rows[complete])
        if not forests:
            raise ValueError(
                f"no class has a complete row in {_MIN_CASES} of the {table.n_cases} cases; expected importances "
                "without NaN. Means and enrichments are NaN for empty regions: use masses."
            )
        return cls(table, seed, n_estimators, left_out, forests, version)

    @property
    def n_fitted(self) -> dict[str, int]:
        """Class -> cases that its forest was fitted on."""
        return {name: self.table.n_cases - len(cases) for name, cases in self.left_out.items()}

    def scores(self, table: ImportanceTable) -> pd.DataFrame:
        """Decision function of each case and class: LOW means abnormal.

        Args:
            table: cases of the same classes and regions, in any order. Further regions, such as pathologies that the
                reference cohort does not have, are not looked at.

        Returns:
            float64, index cases, columns explained classes. NaN where the case has no complete row (the class is
            absent), and for a class without a forest.

        Raises:
            ValueError: if a class or region of the model is missing, or variant or part differ.
        """
        if (table.variant, table.part) != (self.table.variant, self.table.part):
            raise ValueError(
                f"the table holds ({table.variant}, {table.part}); the model was fitted on ({self.table.variant}, "
                f"{self.table.part}). Read the table with the same variant and part."
            )
        missing = [name for name in self.table.explained if name not in table.explained]
        unseen = [name for name in self.table.regions if name not in table.regions]
        if missing or unseen:
            raise ValueError(
                f"the table lacks the explained classes {missing[:5]} and the regions {unseen[:5]} that the model was "
                "fitted on; expected all of them. Fit a model on the names that both cohorts share."
            )
        columns = [table.regions.index(name) for name in self.table.regions]
        found: dict[str, NDArray[np.float64]] = {}
        for name in self.table.explained:
            rows = table.values[:, table.explained.index(name)][:, columns]
            complete = _complete(rows)
            found[name] = np.full(table.n_cases, np.nan)
            if name in self.forests and complete.any():
                found[name][complete] = self.forests[name].decision_function(rows[complete])
        return pd.DataFrame(found, index=pd.Index(table.cases, name="case"))

    def anomaly(self, table: ImportanceTable) -> pd.DataFrame:
        """Minus `scores`: HIGH means abnormal."""
        return -self.scores(table)

    def save(self, path: str | Path) -> Path:
        """Write what the model was fitted on, as a NumPy file without pickled code; `load` fits it again.

        The file holds the reference cohort's names and importances: share it as you would share that table.

        Raises:
            ValueError: if the path does not end in ``.npz``.
            OSError: if it can not be written; an earlier file then stays.
        """
        target = Path(path)
        if target.suffix != ".npz":
            raise ValueError(f"path is {target}; expected one that ends in .npz.")
        table, buffer = self.table, io.BytesIO()
        np.savez_compressed(
            buffer,
            format=np.array(_FORMAT),
            cases=np.array(table.cases),
            explained=np.array(table.explained),
            regions=np.array(table.regions),
            values=table.values,
            kind=np.array([table.variant, table.part]),
            settings=np.array([self.seed, self.n_estimators]),
            sklearn=np.array(self.sklearn_version),
            scores=self.scores(table).to_numpy(),
        )
        return write_whole(target, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> OutlierModel:
        """Fit a saved model again.

        Warns:
            UserWarning: if its scores of the reference cohort differ from those when it was saved, as another version
                of scikit-learn may make them.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is no saved model.
            ImportError: if scikit-learn is not installed.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                held = {name: content[name] for name in content.files}
            if str(held["format"]) != _FORMAT:
                raise ValueError(f"its format is {held['format']}, this version reads {_FORMAT}")
            names = [tuple(map(str, held[key])) for key in ("cases", "explained", "regions")]
            variant, part = map(str, held["kind"])
            table = ImportanceTable(names[0], names[1], names[2], held["values"], variant, part)
            seed, n_estimators = map(int, held["settings"])
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{path} is no saved outlier model: {error}. Write one with OutlierModel.save.") from error
        model = cls.fit(table, seed, n_estimators)
        gap = np.abs(model.scores(table).to_numpy() - held["scores"])
        if np.isfinite(gap).any() and np.nanmax(gap) > 1e-9:
            warnings.warn(
                f"the refitted model differs by up to {np.nanmax(gap):.2g} from the saved one (saved with scikit-learn "
                f"{held['sklearn']}, this is {model.sklearn_version}); score both cohorts with one version.",
                UserWarning,
                stacklevel=2,
            )
        return model


def _complete(rows: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Bool (K,), rows (K, R) without NaN."""
    return np.asarray(np.isfinite(rows).all(axis=1))


def _sklearn() -> tuple[Any, str]:
    """scikit-learn's ensemble module and its version."""
    try:
        return importlib.import_module("sklearn.ensemble"), str(importlib.import_module("sklearn").__version__)
    except ImportError as error:
        raise ImportError(
            "outlier models need scikit-learn, which is not installed; install it with: pip install "
            "monai_segshap[cohort]"
        ) from error
