# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Repetitions of a source go, and the sources of a blend stay."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, nms

from lsst.meas.maskrcnn.deblend.detection import detect
from lsst.meas.maskrcnn.deblend.suppression import (
    Colors,
    keep_blends,
    keep_hard,
    make_suppression,
    measure_colors,
    same_masks,
)
from lsst.meas.maskrcnn.images.normalize import normalize
from lsst.meas.maskrcnn.network.inference import DetectionSettings
from lsst.meas.maskrcnn.network.model_file import load_model
from lsst.meas.maskrcnn.scenes.config import ArtefactConfig
from lsst.meas.maskrcnn.scenes.populations import POPULATION_DTYPE
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import draw_scene

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from pair_recall import PairOutcomes, match_pairs, plot_pair_recall


def squares(centers: list[tuple[float, float]], side: float = 16.0) -> np.ndarray:
    middle = np.array(centers, dtype=np.float32)
    return np.concatenate([middle - side / 2, middle + side / 2], axis=1)


def random_boxes(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Many boxes that overlap; with ties among their scores."""
    corner = rng.uniform(0, 200, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 40, (count, 2))], axis=1)
    return boxes.astype(np.float32), rng.integers(1, 40, count).astype(np.float32) / 40


def test_hard_keeps_the_best_of_what_overlaps() -> None:
    # IoU 11 / 21 with the first; far from both; a small box on the first one's middle.
    boxes = np.concatenate([squares([(50, 50), (55, 50), (64, 50)]), squares([(51, 50)], 8.0)])
    scores = np.array([0.8, 0.9, 0.7, 0.95], dtype=np.float32)
    assert keep_hard(boxes[:3], scores[:3], 0.5).tolist() == [1, 2]
    assert keep_hard(boxes[:3], scores[:3], 0.55).tolist() == [1, 0, 2]
    assert keep_hard(boxes[[0, 3]], scores[[0, 3]], 0.5).tolist() == [1]
    assert keep_hard(boxes[:0], scores[:0], 0.5).tolist() == []


def test_hard_is_the_usual_suppression_where_no_boxes_are_concentric() -> None:
    rng = np.random.default_rng(4)
    corner = rng.uniform(0, 150, (300, 2))
    boxes = np.concatenate([corner, corner + 20], axis=1).astype(np.float32)
    scores = rng.permutation(300).astype(np.float32) / 300
    # Equal squares are concentric only if their IoU is over 0.5 as well.
    expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.5).numpy()
    np.testing.assert_array_equal(keep_hard(boxes, scores, 0.5), expected)


@pytest.mark.parametrize(("distance", "both"), [(0.3, False), (0.45, False), (0.55, True), (0.9, True)])
def test_blends_are_told_by_their_distance(distance: float, both: bool) -> None:
    """Boxes of one size whose IoU is over a half, at some distance in units of the PSF."""
    fwhm = 5.0
    boxes = squares([(50, 50), (50, 50 + distance * fwhm)], side=20.0)
    scores = np.array([0.7, 0.9], dtype=np.float32)
    assert keep_hard(boxes, scores, 0.5).tolist() == [1]
    assert keep_blends(boxes, scores, 0.5, fwhm=fwhm).tolist() == ([1, 0] if both else [1])
    # These boxes are 4 FWHM wide: the same where the PSF is not known.
    assert keep_blends(boxes, scores, 0.5).tolist() == ([1, 0] if both else [1])
    assert keep_blends(boxes, scores, 0.5, fwhm=np.nan).tolist() == ([1, 0] if both else [1])


def test_blends_are_told_by_their_colors() -> None:
    boxes = squares([(50, 50), (52, 50)], side=20.0)
    scores = np.array([0.9, 0.8], dtype=np.float32)
    for shift, both in ((0.0, False), (0.1, False), (0.2, True)):
        values = np.array([[0.5, 0.5], [0.5 + shift, 0.5 - shift]], dtype=np.float32)
        colors = Colors(values, np.full((2, 2), 0.018, dtype=np.float32))
        # Each of two bands differs by shift / (0.018 sqrt(2)) sigma.
        assert colors.significance(np.array([0]), np.array([1]))[0] == pytest.approx(shift / 0.018)
        kept = keep_blends(boxes, scores, 0.5, colors, fwhm=5.0)
        assert kept.tolist() == ([0, 1] if both else [0])
        # Too near to each other, colours may as well be noise.
        assert keep_blends(boxes, scores, 0.5, colors, fwhm=7.0).tolist() == [0]


def test_many_boxes_agree_with_one_by_one() -> None:
    rng = np.random.default_rng(9)
    boxes, scores = random_boxes(400, rng)
    values = rng.uniform(0, 1, (len(boxes), 3)).astype(np.float32)
    colors = Colors(values, np.full_like(values, 0.05))
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    side = boxes[:, 2:] - boxes[:, :2]
    area = side.prod(axis=1)
    overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy()

    def one_source(i: int, j: int) -> bool:
        low = np.maximum(boxes[i, :2], boxes[j, :2])
        common = np.maximum(np.minimum(boxes[i, 2:], boxes[j, 2:]) - low, 0).prod()
        distance = np.hypot(*(middle[i] - middle[j]))
        smaller = min(area[i], area[j])
        alike = distance <= 0.25 * np.sqrt(smaller) and common >= 0.7 * smaller
        difference = np.sqrt(((values[i] - values[j]) ** 2).sum() / (2 * 0.05**2))
        unit = max(8, np.sqrt(smaller) / 4)
        apart = distance >= 0.5 * unit or (distance >= 0.35 * unit and difference >= 10)
        return overlap[i, j] > 0.9 or ((overlap[i, j] > 0.4 or alike) and not apart)

    order = sorted(range(len(boxes)), key=lambda k: (-scores[k], boxes[k, 1], boxes[k, 0]))
    expected: list[int] = []
    for j in order:
        if not any(one_source(i, j) for i in expected):
            expected.append(j)
    kept = keep_blends(boxes, scores, 0.4, colors, fwhm=8.0)
    assert 50 < len(kept) < 350
    assert kept.tolist() == expected
    shuffled = rng.permutation(len(boxes))
    again = keep_blends(
        boxes[shuffled], scores[shuffled], 0.4, Colors(*(part[shuffled] for part in colors)), fwhm=8.0
    )
    np.testing.assert_array_equal(shuffled[again], kept)


def test_only_other_groups_are_compared() -> None:
    boxes = squares([(50, 50), (51, 50), (50, 51), (90, 90)], side=20.0)
    scores = np.array([0.9, 0.8, 0.7, 0.6], dtype=np.float32)
    groups = np.array([3, 3, 5, 5])
    assert keep_blends(boxes, scores, 0.5, fwhm=5.0, groups=groups).tolist() == [0, 1, 3]
    assert keep_blends(boxes, scores, 0.5, fwhm=5.0).tolist() == [0, 3]


def test_seams_follow_the_rule_of_the_tiles() -> None:
    """Two boxes of neighbouring tiles are one source where two of one tile would be."""
    fwhm = 5.0
    boxes = squares([(50, 50), (53, 50), (90, 90)], side=20.0)
    scores, tiles = np.array([0.9, 0.8, 0.7], dtype=np.float32), np.array([0, 1, 1])
    # 0.6 FWHM apart, with an IoU of 0.74.
    assert make_suppression("hard", 0.5, fwhm).at_seams(boxes, scores, tiles).tolist() == [0, 2]
    assert make_suppression("mask", 0.5, fwhm).at_seams(boxes, scores, tiles).tolist() == [0, 1, 2]
    # What one tile has told apart stays apart.
    assert make_suppression("hard", 0.5, fwhm).at_seams(boxes, scores, tiles * 0).tolist() == [0, 1, 2]


def test_colors_of_a_gradient() -> None:
    """Bands that are linear in x and y are sampled exactly, on an image that is not square."""
    y, x = np.mgrid[:60, :90].astype(np.float32)
    image = np.stack([10 + x, 10 + y])
    noise = np.random.default_rng(2).normal(0, 1e-3, image.shape).astype(np.float32)
    boxes = np.array([[20.0, 10.0, 30.0, 21.0], [70.3, 40.0, 75.1, 58.0]], dtype=np.float32)
    colors = measure_colors(torch.from_numpy(image + noise), boxes)
    # Half open boxes: that of one pixel at column 3 is from 3 to 4.
    center_x, center_y = boxes[:, ::2].mean(axis=1) - 0.5, boxes[:, 1::2].mean(axis=1) - 0.5
    np.testing.assert_allclose(colors.values[:, 0], (10 + center_x) / (20 + center_x + center_y), rtol=1e-3)
    np.testing.assert_allclose(colors.values.sum(axis=1), 1.0, rtol=1e-5)
    flat = np.random.default_rng(3).normal(5.0, [[[0.5]], [[0.2]]], (2, 120, 90)).astype(np.float32)
    errors = measure_colors(torch.from_numpy(flat), boxes).errors
    np.testing.assert_allclose(errors, np.full((2, 2), [0.05, 0.02]), rtol=0.25)


def disc(radius: float, side: int = 28) -> torch.Tensor:
    """A disc of the given radius, in units of half the box."""
    steps = (torch.arange(side) + 0.5) / side * 2 - 1
    return (torch.hypot(steps[:, None], steps[None]) < radius).float()


def test_masks_of_one_class_are_compared_by_iou() -> None:
    boxes = torch.from_numpy(squares([(50, 50), (53, 50), (50, 50)], side=28.0))
    labels = torch.tensor([2, 2, 2])
    cells = torch.stack([disc(1.0), disc(1.0), disc(0.6)])
    # Two discs of radius 14 px at a distance of 3 px, by the formula of the lens.
    lens = 2 * 14**2 * np.arccos(3 / 28) - 1.5 * np.sqrt(4 * 14**2 - 9)
    iou = lens / (2 * np.pi * 14**2 - lens)
    assert same_masks(cells, boxes, labels, iou + 0.02).tolist() == [0, 1, 2]
    assert same_masks(cells, boxes, labels, iou - 0.02).tolist() == [0, 2]
    # The third is a smaller disc in the first one: its IoU is 0.36.
    assert same_masks(cells[[0, 2]], boxes[[0, 2]], labels[:2], 0.4).tolist() == [0, 1]
    assert same_masks(cells[[0, 2]], boxes[[0, 2]], labels[:2], 0.33).tolist() == [0]
    # As a star and a galaxy they are one source with two outlines.
    assert same_masks(cells[[0, 2]], boxes[[0, 2]], torch.tensor([1, 2]), 0.8).tolist() == [0]
    # Diagonal masks have the same box and no pixel in common.
    steps = torch.arange(28)
    ridge = ((steps[:, None] - steps[None]).abs() < 3).float()
    crossed = torch.stack([ridge, ridge.flip(0)])
    assert same_masks(crossed, boxes[[0, 2]], labels[:2], 0.5).tolist() == [0, 1]
    assert same_masks(cells[:0], boxes[:0], labels[:0], 0.5).tolist() == []


def test_pairs_are_found_by_one_detection_each() -> None:
    first = np.array([[20.0, 20.0], [60.0, 20.0], [20.0, 60.0], [60.0, 60.0]])
    second = first + [[8.0, 0.0]]
    centers = [
        (20.5, 20.0),  # both of the first pair
        (27.6, 20.3),
        (64.0, 20.0),  # the middle of the second
        (19.8, 60.2),  # the brighter of the third, twice
        (20.2, 59.8),
        (95.0, 95.0),  # of none
    ]
    outcomes = match_pairs(centers, first, second, 4.0, [1.0, 3.0, 10.0, 30.0])
    np.testing.assert_allclose(outcomes.separation, 2.0)
    assert outcomes.both.tolist() == [True, False, False, False]
    assert outcomes.count.tolist() == [2, 1, 2, 0]
    assert outcomes.surplus() == 0.25
    share = outcomes.recall(outcomes.flux_ratio < 20)
    assert (share.hits, share.total) == (1, 3)
    both = PairOutcomes.concatenate([outcomes, match_pairs([], first, second, 4.0, np.ones(4))])
    assert both.both.tolist() == [True] + 7 * [False]


def test_pair_recall_is_drawn() -> None:
    rng = np.random.default_rng(1)
    separation, ratio = rng.choice([0.5, 1.0, 2.0], 300), rng.choice([1.0, 3.0, 10.0], 300)
    both = separation * rng.uniform(0.8, 1.2, 300) > 0.9
    item = PairOutcomes(separation, ratio, both, 1 + both.astype(int))
    options = {"hard": replace(item, both=both & (ratio < 3)), "mask": item}
    figure = plot_pair_recall({"star, star": options}, [0.5, 1.0, 2.0], [1.0, 3.0, 10.0])
    assert len(figure.axes) == 3
    lines = [line for line in figure.axes[1].get_lines() if len(line.get_xdata()) == 3]
    curve = [line.get_ydata() for line in lines if len(set(line.get_ydata())) > 1]
    use = ratio >= 3
    np.testing.assert_allclose(
        curve[-1], [both[use & (separation == value)].mean() for value in (0.5, 1.0, 2.0)]
    )


@pytest.fixture(scope="module")
def star_pairs():
    """Equal pairs of stars at 1 FWHM, and single stars; 56 each, S/N 50 to 500."""
    rng = np.random.default_rng(14)
    base = preset_config("hsc-wide", bands=("z", "r", "g"), shape=(392, 448))
    config = replace(
        base,
        artefacts=ArtefactConfig(),
        psf=replace(base.psf, seeing_scatter=0.0, band_scatter=0.0, ellipticity=0.0),
    )
    fwhm = next(item.fwhm for item in config.band_conditions() if item.band == "r") / config.pixel_scale
    rows, columns = np.divmod(np.arange(56), 8)
    middle = (np.stack([columns, rows], axis=1) + 0.5) * 56 + rng.uniform(-4, 4, (56, 2))
    angle = rng.uniform(0, 2 * np.pi, 56)
    step = 0.5 * fwhm * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    table = np.zeros(112, POPULATION_DTYPE)
    table["is_star"] = True
    table["mag"] = np.tile(rng.uniform(20.5, 23.0, 56), 2)
    table["disc_axis_ratio"] = table["bulge_axis_ratio"] = 1.0
    table["locus"] = rng.uniform(0.1, 0.8, 112)
    table["x"], table["y"] = np.concatenate([middle + step, middle - step]).T
    return config, table, middle + step, middle - step, fwhm


def test_the_default_finds_more_pairs_and_no_more_single_stars(star_pairs) -> None:
    config, table, first, second, fwhm = star_pairs
    model = load_model("lite")
    network = model.build()
    how = model.metadata.normalization
    found: dict[tuple[str, bool], PairOutcomes] = {}
    for single in (False, True):
        scene = draw_scene(config, table[:56] if single else table, np.random.default_rng(5))
        usable = np.ones(config.shape, dtype=bool)
        image = normalize(how, scene.images, scene.variance, usable).image
        widths = [psf.moments_fwhm(scene.pixel_scale) for psf in scene.psfs]
        for option in ("hard", "mask"):
            settings = DetectionSettings(suppression=option)
            result = detect(network, image, None, settings, psf_fwhm=widths)
            centers = (result.boxes[:, :2] + result.boxes[:, 2:] - 1) / 2
            found[option, single] = match_pairs(centers, first, second, fwhm, np.ones(56))
    assert found["mask", False].both.sum() >= found["hard", False].both.sum() + 3
    assert found["mask", False].both.mean() > 0.7
    assert (found["mask", True].count == 1).mean() > 0.95
    np.testing.assert_array_equal(found["mask", True].count, found["hard", True].count)
