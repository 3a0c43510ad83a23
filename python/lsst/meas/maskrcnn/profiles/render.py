# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Templates of sources of unit flux, and their derivatives, on round windows."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from .mixtures import sersic_mixture
from .psf import PsfStack

N_SHAPE = 6
"""Parameters of a galaxy: y and x of the centre (px), ln of the half-light radius (px; geometric
mean of the axes), the two components of the conformal shear, and ln of the Sersic index."""

_CHUNK = 400_000
"""Values of Gaussians that are held at once: about what fits into the cache of a core."""
_LEAST_EXPONENT = -115.0
"""Exponents of 2 are raised to this: arithmetic with numbers that are not normal is slow."""
_LOG2_E = float(np.log2(np.e))


def shape_matrix(shape: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    r"""Give the matrix of an ellipse, and its derivatives.

    Of N sources, by the logarithm of r and conformal shear (eta1, eta2), (N, 3): :math:`r^2 \exp M` with
    :math:`M = ((-\eta_1, \eta_2), (\eta_2, \eta_1))` in the order y, x, (N, 2, 2), px^2, the roots of whose
    eigenvalues are the axes of the ellipse that holds half of the light; and its derivatives by ln r, eta1
    and eta2, (N, 3, 2, 2).
    """
    size = np.exp(2.0 * shape[:, 0])[:, None, None]
    eta = np.hypot(shape[:, 1], shape[:, 2])
    small = eta < 1e-3
    safe = np.where(small, 1.0, eta)
    cosh = np.cosh(eta)
    sinh = np.where(small, 1.0 + eta**2 / 6.0, np.sinh(safe) / safe)
    slope = np.where(small, 1.0 / 3.0 + eta**2 / 30.0, (cosh - sinh) / safe**2)
    units = np.array([[[-1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    traceless = np.einsum("np,pij->nij", shape[:, 1:3], units)
    matrix = size * (cosh[:, None, None] * np.eye(2) + sinh[:, None, None] * traceless)
    derivatives = np.empty((len(shape), 3, 2, 2))
    derivatives[:, 0] = 2.0 * matrix
    for number in range(2):
        along = shape[:, 1 + number, None, None]
        derivatives[:, 1 + number] = size * (
            sinh[:, None, None] * (along * np.eye(2) + units[number])
            + slope[:, None, None] * along * traceless
        )
    return matrix, derivatives


@functools.cache
def window_pixels(side: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give the rows and columns, from 0, of the pixels of a round window in a square of some side."""
    half = side // 2
    axis = np.arange(side) - half
    rows, columns = np.nonzero(axis[:, None] ** 2 + axis**2 <= (half + 0.5) ** 2)
    return rows, columns


def render_windows(
    parameters: npt.NDArray[np.float64],
    origins: npt.NDArray[np.int64],
    side: int,
    psfs: PsfStack,
    is_star: bool,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Draw N sources of unit flux and their derivatives, a few at a time.

    Their parameters, (N, 6), are as `N_SHAPE` says, of which the first two count for stars; ``origins``,
    (N, 2), are (y, x) of the first pixel of the square of a ``side`` (px) around each window.

    Gives the sources that were drawn, and their templates and derivatives by the parameters in B bands,
    float32, (n, B, 7, P), of stars (n, B, 3, P), with the P pixels of `window_pixels`. The next ones
    overwrite them.
    """
    n_sources, n_bands = psfs.weight.shape[:2]
    half = 0.5 * (side - 1)
    centers = parameters[:, None, :2] - origins[:, None] - half + psfs.center
    offsets = torch.as_tensor(centers, dtype=torch.float32, device=device)
    amplitude, inverse, rows = _coefficients(parameters, psfs, is_star, device)
    basis = _basis(side, torch.device(device))
    y, x = basis[3:5]
    exponents = _exponents(inverse, offsets)
    n_gaussians, n_pixels, n_rows = amplitude.shape[2], len(y), rows.shape[2]
    step = min(max(1, _CHUNK // (n_bands * n_gaussians * n_pixels)), n_sources)
    # Fresh memory would cost more time than the arithmetic.
    values = torch.empty((step * n_bands * n_gaussians, n_pixels), device=device)
    sums = torch.empty((step * n_bands, n_rows, n_pixels), device=device)
    result = torch.empty((step, n_bands, 3 if is_star else 1 + N_SHAPE, n_pixels), device=device)
    for first in range(0, n_sources, step):
        chosen = slice(first, min(first + step, n_sources))
        matrix = exponents[chosen].reshape(-1, 6)
        gaussian = torch.mm(matrix, basis, out=values[: len(matrix)])
        gaussian.clamp_(min=_LEAST_EXPONENT).exp2_()
        factors = rows[chosen].reshape(-1, n_rows, n_gaussians)
        sum_of = torch.bmm(factors, gaussian.view(len(factors), n_gaussians, -1), out=sums[: len(factors)])
        sum_of = sum_of.view(-1, n_bands, n_rows, n_pixels)
        dy, dx = y - offsets[chosen, :, :1], x - offsets[chosen, :, 1:]
        pixels = result[: len(sum_of)]
        pixels[:, :, 0] = sum_of[:, :, 0]
        torch.mul(dy, sum_of[:, :, 1], out=pixels[:, :, 1]).addcmul_(dx, sum_of[:, :, 2])
        torch.mul(dy, sum_of[:, :, 2], out=pixels[:, :, 2]).addcmul_(dx, sum_of[:, :, 3])
        if not is_star:
            shapes = pixels[:, :, 3:]
            parts = sum_of[:, :, 4:].view(*sum_of.shape[:2], 4, 4, n_pixels)
            shapes.copy_(parts[:, :, 3])
            for number, square in enumerate((dy * dy, dy * dx, dx * dx)):
                shapes.addcmul_(square[:, :, None], parts[:, :, number])
        yield chosen, pixels


@functools.cache
def _basis(side: int, device: torch.device) -> torch.Tensor:
    """y^2, y x, x^2, y, x and 1 of the pixels of a window from its middle, (6, P), px."""
    half = 0.5 * (side - 1)
    y, x = (torch.as_tensor(axis - half, dtype=torch.float32, device=device) for axis in window_pixels(side))
    return torch.stack([y * y, y * x, x * x, y, x, torch.ones_like(y)])


def _coefficients(
    parameters: npt.NDArray[np.float64], psfs: PsfStack, is_star: bool, device: torch.device | str
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Coefficients of the Gaussians.

    Amplitudes, (source, band, Gaussian); elements yy, yx and xx of the inverse
    covariances; and rows of coefficients for the sums over Gaussians that
    templates and derivatives are made of, (source, band, row, Gaussian): the
    value; three for the derivatives by the centre; and then for y^2, y x, x^2
    and 1 those of each parameter of the shape.
    """

    def tensor(values: npt.NDArray[np.float64]) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=device)

    n_sources, n_bands, n_psf = psfs.weight.shape
    weight, elements = tensor(psfs.weight), tensor(psfs.covariance)
    if not is_star:
        numbers = sersic_mixture(parameters[:, 5])
        # (source, 1, Gaussian of the profile, 1)
        variance, part, log_variance_slope, part_slope = (
            tensor(values)[:, None, :, None] for values in numbers
        )
        matrix, derivatives = shape_matrix(parameters[:, 2:5])
        own = tensor(np.stack([matrix[:, i, j] for i, j in ((0, 0), (0, 1), (1, 1))]))
        weight = (part * weight[:, :, None]).flatten(2)
        elements = (own[:, :, None, None, None] * variance + elements[:, :, :, None]).flatten(3)
    yy, yx, xx = elements
    determinant = yy * xx - yx * yx
    a, b, c = xx / determinant, -yx / determinant, yy / determinant
    amplitude = weight * determinant.rsqrt() / (2.0 * np.pi)
    rows = torch.empty((n_sources, n_bands, 4 if is_star else 20, amplitude.shape[2]), device=device)
    for number, value in enumerate((amplitude, amplitude * a, amplitude * b, amplitude * c)):
        rows[:, :, number] = value
    if is_star:
        return amplitude, (a, b, c), rows

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.expand(-1, -1, -1, n_psf).flatten(2)

    # d ln g = (d^T A C' A d - tr(A C')) / 2 by each element of C = v S + P.
    u = 0.5 * amplitude * spread(variance)
    ua, ub, uc = u * a, u * b, u * c
    forms = torch.stack(
        [
            *(ua * a, 2.0 * ua * b, ub * b, -ua),
            *(2.0 * ua * b, 2.0 * (ua * c + ub * b), 2.0 * ub * c, -2.0 * ub),
            *(ub * b, 2.0 * ub * c, uc * c, -uc),
        ],
        dim=1,
    ).view(n_sources, 3, -1)
    change = tensor(np.stack([derivatives[..., i, j] for i, j in ((0, 0), (0, 1), (1, 1))], axis=-1))
    by_shape = (change @ forms).view(n_sources, 3, 4, n_bands, -1)
    shapes = rows[:, :, 4:].view(n_sources, n_bands, 4, 4, -1)
    shapes[:, :, :, :3] = by_shape.permute(0, 3, 2, 1, 4)
    torch.mul(shapes[:, :, :, 0], 0.5 * spread(log_variance_slope)[:, :, None], out=shapes[:, :, :, 3])
    shapes[:, :, 3, 3] += amplitude * spread(part_slope / part)
    return amplitude, (a, b, c), rows


def _exponents(
    inverse: tuple[torch.Tensor, torch.Tensor, torch.Tensor], offsets: torch.Tensor
) -> torch.Tensor:
    """Coefficients of y^2, y x, x^2, y, x and 1 in the exponents of 2, (source, band, Gaussian, 6).

    Powers of 2 take a quarter of the time of those of e.
    """
    a, b, c = (_LOG2_E * element for element in inverse)
    y, x = offsets[..., :1], offsets[..., 1:]
    constant = -0.5 * (a * y * y + 2.0 * b * y * x + c * x * x)
    return torch.stack([-0.5 * a, -b, -0.5 * c, a * y + b * x, b * y + c * x, constant], dim=-1)
