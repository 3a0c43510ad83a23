# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Saturated stars, and galaxies of which only the core was found."""

from __future__ import annotations

import numpy as np
import pytest

from lsst.meas.maskrcnn.deblend.cores import grow_cores
from lsst.meas.maskrcnn.deblend.masks import paint_mask
from lsst.meas.maskrcnn.deblend.saturated import join_saturated
from lsst.meas.maskrcnn.network.detections import Detections

SHAPE = (180, 240)
FWHM = 4.0


def galaxy(y: float, x: float, height: float, scale: float = 12.0, ratio: float = 0.6) -> np.ndarray:
    """An exponential disc, elongated along x, seen with the PSF (about)."""
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    radius = np.sqrt(((yy - y) / ratio) ** 2 + (xx - x) ** 2 + FWHM**2)
    return height * np.exp((FWHM - radius) / scale)


def disc(y: float, x: float, radius: float, ratio: float = 1.0) -> np.ndarray:
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return ((yy - y) / ratio) ** 2 + (xx - x) ** 2 <= radius**2


def detections(*sources: tuple[np.ndarray, float, float]) -> Detections:
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
    )


def on_image(found: Detections, index: int) -> np.ndarray:
    return paint_mask(found, index, (0, 0), SHAPE)


def test_a_core_grows_to_its_galaxy() -> None:
    light = galaxy(90, 110, 600.0, scale=14.0).astype(np.float32)
    core = disc(90, 110, 8, 0.6)
    grown = grow_cores(detections((core, 0.95, 0.0)), light, FWHM)
    painted = on_image(grown, 0)
    # Where the profile falls to a tenth of the peak, which smoothing lowers a little.
    height = light[90, 110]
    assert painted[light > 0.11 * height].all() and not painted[light < 0.085 * height].any()
    rows, columns = np.flatnonzero(painted.any(axis=1)), np.flatnonzero(painted.any(axis=0))
    assert grown.boxes[0].tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert (grown.soft[0] > 127).sum() == painted.sum()
    # Pixels of others stay theirs.
    beside = disc(90, 121, 3)
    both = grow_cores(detections((core, 0.95, 0.0), (beside, 0.9, 0.8)), light, FWHM)
    assert not (on_image(both, 0) & beside & ~core).any() and on_image(both, 0).sum() > 2 * core.sum()
    # A star has no such light, and that of a brighter neighbour may be anybody's.
    assert np.array_equal(on_image(grow_cores(detections((core, 0.95, 0.9)), light, FWHM), 0), core)
    crowded = (light + galaxy(90, 150, 900.0, scale=14.0)).astype(np.float32)
    assert np.array_equal(on_image(grow_cores(detections((core, 0.95, 0.0)), crowded, FWHM), 0), core)


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
