# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Effective wavelengths of bands by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping

MASK_WAVELENGTH = 880.0
"""Outlines are those in the band nearest to it (nm)."""

_BY_NAME = {
    "u": 370.0,
    "g": 485.0,
    "r": 625.0,
    "i": 765.0,
    "z": 885.0,
    "y": 975.0,
    "w": 658.0,
    "B": 440.0,
    "V": 550.0,
    "R": 640.0,
    "I": 790.0,
    "Y": 1020.0,
    "J": 1250.0,
    "H": 1640.0,
    "K": 2150.0,
    "Ks": 2150.0,
    "VIS": 751.0,
    "IE": 751.0,
    "YE": 1089.0,
    "JE": 1379.0,
    "HE": 1786.0,
    "NIR_Y": 1089.0,
    "NIR_J": 1379.0,
    "NIR_H": 1786.0,
    "F814W": 807.0,
    "F087": 881.0,
    "F106": 1074.0,
    "F129": 1297.0,
    "F146": 1537.0,
    "F158": 1596.0,
    "F184": 1850.0,
    "F213": 2144.0,
}
"""Effective wavelengths (nm): of surveycodex 1.3, the mean where several surveys
have a band; of Bessell (2005, ARA&A 43, 293) for bands that it does not have."""

_INFRARED = {200, 204, 205, 207, 210, 212, 215, 216, 222, 237, 240, 250, 277, 300, 322, 323, 335, 356, 360}
_INFRARED |= {405, 430, 444, 460, 466, 470, 480, 560, 770}
"""Numbers from 200 of the infrared filters of the Hubble (NICMOS) and Webb telescopes, in 10 nm."""

_AMBIGUOUS = {"F122M", "F170W", "F185W", "F410M", "F1042M"}
"""Filters whose names could mean both, or are in nm although others of such numbers are not."""


def band_wavelength(band: str, given: Mapping[str, float] | None = None) -> float:
    """Return the effective wavelength of a band (nm); those that are given by band go first.

    A prefix of the instrument in its name, as in ``HSC-G`` or ``lsst_g``, does not matter. Names such as
    ``F606W`` and ``F115W`` are those of the filters of the Hubble and Webb telescopes. A ValueError is
    raised if the band is not known.
    """
    if given and band in given:
        return float(given[band])
    short = band.replace("-", "_").split("_")[-1]
    for name in (band, short, short.lower(), short.upper()):
        if name in _BY_NAME:
            return _BY_NAME[name]
    # Numbers of Hubble's filters are in nm, those of filters in the infrared in 10 nm.
    space = re.fullmatch(r"F(\d{3,4})(W|M|N|X|LP|W2)", short.upper())
    if space is not None and short.upper() not in _AMBIGUOUS:
        number = int(space[1])
        infrared = number < 200 or number >= 1000 or number in _INFRARED
        return number * (10.0 if infrared and space[2] not in ("X", "LP") else 1.0)
    raise ValueError(
        f"the wavelength of band {band!r} is not known; known are {', '.join(_BY_NAME)} and filters of "
        "Hubble and Webb. Give its effective wavelength in nm, or leave the band out"
    )
