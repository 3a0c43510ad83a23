# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""World coordinates of FITS images."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.io.fits.card import Undefined
from astropy.wcs import WCS, Sip

from ..images.files import one_line
from .fits_files import FitsContent, FitsImageError
from .fits_header import header_scale, number_of

if TYPE_CHECKING:
    from .fits_images import FitsOptions

_LARGEST_OFFSET = 0.1
"""Distance (px) of one position on the grids of two bands up to which they are one grid."""

_FRAMES = {"J2000": "ICRS", "FK5/J2000": "FK5", "B1950": "FK4", "ICRF": "ICRS", "GAIA": "ICRS"}
"""Other names of celestial frames; FK5 and ICRS are 0.03 arcsec apart."""

RESAMPLE_ADVICE = "resample them to one, or give --resample (resample=True) to have that done"
"""What to do about images on different pixel grids."""

_SCALE_RANGE = (1e-3, 60.0)
"""Pixel scales that are believed (arcsec)."""

_YEARS = (1800.0, 2100.0)
"""Equinoxes of coordinates; others stand for one that is not known, such as 0."""

_SCALE_KEYS = ("CD1_1", "CD1_2", "CD2_1", "CD2_2", "CDELT1", "CDELT2")
_NUMBER_KEY = re.compile(
    r"(CRPIX|CRVAL|CDELT|CROTA)[12]|(CD|PC)[12]_[12]|PV[12]_\d+|LONPOLE|LATPOLE|EQUINOX|EPOCH"
)


def common_wcs(
    contents: Mapping[str, FitsContent], shape: tuple[int, int], options: FitsOptions, notes: list[str]
) -> tuple[WCS, dict[str, WCS]]:
    """World coordinates of the grid of all images, and those of bands that have some; else they are made up.

    Bands that are to be resampled have others than the grid.
    """
    known, without = {}, []
    for band, content in contents.items():
        wcs, note = read_wcs(content.header, content.path.name, content.pixels.shape, options.pixel_scale)
        if note:
            notes.append(f"{content.path.name}: {note}")
        if wcs is None:
            without.append(band)
        else:
            known[band] = wcs
    names = ", ".join(dict.fromkeys(contents[band].path.name for band in without))
    if not known:
        ra, dec = options.sky_center
        said = header_scale(contents[without[0]].header) if options.pixel_scale is None else None
        scale = options.pixel_scale if options.pixel_scale is not None else said[0] if said else 0.2
        used = f"made up are RA {ra:g}, Dec {dec:g} at the centre and {scale:g} arcsec per pixel"
        if said:
            used = f"made up are RA {ra:g}, Dec {dec:g}; by {said[1]}, {scale:.4g} arcsec per pixel"
        wcs = made_up_wcs(shape, (ra, dec), scale)
    else:
        first = next(iter(known))
        wcs, used = known[first], f"those of {first} are used"
    if without:
        notes.append(f"{names}: no world coordinates in the header; {used}.")
    sides = {band: content.pixels.shape for band, content in contents.items()}
    if options.resample and (without or not known) and len(set(sides.values())) > 1:
        raise FitsImageError(f"{names} cannot be resampled without world coordinates; give images that have.")
    same = {band: other for band, other in known.items() if sides[band] == shape}
    off = grid_offsets(same, shape) if len(same) > 1 else {}
    if off and not options.resample:
        listed = ", ".join(f"{band} is up to {distance:.4g} pixels off" for band, distance in off.items())
        raise FitsImageError(
            f"The world coordinates disagree: compared with {first}, {listed}; {RESAMPLE_ADVICE}."
        )
    return wcs, {band: other if band in off or band not in same else wcs for band, other in known.items()}


def read_wcs(
    header: fits.Header, name: str, shape: tuple[int, ...], pixel_scale: float | None = None
) -> tuple[WCS | None, str]:
    """Read the world coordinates of an image of a shape (y, x).

    Returns `None` if the header has none, and what had to be assumed, empty for
    nothing. ``pixel_scale`` (arcsec) is for headers without a usable one; without
    it, these are refused.
    """
    if not header.get("CTYPE1"):
        return None, ""
    header, left_out = _repaired(header)
    advice = "; correct it, or give --pixel-scale (pixel_scale) to go on without world coordinates"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _make_numbers(header)
            wcs = WCS(header, naxis=2)
            if not wcs.has_celestial:
                return None, ""
            if not isinstance(wcs.pixel_to_world(0.0, 0.0), SkyCoord):
                frame = "".join(
                    f" with {key} = {header[key]}" for key in ("RADESYS", "RADECSYS") if key in header
                )
                raise ValueError(f"{header['CTYPE1']}{frame} is no coordinate of the sky")
            if not any(key in header for key in (*_SCALE_KEYS, "PC1_1")):
                scale, reason = math.nan, "the header has world coordinates but no pixel scale (CD or CDELT)"
            else:
                scale = pixel_scale_of(wcs, shape)
                reason = f"the header's pixel scale of {scale:.4g} arcsec is not plausible"
    except Exception as error:
        # astropy and wcslib raise errors of a dozen kinds for what is no projection.
        text = one_line(error)
        if pixel_scale is not None:
            return None, f"its world coordinates cannot be used ({text}) and are left out."
        raise FitsImageError(f"{name}: its world coordinates cannot be used ({text}){advice}.") from error
    if _SCALE_RANGE[0] < scale < _SCALE_RANGE[1]:
        if pixel_scale is not None and abs(math.log(pixel_scale / scale)) > 0.02:
            return wcs, f"the header's pixel scale of {scale:.4g} arcsec is used, not {pixel_scale:g}."
        return wcs, left_out
    if pixel_scale is None:
        raise FitsImageError(f"{name}: {reason}; give it with --pixel-scale (pixel_scale).")
    plain = made_up_wcs(shape, tuple(wcs.wcs.crval), pixel_scale)
    plain.wcs.crpix = wcs.wcs.crpix
    return plain, f"{reason}; {pixel_scale:g} arcsec, which was given, is used."


def _repaired(header: fits.Header) -> tuple[fits.Header, str]:
    """Spell world coordinates as the standard has it, in a copy; returns what is left out as well."""
    header = header.copy()
    for key in ("CTYPE1", "CTYPE2"):
        header[key] = str(header.get(key, "")).upper()
    for key in ("CUNIT1", "CUNIT2"):
        if str(header.get(key, "")).strip().lower() in ("deg", "degs", "degree", "degrees"):
            header[key] = "deg"
    for key in ("RADESYS", "RADECSYS"):
        said = str(header.get(key, "")).strip().upper()
        if said in _FRAMES:
            header[key] = _FRAMES[said]
        elif not said:
            header.remove(key, ignore_missing=True)
    keys, notes = list(dict.fromkeys(header)), _what_is_missing(header)
    if any(re.fullmatch(r"CD[12]_[12]", key) for key in keys):
        # Of both matrices, wcslib takes the other one.
        _remove(header, r"PC[12]_[12]")
    # Polynomials of SCAMP, which are those of TPV; TAN has four parameters of its first axis alone.
    polynomial = any(re.fullmatch(r"PV(2_\d+|1_0|1_[5-9]|1_\d\d)", key) for key in keys)
    if polynomial and header["CTYPE1"].strip().endswith("-SIP"):
        _remove(header, r"PV[12]_\d+")
    elif polynomial and header["CTYPE1"].strip().endswith("-TAN"):
        header["CTYPE1"], header["CTYPE2"] = (header[f"CTYPE{k}"].replace("-TAN", "-TPV") for k in (1, 2))
    elif header["CTYPE1"].strip().endswith("-TAN") and any(re.fullmatch(r"[AB]_\d_\d", key) for key in keys):
        header["CTYPE1"], header["CTYPE2"] = (f"{header[f'CTYPE{k}'].strip()}-SIP" for k in (1, 2))
        notes.append(
            "SIP distortions are used, though CTYPE does not say so; of resampled images, remove them."
        )
    if not {"AMDX1", "AMDY1", "PPO3", "PPO6", "XPIXELSZ", "YPIXELSZ"} <= {*keys}:
        # Some of the solution of a photographic plate is none; wcslib would take it for one.
        _remove(header, r"(CNPIX|PPO|AMD[XY])\d+|[XY]PIXELSZ|PLT(RA|DEC)\w*")
    if _remove(header, r"(CPDIS|D2IMDIS|CPERR|D2IMERR)[12]|(DP|DQ|D2IM)[12]\b.*|AXISCORR|D2IMEXT"):
        notes.append(
            "the distortions that are in tables, of less than a pixel in images of Hubble, are left out."
        )
    return header, " ".join(notes)


def _what_is_missing(header: fits.Header) -> list[str]:
    """Say which parts of the world coordinates, with CTYPE in capitals, are taken for 0."""
    notes = []
    if missing := [key for key in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2") if key not in header]:
        notes.append(f"its place on the sky is not right: it has no {' and '.join(missing)}, taken for 0.")
    # The angle is that of the axis of latitudes (Calabretta & Greisen 2002, A&A 395, 1077, 6.1).
    latitude = 1 if header["CTYPE1"].strip().startswith(("DEC", "GLAT", "ELAT")) else 2
    angles = [key for key in ("CROTA", f"CROTA{3 - latitude}") if number_of(header, key)]
    matrix = r"(CD[12]_|PC(00)?[12](_|00))[12]"
    if angles and f"CROTA{latitude}" not in header and not any(re.fullmatch(matrix, key) for key in header):
        notes.append(f"its rotation is not known and taken for 0: it has {angles[0]}, no CROTA{latitude}.")
    return notes


def _remove(header: fits.Header, pattern: str) -> bool:
    """Remove cards whose keywords match; returns whether there were any."""
    keys = [key for key in dict.fromkeys(header) if re.fullmatch(pattern, key)]
    for key in keys:
        header.remove(key, remove_all=True)
    return bool(keys)


def _make_numbers(header: fits.Header) -> None:
    """Make numbers of texts: wcslib takes no notice of these, and images would be in another place."""
    for key in filter(_NUMBER_KEY.fullmatch, list(dict.fromkeys(header))):
        value = number_of(header, key)
        if key in ("EQUINOX", "EPOCH"):
            unknown = value is None or not _YEARS[0] < value < _YEARS[1]
        else:
            unknown = header[key] in ("", None) or type(header[key]) is Undefined
        if unknown:
            del header[key]
            continue
        if value is None:
            raise ValueError(f"{key} is {one_line(repr(header[key]), 40)}, wanted a number")
        header[key] = value


def made_up_wcs(shape: tuple[int, ...], center: tuple[float, ...], pixel_scale: float) -> WCS:
    """Make world coordinates of an image of a shape (y, x): its centre (RA, Dec, deg) and scale (arcsec)."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix = [0.5 * (shape[1] + 1), 0.5 * (shape[0] + 1)]
    wcs.wcs.crval = center
    wcs.wcs.cd = [[-pixel_scale / 3600.0, 0.0], [0.0, pixel_scale / 3600.0]]
    return wcs


def pixel_scale_of(wcs: WCS, shape: tuple[int, ...]) -> float:
    """Measure the pixel scale (arcsec) at the centre of an image of a shape (y, x)."""
    return 3600.0 * math.sqrt(abs(float(np.linalg.det(tangent_plane(wcs, shape)[1]))))


def grid_offsets(wcs_by_band: Mapping[str, WCS], shape: tuple[int, ...]) -> dict[str, float]:
    """Find the bands that are shifted, rotated or of another field than the first.

    Returns their largest distances (px) in images of a shape (y, x). Positions
    on the sky are compared: the way back to pixels may be approximate.
    """
    height, width = shape
    x = np.array([0.0, width - 1.0, 0.0, width - 1.0, 0.5 * (width - 1)])
    y = np.array([0.0, 0.0, height - 1.0, height - 1.0, 0.5 * (height - 1)])
    reference, *_ = wcs_by_band.values()
    expected, scale = reference.pixel_to_world(x, y).icrs, pixel_scale_of(reference, shape)
    offsets = {}
    for band, wcs in wcs_by_band.items():
        distance = wcs.pixel_to_world(x, y).icrs.separation(expected).arcsec / scale
        if not (distance <= _LARGEST_OFFSET).all():
            offsets[band] = float(np.max(distance))
    return offsets


def tangent_plane(
    wcs: WCS, shape: tuple[int, ...]
) -> tuple[tuple[float, float], npt.NDArray[np.floating[Any]]]:
    """Find the tangent plane that touches an image of a shape (y, x) at its centre.

    Returns right ascension and declination there (deg), and the matrix that takes
    offsets (x, y), px, to offsets to the east and north, deg.
    """
    step = 10.0
    x, y = 0.5 * (shape[1] - 1), 0.5 * (shape[0] - 1)
    sky = wcs.pixel_to_world(np.array([x, x + step, x]), np.array([y, y, y + step])).icrs
    offsets = [sky[0].spherical_offsets_to(sky[k]) for k in (1, 2)]
    matrix = np.array([[o[0].deg for o in offsets], [o[1].deg for o in offsets]]) / step
    return (float(sky[0].ra.deg), float(sky[0].dec.deg)), matrix


def fit_sip(wcs: WCS, shape: tuple[int, int], order: int = 5) -> WCS:
    """Fit a tangent plane that touches an image of a shape (y, x) at its centre, with SIP distortions."""
    center, matrix = tangent_plane(wcs, shape)
    plane = made_up_wcs(shape, center, 1.0)
    plane.wcs.ctype, plane.wcs.cd = ["RA---TAN-SIP", "DEC--TAN-SIP"], matrix
    middle, size = plane.wcs.crpix - 1.0, 0.5 * max(*shape, 100)
    u, v = (axis.ravel() for axis in np.meshgrid(*(np.linspace(-1.0, 1.0, 15),) * 2))
    u, v = u * max(shape[1], 100) / (2.0 * size), v * max(shape[0], 100) / (2.0 * size)
    sky = wcs.pixel_to_world(middle[0] + size * u, middle[1] + size * v).icrs
    flat = (np.stack(plane.world_to_pixel(sky), axis=1) - middle) / size
    powers = [(p, total - p) for total in range(1, order + 1) for p in range(total + 1)]
    terms = np.stack([u**p * v**q for p, q in powers], axis=1)
    known = np.isfinite(flat).all(axis=1)
    found = np.linalg.lstsq(terms[known], flat[known])[0]
    # The linear part, of v and u, belongs to the matrix; distortions come before it.
    linear = found[1::-1].T
    plane.wcs.cd = matrix @ linear
    distortions = np.zeros((2, order + 1, order + 1))
    for (p, q), pair in zip(powers[2:], np.linalg.solve(linear, found[2:].T).T):
        distortions[:, p, q] = pair * size ** (1 - p - q)
    plane.sip = Sip(*distortions, None, None, plane.wcs.crpix)
    return plane
