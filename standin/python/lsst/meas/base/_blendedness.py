# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How much the neighbours of a source change its flux and shape."""

from __future__ import annotations

__all__ = ["BlendednessAlgorithm", "BlendednessControl"]

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.special import erfc

import lsst.pex.exceptions as pexExceptions

from ._algorithm import Control, Pixels, SimpleAlgorithm, get_pixels
from ._flag_handler import FlagDefinitionList, FlagHandler
from ._inputs import slot_keys
from ._results import NO_UNCERTAINTY, ShapeResultKey

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF, MaskedImageF
    from lsst.afw.table import Schema, SourceRecord

    from ._batch import Batch
    from ._exceptions import MeasurementError

_FLAGS = FlagDefinitionList()

_RAW = 'Operates on the "raw" pixel values.'
_ABS = 'Operates on the absolute value of the pixels to try to obtain a "de-noised" value.  '
_SEE = "See section 4.9.11 of Bosch et al. 2018, PASJ, 70, S5 for details."
_RATIO = "Measure of how much the flux is affected by neighbors: (1 - child_instFlux/parent_instFlux).  "
_WEIGHT = "measured with a Gaussian weight matched to the child.  "


class BlendednessControl(Control):
    """Settings of `BlendednessAlgorithm`."""

    FIELDS: ClassVar = {
        "doOld": (
            "bool",
            "Whether to compute HeavyFootprint dot products (the old deblend.blendedness parameter)",
        ),
        "doFlux": ("bool", "Whether to compute quantities related to the Gaussian-weighted flux"),
        "doShape": ("bool", "Whether to compute quantities related to the Gaussian-weighted shape"),
        "nSigmaWeightMax": (
            "double",
            "Radius factor that sets the maximum extent of the weight function (and hence the "
            "flux measurements)",
        ),
    }

    doOld = True
    doFlux = True
    doShape = True
    nSigmaWeightMax = 3.0


class BlendednessAlgorithm(SimpleAlgorithm):
    """Fluxes and shapes with the neighbours and without.

    The task calls `measureChildPixels` while the neighbours are noise, and
    `measureParentPixels` when the image is whole again.

    Parameters
    ----------
    ctrl : `BlendednessControl`
        Settings.
    name : `str`
        What the names of the fields begin with.
    schema : `lsst.afw.table.Schema`
        Schema; gets the fields.
    """

    Control: ClassVar = BlendednessControl
    FAILURE: ClassVar = _FLAGS.addFailureFlag()
    NO_CENTROID: ClassVar = _FLAGS.add("flag_noCentroid", "Object has no centroid")
    NO_SHAPE: ClassVar = _FLAGS.add("flag_noShape", "Object has no shape")

    def __init__(self, ctrl: BlendednessControl, name: str, schema: Schema):
        self._ctrl = ctrl
        self._keys: dict[str, Any] = {}

        def add(suffix: str, doc: str, units: str = "") -> None:
            self._keys[suffix] = schema.addField(schema.join(name, suffix), type="D", doc=doc, units=units)

        if ctrl.doOld:
            add("old", "Blendedness from dot products: (child.dot(parent)/child.dot(child) - 1)")
        if ctrl.doFlux:
            for kind, how in (("raw", _RAW), ("abs", _ABS + _SEE)):
                add(kind, _RATIO + how)
                for who in ("child", "parent"):
                    add(f"{kind}_{who}_instFlux", f"Instrumental flux of the {who}, {_WEIGHT}{how}", "count")
        if ctrl.doShape:
            for kind, how in (("raw", _RAW), ("abs", _ABS + _SEE)):
                for who in ("child", "parent"):
                    self._keys[f"{kind}_{who}"] = ShapeResultKey.addFields(
                        schema,
                        schema.join(name, f"{kind}_{who}"),
                        f"Shape of the {who}, {_WEIGHT}{how}",
                        NO_UNCERTAINTY,
                    )
        if ctrl.doFlux or ctrl.doShape:
            self._flags = FlagHandler.addFields(schema, name, _FLAGS)

    @staticmethod
    def getFlagDefinitions() -> FlagDefinitionList:
        """Return the flags."""
        return _FLAGS

    @staticmethod
    def computeAbsExpectation(data: Any, variance: Any) -> Any:
        """Return the expected flux of a pixel, given that it is not negative.

        Parameters
        ----------
        data, variance : `float` or `numpy.ndarray`
            Value and variance of the pixel.
        """
        data, variance = np.asarray(data, np.float64), np.asarray(variance, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            positive = 0.5 * erfc(-data / np.sqrt(2.0 * variance))
            mean = data + np.sqrt(0.5 * variance / np.pi) * np.exp(-0.5 * data**2 / variance) / positive
        result = np.where(positive > 0, mean, 0.0)
        return result if result.ndim else float(result)

    @staticmethod
    def computeAbsBias(mu: Any, variance: Any) -> Any:
        """Return how much larger absolute values are than the true flux.

        Parameters
        ----------
        mu, variance : `float` or `numpy.ndarray`
            True flux and variance of the pixel.
        """
        mu, variance = np.asarray(mu, np.float64), np.asarray(variance, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.sqrt(2.0 * variance / np.pi) * np.exp(-0.5 * mu**2 / variance)
            result = spread - mu * erfc(mu / np.sqrt(2.0 * variance))
        return result if np.ndim(result) else float(result)

    def measure(self, measRecord: SourceRecord, exposure: ExposureF) -> None:
        """Do nothing: the task calls the other two methods."""

    def fail(self, measRecord: SourceRecord, error: MeasurementError | None = None) -> None:
        """Do nothing."""

    def measureChildPixels(self, image: MaskedImageF, child: SourceRecord) -> None:
        """Measure a source while its neighbours are replaced by noise."""
        self._measure(get_pixels(image), [child], "child")

    def measureParentPixels(self, image: MaskedImageF, child: SourceRecord) -> None:
        """Measure a source among its neighbours, and compare."""
        self.measureParents(image, [child])

    def measureChildren(self, batch: Batch) -> None:
        """Do `measureChildPixels` for all sources of a batch."""
        self._measure(batch.pixels, batch.records, "child", batch)

    def measureParents(self, image: MaskedImageF, children: Sequence[SourceRecord]) -> None:
        """Do `measureParentPixels` for several sources."""
        keys = self._keys
        if self._ctrl.doOld:
            for child in children:
                keys["old"].set(child, _old_blendedness(child.getFootprint(), image))
        self._measure(get_pixels(image), children, "parent")
        if not self._ctrl.doFlux:
            return
        for child in children:
            for kind in ("raw", "abs"):
                own, whole = (keys[f"{kind}_{who}_instFlux"].get(child) for who in ("child", "parent"))
                keys[kind].set(child, 1.0 - own / whole if whole else 1.0 - own * math.inf)
            if keys["abs_parent_instFlux"].get(child) == 0.0:
                # No ratio can be had of two clipped fluxes.
                self._flags.setValue(child, self.FAILURE.number, True)

    def _measure(
        self, pixels: Pixels, children: Sequence[SourceRecord], who: str, batch: Batch | None = None
    ) -> None:
        """Measure sources on an image, or those of a batch each on its own."""
        if not (self._ctrl.doFlux or self._ctrl.doShape) or not children:
            return
        x_key, y_key, centroid_flag = slot_keys(children[0], "Centroid", ("x", "y", "flag"))
        *shape_keys, shape_flag = slot_keys(children[0], "Shape", ("xx", "yy", "xy", "flag"))
        if x_key is None or y_key is None:
            raise pexExceptions.LogicError("Centroid Key must be defined to measure the blendedness instFlux")
        if None in shape_keys:
            raise pexExceptions.LogicError("Shape Key must be defined to measure the blendedness")
        flags = self._flags
        rows, ellipses = [], []
        for row, child in enumerate(children):
            if centroid_flag is not None and centroid_flag.get(child):
                # Not a failure: the peak does well enough here.
                flags.setValue(child, self.NO_CENTROID.number, True)
            xx, yy, xy = (key.get(child) for key in shape_keys)
            x, y = x_key.get(child), y_key.get(child)
            has_shape, has_centroid = xx * yy - xy * xy >= 0.0, math.isfinite(x) and math.isfinite(y)
            if not has_shape or (shape_flag is not None and shape_flag.get(child)):
                flags.setValue(child, self.NO_SHAPE.number, True)
                flags.setValue(child, self.FAILURE.number, True)
            if not has_centroid:
                flags.setValue(child, self.NO_CENTROID.number, True)
                flags.setValue(child, self.FAILURE.number, True)
            if has_shape and has_centroid:
                rows.append(row)
                ellipses.append((x - pixels.x0, y - pixels.y0, xx, yy, xy))
        shapes, n_sigma = np.array(ellipses).reshape(-1, 5), self._ctrl.nSigmaWeightMax
        for row, both in zip(rows, _weighted_sums(pixels, rows, shapes, n_sigma, batch), strict=True):
            for kind, (w, ww, wd, *second) in zip(("raw", "abs"), both, strict=True):
                if self._ctrl.doFlux:
                    flux = w * wd / ww if ww else math.nan
                    if kind == "abs" and flux < 0.0:
                        flux = 0.0
                    self._keys[f"{kind}_{who}_instFlux"].set(children[row], flux)
                if self._ctrl.doShape:
                    for (key, _), value in zip(self._keys[f"{kind}_{who}"]._columns, second, strict=True):
                        # Twice the weighted moments are those of a Gaussian.
                        key.set(children[row], 2.0 * value / wd if wd else math.nan)


_PART = 200_000
"""About how many pixels are summed up at once."""


def _weighted_sums(
    pixels: Pixels, children: Sequence[int], ellipses: np.ndarray, n_sigma: float, batch: Batch | None
) -> Iterator[tuple[list[float], list[float]]]:
    """Yield sums of w, w^2, w d and w d times dx^2, dy^2 and dx dy, with x, y, xx, yy, xy of N ellipses.

    The first list is of the pixels, the second one of their absolute values
    less what these have too much.
    """
    _, _, xx, yy, xy = ellipses.T
    area = np.minimum(math.pi * n_sigma**2 * np.sqrt(xx * yy - xy * xy), pixels.image.size)
    part = np.cumsum(area) // _PART
    for some in np.split(np.arange(len(children)), np.flatnonzero(np.diff(part)) + 1):
        x, y, xx, yy, xy = ellipses[some].T
        det = xx * yy - xy * xy
        counts, rows, columns = _ellipse_pixels(ellipses[some], n_sigma, pixels.image.shape)
        of = np.repeat(np.arange(some.size), counts)
        ends = np.concatenate([[0], np.cumsum(counts)]).tolist()
        dx, dy = columns - x[of], rows - y[of]
        weight = np.exp(-0.5 * (yy[of] * dx * dx - 2.0 * xy[of] * dx * dy + xx[of] * dy * dy) / det[of])
        del of
        data = pixels.image[rows, columns].astype(np.float64)
        if batch is not None:
            for i, row in enumerate(some.tolist()):
                one = slice(ends[i], ends[i + 1])
                with batch.inserted(children[row]) as image:
                    data[one] = image[rows[one], columns[one]]
        variance = pixels.variance[rows, columns].astype(np.float64)
        # An ellipse can have all pixels of the image: what is not needed any more goes.
        del rows, columns
        mu = BlendednessAlgorithm.computeAbsExpectation(data, variance)
        denoised = np.abs(data)
        denoised -= BlendednessAlgorithm.computeAbsBias(mu, variance)
        del mu, variance
        denoised *= weight
        data *= weight
        for begin, end in zip(ends, ends[1:], strict=False):
            one = slice(begin, end)
            w, f = weight[one], np.empty((4, end - begin))
            f[0] = 1.0
            for row, (a, b) in enumerate(((dx, dx), (dy, dy), (dx, dy)), 1):
                np.multiply(a[one], b[one], out=f[row])
            start = [float(w.sum()), float(w @ w)]
            yield start + (f @ data[one]).tolist(), start + (f @ denoised[one]).tolist()


def _ellipse_pixels(
    ellipses: np.ndarray, n_sigma: float, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pixels of the image in N ellipses as `ellipse_rows` does: their numbers, rows and columns."""
    x, y, *moments = ellipses.T
    xx, yy, xy = (n_sigma * n_sigma * moment for moment in moments)
    with np.errstate(all="ignore"):
        half = np.sqrt(yy)
        low, high = np.ceil(y - half - 0.5), np.floor(y + half + 0.5)
        flat = yy < xx * np.finfo(float).eps
        slope = np.where(flat, 0.0, xy / yy)
        width = np.where(flat, xx, xx - xy * slope)
        drop = np.where(flat, 0.0, width / yy)
    low, high = np.maximum(low, 0), np.minimum(high, shape[0] - 1)
    usable = (moments[0] * moments[1] - moments[2] * moments[2] > 0) & (xx >= 0)
    numbers = np.where(usable, np.maximum(high - low + 1, 0), 0).astype(np.int64)
    of, rows = _count(numbers, np.where(usable, low, 0).astype(np.int64))
    dy = rows - y[of]
    square = width[of] - drop[of] * dy * dy
    with np.errstate(invalid="ignore"):
        reach = np.sqrt(square)
    middle = slope[of] * dy + x[of]
    first, last = np.maximum(np.ceil(middle - reach), 0), np.minimum(np.floor(middle + reach), shape[1] - 1)
    lengths = np.where(square >= 0, np.maximum(last - first + 1, 0), 0).astype(np.int64)
    row_of, columns = _count(lengths, np.where(square >= 0, first, 0).astype(np.int64))
    counts = np.bincount(of, weights=lengths, minlength=len(ellipses)).astype(np.int64)
    return counts, rows[row_of], columns


def _count(numbers: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count up from each of N numbers: which of them, and the numbers."""
    of = np.repeat(np.arange(numbers.size), numbers)
    return of, first[of] + np.arange(of.size) - (np.cumsum(numbers) - numbers)[of]


def _old_blendedness(footprint: Any, image: MaskedImageF) -> float:
    """Compare the pixels of a heavy footprint with those of the image."""
    if footprint is None:
        raise pexExceptions.LogicError("blendedness_old requires a Footprint.")
    if not footprint.isHeavy():
        return 0.0
    if not image.getBBox().contains(footprint.getBBox()):
        raise pexExceptions.LogicError("Child footprint extends beyond image.")
    child = footprint.getImageArray().astype(np.float64)
    whole = image.image.array[footprint.getSpans()._pixels(image.getX0(), image.getY0())]
    square = float(child @ child)
    return float(child @ (whole - child)) / square if square > 0.0 else 0.0
