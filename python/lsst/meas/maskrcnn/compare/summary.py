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

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..metrics.arrays import FloatArray
from ..metrics.binned import binned_fraction, binned_statistics, robust_statistics
from ..metrics.bootstrap import ImageStatistic, PairedResult, paired_bootstrap, ratio_statistic
from ..metrics.evaluation_metrics import MetricValue
from ..metrics.resampled import median_statistic
from .comparison import Columns, FieldComparison
from .deblender import DeblendedField

DIFFERENCE = "difference"
"""Stands in place of the name of a deblender for differences (`str`)."""

BLENDEDNESS_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Bins of blendedness (`tuple` [`float`])."""

_SEPARATION_EDGES = (0.0, 5.0, 10.0, 15.0, 25.0, 50.0, 1000.0)
"""Bins of the distance to the nearest true neighbour (px): the first is about the PSF of a ground-based
survey."""

_FLAGS = ("skipped", "failed", "not_converged")


def comparison_values(comparison: FieldComparison) -> list[MetricValue]:
    """Summarize a comparison; figures are NaN with ``n`` = 0 where there is nothing to compute them from."""
    sources, blends, matched = comparison.sources, comparison.blends, comparison.matched
    n_blends = len(blends["group"])
    values = [value for field in comparison.fields for value in _own_values(field, comparison)]
    values.append(_value("matched", matched.sum(), n=int(matched.sum())))
    values.append(_value("blends", n_blends, n=n_blends))
    first, second = (blends[f"n_children_{name}"] for name in comparison.names)
    for how, of_blends in (("same", first == second), ("more", first > second), ("less", first < second)):
        values.append(_value(f"blends_split_{how}", of_blends.sum(), n=n_blends))
    for column in sources:
        for name, unit in (("flux_ratio", ""), ("color_difference", "mag")):
            if column.startswith(f"{name}_"):
                band = column.removeprefix(f"{name}_")
                band = band.replace("_", "-") if name == "color_difference" else band
                values += _robust(name, sources[column][matched], band=band, unit=unit)
    values += _robust("iou", sources["iou"][matched])
    values += _robust("separation", sources["separation"][matched], unit="px")
    return values


def truth_values(
    truths: Columns, comparison: FieldComparison, bands: Sequence[str], n_samples: int, seed: int = 1
) -> list[MetricValue]:
    """Compare both deblenders with the truth of `~lsst.meas.maskrcnn.compare.comparison.compare_with_truth`.

    The figures are completeness, purity, flux residual (median and scatter, by
    band) and IoU of both and their differences. Fluxes and IoU are of true
    sources that both found, so that the one that finds more faint sources is at
    no disadvantage. Blends are resampled, not patches, of which there is one:
    sources of a blend are not independent; blends nearly are.
    """
    sources, unit = comparison.sources, truths["unit"]
    counted = truths["counted"].astype(bool)
    # Blends without true source take part in purity.
    n_units = int(max(unit.max(initial=-1), sources["group"].max(initial=-1))) + 1
    if not n_units:
        return []
    units = tuple(str(number) for number in range(n_units))
    rng = np.random.default_rng(seed)
    values: list[MetricValue] = []

    def compare(names: Sequence[str], pair: list[ImageStatistic], n: Sequence[int], band: str = "") -> None:
        # The second, then the first: the result is of the latter minus the former.
        result = paired_bootstrap(pair[1], pair[0], rng, n_samples)
        for k, name in enumerate(names):
            values.extend(_paired_values(name, band, comparison.names, n, result, k))

    found = [truths[f"found_{name}"].astype(bool) for name in comparison.names]
    compare(["completeness"], [_share(units, unit, one, counted) for one in found], [int(counted.sum())] * 2)
    of_truth = [sources[f"truth_{name}"] for name in comparison.names]
    judged = [
        (sources[f"id_{name}"] >= 0) & (number != -2) for name, number in zip(comparison.names, of_truth)
    ]
    pure = [_share(units, sources["group"], number >= 0, one) for number, one in zip(of_truth, judged)]
    compare(["purity"], pure, [int(one.sum()) for one in judged])
    both = counted & found[0] & found[1]
    for band in bands:
        keys = [f"flux_residual_{band}_{name}" for name in comparison.names]
        if set(keys) <= set(truths):
            known = both & np.isfinite([truths[key] for key in keys]).all(axis=0)
            pair = [median_statistic(units, unit[known], truths[key][known]) for key in keys]
            compare(["flux_residual", "flux_scatter"], pair, [int(known.sum())] * 2, band)
    overlap = [truths[f"iou_{name}"] for name in comparison.names]
    known = both & np.isfinite(overlap).all(axis=0)
    if known.any():
        pair = [median_statistic(units, unit[known], one[known]) for one in overlap]
        compare(["iou_truth"], pair, [int(known.sum())] * 2)
    return values


def truth_tables(truths: Columns, names: Sequence[str], band: str) -> dict[str, dict[str, list[float]]]:
    """Compute completeness, and residuals of the fluxes in a band, in bins: columns by name of the table.

    Names are such as ``completeness/blendedness/scarlet``; figures that are not
    known have no table.
    """
    counted = truths["counted"].astype(bool)
    tables: dict[str, dict[str, list[float]]] = {}
    for column, edges in (("blendedness", BLENDEDNESS_EDGES), ("neighbor_distance", _SEPARATION_EDGES)):
        at = truths[column][counted]
        if not np.isfinite(at).any():
            continue
        for name in names:
            found: Any = binned_fraction(at, truths[f"found_{name}"][counted], edges)
            binned = {"completeness": found}
            measured = {"flux_residual": f"flux_residual_{band}_{name}", "iou_truth": f"iou_{name}"}
            for what, key in measured.items():
                if key in truths and np.isfinite(truths[key][counted]).any():
                    binned[what] = binned_statistics(at, truths[key][counted], edges)
            for what, one in binned.items():
                columns = one.columns().items()
                tables[f"{what}/{column}/{name}"] = {key: (1.0 * part).tolist() for key, part in columns}
    return tables


def _share(
    units: tuple[str, ...], unit: npt.NDArray[Any], hit: npt.NDArray[Any], of: npt.NDArray[Any]
) -> ImageStatistic:
    sums = (np.bincount(unit[chosen], minlength=len(units)) for chosen in (hit & of, of))
    return ratio_statistic(units, *sums)


def _paired_values(
    name: str, band: str, deblenders: Sequence[str], n: Sequence[int], result: PairedResult, k: int
) -> list[MetricValue]:
    """A figure of both deblenders, its difference, and how often chance makes one as large."""
    difference = result.difference
    errors = {key: float(getattr(difference, key)[k]) for key in ("error", "low", "high")}
    of: dict[str, Any] = {"n": min(n), "definition": DIFFERENCE, "band": band}
    return [
        _value(name, result.second[k], n=n[0], definition=deblenders[0], band=band),
        _value(name, result.first[k], n=n[1], definition=deblenders[1], band=band),
        _value(name, difference.value[k], **errors, **of),
        _value(f"{name}_p_value", result.p_value[k], **of),
    ]


def _own_values(field: DeblendedField, comparison: FieldComparison) -> list[MetricValue]:
    """Figures of one deblender."""
    name, parents = field.name, field.parents
    sources, blends = comparison.sources, comparison.blends
    of = {"definition": name}
    alone = sources["outcome"] == f"only {name}"
    values = [
        _value("sources", len(field), n=len(field), **of),
        _value("parents", len(parents), n=len(parents), **of),
        _value("parents_blended", field.is_blend.sum(), n=len(parents), **of),
        _value("only_here", alone.sum(), n=len(field), **of),
        _value("without_mask", field.n_without_mask, n=len(field), **of),
    ]
    values += [_value(what, parents[what].sum(), n=len(parents), **of) for what in _FLAGS]
    values.append(_mean("children_per_parent", parents["n_child"][parents["n_child"] > 0], **of))
    runtime = parents["runtime_ms"]
    values.append(_mean("runtime_per_parent", runtime[np.isfinite(runtime)], unit="ms", **of))
    values.append(_value("seconds", field.seconds, n=1, unit="s", **of))
    values += _robust("snr_only_here", sources[f"snr_{name}"][alone], scatter=False, **of)
    in_blend = blends[f"n_children_{name}"][sources["group"]] > 1
    for what in ("blendedness", "flux_overlap_fraction"):
        values += _robust(what, sources[f"{what}_{name}"][in_blend], scatter=False, **of)
    # Blends only: the residual of a source alone says nothing about deblending.
    several = np.any([blends[f"n_children_{one}"] > 1 for one in comparison.names], axis=0)
    for what in ("chi2", "chi2_reported"):
        if f"{what}_{name}" in blends:
            values += _robust(what, blends[f"{what}_{name}"][several], scatter=False, **of)
    return values


def _value(name: str, value: Any, **more: Any) -> MetricValue:
    return MetricValue(name=name, value=float(value), **more)


def _mean(name: str, values: npt.NDArray[Any], **more: Any) -> MetricValue:
    return _value(name, np.mean(values) if len(values) else np.nan, n=len(values), **more)


def _robust(name: str, values: FloatArray, scatter: bool = True, **more: Any) -> list[MetricValue]:
    statistics = robust_statistics(values)
    found = [_value(name, statistics.median, error=statistics.median_error, n=statistics.n, **more)]
    if scatter:
        found.append(_value(f"{name}_scatter", statistics.scatter, n=statistics.n, **more))
    return found
