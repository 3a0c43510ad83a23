# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that are small or narrow: padding must not change the scale of the network's features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

from lsst.meas.maskrcnn.deblend.any_band import detect_any_band, image_wavelengths
from lsst.meas.maskrcnn.deblend.image import MultibandImage
from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.inference import DetectionSettings
from lsst.meas.maskrcnn.network.model_file import load_model
from lsst.meas.maskrcnn.network.spec import NetworkSpec

CASES = Path(__file__).resolve().parents[2] / "shared" / "data" / "cases"
FWHM = 4.2
"""Width of the PSF (px)."""


@pytest.fixture(scope="module")
def model():
    return load_model()


def find(model, flux):
    """Return the centres, (source, 2) as (x, y), and the scores of what a model finds."""
    image = MultibandImage(flux, ("z", "r", "g"), 0.2, psf_fwhm=[FWHM] * len(flux))
    wavelengths, calibration = image_wavelengths(image), model.metadata.calibration
    network = model.build().eval()
    found, _ = detect_any_band(network, image, wavelengths, DetectionSettings(), calibration=calibration)
    return found.positions[:, ::-1], found.scores


def count_matched(found, true, distance=3.0):
    """Number of true positions with a found one within some pixels."""
    if not len(found):
        return 0
    return int((np.hypot(*(true[:, None] - found[None]).T).min(axis=0) < distance).sum())


def draw(height, width, positions, rng):
    """Draw stars and round galaxies in three bands, noise 1."""
    y, x = np.mgrid[:height, :width]
    flux = rng.standard_normal((3, height, width))
    for number, (x0, y0) in enumerate(positions):
        sigma = FWHM / 2.355 * (1 if number % 2 else 1.7)
        flux += 60 * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * sigma**2))
    return flux.astype(np.float32)


def test_a_stamp_has_the_sources_of_the_same_pixels_in_a_larger_image(model):
    positions = np.array([(12, 13), (31, 15), (21, 32), (70, 30), (100, 90), (40, 100), (90, 60)])
    large = draw(128, 128, positions, np.random.default_rng(1))
    in_large, _ = find(model, large)
    found, scores = find(model, large[:, :44, :44])
    assert len(found) == count_matched(found, positions[:3]) == 3
    assert count_matched(in_large, found) == 3
    assert scores.min() > 0.8


def test_a_strip_has_its_sources(model):
    rng = np.random.default_rng(2)
    positions = np.array([(x, rng.uniform(8, 32)) for x in range(20, 1490, 37)])
    found, scores = find(model, draw(40, 1500, positions, rng))
    assert count_matched(found, positions) >= 0.95 * len(positions)
    assert len(found) <= 1.05 * len(positions)
    assert np.median(scores) > 0.9


def test_a_strip_has_the_sources_of_the_same_pixels_in_a_larger_image(model):
    rng = np.random.default_rng(4)
    positions = np.array([(x, y) for x in range(25, 420, 41) for y in range(20, 180, 37)])
    large = draw(180, 430, positions + rng.uniform(-6, 6, positions.shape), rng)
    in_large, _ = find(model, large)
    found, _ = find(model, large[:, 43:109, 40:370])
    inner = in_large - (40, 43)
    inner = inner[((inner > 8) & (inner < np.array([330, 66]) - 9)).all(axis=1)]
    assert len(inner) >= 13 and count_matched(found, inner) >= len(inner) - 1
    assert count_matched(in_large - (40, 43), found) >= len(found) - 1


@pytest.mark.parametrize(("case", "least"), [("15_height_40", 9), ("15_height_44_square", 3)])
def test_recorded_cases(model, case, least):
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is not there")
    flux = np.stack([fits.getdata(CASES / case / f"{band}.fits").astype(np.float32) for band in "zrg"])
    truth = Table.read(CASES / case / "truth.ecsv")
    found, _ = find(model, flux)
    assert count_matched(found, np.array([truth["x"], truth["y"]]).T) >= least
    assert len(found) <= len(truth)


@pytest.mark.parametrize("size", [(22, 22), (33, 45), (44, 44), (67, 1500), (512, 512), (1, 1)])
def test_scales_are_those_of_the_strides(size):
    """Whatever image comes first."""
    for spec, scales in (
        (NetworkSpec.light(2), [1 / 4, 1 / 8, 1 / 16]),
        (NetworkSpec.published(2, "resnet18"), [1 / 4, 1 / 8, 1 / 16, 1 / 32]),
    ):
        network = build_network(spec).eval()
        with torch.inference_mode():
            network([torch.zeros(2, *size)])
        for pooler in (network.roi_heads.box_roi_pool, network.roi_heads.mask_roi_pool):
            assert pooler.scales == scales
            assert (pooler.map_levels.k_min, pooler.map_levels.k_max) == (2, 1 + len(scales))
