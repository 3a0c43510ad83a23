# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The vectorised search for runs and components against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from lsst.afw.detection import Footprint, FootprintSet, Threshold
from lsst.afw.detection._runs import component_labels, contains_points, find_runs, paint_runs, pixel_keys
from lsst.afw.geom import SpanSet
from lsst.afw.image import ImageF
from lsst.geom import Box2I, Extent2I, Point2I


def scan(selected: np.ndarray) -> list[set[tuple[int, int]]]:
    """Find components pixel by pixel, in the order that afw lists them.

    A pixel takes the number of its left neighbour, else that of the first
    of the three above it, else a new one. Where another number is at the
    upper right, that one gives way.
    """
    height, width = selected.shape
    numbers = np.zeros((height + 1, width + 2), int)
    alias = [0]

    def resolve(number: int) -> int:
        while alias[number] != number:
            number = alias[number]
        return number

    for y in range(height):
        for x in range(width):
            if not selected[y, x]:
                continue
            above = numbers[y, x : x + 3]
            candidates = [numbers[y + 1, x], *above]
            number = next((int(n) for n in candidates if n), 0)
            if not number:
                number = len(alias)
                alias.append(number)
            if above[2] and above[2] != number:
                alias[resolve(int(above[2]))] = resolve(number)
                number = int(above[2])
            numbers[y + 1, x + 1] = number
    components: dict[int, set[tuple[int, int]]] = {}
    for y, x in zip(*np.nonzero(selected), strict=True):
        components.setdefault(resolve(int(numbers[y + 1, x + 1])), set()).add((int(y), int(x)))
    return [components[number] for number in sorted(components)]


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.4, 0.5, 0.7])
def test_components_come_in_the_order_of_the_scan(fraction: float) -> None:
    rng = np.random.default_rng(int(fraction * 100))
    for _ in range(30):
        height, width = rng.integers(1, 40, 2)
        selected = rng.random((height, width)) < fraction
        image = ImageF(Box2I(Point2I(-7, 30), Extent2I(int(width), int(height))))
        image.array[:, :] = selected
        footprints = FootprintSet(image, Threshold(0.5)).getFootprints()
        found = []
        for footprint in footprints:
            y, x = np.asarray(footprint.spans.indices())
            found.append(set(zip((y - 30).tolist(), (x + 7).tolist(), strict=True)))
        assert found == scan(selected)


def test_peaks_against_loops() -> None:
    rng = np.random.default_rng(4)
    array = rng.integers(0, 12, (30, 41)).astype(np.float32)
    image = ImageF(Box2I(Point2I(5, -60), Extent2I(41, 30)))
    image.array[:, :] = array
    for footprint in FootprintSet(image, Threshold(6)).getFootprints():
        expected = []
        for y, x in np.asarray(footprint.spans.indices()).T:
            row, column = y + 60, x - 5
            if 0 < row < 29 and 0 < column < 40:
                block = array[row - 1 : row + 2, column - 1 : column + 2]
                if block.max() == array[row, column]:
                    expected.append((-float(array[row, column]), int(x), int(y)))
        found = [(-p.getPeakValue(), p.getIx(), p.getIy()) for p in footprint.peaks]
        if expected:
            assert found == sorted(expected)
        else:
            assert len(found) == 1
            assert -found[0][0] == max(
                array[y + 60, x - 5] for y, x in np.asarray(footprint.spans.indices()).T
            )


def test_runs() -> None:
    rng = np.random.default_rng(5)
    selected = rng.random((23, 31)) < 0.5
    y, x0, x1 = find_runs(selected)
    counts, inside = paint_runs(y, x0, x1, 23, 31)
    np.testing.assert_array_equal(counts, selected)
    assert inside.all()
    # Runs are as long as can be.
    assert len(y) == np.count_nonzero(np.diff(selected.astype(int), axis=1, prepend=0) == 1)


def test_runs_out_of_the_image() -> None:
    y = np.array([-1, 0, 1, 1, 2])
    x0 = np.array([0, -3, 3, -9, 0])
    x1 = np.array([5, 1, 9, 9, 3])
    counts, inside = paint_runs(y, x0, x1, 2, 4)
    assert inside.tolist() == [False, True, True, True, False]
    assert counts.tolist() == [[1, 1, 0, 0], [1, 1, 1, 2]]


def test_empty() -> None:
    y, x0, x1 = find_runs(np.zeros((3, 4), bool))
    assert len(y) == 0
    assert component_labels(y, x0, x1)[0] == 0
    assert Footprint(SpanSet()).spans == SpanSet()


def test_points_and_keys() -> None:
    rng = np.random.default_rng(6)
    spans = SpanSet._from_bool(rng.random((20, 25)) < 0.4, -12, -9)
    y, x = np.mgrid[-11:13, -14:15]
    y, x = y.ravel(), x.ravel()
    expected = [spans.contains(Point2I(int(a), int(b))) for a, b in zip(x, y, strict=True)]
    np.testing.assert_array_equal(contains_points(spans, x, y), expected)
    keys = pixel_keys(spans)
    assert len(keys) == spans.getArea()
    assert (np.diff(keys) > 0).all()


def test_overwritten_footprints_keep_their_peaks() -> None:
    # A large footprint covers two small ones, one on top of the other.
    image = ImageF(60, 50)
    small, other, large = (SpanSet.fromShape(r, offset=Point2I(30, 25)) for r in (1, 3, 15))
    sets = FootprintSet(image.getBBox())
    footprints = []
    for height, spans in enumerate((small, other, large), start=1):
        footprint = Footprint(spans, image.getBBox())
        footprint.addPeak(30, 25, height)
        footprints.append(footprint)
    sets.setFootprints(footprints)
    (grown,) = FootprintSet(sets, 1, True).getFootprints()
    assert [p.getPeakValue() for p in grown.peaks] == [3, 2, 1]
