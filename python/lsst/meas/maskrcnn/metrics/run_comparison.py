# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Differences between evaluations of the same patches, and whether they mean anything.

The figures are computed again from the match tables and the outcomes, on the
patches that all runs have, so that all runs are resampled in the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..images.classes import IS_STAR
from .average_precision import Definition, NoTruth, ap_statistic
from .bootstrap import ImageStatistic, bootstrap, combine, paired_bootstrap, ratio_statistic
from .evaluation_metrics import EvaluationMetrics, outcomes_from_table
from .match_table import detection_rows, matched_rows, truth_rows
from .residuals import flux_residual
from .summary import median_statistic

__all__ = [
    "ComparedFigure",
    "EvaluatedRun",
    "Figure",
    "RunComparison",
    "RunComparisonError",
    "common_patches",
    "compare_runs",
    "run_setting",
    "settings_that_differ",
]

FloatArray = NDArray[np.float64]

_DEFINITIONS: tuple[Definition, ...] = ("perImage", "pooled")
_SHOWN_IOU = (0.5, 0.75)
# What makes figures of two evaluations mean different things.
_SETTINGS = (
    "band",
    "ignoreFlags",
    "matching",
    "matchIou",
    "scoreThreshold",
    "ap.minScore",
    "ap.noTruth",
)


class RunComparisonError(ValueError):
    """Runs cannot be compared; the message says why."""


@dataclass(frozen=True, eq=False)
class EvaluatedRun:
    """An evaluation with what is needed to resample it.

    Parameters
    ----------
    name : `str`
        What the run is called.
    metrics : `EvaluationMetrics`
        Its figures.
    matches : `numpy.ndarray`
        Its match table.
    outcomes : `numpy.ndarray`
        Its outcomes at each threshold, from
        `evaluation_metrics.outcomes_table`.
    """

    name: str
    metrics: EvaluationMetrics
    matches: NDArray[np.void]
    outcomes: NDArray[np.void]


@dataclass(frozen=True)
class Figure:
    """What a figure is.

    Parameters
    ----------
    name : `str`
        Name, as in `EvaluationMetrics`.
    object_class : `str`
        ``all``, ``star`` or ``galaxy``.
    definition : `str`
        Definition of an average precision, else empty.
    iou : `float` or `None`
        Smallest IoU of a match; `None` for the mean over thresholds, or where
        there is none.
    unit : `str`
        Unit; empty for shares.
    """

    name: str
    object_class: str = "all"
    definition: str = ""
    iou: float | None = None
    unit: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, float | None, str]:
        """The key of this figure in `EvaluationMetrics` (`tuple`)."""
        return (self.name, self.object_class, self.definition, "all", self.iou, "")


@dataclass(frozen=True, eq=False)
class ComparedFigure:
    """A figure of several runs.

    Parameters
    ----------
    figure : `Figure`
        What it is.
    value, error : `numpy.ndarray`
        Of each run, on the common patches, float64, (run,).
    difference, difference_error : `numpy.ndarray`
        Each run minus the reference, float64, (run,); NaN for the reference
        itself.
    p_value : `numpy.ndarray`
        How often resampling alone makes a difference as large, float64,
        (run,); NaN for the reference itself.
    """

    figure: Figure
    value: FloatArray
    error: FloatArray
    difference: FloatArray
    difference_error: FloatArray
    p_value: FloatArray


@dataclass(frozen=True, eq=False)
class RunComparison:
    """Figures of several runs and their differences.

    Parameters
    ----------
    names : `tuple` [`str`]
        Names of the runs.
    reference : `int`
        Which of them is the reference.
    patches : `tuple` [`str`]
        Names of the patches that all runs have.
    figures : `list` [`ComparedFigure`]
        The figures that all runs have.
    n_samples : `int`
        Number of resamplings.
    """

    names: tuple[str, ...]
    reference: int
    patches: tuple[str, ...]
    figures: list[ComparedFigure]
    n_samples: int


def run_setting(metrics: EvaluationMetrics, name: str, default: Any = None) -> Any:
    """Look up how an evaluation was configured.

    Parameters
    ----------
    metrics : `EvaluationMetrics`
        Its figures.
    name : `str`
        Name of a field of its configuration, with dots, such as
        ``ap.minScore``.
    default : `object`
        What to return if it was not recorded.

    Returns
    -------
    value : `object`
        The setting.
    """
    value: Any = metrics.config
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def common_patches(runs: Sequence[EvaluatedRun]) -> tuple[str, ...]:
    """Find the patches that all runs have.

    Parameters
    ----------
    runs : `~collections.abc.Sequence` [`EvaluatedRun`]
        The runs, at least one.

    Returns
    -------
    patches : `tuple` [`str`]
        Names of the patches, in the order of the first run.

    Raises
    ------
    RunComparisonError
        Raised if there is none, or the runs are of different sky maps.
    """
    skymaps = {run.metrics.skymap for run in runs}
    if len(skymaps) > 1:
        raise RunComparisonError(
            "The runs are of different sky maps, "
            + ", ".join(f"{run.metrics.skymap!r} of {run.name}" for run in runs)
            + "; only runs on the same patches can be compared."
        )
    shared = set.intersection(*(set(run.metrics.names) for run in runs))
    if not shared:
        have = "; ".join(f"{run.name} has {_some(run.metrics.names)}" for run in runs)
        raise RunComparisonError(
            f"The runs have no patch in common (tract,patch: {have}); evaluate them on the same patches."
        )
    return tuple(name for name in runs[0].metrics.names if name in shared)


def settings_that_differ(runs: Sequence[EvaluatedRun], patches: Sequence[str]) -> list[str]:
    """Say what makes the figures of runs mean different things.

    Parameters
    ----------
    runs : `~collections.abc.Sequence` [`EvaluatedRun`]
        The runs.
    patches : `~collections.abc.Sequence` [`str`]
        The patches that they are compared on.

    Returns
    -------
    differences : `list` [`str`]
        A sentence for each setting that is not the same in all runs, and for
        truths that are not.
    """
    sentences = []
    for name in _SETTINGS:
        values = [run_setting(run.metrics, name) for run in runs]
        if any(value != values[0] for value in values[1:]):
            listed = ", ".join(f"{value} in {run.name}" for run, value in zip(runs, values))
            sentences.append(f"The runs were evaluated with different {name}: {listed}.")
    # One of them may not tell classes apart.
    classes = sorted(set.intersection(*(set(run.metrics.n_truth) for run in runs)))
    counts = [_truths(run.metrics, patches, classes) for run in runs]
    for run, count in zip(runs[1:], counts[1:]):
        changed = sum(a != b for a, b in zip(count, counts[0]))
        if changed:
            sentences.append(
                f"{run.name} and {runs[0].name} count different truths in {changed} of {len(patches)} "
                "patches: "
                "their truth catalogues, or the rules of what counts, are not the same."
            )
    return sentences


def compare_runs(
    runs: Sequence[EvaluatedRun],
    reference: int = 0,
    *,
    n_samples: int = 1000,
    seed: int = 1,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> RunComparison:
    """Compare runs on the patches that all of them have.

    Parameters
    ----------
    runs : `~collections.abc.Sequence` [`EvaluatedRun`]
        The runs, at least one.
    reference : `int`
        The run that the others are compared with.
    n_samples : `int`
        Resamplings of the bootstrap.
    seed : `int`
        Source of chance.
    progress : `~collections.abc.Callable`
        Is told the name of each step, how many are done, and how many there
        are.

    Returns
    -------
    comparison : `RunComparison`
        The figures.

    Raises
    ------
    RunComparisonError
        Raised if the runs have no patch or no IoU threshold in common.
    """
    patches = common_patches(runs)
    thresholds = runs[reference].metrics.iou_thresholds
    for run in runs:
        if not np.array_equal(run.metrics.iou_thresholds, thresholds):
            raise RunComparisonError(
                f"{run.name} was evaluated at other IoU thresholds than {runs[reference].name} "
                f"({run.metrics.iou_thresholds} and {thresholds}); evaluate both in the same way."
            )
    statistics = [_statistics(run, patches) for run in runs]
    steps = [step for step in statistics[reference] if all(step in of_run for of_run in statistics)]
    figures: list[ComparedFigure] = []
    for done, step in enumerate(steps):
        progress(step, done, len(steps))
        shown, base = statistics[reference][step]
        shape = (len(runs), len(shown))
        value, error, difference, spread, chance = (np.full(shape, np.nan) for _ in range(5))
        for i, of_run in enumerate(statistics):
            statistic = of_run[step][1]
            own = bootstrap(statistic, np.random.default_rng(seed), n_samples)
            value[i], error[i] = own.value, own.error
            if i != reference:
                pair = paired_bootstrap(base, statistic, np.random.default_rng(seed), n_samples)
                difference[i], spread[i] = pair.difference.value, pair.difference.error
                chance[i] = pair.p_value
        figures += [
            ComparedFigure(figure, value[:, k], error[:, k], difference[:, k], spread[:, k], chance[:, k])
            for k, figure in enumerate(shown)
        ]
    return RunComparison(tuple(run.name for run in runs), reference, patches, figures, n_samples)


def _statistics(
    run: EvaluatedRun, patches: tuple[str, ...]
) -> dict[str, tuple[list[Figure], ImageStatistic]]:
    """Figures and their statistic, by the name of the step that computes them."""
    classes = [name for name in IS_STAR if name in run.metrics.n_truth]
    result: dict[str, tuple[list[Figure], ImageStatistic]] = {}
    for definition in _DEFINITIONS:
        for name in classes:
            outcomes = outcomes_from_table(run.outcomes, run.metrics, name)
            statistic = ap_statistic(
                outcomes,
                definition,
                float(run_setting(run.metrics, "ap.minScore", 0.5)),
                cast(NoTruth, run_setting(run.metrics, "ap.noTruth", "skip")),
            )
            near = [np.flatnonzero(np.abs(outcomes.thresholds - iou) < 1e-3) for iou in _SHOWN_IOU]
            chosen = [int(index[0]) for index in near if len(index)]
            figures = [Figure("ap", name, definition, float(outcomes.thresholds[k])) for k in chosen]
            figures.append(Figure("ap", name, definition))
            result[f"{definition} AP of class {name}"] = (figures, _chosen(statistic, chosen))
    table, names = run.matches, run.metrics.names
    score = run_setting(run.metrics, "scoreThreshold")
    matched = matched_rows(table)
    for name in classes:
        star = IS_STAR[name]
        truths, found = truth_rows(table, star), matched_rows(table, star, min_score=score)
        detections = detection_rows(table, star, min_score=score)
        for what, above, below in (
            ("completeness", found, truths),
            ("purity", detections & matched, detections),
        ):
            result[f"{what} of class {name}"] = (
                [Figure(what, name)],
                _share(table, names, above, below),
            )
    both = matched_rows(table, min_score=score)
    if len(classes) > 1:
        right = both & (np.asarray(table["truth_is_star"]) == np.asarray(table["detected_is_star"]))
        result["classes"] = ([Figure("class_accuracy")], _share(table, names, right, both))
    truths = truth_rows(table)
    for what in ("shredded", "unrecognized", "missed"):
        ended = truths & (np.asarray(table["outcome"]).astype(str) == what)
        result[f"{what} truths"] = ([Figure(f"lost_{what}")], _share(table, names, ended, truths))
    residual = flux_residual(table["flux_detected"], table["flux_truth"])
    for what, column, unit in (
        ("flux", residual, ""),
        ("centroid_separation", np.asarray(table["separation_arcsec"], dtype=float), "arcsec"),
        ("iou", np.asarray(table["iou"], dtype=float), ""),
    ):
        rows = both & np.isfinite(column)
        if rows.any():
            spread = median_statistic(names, np.asarray(table["image"])[rows], column[rows])
            result[what] = (
                [Figure(f"{what}_median", unit=unit), Figure(f"{what}_scatter", unit=unit)],
                combine(lambda values: values[:, :2], spread),
            )
    return {step: (figures, _remembering(_on(one, patches))) for step, (figures, one) in result.items()}


def _remembering(statistic: ImageStatistic) -> ImageStatistic:
    """Compute the values of a set of weights once: for a run's own error and for its differences."""
    known: dict[bytes, FloatArray] = {}

    def function(weights: FloatArray) -> FloatArray:
        key = hashlib.sha256(np.ascontiguousarray(weights).tobytes()).digest()
        if key not in known:
            known[key] = statistic.function(weights)
        return known[key]

    return ImageStatistic(statistic.names, function)


def _chosen(statistic: ImageStatistic, chosen: list[int]) -> ImageStatistic:
    """Some of the values, and the mean of all."""

    def function(weights: FloatArray) -> FloatArray:
        values = statistic.function(weights)
        return np.concatenate([values[:, chosen], values.mean(axis=1, keepdims=True)], axis=1)

    return ImageStatistic(statistic.names, function)


def _share(
    table: NDArray[np.void], names: tuple[str, ...], above: NDArray[np.bool_], below: NDArray[np.bool_]
) -> ImageStatistic:
    image = np.asarray(table["image"])
    return ratio_statistic(
        names, *(np.bincount(image[rows], minlength=len(names)) for rows in (above, below))
    )


def _on(statistic: ImageStatistic, patches: tuple[str, ...]) -> ImageStatistic:
    """Count only some of the images, in a given order."""
    if statistic.names == patches:
        return statistic
    places = [statistic.names.index(name) for name in patches]

    def function(weights: FloatArray) -> FloatArray:
        whole = np.zeros((len(weights), len(statistic.names)))
        whole[:, places] = weights
        return statistic.function(whole)

    return ImageStatistic(patches, function)


def _truths(
    metrics: EvaluationMetrics, patches: Sequence[str], classes: Sequence[str]
) -> list[tuple[int, ...]]:
    places = {name: i for i, name in enumerate(metrics.names)}
    return [tuple(metrics.n_truth[name][places[patch]] for name in classes) for patch in patches]


def _some(names: Sequence[str]) -> str:
    listed = " ".join(names[:3])
    return listed + (f" and {len(names) - 3} more" if len(names) > 3 else "")
