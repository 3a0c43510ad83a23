# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Networks of fixed bands in the engine: bands, normalisation, calibration and tiles."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
from fixed_bands import grid, noisy, observe, toy_image, toy_scene

import lsst.geom as geom
import lsst.pipe.base as pipeBase
from lsst.afw.detection import GaussianPsf
from lsst.afw.geom import makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF, FilterLabel, PhotoCalib
from lsst.meas.maskrcnn.deblend.deblend import DeblendSettings, find_sources
from lsst.meas.maskrcnn.deblend.image import MultibandImage
from lsst.meas.maskrcnn.deblend.sources import SourceList
from lsst.meas.maskrcnn.images.normalize import LuptonSettings, normalize
from lsst.meas.maskrcnn.network.calibration import Calibration, CalibrationCurve, calibrate
from lsst.meas.maskrcnn.network.inference import DetectionSettings, detect
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel
from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendConfig, MaskRcnnDeblendTask

SHAPE = (150, 190)
TILED = DeblendSettings(detection=DetectionSettings(tile_size=96, tile_overlap=32, precision="float32"))
HALVED = Calibration(
    score=CalibrationCurve(given=(0.0, 1.0), probability=(0.0, 0.5)),
    p_star=CalibrationCurve(given=(0.0, 1.0), probability=(0.0, 0.45)),
)
"""Takes a score of 0.7 to a probability of 0.35, and P(star) of 0.8 to 0.36."""


@pytest.fixture(scope="module")
def scene():
    return toy_scene(*SHAPE, grid(*SHAPE, np.random.default_rng(5)))


@pytest.fixture(scope="module")
def image(scene) -> MultibandImage:
    return toy_image(scene, np.random.default_rng(6))


@pytest.fixture(scope="module")
def sources(image: MultibandImage, fixed_model: MaskRcnnModel) -> SourceList:
    return find_sources(image, fixed_model, TILED)


def calibrated(model: MaskRcnnModel, calibration: Calibration) -> MaskRcnnModel:
    return dataclasses.replace(model, metadata=model.metadata.model_copy(update={"calibration": calibration}))


def test_sources_are_those_of_the_normalised_image(scene, image, fixed_model, sources) -> None:
    """Each of the scene once, with tiles and batches of tiles; the progress ends at the last one."""
    steps: list[tuple[str, int, int]] = []
    again = find_sources(image, fixed_model, TILED, progress=lambda *step: steps.append(step))
    np.testing.assert_array_equal(again.scores, sources.scores)
    tiles = [step[1:] for step in steps if step[0] == "tiles"]
    assert tiles[-1][0] == tiles[-1][1] > 3 and tiles == sorted(tiles)
    result = normalize(LuptonSettings(), image.flux, image.variance, np.ones(SHAPE, bool))
    plain = detect(fixed_model.build(), result.image, None, TILED.detection, psf_fwhm=image.psf_fwhm)
    np.testing.assert_allclose(sources.scores, plain.scores, rtol=1e-3)
    assert len(sources) == len(scene.masks)
    positions = np.array(
        [origin + np.array(mask.shape) / 2 for origin, mask in zip(scene.origins, scene.masks)]
    )
    distance = np.hypot(*(sources.peaks[:, None] - positions).transpose(2, 0, 1))
    assert distance.min(axis=0).max() < 2.0
    assert (sources.is_star == (scene.labels[distance.argmin(axis=1)] == 1)).all()
    assert {"normalize", "forward", "masks"} <= set(sources.timings)


def test_the_order_of_the_bands_does_not_matter(image, fixed_model, sources) -> None:
    turned = find_sources(image.select(["g", "r"]), fixed_model, TILED)
    np.testing.assert_array_equal(turned.scores, sources.scores)
    np.testing.assert_allclose(turned.fluxes[:, ::-1], sources.fluxes, rtol=1e-4, atol=1e-2)


def test_further_bands_share_flux(image, fixed_model, sources) -> None:
    """The network is not given them; here, a band that is twice another one."""
    extra = MultibandImage(
        np.concatenate([image.flux, 2.0 * image.flux[:1]]),
        [*image.bands, "y"],
        image.pixel_scale,
        np.concatenate([image.variance, 4.0 * image.variance[:1]]),
        psf_fwhm=[*image.psf_fwhm, image.psf_fwhm[0]],
    )
    found = find_sources(extra, fixed_model, TILED)
    np.testing.assert_array_equal(found.scores, sources.scores)
    np.testing.assert_allclose(found.fluxes[:, 2], 2.0 * found.fluxes[:, 0], rtol=1e-5)
    assert np.isnan(found.noise[2]) and np.isfinite(found.noise[:2]).all()


def test_missing_bands_and_other_pixel_scales(image, fixed_model, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="needs the bands r, g, but the image has r: g is missing"):
        find_sources(image.select(["r"]), fixed_model)
    coarse = MultibandImage(image.flux, image.bands, 0.4, image.variance)
    with caplog.at_level(logging.WARNING):
        find_sources(coarse, fixed_model)
    assert "Pixels are 0.400 arcsec" in caplog.text


def test_another_normalisation(image, fixed_model, sources) -> None:
    """It is given the bands of the model, and its result to the network."""
    given = []

    def normalizer(flux, variance, valid):
        given.append(flux.shape)
        return normalize(LuptonSettings(stretch=2000.0), flux, variance, valid)

    found = find_sources(image, fixed_model, TILED, normalizer=normalizer)
    assert given == [(2, *SHAPE)]
    assert not np.array_equal(found.scores, sources.scores)


@pytest.mark.parametrize("threshold", [0.3, 0.98])
def test_no_source_is_below_the_score_threshold(image, fixed_model, sources, threshold: float) -> None:
    settings = DeblendSettings(detection=dataclasses.replace(TILED.detection, score_threshold=threshold))
    found = find_sources(image, fixed_model, settings)
    assert len(found) > 3 and found.scores.min() >= threshold
    assert set(found.scores[found.scores >= 0.98].tolist()) >= set(
        sources.scores[sources.scores >= 0.98].tolist()
    )


def test_detections_have_calibrated_probabilities(scene, fixed_model) -> None:
    """All that is decided afterwards is decided by them, the class included."""
    pixels, _ = observe(scene, np.random.default_rng(6))
    network = fixed_model.build()
    raw = detect(network, pixels, None, DetectionSettings(score_threshold=0.3))
    found = detect(network, pixels, None, DetectionSettings(score_threshold=0.15), calibration=HALVED)
    # Stars have a box of their own, which no source has that is a galaxy now.
    galaxies = raw.take(raw.p_star < 0.5)
    assert (raw.p_star > 0.6).any() and len(galaxies) > 3
    assert (found.p_star <= 0.45).all()
    boxes = {tuple(box): index for index, box in enumerate(found.boxes.tolist())}
    place = [boxes[tuple(box)] for box in galaxies.boxes.tolist()]
    np.testing.assert_allclose(found.scores[place], calibrate(galaxies.scores, HALVED, "score"), atol=1e-6)
    np.testing.assert_allclose(found.p_star[place], calibrate(galaxies.p_star, HALVED, "p_star"), atol=1e-6)


def test_sources_have_calibrated_probabilities(image, fixed_model) -> None:
    model = calibrated(fixed_model, HALVED)
    settings = DeblendSettings(detection=dataclasses.replace(TILED.detection, score_threshold=0.3))
    found = find_sources(image, model, settings)
    assert len(found) > 5 and found.scores.min() >= 0.3 and found.scores.max() <= 0.5
    assert not found.is_star.any()
    # With this calibration nothing is as likely as that.
    sure = DeblendSettings(detection=dataclasses.replace(TILED.detection, score_threshold=0.6))
    assert len(find_sources(image, model, sure)) == 0


def test_a_stamp_has_the_sources_of_the_same_pixels(fixed_model) -> None:
    """The scale of the features does not depend on the padding."""
    pixels, _ = observe(toy_scene(), np.random.default_rng(3))
    network = fixed_model.build()
    # Of 44 px, padded to 64, with one source.
    for y0, x0 in ((0, 8), (38, 40)):
        found = detect(network, np.ascontiguousarray(pixels[:, y0 : y0 + 44, x0 : x0 + 44]))
        assert len(found) == 1 and found.scores[0] > 0.8


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_nothing_to_see(fixed_model, value: float) -> None:
    found = find_sources(MultibandImage(np.full((2, 40, 50), value), "rg", 0.2), fixed_model)
    assert len(found) == 0
    assert found.n_valid_pixels == (0 if np.isnan(value) else 2000)


# --- the task


def make_exposures(scene, bands: str) -> dict[str, ExposureF]:
    """Exposures of a scene, its two bands in turn."""
    flux = noisy(scene, np.random.default_rng(6))
    height, width = scene.valid.shape
    wcs = makeSkyWcs(
        geom.Point2D(0, 0),
        geom.SpherePoint(150.0, 2.0, geom.degrees),
        makeCdMatrix(scale=0.2 * geom.arcseconds),
    )
    exposures = {}
    for number, band in enumerate(bands):
        exposure = ExposureF(geom.Box2I(geom.Point2I(300, -40), geom.Extent2I(width, height)), wcs)
        exposure.image.array[:] = (1 + number // 2) * flux[number % 2]
        exposure.variance.array[:] = (1 + number // 2) ** 2
        exposure.setPhotoCalib(PhotoCalib(1.0))
        exposure.setFilter(FilterLabel.fromBand(band))
        exposure.setPsf(GaussianPsf(25, 25, 2.0))
        exposures[band] = exposure
    return exposures


def run(exposures: dict[str, ExposureF], model: MaskRcnnModel, **fields: object) -> pipeBase.Struct:
    config = MaskRcnnDeblendConfig()
    config.update(**fields)
    return MaskRcnnDeblendTask(config=config).run(exposures=exposures, model=model)


def test_bands_that_the_network_is_not_given(scene, fixed_model) -> None:
    """Their flux is shared, and nothing is found otherwise for them; one that is missing is none."""
    more = make_exposures(scene, "rgiu")
    plain, extended = run(more, fixed_model), run(more, fixed_model, extra_bands=["i", "y", "r"])
    assert list(plain.bandCatalogs) == ["r", "g"] and list(extended.bandCatalogs) == ["r", "g", "i"]
    assert extended.catalog["id"].tolist() == plain.catalog["id"].tolist()
    np.testing.assert_array_equal(extended.catalog["maskrcnn_score"], plain.catalog["maskrcnn_score"])
    # Here i is twice r.
    flux = {
        band: [np.sum(record.getFootprint().getImageArray()) for record in extended.bandCatalogs[band][-4:]]
        for band in "ri"
    }
    np.testing.assert_allclose(flux["i"], 2.0 * np.array(flux["r"]), rtol=1e-2)
    assert "i_chi2" in extended.blendStatistics.colnames
    by_i = run(more, fixed_model, extra_bands=["i"], reference_band="i")
    assert by_i.catalog["base_PsfFlux_instFlux"][-1] > 0
