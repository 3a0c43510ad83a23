# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Cell coadds of lsst.images, read without a Butler."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.wcs import WCS

from lsst.meas.maskrcnn.ingest.fits_files import BandFiles, FitsImageError, assign_bands
from lsst.meas.maskrcnn.ingest.fits_images import FitsOptions, read_field
from lsst.meas.maskrcnn.ingest.read_images import read_images

needs_images = pytest.mark.skipif(
    importlib.util.find_spec("lsst.images") is None,
    reason="lsst.images is not installed: pip install 'lsst-meas-maskrcnn[rubin]' (Python 3.12 or newer)",
)
CELL = 20


def gaussian(fwhm: float) -> np.ndarray:
    y, x = np.mgrid[-12:13, -12:13]
    kernel = np.exp(-4.0 * np.log(2.0) * (x**2 + y**2) / fwhm**2)
    return kernel / kernel.sum()


def make_coadd(
    cells: int, band: str = "r", missing: tuple[tuple[int, int], ...] = (), shift: float = 0.0
) -> Any:
    """A coadd of cells x cells, far from the origin, with a wider PSF in each next column of cells."""
    from astropy.units import nJy

    from lsst.images import Box, Image, Mask, MaskPlane, MaskSchema, SkyProjection, TractFrame
    from lsst.images.cells import CellCoadd, CellGrid, CellGridBounds, CellIJ, CellPointSpreadFunction

    side = cells * CELL
    box = Box.factory[8000 : 8000 + side, 12000 : 12000 + side]
    header = WCS(naxis=2)
    header.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    header.wcs.crval, header.wcs.crpix = [150.0 + shift, 2.2], [side / 2, side / 2]
    header.wcs.cd = np.diag([-0.2, 0.2]) / 3600.0
    projection = SkyProjection.from_fits_wcs(
        header, TractFrame(skymap="sky", tract=3, bbox=box), x0=12000, y0=8000
    )
    schema = MaskSchema([MaskPlane(name, name) for name in ("NO_DATA", "SATURATED", "COSMIC_RAY")])
    mask = Mask(0, schema=schema, bbox=box)
    mask.set("SATURATED", np.indices((side, side))[0] == 3)
    pixels = np.random.default_rng(cells).normal(0.0, 2.0, (side, side)).astype(np.float32)
    grid = CellGrid(bbox=box, cell_shape={"y": CELL, "x": CELL})
    gone = frozenset(CellIJ(i=i, j=j) for i, j in missing)
    for i, j in missing:
        cut = np.s_[i * CELL : (i + 1) * CELL, j * CELL : (j + 1) * CELL]
        pixels[cut] = np.nan
    bounds = CellGridBounds(grid=grid, bbox=box, missing=gone)
    kernels = np.array([[gaussian(3.0 + 0.4 * j) for j in range(cells)] for _ in range(cells)])
    return CellCoadd(
        Image(pixels, bbox=box, unit=nJy),
        mask=mask,
        variance=Image(np.full((side, side), 4.0, np.float32), bbox=box, unit=nJy**2),
        sky_projection=projection,
        band=band,
        psf=CellPointSpreadFunction(kernels, bounds),
    )


def write(coadd: Any, path: Path) -> Path:
    from lsst.images.serialization import write_archive

    write_archive(coadd, path)
    return path


@needs_images
@pytest.mark.parametrize(("cells", "suffix"), [(2, "fits"), (3, "fits"), (2, "json")])
def test_pixels_and_psf_are_those_of_the_cells(cells, suffix, tmp_path):
    coadd = make_coadd(cells)
    path = write(coadd, tmp_path / f"r.{suffix}")
    image = read_images({"r": path})
    np.testing.assert_allclose(image.flux[0], coadd.image.array, atol=0.02)
    np.testing.assert_allclose(image.variance[0], 4.0, rtol=1e-3)
    assert image.saturated[0, 3].all() and image.bad[0, 3].all() and not image.saturated[0, 4].any()
    assert image.pixel_scale == pytest.approx(0.2, rel=1e-6)
    for column in range(cells):
        psf = image.psf_image(0, 5.0, column * CELL + 7.0)
        np.testing.assert_allclose(psf, gaussian(3.0 + 0.4 * column), atol=1e-6)
    ra, dec = image.to_sky([4.0, 30.0], [7.0, 21.0])
    sky = coadd.sky_projection.pixel_to_sky(x=np.array([12004.0, 12030.0]), y=np.array([8007.0, 8021.0]))
    np.testing.assert_allclose(ra, sky.ra.deg, atol=1e-9)
    np.testing.assert_allclose(dec, sky.dec.deg, atol=1e-9)


@needs_images
def test_cells_that_are_missing_have_no_data_and_the_usual_psf(tmp_path):
    image = read_images({"r": write(make_coadd(3, missing=((1, 1), (0, 2))), tmp_path / "r.fits")})
    assert not image.usable[0, 20:40, 20:40].any() and image.usable[0, :20, :40].all()
    inside, beside = image.psf_image(0, 30.0, 30.0), image.psf_image(0, 30.0, 10.0)
    assert np.isfinite(inside).all() and inside.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(beside, gaussian(3.0), atol=1e-6)


@needs_images
def test_coadds_that_do_not_fit_are_refused(tmp_path):
    r, g = write(make_coadd(2), tmp_path / "r.fits"), write(make_coadd(2, "g"), tmp_path / "g.fits")
    assert read_images({"g": g, "r": r}).bands == ("g", "r")
    with pytest.raises(FitsImageError, match="is of band r, and is given for g"):
        read_images({"g": r})
    assert assign_bands([r, g], [], fixed=False) == (["r", "g"], [])
    moved = write(make_coadd(2, "g", shift=1e-4), tmp_path / "moved.fits")
    with pytest.raises(FitsImageError, match="one pixel grid"):
        read_images({"r": r, "g": moved})
    with pytest.raises(FitsImageError, match="has no background 'wide'; it has none"):
        read_images({"r": r}, FitsOptions(background="wide"))
    cut = tmp_path / "cut.fits"
    cut.write_bytes(r.read_bytes()[:20000])
    with pytest.raises(FitsImageError, match="cut.fits"):
        read_images({"r": cut})


@needs_images
@pytest.mark.parametrize("form", ["as_shipped", "canonical"])
def test_public_coadds(form, shared_data: Path):
    path = shared_data / "cell_coadd" / f"cc-{form}.json"
    field = read_field({"r": BandFiles(path)})
    image = field.images["r"]
    assert field.shape == (12, 12) and image.psf.shape == (5, 5)
    # One of its four cells is missing.
    assert np.isnan(image.pixels).sum() == 36
    assert {"CR", "SAT", "INTRP", "EDGE", "NO_DATA"} <= set(image.planes)


@pytest.mark.skipif(importlib.util.find_spec("lsst.images") is not None, reason="lsst.images is installed")
def test_what_to_install_is_said(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("{}")
    with pytest.raises(FitsImageError, match="pip install 'lsst-meas-maskrcnn"):
        read_images({"r": path})
