# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the page on an evaluation says, from its figures and tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..images.classes import IS_STAR
from ..metrics.average_precision import MIN_SCORE
from ..metrics.binned import even_edges
from ..metrics.binned_figures import BinnedShares, reliability_curves
from ..metrics.completeness import completeness_limit
from ..metrics.evaluation_metrics import EvaluationGallery, EvaluationMetrics, GalleryEntry, MetricValue
from ..metrics.run_comparison import EvaluatedRun, RunComparison, settings_that_differ
from .comparison_table import DEFINITIONS, comparison_table, figure_label, run_letters
from .evaluation_figures import CLASS_WORDS, EvaluationFigures, blend_shares
from .plots import column_label, plot_blends, plot_residuals, plot_shares
from .report_page import (
    Card,
    Cell,
    Details,
    Gallery,
    GalleryItem,
    Page,
    Paragraph,
    Part,
    Plots,
    Section,
    Table,
    Value,
)
from .verdict import failure_parts, headlines, mean_ap, model_parts, place_words, verdict


@dataclass(frozen=True)
class ReportContext:
    """What stands around the figures."""

    title: str
    # Where the evaluation was found.
    repository: str = ""
    collection: str = ""
    model_card: Sequence[tuple[str, str]] = ()  # names and texts about the network
    model_details: Mapping[str, str] = field(default_factory=dict)  # long texts about the network, by title
    configurations: Mapping[str, str] = field(default_factory=dict)  # configurations of the tasks, by title
    collections: Sequence[str] = ()  # collections that were searched for inputs, in their order
    packages: Mapping[str, str] = field(default_factory=dict)  # versions of all software of the run
    notes: Sequence[str] = ()  # what is missing, and why
    footer: str = ""  # how the page was made


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

    Precision-recall curves are of `binned_figures.PRECISION_RECALL_DTYPE`. The
    comparison is that of all runs, the first of which is ``run``. Of the worst and of
    the best blends so many are shown at most.
    """
    metrics, draw = run.metrics, EvaluationFigures(run, curves)
    sections = [
        Section("models", "Blends and their models", model_parts(gallery)),
        Section("comparison", "Comparison", _comparison_parts(run, others, comparison)),
        Section("completeness", "Completeness and purity", _completeness_parts(draw)),
        Section("residuals", "Fluxes and positions", _residual_parts(draw)),
        Section("classes", "Stars and galaxies", _class_parts(draw)),
        Section("blends", "Blends", _blend_parts(run, others)),
        Section("gallery", "The worst and the best blends", _gallery_parts(gallery, n_gallery)),
        Section("failures", "Where does it fail?", failure_parts(draw, gallery)),
        Section("calibration", "Calibration", _calibration_parts(draw)),
        Section("precision", "Average precision", _precision_parts(draw)),
        Section("patches", "Patches and throughput", _patch_parts(metrics)),
        Section("network", "Network", _model_parts(metrics, context)),
        Section("provenance", "Configuration and software", _provenance_parts(metrics, context)),
        Section("figures", "All figures", _all_figures(metrics, others)),
    ]
    truths = sum(patch.n_truth for patch in metrics.patches)
    subtitle = (
        f"{len(metrics.patches)} patches of {metrics.skymap or 'one sky map'}, {truths:,} true sources "
        "that count" + (f"; catalogue {metrics.catalog}" if metrics.catalog else "")
    )
    return Page(context.title, subtitle, headlines(run, comparison), sections, context.footer, verdict(run))


_LIMITS = ("completeness_limit_50", "completeness_limit_90")
"""Figures that are magnitudes."""


def _value(value: MetricValue | None, digits: int = 3) -> Value:
    return Value(math.nan) if value is None else Value(value.value, value.error, digits)


def _comparison_parts(
    run: EvaluatedRun, others: Sequence[EvaluatedRun], comparison: RunComparison | None
) -> list[Part]:
    if comparison is None or len(comparison.names) < 2:
        return []
    differences = settings_that_differ([run, *others], comparison.patches)
    title = "Differences to this run, from the paired bootstrap over patches"
    parts: list[Part] = [*(Paragraph(one, warning=True) for one in differences)]
    parts.append(comparison_table(comparison, title))
    runs = dict(zip(run_letters(1 + len(others)), [run, *others]))
    figures = []
    everything = np.concatenate([one.matches["mag"] for one in runs.values()])
    if np.isfinite(everything).any():
        edges = even_edges(everything, 0.5)
        for name in ("star", "galaxy") if "star" in run.metrics.n_truth else ("all",):
            curves = {
                letter: one.sources.binned_share("completeness", "mag", edges, IS_STAR[name])
                for letter, one in runs.items()
            }
            limits = {letter: completeness_limit(curve) for letter, curve in curves.items()}
            label = f"Completeness, {CLASS_WORDS[name]}"
            shares = [BinnedShares("completeness", "mag", curves, limits)]
            figure = plot_shares(shares, instrumental=bool(run.metrics.instrumental), y_label=label)
            figures.append((figure, f"{label}, of each run against true magnitude."))
    figures += _compared_fluxes(runs)
    if figures:
        note = "The runs beside each other, with 68 % intervals; all patches of each run."
        parts.append(Plots(figures, note))
    return parts


def _compared_fluxes(runs: Mapping[str, EvaluatedRun]) -> list[tuple[Figure, str]]:
    """Residuals of fluxes of each run, a panel for each."""
    figures = []
    for kind, word in (("flux_model", "models"), ("flux_detected", "HeavyFootprints")):
        if all(np.isfinite(one.matches[kind]).any() for one in runs.values()):
            panels = []
            for letter, one in runs.items():
                panels += EvaluationFigures(one).flux_panels(("all",), kind, letter)
            label = f"Flux of the {word} / true flux \N{MINUS SIGN} 1"
            x_label = EvaluationFigures(runs["A"]).residual_label
            about = f"Flux of the {word} of each run against {x_label.lower()}."
            figures.append((plot_residuals(panels, x_label=x_label, y_label=label), about))
    return figures


def _precision_parts(draw: EvaluationFigures) -> list[Part]:
    metrics = draw.metrics
    values = metrics.select(name="ap", area="all")
    if not values:
        return []
    by_key = {value.key: value for value in metrics.values}
    numbers = {(value.definition, value.object_class): value.n for value in values}
    rows: list[list[Cell]] = []
    for (definition, name), number in numbers.items():
        keys = [("ap", 0.5), ("ap", 0.75), ("ap", None), ("recall", 0.5)]
        found = [by_key.get((what, name, definition, "all", iou, "")) for what, iou in keys]
        label = DEFINITIONS.get(definition, definition)
        rows.append([label, CLASS_WORDS[name], *map(_value, found), number])
    parts: list[Part] = [
        Paragraph(
            "Three definitions of average precision. Mean of images: all-point AP of each image and class, "
            f"for scores of {MIN_SCORE:g} and more, then the unweighted mean over images, as Astro R-CNN "
            "published it. Pooled: all-point AP of the detections of all images together. COCO: the same at "
            "101 recalls. Masks match from the IoU given; errors are standard errors from "
            f"{metrics.n_samples} bootstrap resamplings of the {len(metrics.patches)} patches."
        )
    ]
    columns = ["Definition", "Class", "AP50", "AP75", mean_ap(metrics), "Recall at IoU 0.5", "Truths"]
    parts.append(Table("Average precision", columns, rows))
    figures = _precision_figures(draw)
    about = "Interpolated precision against recall, pooled over patches; a line for each IoU."
    parts += _plots(figures, about)
    long: list[list[Cell]] = [
        [
            DEFINITIONS.get(value.definition, value.definition),
            CLASS_WORDS[value.object_class],
            value.area,
            "mean" if value.iou is None else f"{value.iou:.2f}",
            _value(value, 4),
            Value(value.low, digits=4),
            Value(value.high, digits=4),
            value.n,
        ]
        for value in metrics.select(name="ap")
    ]
    columns = ["Definition", "Class", "Area", "IoU", "AP", "Low", "High", "Truths"]
    note = f"Low and high enclose {100 * metrics.level:.0f} % of the resamplings."
    title = "Average precision by definition, class, area and IoU"
    return [*parts, Table(title, columns, long, note, tall=True)]


def _plots(figures: Sequence[tuple[Figure, str]], caption: str) -> list[Part]:
    return [Plots(figures, caption)] if figures else []


def _precision_figures(draw: EvaluationFigures) -> list[tuple[Figure, str]]:
    if draw.curves is None or not len(draw.curves):
        return []
    figures = []
    for name in draw.classes:
        values = draw.metrics.select(name="ap", object_class=name, definition="pooled", area="all")
        family = [value for value in values if value.iou is not None]
        if family:
            first, last = family[0], family[-1]
            about = (
                f"Precision against recall, {CLASS_WORDS[name]}; AP from {first.value:.3f} at IoU "
                f"{first.iou:.2f} to {last.value:.3f} at {last.iou:.2f}."
            )
            figures.append((draw.precision_recall([name]), about))
    return figures


def _completeness_parts(draw: EvaluationFigures) -> list[Part]:
    figures = []
    for one in draw.shares():
        label = column_label(one.column, instrumental=draw.instrumental)
        figures.append((draw.completeness([one]), f"{one.measure.capitalize()} against {label}."))
    note = (
        "Completeness of true sources by what is true of them, and purity of detections by what was "
        "measured. Bands are 68 % Wilson intervals; vertical lines are magnitudes of 50 % completeness."
    )
    title = "Completeness and purity"
    return [*_value_table(draw.metrics, title, "completeness", "purity"), *_plots(figures, note)]


def _class_parts(draw: EvaluationFigures) -> list[Part]:
    if len(draw.classes) < 2:
        return []
    parts = _value_table(draw.metrics, "Classes of matched sources", "class_", "roc_area")
    about = "Matched sources by true class and class given, and by magnitude the share of each."
    figures = [(draw.confusion(), about)]
    if np.isfinite(draw.table["p_star"][draw.sources.matched()]).any():
        area = draw.metrics.get("roc_area").value
        about = f"Receiver operating characteristic of pStar; area {area:.3f}."
        figures.append((draw.roc(), about))
    return [*parts, Plots(figures, "Bands are 68 % Wilson intervals.")]


def _calibration_parts(draw: EvaluationFigures) -> list[Part]:
    parts = _value_table(draw.metrics, "Calibration", "score_", "p_star_", "p_blend_")
    curves = reliability_curves(draw.sources)
    figures = []
    # The score of another detector need not be a probability.
    if "score/all" in curves:
        about = "Share of detections that are true, and of the right class, against their score."
        figures.append((draw.calibration(), about))
    if "p_star" in curves:
        about = "Share of matched sources that are stars against pStar."
        figures.append((draw.calibration("p_star"), about))
    if "p_blend" in curves:
        parts += _value_table(draw.metrics, "Blends among matched sources", "clean_", "blend_roc_area")
        figures.append((draw.blend_roc(), "Receiver operating characteristic of pBlend."))
        about = "Share of matched sources within one FWHM of another against pBlend."
        figures.append((draw.calibration("p_blend"), about))
    note = "Reliability with 68 % intervals; ECE is the expected calibration error."
    return [*parts, *_plots(figures, note)]


def _residual_parts(draw: EvaluationFigures) -> list[Part]:
    parts: list[Part] = []
    note = "Medians with their scatter (bars) and error (band); points or shading are sources."
    for what, column, function in (
        ("Flux of the models", "flux_model", partial(draw.flux_residual, kind="flux_model")),
        ("Flux of the HeavyFootprints", "flux_detected", draw.flux_residual),
        ("Offset of centroids", "separation_arcsec", draw.centroid_offset),
    ):
        figures = []
        for name in draw.classes[1:] or draw.classes:
            if np.isfinite(draw.table[column][draw.sources.matched(IS_STAR[name])]).any():
                about = f"{what} of {CLASS_WORDS[name]} against {draw.residual_label.lower()}."
                figures.append((function([name]), about))
        parts += _plots(figures, f"{what}. {note}")
    for title, *starts in (
        ("Fluxes of the models, relative to the true ones", "model_flux_", "bright_model_flux_"),
        ("Fluxes of the HeavyFootprints, relative to the true ones", "flux_", "bright_flux_"),
        ("Colours, positions and masks of matched sources", "color_", "centroid_", "iou_"),
    ):
        parts += _value_table(draw.metrics, title, *starts, tall=True)
    return parts


def _blend_parts(run: EvaluatedRun, others: Sequence[EvaluatedRun]) -> list[Part]:
    names = run_letters(1 + len(others)) if others else ["this run"]
    shares = {name: blend_shares(one.metrics) for name, one in zip(names, [run, *others])}
    shares = {name: one for name, one in shares.items() if one["recognized"].total}
    if not shares:
        return []
    parts: list[Part] = [
        Paragraph(
            "True sources and detections that overlap make groups; a blend is a group of two true sources or "
            "more. It is recognized if as many were found and each fits its own, unrecognized if fewer were "
            "found, shredded if more were found, mismatched if they do not fit, missed if none was found. "
            "Spurious are detections that touch no true source; pieces of one are impure, but not spurious."
        ),
        Plots([(plot_blends(shares), "Shares of blends by how they ended.")]),
    ]
    starts = ("blends_", "truths_", "detections_", "blend_", "lost_")
    return parts + _value_table(run.metrics, "Groups of sources", *starts)


def _gallery_parts(gallery: EvaluationGallery | None, number: int) -> list[Part]:
    if gallery is None or not gallery.entries or number < 1:
        return []
    groups = []
    for kind, title in (("worst", "Worst blends"), ("best", "Best blends")):
        items = [
            GalleryItem(f"T{place_words(entry)[1:]}", _gallery_details(entry, gallery.pixel_scale), entry)
            for entry in gallery.entries
            if entry.kind == kind
        ][:number]
        groups.append((title, items))
    note = "Quality: panoptic quality of the blend, from 0 to 1."
    if len(gallery.bands) == 3:
        note += f" Red, green and blue are {', '.join(gallery.bands)}."
    if len(gallery.bands) == 3 and any(entry.residual for entry in gallery.entries):
        note += (
            f" The residual is the image in {gallery.bands[1]} minus the models, or else the detections' "
            "pixels, where the catalogue has them, else without the pixels of their footprints."
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
    names = ("tract", "patch", "n_truth", "n_truth_ignored", "n_detections", "n_skipped")
    rows: list[list[Cell]] = [[getattr(patch, name) for name in names] for patch in metrics.patches]
    if timed:
        columns += ["Time (s)", "Megapixels"]
        for row, patch in zip(rows, metrics.patches):
            row += [Value(patch.seconds, digits=1), Value(patch.megapixels, digits=2)]
    note = (
        "Ignored truths are too faint, too small or masked; neither hit nor miss. Left out are parents "
        "and records without a footprint or a score."
    )
    parts = _value_table(metrics, "Throughput", "seconds_per_patch", "megapixels_per_second")
    return [*parts, Table("Patches", columns, rows, note, tall=len(rows) > 15)]


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
        text = json.dumps(metrics.config, indent=2, default=str)
        parts.append(Details("Configuration of the evaluation", text))
    parts += [Details(title, text) for title, text in context.configurations.items()]
    if metrics.software:
        versions, title = sorted(metrics.software.items()), "Software that computed the figures"
        parts.append(Table(title, ["Package", "Version"], versions, tall=len(versions) > 15))
    if context.packages:
        text = "\n".join(f"{name} {version}" for name, version in sorted(context.packages.items()))
        parts.append(Details("All packages of the run", text))
    return parts


def _all_figures(metrics: EvaluationMetrics, others: Sequence[EvaluatedRun]) -> list[Part]:
    letters = run_letters(1 + len(others))
    elsewhere = [{value.key: value for value in other.metrics.values} for other in others]
    rows: list[list[Cell]] = []
    for value in metrics.values:
        row: list[Cell] = [
            figure_label(value),
            CLASS_WORDS.get(value.object_class, value.object_class),
            DEFINITIONS.get(value.definition, value.definition),
            "" if value.area == "all" else value.area,
            value.band,
            _value(value, 4),
            value.n,
        ]
        rows.append([*row, *(_value(known.get(value.key), 4) for known in elsewhere)])
    columns = ["Figure", "Class", "Definition", "Area", "Band", letters[0] if others else "Value", "Number"]
    note = "Number: of sources, patches or cases behind a figure."
    if others:
        names = (f"{letter}: {other.name}" for letter, other in zip(letters[1:], others))
        note += " Each run on all its own patches; " + "; ".join(names)
    return [Table("All figures", [*columns, *letters[1:]], rows, note, tall=True)]


def _value_table(metrics: EvaluationMetrics, title: str, *starts: str, tall: bool = False) -> list[Part]:
    """Put the figures whose names begin in some ways into a table, if there are any."""
    values = [value for value in metrics.values if value.name.startswith(starts)]
    if not values:
        return []
    columns: dict[str, list[Cell]] = {
        "Figure": [figure_label(value) for value in values],
        "Class": [CLASS_WORDS.get(value.object_class, value.object_class) for value in values],
        "Band": [value.band for value in values],
        "Value": [_value(value, 2 if value.name in _LIMITS else 3) for value in values],
        "Number": [value.n for value in values],
    }
    # A column with one value in all rows is left out.
    empty = {"Class": all(one == "all" for one in columns["Class"]), "Band": not any(columns["Band"])}
    columns = {name: cells for name, cells in columns.items() if not empty.get(name)}
    return [Table(title, list(columns), list(zip(*columns.values())), tall=tall and len(values) > 15)]
