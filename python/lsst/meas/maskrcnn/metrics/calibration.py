# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether scores and probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..network.calibration import (
    Calibration,
    CalibrationMethod,
    calibrate_p_star,
    calibrate_scores,
    fit_curve,
)
from .binned import ONE_SIGMA, BinnedFraction, binned_fraction
from .match_table import MatchTable, detection_rows, matched_rows
from .matching import ImagePairs, match
from .spans import SpanMasks

if TYPE_CHECKING:
    from ..network.detections import Detections
    from ..train.validation import ValidationImage

__all__ = [
    "CalibrationCases",
    "Reliability",
    "calibration_cases",
    "cross_calibrate",
    "fit_calibration",
    "log_loss",
    "p_star_reliability",
    "reliability",
    "score_reliability",
]

_MASKED = 0.5
"""Detections with more of their mask on unusable pixels are left out."""


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
    maximum_error : `float`
        Largest difference of a bin.
    brier : `float`
        Mean square of probability minus outcome (Brier 1950, MWR 78, 1).
    n : `int`
        Number of cases.
    """

    bins: BinnedFraction
    mean_probability: NDArray[np.float64]
    expected_error: float
    maximum_error: float
    brier: float
    n: int


def reliability(
    probability: ArrayLike,
    true: ArrayLike,
    *,
    n_bins: int = 10,
    equal_counts: bool = False,
    level: float = ONE_SIGMA,
    method: str = "wilson",
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
        Detections crowd near 1, where bins of equal width see little.
    level : `float`
        Confidence level of the intervals.
    method : `str`
        See `binned.binomial_interval`.

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
    bins = binned_fraction(given, outcome, edges, level=level, method=method)
    index = np.minimum(np.searchsorted(edges, given, side="right") - 1, len(edges) - 2)
    total = np.bincount(index, weights=given, minlength=len(edges) - 1)
    filled = bins.total > 0
    mean = np.divide(total, bins.total, out=np.full(len(total), np.nan), where=filled)
    n = len(given)
    if not n:
        nan = float("nan")
        return Reliability(bins, mean, nan, nan, nan, 0)
    gap = np.abs(bins.fraction - mean)[filled]
    return Reliability(
        bins,
        mean,
        float(np.sum(gap * bins.total[filled]) / n),
        float(gap.max()),
        float(np.mean((given - outcome) ** 2)),
        n,
    )


def score_reliability(
    table: MatchTable,
    is_star: bool | None = None,
    *,
    same_class: bool = True,
    n_bins: int = 10,
    equal_counts: bool = False,
    level: float = ONE_SIGMA,
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
    equal_counts : `bool`
        See `reliability`.
    level : `float`
        Confidence level of the intervals.

    Returns
    -------
    reliability : `Reliability`
        The comparison.
    """
    rows = detection_rows(table, is_star)
    true = matched_rows(table, same_class=same_class)[rows]
    score = np.asarray(table["score"], dtype=float)[rows]
    return reliability(score, true, n_bins=n_bins, equal_counts=equal_counts, level=level)


def p_star_reliability(
    table: MatchTable,
    *,
    n_bins: int = 10,
    equal_counts: bool = False,
    min_score: float | None = None,
    level: float = ONE_SIGMA,
) -> Reliability:
    """Compare the star probabilities of matched sources with their classes.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    n_bins : `int`
        Number of bins.
    equal_counts : `bool`
        See `reliability`.
    min_score : `float`, optional
        Only detections of at least this score.
    level : `float`
        Confidence level of the intervals.

    Returns
    -------
    reliability : `Reliability`
        The comparison.
    """
    rows = matched_rows(table, min_score=min_score)
    p_star = np.asarray(table["p_star"], dtype=float)[rows]
    is_star = np.asarray(table["truth_is_star"], dtype=bool)[rows]
    return reliability(p_star, is_star, n_bins=n_bins, equal_counts=equal_counts, level=level)


@dataclass(frozen=True, eq=False)
class CalibrationCases:
    """Detections with what is true of them.

    Parameters
    ----------
    score : `numpy.ndarray`
        Score, float64, (case,).
    counts : `numpy.ndarray`
        Whether it is right or wrong, and not neither, bool, (case,).
    true : `numpy.ndarray`
        Whether it is right, bool, (case,).
    p_star : `numpy.ndarray`
        P(star), float64, (case,).
    on_source : `numpy.ndarray`
        Whether it lies on a source, though perhaps not well enough to be
        right, bool, (case,).
    is_star : `numpy.ndarray`
        Whether that source is a star, bool, (case,); `False` without one.
    peak_snr : `numpy.ndarray`
        S/N of the source's brightest pixel in its best band, float64,
        (case,); NaN where there is no source or it is not known.
    depth : `numpy.ndarray`
        Noise of a pixel in the image, float64, (case,), nJy; 0 in an image
        without noise.
    image : `numpy.ndarray`
        Number of the image, int64, (case,).
    """

    score: NDArray[np.float64]
    counts: NDArray[np.bool_]
    true: NDArray[np.bool_]
    p_star: NDArray[np.float64]
    on_source: NDArray[np.bool_]
    is_star: NDArray[np.bool_]
    peak_snr: NDArray[np.float64]
    depth: NDArray[np.float64]
    image: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.score)

    def select(self, chosen: ArrayLike) -> CalibrationCases:
        """Take some of the cases.

        Parameters
        ----------
        chosen : array_like
            Their indices, or a bool for each.

        Returns
        -------
        cases : `CalibrationCases`
            These.
        """
        index: Any = np.asarray(chosen)
        return CalibrationCases(*(getattr(self, part.name)[index] for part in fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[CalibrationCases]) -> CalibrationCases:
        """Put the cases of images together.

        Parameters
        ----------
        parts : `~collections.abc.Sequence` [`CalibrationCases`]
            At least one.

        Returns
        -------
        cases : `CalibrationCases`
            All of them.
        """
        return cls(*(np.concatenate([getattr(one, part.name) for one in parts]) for part in fields(cls)))

    def scores(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the scores that can be compared with the truth.

        Returns
        -------
        score : `numpy.ndarray`
            Scores of what counts, float64, (N,).
        true : `numpy.ndarray`
            Whether each is right, bool, (N,).
        """
        return self.score[self.counts], self.true[self.counts]

    def classes(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the star probabilities that can be compared with the truth.

        Returns
        -------
        p_star : `numpy.ndarray`
            P(star) of what lies on a source, float64, (N,).
        is_star : `numpy.ndarray`
            Whether each is a star, bool, (N,).
        """
        return self.p_star[self.on_source], self.is_star[self.on_source]


def calibration_cases(
    found: Detections,
    image: ValidationImage,
    *,
    number: int = 0,
    depth: float = 0.0,
    peak_snr: ArrayLike | None = None,
    threshold: float = 0.5,
    class_threshold: float = 0.25,
) -> CalibrationCases:
    """Say of the detections of an image which are true.

    Parameters
    ----------
    found : `~lsst.meas.maskrcnn.network.inference.Detections`
        With the scores as the network gives them.
    image : `~.validation.ValidationImage`
        The image and its truth. What matches a source that is not asked for
        is neither right nor wrong, and is left out.
    number : `int`
        Of the image.
    depth : `float`
        Noise of a pixel, nJy; 0 in an image without noise.
    peak_snr : array_like, optional
        S/N of the truths' brightest pixels, (truth,).
    threshold : `float`
        Smallest IoU of the masks of a detection and its truth for it to be
        right. Classes need not agree: that they do is what P(star) is about.
    class_threshold : `float`
        Smallest IoU for the detection to lie on the truth.

    Returns
    -------
    cases : `CalibrationCases`
        The detections that are right or wrong, or lie on a source.

    Notes
    -----
    The network draws the mask of the class that it holds for more likely. A
    star with the mask of a galaxy often has an IoU below 0.5; were it left
    out, stars would seem never to be called galaxies.
    """
    masks = SpanMasks.from_masks(found.masks, found.origins)
    pairs = ImagePairs.from_spans(
        masks,
        found.scores,
        np.where(found.p_star > 0.5, 1, 2),
        SpanMasks.from_masks(image.masks, image.origins),
        image.labels,
        ignored=masks.share_in(~image.valid) > _MASKED,
        truth_ignored=~image.asked,
    )
    matches = match(pairs, [threshold, class_threshold])
    truth, on_source = matches.truth[1], matches.hit[1]
    counts = ~matches.ignored[0]
    snr = np.full(len(image.labels), np.nan) if peak_snr is None else np.asarray(peak_snr, dtype=np.float64)
    # A truth of -1 reads the last element here, which does not count then.
    cases = CalibrationCases(
        score=np.asarray(found.scores, dtype=np.float64),
        counts=counts,
        true=matches.hit[0],
        p_star=np.asarray(found.p_star, dtype=np.float64),
        on_source=on_source,
        is_star=on_source & (np.append(image.labels, 0)[truth] == 1),
        peak_snr=np.where(on_source, np.append(snr, np.nan)[truth], np.nan),
        depth=np.full(len(found), depth),
        image=np.full(len(found), number, dtype=np.int64),
    )
    return cases.select(counts | on_source)


def fit_calibration(
    cases: CalibrationCases,
    method: CalibrationMethod = "isotonic",
    *,
    n_points: int = 28,
    provenance: dict[str, Any] | None = None,
) -> Calibration:
    """Fit what the scores of a model mean.

    Parameters
    ----------
    cases : `CalibrationCases`
        Detections on images that the model has not learnt from.
    method : `str`
        See `~lsst.meas.maskrcnn.network.calibration.fit_curve`.
    n_points : `int`
        Largest number of points of a curve.
    provenance : `dict`, optional
        To be kept with it.

    Returns
    -------
    calibration : `~lsst.meas.maskrcnn.network.calibration.Calibration`
        That of the score is fitted to what is right or wrong, that of P(star)
        to what lies on a source.

    Raises
    ------
    ValueError
        Raised if there are too few cases.
    """
    return Calibration(
        score=fit_curve(*cases.scores(), method, n_points=n_points),
        p_star=fit_curve(*cases.classes(), method, n_points=n_points),
        provenance=provenance or {},
    )


def cross_calibrate(
    cases: CalibrationCases, method: CalibrationMethod = "isotonic", *, n_folds: int = 5, n_points: int = 28
) -> CalibrationCases:
    """Calibrate each case by a fit to the other images.

    Parameters
    ----------
    cases : `CalibrationCases`
        Cases of several images.
    method : `str`
        See `~lsst.meas.maskrcnn.network.calibration.fit_curve`.
    n_folds : `int`
        Number of fits; each leaves out as many images.
    n_points : `int`
        Largest number of points of a curve.

    Returns
    -------
    cases : `CalibrationCases`
        The same, with ``score`` and ``p_star`` as a calibration makes them
        that has not seen them. What these say holds for new images.

    Raises
    ------
    ValueError
        Raised if there are fewer images than fits, or too few cases.
    """
    images = np.unique(cases.image)
    if not 2 <= n_folds <= len(images):
        raise ValueError(f"{len(images)} images cannot be divided by {n_folds} fits; give more images.")
    fold = np.searchsorted(images, cases.image) % n_folds
    score, p_star = np.empty(len(cases)), np.empty(len(cases))
    for number in range(n_folds):
        out = fold == number
        fitted = fit_calibration(cases.select(~out), method, n_points=n_points)
        score[out] = calibrate_scores(cases.score[out], fitted)
        p_star[out] = calibrate_p_star(cases.p_star[out], fitted)
    return replace(cases, score=score, p_star=p_star)


def log_loss(probability: ArrayLike, true: ArrayLike) -> float:
    """Compute the mean of the negative logarithm of what was given to the truth.

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
