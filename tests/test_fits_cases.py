# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""FITS images of all kinds of origin: what is read of them is right, or is said to be unknown."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from lsst.meas.maskrcnn import find_sources, load_model
from lsst.meas.maskrcnn.ingest.fits_files import FitsImageError
from lsst.meas.maskrcnn.ingest.read_images import read_images

sys.path.append(str(Path(__file__).parent))
from fits_samples import SCALE, SHAPE, SIGMA, header, moffat, noise, read, star_field, write


@pytest.fixture
def field(rng):
    """Images by band, counts."""
    seed = rng.integers(1 << 30)
    return {band: star_field(np.random.default_rng(seed), sigma) for band, sigma in SIGMA.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"CRPIX1": 78.5, "CRPIX2": 52.5}, r"with g, r is up to 7.2\d* pixels off"),
        ({"CD1_2": 0.02 * SCALE / 3600, "CD2_1": 0.02 * SCALE / 3600}, r"r is up to 1.\d+ pixels off"),
        ({"CRVAL2": -31.0}, "r is up to .* pixels off"),
    ],
)
def test_bands_of_different_places_are_refused(tmp_path, field, change, said):
    heads = {band: header(**(change if band == "r" else {})) for band in field}
    files = write(tmp_path, field, heads)
    with pytest.raises(FitsImageError, match=said):
        read_images(files)


@pytest.mark.parametrize(("scale", "turn"), [(0.2, 0.0), (0.13, 0.4), (0.34, -1.2)])
def test_resampling_keeps_flux_place_and_noise(tmp_path, rng, scale, turn):
    """A band with pixels of another size, turned and shifted, comes to the grid of the first."""
    cd = scale / 3600 * np.array([[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    head = header(
        CRPIX1=101.3, CRPIX2=88.7, **{f"CD{i + 1}_{j + 1}": cd[i, j] for i in range(2) for j in range(2)}
    )
    places = np.array([[30.0, 35.0], [60.5, 72.2], [84.2, 110.7]])
    sky = WCS(header()).pixel_to_world(places[:, 1], places[:, 0])
    x, y = WCS(head).world_to_pixel(sky)
    g, r = rng.normal(0.0, 10.0, SHAPE), rng.normal(0.0, 10.0, (190, 210))
    for row, column in places:
        g += moffat(SHAPE, row, column, 1e5, 0.9 / SCALE, 4.5)
    for row, column in zip(y, x):
        r += moffat(r.shape, row, column, 3e5, 0.9 / scale, 4.5)
    files = write(tmp_path, {"g": g, "r": r}, {"g": header(), "r": head})
    with pytest.raises(FitsImageError, match="--resample"):
        read(files)
    result = read(files, resample=True)
    image = result.images["r"]
    assert image.pixels.shape == SHAPE
    assert any("resampled to the grid of the first band" in note for note in result.notes)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for row, column in places:
        near = np.hypot(rows - row, columns - column) < 12
        light = image.pixels[near]
        assert light.sum() == pytest.approx(r_inside(12 * SCALE / 0.9) * 3e5, rel=0.02)
        centre = [np.average(axis[near], weights=light) for axis in (rows, columns)]
        np.testing.assert_allclose(centre, (row, column), atol=0.06)
    # The noise of sums over many pixels is that of the variance plane.
    empty = np.isfinite(image.pixels) & (np.hypot(rows - 60, columns - 72) > 0)
    for row, column in places:
        empty &= np.hypot(rows - row, columns - column) > 25
    values = np.where(empty, image.pixels, 0.0)[: SHAPE[0] // 8 * 8, : SHAPE[1] // 8 * 8]
    blocks = values.reshape(SHAPE[0] // 8, 8, SHAPE[1] // 8, 8)
    full = empty[: len(values)].reshape(*blocks.shape).all(axis=(1, 3))
    sums = blocks.sum(axis=(1, 3))[full]
    assert np.std(sums) == pytest.approx(8.0 * np.sqrt(np.nanmedian(image.variance)), rel=0.3)


def r_inside(radius, beta=4.5):
    """Share of a Moffat profile's flux within a radius, in FWHM."""
    return 1.0 - (1.0 + (2.0 * radius) ** 2 * (2.0 ** (1.0 / beta) - 1.0)) ** (1.0 - beta)


SIP = {
    "CTYPE1": "RA---TAN-SIP",
    "CTYPE2": "DEC--TAN-SIP",
    "A_ORDER": 2,
    "B_ORDER": 2,
    "A_2_0": 5e-6,
    "B_0_2": 1e-5,
}


@pytest.mark.parametrize("place", [{"CRVAL2": -31.0}, {"CRVAL1": 330.0}, {**SIP, "CRVAL2": 12.0}])
def test_resampling_needs_a_common_piece_of_sky(tmp_path, field, place):
    heads = {band: header(**(place if band == "r" else {})) for band in field}
    with pytest.raises(FitsImageError, match="r.fits shows no part of the first band's sky"):
        read(write(tmp_path, field, heads), resample=True)


def test_resampling_of_a_part_with_distortions(tmp_path, rng):
    """Where the distortions of a small image cannot be inverted, the large one has no data."""
    wide = header(CRPIX1=900.0, CRPIX2=900.0)
    small = header(**SIP, CRPIX1=60.0, CRPIX2=60.0)
    g, r = rng.normal(0.0, 10.0, (1800, 1800)), rng.normal(0.0, 10.0, (120, 120))
    x, y = WCS(small).world_to_pixel(WCS(wide).pixel_to_world(905.0, 890.0))
    r += moffat(r.shape, float(y), float(x), 3e5, 4.5, 4.5)
    files = write(tmp_path, {"g": g, "r": r}, {"g": wide, "r": small})
    image = read(files, resample=True).images["r"].pixels
    assert 0.5 * 120**2 < np.isfinite(image).sum() < 1.5 * 120**2
    assert np.unravel_index(np.nanargmax(image), image.shape) == (890, 905)


def test_resampling_needs_world_coordinates(tmp_path, field):
    smaller = {**field, "r": field["r"][:-5]}
    heads = {band: header(**({"CTYPE1": "none"} if band == "r" else {})) for band in field}
    with pytest.raises(FitsImageError, match="r.fits cannot be resampled without world coordinates"):
        read(write(tmp_path, smaller, heads), resample=True)


def test_sip_with_an_approximate_way_back(tmp_path, field):
    head = header(CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", CRPIX1=-900.0, CRPIX2=700.0)
    head.update({"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 5e-6, "A_1_1": 2.5e-6, "B_0_2": 1e-6})
    head.update({"AP_ORDER": 1, "BP_ORDER": 1, "AP_1_0": 1e-3, "BP_0_1": 1e-4})
    from lsst.meas.maskrcnn.catalogs.exposures import to_multiband_image
    from lsst.meas.maskrcnn.ingest.exposures import field_to_exposures

    result = read(write(tmp_path, field, head))
    image = to_multiband_image(field_to_exposures(result))
    expected = result.wcs.pixel_to_world(100.0, 20.0)
    np.testing.assert_allclose(
        np.ravel(image.to_sky([100.0], [20.0])), [expected.ra.deg, expected.dec.deg], atol=1e-7
    )


@pytest.mark.parametrize("value", [0.0, -9999.0, 1e30, 7.5])
@pytest.mark.parametrize("kind", ["half", "frame", "corner"])
def test_fill_values_are_no_data(tmp_path, field, value, kind):
    filled = np.zeros(SHAPE, bool)
    if kind == "half":
        filled[:, 80:] = True
    elif kind == "frame":
        filled[:, :1] = filled[:2] = filled[:, -3:] = True
    else:
        filled = np.add.outer(np.arange(SHAPE[0]), np.arange(SHAPE[1])) < 60
    images = {band: np.where(filled, value, image) for band, image in field.items()}
    result = read(write(tmp_path, images))
    for band, sigma in SIGMA.items():
        assert noise(result, band) == pytest.approx(sigma, rel=0.08)
        found = ~np.isfinite(result.images[band].pixels)
        # A run at the corner may be too short to be told from chance.
        assert np.count_nonzero(found != filled) <= 20
    assert np.count_nonzero(~read_images(write(tmp_path, images)).usable[0]) > 0


def test_what_is_not_filled(tmp_path, rng, field):
    """Saturated cores, quantised pixels, counts of few photons, and no noise at all."""
    bright = field["r"].copy()
    bright[40:52, 60:72] += 5000.0
    bright[43:50, 62:70] = 60000.0
    result = read({"r": write(tmp_path, {"r": bright})["r"]})
    assert np.isfinite(result.images["r"].pixels).all() and result.images["r"].planes["SAT"].sum() == 56
    light = np.zeros(SHAPE)
    light[30:80, 40:90] = moffat((50, 50), 25, 25, 3000.0, 8.0)
    for image in (np.rint(field["r"] / 5.0), rng.poisson(0.02, SHAPE), light, rng.poisson(light)):
        assert np.isfinite(read(write(tmp_path, {"r": image})).images["r"].pixels).all()


def test_cores_of_bright_stars_are_saturated(tmp_path, rng, field):
    """One star may fill a cut-out, and weights and masks of many surveys leave its core out."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    star = 1e7 * np.exp(-((rows - 50) ** 2 + (columns - 70) ** 2) / 128.0) + rng.normal(300.0, 10.0, SHAPE)
    core = star > 40000.0
    assert 0.06 < core.mean() < 0.3
    image = np.where(core, 45000.0 + rng.normal(0.0, 300.0, SHAPE), star).astype(np.float32)
    weight = np.where(core, 0.0, 0.01).astype(np.float32)
    weight[:3] = 0.0
    flags = np.where(core, 3, 0).astype(np.int16)
    flags[4, :] = 5
    files = write(tmp_path, {"r": image}, header(SATURATE=40000.0), WHT=(weight, {}), DQ=(flags, {}))
    result = read(files)
    assert not any("not believed" in note for note in result.notes)
    planes = result.images["r"].planes
    assert (planes["SAT"] == core).all() and planes["BAD"].sum() == SHAPE[1]
    known = np.isfinite(result.images["r"].pixels)
    assert known[core].all() and not known[:3].any() and known[3:].all()
    assert np.isfinite(result.images["r"].variance[3:]).all()
    assert noise(result) == pytest.approx(10.0, rel=0.02)
    # Levels in another unit are no saturation.
    for level in (20.0, 310.0):
        notes = read(write(tmp_path, {"r": field["r"] + 300.0}, header(SATURATE=level))).notes
        assert any("not believed" in note for note in notes)
    stars = read(write(tmp_path, {"r": field["r"] * 300.0}, header(SATURATE=45000.0)))
    assert any("not believed" in note for note in stars.notes) and not stars.images["r"].planes["SAT"].any()
    # Blocks of lossy compression in cores below the highest value.
    image[47:53, 66:74], image[40, 70] = 60000.0, 64000.0
    plate = read(write(tmp_path, {"r": image}))
    assert np.isfinite(plate.images["r"].pixels).all()


def test_planes_of_lsst_masks(tmp_path, field):
    flags = {band: np.where(image > 3.0 * SIGMA[band], 1 << 5, 0) for band, image in field.items()}
    cards = {"MP_BAD": 0, "MP_SAT": 1, "MP_INTRP": 2, "MP_CR": 3, "MP_DETECTED": 5, "MP_NO_DATA": 8}
    clean = read(write(tmp_path, field))
    for band in flags:
        flags[band][3, :] |= 1 << 3
        flags[band][5, :] |= 1 << 8
        files = write(tmp_path, {band: field[band]}, MASK=(flags[band].astype(np.int32), cards))
        image = read(files).images[band]
        assert image.planes["CR"].sum() == SHAPE[1] == image.planes["NO_DATA"].sum()
        assert not image.planes["BAD"].any() and not image.planes["SAT"].any()
        assert image.psf_fwhm == pytest.approx(clean.images[band].psf_fwhm, rel=0.03)
    # Bits that are given are the only ones that count, for noise and PSF as well.
    files = write(tmp_path, {"r": field["r"]}, MASK=(flags["r"].astype(np.int32), {}))
    image = read(files, mask_bits={"CR": 1 << 3}).images["r"]
    assert set(image.planes) == {"SAT", "CR"} and image.planes["CR"].sum() == SHAPE[1]
    assert image.psf_fwhm == pytest.approx(clean.images["r"].psf_fwhm, rel=0.03)


@pytest.mark.parametrize(
    ("extension", "cards", "bad", "fine"),
    [
        ("DQ", {"TELESCOP": "JWST"}, {0: "BAD", 1: "SAT"}, (2, 4)),
        ("DQ", {"TELESCOP": "HST"}, {2: "BAD", 8: "SAT", 13: "CR", 1: "NO_DATA"}, (5, 6)),
        ("MSK", {}, {0: "BAD", 1: "SAT", 4: "CR"}, (5, 11)),
        ("QUAL", {"QUALMASK": 6}, {1: "BAD", 2: "BAD"}, (0, 3)),
        # Pan-STARRS and ZTF name the bits.
        (
            "MASK",
            {"MSKNAM00": "DETECTOR", "MSKVAL00": 1, "MSKNAM01": "SPIKE", "MSKVAL01": 2},
            {0: "BAD"},
            (1,),
        ),
        ("MASK", {"BIT01": (1, "CONTAINS DETECTION"), "BIT08": (8, "SATURATED")}, {8: "SAT"}, (1,)),
        ("MASK", {}, {0: "BAD", 9: "BAD"}, ()),
    ],
)
def test_mask_conventions(tmp_path, field, extension, cards, bad, fine):
    flags = np.zeros(SHAPE, np.int32)
    for row, bit in enumerate((*bad, *fine)):
        flags[row] = 1 << bit
    files = write(tmp_path, {"r": field["r"]}, **{extension: (flags, cards)})
    planes = read(files).images["r"].planes
    for row, bit in enumerate((*bad, *fine)):
        named = {plane for plane, selected in planes.items() if selected[row].any()}
        assert named == ({bad[bit]} if bit in bad else set()), bit


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"BUNIT": "Jy"}, 8.9),
        ({"BUNIT": "mJy"}, 16.4),
        ({"BUNIT": "uJy/pix"}, 23.9),
        ({"BUNIT": "nJy pixel-1"}, 31.4),
        ({"BUNIT": "10**-9 Jy"}, 31.4),
        ({"BUNIT": "1e-6 Jy"}, 23.9),
        ({"BUNIT": "10 nJy"}, 28.9),
        ({"BUNIT": "10^-29 W/m2/Hz"}, 16.4),
        ({"BUNIT": "1e-29 erg s-1 cm-2 Hz-1"}, 23.9),
        ({"BUNIT": "10.0*nanoJansky"}, 28.9),
        ({"BUNIT": "10**(-9) Jy"}, 31.4),
        ({"BUNIT": "[NJY]"}, 31.4),
        ({"BUNIT": "uJy/sq.arcsec"}, 23.9 - 5.0 * np.log10(SCALE)),
        ({"BUNIT": "MJY"}, None),
        ({"BUNIT": "mjy/sr"}, None),
        ({"BUNIT": "uJy**2"}, None),
        ({"BUNIT": "MJy/sr"}, 8.9 - 15.0 - 5.0 * np.log10(np.radians(SCALE / 3600))),
        ({"BUNIT": "MJy sr-1"}, 8.9 - 15.0 - 5.0 * np.log10(np.radians(SCALE / 3600))),
        ({"BUNIT": "Jy/beam"}, None),
        ({"BUNIT": "nanomaggies"}, 22.5),
        ({"FLUXMAG0": 10 ** (0.4 * 27.0), "BUNIT": "adu"}, 27.0),
        ({"BUNIT": "ELECTRONS/S", "PHOTFLAM": 7e-20, "PHOTPLAM": 5921.0}, 26.617),
        ({"BUNIT": "ELECTRONS", "PHOTFLAM": 7e-20, "PHOTPLAM": 5921.0, "EXPTIME": 100.0}, 31.617),
        ({"BUNIT": "erg/s/cm2/Angstrom", "PHOTFLAM": 7e-20, "PHOTPLAM": 5921.0, "EXPTIME": 9.0}, None),
        ({"PHOTFLAM": 7e-20, "PHOTPLAM": 5921.0}, 26.617),
        ({"PHOTFLAM": 7e-20, "PHOTPLAM": 5921.0, "EXPTIME": 1600.0}, None),
        ({"PHOTZP": "27.5"}, 27.5),
        ({"MAGZP": (25.0, "of a count per second"), "BUNIT": "adu", "EXPTIME": 100.0}, 30.0),
        ({"MAGZP": (25.0, "[mag] for 1 s"), "BUNIT": "e-/s", "EXPTIME": 100.0}, 25.0),
        ({"MAGZP": (25.0, "[mag] for 1 s"), "EXPTIME": 100.0}, None),
        ({"MAGZERO": 30.0, "MAGZPT": (25.0, "per sec"), "EXPTIME": 100.0, "BUNIT": "adu"}, 30.0),
        ({"MAGZP": (25.0, "zero point, Vega")}, None),
        ({"MAGZP": 25.0, "MAGSYS": "VEGAMAG"}, None),
        ({"PHOTZP": 25.0, "PHOTSYS": "ST"}, None),
        ({"PHOTZP": (25.0, "[STMAG] zero point")}, None),
        ({"MAGZP": 20.5, "TELESCOP": "WISE"}, None),
        ({"MAGZP": 19.98, "DATASET": "2MASS", "BAND": "K"}, 21.83),
        ({"MAGZPT": 24.5, "MAGZRR": 0.02, "EXPTIME": 10.0}, None),
        ({"FPA.ZP": 25.0, "EXPTIME": 100.0}, 30.0),
        ({"MAGZERO": 99.0}, None),
        ({"MAGZERO": 0.0}, None),
        ({"MAGZERO": "unknown"}, None),
        ({"MAGZERO": 99.0, "BUNIT": "uJy"}, 23.9),
        ({"MAGZERO": 27.0, "BUNIT": "nJy"}, None),
        ({}, None),
    ],
)
def test_zero_points(tmp_path, field, cards, expected):
    files = write(tmp_path, {"r": field["r"]}, header(**{"MAGZERO": "none", **cards}))
    result = read(files)
    magnitude = 31.4 - 2.5 * np.log10(result.images["r"].nanojansky_per_count)
    assert magnitude == pytest.approx(31.4 if expected is None else expected, abs=2e-3)
    assert any("zero point not known" in note for note in result.notes) == (expected is None)
    assert any("--zeropoint sets it" in note for note in result.notes) == (expected is None)
    given = read(files, zero_points={"r": 25.0})
    assert given.images["r"].nanojansky_per_count == pytest.approx(10 ** (0.4 * 6.4))


@pytest.mark.parametrize(("zero", "band", "odd"), [(26.0, "r", False), (21.0, "r", True), (21.0, "H", False)])
def test_skies_that_no_night_has_are_said(tmp_path, field, zero, band, odd):
    """Of 18.1 mag/arcsec2 by a zero point that fits, and five more by one of another unit."""
    files = write(tmp_path, {band: field["r"] + 58.0}, header(MAGZERO=zero))
    assert any("mag/arcsec2, which no night has" in note for note in read(files).notes) == odd


def test_pixels_that_are_not_linear(tmp_path, field):
    pogson = 2.5 * np.log10(np.e)
    scaled = {band: pogson * np.arcsinh((image - 100.0) / 100.0) for band, image in field.items()}
    files = write(tmp_path, scaled, header(BOFFSET=100.0, BSOFTEN=50.0))
    result = read(files)
    for band, image in field.items():
        np.testing.assert_allclose(result.images[band].pixels, image, atol=0.1, rtol=1e-4)
    for unit in ("log(flux)", "mag", "mag/arcsec2"):
        with pytest.raises(FitsImageError, match="linear in flux"):
            read(write(tmp_path, field, header(BUNIT=unit)))


def test_cards_that_cannot_be_read(tmp_path, field):
    files = write(tmp_path, {"r": field["r"]})
    raw = bytearray(files["r"].read_bytes())
    end = raw.index(b"END" + b" " * 77)
    lines = (b"OBSLOG 03:04:08>-START EXPO ONE / of a night log", b"GAIN    = 1.2.3 electrons")
    cards = b"".join(line.ljust(80) for line in lines)
    raw[end : end + 240] = cards + b"END".ljust(80)
    files["r"].write_bytes(raw)
    result = read(files)
    assert noise(result) == pytest.approx(SIGMA["r"], rel=0.05)
    assert any("OBSLOG, GAIN" in note and "left out" in note for note in result.notes)


def test_odd_world_coordinates(tmp_path, field):
    image = {"r": field["r"]}
    assert read(write(tmp_path, image, header(CUNIT1="degrees", CUNIT2="degrees"))).pixel_scale == (
        pytest.approx(SCALE, rel=1e-3)
    )
    no_scale = dict.fromkeys(("CD1_1", "CD1_2", "CD2_1", "CD2_2"), "none")
    broken = {"CUNIT1": "furlong", "CUNIT2": "furlong"}
    for cards, said in (
        (no_scale, "no pixel scale"),
        ({"CD1_1": -1.0, "CD2_2": 1.0}, "3.* arcsec is not plausible"),
        (broken, "CUNIT1"),
        ({"CD1_1": 0.0, "CD2_2": 0.0}, "cannot be used|not plausible"),
        ({"CTYPE1": "HPLN-TAN", "CTYPE2": "HPLT-TAN"}, "HPLN-TAN is no coordinate of the sky"),
    ):
        files = write(tmp_path, image, header(**cards))
        with pytest.raises(FitsImageError, match=said) as caught:
            read(files)
        assert "r.fits" in str(caught.value) and "--pixel-scale" in str(caught.value)
        assert "\n" not in str(caught.value)
        result = read(files, pixel_scale=0.3)
        assert result.pixel_scale == pytest.approx(0.3, rel=1e-3)
    result = read(write(tmp_path, image, header(**dict.fromkeys(("CTYPE1", "CTYPE2"), "none"))))
    assert not result.has_sky


def test_variances_that_say_nothing(tmp_path, field):
    shape = SHAPE
    for extension, values in (("ERR", np.full(shape, np.nan)), ("WHT", np.zeros(shape))):
        result = read(write(tmp_path, {"r": field["r"]}, **{extension: (values.astype(np.float32), {})}))
        assert noise(result) == pytest.approx(SIGMA["r"], rel=0.05)
        assert any(extension in note and "not used" in note for note in result.notes)
    seconds = np.where(np.arange(shape[1]) < 72, 2000.0, 1000.0) * np.ones(shape)
    result = read(write(tmp_path, {"r": field["r"]}, WHT=(seconds.astype(np.float32), {})))
    variance = result.images["r"].variance
    assert variance[0, 100] / variance[0, 10] == pytest.approx(2.0)
    assert np.sqrt(np.median(variance)) == pytest.approx(SIGMA["r"], rel=0.2)
    assert any("relative" in note for note in result.notes)
    # Errors are what they say, where weights beside them need not be.
    errors = {"ERR": np.full(shape, 1.5 * SIGMA["r"]), "WHT": np.full(shape, 0.1 * SIGMA["r"] ** -2)}
    companions = {name: (values.astype(np.float32), {}) for name, values in errors.items()}
    assert noise(read(write(tmp_path, {"r": field["r"]}, **companions))) == pytest.approx(1.5 * SIGMA["r"])
    # The pixels of stacked images scatter less than their noise.
    correlated = np.full(shape, 16.0 * SIGMA["r"] ** 2, np.float32)
    result = read(write(tmp_path, {"r": field["r"]}, VARIANCE=(correlated, {})))
    assert noise(result) == pytest.approx(4.0 * SIGMA["r"], rel=1e-4)


@pytest.mark.parametrize(
    ("names", "types"),
    [
        (("SCI", "MSK", "WGT"), {}),
        (("", "", ""), {"EXTTYPE": ("IMAGE", "MASK", "VARIANCE")}),
        (("DATA", "DQ", "STAT"), {}),
        (("SCI", "DQMASK", "VAR"), {}),
        (("FLUX", "QUAL", "NOISEMAP"), {"HDUCLAS3": ("", "", "MSE")}),
        (("SCI_R", "BIT-MASK", "VARIANCE_MAP_R"), {}),
        (("FLUX", "FLUX_MASK", "FLUX_VAR"), {}),
        (("DES_Q_BGSUB", "DES_Q_FLAG", "DES_Q_VAR"), {}),
    ],
)
def test_names_of_extensions(tmp_path, field, names, types):
    flags = np.zeros(SHAPE, np.int16)
    flags[:, :24] = 1
    noisy = np.where(flags == 1, 1e4, field["r"]).astype(np.float32)
    variance = np.full(SHAPE, (1.3 * SIGMA["r"]) ** 2, np.float32)
    values = noisy, flags, 1.0 / variance if "WGT" in names else variance
    hdus: list = [fits.PrimaryHDU(np.zeros((14, 18), np.uint8), fits.Header({"FILTER": "r"}))]
    for number, pixels in enumerate(values):
        head = header() if number == 0 else fits.Header()
        head.update({key: kinds[number] for key, kinds in types.items() if kinds[number]})
        hdus.append(fits.ImageHDU(pixels, head, name=names[number]))
    fits.HDUList(hdus).writeto(tmp_path / "r.fits")
    result = read({"r": tmp_path / "r.fits"})
    assert result.shape == SHAPE
    assert noise(result) == pytest.approx(1.3 * SIGMA["r"], rel=1e-3)
    assert (
        result.images["r"].planes["BAD"][:, :24].all() and not result.images["r"].planes["BAD"][:, 24:].any()
    )
    assert any("PRIMARY (18 x 14)" in note and "not used" in note for note in result.notes)


def test_largest_image_is_taken(tmp_path, field):
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(np.ones((9, 9)), name="THUMB"),
        fits.ImageHDU(field["r"], name="B"),
    ]
    fits.HDUList(hdus).writeto(tmp_path / "r.fits")
    assert read({"r": tmp_path / "r.fits"}).shape == SHAPE


def test_psf_from_stars_header_or_nowhere(tmp_path, rng, field):
    result = read(write(tmp_path, field))
    for band in SIGMA:
        assert result.images[band].psf_fwhm == pytest.approx(4.0 * SCALE, rel=0.05)
        assert any(f"{band}.fits" in note and "stars)" in note and "+-" in note for note in result.notes)
    # The image of the PSF has the wings of the stars.
    psf = result.images["g"].psf
    expected = moffat(psf.shape, psf.shape[0] // 2, psf.shape[1] // 2, 1.0, 4.0)
    assert np.abs(psf - expected).sum() < 0.08
    empty = {band: rng.normal(0.0, sigma, SHAPE) for band, sigma in SIGMA.items()}
    image = read_images(write(tmp_path, empty))
    assert np.isnan(image.psf_fwhm).all() and image.psf_image(0, 50, 50) is None
    result = read(write(tmp_path, empty, header(SEEING=0.9)))
    assert result.images["r"].psf_fwhm == pytest.approx(0.9) and any(
        "SEEING" in note for note in result.notes
    )
    for cards in (
        {"FWHM": 4.5},
        {"L1FWHM": 0.9},
        {"SEEING": (4.5, "[pix]")},
        {"SEEING": (0.9, "[arcsec] in 9 pixels")},
    ):
        assert read(write(tmp_path, empty, header(**cards))).images["r"].psf_fwhm == pytest.approx(0.9)
    assert np.isnan(read(write(tmp_path, empty, header(SEEING=0.0))).images["r"].psf_fwhm)
    assert read(write(tmp_path, field, header(SEEING=3.0))).images["r"].psf_fwhm < 1.0
    assert read(write(tmp_path, field), psf_fwhm=1.3).images["r"].psf_fwhm == 1.3


def test_psf_and_no_data_of_extensions(tmp_path, rng, field):
    """Images of the PSF beside those of the sky; pixels of an enormous RMS have no data."""
    empty = rng.normal(0.0, 10.0, SHAPE)
    rms = np.full(SHAPE, 12.0, np.float32)
    rms[20:24, 30:40] = 1e16
    psf = moffat((21, 21), 10, 10, 1.0, 4.5, beta=4.0).astype(np.float32)
    image = read(write(tmp_path, {"r": empty}, RMS=(rms, {}), PSF=(psf, {}))).images["r"]
    assert image.psf_fwhm == pytest.approx(4.5 * SCALE, rel=0.02)
    np.testing.assert_allclose(image.psf, psf / psf.sum(), rtol=1e-6)
    assert (np.isfinite(image.pixels) == (rms < 100.0)).all()
    for other in (psf[:, :20], np.roll(psf, 5, 0), -psf, np.zeros((151, 151), np.float32)):
        assert read(write(tmp_path, {"r": empty}, PSF=(other, {}))).images["r"].psf is None
    # One with pixels of its own is not that of the stars, of 4 px.
    for fwhm, expected in ((4.5, 4.5), (12.0, 4.0)):
        psf = moffat((41, 41), 20, 20, 1.0, fwhm, beta=4.0).astype(np.float32)
        image = read(write(tmp_path, {"r": field["r"]}, PSF=(psf, {}))).images["r"]
        assert image.psf_fwhm == pytest.approx(expected * SCALE, rel=0.04)


def test_area_that_a_band_lacks_is_said(tmp_path, field):
    field["z"][:, 72:] = np.nan
    assert any("z has no data in 50%" in note for note in read(write(tmp_path, field)).notes)
    field["z"][:] = 0.0
    with pytest.raises(FitsImageError, match="z.fits"):
        read(write(tmp_path, field))


REFUSED = {"01_bands_shifted": "pixels off", "09_no_scale": "pixel scale"}
NO_TRUTH_OF_NOISE = ("11_exttype_only",)


def test_folder_of_cases(shared_data, caplog):
    """Files that went wrong once."""
    folder = shared_data / "cases"
    if not folder.is_dir():
        pytest.skip(f"no cases in {folder}")
    model = load_model()
    for case in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = {band: case / f"{band}.fits" for band in "grz" if (case / f"{band}.fits").is_file()}
        if case.name in REFUSED:
            with pytest.raises(FitsImageError, match=REFUSED[case.name]):
                read_images(files)
            continue
        caplog.clear()
        with caplog.at_level(logging.INFO):
            image = read_images(files)
        for number, band in enumerate(image.bands):
            flat = np.asarray(image.variance)[number][np.asarray(image.usable)[number]]
            times = 2.0 if case.name in NO_TRUTH_OF_NOISE else 1.0
            known = case.name != "04_magzero_99" or "MAGZERO = 99.0 is no zero point" in caplog.text
            assert known and np.sqrt(np.median(flat)) == pytest.approx(times * SIGMA[band], rel=0.1), (
                case.name
            )
        seeing = {"12_seeing_1.4_at_0.168": 1.4, "12_seeing_2.0_at_0.40": 2.0}.get(case.name, 0.7)
        widths = [float(text.split(" +-")[0]) for text in caplog.text.split("; PSF ")[1:] if " +-" in text]
        assert widths == pytest.approx([seeing] * len(widths), rel=0.05), case.name
        if (case / "truth.ecsv").is_file():
            with caplog.at_level(logging.WARNING):
                truth, found = Table.read(case / "truth.ecsv"), find_sources(image, model).to_table()
            distance, nearest = cKDTree(np.stack([found["x"], found["y"]], 1)).query(
                np.stack([truth["x"], truth["y"]], 1)
            )
            near = distance < 3.0
            right = (np.asarray(found["class"])[nearest] == "star") == np.asarray(truth["is_star"])
            assert near.sum() >= len(truth) - 1 and len(found) <= len(truth) + 1, case.name
            if np.isfinite(image.psf_fwhm).any():
                assert (near & right).sum() >= 0.8 * near.sum(), case.name
            else:
                assert "do not trust the classes" in caplog.text, case.name
