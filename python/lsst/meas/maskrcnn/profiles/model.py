# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the joint fit takes, and the models that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .render import N_SHAPE

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_Pixel = TypeVar("_Pixel", np.float32, np.bool_)

SHAPE_NAMES = ("x", "y", "r50", "e1", "e2", "index")
"""Centre (px), half-light radius (px; geometric mean of the axes), ellipticity
:math:`(a - b) / (a + b)` times the cosine and the sine of twice the position angle, from x to y, and
Sersic index."""


_MISFIT, _DOUBTFUL_SNR = 2.0, 20.0
"""chi^2 over degrees of freedom above which it is a misfit, and the S/N over it up to which the flux is
doubtful: at least 80 % of faint galaxies in halos above it are more than 20 % off."""


def add_stamp(
    images: npt.NDArray[np.float32], y0: int, x0: int, pixels: npt.NDArray[np.float32], sign: float
) -> None:
    """Add pixels whose first one is (y0, x0) to images (band, y, x), as far as they are inside."""
    height, width = images.shape[1:]
    top, left = max(y0, 0), max(x0, 0)
    bottom, right = min(y0 + pixels.shape[1], height), min(x0 + pixels.shape[2], width)
    if top < bottom and left < right:
        part = pixels[:, top - y0 : bottom - y0, left - x0 : right - x0]
        images[:, top:bottom, left:right] += np.float32(sign) * part


def pixels_at(images: npt.NDArray[_Pixel], y: IntArray, x: IntArray) -> npt.NDArray[_Pixel]:
    """Copy some pixels, (band, pixel); 0 outside the images."""
    inside = (y >= 0) & (y < images.shape[1]) & (x >= 0) & (x < images.shape[2])
    found = np.zeros((len(images), len(y)), images.dtype)
    found[:, inside] = images[:, y[inside], x[inside]]
    return found


@dataclass(frozen=True)
class FitSources:
    """N sources to fit, (N, ...) each."""

    positions: FloatArray
    """(y, x) of the peaks, (N, 2), px."""
    is_star: npt.NDArray[np.bool_]
    """Whether it is fitted as a star."""
    sizes: FloatArray
    """Half-light radii to start with (px)."""
    halves: IntArray
    """Half sides of their windows, out of `WINDOW_HALVES`."""
    groups: IntArray
    """Number of the group: sources of one group are fitted together."""

    def __len__(self) -> int:
        return len(self.positions)


@dataclass
class ProfileFit:
    """Models of N sources in B bands, (N, ...) each."""

    parameters: FloatArray
    """y, x (px), ln r, eta1, eta2, ln n, (N, 6), as `~.render.N_SHAPE` has them; of stars y and x."""
    flux: FloatArray
    """Total fluxes, (N, B)."""
    covariance: FloatArray
    """Of parameters and fluxes, (N, 6 + B, 6 + B), all other sources of the group marginalised over."""
    is_star: npt.NDArray[np.bool_]
    """Whether the model is a star."""
    chi2: FloatArray
    """chi^2 over the pixels of the window that were fitted."""
    dof: IntArray
    """Number of those pixels in all bands, less that of the parameters."""
    n_iter: IntArray
    """Steps that were made."""
    converged: npt.NDArray[np.bool_]
    """Whether the fit of its group converged."""
    delta_chi2: FloatArray = field(default_factory=lambda: np.zeros(0))
    """chi^2 as a star less that as a galaxy; NaN where both were not tried."""
    evidence: FloatArray = field(default_factory=lambda: np.zeros(0))
    """What the width says on its being a star (`~.classes.width_evidence`); NaN where nothing."""
    windows: list[tuple[int, int, npt.NDArray[np.float32]]] = field(default_factory=list)
    """First row and column of each model's window, and its pixels, (B, y, x)."""
    shared: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """Whether it shares its model with another source at its place."""
    core: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), bool))
    """Whether a pixel next to its peak could not be fitted, (N, B)."""
    edge: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """Whether it is nearer to the edge of the image than a FWHM of the PSF."""

    @property
    def flux_errors(self) -> FloatArray:
        """Standard deviations of ``flux``, (N, B)."""
        variances: FloatArray = np.einsum("nii->ni", self.covariance)[:, N_SHAPE:]
        return np.where(np.isfinite(self.flux), np.sqrt(variances), np.nan)

    @property
    def misfit(self) -> npt.NDArray[np.bool_]:
        """Whether what is left over around a source is too large for its flux, (N,).

        It is by its chi^2 over its degrees of freedom, in units of the median of all sources where that is
        above 1, as it is for variances that are too small.
        """
        reduced = self.chi2 / np.maximum(self.dof, 1)
        with np.errstate(invalid="ignore"):
            snr = np.nan_to_num(self.flux / self.flux_errors).max(axis=1, initial=0.0)
        known = np.isfinite(reduced)
        scale = max(float(np.median(reduced[known])), 1.0) if known.any() else 1.0
        return np.asarray((reduced > _MISFIT * scale) & (snr * scale < _DOUBTFUL_SNR * reduced))

    def scale_errors(self, factors: FloatArray) -> None:
        """Multiply errors by factors: those of the fluxes, (B,), and the others by their root mean square."""
        all_of_them = np.append(np.full(N_SHAPE, np.sqrt(np.mean(factors**2))), factors)
        self.covariance *= all_of_them[:, None] * all_of_them

    def share(self, rows: IntArray) -> ProfileFit:
        """Give models, by row, to M sources that share them; their fluxes are divided evenly."""
        part = 1.0 / np.bincount(rows, minlength=len(self.flux))[rows]
        names = ("parameters", "is_star", "chi2", "dof", "n_iter", "converged", "delta_chi2", "evidence")
        windows = [
            (*self.windows[row][:2], self.windows[row][2] * np.float32(scale))
            for row, scale in zip(rows.tolist(), part.tolist(), strict=True)
        ]
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in names},
            flux=self.flux[rows] * part[:, None],
            covariance=self.covariance[rows],
            windows=windows,
            shared=part < 1.0,
        )

    def select(self, bands: Sequence[int]) -> ProfileFit:
        """Take the bands of these numbers, in this order."""
        chosen = list(bands)
        rows = [*range(N_SHAPE), *(N_SHAPE + band for band in chosen)]
        windows = [(y0, x0, pixels[chosen]) for y0, x0, pixels in self.windows]
        covariance = self.covariance[:, rows][:, :, rows]
        core = self.core[:, chosen]
        return replace(self, flux=self.flux[:, chosen], covariance=covariance, windows=windows, core=core)

    def add_to(
        self,
        images: npt.NDArray[np.float32],
        index: int,
        sign: float = 1.0,
        bands: Sequence[int] | None = None,
    ) -> None:
        """Add the model of a source, times ``sign``, to images (band, y, x), in place.

        Bands are those of the model, in the order of the images; by default all.
        """
        y0, x0, pixels = self.windows[index]
        if bands is not None:
            pixels = pixels[list(bands)]
        add_stamp(images, y0, x0, pixels, sign)

    def shapes(self) -> tuple[FloatArray, FloatArray]:
        """Give centres and shapes by `SHAPE_NAMES`, (N, 6), and their covariance, (N, 6, 6).

        Stars have no radius, ellipticity or index: 0, 0 and NaN; their covariance is NaN for these.
        """
        y, x, log_radius, *eta, log_index = self.parameters.T
        length = np.hypot(*eta)
        safe = np.maximum(length, 1e-6)
        ratio, slope = np.tanh(0.5 * safe) / safe, 0.5 / np.cosh(0.5 * safe) ** 2
        radius, index = np.exp(log_radius), np.exp(log_index)
        values = np.stack([x, y, radius, ratio * eta[0], ratio * eta[1], index], axis=1)
        jacobian = np.zeros((len(values), len(SHAPE_NAMES), N_SHAPE))
        jacobian[:, 0, 1] = jacobian[:, 1, 0] = 1.0
        jacobian[:, 2, 2], jacobian[:, 5, 5] = radius, index
        for i in range(2):
            for j in range(2):
                along = (slope - ratio) * eta[i] * eta[j] / safe**2
                jacobian[:, 3 + i, 3 + j] = along + (ratio if i == j else 0.0)
        covariance = jacobian @ self.covariance[:, :N_SHAPE, :N_SHAPE] @ jacobian.transpose(0, 2, 1)
        values[self.is_star, 2:] = 0.0, 0.0, 0.0, np.nan
        covariance[self.is_star, 2:] = np.nan
        covariance[self.is_star, :, 2:] = np.nan
        return values, covariance
