# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stars and galaxies by their widths.

The network sees a source in cells of 0.39 FWHM; the joint fit knows the PSF and the neighbours. The odds of
being a star therefore take in the half-light radius that a source has as a galaxy, with its error, and how
many of the bright sources of the image are stars, by a logistic regression
(``tests/benchmarks/bench_classes.py``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from .model import ProfileFit

FloatArray = npt.NDArray[np.float64]

_CERTAIN, _REFERENCES = 0.98, 20
"""Probability above which a source is a star whatever its width would be, and how many of those are fitted as
galaxies all the same."""
_SURE, _WELL_MEASURED, _LEAST = 0.9, 50.0, 5
"""Probability and S/N above which stars tell what width they have, and how many of them are needed."""
_BRIGHTEST = 300.0
"""S/N up to which widths count: saturation and wings make those of brighter stars."""
_BRIGHT = 30.0
"""S/N from which on sources tell how frequent stars are."""

_WEIGHT = 0.49
"""Weight of the logarithm of the network's odds."""
_COEFFICIENTS = np.array([-1.06, 0.38, 0.50, 0.34, 0.80])
"""Of what `width_features` gives."""


def start_as_stars(p_star: FloatArray) -> npt.NDArray[np.bool_]:
    """Choose the sources that are fitted as stars from the start, by their probability, (N,)."""
    certain = p_star > _CERTAIN
    certain[np.flatnonzero(certain)[:_REFERENCES]] = False
    return certain


def width_features(fit: ProfileFit, p_star: FloatArray, fwhm: float, error_scale: float = 1.0) -> FloatArray:
    """Give what the regression goes by, (N, 5); NaN for stars and for bright sources.

    The columns are 1, t^2, u, t u and c. With r the half-light radius in units of the FWHM (px) of the
    PSF and s its error, t is ln r and u is ln s, less that of 0.08; c is the logarithm of the odds that a
    bright source is a star, by the probabilities of the network, (N,). What stars have for a radius, as the
    PSF is not quite right, is taken off in quadrature where there are enough of them. Errors of the radius
    are those of the fit times ``error_scale``.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = np.sqrt(np.nansum((fit.flux / fit.flux_errors) ** 2, axis=1))
        size = np.exp(fit.parameters[:, 2]) / fwhm
        error = error_scale * size * np.sqrt(fit.covariance[:, 2, 2])
    told = ~fit.is_star & (snr < _BRIGHTEST) & np.isfinite(error)
    sure = told & (p_star > _SURE) & (snr > _WELL_MEASURED)
    if np.count_nonzero(sure) >= _LEAST:
        size = np.sqrt(np.maximum(size**2 - np.median(size[sure]) ** 2, 0.0))
    bright = snr > _BRIGHT
    stars = float(p_star[bright].sum())
    frequency = np.log((stars + 0.5) / (np.count_nonzero(bright) - stars + 1.5))
    t, u = np.log(np.clip(size, 0.05, 1.0)), np.log(np.clip(error, 0.01, 0.5) / 0.08)
    features = np.stack([np.ones_like(t), t**2, u, t * u, np.full_like(t, frequency)], axis=1)
    features[~told] = np.nan
    return features


def width_evidence(fit: ProfileFit, p_star: FloatArray, fwhm: float, error_scale: float = 1.0) -> FloatArray:
    """Give what is added to the weighted odds of the network, (N,); NaN where the width says nothing.

    Arguments are as those of `width_features`.
    """
    return np.asarray(width_features(fit, p_star, fwhm, error_scale) @ _COEFFICIENTS)


def with_width(p_star: npt.NDArray[np.floating], evidence: FloatArray) -> FloatArray:
    """Take the evidence of the width into the probabilities of being a star, (N,)."""
    p = np.clip(p_star, 1e-4, 1.0 - 1e-4)
    joint = expit(_WEIGHT * (np.log(p) - np.log1p(-p)) + evidence)
    return np.where(np.isfinite(evidence), joint, p_star)
