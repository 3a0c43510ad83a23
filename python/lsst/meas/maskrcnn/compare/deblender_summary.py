# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Figures of a comparison of two deblenders.

Of a figure that each deblender has, ``definition`` of the `MetricValue` is its
name; ``difference`` is the first's minus the second's, with an error from a
paired bootstrap; ``<figure>_p_value`` says how often chance alone makes a
difference as large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..metrics.binned import binned_fraction, binned_statistics, robust_statistics
from ..metrics.bootstrap import ImageStatistic, paired_bootstrap, ratio_statistic
from ..metrics.evaluation_metrics import MetricValue
from .deblended_field import DeblendedField
from .deblender_comparison import Columns, FieldComparison

__all__ = ["BLENDEDNESS_EDGES", "DIFFERENCE", "comparison_values", "truth_tables", "truth_values"]

DIFFERENCE = "difference"
"""What stands in place of the name of a deblender for differences (`str`)."""

BLENDEDNESS_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Bins of blendedness (`tuple` [`float`])."""

FloatArray = npt.NDArray[np.float64]


def comparison_values(comparison: FieldComparison) -> list[MetricValue]:
    """Summarize a comparison.

    Parameters
    ----------
    comparison : `FieldComparison`
        The comparison.

    Returns
    -------
    values : `list` [`MetricValue`]
        The figures; NaN with ``n`` = 0 where there is nothing to compute
        them from.
    """
    values: list[MetricValue] = []
    sources, table = comparison.sources, comparison.table
    matched = comparison.matched
    for field in comparison.fields:
        values += _own_values(field, comparison)
    values.append(_value("matched", float(matched.sum()), n=int(matched.sum())))
    values.append(_value("blends", float(len(table["group"])), n=len(table["group"])))
    first, second = comparison.names
    for name, more in (
        ("blends_split_same", table[f"n_children_{first}"] == table[f"n_children_{second}"]),
        ("blends_split_more", table[f"n_children_{first}"] > table[f"n_children_{second}"]),
        ("blends_split_less", table[f"n_children_{first}"] < table[f"n_children_{second}"]),
    ):
        values.append(_value(name, float(more.sum()), n=len(more)))
    for column in sources:
        if column.startswith("flux_ratio_"):
            values += _robust("flux_ratio", sources[column][matched], band=column[len("flux_ratio_") :])
        elif column.startswith("color_difference_"):
            color = column[len("color_difference_") :].replace("_", "-")
            values += _robust("color_difference", sources[column][matched], band=color, unit="mag")
    values += _robust("iou", sources["iou"][matched])
    values += _robust("separation", sources["separation"][matched], unit="px")
    return values


def truth_values(
    truth: Columns,
    comparison: FieldComparison,
    rng: np.random.Generator,
    *,
    bands: Sequence[str],
    n_samples: int = 1000,
    level: float = 0.6827,
) -> list[MetricValue]:
    """Judge both deblenders by the truth.

    Parameters
    ----------
    truth : `dict` [`str`, `numpy.ndarray`]
        From `~.deblender_comparison.truth_columns`.
    comparison : `FieldComparison`
        The comparison, to whose sources those columns were added.
    rng : `numpy.random.Generator`
        Draws blends.
    bands : `~collections.abc.Sequence` [`str`]
        Bands of fluxes.
    n_samples : `int`
        Number of resamplings.
    level : `float`
        Probability between the limits.

    Returns
    -------
    values : `list` [`MetricValue`]
        Completeness, purity, flux residual (median and scatter) and IoU of
        both and their differences. Fluxes and IoU are of truths that both
        found, so that the one that finds more faint sources is not punished
        for it.

    Notes
    -----
    Blends are drawn, not patches, of which there is one. Sources of a blend
    stand or fall together, and blends are as good as independent.
    """
    first, second = comparison.names
    counted = truth["counted"].astype(bool)
    sources = comparison.sources
    # Blends without truth take part in purity.
    n_units = int(max(truth["unit"].max(initial=-1), sources["group"].max(initial=-1))) + 1
    if not n_units:
        return []
    names = tuple(str(number) for number in range(n_units))
    values: list[MetricValue] = []

    def add(name: str, pair: Sequence[ImageStatistic], n: Sequence[int], band: str = "") -> None:
        result = paired_bootstrap(pair[1], pair[0], rng, n_samples, level)
        both = {"band": band}
        # As the second minus the first is what it gives.
        for value, who, number in ((result.second, first, n[0]), (result.first, second, n[1])):
            values.append(_value(name, float(value[0]), n=number, definition=who, **both))
        difference = result.difference
        values.append(
            MetricValue(
                name=name,
                definition=DIFFERENCE,
                band=band,
                value=float(difference.value[0]),
                error=float(difference.error[0]),
                low=float(difference.low[0]),
                high=float(difference.high[0]),
                n=min(n),
            )
        )
        values.append(
            _value(f"{name}_p_value", float(result.p_value[0]), n=min(n), definition=DIFFERENCE, **both)
        )

    def share(
        hit: npt.NDArray[np.bool_], of: npt.NDArray[np.bool_], unit: npt.NDArray[np.int64]
    ) -> ImageStatistic:
        return ratio_statistic(
            names,
            np.bincount(unit[hit & of], minlength=n_units),
            np.bincount(unit[of], minlength=n_units),
        )

    unit = truth["unit"]
    n_truth = int(counted.sum())
    found = [truth[f"found_{name}"].astype(bool) for name in comparison.names]
    add("completeness", [share(one, counted, unit) for one in found], (n_truth, n_truth))
    judged = [(sources[f"id_{name}"] >= 0) & (sources[f"truth_{name}"] != -2) for name in comparison.names]
    pure = [
        share(sources[f"truth_{name}"] >= 0, one, sources["group"])
        for name, one in zip(comparison.names, judged)
    ]
    add("purity", pure, [int(one.sum()) for one in judged])
    both = counted & found[0] & found[1]
    for band in bands:
        keys = [f"flux_residual_{band}_{name}" for name in comparison.names]
        if not set(keys) <= set(truth):
            continue
        residuals = [truth[key] for key in keys]
        known = both & np.isfinite(residuals).all(axis=0)
        n = int(known.sum())
        for name, statistic in (("flux_residual", _median), ("flux_scatter", _scatter)):
            pair = [_of_values(names, one[known], unit[known], statistic) for one in residuals]
            add(name, pair, (n, n), band)
    overlap = [truth[f"iou_{name}"] for name in comparison.names]
    known = both & np.isfinite(overlap).all(axis=0)
    if known.any():
        pair = [_of_values(names, one[known], unit[known], _median) for one in overlap]
        add("iou_truth", pair, (int(known.sum()),) * 2)
    return values


def truth_tables(
    truth: Columns,
    comparison: FieldComparison,
    band: str,
    separation_edges: Sequence[float],
    blendedness_edges: Sequence[float] = BLENDEDNESS_EDGES,
) -> dict[str, dict[str, list[float]]]:
    """Compute completeness and residuals in bins.

    Parameters
    ----------
    truth : `dict` [`str`, `numpy.ndarray`]
        From `~.deblender_comparison.truth_columns`.
    comparison : `FieldComparison`
        The comparison.
    band : `str`
        Band of the fluxes.
    separation_edges : `~collections.abc.Sequence` [`float`]
        Bins of the distance to the nearest true neighbour (px).
    blendedness_edges : `~collections.abc.Sequence` [`float`]
        Bins of the true blendedness.

    Returns
    -------
    tables : `dict` [`str`, `dict` [`str`, `list` [`float`]]]
        Columns by the name of the table, such as
        ``completeness/blendedness/scarlet``; what is not known has none.
    """
    counted = truth["counted"].astype(bool)
    tables: dict[str, dict[str, list[float]]] = {}
    for column, edges in (
        ("blendedness", blendedness_edges),
        ("neighbor_distance", separation_edges),
    ):
        if column not in truth or not np.isfinite(truth[column][counted]).any():
            continue
        at = truth[column][counted]
        for name in comparison.names:
            shares = binned_fraction(at, truth[f"found_{name}"][counted], edges)
            tables[f"completeness/{column}/{name}"] = _lists(shares.columns())
            for what, key in (
                ("flux_residual", f"flux_residual_{band}_{name}"),
                ("iou_truth", f"iou_{name}"),
            ):
                if key in truth and np.isfinite(truth[key][counted]).any():
                    spread = binned_statistics(at, truth[key][counted], edges)
                    tables[f"{what}/{column}/{name}"] = _lists(spread.columns())
    return tables


def _own_values(field: DeblendedField, comparison: FieldComparison) -> list[MetricValue]:
    name, table, sources = field.name, comparison.table, comparison.sources
    parents = field.parents
    blend = field.is_blend
    known = np.isfinite(parents["runtime_ms"])
    alone = sources["outcome"] == f"only {name}"
    values = [
        _value("sources", float(len(field)), n=len(field), definition=name),
        _value("parents", float(len(parents)), n=len(parents), definition=name),
        _value("parents_blended", float(blend.sum()), n=len(parents), definition=name),
        _value("only_here", float(alone.sum()), n=len(field), definition=name),
        _value("without_mask", float(field.n_without_mask), n=len(field), definition=name),
    ]
    for what in ("skipped", "failed", "not_converged"):
        number = parents[what] if len(parents) else np.zeros(0)
        values.append(_value(what, float(np.sum(number)), n=len(parents), definition=name))
    children = parents["n_child"][parents["n_child"] > 0].astype(np.float64)
    values.append(_mean("children_per_parent", children, definition=name))
    values.append(_mean("runtime_per_parent", parents["runtime_ms"][known], definition=name, unit="ms"))
    values.append(_value("seconds", field.seconds, n=1, definition=name, unit="s"))
    values += _robust("snr_only_here", sources[f"snr_{name}"][alone], definition=name, scatter=False)
    for what in ("blendedness", "flux_overlap_fraction"):
        in_blend = comparison.table[f"n_children_{name}"][sources["group"]] > 1
        values += _robust(what, sources[f"{what}_{name}"][in_blend], definition=name, scatter=False)
    # Blends only: that a lone source is what its pixels are says nothing.
    several = (table[f"n_children_{comparison.names[0]}"] > 1) | (
        table[f"n_children_{comparison.names[1]}"] > 1
    )
    for column in (f"chi2_{name}", f"chi2_reported_{name}"):
        if column in table:
            values += _robust(
                column[: -len(name) - 1], table[column][several], definition=name, scatter=False
            )
    return values


def _value(name: str, value: float, **more: Any) -> MetricValue:
    return MetricValue(name=name, value=float(value), **more)


def _mean(name: str, values: FloatArray, **more: Any) -> MetricValue:
    return _value(name, float(np.mean(values)) if len(values) else np.nan, n=len(values), **more)


def _robust(name: str, values: FloatArray, scatter: bool = True, **more: Any) -> list[MetricValue]:
    statistics = robust_statistics(values)
    found = [
        MetricValue(name=name, value=statistics.median, error=statistics.median_error, n=statistics.n, **more)
    ]
    if scatter:
        found.append(_value(f"{name}_scatter", statistics.scatter, n=statistics.n, **more))
    return found


def _lists(columns: Mapping[str, npt.NDArray[Any]]) -> dict[str, list[float]]:
    return {name: np.asarray(values, dtype=np.float64).tolist() for name, values in columns.items()}


def _of_values(
    names: tuple[str, ...],
    values: FloatArray,
    unit: npt.NDArray[np.int64],
    statistic: Callable[[FloatArray, FloatArray], FloatArray],
) -> ImageStatistic:
    """Statistic of values of which each counts as often as its blend was drawn."""

    def function(weights: FloatArray) -> FloatArray:
        return statistic(values, weights[:, unit])[:, None]

    return ImageStatistic(names, function)


def _median(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Weighted medians, (B,), of values, (N,), with weights, (B, N)."""
    if not len(values):
        return np.full(len(weights), np.nan)
    order = np.argsort(values, kind="stable")
    return _quantile(values[order], weights[:, order])


def _quantile(ordered: FloatArray, weights: FloatArray) -> FloatArray:
    total = np.cumsum(weights, axis=1)
    half = 0.5 * total[:, -1:]
    lower = np.argmax(total >= half - 1e-9, axis=1)
    upper = np.argmax(total > half + 1e-9, axis=1)
    middle = 0.5 * (ordered[lower] + ordered[upper])
    return np.where(total[:, -1] > 0, middle, np.nan)


def _scatter(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Weighted 1.4826 times the median absolute deviation from the median, (B,)."""
    if not len(values):
        return np.full(len(weights), np.nan)
    center = _median(values, weights)
    result = np.full(len(weights), np.nan)
    # Each resampling has its own centre, and so its own order of deviations.
    for row in np.flatnonzero(np.isfinite(center)).tolist():
        result[row] = 1.4826 * _median(np.abs(values - center[row]), weights[row : row + 1])[0]
    return result
