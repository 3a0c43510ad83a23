# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The figures of an evaluation in bins, to be stored and to be drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..images.classes import CLASS_NAMES, IS_STAR
from .arrays import FloatArray
from .average_precision import AveragePrecision
from .binned import BinnedFraction, BinnedStatistics, binned_statistics, divide, even_edges, log_edges
from .calibration import Reliability, reliability
from .completeness import CompletenessLimit, completeness_limit
from .match_table import MatchedSources

PRECISION_RECALL_DTYPE = np.dtype(
    [("definition", "U8"), ("object_class", "U8")]
    + [(name, "f8") for name in ("iou", "recall", "precision", "interpolated", "score")]
)
"""One row per point of a precision-recall curve (`numpy.dtype`)."""

# Points of a precision-recall curve that are stored.
_CURVE_POINTS = 1000

_BLENDEDNESS_EDGES = np.array([0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])

_Edges = Callable[[FloatArray], FloatArray]


def _tenths(_: FloatArray) -> FloatArray:
    return np.linspace(0.0, 1.0, 11)


_SHARES: tuple[tuple[str, str, _Edges], ...] = (
    ("completeness", "mag", even_edges),
    ("completeness", "snr", partial(log_edges, per_decade=4)),
    ("completeness", "blendedness", _tenths),
    ("completeness", "neighbor_distance", partial(log_edges, per_decade=6)),
    ("purity", "score", _tenths),
    ("purity", "mag_detected", even_edges),
)
"""Shares, what they are binned by, and how the bins are chosen."""


@dataclass(frozen=True)
class BinnedShares:
    """Completeness or purity of each class against one quantity."""

    measure: str  # ``completeness``, ``purity`` or ``class_completeness``
    column: str  # column of the match table that the bins are of
    curves: Mapping[str, BinnedFraction]  # by class
    # Where the completeness falls through one half, by class; only against magnitude.
    limits: Mapping[str, CompletenessLimit] = field(default_factory=dict)


def binned_shares(sources: MatchedSources) -> list[BinnedShares]:
    """Compute the completeness and purity of each class against all that the table has a value of."""
    found = (_binned_shares(sources, sources.classes, *choice) for choice in _SHARES)
    return [one for one in found if one is not None]


def class_shares(sources: MatchedSources) -> BinnedShares | None:
    """Compute the share of true stars and galaxies classed as such against magnitude, if any is known."""
    return _binned_shares(sources, CLASS_NAMES, "class_completeness", "mag", even_edges)


def _binned_shares(
    sources: MatchedSources, classes: Iterable[str], measure: str, column: str, make_edges: _Edges
) -> BinnedShares | None:
    values = sources.table[column][sources.share(measure)[1]]
    if not np.isfinite(values).any():
        return None
    edges = make_edges(values)
    curves = {name: sources.binned_share(measure, column, edges, IS_STAR[name]) for name in classes}
    limited = curves if (measure, column) == ("completeness", "mag") else {}
    limits = {name: completeness_limit(curve) for name, curve in limited.items()}
    return BinnedShares(measure, column, curves, limits)


def residual_bins(sources: MatchedSources) -> tuple[str, FloatArray]:
    """Choose what residuals are binned by: ``blendedness`` if the truth knows it, else ``mag``; and edges."""
    if np.isfinite(sources.table["blendedness"]).any():
        return "blendedness", _BLENDEDNESS_EDGES
    return "mag", even_edges(sources.table["mag"])


def binned_residual(sources: MatchedSources, values: FloatArray, is_star: bool | None) -> BinnedStatistics:
    """Compute the statistics of a residual, (row,), of matched sources in the bins of `residual_bins`."""
    column, edges = residual_bins(sources)
    rows = sources.matched(is_star)
    return binned_statistics(sources.table[column][rows], values[rows], edges)


def reliability_curves(sources: MatchedSources) -> dict[str, Reliability]:
    """Compute how often each of `MatchedSources.probabilities` came true."""
    return {name: reliability(given, true) for name, (_, given, true) in sources.probabilities().items()}


def binned_tables(sources: MatchedSources) -> dict[str, dict[str, list[float]]]:
    """Put all figures in bins into tables: columns by name, by a name such as ``completeness/mag/star``."""
    tables: dict[str, Mapping[str, NDArray[Any]]] = {}
    families = [*binned_shares(sources), class_shares(sources) if len(sources.classes) > 1 else None]
    for shares in filter(None, families):
        for name, curve in shares.curves.items():
            tables[f"{shares.measure}/{shares.column}/{name}"] = curve.columns()
    table, (column, _) = sources.table, residual_bins(sources)
    for what, kind in (("flux_residual", "flux_detected"), ("model_flux_residual", "flux_model")):
        residual = divide(table[kind], table["flux_truth"]) - 1.0
        for name in sources.classes if np.isfinite(table[column]).any() else ():
            tables[f"{what}/{column}/{name}"] = binned_residual(sources, residual, IS_STAR[name]).columns()
    for name, result in reliability_curves(sources).items():
        tables[f"calibration/{name}"] = {"mean_probability": result.mean_probability, **result.bins.columns()}
    return {
        name: {key: np.asarray(values, dtype=float).tolist() for key, values in columns.items()}
        for name, columns in tables.items()
    }


def precision_recall_table(results: Mapping[tuple[str, str], AveragePrecision]) -> NDArray[np.void]:
    """Put precision-recall curves, by definition and class, into one table of `PRECISION_RECALL_DTYPE`.

    It has at most a thousand points of each curve. Precision and recall of
    ``perImage`` are means over images, which have no score.
    """
    parts = [np.zeros(0, dtype=PRECISION_RECALL_DTYPE)]
    for (definition, name), result in results.items():
        for iou, curve in zip(result.thresholds, result.curves):
            last = len(curve.recall) - 1
            kept = np.unique(np.linspace(0, last, min(_CURVE_POINTS, last + 1)).round().astype(np.int64))
            part = np.zeros(len(kept), dtype=PRECISION_RECALL_DTYPE)
            part["definition"], part["object_class"], part["iou"] = definition, name, iou
            part["recall"], part["precision"] = curve.recall[kept], curve.precision[kept]
            part["interpolated"], part["score"] = curve.interpolated[kept], curve.scores[kept]
            parts.append(part)
    return np.concatenate(parts)
