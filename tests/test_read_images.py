# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""FITS files to the pixels that the engine takes."""

from __future__ import annotations

import bz2
import logging
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from no_lsst import run_without_lsst

from lsst.afw.image import ExposureF
from lsst.meas.maskrcnn import MultibandImage
from lsst.meas.maskrcnn.catalogs.exposures import to_multiband_image
from lsst.meas.maskrcnn.ingest.exposures import field_to_exposures, scene_to_exposures, sky_wcs
from lsst.meas.maskrcnn.ingest.fits_files import BandFiles, FitsImageError, assign_bands
from lsst.meas.maskrcnn.ingest.fits_images import FitsOptions, read_field
from lsst.meas.maskrcnn.ingest.imported import import_field
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
    assert ours.calibrated.all() and theirs.calibrated.all()
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
    image = read_images(fits_files)
    for one in (image, to_multiband_image(exposures)):
        assert one.bands == ("g", "r", "z") and one.calibrated.tolist() == [True, False, True]
        assert one.select("rz").calibrated.tolist() == [False, True] and one.select("zg").calibrated.all()
    imported = scene_to_exposures(import_field("a field", field))
    assert to_multiband_image(imported).calibrated.tolist() == [True, False, True]
    exposures["r"].writeFits(str(tmp_path / "r.fits"))
    exposures["r"] = ExposureF.readFits(str(tmp_path / "r.fits"))
    assert to_multiband_image(exposures).calibrated.tolist() == [True, False, True]
    del exposures["r"]
    assert to_multiband_image(exposures).calibrated.all()
    with pytest.raises(ValueError, match="calibrated has shape .2,., wanted one value for 3 bands"):
        MultibandImage(image.flux, "grz", 0.2, calibrated=[True, False])


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
    # One header for all files, as a program that copies it leaves them.
    for path in paths:
        fits.setval(path, "FILTER", value="g")
    bands, notes = assign_bands(paths, "grz")
    assert bands == ["g", "r", "z"] and len(notes) == 2 and "says that it is g" in notes[0]


def test_names_of_files_are_believed_before_the_usual_bands(tmp_path, sky):
    paths = [write(tmp_path / f"field-3_{band}.fits", sky) for band in ("g", "r", "i")]
    bands, (note,) = assign_bands(paths, "grz", fixed=False)
    assert bands == ["g", "r", "i"] and "--bands" in note
    others = [write(tmp_path / name, sky) for name in ("a.fits", "g_r.fits", "z.fits")]
    assert assign_bands(others, "grz", fixed=False) == (["g", "r", "z"], [])


@pytest.mark.parametrize(
    ("cards", "band"),
    [
        ({"FILTER1": "CLEAR1L", "FILTER2": "F814W"}, "F814W"),
        ({"FILTER1": 25, "FILTNAM1": "F555W"}, "F555W"),
        ({"FILTER": "F115W"}, "F115W"),
        ({"HIERARCH FPA.FILTERID": "z.00000"}, "z"),
        ({"FILTER": "zd DECam k1038"}, "z"),
        ({"FILTER": "bokr"}, "r"),
        ({"FILTER": "ZTF_g"}, "g"),
        ({"FILTER": "ip"}, "i"),
        ({"FILTER": "H"}, "H"),
        ({"FILTER": "zs"}, "z"),
        # Of Johnson and Cousins, and of the near infrared, unless another system is named.
        ({"FILTER": "R"}, "R"),
        ({"FILTER": "I_BESS"}, "I"),
        ({"FILTER": "Bessell-V"}, "V"),
        ({"FILTER": "Rc"}, "R"),
        ({"FILTER": "Y"}, "Y"),
        ({"FILTER": "HSC-R"}, "r"),
        ({"FILTER": "SDSS-I"}, "i"),
        ({"FILTER": "SLOAN R"}, "r"),
        ({"FILTER": "gSDSS"}, "g"),
        ({"FILTER": "W-S-I+"}, "i"),
        ({"HIERARCH ESO INS FILT1 NAME": "OCAM_r_SDSS"}, "r"),
        # Of Webb, whose pupil wheel has filters too.
        ({"FILTER": "F150W2", "PUPIL": "F162M"}, "F162M"),
        ({"FILTER": "CLEAR", "PUPIL": "F115W"}, "F115W"),
        ({"FILTER": "F277W", "PUPIL": "CLEARP"}, "F277W"),
    ],
)
def test_names_of_filters(tmp_path, sky, cards, band):
    assert assign_bands([write(tmp_path / "a.fits", sky, cards)], (), fixed=False) == ([band], [])


def test_bands_of_a_cube(tmp_path, sky):
    path = tmp_path / "cube.fits"
    fits.writeto(path, np.stack([sky, 2.0 * sky]))
    assert assign_bands([path, path], "gr") == (["g", "r"], [])
    with pytest.raises(FitsImageError, match="no two-dimensional image"):
        assign_bands([path], (), fixed=False)


def test_unusable_images(fits_files, tmp_path, rng):
    (tmp_path / "text.fits").write_text("no image")
    (tmp_path / "packed.fits.Z").write_bytes(b"\x1f\x9d\x90" + bytes(4000))
    with pytest.raises(FitsImageError, match="packed by compress; unpack it"):
        read_images({"r": tmp_path / "packed.fits.Z"})
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


def write(path, image, header=None, names=()):
    """Write an image, or several as HDUs of some names."""
    cards = tan_wcs().to_header()
    cards.update({"MAGZERO": 31.4, **(header or {})})
    hdus = [fits.ImageHDU(plane, cards, name=name) for plane, name in zip(image, names)]
    primary = fits.PrimaryHDU() if names else fits.PrimaryHDU(image, cards)
    fits.HDUList([primary, *hdus]).writeto(path, overwrite=True)
    return path


@pytest.fixture
def sky(rng):
    """Sources on sky of noise 10, counts."""
    image = rng.normal(0.0, 10.0, SHAPE).astype(np.float32)
    for y in range(8, 70, 14):
        for x in range(8, 90, 14):
            image[y - 1 : y + 2, x - 1 : x + 2] += 400.0
    return image


@pytest.mark.parametrize(
    ("flags", "bad"),
    [
        (lambda bad, sky: bad * np.uint64(2**63), True),
        (lambda bad, sky: np.where(bad, 0.3, 0.0), True),
        (lambda bad, sky: np.where(bad, np.nan, 0.0), True),
        (lambda bad, sky: ~bad * np.uint8(255), "0 in 4.* --mask-bits"),
        (lambda bad, sky: (sky > 40.0).astype(np.int32), "those of the sources"),
        (lambda bad, sky: np.ones(SHAPE, np.int16), "0 in 0.0% of the pixels"),
    ],
)
def test_masks_of_every_kind(tmp_path, sky, flags, bad):
    wanted = np.zeros(SHAPE, bool)
    wanted[:, 20:24] = True
    fits.writeto(tmp_path / "m.fits", flags(wanted, sky))
    files = {"r": BandFiles(write(tmp_path / "r.fits", sky), mask=tmp_path / "m.fits")}
    if isinstance(bad, str):
        with pytest.raises(FitsImageError, match=bad):
            read_images(files)
        assert read_images(files, FitsOptions(mask_bits={})).usable.all()
    else:
        np.testing.assert_array_equal(~read_images(files).usable[0], wanted)


def test_weights_of_every_kind(tmp_path, sky):
    """In HDUs of the kind or name that is wanted, of the same file or another; inverted ones are refused."""
    weight = np.full(SHAPE, 0.01, np.float32)
    weight[:, 20:24] = 0.0
    both = write(tmp_path / "r.fits", [sky, 5.0 * weight, weight], names=("SCI", "OLD", "WHT"))
    chips = write(tmp_path / "w.fits", [5.0 * weight, weight], names=("N1", "N2"))
    chip = write(tmp_path / "n.fits", [sky, sky], names=("N1", "N2"))
    files = {"r": BandFiles(chip, weight=chips)}
    for image in (
        read_images({"r": BandFiles(both, weight=both)}),
        read_images(files, FitsOptions(hdu="N2")),
    ):
        np.testing.assert_array_equal(image.usable[0], weight > 0)
        assert np.nanmedian(image.variance) == pytest.approx(100.0, rel=1e-5)
    write(tmp_path / "w.fits", np.where(weight > 0, 0.0, 0.01).astype(np.float32))
    with pytest.raises(FitsImageError, match="w.fits is above 0 in 4"):
        read_images({"r": BandFiles(tmp_path / "r.fits", weight=tmp_path / "w.fits")})


@pytest.mark.parametrize("names", ["GRZ", ("SCI_G", "SCI_R", "SCI_Z"), ("SCI", "SCI", "SCI")])
def test_bands_in_hdus_of_one_file(tmp_path, sky, names):
    path = write(tmp_path / "all.fits", [sky, 2.0 * sky, 3.0 * sky], names=names)
    if names[0] == "SCI":
        for bands in ("grz", "gr"):
            with pytest.raises(
                FitsImageError, match="no HDU has the name or filter g; give one file per band"
            ):
                read_images(dict.fromkeys(bands, path))
        for number, band in enumerate("GRZ", 1):
            fits.setval(path, "FILTER", value=band, ext=number)
    image = read_images(dict.fromkeys("zgr", path), FitsOptions(sky="none"))
    np.testing.assert_allclose(image.flux, [3.0 * sky, sky, 2.0 * sky], rtol=1e-5)
    np.testing.assert_allclose(
        read_images({"r": path}, FitsOptions(sky="none")).flux[0], 2.0 * sky, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("cards", "scale"),
    [
        ({"SECPIX1": -0.68}, 0.68),
        ({"XPIXSZ": 9.0, "FOCALLEN": 3200.0}, 0.5801),
        ({"PLTSCALE": 67.2, "XPIXELSZ": 25.28445, "PLATEID": "07HH"}, 1.6991),
        ({"XPIXSZ": 9.0, "FOCALLEN": 0.0, "PIXSCALE": 0.0}, 0.2),
    ],
)
def test_pixel_scales_without_world_coordinates(tmp_path, sky, cards, scale, caplog):
    caplog.set_level(logging.INFO)
    fits.writeto(tmp_path / "r.fits", sky, fits.Header(cards))
    assert read_images({"r": tmp_path / "r.fits"}).pixel_scale == pytest.approx(scale, rel=1e-3)
    assert ("photographic plate" in caplog.text) == ("PLATEID" in cards)
    given = read_images({"r": tmp_path / "r.fits"}, FitsOptions(pixel_scale=0.3))
    assert given.pixel_scale == pytest.approx(0.3, rel=1e-3)


def test_what_is_odd_is_said(tmp_path, sky, caplog):
    caplog.set_level(logging.INFO)
    write(tmp_path / "r.fits", sky, {"FILTER": "HSC-G", "SATURATE": 1.0})
    image = read_images({"r": tmp_path / "r.fits", "z": write(tmp_path / "z.fits", sky, {"FILTER": "J"})})
    assert not image.saturated.any()
    for text in (
        "taken for r, but its header says g",
        "header says J",
        "saturation of 1: it is not",
        "z has the pixels of r",
    ):
        assert text in caplog.text
    caplog.clear()
    for band, name in {"r": "DES_R", "Y": "NIR_Y", "F606W": "F606W"}.items():
        read_images({band: write(tmp_path / "same.fits", sky, {"FILTER": name})})
    assert "is taken for" not in caplog.text
    read_images({"r": write(tmp_path / "same.fits", sky, {"FILTER": "R"})})
    assert "taken for r, but its header says R" in caplog.text
    read_images({"g": write(tmp_path / "raw.fits", sky, {"BAYERPAT": "RGGB"})})
    assert "alternate in colour (RGGB)" in caplog.text
    y, x = np.mgrid[:70, :90]
    smooth = 1e4 * np.exp(-np.hypot(y - 35, x - 45) / 9.0).astype(np.float32)
    read_images({"r": write(tmp_path / "r.fits", smooth)})
    assert "what is taken for noise is smooth" in caplog.text


def test_lowest_value_that_pixels_share_is_no_data(tmp_path, rng, sky, caplog):
    caplog.set_level(logging.INFO)
    dead = rng.random(SHAPE) < 0.01
    image = np.where(dead, 0, np.rint(sky) + 700).astype(np.int16)
    np.testing.assert_array_equal(read_images({"r": write(tmp_path / "r.fits", image)}).usable[0], ~dead)
    assert f"{dead.sum()} pixels are 0 exactly, far below all others: no data" in caplog.text
    # Zeros among noise about zero; but not among steps, of lossy compression for instance, or photons.
    holes = np.where(dead, 0.0, sky)
    np.testing.assert_array_equal(read_images({"r": write(tmp_path / "r.fits", holes)}).usable[0], ~dead)
    steps = rng.uniform(1.0, 2.0, (SHAPE[0], 1))
    for image in (np.rint(sky / steps) * steps, rng.poisson(0.05, SHAPE)):
        assert read_images({"r": write(tmp_path / "r.fits", image.astype(np.float32))}).usable.mean() > 0.9
    # Variances may differ as much.
    fits.writeto(tmp_path / "v.fits", np.where(dead, 30.0, rng.normal(100.0, 0.1, SHAPE)).astype(np.float32))
    files = {"r": BandFiles(write(tmp_path / "r.fits", sky), variance=tmp_path / "v.fits")}
    assert read_images(files).usable.all()


@pytest.mark.parametrize(("unit", "size"), [("W/m2/Hz", 1e-35), ("Jy", 1e-9), ("adu", 1e-35)])
def test_counts_of_any_size(tmp_path, sky, unit, size):
    path = write(tmp_path / "r.fits", sky.astype(float) * size, {"BUNIT": unit, "MAGZERO": "none"})
    if unit == "adu":
        with pytest.raises(FitsImageError, match=r"noise of 9.*e-35 counts is .*; give the right one"):
            read_images({"r": path})
        return
    image = read_images({"r": path})
    np.testing.assert_allclose(image.flux[0], sky, rtol=1e-4, atol=0.01)
    assert np.sqrt(np.median(image.variance)) == pytest.approx(10.0, rel=0.1)
    exposure = field_to_exposures(read_field({"r": BandFiles(path)}))["r"]
    np.testing.assert_allclose(to_multiband_image({"r": exposure}).flux[0], sky, rtol=1e-4, atol=0.01)


def test_files_compressed_with_bzip2(tmp_path, sky):
    path = tmp_path / "frame.fits.bz2"
    path.write_bytes(bz2.compress(write(tmp_path / "r.fits", sky).read_bytes()))
    np.testing.assert_array_equal(read_images({"r": path}).flux[0], sky)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(FitsImageError, match=r"frame\.fits\.bz2"):
        read_images({"r": path})


@pytest.mark.parametrize(
    ("projection", "cards"),
    [
        ("TPV", {"PV1_1": 1.002, "PV1_4": 0.02, "PV1_7": 0.05, "PV2_1": 1.002, "PV2_5": 0.01}),
        ("TAN", {"PV1_1": 1.002, "PV1_4": 0.02, "PV1_7": 0.05, "PV2_1": 1.002, "PV2_5": 0.01}),
        ("ZPN", {"PV2_1": 1.0, "PV2_3": -45.0}),
        ("CAR", {}),
    ],
)
def test_exposures_have_the_distortions_of_the_header(projection, cards):
    header = tan_wcs().to_header()
    header.update(
        {"CTYPE1": f"RA---{projection}", "CTYPE2": f"DEC--{projection}", "CRPIX1": -3000.0, **cards}
    )
    wcs, (height, width) = WCS(header), (4000, 2000)
    y, x = np.mgrid[0.0:height:333.0, 0.0:width:333.0].reshape(2, -1)
    ra, dec = sky_wcs(wcs, (height, width)).pixelToSkyArray(x, y, degrees=True)
    off = wcs.pixel_to_world(x, y).separation(SkyCoord(ra, dec, unit="deg")).arcsec
    assert off.max() < 0.1 * SCALE


NO_LSST = """
from lsst.meas.maskrcnn import read_images
image = read_images(dict(zip("grz", sys.argv[1:])))
assert image.shape == (70, 90), image.shape
assert not {"torch", "matplotlib", "galsim"} & set(sys.modules)
"""


def test_plain_images_need_no_lsst_package(fits_files, project_dir):
    run_without_lsst(project_dir, NO_LSST, *fits_files.values())
