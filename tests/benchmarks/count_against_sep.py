# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many `sep` detections a catalogue has, and how many of its own.

    python tests/benchmarks/count_against_sep.py CATALOG.fits r.fits [--sigma 5]

``sep`` (SExtractor's algorithm) works on the image of one band with its default
deblending; a detection is five connected pixels above the threshold. Both lists
are matched one to one by ascending distance, within 5 px.
"""

from __future__ import annotations

import argparse

import numpy as np
import sep
from astropy.io import fits

from lsst.afw.table import SourceCatalog
from lsst.meas.maskrcnn.compare.comparison import match_positions


def read_image(path: str) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
    """Read the first image of a FITS file, its origin and bad pixels."""
    with fits.open(path) as hdus:
        hdu = next(h for h in hdus if h.data is not None and h.data.ndim == 2)
        data = np.ascontiguousarray(hdu.data, dtype=np.float32)
        origin = (-int(hdu.header.get("LTV1", 0)), -int(hdu.header.get("LTV2", 0)))
    bad = ~np.isfinite(data)
    data[bad] = 0.0
    return data, origin, bad


def main() -> None:
    """Count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("catalog")
    parser.add_argument("image")
    parser.add_argument("--sigma", type=float, default=5.0)
    parser.add_argument("--radius", type=float, default=5.0)
    arguments = parser.parse_args()
    data, (x0, y0), bad = read_image(arguments.image)
    background = sep.Background(data, mask=bad)
    found = sep.extract(data - background, arguments.sigma, err=background.globalrms, mask=bad)
    theirs = np.stack([found["x"] + x0, found["y"] + y0], axis=1)
    catalog = SourceCatalog.readFits(arguments.catalog)
    ours = np.stack([catalog.getX(), catalog.getY()], axis=1)
    if "deblend_nChild" in catalog.schema.getNames():
        ours = ours[np.asarray(catalog["deblend_nChild"]) == 0]
    both = np.count_nonzero(match_positions(theirs, ours, arguments.radius)[0] >= 0)
    print(
        f"sep {arguments.sigma:g} sigma: {len(theirs)}; found by us: {both} "
        f"({100 * both / max(len(theirs), 1):.0f} %); "
        f"ours: {len(ours)}, without counterpart: {len(ours) - both}"
    )


if __name__ == "__main__":
    main()
