# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the headers of FITS images say: flux of a count, seeing, meaning of mask bits."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from ..images.files import one_line
from ..images.units import AB_ZERO_POINT

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
_ZERO_POINT_RANGE = (5.0, 45.0)
"""Other values stand for one that is not known, such as 0, -1 or 99."""

_LARGEST_ZERO_POINT = 100.0
"""Of those that are computed, either way: a count of 1e-30 or 1e50 nJy is no unit of an image."""

_JANSKY_ZERO_POINT = AB_ZERO_POINT - 22.5
_MAGGY = 3631.0
_SQUARE_ARCSEC = math.radians(1.0 / 3600.0) ** 2
_PREFIXES = {
    "n": 1e-9,
    "nano": 1e-9,
    "u": 1e-6,
    "\u00b5": 1e-6,
    "\u03bc": 1e-6,
    "micro": 1e-6,
    "m": 1e-3,
    "milli": 1e-3,
    "": 1.0,
    "k": 1e3,
    "M": 1e6,
    "mega": 1e6,
}
# Surveys whose images are in nanomaggies but often lack BUNIT.
_NANOMAGGY_SURVEYS = ("decals", "legacysurvey", "sdss")
# Bits of the mask images of telescopes that mean that a pixel is unusable; the others inform.
_TELESCOPE_BITS: dict[str, dict[str, tuple[int, ...]]] = {
    "JWST": {"BAD": (0,), "SAT": (1,)},
    "HST": {"NO_DATA": (1,), "BAD": (0, 2, 3, 4, 7, 9), "SAT": (8, 11), "CR": (12, 13)},
    "DES": {"BAD": (0, 3, 6, 7, 8, 10), "SAT": (1,), "CR": (4,)},
}
_LSST_PLANES = {"BAD": "BAD", "SAT": "SAT", "CR": "CR", "NO_DATA": "NO_DATA", "UNMASKEDNAN": "NO_DATA"}
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
    """Undo a scaling of pixels (y, x) that is not linear; returns what was done as well, empty for nothing.

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
    return pixels, ""


def zero_point(header: fits.Header, pixel_scale: float) -> tuple[float | None, str]:
    """Find the AB magnitude of one count, and where it is from.

    It is `None`, with the reason, if the header does not say it or contradicts
    itself. The pixel scale (arcsec) is for surface brightnesses.
    """
    found: dict[str, float] = {}
    refused = []
    for key in _ZERO_POINT_KEYS:
        if key not in header:
            continue
        value = number_of(header, key)
        if value is not None and _ZERO_POINT_RANGE[0] <= value <= _ZERO_POINT_RANGE[1]:
            found[key] = value
        else:
            refused.append(f"{key} = {one_line(header[key], 40)} is no zero point")
    flux = number_of(header, "FLUXMAG0")
    if flux is not None and flux > 0:
        found["FLUXMAG0"] = 2.5 * math.log10(flux)
    exposure = number_of(header, "EXPTIME")
    base = number_of(header, "FPA.ZP")
    if base is not None and exposure is not None and exposure > 0:
        found["FPA.ZP and EXPTIME"] = base + 2.5 * math.log10(exposure)
    unit = str(header.get("BUNIT", "")).strip()
    inverse, pivot = number_of(header, "PHOTFLAM"), number_of(header, "PHOTPLAM")
    if inverse is not None and inverse > 0 and pivot is not None and pivot > 0:
        # Of a count per second (Bohlin et al., ACS Data Handbook, 5.1).
        value = -2.5 * math.log10(inverse) - 5.0 * math.log10(pivot) - 2.408
        per_second = re.search(r"/ *s|s(ec)?(\^|\*\*)?-1", unit.lower()) or not unit
        if per_second:
            found["PHOTFLAM and PHOTPLAM"] = value
        elif exposure is not None and exposure > 0 and _janskys(unit, pixel_scale) is None:
            found["PHOTFLAM, PHOTPLAM and EXPTIME"] = value + 2.5 * math.log10(exposure)
    janskys = _janskys(unit, pixel_scale)
    if janskys is not None:
        found[f"BUNIT {unit}"] = _JANSKY_ZERO_POINT - 2.5 * math.log10(janskys)
    survey = str(header.get("SURVEY", "")).strip().lower()
    if not found and survey.startswith(_NANOMAGGY_SURVEYS):
        found[f"SURVEY {header['SURVEY']}, in nanomaggies"] = 22.5
    for source in [source for source, value in found.items() if not abs(value) <= _LARGEST_ZERO_POINT]:
        refused.append(f"{source} gives {found.pop(source):.4g}, which is no zero point")
    if not found:
        return None, ", ".join(refused) or "the header has none"
    if max(found.values()) - min(found.values()) > 0.05:
        listed = ", ".join(f"{source} says {value:.2f}" for source, value in found.items())
        return None, f"the header contradicts itself: {listed}"
    source, value = next(iter(found.items()))
    return value, "; ".join([source, *refused])


def _janskys(unit: str, pixel_scale: float) -> float | None:
    """Jy of a unit, or of a pixel with that surface brightness; `None` for counts and the like."""
    text = re.sub(r"(/ *|[ .*])pi?x(el)?(s)?((\^|\*\*)?-1)?$", "", unit.strip())
    match = re.match(
        r"([-+]?[\d.]+(?:e[-+]?\d+)?)? *(?:[x*] *)?(10 *(?:\^|\*\*) *\(?([-+]?\d+)\)?)?[ *.]*(.*)$",
        text,
        re.I,
    )
    if match is None:
        return None
    number, power, exponent, rest = match.groups()
    if number == "10" and power is None and re.match(r"[-+]\d+ ", rest):
        # As the FITS standard writes it: 10-6 Jy.
        exponent, _, rest = rest.partition(" ")
        number, power = None, "10"
    try:
        factor = float(number or 1.0) * (10.0 ** float(exponent) if power else 1.0)
    except (ValueError, OverflowError):
        return None
    rest, _, area = re.sub(r"\s+", " ", rest).replace(" sr-1", "/sr").partition("/")
    rest = rest.strip()
    areas = {
        "": 1.0,
        "sr": _SQUARE_ARCSEC * pixel_scale**2,
        "arcsec2": pixel_scale**2,
        "arcsec^2": pixel_scale**2,
        "arcsec**2": pixel_scale**2,
    }
    each = areas.get(area.strip().strip("()").lower())
    if each is None or not 0.0 < factor < math.inf:
        return None
    match = re.fullmatch(r"(nano|micro|milli|mega|[nu\u00b5\u03bcmkM]|)(jy|jansk(?:y|ys|ies))", rest, re.I)
    if match is not None:
        prefix = match.group(1)
        if rest.isupper() and prefix == "M" and area.strip().lower() != "sr":
            # MJY in capitals may be either.
            return None
        prefix = prefix if prefix in _PREFIXES else prefix.lower()
        return factor * _PREFIXES[prefix] * each
    if re.fullmatch(r"(nano-?)magg(y|ies)|nmgy|nanomgy", rest, re.I):
        return factor * 1e-9 * _MAGGY * each
    if re.fullmatch(r"magg(y|ies)|mgy", rest, re.I):
        return factor * _MAGGY * each
    return None


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
        pixels = "pix" in comment or (key == "FWHM" and "arcsec" not in comment)
        fwhm = value * (pixel_scale if pixels else 1.0)
        if 0.8 <= fwhm / pixel_scale <= 40.0:
            return fwhm, key
    return None


def mask_patterns(header: fits.Header, name: str) -> tuple[dict[str, int], str]:
    """Find which bits of a mask image become which mask plane, and whose convention that is.

    ``header`` is that of the mask with what the primary one says, ``name`` that
    of its extension. Bits that only inform are in no plane.
    """
    planes = {
        key[3:]: int(value)
        for key, value in header.items()
        if key.startswith("MP_") and isinstance(value, int) and 0 <= value < 63
    }
    if planes:
        result: dict[str, int] = {}
        for plane, bit in planes.items():
            if plane in _LSST_PLANES:
                wanted = _LSST_PLANES[plane]
                result[wanted] = result.get(wanted, 0) | 1 << bit
        return result, "MP_ cards"
    telescope = str(header.get("TELESCOP", "")).strip().upper()
    if name == "MSK" or str(header.get("SURVEY", "")).strip().upper() == "DES":
        telescope = "DES"
    if telescope in _TELESCOPE_BITS:
        bits = _TELESCOPE_BITS[telescope]
        return {plane: sum(1 << bit for bit in numbers) for plane, numbers in bits.items()}, telescope
    pattern = header.get("QUALMASK")
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        return {"BAD": pattern}, "QUALMASK"
    # All bits but the sign.
    return {"BAD": (1 << 63) - 1}, "every value but 0"
