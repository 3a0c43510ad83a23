# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far positions, fluxes and colours of what was found lie from the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .binned import BinnedStatistics, RobustStatistics, binned_statistics, robust_statistics
from .match_table import MatchTable, ab_magnitude, matched_rows

__all__ = [
    "CentroidResiduals",
    "binned_centroid_residual",
    "binned_flux_residual",
    "centroid_residuals",
    "color_residuals",
    "flux_residual",
    "flux_residuals",
]


@dataclass(frozen=True)
class CentroidResiduals:
    """Offsets of detections from their truths.

    Parameters
    ----------
    x, y : `RobustStatistics`
        Detection minus truth along the axes.
    radial : `RobustStatistics`
        Length of the offsets; its scatter is about its own median.
    unit : `str`
        ``pixel`` or ``arcsec``.
    """

    x: RobustStatistics
    y: RobustStatistics
    radial: RobustStatistics
    unit: str


def centroid_residuals(
    table: MatchTable,
    is_star: bool | None = None,
    *,
    pixel_scale: float | None = None,
    n_sigma: float = 3.0,
    min_score: float | None = None,
) -> CentroidResiduals:
    """Compute the offsets of all matched sources.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    is_star : `bool`, optional
        Only true stars (`True`) or galaxies (`False`).
    pixel_scale : `float`, optional
        Pixel scale (arcsec); without it the offsets are in pixels.
    n_sigma : `float`
        An outlier is further from the median than this many scatters.
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    residuals : `CentroidResiduals`
        Their statistics.
    """
    rows = matched_rows(table, is_star, min_score=min_score)
    scale = 1.0 if pixel_scale is None else float(pixel_scale)
    parts = [
        robust_statistics(scale * np.asarray(table[name], dtype=float)[rows], n_sigma=n_sigma)
        for name in ("offset_x", "offset_y", "separation")
    ]
    x, y, radial = parts
    return CentroidResiduals(x, y, radial, "pixel" if pixel_scale is None else "arcsec")


def binned_centroid_residual(
    table: MatchTable,
    edges: ArrayLike,
    column: str = "blendedness",
    is_star: bool | None = None,
    *,
    component: str = "separation",
    n_sigma: float = 3.0,
    min_score: float | None = None,
) -> BinnedStatistics:
    """Compute the offsets of matched sources in bins.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    edges : array_like
        Limits of the bins, (bin + 1,).
    column : `str`
        What to bin by: ``blendedness``, ``mag``, ``snr``, ...
    is_star : `bool`, optional
        Only true stars (`True`) or galaxies (`False`).
    component : `str`
        ``offset_x``, ``offset_y``, ``separation`` (px) or
        ``separation_arcsec``.
    n_sigma : `float`
        An outlier is further from its bin's median than this many scatters.
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    binned : `BinnedStatistics`
        Their statistics.
    """
    rows = matched_rows(table, is_star, min_score=min_score)
    return binned_statistics(
        np.asarray(table[column], dtype=float)[rows],
        np.asarray(table[component], dtype=float)[rows],
        edges,
        n_sigma=n_sigma,
    )


def flux_residual(
    flux_detected: ArrayLike, flux_truth: ArrayLike, kind: str = "relative"
) -> NDArray[np.float64]:
    """Compare measured with true fluxes.

    Parameters
    ----------
    flux_detected, flux_truth : array_like
        Fluxes in the same unit, any shape.
    kind : `str`
        ``relative``: detected / true - 1; ``magnitude``: detected minus true
        magnitude, positive where flux was lost.

    Returns
    -------
    residual : `numpy.ndarray`
        NaN where the true flux is not positive, and for magnitudes also where
        the measured one is not.

    Raises
    ------
    ValueError
        Raised if the kind is unknown.

    Examples
    --------
    >>> flux_residual([9.0, -1.0], [10.0, 10.0]).round(6).tolist()
    [-0.1, -1.1]
    """
    detected, truth = np.asarray(flux_detected, dtype=float), np.asarray(flux_truth, dtype=float)
    if kind == "magnitude":
        return ab_magnitude(detected) - ab_magnitude(truth)
    if kind != "relative":
        raise ValueError(f"The kind must be 'relative' or 'magnitude'; given was {kind!r}.")
    ratio = np.full(np.broadcast(detected, truth).shape, np.nan)
    np.divide(detected, truth, out=ratio, where=truth > 0.0)
    return ratio - 1.0


def flux_residuals(
    table: MatchTable,
    is_star: bool | None = None,
    *,
    kind: str = "relative",
    band: str | None = None,
    n_sigma: float = 3.0,
    min_score: float | None = None,
) -> RobustStatistics:
    """Compute the flux residuals of all matched sources.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    is_star : `bool`, optional
        Only true stars (`True`) or galaxies (`False`).
    kind : `str`
        See `flux_residual`.
    band : `str`, optional
        One of the bands of the table instead of the reference band.
    n_sigma : `float`
        An outlier is further from the median than this many scatters.
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    statistics : `RobustStatistics`
        Their statistics.
    """
    rows = matched_rows(table, is_star, min_score=min_score)
    return robust_statistics(_table_residual(table, kind, band)[rows], n_sigma=n_sigma)


def binned_flux_residual(
    table: MatchTable,
    edges: ArrayLike,
    column: str = "blendedness",
    is_star: bool | None = None,
    *,
    kind: str = "relative",
    band: str | None = None,
    n_sigma: float = 3.0,
    min_score: float | None = None,
) -> BinnedStatistics:
    """Compute the flux residuals of matched sources in bins.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    edges : array_like
        Limits of the bins, (bin + 1,).
    column : `str`
        What to bin by: ``blendedness``, ``mag``, ``snr``, ...
    is_star : `bool`, optional
        Only true stars (`True`) or galaxies (`False`).
    kind : `str`
        See `flux_residual`.
    band : `str`, optional
        One of the bands of the table instead of the reference band.
    n_sigma : `float`
        An outlier is further from its bin's median than this many scatters.
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    binned : `BinnedStatistics`
        Their statistics.
    """
    rows = matched_rows(table, is_star, min_score=min_score)
    x = np.asarray(table[column], dtype=float)[rows]
    return binned_statistics(x, _table_residual(table, kind, band)[rows], edges, n_sigma=n_sigma)


def color_residuals(
    table: MatchTable,
    bands: Sequence[str],
    is_star: bool | None = None,
    *,
    min_score: float | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Compare colours of neighbouring bands with the true ones.

    Parameters
    ----------
    table : `MatchTable`
        A match table with the fluxes of the bands.
    bands : `~collections.abc.Sequence` [`str`]
        Bands from blue to red; each pair of neighbours is a colour.
    is_star : `bool`, optional
        Only true stars (`True`) or galaxies (`False`).
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    residuals : `dict` [`str`, `numpy.ndarray`]
        By colour, ``g-r`` for instance: measured minus true (mag), (row,);
        NaN in rows that are not matched or lack a positive flux. Statistics
        are made of it by `binned.robust_statistics` and
        `binned.binned_statistics`.

    Raises
    ------
    ValueError
        Raised for less than two bands.
    """
    if len(bands) < 2:
        raise ValueError(f"A colour needs two bands; given were {list(bands)}.")
    rows = matched_rows(table, is_star, min_score=min_score)
    shift = {band: _table_residual(table, "magnitude", band) for band in bands}
    return {
        f"{blue}-{red}": np.where(rows, shift[blue] - shift[red], np.nan)
        for blue, red in zip(bands[:-1], bands[1:])
    }


def _table_residual(table: MatchTable, kind: str, band: str | None) -> NDArray[np.float64]:
    suffix = "" if band is None else f"_{band}"
    return flux_residual(table[f"flux_detected{suffix}"], table[f"flux_truth{suffix}"], kind)
