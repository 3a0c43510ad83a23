# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Archives: objects saved as small binary tables behind an image or catalog.

How a class takes part
----------------------
A persistable class subclasses `Persistable`, is decorated with
`register_persistable`, and gives two methods::

    @register_persistable("GaussianPsf", module="lsst.afw.detection")
    class GaussianPsf(Persistable):
        def _persist(self, handle: OutputArchiveHandle) -> None:
            schema = Schema()
            width = schema.addField("width", type=np.int32, doc="...", units="pixel")
            catalog = handle.makeCatalog(schema)
            record = catalog.addNew()
            record.set(width, self._width)
            handle.saveCatalog(catalog)      # may be called several times
            # ids of nested objects: record.set(key, handle.put(other))

        @classmethod
        def _factory(cls, archive: InputArchive, catalogs: list[BaseCatalog]) -> "GaussianPsf":
            record = catalogs[0][0]
            # nested objects: archive.get(record["wcs"]), which may be None
            return cls(...)

`register_factory` takes a plain function for names that are only read,
`register_writer` one that saves objects of a class that is no `Persistable`.

How a file takes part
---------------------
``archive = OutputArchive(); id = archive.put(obj)`` (0 for None, the same
object gives the same id), then ``archive.to_hdus()``: a list of
`astropy.io.fits.BinTableHDU`, the index first.
``InputArchive.from_hdus(hdulist, start_hdu)`` with the 0-indexed position of
the ARCHIVE_INDEX HDU, then ``archive.get(id)``; what nobody registered comes
back as None, with a warning on logger ``lsst.afw.table.io``.
"""

from . import _footprints  # noqa: F401  (makes span sets known)
from ._archive import (
    InputArchive,
    MalformedArchiveError,
    OutputArchive,
    OutputArchiveHandle,
    Persistable,
    register_factory,
    register_persistable,
    register_writer,
)

__all__ = [
    "InputArchive",
    "MalformedArchiveError",
    "OutputArchive",
    "OutputArchiveHandle",
    "Persistable",
    "register_factory",
    "register_persistable",
    "register_writer",
]
