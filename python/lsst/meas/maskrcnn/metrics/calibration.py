# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reliability of probabilities: how often what was given a probability is true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .arrays import FloatArray
from .binned import BinnedFraction, binned_fraction, divide


@dataclass(frozen=True)
class Reliability:
    """Probabilities given against how often they came true."""

    bins: BinnedFraction  # share of cases that came true, in bins of the probability given
    mean_probability: FloatArray  # of each bin; NaN in an empty one, (bin,)
    expected_error: float  # NaN without cases
    brier: float  # mean square of probability minus outcome (Brier 1950, MWR 78, 1)
    n: int  # number of cases


def reliability(
    probability: ArrayLike, true: ArrayLike, *, n_bins: int = 10, equal_counts: bool = False
) -> Reliability:
    """Compare probabilities with how often they came true, bool, both (case,); NaN is left out.

    With ``equal_counts`` bins hold about equal numbers of cases: most detections have a score near 1,
    where bins of equal width are coarse. The expected calibration error (Naeini et al. 2015, AAAI 29, 2901;
    Guo et al. 2017, arXiv:1706.04599) is the mean over bins of the difference between the share that came
    true and the mean probability, weighted by the cases.

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
    given, outcome = given[~np.isnan(given)], outcome[~np.isnan(given)]
    if np.any((given < 0.0) | (given > 1.0)):
        raise ValueError("Probabilities must lie between 0 and 1.")
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    if equal_counts and len(given):
        # Many equal scores make fewer bins.
        inner = np.unique(np.quantile(given, edges[1:-1]))
        edges = np.concatenate([[0.0], inner[(inner > 0.0) & (inner < 1.0)], [1.0]])
    bins = binned_fraction(given, outcome, edges)
    index = np.minimum(np.searchsorted(edges, given, side="right") - 1, len(edges) - 2)
    mean = divide(np.bincount(index, weights=given, minlength=len(edges) - 1), bins.total)
    if not len(given):
        return Reliability(bins, mean, float("nan"), float("nan"), 0)
    gap = np.nan_to_num(np.abs(bins.fraction - mean)) * bins.total
    brier = float(np.mean((given - outcome) ** 2))
    return Reliability(bins, mean, float(np.sum(gap) / len(given)), brier, len(given))


def log_loss(probability: ArrayLike, true: ArrayLike) -> float:
    """Compute the mean of -log(p) in nats, p the probability given to what is true; NaN without cases.

    No probability counts as more certain than one in a million.

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
    """Find the smallest score, from 0 to 1, above which the share ``purity`` is true; 1 if there is none.

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
