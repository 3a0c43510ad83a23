# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""World coordinate systems of images, on the ICRS sky."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsst.afw.typehandling import Storable
from lsst.daf.base import PropertyList, PropertySet
from lsst.geom import (
    AffineTransform,
    Angle,
    AngleUnit,
    Box2I,
    Extent2D,
    Extent2I,
    Point2D,
    Point2I,
    SpherePoint,
    degrees,
    radians,
)
from lsst.pex.exceptions import LogicError, RuntimeError

from . import _wcs_metadata
from ._wcs_mappings import LinearPixels, PixelMapping, SipPixels, SkyProjection

__all__ = ["SkyWcs", "makeCdMatrix", "makeSkyWcs", "makeTanSipWcs"]

_GRID_BOX = (0, 0, 100, 100)


def makeCdMatrix(scale: Angle, orientation: Angle | None = None, flipX: bool = False) -> np.ndarray:
    """Return the matrix of degrees per pixel.

    Parameters
    ----------
    scale : `lsst.geom.Angle`
        Size of a pixel.
    orientation : `lsst.geom.Angle`, optional
        Angle from y towards x of North.
    flipX : `bool`, optional
        East along positive x instead of negative x.
    """
    angle = 0.0 if orientation is None else orientation.asRadians()
    size = scale.asDegrees()
    sign = 1.0 if flipX else -1.0
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c * size * sign, s * size], [-s * size * sign, c * size]])


class SkyWcs(Storable):
    """A map of pixels to the ICRS sky, and back.

    Pixels are counted from 0 in the parent image. Objects do not change.

    Parameters
    ----------
    metadata : `lsst.daf.base.PropertySet` or ``astshim.FrameDict``
        FITS keywords of the coordinate system, or frames PIXELS, IWC and SKY
        and the mappings between them.
    strip : `bool`, optional
        Remove the keywords that were used.

    Raises
    ------
    lsst.pex.exceptions.TypeError
        Raised if the keywords do not describe a celestial coordinate system,
        or one that is not known here.
    """

    _pixels: PixelMapping
    _sky: SkyProjection
    _origin: tuple[float, float]
    _text: str | None
    _approximation: SkyWcs | None

    def __init__(self, metadata: Any, strip: bool = False) -> None:
        if not isinstance(metadata, PropertySet):
            from ._persist import wcs_from_archive_string

            other = wcs_from_archive_string(f"1 SkyWcs 0 {metadata.show(False)}")
            self._set(other._pixels, other._sky, text=other._text, origin=other._origin)
            return
        pixels, sky = _wcs_metadata.read_metadata(metadata, strip)
        self._set(pixels, sky)

    def _set(
        self,
        pixels: PixelMapping,
        sky: SkyProjection,
        *,
        text: str | None = None,
        origin: tuple[float, float] | None = None,
        approximation: SkyWcs | None = None,
    ) -> None:
        self._pixels, self._sky, self._text, self._approximation = pixels, sky, text, approximation
        if origin is None:
            # Upstream sends the reference pixel through the whole map.
            crpix = pixels.inverse(np.zeros((2, 1)))
            lon, lat = sky.to_sky(pixels.forward(crpix))
            origin = (float(lon[0]), float(lat[0]))
        self._origin = origin

    @classmethod
    def _make(cls, pixels: PixelMapping, sky: SkyProjection, **kwargs: Any) -> SkyWcs:
        new = cls.__new__(cls)
        new._set(pixels, sky, **kwargs)
        return new

    # Positions --------------------------------------------------------------

    def _to_sky(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._sky.to_sky(self._pixels.forward(np.stack([x, y])))

    def _to_pixel(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        return self._pixels.inverse(self._sky.to_plane(lon, lat))

    def pixelToSky(self, *args: Any, **kwargs: Any) -> Any:
        """Map a `Point2D`, two numbers, or a sequence of points to the sky.

        Returns
        -------
        sky : `lsst.geom.SpherePoint` or `list` of them
        """
        values = [*args, *(kwargs[k] for k in ("pixel", "x", "y") if k in kwargs)]
        if len(values) == 2:
            lon, lat = self._to_sky(np.array([float(values[0])]), np.array([float(values[1])]))
            return SpherePoint(float(lon[0]), float(lat[0]), radians)
        (pixel,) = values
        if isinstance(pixel, Point2D | Point2I):
            if isinstance(pixel, Point2I):
                raise TypeError("SkyWcs.pixelToSky takes a Point2D, not a Point2I.")
            return self.pixelToSky(pixel.x, pixel.y)
        positions = np.array([(p.x, p.y) for p in pixel], dtype=float).reshape(-1, 2)
        lon, lat = self._to_sky(*positions.T)
        return [SpherePoint(a, d, radians) for a, d in zip(lon.tolist(), lat.tolist(), strict=True)]

    def skyToPixel(self, sky: SpherePoint | Sequence[SpherePoint]) -> Any:
        """Map a `SpherePoint` or a sequence of them to pixels.

        Returns
        -------
        pixel : `lsst.geom.Point2D` or `list` of them
        """
        if isinstance(sky, SpherePoint):
            return self.skyToPixel([sky])[0]
        values = np.array([(s._lon, s._lat) for s in sky], dtype=float).reshape(-1, 2)
        x, y = self._to_pixel(*values.T)
        return [Point2D(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]

    def pixelToSkyArray(
        self, x: np.ndarray, y: np.ndarray, degrees: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Map arrays of pixels to the sky.

        Parameters
        ----------
        x, y : `numpy.ndarray`, shape (N,), float
            Pixels.
        degrees : `bool`, optional
            Return degrees, not radians.

        Returns
        -------
        ra, dec : `numpy.ndarray`, shape (N,)
        """
        lon, lat = self._to_sky(*_float_pair(x, y, "pixelToSkyArray"))
        return (np.rad2deg(lon), np.rad2deg(lat)) if degrees else (lon, lat)

    def skyToPixelArray(
        self, ra: np.ndarray, dec: np.ndarray, degrees: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Map arrays of sky positions to pixels.

        Parameters
        ----------
        ra, dec : `numpy.ndarray`, shape (N,), float
            Positions in radians, or degrees if ``degrees``.
        degrees : `bool`, optional
            The unit of ``ra`` and ``dec``.

        Returns
        -------
        x, y : `numpy.ndarray`, shape (N,)
        """
        lon, lat = _float_pair(ra, dec, "skyToPixelArray")
        if degrees:
            lon, lat = np.deg2rad(lon), np.deg2rad(lat)
        x, y = self._to_pixel(lon, lat)
        return x, y

    # Properties -------------------------------------------------------------

    def getPixelOrigin(self) -> Point2D:
        """Return the reference pixel."""
        return Point2D(*self._pixels.inverse(np.zeros((2, 1)))[:, 0].tolist())

    def getSkyOrigin(self) -> SpherePoint:
        """Return the position of the reference pixel."""
        return SpherePoint(*self._origin, radians)

    def getPixelScale(self, pixel: Point2D | None = None) -> Angle:
        """Return the root of the area of a pixel, at the origin by default."""
        x, y = self.getPixelOrigin() if pixel is None else pixel
        lon, lat = self._to_sky(np.array([x, x + 1.0, x]), np.array([y, y, y + 1.0]))
        vector = np.stack([np.cos(lon) * np.cos(lat), np.sin(lon) * np.cos(lat), np.sin(lat)], axis=1)
        area = np.cross(vector[1] - vector[0], vector[2] - vector[0])
        return Angle(float(area @ area) ** 0.25)

    def getCdMatrix(self, pixel: Point2D | None = None) -> np.ndarray:
        """Return degrees per pixel (2, 2) at a pixel, the origin by default."""
        return self._pixels.jacobian(np.array(self.getPixelOrigin() if pixel is None else pixel, dtype=float))

    def getTanWcs(self, pixel: Point2D) -> SkyWcs:
        """Return the TAN approximation about a pixel."""
        return makeSkyWcs(
            crpix=Point2D(pixel), crval=self.pixelToSky(Point2D(pixel)), cdMatrix=self.getCdMatrix(pixel)
        )

    @property
    def isFits(self) -> bool:
        """Whether FITS keywords describe it exactly (`bool`)."""
        return isinstance(self._pixels, LinearPixels) and self._is_north_up()

    def _is_north_up(self) -> bool:
        return self._sky.basis[1, 2] == 0.0

    @property
    def isFlipped(self) -> bool:
        """Whether East is along positive x when North is up (`bool`)."""
        det = float(np.linalg.det(self.getCdMatrix()))
        if det == 0:
            raise RuntimeError("CD matrix is singular")
        return det > 0

    def getFitsMetadata(self, precise: bool = False, bbox: Box2I | None = None) -> PropertyList:
        """Return FITS keywords.

        Parameters
        ----------
        precise : `bool`, optional
            Do not use the FITS approximation.
        bbox : `lsst.geom.Box2I`, optional
            Box of the image that the keywords go with; its first pixel
            becomes FITS pixel (1, 1). It starts at (0, 0) by default.

        Raises
        ------
        lsst.pex.exceptions.RuntimeError
            Raised if FITS keywords cannot describe it.
        """
        if not precise and self._approximation is not None:
            return self._approximation.getFitsMetadata(True, bbox)
        if not self.isFits:
            raise RuntimeError(
                "WCS is not directly FITS-compatible."
                if precise
                else "WCS does not have an attached FITS approximation."
            )
        x0, y0 = (0, 0) if bbox is None else (bbox.beginX, bbox.beginY)
        pixels = self._pixels.shifted(np.array([-x0, -y0], dtype=float))
        if not isinstance(pixels, LinearPixels):
            raise LogicError("A FITS coordinate system has a linear or SIP map.")
        return _wcs_metadata.make_metadata(pixels, self._sky)

    def hasFitsApproximation(self) -> bool:
        """Tell whether a FITS approximation is attached."""
        return self._approximation is not None

    def getFitsApproximation(self) -> SkyWcs | None:
        """Return the attached FITS approximation."""
        return self._approximation

    def copyWithFitsApproximation(self, fitsApproximation: SkyWcs | None) -> SkyWcs:
        """Return a copy with a FITS approximation attached."""
        if fitsApproximation is not None and fitsApproximation.hasFitsApproximation():
            raise LogicError("Cannot add a FITS approximation that itself already has a FITS approximation.")
        # The text says whether there is an approximation.
        text = (
            None if self._text is None else _wcs_metadata.set_flag(self._text, fitsApproximation is not None)
        )
        return SkyWcs._make(
            self._pixels, self._sky, text=text, origin=self._origin, approximation=fitsApproximation
        )

    def copyAtShiftedPixelOrigin(self, shift: Extent2D | Extent2I) -> SkyWcs:
        """Return the system for pixels whose positions grew by ``shift``."""
        pixels = self._pixels.shifted(np.array([float(shift[0]), float(shift[1])]))
        return SkyWcs._make(pixels, self._sky, origin=self._origin)

    def linearizePixelToSky(self, coord: Any, skyUnit: AngleUnit = degrees) -> AffineTransform:
        """Return the affine map of pixels to sky about a position.

        Parameters
        ----------
        coord : `lsst.geom.SpherePoint` or `lsst.geom.Point2D`
            The position.
        skyUnit : `lsst.geom.AngleUnit`
            Unit of the sky coordinates.
        """
        if isinstance(coord, SpherePoint):
            pixel, sky = self.skyToPixel(coord), coord
        else:
            pixel, sky = Point2D(coord), self.pixelToSky(Point2D(coord))
        x = sky.getTangentPlaneOffset(self.pixelToSky(pixel + Extent2D(1, 0)))
        y = sky.getTangentPlaneOffset(self.pixelToSky(pixel + Extent2D(0, 1)))
        matrix = np.array([[v.asAngularUnits(skyUnit) for v in pair] for pair in (x, y)]).T
        offset = np.array(sky.getPosition(skyUnit)) - matrix @ np.array(pixel)
        return AffineTransform(matrix, offset)

    def linearizeSkyToPixel(self, coord: Any, skyUnit: AngleUnit = degrees) -> AffineTransform:
        """Return the affine map of sky to pixels about a position."""
        return self.linearizePixelToSky(coord, skyUnit).inverted()

    def getRelativeRotationToWcs(self, otherWcs: SkyWcs) -> Angle:
        """Return the angle by which another system is rotated."""
        rotations = []
        for wcs in (self, otherWcs):
            u, _, v = np.linalg.svd(wcs.getCdMatrix())
            rotations.append(u @ v)
        x, y = np.array([1.0, 0.0]) @ rotations[0] @ rotations[1].T
        return Angle(math.atan2(y, x) % (2.0 * math.pi))

    # Text -------------------------------------------------------------------

    def writeString(self) -> str:
        """Return the text that an archive holds."""
        from ._persist import wcs_to_archive_string

        return wcs_to_archive_string(self)

    @staticmethod
    def readString(string: str) -> SkyWcs:
        """Make a system of the text that an archive holds."""
        from ._persist import wcs_from_archive_string

        return wcs_from_archive_string(string)

    def isPersistable(self) -> bool:
        """Tell whether the object can be written to FITS."""
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SkyWcs):
            return NotImplemented
        return self.writeString() == other.writeString()

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        kind = "FITS standard SkyWcs:" if self.isFits else "Non-standard SkyWcs (Frames: PIXELS, IWC, SKY): "
        origin = ", ".join(f"{v:.6g}" for v in self.getPixelOrigin())
        return (
            f"{kind}\nSky Origin: {self._sky_text()}\nPixel Origin: ({origin})\n"
            f"Pixel Scale: {self.getPixelScale().asArcseconds():.6g} arcsec/pixel"
        )

    def _sky_text(self) -> str:
        lon, lat = (np.rad2deg(v) for v in self._origin)
        return f"({lon:.10f}, {lat:+.10f})"

    __repr__ = __str__

    def __reduce__(self) -> tuple[Any, ...]:
        approximation = None if self._approximation is None else self._approximation.writeString()
        return _unpickle, (self.writeString(), approximation)


def _unpickle(text: str, approximation: str | None) -> SkyWcs:
    wcs = SkyWcs.readString(text)
    return wcs if approximation is None else wcs.copyWithFitsApproximation(SkyWcs.readString(approximation))


def _float_pair(a: Any, b: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != np.float64 or b.dtype != np.float64:
        raise TypeError(f"SkyWcs.{name} takes float64 arrays; given {a.dtype} and {b.dtype}.")
    if a.shape != b.shape:
        raise ValueError(f"SkyWcs.{name} takes arrays of one shape; given {a.shape} and {b.shape}.")
    return a.ravel(), b.ravel()


def makeSkyWcs(*args: Any, **kwargs: Any) -> SkyWcs:
    """Make a coordinate system.

    Takes ``(crpix, crval, cdMatrix, projection="TAN")`` with the reference
    pixel counted from 0, its position (`lsst.geom.SpherePoint`) and degrees
    per pixel (2, 2), or ``(metadata, strip=False)`` with FITS keywords.
    """
    if (args and isinstance(args[0], PropertySet)) or "metadata" in kwargs:
        return SkyWcs(*args, **kwargs)
    return _make_projected(*args, **kwargs)


def _make_projected(crpix: Point2D, crval: SpherePoint, cdMatrix: Any, projection: str = "TAN") -> SkyWcs:
    matrix = np.array(cdMatrix, dtype=float)
    if matrix.shape != (2, 2):
        raise TypeError(f"The CD matrix has shape (2, 2); given {matrix.shape}.")
    if not isinstance(crval, SpherePoint):
        raise TypeError(f"The position of the reference pixel is a SpherePoint; given {crval!r}.")
    metadata = _wcs_metadata.make_simple_metadata(Point2D(crpix), crval, matrix, projection)
    return SkyWcs(metadata)


def makeTanSipWcs(
    crpix: Point2D,
    crval: SpherePoint,
    cdMatrix: Any,
    sipA: Any,
    sipB: Any,
    sipAp: Any = None,
    sipBp: Any = None,
) -> SkyWcs:
    """Make a TAN system with SIP distortion.

    Parameters
    ----------
    crpix, crval, cdMatrix
        As in `makeSkyWcs`.
    sipA, sipB : array_like, shape (order + 1, order + 1)
        Coefficients of u^i v^j at [i, j].
    sipAp, sipBp : array_like, optional
        Coefficients of the way back.
    """
    base = _make_projected(crpix, crval, cdMatrix)
    linear = base._pixels
    if not isinstance(linear, LinearPixels):
        raise LogicError("A TAN system has a linear map.")
    terms = [None if c is None else np.array(c, dtype=float) for c in (sipA, sipB, sipAp, sipBp)]
    pixels = SipPixels(linear.crpix, linear.cd, *terms)  # type: ignore[arg-type]
    return SkyWcs._make(pixels, base._sky)
