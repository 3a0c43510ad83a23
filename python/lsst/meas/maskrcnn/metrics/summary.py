# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""All figures of an evaluation, each with its error from the patches.

Every figure is a function of how often each patch counts, so that one set of
resamplings serves all of them and differences of figures can be judged too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..images.classes import IS_STAR
from ..report.plots import (
    FractionPanel,
    ResidualPanel,
    completeness_panels,
    plot_blends,
    plot_calibration,
    plot_confusion,
    plot_fractions,
    plot_precision_recall,
    plot_residuals,
    plot_roc,
    precision_recall_curves,
)
from .average_precision import (
    AveragePrecision,
    Definition,
    NoTruth,
    Outcomes,
    ap_statistic,
    collect_outcomes,
    compute_ap,
)
from .binned import even_edges, robust_statistics
from .blends import GROUP_KINDS, BlendSummary
from .bootstrap import BootstrapResult, ImageStatistic, bootstrap, combine, ratio_statistic
from .calibration import p_star_reliability, reliability, score_reliability
from .classification import binned_confusion, binned_roc, confusion, roc_curve, star_roc
from .completeness import binned_completeness, completeness_limit, last_crossing
from .evaluation_metrics import CLASS_LABELS, MetricValue
from .match_table import detection_rows, matched_rows, truth_rows
from .matching import IOU_THRESHOLDS, AreaRange, ImagePairs, Method
from .residuals import binned_flux_residual, color_residuals, flux_residual

__all__ = [
    "BLEND_DTYPE",
    "PRECISION_RECALL_DTYPE",
    "ApSummary",
    "SummarySettings",
    "ap_summary",
    "binned_tables",
    "evaluation_plots",
    "median_statistic",
    "precision_recall_table",
    "table_values",
    "throughput_values",
]

FloatArray = NDArray[np.float64]
Table = NDArray[np.void]

BLEND_DTYPE = np.dtype(
    [("image", "i8"), ("kind", "U12"), ("n_truth", "i8"), ("n_detection", "i8"), ("quality", "f8")]
)
"""One row per group of truths and detections (`numpy.dtype`)."""

PRECISION_RECALL_DTYPE = np.dtype(
    [
        ("definition", "U8"),
        ("object_class", "U8"),
        ("iou", "f8"),
        ("recall", "f8"),
        ("precision", "f8"),
        ("interpolated", "f8"),
        ("score", "f8"),
    ]
)
"""One row per point of a precision-recall curve (`numpy.dtype`)."""


# Values of a distribution that are told apart when it is resampled.
_VALUES = 1000


@dataclass(frozen=True)
class SummarySettings:
    """How the figures are computed.

    Parameters
    ----------
    iou_thresholds : `tuple` [`float`]
        Thresholds of the average precision, ascending.
    definitions : `tuple` [`str`]
        Definitions of the average precision.
    areas : `tuple` [`AreaRange`]
        Ranges of areas, for the definition ``coco``.
    min_score : `float`
        Lowest score that the definition ``perImage`` looks at.
    no_truth : `str`
        See `average_precision.per_image_ap`.
    method : `str`
        How detections and truths are matched.
    score_threshold : `float` or `None`
        Lowest score of the detections that all other figures look at.
    n_samples : `int`
        Resamplings of the bootstrap.
    level : `float`
        Probability between the limits.
    seed : `int`
        Source of chance.
    band : `str`
        Reference band, for the names of axes.
    bands : `tuple` [`str`]
        Bands of the match table, from blue to red.
    residual_column : `str`
        Column against which flux residuals are drawn.
    """

    iou_thresholds: tuple[float, ...] = IOU_THRESHOLDS
    definitions: tuple[Definition, ...] = ("perImage", "pooled", "coco")
    areas: tuple[AreaRange, ...] = ()
    min_score: float = 0.5
    no_truth: NoTruth = "skip"
    method: Method = "greedy"
    score_threshold: float | None = None
    n_samples: int = 1000
    level: float = 0.6827
    seed: int = 1
    band: str = ""
    bands: tuple[str, ...] = ()
    residual_column: str = "blendedness"

    def resample(self, statistic: ImageStatistic) -> BootstrapResult:
        """Give figures their errors, with the same resamplings each time.

        Parameters
        ----------
        statistic : `ImageStatistic`
            The figures.

        Returns
        -------
        result : `BootstrapResult`
            The figures and their errors.
        """
        return bootstrap(statistic, np.random.default_rng(self.seed), self.n_samples, self.level)


@dataclass(frozen=True, eq=False)
class ApSummary:
    """Average precision in all definitions and classes.

    Parameters
    ----------
    values : `list` [`MetricValue`]
        The figures.
    results : `dict` [`tuple`, `AveragePrecision`]
        By definition and name of the class; all areas.
    outcomes : `dict` [`str`, `Outcomes`]
        By name of the class; all areas.
    """

    values: list[MetricValue]
    results: dict[tuple[str, str], AveragePrecision]
    outcomes: dict[str, Outcomes]


def ap_summary(
    images: Sequence[ImagePairs],
    classes: Iterable[str],
    settings: SummarySettings,
    progress: Callable[[str], None] = lambda step: None,
) -> ApSummary:
    """Compute the average precision with its errors.

    Parameters
    ----------
    images : `~collections.abc.Sequence` [`ImagePairs`]
        The patches.
    classes : `~collections.abc.Iterable` [`str`]
        Names of the classes, among `CLASS_LABELS`.
    settings : `SummarySettings`
        How.
    progress : `~collections.abc.Callable`
        Is told the name of each step.

    Returns
    -------
    summary : `ApSummary`
        The figures: ``ap`` at each threshold and, with no ``iou``, its mean
        over them; ``recall`` likewise.
    """
    values: list[MetricValue] = []
    results: dict[tuple[str, str], AveragePrecision] = {}
    kept: dict[str, Outcomes] = {}
    for name in classes:
        for area in (None, *settings.areas):
            outcomes = collect_outcomes(
                images, CLASS_LABELS[name], settings.iou_thresholds, area, settings.method
            )
            if area is None:
                kept[name] = outcomes
            for definition in settings.definitions:
                if area is not None and definition != "coco":
                    continue
                progress(f"{definition} AP of class {name}")
                result = compute_ap(outcomes, definition, settings.min_score, settings.no_truth)
                if area is None:
                    results[definition, name] = result
                    values += _recall_values(outcomes, result, name, settings)
                values += _ap_values(outcomes, result, name, settings)
    return ApSummary(values, results, kept)


def _ap_values(
    outcomes: Outcomes, result: AveragePrecision, name: str, settings: SummarySettings
) -> list[MetricValue]:
    statistic = ap_statistic(outcomes, result.definition, settings.min_score, settings.no_truth)
    errors = settings.resample(combine(_with_mean, statistic))
    exact = np.append(result.ap, result.mean)
    return [
        _value(
            "ap",
            exact[k],
            errors,
            k,
            object_class=name,
            definition=result.definition,
            area="all" if result.area is None else result.area.name,
            iou=None if k == len(result.ap) else float(result.thresholds[k]),
            n=result.n_truth,
        )
        for k in range(len(exact))
    ]


def _recall_values(
    outcomes: Outcomes, result: AveragePrecision, name: str, settings: SummarySettings
) -> list[MetricValue]:
    n_images = len(outcomes)
    kept = outcomes.scores >= (settings.min_score if result.definition == "perImage" else -np.inf)
    hits = np.stack(
        [np.bincount(outcomes.image[kept & hit], minlength=n_images) for hit in outcomes.hit], axis=1
    )
    truths = np.broadcast_to(outcomes.n_truth[:, None], hits.shape)
    errors = settings.resample(combine(_with_mean, ratio_statistic(outcomes.names, hits, truths)))
    return [
        _value(
            "recall",
            errors.value[k],
            errors,
            k,
            object_class=name,
            definition=result.definition,
            iou=None if k == len(result.thresholds) else float(result.thresholds[k]),
            n=result.n_truth,
        )
        for k in range(len(errors.value))
    ]


def precision_recall_table(
    results: Mapping[tuple[str, str], AveragePrecision], number: int = 1000
) -> NDArray[np.void]:
    """Put precision-recall curves into one table.

    Parameters
    ----------
    results : `~collections.abc.Mapping`
        Average precisions by definition and class.
    number : `int`
        Largest number of points of a curve.

    Returns
    -------
    table : `numpy.ndarray`
        Structured array of `PRECISION_RECALL_DTYPE`. Precision and recall of
        ``perImage`` are means over images, which have no score.
    """
    parts = [np.zeros(0, dtype=PRECISION_RECALL_DTYPE)]
    for (definition, name), result in results.items():
        for iou, whole in zip(result.thresholds, result.curves):
            curve = whole.thinned(number)
            part = np.zeros(len(curve.recall), dtype=PRECISION_RECALL_DTYPE)
            part["definition"], part["object_class"], part["iou"] = definition, name, iou
            part["recall"], part["precision"] = curve.recall, curve.precision
            part["interpolated"], part["score"] = curve.interpolated, curve.scores
            parts.append(part)
    return np.concatenate(parts)


def table_values(
    table: Table,
    groups: NDArray[np.void],
    names: tuple[str, ...],
    classes: Sequence[str],
    settings: SummarySettings,
    *,
    pixel_scale: float | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> list[MetricValue]:
    """Compute what average precision does not say.

    Parameters
    ----------
    table : `numpy.ndarray`
        Match table of all patches; ``image`` is the index into ``names``.
    groups : `numpy.ndarray`
        Groups of all patches, structured array of `BLEND_DTYPE`.
    names : `tuple` [`str`]
        Names of the patches.
    classes : `~collections.abc.Sequence` [`str`]
        Names of the classes that are told apart.
    settings : `SummarySettings`
        How.
    pixel_scale : `float`, optional
        Pixel scale (arcsec); without it separations are in pixels.
    progress : `~collections.abc.Callable`
        Is told the name of each step.

    Returns
    -------
    values : `list` [`MetricValue`]
        The figures, see the documentation for their names.
    """
    values: list[MetricValue] = []
    for step, compute in (
        ("completeness and purity", lambda: _share_values(table, names, classes, settings)),
        ("completeness limits", lambda: _limit_values(table, names, classes, settings)),
        ("classes", lambda: _class_values(table, names, classes, settings)),
        ("blends", lambda: _blend_values(groups, names, settings)),
        ("residuals", lambda: _residual_values(table, names, classes, settings, pixel_scale)),
        ("calibration", lambda: _calibration_values(table, names, classes, settings)),
    ):
        progress(step)
        values += compute()
    return values


def _share_values(
    table: Table, names: tuple[str, ...], classes: Sequence[str], settings: SummarySettings
) -> list[MetricValue]:
    values = []
    for name in classes:
        star, score = IS_STAR[name], settings.score_threshold
        truths, found = truth_rows(table, star), matched_rows(table, star, min_score=score)
        detections = detection_rows(table, star, min_score=score)
        matched = matched_rows(table)
        rows = {"completeness": (found, truths), "purity": (detections & matched, detections)}
        if len(classes) > 1:
            same = matched_rows(table, same_class=True)
            rows["completeness_same_class"] = (found & same, truths)
            rows["purity_same_class"] = (detections & same, detections)
        for what, (hits, total) in rows.items():
            values.append(_ratio_value(what, table, hits, total, names, settings, object_class=name))
    return values


def _limit_values(
    table: Table, names: tuple[str, ...], classes: Sequence[str], settings: SummarySettings
) -> list[MetricValue]:
    values = []
    for name in classes:
        star = IS_STAR[name]
        rows = truth_rows(table, star) & np.isfinite(table["mag"])
        if not rows.any():
            continue
        edges = even_edges(table["mag"][rows], 0.5)
        found = matched_rows(table, star, min_score=settings.score_threshold)[rows]
        mags, image = table["mag"][rows], table["image"][rows]
        bins = np.clip(np.searchsorted(edges, mags, side="right") - 1, 0, len(edges) - 2)
        shape = (len(names), len(edges) - 1)
        code = image * shape[1] + bins
        total = np.bincount(code, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
        hits = np.bincount(code[found], minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
        binned = binned_completeness(table, "mag", edges, star, min_score=settings.score_threshold)

        def limit(
            weights: FloatArray,
            hits: FloatArray = hits,
            total: FloatArray = total,
            center: FloatArray = binned.center,
        ) -> FloatArray:
            above, below = weights @ hits, weights @ total
            share = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
            return np.array([[last_crossing(center, s, t, 0.5)] for s, t in zip(share, below)])

        errors = settings.resample(ImageStatistic(names, limit))
        exact = completeness_limit(binned).value
        values.append(
            _value(
                "completeness_limit_50",
                exact,
                errors,
                0,
                object_class=name,
                band=settings.band,
                unit="mag",
                n=int(rows.sum()),
            )
        )
    return values


def _class_values(
    table: Table, names: tuple[str, ...], classes: Sequence[str], settings: SummarySettings
) -> list[MetricValue]:
    if len(classes) < 2:
        return []
    rows = matched_rows(table, min_score=settings.score_threshold)
    truth, given = table["truth_is_star"], table["detected_is_star"]
    right = rows & (truth == given)
    values = [_ratio_value("class_accuracy", table, right, rows, names, settings)]
    for name, star in (("star", True), ("galaxy", False)):
        for what, column in (("class_completeness", truth), ("class_purity", given)):
            total = rows & (column == star)
            values.append(_ratio_value(what, table, right & total, total, names, settings, object_class=name))
    known = rows & np.isfinite(table["p_star"])
    if known.any():
        curve = roc_curve(table["p_star"][known], truth[known])
        statistic = _area_statistic(names, table["image"][known], table["p_star"][known], truth[known])
        errors = settings.resample(statistic)
        values.append(_value("roc_area", curve.area, errors, 0, n=int(known.sum())))
    return values


def _blend_values(
    groups: NDArray[np.void], names: tuple[str, ...], settings: SummarySettings
) -> list[MetricValue]:
    n_images = len(names)
    image, kind = groups["image"], groups["kind"]
    blended = groups["n_truth"] > 1

    def value(name: str, above: NDArray[Any], below: NDArray[Any]) -> MetricValue:
        sums = [np.bincount(image, weights=part, minlength=n_images) for part in (above, below)]
        errors = settings.resample(ratio_statistic(names, *sums))
        return _value(name, errors.value[0], errors, 0, n=int(np.sum(below)))

    values = [
        value(f"blends_{name}", (kind == name) & blended, blended)
        for name in ("recognized", "unrecognized", "shredded", "mismatched", "missed")
    ]
    t, d = groups["n_truth"], groups["n_detection"]
    values += [
        value(f"truths_{name}", np.where(kind == name, t, 0), t)
        for name in GROUP_KINDS
        if name not in ("spurious", "ignored")
    ]
    values.append(value("detections_spurious", np.where(kind == "spurious", d, 0), d))
    values.append(value("blend_quality", np.where(blended, groups["quality"], 0.0), blended))
    return values


def _residual_values(
    table: Table,
    names: tuple[str, ...],
    classes: Sequence[str],
    settings: SummarySettings,
    pixel_scale: float | None,
) -> list[MetricValue]:
    scale, unit = (1.0, "pixel") if pixel_scale is None else (pixel_scale, "arcsec")
    score = settings.score_threshold
    values: list[MetricValue] = []
    for name in classes:
        rows = matched_rows(table, IS_STAR[name], min_score=score)
        for what, column in (("x", "offset_x"), ("y", "offset_y"), ("separation", "separation")):
            values += _robust_values(
                f"centroid_{what}", scale * table[column], table, rows, names, settings, unit, name
            )
        values += _robust_values("iou", table["iou"], table, rows, names, settings, "", name)
        for band in ("", *settings.bands):
            suffix = f"_{band}" if band else ""
            residual = flux_residual(table[f"flux_detected{suffix}"], table[f"flux_truth{suffix}"])
            shown = band or settings.band
            if band and band == settings.band:
                continue
            values += _robust_values("flux", residual, table, rows, names, settings, "", name, shown)
        if len(settings.bands) > 1:
            colors = color_residuals(table, settings.bands, IS_STAR[name], min_score=score)
            for color, residual in colors.items():
                values += _robust_values("color", residual, table, rows, names, settings, "mag", name, color)
    return values


def _robust_values(
    what: str,
    column: FloatArray,
    table: Table,
    rows: NDArray[np.bool_],
    names: tuple[str, ...],
    settings: SummarySettings,
    unit: str,
    object_class: str,
    band: str = "",
) -> list[MetricValue]:
    known = rows & np.isfinite(column)
    if not known.any():
        return []
    exact = robust_statistics(column[known])
    errors = settings.resample(median_statistic(names, table["image"][known], column[known]))
    return [
        _value(
            f"{what}_{name}",
            value,
            errors,
            k,
            object_class=object_class,
            band=band,
            unit=unit if name != "outliers" else "",
            n=exact.n,
        )
        for k, (name, value) in enumerate(
            (("median", exact.median), ("scatter", exact.scatter), ("outliers", exact.outliers.value))
        )
    ]


def _calibration_values(
    table: Table, names: tuple[str, ...], classes: Sequence[str], settings: SummarySettings
) -> list[MetricValue]:
    rows = detection_rows(table)
    true = matched_rows(table, same_class=len(classes) > 1)
    parts = [("score", table["score"][rows], true[rows], table["image"][rows])]
    if len(classes) > 1:
        rows = matched_rows(table, min_score=settings.score_threshold) & np.isfinite(table["p_star"])
        parts.append(("p_star", table["p_star"][rows], table["truth_is_star"][rows], table["image"][rows]))
    values = []
    for what, given, outcome, image in parts:
        usable = (given >= 0.0) & (given <= 1.0)
        if not usable.any() or not usable.all():
            # Not a probability, such as the number of sigmas of another detector.
            continue
        exact = reliability(given, outcome)
        errors = settings.resample(_reliability_statistic(names, image, given, outcome))
        for k, (name, value) in enumerate((("ece", exact.expected_error), ("brier", exact.brier))):
            values.append(_value(f"{what}_{name}", value, errors, k, n=exact.n))
    return values


def throughput_values(
    seconds: Sequence[float], megapixels: Sequence[float], names: tuple[str, ...], settings: SummarySettings
) -> list[MetricValue]:
    """Compute how fast the catalogues were made.

    Parameters
    ----------
    seconds : `~collections.abc.Sequence` [`float`]
        Time of each patch; NaN where it is not known.
    megapixels : `~collections.abc.Sequence` [`float`]
        Pixels of each patch, in millions.
    names : `tuple` [`str`]
        Names of the patches.
    settings : `SummarySettings`
        How.

    Returns
    -------
    values : `list` [`MetricValue`]
        ``seconds_per_patch`` and ``megapixels_per_second``, where known.
    """
    time, size = np.asarray(seconds, dtype=np.float64), np.asarray(megapixels, dtype=np.float64)
    timed = np.isfinite(time) & (time > 0)
    sized = timed & np.isfinite(size)
    values = []
    for name, unit, known, above, below in (
        ("seconds_per_patch", "s", timed, time, np.ones(len(time))),
        ("megapixels_per_second", "Mpixel/s", sized, size, time),
    ):
        if known.any():
            statistic = ratio_statistic(names, np.where(known, above, 0.0), np.where(known, below, 0.0))
            errors = settings.resample(statistic)
            values.append(_value(name, errors.value[0], errors, 0, unit=unit, n=int(known.sum())))
    return values


def median_statistic(
    names: tuple[str, ...], image: NDArray[np.integer[Any]], values: FloatArray, n_sigma: float = 3.0
) -> ImageStatistic:
    """Make median, scatter and outliers functions of how often images count.

    Parameters
    ----------
    names : `tuple` [`str`]
        Of the images.
    image : `numpy.ndarray`
        Image of each value, (value,).
    values : `numpy.ndarray`
        The values, finite, (value,).
    n_sigma : `float`
        An outlier is further from the median than this many scatters.

    Returns
    -------
    statistic : `ImageStatistic`
        Median, 1.4826 times the median absolute deviation, and the share of
        outliers, (B, 3). More than a thousand different values are put into
        as many groups of neighbours.
    """
    points, index = _grouped(values)
    counts = _counts(image, index, len(names), len(points))

    def robust(weights: FloatArray) -> FloatArray:
        result = np.full((len(weights), 3), np.nan)
        for start in range(0, len(weights), 200):
            part = slice(start, start + 200)
            numbers = weights[part] @ counts
            median = _weighted_median(np.broadcast_to(points, numbers.shape), numbers)
            distance = np.abs(points - median[:, None])
            order = np.argsort(distance, axis=1)
            ranked = np.take_along_axis(distance, order, axis=1)
            spread = 1.482602218505602 * _weighted_median(ranked, np.take_along_axis(numbers, order, axis=1))
            outside = np.where(distance > n_sigma * spread[:, None], numbers, 0.0).sum(axis=1)
            total = numbers.sum(axis=1)
            share = np.divide(outside, total, out=np.full(len(total), np.nan), where=total > 0)
            result[part] = np.stack([median, spread, share], axis=1)
        return result

    return ImageStatistic(names, robust)


def _area_statistic(
    names: tuple[str, ...], image: NDArray[Any], p_star: FloatArray, is_star: NDArray[np.bool_]
) -> ImageStatistic:
    points, index = _grouped(p_star)
    stars = _counts(image[is_star], index[is_star], len(names), len(points))
    galaxies = _counts(image[~is_star], index[~is_star], len(names), len(points))

    def area(weights: FloatArray) -> FloatArray:
        s, g = weights @ stars, weights @ galaxies
        # Galaxies below each star, and half of those beside it.
        below = np.cumsum(g, axis=1) - 0.5 * g
        total = s.sum(axis=1) * g.sum(axis=1)
        won = (s * below).sum(axis=1)
        return np.divide(won, total, out=np.full(len(total), np.nan), where=total > 0)[:, None]

    return ImageStatistic(names, area)


def _reliability_statistic(
    names: tuple[str, ...],
    image: NDArray[Any],
    given: FloatArray,
    outcome: NDArray[np.bool_],
    n_bins: int = 10,
) -> ImageStatistic:
    index = np.minimum((given * n_bins).astype(np.int64), n_bins - 1)
    n_images = len(names)
    number = _counts(image, index, n_images, n_bins)
    gap = _counts(image, index, n_images, n_bins, outcome - given)
    square = np.bincount(image, weights=(outcome - given) ** 2, minlength=n_images)

    def errors(weights: FloatArray) -> FloatArray:
        total = (weights @ number).sum(axis=1)
        both = np.stack([np.abs(weights @ gap).sum(axis=1), weights @ square], axis=1)
        return np.divide(both, total[:, None], out=np.full(both.shape, np.nan), where=total[:, None] > 0)

    return ImageStatistic(names, errors)


def _grouped(values: FloatArray) -> tuple[FloatArray, NDArray[np.int64]]:
    """Sort values into at most `_VALUES` groups: their middles, and the group of each."""
    points, index = np.unique(values, return_inverse=True)
    if len(points) > _VALUES:
        edges = np.unique(np.quantile(values, np.linspace(0.0, 1.0, _VALUES + 1)))
        index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        number = np.bincount(index, minlength=len(edges) - 1)
        total = np.bincount(index, weights=values, minlength=len(edges) - 1)
        middle = 0.5 * (edges[:-1] + edges[1:])
        points = np.divide(total, number, out=middle, where=number > 0)
    return points, index.reshape(-1)


def _counts(
    image: NDArray[Any], index: NDArray[Any], n_images: int, n_points: int, weights: Any = None
) -> FloatArray:
    code = np.asarray(image, dtype=np.int64) * n_points + index
    sums = np.bincount(code, weights=weights, minlength=n_images * n_points)
    return sums.reshape(n_images, n_points).astype(np.float64)


def _weighted_median(points: FloatArray, numbers: FloatArray) -> FloatArray:
    """Median of each row of sorted points, each as often as its number says."""
    total = np.cumsum(numbers, axis=1)
    half = 0.5 * total[:, -1:]
    low, high = np.argmax(total >= half, axis=1), np.argmax(total > half, axis=1)
    rows = np.arange(len(points))
    median = 0.5 * (points[rows, low] + points[rows, high])
    return np.where(half[:, 0] > 0, median, np.nan)


def _ratio_value(
    what: str,
    table: Table,
    hits: NDArray[np.bool_],
    total: NDArray[np.bool_],
    names: tuple[str, ...],
    settings: SummarySettings,
    **fields: Any,
) -> MetricValue:
    sums = [np.bincount(table["image"][rows], minlength=len(names)) for rows in (hits, total)]
    errors = settings.resample(ratio_statistic(names, *sums))
    return _value(what, errors.value[0], errors, 0, n=int(total.sum()), **fields)


def _value(name: str, value: float, errors: BootstrapResult, k: int, **fields: Any) -> MetricValue:
    if not np.isfinite(value):
        # Some resamplings may have a value where all patches together have none.
        return MetricValue(name=name, value=float("nan"), **fields)
    return MetricValue(
        name=name,
        value=float(value),
        error=float(errors.error[k]),
        low=float(errors.low[k]),
        high=float(errors.high[k]),
        **fields,
    )


def _with_mean(values: FloatArray) -> FloatArray:
    return np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)


def binned_tables(
    table: Table, classes: Sequence[str], settings: SummarySettings
) -> tuple[dict[str, dict[str, list[float]]], list[FractionPanel]]:
    """Compute the figures in bins.

    Parameters
    ----------
    table : `numpy.ndarray`
        The match table.
    classes : `~collections.abc.Sequence` [`str`]
        Names of the classes that are told apart.
    settings : `SummarySettings`
        How.

    Returns
    -------
    tables : `dict` [`str`, `dict` [`str`, `list` [`float`]]]
        Columns by name, by the name of the table.
    panels : `list` [`FractionPanel`]
        Completeness and purity, to be drawn.
    """
    tables: dict[str, dict[str, list[float]]] = {}

    def add(name: str, columns: Mapping[str, NDArray[Any]]) -> None:
        tables[name] = {key: np.asarray(column, dtype=float).tolist() for key, column in columns.items()}

    label = f"True {settings.band} magnitude (AB)" if settings.band else "True magnitude (AB)"
    short = {
        label: "mag",
        "True S/N": "snr",
        "Blendedness": "blendedness",
        "Nearest neighbour (arcsec)": "neighbor_distance",
        "Score": "score",
        "Measured magnitude (AB)": "mag_detected",
    }
    panels = []
    for panel in completeness_panels(table, magnitude_label=label):
        curves = {name: curve for name, curve in panel.curves.items() if name in classes}
        panels.append(
            FractionPanel(
                panel.x_label,
                panel.y_label,
                curves,
                panel.log_x,
                {name: limit for name, limit in panel.limits.items() if name in classes},
                panel.level,
            )
        )
        for name, curve in curves.items():
            add(f"{panel.y_label.lower()}/{short.get(panel.x_label, panel.x_label)}/{name}", curve.columns())
    score = settings.score_threshold
    mags = table["mag"][np.isfinite(table["mag"])]
    if len(classes) > 1 and len(mags):
        shares = binned_confusion(table, even_edges(mags, 0.5), min_score=score)
        add("class_completeness/mag/star", shares.star_completeness.columns())
        add("class_completeness/mag/galaxy", shares.galaxy_completeness.columns())
    for name in classes:
        column = table[settings.residual_column]
        if np.isfinite(column).any():
            edges = _residual_edges(column, settings)
            binned = binned_flux_residual(
                table, edges, settings.residual_column, IS_STAR[name], min_score=score
            )
            add(f"flux_residual/{settings.residual_column}/{name}", binned.columns())
    for name, curve in _reliabilities(table, classes, settings).items():
        add(f"calibration/{name}", {"mean_probability": curve.mean_probability, **curve.bins.columns()})
    return tables, panels


def _residual_edges(column: FloatArray, settings: SummarySettings) -> FloatArray:
    if settings.residual_column == "blendedness":
        return np.array([0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    return even_edges(column, 0.5)


def _reliabilities(table: Table, classes: Sequence[str], settings: SummarySettings) -> dict[str, Any]:
    curves: dict[str, Any] = {}
    scores = table["score"][detection_rows(table)]
    if len(scores) and ((scores >= 0.0) & (scores <= 1.0)).all():
        for name in classes:
            curves[f"score/{name}"] = score_reliability(table, IS_STAR[name], same_class=len(classes) > 1)
    known = matched_rows(table) & np.isfinite(table["p_star"])
    if len(classes) > 1 and known.any():
        curves["p_star"] = p_star_reliability(table, min_score=settings.score_threshold)
    return curves


def evaluation_plots(
    table: Table,
    blends: BlendSummary,
    results: Mapping[tuple[str, str], AveragePrecision],
    panels: Sequence[FractionPanel],
    classes: Sequence[str],
    settings: SummarySettings,
) -> dict[str, Figure]:
    """Draw the figures of an evaluation.

    Parameters
    ----------
    table : `numpy.ndarray`
        The match table.
    blends : `BlendSummary`
        How blends ended.
    results : `~collections.abc.Mapping`
        Average precisions by definition and class.
    panels : `~collections.abc.Sequence` [`FractionPanel`]
        Completeness and purity, from `binned_tables`.
    classes : `~collections.abc.Sequence` [`str`]
        Names of the classes that are told apart.
    settings : `SummarySettings`
        How.

    Returns
    -------
    plots : `dict` [`str`, `matplotlib.figure.Figure`]
        ``precisionRecall``, ``completeness``, ``confusion``, ``roc``,
        ``fluxResidual``, ``calibration`` and ``blends``.
    """
    definition = "pooled" if "pooled" in settings.definitions else settings.definitions[0]
    curves = precision_recall_curves({name: results[definition, name] for name in classes})
    score = settings.score_threshold
    mags = table["mag"][matched_rows(table) & np.isfinite(table["mag"])]
    edges = even_edges(mags, 0.5)
    label = f"True {settings.band} magnitude (AB)" if settings.band else "True magnitude (AB)"
    rocs = {"all": star_roc(table, min_score=score)}
    if len(mags) >= 20:
        thirds = np.unique(np.quantile(mags, [0.0, 1 / 3, 2 / 3, 1.0]))
        for low, high, curve in zip(thirds[:-1], thirds[1:], binned_roc(table, thirds, min_score=score)):
            rocs[f"{low:.1f} to {high:.1f} mag"] = curve
    residuals = []
    column = np.asarray(table[settings.residual_column], dtype=float)
    residual = flux_residual(table["flux_detected"], table["flux_truth"])
    x_edges = _residual_edges(column, settings)
    for name in classes:
        if name == "all" and len(classes) > 1:
            continue
        rows = matched_rows(table, IS_STAR[name], min_score=score)
        binned = binned_flux_residual(
            table, x_edges, settings.residual_column, IS_STAR[name], min_score=score
        )
        residuals.append(ResidualPanel(name, column[rows], residual[rows], binned))
    reliabilities = _reliabilities(table, classes, settings)
    shown = {
        name.removeprefix("score/"): curve
        for name, curve in reliabilities.items()
        if name.startswith("score/")
    }
    x_label = {"blendedness": "Blendedness", "mag": label, "snr": "True S/N"}
    return {
        "precisionRecall": plot_precision_recall(curves),
        "completeness": plot_fractions(panels),
        "confusion": plot_confusion(
            confusion(table, min_score=score), binned_confusion(table, edges, min_score=score), x_label=label
        ),
        "roc": plot_roc(rocs),
        "fluxResidual": plot_residuals(
            residuals, x_label=x_label.get(settings.residual_column, settings.residual_column)
        ),
        "calibration": plot_calibration(
            shown,
            y_label="Share of detections that are true",
        ),
        "blends": plot_blends({"": blends}),
    }
