# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Time to write and read an exposure of the size of a patch.

Run it as a script; it prints seconds and fails if the plain file takes two
seconds or more to read.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import lsst.afw.image as afwImage
import lsst.geom as geom
from lsst.afw.fits import CompressionOptions

LIMIT = 2.0
"""Seconds that reading an uncompressed exposure may take."""


def make_exposure(size: int) -> afwImage.ExposureF:
    """Make an exposure of noise, which compresses badly.

    Parameters
    ----------
    size : `int`
        Width and height (pixels).

    Returns
    -------
    exposure : `lsst.afw.image.ExposureF`
        The exposure.
    """
    rng = np.random.default_rng(1)
    exposure = afwImage.ExposureF(geom.Box2I(geom.Point2I(12000, 8000), geom.Extent2I(size, size)))
    exposure.image.array[:] = rng.normal(size=(size, size))
    exposure.variance.array[:] = rng.normal(1.0, 0.01, size=(size, size))
    exposure.mask.array[:] = np.where(rng.random((size, size)) < 0.05, 32, 0)
    exposure.setPhotoCalib(afwImage.PhotoCalib(57.5))
    return exposure


def best_of(repeats: int, work: Callable[[], object]) -> float:
    """Return the shortest of several run times (s)."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> int:
    """Print the times; return 1 if reading is too slow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=3400, help="width and height in pixels")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many runs counts")
    args = parser.parse_args()
    exposure = make_exposure(args.size)
    options = CompressionOptions()
    box = geom.Box2I(geom.Point2I(12100, 8100), geom.Extent2I(256, 256))
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = str(Path(folder) / "plain.fits"), str(Path(folder) / "packed.fits")
        written = best_of(1, lambda: exposure.writeFits(plain))
        written_packed = best_of(1, lambda: exposure.writeFits(packed, options, options, options))
        read = best_of(args.repeats, lambda: afwImage.ExposureF.readFits(plain))
        read_packed = best_of(args.repeats, lambda: afwImage.ExposureF.readFits(packed))
        part = best_of(args.repeats, lambda: afwImage.ExposureF(packed, bbox=box))
    print(f"{args.size} x {args.size} ExposureF:")
    print(f"  write                    {written:6.2f} s")
    print(f"  write, lossless GZIP_2   {written_packed:6.2f} s")
    print(f"  read                     {read:6.2f} s")
    print(f"  read, lossless GZIP_2    {read_packed:6.2f} s")
    print(f"  read 256 x 256, GZIP_2   {part:6.2f} s")
    return int(read >= LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
