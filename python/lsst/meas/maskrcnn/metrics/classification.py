# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How well stars and galaxies are separated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from .arrays import FloatArray, IntArray
from .binned import divide
from .match_table import MatchedSources

# Matched sources from which on the curve is drawn for three ranges of magnitude too.
_FEWEST_FOR_THIRDS = 30


@dataclass(frozen=True)
class RocCurve:
    """Stars kept against galaxies let through, over all thresholds."""

    false_positive: FloatArray  # share of the galaxies at or above the threshold, ascending, (threshold,)
    true_positive: FloatArray  # share of the stars at or above the threshold, (threshold,)
    threshold: FloatArray  # probabilities, descending from infinity (nothing passes), (threshold,)
    # Area under the curve: the probability that a star is given a larger value than a galaxy; NaN if either
    # is missing.
    area: float
    # Number of sources.
    n_star: int
    n_galaxy: int


def confusion_matrix(sources: MatchedSources) -> IntArray:
    """Count matched sources by true class (row) and class given (column): star, galaxy, int64, (2, 2)."""
    matched = sources.table[sources.matched()]
    code = 2 * ~matched["truth_is_star"] + 1 * ~matched["detected_is_star"]
    return np.bincount(code, minlength=4).reshape(2, 2)


def roc_curve(p_star: ArrayLike, is_star: ArrayLike) -> RocCurve:
    """Compute the receiver operating characteristic of a probability of what is a star, both (source,).

    The probability may be anything that grows with it; NaN is left out. Sources of equal probability enter
    together, so that the area is the Mann-Whitney statistic with ties counted half. Shares of a class that
    has no source are NaN.

    Examples
    --------
    >>> roc_curve([0.9, 0.6, 0.6, 0.1], [True, True, False, False]).area
    0.875
    """
    p, star = np.asarray(p_star, dtype=float), np.asarray(is_star, dtype=bool)
    if p.shape != star.shape or p.ndim != 1:
        raise ValueError(f"One class per probability is needed; given were {p.shape}, {star.shape}.")
    p, star = p[~np.isnan(p)], star[~np.isnan(p)]
    order = np.argsort(-p, kind="stable")
    last = np.append(np.diff(p[order]) != 0, True)[: len(p)]
    n_star, n_galaxy = int(star.sum()), int((~star).sum())
    true_positive, false_positive = (
        divide(np.append(0, np.cumsum(one[order])[last]), one.sum()) for one in (star, ~star)
    )
    area = float("nan")
    if n_star and n_galaxy:
        area = float((scipy.stats.rankdata(p)[star].mean() - 0.5 * (n_star + 1)) / n_galaxy)
    return RocCurve(false_positive, true_positive, np.append(np.inf, p[order][last]), area, n_star, n_galaxy)


def magnitude_rocs(sources: MatchedSources) -> dict[str, RocCurve]:
    """Compute the curves of ``p_star`` of all matched sources and by magnitude.

    That of ``all`` and, of thirty sources or more, those of three ranges of
    the true magnitude with as many sources each.
    """
    matched = sources.table[sources.matched()]
    p_star, is_star, mags = (matched[name] for name in ("p_star", "truth_is_star", "mag"))
    curves = {"all": roc_curve(p_star, is_star)}
    known = np.isfinite(mags)
    if known.sum() >= _FEWEST_FOR_THIRDS:
        edges = np.unique(np.quantile(mags[known], [0.0, 1 / 3, 2 / 3, 1.0]))
        index = np.clip(np.searchsorted(edges, mags, side="right") - 1, 0, len(edges) - 2)
        for i, (low, high) in enumerate(zip(edges[:-1], edges[1:])):
            inside = known & (index == i)
            curves[f"{low:.1f} to {high:.1f} mag"] = roc_curve(p_star[inside], is_star[inside])
    return curves
