# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Adaptive second moments, and fluxes with a Gaussian weight.

The moments are those of Bernstein and Jarvis (2002, AJ 123, 583): those of
the object under an elliptical Gaussian that has the object's own shape. The
formulas of the uncertainties are those of the SDSS photometric pipeline.
"""

from __future__ import annotations

__all__ = ["Moments", "adaptive_moments", "adaptive_moments_batch", "fixed_moments_flux"]

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

import lsst.pex.exceptions as pexExceptions

from ._batch import dot, group

if TYPE_CHECKING:
    from ._batch import Batch

_EPSILON = float(np.finfo(np.float32).eps)
_MAX_EXPONENT = 14.0
"""Pixels beyond this exponent of the weight do not count."""
_MAX_EXPONENT_FINE = 9.0
"""The same where pixels are divided into 4 x 4 parts."""
_MAX_RADIUS = 1000.0
_PARTS = np.array([-0.375, -0.125, 0.125, 0.375])


@dataclasses.dataclass
class Moments:
    """Result of `adaptive_moments`; positions are those of the array."""

    x: float = math.nan
    y: float = math.nan
    amplitude: float = math.nan
    xx: float = math.nan
    yy: float = math.nan
    xy: float = math.nan
    covariance: np.ndarray | None = None
    """Of amplitude, xx, yy, xy."""
    bad: bool = False
    """The result is of no use."""
    unweighted_bad: bool = False
    unweighted: bool = False
    shift: bool = False
    max_iter: bool = False


def _invert(s11: float, s12: float, s22: float) -> tuple[float, float, float, float] | None:
    """Return determinant and inverse of a matrix; None if near singular."""
    det = s11 * s22 - s12 * s12
    if not det >= _EPSILON:
        return None
    return det, s22 / det, -s12 / det, s11 / det


def _needs_parts(s11: float, s22: float, det: float) -> bool:
    """Tell whether a weight is too narrow to be sampled once a pixel."""
    return s11 < 0.25 or s22 < 0.25 or det < 0.0625


class _Window:
    """Weighted sums over the pixels about a position.

    Parameters
    ----------
    array : `numpy.ndarray`, (height, width)
        Image.
    x, y : `float`
        Position in the array.
    background : `float`
        What is subtracted from the pixels.
    """

    def __init__(self, array: np.ndarray, x: float, y: float, background: float = 0.0):
        self._array = array
        self._x, self._y = x, y
        # Upstream's offsets from the centre have single precision.
        self._center_x, self._center_y = float(np.float32(x)), float(np.float32(y))
        self._background = background
        self._box: tuple[int, int, int, int] | None = None

    def select(self, xx: float, yy: float) -> None:
        """Take the pixels within four sigma of a weight."""
        radius = min(4 * math.sqrt(max(xx, yy)), _MAX_RADIUS)
        height, width = self._array.shape
        box = (
            max(math.floor(self._x - radius + 0.5), 0),
            max(math.floor(self._y - radius + 0.5), 0),
            min(math.ceil(self._x + radius - 0.5), width - 1) + 1,
            min(math.ceil(self._y + radius - 0.5), height - 1) + 1,
        )
        if box == self._box:
            return
        self._box = box
        pixels = self._array[box[1] : max(box[3], box[1]), box[0] : max(box[2], box[0])]
        self._pixels = pixels.astype(np.float64)
        if self._background:
            self._pixels -= self._background
        # A slice beyond the end of the array is empty.
        height, width = pixels.shape
        self._dx = np.arange(box[0], box[0] + width) - self._center_x
        self._dy = (np.arange(box[1], box[1] + height) - self._center_y)[:, None]
        self._dx2, self._dy2 = self._dx**2, self._dy**2

    def _weighted(self, w11: float, w12: float, w22: float) -> np.ndarray:
        if w11 < 0 or w11 > 1e6 or abs(w12) > 1e6 or w22 < 0 or w22 > 1e6:
            raise pexExceptions.InvalidParameterError("Invalid weight parameter(s)")
        exponent = (2.0 * w12 * self._dy) * self._dx
        exponent += w11 * self._dx2
        exponent += w22 * self._dy2
        weight = np.exp(-0.5 * exponent)
        weight[exponent > _MAX_EXPONENT] = 0.0
        weight *= self._pixels
        if not math.isfinite(weight.sum()):
            # 0 x NaN is NaN, but pixels out of reach must not count at all.
            weight[exponent > _MAX_EXPONENT] = 0.0
        return weight

    def _fine_parts(self, w11: float, w12: float, w22: float) -> tuple[np.ndarray, ...]:
        """Return weighted pixels, dx and dy of 4 x 4 parts of each pixel."""
        if w11 < 0 or w11 > 1e6 or abs(w12) > 1e6 or w22 < 0 or w22 > 1e6:
            raise pexExceptions.InvalidParameterError("Invalid weight parameter(s)")
        # Axes: y, x, parts in y, parts in x.
        dx = (self._dx[:, None] + _PARTS)[None, :, None, :]
        dy = (self._dy + _PARTS)[:, None, :, None]
        exponent = dx**2 * w11 + 2.0 * dx * dy * w12 + dy**2 * w22
        # The largest exponent of a pixel is that of one of its corner parts.
        used = exponent[:, :, ::3, ::3].max(axis=(2, 3), initial=-np.inf) <= _MAX_EXPONENT_FINE
        pixels = np.where(used, self._pixels, 0.0)
        return pixels[:, :, None, None] * np.exp(-0.5 * exponent), dx, dy

    def sum(self, w11: float, w12: float, w22: float, parts: bool) -> float:
        """Return the weighted sum of the pixels."""
        if parts:
            return float(self._fine_parts(w11, w12, w22)[0].sum())
        return float(self._weighted(w11, w12, w22).sum())

    def moments(self, w11: float, w12: float, w22: float, parts: bool) -> tuple[float, ...]:
        """Return the weighted sums of 1, x, y, dx^2, dx dy and dy^2.

        x and y are the coordinates in the array, dx and dy those from the
        centre.
        """
        if parts:
            weighted, dx, dy = self._fine_parts(w11, w12, w22)
            total = float(weighted.sum())
            return (
                total,
                float((weighted * dx).sum()) + total * self._center_x,
                float((weighted * dy).sum()) + total * self._center_y,
                float((weighted * dx**2).sum()),
                float((weighted * dx * dy).sum()),
                float((weighted * dy**2).sum()),
            )
        weighted = self._weighted(w11, w12, w22)
        columns = weighted.sum(axis=0)
        rows = weighted @ np.ones(weighted.shape[1])
        dy = self._dy[:, 0]
        total = float(columns.sum())
        return (
            total,
            float(columns @ self._dx) + total * self._center_x,
            float(rows @ dy) + total * self._center_y,
            float(columns @ self._dx2),
            float(dy @ (weighted @ self._dx)),
            float(rows @ self._dy2[:, 0]),
        )


def _covariance(moments: Moments, variance: float) -> np.ndarray:
    """Return the covariance of amplitude, xx, yy and xy.

    It is the inverse of the Fisher matrix of a least squares fit of a
    Gaussian to pixels that have a common variance.
    """
    a, s11, s12, s22 = moments.amplitude, moments.xx, moments.xy, moments.yy
    d = s11 * s22 - s12 * s12
    if not d > np.finfo(float).eps:
        raise pexExceptions.DomainError("Determinant is too small calculating Fisher matrix")
    f = math.pi * math.sqrt(d) / variance
    linear = f * a / (4.0 * d)
    square = 3.0 * f * a * a / (16.0 * d * d)
    cross = 4.0 * square * (s12 * s12 + d / 3.0)
    fisher = np.array(
        [
            [f, linear * s22, linear * s11, -2 * linear * s12],
            [linear * s22, square * s22 * s22, cross / 4.0, -2 * square * s22 * s12],
            [linear * s11, cross / 4.0, square * s11 * s11, -2 * square * s11 * s12],
            [-2 * linear * s12, -2 * square * s22 * s12, -2 * square * s11 * s12, cross],
        ]
    )
    try:
        return np.linalg.inv(fisher)
    except np.linalg.LinAlgError:
        return np.full((4, 4), np.nan)


def _iterate(
    window: _Window,
    result: Moments,
    center: tuple[float, float],
    max_shift: float,
    max_iter: int,
    tolerances: tuple[float, float],
    negative: bool,
) -> tuple[tuple[float, float, float], bool]:
    """Find the weight that has the shape of the object.

    Returns
    -------
    weight : `tuple` [`float`]
        Moments xx, xy, yy of the weight.
    parts : `bool`
        Whether pixels were divided.
    """
    sign = -1.0 if negative else 1.0
    s11, s12, s22 = 1.5, 0.0, 1.5
    w11 = w12 = w22 = -1.0
    e1_old = e2_old = o11_old = 1e6
    parts = False
    iteration = 0
    while iteration < max_iter:
        window.select(s11, s22)
        inverse = _invert(s11, s12, s22)
        if inverse is None:
            result.unweighted = True
            break
        old = w11, w12, w22
        det, w11, w12, w22 = inverse
        if not parts and _needs_parts(s11, s22, det):
            parts = True
            if iteration > 0:
                # Once more with the former weight, and at least once after.
                o11_old = 1e6
                w11, w12, w22 = old
                iteration -= 1
        total, sum_x, sum_y, sum_xx, sum_xy, sum_yy = window.moments(w11, w12, w22, parts)
        result.amplitude = _amplitude(total, w11, w12, w22)
        if not (sign * total > 0 and sign * sum_xx > 0 and sign * sum_yy > 0):
            result.unweighted = True
            break
        result.x, result.y = sum_x / total, sum_y / total
        if abs(result.x - center[0]) > max_shift or abs(result.y - center[1]) > max_shift:
            result.shift = True
        o11, o22, o12 = sum_xx / total, sum_yy / total, sum_xy / total
        if o11 <= 0 or o22 <= 0:
            result.unweighted = True
            break
        e1, e2 = (o11 - o22) / (o11 + o22), 2.0 * o12 / (o11 + o22)
        if (
            iteration > 0
            and abs(e1 - e1_old) < tolerances[0]
            and abs(e2 - e2_old) < tolerances[0]
            and abs(o11 / o11_old - 1.0) < tolerances[1]
        ):
            break
        e1_old, e2_old, o11_old = e1, e2, o11
        # The inverses of the moments of two Gaussians add up in their
        # product, so that those of the object are the difference.
        product = _invert(o11, o12, o22)
        if product is None:
            result.unweighted = True
            break
        updated = _invert(product[1] - w11, product[2] - w12, product[3] - w22)
        if updated is None:
            result.unweighted = True
            break
        _, s11, s12, s22 = updated
        if s11 <= 0 or s22 <= 0:
            result.unweighted = True
            break
        iteration += 1
    else:
        result.unweighted = result.max_iter = True
    return (s11, s12, s22), parts


def _amplitude(total: float, w11: float, w12: float, w22: float) -> float:
    """Return the height of a Gaussian with this sum under the weight."""
    inverse = _invert(w11, w12, w22)
    area = math.nan if inverse is None else inverse[1] * inverse[3] - inverse[2] ** 2
    return total / (math.pi * math.sqrt(area)) if area > 0 else math.nan


def _add_covariance(result: Moments, variance: np.ndarray, x: float, y: float) -> None:
    """Add the covariance, with the variance of the pixel at a position."""
    ix, iy = math.floor(x + 0.5), math.floor(y + 0.5)
    if 0 <= ix < variance.shape[1] and 0 <= iy < variance.shape[0] and variance[iy, ix] > 0:
        result.covariance = _covariance(result, float(variance[iy, ix]))


def adaptive_moments(
    array: np.ndarray,
    x: float,
    y: float,
    variance: np.ndarray | None = None,
    *,
    background: float = 0.0,
    max_iter: int = 100,
    max_shift: float = 0.0,
    tolerances: tuple[float, float] = (1e-5, 1e-4),
    negative: bool = False,
) -> Moments:
    """Measure second moments with a matched elliptical Gaussian weight.

    Parameters
    ----------
    array : `numpy.ndarray`, (height, width)
        Image.
    x, y : `float`
        Position of the object in the array, in pixels.
    variance : `numpy.ndarray`, (height, width), optional
        Variance, for the uncertainties.
    background : `float`, optional
        What is subtracted from the image.
    max_iter : `int`, optional
        The most iterations.
    max_shift : `float`, optional
        The most pixels that the centroid may be off; brought to 2 to 10.
    tolerances : `tuple` [`float`], optional
        How little the ellipticity may change, and the fraction that xx may,
        at the end.
    negative : `bool`, optional
        The object is a hole.

    Returns
    -------
    moments : `Moments`
        The result.
    """
    result = Moments()
    try:
        result.bad = not _measure(
            array, x, y, variance, result, background, max_iter, max_shift, tolerances, negative
        )
    except pexExceptions.Exception:
        result.bad = True
    result.bad = result.bad or result.unweighted or result.shift
    return result


def _measure(
    array: np.ndarray,
    x: float,
    y: float,
    variance: np.ndarray | None,
    result: Moments,
    background: float,
    max_iter: int,
    max_shift: float,
    tolerances: tuple[float, float],
    negative: bool,
) -> bool:
    if not (math.isfinite(x) and math.isfinite(y)):
        result.unweighted_bad = True
        return False
    window = _Window(array, x, y, background)
    limit = min(max(max_shift, 2.0), 10.0)
    (s11, s12, s22), parts = _iterate(window, result, (x, y), limit, max_iter, tolerances, negative)
    if result.unweighted:
        total, _, _, sum_xx, sum_xy, sum_yy = window.moments(0.0, 0.0, 0.0, parts)
        result.amplitude = math.nan
        sign = -1.0 if negative else 1.0
        if not (sign * total > 0 and sign * sum_xx > 0 and sign * sum_yy > 0):
            result.unweighted = False
            result.unweighted_bad = True
            if total > 0:
                # The moments of a single pixel.
                result.xx, result.xy, result.yy = 1 / 12.0, 0.0, 1 / 12.0
            return False
        s11, s12, s22 = sum_xx / total, sum_xy / total, sum_yy / total
    result.xx, result.xy, result.yy = s11, s12, s22
    if variance is not None and not result.unweighted:
        _add_covariance(result, variance, x, y)
    return True


_HALF_STAMP = 40
"""Half the width of the stamps on which sources are measured together; larger ones are measured alone."""


def _batch_moments(
    stamps: np.ndarray,
    some: np.ndarray,
    first: np.ndarray,
    size: np.ndarray,
    low: np.ndarray,
    center: np.ndarray,
    weights: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Do `_Window.moments` for boxes of one size in stamps of sources."""
    height, width = size.tolist()
    pixels = stamps[
        some[:, None, None],
        first[0][:, None, None] + np.arange(height)[:, None],
        first[1][:, None, None] + np.arange(width),
    ].astype(np.float64)
    dy, dx = low[0][:, None] + np.arange(height) - center[0][:, None], low[1][:, None] + np.arange(width)
    dx = dx - center[1][:, None]
    dx2, dy2 = dx**2, dy**2
    w11, w12, w22 = weights[:, :, None]
    exponent = (2.0 * w12 * dy)[:, :, None] * dx[:, None]
    exponent += (w11 * dx2)[:, None]
    exponent += (w22 * dy2)[:, :, None]
    weighted = np.exp(-0.5 * exponent)
    weighted *= pixels
    weighted[exponent > _MAX_EXPONENT] = 0.0
    columns = weighted.sum(axis=1)
    rows = weighted @ np.ones(width)
    total = columns.sum(axis=1)
    return (
        total,
        dot(columns, dx) + total * center[1],
        dot(rows, dy) + total * center[0],
        dot(columns, dx2),
        dot(dy, (weighted @ dx[:, :, None])[:, :, 0]),
        dot(rows, dy2),
    )


def adaptive_moments_batch(
    batch: Batch,
    rows: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    *,
    max_iter: int,
    max_shift: float,
    tolerances: tuple[float, float],
) -> dict[int, Moments]:
    """Do `adaptive_moments` for sources together, at positions in the array, without a background.

    Returns
    -------
    moments : `dict` [`int`, `Moments`]
        Results by row; only of sources whose weights are matched without ado.
    """
    half = _HALF_STAMP
    shape = batch.pixels.image.shape
    corner = np.floor(np.stack([y, x]) + 0.5).astype(np.int64) - half
    inside = np.flatnonzero(batch.fits(*corner, (2 * half + 1, 2 * half + 1)))
    rows, x, y, corner = rows[inside], x[inside], y[inside], corner[:, inside]
    stamps = batch.stamps(rows, *corner, (2 * half + 1, 2 * half + 1))
    limit = min(max(max_shift, 2.0), 10.0)
    near = np.stack([y, x]).astype(np.float32).astype(np.float64)
    s = np.repeat([[1.5], [0.0], [1.5]], rows.size, axis=1)
    old = np.full((3, rows.size), 1e6)
    place = np.full((2, rows.size), np.nan)
    shift, result = np.zeros(rows.size, bool), {}
    active = np.arange(rows.size)
    for iteration in range(max_iter):
        if not active.size:
            break
        s11, s12, s22 = s[:, active]
        det = s11 * s22 - s12 * s12
        w11, w12, w22 = s22 / det, -s12 / det, s11 / det
        radius = 4 * np.sqrt(np.maximum(s11, s22))
        position = np.stack([y, x])[:, active]
        low = np.maximum(np.floor(position - radius + 0.5), 0).astype(np.int64)
        size = np.array(shape)[:, None]
        high = np.minimum(np.ceil(position + radius - 0.5), size - 1).astype(np.int64) + 1
        on_stamp = (low >= corner[:, active]) & (high <= corner[:, active] + 2 * half + 1)
        fine = (s11 < 0.25) | (s22 < 0.25) | (det < 0.0625) | ~on_stamp.all(axis=0)
        # What is left out here is measured on its own.
        fine |= (w11 > 1e6) | (np.abs(w12) > 1e6) | (w22 > 1e6)
        keep = ~fine
        active, low, high = active[keep], low[:, keep], high[:, keep]
        w = np.stack([w11, w12, w22])[:, keep]
        sums = np.empty((6, active.size))
        for same in group(*(high - low)):
            some = active[same]
            sums[:, same] = _batch_moments(
                stamps, some, low[:, same] - corner[:, some], high[:, same[0]] - low[:, same[0]],
                low[:, same], near[:, some], w[:, same],
            )  # fmt: skip
        total, sum_x, sum_y, sum_xx, sum_xy, sum_yy = sums
        good = (total > 0) & (sum_xx > 0) & (sum_yy > 0)
        with np.errstate(all="ignore"):
            place[:, active] = sum_y / total, sum_x / total
            o11, o22, o12 = sum_xx / total, sum_yy / total, sum_xy / total
            far = np.abs(place[:, active] - np.stack([y, x])[:, active]) > limit
            shift[active[good & far.any(axis=0)]] = True
            new = np.stack([(o11 - o22) / (o11 + o22), 2.0 * o12 / (o11 + o22), o11])
            settled = np.abs(new[:2] - old[:2, active]) < tolerances[0]
            done = good & settled.all(axis=0) & (np.abs(o11 / old[2, active] - 1.0) < tolerances[1])
            done &= (o11 > 0) & (o22 > 0) & (iteration > 0)
            product = o11 * o22 - o12 * o12
            u11, u12, u22 = o22 / product - w[0], -o12 / product - w[1], o11 / product - w[2]
            update = u11 * u22 - u12 * u12
            good &= (o11 > 0) & (o22 > 0) & (product >= _EPSILON) & (update >= _EPSILON)
            updated = np.stack([u22 / update, -u12 / update, u11 / update])
            good &= (updated[0] > 0) & (updated[2] > 0)
            good &= updated[0] * updated[2] - updated[1] * updated[1] >= _EPSILON
        for at in np.flatnonzero(done).tolist():
            one = active[at]
            found = Moments(*place[::-1, one].tolist(), _amplitude(float(total[at]), *w[:, at].tolist()))
            found.xx, found.xy, found.yy = s[:, one].tolist()
            found.shift = found.bad = bool(shift[one])
            _add_covariance(found, batch.pixels.variance, float(x[one]), float(y[one]))
            result[int(rows[one])] = found
        go_on = good & ~done
        old[:, active[go_on]] = new[:, go_on]
        s[:, active[go_on]] = updated[:, go_on]
        active = active[go_on]
    return result


def fixed_moments_flux(
    array: np.ndarray, variance: np.ndarray, x: float, y: float, moments: tuple[float, float, float]
) -> tuple[float, float]:
    """Measure the flux with a Gaussian weight of a given shape.

    Parameters
    ----------
    array, variance : `numpy.ndarray`, (height, width)
        Image and variance.
    x, y : `float`
        Position in the array.
    moments : `tuple` [`float`]
        Moments xx, yy and xy of the weight.

    Returns
    -------
    flux, error : `float`
        Flux, exact for a Gaussian of that shape, and its uncertainty.

    Raises
    ------
    lsst.pex.exceptions.InvalidParameterError
        Raised if the moments are singular.
    lsst.pex.exceptions.RuntimeError
        Raised if the position is not on the image.
    """
    xx, yy, xy = moments
    inverse = _invert(xx, xy, yy)
    if inverse is None:
        raise pexExceptions.InvalidParameterError("Input shape is singular")
    det, w11, w12, w22 = inverse
    window = _Window(array, x, y)
    window.select(xx, yy)
    flux = 2.0 * window.sum(w11, w12, w22, _needs_parts(xx, yy, det))
    ix, iy = int(x), int(y)
    if not (0 <= ix < array.shape[1] and 0 <= iy < array.shape[0]):
        raise pexExceptions.RuntimeError(
            f"Center ({ix},{iy}) not in image ({array.shape[1]}x{array.shape[0]})"
        )
    with np.errstate(invalid="ignore"):
        error = 2.0 * float(np.sqrt(float(variance[iy, ix]) * math.pi * math.sqrt(det)))
    return flux, error
