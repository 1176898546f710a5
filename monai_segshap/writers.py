# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Write an explanation as files: JSON, table, NIfTI maps on the image's own grid, colors for 3D Slicer, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.explainers import Explanation
from monai_segshap.files import whole_folder
from monai_segshap.games import SCORES
from monai_segshap.visualize import save_overview

__all__ = ["explanation_folders", "format_report", "format_table", "write_explanation"]


def explanation_folders(explanations: Sequence[Explanation], case_folder: str | Path, done: int = 0) -> list[Path]:
    """Where the explanations of one case go: its folder, or NUMBER_CLASS in it where there are several.

    Args:
        explanations: of one case.
        case_folder: folder of the case.
        done: explanations of this case that were written before; they count.

    Returns:
        a folder for each explanation; none is made.
    """
    folder = Path(case_folder)
    if done + len(explanations) == 1:
        return [folder]
    return [folder / f"{n}_{_file_name(e.target_name)}" for n, e in enumerate(explanations, start=done + 1)]


def write_explanation(explanation: Explanation, folder: str | Path, overview: bool = True) -> dict[str, Path]:
    """Write all files of an explanation; either all of them appear or none.

    ``explanation.json``, ``attributions.csv``, ``organs.csv`` (sums over the units of each organ, where an organ has
    several), ``attribution_SCORE.nii.gz`` (float32, unit of the score), ``units.nii.gz``, ``prediction.nii.gz``,
    ``region.nii.gz`` (labels), ``units_colors.csv`` (3D Slicer colors), and ``overview.png`` for the first score with
    ``overview_SCORE.png`` for each further one. Volumes have the shape and affine of the image file.

    Args:
        explanation: what to write.
        folder: made if absent; files of an earlier run are replaced, other files stay.
        overview: whether to draw the pictures (needs matplotlib).

    Returns:
        file name -> path.

    Raises:
        OSError: if the folder can not be written; nothing half-written stays.
    """
    target = Path(folder)
    # the JSON comes last: where it stands, everything else does
    with whole_folder(target, lambda name: (name == "explanation.json", name)) as staging:
        for write in _writers(explanation, overview):
            write(staging)
        names = sorted(path.name for path in staging.iterdir())
    if "organs.csv" not in names:
        (target / "organs.csv").unlink(missing_ok=True)  # of an earlier run with other units
    return {name: target / name for name in names}


def format_table(explanation: Explanation, n_units: int = 10) -> str:
    """The most important units as text: value and half-width of the 95 % interval, for each score.

    Args:
        explanation: what to show.
        n_units: rows, ordered by the first score.
    """
    lead = explanation.scores[0]
    frame = explanation.table(sort_by=lead).head(n_units)
    rows = {"unit": frame["name"], "ml": frame["volume_ml"].map(lambda v: f"{v:.1f}")}
    for score in explanation.scores:
        half = 1.96 * frame[f"{score}_se"]
        rows[score] = [f"{v:+.4f}" + (f" ±{h:.4f}" if h > 0 else "") for v, h in zip(frame[score], half, strict=True)]
    certainty = "exact" if not explanation.standard_errors.any() else "± half-width of the 95 % interval"
    return (
        f"{explanation.case}: why is this {explanation.target_name}? {len(frame)} of "
        f"{explanation.partition.n_units} {explanation.partition.noun} units, by |{lead}|; {certainty}\n"
        + pd.DataFrame(rows).to_string(index=False)
    )


def format_report(explanation: Explanation, folder: str | Path) -> str:
    """Text for the screen: the most important units, what a reader must know, network passes, seconds and folder.

    Args:
        explanation: what was written.
        folder: where its files are.
    """
    lines = ["", format_table(explanation), ""]
    lines += [f"note: {sentence}" for sentence in explanation.warnings]
    counts, seconds = explanation.forwards, explanation.seconds
    lines.append(
        f"{counts.run} network passes (naive {counts.naive}, published cache {counts.published_cache}) in "
        f"{seconds['total']:.0f} s; files in {folder}"
    )
    return "\n".join(lines)


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text)


def _writers(explanation: Explanation, overview: bool) -> list[Callable[[Path], None]]:
    def tables(folder: Path) -> None:
        text = json.dumps(explanation.to_dict(), indent=2, allow_nan=False)
        (folder / "explanation.json").write_text(text + "\n", encoding="utf-8")
        explanation.table().to_csv(folder / "attributions.csv", index=False)
        if explanation.groups is not None:
            explanation.group_table().to_csv(folder / "organs.csv", index=False)
        _slicer_colors(explanation).to_csv(folder / "units_colors.csv", index=False)

    def volumes(folder: Path) -> None:
        labels = explanation.partition.labels
        kind = np.int16 if labels.max() < 32768 else np.int32
        _save(explanation, explanation.on_file_grid(labels.astype(kind)), folder / "units.nii.gz")
        classes = np.asarray(
            explanation.on_file_grid(explanation.prediction) if explanation.exported is None else explanation.exported
        )
        _save(explanation, classes.astype(_smallest_type(classes)), folder / "prediction.nii.gz")
        _save(explanation, explanation.on_file_grid(explanation.region.mask.astype(np.uint8)), folder / "region.nii.gz")
        for score in explanation.scores:
            values = explanation.on_file_grid(explanation.attribution_map(score))
            _save(explanation, values, folder / f"attribution_{score}.nii.gz")

    def pictures(folder: Path) -> None:
        scene = _scene(explanation)
        for number, score in enumerate(explanation.scores):
            _draw(explanation, scene, score, folder / ("overview.png" if number == 0 else f"overview_{score}.png"))

    return [tables, volumes, pictures] if overview else [tables, volumes]


def _smallest_type(classes: NDArray[np.integer]) -> type[np.integer]:
    return np.uint8 if classes.max() < 256 else np.int16 if classes.max() < 32768 else np.int32


def _save(explanation: Explanation, volume: NDArray[np.generic], path: Path) -> None:
    """Write a volume on the file's grid."""
    image = nib.Nifti1Image(volume, explanation.file_grid.affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _slicer_colors(explanation: Explanation) -> pd.DataFrame:
    colors = explanation.partition.colors
    return pd.DataFrame(
        {
            "LabelValue": np.arange(1, explanation.partition.n_units + 1),
            "Name": explanation.partition.names,
            "Color_R": colors[:, 0],
            "Color_G": colors[:, 1],
            "Color_B": colors[:, 2],
        }
    )


def _scene(explanation: Explanation) -> dict[str, NDArray[np.generic]]:
    """What the pictures of all scores share, on the grid of the file."""
    return {
        "image": explanation.on_file_grid(explanation.image, fill=float(explanation.image.min())),
        "region": explanation.on_file_grid(explanation.region.mask.astype(np.uint8)).astype(bool),
        "prediction": explanation.on_file_grid(explanation.target_mask.astype(np.uint8)).astype(bool),
    }


def _convergence(explanation: Explanation, t: int) -> str:
    if explanation.tolerance is None or t >= len(explanation.converged) or explanation.converged[t]:
        return ""
    return f"; NOT CONVERGED to +-{explanation.tolerance:.0%} of the largest value"


def _draw(explanation: Explanation, scene: dict[str, NDArray[np.generic]], score: str, path: Path) -> None:
    t = explanation.score_index(score)
    effective = explanation.baseline
    removed = f"{effective['hu']:g} HU" if effective.get("hu") is not None else effective["kind"]
    counts = explanation.forwards
    numerics = str(explanation.execution.get("numerics", "exact"))
    mode = "" if numerics == "exact" else f", {numerics}"
    notes = (
        f"{explanation.method}, {explanation.evaluations} coalitions, {counts.run} network passes (naive "
        f"{counts.naive}){mode}; removed units become {removed}\n"
        f"score {explanation.full[t]:.4g} with all units, {explanation.empty[t]:.4g} with none; "
        f"efficiency gap {explanation.efficiency_gap[t]:.1e}{_convergence(explanation, t)}"
    )
    save_overview(
        path,
        attribution=explanation.on_file_grid(explanation.attribution_map(score)),
        affine=explanation.file_grid.affine,
        names=explanation.partition.names,
        values=explanation.values[:, t],
        standard_errors=explanation.standard_errors[:, t],
        score_label=SCORES[score].label,
        title=f"{explanation.case}: why is this {explanation.target_name}?",
        notes=notes,
        **scene,
    )
