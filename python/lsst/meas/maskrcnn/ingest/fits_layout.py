# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sizes that FITS files declare, checked before any memory is taken for them."""

from __future__ import annotations

import bz2
import gzip
import math
import os
import re
from pathlib import Path
from typing import BinaryIO

_Stream = BinaryIO | gzip.GzipFile | bz2.BZ2File

_BLOCK, _CARD = 2880, 80

_MOST_BLOCKS, _MOST_HDUS = 300, 500
"""Blocks of a header, of 36 cards each, and HDUs of a file: headers of stacks have 3,000 cards, cameras 200
HDUs; astropy takes 0.1 ms for a card and some ms for an HDU."""

_PACKED = {b"\x1f\x9d": "compress", b"\xfd7": "xz", b"PK": "zip", b"\x28\xb5": "zstd"}

_SIZE_KEY = re.compile(r"Z?(NAXIS\d*|BITPIX|GCOUNT|PCOUNT)$|Z(TILE|NAME|VAL)\d+$")

_PARAMETERS = {"BLOCKSIZE": (16, 32), "BYTEPIX": (1, 2, 4, 8)}
"""Values that parameters of Rice's compression may have, as the FITS standard has them. What unpacks pixels
takes others as they are, and reads and writes where it should not."""

_MOST_AXES, _MOST_FIELDS = 999, 999
"""As the FITS standard has them."""

_SMALL_TILE = 100_000
"""Pixels of a tile that may be larger than its image."""

_LARGEST_RATIO, _ALWAYS_READ = 100, 400_000_000
"""Times its own size that a compressed file may unpack to, and bytes that any may: blank images pack well."""


def check_layout(path: Path, most_hdus: int = _MOST_HDUS) -> None:
    """Check that a FITS file has the sizes that its headers declare.

    Parameters
    ----------
    path : `pathlib.Path`
        The file, which may be compressed as a whole (gzip, bzip2).
    most_hdus : `int`, optional
        HDUs that it may have.

    Raises
    ------
    OSError
        Raised if the file cannot be read.
    ValueError
        Raised if a header declares what the file does not have, or what
        cannot be; the message begins with "HDU n".
    """
    size = os.path.getsize(path)
    limit = max(_ALWAYS_READ, _LARGEST_RATIO * size)
    with path.open("rb") as stream:
        start = stream.read(2)
        stream.seek(0)
        if start in _PACKED:
            raise ValueError(f"it is packed by {_PACKED[start]}; unpack it, or pack it by gzip or bzip2")
        if start not in (b"\x1f\x8b", b"BZ"):
            _check_hdus(stream, size, limit, most_hdus)
            return
        with bz2.open(stream) if start == b"BZ" else gzip.open(stream) as unpacked:
            _check_hdus(unpacked, _unpacked_size(unpacked, limit), limit, most_hdus)


def _unpacked_size(stream: _Stream, limit: int) -> int:
    size = 0
    while piece := stream.read(1_000_000):
        size += len(piece)
        if size > limit:
            raise ValueError(f"it unpacks to more than {limit} bytes, which no image of its size does")
    stream.seek(0)
    return size


def _check_hdus(stream: _Stream, size: int, limit: int, most_hdus: int) -> None:
    """Go through the headers of a file of some size (bytes)."""
    position, number = 0, 0
    while position < size:
        stream.seek(position)
        cards, length = _read_header(stream, number)
        if cards is None:
            return
        if number >= most_hdus:
            raise ValueError(f"it has more than {most_hdus} HDUs")
        wanted = _data_size(cards, number)
        _check_compressed(cards, number, limit)
        position += length + wanted
        if position > size:
            raise ValueError(
                f"HDU {number} should have {wanted} bytes of data, the file ends after "
                f"{size - (position - wanted)}; it is cut short or damaged"
            )
        position += -position % _BLOCK
        number += 1


def _read_header(stream: _Stream, number: int) -> tuple[dict[str, str] | None, int]:
    """Read the first value of every key; nothing where no HDU begins."""
    cards: dict[str, str] = {}
    for count in range(1, _MOST_BLOCKS + 1):
        block = stream.read(_BLOCK).decode("latin-1")
        if count == 1 and not block.startswith("XTENSION" if number else "SIMPLE"):
            if not number:
                raise ValueError(f"it begins with {block[:8]!r}, wanted SIMPLE")
            return None, 0
        for start in range(0, len(block), _CARD):
            card = block[start : start + _CARD]
            key = card[:8].rstrip().upper()
            if key == "END":
                return cards, count * _BLOCK
            if card[8:9] == "=":
                value = card[9:].partition("/")[0].strip()
                if cards.setdefault(key, value) != value and _SIZE_KEY.match(key):
                    raise ValueError(f"HDU {number} has {key} = {cards[key]:.30} and {value:.30}")
        if len(block) < _BLOCK:
            raise ValueError(f"HDU {number} has a header without END; the file is cut short")
    raise ValueError(f"HDU {number} has a header of more than {_MOST_BLOCKS * 36} cards")


def _whole(cards: dict[str, str], key: str, number: int, default: int, most: float = math.inf) -> int:
    text = cards.get(key, str(default))
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        wanted = "a whole number from 0" + (f" to {most:g}" if math.isfinite(most) else "")
        raise ValueError(f"HDU {number} has {key} = {text[:30]}, wanted {wanted}")
    return value


def _data_size(cards: dict[str, str], number: int) -> int:
    """Bytes of data without padding."""
    n_axes = _whole(cards, "NAXIS", number, 0, _MOST_AXES)
    sides = [_whole(cards, f"NAXIS{axis}", number, 0) for axis in range(1, n_axes + 1)]
    _whole(cards, "TFIELDS", number, 0, _MOST_FIELDS)
    if not sides:
        return 0
    if sides[0] == 0 and cards.get("GROUPS") == "T":
        sides = sides[1:]
    bits = cards.get("BITPIX", "8")
    if bits not in ("8", "16", "32", "64", "-32", "-64"):
        raise ValueError(f"HDU {number} has BITPIX = {bits[:30]}, wanted 8, 16, 32, 64, -32 or -64")
    groups = _whole(cards, "GCOUNT", number, 1)
    return abs(int(bits)) // 8 * groups * (_whole(cards, "PCOUNT", number, 0) + math.prod(sides))


def _check_compressed(cards: dict[str, str], number: int, limit: int) -> None:
    """Check the tiles of a compressed image against the rows of its table."""
    if cards.get("ZIMAGE") != "T":
        return
    for key, name in cards.items():
        if re.match(r"ZNAME\d+$", key) and (wanted := _PARAMETERS.get(name.strip("' ").upper())):
            value = _whole(cards, f"ZVAL{key[5:]}", number, 0)
            if value not in wanted:
                choice = " or ".join(map(str, wanted))
                raise ValueError(f"HDU {number} is compressed with {name} = {value}, wanted {choice}")
    n_axes = _whole(cards, "ZNAXIS", number, 0, _MOST_AXES)
    sides = [_whole(cards, f"ZNAXIS{axis}", number, 0) for axis in range(1, n_axes + 1)]
    defaults = [side if axis == 0 else 1 for axis, side in enumerate(sides)]
    tiles = [_whole(cards, f"ZTILE{axis}", number, default) for axis, default in enumerate(defaults, 1)]
    rows = _whole(cards, "NAXIS2", number, 0)
    count = math.prod(-(-side // max(tile, 1)) for side, tile in zip(sides, tiles))
    large = math.prod(tiles) > 4 * math.prod(sides) + _SMALL_TILE
    if count != rows or large or 0 in tiles:
        raise ValueError(
            f"HDU {number} has an image of {' x '.join(map(str, sides[:9]))} px in tiles of "
            f"{' x '.join(map(str, tiles[:9]))} px, which are {count} and not the {rows} rows of its table"
        )
    if (unpacked := 8 * math.prod(sides)) > limit:
        raise ValueError(f"HDU {number} unpacks to {unpacked} bytes, more than {limit}")
