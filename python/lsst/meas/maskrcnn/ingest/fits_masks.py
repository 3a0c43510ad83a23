# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the masks of FITS images say: which values of a pixel are in which mask plane."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

# Bits of the masks of telescopes and pipelines that mean that a pixel is unusable; the others inform.
_BITS: dict[str, dict[str, tuple[int, ...]]] = {
    "JWST": {"BAD": (0,), "SAT": (1,)},
    "HST": {"NO_DATA": (1,), "BAD": (0, 2, 3, 4, 7, 9), "SAT": (8, 11), "CR": (12, 13)},
    "DES": {"BAD": (0, 3, 6, 7, 8, 10), "SAT": (1,), "CR": (4,)},
    "LCO": {"BAD": (0, 2), "SAT": (1,), "CR": (3,)},
    # Of DRAGONS; what is hardly linear, or between two detectors, is good.
    "GEMINI": {"BAD": (0, 6), "SAT": (2,), "CR": (3,), "NO_DATA": (4,)},
    # Of VIS; ghosts, regions of many cosmic rays, seams of the detector and light of objects inform.
    "Euclid": {"BAD": (0, 1, 2, 7, 8, 12, 15), "SAT": (3, 21), "CR": (4,), "NO_DATA": (22,)},
    # Saturated in any image of g, r, z or i; those of a band without data are of other bands as well.
    "Legacy Surveys": {"SAT": (2, 3, 4, 14)},
    # Of NOIRLab, up to version 3.4 for DECam; bleed trails are 6.
    "community pipeline": {"BAD": (0,), "SAT": (1, 6), "CR": (4,)},
    # Later, and of other cameras, a pixel has one code: 1 bad, 2 no value, 3 saturated, 4 bleed trail,
    # 5 cosmic ray, 6 low weight, 7 differs from other exposures, 8 streak. In some versions 5 and 8 are
    # mixed up, and 7 may be half an image.
    "codes of the community pipeline": {"BAD": (1, 6), "NO_DATA": (2,), "SAT": (3, 4), "CR": (5, 8)},
}
_FIRST_WITH_CODES = {"decam": (3, 5), "mosaic3": (0, 0), "90prime": (0, 0)}
"""Versions of the community pipeline from which masks of an instrument hold codes and not bits."""

# What the names of bits say that mean that a pixel is unusable.
_PLANE_WORDS = {
    "BAD": r"^BAD\b|\bDEAD|RESPONSIVITY|NOISY|TRACK|^(DETECTOR|FLAT|DARK|CTE|LOW|CONV\.BAD)$",
    "SAT": r"^SAT(URATED)?$",
    "CR": r"^CR$|COSMIC|RAD HIT",
    "NO_DATA": r"^NO_DATA$|^UNMASKEDNAN$|^BLANK$|^NAN$",
}


def mask_patterns(header: fits.Header, name: str) -> tuple[dict[str, int], str]:
    """Find which bits of a mask image become which mask plane, and whose convention that is.

    ``header`` is that of the mask with what the primary one says, ``name`` that
    of its extension. Bits that only inform are in no plane; where pixels have
    codes, see `mask_bits`, bits are these.
    """
    named = _named_bits(header)
    if named:
        result: dict[str, int] = {}
        for words, pattern in named:
            for plane, expression in _PLANE_WORDS.items():
                if re.search(expression, words.upper()):
                    result[plane] = result.get(plane, 0) | pattern
        return result, "the names of bits in its header"
    convention = _convention(header, name)
    if convention:
        bits = _BITS[convention]
        return {plane: sum(1 << bit for bit in numbers) for plane, numbers in bits.items()}, convention
    pattern = header.get("QUALMASK")
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        return {"BAD": pattern}, "QUALMASK"
    return {"BAD": -1}, "every value but 0"


def mask_bits(values: npt.NDArray[np.int64], header: fits.Header, name: str) -> npt.NDArray[np.int64]:
    """Bits of the pixels of a mask (y, x); a pixel that has a code has the bit of that number."""
    if not _convention(header, name).startswith("codes"):
        return values
    bits: npt.NDArray[np.int64] = np.where(values > 0, np.left_shift(1, np.clip(values, 0, 62)), values)
    return bits


def _convention(header: fits.Header, name: str) -> str:
    """Key of `_BITS`, or empty."""
    said: dict[str, Any] = {key: str(header.get(key, "")).strip() for key in ("TELESCOP", "SURVEY", "ORIGIN")}
    if name == "MSK" or said["SURVEY"].upper() == "DES":
        return "DES"
    if re.search(r"FLG\d*$", str(header.get("EXTNAME", ""))):
        return "Euclid"
    version = re.search(r"(\d+)\.(\d+)", str(header.get("PLVER", "")))
    first = _FIRST_WITH_CODES.get(str(header.get("INSTRUME", "")).strip().lower())
    if version is not None and first is not None:
        codes = (int(version[1]), int(version[2])) >= first
        return "codes of the community pipeline" if codes else "community pipeline"
    if header.get("EXTNAME") == "MASKBITS":
        return "Legacy Surveys"
    if said["ORIGIN"].upper().startswith("LCO"):
        return "LCO"
    telescope = said["TELESCOP"].upper().split("-")[0]
    return telescope if telescope in ("JWST", "HST", "DES", "GEMINI") else ""


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
