# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Networks for any bands: order, number and gaps of bands, targets, learning."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf

from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.deblend.any_band import _doubtful_sources
from lsst.meas.maskrcnn.deblend.deblend import DeblendSettings, find_sources
from lsst.meas.maskrcnn.deblend.image import MultibandImage
from lsst.meas.maskrcnn.images.normalize import BandNoiseSettings, LuptonSettings
from lsst.meas.maskrcnn.network.any_band import AnyBandNetwork, AnyBandSpec
from lsst.meas.maskrcnn.network.any_band_detect import (
    USUAL_FWHM,
    BandImage,
    _missed_light,
    detect_bands,
    find_in_bands,
    learned_scale,
    normalize_bands,
)
from lsst.meas.maskrcnn.network.band_layers import PLANES, Field, pack_bands
from lsst.meas.maskrcnn.network.detections import Detections
from lsst.meas.maskrcnn.network.model_file import (
    MaskRcnnModel,
    ModelFileError,
    ModelMetadata,
    load_model,
    model_from_bytes,
    model_to_bytes,
)
from lsst.meas.maskrcnn.network.runtime import prepared_network
from lsst.meas.maskrcnn.network.wavelengths import band_wavelength
from lsst.meas.maskrcnn.train.any_band_loss import BandLossNetwork
from lsst.meas.maskrcnn.train.any_band_validation import BandSceneValidator, validate_any_band
from lsst.meas.maskrcnn.train.band_crops import BandSceneFiles, survey_scene
from lsst.meas.maskrcnn.train.band_scenes import (
    BandScene,
    draw_crop,
    read_band_scene,
    simulate_band_scene,
    write_band_scene,
)
from lsst.meas.maskrcnn.train.loop import train
from lsst.meas.maskrcnn.train.losses import Crops
from lsst.meas.maskrcnn.train.stages import StageSettings, TrainSettings
from lsst.meas.maskrcnn.train.training_scene import TrainingScene

FWHM = np.array([4.2, 3.8, 4.5])
NOISE = np.array([2.0, 3.0, 7.0])
WAVELENGTH = np.array([480.0, 620.0, 880.0])


@pytest.fixture(scope="module")
def network() -> AnyBandNetwork:
    torch.manual_seed(1)
    return AnyBandNetwork(AnyBandSpec()).eval()


def star(y: float, x: float, size: int = 64, fwhm: float = 4.0) -> np.ndarray:
    """A star of unit peak."""
    rows, columns = np.mgrid[:size, :size]
    return np.exp(-4 * np.log(2) * ((rows - y) ** 2 + (columns - x) ** 2) / fwhm**2)


def planes(seed: int = 0, size: int = 64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, size, size)).astype(np.float32) + 30 * star(30, 20).astype(np.float32)


def heads(network: AnyBandNetwork, images: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Everything that a network says of one box in the first image."""
    boxes = [torch.tensor([[12.0, 22.0, 29.0, 39.0]])] + [torch.zeros(0, 4)] * (len(images) - 1)
    places = [torch.tensor([[20.0, 30.0]])] + [torch.zeros(0, 2)] * (len(images) - 1)
    with torch.inference_mode():
        features = network.features(images)
        return (
            features.centres[:1],
            *network.classify(features, boxes, places),
            network.masks(features, boxes),
        )


def assert_alike(first: tuple[torch.Tensor, ...], second: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


def test_order_of_bands_does_not_matter(network):
    pixels, valid = planes(), np.ones((3, 64, 64), bool)
    valid[1, :20] = False
    turned = [2, 0, 1]
    first = heads(network, [pack_bands(pixels, valid, FWHM, NOISE, WAVELENGTH)])
    second = heads(
        network, [pack_bands(pixels[turned], valid[turned], FWHM[turned], NOISE[turned], WAVELENGTH[turned])]
    )
    assert_alike(first, second)


def test_wavelengths_do_matter(network):
    pixels, valid = planes(), np.ones((3, 64, 64), bool)
    first = heads(network, [pack_bands(pixels, valid, FWHM, NOISE, WAVELENGTH)])
    second = heads(network, [pack_bands(pixels, valid, FWHM, NOISE, WAVELENGTH[::-1])])
    assert not torch.allclose(first[0], second[0], atol=1e-3)


def test_images_of_other_numbers_of_bands_in_a_batch_change_nothing(network):
    pixels, valid = planes(), np.ones((3, 64, 64), bool)
    image = pack_bands(pixels, valid, FWHM, NOISE, WAVELENGTH)
    six = np.concatenate([planes(1), planes(2)])
    other = pack_bands(six, np.ones_like(six, bool), np.full(6, 4.0), np.ones(6), np.linspace(400, 1000, 6))
    assert_alike(heads(network, [image]), heads(network, [image, other]))


def test_pixels_that_are_not_known_are_left_out(network):
    pixels, valid = planes(), np.ones((3, 64, 64), bool)
    valid[2] = False
    valid[0, :, 40:] = False
    clean = heads(network, [pack_bands(pixels, valid, FWHM, NOISE, WAVELENGTH)])
    dirty = np.where(valid, pixels, np.nan).astype(np.float32)
    assert_alike(clean, heads(network, [pack_bands(dirty, valid, FWHM, NOISE, WAVELENGTH)]))
    dirty = np.where(valid, pixels, 1e6).astype(np.float32)
    assert_alike(clean, heads(network, [pack_bands(dirty, valid, FWHM, NOISE, WAVELENGTH)]))


def test_depth_and_seeing_are_known_to_the_classes_alone(network):
    pixels, valid = planes(), np.ones((3, 64, 64), bool)
    other = AnyBandNetwork(AnyBandSpec()).eval()
    other.load_state_dict(network.state_dict())
    torch.nn.init.normal_(other.field[-1].weight, generator=torch.Generator().manual_seed(3))

    def classes(field: Field) -> tuple[torch.Tensor, ...]:
        return heads(other, [pack_bands(pixels, valid, FWHM, NOISE, WAVELENGTH, field=field)])

    plain, deep, sharp = classes(Field()), classes(Field(depth=27.0)), classes(Field(seeing=0.3))
    assert_alike(plain[:1] + plain[4:], deep[:1] + deep[4:])
    for first, second in ((plain, deep), (plain, sharp), (deep, sharp)):
        assert not torch.allclose(first[1], second[1], atol=1e-2)


def test_depth_is_that_of_point_sources():
    psf = star(20.0, 20.0, 41)
    psf /= psf.sum()
    flux = 5.0 * 2.0 / np.sqrt((psf**2).sum())
    field = Field.of([2.0, np.nan], [4.0, 4.0], 0.2)
    assert field.depth == pytest.approx(31.4 - 2.5 * np.log10(flux), abs=0.01)
    assert field.seeing == pytest.approx(0.8)
    # Counts that are not nJy, pixels that have no size, a PSF that is not known.
    for noise, fwhm, pixel_scale in ((1e9, 4.0, None), (np.nan, 4.0, None), (2.0, 0.0, 0.2)):
        assert Field.of([noise], [fwhm], pixel_scale) == Field()


def test_scales_of_the_poolers_do_not_go_by_the_first_image(network):
    strip = pack_bands(planes()[:, 15:47], np.ones((3, 32, 64), bool), FWHM, NOISE, WAVELENGTH)
    fresh = AnyBandNetwork(AnyBandSpec()).eval()
    fresh.load_state_dict(network.state_dict())
    heads(fresh, [strip[:, :20, :20]])
    assert_alike(heads(network, [strip]), heads(fresh, [strip]))


def scene(positions: list[tuple[float, float]], snr: list[float], sigma: float = 1.0) -> BandScene:
    """Stars of a FWHM of 4 px in three bands, with a matched-filter S/N each."""
    size = 96
    peak = np.array(snr) / np.sqrt(3.0) / np.sqrt((star(48, 48, 96) ** 2).sum())
    shapes = [star(y, x, size) for y, x in positions]
    pixels = np.sum([p * s for p, s in zip(peak, shapes)], axis=0)
    masks, origins = [], []
    for shape in shapes:
        inside = shape > 0.005
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        masks.append(np.repeat(inside[None, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 3, axis=0))
        origins.append((rows[0], columns[0]))
    count = len(positions)
    return BandScene(
        pixels=np.repeat(pixels[None], 3, axis=0).astype(np.float32),
        sigma=np.full(3, sigma, np.float32),
        gain=np.full(3, 1e4, np.float32),
        fwhm=np.full(3, 4.0, np.float32),
        wavelength=WAVELENGTH.astype(np.float32),
        wings=np.full(3, 1.2, np.float32),
        pixel_scale=np.array([0.2], np.float32),
        unusable=np.zeros((3, size, size), bool),
        saturated=np.zeros((3, size, size), bool),
        positions=np.array(positions, np.float32),
        labels=np.ones(count, np.int64),
        snr=np.repeat(np.array(snr, np.float32)[:, None] / np.sqrt(3.0), 3, axis=1),
        peak_share=np.ones(count, np.float32),
        origins=np.array(origins, np.int32),
        masks=masks,
    )


def test_sources_count_by_their_signal_to_noise():
    made = scene([(20, 20), (20, 70), (70, 20)], [5.5, 4.0, 2.0])
    _, target = draw_crop(made, np.random.default_rng(1), 96, plain=True)
    assert target["centres"].tolist() == [[20.0, 20.0]]
    assert target["ignore_centres"].tolist() == [[70.0, 20.0]]


@pytest.mark.parametrize(
    ("distance", "snr", "blended"),
    [
        (3.5, (50.0, 20.0), True),
        (5.0, (50.0, 20.0), False),
        (3.5, (200.0, 10.0), False),
        (3.5, (50.0, 4.5), False),
    ],
)
def test_blends_are_two_sources_within_a_fwhm(distance, snr, blended):
    made = scene([(40.0, 40.0), (40.0, 40.0 + distance)], list(snr))
    _, target = draw_crop(made, np.random.default_rng(1), 96, plain=True)
    assert target["blended"].tolist() == [blended] * len(target["boxes"])


def test_two_sources_in_one_place_are_one_that_is_blended():
    made = scene([(40.0, 40.0), (40.0, 41.0)], [50.0, 40.0])
    _, target = draw_crop(made, np.random.default_rng(1), 96, plain=True)
    assert target["centres"].tolist() == [[40.0, 40.0]]
    assert target["blended"].tolist() == [True]


def test_truth_turns_with_the_pixels():
    made = scene([(20.0, 33.0), (70.0, 60.0)], [900.0, 500.0])
    for seed in range(12):
        image, target = draw_crop(made, np.random.default_rng(seed), 80)
        for (x, y), mask, box in zip(target["centres"].tolist(), target["masks"], target["boxes"].tolist()):
            column, row = round(x), round(y)
            around = image[0, max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4]
            if image[0, row, column] > 0:
                assert image[0, row, column] >= 0.75 * around.max()
            rows, columns = torch.nonzero(mask, as_tuple=True)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_scene_files_hold_all(tmp_path):
    made = scene([(40.0, 40.0), (40.0, 48.0)], [50.0, 40.0])
    write_band_scene(made, tmp_path / "scene.npz")
    again = read_band_scene(tmp_path / "scene.npz")
    for name, value in vars(made).items():
        if name == "noisy":
            continue
        for one, other in zip(value, getattr(again, name), strict=True):
            # Pixels are rounded to 0.5 %, or to 0.005 of their noise.
            np.testing.assert_allclose(one, other, *((0.003, 0.003) if name == "pixels" else (0.0, 0.0)))


def test_simulated_scene_has_truth_where_the_light_is():
    pytest.importorskip("galsim")
    rng = np.random.default_rng(4)
    kept = simulate_band_scene(rng, (128, 128))
    assert kept.pixels.shape == (len(kept.fwhm), 128, 128)
    assert np.isfinite(kept.pixels).all() and (kept.fwhm > 1.5).all()
    assert ((kept.wings > 1.0) & (kept.wings < 2.5)).all()
    _, target = draw_crop(kept, rng, 128, plain=True)
    assert len(target["boxes"]) == len(target["masks"]) == len(target["blended"])


def test_outlines_are_those_of_the_band_nearest_to_z():
    made = scene([(48.0, 48.0)], [500.0])
    z = np.argmin(np.abs(made.wavelength - 880.0))
    made.masks[0][np.arange(3) != z, :4] = False
    _, target = draw_crop(made, np.random.default_rng(1), 96, plain=True)
    y, x = made.origins[0]
    height, width = made.masks[0].shape[1:]
    np.testing.assert_array_equal(target["masks"][0, y : y + height, x : x + width], made.masks[0][z])
    assert target["boxes"][0].tolist() == [x, y, x + width, y + height]


@pytest.mark.parametrize("fwhm", [2.6, 4.0])
def test_wings_of_psfs(fwhm):
    gaussian = star(20.0, 20.0, 41, fwhm)
    radius = np.hypot(*(np.mgrid[:41, :41] - 20))
    core = 0.5 * fwhm / np.sqrt(2.0 ** (1.0 / 2.5) - 1.0)
    moffat = (1.0 + (radius / core) ** 2) ** -2.5
    image = MultibandImage(
        np.zeros((3, 50, 60), np.float32),
        ["g", "r", "z"],
        0.2,
        psf=[gaussian, moffat, gaussian[18:23, 18:23]],
    )
    wings = image.psf_wings() * image.psf_fwhm / fwhm
    assert wings[0] == pytest.approx(0.5 * np.sqrt(np.log2(50.0)), rel=0.01)
    assert wings[1] == pytest.approx(core / fwhm * np.sqrt(50.0**0.4 - 1.0), rel=0.01)
    assert np.isnan(wings[2])


def test_normalized_bands_have_unit_noise_and_no_sky():
    rng = np.random.default_rng(3)
    flux = rng.normal(100.0, 5.0, (2, 90, 110)).astype(np.float32)
    flux[1] *= 3.0
    flux[:, 10, 10] = np.nan
    image = normalize_bands(flux, np.ones(flux.shape, bool), [4.0, 4.0], [480.0, 620.0])
    for plane in image.pixels:
        assert abs(np.median(plane)) < 0.05
        assert abs(plane.std() - 1.0) < 0.05
    assert not image.valid[:, 10, 10].any()
    np.testing.assert_allclose(image.noise, [5.0, 15.0], rtol=0.05)


def test_bands_without_data_are_left_out():
    flux = np.random.default_rng(3).normal(size=(2, 40, 40)).astype(np.float32)
    flux[0] = np.nan
    image = normalize_bands(flux, np.ones(flux.shape, bool), [4.0, 3.0], [480.0, 620.0])
    assert image.wavelength.tolist() == [620.0]


@pytest.mark.parametrize(("fwhm", "scale"), [(2.0, 0.5), (4.0, 1.0), (12.0, 3.0)])
def test_scale_brings_the_psf_to_a_width_that_is_known(fwhm, scale):
    rng = np.random.default_rng(3)
    flux = rng.normal(size=(1, 240, 240)).astype(np.float32)
    image = normalize_bands(flux, np.ones(flux.shape, bool), [fwhm], [620.0])
    scaled, factor = learned_scale(image)
    assert factor == scale
    assert 2.6 <= scaled.mean_fwhm <= 8.0
    assert scaled.pixels.std() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("fwhm", "scale"), [(1.2, 0.5), (3.0, 1.0), (5.0, 1.0)])
def test_stars_are_found_where_no_width_is_known(fwhm, scale):
    rng, edges = np.random.default_rng(1), np.arange(161) - 0.5
    places, flux = rng.uniform(8.0, 152.0, (30, 2)), np.zeros((160, 160))
    for y, x in places:
        columns, rows = (np.diff(erf((edges - centre) * 1.665 / fwhm)) / 2.0 for centre in (x, y))
        light = np.outer(rows, columns)
        flux += 50.0 * light / np.sqrt((light**2).sum())
    planes = (flux + rng.normal(size=(1, *flux.shape))).astype(np.float32)
    bands = normalize_bands(planes, np.ones(planes.shape, bool), [np.nan], WAVELENGTH[:1])
    assert learned_scale(bands)[1] == scale
    found = find_sources(MultibandImage(planes, ["r"], 1.0, np.ones_like(planes)), load_model()).peaks
    distance = np.hypot(*(places[:, None] - places).transpose(2, 0, 1)) + 99.0 * np.eye(len(places))
    apart = distance.min(axis=1) > 2.0 * fwhm
    nearest = np.hypot(*(places[:, None] - found).transpose(2, 0, 1)).min(axis=1)
    assert (nearest[apart] < 1.0).mean() > 0.9


def test_flanks_of_bright_sources_are_no_sources():
    image = 3000.0 * star(40.0, 40.0, 81) + 100.0 * star(40.0, 33.5, 81) + 30.0 * star(10.0, 10.0, 81)
    # The star, its neighbour, a piece of its flank, a source far away.
    positions = [(40.0, 40.0), (40.0, 33.5), (34.0, 41.0), (10.0, 10.0)]
    assert doubtful(image, positions, [5, 3, 3, 3]) == [False, False, True, False]
    assert doubtful(image, [], []) == []


def test_ends_of_long_galaxies_are_no_sources():
    rows, columns = np.mgrid[:81, :81]
    image = 40.0 * np.exp(-0.5 * ((rows - 40.0) / 2.0) ** 2 - 0.5 * ((columns - 40.0) / 8.0) ** 2)
    image += 30.0 * star(40.0, 52.0, 81)
    # The galaxy, one of its ends, a source on the other end.
    positions = [(40.0, 40.0), (40.0, 32.0), (40.0, 52.0)]
    assert doubtful(image, positions, [15, 4, 3]) == [False, True, False]


def test_large_galaxies_are_found_once():
    rows, columns = np.mgrid[:81, :81]
    image = 40.0 * np.exp(-np.hypot(rows - 40.0, columns - 40.0) / 8.0) + 20.0 * star(42.0, 41.0, 81)
    # Two masks that overlap by 0.79, the less likely one about a knot, and two of a small close pair.
    assert doubtful(image, [(40.0, 40.0), (42.0, 41.0)], [12, 12]) == [False, True]
    image = 40.0 * star(40.0, 40.0, 81) + 40.0 * star(40.0, 43.0, 81)
    assert doubtful(image, [(40.0, 41.0), (40.0, 42.0)], [5, 5]) == [False, False]


def test_bright_light_is_in_a_source_whatever_its_score():
    image = 3000.0 * star(40.0, 40.0, 121) + 2000.0 * star(80.0, 80.0, 121) + 60.0 * star(20.0, 95.0, 121)
    image += 300.0 * star(40.0, 53.0, 121)
    # A star that is found, its neighbour, a piece of its flank, a star that is not, another mask of it, and a
    # faint one.
    found = square_detections(
        [(40.0, 40.0), (40.0, 53.0), (35.0, 42.0), (80.0, 80.0), (81.0, 80.0), (20.0, 95.0)],
        [5, 3, 3, 5, 5, 3],
        [0.9, 0.3, 0.3, 0.1, 0.08, 0.5],
    )
    light = image.astype(np.float32)
    assert _missed_light(found, light, found.scores > 0.6).tolist() == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]
    assert not _missed_light(found.take(np.zeros(6, bool)), light, np.zeros(0, bool)).any()


def test_bright_stars_are_found_where_no_score_is_enough():
    rng = np.random.default_rng(1)
    flux = (
        800.0 * star(40.0, 40.0, 128) + 8.0 * star(90.0, 90.0, 128) + rng.normal(size=(3, 128, 128))
    ).astype(np.float32)
    image = normalize_bands(flux, np.ones(flux.shape, bool), [4.0] * 3, WAVELENGTH)
    network = prepared_network(load_model(), "cpu")
    assert len(find_in_bands(network, image, least=1.0)) == 0
    (place,) = find_in_bands(network, image, least=1.0, least_bright=0.05).positions
    assert np.hypot(*(place - 40.0)) < 1.0


def doubtful(image: np.ndarray, positions: list[tuple[float, float]], radii: list[int]) -> list[bool]:
    """Which of some square detections are doubtful, in an image of one band."""
    found = square_detections(positions, radii, [1.0] * len(positions))
    settings = np.array([[4.0], [1.0], [620.0], [1.2]], np.float32)
    bands = BandImage(image[None].astype(np.float32), np.ones((1, *image.shape), bool), *settings)
    return _doubtful_sources(found, bands).tolist()


def square_detections(
    positions: list[tuple[float, float]], radii: list[int], scores: list[float]
) -> Detections:
    """Make detections of galaxies with square masks."""
    count = len(positions)
    return Detections(
        np.zeros((count, 4), np.float32),
        np.array(scores, np.float32),
        np.zeros(count, np.float32),
        np.array(positions, np.int32).reshape(-1, 2) - np.array(radii, np.int32)[:, None],
        [np.ones((2 * radius + 1,) * 2, bool) for radius in radii],
        positions=np.array(positions, np.float32).reshape(-1, 2),
    )


def test_wavelengths_are_those_of_surveys():
    surveycodex = pytest.importorskip("surveycodex")
    for survey in ("LSST", "HSC", "DES", "SDSS", "Euclid_NISP", "Roman_WFI"):
        for name in surveycodex.get_survey(survey).available_filters:
            effective = surveycodex.get_survey(survey).get_filter(name).effective_wavelength
            assert band_wavelength(name) == pytest.approx(effective.to_value("nm"), rel=0.05)


def test_wavelengths_of_bands():
    assert band_wavelength("HSC-G") == band_wavelength("lsst_g") == band_wavelength("g")
    assert band_wavelength("NIR_H") == band_wavelength("HE") > band_wavelength("H") + 100.0
    assert band_wavelength("f106") == band_wavelength("F106")
    # Hubble in the optical and in the infrared, Webb.
    space = {"F606W": 606, "F850LP": 850, "F336W": 336, "F160W": 1600, "F098M": 980, "F200LP": 200}
    space |= {"F090W": 900, "F115W": 1150, "F200W": 2000, "F444W": 4440, "F322W2": 3220, "F1000W": 10000}
    assert {name: band_wavelength(name) for name in space} == space
    with pytest.raises(ValueError, match="F410M"):
        # 410 nm of Hubble, or 4100 nm of Webb.
        band_wavelength("F410M")
    assert band_wavelength("ACS_F775W") == 775.0 and band_wavelength("NIRCam-F277W") == 2770.0
    assert band_wavelength("r", given={"r": 640.0}) == 640.0
    with pytest.raises(ValueError, match="Give its effective wavelength"):
        band_wavelength("odd")


def model_of(network: AnyBandNetwork, score: float = 0.3) -> MaskRcnnModel:
    spec = network.spec.model_copy(update={"detection_score": score})
    metadata = ModelMetadata(
        name="test", architecture=spec, bands=(), normalization=BandNoiseSettings(), pixel_scale=0.2
    )
    return MaskRcnnModel.from_network(network, metadata)


def test_model_file_holds_network_and_score(network):
    model = model_of(network, 0.4)
    again = model_from_bytes(model_to_bytes(model))
    assert again.metadata == model.metadata and again.takes_any_bands
    assert again.build().spec.detection_score == 0.4
    with pytest.raises(ModelFileError, match="takes any bands"):
        _ = again.metadata.network_spec
    with pytest.raises(ModelFileError, match="takes any bands"):
        _ = again.metadata.fixed_normalization


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"bands": ("g",)}, "wanted none"), ({"normalization": LuptonSettings()}, "wanted band_noise")],
)
def test_headers_that_do_not_fit_are_refused(network, change, problem):
    given = {"architecture": network.spec, "bands": (), "normalization": BandNoiseSettings(), **change}
    with pytest.raises(ValueError, match=problem):
        ModelMetadata(name="test", pixel_scale=0.2, **given)


def test_bands_of_unknown_wavelength_are_named(network):
    flux = np.random.default_rng(1).normal(size=(2, 64, 64)).astype(np.float32)
    image = MultibandImage(flux, bands=["g", "odd"], pixel_scale=0.2, psf_fwhm=[4.0, 4.0])
    model, settings = model_of(network, 0.9), DeblendSettings()
    with pytest.raises(ValueError, match="'odd' is not known"):
        find_sources(image, model, settings)
    with pytest.raises(ValueError, match="its own normalisation"):
        find_sources(image, model, settings, normalizer=lambda *_: None)
    assert find_sources(image, model, settings, wavelengths={"odd": 540.0}).noise.shape == (2,)


def test_training_goes_on_where_it_was_interrupted(tmp_path):
    path = tmp_path / "one.npz"
    write_band_scene(scene([(20.0, 20.0), (60.0, 30.0)], [300.0, 80.0]), path)
    metadata = ModelMetadata(
        name="tiny",
        architecture=AnyBandSpec(fpn_channels=16, box_features=32, stamp_features=16, mask_channels=(16,)),
        bands=(),
        normalization=BandNoiseSettings(),
        pixel_scale=0.2,
    )
    stages = tuple(
        StageSettings(name, trainable=layers, steps=2, learning_rate=1e-3, batch_size=2)
        for name, layers in (("first", "heads"), ("second", "all"))
    )
    settings = TrainSettings(
        stages, precision="float32", checkpoint_minutes=0.0, log_every=1, steps_per_epoch=2, workers=0
    )

    def run(output: Path, stop: int = 0, **changes: int) -> MaskRcnnModel:
        def stop_there(step: int, *_: object) -> None:
            if step == stop:
                raise KeyboardInterrupt

        validate = BandSceneValidator(lambda _: read_band_scene(path), 1)
        with torch.random.fork_rng(devices=[]):
            return train(
                BandSceneFiles([path], 48, 3),
                metadata,
                dataclasses.replace(settings, **changes),
                output,
                device="cpu",
                validate=validate,
                progress=stop_there,
            ).model

    whole = run(tmp_path / "whole")
    assert whole.metadata.training["crops"] == 8
    assert whole.metadata.training["last_epoch"]["score_97"] <= 1.0
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", stop=4)
    # Processes that draw crops change nothing.
    rest = run(tmp_path / "again", workers=1)
    for name, value in whole.state.items():
        assert torch.equal(value, rest.state[name]), name
    assert not (tmp_path / "again.checkpoint").exists()


def read_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("noise", [True, False])
def test_images_of_a_survey_are_scenes(noise):
    """Units of the noise, S/N of a matched filter, and noise that is added to that of the image."""
    rng, sigma, size = np.random.default_rng(4), np.array([2.0, 5.0], np.float32), 200
    shape = star(100, 90, size)
    light = (50.0 * sigma[:, None, None] * shape).astype(np.float32)
    image = (light + rng.normal(size=light.shape) * sigma[:, None, None]).astype(np.float32) + 3.0
    inside = star(8, 8, 17) > 0.005
    made = TrainingScene(
        noiseless=None if noise else light,
        variance=np.broadcast_to(sigma[:, None, None] ** 2, light.shape).astype(np.float32),
        valid=np.ones((size, size), bool),
        labels=np.array([1, 2]),
        peak_flux=np.stack([50.0 * sigma, 1.0 * sigma]).astype(np.float32),
        origins=np.array([[92, 82], [20, 20]], np.int32),
        masks=[inside, inside],
        psf_fwhm=np.array([4.0, 4.0], np.float32),
        image=image,
        ignore=np.array([False, True]),
    )
    bands = survey_scene(made, [480.0, 620.0], 0.2)
    assert bands.noisy is noise
    wanted = 50.0 * np.sqrt((shape**2).sum())
    np.testing.assert_allclose(bands.snr[0], wanted, rtol=0.02)
    np.testing.assert_allclose(bands.sigma, sigma, rtol=1e-3)
    np.testing.assert_allclose(bands.positions[0], [100, 90])
    packed, target = draw_crop(bands, np.random.default_rng(1), size, plain=True)
    assert target["labels"].tolist() == [1] and len(target["ignore_boxes"]) == 1
    pixels = packed.numpy()[:2]
    np.testing.assert_allclose(
        pixels.std(axis=(1, 2)), np.std(image / sigma[:, None, None], axis=(1, 2)), rtol=0.03
    )
    np.testing.assert_allclose(np.median(pixels, axis=(1, 2)), 0.0, atol=0.03)
    # A PSF that is not known is that of usual images for the truth, and unknown to the network.
    _, unknown = draw_crop(
        survey_scene(dataclasses.replace(made, psf_fwhm=None), [480.0, 620.0], 0.2),
        np.random.default_rng(1),
        size,
        plain=True,
    )
    assert unknown["fwhm"] == USUAL_FWHM and unknown["labels"].tolist() == [1]
    # Shallower: still in units of the noise.
    for number in range(4):
        packed, _ = draw_crop(bands, np.random.default_rng(number), 80)
        count = len(packed) // PLANES
        sky = packed.numpy()[:count][packed.numpy()[count : 2 * count] > 0]
        spread = np.subtract(*np.percentile(sky, [75, 25])) / 1.349
        if noise:
            assert spread == pytest.approx(1.0, abs=0.06)


def test_command_makes_scenes_and_says_what_is_missing(tmp_path, capsys):
    pytest.importorskip("galsim")
    assert (
        maskrcnn(
            "train-any-band",
            ["scenes", str(tmp_path / "some"), "--count", "1", "--seed", "7", "--size", "64"],
        )
        == 0
    )
    assert read_names(tmp_path / "some") == {"bands_7_00000.npz"}
    folders = ["--scenes", str(tmp_path / "none"), "--valid", str(tmp_path), "--out", str(tmp_path / "out")]
    assert maskrcnn("train-any-band", ["train", *folders]) == 1
    assert "There are no scenes" in capsys.readouterr().err


def test_one_scene_can_be_learned():
    """All of it: centres, boxes, classes, masks, blends, on tiles."""
    torch.manual_seed(2)
    torch.set_num_threads(1)
    made = scene([(30.0, 30.0), (34.0, 34.0), (60.0, 40.0)], [300.0, 200.0, 60.0])
    image, target = draw_crop(made, np.random.default_rng(1), 64, plain=True)
    network = AnyBandNetwork(AnyBandSpec())
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    learner = BandLossNetwork(network, 1)
    for step in range(60):
        losses = learner(Crops([image], [target], [step]))
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    network.eval()
    (found,) = detect_bands(network, [image], 4.0, least=0.6)
    assert len(found.scores) == 3
    for centre in target["centres"].numpy():
        assert np.hypot(*(found.positions[:, ::-1] - centre).T).min() < 1.0
    assert (found.p_star > 0.5).all()
    figures = validate_any_band(network, [made])
    assert figures["completeness"] >= 0.75
    # Tiles that the network takes together, one of them without data, are those that it takes one by one.
    noise = np.random.default_rng(2).normal(size=(3, 192, 192))
    pixels = np.tile(made.pixels, (1, 2, 2)) + noise.astype(np.float32)
    valid = np.ones(pixels.shape, bool)
    valid[:, :96, :96] = False
    whole = normalize_bands(pixels, valid, made.fwhm, made.wavelength)
    alone, together = (
        find_in_bands(network, whole, tile_size=96, tile_overlap=32, together=count) for count in (1, 5)
    )
    assert len(alone.scores) >= 6
    np.testing.assert_allclose(alone.scores, together.scores, atol=1e-4)
    np.testing.assert_allclose(alone.boxes, together.boxes, atol=1e-2)


def test_sources_at_the_edges_of_tiles_are_whole():
    """A galaxy that is larger than what tiles share is found again in a tile around it."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:160, :480].astype(float)
    galaxy = 60.0 * np.exp(-np.hypot(y - 80, (x - 228) * 0.7) / 12.0)
    pixels = (galaxy + rng.normal(size=(3, 160, 480))).astype(np.float32)
    image = normalize_bands(pixels, np.ones(pixels.shape, bool), [4.0] * 3, WAVELENGTH)
    network = prepared_network(load_model(), "cpu")
    whole, tiled = (
        find_in_bands(network, image, tile_size=size, tile_overlap=32, least=0.3) for size in (480, 256)
    )
    masks = []
    for found in (whole, tiled):
        near = np.flatnonzero(np.hypot(*(found.positions - [80, 228]).T) < 2.0)
        assert len(near) == 1
        masks.append(np.zeros((160, 480), bool))
        mask, (y0, x0) = found.masks[near[0]], found.origins[near[0]]
        masks[-1][y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
    # It reaches beyond the tile that it is in the middle part of.
    assert masks[0][:, 256:].sum() > 50
    assert (masks[0] & masks[1]).sum() > 0.97 * (masks[0] | masks[1]).sum()
