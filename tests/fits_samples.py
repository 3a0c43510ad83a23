# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""FITS images of stars and galaxies for tests of their readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits

from lsst.meas.maskrcnn.ingest.fits_files import BandFiles
from lsst.meas.maskrcnn.ingest.fits_images import FitsOptions, read_field

SHAPE = (112, 144)
SCALE = 0.2
SIGMA = {"g": 12.0, "r": 17.0, "z": 35.0}


def header(scale: float = SCALE, **cards) -> fits.Header:
    result = fits.Header()
    values = {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRVAL1": 150.1,
        "CRVAL2": 2.2,
        "CRPIX1": 72.5,
        "CRPIX2": 56.5,
        "CD1_1": -scale / 3600,
        "CD1_2": 0.0,
        "CD2_1": 0.0,
        "CD2_2": scale / 3600,
        "MAGZERO": 31.4,
    }
    result.update({**values, **cards})
    for key in [key for key, value in result.items() if value == "none"]:
        del result[key]
    return result


def moffat(shape, y, x, flux, fwhm, beta=3.0):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    scale = 0.5 * fwhm / np.sqrt(2.0 ** (1.0 / beta) - 1.0)
    profile = (1.0 + ((rows - y) ** 2 + (columns - x) ** 2) / scale**2) ** -beta
    return flux * (beta - 1.0) / (np.pi * scale**2) * profile


def star_field(rng, sigma=10.0, fwhm=4.0, shape=SHAPE, n_stars=6, n_galaxies=4):
    """Stars and galaxies on a jittered grid; galaxies are Moffat profiles of other widths."""
    image = rng.normal(0.0, sigma, shape)
    step = max(24, int(4.0 * fwhm))
    places = [(y, x) for y in range(step // 2, shape[0], step) for x in range(step // 2, shape[1], step)]
    chosen = rng.permutation(len(places))[: n_stars + n_galaxies]
    for number, place in enumerate(chosen):
        y, x = np.array(places[place]) + rng.uniform(-3, 3, 2)
        width = fwhm if number < n_stars else fwhm * rng.uniform(1.5, 3.0)
        image += moffat(shape, y, x, 10 ** rng.uniform(2.0, 2.8) * sigma * fwhm, width)
    return image


def write(folder: Path, images, head=None, name="{band}.fits", **companions):
    """Write images with extensions; a header for all, or by band."""
    files = {}
    for band, image in images.items():
        cards = head[band] if isinstance(head, dict) else head if head is not None else header()
        files[band] = folder / name.format(band=band)
        image = np.asarray(image, np.float32)
        if not companions:
            fits.writeto(files[band], image, cards, overwrite=True)
            continue
        hdus = [fits.PrimaryHDU(), fits.ImageHDU(image, cards, name="SCI")]
        for extension, (values, extra) in companions.items():
            hdus.append(fits.ImageHDU(values, name=extension))
            hdus[-1].header.update(extra)
        fits.HDUList(hdus).writeto(files[band], overwrite=True)
    return files


def read(files, **options):
    return read_field({band: BandFiles(path) for band, path in files.items()}, FitsOptions(**options))


def noise(result, band="r"):
    image = result.images[band]
    return float(np.sqrt(np.nanmedian(image.variance))) * image.nanojansky_per_count
