# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands at the top of the page on an evaluation, and where the catalogue fails."""

from __future__ import annotations

import math
import re

import numpy as np

from ..metrics.arrays import FloatArray
from ..metrics.binned import divide, even_edges
from ..metrics.evaluation_metrics import EvaluationGallery, EvaluationMetrics, GalleryEntry, MetricValue
from ..metrics.run_comparison import EvaluatedRun, RunComparison
from .comparison_table import DEFINITIONS, format_p_value
from .evaluation_figures import CLASS_WORDS, EvaluationFigures
from .plot_style import FEW
from .plots import column_label
from .report_page import (
    Cell,
    Gallery,
    GalleryItem,
    Headline,
    Paragraph,
    Part,
    Pictures,
    Table,
    Value,
    format_value,
)

_UNBROKEN = "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}"
_N_PATCHES, _N_BINS = 5, 10
"""Worst patches and bins that are listed."""
_FLUX_WORDS = {"bright_flux": "HeavyFootprint", "bright_model_flux": "model"}


def mean_ap(metrics: EvaluationMetrics) -> str:
    """Name the mean of the average precision over thresholds."""
    thresholds = metrics.iou_thresholds or [0.5, 0.95]
    low, high = (f"{limit:.2f}".strip("0") for limit in (thresholds[0], thresholds[-1]))
    return f"AP[{low}:{high}]"


def verdict(run: EvaluatedRun) -> str:
    """Say in a few sentences how good a catalogue is."""

    def get(name: str, object_class: str = "all") -> MetricValue | None:
        value = next(iter(run.metrics.select(name=name, object_class=object_class)), None)
        return value if value is not None and math.isfinite(value.value) else None

    sentences = []
    found, pure = get("completeness"), get("purity")
    if found is not None:
        # Of coadds with injected sources there is no purity.
        true = f", and {_percent(pure)} of {pure.n:,} detections are true" if pure is not None else ""
        sentences.append(f"{_percent(found)} of {found.n:,} true sources were found{true}.")
    depth = _depth(run, 0.9)
    sentences.append(f"90 % completeness: {depth[0]}{f' ({depth[1]})' if depth[1] else ''}.")
    for kind, word in reversed(_FLUX_WORDS.items()):
        bias, scatter = get(f"{kind}_median"), get(f"{kind}_scatter")
        if bias is not None and scatter is not None:
            how = "bright" if bias.value > 0 else "faint"
            sentences.append(
                f"Fluxes of the {word} at S/N > 20 are {abs(100 * bias.value):.1f} % too {how} in the "
                f"median, with a scatter of {100 * scatter.value:.1f} %."
            )
            break
    stars, galaxies = get("class_purity", "star"), get("class_purity", "galaxy")
    if stars is not None and galaxies is not None:
        sentences.append(
            f"{_percent(stars)} of what is called a star is one, and {_percent(galaxies)} of the galaxies."
        )
    merged, shredded = get("blends_unrecognized"), get("blends_shredded")
    if merged is not None and shredded is not None:
        sentences.append(
            f"{_percent(merged)} of {merged.n:,} blends are unrecognized, {_percent(shredded)} shredded."
        )
    return " ".join(sentences)


def _percent(value: MetricValue) -> str:
    return f"{100 * value.value:.3g} %"


def _depth(run: EvaluatedRun, level: float) -> tuple[str, str]:
    """Magnitude at which completeness falls through a level, and what to add to it."""
    name = f"completeness_limit_{100 * level:.0f}"
    value = next(iter(run.metrics.select(name=name, object_class="all")), None)
    if value is not None and math.isfinite(value.value):
        note = f"in {value.band}" if value.band else ""
        return f"{value.value:.2f} mag", note + ", instrumental" * (value.band in run.metrics.instrumental)
    mags = run.matches["mag"][run.sources.truths()]
    if not np.isfinite(mags).any():
        return "not known", "the truth has no magnitudes"
    curve = run.sources.binned_share("completeness", "mag", even_edges(mags))
    last = int(np.flatnonzero(curve.total > 0)[-1])
    if curve.fraction[last] >= level:
        return "not reached", f"deeper than {curve.center[last]:.1f} mag"
    return "not reached", "below it at all magnitudes"


def headlines(run: EvaluatedRun, comparison: RunComparison | None) -> list[Headline]:
    """Make the cards at the top of the page: depth, purity, fluxes, classes and blends, and AP after them."""
    metrics = run.metrics
    tiles = [
        Headline(f"Depth at {100 * level:.0f} % completeness", *_depth(run, level)) for level in (0.5, 0.9)
    ]
    wanted: list[tuple[str, tuple[str, ...], str]] = [
        ("Purity", ("purity", "all"), "share of detections that are true"),
        ("Completeness", ("completeness", "all"), "share of true sources that were found"),
    ]
    for kind, word in reversed(_FLUX_WORDS.items()):
        scatter = metrics.select(name=f"{kind}_scatter", object_class="all")
        note = f"scatter {format_value(Value(scatter[0].value))}" if scatter else ""
        wanted.append(
            (f"Flux bias, {word}", (f"{kind}_median", "all"), f"relative, median at S/N > 20; {note}")
        )
    wanted += [
        ("Purity of the stars", ("class_purity", "star"), "share of matched stars that are stars"),
        ("Purity of the galaxies", ("class_purity", "galaxy"), "share of matched galaxies that are galaxies"),
        ("Shredded", ("blends_shredded", "all"), "share of blends with more detections than sources"),
        ("Unrecognized blends", ("blends_unrecognized", "all"), "share of blends with too few detections"),
    ]
    wanted += [
        (f"AP50 of {CLASS_WORDS[name]}", ("ap", name, definition, "all", "0.5"), DEFINITIONS[definition])
        for definition, name in (("perImage", "star"), ("perImage", "galaxy"), ("pooled", "all"))
    ]
    wanted.append((f"{mean_ap(metrics)}, all", ("ap", "all", "pooled", "all", "None"), "pooled"))
    compared = {one.figure.key: one for one in comparison.figures} if comparison is not None else {}
    for label, start, note in wanted:
        found = (one for one in metrics.values if tuple(map(str, one.key))[: len(start)] == start)
        value = next(found, None)
        if value is None or not math.isfinite(value.value):
            continue
        if value.key in compared and comparison is not None and len(comparison.names) > 1:
            one = compared[value.key]
            # The first of the others; the table has them all.
            sign = Value(-one.difference[1], one.difference_error[1], 3, signed=True)
            p_value = format_p_value(float(one.p_value[1]), comparison.n_samples)
            # Numbers stay with their errors, also in a narrow tile.
            change = ", ".join(filter(None, (f"{format_value(sign)} against B", p_value)))
            note += "; " + re.sub(r" ([±<=]) ", _UNBROKEN, change)
        tiles.append(Headline(label, Value(value.value, value.error, signed="Flux" in label), note))
    return tiles


def place_words(entry: GalleryEntry) -> str:
    """Say where a picture is: tract, patch and the coordinates of its middle."""
    words = f"tract {entry.tract}, patch {entry.patch}"
    if entry.sky is not None:
        words += ", RA {:.5f}°, Dec {:+.5f}°".format(*entry.sky).replace("-", "\N{MINUS SIGN}")
    return words


def model_parts(gallery: EvaluationGallery | None) -> list[Part]:
    """Show the blends of the most sources with their models."""
    rows = []
    for entry in gallery.entries if gallery is not None else ():
        if entry.kind == "busiest":
            pictures = [("image", entry.image), ("models", entry.model), ("residual", entry.residual)]
            title = f"{entry.caption.splitlines()[0]}: {place_words(entry)}"
            rows.append((title, [(text, png) for text, png in (*pictures, *entry.children) if png]))
    if gallery is None or not rows:
        return []
    unit = "counts" if gallery.bands[1] in gallery.instrumental else "nJy"
    note = (
        "The blends with the most detections, each child alone. Numbers are ids and total fluxes of models "
        f"in {gallery.bands[1]} ({unit}). Residuals are from \N{MINUS SIGN}{gallery.residual_range:g} (blue) "
        f"to {gallery.residual_range:g} (red) times the noise."
    )
    return [Pictures(rows, note)]


def failure_parts(draw: EvaluationFigures, gallery: EvaluationGallery | None) -> list[Part]:
    """Show where a catalogue fails: the worst patches and bins, and ten sources."""
    parts: list[Part] = []
    patches = _worst_patches(draw)
    if len(patches) > 1:
        columns = ["Tract", "Patch", "Completeness", "Purity", "Right class", "Truths"]
        parts.append(Table("The patches of the lowest completeness", columns, patches))
    bins = _worst_bins(draw)
    if bins:
        columns = ["What", "Class", "Bin", "Share", "Sources"]
        note = f"Of each quantity and class the bin of the lowest share, of those with {FEW} sources or more."
        parts.append(Table("The bins of the lowest shares", columns, bins, note))
    entries = [one for one in gallery.entries if one.kind == "failure"] if gallery is not None else []
    if entries:
        items = [GalleryItem(one.caption, place_words(one), one) for one in entries]
        note = (
            "The brightest of the sources that were missed or made up, or have a wrong class or model flux."
        )
        parts.append(Gallery([("Sources", items)], gallery.residual_range if gallery else 10.0, note))
    if parts:
        parts.insert(0, Paragraph("The worst patches, bins and sources of this catalogue."))
    return parts


def _worst_patches(draw: EvaluationFigures) -> list[list[Cell]]:
    patches, image = draw.metrics.patches, draw.table["image"]
    counts = [
        [np.bincount(image[rows], minlength=len(patches)) for rows in draw.sources.share(measure)]
        for measure in ("completeness", "purity", "class_accuracy")
    ]
    shares = np.stack([divide(*pair) for pair in counts], axis=1).tolist()
    rows: list[list[Cell]] = [
        [patch.tract, patch.patch, *map(Value, some), n]
        for patch, some, n in zip(patches, shares, counts[0][1].tolist())
        if n
    ]
    return _lowest(rows, 2, _N_PATCHES)


def _lowest(rows: list[list[Cell]], column: int, number: int) -> list[list[Cell]]:
    """The rows of the lowest values in a column."""
    return sorted(rows, key=lambda row: getattr(row[column], "value", 0.0))[:number]


def _worst_bins(draw: EvaluationFigures) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for shares in draw.shares():
        for name, curve in shares.curves.items():
            share: FloatArray = np.where(curve.total >= FEW, curve.fraction, np.nan)
            if (name == "all" and len(shares.curves) > 1) or not np.isfinite(share).any():
                continue
            worst = int(np.nanargmin(share))
            label = column_label(shares.column, draw.band)
            limits = f"{curve.edges[worst]:.3g} to {curve.edges[worst + 1]:.3g}"
            what = f"{shares.measure.capitalize()} by {label[0].lower()}{label[1:]}"
            value = Value(float(share[worst]), 0.5 * float(curve.high[worst] - curve.low[worst]))
            rows.append([what, CLASS_WORDS[name], limits, value, int(curve.total[worst])])
    return _lowest(rows, 3, _N_BINS)
