# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metadata to FITS headers and back."""

from __future__ import annotations

import math

from astropy.io import fits

from ._property_container import PropertyList, PropertySet

__all__ = ["header_to_property_list", "property_set_to_cards"]

_COMMENTARY = frozenset({"COMMENT", "HISTORY"})

STRUCTURAL_KEYS = frozenset(
    {
        "SIMPLE",
        "BITPIX",
        "EXTEND",
        "XTENSION",
        "PCOUNT",
        "GCOUNT",
        "TFIELDS",
        "GROUPS",
        "THEAP",
        "CHECKSUM",
        "DATASUM",
        "BSCALE",
        "BZERO",
        "INHERIT",
        "END",
        "",
    }
)
"""Keys that describe the layout of an HDU (besides NAXISn)."""


def header_to_property_list(header: fits.Header, strip: bool = False) -> PropertyList:
    """Read the cards of a header, in order.

    Parameters
    ----------
    header : `astropy.io.fits.Header`
        The header.
    strip : `bool`, optional
        Leave out the keys that describe the layout of the HDU.

    Returns
    -------
    metadata : `PropertyList`
        Values and comments; keys that repeat become arrays.
    """
    metadata = PropertyList()
    for card in header.cards:
        key = card.keyword
        if not key or (strip and (key in STRUCTURAL_KEYS or key.startswith("NAXIS"))):
            continue
        value = card.value
        if key in _COMMENTARY:
            metadata.add(key, str(value))
            continue
        if isinstance(value, fits.card.Undefined):
            value = None
        if metadata.exists(key) and value is not None:
            # A key written twice keeps its last value.
            metadata.remove(key)
        metadata.set(key, value, card.comment)
    return metadata


def property_set_to_cards(metadata: PropertySet) -> list[fits.Card]:
    """Return one FITS card for every value that a header can hold.

    Parameters
    ----------
    metadata : `PropertySet` or `PropertyList`
        The values; containers inside a `PropertySet` get dotted keys.

    Returns
    -------
    cards : `list` [`astropy.io.fits.Card`]
        Long keys are HIERARCH cards; non-finite floats are strings, as FITS
        has no way to write them.
    """
    cards: list[fits.Card] = []
    for name in metadata.paramNames(False):
        item = metadata._find(name)
        key = name.upper() if len(name) <= 8 else name
        if len(name) > 8 or "." in name or " " in name:
            key = "HIERARCH " + name
        for value in item.values:
            if name in _COMMENTARY:
                cards.extend(fits.Card(name, part) for part in (str(value).splitlines() or [""]))
                continue
            if item.type_name == "DateTime":
                value = value.toString(value.UTC).removesuffix("Z")
            elif isinstance(value, float) and not math.isfinite(value):
                value = "NAN" if math.isnan(value) else ("+INFINITY" if value > 0 else "-INFINITY")
            elif item.type_name == "PropertySet":
                continue
            cards.append(fits.Card(key, value, item.comment or None))
    return cards
