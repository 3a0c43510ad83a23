# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""FITS headers and HDUs as bytes.

The cards are laid out as CFITSIO lays them out, and written and parsed here
rather than by astropy: catalogues have thousands of cards, and the binary
tables need 64-bit descriptors and unsigned columns kept exactly as they are.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BLOCK_SIZE = 2880
CARD_SIZE = 80

_MOST_AXES = 999
"""As the FITS standard has it."""

_LARGEST_RATIO = 100
"""Times its own size that an HDU of a file may declare; files that were cut short have a part of it."""

_NOTHING = np.zeros(0, dtype=np.uint8)

Card = tuple[str, Any, str]
"""Key, value (bool, int, float, str or None) and comment."""

_SHORT_KEY = re.compile(r"[A-Z0-9_-]{1,8}")
_STRING_VALUE = re.compile(r"\s*'((?:[^']|'')*)'\s*(?:/\s?(.*))?$")


# ---- Writing ------------------------------------------------------------


def _key_part(key: str) -> str:
    if _SHORT_KEY.fullmatch(key):
        return f"{key:<8}= "
    return f"HIERARCH {key} = "


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "T" if value else "F"
    if isinstance(value, int | np.integer):
        return str(int(value))
    number = float(value)
    if not math.isfinite(number):
        # FITS has no such numbers; CFITSIO writes them as strings too.
        return f"'{number}'".upper()
    text = repr(number).upper()
    return text if "." in text or "E" in text else text + ".0"


def format_card(key: str, value: Any, comment: str = "") -> str:
    """Return the 80 characters of a card, or several times 80.

    Parameters
    ----------
    key : `str`
        Keyword; those that are long or not upper case become HIERARCH.
    value : `bool`, `int`, `float`, `str` or `None`
        Value; long strings take CONTINUE cards.
    comment : `str`, optional
        Comment, cut where it does not fit.
    """
    if key in ("COMMENT", "HISTORY"):
        text = str(value)
        parts = [text[i : i + 72] for i in range(0, len(text), 72)] or [""]
        return "".join(f"{key:<8}{part:<72}" for part in parts)
    start = _key_part(key)
    if not isinstance(value, str):
        number = _number(value)
        # Numbers are right-aligned to column 30, unless the key is long.
        text = start + (number if start.startswith("HIERARCH") else f"{number:>20}")
        return _with_comment(text, comment)
    quoted = value.replace("'", "''")
    room = CARD_SIZE - len(start) - 2
    if len(quoted) <= room:
        text = f"{start}'{quoted:<8}'"
        return _with_comment(text if start.startswith("HIERARCH") else f"{text:<30}", comment)
    cards = []
    rest = quoted
    while True:
        room = CARD_SIZE - len(start) - 2
        if len(rest) <= room:
            cards.append(_with_comment(f"{start}'{rest}'", comment if len(rest) < room - 3 else ""))
            return "".join(cards)
        cut = room - 1
        # A doubled quote stays together.
        if (len(rest[:cut]) - len(rest[:cut].rstrip("'"))) % 2:
            cut -= 1
        cards.append(f"{start}'{rest[:cut]}&'".ljust(CARD_SIZE))
        rest = rest[cut:]
        start = "CONTINUE  "


def _with_comment(text: str, comment: str) -> str:
    if comment:
        text = f"{text} / {comment}"
    return text[:CARD_SIZE].ljust(CARD_SIZE)


def header_bytes(cards: Iterable[Card]) -> bytes:
    """Return a header, padded to whole blocks."""
    text = "".join(format_card(*card) for card in cards) + "END".ljust(CARD_SIZE)
    raw = text.encode("ascii", "replace")
    return raw + b" " * (-len(raw) % BLOCK_SIZE)


def data_bytes(*parts: bytes) -> bytes:
    """Return data, padded to whole blocks."""
    raw = b"".join(parts)
    return raw + b"\0" * (-len(raw) % BLOCK_SIZE)


def primary_bytes() -> bytes:
    """Return the empty primary HDU that goes before tables."""
    return header_bytes(
        [
            ("SIMPLE", True, "file does conform to FITS standard"),
            ("BITPIX", 16, "number of bits per data pixel"),
            ("NAXIS", 0, "number of data axes"),
            ("EXTEND", True, "FITS dataset may contain extensions"),
            ("COMMENT", "  FITS (Flexible Image Transport System) format is defined in 'Astronomy", ""),
            ("COMMENT", "  and Astrophysics', volume 376, page 359; bibcode: 2001A&A...376..359H", ""),
        ]
    )


# ---- Reading ------------------------------------------------------------


@dataclass
class RawHdu:
    """Header and data of one HDU.

    Parameters
    ----------
    cards : `list` [`Card`]
        The header, without END.
    data : `numpy.ndarray`, (bytes,)
        The data without padding, dtype uint8.
    """

    cards: list[Card]
    data: np.ndarray
    keys: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = {}
        for key, value, _ in self.cards:
            self.keys.setdefault(key, value)


def _parse_number(text: str) -> Any:
    if not text:
        return None
    if text == "T":
        return True
    if text == "F":
        return False
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text.replace("D", "E").replace("d", "e"))
    except ValueError:
        return text


def parse_header(text: str) -> list[Card]:
    """Return the cards of a header up to END.

    Parameters
    ----------
    text : `str`
        The header, a multiple of 80 characters.
    """
    cards: list[Card] = []
    continued: list[str] = []
    for start in range(0, len(text), CARD_SIZE):
        card = text[start : start + CARD_SIZE]
        key = card[:8].rstrip()
        if key == "END":
            break
        if key == "CONTINUE" and cards and isinstance(cards[-1][1], str):
            match = _STRING_VALUE.match(card[8:])
            if match:
                if not continued:
                    continued = [cards[-1][1]]
                piece = match[1].replace("''", "'")
                previous = continued[-1]
                if previous.endswith("&"):
                    continued[-1] = previous[:-1]
                continued.append(piece)
                last_key, _, comment = cards[-1]
                more = (match[2] or "").rstrip()
                # A word that fills the card before goes on.
                gap = "" if text[start - 1] != " " else " "
                cards[-1] = (last_key, "".join(continued).rstrip(), (comment + gap + more).strip())
            continue
        continued = []
        if key == "HIERARCH" and "=" in card:
            key, _, rest = card[9:].partition("=")
            key = key.strip()
        elif card[8:10] == "= ":
            rest = card[10:]
        elif key in ("COMMENT", "HISTORY"):
            cards.append((key, card[8:].rstrip(), ""))
            continue
        else:
            continue
        match = _STRING_VALUE.match(rest)
        if match:
            value: Any = match[1].replace("''", "'").rstrip()
            comment = (match[2] or "").rstrip()
        else:
            body, _, comment = rest.partition("/")
            value = _parse_number(body.strip())
            comment = comment.strip()
        cards.append((key, value, comment))
    return cards


def _find_end(buffer: bytes | memoryview, start: int) -> int:
    """Return where the header that begins at ``start`` ends, -1 if never."""
    position = start
    while position < len(buffer):
        block = bytes(buffer[position : position + BLOCK_SIZE])
        for i in range(0, len(block), CARD_SIZE):
            if block[i : i + 8] == b"END     ":
                return position + BLOCK_SIZE
        position += BLOCK_SIZE
    return -1


def scan(buffer: bytes) -> list[RawHdu]:
    """Return all HDUs of a file.

    Raises
    ------
    lsst.afw.fits.FitsError
        Raised if this is no FITS file or it is cut short.
    """
    from lsst.afw.fits import FitsError

    if buffer[:9] != b"SIMPLE  =":
        raise FitsError("not a FITS file: it does not begin with SIMPLE")
    hdus: list[RawHdu] = []
    position = 0
    while position < len(buffer):
        if position and buffer[position : position + 9] != b"XTENSION=":
            if buffer[position:].strip(b" \0"):
                raise FitsError(f"what follows HDU {len(hdus) - 1} is no HDU; the file is damaged")
            break
        end = _find_end(buffer, position)
        if end < 0:
            raise FitsError(f"the header of HDU {len(hdus)} has no END; the file is cut short")
        cards = parse_header(buffer[position:end].decode("ascii", "replace"))
        hdu = RawHdu(cards, np.zeros(0, dtype=np.uint8))
        size = _data_size(hdu.keys)
        if end + size > len(buffer):
            raise FitsError(
                f"HDU {len(hdus)} should have {size} bytes of data, but the file ends after "
                f"{len(buffer) - end}; it is cut short"
            )
        hdu.data = np.frombuffer(buffer, dtype=np.uint8, count=size, offset=end)
        hdus.append(hdu)
        position = end + size + (-size % BLOCK_SIZE)
    return hdus


def _data_size(keys: dict[str, Any]) -> int:
    """Return the bytes of data that a header declares."""

    def whole(key: str, default: int, most: float = math.inf) -> int:
        from lsst.afw.fits import FitsError

        value = keys.get(key, default)
        if type(value) is not int or not 0 <= value <= most:
            raise FitsError(f"{key} is {value!r:.40}, wanted a whole number from 0 to {most}")
        return value

    sides = [whole(f"NAXIS{i}", 0) for i in range(1, whole("NAXIS", 0, _MOST_AXES) + 1)]
    if not sides:
        return 0
    bits = keys.get("BITPIX", 8)
    size = abs(bits) // 8 if isinstance(bits, int) else 0
    return size * whole("GCOUNT", 1) * (whole("PCOUNT", 0) + math.prod(sides))


def check_sizes(buffer: Any) -> None:
    """Refuse a file with an HDU that declares far more data than the file has.

    One that is only cut short is left to those who read what is missing.

    Parameters
    ----------
    buffer : `bytes` or `mmap.mmap`
        The file.

    Raises
    ------
    lsst.afw.fits.FitsError
        Raised for such a file.
    """
    from lsst.afw.fits import FitsError

    position, number = 0, 0
    while position < len(buffer) and (end := _find_end(buffer, position)) > 0:
        size = _data_size(RawHdu(parse_header(buffer[position:end].decode("latin-1")), _NOTHING).keys)
        if size > _LARGEST_RATIO * len(buffer):
            raise FitsError(f"HDU {number} should have {size} bytes of data, the file has {len(buffer)}")
        position, number = end + size + (-size % BLOCK_SIZE), number + 1


def read_file(filename: Any) -> list[RawHdu]:
    """Return all HDUs of a file, which may be gzipped or in memory.

    Parameters
    ----------
    filename : `str` or `lsst.afw.fits.MemFileManager`
        Name of the file, or the file.

    Raises
    ------
    lsst.afw.fits.FitsError
        Raised if the file cannot be read or is no FITS file.
    """
    from lsst.afw.fits import FitsError

    if hasattr(filename, "getData"):
        return scan(bytes(filename.getData()))
    try:
        with open(filename, "rb") as stream:
            buffer = stream.read()
        if buffer[:2] == b"\x1f\x8b":
            buffer = gzip.decompress(buffer)
    except (OSError, EOFError) as error:
        raise FitsError(f"cannot open '{os.fspath(filename)}': {error}") from error
    try:
        return scan(buffer)
    except FitsError as error:
        raise FitsError(f"cannot read '{os.fspath(filename)}': {error.args[0]}") from error


def write_file(filename: Any, content: Callable[[bool], bytes], mode: str = "w") -> None:
    """Write HDUs to a file; a new file appears whole or not at all.

    Parameters
    ----------
    filename : `str` or `lsst.afw.fits.MemFileManager`
        Name of the file, or the file.
    content : callable
        Returns the bytes; its argument says whether a primary HDU is needed.
    mode : `str`, optional
        "w" to replace the file, "a" to add HDUs to it.

    Raises
    ------
    lsst.afw.fits.FitsError
        Raised if the file cannot be written.
    """
    from lsst.afw.fits import FitsError

    if mode not in ("w", "a"):
        raise FitsError(f"mode must be 'w' or 'a', got {mode!r}")
    if hasattr(filename, "setData"):
        before = bytes(filename.getData()) if mode == "a" else b""
        filename.setData(before + content(not before))
        return
    path = os.fspath(filename)
    try:
        if mode == "a":
            if not os.path.exists(path):
                raise FitsError(f"Could not append to FITS file '{path}': it does not exist.")
            with open(path, "ab") as stream:
                stream.write(content(False))
            return
        partial = f"{path}.part{os.getpid()}"
        try:
            with open(partial, "wb") as stream:
                stream.write(content(True))
            os.replace(partial, path)
        except BaseException:
            if os.path.exists(partial):
                os.remove(partial)
            raise
    except OSError as error:
        raise FitsError(f"cannot write '{path}': {error}") from error


# ---- To and from astropy ------------------------------------------------


def to_astropy(raw: bytes) -> Any:
    """Return the bytes of a binary table as an astropy HDU.

    The data are not touched until somebody asks for them, so that writing
    the HDU writes the same bytes.
    """
    from astropy.io import fits

    return fits.BinTableHDU.fromstring(raw)


def from_astropy(hdu: Any) -> RawHdu:
    """Return an astropy HDU as header and raw data."""
    none = np.zeros(0, dtype=np.uint8)
    # The raw bytes, as columns that astropy has converted do not serve.
    cards = parse_header(hdu.header.tostring(padding=False))
    size = _data_size(RawHdu(cards, none).keys)
    if hdu._file is not None:
        data = hdu._get_raw_data(size, "u1", hdu._data_offset) if size else none
        return RawHdu(cards, np.asarray(data).ravel())
    if hdu._buffer is not None:
        # Writing such an HDU changes the offsets it knows, not its buffer.
        start = _find_end(hdu._buffer, 0)
        return RawHdu(cards, np.frombuffer(hdu._buffer, dtype=np.uint8, count=size, offset=start))
    from astropy.io import fits

    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu.copy()]).writeto(stream, output_verify="silentfix")
    return scan(stream.getvalue())[1]
