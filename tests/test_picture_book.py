# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pages of pictures: what is on them, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from scipy import ndimage

from lsst.meas.maskrcnn.report.overlay import GALAXY_COLOR, STAR_COLOR
from lsst.meas.maskrcnn.report.picture_book import PageField, save_page

SHAPE = (60, 80)
SKY = (10, 0, 70)
GALAXY, STAR = (np.array(to_rgb(color)) * 255 for color in (GALAXY_COLOR, STAR_COLOR))


def make_field(shape=SHAPE, boxes=(), is_star=(), flagged=(), **changes) -> PageField:
    """A field of one colour with rectangular masks (y0, x0, height, width)."""
    rgb = np.zeros((*shape, 3), np.uint8)
    rgb[:] = SKY
    values = {
        "masks": [np.ones(box[2:], bool) for box in boxes],
        "origins": np.array([box[:2] for box in boxes], int).reshape(-1, 2),
        "is_star": np.array(is_star, bool),
        "flagged": np.array(flagged, bool),
        "has_truth": len(boxes) > 0,
    }
    return PageField(rgb, 0.2, **(values | changes))


def write(path, fields, **options) -> np.ndarray:
    save_page(path, fields, **options)
    with Image.open(path) as page:
        assert page.format == "PNG"
        return np.asarray(page.convert("RGB")).astype(float)


def find_panels(page: np.ndarray) -> list[tuple[slice, slice]]:
    """Where the pictures are, in reading order."""
    labels, _ = ndimage.label((page == SKY).all(axis=2))
    boxes = ndimage.find_objects(labels)
    # Not what is inside of outlines and letters.
    largest = max(y.stop - y.start for y, _ in boxes)
    boxes = [(y, x) for y, x in boxes if y.stop - y.start > 0.5 * largest]
    return sorted(boxes, key=lambda box: (box[0].start, box[1].start))


def test_outlines_lie_on_the_edges_of_masks(tmp_path):
    boxes = [(20, 30, 10, 16), (44, 5, 6, 8)]
    field = make_field(boxes=boxes, is_star=[False, True], flagged=[False, False])
    page = write(tmp_path / "page.png", [field], panel=640)
    plain, outlined = find_panels(page)
    assert (plain[0].stop - plain[0].start, plain[1].stop - plain[1].start) == (480, 640)
    assert plain[1].stop < outlined[1].start and plain[0] == outlined[0]
    for color, (y0, x0, height, width) in zip((GALAXY, STAR), boxes):
        drawn = np.abs(page[outlined] - color).max(axis=2) < 60
        rows, columns = np.nonzero(drawn)
        # Eight pixels of the page each; the first row of the image is at the bottom.
        assert columns.min() == pytest.approx(8 * x0, abs=1.5)
        assert columns.max() == pytest.approx(8 * (x0 + width), abs=1.5)
        assert rows.max() == pytest.approx(480 - 8 * y0, abs=1.5)
        assert rows.min() == pytest.approx(480 - 8 * (y0 + height), abs=1.5)
        # A line, not an area.
        assert not drawn[
            480 - 8 * (y0 + height) + 4 : 480 - 8 * y0 - 4, 8 * x0 + 4 : 8 * (x0 + width) - 4
        ].any()
        # Nothing of it is in the plain picture.
        assert not (np.abs(page[plain] - color).max(axis=2) < 60).any()


def test_flagged_sources_are_dashed(tmp_path):
    fields = [
        make_field(boxes=[(10, 10, 30, 50)], is_star=[False], flagged=[flagged]) for flagged in (False, True)
    ]
    page = write(tmp_path / "page.png", fields, panel=640)
    covered = []
    for box in (find_panels(page)[1], find_panels(page)[3]):
        # Along the upper edge, corners left out.
        row = 480 - 8 * 40
        line = page[box][row - 3 : row + 3, 8 * 14 : 8 * 56]
        covered.append((np.abs(line - SKY).max(axis=2) > 60).any(axis=0).mean())
    assert covered[0] == 1.0
    assert 0.3 < covered[1] < 0.8


def test_grid_of_fields(tmp_path):
    """Panels, their sizes and their order for fields of two shapes."""
    fields = [make_field(SHAPE), make_field((80, 60)), make_field(SHAPE), make_field((80, 80))]
    page = write(tmp_path / "page.png", fields, panel=160)
    boxes = find_panels(page)
    sizes = [(y.stop - y.start, x.stop - x.start) for y, x in boxes]
    assert sizes == [(120, 160), (160, 120), (120, 160), (160, 160)]
    assert len({y.start for y, _ in boxes[:3]}) == 1
    assert boxes[3][0].start > boxes[1][0].stop and boxes[3][1].start == boxes[0][1].start
    # One truth among them: every field has room for two pictures, two are beside each other.
    fields[1] = make_field((80, 60), boxes=[(5, 5, 9, 9)], is_star=[True], flagged=[False])
    boxes = find_panels(write(tmp_path / "page.png", fields, panel=160))
    assert len(boxes) == 5
    assert len({y.start for y, _ in boxes[:3]}) == 1 and boxes[3][0].start > boxes[0][0].stop
    assert len(find_panels(write(tmp_path / "page.png", fields, panel=160, outlines=False))) == 4


def test_palette_and_text(tmp_path):
    field = make_field(caption="words " * 20)
    bare = write(tmp_path / "bare.png", [make_field()], panel=128)
    page = write(tmp_path / "page.png", [field], title="A title", panel=128)
    # Lines of the caption are below the picture; it is wrapped.
    assert page.shape[1] == bare.shape[1] and page.shape[0] > bare.shape[0] + 28
    bottom = find_panels(page)[0][0].stop
    assert (page[bottom:] < 100).any() and not (bare[bottom:] < 100).any()
    assert (page[:30] < 100).any() and not (bare[:30] < 100).any()
    save_page(tmp_path / "small.png", [field], panel=128, colors=16)
    with Image.open(tmp_path / "small.png") as small:
        assert small.mode == "P" and len(small.getcolors()) <= 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.png", "page.png", "small.png"]


def test_refuses(tmp_path):
    with pytest.raises(ValueError, match="at least one field"):
        save_page(tmp_path / "page.png", [])
    with pytest.raises(ValueError, match="Pictures of 3 px"):
        save_page(tmp_path / "page.png", [make_field()], panel=3)
    with pytest.raises(ValueError, match="palette of 300 are not possible"):
        save_page(tmp_path / "page.png", [make_field()], colors=300)
    with pytest.raises(ValueError, match="given were 1, 1, 0, 1"):
        make_field(boxes=[(1, 1, 2, 2)], is_star=[], flagged=[False])
    with pytest.raises(ValueError, match=r"given was \(4, 5\), float64"):
        PageField(np.zeros((4, 5)), 0.2)
    assert not list(tmp_path.iterdir())
