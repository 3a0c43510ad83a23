# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How much the neighbours of a source change its flux and shape."""

from __future__ import annotations

__all__ = ["BlendednessAlgorithm", "BlendednessControl"]

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.special import erfc

import lsst.pex.exceptions as pexExceptions

from ._algorithm import Control, SimpleAlgorithm, ellipse_rows, get_pixels
from ._flag_handler import FlagDefinitionList, FlagHandler
from ._inputs import slot_keys
from ._results import NO_UNCERTAINTY, ShapeResultKey

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF, MaskedImageF
    from lsst.afw.table import Schema, SourceRecord

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
        self._measure(image, child, "child")

    def measureParentPixels(self, image: MaskedImageF, child: SourceRecord) -> None:
        """Measure a source among its neighbours, and compare."""
        keys = self._keys
        if self._ctrl.doOld:
            keys["old"].set(child, _old_blendedness(child.getFootprint(), image))
        self._measure(image, child, "parent")
        if not self._ctrl.doFlux:
            return
        for kind in ("raw", "abs"):
            own, whole = (keys[f"{kind}_{who}_instFlux"].get(child) for who in ("child", "parent"))
            with np.errstate(divide="ignore", invalid="ignore"):
                keys[kind].set(child, float(1.0 - np.divide(own, whole)))
        if keys["abs_parent_instFlux"].get(child) == 0.0:
            # No ratio can be had of two clipped fluxes.
            self._flags.setValue(child, self.FAILURE.number, True)

    def _measure(self, image: MaskedImageF, child: SourceRecord, who: str) -> None:
        if not (self._ctrl.doFlux or self._ctrl.doShape):
            return
        x_key, y_key, centroid_flag = slot_keys(child, "Centroid", ("x", "y", "flag"))
        *shape_keys, shape_flag = slot_keys(child, "Shape", ("xx", "yy", "xy", "flag"))
        if x_key is None or y_key is None:
            raise pexExceptions.LogicError("Centroid Key must be defined to measure the blendedness instFlux")
        if None in shape_keys:
            raise pexExceptions.LogicError("Shape Key must be defined to measure the blendedness")
        flags = self._flags
        if centroid_flag is not None and centroid_flag.get(child):
            # Not a failure: the peak does well enough here.
            flags.setValue(child, self.NO_CENTROID.number, True)
        if shape_flag is not None and shape_flag.get(child):
            flags.setValue(child, self.NO_SHAPE.number, True)
            flags.setValue(child, self.FAILURE.number, True)
        fatal = False
        xx, yy, xy = (key.get(child) for key in shape_keys)
        if not xx * yy - xy * xy >= 0.0:
            flags.setValue(child, self.NO_SHAPE.number, True)
            flags.setValue(child, self.FAILURE.number, True)
            fatal = True
        x, y = x_key.get(child), y_key.get(child)
        if not (math.isfinite(x) and math.isfinite(y)):
            flags.setValue(child, self.NO_CENTROID.number, True)
            flags.setValue(child, self.FAILURE.number, True)
            fatal = True
        if fatal:
            return
        for kind, sums in zip(
            ("raw", "abs"), _weighted_sums(image, x, y, (xx, yy, xy), self._ctrl.nSigmaWeightMax), strict=True
        ):
            w, ww, wd, *second = sums
            if self._ctrl.doFlux:
                flux = w * wd / ww if ww else math.nan
                if kind == "abs" and flux < 0.0:
                    flux = 0.0
                self._keys[f"{kind}_{who}_instFlux"].set(child, flux)
            if self._ctrl.doShape:
                for (key, _), value in zip(self._keys[f"{kind}_{who}"]._columns, second, strict=True):
                    # Twice the weighted moments are those of a Gaussian.
                    key.set(child, 2.0 * value / wd if wd else math.nan)


def _weighted_sums(
    image: MaskedImageF, x: float, y: float, moments: tuple[float, float, float], n_sigma: float
) -> tuple[list[float], list[float]]:
    """Return sums of w, w^2, w d and w d times dx^2, dy^2 and dx dy.

    The first list is of the pixels, the second one of their absolute values
    less what these have too much.
    """
    pixels = get_pixels(image)
    height, width = pixels.image.shape
    xx, yy, xy = moments
    det = xx * yy - xy * xy
    scale = n_sigma * n_sigma
    x, y = x - pixels.x0, y - pixels.y0
    rows, first, last, _ = ellipse_rows(scale * xx, scale * yy, scale * xy, x, y)
    on_image = (rows >= 0) & (rows < height) & (last >= 0) & (first < width)
    rows, first, last = rows[on_image], np.maximum(first[on_image], 0), last[on_image]
    last = np.minimum(last, width - 1)
    if rows.size == 0 or det <= 0:
        return [0.0] * 6, [0.0] * 6
    where = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(first.min()), int(last.max()) + 1)
    columns = np.arange(where[1].start, where[1].stop)
    row_index, column_index = np.nonzero((columns >= first[:, None]) & (columns <= last[:, None]))
    dx, dy = (columns - x)[column_index], (rows - y)[row_index]
    weight = np.exp(-0.5 * (yy * dx * dx - 2.0 * xy * dx * dy + xx * dy * dy) / det)
    inside = row_index, column_index
    data = pixels.image[where][inside].astype(np.float64)
    variance = pixels.variance[where][inside].astype(np.float64)
    mu = BlendednessAlgorithm.computeAbsExpectation(data, variance)
    absolute = np.abs(data) - BlendednessAlgorithm.computeAbsBias(mu, variance)
    factors = np.stack([np.ones(dx.size), dx * dx, dy * dy, dx * dy])
    start = [float(weight.sum()), float(weight @ weight)]
    return start + (factors @ (weight * data)).tolist(), start + (factors @ (weight * absolute)).tolist()


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
