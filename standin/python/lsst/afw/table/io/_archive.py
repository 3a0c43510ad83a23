# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writing and reading archives; see the package for how to take part."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import lsst.pex.exceptions as pexExceptions
from lsst.daf.base import PropertyList

from .. import _fits_bytes as raw_fits
from .._catalog import BaseCatalog
from .._schema import Schema
from .._storage import RECORDS_PER_BLOCK

if TYPE_CHECKING:
    from astropy.io.fits import BinTableHDU, HDUList

_LOG = logging.getLogger("lsst.afw.table.io")

# What the index says for objects without catalogues.
_NO_CATALOGS_SAVED = -1

Factory = Callable[["InputArchive", list[BaseCatalog]], Any]

_FACTORIES: dict[str, Factory] = {}
# Name of a class that is no Persistable -> module that a reader imports, and
# function that saves an object.
_WRITERS: dict[str, tuple[str, Callable[[Any, Any], None]]] = {}


class MalformedArchiveError(pexExceptions.RuntimeError):
    """An archive contradicts itself."""


class Persistable:
    """Base of what archives can hold; see the package."""

    _persistence_name: ClassVar[str] = ""
    _python_module: ClassVar[str] = ""

    def isPersistable(self) -> bool:
        """Return whether this object can be saved."""
        return bool(self._persistence_name)

    def _persist(self, handle: OutputArchiveHandle) -> None:
        raise NotImplementedError(f"{type(self).__name__} cannot be saved.")

    def writeFits(self, fileName: Any, mode: str = "w") -> None:
        """Write the object to a FITS file of its own.

        Parameters
        ----------
        fileName : `str` or `lsst.afw.fits.MemFileManager`
            Name of the file, or the file.
        mode : `str`, optional
            "w" to replace the file, "a" to add HDUs to it.
        """
        archive = OutputArchive()
        archive.put(self)

        def content(primary: bool) -> bytes:
            return (raw_fits.primary_bytes() if primary else b"") + archive.to_bytes()

        raw_fits.write_file(fileName, content, mode)

    @classmethod
    def readFits(cls, fileName: Any, hdu: int = -(2**31)) -> Any:
        """Read an object from a FITS file of its own.

        Parameters
        ----------
        fileName : `str` or `lsst.afw.fits.MemFileManager`
            Name of the file, or the file.
        hdu : `int`, optional
            Number of the HDU where its archive begins.

        Raises
        ------
        lsst.pex.exceptions.TypeError
            Raised if the file holds an object of another class.
        lsst.pex.exceptions.NotFoundError
            Raised if nobody knows how to read the object.
        """
        hdus = raw_fits.read_file(fileName)
        result = InputArchive._from_raw(hdus, max(hdu, 1)).get(1)
        if result is None:
            raise pexExceptions.NotFoundError(f"The object in '{fileName}' is of a class not known here.")
        if not isinstance(result, cls):
            raise pexExceptions.TypeError(
                f"'{fileName}' holds a {type(result).__name__}, wanted was a {cls.__name__}."
            )
        return result


def register_persistable(name: str, module: str) -> Callable[[type], type]:
    """Return a decorator that makes a class known to archives.

    Parameters
    ----------
    name : `str`
        Name in the files.
    module : `str`
        Module that a reader imports to find the class.
    """

    def decorate(cls: Any) -> Any:
        cls._persistence_name = name
        cls._python_module = module
        _FACTORIES[name] = lambda archive, catalogs: cls._factory(archive, catalogs)
        return cls

    return decorate


def register_factory(name: str, factory: Factory) -> None:
    """Make a function known that rebuilds objects of a name.

    Parameters
    ----------
    name : `str`
        Name in the files.
    factory : callable
        Called with the archive and the object's catalogues.
    """
    _FACTORIES[name] = factory


def register_writer(name: str, module: str, write: Callable[[Any, Any], None]) -> None:
    """Make a function known that saves objects of a class.

    This is for classes that are no `Persistable` themselves.

    Parameters
    ----------
    name : `str`
        Name of the class, in Python and in the files.
    module : `str`
        Module that a reader imports to find the class.
    write : callable
        Called with the object and an `OutputArchiveHandle`.
    """
    _WRITERS[name] = (module, write)


def _index_schema() -> Schema:
    schema = Schema()

    def add(name: str, type: str, doc: str, size: int | None = None) -> None:
        schema.addField(name, type=type, doc=doc, size=size)

    add("id", "I", "Archive ID of the persistable object that owns the records pointed at by this entry")
    add("cat.archive", "I", "index of the catalog this entry points to, from the perspective of the archive")
    add(
        "cat.persistable",
        "I",
        "index of the catalog this entry points to, from the perspective of the Persistable",
    )
    add("row0", "I", "first row used by the persistable object in this catalog")
    add("nrows", "I", "number of rows used by the persistable object in this catalog")
    add("name", "String", "unique name for the persistable object's class", 64)
    add("module", "String", "Python module that should be imported to register the object's factory", 64)
    return schema


# ---- Writing ------------------------------------------------------------


class OutputArchiveHandle:
    """Where an object saves its catalogues; only `OutputArchive` makes it."""

    def __init__(self, archive: OutputArchive, id: int, name: str, module: str) -> None:
        self._archive = archive
        self._id = id
        self._name = name
        self._module = module
        self._n_catalogs = 0

    def makeCatalog(self, schema: Schema) -> BaseCatalog:
        """Return an empty catalogue to fill and give to `saveCatalog`."""
        return BaseCatalog(self._archive._catalog_for(schema)._table)

    def saveCatalog(self, catalog: BaseCatalog) -> None:
        """Save a catalogue that came from `makeCatalog`."""
        self._archive._save(catalog, self._id, self._name, self._module, self._n_catalogs)
        self._n_catalogs += 1

    def saveEmpty(self) -> None:
        """Save an object that needs no catalogue."""
        self._archive._add_index(
            self._id, _NO_CATALOGS_SAVED, _NO_CATALOGS_SAVED, _NO_CATALOGS_SAVED, 0, self._name, self._module
        )

    def put(self, obj: Any, permissive: bool = False) -> int:
        """Save a nested object and return its id, 0 for None."""
        return self._archive.put(obj, permissive)


class OutputArchive:
    """Objects on their way to a FITS file."""

    def __init__(self) -> None:
        self._next_id = 1
        # Objects are kept, so that identities are not used again.
        self._ids: dict[int, tuple[int, Any]] = {}
        self._index: list[tuple[int, int, int, int, int, str, str]] = []
        self._catalogs: list[BaseCatalog] = []
        self._numbers: dict[Any, int] = {}

    def put(self, obj: Any, permissive: bool = False) -> int:
        """Save an object.

        Parameters
        ----------
        obj : `Persistable` or `None`
            The object; the same one again gives the same id.
        permissive : `bool`, optional
            Return 0 for what cannot be saved, instead of raising.

        Returns
        -------
        id : `int`
            What `InputArchive.get` wants, 0 for None.

        Raises
        ------
        lsst.pex.exceptions.NotFoundError
            Raised for objects that cannot be saved.
        """
        if obj is None:
            return 0
        known = self._ids.get(id(obj))
        if known is not None:
            return known[0]
        if isinstance(obj, Persistable) and obj.isPersistable() and obj._persistence_name:
            name, module = obj._persistence_name, obj._python_module
            write: Callable[[Any, Any], None] = type(obj)._persist
        elif type(obj).__name__ in _WRITERS:
            name = type(obj).__name__
            module, write = _WRITERS[name]
        elif permissive:
            return 0
        else:
            raise pexExceptions.NotFoundError(
                f"Objects of class {type(obj).__name__} cannot be saved to an archive."
            )
        current = self._next_id
        self._next_id += 1
        self._ids[id(obj)] = (current, obj)
        write(obj, OutputArchiveHandle(self, current, name, module))
        return current

    def _catalog_for(self, schema: Schema) -> BaseCatalog:
        # Same keys and names mean same catalogue.
        signature = tuple((item.field._name, item.key) for item in schema._layout.items)
        number = self._numbers.get(signature)
        if number is None:
            catalog = BaseCatalog(schema)
            catalog._table._next_capacity = RECORDS_PER_BLOCK
            self._catalogs.append(catalog)
            number = self._numbers[signature] = len(self._catalogs)
            metadata = PropertyList()
            metadata.set("EXTTYPE", "ARCHIVE_DATA")
            metadata.set("AR_CATN", number, "# of this catalog relative to the start of this archive")
            catalog._table.setMetadata(metadata)
        return self._catalogs[number - 1]

    def _add_index(self, *entry: Any) -> None:
        self._index.append(entry)  # type: ignore[arg-type]

    def _label(self, number: int, name: str) -> None:
        """Let the header of a catalogue name the class it holds."""
        metadata = self._catalogs[number - 1]._table.getMetadata()
        if not metadata.exists("EXTNAME"):
            same = sum(
                other._table.getMetadata().exists("EXTNAME")
                and other._table.getMetadata().getScalar("EXTNAME") == name
                for other in self._catalogs
            )
            if same:
                metadata.set("EXTVER", same + 1)
        if not metadata.exists("AR_NAME") or name not in metadata.getArray("AR_NAME"):
            metadata.add("AR_NAME", name, "Class name for objects stored here")
        if not metadata.exists("EXTNAME") or metadata.getScalar("EXTNAME") != name:
            metadata.set("EXTNAME", name)

    def _save(self, catalog: BaseCatalog, id: int, name: str, module: str, position: int) -> None:
        number = next(
            (n for n, full in enumerate(self._catalogs, start=1) if full._table is catalog._table), 0
        )
        if number == 0:
            raise pexExceptions.LogicError(
                "All catalogs passed to saveCatalog must be created by makeCatalog"
            )
        full = self._catalogs[number - 1]
        self._label(number, name)
        self._add_index(id, number, position, len(full), len(catalog), name, module)
        full.extend(catalog, deep=False)

    def getIndexCatalog(self) -> BaseCatalog:
        """Return the catalogue that says where objects are."""
        index = BaseCatalog(_index_schema())
        metadata = PropertyList()
        metadata.set("EXTTYPE", "ARCHIVE_INDEX")
        metadata.set("EXTNAME", "ARCHIVE_INDEX")
        metadata.set("AR_CATN", 0, "# of this catalog relative to the start of this archive")
        metadata.set("AR_NCAT", self.countCatalogs(), "# of catalogs in this archive, including the index")
        index._table.setMetadata(metadata)
        index.resize(len(self._index))
        if self._index:
            columns = list(zip(*self._index, strict=True))
            items = list(index._table._schema)
            block = index._block
            for item, values in zip(items, columns, strict=True):
                column = block.column(item.key, index._start, index._stop)  # type: ignore[union-attr]
                column[:] = np.array(values, dtype=column.dtype)
        return index

    def getCatalog(self, n: int) -> BaseCatalog:
        """Return one of the catalogues, 0 for the index."""
        if n == 0:
            return self.getIndexCatalog()
        if not 0 < n <= len(self._catalogs):
            raise pexExceptions.LengthError(f"Catalog number {n} is out of range [0,{len(self._catalogs)}]")
        return self._catalogs[n - 1]

    def countCatalogs(self) -> int:
        """Return the number of catalogues, the index included."""
        return len(self._catalogs) + 1

    def to_bytes_list(self) -> list[bytes]:
        """Return the HDUs as bytes, the index first."""
        from .._fits_catalog import table_bytes

        return [table_bytes(self.getCatalog(n)) for n in range(self.countCatalogs())]

    def to_bytes(self) -> bytes:
        """Return the HDUs as bytes, one after the other."""
        return b"".join(self.to_bytes_list())

    def to_hdus(self) -> list[BinTableHDU]:
        """Return the HDUs for astropy, the index first."""
        return [raw_fits.to_astropy(raw) for raw in self.to_bytes_list()]


# ---- Reading ------------------------------------------------------------


class InputArchive:
    """Objects in a FITS file; each is rebuilt when first asked for.

    Parameters
    ----------
    index : `BaseCatalog`
        Catalogue that says where objects are.
    catalogs : `list` [`BaseCatalog`]
        Catalogues that hold them.
    """

    def __init__(self, index: BaseCatalog, catalogs: list[BaseCatalog]) -> None:
        self._catalogs = catalogs
        self._objects: dict[int, Any] = {0: None}
        self._warned: set[str] = set()
        # Id -> (position, catalogue, first row, number of rows), sorted.
        self._entries: dict[int, list[tuple[int, int, int, int]]] = {}
        self._names: dict[int, tuple[str, str]] = {}
        if len(index) == 0:
            return
        fields = ("id", "cat.archive", "cat.persistable", "row0", "nrows")
        keys = [index._table._schema.find(name).key for name in fields]
        ids, numbers, positions, starts, counts = (index._column(key).tolist() for key in keys)
        names = index._string_column(index._table._schema.find("name").key).tolist()
        modules = [""] * len(index)
        if "module" in index._table._schema:
            modules = index._string_column(index._table._schema.find("module").key).tolist()
        for i, id in enumerate(ids):
            label = (names[i], modules[i])
            if self._names.setdefault(id, label) != label:
                raise MalformedArchiveError(
                    f"Inconsistent name in index for ID {id}; got {label}, expected {self._names[id]}"
                )
            self._entries.setdefault(id, []).append((positions[i], numbers[i], starts[i], counts[i]))

    @classmethod
    def _from_raw(cls, hdus: list[raw_fits.RawHdu], start: int) -> InputArchive:
        from lsst.afw.fits import FitsError

        from .._fits_catalog import read_table

        if not 0 <= start < len(hdus):
            raise FitsError(f"the archive should begin in HDU {start}, but the file has {len(hdus)}")
        kind = hdus[start].keys.get("EXTTYPE")
        if kind != "ARCHIVE_INDEX":
            raise FitsError(f"Wrong value for archive index EXTTYPE: '{kind}' (HDU {start})")
        n_catalogs = int(hdus[start].keys.get("AR_NCAT", 1))
        if start + n_catalogs > len(hdus):
            raise FitsError(
                f"the archive should have {n_catalogs} HDUs from HDU {start} on, but the file has {len(hdus)}"
            )
        index = read_table(hdus[start], BaseCatalog)[0]
        catalogs = []
        for n in range(1, n_catalogs):
            hdu = hdus[start + n]
            if hdu.keys.get("EXTTYPE") != "ARCHIVE_DATA":
                raise FitsError(f"Wrong value for archive data EXTTYPE: '{hdu.keys.get('EXTTYPE')}'")
            if hdu.keys.get("AR_CATN") != n:
                raise FitsError(
                    f"Incorrect order for archive catalogs: AR_CATN={hdu.keys.get('AR_CATN')} found at "
                    f"position {n}"
                )
            catalogs.append(read_table(hdu, BaseCatalog)[0])
        return cls(index, catalogs)

    @classmethod
    def from_hdus(cls, hdulist: HDUList, start_hdu: int) -> InputArchive:
        """Read an archive from an open file.

        Parameters
        ----------
        hdulist : `astropy.io.fits.HDUList`
            The file.
        start_hdu : `int`
            0-indexed position of the HDU with the index.

        Raises
        ------
        lsst.afw.fits.FitsError
            Raised if there is no archive.
        """
        hdus = [raw_fits.RawHdu([], np.zeros(0, dtype=np.uint8)) for _ in range(start_hdu)]
        if start_hdu < len(hdulist):
            hdus.append(raw_fits.from_astropy(hdulist[start_hdu]))
            n_catalogs = int(hdus[-1].keys.get("AR_NCAT", 1))
            for n in range(start_hdu + 1, min(start_hdu + n_catalogs, len(hdulist))):
                hdus.append(raw_fits.from_astropy(hdulist[n]))
        return cls._from_raw(hdus, start_hdu)

    def get(self, id: int) -> Any:
        """Return an object, None for id 0 and for classes not known here.

        Raises
        ------
        MalformedArchiveError
            Raised if the archive contradicts itself.
        """
        if id in self._objects:
            return self._objects[id]
        if id not in self._entries:
            raise MalformedArchiveError(
                f"There is no object with id {id} in the archive, which has {len(self._entries)}."
            )
        name, module = self._names[id]
        # Until it is rebuilt: an object that contains itself gets None.
        self._objects[id] = None
        factory = self._factory(name, module)
        if factory is None:
            return None
        catalogs = []
        for _, number, start, count in sorted(self._entries[id]):
            if number == _NO_CATALOGS_SAVED:
                break
            catalogs.append(self._part(id, number, start, count))
        self._objects[id] = factory(self, catalogs)
        return self._objects[id]

    def find(self, name: str) -> set[int]:
        """Return the ids of objects of classes with a name that holds ``name``."""
        return {id for id, (kind, _) in self._names.items() if name in kind}

    def _part(self, id: int, number: int, start: int, count: int) -> BaseCatalog:
        if not 0 < number <= len(self._catalogs):
            raise MalformedArchiveError(
                f"Invalid catalog number in index for ID {id}; got {number}, max is {len(self._catalogs)}"
            )
        full = self._catalogs[number - 1]
        if start < 0 or start + count > len(full):
            raise MalformedArchiveError(
                f"Index and data catalogs do not agree for ID {id}; catalog {number} has {len(full)} rows, "
                f"not {start + count}"
            )
        return BaseCatalog._from_range(
            full._table, full._block, full._start + start, full._start + start + count
        )

    def _factory(self, name: str, module: str) -> Factory | None:
        if name not in _FACTORIES and module.startswith("lsst."):
            try:
                importlib.import_module(module)
            except ImportError as error:
                _LOG.debug("Cannot import %s for objects of class %s: %s", module, name, error)
        factory = _FACTORIES.get(name)
        if factory is None and name not in self._warned:
            self._warned.add(name)
            _LOG.warning(
                "The file holds an object of class %s (of %s), which is not known here; it is left out.",
                name,
                module or "an unnamed module",
            )
        return factory

    def getAll(self) -> dict[int, Any]:
        """Return all objects that can be rebuilt, by id."""
        return {id: obj for id in sorted(self._entries) if (obj := self.get(id)) is not None}
