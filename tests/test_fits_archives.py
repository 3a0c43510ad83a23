# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""FITS images as archives, pipelines and cameras write them: masks, frames and zero points are read right."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from lsst.meas.maskrcnn.images.sky import blur
from lsst.meas.maskrcnn.images.stars import measure_psfs
from lsst.meas.maskrcnn.ingest.fits_files import BandFiles
from lsst.meas.maskrcnn.ingest.fits_images import FitsOptions, read_field
from lsst.meas.maskrcnn.ingest.fits_noise import find_sharp_pixels

sys.path.append(str(Path(__file__).parent))
from fits_samples import SHAPE, SIGMA, header, moffat, noise, read, star_field, write

HUBBLE = {"TELESCOP": "HST", "EXPTIME": 2000.0, "BUNIT": "ELECTRONS/S"}
ESO = {"ESO DET OUTPUTS": 1, "ESO DET OUT1 NY": 112}
CODES = {1: "BAD", 2: "NO_DATA", 3: "SAT", 4: "SAT", 5: "CR", 6: "BAD", 7: "", 8: "CR"}
GEMINI = {1: "BAD", 2: "", 4: "SAT", 8: "CR", 16: "NO_DATA", 32: "", 64: "BAD"}
BITS = {1: "BAD", 2: "SAT", 4: "", 16: "CR", 64: "SAT", 128: "", 3: "BAD SAT"}


@pytest.fixture
def image(rng):
    return star_field(rng, SIGMA["r"])


@pytest.mark.parametrize(
    ("cards", "planes"),
    [
        ({"INSTRUME": "DECam", "PLVER": "V4.8.2a"}, CODES),
        ({"INSTRUME": "DECam", "PLVER": "DES V3.5.0"}, CODES),
        ({"INSTRUME": "DECam", "PLVER": "V3.4.1"}, BITS),
        ({"INSTRUME": "Mosaic3", "PLVER": "V2.3"}, CODES),
        ({"INSTRUME": "90prime", "PLVER": "V2.3"}, CODES),
        ({"INSTRUME": "DECam"}, {1: "BAD", 7: "BAD"}),
        ({"MASKBITS": True}, {1: "", 2: "", 4: "SAT", 8: "SAT", 32: "", 4096: "", 16384: "SAT"}),
        ({"TELESCOP": "Gemini-North"}, GEMINI),
        ({"ORIGIN": "LCOGT"}, {1: "BAD", 2: "SAT", 4: "BAD", 8: "CR", 3: "BAD SAT"}),
    ],
)
def test_codes_and_bits_of_pipelines(tmp_path, image, cards, planes):
    """In a file of its own, with the header of the primary HDU, as NOIRLab's community pipeline has it."""
    values = np.zeros(SHAPE, np.int16)
    for row, value in enumerate(planes):
        values[row] = value
    head = fits.Header(cards)
    for name, pixels in (("ooi", image.astype(np.float32)), ("ood", values)):
        hdus = [fits.PrimaryHDU(header=head), fits.ImageHDU(pixels, header(), name="N4")]
        if name == "ood" and "MASKBITS" in cards:
            hdus[1].name = "MASKBITS"
        fits.HDUList(hdus).writeto(tmp_path / f"{name}.fits")
    files = BandFiles(tmp_path / "ooi.fits", mask=tmp_path / "ood.fits")
    read_planes = read_field({"r": files}).images["r"].planes
    for row, (value, expected) in enumerate(planes.items()):
        found = sorted(plane for plane, selected in read_planes.items() if selected[row].any())
        assert " ".join(found) == expected, value
    # Numbers that are given are codes where pixels have codes.
    if planes is CODES:
        given = read_field({"r": files}, FitsOptions(mask_bits={"CR": 1 << 7})).images["r"].planes
        assert given["CR"][6].all() and np.count_nonzero(given["CR"].any(axis=1)) == 1


def test_masks_of_compressed_files_know_the_telescope(tmp_path, image):
    """fpack moves all cards of the primary HDU to the image."""
    values = np.zeros(SHAPE, np.uint8)
    values[3] = 2
    head = header(ORIGIN="LCOGT", L1ZP=23.5, BUNIT="electron", EXPTIME=30.0)
    hdus = [
        fits.CompImageHDU(image.astype(np.float32), head, name="SCI"),
        fits.CompImageHDU(values, name="BPM"),
    ]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "r.fits.fz")
    planes = read({"r": tmp_path / "r.fits.fz"}).images["r"].planes
    assert planes["SAT"][3].all() and not planes["BAD"].any()


@pytest.mark.parametrize("kinds", [("image", "invvar"), ("SCI", "ERR")])
@pytest.mark.parametrize("order", ["gGrRzZ", "GgRrZz", "grzGRZ"])
def test_weights_of_several_bands_in_one_file(tmp_path, image, kinds, order):
    """As cutouts of the Legacy Surveys; the weights, with capitals, have the order of the images."""
    hdus: list = [fits.PrimaryHDU()]
    for letter in order:
        band = letter.lower()
        sigma, kind = 1.2 * SIGMA["r"] * (1 + "grz".index(band)), kinds[letter != band]
        values = image * (1 + "grz".index(band)) if letter == band else np.full(SHAPE, sigma)
        values = values**-2 if kind == "invvar" else values
        hdus.append(fits.ImageHDU(values.astype(np.float32), header(FILTER=band)))
        hdus[-1].header["EXTNAME" if kind.isupper() else "IMTYPE"] = kind
    fits.HDUList(hdus).writeto(tmp_path / "all.fits")
    result = read(dict.fromkeys("zgr", tmp_path / "all.fits"))
    for number, band in enumerate("grz", 1):
        assert noise(result, band) == pytest.approx(1.2 * SIGMA["r"] * number, rel=1e-3)


@pytest.mark.parametrize("order", [("SCI", "RMS", "FLG"), ("FLG", "RMS", "SCI")])
@pytest.mark.parametrize(("prefix", "suffix"), [("3-4.E.", ""), ("CCD1_", ""), ("", "1")])
def test_extensions_of_euclid(tmp_path, image, order, prefix, suffix):
    """Of several detectors; flags that only inform mask nothing."""
    flags = np.zeros(SHAPE, np.int32)
    planes = {4: "CR", 3: "SAT", 22: "NO_DATA", 1: "BAD", 24: "", 18: "", 5: "", 9: ""}
    for row, bit in enumerate(planes):
        flags[row] = 1 << bit
    values = {"SCI": image.astype(np.float32), "RMS": np.full(SHAPE, 20.0, np.float32), "FLG": flags}
    hdus: list = [fits.PrimaryHDU()]
    for detector in ((prefix, suffix), ("9-9.H.", "")):
        hdus += [fits.ImageHDU(values[kind], header(), name=kind.join(detector)) for kind in order]
    fits.HDUList(hdus).writeto(tmp_path / "r.fits")
    result = read({"r": tmp_path / "r.fits"})
    assert noise(result) == pytest.approx(20.0)
    for row, plane in enumerate(planes.values()):
        found = [name for name, selected in result.images["r"].planes.items() if selected[row].any()]
        assert found == ([plane] if plane else [])


@pytest.mark.parametrize(
    ("cards", "columns"),
    [
        ({"TRIMSEC": "[  17: 136,   1: 112]"}, (16, 136)),
        ({"DATASEC": "[1:128,1:112]", "BIASSEC": "[129:144,1:112]"}, (0, 128)),
        ({"DATASEC": "[1:128,*]", "TRIMSEC": "[1:4096,1:4096]"}, (0, 128)),
        ({"DATASECA": "[17:72,1:112]", "DATASECB": "[128:73,1:112]"}, (16, 128)),
        ({"TSEC11": "[17:72,1:112]", "TSEC12": "[73:128,1:112]", "BSEC11": "[1:16,1:112]"}, (16, 128)),
        ({**ESO, "ESO DET OUT1 NX": 128, "ESO DET OUT1 PRSCX": 16}, (16, 144)),
        # Of other images: a whole CCD, one that was trimmed, a mosaic that was stacked.
        ({"DATASEC": "[33:2080,1:4612]", "BIASSEC": "[0:0,0:0]"}, (0, 144)),
        ({"TRIMSEC": "[1:144,1:112]", "BIASSEC": "[145:160,1:112]"}, (0, 144)),
        ({**ESO, "ESO DET OUT1 NX": 144, "ESO DET OUT1 PRSCX": 16}, (0, 144)),
        ({"TRIMSEC": "UNKNOWN"}, (0, 144)),
    ],
)
def test_overscan_is_no_data(tmp_path, rng, image, cards, columns):
    raw = image + 800.0
    dark = np.ones(SHAPE, bool)
    dark[:, columns[0] : columns[1]] = False
    raw[dark] = rng.normal(300.0, 4.0, SHAPE)[dark]
    head = header()
    for key, value in cards.items():
        head["HIERARCH " + key if " " in key else key] = value
    result = read(write(tmp_path, {"r": raw}, head))
    assert (np.isfinite(result.images["r"].pixels) == ~dark).all()
    assert any("overscan" in note and "raw" in note for note in result.notes) == dark.any()
    assert noise(result) == pytest.approx(SIGMA["r"], rel=0.06)
    assert result.images["r"].psf_fwhm == pytest.approx(0.8, rel=0.06)


@pytest.mark.parametrize("edge", [np.s_[:, :10], np.s_[:, -16:], np.s_[:8], np.s_[-9:]])
def test_overscan_that_no_keyword_tells(tmp_path, rng, image, edge):
    dark = np.zeros(SHAPE, bool)
    dark[edge] = True
    for level, scatter, overscan in ((300.0, 4.0, True), (300.0, 30.0, False), (798.0, 4.0, False)):
        raw = np.where(dark, rng.normal(level, scatter, SHAPE), image + 800.0)
        result = read(write(tmp_path, {"r": raw}))
        assert (np.isfinite(result.images["r"].pixels) == ~(dark & overscan)).all()
        assert any("overscan by level and noise" in note for note in result.notes) == overscan


def test_sections_of_other_images_are_not_believed(tmp_path, image):
    """What lies beside a section is sky as well, in level and scatter; unless its overscan is named."""
    head = {"DATASEC": "[1:128,1:112]"}
    assert np.isfinite(read(write(tmp_path, {"r": image}, header(**head))).images["r"].pixels).all()
    for value in (np.nan, 0.0):
        stack = image + 50.0
        stack[20:70, 134:] = value
        stack[:, 128:] -= 30.0
        pixels = read(write(tmp_path, {"r": stack}, header(**head))).images["r"].pixels
        assert np.isfinite(pixels[:20, 128:]).all()
    head["BIASSEC"] = "[129:144,1:112]"
    assert not np.isfinite(
        read(write(tmp_path, {"r": image}, header(**head))).images["r"].pixels[:, 128:]
    ).any()


MATRIX = {f"CD{row}_{column}": "none" for row in (1, 2) for column in (1, 2)}
STEPS = {"CDELT1": -0.2 / 3600, "CDELT2": 0.2 / 3600}
SWAPPED = {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": 2.2, "CRVAL2": 150.1}
SCAMP = {"PV1_0": 0.0, "PV1_1": 1.0, "PV1_2": 0.0, "PV2_0": 0.0, "PV2_1": 1.0, "PV2_2": 0.0}
NO_SIP = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2}


@pytest.mark.parametrize(
    "cards",
    [
        {"CTYPE1": "ra---tan", "CTYPE2": "dec--tan"},
        {"PC1_1": 1.0, "PC2_2": 1.0},
        {**MATRIX, **STEPS, "CROTA2": 0.0},
        {**MATRIX, **STEPS, "PC001001": 1.0, "PC001002": 0.0, "PC002001": 0.0, "PC002002": 1.0},
        {"RADESYS": "J2000"},
        {"XPIXELSZ": 15.0, "YPIXELSZ": 15.0, "PLTSCALE": 67.2},
        {"CNPIX1": 100, "CNPIX2": 200, "PLTRAH": 10},
        SCAMP,
        {**SCAMP, "PV1_4": 0.0, "PV1_10": 0.0, "PV2_10": 0.0},
        {**SCAMP, **NO_SIP},
        {**SCAMP, "PV1_7": 0.1, **NO_SIP},
        {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", **SCAMP},
        {**NO_SIP, "CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", **SCAMP},
        {"WCSAXES": 4, "CTYPE3": "FREQ", "CTYPE4": "STOKES", "CRVAL3": 1e9, "CDELT3": 1e6},
        {"CPDIS1": "LOOKUP", "CPDIS2": "LOOKUP", "DP1": "EXTVER: 1", "D2IMDIS1": "LOOKUP", "CPERR1": 0.02},
    ],
)
def test_spellings_of_world_coordinates(tmp_path, image, cards):
    """All say the same; tables of distortions are left out."""
    expected = read(write(tmp_path, {"r": image})).wcs.pixel_to_world([20.0, 130.0], [30.0, 90.0])
    result = read(write(tmp_path, {"r": image}, header(**cards)))
    found = result.wcs.pixel_to_world([20.0, 130.0], [30.0, 90.0])
    assert result.has_sky and (found.separation(expected).arcsec < 1e-3).all()
    assert any("distortions that are in tables" in note for note in result.notes) == ("CPDIS1" in cards)


@pytest.mark.parametrize(
    ("cards", "said"),
    [
        ({"CROTA1": 30.0}, "it has CROTA1, no CROTA2"),
        ({"CROTA": 30.0}, "it has CROTA, no CROTA2"),
        ({**SWAPPED, "CROTA2": 30.0}, "it has CROTA2, no CROTA1"),
        ({"CROTA1": 0.0}, None),
        ({"CROTA1": 30.0, "CROTA2": 30.0}, None),
        ({"CROTA1": 30.0, "PC1_1": 1.0, "PC2_2": 1.0}, None),
    ],
)
def test_rotations_of_the_axis_of_longitudes_are_not_known(tmp_path, image, cards, said):
    """As the standard and wcslib have it, the angle is that of the other axis; some programs differ."""
    notes = read(write(tmp_path, {"r": image}, header(**{**MATRIX, **STEPS, **cards}))).notes
    assert [said in note for note in notes if "rotation" in note] == ([True] if said else [])
    assert not any(
        "rotation" in note for note in read(write(tmp_path, {"r": image}, header(CROTA1=9.0))).notes
    )


def test_places_that_are_not_said(tmp_path, image):
    for key in ("CRVAL1", "CRPIX2"):
        notes = read(write(tmp_path, {"r": image}, header(**{key: "none"}))).notes
        assert any(f"it has no {key}, taken for 0" in note for note in notes)


def test_distortions_that_ctype_does_not_name(tmp_path, image, capfd):
    """Used as astropy does, and said in one line."""
    change, places = {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-4, "B_0_2": 1e-4}, []
    for suffix in ("", "-SIP"):
        result = read(
            write(
                tmp_path,
                {"r": image},
                header(CTYPE1=f"RA---TAN{suffix}", CTYPE2=f"DEC--TAN{suffix}", **change),
            )
        )
        places.append(result.wcs.pixel_to_world(20.0, 30.0))
        assert any("though CTYPE does not say so" in note for note in result.notes) != bool(suffix)
    assert places[0].separation(places[1]).arcsec < 1e-6
    assert "Inconsistent SIP" not in "".join(capfd.readouterr())


def test_world_coordinates_are_not_mixed(tmp_path, image):
    """Those of the primary HDU, as of a whole camera, do not reach the images."""
    camera = fits.Header({**SCAMP, "PV1_7": 0.3, "CDELT1": 1.0, "CROTA2": 30.0, "A_ORDER": 2, "A_2_0": 1e-3})
    expected = read(write(tmp_path, {"r": image})).wcs.pixel_to_world(20.0, 30.0)
    hdus = [fits.PrimaryHDU(header=camera), fits.ImageHDU(image, header(), name="CCD1")]
    fits.HDUList(hdus).writeto(tmp_path / "mef.fits")
    found = read({"r": tmp_path / "mef.fits"}).wcs.pixel_to_world(20.0, 30.0)
    assert found.separation(expected).arcsec < 1e-6


@pytest.mark.filterwarnings("ignore:.*keyword already exists")
def test_first_of_two_cards_counts(tmp_path, image):
    head = header(CD1_1=-2e-4, MAGZERO=30.0)
    for key, value in (("CD1_1", -0.2 / 3600), ("MAGZERO", 31.4), ("OBJECT", "sky"), ("OBJECT", "sky")):
        head.insert(0, (key, value))
    result = read(write(tmp_path, {"r": image}, head))
    assert result.pixel_scale == pytest.approx(0.2) and noise(result) == pytest.approx(SIGMA["r"], rel=0.05)
    assert any(note.endswith("are left out: MAGZERO, CD1_1.") for note in result.notes)


@pytest.mark.parametrize("key", ["EQUINOX", "EPOCH"])
def test_equinoxes_of_no_year(tmp_path, image, key):
    expected = read(write(tmp_path, {"r": image})).wcs.pixel_to_world(20.0, 30.0).icrs
    for value, largest in ((0.0, 1e-3), (99999.0, 1e-3), (1950.0, 4000.0)):
        found = read(write(tmp_path, {"r": image}, header(**{key: value}))).wcs.pixel_to_world(20.0, 30.0)
        assert 0.1 * largest * (value == 1950.0) <= found.icrs.separation(expected).arcsec < largest


def test_polynomials_of_scamp_are_those_of_tpv(tmp_path, image):
    change = {**SCAMP, "PV1_4": 0.5, "PV2_2": 0.01}
    places = [
        read(
            write(tmp_path, {"r": image}, header(CTYPE1=f"RA---{kind}", CTYPE2=f"DEC--{kind}", **change))
        ).wcs.pixel_to_world(20.0, 30.0)
        for kind in ("TAN", "TPV")
    ]
    plain = read(write(tmp_path, {"r": image})).wcs.pixel_to_world(20.0, 30.0)
    assert places[0].separation(places[1]).arcsec < 1e-6 < 1e-2 < places[0].separation(plain).arcsec


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_cores_without_data_are_saturated(tmp_path, rng, value):
    """Stacks have no data where stars are saturated; the stars are there. Other holes stay holes."""
    image = star_field(rng, SIGMA["r"]) + moffat(SHAPE, 50.0, 70.0, 3e6, 4.0)
    holes = image > 3e4
    holes[:, 3] = holes[100:104, 20:24] = True
    image[holes] = value
    flags = np.where(holes, 2, 0).astype(np.int32)
    result = read(write(tmp_path, {"r": image}, DQ=(flags, {"TELESCOP": "HST"}))).images["r"]
    core = holes.copy()
    core[:, 3] = core[100:104, 20:24] = False
    assert 10 < core.sum() < 60
    np.testing.assert_array_equal(result.planes["SAT"], core)
    np.testing.assert_array_equal(np.isfinite(result.pixels) & ~result.planes["NO_DATA"], ~holes | core)
    assert (result.pixels[core] > 1.5e4).all() and np.isfinite(result.variance[core]).all()


@pytest.mark.parametrize(
    ("cards", "weights", "relative"),
    [
        # Of CASU: 100 is usual.
        ({}, (25, 100), True),
        # Drizzled images of Hubble have exposure times.
        (HUBBLE, (480.7, 1922.8), True),
        ({**HUBBLE, "BUNIT": "nJy"}, (480.7, 1922.8), False),
        ({}, (480.7, 1922.8), False),
    ],
)
@pytest.mark.parametrize("name", ["CONF", "WHT"])
def test_confidences_and_exposure_times_are_relative(tmp_path, image, cards, weights, relative, name):
    """Also where they happen to be near the inverse variance."""
    values = np.full(SHAPE, weights[1])
    values[:, :40] = weights[0]
    unit = 0.5 / (np.sqrt(weights[1]) * SIGMA["r"])
    files = write(tmp_path, {"r": image * unit}, header(**cards), **{name: (values, {})})
    result = read(files)
    assert noise(result) == pytest.approx(SIGMA["r"] * unit, rel=0.06)
    variance = result.images["r"].variance
    assert variance[0, 0] / variance[0, 100] == pytest.approx(4.0, rel=1e-3)
    assert any("is of confidences, exposure times" in note for note in result.notes) == relative
    assert any("taken for relative" in note for note in result.notes) != relative


@pytest.mark.parametrize("blurred", [False, True])
@pytest.mark.parametrize("name", ["WHT", "IVAR"])
def test_the_noise_tells_inverse_variances_from_relative_weights(tmp_path, rng, name, blurred):
    """Pixels of noise that is correlated, as in resampled images, scatter less than their variance says."""
    shape = (200, 260)
    image, scatter = star_field(rng, 8.0, 4.0, shape, 12, 4), 8.0
    if blurred:
        image, scatter = blur(image, 0.8), 5.0 / np.sqrt(np.pi)
    for factor, kept in ((1.25, True), (0.02 if blurred else 0.4, False), (3.0, False)):
        weight = np.full(shape, 1.0 / (factor * 64.0), np.float32) * rng.uniform(0.97, 1.03, shape)
        result = read(write(tmp_path, {"r": image}, **{name: (weight, {})}))
        kept |= name == "IVAR" and (factor > 0.3)
        assert noise(result) == pytest.approx(8.0 * np.sqrt(factor) if kept else scatter, rel=0.06)
        assert any("inverse variances)" in note for note in result.notes) == (kept and name == "WHT")
        assert any("taken for relative" in note for note in result.notes) != kept


@pytest.mark.parametrize("name", ["WHT", "VAR"])
def test_weights_and_variances_are_not_mixed_up(tmp_path, rng, name):
    """Images of Pan-STARRS called wt are variances."""
    shape = (200, 260)
    quiet = np.arange(shape[1]) < 100
    image = star_field(rng, 1.0, 4.0, shape, 12, 4) + np.where(quiet, 0.0, rng.normal(0.0, 1.0, shape))
    variance = np.where(quiet, 1.0, 2.0) * np.ones(shape, np.float32) * 1.001
    for kind, values in zip(
        ("wrong", "right") if name == "WHT" else ("right", "wrong"), (variance, 1 / variance)
    ):
        result = read(write(tmp_path, {"r": image}, **{name: (values, {})}))
        found = result.images["r"].variance
        assert found[0, 150] / found[0, 50] == pytest.approx(2.0, rel=1e-3)
        assert noise(result) == pytest.approx(2.0**0.5, rel=0.2)
        assert any("the other way round" in note for note in result.notes) == (kind == "wrong")


def test_stretched_images_are_said(tmp_path, image):
    for line, said in (
        ("Processing: Asinh Transformation: (stretch=  10.0)", True),
        ("Background extraction", False),
    ):
        head = header()
        head["HISTORY"] = line
        notes = read(write(tmp_path, {"r": image}, head)).notes
        assert any("not linear in flux" in note for note in notes) == said


def test_depth_that_no_image_has_is_said(tmp_path, image):
    for unit, said in ((1.0, False), (1e-5, True)):
        notes = read(write(tmp_path, {"r": image * unit}, header(MAGZERO=30.0))).notes
        assert any("five times the noise" in note for note in notes) == said


CASU = {"MAGZPT": (24.0, "Photometric ZP"), "MAGZRR": 0.01}


@pytest.mark.parametrize(
    ("cards", "band", "expected"),
    [
        ({"MAGZP": 20.9, "DATASET": "2MASS", "BAND": "J"}, "J", 21.81),
        ({"MAGZP": 20.9, "ORIGIN": "2MASS", "FILTER": "j"}, "J", 21.81),
        ({"MAGZP": 22.5, "BAND": 1, "TELESCOP": "WISE"}, "W1", 25.199),
        ({"MAGZP": 22.5, "BUNIT": "nanomaggy"}, "W2", 25.839),
        ({"MAGZP": (22.5, "Magnitude zeropoint (in Vega mag)"), "BAND": 2}, "W2", 25.839),
        ({**CASU, "INSTRUME": "WFCAM", "FILTER": "K", "EXP_TIME": 10.0}, "K", 28.4),
        ({**CASU, "INSTRUME": "VIRCAM", "FILTER": "Ks", "EXPTIME": 10.0}, "K", 28.327),
        ({**CASU, "INSTRUME": "VIRCAM", "FILTER": "J", "EXPTIME": 10.0}, "J", 27.416),
        ({**CASU, "INSTRUME": "WFC", "FILTER": "r", "EXPTIME": 10.0}, "r", None),
        # As ESO has it beside that of CASU, for the counts of the image.
        ({**CASU, "INSTRUME": "VIRCAM", "FILTER": "H", "PHOTZP": 26.4, "PHOTSYS": "VEGA"}, "H", 27.766),
        ({"PHOTZP": 26.4, "PHOTSYS": "VEGA", "FILTER": "Bessell-V"}, "V", 26.42),
        ({"PHOTZP": 26.4, "PHOTSYS": "Vega", "FILTER1": "clear", "FILTER2": "R"}, "r", 26.61),
        ({"PHOTZP": 26.4, "PHOTSYS": "Vega", "FILTER": "Halpha"}, "R", None),
        ({"PHOTZP": 26.4, "PHOTSYS": "Vega"}, "B", 26.31),
        ({"PHOTZP": 26.4, "PHOTSYS": "AB"}, "B", 26.4),
        ({"BUNIT": "nanomaggy"}, "W1", 25.199),
        ({"SURVEY": "DECaLS"}, "W2", 25.839),
        ({"L1ZP": 23.5, "BUNIT": "electron", "EXPTIME": 100.0}, "r", 28.5),
        ({"ZPAPPROX": 27.9, "EXPTIME": 100.0}, "r", 27.9),
    ],
)
def test_zero_points_of_vega_become_ab(tmp_path, image, cards, band, expected):
    result = read(write(tmp_path, {band: image}, header(**{"MAGZERO": "none", **cards})))
    found = 31.4 - 2.5 * np.log10(result.images[band].nanojansky_per_count)
    assert result.images[band].calibrated == (expected is not None)
    assert found == pytest.approx(31.4 if expected is None else expected, abs=2e-3)
    if expected is None:
        assert any(
            "of Vega's system; AB is this plus" in note and "--zeropoint" in note for note in result.notes
        )


@pytest.mark.parametrize(("scale", "own"), [(0.396, True), (0.79, False)])
def test_pixels_that_are_not_the_survey_s_are_said(tmp_path, image, scale, own):
    """Servers of images sample them anew, and may or may not scale the fluxes of pixels."""
    result = read(write(tmp_path, {"r": image}, header(scale, MAGZERO="none", SURVEY="SDSSr")))
    assert result.images["r"].calibrated
    assert any("kept in resampling" in note for note in result.notes) != own


def test_maggies_have_a_zero_point_of_zero(tmp_path, image):
    """As KiDS; 0 for counts of usual noise stands for nothing."""
    for unit, known in ((1e-12, True), (1.0, False)):
        result = read(write(tmp_path, {"r": image * unit}, header(MAGZERO="none", PHOTZP=0.0)))
        assert result.images["r"].calibrated == known
    result = read(write(tmp_path, {"r": image * 1e-12}, header(MAGZERO="none", PHOTZP=0.0)))
    assert noise(result) == pytest.approx(SIGMA["r"] * 3631e9 * 1e-12, rel=0.05)


@pytest.mark.parametrize("fwhm", [2.0, 4.0])
def test_pixels_sharper_than_stars_are_bad(tmp_path, rng, fwhm):
    image = star_field(rng, 10.0, fwhm, (200, 260), 20, 5)
    assert "BAD" not in read(write(tmp_path, {"r": image})).images["r"].planes
    hot = np.zeros(image.shape, bool)
    hot[7::40, 9::50] = True
    result = read(write(tmp_path, {"r": np.where(hot, image + rng.uniform(400, 2e4, image.shape), image)}))
    bad = result.images["r"].planes["BAD"]
    # But on the sources themselves.
    assert not (bad & ~hot).any() and (bad & hot).sum() > 0.7 * hot.sum()
    assert any("pixels are sharper than stars" in note for note in result.notes)


@pytest.mark.parametrize("fwhm", [3.0, 6.0])
def test_cosmic_rays_are_bad(tmp_path, rng, fwhm):
    """Lines and, where stars are wide, blobs; not saturated stars, nor those beside dead columns."""
    image = star_field(rng, 10.0, fwhm, (240, 320), 24, 6)
    image = np.minimum(image + moffat(image.shape, 120.0, 160.0, 3e6, fwhm), 2e4)
    image[:, [40, 158]] = rng.normal(-500.0, 10.0, (240, 2))
    rays, sky = np.zeros(image.shape, bool), image < 50.0
    for number, (y, x) in enumerate(rng.integers(20, 220, (30, 2))):
        steps = np.arange((2, 3, 5, 9, 14)[number // 6])
        dy, dx = ((0, 2), (2, 0), (2, 2), (2, -2), (1, 2))[number % 5]
        rays[y + steps * dy // 2, x + steps * dx // 2] = True
        rays[y : y + 2, x : x + 2] |= fwhm > 5.0 and number % 10 == 0
    rays &= sky
    head = header(SATURATE=2e4)
    assert "BAD" not in read(write(tmp_path, {"r": image}, head)).images["r"].planes
    bad = read(write(tmp_path, {"r": image + 900.0 * rays}, head)).images["r"].planes["BAD"]
    assert (bad & rays).sum() > 0.9 * rays.sum() and not (bad & ~rays).any()
    # Beside the pixels of one colour of a camera, those of others may have no light.
    bayer = read(write(tmp_path, {"r": image + 900.0 * rays}, header(SATURATE=2e4, BAYERPAT="RGGB")))
    assert not bayer.images["r"].planes.get("BAD", ~sky)[rays].all()


@pytest.mark.parametrize("fwhm", [1.3, 1.8])
def test_undersampled_stars_are_no_cosmic_rays(rng, fwhm):
    """Also if the width of the PSF comes out twice as large as it is."""
    image = undersampled(rng, fwhm)
    assert not find_sharp_pixels(image, np.ones(image.shape, bool), 1.0, 2.0 * fwhm).any()


def test_single_photons_are_not_bad(rng):
    photons = rng.poisson(0.01, (200, 260)).astype(float)
    assert not find_sharp_pixels(photons, np.ones(photons.shape, bool), 0.01, 4.0).any()


def undersampled(rng, fwhm, shape=(240, 240), n_stars=60):
    """Stars of a Gaussian profile, integrated over pixels, and noise of 1."""
    fine, half = 9, 6
    image = rng.normal(0.0, 1.0, shape)
    for y, x in rng.uniform(12, shape[0] - 12, (n_stars, 2)):
        row, column = round(y), round(x)
        steps = (np.arange((2 * half + 1) * fine) + 0.5) / fine - half - 0.5
        sides = [
            np.exp(-4.0 * np.log(2.0) * ((steps - offset) / fwhm) ** 2) for offset in (y - row, x - column)
        ]
        stamp = np.outer(*(side.reshape(-1, fine).sum(axis=1) for side in sides))
        flux = 10 ** rng.uniform(1.8, 2.8) / np.sqrt((stamp**2).sum())
        image[row - half : row + half + 1, column - half : column + half + 1] += flux * stamp
    return image


@pytest.mark.parametrize(("fwhm", "sampled"), [(0.5, 1.06), (0.9, 1.19), (1.3, 1.49)])
def test_undersampled_stars_are_measured_or_unknown(rng, fwhm, sampled):
    image = undersampled(rng, fwhm)
    (star,) = measure_psfs([image], [np.ones(image.shape, bool)], [1.0])
    assert star is None or star.fwhm == pytest.approx(sampled, rel=0.1)


def test_single_bad_pixels_do_not_hide_the_stars(rng):
    """As flagged cosmic rays, in one pixel of twenty-five; light in them is not used."""
    image = star_field(rng, 10.0, 4.0, (240, 320), 24, 8)
    bad = rng.random(image.shape) < 0.04
    (star,) = measure_psfs([np.where(bad, 5000.0, image)], [~bad], [10.0])
    assert star.n_stars >= 6 and star.fwhm == pytest.approx(4.0, rel=0.02)


def test_galaxies_do_not_stand_for_stars_too_narrow_to_be_measured(rng):
    """Ten sources of one size, among stars in single pixels and pairs of these, or among hot pixels."""
    image = undersampled(rng, 0.4, n_stars=40)
    alone = rng.normal(0.0, 1.0, image.shape)
    for y, x in rng.uniform(20, 220, (10, 2)):
        galaxy = moffat(image.shape, y, x, 400.0, 1.6)
        image += galaxy
        alone += galaxy
    alone[tuple(rng.integers(0, 240, (2, 40)))] += 200.0
    good = np.ones(image.shape, bool)
    assert measure_psfs([image], [good], [1.0]) == [None]
    assert measure_psfs([alone], [good], [1.0])[0].fwhm == pytest.approx(1.6, rel=0.15)
