# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Truth masks on images whose masks can be computed, neighbours and flags."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lsst.meas.maskrcnn.images.pixels import tight
from lsst.meas.maskrcnn.scenes.config import MaskRule
from lsst.meas.maskrcnn.scenes.truth import FLAGS, flag_sources, measure_neighbors, source_mask

SHAPE = (121, 151)


def gaussian(
    sigma_x: float, sigma_y: float, x: float = 70.3, y: float = 58.6, flux: float = 1.0
) -> np.ndarray:
    """An elliptical Gaussian, sampled at the pixel centres."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    peak = flux / (2 * math.pi * sigma_x * sigma_y)
    return peak * np.exp(-0.5 * (((columns - x) / sigma_x) ** 2 + ((rows - y) / sigma_y) ** 2))


def on_image(mask: np.ndarray, y0: int, x0: int) -> np.ndarray:
    """The mask in the frame of the image."""
    result = np.zeros(SHAPE, bool)
    result[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
    return result


@pytest.mark.parametrize("is_star", [True, False])
@pytest.mark.parametrize("sigma_x, sigma_y", [(7.0, 7.0), (9.0, 5.0)])
def test_peak_fraction_of_a_gaussian(sigma_x: float, sigma_y: float, is_star: bool) -> None:
    rule = MaskRule(kind="peakFraction", star_fraction=0.01, galaxy_fraction=0.2)
    fraction = 0.01 if is_star else 0.2
    image = gaussian(sigma_x, sigma_y, flux=1234.5)
    mask, y0, x0 = source_mask(image, rule, is_star, math.nan, math.nan)
    area = 2 * math.pi * sigma_x * sigma_y * math.log(1 / fraction)
    assert np.count_nonzero(mask) == pytest.approx(area, rel=0.02)
    # Half widths along the axes.
    assert mask.shape[1] == pytest.approx(2 * sigma_x * math.sqrt(2 * math.log(1 / fraction)), abs=1.5)
    assert mask.shape[0] == pytest.approx(2 * sigma_y * math.sqrt(2 * math.log(1 / fraction)), abs=1.5)
    np.testing.assert_array_equal(on_image(mask, y0, x0), image > fraction * image.max())


def test_the_published_fractions_are_the_default() -> None:
    image = gaussian(6.0, 6.0)
    for is_star, fraction in ((True, 0.005), (False, 0.08)):
        mask, y0, x0 = source_mask(image, MaskRule(), is_star, 1.0, 1.0)
        np.testing.assert_array_equal(on_image(mask, y0, x0), image > fraction * image.max())


@pytest.mark.parametrize("isophote", [0.5, 3.0])
def test_radius_of_an_isophote(isophote: float) -> None:
    sigma, flux, sky = 6.0, 40_000.0, 2.5
    image = gaussian(sigma, sigma, flux=flux)
    rule = MaskRule(kind="isophote", isophote=isophote)
    mask, y0, x0 = source_mask(image, rule, False, sky, flux)
    radius = sigma * math.sqrt(2 * math.log(flux / (2 * math.pi * sigma**2) / (isophote * sky)))
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    expected = np.hypot(columns - 70.3, rows - 58.6) < radius
    np.testing.assert_array_equal(on_image(mask, y0, x0), expected)
    # The class does not matter, twice the noise is the same as half the light.
    again, *_ = source_mask(0.5 * image, rule, True, 0.5 * sky, flux)
    np.testing.assert_array_equal(again, mask)


def test_isophote_of_a_source_below_it_is_empty() -> None:
    mask, *_ = source_mask(gaussian(3.0, 3.0), MaskRule(kind="isophote"), False, 1.0, 1.0)
    assert mask.shape == (0, 0)


@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_flux_fraction_of_a_gaussian(fraction: float) -> None:
    image = gaussian(8.0, 5.0, flux=300.0)
    rule = MaskRule(kind="fluxFraction", flux_fraction=fraction)
    mask, y0, x0 = source_mask(image, rule, False, math.nan, 300.0)
    area = 2 * math.pi * 40.0 * math.log(1 / (1 - fraction))
    assert np.count_nonzero(mask) == pytest.approx(area, rel=0.02)
    inside = image[on_image(mask, y0, x0)]
    # Enough, but not without its faintest pixel; and nothing brighter outside.
    assert inside.sum() >= fraction * 300.0
    assert inside.sum() - inside.min() < fraction * 300.0
    assert image[~on_image(mask, y0, x0)].max() <= inside.min()


def test_flux_beyond_the_stamp_counts() -> None:
    image = gaussian(5.0, 5.0, flux=100.0)
    rule = MaskRule(kind="fluxFraction", flux_fraction=0.5)
    half, *_ = source_mask(image, rule, False, 1.0, 100.0)
    more, *_ = source_mask(image, rule, False, 1.0, 160.0)
    assert np.count_nonzero(more) == pytest.approx(2 * math.pi * 25 * math.log(1 / (1 - 0.8)), rel=0.02)
    assert np.count_nonzero(half) < np.count_nonzero(more)
    image[:, :60] = 0.0
    image[:10] = -1.0
    mask, y0, x0 = source_mask(image, rule, False, 1.0, 1000.0)
    np.testing.assert_array_equal(on_image(mask, y0, x0), image > 0)


@pytest.mark.parametrize("kind", ["peakFraction", "isophote", "fluxFraction"])
def test_pieces_belong_to_the_mask_and_nothing_is_no_mask(kind: str) -> None:
    image = np.zeros(SHAPE)
    image[20:23, 30:32] = 9.0
    image[100, 140] = 8.0
    rule = MaskRule(kind=kind, flux_fraction=0.99)
    mask, y0, x0 = source_mask(image, rule, False, 1.0, image.sum())
    np.testing.assert_array_equal(on_image(mask, y0, x0), image > 0)
    assert (y0, x0) == (20, 30)
    for nothing in (np.zeros(SHAPE), np.zeros((0, 5))):
        assert source_mask(nothing, rule, False, 1.0, 1.0)[0].shape == (0, 0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_missing_numbers_are_named(bad: float) -> None:
    image = gaussian(3.0, 3.0)
    with pytest.raises(ValueError, match="sky_sigma"):
        source_mask(image, MaskRule(kind="isophote"), False, bad, 1.0)
    with pytest.raises(ValueError, match="flux"):
        source_mask(image, MaskRule(kind="fluxFraction"), False, 1.0, bad)


def test_neighbors_by_hand() -> None:
    x = np.array([0.0, 3.0, 3.0, 100.0])
    y = np.array([0.0, 4.0, 5.0, 5.0])
    flux = np.array([10.0, 20.0, 5.0, 0.0])
    distance, ratio = measure_neighbors(x, y, flux, 0.2)
    np.testing.assert_allclose(distance, [1.0, 0.2, 0.2, 19.4])
    np.testing.assert_allclose(ratio, [2.0, 0.25, 4.0, np.nan])


def test_neighbors_against_all_pairs() -> None:
    rng = np.random.default_rng(5)
    x, y, flux = rng.uniform(0, 300, 200), rng.uniform(0, 80, 200), rng.uniform(1, 9, 200)
    distance, ratio = measure_neighbors(x, y, flux, 0.5)
    pairs = np.hypot(x[:, None] - x, y[:, None] - y)
    np.fill_diagonal(pairs, np.inf)
    np.testing.assert_allclose(distance, 0.5 * pairs.min(axis=1))
    np.testing.assert_allclose(ratio, flux[pairs.argmin(axis=1)] / flux)


def test_neighbors_in_one_place_and_none_at_all() -> None:
    x = np.array([7.0, 7.0, 7.0, 9.0])
    distance, ratio = measure_neighbors(x, x, np.array([1.0, 2.0, 4.0, 8.0]), 1.0)
    np.testing.assert_array_equal(distance[:3], 0.0)
    # A source is not its own neighbour.
    assert not (ratio[:3] == 1.0).any()
    assert distance[3] == pytest.approx(math.sqrt(8.0))
    for n in (0, 1):
        distance, ratio = measure_neighbors(x[:n], x[:n], x[:n], 1.0)
        assert distance.shape == ratio.shape == (n,)
        assert np.isnan(distance).all() and np.isnan(ratio).all()
    with pytest.raises(ValueError, match="one length"):
        measure_neighbors(x, x[:2], x, 1.0)


def make_sources(masks: list[np.ndarray], origins: list[tuple[int, int]]) -> np.ndarray:
    """Sources in the middle of their masks, bright and uncut."""
    columns = [("x", "f8"), ("y", "f8"), ("area", "i4"), ("visible", "f4"), ("snr_g", "f8"), ("snr_r", "f8")]
    sources = np.zeros(len(masks), columns + [(f"flag_{name}", "?") for name in FLAGS])
    for source, mask, (y0, x0) in zip(sources, masks, origins, strict=True):
        source["area"] = np.count_nonzero(mask)
        source["y"], source["x"] = y0 + 0.5 * (mask.shape[0] - 1), x0 + 0.5 * (mask.shape[1] - 1)
    sources["visible"] = 1.0
    sources["snr_g"], sources["snr_r"] = 3.0, 30.0
    return sources


def flags_of(sources: np.ndarray) -> dict[str, list[bool]]:
    return {name: sources[f"flag_{name}"].tolist() for name in FLAGS}


def test_flags() -> None:
    full, none = np.ones((5, 7), bool), np.zeros((0, 0), bool)
    masks = [full, none, np.ones((2, 3), bool), full, full, full, full]
    origins = [(10, 10), (0, 0), (30, 10), (40, 40), (60, 60), (80, 30), (SHAPE[0] - 5, 90)]
    sources = make_sources(masks, origins)
    sources["visible"][1] = 0.0
    sources["snr_g"][3] = sources["snr_r"][3] = 4.9
    # Nothing is known of its S/N.
    sources["snr_g"][5] = sources["snr_r"][5] = np.nan
    sources["visible"][6] = 0.4
    unusable = np.zeros(SHAPE, bool)
    unusable[62, 63] = True
    flag_sources(sources, masks, np.array(origins), unusable, MaskRule(min_area=7, min_snr=5.0), True)
    assert flags_of(sources) == {
        "empty": [False, True, False, False, False, False, False],
        "small": [False, True, True, False, False, False, False],
        "faint": [False, False, False, True, False, False, False],
        "masked": [False, False, False, False, True, False, False],
        "edge": [False, False, False, False, False, False, True],
    }
    # Without noise nothing is faint, and flags that were set go.
    flag_sources(sources, masks, np.array(origins), ~unusable[::-1], MaskRule(min_area=0), False)
    assert flags_of(sources)["faint"] == [False] * 7
    assert flags_of(sources)["small"] == [False] * 7
    assert flags_of(sources)["masked"] == [True, False] + [True] * 5


def test_masked_is_the_position_or_more_than_half_of_the_mask() -> None:
    # A ring, so that the position is not in the mask.
    ring = np.ones((5, 5), bool)
    ring[1:4, 1:4] = False
    masks, origins = [ring] * 4, [(10, 20), (30, 20), (50, 20), (70, 20)]
    sources = make_sources(masks, origins)
    unusable = np.zeros(SHAPE, bool)
    unusable[12, 22] = True
    # 8 and 9 of 16 pixels
    unusable[30, 20:25] = unusable[34, 20:23] = True
    unusable[50, 20:25] = unusable[54, 20:24] = True
    # The hole but for its middle is not in the mask.
    unusable[71:74, 21:24] = True
    unusable[72, 22] = False
    flag_sources(sources, masks, np.array(origins), unusable, MaskRule(), True)
    assert sources["flag_masked"].tolist() == [True, False, True, False]
    # Rounded to the nearest pixel, also at the rim; beyond it is no pixel.
    sources["x"], sources["y"] = [150.4, 150.6, -0.4, 12.0], [0.0, 0.0, 120.4, np.nan]
    rim = np.zeros(SHAPE, bool)
    rim[0, -1] = rim[-1, 0] = True
    flag_sources(sources, masks, np.array(origins), rim, MaskRule(), True)
    assert sources["flag_masked"].tolist() == [True, False, True, False]


def test_edge_is_a_cut_and_not_a_touch() -> None:
    mask = np.ones((4, 4), bool)
    origins = [(0, 20), (117, 20), (50, 147), (50, 0), (50, 50)]
    sources = make_sources([mask] * 5, origins)
    unusable = np.zeros(SHAPE, bool)
    flag_sources(sources, [mask] * 5, np.array(origins), unusable, MaskRule(), True)
    assert not sources["flag_edge"].any()
    # An importer does not know what was cut off.
    sources["visible"] = np.nan
    flag_sources(sources, [mask] * 5, np.array(origins), unusable, MaskRule(), True)
    assert sources["flag_edge"].tolist() == [True, True, True, True, False]
    with pytest.raises(ValueError, match="5 sources, 4 masks"):
        flag_sources(sources, [mask] * 4, np.array(origins), unusable, MaskRule(), True)


def test_no_sources_have_no_flags() -> None:
    sources = make_sources([], [])
    flag_sources(sources, [], np.zeros((0, 2), int), np.ones(SHAPE, bool), MaskRule(), True)
    assert len(sources) == 0


def test_tight() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[7, 9] = mask[11, 3] = True
    part, y0, x0 = tight(mask)
    assert (part.shape, y0, x0) == ((5, 7), 7, 3)
    np.testing.assert_array_equal(on_image(part, y0, x0), mask)
    assert tight(np.zeros(SHAPE, bool))[0].shape == (0, 0)
