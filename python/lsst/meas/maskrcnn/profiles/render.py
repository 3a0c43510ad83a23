# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Templates of sources of unit flux, and their derivatives, on square windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from .mixtures import sersic_mixture
from .psf import PsfMixture

__all__ = ["N_SHAPE", "render_windows", "shape_matrix"]

N_SHAPE = 6
"""Parameters of a galaxy: y and x of the centre (px), ln of the half-light radius (px; geometric
mean of the axes), the two components of the conformal shear, and ln of the Sersic index."""

_CHUNK = 250_000
"""Values of Gaussians that are held at once: about what fits into the cache of a core."""


def shape_matrix(shape: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    r"""Give the matrix of an ellipse, and its derivatives.

    Parameters
    ----------
    shape : `numpy.ndarray`
        ln r and conformal shear (eta1, eta2) of N sources, (N, 3).

    Returns
    -------
    matrix : `numpy.ndarray`
        :math:`r^2 \exp M` with :math:`M = ((-\eta_1, \eta_2), (\eta_2,
        \eta_1))` in the order y, x, (N, 2, 2), px^2: the axes of the ellipse
        that holds half of the light are the roots of its eigenvalues.
    derivatives : `numpy.ndarray`
        By ln r, eta1 and eta2, (N, 3, 2, 2).
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


def render_windows(
    parameters: npt.NDArray[np.float64],
    origins: npt.NDArray[np.int64],
    side: int,
    psfs: Sequence[PsfMixture],
    is_star: bool,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Draw sources of unit flux and their derivatives, a few at a time.

    Parameters
    ----------
    parameters : `numpy.ndarray`
        Parameters of N sources, (N, 6), see `N_SHAPE`; of stars the first two
        count.
    origins : `numpy.ndarray`
        (y, x) of the first pixel of each window, (N, 2).
    side : `int`
        Side of the windows (px).
    psfs : `~collections.abc.Sequence` [`PsfMixture`]
        The PSF in each of B bands.
    is_star : `bool`
        Whether they are stars.
    device : `torch.device` or `str`, optional
        Where to draw.

    Yields
    ------
    chosen : `slice`
        Which sources.
    pixels : `torch.Tensor`
        Their templates and derivatives by the parameters, float32, (n, pixel,
        B, 7), 0 for the parameters that a star does not have; overwritten by
        the next ones.
    """
    n_sources, n_bands = len(parameters), len(psfs)
    gaussians = _coefficients(parameters, psfs, is_star)
    n_gaussians, n_pixels = gaussians["weight"].shape[2], side * side
    centers = (parameters[:, None, :2] - origins[:, None]) + np.array([psf.center for psf in psfs])
    axis = torch.arange(side, dtype=torch.float32, device=device)
    y, x = axis.repeat_interleave(side), axis.repeat(side)
    basis = torch.stack([y * y, y * x, x * x, y, x, torch.ones_like(y)])
    exponents = torch.as_tensor(_exponents(gaussians, centers), dtype=torch.float32, device=device)
    rows = torch.as_tensor(_rows(gaussians, is_star), dtype=torch.float32, device=device)
    offsets = torch.as_tensor(centers, dtype=torch.float32, device=device)[..., None]
    step = min(max(1, _CHUNK // (n_bands * n_gaussians * n_pixels)), n_sources)
    # Fresh memory would cost more time than the arithmetic.
    values = torch.empty((step * n_bands * n_gaussians, n_pixels), device=device)
    sums = torch.empty((step * n_bands, rows.shape[2], n_pixels), device=device)
    result = torch.zeros((step, n_pixels, n_bands, 1 + N_SHAPE), device=device)
    for first in range(0, n_sources, step):
        chosen = slice(first, min(first + step, n_sources))
        matrix = exponents[chosen].reshape(-1, 6)
        gaussian = torch.mm(matrix, basis, out=values[: len(matrix)]).exp_()
        factors = rows[chosen].reshape(-1, *rows.shape[2:])
        sum_of = torch.bmm(
            factors, gaussian.view(len(factors), n_gaussians, -1), out=sums[: len(factors)]
        ).view(-1, n_bands, rows.shape[2], n_pixels)
        dy, dx = y - offsets[chosen, :, 0], x - offsets[chosen, :, 1]
        pixels = result[: len(sum_of)]
        into = pixels.permute(3, 0, 2, 1)
        into[0] = sum_of[:, :, 0]
        into[1] = dy * sum_of[:, :, 1] + dx * sum_of[:, :, 2]
        into[2] = dy * sum_of[:, :, 2] + dx * sum_of[:, :, 3]
        if not is_star:
            squares = (dy * dy, dy * dx, dx * dx)
            for number in range(4):
                part = sum_of[:, :, 7 + 4 * number]
                for power, square in enumerate(squares):
                    part.addcmul_(square, sum_of[:, :, 4 + 4 * number + power])
                into[3 + number] = part
        yield chosen, pixels


def _coefficients(
    parameters: npt.NDArray[np.float64], psfs: Sequence[PsfMixture], is_star: bool
) -> dict[str, npt.NDArray[np.float64]]:
    """Weight, inverse covariance and their derivatives of each Gaussian, (source, band, Gaussian, ...)."""
    psf_weight = np.array([psf.weight for psf in psfs])
    psf_covariance = np.array([psf.covariance for psf in psfs])
    n_sources, n_bands = len(parameters), len(psfs)
    if is_star:
        weight = np.broadcast_to(psf_weight, (n_sources, *psf_weight.shape))
        covariance = np.broadcast_to(psf_covariance, (n_sources, *psf_covariance.shape))
        return _finish(weight, covariance)
    variance, part, log_variance_slope, part_slope = sersic_mixture(parameters[:, 5])
    matrix, derivatives = shape_matrix(parameters[:, 2:5])
    shape = (n_sources, n_bands, -1)
    own = variance[:, :, None, None] * matrix[:, None]
    covariance = own[:, None, :, None] + psf_covariance[None, :, None]
    weight = part[:, None, :, None] * psf_weight[None, :, None]
    # Derivatives of the covariance by ln r, eta1, eta2 and ln n, and of ln of the weight by ln n.
    changes = np.concatenate(
        [
            variance[:, :, None, None, None] * derivatives[:, None],
            (log_variance_slope[:, :, None, None] * own)[:, :, None],
        ],
        axis=2,
    )
    n_psf = psf_weight.shape[1]
    changes = np.broadcast_to(
        changes[:, None, :, None], (n_sources, n_bands, variance.shape[1], n_psf, 4, 2, 2)
    )
    by_index = np.broadcast_to((part_slope / part)[:, None, :, None], weight.shape)
    found = _finish(weight.reshape(shape), covariance.reshape(*shape, 2, 2))
    found["changes"] = changes.reshape(n_sources, n_bands, -1, 4, 2, 2)
    found["by_index"] = by_index.reshape(shape)
    return found


def _finish(
    weight: npt.NDArray[np.float64], covariance: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[np.float64]]:
    a, b, c = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    determinant = a * c - b * b
    inverse = np.stack([c, -b, -b, a], axis=-1).reshape(covariance.shape) / determinant[..., None, None]
    return {"weight": weight / (2.0 * np.pi * np.sqrt(determinant)), "inverse": inverse}


def _exponents(
    gaussians: dict[str, npt.NDArray[np.float64]], centers: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Coefficients of y^2, y x, x^2, y, x and 1 in the exponents, (source, band, Gaussian, 6)."""
    a, b, c = (gaussians["inverse"][..., i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
    y, x = centers[..., None, 0], centers[..., None, 1]
    constant = -0.5 * (a * y * y + 2.0 * b * y * x + c * x * x)
    return np.stack([-0.5 * a, -b, -0.5 * c, a * y + b * x, b * y + c * x, constant], axis=-1)


def _rows(gaussians: dict[str, npt.NDArray[np.float64]], is_star: bool) -> npt.NDArray[np.float64]:
    """Coefficients of the sums over the Gaussians that templates and derivatives are made of.

    (source, band, row, Gaussian): the value; three for the derivatives by the
    centre; and for each parameter of the shape those of y^2, y x, x^2 and 1.
    """
    weight, inverse = gaussians["weight"], gaussians["inverse"]
    rows = [weight] + [weight * inverse[..., i, j] for i, j in ((0, 0), (0, 1), (1, 1))]
    if not is_star:
        # d ln g = (u^T C' u - tr(A C')) / 2 with u = A d.
        wide = inverse[..., None, :, :]
        product = wide @ gaussians["changes"]
        quadratic = 0.5 * weight[..., None, None, None] * (product @ wide)
        constant = -0.5 * weight[..., None] * np.trace(product, axis1=-2, axis2=-1)
        constant[..., 3] += weight * gaussians["by_index"]
        for number in range(4):
            form = quadratic[..., number, :, :]
            rows += [form[..., 0, 0], 2.0 * form[..., 0, 1], form[..., 1, 1], constant[..., number]]
    return np.stack(rows, axis=-2)
