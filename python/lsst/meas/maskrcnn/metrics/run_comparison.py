# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Differences between evaluations of the same patches, and whether they mean anything.

The figures are computed again from the match tables and the outcomes, on the
patches that all runs have, so that all runs are resampled in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..images.classes import IS_STAR
from .arrays import FloatArray
from .average_precision import Definition, compute_ap
from .bootstrap import ImageStatistic, paired_result
from .evaluation_metrics import EvaluationMetrics, MetricValue, outcomes_from_table
from .match_table import MatchedSources
from .summary import FigureGroup, ap_figures, source_figures

_DEFINITIONS: tuple[Definition, ...] = ("perImage", "pooled")
_SHOWN_IOU = (0.5, 0.75, None)
# Figures beside average precision that are compared: of each class, and of all classes as one.
_COMPARED = ("completeness", "purity")
_COMPARED_OF_ALL = (
    *("class_accuracy", "lost_shredded", "lost_unrecognized", "lost_missed"),
    *(f"{what}_{part}" for what in ("flux", "centroid_separation", "iou") for part in ("median", "scatter")),
)
_SEED = 1
"""Random seed of the resamplings."""
# What makes figures of two evaluations mean different things.
_SETTINGS = ("band", "ignore_flags", "min_snr", "min_peak_snr", "match_iou", "score_threshold")


class RunComparisonError(ValueError):
    """Runs cannot be compared; the message says why."""


@dataclass(frozen=True, eq=False)
class EvaluatedRun:
    """An evaluation with what is needed to resample it."""

    name: str
    metrics: EvaluationMetrics
    matches: NDArray[np.void]  # the match table
    outcomes: NDArray[np.void]  # at each threshold, of `evaluation_metrics.outcomes_table`

    @property
    def sources(self) -> MatchedSources:
        """The match table with the classes, score threshold and band of the evaluation."""
        classes = tuple(name for name in IS_STAR if name in self.metrics.n_truth) or ("all",)
        score, band = (run_setting(self.metrics, name) for name in ("score_threshold", "band"))
        score = None if score is None else float(score)
        return MatchedSources(self.matches, self.metrics.names, classes, score, str(band or ""))


@dataclass(frozen=True, eq=False)
class ComparedFigure:
    """A figure of several runs."""

    figure: MetricValue  # what it is; the value is that of the reference
    # Of each run, on the common patches, (run,).
    value: FloatArray
    error: FloatArray
    # Each run minus the reference, (run,); NaN for the reference itself.
    difference: FloatArray
    difference_error: FloatArray
    # How often resampling alone makes a difference as large, (run,); NaN for the reference itself.
    p_value: FloatArray


@dataclass(frozen=True, eq=False)
class RunComparison:
    """Figures of several runs and their differences."""

    names: tuple[str, ...]  # of the runs
    reference: int  # index of the run that the others are compared with
    patches: tuple[str, ...]  # those that all runs have
    figures: list[ComparedFigure]  # those that all runs have
    n_samples: int  # resamplings


def run_setting(metrics: EvaluationMetrics, name: str, default: Any = None) -> Any:
    """Look up how an evaluation was configured, by a name with dots such as ``fields.score``."""
    value: Any = metrics.config
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def _common_patches(runs: Sequence[EvaluatedRun]) -> tuple[str, ...]:
    """Find the patches that all runs have, in the order of the first run."""
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
    """Say what makes the figures of runs mean different things on some patches.

    There is a sentence for each setting that is not the same in all runs, and
    for truths that are not.
    """
    sentences = []
    for name in _SETTINGS:
        values = [run_setting(run.metrics, name) for run in runs]
        if any(value != values[0] for value in values[1:]):
            listed = ", ".join(f"{value} in {run.name}" for run, value in zip(runs, values))
            sentences.append(f"The runs were evaluated with different {name}: {listed}.")
    # One of them may not separate classes.
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
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> RunComparison:
    """Compare one or more runs with the reference on the patches that all of them have.

    ``progress`` is called with the name of each step, how many are done, and how many there are.
    `RunComparisonError` is raised if the runs have no patch or no IoU threshold in common.
    """
    patches = _common_patches(runs)
    thresholds = runs[reference].metrics.iou_thresholds
    for run in runs:
        if not np.array_equal(run.metrics.iou_thresholds, thresholds):
            raise RunComparisonError(
                f"{run.name} was evaluated at other IoU thresholds than {runs[reference].name} "
                f"({run.metrics.iou_thresholds} and {thresholds}); evaluate both in the same way."
            )
    groups = [{group.step: group for group in _compared_groups(run)} for run in runs]
    steps = [step for step in groups[reference] if all(step in of_run for of_run in groups)]
    figures: list[ComparedFigure] = []
    for done, step in enumerate(steps):
        progress(step, done, len(steps))
        results = [_on_patches(of_run[step], patches).resample(n_samples, _SEED) for of_run in groups]
        pairs = [paired_result(results[reference], result) for result in results]
        for k, figure in enumerate(groups[reference][step].figures):
            value, error = ([float(getattr(one, name)[k]) for one in results] for name in ("value", "error"))
            difference = np.array(
                [(one.difference.value[k], one.difference.error[k], one.p_value[k]) for one in pairs]
            )
            difference[reference] = np.nan
            figures.append(ComparedFigure(figure, np.array(value), np.array(error), *difference.T))
    return RunComparison(tuple(run.name for run in runs), reference, patches, figures, n_samples)


def _compared_groups(run: EvaluatedRun) -> Iterator[FigureGroup]:
    """Compute the figures of a run that are compared, each under a name of its own."""
    metrics = run.metrics
    for definition in _DEFINITIONS:
        for name in (name for name in IS_STAR if name in metrics.n_truth):
            outcomes = outcomes_from_table(run.outcomes, metrics, name)
            group = ap_figures(outcomes, compute_ap(outcomes, definition), name)
            yield group.choose([k for k, one in enumerate(group.figures) if _is_shown(one.iou)])
    # Runs of different reference bands can be compared.
    for group in source_figures(replace(run.sources, band="")):
        chosen = [k for k, one in enumerate(group.figures) if _is_compared(one)]
        if chosen:
            first = group.figures[chosen[0]]
            step = f"{first.name.replace('_', ' ')} of class {first.object_class}"
            yield replace(group.choose(chosen), step=step)


def _is_shown(iou: float | None) -> bool:
    return iou is None or any(shown is not None and abs(iou - shown) < 1e-3 for shown in _SHOWN_IOU)


def _is_compared(figure: MetricValue) -> bool:
    if figure.band:
        return False
    return figure.name in _COMPARED or (figure.name in _COMPARED_OF_ALL and figure.object_class == "all")


def _on_patches(group: FigureGroup, patches: tuple[str, ...]) -> FigureGroup:
    """Count only some of the images, in a given order."""
    statistic = group.statistic
    if statistic.names == patches:
        return group
    places = [statistic.names.index(name) for name in patches]

    def function(weights: FloatArray) -> FloatArray:
        whole = np.zeros((len(weights), len(statistic.names)))
        whole[:, places] = weights
        return statistic.function(whole)

    return FigureGroup(group.step, group.figures, ImageStatistic(patches, function))


def _truths(
    metrics: EvaluationMetrics, patches: Sequence[str], classes: Sequence[str]
) -> list[tuple[int, ...]]:
    places = {name: i for i, name in enumerate(metrics.names)}
    return [tuple(metrics.n_truth[name][places[patch]] for name in classes) for patch in patches]


def _some(names: Sequence[str]) -> str:
    listed = " ".join(names[:3])
    return listed + (f" and {len(names) - 3} more" if len(names) > 3 else "")
