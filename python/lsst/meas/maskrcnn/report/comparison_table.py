# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The figures of several runs in one table, and the names of figures in words."""

from __future__ import annotations

import math

from ..metrics.evaluation_metrics import MetricValue
from ..metrics.run_comparison import RunComparison
from .evaluation_figures import CLASS_WORDS
from .report_page import Cell, Table, Value

DEFINITIONS = {"perImage": "mean of images", "pooled": "pooled", "coco": "COCO"}
"""Names of the definitions of average precision."""

_LABELS = {
    "ap": "AP",
    "class_accuracy": "share of matched sources in the right class",
    "roc_area": "area under the ROC curve of pStar",
    "blend_roc_area": "area under the ROC curve of pBlend",
    "clean_purity": "share without blend of the 90 % of lowest pBlend",
    "clean_share": "share without blend of all",
    "completeness_limit_50": "magnitude at 50 % completeness",
    "completeness_limit_90": "magnitude at 90 % completeness",
    "completeness_same_class": "completeness, found in the right class",
    "purity_same_class": "purity, true and of the right class",
    "class_completeness": "class completeness: share of true members in their class",
    "class_purity": "class purity: share of the class given that is right",
    "lost_shredded": "true sources lost to shredding",
    "lost_unrecognized": "true sources lost in unrecognized blends",
    "lost_missed": "true sources of which nothing was found",
    "detections_spurious": "spurious detections",
    "blend_quality": "panoptic quality of blends",
    "seconds_per_patch": "time of a patch",
    "megapixels_per_second": "speed",
}
_QUANTITIES = {
    "bright_model_flux": "relative error of the model flux at S/N > 20",
    "bright_flux": "relative error of the HeavyFootprint flux at S/N > 20",
    "model_flux": "relative error of the model flux",
    "flux": "relative error of the HeavyFootprint flux",
    "color": "error of the colour",
    "centroid_x": "centroid offset in x",
    "centroid_y": "centroid offset in y",
    "centroid_separation": "centroid distance",
    "iou": "IoU of the masks of matched sources",
    "score": "score",
    "p_star": "pStar",
    "p_blend": "pBlend",
}
_PARTS = {"ece": "expected calibration error", "brier": "Brier score", "outliers": "share of outliers"}
_OF_GROUPS = {"blends": "blends that are", "truths": "true sources in groups that are"}


def _label(name: str) -> str:
    start, _, part = name.rpartition("_")
    if name in _LABELS:
        return _LABELS[name]
    if start in _QUANTITIES:
        return f"{_QUANTITIES[start]}, {_PARTS.get(part, part)}"
    if start in _OF_GROUPS:
        return f"{_OF_GROUPS[start]} {part}"
    return name.replace("_", " ")


def figure_label(figure: MetricValue) -> str:
    """Name a figure in words, with the IoU and unit where it has any."""
    label = _label(figure.name)
    # pStar and pBlend are names.
    label = label if label[1:2].isupper() else label[0].upper() + label[1:]
    if figure.name in ("ap", "recall"):
        label += ", mean over IoU" if figure.iou is None else f" at IoU {figure.iou:.2f}"
    if figure.unit:
        label += f" ({figure.unit})"
    return label


def format_p_value(p_value: float, n_samples: int) -> str:
    """Write a significance such as ``p = 0.013``, limited by the resamplings; empty if there is none."""
    if not math.isfinite(p_value):
        return ""
    smallest = 1.0 / (n_samples + 1.0)
    if p_value <= 1.001 * smallest:
        return f"p < {max(2.0 * smallest, 0.001):.1g}"
    return f"p = {p_value:.2g}" if p_value < 0.1 else f"p = {p_value:.2f}"


def comparison_table(comparison: RunComparison, caption: str) -> Table:
    """Put a comparison into a table: a row per figure, two columns per run beside the reference."""
    reference, names = comparison.reference, comparison.names
    order = [reference, *(i for i in range(len(names)) if i != reference)]
    letters = dict(zip(order, run_letters(len(order))))
    columns = ["Figure", "Class", "Definition", letters[reference]]
    for i in order[1:]:
        columns += [letters[i], f"{letters[i]} \N{MINUS SIGN} {letters[reference]}", "p"]
    rows = []
    for one in comparison.figures:
        row: list[Cell] = [
            figure_label(one.figure),
            CLASS_WORDS[one.figure.object_class],
            DEFINITIONS.get(one.figure.definition, one.figure.definition),
        ]
        for i in order:
            row.append(Value(one.value[i], one.error[i]))
            if i != reference:
                row.append(Value(one.difference[i], one.difference_error[i], signed=True))
                row.append(Value(one.p_value[i]))
        rows.append(row)
    legend = "; ".join(f"{letters[i]}: {names[i]}" + " (reference)" * (i == reference) for i in order)
    return Table(
        caption,
        columns,
        rows,
        f"{legend}. On the {len(comparison.patches)} patches that all runs have. p: how often resampling the "
        f"patches {comparison.n_samples} times makes a difference as large by chance"
        + ("; with so few patches it is a hint at best." if len(comparison.patches) < 10 else "."),
    )


def run_letters(number: int) -> list[str]:
    """Name runs by letters."""
    return [chr(ord("A") + i) if i < 26 else f"R{i}" for i in range(number)]
