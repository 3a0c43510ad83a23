# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""FITS files on disk and in memory, and their headers."""

from __future__ import annotations

__all__ = [
    "DEFAULT_HDU",
    "FitsError",
    "FitsTypeError",
    "MemFileManager",
    "append_cards",
    "combine_metadata",
    "open_fits",
    "readMetadata",
    "read_header",
    "reduceToFits",
    "to_cards",
    "unreduceFromFits",
]

import io
import mmap
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from astropy.io import fits
from astropy.io.fits.card import Undefined
from astropy.utils.exceptions import AstropyUserWarning

from lsst.daf.base import PropertyList
from lsst.daf.base._fits_header import property_set_to_cards
from lsst.pex.exceptions import Exception as PexException
from lsst.pex.exceptions import IoError

DEFAULT_HDU = -(2**31)
"""Index that stands for the first HDU with pixels."""

_LAYOUT_KEYS = frozenset(
    {
        "SIMPLE",
        "BITPIX",
        "NAXIS",
        "EXTEND",
        "GCOUNT",
        "PCOUNT",
        "XTENSION",
        "TFIELDS",
        "BSCALE",
        "BZERO",
        "ZBITPIX",
        "ZIMAGE",
        "ZCMPTYPE",
        "ZSIMPLE",
        "ZEXTEND",
        "ZBLANK",
        "ZDATASUM",
        "ZHECKSUM",
        "ZQUANTIZ",
        "ZDITHER0",
        "ZTENSION",
        "ZPCOUNT",
        "ZGCOUNT",
        "THEAP",
        "DATASUM",
        "CHECKSUM",
    }
)

_BLOCK = 2880
"""Size of the records of a FITS file (bytes)."""

_LAYOUT_STARTS = ("NAXIS", "TZERO", "TSCAL", "ZNAXIS", "ZTILE", "ZNAME", "ZVAL")

_COLUMN_STARTS = ("TFORM", "TTYPE")

_STANDARD_COMMENT = re.compile(
    r" *(FITS \(Flexible Image Transport System\)|and Astrophysics', volume 376, page 359).*"
)

STANDARD_COMMENTS = (
    "  FITS (Flexible Image Transport System) format is defined in 'Astronomy",
    "  and Astrophysics', volume 376, page 359; bibcode: 2001A&A...376..359H",
)
"""The comment with which the FITS library of upstream opens each file."""

_NON_FINITE = {
    "NAN": float("nan"),
    "+INFINITY": float("inf"),
    "INFINITY": float("inf"),
    "-INFINITY": float("-inf"),
    "+NAN": float("nan"),
    "-NAN": float("nan"),
}


_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    AssertionError,
    EOFError,
    OSError,
    fits.VerifyError,
)


class FitsError(IoError):
    """A FITS file is missing, unreadable or not as expected."""


class FitsTypeError(FitsError):
    """The pixels of a FITS file do not fit the type that was asked for."""


class MemFileManager:
    """A FITS file in memory.

    Parameters
    ----------
    length : `int`, optional
        Size of the buffer (bytes); it grows as needed.
    """

    def __init__(self, length: int = 0):
        self._data = bytes(length)

    def getLength(self) -> int:
        """Return the size of the file (bytes)."""
        return len(self._data)

    def getData(self) -> bytes:
        """Return the content."""
        return self._data

    def setData(self, data: bytes, size: int | None = None) -> None:
        """Set the content.

        Parameters
        ----------
        data : `bytes`
            The content.
        size : `int`, optional
            How many of the bytes to take.
        """
        self._data = bytes(data if size is None else data[:size])

    def reset(self) -> None:
        """Drop the content."""
        self._data = b""


def is_layout_key(key: str, columns: bool = False) -> bool:
    """Tell whether a key describes the layout of an HDU.

    Parameters
    ----------
    key : `str`
        The key.
    columns : `bool`, optional
        Whether to count keys of table columns too.

    Returns
    -------
    layout : `bool`
        Whether the FITS library owns the key.
    """
    return (
        key in _LAYOUT_KEYS or key.startswith(_LAYOUT_STARTS) or (columns and key.startswith(_COLUMN_STARTS))
    )


def source_name(source: Any) -> str:
    """Return how messages name a file."""
    return "<memory>" if isinstance(source, MemFileManager) else os.fspath(source)


def open_fits(source: Any, decompress: bool = False) -> fits.HDUList:
    """Open a FITS file for reading.

    Parameters
    ----------
    source : `str`, `os.PathLike` or `MemFileManager`
        The file.
    decompress : `bool`, optional
        Whether compressed images appear as images, scaled, rather than as
        the tables and numbers that the file holds.

    Returns
    -------
    hdus : `astropy.io.fits.HDUList`
        Its HDUs, read when needed.

    Raises
    ------
    FitsError
        Raised if the file is missing or no FITS file.
    """
    name = source_name(source)
    try:
        if isinstance(source, MemFileManager):
            file: Any = io.BytesIO(source.getData())
        else:
            file = name
            _check_sizes(name)
        if decompress:
            return fits.open(file, memmap=False)
        return fits.open(
            file,
            memmap=not isinstance(source, MemFileManager),
            disable_image_compression=True,
            do_not_scale_image_data=True,
        )
    except FileNotFoundError:
        raise FitsError(f"Could not open FITS file '{name}': it does not exist.") from None
    except _DAMAGE as error:
        raise FitsError(f"Could not open FITS file '{name}': {error}") from error


def _check_sizes(name: str) -> None:
    """Refuse a file that declares absurd sizes, on which astropy would work for minutes."""
    from lsst.afw.table._fits_bytes import check_sizes

    with open(name, "rb") as stream:
        if os.path.getsize(name) > _BLOCK and stream.read(6) == b"SIMPLE":
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                check_sizes(buffer)


@contextmanager
def fits_errors(name: str) -> Iterator[None]:
    """Turn what Python says of contents that are damaged into a `FitsError`, and name the file.

    Parameters
    ----------
    name : `str`
        What is read, for the message.
    """
    try:
        yield
    except PexException as error:
        if name in error.what():
            raise
        # Damaged headers may hold line feeds.
        raise type(error)(f"cannot read {name}: {' '.join(error.what().split())}") from error
    except _DAMAGE as error:
        text = " ".join(str(error).split())
        raise FitsError(f"cannot read {name}: {type(error).__name__}, {text}; it is damaged") from error


def write_hdus(hdus: list[Any], destination: Any, mode: str = "w") -> None:
    """Write HDUs to a file.

    Parameters
    ----------
    hdus : `list`
        HDUs; those of a new file start with a primary one.
    destination : `str`, `os.PathLike` or `MemFileManager`
        The file.
    mode : `str`, optional
        "w" replaces the file, "a" appends to it.

    Raises
    ------
    FitsError
        Raised for another mode, or if the file cannot be written.
    """
    if mode not in ("w", "a", "wb", "ab"):
        raise FitsError(f"Invalid mode '{mode}' given when writing '{source_name(destination)}'.")
    append = mode.startswith("a")
    # A file that is appended to has its primary HDU already.
    content = fits.HDUList([fits.PrimaryHDU(), *hdus] if append else hdus)
    with quiet_cards():
        if isinstance(destination, MemFileManager) or append:
            buffer = io.BytesIO()
            content.writeto(buffer, output_verify="silentfix")
            data = buffer.getvalue()[_BLOCK if append else 0 :]
            if isinstance(destination, MemFileManager):
                destination.setData(destination.getData() + data if append else data)
                return
        path = os.fspath(destination)
        try:
            if append:
                open_fits(path).close()
                with open(path, "ab") as stream:
                    stream.write(data)
                return
            # A file that could not be written to its end does not stay.
            partial = f"{path}.partial"
            try:
                content.writeto(partial, overwrite=True, output_verify="silentfix")
                os.replace(partial, path)
            finally:
                if os.path.exists(partial):
                    os.remove(partial)
        except OSError as error:
            raise FitsError(f"Could not write FITS file '{path}': {error}") from error


@contextmanager
def quiet_cards() -> Iterator[None]:
    """Silence warnings about keys that need HIERARCH and long comments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyUserWarning)
        yield


def read_header(header: fits.Header, strip: bool = False) -> PropertyList:
    """Read the keys of a header.

    Parameters
    ----------
    header : `astropy.io.fits.Header`
        The header.
    strip : `bool`, optional
        Whether to leave out the keys that describe the layout.

    Returns
    -------
    metadata : `lsst.daf.base.PropertyList`
        Values and comments. Keys that repeat become arrays; the strings that
        stand for numbers that are not finite become floats.
    """
    metadata = PropertyList()
    # The columns of a compressed image are part of its layout.
    columns = "ZIMAGE" in header
    for card in header.cards:
        key, value = card.keyword, card.value
        if strip and is_layout_key(key, columns):
            continue
        if key in ("COMMENT", "HISTORY", ""):
            if key == "COMMENT" and strip and _STANDARD_COMMENT.match(str(value)):
                continue
            if not key and not value:
                continue
            metadata.add(key or "COMMENT", str(value))
            continue
        if isinstance(value, Undefined):
            if not metadata.exists(key):
                metadata.set(key, None, _comment(card))
            continue
        if isinstance(value, str):
            value = _NON_FINITE.get(value.strip().upper(), value)
        if metadata.exists(key) and not metadata.isUndefined(key):
            if type(metadata.getScalar(key)) is type(value):
                metadata.add(key, value)
            else:
                metadata.set(key, value, _comment(card))
        else:
            metadata.set(key, value, _comment(card))
    return metadata


def combine_metadata(first: PropertyList, second: PropertyList) -> PropertyList:
    """Merge two headers.

    Parameters
    ----------
    first, second : `lsst.daf.base.PropertyList`
        Headers.

    Returns
    -------
    combined : `lsst.daf.base.PropertyList`
        All keys; values of the second win and comments are joined.
    """
    combined = PropertyList()
    for part in (first, second):
        for name in part.getOrderedNames():
            if name in ("COMMENT", "HISTORY"):
                for line in part.getArray(name):
                    combined.add(name, line)
            else:
                combined.set(name, part.getScalar(name), part.getComment(name))
    return combined


def read_hdu_metadata(hdus: fits.HDUList, hdu: int, strip: bool = False) -> PropertyList:
    """Read the keys of an HDU and, with INHERIT, of the primary one.

    Parameters
    ----------
    hdus : `astropy.io.fits.HDUList`
        An open file.
    hdu : `int`
        Index of the HDU.
    strip : `bool`, optional
        Whether to leave out the keys that describe the layout.

    Returns
    -------
    metadata : `lsst.daf.base.PropertyList`
        The keys.
    """
    metadata = read_header(hdus[hdu].header, strip)
    if hdu == 0 or not metadata.exists("INHERIT"):
        return metadata
    inherit = metadata.getScalar("INHERIT")
    if strip:
        metadata.remove("INHERIT")
    if inherit is True or inherit == "T":
        return combine_metadata(read_header(hdus[0].header, strip), metadata)
    return metadata


def default_hdu(hdus: fits.HDUList, hdu: int | None) -> int:
    """Resolve `DEFAULT_HDU`: the first HDU that is not empty."""
    if hdu is None or hdu == DEFAULT_HDU:
        return 1 if hdus[0].header.get("NAXIS", 0) == 0 and has_hdu(hdus, 1) else 0
    return int(hdu)


def has_hdu(hdus: fits.HDUList, hdu: int) -> bool:
    """Tell whether a file has an HDU without reading all of the file."""
    try:
        hdus[hdu]
    except IndexError:
        return False
    return True


def readMetadata(fileName: Any, hdu: int | str = DEFAULT_HDU, strip: bool = False) -> PropertyList:
    """Read the header of an HDU.

    Parameters
    ----------
    fileName : `str` or `MemFileManager`
        The file.
    hdu : `int` or `str`, optional
        Index (from 0) or name of the HDU (default: the first with pixels).
    strip : `bool`, optional
        Whether to leave out the keys that describe the layout.

    Returns
    -------
    metadata : `lsst.daf.base.PropertyList`
        The keys; those of the primary HDU are included where INHERIT is set.

    Raises
    ------
    FitsError
        Raised if the file or the HDU is missing.
    """
    with open_fits(fileName) as hdus:
        try:
            index = hdus.index_of(hdu) if isinstance(hdu, str) else default_hdu(hdus, hdu)
            return read_hdu_metadata(hdus, index, strip)
        except (IndexError, KeyError) as error:
            raise FitsError(f"No HDU {hdu!r} in '{source_name(fileName)}': {error}") from error


_COMMENT_PIECE = re.compile(r".{8}[= ]\s*'(?:[^']|'')*' */ ?(.*)")


def _comment(card: fits.Card) -> str:
    """Return the comment of a card; a word that fills a card goes on in the next one."""
    image = card.image
    if len(image) <= 80:
        return card.comment
    pieces = (_COMMENT_PIECE.match(image[start : start + 80]) for start in range(0, len(image), 80))
    texts = (piece[1] for piece in pieces if piece)
    text = "".join(one if one == one.rstrip() else one.rstrip() + " " for one in texts)
    return text.strip() or card.comment


def _float_card(key: str, value: float, comment: str) -> fits.Card:
    """Make a card with a float of 15 significant digits, as CFITSIO does.

    Astropy would cut off digits that do not fit in 20 characters.
    """
    text = f"{value:.15G}"
    if "." not in text:
        mantissa, mark, exponent = text.partition("E")
        text = f"{mantissa}.{mark}{exponent}"
    start = f"{key:8}= " if len(key) <= 8 else f"HIERARCH {key} = "
    image = start + text.rjust(max(len(text), 30 - len(start)))
    if comment:
        image += f" / {comment}"
    return fits.Card.fromstring(image[:80].ljust(80))


def to_cards(metadata: Any) -> list[fits.Card]:
    """Convert metadata to header cards, without layout keys.

    Parameters
    ----------
    metadata : `lsst.daf.base.PropertySet`
        The keys.

    Returns
    -------
    cards : `list` [`astropy.io.fits.Card`]
        The cards, in the order of the metadata.
    """
    with quiet_cards():
        return [
            _float_card(card.keyword, card.value, _comment(card)) if isinstance(card.value, float) else card
            for card in property_set_to_cards(metadata)
            if not is_layout_key(card.keyword, columns=True)
        ]


def append_cards(header: fits.Header, cards: Sequence[fits.Card]) -> None:
    """Add cards behind all others of a header."""
    for card in cards:
        header.append(card, end=True)


def reduceToFits(obj: Any) -> tuple:
    """Turn an object into the form in which it is pickled.

    Parameters
    ----------
    obj : `object`
        An object with ``writeFits`` and ``readFits``.

    Returns
    -------
    reduced : `tuple`
        What ``__reduce__`` returns.
    """
    manager = MemFileManager()
    obj.writeFits(manager)
    return (unreduceFromFits, (type(obj), manager.getData(), manager.getLength()))


def unreduceFromFits(cls: type, data: bytes, size: int) -> Any:
    """Make an object from the form in which it is pickled.

    Parameters
    ----------
    cls : `type`
        Class of the object.
    data : `bytes`
        The object as a FITS file.
    size : `int`
        Length of ``data``.

    Returns
    -------
    obj : `object`
        The object.
    """
    manager = MemFileManager(size)
    manager.setData(data, size)
    return cls.readFits(manager)  # type: ignore[attr-defined]
