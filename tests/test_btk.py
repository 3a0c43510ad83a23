# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The deblender in Blending ToolKit's hands, on galaxies that it draws."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from functools import partial

import galsim
import numpy as np
import pytest
from astropy.table import Table
from no_lsst import run_without_lsst
from surveycodex.utilities import mean_sky_level

from lsst.meas.maskrcnn.deblend.deblend import find_sources
from lsst.meas.maskrcnn.network.model_file import ModelFileError

WHY = "Blending ToolKit is not installed: pip install 'lsst-meas-maskrcnn[btk]'"
catalogs = pytest.importorskip("btk.catalog", reason=WHY)
deblend = pytest.importorskip("btk.deblend", reason=WHY)
draw_blends = pytest.importorskip("btk.draw_blends", reason=WHY)
blend_batch = pytest.importorskip("btk.blend_batch", reason=WHY)
match = pytest.importorskip("btk.match", reason=WHY)
sampling = pytest.importorskip("btk.sampling_functions", reason=WHY)
surveys = pytest.importorskip("btk.survey", reason=WHY)
ours = importlib.import_module("lsst.meas.maskrcnn.compare.btk")

N_MAX = 6
# Offsets from the centre of the stamp (arcsec), i magnitudes, half-light radii of disc and bulge (arcsec).
SCENES = (
    ((-6.0, -5.0, 21.5, 0.6, 0.3), (6.5, -2.0, 22.0, 0.5, 0.2), (-1.0, 6.0, 21.0, 0.9, 0.4)),
    ((-1.6, 0.5, 20.8, 0.6, 0.3), (1.6, -0.5, 21.3, 0.5, 0.2), (5.0, 7.5, 21.8, 0.5, 0.3)),
    ((0.0, -3.0, 20.0, 1.0, 0.5),),
)


class Fixed(sampling.SamplingFunction):
    """Galaxies at places that are given, blend by blend."""

    def __init__(self):
        super().__init__(stamp_size=24.0, max_number=N_MAX)
        self._number = 0

    def __call__(self, table: Table) -> Table:
        rows = table[table["scene"] == self._number % len(SCENES)]
        self._number += 1
        return rows


def make_catalog() -> catalogs.CatsimCatalog:
    """A catalogue like CatSim's, of discs with bulges; two bands differ by a galaxy's colour."""
    rows = []
    for number, scene in enumerate(SCENES):
        for ra, dec, mag, disc, bulge in scene:
            color = 0.3 + 0.1 * len(rows)
            row = {"scene": number, "ra": ra, "dec": dec, "redshift": 0.5, "pa_disk": 30.0, "pa_bulge": 30.0}
            row |= {"fluxnorm_disk": 0.8, "fluxnorm_bulge": 0.2, "fluxnorm_agn": 0.0}
            row |= {"a_d": disc, "b_d": 0.7 * disc, "a_b": bulge, "b_b": 0.7 * bulge}
            for step, band in enumerate("ugrizy"):
                row[f"{band}_ab"] = mag + color * (3 - step)
            rows.append(row)
    return catalogs.CatsimCatalog(Table(rows))


def draw(survey: str = "LSST", psf=None) -> blend_batch.BlendBatch:
    """One batch with noise of the sky, which BTK itself can only add with numpy before 2.4."""
    survey = surveys.get_surveys(survey, psf)
    generator = draw_blends.CatsimGenerator(
        make_catalog(), Fixed(), survey, batch_size=len(SCENES), add_noise="none"
    )
    batch = next(generator)
    rng = np.random.default_rng(5)
    for index, name in enumerate(survey.available_filters):
        sky = mean_sky_level(survey, survey.get_filter(name)).to_value("electron")
        signal = batch.blend_images[:, index]
        signal += rng.normal(size=signal.shape) * np.sqrt(sky + np.maximum(signal, 0.0))
    return batch


@pytest.fixture(scope="module")
def batch():
    return draw()


@pytest.fixture(scope="module")
def deblender():
    return ours.MaskRcnnDeblender(N_MAX)


@pytest.fixture(scope="module")
def result(batch, deblender):
    return deblender(batch)


def test_results_have_the_shapes_of_btk(batch, result):
    size, bands = batch.image_size, list("ugrizy")
    assert isinstance(result, blend_batch.DeblendBatch)
    assert (result.batch_size, result.max_n_sources) == (len(SCENES), N_MAX)
    assert result.segmentation.shape == (len(SCENES), N_MAX, size, size)
    assert result.segmentation.dtype == bool
    assert result.deblended_images.shape == (len(SCENES), N_MAX, 6, size, size)
    for number, catalog in enumerate(result.catalog_list):
        assert len(SCENES[number]) <= len(catalog) <= N_MAX
        area = result.segmentation[number].sum(axis=(1, 2))
        np.testing.assert_array_equal(catalog["area"], area[: len(catalog)])
        assert (area[: len(catalog)] > 0).all() and not area[len(catalog) :].any()
        flux = result.deblended_images[number].sum(axis=(2, 3), dtype=float)
        given = np.array([catalog[f"flux_{band}"] for band in bands]).T
        np.testing.assert_allclose(given, flux[: len(catalog)], rtol=1e-6)
        assert not flux[len(catalog) :].any()
        assert ((catalog["score"] > 0) & (catalog["score"] <= 1)).all()
        assert ((catalog["p_star"] >= 0) & (catalog["p_star"] <= 1)).all()
        x, y = batch.wcs.world_to_pixel_values(catalog["ra"] / 3600, catalog["dec"] / 3600)
        np.testing.assert_allclose([x, y], [catalog["x_peak"], catalog["y_peak"]], atol=1e-6)
        # As those of BTK's truth, right ascensions are about 0, not 360 deg.
        assert (np.abs(catalog["ra"]) < 12.0).all()
        places = np.rint([catalog["y_peak"], catalog["x_peak"]]).astype(int)
        assert result.segmentation[number][np.arange(len(catalog)), *places].all()


def test_deblended_images_add_up_to_the_image(batch, result):
    for image, parts, masks in zip(batch.blend_images, result.deblended_images, result.segmentation):
        total = parts.sum(axis=0, dtype=float)
        union = (parts != 0).any(axis=(0, 1))
        assert not (masks.any(axis=0) & ~union).any()
        # Around the masks, too, but not everywhere.
        assert masks.any(axis=0).sum() < union.sum() < 0.8 * union.size
        np.testing.assert_allclose(total[:, union], image[:, union], rtol=2e-5, atol=0.05)
        assert not total[:, ~union].any()


def test_bright_galaxies_are_matched_and_keep_their_flux(batch, result):
    matching = match.PixelHungarianMatcher(pixel_max_sep=2.0)(batch.catalog_list, result.catalog_list)
    np.testing.assert_array_equal(matching.tp, [len(scene) for scene in SCENES])
    assert matching.fp.sum() <= 1
    truth = matching.match_true_arrays(batch.isolated_images).sum(axis=(3, 4))
    found = matching.match_pred_arrays(result.deblended_images).sum(axis=(3, 4))
    real = truth[:, :, 0] > 0
    ratio = (found / np.where(real[:, :, None], truth, 1.0))[real]
    bright = slice(1, 5)
    assert ((ratio[:, bright] > 0.8) & (ratio[:, bright] < 1.1)).all(), ratio
    # Shares differ by band, so that those of a blend keep their colours (mag).
    color = -2.5 * np.log10(ratio[:, 1:4] / ratio[:, 2:5])
    assert np.abs(color).max() < 0.1, color


def test_blended_galaxies_share_a_parent(batch, result):
    matching = match.PixelHungarianMatcher(pixel_max_sep=2.0)(batch.catalog_list, result.catalog_list)
    (catalog,) = [c for n, c in enumerate(matching.match_pred_catalogs(result.catalog_list)) if n == 1]
    order = np.argsort(matching.true_matches[1])
    parent = np.asarray(catalog["parent"])[order]
    assert parent[0] == parent[1] != parent[2]


def test_one_blend_is_as_in_its_batch(batch, deblender, result):
    example = deblender.deblend(1, batch)
    assert isinstance(example, blend_batch.DeblendExample)
    np.testing.assert_array_equal(example.segmentation, result.segmentation[1])
    np.testing.assert_array_equal(example.deblended_images, result.deblended_images[1])
    assert example.catalog.colnames == result.catalog_list[1].colnames


def test_btk_loops_over_it_beside_its_own_deblenders(deblender):
    survey = surveys.get_surveys("LSST")
    generator = draw_blends.CatsimGenerator(make_catalog(), Fixed(), survey, batch_size=1, add_noise="none")
    both = deblend.DeblendGenerator([deblender, deblend.SepSingleBand(N_MAX, use_band=2)], generator)
    batch, results = next(both)
    assert list(results) == ["MaskRcnnDeblender", "SepSingleBand"]
    matcher = match.PixelHungarianMatcher(pixel_max_sep=2.0)
    for found in results.values():
        assert matcher(batch.catalog_list, found.catalog_list).tp.tolist() == [len(SCENES[0])]


def test_hsc_has_other_filters_and_pixels(deblender):
    batch = draw("HSC")
    found = deblender(batch)
    assert found.deblended_images.shape[2:] == (5, batch.image_size, batch.image_size)
    assert "flux_u" not in found.catalog_list[0].colnames
    matching = match.PixelHungarianMatcher(pixel_max_sep=2.0)(batch.catalog_list, found.catalog_list)
    assert matching.tp.sum() >= sum(map(len, SCENES)) - 1


def test_the_engine_finds_the_same(batch, deblender, result):
    """To the bit, with the image of a blend given to it."""
    for number in range(len(SCENES)):
        sources = find_sources(ours.batch_image(batch, number), deblender.model)
        catalog = result.catalog_list[number]
        np.testing.assert_array_equal(catalog["score"], sources.scores[: len(catalog)])
        np.testing.assert_array_equal(catalog["x_peak"], sources.peaks[: len(catalog), 1])


def test_images_are_in_nanojansky(batch):
    """Of the single galaxy, whose magnitudes are known."""
    image = ours.batch_image(batch, 2)
    (truth,) = batch.catalog_list[2]
    for index, band in enumerate(image.bands):
        if band not in "zrg":
            continue
        total = 10 ** (0.4 * (31.4 - truth[f"{band}_ab"]))
        assert image.flux[index].sum(dtype=float) == pytest.approx(total, rel=0.03)
        item = batch.survey.get_filter(band)
        # A zero point is the magnitude of an electron each second.
        electrons = 10 ** (0.4 * (item.zeropoint.value - 31.4)) * item.full_exposure_time.to_value("s")
        sky = mean_sky_level(batch.survey, item).to_value("electron")
        pixels = image.flux[index].astype(float)
        expected = sky / electrons**2 + np.maximum(pixels, 0.0) / electrons
        np.testing.assert_allclose(image.variance[index], expected, rtol=1e-4)


def gaussian_psf(survey, item, fwhm):
    return galsim.Gaussian(fwhm=fwhm + 0.1 * (item.name == "z"))


def test_psf_is_measured_as_the_pixels_see_it(batch):
    survey = surveys.get_surveys("LSST", partial(gaussian_psf, fwhm=0.9))
    psfs = [survey.get_filter(name).psf(survey, survey.get_filter(name)) for name in "ugrizy"]
    blend = ours.batch_image(dataclasses.replace(batch, survey=survey, psf=psfs), 0)
    to_sigma = 2 * np.sqrt(2 * np.log(2))
    for index, fwhm in enumerate((0.9, 0.9, 0.9, 0.9, 1.0, 0.9)):
        # A pixel adds 1/12 to the variance.
        wide = np.sqrt((fwhm / 0.2 / to_sigma) ** 2 + 1 / 12) * to_sigma
        assert blend.psf_fwhm[index] == pytest.approx(wide, rel=2e-3)
        image = blend.psf_image(index, 0.0, 0.0)
        assert image.shape[0] % 2 == 1 and image.sum() == pytest.approx(1.0, rel=1e-3)
        assert np.unravel_index(np.argmax(image), image.shape) == (image.shape[0] // 2, image.shape[1] // 2)


def test_a_batch_from_a_file_has_no_usable_psf(batch, deblender, tmp_path):
    batch.save(str(tmp_path))
    again = blend_batch.BlendBatch.load(str(tmp_path))
    assert np.isnan(ours.batch_image(again, 0).psf_fwhm).all()
    example = deblender.deblend(0, again)
    assert len(example.catalog) >= len(SCENES[0])


def test_empty_blend_gives_an_empty_catalog(batch, deblender, result):
    rng = np.random.default_rng(3)
    filters = [batch.survey.get_filter(name) for name in batch.survey.available_filters]
    sky = np.array([mean_sky_level(batch.survey, item).to_value("electron") for item in filters])[
        :, None, None
    ]
    noise = rng.normal(size=batch.blend_images.shape) * np.sqrt(sky)
    found = deblender(dataclasses.replace(batch, blend_images=noise))
    assert not sum(map(len, found.catalog_list))
    assert found.catalog_list[0].colnames == result.catalog_list[0].colnames
    assert found.segmentation.shape == result.segmentation.shape and not found.segmentation.any()
    assert not found.deblended_images.any()


def test_more_sources_than_wanted(batch, result, caplog):
    few = ours.MaskRcnnDeblender(2)
    with caplog.at_level(logging.WARNING):
        example = few.deblend(0, batch)
    assert "max_n_sources" in caplog.text
    np.testing.assert_array_equal(example.catalog["score"], result.catalog_list[0]["score"][:2])
    assert example.deblended_images.shape[0] == 2


def test_other_names_of_bands(batch, result):
    survey = surveys.get_surveys("LSST")
    survey.available_filters = [f"lsst_{name}" for name in "ugrizy"]
    survey._filters = {f"lsst_{name}": item for name, item in survey._filters.items()}
    renamed = dataclasses.replace(batch, survey=survey)
    names = {band: f"lsst_{band}" for band in "zrg"}
    example = ours.MaskRcnnDeblender(N_MAX, bands=names).deblend(0, renamed)
    np.testing.assert_array_equal(example.deblended_images, result.deblended_images[0])
    assert "flux_lsst_z" in example.catalog.colnames


def test_missing_bands_are_named(batch, fixed_model):
    survey = surveys.get_surveys("LSST")
    survey.available_filters = ["u", "w", *"rizy"]
    survey._filters["w"] = survey._filters["g"]
    with pytest.raises(ValueError, match="r, g, but the image has u, w, r, i, z, y: g is missing"):
        ours.MaskRcnnDeblender(N_MAX, fixed_model)(dataclasses.replace(batch, survey=survey))


def test_wrong_settings_are_refused(tmp_path, fixed_model):
    with pytest.raises(ValueError, match=r"\['Q'\].*\['r', 'g'\]"):
        ours.MaskRcnnDeblender(3, fixed_model, bands={"Q": "z"})
    with pytest.raises(ValueError, match="max_n_sources is 0"):
        ours.MaskRcnnDeblender(0)
    with pytest.raises(FileNotFoundError):
        ours.MaskRcnnDeblender(3, tmp_path / "none.safetensors")
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(ModelFileError, match="other"):
        ours.MaskRcnnDeblender(3, str(tmp_path / "other"))


def test_model_of_another_pixel_scale_is_told(batch, fixed_model, caplog):
    metadata = fixed_model.metadata.model_copy(update={"pixel_scale": 0.4})
    coarse = dataclasses.replace(fixed_model, metadata=metadata)
    with caplog.at_level(logging.WARNING):
        ours.MaskRcnnDeblender(N_MAX, coarse).deblend(2, batch)
    assert "0.200 arcsec" in caplog.text and "0.400 arcsec" in caplog.text


NO_LSST = """
from lsst.meas.maskrcnn.compare.btk import MaskRcnnDeblender
MaskRcnnDeblender(2)
"""


def test_needs_no_lsst_package(project_dir):
    run_without_lsst(project_dir, NO_LSST)
