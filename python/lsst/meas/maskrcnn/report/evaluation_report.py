# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the page on an evaluation says, from its figures and tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..images.classes import IS_STAR
from ..metrics.binned import Fraction, even_edges
from ..metrics.blends import BlendSummary
from ..metrics.calibration import p_star_reliability, score_reliability
from ..metrics.classification import binned_confusion, binned_roc, confusion, star_roc
from ..metrics.completeness import binned_completeness, completeness_limit
from ..metrics.evaluation_metrics import EvaluationGallery, EvaluationMetrics, GalleryEntry, MetricValue
from ..metrics.match_table import detection_rows, matched_rows
from ..metrics.residuals import binned_centroid_residual, binned_flux_residual, flux_residual
from ..metrics.run_comparison import (
    ComparedFigure,
    EvaluatedRun,
    RunComparison,
    run_setting,
    settings_that_differ,
)
from .plots import (
    FractionPanel,
    PrecisionRecallCurve,
    ResidualPanel,
    completeness_panels,
    plot_blends,
    plot_calibration,
    plot_fractions,
    plot_precision_recall,
    plot_residuals,
    plot_roc,
)
from .report_page import (
    Card,
    Cell,
    Details,
    Gallery,
    GalleryItem,
    Headline,
    Matrix,
    Page,
    Paragraph,
    Part,
    Plots,
    Section,
    Table,
    Value,
    format_value,
)

__all__ = ["ReportContext", "comparison_table", "evaluation_page", "figure_label", "format_p_value"]

_UNBROKEN = "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}"
_Key = tuple[str, str, str, str, float | None, str]

_CLASS_LABELS = {"all": "all", "star": "stars", "galaxy": "galaxies"}
_DEFINITIONS = {
    "perImage": "mean of images",
    "pooled": "pooled",
    "coco": "COCO",
}
_LABELS = {
    "ap": "AP",
    "recall": "recall",
    "class_accuracy": "class accuracy",
    "roc_area": "area under the ROC curve",
    "completeness_limit_50": "magnitude at 50 % completeness",
    "score_ece": "expected calibration error of the score",
    "score_brier": "Brier score of the score",
    "p_star_ece": "expected calibration error of pStar",
    "p_star_brier": "Brier score of pStar",
    "completeness_same_class": "completeness, class right too",
    "purity_same_class": "purity, class right too",
    "class_completeness": "share of the true class classed rightly",
    "class_purity": "share of the class given that is right",
    "lost_shredded": "true sources lost to shredding",
    "lost_unrecognized": "true sources lost in unrecognized blends",
    "lost_missed": "true sources of which nothing was found",
    "blends_recognized": "blends recognized",
    "flux_median": "flux residual, median",
    "flux_scatter": "flux residual, scatter",
    "flux_outliers": "flux residual, outliers",
    "iou_median": "IoU of matches, median",
    "iou_scatter": "IoU of matches, scatter",
    "iou_outliers": "IoU of matches, outliers",
    "blend_quality": "panoptic quality of blends",
}
_BLEND_KINDS = ("recognized", "unrecognized", "shredded", "mismatched", "missed")
_BLENDEDNESS_EDGES = np.array([0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


@dataclass(frozen=True)
class ReportContext:
    """What stands around the figures.

    Parameters
    ----------
    title : `str`
        Title of the page.
    repository, collection : `str`
        Where the evaluation was found.
    model_card : `~collections.abc.Sequence`
        Pairs of names and texts about the network.
    model_details : `~collections.abc.Mapping` [`str`, `str`]
        Long texts about the network, by title.
    configurations : `~collections.abc.Mapping` [`str`, `str`]
        Configurations of the tasks, by title.
    collections : `~collections.abc.Sequence` [`str`]
        Collections that were searched for inputs, in their order.
    packages : `~collections.abc.Mapping` [`str`, `str`]
        Versions of all software of the run.
    notes : `~collections.abc.Sequence` [`str`]
        What is missing, and why.
    footer : `str`
        How the page was made.
    """

    title: str
    repository: str = ""
    collection: str = ""
    model_card: Sequence[tuple[str, str]] = ()
    model_details: Mapping[str, str] = field(default_factory=dict)
    configurations: Mapping[str, str] = field(default_factory=dict)
    collections: Sequence[str] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    footer: str = ""


def evaluation_page(
    run: EvaluatedRun,
    curves: NDArray[np.void] | None = None,
    gallery: EvaluationGallery | None = None,
    *,
    others: Sequence[EvaluatedRun] = (),
    comparison: RunComparison | None = None,
    context: ReportContext,
    n_gallery: int = 8,
) -> Page:
    """Lay out the page on an evaluation.

    Parameters
    ----------
    run : `EvaluatedRun`
        The evaluation.
    curves : `numpy.ndarray`, optional
        Precision-recall curves, structured array of
        `summary.PRECISION_RECALL_DTYPE`.
    gallery : `EvaluationGallery`, optional
        Pictures of blends.
    others : `~collections.abc.Sequence` [`EvaluatedRun`]
        Runs that it is compared with.
    comparison : `RunComparison`, optional
        The comparison of all of them, the first of which is ``run``.
    context : `ReportContext`
        What stands around the figures.
    n_gallery : `int`
        Largest number of the worst and of the best blends.

    Returns
    -------
    page : `Page`
        The page.
    """
    metrics = run.metrics
    classes = [name for name in IS_STAR if name in metrics.n_truth] or ["all"]
    sections = [
        Section("comparison", "Comparison", _comparison_parts(run, others, comparison)),
        Section("precision", "Average precision", _precision_parts(metrics, curves)),
        Section("completeness", "Completeness and purity", _completeness_parts(run, classes)),
        Section("classes", "Stars and galaxies", _class_parts(run, classes)),
        Section("calibration", "Calibration", _calibration_parts(run, classes)),
        Section("residuals", "Residuals", _residual_parts(run, classes)),
        Section("blends", "Blends", _blend_parts(run, others)),
        Section("gallery", "Gallery", _gallery_parts(gallery, n_gallery)),
        Section("patches", "Patches and throughput", _patch_parts(metrics)),
        Section("model", "Model", _model_parts(metrics, context)),
        Section("provenance", "Configuration and software", _provenance_parts(metrics, context)),
        Section("figures", "All figures", _all_figures(metrics, others)),
    ]
    truths = sum(patch.n_truth for patch in metrics.patches)
    subtitle = (
        f"{len(metrics.patches)} patches of {metrics.skymap or 'one sky map'}, {truths:,} true sources "
        "that count" + (f"; catalogue {metrics.catalog}" if metrics.catalog else "")
    )
    return Page(context.title, subtitle, _headlines(metrics, classes, comparison), sections, context.footer)


def figure_label(figure: ComparedFigure | MetricValue) -> str:
    """Name a figure in words.

    Parameters
    ----------
    figure : `ComparedFigure` or `MetricValue`
        The figure.

    Returns
    -------
    label : `str`
        Its name, with the IoU and unit where it has any.
    """
    about = figure.figure if isinstance(figure, ComparedFigure) else figure
    label = _LABELS.get(about.name, about.name.replace("_", " "))
    label = label[0].upper() + label[1:]
    if about.name in ("ap", "recall"):
        label += " [.5:.95]" if about.iou is None else f" at IoU {about.iou:.2f}"
    if about.unit:
        label += f" ({about.unit})"
    return label


def format_p_value(p_value: float, n_samples: int) -> str:
    """Write a significance.

    Parameters
    ----------
    p_value : `float`
        Probability; NaN where there is none.
    n_samples : `int`
        Number of resamplings, which limits how small it can be.

    Returns
    -------
    text : `str`
        Such as ``p = 0.013``; empty where there is none.
    """
    if not math.isfinite(p_value):
        return ""
    smallest = 1.0 / (n_samples + 1.0)
    if p_value <= 1.001 * smallest:
        return f"p < {max(2.0 * smallest, 0.001):.1g}"
    return f"p = {p_value:.2g}" if p_value < 0.1 else f"p = {p_value:.2f}"


def comparison_table(comparison: RunComparison, caption: str) -> Table:
    """Put a comparison into a table of a page.

    Parameters
    ----------
    comparison : `RunComparison`
        The comparison.
    caption : `str`
        Title of the table.

    Returns
    -------
    table : `Table`
        One row per figure, with two columns for each run beside the
        reference.
    """
    order = [comparison.reference, *(i for i in range(len(comparison.names)) if i != comparison.reference)]
    letters = dict(zip(order, _letters(len(order))))
    columns = ["Figure", "Class", "Definition"]
    for i in order:
        columns.append(letters[i])
        if i != comparison.reference:
            columns += [f"{letters[i]} \N{MINUS SIGN} {letters[comparison.reference]}", "p"]
    rows = []
    for one in comparison.figures:
        digits = 3
        row: list[Cell] = [
            figure_label(one),
            _CLASS_LABELS[one.figure.object_class],
            _DEFINITIONS.get(one.figure.definition, one.figure.definition),
        ]
        for i in order:
            row.append(Value(one.value[i], one.error[i], digits))
            if i != comparison.reference:
                row.append(Value(one.difference[i], one.difference_error[i], digits, signed=True))
                row.append(Value(one.p_value[i], digits=3))
        rows.append(row)
    legend = "; ".join(
        f"{letters[i]}: {comparison.names[i]}" + (" (reference)" if i == comparison.reference else "")
        for i in order
    )
    return Table(
        caption,
        columns,
        rows,
        f"{legend}. On the {len(comparison.patches)} patches that all runs have. p: how often resampling the "
        f"patches {comparison.n_samples} times makes a difference as large by chance"
        + ("; with so few patches it is a hint at best." if len(comparison.patches) < 10 else "."),
    )


def _letters(number: int) -> list[str]:
    return [chr(ord("A") + i) if i < 26 else f"R{i}" for i in range(number)]


def _value(value: MetricValue, digits: int = 3) -> Value:
    return Value(value.value, value.error, digits)


def _headlines(
    metrics: EvaluationMetrics, classes: Sequence[str], comparison: RunComparison | None
) -> list[Headline]:
    wanted: list[tuple[str, _Key, str]] = [
        (
            f"AP50 of {_CLASS_LABELS[name]}",
            ("ap", name, definition, "all", 0.5, ""),
            f"{_DEFINITIONS[definition]}",
        )
        for definition, name in (("perImage", "star"), ("perImage", "galaxy"), ("pooled", "all"))
    ]
    wanted += [
        ("AP[.5:.95], all", ("ap", "all", "pooled", "all", None, ""), "pooled"),
        ("Completeness", ("completeness", "all", "", "all", None, ""), "of true sources that count"),
        ("Purity", ("purity", "all", "", "all", None, ""), "of detections"),
        ("Class accuracy", ("class_accuracy", "all", "", "all", None, ""), "of matched sources"),
        ("Blends recognized", ("blends_recognized", "all", "", "all", None, ""), "of groups of two or more"),
    ]
    by_key = {value.key: value for value in metrics.values}
    compared = {one.figure.key: one for one in comparison.figures} if comparison is not None else {}
    tiles = []
    for label, key, note in wanted:
        if key not in by_key:
            continue
        value = by_key[key]
        if key in compared and comparison is not None and len(comparison.names) > 1:
            one = compared[key]
            # The first of the others; the table has them all.
            sign = Value(-one.difference[1], one.difference_error[1], 3, signed=True)
            p_value = format_p_value(float(one.p_value[1]), comparison.n_samples)
            # Numbers stay with their errors, also in a narrow tile.
            change = ", ".join(filter(None, (f"{format_value(sign)} against B", p_value)))
            note += "; " + re.sub(r" ([±<=]) ", _UNBROKEN, change)
        tiles.append(Headline(label, Value(value.value, value.error), note))
    return tiles


def _comparison_parts(
    run: EvaluatedRun, others: Sequence[EvaluatedRun], comparison: RunComparison | None
) -> list[Part]:
    if comparison is None or len(comparison.names) < 2:
        return []
    parts: list[Part] = [
        Paragraph(sentence, warning=True)
        for sentence in settings_that_differ([run, *others], comparison.patches)
    ]
    parts.append(
        comparison_table(comparison, "Differences to this run, from the paired bootstrap over patches")
    )
    runs = dict(zip(_letters(1 + len(others)), [run, *others]))
    figures = []
    everything = np.concatenate([one.matches["mag"] for one in runs.values()])
    if np.isfinite(everything).any():
        edges = even_edges(everything, 0.5)
        for name in ("star", "galaxy") if "star" in run.metrics.n_truth else ("all",):
            curves = {
                letter: binned_completeness(one.matches, "mag", edges, IS_STAR[name], min_score=_score(one))
                for letter, one in runs.items()
            }
            limits = {letter: completeness_limit(curve) for letter, curve in curves.items()}
            label = f"Completeness, {_CLASS_LABELS[name]}"
            panel = FractionPanel("True magnitude (AB)", label, curves, limits=limits)
            figures.append((plot_fractions([panel]), f"{label}, of each run against true magnitude."))
    if figures:
        parts.append(Plots(figures, "Completeness of the runs with 68 % intervals; all patches of each run."))
    return parts


def _precision_parts(metrics: EvaluationMetrics, curves: NDArray[np.void] | None) -> list[Part]:
    values = [value for value in metrics.select(name="ap") if value.area == "all"]
    by_key = {(value.definition, value.object_class, value.iou): value for value in values}
    recall = {
        (value.definition, value.object_class): value for value in metrics.select(name="recall", iou=0.5)
    }
    rows: list[list[Cell]] = []
    for definition, name in dict.fromkeys((value.definition, value.object_class) for value in values):
        row: list[Cell] = [_DEFINITIONS.get(definition, definition), _CLASS_LABELS[name]]
        for iou in (0.5, 0.75, None):
            value = by_key.get((definition, name, iou))
            row.append(_value(value) if value is not None else Value(math.nan))
        found = recall.get((definition, name))
        row.append(_value(found) if found is not None else Value(math.nan))
        row.append(
            next(value.n for value in values if (value.definition, value.object_class) == (definition, name))
        )
        rows.append(row)
    if not rows:
        return []
    parts: list[Part] = [
        Paragraph(
            "Three definitions of average precision. Mean of images: all-point AP of each image and class, "
            "for "
            "scores of "
            f"{_min_score(metrics):g} and more, then the unweighted mean over images, as Astro R-CNN "
            "published it. "
            "Pooled: all-point AP of the detections of all images together. COCO: the same at 101 recalls. "
            "Masks match from the IoU given; errors are standard errors from "
            f"{metrics.n_samples} bootstrap resamplings of the {len(metrics.patches)} patches."
        ),
        Table(
            "Average precision",
            ["Definition", "Class", "AP50", "AP75", "AP[.5:.95]", "Recall at IoU 0.5", "Truths"],
            rows,
        ),
    ]
    figures = _precision_figures(metrics, curves)
    if figures:
        parts.append(
            Plots(figures, "Interpolated precision against recall, pooled over patches; a line for each IoU.")
        )
    long: list[list[Cell]] = [
        [
            _DEFINITIONS.get(value.definition, value.definition),
            _CLASS_LABELS[value.object_class],
            value.area,
            "mean" if value.iou is None else f"{value.iou:.2f}",
            _value(value, 4),
            Value(value.low, digits=4),
            Value(value.high, digits=4),
            value.n,
        ]
        for value in metrics.select(name="ap")
    ]
    parts.append(
        Table(
            "Average precision by definition, class, area and IoU",
            ["Definition", "Class", "Area", "IoU", "AP", "Low", "High", "Truths"],
            long,
            f"Low and high enclose {100 * metrics.level:.0f} % of the resamplings.",
            tall=True,
        )
    )
    return parts


def _min_score(metrics: EvaluationMetrics) -> float:
    return float(run_setting(metrics, "ap.minScore", 0.5))


def _score(run: EvaluatedRun) -> float | None:
    score = run_setting(run.metrics, "scoreThreshold")
    return None if score is None else float(score)


def _precision_figures(metrics: EvaluationMetrics, curves: NDArray[np.void] | None) -> list:
    if curves is None or not len(curves):
        return []
    definitions = list(dict.fromkeys(np.asarray(curves["definition"]).astype(str).tolist()))
    definition = "pooled" if "pooled" in definitions else definitions[0]
    figures = []
    for name in _CLASS_LABELS:
        family = []
        for value in metrics.select(name="ap", object_class=name, definition=definition, area="all"):
            if value.iou is None:
                continue
            points = curves[
                (curves["definition"] == definition)
                & (curves["object_class"] == name)
                & (np.abs(curves["iou"] - value.iou) < 1e-3)
            ]
            recall, precision = np.asarray(points["recall"]), np.asarray(points["interpolated"])
            family.append(
                PrecisionRecallCurve(_CLASS_LABELS[name], value.iou, recall, precision, value.value)
            )
        if family:
            best = family[0]
            about = (
                f"Precision against recall, {_CLASS_LABELS[name]}; AP from {best.ap:.3f} at IoU "
                f"{best.iou:.2f} "
                f"to {family[-1].ap:.3f} at {family[-1].iou:.2f}."
            )
            figures.append((plot_precision_recall(family), about))
    return figures


def _completeness_parts(run: EvaluatedRun, classes: Sequence[str]) -> list[Part]:
    parts: list[Part] = []
    shares = (
        "completeness",
        "completeness_same_class",
        "purity",
        "purity_same_class",
        "completeness_limit_50",
    )
    parts += _value_table(run.metrics, "Completeness and purity", lambda value: value.name in shares)
    panels = [
        FractionPanel(
            panel.x_label,
            panel.y_label,
            {name: curve for name, curve in panel.curves.items() if name in classes},
            panel.log_x,
            {name: limit for name, limit in panel.limits.items() if name in classes},
            panel.level,
        )
        for panel in completeness_panels(run.matches)
    ]
    if panels:
        parts.append(
            Plots(
                [(plot_fractions([panel]), f"{panel.y_label} against {panel.x_label}.") for panel in panels],
                "Completeness of true sources by what is true of them, and purity of detections by what was "
                "measured. Bands are 68 % Wilson intervals; vertical lines are magnitudes of 50 % "
                "completeness.",
            )
        )
    return parts


def _class_parts(run: EvaluatedRun, classes: Sequence[str]) -> list[Part]:
    if len(classes) < 2:
        return []
    table, score = run.matches, _score(run)
    rows = matched_rows(table, min_score=score)
    parts: list[Part] = [
        Matrix(
            "Matched sources by true class and class given",
            "True class",
            "Class given",
            ["star", "galaxy"],
            confusion(table, min_score=score).counts,
        )
    ]
    names = ("class_accuracy", "class_completeness", "class_purity", "roc_area")
    parts += _value_table(run.metrics, "Classes of matched sources", lambda value: value.name in names)
    figures = []
    mags = np.asarray(table["mag"])[rows & np.isfinite(table["mag"])]
    if len(mags):
        binned = binned_confusion(table, even_edges(mags, 1.0), min_score=score)
        panel = FractionPanel(
            "True magnitude (AB)",
            "Share of the true class classed rightly",
            {"star": binned.star_completeness, "galaxy": binned.galaxy_completeness},
        )
        figures.append(
            (plot_fractions([panel]), "Share of stars and galaxies classed rightly, by magnitude.")
        )
    if (rows & np.isfinite(table["p_star"])).any():
        curves = {"all": star_roc(table, min_score=score)}
        if len(mags) >= 30:
            thirds = np.unique(np.quantile(mags, [0.0, 1 / 3, 2 / 3, 1.0]))
            for low, high, curve in zip(thirds[:-1], thirds[1:], binned_roc(table, thirds, min_score=score)):
                curves[f"{low:.1f} to {high:.1f} mag"] = curve
        about = f"Receiver operating characteristic of pStar; area {curves['all'].area:.3f}."
        figures.append((plot_roc(curves), about))
    if figures:
        parts.append(Plots(figures, "By magnitude; bands are 68 % Wilson intervals."))
    return parts


def _calibration_parts(run: EvaluatedRun, classes: Sequence[str]) -> list[Part]:
    table = run.matches
    figures = []
    scores = np.asarray(table["score"], dtype=float)[detection_rows(table)]
    # The score of another detector need not be a probability.
    if len(scores) and ((scores >= 0.0) & (scores <= 1.0)).all():
        curves = {
            name: score_reliability(table, IS_STAR[name], same_class=len(classes) > 1)
            for name in classes
            if name != "all" or len(classes) == 1
        }
        figures.append(
            (plot_calibration(curves), "Share of detections that are true against their score, by class.")
        )
    p_star = np.asarray(table["p_star"], dtype=float)[matched_rows(table)]
    if len(classes) > 1 and np.isfinite(p_star).any():
        figures.append(
            (
                plot_calibration(
                    {"pStar": p_star_reliability(table)},
                    x_label="pStar",
                    y_label="Share of sources that are stars",
                ),
                "Share of matched sources that are stars against pStar.",
            )
        )
    names = ("score_ece", "score_brier", "p_star_ece", "p_star_brier")
    parts = _value_table(run.metrics, "Calibration", lambda value: value.name in names)
    if figures:
        parts.append(
            Plots(figures, "Reliability with 68 % intervals; ECE is the expected calibration error.")
        )
    return parts


def _residual_parts(run: EvaluatedRun, classes: Sequence[str]) -> list[Part]:
    table, score = run.matches, _score(run)
    parts: list[Part] = []
    residual = flux_residual(table["flux_detected"], table["flux_truth"])
    blendedness = np.asarray(table["blendedness"], dtype=float)
    column, x_label, edges = "blendedness", "Blendedness", _BLENDEDNESS_EDGES
    if not np.isfinite(blendedness).any():
        mags = np.asarray(table["mag"], dtype=float)
        if not np.isfinite(mags).any():
            return parts
        column, x_label, edges = "mag", "True magnitude (AB)", even_edges(mags, 0.5)
    x = np.asarray(table[column], dtype=float)
    fluxes, offsets = [], []
    for name in classes:
        if name == "all" and len(classes) > 1:
            continue
        rows = matched_rows(table, IS_STAR[name], min_score=score)
        label = _CLASS_LABELS[name]
        if np.isfinite(residual[rows]).any():
            binned = binned_flux_residual(table, edges, column, IS_STAR[name], min_score=score)
            panel = ResidualPanel(label, x[rows], residual[rows], binned)
            fluxes.append(
                (
                    plot_residuals([panel], x_label=x_label),
                    f"Flux residual of {label} against {x_label.lower()}.",
                )
            )
        separation = np.asarray(table["separation_arcsec"], dtype=float)
        if np.isfinite(separation[rows]).any():
            binned = binned_centroid_residual(
                table,
                edges,
                column,
                IS_STAR[name],
                component="separation_arcsec",
                min_score=score,
            )
            panel = ResidualPanel(label, x[rows], separation[rows], binned)
            offsets.append(
                (
                    plot_residuals([panel], x_label=x_label, y_label="Centroid offset (arcsec)"),
                    f"Offset of centroids of {label} against {x_label.lower()}.",
                )
            )
    note = "Medians with their scatter (bars) and error (band); points or shading are sources."
    parts += [Plots(figures, note) for figures in (fluxes, offsets) if figures]
    starts = ("flux_", "color_", "centroid_", "iou_")
    parts += _value_table(
        run.metrics, "Residuals of matched sources", lambda value: value.name.startswith(starts), tall=True
    )
    return parts


def _blend_parts(run: EvaluatedRun, others: Sequence[EvaluatedRun]) -> list[Part]:
    summaries = {}
    for letter, one in zip(_letters(1 + len(others)), [run, *others]):
        summary = _blend_summary(one.metrics)
        if summary is not None:
            summaries[letter if others else "this run"] = summary
    if not summaries:
        return []
    parts: list[Part] = [
        Paragraph(
            "True sources and detections that overlap make groups; a blend is a group of two true sources or "
            "more. It is recognized if as many were found and each fits its own, unrecognized if fewer "
            "were found, "
            "shredded if more were found, mismatched if they do not fit, missed if none was found. "
            "Spurious are detections that touch no true source; pieces of one are impure, but not spurious."
        ),
        Plots([(plot_blends(summaries), "Shares of blends by how they ended.")]),
    ]
    parts += _value_table(
        run.metrics,
        "Groups of sources",
        lambda value: value.name.startswith(("blends_", "truths_", "detections_", "blend_")),
    )
    return parts


def _blend_summary(metrics: EvaluationMetrics) -> BlendSummary | None:
    by_name = {value.name: value for value in metrics.values}

    def share(name: str) -> Fraction:
        value = by_name.get(name)
        if value is None or not math.isfinite(value.value):
            return Fraction(0, 0, math.nan, math.nan, math.nan)
        return Fraction(round(value.value * value.n), value.n, value.value, value.low, value.high)

    of_blends = {kind: share(f"blends_{kind}") for kind in _BLEND_KINDS}
    if not any(math.isfinite(one.value) for one in of_blends.values()):
        return None
    return BlendSummary(
        {},
        {},
        {},
        {},
        of_blends,
        share("truths_shredded"),
        share("detections_spurious"),
        share("truths_missed"),
    )


def _gallery_parts(gallery: EvaluationGallery | None, number: int) -> list[Part]:
    if gallery is None or not gallery.entries or number < 1:
        return []
    groups = []
    for kind, title in (("worst", "Worst blends"), ("best", "Best blends")):
        items = [
            GalleryItem(
                f"Tract {entry.tract}, patch {entry.patch}",
                _gallery_details(entry, gallery.pixel_scale),
                entry.size,
                entry.image,
                entry.truth_outlines,
                entry.detection_outlines,
                entry.truth_is_star,
                entry.detection_is_star,
                entry.residual,
            )
            for entry in gallery.entries
            if entry.kind == kind
        ][:number]
        groups.append((title, items))
    note = "Quality: panoptic quality of the blend, from 0 to 1."
    if len(gallery.bands) == 3:
        note += f" Red, green and blue are {', '.join(gallery.bands)}."
        if any(entry.residual for entry in gallery.entries):
            note += (
                f" The residual is the image in {gallery.bands[1]} minus the detections' pixels where the "
                "catalogue has them, else without the pixels of their footprints."
            )
    return [Gallery(groups, gallery.residual_range, note)]


def _gallery_details(entry: GalleryEntry, pixel_scale: float) -> str:
    words = entry.caption.splitlines()
    if not any("quality" in word for word in words):
        words.append(f"quality {entry.quality:.2f}")
    known = math.isfinite(pixel_scale)
    words.append(f"{entry.size * pixel_scale:.1f} arcsec wide" if known else f"{entry.size} px wide")
    return ", ".join(words)


def _patch_parts(metrics: EvaluationMetrics) -> list[Part]:
    timed = any(math.isfinite(patch.seconds) for patch in metrics.patches)
    columns = ["Tract", "Patch", "Truths", "Ignored truths", "Detections", "Left out"]
    rows: list[list[Cell]] = []
    for patch in metrics.patches:
        row: list[Cell] = [
            patch.tract,
            patch.patch,
            patch.n_truth,
            patch.n_truth_ignored,
            patch.n_detections,
            patch.n_skipped,
        ]
        if timed:
            row += [Value(patch.seconds, digits=1), Value(patch.megapixels, digits=2)]
        rows.append(row)
    if timed:
        columns += ["Time (s)", "Megapixels"]
    names = ("seconds_per_patch", "megapixels_per_second")
    parts = _value_table(metrics, "Throughput", lambda value: value.name in names)
    parts.append(
        Table(
            "Patches",
            columns,
            rows,
            "Ignored truths are too faint, too small or masked; neither hit nor miss. Left out are parents "
            "and "
            "records without a footprint.",
            tall=len(rows) > 15,
        )
    )
    return parts


def _model_parts(metrics: EvaluationMetrics, context: ReportContext) -> list[Part]:
    parts: list[Part] = []
    if context.model_card:
        parts.append(Card(context.model_card))
        parts += [Details(title, text) for title, text in context.model_details.items()]
    elif metrics.models:
        parts.append(Card([("Name", ", ".join(metrics.models))]))
        parts.append(Paragraph("The model itself is not in these collections; only its name is known."))
    return parts


def _provenance_parts(metrics: EvaluationMetrics, context: ReportContext) -> list[Part]:
    entries = [
        ("Repository", context.repository),
        ("Collection", context.collection),
        ("Evaluation", metrics.name),
        ("Catalogue", metrics.catalog),
        ("Sky map", metrics.skymap),
        ("Runs of the catalogues", ", ".join(metrics.runs)),
        ("Input collections", ", ".join(context.collections)),
        ("Computed by", f"meas_maskrcnn {metrics.package_version}"),
    ]
    parts: list[Part] = [Paragraph(note, warning=True) for note in context.notes]
    parts.append(Card([(name, text) for name, text in entries if text]))
    if metrics.config:
        parts.append(
            Details("Configuration of the evaluation", json.dumps(metrics.config, indent=2, default=str))
        )
    parts += [Details(title, text) for title, text in context.configurations.items()]
    if metrics.software:
        parts.append(
            Table(
                "Software that computed the figures",
                ["Package", "Version"],
                [[name, version] for name, version in sorted(metrics.software.items())],
                tall=len(metrics.software) > 15,
            )
        )
    if context.packages:
        text = "\n".join(f"{name} {version}" for name, version in sorted(context.packages.items()))
        parts.append(Details("All packages of the run", text))
    return parts


def _all_figures(metrics: EvaluationMetrics, others: Sequence[EvaluatedRun]) -> list[Part]:
    letters = _letters(1 + len(others))
    elsewhere = [{value.key: value for value in other.metrics.values} for other in others]
    rows: list[list[Cell]] = []
    for value in metrics.values:
        row: list[Cell] = [
            figure_label(value),
            _CLASS_LABELS.get(value.object_class, value.object_class),
            _DEFINITIONS.get(value.definition, value.definition),
            "" if value.area == "all" else value.area,
            value.band,
            _value(value, 4),
            value.n,
        ]
        for known in elsewhere:
            other = known.get(value.key)
            row.append(_value(other, 4) if other is not None else Value(math.nan))
        rows.append(row)
    columns = ["Figure", "Class", "Definition", "Area", "Band", letters[0] if others else "Value", "Number"]
    note = "Number: of sources, patches or cases behind a figure."
    if others:
        note += " Each run on all its own patches; " + "; ".join(
            f"{letter}: {other.name}" for letter, other in zip(letters[1:], others)
        )
    return [Table("All figures", [*columns, *letters[1:]], rows, note, tall=True)]


def _value_table(
    metrics: EvaluationMetrics, title: str, wanted: Callable[[MetricValue], bool], tall: bool = False
) -> list[Part]:
    values = [value for value in metrics.values if wanted(value)]
    if not values:
        return []
    # Columns that say the same in each row say nothing.
    with_class = any(value.object_class != "all" for value in values)
    with_band = any(value.band for value in values)
    rows: list[list[Cell]] = []
    for value in values:
        digits = 2 if value.unit == "mag" and value.name.startswith("completeness") else 3
        row: list[Cell] = [figure_label(value)]
        if with_class:
            row.append(_CLASS_LABELS.get(value.object_class, value.object_class))
        if with_band:
            row.append(value.band)
        rows.append([*row, _value(value, digits), value.n])
    columns = [
        "Figure",
        *(["Class"] if with_class else []),
        *(["Band"] if with_band else []),
        "Value",
        "Number",
    ]
    return [Table(title, columns, rows, tall=tall and len(rows) > 15)]
