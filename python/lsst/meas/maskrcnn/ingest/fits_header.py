# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the headers of FITS images say: flux of a count, seeing, meaning of mask bits."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy import units
from astropy.io import fits

from ..images.files import one_line
from ..images.units import AB_ZERO_POINT
from ..network.wavelengths import band_wavelength

_ZERO_POINT_KEYS = (
    "MAGZERO",
    "MAGZPT",
    "MAGZP",
    "MAG_ZP",
    "ZP",
    "ZEROPNT",
    "ZEROPOINT",
    "ZPT",
    "PHOTZP",
    "ABMAGZP",
)
_COUNTS = r"\W*(e|electrons?|cts?|counts?|cps|dn|adu|photons?)(?![a-z])"
_PER_SECOND = r"\bper s|/ *s(ec\w*)?\b|\bs(ec)?(\^|\*\*)?\(?-1|\bcps\b"
_OF_ONE_SECOND = r"\bper s|/ *s(ec)?\b|\b1(\.0*)? ?s(ec(ond)?)?\b"
"""In the comment of a zero point: it is of a count per second."""

_ZERO_POINT_RANGE = (5.0, 45.0)
"""Other values stand for one that is not known, such as 0, -1 or 99."""

_BRIGHTEST_SKY, _LONGEST_OPTICAL = 16.8, 930.0
"""Sky brightness (mag/arcsec2) beside the full Moon, and the longest wavelength (nm) for which that holds."""

_LARGEST_ZERO_POINT = 100.0
"""Of those that are computed, either way: a count of 1e-30 or 1e50 nJy is no unit of an image."""

_JANSKY_ZERO_POINT = AB_ZERO_POINT - 22.5
_MAGGY = 3631.0
_SQUARE_ARCSEC = math.radians(1.0 / 3600.0) ** 2
# How units are written elsewhere, and how astropy knows them.
_SPELLINGS = (
    (r"nano[- ]?(?=j|m)", "n"),
    (r"micro[- ]?(?=j)|[\u00b5\u03bc]", "u"),
    (r"milli[- ]?(?=j)", "m"),
    (r"mega[- ]?(?=j)", "M"),
    (r"jansk(y|ys|ies)\b", "Jy"),
    (r"magg(y|ies)\b", "mgy"),
    (r"sq[. ]*arcsec", "arcsec2"),
)
# Surveys whose images are in nanomaggies but often lack BUNIT.
_NANOMAGGY_SURVEYS = ("decals", "legacysurvey", "sdss")
# Bits of the mask images of telescopes that mean that a pixel is unusable; the others inform.
_TELESCOPE_BITS: dict[str, dict[str, tuple[int, ...]]] = {
    "JWST": {"BAD": (0,), "SAT": (1,)},
    "HST": {"NO_DATA": (1,), "BAD": (0, 2, 3, 4, 7, 9), "SAT": (8, 11), "CR": (12, 13)},
    "DES": {"BAD": (0, 3, 6, 7, 8, 10), "SAT": (1,), "CR": (4,)},
}
# What the names of bits say that mean that a pixel is unusable.
_PLANE_WORDS = {
    "BAD": r"^BAD\b|\bDEAD|RESPONSIVITY|NOISY|TRACK|^(DETECTOR|FLAT|DARK|CTE|LOW|CONV\.BAD)$",
    "SAT": r"^SAT(URATED)?$",
    "CR": r"^CR$|COSMIC|RAD HIT",
    "NO_DATA": r"^NO_DATA$|^UNMASKEDNAN$|^BLANK$|^NAN$",
}
_SCALE_KEYS = ("PIXSCALE", "PIXSCAL1", "PIXELSCL", "SECPIX", "SECPIX1")
_FWHM_KEYS = ("PSF_FWHM", "PSFFWHM", "SEEING", "FWHM")


def number_of(header: fits.Header, key: str) -> float | None:
    """Read a number of a header, also if it is a string; `None` if it is not a finite number."""
    value = header.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def linear_pixels(
    pixels: npt.NDArray[np.floating[Any]], header: fits.Header
) -> tuple[npt.NDArray[np.floating[Any]], str]:
    """Undo a scaling of pixels (y, x) that is not linear; returns what is to be said as well, or nothing.

    Stacks of Pan-STARRS1 hold 2.5 log10(e) asinh((flux - BOFFSET) / (2 BSOFTEN))
    (Waters et al. 2020, ApJS 251, 4). Raises `ValueError` for logarithms and magnitudes.
    """
    soften = number_of(header, "BSOFTEN")
    if soften is not None and soften > 0:
        offset = number_of(header, "BOFFSET") or 0.0
        with np.errstate(over="ignore"):
            flux = offset + 2.0 * soften * np.sinh(pixels * (math.log(10.0) / 2.5))
        return flux, "the asinh scaling of the pixels (BSOFTEN) was undone."
    unit = str(header.get("BUNIT", "")).strip().lower()
    if re.match(r"(log|ln|dex|mag)\b|log[ (_]|mag[ /*]", unit):
        raise ValueError(f"its pixels are {header['BUNIT']}; give an image that is linear in flux")
    if "PLATEID" in header or "photographic" in str(header.get("INSTRUME", "")).lower():
        return pixels, "it is a scan of a photographic plate: its pixels are not linear in flux."
    for pattern in (str(header.get(key, "")).strip() for key in ("BAYERPAT", "COLORTYP", "FILTER")):
        if re.fullmatch("RGGB|BGGR|GRBG|GBRG", pattern, re.IGNORECASE):
            return pixels, f"its pixels alternate in colour ({pattern}): debayer it, unless that was done."
    return pixels, ""


def header_scale(header: fits.Header) -> tuple[float, str] | None:
    """Find a pixel scale (arcsec) outside of the world coordinates, and the keywords that have it."""
    found = {key: number_of(header, key) for key in _SCALE_KEYS}
    size, focus = number_of(header, "XPIXSZ"), number_of(header, "FOCALLEN")
    if size is not None and focus is not None and focus > 0:
        # Micrometres and millimetres, of amateurs' cameras.
        found["XPIXSZ and FOCALLEN"] = 3.6 * math.degrees(size / focus)
    plate, size = number_of(header, "PLTSCALE"), number_of(header, "XPIXELSZ")
    if plate is not None and size is not None:
        found["PLTSCALE and XPIXELSZ"] = 1e-3 * plate * size
    return next(
        ((abs(value), key) for key, value in found.items() if value is not None and 1e-3 < abs(value) < 60.0),
        None,
    )


def zero_point(header: fits.Header, pixel_scale: float) -> tuple[float | None, str]:
    """Find the AB magnitude of one count, and where it is from.

    It is `None`, with the reason, if the header does not say it or contradicts
    itself. The pixel scale (arcsec) is for surface brightnesses.
    """
    unit, exposure = str(header.get("BUNIT", "")).strip(), number_of(header, "EXPTIME")
    per_second = bool(re.search(_PER_SECOND, unit.lower()))
    found, refused = _zero_point_cards(header, unit, per_second, exposure)
    flux = number_of(header, "FLUXMAG0")
    if flux is not None and flux > 0:
        found["FLUXMAG0"] = 2.5 * math.log10(flux)
    base = number_of(header, "FPA.ZP")
    if base is not None and exposure is not None and exposure > 0:
        found["FPA.ZP and EXPTIME"] = base + 2.5 * math.log10(exposure)
    inverse, pivot = number_of(header, "PHOTFLAM"), number_of(header, "PHOTPLAM")
    if inverse is not None and inverse > 0 and pivot is not None and pivot > 0:
        # Of a count per second (Bohlin et al., ACS Data Handbook, 5.1).
        value = -2.5 * math.log10(inverse) - 5.0 * math.log10(pivot) - 2.408
        in_counts = re.match(_COUNTS, unit.lower())
        if (in_counts and per_second) or (not unit and exposure in (None, 1.0)):
            found["PHOTFLAM and PHOTPLAM"] = value
        elif in_counts and exposure is not None and exposure > 0:
            found["PHOTFLAM, PHOTPLAM and EXPTIME"] = value + 2.5 * math.log10(exposure)
        elif not unit:
            refused.append("PHOTFLAM is of a count per second, and the pixels may be others (no BUNIT)")
    janskys = _janskys(unit, pixel_scale)
    if janskys is not None:
        found[f"BUNIT {unit}"] = _JANSKY_ZERO_POINT - 2.5 * math.log10(janskys)
    survey = str(header.get("SURVEY", "")).strip().lower()
    if not found and survey.startswith(_NANOMAGGY_SURVEYS):
        found[f"SURVEY {header['SURVEY']}, in nanomaggies"] = 22.5
    for source in [source for source, value in found.items() if not abs(value) <= _LARGEST_ZERO_POINT]:
        refused.append(f"{source} gives {found.pop(source):.4g}, which is no zero point")
    if not found:
        return None, ", ".join(refused) or "the header has no zero point"
    if max(found.values()) - min(found.values()) > 0.05:
        listed = ", ".join(f"{source} says {value:.2f}" for source, value in found.items())
        return None, f"the header contradicts itself: {listed}"
    source, value = next(iter(found.items()))
    return value, "; ".join([source, *refused])


def implausible_sky(level: float, zero_point: float, pixel_scale: float, band: str) -> list[str]:
    """Say that a sky (counts) is brighter than that of any night, where the zero point makes it so."""
    try:
        optical = band_wavelength(band) < _LONGEST_OPTICAL
    except ValueError:
        return []
    brightness = zero_point - 2.5 * math.log10(level / pixel_scale**2) if level > 0.0 else math.inf
    if not optical or brightness > _BRIGHTEST_SKY:
        return []
    return [
        f"by the zero point its sky has {brightness:.1f} mag/arcsec2, which no night has: check it; "
        "--zeropoint sets it."
    ]


def _zero_point_cards(
    header: fits.Header, unit: str, per_second: bool, exposure: float | None
) -> tuple[dict[str, float], list[str]]:
    """Zero points that cards give, and why others are none."""
    found: dict[str, float] = {}
    refused = []
    for key in _ZERO_POINT_KEYS:
        if key not in header:
            continue
        value, comment = number_of(header, key), header.comments[key].lower()
        if value is None or not _ZERO_POINT_RANGE[0] <= value <= _ZERO_POINT_RANGE[1]:
            refused.append(f"{key} = {one_line(header[key], 40)} is no zero point")
        elif _is_vega(header, key):
            refused.append(f"{key} = {value:g} is of Vega's system, not AB")
        elif per_second or exposure == 1.0 or not re.search(_OF_ONE_SECOND, comment):
            found[key] = value
        elif unit and exposure is not None and exposure > 0:
            found[f"{key} and EXPTIME"] = value + 2.5 * math.log10(exposure)
        else:
            refused.append(f"{key} = {value:g} is of a count per second, and the pixels may be others")
    return found, refused


def _is_vega(header: fits.Header, key: str) -> bool:
    """Whether a zero point is for magnitudes in the system of Vega."""
    words = [header.comments[key], *(header.get(name, "") for name in ("MAGSYS", "PHOTSYS", "ZPSYS"))]
    # MAGZPT is that of CASU (UKIDSS, VISTA), which is also of a count per second, if its error is there.
    names = ("TELESCOP", "ORIGIN", "SURVEY", "DATASET")
    infrared = [str(header.get(name, "")).strip().upper().startswith(("WISE", "2MASS")) for name in names]
    return (
        "vega" in " ".join(map(str, words)).lower()
        or (key == "MAGZPT" and "MAGZRR" in header)
        or (key == "MAGZP" and any(infrared))
    )


def _janskys(unit: str, pixel_scale: float) -> float | None:
    """Jy of a unit, or of a pixel with that surface brightness; `None` for counts and the like."""
    text, factor = unit.strip(" '\"[]"), 1.0
    for pattern, spelling in _SPELLINGS:
        text = re.sub(pattern, spelling, text, flags=re.IGNORECASE)
    match = re.search(r"(?<![a-z])([numk]?)(jy|mgy)(?![a-z])", text, re.IGNORECASE)
    if match is not None:
        prefix, rest = match[1], text[match.end() :].lower()
        if match[0] in ("MJY", "mjy") and (prefix == "M") != ("sr" in rest):
            # In one case it may be either; surface brightnesses are in MJy, other fluxes in mJy.
            return None
        is_maggy = match[2].lower() == "mgy"
        prefix = prefix.lower() if is_maggy or prefix != "M" else prefix
        text = f"{text[: match.start()].lower()}{prefix}Jy{rest}"
        factor = _MAGGY if is_maggy else 1.0
    areas = ((units.one, 1.0), (units.pix, 1.0), (units.sr, _SQUARE_ARCSEC * pixel_scale**2))
    janskys = 0.0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", units.UnitsWarning)
            for area, size in areas:
                of_area = units.Unit(text) * area
                if of_area.is_equivalent(units.Jy):
                    janskys = factor * size * float(of_area.to(units.Jy))
    except (units.UnitsError, ValueError, TypeError, ArithmeticError):
        return None
    return janskys if 0.0 < janskys < math.inf else None


def header_saturation(header: fits.Header) -> float | None:
    """Find the count at and above which pixels are saturated."""
    levels = [number_of(header, key) for key in ("SATURATE", "SATLEVEL", "SATUR")]
    return next((level for level in levels if level is not None and level > 0), None)


def header_fwhm(header: fits.Header, pixel_scale: float) -> tuple[float, str] | None:
    """Find the FWHM of the PSF (arcsec) and the keyword that has it.

    A keyword is in pixels if its comment says so, and FWHM is unless its
    comment says otherwise; values that no image has are left out.
    """
    for key in _FWHM_KEYS:
        value = number_of(header, key)
        if value is None:
            continue
        comment = header.comments[key].lower()
        pixels = "arcsec" not in comment and ("pix" in comment or key == "FWHM")
        fwhm = value * (pixel_scale if pixels else 1.0)
        if 0.8 <= fwhm / pixel_scale <= 40.0:
            return fwhm, key
    return None


def mask_patterns(header: fits.Header, name: str) -> tuple[dict[str, int], str]:
    """Find which bits of a mask image become which mask plane, and whose convention that is.

    ``header`` is that of the mask with what the primary one says, ``name`` that
    of its extension. Bits that only inform are in no plane.
    """
    named = _named_bits(header)
    if named:
        result: dict[str, int] = {}
        for words, pattern in named:
            for plane, expression in _PLANE_WORDS.items():
                if re.search(expression, words.upper()):
                    result[plane] = result.get(plane, 0) | pattern
        return result, "the names of bits in its header"
    telescope = str(header.get("TELESCOP", "")).strip().upper()
    if name == "MSK" or str(header.get("SURVEY", "")).strip().upper() == "DES":
        telescope = "DES"
    if telescope in _TELESCOPE_BITS:
        bits = _TELESCOPE_BITS[telescope]
        return {plane: sum(1 << bit for bit in numbers) for plane, numbers in bits.items()}, telescope
    pattern = header.get("QUALMASK")
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        return {"BAD": pattern}, "QUALMASK"
    return {"BAD": -1}, "every value but 0"


def _named_bits(header: fits.Header) -> list[tuple[str, int]]:
    """Names of bits of a mask and their patterns: cards of LSST, Pan-STARRS (MSKNAM, MSKVAL) or ZTF (BIT)."""
    result = []
    for key, value in header.items():
        if not isinstance(value, int) or not 0 <= value < 1 << 63:
            continue
        if re.fullmatch(r"MSKVAL\d\d", key):
            result.append((str(header.get(f"MSKNAM{key[-2:]}", "")), value))
        elif value < 63 and key.startswith("MP_"):
            result.append((key[3:], 1 << value))
        elif value < 63 and re.fullmatch(r"BIT\d\d", key):
            result.append((header.comments[key], 1 << value))
    return [(words, pattern) for words, pattern in result if words]
