# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sersic profiles and their Fourier transforms, tabulated once per process."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

# Where profiles of an index above 2 fade out, in half-light radii of the endless profile: beyond,
# real galaxies lack the light that a Sersic law would still predict.
_TRUNCATION = (4.5, 9.5)
EXPONENTIAL_SCALE = 1.6783469900166605  # half-light radius / scale length
_INDEX_STEP = 0.1
_LOG_STEP = 0.009
LOG_R = _LOG_STEP * np.arange(-2048, 2048)  # 1e-8 to 1e8


@dataclass(frozen=True)
class SersicProfile:
    """Numbers of a Sersic profile that may fade out, and its transform.

    The endless profile is exp(-scale * ((r / endless) ** (1 / index) - 1))
    with ``endless`` its half-light radius in units of that of the faded one,
    and ``flux`` the flux of the faded one in units of endless^2.
    """

    index: float
    scale: float
    endless: float
    flux: float
    k: np.ndarray
    value: np.ndarray

    def transform(self, k2: np.ndarray) -> np.ndarray:
        """Return the Fourier transform of unit flux and half-light radius at squares of wave numbers."""
        if self.index == 1.0:
            k2 = k2 / EXPONENTIAL_SCALE**2
            return 1.0 / ((1.0 + k2) * np.sqrt(1.0 + k2))
        return np.interp(np.sqrt(k2), self.k, self.value, right=0.0)


def sersic_profile(index: float) -> SersicProfile:
    """Return the profile of an index from 0.5 to 6, rounded to 0.1; any other is an error."""
    return _tabulate_sersic(round(index / _INDEX_STEP))


@functools.cache
def _tabulate_sersic(step: int) -> SersicProfile:
    """Tabulate the profile of an index given in units of the grid's step."""
    index = round(step * _INDEX_STEP, 6)
    if not 0.5 <= index <= 6.0:
        raise ValueError(f"A Sersic index is {index}; it must lie in [0.5, 6].")
    r = np.exp(LOG_R)
    # Ciotti & Bertin 1999, A&A 352, 447
    scale = 2 * index - 1 / 3 + 4 / (405 * index) + 46 / (25515 * index**2) + 131 / (1148175 * index**3)
    brightness = np.exp(-scale * (r ** (1.0 / index) - 1.0))
    if index > 2.0:
        # One sharp edge would show on the sky as a rim.
        low, high = _TRUNCATION
        brightness *= np.clip((high - r) / (high - low), 0.0, 1.0)
    ring = 2 * math.pi * brightness * r * r * _LOG_STEP
    flux = float(ring.sum())
    half_light = float(np.exp(np.interp(0.5 * flux, np.cumsum(ring) - 0.5 * ring, LOG_R)))
    k, value = radial_transform(brightness / flux)
    used = (k > 1e-3) & (k < 500.0)
    return SersicProfile(
        index=index,
        scale=scale,
        endless=1.0 / half_light,
        flux=flux,
        k=np.concatenate([[0.0], k[used] * half_light]),
        value=np.concatenate([[1.0], value[used]]),
    )


def radial_transform(brightness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return wave numbers, and there the Fourier transform of a round image.

    ``brightness`` is given at the radii exp(`LOG_R`). This is a Hankel transform
    of order 0 between logarithmic grids (FFTLog, Hamilton 2000, MNRAS 312, 257,
    without bias and with k r = 1 in the middle).
    """
    r = np.exp(LOG_R)
    transform = np.fft.irfft(np.fft.rfft(brightness * r) * _hankel_kernel(), r.size)[::-1]
    return 1.0 / r[::-1], 2 * math.pi * transform * r[::-1]


@functools.lru_cache(maxsize=1)
def _hankel_kernel() -> np.ndarray:
    y = math.pi / (LOG_R.size * _LOG_STEP) * np.arange(LOG_R.size // 2 + 1)
    # The phase of Gamma(1/2 + iy), by recurrence and Stirling's series.
    z = 0.5 + 1j * y
    far = z + 8
    log_gamma = (far - 0.5) * np.log(far) - far + 1 / (12 * far) - 1 / (360 * far**3)
    log_gamma -= np.log(z[:, None] + np.arange(8)).sum(axis=1)
    kernel = np.exp(2j * (log_gamma.imag + math.log(2.0) * y))
    kernel[-1] = kernel[-1].real
    return kernel


def sersic_brightness(
    radius: np.ndarray, index: np.ndarray | float, half_light: np.ndarray, axis_ratio: np.ndarray
) -> np.ndarray:
    """Return the brightness (1/arcsec^2) of N profiles of unit flux at M radii along the major axis, (N, M).

    Radii and half-light radii along the major axis are arcsec.
    """
    steps, inverse = np.unique(np.round(np.asarray(index) / _INDEX_STEP).astype(int), return_inverse=True)
    profiles = [_tabulate_sersic(int(step)) for step in steps]
    numbers = np.array([(p.index, p.scale, p.endless, p.flux) for p in profiles]).reshape(-1, 4)
    n, scale, endless, flux = numbers[inverse.reshape(-1)].T[:, :, None]
    unit = endless * half_light[:, None]
    u = radius / unit
    low, high = _TRUNCATION
    fading = np.where(n > 2.0, np.clip((high - u) / (high - low), 0.0, 1.0), 1.0)
    value = fading * np.exp(-scale * (u ** (1.0 / n) - 1.0)) / (flux * unit**2)
    return value / axis_ratio[:, None]
