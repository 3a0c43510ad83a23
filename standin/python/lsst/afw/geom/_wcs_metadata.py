# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""FITS keywords of world coordinate systems.

Greisen & Calabretta 2002, A&A 395, 1061; Calabretta & Greisen 2002,
A&A 395, 1077; SIP after Shupe et al. 2005, ASPC 347, 491.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from lsst.daf.base import PropertyList, PropertySet
from lsst.geom import Point2D, SpherePoint
from lsst.pex.exceptions import TypeError

from ._wcs_mappings import LinearPixels, PixelMapping, SipPixels, SkyProjection

__all__ = ["make_metadata", "make_simple_metadata", "read_metadata", "set_flag"]

PROJECTIONS = ("TAN", "STG", "SIN", "ARC", "ZEA")

_STRIP = re.compile(
    r"WCSAXES|CRPIX[12]|CRVAL[12]|CTYPE[12]|CUNIT[12]|CD[12]_[12]|PC[12]_[12]|CDELT[12]|CROTA[12]"
    r"|LONPOLE|LATPOLE|RADESYS|RADECSYS|EQUINOX|[AB]P?_(ORDER|DMAX|\d_\d)|PV[12]_\d+"
)
_STRIP_ORIGIN = re.compile(r"(CRPIX|CRVAL|CTYPE|CUNIT)[12]A")


def set_flag(text: str, has_approximation: bool) -> str:
    """Set the flag of a FITS approximation in the text of an archive."""
    version, name, _, rest = text.split(" ", 3)
    return f"{version} {name} {int(has_approximation)} {rest}"


def make_simple_metadata(
    crpix: Point2D, crval: SpherePoint, cd: np.ndarray, projection: str = "TAN"
) -> PropertyList:
    """Return the keywords of a system without distortion.

    Parameters
    ----------
    crpix : `lsst.geom.Point2D`
        Reference pixel, counted from 0.
    crval : `lsst.geom.SpherePoint`
        Its position.
    cd : `numpy.ndarray`, shape (2, 2)
        Degrees per pixel.
    projection : `str`, optional
        The projection.
    """
    metadata = PropertyList()
    metadata.add("RADESYS", "ICRS")
    metadata.add("CTYPE1", "RA---" + projection)
    metadata.add("CTYPE2", "DEC--" + projection)
    metadata.add("CRPIX1", crpix[0] + 1.0)
    metadata.add("CRPIX2", crpix[1] + 1.0)
    metadata.add("CRVAL1", crval[0].asDegrees())
    metadata.add("CRVAL2", crval[1].asDegrees())
    metadata.add("CUNIT1", "deg")
    metadata.add("CUNIT2", "deg")
    for i in range(2):
        for j in range(2):
            if cd[i, j] != 0.0:
                metadata.add(f"CD{i + 1}_{j + 1}", float(cd[i, j]))
    return metadata


def make_metadata(pixels: LinearPixels, sky: SkyProjection) -> PropertyList:
    """Return the keywords of a system, in the order that AST gives them."""
    suffix = sky.name + ("-SIP" if isinstance(pixels, SipPixels) else "")
    lon = math.degrees(math.atan2(sky.basis[0, 1], sky.basis[0, 0])) % 360.0
    lat = math.degrees(math.atan2(sky.basis[0, 2], math.hypot(sky.basis[0, 0], sky.basis[0, 1])))
    metadata = PropertyList()
    metadata.set("WCSAXES", 2, "Number of WCS axes")
    for i in range(2):
        metadata.set(f"CRPIX{i + 1}", float(pixels.crpix[i]) + 1.0, f"Reference pixel on axis {i + 1}")
    for i, value in enumerate((lon, lat)):
        metadata.set(f"CRVAL{i + 1}", value, f"Value at ref. pixel on axis {i + 1}")
    for i, name in enumerate(("RA---", "DEC--")):
        metadata.set(f"CTYPE{i + 1}", name + suffix, f"Type of co-ordinate on axis {i + 1}")
    for i in range(2):
        for j in range(2):
            metadata.set(f"CD{i + 1}_{j + 1}", float(pixels.cd[i, j]), "Transformation matrix element")
    if isinstance(pixels, SipPixels):
        for name, terms in (("A", pixels.a), ("B", pixels.b), ("AP", pixels.ap), ("BP", pixels.bp)):
            if terms is None:
                continue
            metadata.set(f"{name}_ORDER", terms.shape[0] - 1, "SIP polynomial order")
            for i, j in np.argwhere(terms != 0.0).tolist():
                metadata.set(f"{name}_{i}_{j}", float(terms[i, j]), "SIP coefficient")
    metadata.set("RADESYS", "ICRS", "Reference frame for RA/DEC values")
    return metadata


def read_metadata(metadata: PropertySet, strip: bool) -> tuple[PixelMapping, SkyProjection]:
    """Read the keywords of a celestial coordinate system.

    Parameters
    ----------
    metadata : `lsst.daf.base.PropertySet`
        The keywords.
    strip : `bool`
        Remove the keywords that were used.

    Returns
    -------
    pixels : `PixelMapping`
        Map of pixels, counted from 0, to the plane.
    sky : `SkyProjection`
        Map of the plane to the sky (ICRS).

    Raises
    ------
    lsst.pex.exceptions.TypeError
        Raised if keywords are missing, or describe what is not known here.
    """
    for key in ("CRPIX1", "CRPIX2"):
        if not metadata.exists(key):
            raise TypeError(f"{key} not found; cannot read metadata as a SkyWcs")
    axes, projection, distorted = _read_types(metadata)
    crpix = np.array([_number(metadata, f"CRPIX{i}") for i in (1, 2)])
    crval = np.array([_number(metadata, f"CRVAL{i + 1}") for i in axes])
    matrix = _read_matrix(metadata)[axes]
    if np.linalg.det(matrix) == 0:
        raise TypeError(f"The matrix {matrix.tolist()} is singular; cannot read metadata as a SkyWcs")
    sky = _read_sky(metadata, crval, projection)
    if sky.basis[1, 2] != 0.0:
        sky, rotation = sky.upright()
        matrix = rotation @ matrix
    # FITS counts pixels from 1; LSST from 0 in the parent image.
    crpix = crpix - 1.0 + _read_origin(metadata)
    pixels: PixelMapping
    if distorted:
        if axes != [0, 1]:
            raise TypeError("SIP with declination on the first axis is not known here.")
        terms = [_read_sip(metadata, name) for name in ("A", "B", "AP", "BP")]
        order = max((t.shape[0] for t in terms[:2] if t is not None), default=1)
        a, b = (np.zeros((order, order)) if t is None else t for t in terms[:2])
        pixels = SipPixels(crpix, matrix, a, b, terms[2], terms[3])
    else:
        pixels = LinearPixels(crpix, matrix)
    if strip:
        for name in metadata.names():
            if _STRIP.fullmatch(name) or _STRIP_ORIGIN.fullmatch(name):
                metadata.remove(name)
    return pixels, sky


def _number(metadata: PropertySet, key: str, default: float | None = None) -> float:
    value = metadata.get(key, default)
    if value is None or isinstance(value, str):
        raise TypeError(f"{key} is {value!r}, not a number; cannot read metadata as a SkyWcs")
    return float(value)


def _read_types(metadata: PropertySet) -> tuple[list[int], str, bool]:
    """Return the axes of longitude and latitude, projection, distortion."""
    types = [str(metadata.get(f"CTYPE{i}", "")).strip() for i in (1, 2)]
    starts = [t[:5].rstrip("-") for t in types]
    if sorted(starts) != ["DEC", "RA"]:
        raise TypeError(f"CTYPE {types} is not a pair of RA and DEC; cannot read metadata as a SkyWcs")
    endings = {t[5:] for t in types}
    projection, _, extra = types[0][5:].partition("-")
    if len(endings) != 1 or projection not in PROJECTIONS or extra not in ("", "SIP"):
        raise TypeError(f"The projection of CTYPE {types} is not one of {', '.join(PROJECTIONS)}.")
    for i in (1, 2):
        unit = str(metadata.get(f"CUNIT{i}", "deg")).strip()
        if unit not in ("deg", ""):
            raise TypeError(f"CUNIT{i} is {unit!r}; only deg is known here.")
    # Old headers leave out the -SIP of CTYPE; the standard asks for it.
    return [starts.index("RA"), starts.index("DEC")], projection, extra == "SIP"


def _read_matrix(metadata: PropertySet) -> np.ndarray:
    """Return degrees per pixel from CD, PC with CDELT, or CDELT and CROTA."""

    def matrix(prefix: str, default: Any) -> np.ndarray:
        return np.array(
            [
                [_number(metadata, f"{prefix}{i + 1}_{j + 1}", default[i][j]) for j in range(2)]
                for i in range(2)
            ]
        )

    if any(metadata.exists(f"CD{i}_{j}") for i in (1, 2) for j in (1, 2)):
        return matrix("CD", np.zeros((2, 2)))
    delta = np.array([_number(metadata, f"CDELT{i}", 1.0) for i in (1, 2)])
    if metadata.exists("CROTA2") and not metadata.exists("PC1_1"):
        angle = math.radians(_number(metadata, "CROTA2"))
        c, s = math.cos(angle), math.sin(angle)
        return np.array([[delta[0] * c, -delta[1] * s], [delta[0] * s, delta[1] * c]])
    return delta[:, None] * matrix("PC", np.eye(2))


def _read_origin(metadata: PropertySet) -> np.ndarray:
    """Return the parent position of the first pixel (WCS "A")."""
    keys = ("CRPIX1A", "CRPIX2A", "CRVAL1A", "CRVAL2A")
    if all(metadata.exists(k) for k in keys):
        values = [_number(metadata, k) for k in keys]
        if values[:2] == [1.0, 1.0]:
            return np.round(values[2:])
    return np.zeros(2)


def _read_sip(metadata: PropertySet, name: str) -> np.ndarray | None:
    if not metadata.exists(f"{name}_ORDER"):
        return None
    order = int(_number(metadata, f"{name}_ORDER"))
    if not 0 <= order <= 9:
        raise TypeError(f"{name}_ORDER is {order}; 0 to 9 is wanted.")
    return np.array(
        [[_number(metadata, f"{name}_{i}_{j}", 0.0) for j in range(order + 1)] for i in range(order + 1)]
    )


def _read_sky(metadata: PropertySet, crval: np.ndarray, projection: str) -> SkyProjection:
    basis = SkyProjection.at(math.radians(crval[0]), math.radians(crval[1]), projection).basis
    pole = _number(metadata, "LONPOLE", 180.0)
    if pole != 180.0:
        angle = math.radians(180.0 - pole)
        c, s = math.cos(angle), math.sin(angle)
        basis = np.stack([basis[0], c * basis[1] + s * basis[2], c * basis[2] - s * basis[1]])
    equinox = metadata.get("EQUINOX")
    default = "ICRS" if equinox is None else ("FK5" if float(equinox) >= 1984.0 else "FK4")
    system = str(metadata.get("RADESYS", metadata.get("RADECSYS", default))).strip() or default
    if system == "ICRS":
        return SkyProjection(basis, projection)
    if system != "FK5":
        raise TypeError(f"RADESYS {system!r} is not known here; ICRS and FK5 are.")
    from astropy.coordinates import FK5, ICRS, CartesianRepresentation

    frame = FK5(CartesianRepresentation(*basis.T), equinox=f"J{2000.0 if equinox is None else equinox}")
    return SkyProjection(frame.transform_to(ICRS()).cartesian.xyz.value.T, projection)
