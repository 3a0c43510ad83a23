# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""All figures of an evaluation, each with its error from the patches.

Every figure is a function of how often each patch counts, so that one set of
resamplings serves all of them and differences of runs can be judged too
(`~lsst.meas.maskrcnn.metrics.run_comparison`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..images.classes import CLASS_NAMES, IS_STAR
from .arrays import BoolArray, FloatArray
from .average_precision import (
    MIN_SCORE,
    AveragePrecision,
    Definition,
    Outcomes,
    ap_statistic,
    collect_outcomes,
    compute_ap,
)
from .binned import divide, even_edges, robust_statistics
from .blends import BLEND_KINDS, GROUP_KINDS
from .bootstrap import BootstrapResult, ImageStatistic, bootstrap, combine, ratio_statistic
from .calibration import reliability
from .classification import roc_curve
from .completeness import last_crossing
from .evaluation_metrics import CLASS_LABELS, MetricValue
from .match_table import MatchedSources, ab_magnitude
from .matching import IOU_THRESHOLDS, AreaRange, ImagePairs
from .resampled import count_by_image, median_statistic, reliability_statistic, roc_area_statistic

_LEVELS = (0.5, 0.9)
"""Completeness at the limiting magnitudes."""
_BRIGHT = 20.0
"""S/N from which on fluxes are also judged alone: those of fainter sources are biased by their selection."""


@dataclass(frozen=True, eq=False)
class FigureGroup:
    """Some figures, and the same as a function of how often each patch counts."""

    step: str  # what is computed, for the log
    figures: tuple[MetricValue, ...]  # the figures of all patches, without errors
    statistic: ImageStatistic  # the same figures in the same order

    def choose(self, indices: Sequence[int]) -> FigureGroup:
        """Take some of the figures."""
        columns = list(indices)
        statistic = combine(lambda values: values[:, columns], self.statistic)
        return FigureGroup(self.step, tuple(self.figures[k] for k in columns), statistic)

    def resample(self, n_samples: int, seed: int) -> BootstrapResult:
        """Draw so many samples of patches, the same ones for each group of figures by the random seed."""
        return bootstrap(self.statistic, np.random.default_rng(seed), n_samples)

    def with_errors(self, n_samples: int, seed: int) -> list[MetricValue]:
        """Give the figures the errors of `resample`.

        One that all patches together do not have gets no error either, though
        some resamplings may have a value.
        """
        result = self.resample(n_samples, seed)
        limits = np.stack([result.error, result.low, result.high], axis=1).tolist()
        return [
            one.model_copy(update=dict(zip(("error", "low", "high"), of_one)))
            if np.isfinite(one.value)
            else one
            for one, of_one in zip(self.figures, limits)
        ]


def ap_figures(outcomes: Outcomes, result: AveragePrecision, object_class: str) -> FigureGroup:
    """Collect the average precision of outcomes at each threshold and, last and without IoU, their mean."""
    statistic = combine(_with_mean, ap_statistic(outcomes, result.definition))
    return _at_thresholds("ap", [*result.ap, result.mean], result, object_class, statistic)


def _at_thresholds(
    name: str, values: Iterable[float], result: AveragePrecision, object_class: str, statistic: ImageStatistic
) -> FigureGroup:
    """Group a figure at the thresholds of an average precision and its mean over them."""
    area = "all" if result.area is None else result.area.name
    of_all: dict[str, Any] = {"definition": result.definition, "area": area, "n": result.n_truth}
    figures = tuple(
        MetricValue(name=name, object_class=object_class, value=float(value), iou=iou, **of_all)
        for iou, value in zip([*result.thresholds.tolist(), None], values)
    )
    step = f"{result.definition} {'AP' if name == 'ap' else name} of class {object_class}"
    return FigureGroup(step, figures, statistic)


@dataclass(frozen=True, eq=False)
class PrecisionSummary:
    """Average precision in all definitions and classes."""

    groups: list[FigureGroup]  # the figures ``ap`` and ``recall``
    results: dict[tuple[str, str], AveragePrecision]  # by definition and class; all areas
    outcomes: dict[str, Outcomes]  # by class; all areas


def summarize_precision(
    images: Sequence[ImagePairs],
    classes: Iterable[str],
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    areas: Sequence[AreaRange] = (),
) -> PrecisionSummary:
    """Compute the average precision of patches, for each class by all definitions.

    Thresholds are the smallest IoU of a match, ascending; ranges of areas are
    for the definition ``coco``.
    """
    summary = PrecisionSummary([], {}, {})
    for name in classes:
        summary.outcomes[name] = outcomes = collect_outcomes(images, CLASS_LABELS[name], thresholds)
        for definition in get_args(Definition):
            summary.results[definition, name] = result = compute_ap(outcomes, definition)
            summary.groups.append(_recall_figures(outcomes, result, name))
            summary.groups.append(ap_figures(outcomes, result, name))
        for area in areas:
            outcomes = collect_outcomes(images, CLASS_LABELS[name], thresholds, area)
            summary.groups.append(ap_figures(outcomes, compute_ap(outcomes, "coco"), name))
    return summary


def _recall_figures(outcomes: Outcomes, result: AveragePrecision, object_class: str) -> FigureGroup:
    """Collect the recall of all detections that an average precision takes in."""
    kept = outcomes.scores >= (MIN_SCORE if result.definition == "perImage" else -np.inf)
    n = len(outcomes)
    hits = np.stack([np.bincount(outcomes.image[kept & hit], minlength=n) for hit in outcomes.hit], axis=1)
    truths = np.broadcast_to(outcomes.n_truth[:, None], hits.shape)
    statistic = combine(_with_mean, ratio_statistic(outcomes.names, hits, truths))
    return _at_thresholds("recall", statistic.value, result, object_class, statistic)


def blend_figures(groups: NDArray[np.void], names: tuple[str, ...]) -> Iterator[FigureGroup]:
    """Collect how the groups of truths and detections of all patches, of `blends.BLEND_DTYPE`, ended.

    ``blends_<kind>`` are of all blends, ``truths_<kind>`` of all truths,
    ``detections_spurious`` of all detections; then ``blend_quality``.
    """
    kind, blended = groups["kind"], groups["n_truth"] > 1
    t, d = groups["n_truth"], groups["n_detection"]
    parts = {f"blends_{name}": ((kind == name) & blended, blended) for name in BLEND_KINDS}
    parts |= {f"truths_{name}": (np.where(kind == name, t, 0), t) for name in GROUP_KINDS[:-1]}
    parts["detections_spurious"] = np.where(kind == "spurious", d, 0), d
    parts["blend_quality"] = np.where(blended, groups["quality"], 0.0), blended
    for name, (above, below) in parts.items():
        sums = [np.bincount(groups["image"], weights=part, minlength=len(names)) for part in (above, below)]
        yield _ratio_group(name, names, *sums, n=int(np.sum(below)))


def throughput_figures(
    seconds: Sequence[float], megapixels: Sequence[float], names: tuple[str, ...]
) -> Iterator[FigureGroup]:
    """Collect how fast the catalogues were made: seconds a patch, megapixels a second, where known.

    Time (s) and size (megapixels) of each patch are NaN where they are not known.
    """
    time, size = np.asarray(seconds, dtype=np.float64), np.asarray(megapixels, dtype=np.float64)
    timed = np.isfinite(time) & (time > 0)
    sized = timed & np.isfinite(size)
    for name, unit, known, above, below in (
        ("seconds_per_patch", "s", timed, time, np.ones(len(time))),
        ("megapixels_per_second", "Mpixel/s", sized, size, time),
    ):
        if known.any():
            sums = np.where(known, above, 0.0), np.where(known, below, 0.0)
            yield _ratio_group(name, names, *sums, unit=unit, n=int(known.sum()))


def source_figures(sources: MatchedSources) -> Iterator[FigureGroup]:
    """Compute the figures of matched sources; see the documentation for their names."""
    classes, table = sources.classes, sources.table
    several = len(classes) > 1
    measures = ["completeness", "purity"]
    if several:
        measures += ["completeness_same_class", "purity_same_class"]
    for name in classes:
        for measure in measures:
            yield _share(sources, measure, sources.share(measure, IS_STAR[name]), name)
    for name in classes:
        yield from _limits(sources, name)
    if several:
        yield _share(sources, "class_accuracy", sources.share("class_accuracy"))
        for name in CLASS_NAMES:
            for measure in ("class_completeness", "class_purity"):
                yield _share(sources, measure, sources.share(measure, IS_STAR[name]), name)
        known = sources.matched() & np.isfinite(table["p_star"])
        if known.any():
            yield _roc_area(sources, "roc_area", known, table["p_star"], table["truth_is_star"])
    truths = sources.truths()
    for what in ("shredded", "unrecognized", "missed"):
        yield _share(sources, f"lost_{what}", (truths & (table["outcome"].astype(str) == what), truths))
    rows, clean = sources.blend_cases()
    if rows.any():
        blended = table["blended"] == 1
        yield _share(sources, "clean_purity", (clean & ~blended, clean))
        yield _share(sources, "clean_share", (rows & ~blended, rows))
        yield _roc_area(sources, "blend_roc_area", rows, table["p_blend"], blended)
    for name in classes:
        yield from _residuals(sources, name)
    for name, (rows, given, true) in sources.probabilities().items():
        what, _, object_class = name.partition("/")
        if object_class in ("", "all"):
            exact = reliability(given, true)
            parts = {"ece": exact.expected_error, "brier": exact.brier}
            values = [MetricValue(name=f"{what}_{part}", value=one, n=exact.n) for part, one in parts.items()]
            statistic = reliability_statistic(sources.names, table["image"][rows], given, true)
            yield FigureGroup("calibration", tuple(values), statistic)


def _limits(sources: MatchedSources, name: str) -> Iterator[FigureGroup]:
    """Magnitudes to which a class is complete."""
    rows = sources.truths(IS_STAR[name]) & np.isfinite(sources.table["mag"])
    if not rows.any():
        return
    mags, image = sources.table["mag"][rows], sources.table["image"][rows]
    found = sources.matched()[rows]
    edges = even_edges(mags)
    bins = np.clip(np.searchsorted(edges, mags, side="right") - 1, 0, len(edges) - 2)
    total = count_by_image(image, bins, len(sources.names), len(edges) - 1)
    hits = count_by_image(image[found], bins[found], len(sources.names), len(edges) - 1)
    center = sources.binned_share("completeness", "mag", edges, IS_STAR[name]).center

    def limits(weights: FloatArray) -> FloatArray:
        counts = weights @ total
        pairs = list(zip(np.nan_to_num(divide(weights @ hits, counts)), counts))
        return np.array([[last_crossing(center, *pair, level) for level in _LEVELS] for pair in pairs])

    statistic = ImageStatistic(sources.names, limits)
    of_all: dict[str, Any] = {"object_class": name, "band": sources.band, "unit": "mag", "n": int(rows.sum())}
    figures = tuple(
        MetricValue(name=f"completeness_limit_{100 * level:.0f}", value=value, **of_all)
        for level, value in zip(_LEVELS, statistic.value.tolist())
    )
    yield FigureGroup("completeness limits", figures, statistic)


def _roc_area(
    sources: MatchedSources, name: str, rows: BoolArray, given: FloatArray, true: BoolArray
) -> FigureGroup:
    given, true = given[rows], true[rows]
    figure = MetricValue(name=name, value=roc_curve(given, true).area, n=int(rows.sum()))
    statistic = roc_area_statistic(sources.names, sources.table["image"][rows], given, true)
    return FigureGroup("area under the ROC curve", (figure,), statistic)


def _residuals(sources: MatchedSources, name: str) -> Iterator[FigureGroup]:
    """Median, scatter and outliers of the errors of a class."""
    table, rows = sources.table, sources.matched(IS_STAR[name])
    for what, column, unit, band in _errors(sources):
        known = rows & np.isfinite(column)
        if not known.any():
            continue
        exact = robust_statistics(column[known])
        of_all: dict[str, Any] = {"object_class": name, "band": band, "n": exact.n}
        figures = (
            MetricValue(name=f"{what}_median", value=exact.median, unit=unit, **of_all),
            MetricValue(name=f"{what}_scatter", value=exact.scatter, unit=unit, **of_all),
            MetricValue(name=f"{what}_outliers", value=exact.outliers.value, **of_all),
        )
        statistic = median_statistic(sources.names, table["image"][known], column[known])
        yield FigureGroup(f"residuals of class {name}", figures, statistic)


def _errors(sources: MatchedSources) -> Iterator[tuple[str, FloatArray, str, str]]:
    """Name, values of all rows, unit, and band or colour, of what is measured with an error."""
    table, bands = sources.table, sources.bands
    in_arcsec = bool(np.isfinite(table["separation_arcsec"]).any())
    unit, separation = ("arcsec", "separation_arcsec") if in_arcsec else ("pixel", "separation")
    pixels = table["separation"]
    scale = np.divide(table[separation], pixels, out=np.ones(len(table)), where=pixels > 0)
    yield "centroid_x", scale * table["offset_x"], unit, ""
    yield "centroid_y", scale * table["offset_y"], unit, ""
    yield "centroid_separation", table[separation], unit, ""
    yield "iou", table["iou"], "", ""
    suffixes = {sources.band: "", **{band: f"_{band}" for band in bands if band != sources.band}}
    for what, kind in (("flux", "flux_detected"), ("model_flux", "flux_model")):
        for band, suffix in suffixes.items():
            residual = divide(table[f"{kind}{suffix}"], table[f"flux_truth{suffix}"]) - 1.0
            yield what, residual, "", band
            yield f"bright_{what}", np.where(table["snr"] >= _BRIGHT, residual, np.nan), "", band
    for color, residual in color_residuals(sources).items():
        yield "color", residual, "mag", color


def color_residuals(sources: MatchedSources) -> dict[str, FloatArray]:
    """Compare colours of neighbouring bands with the true ones.

    By colour, ``g-r`` for instance: measured minus true (mag), (row,); NaN
    where a flux is not known or not positive.
    """
    table, bands = sources.table, sources.bands
    # Colours of the models, where there are any.
    modelled = len(bands) > 0 and np.isfinite(table[f"flux_model_{bands[0]}"]).any()
    kind = "model" if modelled else "detected"
    shift = [
        ab_magnitude(table[f"flux_{kind}_{band}"]) - ab_magnitude(table[f"flux_truth_{band}"])
        for band in bands
    ]
    return {f"{bands[k]}-{bands[k + 1]}": shift[k] - shift[k + 1] for k in range(len(bands) - 1)}


def _share(
    sources: MatchedSources, name: str, rows: tuple[BoolArray, BoolArray], object_class: str = "all"
) -> FigureGroup:
    image, names = sources.table["image"], sources.names
    hits, total = (np.bincount(image[one], minlength=len(names)) for one in rows)
    return _ratio_group(name, names, hits, total, object_class=object_class, n=int(rows[1].sum()))


def _ratio_group(
    name: str, names: tuple[str, ...], above: NDArray[Any], below: NDArray[Any], **fields: Any
) -> FigureGroup:
    """One figure that is a ratio of sums over patches."""
    statistic = ratio_statistic(names, above, below)
    figure = MetricValue(name=name, value=float(statistic.value[0]), **fields)
    return FigureGroup(name.replace("_", " "), (figure,), statistic)


def _with_mean(values: FloatArray) -> FloatArray:
    return np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)
