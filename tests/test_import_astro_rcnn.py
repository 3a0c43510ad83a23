# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sets in the layout of Astro R-CNN in a Butler repository."""

from __future__ import annotations

import dataclasses
import gzip
import shutil

import numpy as np
import pytest
from astropy.io import fits

from lsst.afw.image import ExposureF
from lsst.daf.butler import Butler
from lsst.meas.maskrcnn.catalogs.truth import read_truth
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.ingest.astro_rcnn import AstroRcnnOptions, choose_mask_band, find_sets, read_set
from lsst.meas.maskrcnn.ingest.fits_files import FitsImageError
from lsst.meas.maskrcnn.ingest.fits_images import FitsOptions
from lsst.meas.maskrcnn.scenes.artefacts import MASK_BITS
from lsst.meas.maskrcnn.scenes.config import MaskRule

BANDS = ("z", "r", "g")
SHAPE = (90, 140)
# Flux of each source in a band relative to r, and the sky in electrons.
COLOR = {"z": 3.0, "r": 1.0, "g": 0.4}
SKY = {"z": 80.0, "r": 60.0, "g": 40.0}
# x, y, peak in r, sigma, class
SOURCES = ((30.3, 20.6, 900.0, 1.7, 1), (70.0, 50.0, 400.0, 3.0, 2), (76.0, 51.5, 200.0, 2.5, 2))
SKY_MAP = "maskRcnnAstroRcnn"


def light(x, y, peak, sigma):
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    values = peak * np.exp(-0.5 * ((xx - x) ** 2 + (yy - y) ** 2) / sigma**2)
    return np.where(values > 1e-4 * peak, values, 0.0)


def write_set(folder, seed=3, suffix="", masks=True, band="r"):
    """A set of three sources; the masks are those of a band."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    total = sum(light(*source[:4]) for source in SOURCES)
    for name in BANDS:
        image = rng.poisson(SKY[name] + COLOR[name] * total).astype(np.float32)
        fits.writeto(folder / f"img_{name}.fits{suffix}", image)
    if masks:
        hdus = [fits.ImageHDU((COLOR[band] * light(*source[:4])).astype(np.float32)) for source in SOURCES]
        hdus[0] = fits.PrimaryHDU(hdus[0].data)
        for hdu, source in zip(hdus, SOURCES):
            hdu.header["CLASS_ID"] = source[4]
        fits.HDUList(hdus).writeto(folder / f"masks.fits{suffix}")
    return folder


def change_masks(folder, change):
    """Let a function change the HDUs of ``masks.fits``."""
    path = folder / "masks.fits"
    with fits.open(path, memmap=False) as hdus:
        copies = [hdu.copy() for hdu in hdus]
    path.unlink()
    fits.HDUList(change(copies) or copies).writeto(path, output_verify="silentfix")


def run(repo, *arguments):
    return maskrcnn("import-astro-rcnn", [str(repo), *map(str, arguments), "--psf-fwhm", "0.9"])


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A repository with training and validation sets, made by the command."""
    base = tmp_path_factory.mktemp("sets")
    write_set(base / "data" / "training" / "set_2", seed=2)
    write_set(base / "data" / "training" / "set_10", seed=10, suffix=".gz")
    write_set(base / "data" / "validation" / "set_0", seed=0, masks=False)
    status = run(base / "repo", base / "data", "--zeropoint", "z=28.4", "r=28.9", "g=29.4")
    return base, status


def test_what_is_in_the_repo(imported):
    base, status = imported
    assert status == 0
    butler = Butler.from_config(str(base / "repo"))
    refs = butler.query_datasets("deepCoadd_calexp", collections="imported/astro_rcnn")
    assert {(ref.run, ref.dataId["tract"]) for ref in refs} == {
        ("imported/astro_rcnn/train", 2),
        ("imported/astro_rcnn/train", 10),
        ("imported/astro_rcnn/validation", 10_000),
    }
    assert len(refs) == 9
    truths = butler.query_datasets("maskRcnn_truth", collections="imported/astro_rcnn")
    assert {ref.dataId["tract"] for ref in truths} == {2, 10}
    fluxes = butler.query_datasets("maskRcnn_truthFlux", collections="imported/astro_rcnn")
    assert {(ref.dataId["tract"], ref.dataId["band"]) for ref in fluxes} == {(2, "r"), (10, "r")}
    ids = np.concatenate([butler.get(ref)["id"] for ref in truths])
    assert len(np.unique(ids)) == 6


def test_sets_without_coordinates_lie_apart(imported):
    base, _ = imported
    butler = Butler.from_config(str(base / "repo"))
    records = list(butler.registry.queryDimensionRecords("patch", skymap=SKY_MAP, tract=2))
    records += butler.registry.queryDimensionRecords("patch", skymap=SKY_MAP, tract=10)
    assert len(records) == 2 and not records[0].region.overlaps(records[1].region)


def test_exposures(imported):
    base, _ = imported
    butler = Butler.from_config(str(base / "repo"))
    data_id = {"skymap": SKY_MAP, "tract": 2, "patch": 0, "collections": "imported/astro_rcnn"}
    for band, zero_point in (("z", 28.4), ("r", 28.9), ("g", 29.4)):
        exposure = butler.get("deepCoadd_calexp", band=band, **data_id)
        assert isinstance(exposure, ExposureF) and exposure.getFilter().bandLabel == band
        scale = 10.0 ** (0.4 * (31.4 - zero_point)) / exposure.getPhotoCalib().getCalibrationMean()
        counts = exposure.image.array / scale
        empty = np.ones(SHAPE, bool)
        for source in SOURCES:
            empty &= light(*source[:4]) == 0
        assert abs(counts[empty].mean()) < 0.1 * SKY[band] ** 0.5
        # Electrons: the variance of sky and sources is their number.
        variance = exposure.variance.array / scale**2
        assert np.median(variance[empty]) == pytest.approx(SKY[band], rel=0.04)
        assert variance[empty].mean() == pytest.approx(SKY[band], rel=0.06)
        assert variance[50, 70] == pytest.approx(SKY[band] + counts[50, 70], rel=0.1)
        assert exposure.getPsf() is not None and exposure.getWcs() is not None


def test_truth(imported):
    base, _ = imported
    butler = Butler.from_config(str(base / "repo"))
    data_id = {"skymap": SKY_MAP, "tract": 10, "patch": 0, "collections": "imported/astro_rcnn"}
    catalog = butler.get("maskRcnn_truth", **data_id)
    exposure = butler.get("deepCoadd_calexp", band="r", **data_id)
    truth = read_truth(catalog, exposure.getBBox())
    np.testing.assert_allclose(truth.x, [source[0] for source in SOURCES], atol=0.01)
    np.testing.assert_allclose(truth.y, [source[1] for source in SOURCES], atol=0.01)
    assert truth.is_star.tolist() == [True, False, False]
    scale = 10.0 ** (0.4 * (31.4 - 28.9))
    for mask, (y0, x0), source in zip(truth.masks, truth.origins, SOURCES):
        own = light(*source[:4])
        expected = own > (0.005 if source[4] == 1 else 0.08) * own.max()
        full = np.zeros(SHAPE, bool)
        full[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
        np.testing.assert_array_equal(full, expected)
    flux = [scale * light(*source[:4]).sum() for source in SOURCES]
    np.testing.assert_allclose(truth.flux["r"], flux, rtol=1e-5)
    assert np.isnan(truth.flux["z"]).all() and np.isnan(catalog["truth_redshift"]).all()
    np.testing.assert_allclose(truth.mag["r"], 31.4 - 2.5 * np.log10(flux), atol=1e-5)
    # Two galaxies overlap, the star is alone.
    assert catalog["truth_blendedness"][0] == pytest.approx(0.0, abs=1e-6)
    assert (catalog["truth_blendedness"][1:] > 0.02).all()
    distance = np.hypot(6.0, 1.5) * exposure.getWcs().getPixelScale().asArcseconds()
    np.testing.assert_allclose(catalog["truth_neighborDistance"][1:], distance, rtol=1e-3)
    assert not truth.flagged.any()

    heavy = butler.get("maskRcnn_truthFlux", band="r", **data_id)
    assert heavy["id"].tolist() == catalog["id"].tolist()
    total = np.zeros(SHAPE)
    for record in heavy:
        footprint = record.getFootprint()
        pixels = np.zeros(SHAPE, np.float32)
        footprint.getSpans().unflatten(pixels, footprint.getImageArray())
        total += pixels
    expected = scale * sum(light(*source[:4]) for source in SOURCES)
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-3)
    picture = butler.get("maskRcnn_truthImage", band="r", **data_id)
    np.testing.assert_allclose(picture.image.array, expected, rtol=1e-5, atol=1e-3)


def test_again_and_more(imported, capsys):
    base, _ = imported
    repo, zero_points = base / "repo", ["--zeropoint", "z=28.4", "r=28.9", "g=29.4"]
    assert run(repo, base / "data", *zero_points) == 0
    assert "imported: 0; there already: 3." in capsys.readouterr().out
    # The same sets, read otherwise, and another split.
    assert run(repo, base / "data", "--zeropoint", "30") == 1
    error = capsys.readouterr().err
    assert (
        error.splitlines()[-1].startswith("maskrcnn import-astro-rcnn: ")
        and "another image at tract 2" in error
    )
    assert run(repo, base / "data", *zero_points, "--split", "test") == 1
    assert "imported/astro_rcnn/train" in capsys.readouterr().err
    # Other images of the same number.
    other = base / "other" / "set_2"
    write_set(other, seed=99)
    assert run(repo, other, *zero_points) == 1
    assert "another" in capsys.readouterr().err
    assert run(repo, other, *zero_points, "--tract", "500", "--split", "train=2,test=8") == 0
    butler = Butler.from_config(str(repo))
    ref = butler.find_dataset(
        "maskRcnn_truth", skymap=SKY_MAP, tract=502, patch=0, collections="imported/astro_rcnn"
    )
    assert ref.run == "imported/astro_rcnn/test"


def test_error_in_the_middle_keeps_the_rest(tmp_path, capsys):
    write_set(tmp_path / "sets" / "set_0")
    broken = write_set(tmp_path / "sets" / "set_1")
    (broken / "masks.fits").write_bytes((broken / "masks.fits").read_bytes()[:60_000])
    arguments = [tmp_path / "sets", "--mask-band", "r"]
    assert run(tmp_path / "repo", *arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(broken / "masks.fits") in error
    butler = Butler.from_config(str(tmp_path / "repo"))

    def tracts(name):
        refs = butler.query_datasets(name, collections="imported/astro_rcnn", explain=False)
        return sorted({ref.dataId["tract"] for ref in refs})

    assert tracts("deepCoadd_calexp") == tracts("maskRcnn_truth") == [0]
    shutil.rmtree(broken)
    write_set(broken)
    assert run(tmp_path / "repo", *arguments) == 0
    assert "imported: 1 (1 stars, 2 galaxies); there already: 1." in capsys.readouterr().out
    butler.registry.refresh()
    assert tracts("deepCoadd_calexp") == tracts("maskRcnn_truth") == [0, 1]


OPTIONS = AstroRcnnOptions(fits=FitsOptions(psf_fwhm=0.9, gain=1.0), mask_rule=MaskRule(band="r"))


def no_class(hdus):
    del hdus[1].header["CLASS_ID"]


def odd_class(hdus):
    hdus[1].header["CLASS_ID"] = 3


def wrong_shape(hdus):
    hdus[1] = fits.ImageHDU(np.ones((20, 30), np.float32), hdus[1].header)


def with_nan(hdus):
    hdus[1].data[3, 4] = np.nan


def a_table(hdus):
    hdus[1] = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=np.arange(3))])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_class, "no CLASS_ID; set it to 1"),
        (odd_class, "CLASS_ID 3; it must be 1"),
        (wrong_shape, "30 x 20 pixels, the images are 140 x 90"),
        (with_nan, "not finite"),
        (a_table, "is a table"),
    ],
)
def test_unusable_source(tmp_path, change, words):
    folder = write_set(tmp_path / "set_0")
    change_masks(folder, change)
    with pytest.raises(FitsImageError, match=words) as caught:
        read_set(folder, OPTIONS)
    assert f"{folder / 'masks.fits'}, HDU 1" in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    scene = read_set(folder, dataclasses.replace(OPTIONS, skip_bad=True))
    assert scene.sources["is_star"].tolist() == [True, False]
    assert any("HDU 1" in note for note in scene.notes)


def test_empty_sources(tmp_path):
    folder = write_set(tmp_path / "set_0")

    def change(hdus):
        hdus[1].data[:] = 0.0
        header = fits.Header({"CLASS_ID": 2})
        return [*hdus, fits.ImageHDU(None, header)]

    change_masks(folder, change)
    scene = read_set(folder, OPTIONS)
    assert scene.sources["flag_empty"].tolist() == [False, True, False, True]
    assert scene.sources["flag_small"].tolist() == [False, True, False, True]
    assert np.isnan(scene.sources["x"][1]) and scene.sources["flux_r"][1] == 0.0
    assert scene.masks[1].size == 0 and len(scene.models) == 4


def test_layouts_of_masks(tmp_path):
    """An empty primary HDU, compressed HDUs, gzip under a plain name, no source at all."""
    plain = read_set(write_set(tmp_path / "set_0"), OPTIONS)
    folder = write_set(tmp_path / "set_1")

    def compressed(hdus):
        images = [
            fits.CompImageHDU(hdu.data, hdu.header, compression_type="GZIP_2", quantize_level=0)
            for hdu in hdus[1:]
        ]
        return [fits.PrimaryHDU(), fits.ImageHDU(hdus[0].data, hdus[0].header), *images]

    change_masks(folder, compressed)
    (folder / "img_r.fits").write_bytes(gzip.compress((folder / "img_r.fits").read_bytes()))
    scene = read_set(folder, OPTIONS)
    assert len(scene.sources) == 3
    for name in ("x", "y", "area", "flux_r"):
        np.testing.assert_allclose(scene.sources[name], plain.sources[name], rtol=1e-6)
    np.testing.assert_array_equal(scene.images[1], plain.images[1])

    change_masks(folder, lambda hdus: [fits.PrimaryHDU()])
    scene = read_set(folder, OPTIONS)
    assert len(scene.sources) == 0 and any("no source" in note for note in scene.notes)
    assert not scene.light.any(where=np.isfinite(scene.light))


def test_source_at_the_edge_and_hidden(tmp_path):
    folder = write_set(tmp_path / "set_0")

    def change(hdus):
        hdus[0].data = light(1.0, 40.0, 900.0, 2.0).astype(np.float32)
        hdus[2].data = light(120.0, 40.0, 1.5, 2.0).astype(np.float32)

    change_masks(folder, change)
    image = fits.getdata(folder / "img_g.fits").copy()
    image[40:60, 60:80] = np.nan
    fits.writeto(folder / "img_g.fits", image, overwrite=True)
    sources = read_set(folder, OPTIONS).sources
    assert sources["flag_edge"].tolist() == [True, False, False]
    assert sources["flag_masked"].tolist() == [False, True, False]
    assert sources["flag_faint"].tolist() == [False, False, True]


@pytest.mark.parametrize("kind", ["isophote", "fluxFraction"])
def test_other_mask_rules(tmp_path, kind):
    folder = write_set(tmp_path / "set_0")
    rule = MaskRule(kind=kind, band="r", isophote=2.0, flux_fraction=0.8)
    scene = read_set(folder, dataclasses.replace(OPTIONS, mask_rule=rule))
    own = light(*SOURCES[1][:4])
    if kind == "isophote":
        assert scene.sources["area"][1] == np.count_nonzero(own > 2.0 * scene.sky_sigma[1])
    else:
        y0, x0 = scene.origins[1]
        height, width = scene.masks[1].shape
        inside = own[y0 : y0 + height, x0 : x0 + width][scene.masks[1]].sum() / own.sum()
        assert 0.8 <= inside < 0.82
    assert scene.config.mask_rule == rule


def test_smooth_masks_lose_single_photons(tmp_path):
    folder = write_set(tmp_path / "set_0")

    def photons(hdus):
        rng = np.random.default_rng(5)
        hdus[0].data = rng.poisson(0.1 * hdus[0].data + 0.002).astype(np.float32)

    change_masks(folder, photons)
    rough = read_set(folder, OPTIONS)
    smooth = read_set(folder, dataclasses.replace(OPTIONS, smooth=2.0))
    assert rough.masks[0].shape > (60, 60)
    assert max(smooth.masks[0].shape) < 20 and smooth.masks[0].mean() > 0.6
    y, x = np.argwhere(smooth.masks[0]).mean(axis=0) + smooth.origins[0]
    assert np.hypot(x - 30.3, y - 20.6) < 0.5


def test_images_without_noise(tmp_path):
    """The published extension has no sky in its images; the variance must be above 0 all the same."""
    folder = write_set(tmp_path / "set_0")
    total = sum(light(*source[:4]) for source in SOURCES)
    counts = np.random.default_rng(4).poisson(total).astype(np.float32)
    for band, image in (("z", total), ("r", counts), ("g", np.rint(total))):
        fits.writeto(folder / f"img_{band}.fits", image.astype(np.float32), overwrite=True)
    scene = read_set(folder, OPTIONS)
    assert (scene.variance > 0).all() and not (scene.mask != 0).any()
    np.testing.assert_allclose(scene.images[1], counts, atol=0.3)
    assert sum("no noise is found" in note for note in scene.notes) >= 2
    options = dataclasses.replace(OPTIONS, fits=FitsOptions(psf_fwhm=0.9, gain=1.0, noise=4.0))
    scene = read_set(folder, options)
    assert scene.sky_sigma.tolist() == [4.0, 4.0, 4.0]
    np.testing.assert_allclose(scene.variance[:, 80, 130], 16.0)
    expected = np.sqrt((light(*SOURCES[0][:4]) ** 2).sum()) / 4.0
    assert scene.sources["snr_r"][0] == pytest.approx(expected, rel=1e-5)


def test_saturation_in_one_band_is_that_of_all(tmp_path):
    folder = write_set(tmp_path / "set_0")
    images = {band: fits.getdata(folder / f"img_{band}.fits").copy() for band in BANDS}
    images["z"][40:44, 10:20] = 90_000.0
    images["r"][41, 15] = 90_000.0
    for band, image in images.items():
        fits.writeto(folder / f"img_{band}.fits", image, overwrite=True)
    for common, expected in ((True, [40, 1, 0]), (False, [40, 0, 0])):
        fits_options = FitsOptions(psf_fwhm=0.9, gain=1.0, common_saturation=common)
        scene = read_set(folder, dataclasses.replace(OPTIONS, fits=fits_options))
        assert [int((plane & MASK_BITS["SAT"] != 0).sum()) for plane in scene.mask] == expected


@pytest.mark.parametrize("band", ["z", "r"])
def test_band_of_the_masks_is_found(tmp_path, band):
    write_set(tmp_path / "set_0", band=band)
    sets = find_sets([tmp_path], BANDS)
    options = dataclasses.replace(OPTIONS, mask_rule=MaskRule())
    found, note = choose_mask_band(sets, options)
    assert found == band and f"band {band}" in note


def test_find_sets(tmp_path):
    for name in ("b/test/set_1", "b/training/set_10", "b/training/set_9", "b/validation/set_3"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "img_r.fits.fz").touch()
    sets = find_sets([tmp_path, tmp_path / "b" / "test"], BANDS)
    assert [(entry.path.name, entry.parent, entry.number, entry.split) for entry in sets] == [
        ("set_9", 0, 9, "train"),
        ("set_10", 0, 10, "train"),
        ("set_3", 1, 3, "validation"),
        ("set_1", 2, 1, "test"),
    ]
    (single,) = find_sets([tmp_path / "b" / "training" / "set_10"], BANDS)
    assert (single.parent, single.number) == (0, 10)
    with pytest.raises(FitsImageError, match="no folder"):
        find_sets([tmp_path / "none"], BANDS)
    (tmp_path / "void").mkdir()
    with pytest.raises(FitsImageError, match="holds no set"):
        find_sets([tmp_path / "void"], BANDS)


def test_refusals_in_one_line(tmp_path, capsys):
    folder = write_set(tmp_path / "set_0")
    (tmp_path / "letter").mkdir()
    void = write_set(tmp_path / "void" / "set_1")
    fits.writeto(void / "img_r.fits", np.full(SHAPE, np.nan), overwrite=True)
    small = write_set(tmp_path / "small" / "set_1")
    fits.writeto(small / "img_r.fits", np.ones((20, 30)), overwrite=True)
    (tmp_path / "letter" / "mine.txt").write_text("mine")
    cases = [
        ([tmp_path / "repo", tmp_path / "none"], "no folder"),
        ([tmp_path / "repo", folder, "--bands", "z", "y"], "img_y.fits"),
        ([tmp_path / "repo", folder, "--mask-band", "i"], "--mask-band i"),
        ([tmp_path / "repo", folder, "--zeropoint", "1", "2"], "--zeropoint 1 2"),
        ([tmp_path / "repo", folder, "--zeropoint", "y=3"], "y=3"),
        ([tmp_path / "repo", folder, "--split", "half"], "--split half"),
        ([tmp_path / "repo", folder, "--galaxy-fraction", "2"], "galaxy_fraction"),
        ([tmp_path / "repo", folder, "--smooth", "-1"], "smooth"),
        ([tmp_path / "repo", void], f"{void}: img_r.fits has no pixel"),
        ([tmp_path / "repo", small], "img_r.fits is 30 x 20"),
        ([tmp_path / "letter", folder], "left alone"),
    ]
    for arguments, words in cases:
        assert maskrcnn("import-astro-rcnn", [str(argument) for argument in arguments]) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("maskrcnn import-astro-rcnn: ") and "\n" not in error and words in error
    assert not (tmp_path / "repo").exists()


def test_table_of_the_simulator():
    """Whoever reads the truth of a simulated scene can read this one."""
    from lsst.meas.maskrcnn.scenes.presets import preset_config
    from lsst.meas.maskrcnn.scenes.simulate import simulate_scene
    from lsst.meas.maskrcnn.scenes.truth import empty_sources

    config = preset_config("hsc-wide", shape=(64, 80))
    scene = simulate_scene(config, np.random.default_rng(1))
    ours = empty_sources(4, config.bands)
    assert set(ours.dtype.names) == set(scene.sources.dtype.names)
    for name in ours.dtype.names:
        assert ours.dtype[name].kind == scene.sources.dtype[name].kind, name
    assert ours["id"].tolist() == [1, 2, 3, 4]


def test_phosim(shared_data):
    """The real thing: electrons with sky, of which the noise is the root."""
    folder = shared_data / "phosim_decam"
    options = AstroRcnnOptions(mask_rule=MaskRule(band="r"))
    scene = read_set(folder, options)
    for band, noise in zip(scene.bands, scene.sky_sigma):
        counts = fits.getdata(folder / f"img_{band}.fits").astype(float)
        sky = np.median(counts - scene.images[scene.bands.index(band)])
        assert noise**2 == pytest.approx(sky, rel=0.02)
    assert scene.pixel_scale == pytest.approx(0.263, abs=0.001)
    assert ((scene.psf_fwhm > 0.5) & (scene.psf_fwhm < 0.9)).all()
    assert not scene.sources["is_star"].any()
    assert scene.sources["flux_r"].tolist() == [1224.0, 1038.0]
    # There is a source where they are, in all bands but g.
    for row in scene.sources:
        y, x = round(row["y"]), round(row["x"])
        part = scene.images[:2, y - 2 : y + 3, x - 2 : x + 3]
        assert (part.sum(axis=(1, 2)) > 3.0 * 5.0 * scene.sky_sigma[:2]).all()
    assert choose_mask_band(find_sets([folder], BANDS), AstroRcnnOptions())[0] == "r"
