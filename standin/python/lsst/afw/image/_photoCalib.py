# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Photometric calibration: instrumental flux to nanojansky and back."""

from __future__ import annotations

__all__ = [
    "Measurement",
    "PhotoCalib",
    "makePhotoCalibFromCalibZeroPoint",
    "makePhotoCalibFromMetadata",
]

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy import units

from lsst.afw.math._chebyshev import BoundedField, ChebyshevBoundedField
from lsst.afw.table.io import register_factory, register_persistable
from lsst.afw.typehandling import Storable
from lsst.geom import Box2I, Point2D
from lsst.pex.exceptions import InvalidParameterError, LogicError, RuntimeError

from ._overload import Signature, choose, is_real

if TYPE_CHECKING:
    from lsst.afw.table.io import InputArchive, OutputArchiveHandle

    from ._maskedImage import MaskedImageF

_AB_ZERO_FLUX = 1e9 * 1e23 * 10 ** (48.6 / -2.5)
"""Flux of magnitude 0 in the AB system (nJy); Oke & Gunn 1983."""

_SERIALIZATION_VERSION = 1


def _to_magnitude(nanojansky: float) -> float:
    with np.errstate(all="ignore"):
        return float(-2.5 * np.log10(np.float64(nanojansky) / _AB_ZERO_FLUX))


class Measurement:
    """A value with its error.

    Parameters
    ----------
    value : `float`
        The value.
    error : `float`
        Its standard deviation.
    """

    def __init__(self, value: float, error: float):
        self._value, self._error = float(value), float(error)

    @property
    def value(self) -> float:
        """The value."""
        return self._value

    @property
    def error(self) -> float:
        """The standard deviation of the value."""
        return self._error

    def __str__(self) -> str:
        return f"value={self._value:.19g}, error={self._error:.19g}"

    def __repr__(self) -> str:
        return f"Measurement({self})"


@register_persistable("PhotoCalib", module="")
class PhotoCalib(Storable):
    """Factor from instrumental flux (counts) to flux density (nJy).

    Made from ``calibrationMean, calibrationErr=0, bbox=Box2I()`` (constant),
    ``calibration, calibrationErr=0`` (a field), or all of ``calibrationMean,
    calibrationErr, calibration, isConstant``.

    Notes
    -----
    A flux is ``instFlux * calibrationMean``; the magnitude of it is
    ``-2.5 log10(flux / 3631 Jy)`` in the AB system.

    Raises
    ------
    lsst.pex.exceptions.InvalidParameterError
        Raised if mean or error is negative.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        label, given = choose(PhotoCalib, _SIGNATURES, args, kwargs)
        self._error = float(given.get("calibrationErr", 0.0))
        self._constant = label == "constant"
        if label == "constant":
            self._mean = float(given.get("calibrationMean", 0.0))
            bbox = given.get("bbox", Box2I())
            self._calibration: BoundedField = ChebyshevBoundedField(bbox, np.array([[self._mean]]))
        elif label == "field":
            self._calibration = given["calibration"]
            self._mean = self._calibration.mean()
        else:
            self._mean = float(given["calibrationMean"])
            self._calibration = given["calibration"]
            self._constant = bool(given["isConstant"])
        for name, value in (("Calibration mean", self._mean), ("Calibration error", self._error)):
            if value < 0:
                raise InvalidParameterError(f"{name} must not be negative, got {value}.")

    # ------------------------------------------------------------- parameters

    def getCalibrationMean(self) -> float:
        """Return the mean factor (nJy per count)."""
        return self._mean

    def getCalibrationErr(self) -> float:
        """Return the standard deviation of the mean factor."""
        return self._error

    def getInstFluxAtZeroMagnitude(self) -> float:
        """Return the counts of a source of AB magnitude 0."""
        with np.errstate(divide="ignore"):
            return float(np.float64(_AB_ZERO_FLUX) / self._mean)

    def getLocalCalibration(self, point: Point2D) -> float:
        """Return the factor at a position (nJy per count)."""
        return self._mean if self._constant else self._calibration.evaluate(point)

    @property
    def _isConstant(self) -> bool:
        return self._constant

    def computeScaledCalibration(self) -> BoundedField:
        """Return the factor's field divided by its mean."""
        return self._calibration / self._mean

    def computeScalingTo(self, other: PhotoCalib) -> BoundedField:
        """Not implemented upstream either.

        Raises
        ------
        lsst.pex.exceptions.LogicError
            Always raised.
        """
        raise LogicError("Not Implemented: See DM-10154.")

    # ---------------------------------------------------------- counts -> nJy

    def _flux_columns(self, catalog: Any, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return instFlux, its error and the factor for a catalogue's rows."""
        flux = np.array(catalog[f"{name}_instFlux"], dtype=float)
        error = np.array(catalog[f"{name}_instFluxErr"], dtype=float)
        if self._constant:
            return flux, error, np.full(len(flux), self._mean)
        x, y = np.array(catalog.getX(), dtype=float), np.array(catalog.getY(), dtype=float)
        return flux, error, self._calibration.evaluate(x, y)

    def _convert(self, args: tuple, kwargs: dict, magnitudes: bool) -> Any:
        label, given = choose(PhotoCalib, _FLUX_SIGNATURES, args, kwargs)
        if label == "record":
            record, name = given["sourceRecord"], given["instFluxField"]
            point = None if self._constant else record.getCentroid()
            return self._measure(record[f"{name}_instFlux"], record[f"{name}_instFluxErr"], point, magnitudes)
        if label in ("catalog", "column"):
            catalog = given["sourceCatalog"]
            flux, error, factor = self._flux_columns(catalog, given["instFluxField"])
            with np.errstate(all="ignore"):
                if magnitudes:
                    value = -2.5 * np.log10(flux * factor / _AB_ZERO_FLUX)
                    error = 2.5 / math.log(10.0) * (error / flux)
                else:
                    value, error = flux * factor, error * factor
            if label == "catalog":
                return np.stack([value, error], axis=1)
            out, unit = given["outField"], "mag" if magnitudes else "flux"
            catalog[f"{out}_{unit}"] = value
            catalog[f"{out}_{unit}Err"] = error
            return None
        point = given.get("point")
        counts = float(given["instFlux"])
        if "instFluxErr" in given:
            return self._measure(counts, float(given["instFluxErr"]), point, magnitudes)
        nanojansky = counts * (self._mean if point is None else self.getLocalCalibration(point))
        return _to_magnitude(nanojansky) if magnitudes else nanojansky

    def _measure(self, flux: float, error: float, point: Point2D | None, magnitudes: bool) -> Measurement:
        factor = self._mean if point is None else self.getLocalCalibration(point)
        if not magnitudes:
            return Measurement(flux * factor, error * factor)
        with np.errstate(all="ignore"):
            relative = float(np.float64(error) / np.float64(flux))
        return Measurement(_to_magnitude(flux * factor), 2.5 / math.log(10.0) * relative)

    def instFluxToNanojansky(self, *args: Any, **kwargs: Any) -> Any:
        """Convert counts to nJy.

        Parameters
        ----------
        *args, **kwargs
            ``instFlux[, instFluxErr][, point]``, ``sourceRecord,
            instFluxField`` or ``sourceCatalog, instFluxField[, outField]``.

        Returns
        -------
        flux : `float`, `Measurement`, `numpy.ndarray` or `None`
            The flux; with its error a `Measurement`; for a catalogue an array
            of shape (N, 2) with value and error, or nothing where the
            columns ``outField`` of the catalogue were filled.
        """
        return self._convert(args, kwargs, magnitudes=False)

    def instFluxToMagnitude(self, *args: Any, **kwargs: Any) -> Any:
        """Convert counts to AB magnitudes; see `instFluxToNanojansky`."""
        return self._convert(args, kwargs, magnitudes=True)

    # ---------------------------------------------------------- nJy -> counts

    def magnitudeToInstFlux(self, magnitude: float, point: Point2D | None = None) -> float:
        """Convert an AB magnitude to counts.

        Parameters
        ----------
        magnitude : `float`
            The magnitude.
        point : `lsst.geom.Point2D`, optional
            Position; the mean factor is used without it.

        Returns
        -------
        instFlux : `float`
            The counts.
        """
        return self.nanojanskyToInstFlux(_AB_ZERO_FLUX * 10 ** (float(magnitude) / -2.5), point)

    def nanojanskyToInstFlux(self, nanojansky: float, point: Point2D | None = None) -> float:
        """Convert nJy to counts.

        Parameters
        ----------
        nanojansky : `float`
            The flux.
        point : `lsst.geom.Point2D`, optional
            Position; the mean factor is used without it.

        Returns
        -------
        instFlux : `float`
            The counts.
        """
        factor = self._mean if point is None else self.getLocalCalibration(point)
        with np.errstate(all="ignore"):
            return float(np.float64(nanojansky) / factor)

    # ----------------------------------------------------------------- arrays

    def getLocalCalibrationArray(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the factor at arrays of positions (nJy per count)."""
        if self._constant:
            return np.full(len(x), self._mean)
        return self._calibration.evaluate(np.asarray(x, dtype=float), np.asarray(y, dtype=float))

    def instFluxToMagnitudeArray(self, instFluxes: np.ndarray, x: np.ndarray, y: np.ndarray) -> Any:
        """Convert arrays of counts to AB magnitudes (an astropy quantity)."""
        return ((instFluxes * self.getLocalCalibrationArray(x, y)) * units.nJy).to(units.ABmag)

    def magnitudeToInstFluxArray(self, magnitudes: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Convert arrays of AB magnitudes to counts."""
        if not isinstance(magnitudes, units.Magnitude):
            magnitudes = magnitudes * units.ABmag
        return magnitudes.to(units.nJy).value / self.getLocalCalibrationArray(x, y)

    # ----------------------------------------------------------------- images

    def calibrateImage(self, maskedImage: MaskedImageF) -> MaskedImageF:
        """Return a copy of a masked image with pixels in nJy.

        Parameters
        ----------
        maskedImage : `MaskedImageF`
            Pixels in counts, variance in counts squared.

        Returns
        -------
        calibrated : `MaskedImageF`
            Pixels in nJy, variance in nJy squared, the same mask.
        """
        result = self._checked(maskedImage)
        if self._constant:
            result *= self._mean
        else:
            self._calibration.multiplyImage(result, overlapOnly=True)
        return result

    def uncalibrateImage(self, maskedImage: MaskedImageF) -> MaskedImageF:
        """Return a copy of a masked image in nJy with pixels in counts."""
        result = self._checked(maskedImage)
        if self._constant:
            result /= self._mean
        else:
            self._calibration.divideImage(result, overlapOnly=True)
        return result

    @staticmethod
    def _checked(maskedImage: Any) -> MaskedImageF:
        from ._maskedImage import MaskedImageF

        if not isinstance(maskedImage, MaskedImageF):
            raise TypeError(f"A MaskedImageF is needed, got {type(maskedImage).__name__}.")
        return MaskedImageF(maskedImage, True)

    # ---------------------------------------------------------------- general

    def isPersistable(self) -> bool:
        """Tell whether the calibration can be written to FITS (always)."""
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PhotoCalib):
            return NotImplemented
        return (
            self._mean == other._mean
            and self._error == other._error
            and self._calibration == other._calibration
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple:
        return (PhotoCalib, (self._mean, self._error, self._calibration, self._constant))

    def __str__(self) -> str:
        kind = "spatially constant" if self._constant else str(self._calibration)
        return f"{kind} with mean: {self._mean:g} error: {self._error:g}"

    def __repr__(self) -> str:
        return f"PhotoCalib({self})"

    def _persist(self, handle: OutputArchiveHandle) -> None:
        from lsst.afw.table import Schema

        schema = Schema()
        mean = schema.addField(
            "calibrationMean",
            type=np.float64,
            doc="mean calibration on this PhotoCalib's domain",
            units="count",
        )
        error = schema.addField(
            "calibrationErr", type=np.float64, doc="1-sigma error on calibrationMean", units="count"
        )
        constant = schema.addField("isConstant", type="Flag", doc="Is this spatially-constant?")
        field = schema.addField("field", type=np.int32, doc="archive ID of the BoundedField object")
        version = schema.addField("version", type=np.int32, doc="version of this PhotoCalib")
        catalog = handle.makeCatalog(schema)
        record = catalog.addNew()
        record.set(mean, self._mean)
        record.set(error, self._error)
        record.set(constant, self._constant)
        record.set(field, handle.put(self._calibration))
        record.set(version, _SERIALIZATION_VERSION)
        handle.saveCatalog(catalog)

    @classmethod
    def _factory(cls, archive: InputArchive, catalogs: Any) -> PhotoCalib:
        record = catalogs[0][0]
        version = int(record["version"]) if "version" in record.schema else 0
        if version < 1:
            raise RuntimeError(f"Unsupported version (version 0 was defined in maggies): {version}")
        mean, error = float(record["calibrationMean"]), float(record["calibrationErr"])
        field = archive.get(int(record["field"]))
        if field is None:
            # A kind of field that is not known here: its mean is.
            return cls(mean, error)
        return cls(mean, error, field, bool(record["isConstant"]))


_SIGNATURES = (
    Signature(
        "constant",
        ("calibrationMean", "calibrationErr", "bbox"),
        {"calibrationMean": is_real, "calibrationErr": is_real, "bbox": lambda v: isinstance(v, Box2I)},
    ),
    Signature(
        "field",
        ("calibration", "calibrationErr"),
        {"calibration": lambda v: isinstance(v, BoundedField), "calibrationErr": is_real},
        1,
    ),
    Signature(
        "all",
        ("calibrationMean", "calibrationErr", "calibration", "isConstant"),
        {
            "calibrationMean": is_real,
            "calibrationErr": is_real,
            "calibration": lambda v: isinstance(v, BoundedField),
        },
        4,
    ),
)


def _is_point(value: Any) -> bool:
    return isinstance(value, Point2D)


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


_FLUX_SIGNATURES = (
    Signature("point", ("instFlux", "point"), {"instFlux": is_real, "point": _is_point}, 2),
    Signature("plain", ("instFlux",), {"instFlux": is_real}, 1),
    Signature(
        "error",
        ("instFlux", "instFluxErr", "point"),
        {"instFlux": is_real, "instFluxErr": is_real, "point": _is_point},
        2,
    ),
    Signature(
        "record",
        ("sourceRecord", "instFluxField"),
        {"sourceRecord": lambda v: hasattr(v, "getCentroid"), "instFluxField": _is_name},
        2,
    ),
    Signature(
        "catalog",
        ("sourceCatalog", "instFluxField"),
        {"sourceCatalog": lambda v: hasattr(v, "getX"), "instFluxField": _is_name},
        2,
    ),
    Signature(
        "column",
        ("sourceCatalog", "instFluxField", "outField"),
        {"sourceCatalog": lambda v: hasattr(v, "getX"), "instFluxField": _is_name, "outField": _is_name},
        3,
    ),
)


def makePhotoCalibFromCalibZeroPoint(instFluxMag0: float, instFluxMag0Err: float = 0.0) -> PhotoCalib:
    """Make a constant calibration from the counts of magnitude 0.

    Parameters
    ----------
    instFluxMag0 : `float`
        Counts of a source of AB magnitude 0.
    instFluxMag0Err : `float`, optional
        Its standard deviation.

    Returns
    -------
    photoCalib : `PhotoCalib`
        The calibration.
    """
    with np.errstate(all="ignore"):
        zero = np.float64(instFluxMag0)
        mean = _AB_ZERO_FLUX / zero
        error = _AB_ZERO_FLUX * instFluxMag0Err / zero**2
    return PhotoCalib(float(mean), float(error))


def makePhotoCalibFromMetadata(metadata: Any, strip: bool = False) -> PhotoCalib | None:
    """Make a calibration from the header keys of old exposures.

    Parameters
    ----------
    metadata : `lsst.daf.base.PropertySet`
        Header with ``FLUXMAG0`` and perhaps ``FLUXMAG0ERR``.
    strip : `bool`, optional
        Whether to remove the keys.

    Returns
    -------
    photoCalib : `PhotoCalib` or `None`
        The calibration; `None` where the key is missing.
    """
    values = []
    for key in ("FLUXMAG0", "FLUXMAG0ERR"):
        if key in metadata:
            values.append(float(metadata.getScalar(key)))
            if strip:
                metadata.remove(key)
        else:
            values.append(0.0)
            if key == "FLUXMAG0":
                return None
    return makePhotoCalibFromCalibZeroPoint(*values)


def _read_calib(archive: InputArchive, catalogs: Any) -> PhotoCalib:
    """Read the predecessor of `PhotoCalib`."""
    record = catalogs[0][0]
    return makePhotoCalibFromCalibZeroPoint(float(record["fluxmag0"]), float(record["fluxmag0.err"]))


register_factory("Calib", _read_calib)
