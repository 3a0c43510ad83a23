# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Any FITS images in a Butler repository."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from lsst.afw.image import ExposureF, FilterLabel
from lsst.daf.butler import Butler
from lsst.geom import Box2D
from lsst.meas.maskrcnn.catalogs.truth import read_truth
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.ingest.exposures import field_to_exposures
from lsst.meas.maskrcnn.ingest.fits_files import BandFiles, FitsImageError
from lsst.meas.maskrcnn.ingest.fits_images import FitsOptions, read_field
from lsst.meas.maskrcnn.ingest.repo import PatchGeometry, create_repo, register_patches
from lsst.meas.maskrcnn.network.model_file import load_model
from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendTask

SHAPE = (70, 100)
SCALE = 0.262


def wcs_header(ra=197.86, projection="TAN"):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{projection}", f"DEC--{projection}"]
    wcs.wcs.crval = [ra, -1.41]
    wcs.wcs.crpix = [40.0, 30.0]
    wcs.wcs.cdelt = [-SCALE / 3600, SCALE / 3600]
    return wcs.to_header()


def sky_image(rng, sigma=0.02, sky=0.0):
    image = rng.normal(sky, sigma, SHAPE)
    image[30:34, 40:44] += 3.0
    return image.astype(np.float32)


@pytest.fixture
def files(tmp_path, rng):
    """Images in g, r, z with a WCS and a zero point in the header."""
    paths = {}
    for band in "grz":
        header = wcs_header()
        header["MAGZERO"] = 27.0
        paths[band] = tmp_path / f"my {band}.fits"
        fits.writeto(paths[band], sky_image(rng), header)
    return paths


def words(files):
    return [f"{band}={path}" for band, path in files.items()]


def read_exposures(entries, options=None):
    """Read a field, with the exposures made of it."""
    images = read_field(entries, options)
    return SimpleNamespace(
        exposures=field_to_exposures(images),
        notes=images.notes,
        sky_sigma={band: image.sky_sigma for band, image in images.images.items()},
        psf_fwhm={band: image.psf_fwhm for band, image in images.images.items()},
    )


def read(files, companions=None, **options):
    """Read a field with a PSF that need not be measured."""
    entries = {
        band: BandFiles(path, **{kind: paths[band] for kind, paths in (companions or {}).items()})
        for band, path in files.items()
    }
    return read_exposures(entries, FitsOptions(psf_fwhm=1.1, **options))


def plane(exposure, name):
    return exposure.mask.array & exposure.mask.getPlaneBitMask(name) != 0


def test_command(files, tmp_path, capsys):
    repo = tmp_path / "repo"
    arguments = [str(repo), "--band", *words(files), "--psf-fwhm", "1.2", "--tract", "5"]
    assert maskrcnn("ingest-fits", arguments) == 0
    assert "imported: 1; there already: 0." in capsys.readouterr().out
    assert maskrcnn("ingest-fits", arguments) == 0
    assert "imported: 0; there already: 1." in capsys.readouterr().out
    butler = Butler.from_config(str(repo))
    data_id = {"skymap": "maskRcnnFits", "tract": 5, "patch": 0}
    for band, path in files.items():
        exposure = butler.get("deepCoadd_calexp", data_id, band=band, collections="imported/fits")
        np.testing.assert_array_equal(exposure.image.array, fits.getdata(path))
        assert exposure.getPhotoCalib().getCalibrationMean() == pytest.approx(10 ** (0.4 * 4.4))
        assert exposure.getFilter().bandLabel == band
        sigma = exposure.getPsf().computeShape(exposure.getPsf().getAveragePosition()).getDeterminantRadius()
        assert sigma * 2.3548 * SCALE == pytest.approx(1.2, rel=0.02)
    # The region is where the header says.
    (record,) = butler.registry.queryDimensionRecords("patch", dataId=data_id)
    for corner in Box2D(exposure.getBBox()).getCenter(), *Box2D(exposure.getBBox()).getCorners():
        sky = WCS(wcs_header()).pixel_to_world(corner.getX(), corner.getY())
        ours = exposure.getWcs().pixelToSky(corner)
        assert ours.getRa().asDegrees() == pytest.approx(sky.ra.deg, abs=1e-7)
        assert ours.getDec().asDegrees() == pytest.approx(sky.dec.deg, abs=1e-7)
    assert record.region.contains(
        exposure.getWcs().pixelToSky(Box2D(exposure.getBBox()).getCenter()).getVector()
    )

    # Something else of the same name is refused, and nothing changes.
    fits.setval(files["r"], "MAGZERO", value=25.0)
    assert maskrcnn("ingest-fits", arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("maskrcnn ingest-fits: ") and "another image at tract 5" in error
    after = butler.get("deepCoadd_calexp", data_id, band="r", collections="imported/fits")
    assert after.getPhotoCalib().getCalibrationMean() == pytest.approx(10 ** (0.4 * 4.4))
    arguments += ["--collection", "second"]
    fits.setval(files["g"], "CRVAL1", value=12.0)
    assert maskrcnn("ingest-fits", arguments) == 1
    assert "compared with g, r is up to" in capsys.readouterr().err
    for band in "rz":
        fits.setval(files[band], "CRVAL1", value=12.0)
    assert maskrcnn("ingest-fits", arguments) == 1
    assert "another place" in capsys.readouterr().err


def test_noise_and_sky(tmp_path, rng):
    paths = {}
    for band, sky in zip("grz", (0.0, 40.0, 0.01)):
        paths[band] = tmp_path / f"{band}.fits"
        fits.writeto(paths[band], sky_image(rng, sky=sky))
    images = read(paths, pixel_scale=0.3)
    for band, exposure in images.exposures.items():
        assert np.sqrt(np.median(exposure.variance.array)) == pytest.approx(0.02, rel=0.05)
        assert images.sky_sigma[band] == pytest.approx(0.02, rel=0.05)
    medians = {band: np.median(exposure.image.array) for band, exposure in images.exposures.items()}
    assert abs(medians["g"]) < 0.003 and abs(medians["r"]) < 0.003
    # Half a sigma is left; to take it off is for the user to say.
    assert medians["z"] == pytest.approx(0.01, abs=0.003)
    assert abs(np.median(read(paths, sky="subtract").exposures["z"].image.array)) < 0.003
    assert np.median(read(paths, sky="none").exposures["r"].image.array) == pytest.approx(40.0, abs=0.01)
    assert images.exposures["g"].getWcs().getPixelScale().asArcseconds() == pytest.approx(0.3)


def test_gain(tmp_path, rng):
    """With a gain, the variance follows the sources."""
    light = np.zeros(SHAPE)
    light[20:60, 30:80] = 400.0
    image = rng.poisson(2.0 * (100.0 + light)) / 2.0
    fits.writeto(tmp_path / "r.fits", image)
    variance = read({"r": tmp_path / "r.fits"}, gain=2.0).exposures["r"].variance.array
    assert np.median(variance[light == 0]) == pytest.approx(50.0, rel=0.1)
    assert variance[light > 0].mean() == pytest.approx(250.0, rel=0.05)


@pytest.mark.parametrize("kind", ["variance", "weight", "rms"])
def test_given_variance(files, tmp_path, rng, kind):
    variance = rng.uniform(3e-4, 5e-4, SHAPE)
    values = {"variance": variance, "weight": 1.0 / variance, "rms": np.sqrt(variance)}[kind]
    values[7, 9] = 0.0 if kind != "rms" else np.nan
    companions = {kind: {band: tmp_path / f"{kind}_{band}.fits" for band in files}}
    for path in companions[kind].values():
        fits.writeto(path, values)
    images = read(files, companions)
    exposure = images.exposures["g"]
    good = np.ones(SHAPE, bool)
    good[7, 9] = False
    np.testing.assert_allclose(exposure.variance.array[good], variance[good], rtol=1e-5)
    np.testing.assert_array_equal(plane(exposure, "NO_DATA"), ~good)
    assert np.isnan(exposure.image.array[7, 9])
    assert not any("--rescale" in note for note in images.notes)


def test_relative_weights(files, tmp_path):
    companions = {"weight": {band: tmp_path / f"w_{band}.fits" for band in files}}
    for path in companions["weight"].values():
        fits.writeto(path, np.where(np.arange(SHAPE[1]) < 50, 1.0, 0.5) * np.ones(SHAPE))
    for rescale in (True, False):
        images = read(files, companions, rescale=rescale)
        assert any("relative" in note for note in images.notes) != rescale
        variance = images.exposures["r"].variance.array
        assert variance[0, 60] / variance[0, 40] == pytest.approx(2.0)
        assert 2e-4 < np.median(variance) < 8e-4


def test_masks(files, tmp_path):
    flags = np.zeros(SHAPE, np.int16)
    flags[3, 4], flags[5, 6], flags[8, 9] = 1, 2, 8
    companions = {"mask": {band: tmp_path / f"m_{band}.fits" for band in files}}
    for path in companions["mask"].values():
        fits.writeto(path, flags)
    exposure = read(files, companions).exposures["z"]
    np.testing.assert_array_equal(plane(exposure, "BAD"), flags != 0)
    exposure = read(files, companions, mask_bits={"SAT": 0b10, "CR": 0b1001}).exposures["z"]
    np.testing.assert_array_equal(plane(exposure, "SAT"), flags == 2)
    np.testing.assert_array_equal(plane(exposure, "CR"), (flags == 1) | (flags == 8))
    assert not plane(exposure, "BAD").any()
    with pytest.raises(FitsImageError, match="no mask plane 'OUCH'"):
        read(files, companions, mask_bits={"OUCH": 1})


def test_saturation_and_no_data(files):
    with fits.open(files["g"], mode="update") as hdus:
        hdus[0].data[10, 11] = np.nan
        hdus[0].data[50:53, 60:63] = 900.0
    images = read(files)
    exposure = images.exposures["g"]
    assert plane(exposure, "NO_DATA").sum() == 1 and plane(exposure, "NO_DATA")[10, 11]
    assert plane(exposure, "SAT").sum() == 9 and plane(exposure, "SAT")[51, 61]
    assert any("saturated" in note for note in images.notes)
    assert plane(read(files, saturation=2.5).exposures["r"], "SAT").sum() == 16
    fits.setval(files["g"], "SATURATE", value=1000.0)
    assert not plane(read(files).exposures["g"], "SAT").any()


def test_extensions(tmp_path, rng):
    """SCI, ERR and DQ of one file, compressed, and an HDU by name."""
    image = sky_image(rng)
    other = sky_image(rng) + 5.0
    sigma = np.full(SHAPE, 0.03, np.float32)
    flags = np.zeros(SHAPE, np.int32)
    flags[1, 2] = 4
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(sigma, name="ERR"),
        fits.ImageHDU(flags, name="DQ"),
        fits.CompImageHDU(image, wcs_header(), name="SCI", compression_type="GZIP_2", quantize_level=0),
        fits.ImageHDU(other, name="OTHER"),
    ]
    path = tmp_path / "image.fits.fz"
    fits.HDUList(hdus).writeto(path)
    exposure = read({"r": path}).exposures["r"]
    np.testing.assert_array_equal(exposure.image.array, image)
    np.testing.assert_allclose(exposure.variance.array, 9e-4, rtol=1e-5)
    assert plane(exposure, "BAD")[1, 2] and plane(exposure, "BAD").sum() == 1
    by_name = read({"r": path}, hdu="other", sky="none").exposures["r"]
    by_number = read({"r": path}, hdu="4", sky="none").exposures["r"]
    np.testing.assert_array_equal(by_name.image.array, other)
    np.testing.assert_array_equal(by_number.image.array, other)
    for hdu, said in (("none", "no HDU 'none'"), ("9", "no HDU 9")):
        with pytest.raises(FitsImageError, match=said):
            read({"r": path}, hdu=hdu)


@pytest.mark.parametrize(
    "keywords", [{"BANDS": "grz"}, {"BANDS": "g, r, z"}, {"BAND0": "g", "BAND1": "r", "BAND2": "z"}, {}]
)
def test_cube(tmp_path, rng, keywords):
    """Cut-outs of the Legacy Survey are cubes."""
    cube = np.stack([sky_image(rng) for _ in range(3)])
    header = wcs_header()
    header.update(keywords)
    path = tmp_path / "cutout.fits"
    fits.writeto(path, cube, header)
    order = "zrg" if keywords else "grz"
    images = read(dict.fromkeys(order, path))
    for band, exposure in images.exposures.items():
        np.testing.assert_array_equal(exposure.image.array, cube["grz".index(band)])
    if keywords:
        single = read({"r": path}).exposures["r"]
        np.testing.assert_array_equal(single.image.array, cube[1])
    else:
        with pytest.raises(FitsImageError, match="no two-dimensional image"):
            read({"r": path})
    with pytest.raises(FitsImageError, match="'y' is wanted"):
        header["BANDS"] = "grz"
        fits.writeto(path, cube, header, overwrite=True)
        read(dict.fromkeys("gry", path))


def test_many_fields(tmp_path, rng, capsys):
    """Folders and a table, with what belongs to the images."""
    for number in range(3):
        folder = tmp_path / f"field{number}"
        folder.mkdir()
        for band in "gr":
            fits.writeto(folder / f"{band}_sci.fits", sky_image(rng), wcs_header(10.0 + number))
            fits.writeto(folder / f"{band}_var.fits", np.full(SHAPE, 4e-4 * (1 + number)))
    repo = tmp_path / "repo"
    arguments = ["--bands", "r", "g", "--psf-fwhm", "1", "--pattern", "{band}_sci.fits", "--zeropoint", "25"]
    folders = [str(tmp_path / f"field{number}") for number in range(3)]
    assert (
        maskrcnn(
            "ingest-fits",
            [str(repo), "--dirs", *folders, *arguments, "--split", "train=2,validation=1,test=7"],
        )
        == 0
    )
    butler = Butler.from_config(str(repo))
    refs = butler.query_datasets("deepCoadd_calexp", collections="imported/fits")
    assert {(ref.dataId["tract"], ref.run.rpartition("/")[2]) for ref in refs} == {
        (0, "train"),
        (1, "train"),
        (2, "validation"),
    }
    table = tmp_path / "fields.csv"
    rows = ["name, g, r, variance_g, variance_r, zeropoint_g, zeropoint, tract, split"]
    for number in range(3):
        files = ",".join(f"field{number}/{band}_{kind}.fits" for kind in ("sci", "var") for band in "gr")
        rows.append(f"no. {number}, {files}, {20 + number},,{100 + number}, {'test' if number == 1 else ''}")
    table.write_text("\n".join(rows) + "\n")
    assert (
        maskrcnn("ingest-fits", [str(repo), "--table", str(table), "--psf-fwhm", "1", "--zeropoint", "26"])
        == 0
    )
    exposure = butler.get(
        "deepCoadd_calexp",
        skymap="maskRcnnFits",
        tract=101,
        patch=0,
        band="g",
        collections="imported/fits/test",
    )
    assert exposure.getPhotoCalib().getCalibrationMean() == pytest.approx(10 ** (0.4 * (31.4 - 21.0)))
    np.testing.assert_allclose(exposure.variance.array, 8e-4, rtol=1e-6)
    data_id = {"skymap": "maskRcnnFits", "tract": 102, "patch": 0, "band": "r"}
    exposure = butler.get("deepCoadd_calexp", data_id, collections="imported/fits")
    assert exposure.getPhotoCalib().getCalibrationMean() == pytest.approx(10 ** (0.4 * (31.4 - 26.0)))


def test_patch_of_a_survey(files, tmp_path, capsys):
    """Where the repository has a sky map already, its patches are used."""
    repo = tmp_path / "repo"
    butler = create_repo(repo)
    exposure = read(files).exposures["g"]
    geometry = PatchGeometry(9813, 4, exposure.getWcs(), exposure.getBBox(), (1, 1))
    register_patches(butler, "hsc_rings_v1", [geometry], ["g", "r", "z"], instrument="HSC")
    arguments = [str(repo), "--band", *words(files), "--psf-fwhm", "1", "--skymap", "hsc_rings_v1"]
    assert maskrcnn("ingest-fits", [*arguments, "--tract", "9813", "--patch", "5"]) == 1
    assert "has no tract 9813, patch 5" in capsys.readouterr().err
    assert maskrcnn("ingest-fits", [*arguments, "--tract", "9813", "--patch", "4"]) == 0
    data_id = {"skymap": "hsc_rings_v1", "tract": 9813, "patch": 4, "band": "r"}
    assert Butler.from_config(str(repo)).exists("deepCoadd_calexp", data_id, collections="imported/fits")


def test_refusals_in_one_line(files, tmp_path, rng, capsys):
    good = ["--band", *words(files)]
    small = tmp_path / "small.fits"
    fits.writeto(small, rng.normal(size=(20, 30)))
    cut = tmp_path / "cut.fits"
    cut.write_bytes(files["g"].read_bytes()[:12_000])
    packed = tmp_path / "packed.fits.gz"
    packed.write_bytes(gzip.compress(files["g"].read_bytes())[:-2000])
    void = tmp_path / "void.fits"
    fits.writeto(void, np.full(SHAPE, np.nan))
    text = tmp_path / "text.fits"
    text.write_text("no image")
    odd = tmp_path / "odd.csv"
    odd.write_text("g,r,weird\n")
    short = tmp_path / "short.csv"
    short.write_text("g,r\nonly.fits\n")
    cases = [
        ([], "no images"),
        ([*good, "--fits", str(files["g"])], "--band and --fits"),
        (["--band", "g"], "write it like g="),
        (["--band", f"g={files['g']}", f"g={files['r']}"], "names band 'g' twice"),
        (["--band", "g=none.fits"], "no file none.fits"),
        (["--band", f"g={text}"], "text.fits"),
        (["--band", f"g={cut}"], "cut.fits"),
        (["--band", f"g={packed}"], "packed.fits.gz"),
        (["--band", f"g={void}"], "finite"),
        (["--band", f"g={files['g']}", f"r={small}"], "30 x 20"),
        ([*good, "--variance", f"g={small}"], "small.fits is 30 x 20"),
        ([*good, "--variance", f"i={small}"], "--variance is given for i"),
        ([*good, "--variance", f"g={small}", "--rms", f"g={small}"], "one of variance, weight and RMS"),
        ([*good, "--mask-bits", "BAD"], "--mask-bits BAD"),
        ([*good, "--zeropoint", "bright"], "--zeropoint bright"),
        ([*good, "--pixel-scale", "-1"], "pixel_scale is -1"),
        ([*good, "--tract", "-1"], "Tract -1"),
        ([*good, "--split", "auto=3"], "--split auto=3"),
        (["--fits", str(files["g"]), str(files["r"])], "2 files for the bands g, r, z"),
        (["--dirs", str(tmp_path)], "img_g.fits"),
        (["--table", str(tmp_path / "none.csv")], "none.csv"),
        (["--table", str(odd), "--bands", "g", "r"], "not understood: weird"),
        (["--table", str(short)], "not as many values"),
    ]
    for arguments, said in cases:
        assert maskrcnn("ingest-fits", [str(tmp_path / "repo"), *arguments]) == 1, arguments
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("maskrcnn ingest-fits: ") and said in error, (arguments, error)
    if (tmp_path / "repo").exists():
        butler = Butler.from_config(str(tmp_path / "repo"))
        assert not list(butler.registry.queryDatasetTypes("deepCoadd_calexp"))


def test_decals(shared_data):
    """Real images: their noise in the sky, and seeing from their stars."""
    folder = shared_data / "decals"
    images = read_exposures({band: BandFiles(folder / f"img_{band}.fits") for band in "grz"})
    for band, exposure in images.exposures.items():
        assert exposure.getPhotoCalib().getCalibrationMean() == pytest.approx(3631.0, rel=1e-3)
        assert 0.9 < images.psf_fwhm[band] < 1.6
        # The sky was subtracted before, and is left as it is.
        np.testing.assert_array_equal(exposure.image.array, fits.getdata(folder / f"img_{band}.fits"))
        corner = exposure.image.array[400:480, 20:60]
        assert np.sqrt(exposure.variance.array[0, 0]) == pytest.approx(corner.std(), rel=0.2)


@pytest.mark.slow
def test_deblender_on_what_was_imported(shared_data, tmp_path):
    """Real and simulated images, both commands, one sky map."""
    repo = tmp_path / "repo"
    folder = shared_data / "decals"
    images = [f"{band}={folder / f'img_{band}.fits'}" for band in "grz"]
    collections = ["--collection", "images", "--skymap", "sky"]
    assert maskrcnn("ingest-fits", [str(repo), "--band", *images, *collections, "--tract", "1"]) == 0
    assert (
        maskrcnn(
            "import-astro-rcnn", [str(repo), str(shared_data / "phosim_decam"), *collections, "--tract", "2"]
        )
        == 0
    )
    butler = Butler.from_config(str(repo))
    model = load_model()
    task = MaskRcnnDeblendTask()
    found = {}
    for tract in (1, 2):
        data_id = {"skymap": "sky", "tract": tract, "patch": 0}
        exposures = {
            band: butler.get("deepCoadd_calexp", data_id, band=band, collections="images") for band in "grz"
        }
        catalog = task.run(exposures=exposures, model=model).catalog
        found[tract] = catalog[np.asarray(catalog["deblend_nChild"]) == 0].copy(deep=True)
    # sep finds 42 above 5 sigma in one band; of 3 sigma in any band there are about three times as many.
    assert 40 < len(found[1]) < 200 and 100 < len(found[2]) < 250
    truth = butler.get("maskRcnn_truth", skymap="sky", tract=2, patch=0, collections="images")
    for record in truth:
        x, y = record.getX(), record.getY()
        assert np.hypot(found[2].getX() - x, found[2].getY() - y).min() < 1.5


def test_afw_exposures(shared_data):
    folder = shared_data / "scarlet"
    images = read_exposures({band: BandFiles(folder / f"exposure_{band}.fits") for band in "grz"})
    assert images.exposures["z"].getX0() == 12000 and not images.notes


def test_coadds_that_afw_wrote_come_back_without_a_warning(shared_data, tmp_path, recwarn):
    """Their label has a physical filter, which the data ID of a coadd lacks."""
    paths = {}
    for band in "grz":
        exposure = ExposureF.readFits(str(shared_data / "scarlet" / f"exposure_{band}.fits"))
        exposure.setFilter(FilterLabel.fromBandPhysical(band, f"HSC-{band.upper()}"))
        paths[band] = tmp_path / f"{band}.fits"
        exposure.writeFits(str(paths[band]))
    repo = tmp_path / "repo"
    assert maskrcnn("ingest-fits", [str(repo), "--band", *words(paths)]) == 0
    butler = Butler.from_config(str(repo))
    for ref in butler.query_datasets("deepCoadd_calexp", collections="*", find_first=False):
        assert butler.get(ref).getFilter() == FilterLabel.fromBand(ref.dataId["band"])
    assert not [warning for warning in recwarn if "mismatch" in str(warning.message)]


def coco(files, categories, annotations, **changes):
    height, width = fits.getdata(files["r"]).shape
    image = {"id": 7, "file_name": "r.png", "height": height, "width": width, **changes}
    names = [{"id": number, "name": name} for number, name in enumerate(categories)]
    entries = [{"image_id": 7, "category_id": kind, "segmentation": one} for kind, one in annotations]
    return json.dumps({"images": [image], "categories": names, "annotations": entries})


def pack(runs):
    """Runs as pycocotools writes them."""
    text = ""
    for index, run in enumerate(runs):
        value, more = run - (runs[index - 2] if index > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | 32 * more) + 48)
    return text


def test_truth_of_labels_and_coco(files, tmp_path):
    """The same two sources as an image of labels, as polygons, and as runs of pixels."""
    shape = fits.getdata(files["r"]).shape
    labels = np.zeros(shape, np.int16)
    labels[10:20, 30:36] = 3
    labels[20:27, 31:50] = 8
    table = Table({"label": [8, 3], "class": ["star", "galaxy"]})
    truths = {"labels.fits": fits.HDUList([fits.PrimaryHDU(labels), fits.BinTableHDU(table)])}
    truths["labels.fits"].writeto(tmp_path / "labels.fits")
    boxes = [[[30, 10, 36, 10, 36, 20, 30, 20]], [[31, 20, 50, 20, 50, 27, 31, 27]]]
    runs = []
    for label in (3, 8):
        flat = (labels == label).T.ravel()
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]))).tolist()
        runs.append(np.diff([0, *edges, flat.size]).tolist())
    packed = [{"size": list(shape), "counts": pack(one)} for one in runs]
    plain = [{"size": list(shape), "counts": one} for one in runs]
    for name, masks in (("polygons", boxes), ("packed", packed), ("plain", plain)):
        (tmp_path / f"{name}.json").write_text(coco(files, ["galaxy", "star"], list(enumerate(masks))))
    found = []
    for tract, name in enumerate(("labels.fits", "polygons.json", "packed.json", "plain.json")):
        arguments = ["--psf-fwhm", "1.2", "--tract", str(tract), "--truth", str(tmp_path / name)]
        assert (
            maskrcnn("ingest-fits", ["-b", str(tmp_path / "repo"), "--band", *words(files), *arguments]) == 0
        )
        butler = Butler.from_config(str(tmp_path / "repo"), collections="imported/fits")
        catalog = butler.get("maskRcnn_truth", skymap="maskRcnnFits", tract=tract, patch=0)
        truth = read_truth(catalog, butler.get("deepCoadd_calexp", catalog_id(tract)).getBBox())
        found.append((truth.is_star.tolist(), truth.origins.tolist(), [m.shape for m in truth.masks]))
        assert all(mask.all() for mask in truth.masks)
        np.testing.assert_allclose(
            catalog["truth_r_flux"][0],
            np.sum(butler.get("deepCoadd_calexp", catalog_id(tract)).image.array[10:20, 30:36])
            * 10 ** (0.4 * 4.4),
            rtol=1e-4,
        )
    assert found == [found[0]] * 4
    assert found[0] == ([False, True], [[10, 30], [20, 31]], [(10, 6), (7, 19)])


def catalog_id(tract):
    return {"skymap": "maskRcnnFits", "tract": tract, "patch": 0, "band": "r"}


def test_truth_that_is_refused(files, tmp_path, capsys):
    shape = fits.getdata(files["r"]).shape
    fits.writeto(tmp_path / "float.fits", np.zeros(shape))
    fits.writeto(tmp_path / "small.fits", np.zeros((4, 5), int))
    good = [(0, [[1, 1, 5, 1, 5, 5]])]
    contents = {
        "broken": "{",
        "other": coco(files, ["galaxy"], good, height=3),
        "class": coco(files, ["quasar"], good),
        "runs": coco(files, ["star"], [(0, {"counts": [4, 5]})]),
        "category": coco(files, ["star"], [(3, [[1, 1, 5, 1, 5, 5]])]),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(content)
    said = {"float.fits": "integers", "small.fits": "(4, 5)", "broken.json": "cannot be read as truth"}
    said |= {"other.json": "0 images of", "class.json": "'quasar'", "runs.json": "runs of 9 pixels"}
    said |= {"category.json": "cannot be read as truth", "none.json": "There is no file"}
    for name, text in said.items():
        arguments = ["--psf-fwhm", "1.2", "--truth", str(tmp_path / name), "--band", *words(files)]
        assert maskrcnn("ingest-fits", ["-b", str(tmp_path / "repo"), *arguments]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("maskrcnn ingest-fits: ") and text in line, line
