# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keys of several columns that are read and written as one object."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import lsst.geom
import lsst.pex.exceptions as pexExceptions
from lsst.utils import TemplateMeta

from ._fields import Key
from ._schema import Schema, SubSchema

if TYPE_CHECKING:
    from ._base import BaseRecord

__all__ = [
    "CELESTIAL",
    "PIXEL",
    "ArrayDKey",
    "ArrayFKey",
    "ArrayKey",
    "Box2DKey",
    "Box2IKey",
    "CoordKey",
    "CoordinateType",
    "CovarianceMatrix2dKey",
    "CovarianceMatrix2fKey",
    "CovarianceMatrix3dKey",
    "CovarianceMatrix3fKey",
    "CovarianceMatrix4dKey",
    "CovarianceMatrix4fKey",
    "CovarianceMatrixKey",
    "CovarianceMatrixXdKey",
    "CovarianceMatrixXfKey",
    "EllipseKey",
    "Point2DKey",
    "Point2IKey",
    "PointKey",
    "QuadrupoleKey",
]


class CoordinateType(enum.IntEnum):
    """Where moments were measured."""

    PIXEL = 0
    CELESTIAL = 1


PIXEL = CoordinateType.PIXEL
CELESTIAL = CoordinateType.CELESTIAL


class _FunctorKey:
    """Columns ``_keys`` named by ``_suffixes``."""

    _suffixes: tuple[str, ...] = ()
    _code = "D"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs:
            args = (*args, *kwargs.values())
        if not args:
            self._keys = tuple(self._part_class(i)() for i in range(len(self._suffixes)))
        elif len(args) == 1 and isinstance(args[0], SubSchema):
            self._keys = tuple(self._from_schema(args[0], i) for i in range(len(self._suffixes)))
        elif len(args) == len(self._suffixes):
            for i, key in enumerate(args):
                if not isinstance(key, self._part_class(i)):
                    raise TypeError(
                        f"{type(self).__name__} wants {self._part_class(i).__name__}, got {key!r}."
                    )
            self._keys = tuple(args)
        else:
            raise TypeError(
                f"{type(self).__name__} takes nothing, a SubSchema or {len(self._suffixes)} keys, "
                f"got {args!r}."
            )

    def _part_class(self, index: int) -> Any:
        return Key[self._code]

    def _from_schema(self, schema: SubSchema, index: int) -> Any:
        key = schema[self._suffixes[index]].asKey()
        if not isinstance(key, self._part_class(index)):
            raise pexExceptions.TypeError(
                f"Field '{schema.getPrefix()}_{self._suffixes[index]}' does not have type "
                f"{self._code}, but {key.getTypeString()}."
            )
        return key

    def isValid(self) -> bool:
        """Return whether all columns are there."""
        return all(key.isValid() for key in self._keys)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._keys == other._keys

    def __hash__(self) -> int:
        return hash((type(self), self._keys))


class _PointKey(_FunctorKey):
    _suffixes = ("x", "y")
    _point: Any

    def getX(self) -> Any:
        """Return the key of x."""
        return self._keys[0]

    def getY(self) -> Any:
        """Return the key of y."""
        return self._keys[1]

    @classmethod
    def addFields(cls, schema: Schema, name: str, doc: str, unit: str) -> Any:
        """Add ``name_x`` and ``name_y`` to a schema and return their key."""
        return cls(
            *(
                schema.addField(
                    f"{name}_{suffix}", type=cls._code, doc=doc, units=unit, parse_strict="silent"
                )
                for suffix in cls._suffixes
            )
        )

    def get(self, record: BaseRecord) -> Any:
        """Return the point of a record."""
        return self._point(self._keys[0].get(record), self._keys[1].get(record))

    def set(self, record: BaseRecord, value: Any) -> None:
        """Set the point of a record."""
        self._keys[0].set(record, value.getX())
        self._keys[1].set(record, value.getY())


class Point2DKey(_PointKey):
    """Key of a point with two doubles."""

    _point = lsst.geom.Point2D


class Point2IKey(_PointKey):
    """Key of a point with two 32-bit integers."""

    _code = "I"
    _point = lsst.geom.Point2I


class PointKey(metaclass=TemplateMeta):
    """Family of the point keys."""

    TEMPLATE_PARAMS = ("dtype", "dim")
    TEMPLATE_DEFAULTS = (None, 2)


PointKey.register((np.int32, 2), Point2IKey)
PointKey.register((np.float64, 2), Point2DKey)


class _BoxKey(_FunctorKey):
    _suffixes = ("min", "max")
    _box: Any
    _point_key: Any

    def _part_class(self, index: int) -> Any:
        return self._point_key

    def _from_schema(self, schema: SubSchema, index: int) -> Any:
        return self._point_key(schema[self._suffixes[index]])

    def getMin(self) -> Any:
        """Return the key of the lower corner."""
        return self._keys[0]

    def getMax(self) -> Any:
        """Return the key of the upper corner."""
        return self._keys[1]

    @classmethod
    def addFields(cls, schema: Schema, name: str, doc: str, unit: str) -> Any:
        """Add ``name_{min,max}_{x,y}`` to a schema and return their key."""
        return cls(
            cls._point_key.addFields(schema, f"{name}_min", doc + " (minimum)", unit),
            cls._point_key.addFields(schema, f"{name}_max", doc + " (maximum)", unit),
        )

    def get(self, record: BaseRecord) -> Any:
        """Return the box of a record."""
        return self._box(self._keys[0].get(record), self._keys[1].get(record), invert=False)

    def set(self, record: BaseRecord, value: Any) -> None:
        """Set the box of a record."""
        self._keys[0].set(record, value.getMin())
        self._keys[1].set(record, value.getMax())


class Box2IKey(_BoxKey):
    """Key of an integer box."""

    _box = lsst.geom.Box2I
    _point_key = Point2IKey


class Box2DKey(_BoxKey):
    """Key of a floating-point box."""

    _box = lsst.geom.Box2D
    _point_key = Point2DKey


class CoordKey(_FunctorKey):
    """Key of a sky position."""

    _suffixes = ("ra", "dec")
    _code = "Angle"

    def getRa(self) -> Any:
        """Return the key of the right ascension."""
        return self._keys[0]

    def getDec(self) -> Any:
        """Return the key of the declination."""
        return self._keys[1]

    @classmethod
    def addFields(cls, schema: Schema, name: str, doc: str) -> CoordKey:
        """Add ``name_ra`` and ``name_dec`` to a schema; return their key."""
        return cls(*(schema.addField(f"{name}_{suffix}", type="Angle", doc=doc) for suffix in cls._suffixes))

    @staticmethod
    def addErrorFields(schema: Schema) -> CovarianceMatrix2fKey:
        """Add the uncertainties of the coord field; return their key."""
        return CovarianceMatrix2fKey.addFields(schema, "coord", ["ra", "dec"], "rad")

    @staticmethod
    def getErrorKey(schema: Schema) -> CovarianceMatrix2fKey:
        """Return the key of the uncertainties of the coord field."""
        return CovarianceMatrix2fKey(schema["coord"], ["ra", "dec"])

    def get(self, record: BaseRecord) -> lsst.geom.SpherePoint:
        """Return the position of a record."""
        return lsst.geom.SpherePoint(self._keys[0].get(record), self._keys[1].get(record))

    def set(self, record: BaseRecord, value: lsst.geom.SpherePoint) -> None:
        """Set the position of a record."""
        self._keys[0].set(record, value.getLongitude())
        self._keys[1].set(record, value.getLatitude())


class QuadrupoleKey(_FunctorKey):
    """Key of second moments."""

    _suffixes = ("xx", "yy", "xy")

    def getIxx(self) -> Any:
        """Return the key of the xx moment."""
        return self._keys[0]

    def getIyy(self) -> Any:
        """Return the key of the yy moment."""
        return self._keys[1]

    def getIxy(self) -> Any:
        """Return the key of the xy moment."""
        return self._keys[2]

    @classmethod
    def addFields(
        cls, schema: Schema, name: str, doc: str, coordType: CoordinateType = CoordinateType.PIXEL
    ) -> QuadrupoleKey:
        """Add ``name_{xx,yy,xy}`` to a schema and return their key."""
        unit = "pixel^2" if coordType == CoordinateType.PIXEL else "rad^2"
        return cls(
            *(schema.addField(f"{name}_{suffix}", type="D", doc=doc, units=unit) for suffix in cls._suffixes)
        )

    def get(self, record: BaseRecord) -> Any:
        """Return the moments of a record."""
        from lsst.afw.geom.ellipses import Quadrupole

        return Quadrupole(*(key.get(record) for key in self._keys))

    def set(self, record: BaseRecord, value: Any) -> None:
        """Set the moments of a record."""
        self._keys[0].set(record, value.getIxx())
        self._keys[1].set(record, value.getIyy())
        self._keys[2].set(record, value.getIxy())


class EllipseKey(_FunctorKey):
    """Key of moments and a centre."""

    _suffixes = ("", "")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) == 1 and isinstance(args[0], SubSchema):
            args = (QuadrupoleKey(args[0]), Point2DKey(args[0]))
        super().__init__(*args, **kwargs)

    def _part_class(self, index: int) -> Any:
        return (QuadrupoleKey, Point2DKey)[index]

    def getCore(self) -> QuadrupoleKey:
        """Return the key of the moments."""
        return self._keys[0]

    def getCenter(self) -> Point2DKey:
        """Return the key of the centre."""
        return self._keys[1]

    @classmethod
    def addFields(cls, schema: Schema, name: str, doc: str, unit: str) -> EllipseKey:
        """Add the fields of moments and centre; return their key."""
        core = QuadrupoleKey.addFields(schema, name, doc)
        return cls(core, Point2DKey.addFields(schema, name, doc, unit))

    def get(self, record: BaseRecord) -> Any:
        """Return the ellipse of a record."""
        from lsst.afw.geom.ellipses import Ellipse

        return Ellipse(self._keys[0].get(record), self._keys[1].get(record))

    def set(self, record: BaseRecord, value: Any) -> None:
        """Set the ellipse of a record."""
        from lsst.afw.geom.ellipses import Quadrupole

        self._keys[0].set(record, Quadrupole(value.getCore()))
        self._keys[1].set(record, value.getCenter())


class _CovarianceMatrixKey:
    """Standard deviations and, where there are columns for them, covariances.

    The matrix has the squares of the former on its diagonal.
    """

    _code = "F"
    _size: int | None = 2

    def __init__(self, err: Any = None, cov: Any = ()) -> None:
        self._cov: list[Any] = []
        if err is None:
            self._err: list[Any] = []
            return
        if isinstance(err, SubSchema):
            self._from_schema(err, list(cov))
            return
        self._err = list(err)
        self._check_size(self._err, "err")
        cov = list(cov)
        n = len(self._err)
        if cov and len(cov) != n * (n - 1) // 2:
            raise pexExceptions.LengthError(
                f"Size of cov array ({len(cov)}) does not match with size inferred from err array "
                f"({n * (n - 1) // 2})"
            )
        if any(key.isValid() for key in cov):
            self._cov = cov

    def _from_schema(self, schema: SubSchema, names: list[str]) -> None:
        self._err = [schema[f"{name}Err"].asKey() for name in names]
        self._check_size(self._err, "err")
        cov: list[Any] = []
        for i, first in enumerate(names):
            for second in names[:i]:
                key = Key[self._code]()
                for name in (f"{first}_{second}_Cov", f"{second}_{first}_Cov"):
                    try:
                        key = schema[name].asKey()
                    except pexExceptions.NotFoundError:
                        continue
                    break
                cov.append(key)
        if any(key.isValid() for key in cov):
            self._cov = cov

    @classmethod
    def _check_size(cls, values: Sequence[Any], what: str) -> None:
        if cls._size is not None and len(values) != cls._size:
            raise pexExceptions.LengthError(
                f"Size of {what} array ({len(values)}) does not match template argument ({cls._size})"
            )

    @classmethod
    def addFields(
        cls,
        schema: Schema,
        prefix: str,
        names: Sequence[str],
        unit: str | Sequence[str] | None = None,
        diagonalOnly: bool = False,
        *,
        units: Sequence[str] | None = None,
    ) -> Any:
        """Add the fields of a covariance matrix and return their key.

        Parameters
        ----------
        schema : `Schema`
            Schema to add to.
        prefix : `str`
            What the names of the fields begin with.
        names : `list` [`str`]
            Names of the quantities.
        unit : `str` or `list` [`str`]
            Unit of all quantities, or of each (then also as ``units``).
        diagonalOnly : `bool`, optional
            Leave the covariances out.
        """
        given = unit if units is None else units
        if given is None:
            raise TypeError("CovarianceMatrixKey.addFields wants a unit, or units of each name.")
        each = [given] * len(names) if isinstance(given, str) else list(given)
        cls._check_size(names, "names")
        cls._check_size(each, "units")
        err = [
            schema.addField(
                f"{prefix}_{name}Err", type=cls._code, doc=f"1-sigma uncertainty on {name}", units=u,
                parse_strict="silent",
            )
            for name, u in zip(names, each, strict=True)
        ]
        cov = []
        if not diagonalOnly:
            for i, second in enumerate(names):
                for j, first in enumerate(names[:i]):
                    cov.append(
                        schema.addField(
                            f"{prefix}_{first}_{second}_Cov",
                            type=cls._code,
                            doc=f"uncertainty covariance between {first} and {second}",
                            units=" ".join(u for u in (each[j], each[i]) if u),
                            parse_strict="silent",
                        )
                    )
        return cls(err, cov)

    def isValid(self) -> bool:
        """Return whether the uncertainties have columns."""
        return bool(self._err) and all(key.isValid() for key in self._err)

    def _pairs(self) -> list[tuple[int, int, Any]]:
        if not self._cov:
            return []
        pairs = [(i, j) for i in range(len(self._err)) for j in range(i)]
        return [(i, j, key) for (i, j), key in zip(pairs, self._cov, strict=True) if key.isValid()]

    def get(self, record: BaseRecord) -> np.ndarray:
        """Return the matrix of a record."""
        dtype = np.float32 if self._code == "F" else np.float64
        err: np.ndarray = np.array([key.get(record) for key in self._err], dtype=dtype)
        matrix = np.diag(err * err)
        for i, j, key in self._pairs():
            matrix[i, j] = matrix[j, i] = key.get(record)
        return matrix

    def set(self, record: BaseRecord, value: np.ndarray) -> None:
        """Set the matrix of a record."""
        value = np.asarray(value)
        n = len(self._err)
        if value.shape != (n, n):
            raise TypeError(f"{type(self).__name__} wants a {n} x {n} matrix, got shape {value.shape}.")
        for i, key in enumerate(self._err):
            variance = float(value[i, i])
            key.set(record, math.sqrt(variance) if variance >= 0 else math.nan)
        for i, j, key in self._pairs():
            key.set(record, value[i, j])

    def _cov_key(self, i: int, j: int) -> Any:
        if not self._cov:
            return None
        low, high = min(i, j), max(i, j)
        key = self._cov[high * (high - 1) // 2 + low]
        return key if key.isValid() else None

    def getElement(self, record: BaseRecord, i: int, j: int) -> float:
        """Return one element, 0 where it has no column."""
        if i == j:
            return self._err[i].get(record) ** 2
        key = self._cov_key(i, j)
        return 0.0 if key is None else key.get(record)

    def setElement(self, record: BaseRecord, i: int, j: int, value: float) -> None:
        """Set one element.

        Raises
        ------
        lsst.pex.exceptions.LogicError
            Raised if there is no column for it.
        """
        if i == j:
            self._err[i].set(record, math.sqrt(value))
            return
        key = self._cov_key(i, j)
        if key is None:
            raise pexExceptions.LogicError(f"Cannot set covariance element {i},{j}; no field for it")
        key.set(record, value)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._err == other._err and self._cov == other._cov

    def __hash__(self) -> int:
        return hash((tuple(self._err), tuple(self._cov)))


class CovarianceMatrix2fKey(_CovarianceMatrixKey):
    """Key of a 2 x 2 float32 covariance matrix."""


class CovarianceMatrix3fKey(_CovarianceMatrixKey):
    """Key of a 3 x 3 float32 covariance matrix."""

    _size = 3


class CovarianceMatrix4fKey(_CovarianceMatrixKey):
    """Key of a 4 x 4 float32 covariance matrix."""

    _size = 4


class CovarianceMatrixXfKey(_CovarianceMatrixKey):
    """Key of a float32 covariance matrix of any size."""

    _size = None


class CovarianceMatrix2dKey(_CovarianceMatrixKey):
    """Key of a 2 x 2 float64 covariance matrix."""

    _code = "D"


class CovarianceMatrix3dKey(_CovarianceMatrixKey):
    """Key of a 3 x 3 float64 covariance matrix."""

    _code = "D"
    _size = 3


class CovarianceMatrix4dKey(_CovarianceMatrixKey):
    """Key of a 4 x 4 float64 covariance matrix."""

    _code = "D"
    _size = 4


class CovarianceMatrixXdKey(_CovarianceMatrixKey):
    """Key of a float64 covariance matrix of any size."""

    _code = "D"
    _size = None


class CovarianceMatrixKey(metaclass=TemplateMeta):
    """Family of the covariance matrix keys."""

    TEMPLATE_PARAMS = ("dtype", "dim")


for _dtype, _members in (
    (
        np.float32,
        (CovarianceMatrix2fKey, CovarianceMatrix3fKey, CovarianceMatrix4fKey, CovarianceMatrixXfKey),
    ),
    (
        np.float64,
        (CovarianceMatrix2dKey, CovarianceMatrix3dKey, CovarianceMatrix4dKey, CovarianceMatrixXdKey),
    ),
):
    for _member in _members:
        CovarianceMatrixKey.register((_dtype, _member._size), _member)


class _ArrayFunctorKey:
    """Key of consecutive scalar columns read as an array."""

    _code = "F"
    _dtype: Any = np.float32

    def __init__(self, keys: Any = None) -> None:
        self._key: Any = None
        if keys is None:
            return
        if isinstance(keys, Key[f"Array{self._code}"]):
            self._key = keys
            return
        if isinstance(keys, SubSchema):
            found: list[Any] = []
            while True:
                try:
                    found.append(keys[str(len(found))].asKey())
                except pexExceptions.NotFoundError:
                    break
            keys = found
        keys = list(keys)
        if not keys:
            raise pexExceptions.NotFoundError(
                f"No fields of type {self._code} found for {type(self).__name__}."
            )
        itemsize = np.dtype(self._dtype).itemsize
        for i, key in enumerate(keys):
            if key.getOffset() != keys[0].getOffset() + i * itemsize:
                raise pexExceptions.InvalidParameterError(
                    "Keys passed to ArrayKey constructor are not contiguous"
                )
        self._key = Key[f"Array{self._code}"]._make(keys[0].getOffset(), len(keys))

    @classmethod
    def addFields(
        cls, schema: Schema, name: str, doc: str, unit: str, docData: Any = None, *, size: int = 0
    ) -> Any:
        """Add ``name_0``, ``name_1``, ... to a schema and return their key.

        Parameters
        ----------
        schema : `Schema`
            Schema to add to.
        name, doc, unit : `str`
            Name, documentation and unit; the documentation may hold one
            "%" format for an entry of ``docData``.
        docData : `list` of `float` or `int`
            One number per element, or the number of elements.
        size : `int`, optional
            The number of elements.
        """
        if docData is None or isinstance(docData, int):
            docs = [doc] * (size if docData is None else docData)
        else:
            docs = [doc % value if "%" in doc else doc for value in docData]
        return cls(
            [
                schema.addField(f"{name}_{i}", type=cls._code, doc=d, units=unit, parse_strict="silent")
                for i, d in enumerate(docs)
            ]
        )

    def isValid(self) -> bool:
        """Return whether there are columns."""
        return self._key is not None

    def getSize(self) -> int:
        """Return the number of elements."""
        return 0 if self._key is None else self._key.getSize()

    def get(self, record: BaseRecord) -> np.ndarray:
        """Return the array of a record, a view."""
        return self._key.get(record)

    def set(self, record: BaseRecord, value: np.ndarray) -> None:
        """Set the array of a record."""
        self._key.set(record, value)

    def slice(self, begin: int, end: int) -> Any:
        """Return the key of elements ``begin`` to ``end`` (exclusive)."""
        return type(self)(self._key.slice(begin, end))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(self.getSize())
            if step != 1:
                raise IndexError("Step for ArrayKey must be 1.")
            return self.slice(start, stop)
        if not -self.getSize() <= index < self.getSize():
            raise IndexError(f"Index {index} not in range [{-self.getSize()}, {self.getSize() - 1}]")
        return self._key[index % self.getSize()]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class ArrayFKey(_ArrayFunctorKey):
    """Key of consecutive float32 columns."""


class ArrayDKey(_ArrayFunctorKey):
    """Key of consecutive float64 columns."""

    _code = "D"
    _dtype = np.float64


class ArrayKey(metaclass=TemplateMeta):
    """Family of the array keys."""


ArrayKey.register(np.float32, ArrayFKey)
ArrayKey.register(np.float64, ArrayDKey)
