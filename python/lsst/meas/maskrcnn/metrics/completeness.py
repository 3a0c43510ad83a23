# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The magnitude to which a catalogue is complete."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .binned import BinnedFraction


@dataclass(frozen=True)
class CompletenessLimit:
    """Where completeness falls to one half."""

    value: float  # the magnitude (or whatever the bins are of); NaN where it does not
    # Where the lower and the upper confidence limits of the completeness do.
    low: float
    high: float


def completeness_limit(binned: BinnedFraction) -> CompletenessLimit:
    """Find the faintest magnitude at which completeness in bins of it falls through one half.

    A dip among few bright sources is not the limit; see `last_crossing`.
    """
    curves = (binned.fraction, binned.low, binned.high)
    value, low, high = (last_crossing(binned.center, curve, binned.total, 0.5) for curve in curves)
    if not np.isfinite(value):
        low = high = value
    return CompletenessLimit(value, low, high)


def last_crossing(x: ArrayLike, curve: ArrayLike, total: ArrayLike, level: float) -> float:
    """Find where a falling curve goes through a level for good, interpolated linearly between two bins.

    Given are the centres of the bins, ascending, the share and the number of sources in each, (bin,); bins
    without any are passed over. It is NaN if there is no crossing beyond which the sources taken together are
    below the level.

    Examples
    --------
    A dip, then the fall; then the same without the fall:

    >>> last_crossing([20, 21, 22, 23], [0.0, 1.0, 1.0, 0.0], [1, 9, 9, 9], 0.5)
    22.5
    >>> last_crossing([20, 21, 22, 23], [1.0, 0.0, 1.0, 1.0], [1, 1, 9, 9], 0.5)
    nan
    """
    filled = np.asarray(total) > 0
    places, shares, number = (np.asarray(one, dtype=float)[filled] for one in (x, curve, total))
    for i in np.flatnonzero((shares[:-1] >= level) & (shares[1:] < level))[::-1].tolist():
        if np.average(shares[i + 1 :], weights=number[i + 1 :]) < level:
            step = (shares[i] - level) / (shares[i] - shares[i + 1])
            return float(places[i] + step * (places[i + 1] - places[i]))
    return float("nan")
