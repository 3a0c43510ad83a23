# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Aperture corrections, by name of the measurement."""

from __future__ import annotations

__all__ = ["ApCorrMap"]

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lsst.afw.math._chebyshev import BoundedField
from lsst.afw.table.io import register_persistable
from lsst.afw.typehandling import Storable
from lsst.pex.exceptions import LengthError, NotFoundError

if TYPE_CHECKING:
    from lsst.afw.table.io import InputArchive, OutputArchiveHandle

_MAX_NAME_LENGTH = 64


@register_persistable("ApCorrMap", module="lsst.afw.image")
class ApCorrMap(Storable):
    """Aperture corrections as functions of position, by name."""

    def __init__(self) -> None:
        self._fields: dict[str, BoundedField] = {}

    def get(self, name: str) -> BoundedField | None:
        """Return a correction, or `None` where there is none."""
        return self._fields.get(name)

    def set(self, name: str, field: BoundedField) -> None:
        """Add a correction; the first of a name stays.

        Parameters
        ----------
        name : `str`
            Name of the measurement, such as "base_PsfFlux_instFlux".
        field : `lsst.afw.math.BoundedField`
            The correction.

        Raises
        ------
        lsst.pex.exceptions.LengthError
            Raised if the name has more than 64 characters.
        """
        if len(name) > _MAX_NAME_LENGTH:
            raise LengthError(
                f"Aperture correction name '{name}' exceeds size limit of {_MAX_NAME_LENGTH} characters"
            )
        self._fields.setdefault(name, field)
        self._fields = dict(sorted(self._fields.items()))

    __setitem__ = set

    def __getitem__(self, name: str) -> BoundedField:
        if name not in self._fields:
            raise NotFoundError(f"Aperture correction with name '{name}' not found")
        return self._fields[name]

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __len__(self) -> int:
        return len(self._fields)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def items(self) -> ItemsView[str, BoundedField]:
        """Return names and corrections, sorted by name."""
        return self._fields.items()

    def keys(self) -> KeysView[str]:
        """Return the names, sorted."""
        return self._fields.keys()

    def values(self) -> ValuesView[BoundedField]:
        """Return the corrections, sorted by name."""
        return self._fields.values()

    def __imul__(self, scale: float) -> Self:
        self._fields = {name: field * scale for name, field in self._fields.items()}
        return self

    def __itruediv__(self, scale: float) -> Self:
        return self.__imul__(1.0 / scale)

    def isPersistable(self) -> bool:
        """Tell whether all corrections can be written to FITS."""
        return all(field.isPersistable() for field in self._fields.values())

    def _persist(self, handle: OutputArchiveHandle) -> None:
        from lsst.afw.table import Schema

        schema = Schema()
        name_key = schema.addField(
            "name", type="String", doc="name of the aperture correction", size=_MAX_NAME_LENGTH
        )
        field_key = schema.addField("field", type=np.int32, doc="archive ID of the BoundedField object")
        catalog = handle.makeCatalog(schema)
        for name, field in self._fields.items():
            record = catalog.addNew()
            record.set(name_key, name)
            record.set(field_key, handle.put(field))
        handle.saveCatalog(catalog)

    @classmethod
    def _factory(cls, archive: InputArchive, catalogs: Any) -> ApCorrMap:
        result = cls()
        for record in catalogs[0]:
            field = archive.get(int(record["field"]))
            if field is not None:
                result.set(record["name"], field)
        return result
