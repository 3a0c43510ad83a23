# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Time to open a cell coadd of a patch through the Butler, and whether its sources are those of an ExposureF.

    python tests/benchmarks/bench_cell_coadd.py              # opening alone
    python tests/benchmarks/bench_cell_coadd.py --find       # sources as well, of both forms

The coadd has cells of 100 px, a PSF for each column of cells, noise, and a Gaussian star in every tenth cell.
Needs lsst.images (Python 3.12 or newer).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import test_rubin_images as small

PATCH = {"skymap": "sky", "tract": 0, "patch": 3}
CELL = 100


def make_coadd(side: int) -> Any:
    """A coadd with stars."""
    small.CELL = CELL
    coadd = small.make_coadd(side // CELL)
    rng = np.random.default_rng(1)
    for _ in range((side // CELL) ** 2 // 10):
        y, x = rng.uniform(20, side - 20, 2)
        fwhm = 3.0 + 0.4 * (int(x) // CELL)
        top, left = int(y) - 19, int(x) - 19
        rows, columns = np.mgrid[top : top + 40, left : left + 40]
        star = np.exp(-4.0 * np.log(2.0) * ((columns - x) ** 2 + (rows - y) ** 2) / fwhm**2)
        flux = 10.0 ** rng.uniform(2.5, 4.5)
        coadd.image.array[top : top + 40, left : left + 40] += (flux / star.sum() * star).astype(np.float32)
    return coadd


def main() -> None:
    """Run from the command line."""
    from lsst.afw.image import ExposureF, PhotoCalib
    from lsst.daf.butler import Butler
    from lsst.daf.butler.tests import addDatasetType
    from lsst.geom import Box2I, Extent2I, Point2I
    from lsst.meas.maskrcnn.catalogs.exposures import to_multiband_image
    from lsst.meas.maskrcnn.ingest.repo import PatchGeometry, create_repo, register_patches

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--side", type=int, default=3400, help="side of the coadd, a multiple of 100 (px)")
    parser.add_argument("--find", action="store_true", help="find the sources of both forms")
    arguments = parser.parse_args()
    coadd = make_coadd(arguments.side)
    box = Box2I(Point2I(12000, 8000), Extent2I(arguments.side, arguments.side))
    wcs = coadd.to_legacy().getWcs()
    with tempfile.TemporaryDirectory() as folder:
        create_repo(f"{folder}/repo")
        butler = Butler.from_config(f"{folder}/repo", run="coadds")
        register_patches(butler, "sky", [PatchGeometry(0, 3, wcs, box, (3, 0))], ["r"], instrument="cam")
        addDatasetType(butler, "deep_coadd", {*PATCH, "band"}, "CellCoadd")
        butler.put(coadd, "deep_coadd", {**PATCH, "band": "r"})
        for _ in range(3):
            wall, cpu = time.perf_counter(), time.process_time()
            exposure = butler.get("deep_coadd", {**PATCH, "band": "r"}, storageClass="ExposureF")
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"opening {arguments.side} x {arguments.side} px: {cpu:.2f} CPU s, {wall:.2f} s")
        if not arguments.find:
            return
        # Pixels are rounded where they are written.
        stored = butler.get("deep_coadd", {**PATCH, "band": "r"}, storageClass="CellCoadd")
    plain = ExposureF(box, wcs)
    plain.image.array[:], plain.variance.array[:] = stored.image.array, stored.variance.array
    for old, new in (("SAT", "SATURATED"), ("CR", "COSMIC_RAY"), ("NO_DATA", "NO_DATA")):
        plain.mask.array[stored.mask.get(new)] |= plain.mask.getPlaneBitMask(old)
    plain.setPsf(stored.psf.to_legacy())
    plain.setPhotoCalib(PhotoCalib(1.0))
    from lsst.meas.maskrcnn import find_sources, load_model
    from lsst.meas.maskrcnn.deblend.object_table import make_object_table

    model = load_model()
    tables = []
    for name, given in (("cell coadd", exposure), ("ExposureF", plain)):
        cpu = time.process_time()
        tables.append(make_object_table(find_sources(to_multiband_image({"r": given}), model)))
        print(f"{name}: {len(tables[-1])} sources in {time.process_time() - cpu:.0f} CPU s")
    for column in tables[0].colnames:
        np.testing.assert_array_equal(tables[0][column], tables[1][column], err_msg=column)
    print("All columns are equal to the bit.")


if __name__ == "__main__":
    main()
