# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels for the band and the physical filter of an image."""

from __future__ import annotations

__all__ = ["FilterLabel", "getDatabaseFilterLabel"]

import re
from typing import TYPE_CHECKING, Any

from lsst.afw.table.io import register_persistable
from lsst.afw.typehandling import Storable

if TYPE_CHECKING:
    from lsst.afw.table.io import InputArchive, OutputArchiveHandle


@register_persistable("FilterLabel", module="lsst.afw.image")
class FilterLabel(Storable):
    """Band and physical filter of an image, at least one of them.

    Parameters
    ----------
    band : `str`, optional
        Name of the band, such as "r".
    physical : `str`, optional
        Name of the physical filter, such as "HSC-R2".

    Raises
    ------
    ValueError
        Raised if both are missing.
    TypeError
        Raised if one is no string.
    """

    def __init__(self, band: str | None = None, physical: str | None = None):
        if band is None and physical is None:
            raise ValueError("Need at least one of band, physical")
        for name, value in (("band", band), ("physical", physical)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} must be a string, got {value!r} of {type(value)}.")
        self._band = band
        self._physical = physical

    @staticmethod
    def fromBandPhysical(band: str, physical: str) -> FilterLabel:
        """Make a label with both names."""
        return FilterLabel(band=band, physical=physical)

    @staticmethod
    def fromBand(band: str) -> FilterLabel:
        """Make a label with a band only."""
        return FilterLabel(band=band)

    @staticmethod
    def fromPhysical(physical: str) -> FilterLabel:
        """Make a label with a physical filter only."""
        return FilterLabel(physical=physical)

    def hasBandLabel(self) -> bool:
        """Tell whether there is a band."""
        return self._band is not None

    def hasPhysicalLabel(self) -> bool:
        """Tell whether there is a physical filter."""
        return self._physical is not None

    @property
    def bandLabel(self) -> str:
        """Name of the band; `RuntimeError` where there is none."""
        if self._band is None:
            raise RuntimeError(f"{self} has no band.")
        return self._band

    @property
    def physicalLabel(self) -> str:
        """Name of the physical filter; `RuntimeError` where there is none."""
        if self._physical is None:
            raise RuntimeError(f"{self} has no physical filter.")
        return self._physical

    def isPersistable(self) -> bool:
        """Tell whether the label can be written to FITS (always)."""
        return True

    def _persist(self, handle: OutputArchiveHandle) -> None:
        from lsst.afw.table import Schema

        schema = Schema()
        keys = []
        for name, doc in (("band", "Name of the band."), ("physical", "Name of the physical filter.")):
            exists = schema.addField(f"{name}_exists", type="Flag", doc=f"Existence flag for {name}")
            keys.append((exists, schema.addField(name, type="String", doc=doc, size=32)))
        catalog = handle.makeCatalog(schema)
        record = catalog.addNew()
        for (exists, label), value in zip(keys, (self._band, self._physical), strict=True):
            record.set(exists, value is not None)
            record.set(label, value or "")
        handle.saveCatalog(catalog)

    @classmethod
    def _factory(cls, archive: InputArchive, catalogs: Any) -> FilterLabel:
        record = catalogs[0][0]
        band, physical = (record[name] if record[f"{name}_exists"] else None for name in ("band", "physical"))
        return cls(band=band, physical=physical)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FilterLabel):
            return NotImplemented
        return self._band == other._band and self._physical == other._physical

    def __hash__(self) -> int:
        return hash((self._band, self._physical))

    def __copy__(self) -> FilterLabel:
        return FilterLabel(self._band, self._physical)

    def __deepcopy__(self, memo: Any) -> FilterLabel:
        return FilterLabel(self._band, self._physical)

    def __reduce__(self) -> tuple:
        return (FilterLabel, (self._band, self._physical))

    def __repr__(self) -> str:
        parts = []
        if self._band is not None:
            parts.append(f'band="{self._band}"')
        if self._physical is not None:
            parts.append(f'physical="{self._physical}"')
        return f"FilterLabel({', '.join(parts)})"

    __str__ = __repr__


def getDatabaseFilterLabel(filterLabel: str) -> str:
    """Replace the characters that a database name cannot hold by ``_``.

    Parameters
    ----------
    filterLabel : `str`
        Name of a band or physical filter.

    Returns
    -------
    name : `str`
        The safe name.
    """
    return re.sub(r"\W", "_", filterLabel, flags=re.ASCII)
