# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reliability of probabilities: how often what was given a probability is true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .binned import BinnedFraction, binned_fraction
from .match_table import MatchTable, detection_rows, matched_rows

__all__ = [
    "Reliability",
    "log_loss",
    "p_star_reliability",
    "reliability",
    "score_reliability",
    "threshold_at_purity",
]


@dataclass(frozen=True)
class Reliability:
    """Probabilities given against how often they came true.

    Parameters
    ----------
    bins : `BinnedFraction`
        Share of cases that came true, in bins of the probability given.
    mean_probability : `numpy.ndarray`
        Mean probability given in each bin; NaN in an empty one, (bin,).
    expected_error : `float`
        Expected calibration error; NaN without cases.
    brier : `float`
        Mean square of probability minus outcome (Brier 1950, MWR 78, 1).
    n : `int`
        Number of cases.
    """

    bins: BinnedFraction
    mean_probability: NDArray[np.float64]
    expected_error: float
    brier: float
    n: int


def reliability(
    probability: ArrayLike, true: ArrayLike, *, n_bins: int = 10, equal_counts: bool = False
) -> Reliability:
    """Compare probabilities with how often they came true.

    Parameters
    ----------
    probability : array_like
        Probabilities given, between 0 and 1; NaN is left out, (case,).
    true : array_like
        Whether each came true, bool, (case,).
    n_bins : `int`
        Number of bins.
    equal_counts : `bool`
        Bins of about equal numbers of cases instead of equal widths.
        Most detections have a score near 1, where bins of equal width are
        coarse.

    Returns
    -------
    reliability : `Reliability`
        The comparison.

    Raises
    ------
    ValueError
        Raised if the lengths differ, a probability is not between 0 and 1 or
        there is no bin.

    Notes
    -----
    The expected calibration error (Naeini et al. 2015, AAAI 29, 2901; Guo et
    al. 2017, arXiv:1706.04599) is the mean over bins of the difference between the
    share that came true and the mean probability, weighted by the cases.

    Examples
    --------
    >>> result = reliability([0.8] * 10, [True] * 6 + [False] * 4)
    >>> round(result.expected_error, 6)
    0.2
    """
    given, outcome = np.asarray(probability, dtype=float), np.asarray(true, dtype=bool)
    if given.shape != outcome.shape or given.ndim != 1:
        raise ValueError(f"One outcome per probability is needed; given were {given.shape}, {outcome.shape}.")
    if n_bins < 1:
        raise ValueError(f"At least one bin is needed; given was {n_bins}.")
    known = ~np.isnan(given)
    given, outcome = given[known], outcome[known]
    if np.any((given < 0.0) | (given > 1.0)):
        raise ValueError("Probabilities must lie between 0 and 1.")
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    if equal_counts and len(given):
        # Many equal scores make fewer bins.
        inner = np.unique(np.quantile(given, edges[1:-1]))
        edges = np.concatenate([[0.0], inner[(inner > 0.0) & (inner < 1.0)], [1.0]])
    bins = binned_fraction(given, outcome, edges)
    index = np.minimum(np.searchsorted(edges, given, side="right") - 1, len(edges) - 2)
    total = np.bincount(index, weights=given, minlength=len(edges) - 1)
    filled = bins.total > 0
    mean = np.divide(total, bins.total, out=np.full(len(total), np.nan), where=filled)
    n = len(given)
    if not n:
        nan = float("nan")
        return Reliability(bins, mean, nan, nan, 0)
    gap = np.abs(bins.fraction - mean)[filled]
    return Reliability(
        bins, mean, float(np.sum(gap * bins.total[filled]) / n), float(np.mean((given - outcome) ** 2)), n
    )


def score_reliability(
    table: MatchTable, is_star: bool | None = None, *, same_class: bool = True, n_bins: int = 10
) -> Reliability:
    """Compare the scores of detections with how many of them are true.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    is_star : `bool`, optional
        Only what was classed as star (`True`) or galaxy (`False`).
    same_class : `bool`
        A detection is true only if its class is right too, which is what the
        score of a detector stands for.
    n_bins : `int`
        Number of bins.

    Returns
    -------
    reliability : `Reliability`
        The comparison.
    """
    rows = detection_rows(table, is_star)
    true = matched_rows(table, same_class=same_class)[rows]
    score = np.asarray(table["score"], dtype=float)[rows]
    return reliability(score, true, n_bins=n_bins)


def p_star_reliability(table: MatchTable, *, n_bins: int = 10, min_score: float | None = None) -> Reliability:
    """Compare the star probabilities of matched sources with their classes.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    n_bins : `int`
        Number of bins.
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    reliability : `Reliability`
        The comparison.
    """
    rows = matched_rows(table, min_score=min_score)
    p_star = np.asarray(table["p_star"], dtype=float)[rows]
    is_star = np.asarray(table["truth_is_star"], dtype=bool)[rows]
    return reliability(p_star, is_star, n_bins=n_bins)


def log_loss(probability: ArrayLike, true: ArrayLike) -> float:
    """Compute the mean of -log(p), p the probability given to what is true.

    Parameters
    ----------
    probability : array_like
        Probabilities given, between 0 and 1, (case,).
    true : array_like
        Whether each came true, bool, (case,).

    Returns
    -------
    loss : `float`
        In nats; NaN without cases. No probability counts as more certain than
        one in a million.

    Examples
    --------
    >>> round(log_loss([0.5, 0.5], [True, False]), 4)
    0.6931
    """
    given, outcome = np.asarray(probability, dtype=float), np.asarray(true, dtype=bool)
    if not len(given):
        return float("nan")
    chance = np.clip(np.where(outcome, given, 1.0 - given), 1e-6, 1.0)
    return float(-np.log(chance).mean())


def threshold_at_purity(score: ArrayLike, true: ArrayLike, purity: float) -> float:
    """Find the smallest score above which enough is true.

    Parameters
    ----------
    score : array_like
        Scores between 0 and 1, (case,).
    true : array_like
        Whether each is true, bool, (case,).
    purity : `float`
        Share of what has at least the score that is to be true.

    Returns
    -------
    threshold : `float`
        The score; 1 if there is none.

    Examples
    --------
    >>> threshold_at_purity([0.9, 0.8, 0.7, 0.6], [True, False, True, False], 0.6)
    0.7
    """
    values, outcome = np.asarray(score, dtype=float), np.asarray(true, dtype=bool)
    order = np.argsort(-values, kind="stable")
    share = np.cumsum(outcome[order]) / np.arange(1, len(order) + 1)
    # Equal scores pass together.
    last = np.append(np.diff(values[order]) != 0, True)[: len(order)]
    good = np.flatnonzero(last & (share >= purity))
    return float(values[order[good[-1]]]) if len(good) else 1.0
