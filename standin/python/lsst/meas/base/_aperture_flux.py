# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fluxes in circular apertures.

Within small apertures the band-limited image is integrated, by coefficients
that are computed in Fourier space (Bickerton and Lupton 2013, MNRAS 431,
1275); in large ones the pixels whose centres are inside are added up.
"""

from __future__ import annotations

__all__ = [
    "ApertureFluxAlgorithm",
    "ApertureFluxControl",
    "ApertureFluxResult",
    "CircularApertureFluxAlgorithm",
    "shift_coefficients",
    "sinc_coefficients",
]

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.special import j1

from lsst.afw.geom.ellipses import Axes, Ellipse
from lsst.pex.exceptions import InvalidParameterError

from ._algorithm import Control, SimpleAlgorithm, ellipse_rows
from ._batch import dot, group, parts
from ._flag_handler import FlagDefinitionList, FlagHandler
from ._inputs import SafeCentroidExtractor
from ._results import FluxResult, FluxResultKey

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF
    from lsst.afw.table import Schema, SourceRecord
    from lsst.daf.base import PropertySet

    from ._batch import Batch
    from ._exceptions import MeasurementError

_FLAGS = FlagDefinitionList()


class ApertureFluxControl(Control):
    """Settings of `CircularApertureFluxAlgorithm`."""

    FIELDS: ClassVar = {
        "radii": ("std::vector<double>", "Radius (in pixels) of apertures."),
        "maxSincRadius": (
            "double",
            "Maximum radius (in pixels) for which the sinc algorithm should be used instead of the "
            "faster naive algorithm.  For elliptical apertures, this is the minor axis radius.",
        ),
        "shiftKernel": (
            "std::string",
            "Warping kernel used to shift Sinc photometry coefficients to different center positions",
        ),
    }

    radii: ClassVar[list[float]] = [3.0, 4.5, 6.0, 9.0, 12.0, 17.0, 25.0, 35.0, 50.0, 70.0]
    maxSincRadius = 10.0
    shiftKernel = "lanczos5"


@dataclasses.dataclass
class ApertureFluxResult(FluxResult):
    """A flux in an aperture, its uncertainty and flags."""

    flags: list[bool] = dataclasses.field(default_factory=lambda: [False] * len(_FLAGS))

    def getFlag(self, index: int | str) -> bool:
        """Return a flag by number or name."""
        return self.flags[_FLAGS.getDefinition(index).number]

    def setFlag(self, index: int, value: bool = True) -> None:
        """Set a flag."""
        self.flags[index] = value


@functools.lru_cache(maxsize=64)
def sinc_coefficients(radius: float) -> np.ndarray:
    """Return the coefficients of an aperture about the central pixel.

    The Fourier transform of a circle is r J1(2 pi k r) / k.

    Parameters
    ----------
    radius : `float`
        Radius in pixels.

    Returns
    -------
    coefficients : `numpy.ndarray`, (size, size)
        Coefficients of the pixels, float32 values; the size is odd.
    """
    half = 2 ** max(math.ceil(math.log10(2.0 * radius) / math.log10(2.0)), 3)
    size = 2 * half - 1
    k = np.fft.fftfreq(size)
    k = np.hypot(k[:, None], k)
    k[0, 0] = 1.0
    airy = radius * j1(2 * math.pi * radius * k) / k
    airy[0, 0] = math.pi * radius * radius
    coefficients = np.fft.fftshift(np.fft.ifft2(airy).real).astype(np.float32).astype(np.float64)
    coefficients.flags.writeable = False
    return coefficients


def _lanczos(shift: float, order: int) -> tuple[np.ndarray, int]:
    """Return weights that shift pixels, and the offset of the first one."""
    first = 1 - order - (1 if shift > 0 else 0)
    x = np.arange(first, first + 2 * order) + shift
    weights = np.sinc(x) * np.sinc(x / order)
    return weights / weights.sum(), first


# The apertures of a source are all shifted by the same fraction of a pixel.
@functools.lru_cache(maxsize=16)
def _shift_matrix(size: int, shift: float, order: int) -> tuple[np.ndarray, int, int]:
    """Return the matrix of a shift, and the rows that can be computed."""
    weights, first = _lanczos(shift, order)
    begin, end = -first, size - 2 * order + 1 - first
    # Every row holds the weights one column further on: a view of a row that
    # is repeated with one element more.
    row = np.zeros(size + 1)
    row[: 2 * order] = weights
    matrix = np.tile(row, end - begin)[: (end - begin) * size].reshape(end - begin, size)
    return matrix, begin, end


def shift_coefficients(
    coefficients: np.ndarray, x: float, y: float, kernel: str = "lanczos5"
) -> tuple[np.ndarray, int, int]:
    """Move the centre of an aperture's coefficients to a position.

    Parameters
    ----------
    coefficients : `numpy.ndarray`, (size, size)
        Coefficients about the central pixel.
    x, y : `float`
        Position.
    kernel : `str`, optional
        "lanczosN".

    Returns
    -------
    shifted : `numpy.ndarray`, (size, size)
        Coefficients; a border as wide as the kernel is not shifted.
    x0, y0 : `int`
        Position of the first pixel.
    """
    if not kernel.startswith("lanczos") or not kernel[7:].isdigit():
        raise InvalidParameterError(f'unknown or unsupported warping kernel name: "{kernel}"')
    order = int(kernel[7:])
    # Upstream hands positions on in single precision.
    x, y = float(np.float32(x)), float(np.float32(y))
    if -1 < x < 1 and -1 < y < 1:
        ix = iy = 0
    else:
        ix, iy = math.floor(x + 0.5), math.floor(y + 0.5)
    size = coefficients.shape[0]
    by_x, begin_x, end_x = _shift_matrix(size, x - ix, order)
    by_y, begin_y, end_y = _shift_matrix(size, y - iy, order)
    shifted = coefficients.copy()
    shifted[begin_y:end_y, begin_x:end_x] = by_y @ coefficients @ by_x.T
    return shifted, ix - size // 2, iy - size // 2


def _sinc_flux(
    image: np.ndarray,
    variance: np.ndarray | None,
    x: float,
    y: float,
    x0: int,
    y0: int,
    radius: float,
    kernel: str,
) -> ApertureFluxResult:
    """Integrate a circle; x and y are those of the parent."""
    result = ApertureFluxResult()
    coefficients, cx, cy = shift_coefficients(sinc_coefficients(radius), x, y, kernel)
    cx, cy = cx - x0, cy - y0
    size = coefficients.shape[0]
    height, width = image.shape
    low_x, low_y = max(cx, 0), max(cy, 0)
    high_x, high_y = min(cx + size, width), min(cy + size, height)
    if low_x > cx or low_y > cy or high_x < cx + size or high_y < cy + size:
        result.setFlag(ApertureFluxAlgorithm.SINC_COEFFS_TRUNCATED.number)
        if (
            math.ceil(x - radius - 0.5) - x0 < low_x
            or math.ceil(y - radius - 0.5) - y0 < low_y
            or math.floor(x + radius + 0.5) - x0 >= high_x
            or math.floor(y + radius + 0.5) - y0 >= high_y
        ):
            result.setFlag(ApertureFluxAlgorithm.APERTURE_TRUNCATED.number)
            result.setFlag(ApertureFluxAlgorithm.FAILURE.number)
            return result
        coefficients = coefficients[low_y - cy : high_y - cy, low_x - cx : high_x - cx]
    coefficients = coefficients.ravel()
    where = slice(low_y, high_y), slice(low_x, high_x)
    result.instFlux = float(image[where].astype(np.float64).ravel() @ coefficients)
    if variance is not None:
        total = float(variance[where].astype(np.float64).ravel() @ (coefficients * coefficients))
        result.instFluxErr = math.sqrt(total) if total >= 0 else math.nan
    return result


def _naive_flux(
    image: np.ndarray, variance: np.ndarray | None, moments: tuple[float, float, float], x: float, y: float
) -> ApertureFluxResult:
    """Add up pixels in an ellipse; x and y are those of the array."""
    result = ApertureFluxResult()
    rows, first, last, (x_min, y_min, x_max, y_max) = ellipse_rows(*moments, x, y)
    height, width = image.shape
    if x_min < 0 or y_min < 0 or x_max >= width or y_max >= height:
        result.setFlag(ApertureFluxAlgorithm.APERTURE_TRUNCATED.number)
        result.setFlag(ApertureFluxAlgorithm.FAILURE.number)
        return result
    if rows.size == 0:
        result.instFlux = 0.0
        result.instFluxErr = 0.0 if variance is not None else math.nan
        return result
    where = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(first.min()), int(last.max()) + 1)
    columns = np.arange(where[1].start, where[1].stop)
    inside = (columns >= first[:, None]) & (columns <= last[:, None])
    result.instFlux = float(image[where][inside].sum(dtype=np.float64))
    if variance is not None:
        total = float(variance[where][inside].sum(dtype=np.float64))
        result.instFluxErr = math.sqrt(total) if total >= 0 else math.nan
    return result


class ApertureFluxAlgorithm(SimpleAlgorithm):
    """Base of fluxes in several apertures.

    Parameters
    ----------
    ctrl : `ApertureFluxControl`
        Settings.
    name : `str`
        What the names of the fields begin with.
    schema : `lsst.afw.table.Schema`
        Schema; gets the fields.
    metadata : `lsst.daf.base.PropertySet`
        Gets the radii.
    """

    Control: ClassVar = ApertureFluxControl
    FAILURE: ClassVar = _FLAGS.addFailureFlag()
    APERTURE_TRUNCATED: ClassVar = _FLAGS.add(
        "flag_apertureTruncated", "aperture did not fit within measurement image"
    )
    SINC_COEFFS_TRUNCATED: ClassVar = _FLAGS.add(
        "flag_sincCoeffsTruncated", "full sinc coefficient image did not fit within measurement image"
    )

    def __init__(self, ctrl: ApertureFluxControl, name: str, schema: Schema, metadata: PropertySet):
        self._ctrl = ctrl
        self._centroid = SafeCentroidExtractor(schema, name)
        self._keys: list[tuple[float, FluxResultKey, FlagHandler]] = []
        without_sinc = FlagDefinitionList([self.SINC_COEFFS_TRUNCATED])
        for radius in ctrl.radii:
            metadata.add(f"{name.upper()}_RADII", radius)
            prefix = self.makeFieldPrefix(name, radius)
            key = FluxResultKey.addFields(schema, prefix, f"instFlux within {radius:f}-pixel aperture")
            excluded = None if radius <= ctrl.maxSincRadius else without_sinc
            self._keys.append((radius, key, FlagHandler.addFields(schema, prefix, _FLAGS, excluded)))

    @staticmethod
    def getFlagDefinitions() -> FlagDefinitionList:
        """Return the flags."""
        return _FLAGS

    @staticmethod
    def makeFieldPrefix(name: str, radius: float) -> str:
        """Return what the names of the fields of an aperture begin with."""
        return f"{name}_{radius:.1f}".replace(".", "_")

    @staticmethod
    def computeSincFlux(
        image: Any, ellipse: Ellipse, ctrl: ApertureFluxControl | None = None
    ) -> ApertureFluxResult:
        """Integrate the band-limited image within a circle.

        Parameters
        ----------
        image : `lsst.afw.image.Image` or `lsst.afw.image.MaskedImage`
            Image; there is an uncertainty if it has a variance.
        ellipse : `lsst.afw.geom.ellipses.Ellipse`
            The aperture, a circle.
        ctrl : `ApertureFluxControl`, optional
            Settings.
        """
        axes = Axes(ellipse.getCore())
        if abs(axes.getA() - axes.getB()) > 1e-7 * axes.getA():
            raise NotImplementedError("Elliptical sinc apertures are not in this subset.")
        ctrl = ApertureFluxControl() if ctrl is None else ctrl
        array, variance = _planes(image)
        center = ellipse.getCenter()
        return _sinc_flux(
            array,
            variance,
            center.getX(),
            center.getY(),
            image.getX0(),
            image.getY0(),
            axes.getA(),
            ctrl.shiftKernel,
        )

    @staticmethod
    def computeNaiveFlux(
        image: Any, ellipse: Ellipse, ctrl: ApertureFluxControl | None = None
    ) -> ApertureFluxResult:
        """Add up the pixels whose centres are inside an ellipse.

        Parameters
        ----------
        image : `lsst.afw.image.Image` or `lsst.afw.image.MaskedImage`
            Image; there is an uncertainty if it has a variance.
        ellipse : `lsst.afw.geom.ellipses.Ellipse`
            The aperture.
        ctrl : `ApertureFluxControl`, optional
            Settings.
        """
        array, variance = _planes(image)
        center = ellipse.getCenter()
        return _naive_flux(
            array,
            variance,
            ellipse.getCore()._moments(),
            center.getX() - image.getX0(),
            center.getY() - image.getY0(),
        )

    @staticmethod
    def computeFlux(
        image: Any, ellipse: Ellipse, ctrl: ApertureFluxControl | None = None
    ) -> ApertureFluxResult:
        """Measure with the method that suits the size of the aperture."""
        ctrl = ApertureFluxControl() if ctrl is None else ctrl
        small = Axes(ellipse.getCore()).getB() <= ctrl.maxSincRadius
        method = ApertureFluxAlgorithm.computeSincFlux if small else ApertureFluxAlgorithm.computeNaiveFlux
        return method(image, ellipse, ctrl)

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        # Docstring inherited.
        for _, _, flags in self._keys:
            flags.handleFailure(measRecord, error)


def _planes(image: Any) -> tuple[np.ndarray, np.ndarray | None]:
    if hasattr(image, "variance"):
        return image.image.array, image.variance.array
    return image.array, None


class CircularApertureFluxAlgorithm(ApertureFluxAlgorithm):
    """Fluxes in circles about the centroid."""

    def measure(self, measRecord: SourceRecord, exposure: ExposureF) -> None:
        # Docstring inherited.
        plane = exposure.image
        image, variance = plane.array, exposure.variance.array
        x0, y0 = plane.getX0(), plane.getY0()
        center, doubtful = self._centroid.locate(measRecord)
        x, y = center.getX(), center.getY()
        for radius, key, flags in self._keys:
            if doubtful:
                flags.setValue(measRecord, self.FAILURE.number, True)
            if radius <= self._ctrl.maxSincRadius:
                result = _sinc_flux(image, variance, x, y, x0, y0, radius, self._ctrl.shiftKernel)
            else:
                square = radius * radius
                result = _naive_flux(image, variance, (square, square, 0.0), x - x0, y - y0)
            key.set(measRecord, result)
            for number, flag in enumerate(result.flags):
                if flag:
                    flags.setValue(measRecord, number, True)

    def measureBatch(self, batch: Batch) -> list[int]:
        """Measure sources together; return those that were left out."""
        rows, x, y, doubtful = batch.locate(self._centroid)
        if self._ctrl.shiftKernel != "lanczos5" or not self._keys:
            return batch.others()
        small = [radius <= self._ctrl.maxSincRadius for radius, _, _ in self._keys]
        # All pixels of an aperture and of its coefficients are in a window of this half width.
        half = [
            sinc_coefficients(radius).shape[0] // 2 if is_small else math.ceil(radius) + 1
            for (radius, _, _), is_small in zip(self._keys, small, strict=True)
        ]
        size = 2 * max(half) + 1
        # As in `shift_coefficients`, where positions have single precision.
        place = np.stack([y, x]).astype(np.float32).astype(np.float64)
        near = np.floor(place + 0.5).astype(np.int64)
        corner = near - [[batch.pixels.y0], [batch.pixels.x0]] - size // 2
        inside = batch.fits(*corner, (size, size)) & (np.abs(place) >= 1).any(axis=0)
        for part in parts(np.flatnonzero(inside)):
            some, first = rows[part], corner[:, part]
            image = batch.stamps(some, *first, (size, size)).astype(np.float64)
            variance = batch.windows(batch.pixels.variance, *first, (size, size)).astype(np.float64)
            for (radius, key, flags), wide, is_small in zip(self._keys, half, small, strict=True):
                window = (slice(None), *(slice(size // 2 - wide, size // 2 + wide + 1),) * 2)
                if is_small:
                    sums = _sinc_sums(image[window], variance[window], place[:, part] - near[:, part], radius)
                else:
                    low = first + size // 2 - wide
                    dy, dx = y[part] - batch.pixels.y0, x[part] - batch.pixels.x0
                    sums = _naive_sums(image[window], variance[window], dy, dx, low, radius)
                with np.errstate(invalid="ignore"):
                    batch.put(some, key.getInstFlux(), sums[0])
                    batch.put(some, key.getInstFluxErr(), np.sqrt(sums[1]))
                for row in some[doubtful[part]].tolist():
                    flags.setValue(batch.records[row], self.FAILURE.number, True)
        return batch.others(rows[inside])


def _sinc_sums(
    image: np.ndarray, variance: np.ndarray, shift: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Integrate circles in the stamps (N, size, size) of image and variance; shifts are (2, N), y and x."""
    centred = sinc_coefficients(radius)
    size, count = centred.shape[0], shift.shape[1]
    order, rows = 5, centred.shape[0] - 9
    begin = np.where(shift > 0, order, order - 1)
    taps = np.arange(2 * order) - begin[..., None] + shift[..., None]
    weights = np.sinc(taps) * np.sinc(taps / order)
    weights /= weights.sum(axis=-1)[..., None]
    line = np.zeros((2, count, size + 1))
    line[..., : 2 * order] = weights
    by_y, by_x = np.tile(line, rows)[..., : rows * size].reshape(2, count, rows, size)
    moved = by_y @ centred @ np.swapaxes(by_x, 1, 2)
    coefficients = np.empty((count, size, size))
    coefficients[:] = centred
    inner = np.arange(rows)
    coefficients[
        np.arange(count)[:, None, None],
        (begin[0][:, None] + inner)[:, :, None],
        (begin[1][:, None] + inner)[:, None, :],
    ] = moved
    flat = coefficients.reshape(count, -1)
    image, variance = (np.ascontiguousarray(plane).reshape(count, -1) for plane in (image, variance))
    return dot(image, flat), dot(variance, flat * flat)


def _naive_sums(
    image: np.ndarray, variance: np.ndarray, y: np.ndarray, x: np.ndarray, corner: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Add up pixels in circles at (y, x) of the array, in stamps (N, size, size) with these corners."""
    size = image.shape[1]
    rows, columns = (first[:, None] + np.arange(size) for first in corner)
    square = radius * radius
    # As `ellipse_rows`.
    dy = rows - y[:, None]
    left = square - (square / square) * dy * dy
    reach = np.sqrt(np.maximum(left, 0.0))
    middle = 0.0 * dy + x[:, None]
    first, last = np.ceil(middle - reach), np.floor(middle + reach)
    inside = (left >= 0)[..., None]
    inside = inside & (columns[:, None] >= first[..., None]) & (columns[:, None] <= last[..., None])
    counts = np.count_nonzero(inside, axis=(1, 2))
    starts = np.cumsum(counts) - counts
    sums = np.zeros((2, counts.size))
    for plane, result in zip((image, variance), sums, strict=True):
        values = plane[inside]
        # Sums of as many pixels are made in the same order.
        for same in group(counts):
            result[same] = values[starts[same, None] + np.arange(counts[same[0]])].sum(axis=1)
    return sums[0], sums[1]
