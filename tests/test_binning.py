# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images of larger pixels, and what was found on them."""

from __future__ import annotations

import numpy as np
import pytest

from lsst.meas.maskrcnn.deblend.any_band import to_full_pixels
from lsst.meas.maskrcnn.deblend.masks import paint_mask
from lsst.meas.maskrcnn.images.binning import bin_psf_fwhm, sum_squares
from lsst.meas.maskrcnn.network.detections import Detections

SHAPE = (180, 240)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_gaussian_is_as_wide_as_its_squares(factor: int) -> None:
    """And keeps its flux; the last rows and columns do not fill a square."""
    y, x = np.mgrid[:83, :102]
    light = np.exp(-0.5 * ((y - 41.3) ** 2 + (x - 52.8) ** 2) / 3.1**2)
    squares = sum_squares(light, factor)
    assert squares.shape == (83 // factor, 102 // factor)
    assert squares.sum() == pytest.approx(light.sum())
    columns = squares.sum(axis=0)
    middle = np.average(np.arange(len(columns)), weights=columns)
    sigma = np.sqrt(np.average((np.arange(len(columns)) - middle) ** 2, weights=columns))
    (width,) = bin_psf_fwhm([2.3548 * 3.1], factor)
    assert 2.3548 * sigma == pytest.approx(width, rel=0.01)


def disc(y: float, x: float, radius: float, ratio: float = 1.0) -> np.ndarray:
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return ((yy - y) / ratio) ** 2 + (xx - x) ** 2 <= radius**2


@pytest.mark.parametrize(("factor", "radius"), [(2, 9.0), (4, 20.0)])
def test_masks_of_coarse_detections_are_smooth(factor: int, radius: float) -> None:
    """The probability rises linearly over the edge of a disc, whose place and size stay."""
    y, x = 81.3, 133.7
    height, width = (side // factor for side in SHAPE)
    yy, xx = np.mgrid[:height, :width]
    distance = np.hypot(factor * yy + (factor - 1) / 2 - y, factor * xx + (factor - 1) / 2 - x)
    chance = np.clip(0.5 + (radius - distance) / (4.0 * factor), 0.0, 1.0)
    soft = np.where(chance >= 0.05, np.rint(255 * chance), 0).astype(np.uint8)
    rows, columns = np.flatnonzero(soft.any(axis=1)), np.flatnonzero(soft.any(axis=0))
    part = soft[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inner = part >= 128
    found = Detections(
        np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.float32),
        np.array([[rows[0], columns[0]]], np.int32),
        [inner],
        soft=[part],
        soft_origins=np.array([[rows[0], columns[0]]], np.int32),
    )
    full = to_full_pixels(found, factor, SHAPE)
    assert full.binning.tolist() == [factor]
    painted, truth = paint_mask(full, 0, (0, 0), SHAPE), disc(y, x, radius)
    assert painted.sum() == pytest.approx(np.pi * radius**2, rel=0.03)
    assert np.argwhere(painted).mean(axis=0) == pytest.approx([y, x], abs=0.1)
    blocky = np.kron(np.pad(inner, [(rows[0], 0), (columns[0], 0)]), np.ones((factor, factor), bool))
    blocky = np.pad(blocky, [(0, SHAPE[0] - blocky.shape[0]), (0, SHAPE[1] - blocky.shape[1])])
    assert 3 * np.count_nonzero(painted ^ truth) < np.count_nonzero(blocky ^ truth)
    assert full.soft[0].min() == 0 and full.soft[0].max() == 255
    assert not ((full.soft[0] > 0) & (full.soft[0] < 13)).any()


def test_masks_at_the_edge_stay_on_the_image() -> None:
    corner = np.full((3, 4), 255, np.uint8)
    found = Detections(
        np.array([[0, 0, 4, 3], [57, 43, 61, 46]], np.float32),
        np.ones(2, np.float32),
        np.zeros(2, np.float32),
        np.array([[0, 0], [43, 57]], np.int32),
        [corner > 0, corner > 0],
        soft=[corner, corner],
        soft_origins=np.array([[0, 0], [43, 57]], np.int32),
    )
    full = to_full_pixels(found, 4, (182, 241))
    ends = full.origins + [mask.shape for mask in full.masks]
    assert (full.origins >= 0).all() and (ends <= (182, 241)).all()
    assert ends.tolist()[1] == [182, 241]
    assert (full.boxes[:, 2] <= 241).all() and (full.boxes[:, 3] <= 182).all()
