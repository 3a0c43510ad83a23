# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""FITS files to the pixels that the engine takes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from lsst.afw.image import ExposureF
from lsst.meas.maskrcnn.catalogs.exposures import to_multiband_image
from lsst.meas.maskrcnn.ingest.exposures import field_to_exposures
from lsst.meas.maskrcnn.ingest.fits_files import BandFiles, FitsImageError, assign_bands
from lsst.meas.maskrcnn.ingest.fits_images import FitsOptions, read_field
from lsst.meas.maskrcnn.ingest.read_images import read_images

SHAPE = (70, 90)
SCALE = 0.262


def tan_wcs() -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [197.86, -1.41]
    wcs.wcs.crpix = [0.5 * (SHAPE[1] + 1), 0.5 * (SHAPE[0] + 1)]
    wcs.wcs.cdelt = [-SCALE / 3600, SCALE / 3600]
    return wcs


@pytest.fixture
def fits_files(tmp_path, rng) -> dict[str, Path]:
    """Three images of 90 x 70 pixels with spaces in their names."""
    paths = {}
    header = tan_wcs().to_header()
    for band in "grz":
        data = rng.normal(0.0, 0.01, SHAPE).astype(np.float32)
        data[30:34, 40:44] += 3.0
        data[5, 6] = np.nan
        header["BUNIT"] = "nanomaggy"
        paths[band] = tmp_path / f"my {band} image.fits"
        fits.writeto(paths[band], data, header)
    return paths


def test_plain_images(fits_files):
    image = read_images(fits_files)
    assert image.bands == ("g", "r", "z") and image.shape == SHAPE
    assert image.pixel_scale == pytest.approx(SCALE, rel=1e-6)
    # One nanomaggy is 3631 nJy.
    assert np.nanmax(image.flux) == pytest.approx(3.03 * 3631.0, rel=0.02)
    assert np.sqrt(np.nanmedian(image.variance)) == pytest.approx(0.01 * 3631.0, rel=0.1)
    assert not image.usable[:, 5, 6].any() and (~image.usable).sum() == 3
    assert not image.saturated.any() and (image.bad == ~image.usable).all()
    expected = tan_wcs().pixel_to_world(12.0, 60.0)
    ra, dec = image.to_sky([12.0], [60.0])
    np.testing.assert_allclose([ra[0], dec[0]], [expected.ra.deg, expected.dec.deg], atol=1e-8)


def test_psf_and_masks(fits_files, tmp_path):
    flags = np.zeros(SHAPE, np.int16)
    flags[3, 4], flags[8, 9], flags[20, 21] = 1, 2, 4
    fits.writeto(tmp_path / "flags.fits", flags)
    files = {band: BandFiles(path, mask=tmp_path / "flags.fits") for band, path in fits_files.items()}
    options = FitsOptions(psf_fwhm={"g": 1.2, "r": 1.1, "z": 1.0}, mask_bits={"BAD": 1, "SAT": 2, "CR": 4})
    image = read_images(files, options)
    np.testing.assert_allclose(image.psf_fwhm, np.array([1.2, 1.1, 1.0]) / SCALE, rtol=1e-6)
    for band in range(3):
        psf = image.psf_image(band, 10.0, 10.0)
        assert psf.sum() == pytest.approx(1.0) and psf.argmax() == psf.size // 2
    assert not image.usable[0, 3, 4] and image.usable[0, 8, 9] and image.usable[0, 20, 21]
    assert image.saturated[1, 8, 9] and image.saturated.sum() == 3
    assert image.bad[2, 3, 4] and image.bad[2, 8, 9] and image.bad[2, 20, 21]


def test_same_pixels_as_by_exposures(fits_files):
    """Files that are read at once, and files that become exposures first."""
    fits.setval(fits_files["r"], "SATURATE", value=2.0)
    files = {band: BandFiles(path) for band, path in fits_files.items()}
    options = FitsOptions(psf_fwhm=1.0)
    ours = read_images(fits_files, options)
    theirs = to_multiband_image(field_to_exposures(read_field(files, options)))
    assert ours.saturated.sum() == 16
    assert ours.calibrated and theirs.calibrated
    for name in ("flux", "variance", "usable", "saturated", "bad"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    np.testing.assert_allclose(ours.psf_fwhm, theirs.psf_fwhm, rtol=1e-3)
    assert ours.pixel_scale == pytest.approx(theirs.pixel_scale, rel=1e-6)
    for band in range(3):
        np.testing.assert_allclose(ours.psf_image(band, 9, 9), theirs.psf_image(band, 9, 9), atol=1e-6)
    np.testing.assert_allclose(ours.to_sky([3.0], [60.0]), theirs.to_sky([3.0], [60.0]), rtol=1e-9)


@pytest.mark.parametrize(("key", "value", "scale"), [("MAGZERO", 31.4, 1.0), ("ZP", 27.0, 57.54)])
def test_zero_point_keywords(fits_files, key, value, scale):
    for path in fits_files.values():
        fits.delval(path, "BUNIT")
        fits.setval(path, key, value=value)
    assert np.nanmax(read_images(fits_files).flux) == pytest.approx(3.03 * scale, rel=0.02)


def test_images_without_a_zero_point_are_not_calibrated(fits_files, tmp_path):
    fits.delval(fits_files["r"], "BUNIT")
    field = read_field({band: BandFiles(path) for band, path in fits_files.items()}, FitsOptions())
    exposures = field_to_exposures(field)
    assert not read_images(fits_files).calibrated and not to_multiband_image(exposures).calibrated
    exposures["r"].writeFits(str(tmp_path / "r.fits"))
    exposures["r"] = ExposureF.readFits(str(tmp_path / "r.fits"))
    assert not to_multiband_image(exposures).calibrated
    del exposures["r"]
    assert to_multiband_image(exposures).calibrated


def test_sky_is_subtracted_and_wcs_made_up(tmp_path, rng, caplog):
    paths = {}
    for band in "grz":
        paths[band] = tmp_path / f"{band}.fits"
        fits.writeto(paths[band], rng.normal(500.0, 2.0, (40, 50)))
    options = FitsOptions(zero_points=dict.fromkeys("grz", 27.0), pixel_scale=0.25, sky_center=(30.0, 60.0))
    with caplog.at_level(logging.INFO):
        image = read_images(paths, options)
    assert abs(np.median(image.flux[2])) < 0.3 * 57.54
    assert image.pixel_scale == pytest.approx(0.25)
    np.testing.assert_allclose(np.ravel(image.to_sky([24.5], [19.5])), [30.0, 60.0], rtol=1e-9)
    assert "made up" in caplog.text and "a sky of" in caplog.text


def test_header_names_the_band(fits_files):
    paths = list(fits_files.values())
    assert assign_bands(paths, "grz") == (["g", "r", "z"], [])
    for path, band in zip(paths, "zrg"):
        fits.setval(path, "FILTER", value=f"{band} DECam SDSS c0002")
    bands, (note,) = assign_bands(paths, "grz")
    assert bands == ["z", "r", "g"] and "is believed" in note
    fits.setval(paths[0], "FILTER", value="HSC-R")
    with pytest.raises(FitsImageError, match="one file per band"):
        assign_bands(paths, "grz")
    fits.setval(paths[1], "FILTER", value="H")
    bands, notes = assign_bands(paths, "grz")
    assert bands == ["g", "r", "z"] and len(notes) == 2 and "by its position" in notes[0]
    with pytest.raises(FitsImageError, match="2 images were given, 3 are wanted"):
        assign_bands(paths[:2], "grz")
    for path, band in zip(paths, "iyr"):
        fits.setval(path, "FILTER", value=band)
    for bands in ("", "grz"):
        assert assign_bands(paths, bands, fixed=False) == (["i", "y", "r"], [])
    fits.setval(paths[1], "FILTER", value="F106")
    assert assign_bands(paths, "grz", fixed=False) == (["i", "F106", "r"], [])
    # Twice the same band, and a filter that is not known.
    for value in ("r", "open"):
        fits.setval(paths[1], "FILTER", value=value)
        with pytest.raises(FitsImageError, match=f"says {value}, .* Give --bands, one for each file"):
            assign_bands(paths, "grz", fixed=False)
    for path in paths:
        fits.delval(path, "FILTER")
    assert assign_bands(paths, "grz", fixed=False) == (["g", "r", "z"], [])
    with pytest.raises(FitsImageError, match="says none, .* Give --bands"):
        assign_bands(paths[:2], "grz", fixed=False)


def test_unusable_images(fits_files, tmp_path, rng):
    (tmp_path / "text.fits").write_text("no image")
    fits.writeto(tmp_path / "small.fits", rng.normal(size=(20, 30)))
    fits.writeto(tmp_path / "empty.fits", np.full(SHAPE, np.nan))
    for name, message in (
        ("none.fits", "no file"),
        ("text.fits", "text.fits"),
        ("small.fits", "30 x 20"),
        ("empty.fits", "finite"),
    ):
        with pytest.raises(FitsImageError, match=message):
            read_images({**fits_files, "z": tmp_path / name})
    with pytest.raises(FitsImageError, match="at least one band"):
        read_images({})


def test_exposures(shared_data, fits_files):
    folder = shared_data / "scarlet"
    paths = {band: folder / f"exposure_{band}.fits" for band in "grz"}
    image = read_images(paths)
    exposure = ExposureF.readFits(str(paths["r"]))
    scale = exposure.getPhotoCalib().getCalibrationMean()
    np.testing.assert_allclose(image.flux[1], exposure.image.array * scale, rtol=1e-6)
    assert np.isfinite(image.psf_fwhm).all()
    height, width = image.shape
    cut = fits_files["g"]
    with fits.open(cut, mode="update") as hdus:
        hdus[0].data = np.zeros((height, width), np.float32)
    with pytest.raises(FitsImageError, match="files of one kind"):
        read_images({**paths, "g": cut})


NO_LSST = """
import sys
from importlib.abc import MetaPathFinder

class Wall(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        own = ("lsst", "lsst.meas", "lsst.meas.maskrcnn")
        if name.startswith("lsst") and name not in own and not name.startswith("lsst.meas.maskrcnn."):
            raise ImportError(f"{name} is not here")
        return None

sys.meta_path.insert(0, Wall())
from lsst.meas.maskrcnn import read_images
image = read_images(dict(zip("grz", sys.argv[1:])))
assert image.shape == (70, 90), image.shape
assert not {"torch", "matplotlib", "galsim"} & set(sys.modules)
"""


def test_plain_images_need_no_lsst_package(fits_files, project_dir):
    environment = {**os.environ, "PYTHONPATH": str(project_dir / "python")}
    done = subprocess.run(
        [sys.executable, "-c", NO_LSST, *map(str, fits_files.values())],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
