# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Butler provenance in FITS headers."""

from __future__ import annotations

__all__ = ["add_provenance_to_fits_header", "strip_provenance_from_fits_header"]

import re
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from lsst.daf.base import PropertyList
from lsst.daf.butler import DatasetProvenance

if TYPE_CHECKING:
    from lsst.daf.butler import DatasetRef

_PREFIX = "LSST BUTLER"

_COMMENTS = {
    r"\bRUN\b": "Run collection",
    r"\bID\b": "Dataset ID",
    r"\bDATAID\b": "Data identifier",
    r"\bDATASETTYPE\b": "Dataset type",
}

_CARD_LENGTH = 80

_MAX_INPUTS = 3000


def add_provenance_to_fits_header(
    hdr: PropertyList | MutableMapping[str, Any] | None,
    ref: DatasetRef,
    provenance: DatasetProvenance | None = None,
    allow_long_headers: bool = True,
) -> None:
    """Write to a header which dataset it belongs to and what it came from.

    Parameters
    ----------
    hdr : `lsst.daf.base.PropertyList`, mapping or `None`
        Header to change; nothing happens for `None`.
    ref : `lsst.daf.butler.DatasetRef`
        The dataset.
    provenance : `lsst.daf.butler.DatasetProvenance`, optional
        Where it came from.
    allow_long_headers : `bool`, optional
        Whether values may be longer than a card; otherwise they are shortened
        in their middle.
    """
    if hdr is None:
        return
    if provenance is None:
        provenance = DatasetProvenance()
    flat = provenance.to_flat_dict(ref, prefix=_PREFIX, sep=" ", simple_types=True, max_inputs=_MAX_INPUTS)
    extras = PropertyList()
    for key, value in flat.items():
        if isinstance(value, str) and not allow_long_headers:
            value = _shortened(key, value)
        extras.set(key, value)
        for pattern, comment in _COMMENTS.items():
            if allow_long_headers and re.search(pattern, key):
                extras.setComment(key, comment)
                break
    # Keys of an earlier dataset would claim a wrong origin.
    strip_provenance_from_fits_header(hdr)
    hdr.update(extras)


def _shortened(key: str, value: str) -> str:
    """Cut the middle of a value so that its HIERARCH card fits."""
    space = _CARD_LENGTH - len(f"HIERARCH {key} = ''")
    if len(value) <= space:
        return value
    if space < 5:
        return ""
    head = (space - 3) // 2
    return f"{value[:head]}...{value[len(value) - (space - 3 - head) :]}"


def strip_provenance_from_fits_header(hdr: PropertyList | MutableMapping[str, Any]) -> None:
    """Remove what `add_provenance_to_fits_header` wrote.

    Parameters
    ----------
    hdr : `lsst.daf.base.PropertyList` or mapping
        Header to change.
    """
    for key in list(hdr):
        if key.startswith(_PREFIX):
            del hdr[key]
