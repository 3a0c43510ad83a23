# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection at several pixel sizes, and the merging of what was found."""

from __future__ import annotations

import numpy as np
import pytest

from lsst.meas.maskrcnn.deblend.merging import merge_scales
from lsst.meas.maskrcnn.deblend.saturated import join_saturated
from lsst.meas.maskrcnn.network.detections import Detections

SHAPE = (180, 240)
FWHM = 4.0


def gaussian(y: float, x: float, height: float, sigma: float = FWHM / 2.3548) -> np.ndarray:
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return height * np.exp(-0.5 * ((yy - y) ** 2 + (xx - x) ** 2) / sigma**2)


def galaxy(y: float, x: float, height: float, scale: float = 12.0, ratio: float = 0.6) -> np.ndarray:
    """An exponential disc, elongated along x, seen with the PSF (about)."""
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    radius = np.sqrt(((yy - y) / ratio) ** 2 + (xx - x) ** 2 + FWHM**2)
    return height * np.exp((FWHM - radius) / scale)


def disc(y: float, x: float, radius: float, ratio: float = 1.0) -> np.ndarray:
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return ((yy - y) / ratio) ** 2 + (xx - x) ** 2 <= radius**2


def detections(*sources: tuple[np.ndarray, float, float], binning: int = 1) -> Detections:
    """Make detections of masks on the image, scores and P(star)."""
    masks, origins, boxes = [], [], []
    for image, _, _ in sources:
        rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
        y0, x0, y1, x1 = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
        masks.append(image[y0:y1, x0:x1].copy())
        origins.append((y0, x0))
        boxes.append((x0, y0, x1, y1))
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([s[1] for s in sources], np.float32),
        np.array([s[2] for s in sources], np.float32),
        np.array(origins, np.int32).reshape(-1, 2),
        masks,
        binning=np.full(len(sources), binning, np.int8),
    )


def on_image(found: Detections, index: int) -> np.ndarray:
    image = np.zeros(SHAPE, dtype=bool)
    y, x = found.origins[index]
    mask = found.masks[index]
    image[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return image


def merge(light: np.ndarray, *levels: Detections) -> Detections:
    """Merge on light in units of the noise."""
    return merge_scales(levels, light.astype(np.float32), FWHM)


LARGE = disc(90, 110, 34, 0.6)
CLUMPS = [(90, 134), (84, 92), (99, 101), (93, 122)]


def clumpy_galaxy() -> np.ndarray:
    """A bright galaxy with clumps of up to twice its brightness."""
    light = galaxy(90, 110, 600.0)
    return light + sum(gaussian(y, x, 0.9 * light[y, x]) for y, x in CLUMPS)


def test_a_shredded_galaxy_becomes_one() -> None:
    light = clumpy_galaxy()
    fine = detections(*[(disc(y, x, 5), 0.7, 0.1) for y, x in CLUMPS])
    coarse = detections((LARGE, 0.8, 0.0), binning=2)
    merged = merge(light, fine, coarse)
    assert merged.binning.tolist() == [2]
    whole = LARGE.copy()
    for y, x in CLUMPS:
        whole |= disc(y, x, 5)
    assert np.array_equal(on_image(merged, 0), whole)
    assert merged.scores.tolist() == pytest.approx([0.8])
    rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
    assert merged.boxes[0].tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_sources_before_a_galaxy_stay() -> None:
    """A star, whose peak stands out, and a source of which the network is sure."""
    star = gaussian(76, 128, 2000.0)
    light = clumpy_galaxy() + star
    places = [(disc(y, x, 5), 0.7, 0.1) for y, x in CLUMPS[:2]]
    sure = (disc(*CLUMPS[2], 5), 0.97, 0.1)
    fine = detections(*places, sure, (disc(76, 128, 5), 0.8, 0.4))
    merged = merge(light, fine, detections((LARGE, 0.8, 0.0), binning=2))
    assert merged.scores.tolist() == pytest.approx([0.97, 0.8, 0.8])
    assert merged.binning.tolist() == [1, 1, 2]


def test_a_galaxy_that_was_found_takes_its_clumps() -> None:
    light = clumpy_galaxy()
    main = disc(90, 110, 30, 0.6) & ~disc(*CLUMPS[0], 5)
    fine = detections((main, 0.9, 0.0), (disc(*CLUMPS[0], 5), 0.6, 0.0))
    merged = merge(light, fine, detections((LARGE, 0.6, 0.0), binning=4))
    assert merged.binning.tolist() == [1]
    assert np.array_equal(on_image(merged, 0), main | disc(*CLUMPS[0], 5))


def test_a_core_gives_way_to_its_galaxy() -> None:
    light = galaxy(90, 110, 600.0, scale=25.0)
    fine = detections((disc(90, 110, 8, 0.6), 0.95, 0.0))
    merged = merge(light, fine, detections((LARGE, 0.6, 0.0), binning=4))
    assert merged.binning.tolist() == [4]
    assert merged.scores.tolist() == pytest.approx([0.95])
    # One that falls off steeply had its mask right, and the coarse one has its halo in it.
    steep = galaxy(90, 110, 600.0, scale=5.0)
    assert merge(steep, fine, detections((LARGE, 0.6, 0.0), binning=4)).binning.tolist() == [1]


@pytest.mark.parametrize("coarse", [[], [detections(binning=2)]], ids=["one binning", "two binnings"])
def test_a_core_grows_to_its_galaxy(coarse: list[Detections]) -> None:
    """No binning has the galaxy as a whole, but its light hangs together."""
    light = galaxy(90, 110, 600.0, scale=14.0)
    core = (disc(90, 110, 8, 0.6), 0.95, 0.0)
    merged = merge(light, detections(core), *coarse)
    painted = on_image(merged, 0)
    # Where the profile falls to a tenth of the peak, which smoothing lowers a little.
    height = light[90, 110]
    assert painted[light > 0.11 * height].all() and not painted[light < 0.085 * height].any()
    rows, columns = np.flatnonzero(painted.any(axis=1)), np.flatnonzero(painted.any(axis=0))
    assert merged.boxes[0].tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    soft = merged.soft[0]
    assert (soft > 127).sum() == painted.sum()
    # A star has no such light, and a brighter neighbour's may be anybody's.
    assert np.array_equal(on_image(merge(light, detections((core[0], 0.95, 0.9)), *coarse), 0), core[0])
    crowded = light + galaxy(90, 150, 900.0, scale=14.0)
    assert np.array_equal(on_image(merge(crowded, detections(core), *coarse), 0), core[0])


@pytest.mark.parametrize("score", [0.3, 0.9])
def test_a_coarse_blend_of_small_sources_is_dropped(score: float) -> None:
    light = gaussian(60, 80, 300.0) + gaussian(66, 93, 250.0) + gaussian(56, 94, 200.0)
    fine = detections(*[(disc(*place, 6), 0.9, 0.6) for place in ((60, 80), (66, 93), (56, 94))])
    merged = merge(light, fine, detections((disc(61, 88, 14), score, 0.5), binning=4))
    assert merged.binning.tolist() == [1, 1, 1]
    assert [int(mask.sum()) for mask in merged.masks] == [int(mask.sum()) for mask in fine.masks]


def test_what_only_a_coarse_binning_found_is_kept() -> None:
    faint = galaxy(90, 110, 3.0, scale=15.0)
    nothing = detections()
    assert len(merge(faint, nothing, detections((LARGE, 0.6, 0.0), binning=2))) == 1
    bright = galaxy(90, 110, 500.0, scale=8.0)
    found = merge(bright, nothing, detections((disc(90, 110, 22, 0.6), 0.6, 0.0), binning=2))
    assert found.scores.tolist() == pytest.approx([0.6])
    # Twice over, it is one.
    twice = detections((disc(90, 110, 22, 0.6), 0.6, 0.0), (disc(91, 112, 23, 0.6), 0.55, 0.0), binning=2)
    assert merge(bright, nothing, twice).scores.tolist() == pytest.approx([0.6])


@pytest.mark.parametrize("score", [0.3, 0.9])
def test_the_flank_of_something_bright_is_no_source(score: float) -> None:
    light = gaussian(90, 110, 30000.0, sigma=9.0)
    flank = disc(90, 143, 12)
    assert light[flank].sum() > 300.0 * np.sqrt(flank.sum())
    merged = merge(
        light, detections((disc(90, 110, 20), 0.95, 0.9)), detections((flank, score, 0.0), binning=2)
    )
    assert merged.binning.tolist() == [1]


def test_a_galaxy_behind_a_star_is_kept() -> None:
    light = galaxy(90, 110, 300.0) + gaussian(84, 128, 6000.0)
    star = detections((disc(84, 128, 7), 0.95, 0.99))
    merged = merge(light, star, detections((LARGE, 0.7, 0.0), binning=2))
    assert merged.binning.tolist() == [1, 2]
    # In its middle, a star is more likely to be taken for a galaxy with a core.
    central = galaxy(90, 110, 300.0) + gaussian(90, 110, 6000.0)
    star = detections((disc(90, 110, 7), 0.95, 0.99))
    merged = merge(central, star, detections((LARGE, 0.7, 0.0), binning=2))
    assert merged.binning.tolist() == [1]


@pytest.mark.parametrize("coarse", [[], [detections(binning=2)]], ids=["one binning", "two binnings"])
def test_a_second_view_of_something_bright_is_no_source(coarse: list[Detections]) -> None:
    light = galaxy(90, 110, 900.0, scale=9.0)
    main, second = (disc(90, 110, 20, 0.6), 0.95, 0.0), disc(91, 114, 14, 0.7)
    assert len(merge(light, detections(main, (second, 0.52, 0.0)), *coarse)) == 1
    # Of a faint one, or with a good score, it may be a blend.
    assert len(merge(light, detections(main, (second, 0.8, 0.0)), *coarse)) == 2
    assert len(merge(light / 100.0, detections(main, (second, 0.52, 0.0)), *coarse)) == 2


def test_merging_does_not_depend_on_the_order() -> None:
    light = clumpy_galaxy() + gaussian(30, 40, 200.0) + gaussian(36, 55, 100.0)
    rng = np.random.default_rng(4)
    fine = [(disc(y, x, 5), 0.6 + 0.05 * n, 0.1) for n, (y, x) in enumerate(CLUMPS)]
    fine += [(disc(30, 40, 6), 0.9, 0.9), (disc(36, 55, 6), 0.8, 0.9)]
    coarse = [(LARGE, 0.8, 0.0), (disc(33, 47, 14), 0.7, 0.1), (disc(90, 111, 30, 0.6), 0.3, 0.0)]
    results = []
    for _ in range(3):
        merged = merge(
            light,
            detections(*[fine[i] for i in rng.permutation(len(fine))]),
            detections(*[coarse[i] for i in rng.permutation(len(coarse))], binning=2),
        ).sorted()
        results.append((merged.boxes.tolist(), [mask.tolist() for mask in merged.masks]))
    assert results[0] == results[1] == results[2]
    assert len(results[0][0]) == 3


def test_soft_masks_come_along() -> None:
    light = clumpy_galaxy()
    clump, whole = detections((disc(*CLUMPS[0], 5), 0.7, 0.1)), detections((LARGE, 0.8, 0.0), binning=2)
    clump.soft = [np.where(clump.masks[0], 200, 40).astype(np.uint8)]
    merged = merge(light, clump, whole)
    (y, x), soft = merged.soft_origins[0], merged.soft[0]
    full = np.zeros(SHAPE, np.uint8)
    full[y : y + soft.shape[0], x : x + soft.shape[1]] = soft
    assert (full[LARGE] == 255).all()
    assert (full[on_image(merged, 0)] > 127).all()


def star_with_trail() -> np.ndarray:
    """Saturated pixels of a star whose charge runs along a column."""
    saturated = disc(90, 110, 6)
    saturated[50:140, 109:112] = True
    return saturated


def test_the_trail_of_a_star_is_the_star() -> None:
    saturated = star_with_trail()
    trail = np.zeros(SHAPE, bool)
    trail[50:75, 108:113] = True
    neighbour = disc(60, 117, 6)  # touches the trail
    found = detections((trail, 0.6, 0.2), (disc(90, 110, 24), 0.9, 0.95), (neighbour, 0.8, 0.1))
    joined = join_saturated(found, saturated)
    assert joined.p_star.tolist() == pytest.approx([0.95, 0.1])
    assert np.array_equal(on_image(joined, 0), trail | disc(90, 110, 24))
    assert np.array_equal(on_image(joined, 1), neighbour)
    unmarked = join_saturated(found, np.zeros(SHAPE, bool))
    assert len(unmarked) == 3


def test_two_stars_on_one_trail_stay_two() -> None:
    saturated = star_with_trail()
    saturated |= disc(130, 110, 5)
    twin = disc(131, 112, 9)  # a second view of the second star
    found = detections((disc(90, 110, 12), 0.9, 0.9), (disc(130, 110, 10), 0.9, 0.8), (twin, 0.6, 0.7))
    joined = join_saturated(found, saturated)
    assert joined.p_star.tolist() == pytest.approx([0.9, 0.8])
    assert np.array_equal(on_image(joined, 1), disc(130, 110, 10) | twin)


def test_spikes_point_to_their_star() -> None:
    saturated = star_with_trail()
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]

    def line(y: float, x: float, angle: float, length: float, width: float = 2.0) -> np.ndarray:
        along = (xx - x) * np.cos(angle) + (yy - y) * np.sin(angle)
        across = -(xx - x) * np.sin(angle) + (yy - y) * np.cos(angle)
        return (np.abs(along) <= length) & (np.abs(across) <= width)

    spike = line(90 + 24, 110 + 24, np.pi / 4, 12)
    edge_on = line(90 - 26, 110 + 26, np.pi / 4, 12)  # across the line to the star
    far = line(90, 215, 0.0, 12)
    found = detections((disc(90, 110, 13), 0.9, 0.9), (spike, 0.6, 0.3), (edge_on, 0.7, 0.1), (far, 0.8, 0.0))
    joined = join_saturated(found, saturated)
    assert joined.p_star.tolist() == pytest.approx([0.9, 0.1, 0.0])
    assert np.array_equal(on_image(joined, 0), disc(90, 110, 13) | spike)
