# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pixels of image HDUs, plain and tile-compressed.

Tiles of whole rows that were compressed without loss with GZIP (the default
of the Butler) are packed and unpacked here, all rows at once where numpy can
and in threads where zlib can; astropy does all other kinds.
"""

from __future__ import annotations

__all__ = ["image_dtype", "image_shape", "is_image", "make_image_hdu", "read_pixels"]

import os
import sys
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from astropy.io import fits

from lsst.pex.exceptions import InvalidParameterError

from ._compression import CompressionAlgorithm, CompressionOptions, ScalingAlgorithm
from ._fits import append_cards

_OFFSETS = {
    (8, -128): np.int8,
    (16, 2**15): np.uint16,
    (32, 2**31): np.uint32,
    (64, 2**63): np.uint64,
}
"""Types that FITS stores with an offset, by BITPIX and BZERO."""

_BITPIX = {8: np.uint8, 16: np.int16, 32: np.int32, 64: np.int64, -32: np.float32, -64: np.float64}

_GZIP_LEVEL = 1
"""Speed counts more than the last few percent of size; CFITSIO's value."""

_GZIP_WINDOW = 31
"""Window bits that make zlib write a gzip header."""

_ANY_WINDOW = 47
"""Window bits that make zlib recognise gzip and zlib headers."""

_BLOCK = 2880


def is_compressed(hdu: Any) -> bool:
    """Tell whether a table HDU holds a compressed image."""
    return bool(hdu.header.get("ZIMAGE", False))


def is_image(hdu: Any) -> bool:
    """Tell whether an HDU holds an image, compressed or not."""
    return is_compressed(hdu) or hdu.header.get("XTENSION", "IMAGE").strip() == "IMAGE"


def image_shape(hdu: Any) -> tuple[int, ...]:
    """Return the shape of an image HDU, slowest axis first."""
    if not is_image(hdu):
        return ()
    prefix = "ZNAXIS" if is_compressed(hdu) else "NAXIS"
    header = hdu.header
    return tuple(int(header[f"{prefix}{i}"]) for i in range(int(header.get(prefix, 0)), 0, -1))


def _stored_type(hdu: Any) -> tuple[int, float, float]:
    """Return BITPIX, BZERO and BSCALE of an image HDU."""
    header = hdu.header
    bitpix = int(header["ZBITPIX"] if is_compressed(hdu) else header["BITPIX"])
    return bitpix, header.get("BZERO", 0), header.get("BSCALE", 1)


def image_dtype(hdu: Any) -> np.dtype:
    """Return the type that holds the pixels of an image HDU in memory."""
    bitpix, zero, scale = _stored_type(hdu)
    if zero == 0 and scale == 1:
        return np.dtype(_BITPIX[bitpix])
    if scale == 1 and (bitpix, int(zero)) in _OFFSETS:
        return np.dtype(_OFFSETS[bitpix, int(zero)])
    return np.dtype(np.float64 if bitpix in (32, 64, -64) else np.float32)


def _unscaled(raw: np.ndarray, hdu: Any) -> np.ndarray:
    """Apply BZERO and BSCALE to pixels as stored."""
    bitpix, zero, scale = _stored_type(hdu)
    dtype = image_dtype(hdu)
    if zero == 0 and scale == 1:
        return np.ascontiguousarray(raw, dtype=dtype)
    if dtype.kind in "iu":
        # Adding the offset is the same as flipping the highest bit.
        stored = np.dtype(f"u{dtype.itemsize}")
        flipped = np.ascontiguousarray(raw, dtype=raw.dtype.newbyteorder("=")).view(stored)
        return (flipped ^ stored.type(1 << (8 * dtype.itemsize - 1))).view(dtype)
    return (raw * np.float64(scale) + zero).astype(dtype)


def read_pixels(
    hdus: fits.HDUList, index: int, rows: slice, columns: slice, reopen: Callable[[], fits.HDUList]
) -> np.ndarray:
    """Read a part of the pixels of an image HDU.

    Parameters
    ----------
    hdus : `astropy.io.fits.HDUList`
        The file, opened without decompression or scaling of images.
    index : `int`
        Index of the HDU.
    rows, columns : `slice`
        The part.
    reopen : `~collections.abc.Callable`
        Opens the file with decompression.

    Returns
    -------
    pixels : `numpy.ndarray`
        The pixels, axes (y, x).
    """
    hdu = hdus[index]
    if rows.start == rows.stop or columns.start == columns.stop:
        return np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=image_dtype(hdu))
    leading = (0,) * (len(image_shape(hdu)) - 2)
    if not is_compressed(hdu):
        return _unscaled(hdu.section[(*leading, rows, columns)], hdu)
    if not leading and _has_gzip_rows(hdu):
        return _unscaled(_read_gzip_rows(hdu, rows)[:, columns], hdu)
    _check_rice(hdu.header)
    with reopen() as decompressed:
        return np.array(decompressed[index].section[(*leading, rows, columns)])


def _check_rice(header: fits.Header) -> None:
    """Refuse parameters with which astropy would read and write outside of its memory."""
    for key, name in header["ZNAME*"].items():
        wanted = {"BLOCKSIZE": (16, 32), "BYTEPIX": (1, 2, 4, 8)}.get(str(name).upper())
        value = header.get(f"ZVAL{key[5:]}")
        if wanted and value not in wanted:
            raise ValueError(f"{name} of the compression is {value}, wanted one of {wanted}")


def _has_gzip_rows(hdu: Any) -> bool:
    """Tell whether the tiles are whole rows, gzipped and not quantized."""
    header = hdu.header
    return (
        header.get("ZCMPTYPE") in ("GZIP_1", "GZIP_2")
        and hdu.columns.names == ["COMPRESSED_DATA"]
        and header.get("ZTILE1", header["ZNAXIS1"]) == header["ZNAXIS1"]
        and header.get("ZTILE2", 1) == 1
        and hdu.columns[0].format.lstrip("01")[:2] in ("PB", "QB")
    )


def _threads() -> int:
    """Return how many threads unpack at once."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _in_chunks(work: Callable[[int, int], Any], count: int) -> list[Any]:
    """Run ``work(start, stop)`` on equal parts of a range, in threads."""
    threads = min(_threads(), max(1, count // 64))
    edges = np.linspace(0, count, threads + 1).astype(int).tolist()
    if threads == 1:
        return [work(0, count)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, edges[:-1], edges[1:]))


def _read_gzip_rows(hdu: Any, rows: slice) -> np.ndarray:
    """Unpack rows of gzipped tiles.

    Parameters
    ----------
    hdu : `astropy.io.fits.BinTableHDU`
        The compressed image.
    rows : `slice`
        The rows.

    Returns
    -------
    pixels : `numpy.ndarray`
        Pixels as stored, without scaling.
    """
    header = hdu.header
    width = int(header["ZNAXIS1"])
    stored = np.dtype(_BITPIX[int(header["ZBITPIX"])]).newbyteorder(">")
    row_size = width * stored.itemsize
    # The raw bytes of the table: astropy would make an object of each tile.
    data = hdu._get_raw_data(hdu._data_size, np.uint8, hdu._data_offset)
    heap = int(header.get("THEAP", header["NAXIS1"] * header["NAXIS2"]))
    kind = ">i8" if hdu.columns[0].format.lstrip("01").startswith("Q") else ">i4"
    descriptors = data[: header["NAXIS1"] * header["NAXIS2"]].view(kind).reshape(-1, 2).astype(np.int64)
    tiles = descriptors[rows]
    packed = np.empty((len(tiles), row_size), dtype=np.uint8)

    def unpack(start: int, stop: int) -> None:
        for i in range(start, stop):
            size, offset = tiles[i]
            begin = heap + offset
            raw = zlib.decompress(data[begin : begin + size], _ANY_WINDOW, row_size)
            if len(raw) != row_size:
                raise OSError(f"tile {i} has {len(raw)} bytes, {row_size} are needed")
            packed[i] = np.frombuffer(raw, dtype=np.uint8)

    try:
        _in_chunks(unpack, len(tiles))
    except zlib.error as error:
        raise OSError(f"a tile cannot be decompressed: {error}") from error
    if header["ZCMPTYPE"] == "GZIP_1":
        return packed.view(stored)
    # The first bytes of all pixels come first, then the second ones, ...
    planes = packed.reshape(len(tiles), stored.itemsize, width)
    if sys.byteorder == "little":
        # Swapping here saves another pass over the pixels.
        planes, stored = planes[:, ::-1], stored.newbyteorder("<")
    pixels = np.empty((len(tiles), width, stored.itemsize), dtype=np.uint8)
    # One byte at a time is faster than a transposed copy.
    for i in range(stored.itemsize):
        pixels[:, :, i] = planes[:, i]
    return pixels.reshape(len(tiles), row_size).view(stored)


def make_image_hdu(
    array: np.ndarray,
    cards: Sequence[fits.Card],
    options: CompressionOptions | None,
    primary: bool = False,
) -> Any:
    """Make an image HDU.

    Parameters
    ----------
    array : `numpy.ndarray`
        Pixels, axes (y, x).
    cards : `~collections.abc.Sequence` [`astropy.io.fits.Card`]
        Header keys.
    options : `CompressionOptions` or `None`
        How to compress; `None` does not compress.
    primary : `bool`, optional
        Whether the HDU is the first of a file.

    Returns
    -------
    hdu : `astropy.io.fits.ImageHDU`, `astropy.io.fits.CompImageHDU` or \
            `astropy.io.fits.BinTableHDU`
        The HDU.

    Raises
    ------
    lsst.pex.exceptions.InvalidParameterError
        Raised for RICE_1 on floats without quantization, or quantization of
        integers.
    """
    if options is None or array.size == 0:
        # A copy keeps the writer from swapping the bytes of the caller.
        pixels = np.array(array, order="C")
        hdu: Any = fits.PrimaryHDU(pixels) if primary else fits.ImageHDU(pixels)
        append_cards(hdu.header, cards)
        return hdu
    floating = array.dtype.kind == "f"
    if floating and options.quantization is None and options.algorithm is CompressionAlgorithm.RICE_1:
        raise InvalidParameterError("RICE_1 compression of floating point images requires quantization.")
    if not floating and options.quantization is not None:
        raise InvalidParameterError("Quantization cannot be used on integer images.")
    height, width = array.shape
    tile = (options.tile_height or height, options.tile_width or width)
    gzip = options.algorithm in (CompressionAlgorithm.GZIP_1, CompressionAlgorithm.GZIP_2)
    if gzip and options.quantization is None and tile == (1, width):
        return _make_gzip_rows(array, cards, options.algorithm is CompressionAlgorithm.GZIP_2)
    settings: dict[str, Any] = {"quantize_level": 0.0}
    if options.quantization is not None:
        quantization = options.quantization
        # Below 0 it is the step itself, above the steps in a standard deviation.
        manual = quantization.scaling is ScalingAlgorithm.MANUAL
        settings = {
            "quantize_level": -quantization.level if manual else quantization.level,
            "quantize_method": {0: -1, 1: 1, 2: 2}[quantization.dither.value],
            "dither_seed": quantization.seed,
        }
    hdu = fits.CompImageHDU(
        np.array(array, order="C"), compression_type=options.algorithm.name, tile_shape=tile, **settings
    )
    append_cards(hdu.header, cards)
    return hdu


def _make_gzip_rows(array: np.ndarray, cards: Sequence[fits.Card], shuffle: bool) -> fits.BinTableHDU:
    """Pack an image into tiles of one gzipped row each, without loss.

    Parameters
    ----------
    array : `numpy.ndarray`
        Pixels, axes (y, x).
    cards : `~collections.abc.Sequence` [`astropy.io.fits.Card`]
        Header keys.
    shuffle : `bool`
        Whether to put the first bytes of all pixels first, then the second
        ones, and so on (GZIP_2), which packs better.

    Returns
    -------
    hdu : `astropy.io.fits.BinTableHDU`
        The table that holds the compressed image.
    """
    height, width = array.shape
    zero = 0
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        zero = 1 << (8 * array.dtype.itemsize - 1)
        signed = np.dtype(f"i{array.dtype.itemsize}")
        array = (array ^ array.dtype.type(zero)).view(signed)
    size = array.dtype.itemsize
    stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder(">")).view(np.uint8)
    stored = stored.reshape(height, width * size)
    if shuffle:
        planes = np.empty((height, size, width), dtype=np.uint8)
        for i in range(size):
            planes[:, i] = stored[:, i::size]
        stored = planes.reshape(height, width * size)

    def pack(start: int, stop: int) -> list[bytes]:
        result = []
        for i in range(start, stop):
            packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
            result.append(packer.compress(stored[i]) + packer.flush())
        return result

    tiles = [tile for chunk in _in_chunks(pack, height) for tile in chunk]
    sizes = np.array([len(tile) for tile in tiles], dtype=np.int64)
    offsets = np.cumsum(sizes) - sizes
    total = int(sizes.sum())
    wide = total >= 2**31
    descriptors = np.stack([sizes, offsets], axis=1).astype(">i8" if wide else ">i4")

    header = fits.Header()
    for key, value, comment in (
        ("XTENSION", "BINTABLE", "binary table extension"),
        ("BITPIX", 8, "8-bit bytes"),
        ("NAXIS", 2, "2-dimensional binary table"),
        ("NAXIS1", 16 if wide else 8, "width of table in bytes"),
        ("NAXIS2", height, "number of rows in table"),
        ("PCOUNT", total, "size of special data area"),
        ("GCOUNT", 1, "one data group (required keyword)"),
        ("TFIELDS", 1, "number of fields in each row"),
        ("TTYPE1", "COMPRESSED_DATA", "label for field   1"),
        ("TFORM1", f"1{'Q' if wide else 'P'}B({sizes.max()})", "data format of field: variable length array"),
        ("ZIMAGE", True, "extension contains compressed image"),
        ("ZTENSION", "IMAGE", "Image extension"),
        ("ZBITPIX", _bitpix(array.dtype), "data type of original image"),
        ("ZNAXIS", 2, "dimension of original image"),
        ("ZNAXIS1", width, "length of original image axis"),
        ("ZNAXIS2", height, "length of original image axis"),
        ("ZPCOUNT", 0, "size of special data area"),
        ("ZGCOUNT", 1, "one data group (required keyword)"),
        ("ZTILE1", width, "size of tiles to be compressed"),
        ("ZTILE2", 1, "size of tiles to be compressed"),
        ("ZCMPTYPE", "GZIP_2" if shuffle else "GZIP_1", "compression algorithm"),
    ):
        header.append((key, value, comment), end=True)
    if array.dtype.kind == "f":
        header.append(("ZQUANTIZ", "NONE", "Lossless compression without quantization"), end=True)
    if zero:
        header.append(("BZERO", zero, "offset data range to that of unsigned integers"), end=True)
        header.append(("BSCALE", 1, "default scaling factor"), end=True)
    append_cards(header, cards)
    parts = [header.tostring().encode("ascii"), descriptors.tobytes(), *tiles]
    padding = -(descriptors.nbytes + total) % _BLOCK
    # From bytes, so that the tiles are written as they are.
    return fits.BinTableHDU.fromstring(b"".join([*parts, bytes(padding)]))


def _bitpix(dtype: np.dtype) -> int:
    """Return the BITPIX of a type."""
    return -8 * dtype.itemsize if dtype.kind == "f" else 8 * dtype.itemsize
