# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the headers of FITS images say: flux of a count, saturation, seeing."""

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

BAND_KEYS = (
    *("BAND", "BANDS", "BAND0", "PUPIL", "FILTER", "FILTNAM", "FILTNAME"),
    *("FILTER1", "FILTER2", "FILTNAM1", "FILTNAM2", "FPA.FILTERID", "ESO INS FILT1 NAME"),
)
"""Keywords of the filter. Of both wheels of Webb's cameras, the pupil's has the narrower one if any."""

_CAPITAL = re.compile(
    r"(?:(?i:bess(?:el+)?|johnson|cousins|harris|mould)[-_ ]?)?([BVRIY])"
    r"(?:c|[-_ ]?(?i:bess(?:el+)?|special|high))?$"
)
"""Filters of Johnson and Cousins, and Y of the near infrared, whose letters mean others if they are small."""

_ZERO_POINT_KEYS = (
    "PHOTZP",
    "MAGZERO",
    "MAGZPT",
    "MAGZP",
    "MAG_ZP",
    "ZP",
    "ZEROPNT",
    "ZEROPOINT",
    "ZPT",
    "ZPAPPROX",
    "L1ZP",
    "ABMAGZP",
)
_COUNTS = r"\W*(e|electrons?|cts?|counts?|cps|dn|adu|photons?)(?![a-z])"
PER_SECOND = r"\bper s|/ *s(ec\w*)?\b|\bs(ec)?(\^|\*\*)?\(?-1|\bcps\b"
_OF_ONE_SECOND = r"\bper s|/ *s(ec)?\b|\b1(\.0*)? ?s(ec(ond)?)?\b"
"""In the comment of a zero point: it is of a count per second."""

_ZERO_POINT_RANGE, _DEPTH_RANGE = (5.0, 45.0), (18.0, 35.0)
"""Other values stand for one that is not known, such as 0, -1 or 99, unless they make five times the noise
of a pixel a magnitude in the second range: counts may be maggies, of 0 mag."""

_AB_OF_VEGA = {
    "WFCAM": {"Z": 0.528, "Y": 0.634, "J": 0.938, "H": 1.379, "K": 1.900},
    "VIRCAM": {"Z": 0.502, "Y": 0.600, "J": 0.916, "H": 1.366, "K": 1.827, "Ks": 1.827},
    "WISE": {"1": 2.699, "2": 3.339, "3": 5.174, "4": 6.620},
    "": {
        **{"U": 0.79, "B": -0.09, "V": 0.02, "R": 0.21, "I": 0.45, "J": 0.91, "H": 1.39},
        **{"K": 1.85, "Ks": 1.85, "W1": 2.699, "W2": 3.339, "W3": 5.174, "W4": 6.620},
    },
}
"""AB magnitude of Vega by a word of the telescope, instrument or survey, empty for others, and filter.

Hewett et al. (2006, MNRAS 367, 454); Gonzalez-Fernandez et al. (2018, MNRAS 474, 5459); Jarrett et al.
(2011, ApJ 735, 112) for WISE; Blanton & Roweis (2007, AJ 133, 734) for Bessell's and the 2MASS filters.
"""
_ORIGIN_KEYS = ("TELESCOP", "INSTRUME", "ORIGIN", "SURVEY", "DATASET")

_BRIGHTEST_SKY, _LONGEST_OPTICAL = 16.8, 930.0
"""Sky brightness (mag/arcsec2) beside the full Moon, and the longest wavelength (nm) for which that holds."""

_FAINTEST = 33.0
"""Magnitude of five times the noise of a pixel that no image reaches; in the deepest it is 31."""

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
_NANOMAGGY_SURVEYS = {"decals": 0.262, "legacysurvey": 0.262, "sdss": 0.396}
"""Surveys whose images are in nanomaggies but often lack BUNIT, and their pixel scale (arcsec)."""
_SCALE_KEYS = ("PIXSCALE", "PIXSCAL1", "PIXELSCL", "SECPIX", "SECPIX1")
_FWHM_KEYS = ("PSF_FWHM", "PSFFWHM", "SEEING", "L1FWHM", "FWHM")


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


def known_filter(header: fits.Header | dict[str, str]) -> str | None:
    """Filter that a header names, if its wavelength is known."""
    for value in (str(header[key]).strip() for key in BAND_KEYS if key in header):
        capital, band = _CAPITAL.match(value), band_of({"BAND": value})
        if capital or band:
            return capital[1] if capital else band
        try:
            band_wavelength(value)
        except ValueError:
            continue
        return value
    return None


def is_same_band(*names: str) -> bool:
    """Whether names are those of one band, where some have a prefix."""
    short = [band_of({"BAND": name}) or re.split(r"[-_ ]", name)[-1].lower() for name in names]
    return len(set(short)) == 1


def band_of(header: fits.Header | dict[str, str]) -> str | None:
    """Band that a header names, if it is one letter of ugrizy."""
    for key in BAND_KEYS:
        value = str(header.get(key, "")).strip()
        # "r", "HSC-R", "r DECam SDSS c0002 6415.0 1480.0", "decam-r", "r.MP9601", "ZTF_r", "rp", "bokr",
        # "zd DECam k1038", "zs", "OCAM_r_SDSS", "Sloan g'", "W-S-R+", "gSDSS", but not "H  )".
        match = re.match(
            r"(?i)(?:hsc|decam|lsst|sdss|sloan|gunn|ps1|ztf|bok|ocam|w-s)?[-_ ]?([ugrizy])"
            r"(?:[2p'+]?$|(?<=z)s$|sdss$|d?[ ._-])",
            value,
        )
        if match:
            return match.group(1).lower()
    return None


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
    if pattern := colour_pattern(header):
        return pixels, f"its pixels alternate in colour ({pattern}): debayer it, unless that was done."
    return pixels, ""


def colour_pattern(header: fits.Header) -> str:
    """Find the pattern of colours that the pixels of a camera have, such as RGGB; empty for none."""
    words = (str(header.get(key, "")).strip() for key in ("BAYERPAT", "COLORTYP", "FILTER"))
    return next((word for word in words if re.fullmatch("RGGB|BGGR|GRBG|GBRG", word, re.IGNORECASE)), "")


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


def zero_point(header: fits.Header, pixel_scale: float, band: str, sigma: float) -> tuple[float | None, str]:
    """Find the AB magnitude of one count, and where it is from.

    It is `None`, with the reason, if the header does not say it or contradicts
    itself. The pixel scale (arcsec) is for surface brightnesses, the band for
    headers that name no filter; sigma is the noise of a pixel (counts).
    """
    unit, exposure = str(header.get("BUNIT", "")).strip(), number_of(header, "EXPTIME")
    exposure = number_of(header, "EXP_TIME") if exposure is None else exposure
    per_second = bool(re.search(PER_SECOND, unit.lower()))
    found, refused = _zero_point_cards(header, band, sigma, per_second, exposure)
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
    own = next((scale for name, scale in _NANOMAGGY_SURVEYS.items() if survey.startswith(name)), None)
    if not found and own is not None:
        found[f"SURVEY {header['SURVEY']}, in nanomaggies"] = 22.5
        if band[:1] != "W" and abs(pixel_scale / own - 1.0) > 0.02:
            refused.append(f"its pixels were of {own} arcsec: check that fluxes were kept in resampling")
    # Images of WISE in nanomaggies are of Vega's system.
    vega = _AB_OF_VEGA["WISE"].get(band[1:], 0.0) if band[:1] == "W" else 0.0
    for source in [source for source in found if vega and re.search("magg|mgy", source.lower())]:
        found[f"{source} {vega:+.3g} from Vega to AB"] = found.pop(source) + vega
    for source in [source for source, value in found.items() if not abs(value) <= _LARGEST_ZERO_POINT]:
        refused.append(f"{source} gives {found.pop(source):.4g}, which is no zero point")
    if not found:
        return None, ", ".join(refused) or "the header has no zero point"
    if max(found.values()) - min(found.values()) > 0.05:
        listed = ", ".join(f"{source} says {value:.2f}" for source, value in found.items())
        return None, f"the header contradicts itself: {listed}"
    source, value = next(iter(found.items()))
    return value, "; ".join([source, *refused])


def implausible_depth(sigma: float, zero_point: float) -> list[str]:
    """Say that noise (counts) is fainter than that of any image, where the zero point makes it so."""
    depth = zero_point - 2.5 * math.log10(5.0 * sigma)
    said = f"five times the noise of a pixel is {depth:.1f} mag by the zero point: check it"
    return [f"{said}; --zeropoint sets it."] if depth > _FAINTEST else []


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
    header: fits.Header, band: str, sigma: float, per_second: bool, exposure: float | None
) -> tuple[dict[str, float], list[str]]:
    """Zero points that cards give, and why others are none."""
    found: dict[str, float] = {}
    refused = []
    unit = str(header.get("BUNIT", "")).strip()
    duration = "EXPTIME" if "EXPTIME" in header else "EXP_TIME"
    for key in _ZERO_POINT_KEYS:
        # That of CASU (UKIDSS, VISTA), which is of a count per second, if its error is there.
        casu = key == "MAGZPT" and "MAGZRR" in header
        if key not in header or (casu and found):
            continue
        value, comment, label = number_of(header, key), header.comments[key].lower(), key
        if value is None or not _is_zero_point(value, sigma):
            refused.append(f"{key} = {one_line(header[key], 40)} is no zero point")
            continue
        if re.search(r"\bST ?(mag|MAG)?\b", _system_of(header, key)):
            refused.append(f"{key} = {value:g} is of the ST system")
            continue
        if casu or _is_vega(header, key, band):
            vega = _ab_of_vega(header, band)
            if vega is None:
                refused.append(
                    f"{key} = {value:g} is of Vega's system; AB is this plus the AB magnitude of Vega"
                )
                continue
            value, label = value + vega, f"{key} {vega:+.3g} from Vega to AB"
        given = casu or key == "L1ZP"
        if per_second or exposure == 1.0 or not (given or re.search(_OF_ONE_SECOND, comment)):
            found[label] = value
        elif (unit or given) and exposure is not None and exposure > 0:
            found[f"{label} and {duration}"] = value + 2.5 * math.log10(exposure)
        else:
            refused.append(f"{key} = {value:g} is of a count per second, and the pixels may be others")
    return found, refused


def _is_zero_point(value: float, sigma: float) -> bool:
    """Whether a number can be the magnitude of a count, with a noise of a pixel (counts)."""
    low, high = _ZERO_POINT_RANGE
    faint, faintest = _DEPTH_RANGE
    return low <= value <= high or faint < value - 2.5 * math.log10(5.0 * sigma) < faintest


def _is_vega(header: fits.Header, key: str, band: str) -> bool:
    """Whether a zero point is for magnitudes in the system of Vega."""
    infrared = band in _AB_OF_VEGA[""] and band[:1] == "W"
    for name in _ORIGIN_KEYS:
        infrared |= str(header.get(name, "")).strip().upper().startswith(("WISE", "2MASS"))
    return "vega" in _system_of(header, key).lower() or (key == "MAGZP" and infrared)


def _system_of(header: fits.Header, key: str) -> str:
    """What a header says of the system of a zero point's magnitudes."""
    words = [header.comments[key], *(header.get(name, "") for name in ("MAGSYS", "PHOTSYS", "ZPSYS"))]
    return " ".join(map(str, words))


def _ab_of_vega(header: fits.Header, band: str) -> float | None:
    """AB magnitude of Vega in the filter of a header, or else of a band; `None` where it is not known."""
    origin = " ".join(str(header.get(key, "")) for key in _ORIGIN_KEYS).upper()
    table = next(values for survey, values in _AB_OF_VEGA.items() if survey in origin)
    said = [str(header[key]).strip() for key in BAND_KEYS if key in header]
    names = [name for name in said if name in table or (name and not name.isdigit())] or [band]
    makers = r"^(bess(el+)?|johnson|cousins)[-_ ]?|[-_ ]?2mass$"
    names = [re.sub(makers, "", name, flags=re.IGNORECASE) for name in names]
    # No other filters have these letters.
    found = {table.get(name.capitalize() if name in ("j", "h", "k", "ks") else name) for name in names} - {
        None
    }
    return found.pop() if len(found) == 1 else None


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
