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

from ..images.classes import IS_STAR
from .average_precision import (
    MIN_SCORE,
    AveragePrecision,
    Definition,
    Outcomes,
    ap_statistic,
    collect_outcomes,
    compute_ap,
)
from .binned import even_edges, robust_statistics
from .blends import BLEND_KINDS, GROUP_KINDS
from .bootstrap import BootstrapResult, ImageStatistic, bootstrap, combine, ratio_statistic
from .calibration import reliability
from .classification import blend_cases, roc_curve
from .completeness import binned_completeness, completeness_limit, last_crossing
from .evaluation_metrics import CLASS_LABELS, MetricValue
from .match_table import detection_rows, matched_rows, truth_rows
from .matching import IOU_THRESHOLDS, AreaRange, ImagePairs
from .resampled import count_by_image, median_statistic, reliability_statistic, roc_area_statistic
from .residuals import color_residuals, flux_residual

__all__ = [
    "FigureGroup",
    "MatchedSources",
    "ap_figures",
    "blend_figures",
    "summarize_precision",
    "throughput_figures",
]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


_LEVELS = (0.5, 0.9)
"""Completeness at the limiting magnitudes."""
_BRIGHT = 20.0
"""S/N from which on fluxes are also judged alone: those of fainter sources are biased by their selection."""


@dataclass(frozen=True, eq=False)
class FigureGroup:
    """Some figures, and the same as a function of how often each patch counts.

    Parameters
    ----------
    step : `str`
        What is computed, for the log.
    figures : `tuple` [`MetricValue`]
        The figures of all patches, without errors.
    statistic : `ImageStatistic`
        The same figures in the same order.
    """

    step: str
    figures: tuple[MetricValue, ...]
    statistic: ImageStatistic

    def choose(self, indices: Sequence[int]) -> FigureGroup:
        """Take some of the figures.

        Parameters
        ----------
        indices : `~collections.abc.Sequence` [`int`]
            Which.

        Returns
        -------
        group : `FigureGroup`
            Those.
        """
        columns = list(indices)
        return FigureGroup(
            self.step,
            tuple(self.figures[k] for k in columns),
            combine(lambda values: values[:, columns], self.statistic),
        )

    def resample(self, n_samples: int, seed: int) -> BootstrapResult:
        """Draw patches, the same ones for each group of figures.

        Parameters
        ----------
        n_samples : `int`
            Resamplings of the bootstrap.
        seed : `int`
            Random seed.

        Returns
        -------
        result : `BootstrapResult`
            The figures and their errors.
        """
        return bootstrap(self.statistic, np.random.default_rng(seed), n_samples)

    def with_errors(self, n_samples: int, seed: int) -> list[MetricValue]:
        """Give the figures their errors.

        Parameters
        ----------
        n_samples, seed : `int`
            As for `resample`.

        Returns
        -------
        values : `list` [`MetricValue`]
            The figures. One that all patches together do not have gets no
            error either, though some resamplings may have a value.
        """
        result = self.resample(n_samples, seed)
        limits = zip(result.error.tolist(), result.low.tolist(), result.high.tolist())
        return [
            one.model_copy(update={"error": error, "low": low, "high": high})
            if np.isfinite(one.value)
            else one
            for one, (error, low, high) in zip(self.figures, limits)
        ]


def ap_figures(outcomes: Outcomes, result: AveragePrecision, object_class: str) -> FigureGroup:
    """Collect the average precision at each threshold and its mean over them.

    Parameters
    ----------
    outcomes : `Outcomes`
        What became of the detections.
    result : `AveragePrecision`
        That of these outcomes.
    object_class : `str`
        ``all``, ``star`` or ``galaxy``.

    Returns
    -------
    group : `FigureGroup`
        ``ap``; the mean is the last one and has no ``iou``.
    """
    figures = tuple(
        MetricValue(
            name="ap",
            value=float(value),
            object_class=object_class,
            definition=result.definition,
            area="all" if result.area is None else result.area.name,
            iou=iou,
            n=result.n_truth,
        )
        for iou, value in zip([*result.thresholds.tolist(), None], [*result.ap, result.mean])
    )
    statistic = combine(_with_mean, ap_statistic(outcomes, result.definition))
    return FigureGroup(f"{result.definition} AP of class {object_class}", figures, statistic)


@dataclass(frozen=True, eq=False)
class PrecisionSummary:
    """Average precision in all definitions and classes.

    Parameters
    ----------
    groups : `list` [`FigureGroup`]
        The figures ``ap`` and ``recall``.
    results : `dict` [`tuple`, `AveragePrecision`]
        By definition and class; all areas.
    outcomes : `dict` [`str`, `Outcomes`]
        By class; all areas.
    """

    groups: list[FigureGroup]
    results: dict[tuple[str, str], AveragePrecision]
    outcomes: dict[str, Outcomes]


def summarize_precision(
    images: Sequence[ImagePairs],
    classes: Iterable[str],
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    areas: Sequence[AreaRange] = (),
) -> PrecisionSummary:
    """Compute the average precision in all definitions.

    Parameters
    ----------
    images : `~collections.abc.Sequence` [`ImagePairs`]
        The patches.
    classes : `~collections.abc.Iterable` [`str`]
        Names of the classes, among `CLASS_LABELS`.
    thresholds : `~collections.abc.Sequence` [`float`]
        Smallest IoU of a match, ascending.
    areas : `~collections.abc.Sequence` [`AreaRange`]
        Ranges of areas, for the definition ``coco``.

    Returns
    -------
    summary : `PrecisionSummary`
        The figures.
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
    hits = np.stack(
        [np.bincount(outcomes.image[kept & hit], minlength=len(outcomes)) for hit in outcomes.hit], axis=1
    )
    truths = np.broadcast_to(outcomes.n_truth[:, None], hits.shape)
    statistic = combine(_with_mean, ratio_statistic(outcomes.names, hits, truths))
    figures = tuple(
        MetricValue(
            name="recall",
            value=value,
            object_class=object_class,
            definition=result.definition,
            iou=iou,
            n=result.n_truth,
        )
        for iou, value in zip([*result.thresholds.tolist(), None], statistic.value.tolist())
    )
    return FigureGroup(f"{result.definition} recall of class {object_class}", figures, statistic)


def blend_figures(groups: NDArray[np.void], names: tuple[str, ...]) -> Iterator[FigureGroup]:
    """Collect how groups of truths and detections ended.

    Parameters
    ----------
    groups : `numpy.ndarray`
        Groups of all patches, structured array of `blends.BLEND_DTYPE`.
    names : `tuple` [`str`]
        Names of the patches.

    Yields
    ------
    group : `FigureGroup`
        ``blends_<kind>`` of all blends, ``truths_<kind>`` of all truths,
        ``detections_spurious`` of all detections, ``blend_quality``.
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
    """Collect how fast the catalogues were made.

    Parameters
    ----------
    seconds : `~collections.abc.Sequence` [`float`]
        Time of each patch; NaN where it is not known.
    megapixels : `~collections.abc.Sequence` [`float`]
        Pixels of each patch, in millions.
    names : `tuple` [`str`]
        Names of the patches.

    Yields
    ------
    group : `FigureGroup`
        ``seconds_per_patch`` and ``megapixels_per_second``, where known.
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


@dataclass(frozen=True, eq=False)
class MatchedSources:
    """What the match table of some patches says.

    Parameters
    ----------
    table : `numpy.ndarray`
        Match table; ``image`` is the index into ``names``.
    names : `tuple` [`str`]
        Names of the patches.
    classes : `tuple` [`str`]
        Names of the classes that are separated, ``all`` first.
    score_threshold : `float`, optional
        Lowest score of the detections that figures are of, but for
        calibration.
    band : `str`
        Reference band.
    bands : `tuple` [`str`]
        Bands of the match table, from blue to red.
    """

    table: NDArray[np.void]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    score_threshold: float | None = None
    band: str = ""
    bands: tuple[str, ...] = ()

    def figures(self) -> Iterator[FigureGroup]:
        """Compute the figures.

        Yields
        ------
        group : `FigureGroup`
            Some of them; see the documentation for their names.
        """
        for name in self.classes:
            yield from self._shares(name)
        for name in self.classes:
            yield from self._limit(name)
        if len(self.classes) > 1:
            yield from self._class_figures()
        yield from self._losses()
        yield from self._blend_figures()
        for name in self.classes:
            yield from self._residuals(name)
        yield from self._calibration()

    def _shares(self, name: str) -> Iterator[FigureGroup]:
        table, star, score = self.table, IS_STAR[name], self.score_threshold
        truths, found = truth_rows(table, star), matched_rows(table, star, min_score=score)
        detections = detection_rows(table, star, min_score=score)
        rows = {"completeness": (found, truths), "purity": (detections & matched_rows(table), detections)}
        if len(self.classes) > 1:
            same = matched_rows(table, same_class=True)
            rows["completeness_same_class"] = (found & same, truths)
            rows["purity_same_class"] = (detections & same, detections)
        for what, (hits, total) in rows.items():
            yield self._share(what, hits, total, object_class=name)

    def _limit(self, name: str) -> Iterator[FigureGroup]:
        star, score = IS_STAR[name], self.score_threshold
        rows = truth_rows(self.table, star) & np.isfinite(self.table["mag"])
        if not rows.any():
            return
        mags, image = self.table["mag"][rows], self.table["image"][rows]
        found = matched_rows(self.table, star, min_score=score)[rows]
        edges = even_edges(mags, 0.5)
        bins = np.clip(np.searchsorted(edges, mags, side="right") - 1, 0, len(edges) - 2)
        total = count_by_image(image, bins, len(self.names), len(edges) - 1)
        hits = count_by_image(image[found], bins[found], len(self.names), len(edges) - 1)
        binned = binned_completeness(self.table, "mag", edges, star, min_score=score)

        def limits(weights: FloatArray) -> FloatArray:
            above, below = weights @ hits, weights @ total
            share = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
            pairs = list(zip(share, below))
            return np.array(
                [[last_crossing(binned.center, *pair, level) for level in _LEVELS] for pair in pairs]
            )

        figures = tuple(
            MetricValue(
                name=f"completeness_limit_{100 * level:.0f}",
                value=completeness_limit(binned, level).value,
                object_class=name,
                band=self.band,
                unit="mag",
                n=int(rows.sum()),
            )
            for level in _LEVELS
        )
        yield FigureGroup("completeness limits", figures, ImageStatistic(self.names, limits))

    def _class_figures(self) -> Iterator[FigureGroup]:
        table = self.table
        rows = matched_rows(table, min_score=self.score_threshold)
        truth, given = table["truth_is_star"], table["detected_is_star"]
        right = rows & (truth == given)
        yield self._share("class_accuracy", right, rows)
        for name, star in (("star", True), ("galaxy", False)):
            for what, column in (("class_completeness", truth), ("class_purity", given)):
                total = rows & (column == star)
                yield self._share(what, right & total, total, object_class=name)
        known = rows & np.isfinite(table["p_star"])
        if known.any():
            yield self._roc_area("roc_area", known, table["p_star"], truth)

    def _blend_figures(self) -> Iterator[FigureGroup]:
        table = self.table
        rows, clean = blend_cases(table, min_score=self.score_threshold)
        if rows.any():
            blended = table["blended"] == 1
            yield self._share("clean_purity", clean & ~blended, clean)
            yield self._share("clean_share", rows & ~blended, rows)
            yield self._roc_area("blend_roc_area", rows, table["p_blend"], blended)

    def _roc_area(self, name: str, rows: BoolArray, given: FloatArray, true: BoolArray) -> FigureGroup:
        given, true = given[rows], true[rows]
        figure = MetricValue(name=name, value=roc_curve(given, true).area, n=int(rows.sum()))
        statistic = roc_area_statistic(self.names, self.table["image"][rows], given, true)
        return FigureGroup("area under the ROC curve", (figure,), statistic)

    def _losses(self) -> Iterator[FigureGroup]:
        truths = truth_rows(self.table)
        outcome = np.asarray(self.table["outcome"]).astype(str)
        for what in ("shredded", "unrecognized", "missed"):
            yield self._share(f"lost_{what}", truths & (outcome == what), truths)

    def _residuals(self, name: str) -> Iterator[FigureGroup]:
        table, star, score = self.table, IS_STAR[name], self.score_threshold
        in_arcsec = bool(np.isfinite(table["separation_arcsec"]).any())
        separation = table["separation_arcsec" if in_arcsec else "separation"]
        unit = "arcsec" if in_arcsec else "pixel"
        scale = np.divide(
            separation, table["separation"], out=np.ones(len(table)), where=table["separation"] > 0
        )
        columns: list[tuple[str, FloatArray, str, str]] = [
            ("centroid_x", scale * table["offset_x"], unit, ""),
            ("centroid_y", scale * table["offset_y"], unit, ""),
            ("centroid_separation", separation, unit, ""),
            ("iou", table["iou"], "", ""),
        ]
        suffixes = {self.band: "", **{band: f"_{band}" for band in self.bands if band != self.band}}
        for what, kind in (("flux", "flux_detected"), ("model_flux", "flux_model")):
            for band, suffix in suffixes.items():
                residual = flux_residual(table[f"{kind}{suffix}"], table[f"flux_truth{suffix}"])
                columns.append((what, residual, "", band))
                bright = np.where(table["snr"] >= _BRIGHT, residual, np.nan)
                columns.append((f"bright_{what}", bright, "", band))
        if len(self.bands) > 1:
            colors = color_residuals(table, self.bands, star, min_score=score)
            columns += [("color", residual, "mag", color) for color, residual in colors.items()]
        rows = matched_rows(table, star, min_score=score)
        for what, column, of_unit, band in columns:
            known = rows & np.isfinite(column)
            if not known.any():
                continue
            exact = robust_statistics(column[known])
            figures = tuple(
                MetricValue(
                    name=f"{what}_{part}",
                    value=value,
                    object_class=name,
                    band=band,
                    unit=of_unit if part != "outliers" else "",
                    n=exact.n,
                )
                for part, value in (
                    ("median", exact.median),
                    ("scatter", exact.scatter),
                    ("outliers", exact.outliers.value),
                )
            )
            statistic = median_statistic(self.names, table["image"][known], column[known])
            yield FigureGroup(f"residuals of class {name}", figures, statistic)

    def _calibration(self) -> Iterator[FigureGroup]:
        table = self.table
        rows = detection_rows(table)
        true = matched_rows(table, same_class=len(self.classes) > 1)
        parts = [("score", table["score"], true, rows)]
        if len(self.classes) > 1:
            rows = matched_rows(table, min_score=self.score_threshold) & np.isfinite(table["p_star"])
            parts.append(("p_star", table["p_star"], table["truth_is_star"], rows))
        rows, _ = blend_cases(table, min_score=self.score_threshold)
        parts.append(("p_blend", table["p_blend"], table["blended"] == 1, rows))
        for what, column, outcome, rows in parts:
            given, outcome = column[rows], outcome[rows]
            # The score of another detector need not be a probability.
            if not len(given) or not ((given >= 0.0) & (given <= 1.0)).all():
                continue
            exact = reliability(given, outcome)
            figures = tuple(
                MetricValue(name=f"{what}_{part}", value=value, n=exact.n)
                for part, value in (("ece", exact.expected_error), ("brier", exact.brier))
            )
            statistic = reliability_statistic(self.names, table["image"][rows], given, outcome)
            yield FigureGroup("calibration", figures, statistic)

    def _share(self, name: str, hits: BoolArray, total: BoolArray, object_class: str = "all") -> FigureGroup:
        image = self.table["image"]
        sums = [np.bincount(image[rows], minlength=len(self.names)) for rows in (hits, total)]
        return _ratio_group(name, self.names, *sums, object_class=object_class, n=int(total.sum()))


def _ratio_group(
    name: str, names: tuple[str, ...], above: NDArray[Any], below: NDArray[Any], **fields: Any
) -> FigureGroup:
    """One figure that is a ratio of sums over patches."""
    statistic = ratio_statistic(names, above, below)
    return FigureGroup(
        name.replace("_", " "),
        (MetricValue(name=name, value=float(statistic.value[0]), **fields),),
        statistic,
    )


def _with_mean(values: FloatArray) -> FloatArray:
    return np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)
