# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Centroids of the SDSS photometric pipeline.

The image is smoothed with the PSF; the maximum of the smoothed image about
the first guess is found from the 3 x 3 pixels there by parabolas with a
correction of fourth order. Where the source is much larger than the PSF, the
image is binned first.
"""

from __future__ import annotations

__all__ = ["SdssCentroidAlgorithm", "SdssCentroidControl"]

import dataclasses
import math
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lsst.afw.detection import GaussianPsf
from lsst.geom import Point2D

from ._algorithm import Control, Pixels, SimpleAlgorithm, get_pixels, is_negative
from ._batch import parts
from ._exceptions import FatalAlgorithmError
from ._flag_handler import FlagDefinitionList, FlagHandler
from ._inputs import CentroidChecker, SafeCentroidExtractor
from ._results import SIGMA_ONLY, CentroidResult, CentroidResultKey

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF
    from lsst.afw.table import Schema, SourceRecord

    from ._batch import Batch
    from ._exceptions import MeasurementError

_FLAGS = FlagDefinitionList()

_QUARTIC = 1.33
"""Factor of the correction of fourth order, against its theory."""
_TINY = float(np.finfo(np.float32).tiny)


class SdssCentroidControl(Control):
    """Settings of `SdssCentroidAlgorithm`."""

    FIELDS: ClassVar = {
        "binmax": ("int", "maximum allowed binning"),
        "peakMin": ("double", "if the peak's less than this insist on binning at least once"),
        "wfac": ("double", "fiddle factor for adjusting the binning"),
        "doFootprintCheck": ("bool", "Do check that the centroid is contained in footprint."),
        "maxDistToPeak": (
            "double",
            "If >0; maximum distance in pixels between the footprint peak and centroid allowed before "
            "resetToPeak flag is set.",
        ),
    }

    binmax = 16
    peakMin = -1.0
    wfac = 1.5
    doFootprintCheck = True
    maxDistToPeak = 1.0


@dataclasses.dataclass
class _Maximum:
    """The maximum of a smoothed image, from its central pixel."""

    x: float
    y: float
    x_error: float
    y_error: float
    x_size: float
    """Square of the width, corrected for the smoothing."""
    y_size: float
    peak: float


class SdssCentroidAlgorithm(SimpleAlgorithm):
    """Maximum of the image after it was smoothed with the PSF.

    Parameters
    ----------
    ctrl : `SdssCentroidControl`
        Settings.
    name : `str`
        What the names of the fields begin with.
    schema : `lsst.afw.table.Schema`
        Schema; gets the fields.
    """

    Control: ClassVar = SdssCentroidControl
    FAILURE: ClassVar = _FLAGS.addFailureFlag()
    EDGE: ClassVar = _FLAGS.add("flag_edge", "Object too close to edge; peak used.")
    NO_SECOND_DERIVATIVE: ClassVar = _FLAGS.add("flag_noSecondDerivative", "Vanishing second derivative")
    ALMOST_NO_SECOND_DERIVATIVE: ClassVar = _FLAGS.add(
        "flag_almostNoSecondDerivative", "Almost vanishing second derivative"
    )
    NOT_AT_MAXIMUM: ClassVar = _FLAGS.add("flag_notAtMaximum", "Object is not at a maximum")
    NEAR_EDGE: ClassVar = _FLAGS.add("flag_near_edge", "Object close to edge; fallback kernel used.")

    def __init__(self, ctrl: SdssCentroidControl, name: str, schema: Schema):
        self._ctrl = ctrl
        self._key = CentroidResultKey.addFields(
            schema, name, "centroid from Sdss Centroid algorithm", SIGMA_ONLY
        )
        self._flags = FlagHandler.addFields(schema, name, _FLAGS)
        self._centroid = SafeCentroidExtractor(schema, name, True)
        self._check = CentroidChecker(schema, name, ctrl.doFootprintCheck, ctrl.maxDistToPeak)
        self._fallback = GaussianPsf(5, 5, 0.5)

    @staticmethod
    def getFlagDefinitions() -> FlagDefinitionList:
        """Return the flags."""
        return _FLAGS

    def _set_failed(self, record: SourceRecord, number: int) -> None:
        self._flags.setValue(record, number, True)
        self._flags.setValue(record, self.FAILURE.number, True)

    def measure(self, measRecord: SourceRecord, exposure: ExposureF) -> None:
        # Docstring inherited.
        pixels = get_pixels(exposure)
        search = self._search(measRecord, pixels, exposure.getPsf())
        request = next(search, None)
        while request is not None:
            try:
                request = search.send(_smooth(pixels, *request))
            except StopIteration:
                return

    def measureBatch(self, batch: Batch) -> list[int]:
        """Measure sources together; return those that were left out."""
        psf = batch.exposure.getPsf()
        if psf is None or not psf._isFixed:
            return batch.others()
        smoothers = {id(one): _Smoother(batch, one) for one in (psf, self._fallback)}
        left, waiting = [], {}

        def go_on(row: int, search: Any, answer: Any) -> None:
            try:
                waiting[row] = search, search.send(answer)
            except StopIteration:
                return
            except Exception:
                # Measured on its own, which says what is wrong.
                left.append(row)

        for row in batch.chosen.tolist():
            go_on(row, self._search(batch.records[row], batch.pixels, psf), None)
        while waiting:
            now, asked = list(waiting.items()), {}
            waiting.clear()
            for row, (search, (one, x, y, *bins)) in now:
                asked.setdefault((id(one), *bins), []).append((row, search, x, y))
            for (one, *bins), sources in asked.items():
                rows, searches, x, y = zip(*sources, strict=True)
                answers = smoothers[one].smooth(np.array(rows), np.array(x), np.array(y), *bins)
                for row, search, answer in zip(rows, searches, answers, strict=True):
                    go_on(row, search, answer)
        return sorted(left)

    def _search(self, record: SourceRecord, pixels: Pixels, psf: Any) -> Generator[Any, Any, None]:
        """Measure a source; yield the arguments of each `_smooth`, and take its result."""
        center = self._centroid(record, self._flags)
        result = CentroidResult(center.getX(), center.getY())
        # Better than NaN, should the rest fail.
        self._key.set(record, result)
        negative = is_negative(record)
        height, width = pixels.image.shape
        if not (math.isfinite(result.x) and math.isfinite(result.y)):
            self._set_failed(record, self.EDGE.number)
            return
        x, y = math.floor(result.x - pixels.x0 + 0.5), math.floor(result.y - pixels.y0 + 0.5)
        if not (0 <= x < width and 0 <= y < height):
            self._set_failed(record, self.EDGE.number)
            return
        if psf is None:
            raise FatalAlgorithmError("SdssCentroid algorithm requires a Psf with every exposure")
        found = yield from self._find(record, psf, x, y, negative)
        if found is None:
            return
        result.x, result.y = found.x + pixels.x0, found.y + pixels.y0
        result.xErr, result.yErr = abs(found.x_error), abs(found.y_error)
        self._key.set(record, result)
        self._check(record)

    def _find(
        self, record: SourceRecord, psf: Any, x: int, y: int, negative: bool
    ) -> Generator[Any, Any, _Maximum | None]:
        """Find the maximum, binning as needed; None if it failed."""
        bin_x = bin_y = 1
        bin_size = 1
        found: _Maximum | None = None
        while bin_size <= self._ctrl.binmax:
            last = False
            smoothed = yield psf, x, y, bin_x, bin_y
            if smoothed is None:
                psf, last = self._fallback, True
                smoothed = yield psf, x, y, bin_x, bin_y
                if smoothed is None:
                    self._set_failed(record, self.EDGE.number)
                    return None
                self._set_failed(record, self.NEAR_EDGE.number)
            image, variance, sigma = smoothed
            answer = _find_maximum(image, variance, sigma, negative)
            if isinstance(answer, int):
                self._set_failed(record, answer)
                return None
            found = answer
            if bin_size > 1:
                # From the lower left corner of the central pixel.
                found.x = (found.x + 0.5) * bin_x - 0.5
                found.y = (found.y + 0.5) * bin_y - 0.5
                found.x_error *= bin_x
                found.y_error *= bin_y
                found.x_size *= bin_x * bin_x
                found.y_size *= bin_y * bin_y
            offset_x, offset_y = found.x, found.y
            found.x += x
            found.y += y
            if last:
                break
            limit = self._ctrl.wfac * (1 + sigma * sigma)
            limit_x, limit_y = limit * bin_x * bin_x, limit * bin_y * bin_y
            wide_x = found.x_size >= limit_x or offset_x**2 >= limit_x
            wide_y = found.y_size >= limit_y or offset_y**2 >= limit_y
            if not (wide_x or wide_y) and (
                bin_size > 1 or self._ctrl.peakMin < 0.0 or found.peak > self._ctrl.peakMin
            ):
                break
            if wide_x:
                bin_x *= 2
            if wide_y:
                bin_y *= 2
            bin_size *= 2
        return found

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        # Docstring inherited.
        self._flags.handleFailure(measRecord, error)


_Smoothed = tuple[list[list[float]], list[list[float]], float] | None
"""The nine pixels of image and variance, [y][x], and the width of the PSF; None too close to an edge."""


def _smooth(pixels: Pixels, psf: Any, x: int, y: int, bin_x: int, bin_y: int) -> _Smoothed:
    """Smooth the binned image with the PSF at the 3 x 3 pixels about one.

    The variance is that of unsmoothed pixels.
    """
    position = Point2D(x + pixels.x0, y + pixels.y0)
    kernel = psf.computeKernelImage(position).array
    low, shape = _window(kernel.shape, np.array([y]), np.array([x]), bin_x, bin_y)
    if not _fits(kernel.shape, low, pixels.image.shape, bin_x, bin_y)[0]:
        return None
    sigma = psf.computeShape(position).getDeterminantRadius()
    window = tuple(slice(first, first + size) for first, size in zip(low[:, 0].tolist(), shape, strict=True))
    planes = pixels.image[window][None], pixels.variance[window][None]
    return _smooth_stamps(*planes, kernel, sigma, bin_x, bin_y)[0]


class _Smoother:
    """Does what `_smooth` does for sources of a batch, with a PSF that is the same everywhere."""

    def __init__(self, batch: Batch, psf: Any):
        self._batch = batch
        position = Point2D(batch.pixels.x0, batch.pixels.y0)
        self._kernel = psf.computeKernelImage(position).array
        self._sigma = psf.computeShape(position).getDeterminantRadius()

    def smooth(
        self, rows: np.ndarray, x: np.ndarray, y: np.ndarray, bin_x: int, bin_y: int
    ) -> list[_Smoothed]:
        """Smooth about pixels of the array, one for each of some sources."""
        low, shape = _window(self._kernel.shape, y, x, bin_x, bin_y)
        result: list[_Smoothed] = [None] * rows.size
        inside = np.flatnonzero(_fits(self._kernel.shape, low, self._batch.pixels.image.shape, bin_x, bin_y))
        inside = inside[np.argsort(rows[inside])]
        for part in parts(inside, 1 + 32 // (bin_x * bin_y)):
            planes = (
                self._batch.stamps(rows[part], *low[:, part], shape),
                self._batch.windows(self._batch.pixels.variance, *low[:, part], shape),
            )
            done = _smooth_stamps(*planes, self._kernel, self._sigma, bin_x, bin_y)
            for at, one in zip(part.tolist(), done, strict=True):
                result[at] = one
        return result


def _window(
    kernel: tuple[int, ...], y: np.ndarray, x: np.ndarray, bin_x: int, bin_y: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the first pixels, (2, N), y and x, and the shape of what is smoothed about pixels."""
    half_y, half_x = kernel[0] // 2, kernel[1] // 2
    low = np.stack([y - bin_y * (1 + half_y), x - bin_x * (1 + half_x)])
    return low, (bin_y * (half_y * 2 + 3), bin_x * (half_x * 2 + 3))


def _fits(
    kernel: tuple[int, ...], low: np.ndarray, shape: tuple[int, ...], bin_x: int, bin_y: int
) -> np.ndarray:
    """Tell which windows are on the image; upstream smooths one pixel more than is needed on either side."""
    bins = np.array([[bin_y], [bin_x]])
    high = low - bins + bins * (np.array(kernel[:2])[:, None] + 4)
    return np.asarray(((low - bins >= 0) & (high <= np.array(shape)[:, None])).all(axis=0))


def _smooth_stamps(
    image: np.ndarray, variance: np.ndarray, kernel: np.ndarray, sigma: float, bin_x: int, bin_y: int
) -> list[_Smoothed]:
    """Smooth stamps (N, height, width)."""
    weights = kernel / kernel.sum()
    smooth = _convolve(_bin(image, bin_x, bin_y), weights)
    noise = _convolve(_bin(variance, bin_x, bin_y, 2), weights * weights)
    # The sum of the squares of a Gaussian's pixels, and the pixels of a bin.
    noise *= bin_x * bin_y * 4 * math.pi * sigma * sigma
    values = (each.reshape(-1, 3, 3).tolist() for each in (smooth, noise))
    return [(one, other, sigma) for one, other in zip(*values, strict=True)]


def _bin(array: np.ndarray, bin_x: int, bin_y: int, power: int = 1) -> np.ndarray:
    """Average boxes of pixels; with ``power`` 2, get the mean's variance."""
    array = array.astype(np.float64)
    if bin_x == bin_y == 1:
        return array
    count, height, width = array.shape
    boxes = array.reshape(count, height // bin_y, bin_y, width // bin_x, bin_x)
    return boxes.sum(axis=(2, 4)) / float(bin_x * bin_y) ** power


def _convolve(array: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the nine sums of the 3 x 3 windows of each stamp with the weights, (N, 9)."""
    count, height, width = array.shape
    shape = (height - 2, width - 2)
    windows = sliding_window_view(array, shape, axis=(1, 2)).reshape(count, 9, -1)
    # Kernels with an even side leave a row or column of the windows unused.
    if weights.shape != shape:
        padded = np.zeros(shape)
        padded[: weights.shape[0], : weights.shape[1]] = weights
        weights = padded
    result = windows @ weights.ravel()
    used = weights.ravel() != 0
    for bad in np.flatnonzero(~np.isfinite(result).all(axis=1)).tolist():
        result[bad] = windows[bad][:, used] @ weights.ravel()[used]
    return np.asarray(result)


def _interpolate(low: float, middle: float, high: float, negative: bool) -> tuple[float, bool]:
    """Find the maximum of three pixels with a correction of fourth order."""
    rise, fall = middle - low, middle - high
    curvature = fall + rise
    if negative:
        bad = curvature >= 0.0 or middle >= 0.0
    else:
        bad = curvature <= 0.0 or middle <= 0.0
    if bad:
        return 0.0, True
    center = 0.5 * (high - low) / curvature
    center *= 1.0 + _QUARTIC * fall * rise / (curvature * middle)
    return center, not abs(center) < 1


def _find_maximum(
    image: list[list[float]], variance: list[list[float]], sigma: float, negative: bool
) -> _Maximum | int:
    """Find the maximum about the central one of 3 x 3 pixels.

    Returns
    -------
    maximum : `_Maximum` or `int`
        The maximum, or the number of a flag.
    """
    i = image
    middle = i[1][1]
    curve_x, curve_y = 2 * middle - i[1][0] - i[1][2], 2 * middle - i[0][1] - i[2][1]
    slope_x, slope_y = 0.5 * (i[1][2] - i[1][0]), 0.5 * (i[2][1] - i[0][1])
    if curve_x == 0.0 or curve_y == 0.0:
        return SdssCentroidAlgorithm.NO_SECOND_DERIVATIVE.number
    if (negative and (curve_x > 0.0 or curve_y > 0.0)) or (not negative and (curve_x < 0.0 or curve_y < 0.0)):
        return SdssCentroidAlgorithm.NOT_AT_MAXIMUM.number
    dx, dy = slope_x / curve_x, slope_y / curve_y
    if abs(dx) > 10.0 or abs(dy) > 10.0:
        return SdssCentroidAlgorithm.NO_SECOND_DERIVATIVE.number
    peak = middle + 0.5 * (slope_x * dx + slope_y * dy)
    # Maxima along the three rows and the three columns.
    in_rows = [_interpolate(i[k][0], i[k][1], i[k][2], negative) for k in range(3)]
    in_columns = [_interpolate(i[0][k], i[1][k], i[2][k], negative) for k in range(3)]
    bad = sum(flag for _, flag in in_rows + in_columns)
    if bad:
        x, y = dx, dy
        wide_x, wide_y = peak / curve_x, peak / curve_y
    else:
        (r0, r1, r2), (c0, c1, c2) = ([v for v, _ in part] for part in (in_rows, in_columns))
        bend_x, bend_y = r1 - 0.5 * (r0 + r2), c1 - 0.5 * (c0 + c2)
        tilt_x, tilt_y = 0.5 * (r2 - r0), 0.5 * (c2 - c0)
        # Where the curves of the rows' and the columns' maxima meet.
        x4 = r1 + dy * (tilt_x - dy * bend_x)
        y4 = c1 + dx * (tilt_y - dx * bend_y)
        x = r1 + y4 * (tilt_x - y4 * bend_x)
        y = c1 + x4 * (tilt_y - x4 * bend_y)
        wide_x = peak / curve_x - (1 + 6 * dx * dx) / 4
        wide_y = peak / curve_y - (1 + 6 * dy * dy) / 4
    square = sigma * sigma
    # An object cannot be narrower than the PSF.
    size_x = wide_x - square if wide_x - square > square else square
    size_y = wide_y - square if wide_y - square > square else square
    sky = (sum(map(sum, variance)) - variance[1][1]) / 8.0
    errors = [
        _error(sky, variance[1][1], peak, slope, curve, abs(sigma), bool(bad))
        for slope, curve in ((slope_x, curve_x), (slope_y, curve_y))
    ]
    return _Maximum(x, y, errors[0], errors[1], size_x, size_y, peak)


def _error(
    sky: float, source: float, peak: float, slope: float, curve: float, sigma: float, quartic_bad: bool
) -> float:
    """Return the uncertainty of a maximum in a smoothed image.

    Parameters
    ----------
    sky : `float`
        Variance of a pixel, from the sky.
    source : `float`
        Variance of the central pixel.
    peak, slope, curve : `float`
        Value, slope and curvature of the smoothed image.
    sigma : `float`
        Width of the smoothing.
    quartic_bad : `bool`
        Whether the correction of fourth order was left out.
    """
    if abs(peak) < _TINY or abs(curve) < _TINY:
        return 1e3
    k = 0.0 if quartic_bad else _QUARTIC
    s2 = sigma * sigma
    slope_variance = sky / (8 * math.pi * s2) * (1 - math.exp(-1 / s2))
    curve_variance = sky / (2 * math.pi * s2) * (3 - 4 * math.exp(-1 / (4 * s2)) + math.exp(-1 / s2))
    third, full = math.exp(-1 / (3 * s2)), math.exp(-1 / s2)
    slope_variance += source / (12 * math.pi * s2) * (third - full)
    curve_variance += source / (3 * math.pi * s2) * (2 - 3 * third + full)
    by_slope = 1 / curve + k / (4 * peak) * (1 - 12 * slope**2 / curve**2)
    by_curve = slope / curve**2 - k / (4 * peak) * 8 * slope**2 / curve**3
    total = slope_variance * by_slope**2 + curve_variance * by_curve**2
    return math.sqrt(total) if total >= 0 else math.nan
