# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The figures of an evaluation in bins, to be stored and to be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..images.classes import IS_STAR
from .average_precision import AveragePrecision
from .binned import BinnedFraction, BinnedStatistics, binned_statistics, even_edges, log_edges
from .calibration import Reliability, p_star_reliability, reliability, score_reliability
from .classification import binned_class_completeness, blend_cases
from .completeness import CompletenessLimit, binned_completeness, binned_purity, completeness_limit
from .match_table import detection_rows, matched_rows, truth_rows
from .residuals import flux_residual

__all__ = [
    "BinnedShares",
    "binned_residual",
    "binned_shares",
    "binned_tables",
    "class_shares",
    "precision_recall_table",
    "reliability_curves",
    "residual_bins",
]

Table = NDArray[np.void]

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

# Points of a precision-recall curve that are stored.
_CURVE_POINTS = 1000

_BLENDEDNESS_EDGES = np.array([0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


@dataclass(frozen=True)
class BinnedShares:
    """Completeness or purity of each class against one quantity.

    Parameters
    ----------
    measure : `str`
        ``completeness``, ``purity`` or ``class_completeness``.
    column : `str`
        Column of the match table that the bins are of.
    curves : `dict` [`str`, `BinnedFraction`]
        By class.
    limits : `dict` [`str`, `CompletenessLimit`]
        Where the completeness falls through one half, by class; only against
        magnitude.
    """

    measure: str
    column: str
    curves: Mapping[str, BinnedFraction]
    limits: Mapping[str, CompletenessLimit] = field(default_factory=dict)


def binned_shares(
    table: Table, classes: Sequence[str], *, min_score: float | None = None
) -> list[BinnedShares]:
    """Compute the completeness and purity that a table allows.

    Parameters
    ----------
    table : `numpy.ndarray`
        The match table.
    classes : `~collections.abc.Sequence` [`str`]
        Names of the classes that are separated.
    min_score : `float`, optional
        Only detections of at least this score count.

    Returns
    -------
    shares : `list` [`BinnedShares`]
        Completeness against magnitude, S/N, blendedness and separation, purity
        against score and measured magnitude; those of which the table has no
        value are left out.
    """
    truth, found = truth_rows(table), detection_rows(table, min_score=min_score)
    tenths = np.linspace(0.0, 1.0, 11)
    choices: tuple[tuple[str, str, Any], ...] = (
        ("completeness", "mag", lambda values: even_edges(values, 0.5)),
        ("completeness", "snr", lambda values: log_edges(values, 4)),
        ("completeness", "blendedness", lambda values: tenths),
        ("completeness", "neighbor_distance", lambda values: log_edges(values, 6)),
        ("purity", "score", lambda values: tenths),
        ("purity", "mag_detected", lambda values: even_edges(values, 0.5)),
    )
    shares = []
    for measure, column, make_edges in choices:
        values = np.asarray(table[column], dtype=float)[truth if measure == "completeness" else found]
        if not np.isfinite(values).any():
            continue
        edges = make_edges(values)
        compute = binned_completeness if measure == "completeness" else binned_purity
        curves = {name: compute(table, column, edges, IS_STAR[name], min_score=min_score) for name in classes}
        limits = {name: completeness_limit(curve) for name, curve in curves.items() if column == "mag"}
        shares.append(BinnedShares(measure, column, curves, limits))
    return shares


def class_shares(table: Table, *, min_score: float | None = None) -> BinnedShares | None:
    """Compute the share of true stars and galaxies classed as such.

    Parameters
    ----------
    table : `numpy.ndarray`
        The match table.
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    shares : `BinnedShares` or `None`
        Against magnitude; `None` if no matched source has one.
    """
    mags = np.asarray(table["mag"], dtype=float)[matched_rows(table, min_score=min_score)]
    if not np.isfinite(mags).any():
        return None
    edges = even_edges(mags, 0.5)
    curves = {
        name: binned_class_completeness(table, edges, star, min_score=min_score)
        for name, star in (("star", True), ("galaxy", False))
    }
    return BinnedShares("class_completeness", "mag", curves)


def residual_bins(table: Table) -> tuple[str, NDArray[np.float64]]:
    """Choose what residuals are binned by.

    Parameters
    ----------
    table : `numpy.ndarray`
        The match table.

    Returns
    -------
    column : `str`
        ``blendedness`` if the truth knows it, else ``mag``.
    edges : `numpy.ndarray`
        Limits of the bins, (bin + 1,).
    """
    if np.isfinite(table["blendedness"]).any():
        return "blendedness", _BLENDEDNESS_EDGES
    return "mag", even_edges(table["mag"], 0.5)


def binned_residual(
    table: Table, values: NDArray[np.float64], is_star: bool | None, *, min_score: float | None = None
) -> BinnedStatistics:
    """Compute the statistics of a residual in the bins of `residual_bins`.

    Parameters
    ----------
    table : `numpy.ndarray`
        The match table.
    values : `numpy.ndarray`
        The residual of each row, (row,).
    is_star : `bool` or `None`
        Only true stars (`True`) or galaxies (`False`).
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    binned : `BinnedStatistics`
        Of the matched sources.
    """
    column, edges = residual_bins(table)
    rows = matched_rows(table, is_star, min_score=min_score)
    return binned_statistics(np.asarray(table[column], dtype=float)[rows], values[rows], edges)


def reliability_curves(
    table: Table, classes: Sequence[str], *, min_score: float | None = None
) -> dict[str, Reliability]:
    """Compute how often scores, ``p_star`` and ``p_blend`` came true.

    Parameters
    ----------
    table : `numpy.ndarray`
        The match table.
    classes : `~collections.abc.Sequence` [`str`]
        Names of the classes that are separated. With several, a detection is
        true only if its class is right too.
    min_score : `float`, optional
        Only detections of at least this score, but for scores.

    Returns
    -------
    curves : `dict` [`str`, `Reliability`]
        ``score/<class>`` where scores are probabilities, and ``p_star`` and
        ``p_blend`` where they are known.
    """
    curves: dict[str, Reliability] = {}
    scores = table["score"][detection_rows(table)]
    if len(scores) and ((scores >= 0.0) & (scores <= 1.0)).all():
        for name in classes:
            curves[f"score/{name}"] = score_reliability(table, IS_STAR[name], same_class=len(classes) > 1)
    if len(classes) > 1 and np.isfinite(table["p_star"][matched_rows(table, min_score=min_score)]).any():
        curves["p_star"] = p_star_reliability(table, min_score=min_score)
    rows, _ = blend_cases(table, min_score=min_score)
    if rows.any():
        curves["p_blend"] = reliability(table["p_blend"][rows], table["blended"][rows] == 1)
    return curves


def binned_tables(
    table: Table, classes: Sequence[str], *, min_score: float | None = None
) -> dict[str, dict[str, list[float]]]:
    """Put all figures in bins into tables.

    Parameters
    ----------
    table : `numpy.ndarray`
        The match table.
    classes : `~collections.abc.Sequence` [`str`]
        Names of the classes that are separated.
    min_score : `float`, optional
        Only detections of at least this score; the calibration of scores is
        of all.

    Returns
    -------
    tables : `dict` [`str`, `dict` [`str`, `list` [`float`]]]
        Columns by name, by the name of the table, such as
        ``completeness/mag/star``.
    """
    tables: dict[str, dict[str, list[float]]] = {}

    def add(name: str, columns: Mapping[str, NDArray[Any]]) -> None:
        tables[name] = {key: np.asarray(column, dtype=float).tolist() for key, column in columns.items()}

    families = binned_shares(table, classes, min_score=min_score)
    of_classes = class_shares(table, min_score=min_score) if len(classes) > 1 else None
    for shares in families if of_classes is None else [*families, of_classes]:
        for name, curve in shares.curves.items():
            add(f"{shares.measure}/{shares.column}/{name}", curve.columns())
    column, _ = residual_bins(table)
    for what, kind in (("flux_residual", "flux_detected"), ("model_flux_residual", "flux_model")):
        residual = flux_residual(table[kind], table["flux_truth"])
        for name in classes if np.isfinite(table[column]).any() else ():
            binned = binned_residual(table, residual, IS_STAR[name], min_score=min_score)
            add(f"{what}/{column}/{name}", binned.columns())
    for name, result in reliability_curves(table, classes, min_score=min_score).items():
        columns = {"mean_probability": result.mean_probability, **result.bins.columns()}
        add(f"calibration/{name}", columns)
    return tables


def precision_recall_table(results: Mapping[tuple[str, str], AveragePrecision]) -> NDArray[np.void]:
    """Put precision-recall curves into one table.

    Parameters
    ----------
    results : `~collections.abc.Mapping`
        Average precisions by definition and class.

    Returns
    -------
    table : `numpy.ndarray`
        Structured array of `PRECISION_RECALL_DTYPE`, of at most a thousand
        points of each curve. Precision and recall of ``perImage`` are means
        over images, which have no score.
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
