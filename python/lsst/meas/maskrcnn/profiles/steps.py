# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Linear algebra of the joint fit: steps of groups of sources, and their covariances."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .render import N_SHAPE

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SHORT_STEPS = 1.0
"""Least damping after a step that was too long: it halves the next one."""


def next_damping(
    damping: FloatArray, kept: FloatArray, active: npt.NDArray[np.bool_], better: npt.NDArray[np.bool_]
) -> FloatArray:
    """Change the damping of groups by the part of the promise of their last step that was kept.

    Steps that keep little of it are too long, and would go back and forth.
    """
    shorter = np.where(better, 4.0, 8.0) * damping
    damping = np.where(active & (~better | (kept < 0.25)), np.maximum(shorter, SHORT_STEPS), damping)
    return np.where(better & (kept > 0.5), np.maximum(damping * 0.2, 1e-4), damping)


def solve_within(
    matrix: FloatArray, right: FloatArray, parameters: FloatArray, limits: FloatArray
) -> FloatArray:
    """Solve for the steps of groups of one size, (group, source, 6 + B).

    A parameter, (group, source, 6), that would pass a limit, (lower or upper, group, source, 6), goes to that
    limit, and the other ones take the step that goes with it.
    """
    n_groups, size, width = right.shape
    found = np.asarray(np.linalg.solve(matrix, right.reshape(n_groups, -1, 1))).reshape(right.shape)
    known = np.zeros(right.shape)
    known[..., :N_SHAPE] = np.clip(parameters + found[..., :N_SHAPE], *limits) - parameters
    held = np.zeros(right.shape, bool)
    held[..., :N_SHAPE] = np.abs(known - found)[..., :N_SHAPE] > 1e-9
    again = np.flatnonzero(held.any(axis=(1, 2)))
    if len(again):
        fixed = held[again].reshape(len(again), -1)
        values = np.where(held, known, 0.0)[again].reshape(len(again), -1)
        part = matrix[again]
        aim = right[again].reshape(len(again), -1) - np.einsum("gij,gj->gi", part, values)
        part[fixed] = 0.0
        part.transpose(0, 2, 1)[fixed] = 0.0
        diagonal = np.einsum("gii->gi", part)
        diagonal[fixed] = 1.0
        aim[fixed] = values[fixed]
        found[again] = np.linalg.solve(part, aim[..., None]).reshape(len(again), size, width)
        found[..., :N_SHAPE] = np.clip(parameters + found[..., :N_SHAPE], *limits) - parameters
    return found


def invert(matrix: FloatArray) -> FloatArray:
    """Invert symmetric matrices, scaled to a diagonal of 1; where that fails, raise eigenvalues to 1e-6."""
    # Rounding may leave a variance below 0 where a sky takes all that a template has.
    scale = 1.0 / np.sqrt(np.maximum(np.einsum("gii->gi", matrix), 0.0) + 1e-30)
    scaled = np.nan_to_num(matrix * scale[:, :, None] * scale[:, None])
    inverse: FloatArray = np.linalg.inv(scaled + 1e-6 * np.eye(matrix.shape[1]))
    # No variance is below that with all other parameters known.
    failed = ~(np.einsum("gii->gi", inverse) >= 0.99).all(axis=1)
    if failed.any():
        values, vectors = np.linalg.eigh(scaled[failed])
        inverse[failed] = (vectors / np.maximum(values, 1e-6)[:, None]) @ vectors.transpose(0, 2, 1)
    return inverse * scale[:, :, None] * scale[:, None]


def assemble(own: FloatArray, pair: FloatArray, places: tuple[IntArray, IntArray, IntArray]) -> FloatArray:
    """Put products of sources, (group, source, ...), and of pairs, (pair, ...), into matrices.

    Of pairs there are the group and the places in it; (group, source, source, ...).
    """
    n_groups, size = own.shape[:2]
    matrix = np.zeros((n_groups, size, size, *own.shape[2:]))
    matrix[:, np.arange(size), np.arange(size)] = own
    group, first, second = places
    matrix[group, first, second] = pair
    matrix[group, second, first] = pair.swapaxes(-1, -2) if pair.ndim > 2 else pair
    return matrix


def by_parameter(products: FloatArray) -> FloatArray:
    """From products by band to those of parameters and fluxes: (..., B, 7, 7) to (..., 6 + B, 6 + B)."""
    *shape, n_bands = products.shape[:-2]
    matrix = np.zeros((*shape, N_SHAPE + n_bands, N_SHAPE + n_bands))
    matrix[..., :N_SHAPE, :N_SHAPE] = products[..., 1:, 1:].sum(axis=-3)
    matrix[..., :N_SHAPE, N_SHAPE:] = products[..., 1:, 0].swapaxes(-1, -2)
    matrix[..., N_SHAPE:, :N_SHAPE] = products[..., 0, 1:]
    bands = N_SHAPE + np.arange(n_bands)
    matrix[..., bands, bands] = products[..., 0, 0]
    return matrix
