# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Masks to footprints and back, what is measured on them, and the output schema."""

from __future__ import annotations

import numpy as np
import pytest

import lsst.geom as geom
from lsst.afw.geom import makeCdMatrix, makeSkyWcs
from lsst.afw.table import SourceCatalog, SourceTable
from lsst.meas.base import IdGenerator
from lsst.meas.maskrcnn.catalogs.footprints import footprints_to_masks, inclusive_boxes, masks_to_footprints
from lsst.meas.maskrcnn.catalogs.schema import fill_catalog, make_schema
from lsst.meas.maskrcnn.deblend.masks import clean_masks, measure_masks, move_peaks

XY0 = (12000, -300)
SHAPE = (20, 30)
BBOX = geom.Box2I(geom.Point2I(*XY0), geom.Extent2I(SHAPE[1], SHAPE[0]))


def example_masks() -> tuple[list[np.ndarray], np.ndarray]:
    """A plus sign, two pieces in one mask, and a whole rectangle."""
    plus = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)
    pieces = np.array([[1, 1, 0, 0, 1], [0, 0, 0, 0, 1]], dtype=bool)
    return [plus, pieces, np.ones((2, 4), dtype=bool)], np.array([[5, 10], [0, 25], [18, 0]])


def measure(masks: list[np.ndarray], origins: np.ndarray, image: np.ndarray, **kwargs: np.ndarray):
    kwargs.setdefault("valid", np.ones(image.shape, dtype=bool))
    return measure_masks(masks, origins, image, **kwargs)


def test_measurements_by_hand() -> None:
    masks, origins = example_masks()
    image = np.zeros(SHAPE, dtype=np.float32)
    # Plus sign: 1 above, 3 in the middle, -5 to the right; the brightest pixel
    # of the box, at its corner, is not in the mask.
    image[5, 11], image[6, 11], image[6, 12], image[5, 10] = 1.0, 3.0, -5.0, 100.0
    image[1, 29] = 2.0
    image[18:, :4] = -1.0
    bad = np.zeros(SHAPE, dtype=bool)
    bad[6, 11:13] = bad[18:, :4] = True
    saturated = np.zeros(SHAPE, dtype=bool)
    saturated[0, 29] = saturated[0, 27] = True
    found = measure(masks, origins, image, bad=bad, saturated=saturated)

    assert found.area.tolist() == [5, 4, 8]
    assert found.peak_x.tolist() == [11, 29, 0]
    assert found.peak_y.tolist() == [6, 1, 18]
    assert found.peak_value.tolist() == [3.0, 2.0, -1.0]
    np.testing.assert_allclose(found.centroid_x, [11.0, 29.0, 1.5])
    np.testing.assert_allclose(found.centroid_y, [(5 * 1 + 6 * 3) / 4, 1.0, 18.5])
    assert found.centroid_flag.tolist() == [False, False, True]
    assert found.box_min_x.tolist() == [10, 25, 0]
    assert found.box_min_y.tolist() == [5, 0, 18]
    assert found.box_max_x.tolist() == [12, 29, 3]
    assert found.box_max_y.tolist() == [7, 1, 19]
    assert found.n_bad.tolist() == [2, 0, 8]
    assert found.n_saturated.tolist() == [0, 1, 0]
    assert found.n_invalid.tolist() == [0, 0, 0]


def test_peaks_are_moved_into_masks() -> None:
    """One is in its mask, one is nearest to a corner of its own, one is far away."""
    masks, origins = example_masks()
    image = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    found = measure(masks, origins, image)
    peaks = np.array([[6.4, 10.6], [0.9, 27.4], [-30.0, 1.0]])
    moved = move_peaks(found, masks, origins, peaks, image)
    assert moved.peak_y.tolist() == [6, 0, 18]
    assert moved.peak_x.tolist() == [11, 26, 1]
    assert moved.peak_value.tolist() == [image[6, 11], image[0, 26], image[18, 1]]
    np.testing.assert_array_equal(moved.area, found.area)
    assert len(move_peaks(measure([], origins[:0], image), [], origins[:0], peaks[:0], image)) == 0


def test_invalid_pixels_do_not_count() -> None:
    masks, origins = example_masks()
    image = np.ones(SHAPE, dtype=np.float32)
    image[6, 11] = np.nan
    image[6, 10] = 50.0
    image[:2, 25:] = np.nan
    valid = np.ones(SHAPE, dtype=bool)
    valid[6, 10] = False
    found = measure(masks, origins, image, valid=valid)
    # Neither NaN nor an invalid pixel is the peak of the plus sign.
    assert (found.peak_x[0], found.peak_y[0], found.peak_value[0]) == (11, 5, 1.0)
    np.testing.assert_allclose([found.centroid_x[0], found.centroid_y[0]], [(11 + 12 + 11) / 3, 6.0])
    assert found.n_invalid.tolist() == [1, 0, 0]
    # Nothing but NaN: the first pixel is the peak, without a value.
    assert (found.peak_x[1], found.peak_y[1]) == (25, 0)
    assert np.isnan(found.peak_value[1])
    assert found.centroid_flag.tolist() == [False, True, False]
    assert (found.centroid_x[1], found.centroid_y[1]) == (27.0, 0.5)


def test_footprints_know_xy0_and_come_back() -> None:
    masks, origins = example_masks()
    image = np.arange(SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE)
    found = measure(masks, origins, image)
    footprints = masks_to_footprints(masks, origins, found, BBOX)

    plus = footprints[0]
    assert plus.getArea() == 5
    assert plus.getBBox() == geom.Box2I(geom.Point2I(12010, -295), geom.Extent2I(3, 3))
    assert plus.getRegion() == BBOX
    assert plus.contains(geom.Point2I(12011, -295))
    assert not plus.contains(geom.Point2I(12010, -295))
    for footprint in footprints:
        assert len(footprint.getPeaks()) == 1
        peak = footprint.getPeaks()[0]
        assert footprint.contains(geom.Point2I(peak.getIx(), peak.getIy()))
        assert peak.getPeakValue() == image[peak.getIy() - XY0[1], peak.getIx() - XY0[0]]
    assert (plus.getPeaks()[0].getIx(), plus.getPeaks()[0].getIy()) == (12011, -293)
    assert len(footprints[1].getSpans().split()) == 2

    back, back_origins = footprints_to_masks(footprints, BBOX)
    np.testing.assert_array_equal(back_origins, origins)
    for before, after in zip(masks, back, strict=True):
        assert after.dtype == bool
        np.testing.assert_array_equal(before, after)
    _, parent_origins = footprints_to_masks(footprints)
    np.testing.assert_array_equal(parent_origins, origins + (XY0[1], XY0[0]))


def test_random_masks_round_trip(rng: np.random.Generator) -> None:
    """Any mask keeps its pixels, once cut to its own box."""
    shape = (200, 300)
    bbox = geom.Box2I(geom.Point2I(-70, 4000), geom.Extent2I(shape[1], shape[0]))
    image = rng.normal(size=shape).astype(np.float32)
    masks, origins = [], []
    for _ in range(60):
        height, width = rng.integers(1, 40, 2)
        masks.append(rng.random((height, width)) < rng.uniform(0.05, 1.0))
        origins.append((rng.integers(0, shape[0] - height), rng.integers(0, shape[1] - width)))
    masks, kept_origins, _ = clean_masks(masks, np.array(origins), shape)
    found = measure(masks, kept_origins, image)
    footprints = masks_to_footprints(masks, kept_origins, found, bbox)
    back, back_origins = footprints_to_masks(footprints, bbox)
    for mask, origin, after, after_origin in zip(masks, kept_origins, back, back_origins, strict=True):
        first, second = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        first[origin[0] :, origin[1] :][: mask.shape[0], : mask.shape[1]] = mask
        second[after_origin[0] :, after_origin[1] :][: after.shape[0], : after.shape[1]] = after
        np.testing.assert_array_equal(first, second)


def test_masks_are_cut_at_the_edge() -> None:
    masks = [np.ones((4, 4), dtype=bool)] * 4 + [np.zeros((3, 3), dtype=bool)]
    origins = np.array([[-2, -1], [18, 28], [40, 2], [3, -4], [5, 5]])
    kept, kept_origins, index = clean_masks(masks, origins, SHAPE)
    assert index.tolist() == [0, 1]
    assert [mask.shape for mask in kept] == [(2, 3), (2, 2)]
    assert kept_origins.tolist() == [[0, 0], [18, 28]]
    _, _, index = clean_masks(masks, origins, SHAPE, min_area=5)
    assert index.tolist() == [0]
    with pytest.raises(ValueError, match="shorter"):
        clean_masks(masks, origins[:4], SHAPE)
    image = np.zeros(SHAPE, dtype=np.float32)
    with pytest.raises(ValueError, match="inside the image"):
        measure(masks, origins, image)
    with pytest.raises(ValueError, match="1 of 1 masks are empty"):
        measure(masks[4:], origins[4:], image)


def test_boxes_are_whole_pixels_around_box_and_mask() -> None:
    masks, origins = example_masks()
    found = measure(masks, origins, np.ones(SHAPE, dtype=np.float32))
    boxes = np.array([[10.2, 5.0, 12.9, 8.0], [26.0, 0.0, 29.0, 3.5], [-3.0, 17.5, 4.0, 40.0]])
    min_x, min_y, max_x, max_y = inclusive_boxes(boxes, found, SHAPE)
    assert min_x.tolist() == [10, 25, 0]
    assert min_y.tolist() == [5, 0, 17]
    assert max_x.tolist() == [12, 29, 3]
    assert max_y.tolist() == [7, 3, 19]


def test_schema() -> None:
    schema = make_schema()
    assert SourceTable.checkSchema(schema)
    types = {
        "maskrcnn_centroid_x": "D",
        "maskrcnn_centroid_flag": "Flag",
        "maskrcnn_bbox_minX": "I",
        "maskrcnn_bbox_maxY": "I",
        "maskrcnn_star": "Flag",
        "maskrcnn_galaxy": "Flag",
        "maskrcnn_score": "F",
        "maskrcnn_pStar": "F",
        "maskrcnn_pBlend": "F",
        "maskrcnn_area": "I",
        "maskrcnn_badFraction": "F",
        "maskrcnn_flag_edge": "Flag",
        "maskrcnn_flag_bad": "Flag",
        "maskrcnn_flag_saturated": "Flag",
        "maskrcnn_flag_invalid": "Flag",
        "maskrcnn_flag_limited": "Flag",
        "maskrcnn_flag_unmeasured": "Flag",
        "maskrcnn_binning": "I",
        "deblend_nChild": "I",
    }
    for name, kind in types.items():
        field = schema.find(name).field
        assert field.getTypeString() == kind, name
        assert field.getDoc(), name
    for name in schema.getOrderedNames():
        if name.startswith("maskrcnn_") and ("bbox" in name or "centroid_" in name or "area" in name):
            if "flag" not in name:
                assert schema.find(name).field.getUnits() == "pixel", name
    assert SourceCatalog(schema).getCentroidSlot().getMeasKey().isValid()
    assert SourceCatalog(schema).getCentroidSlot().getFlagKey().isValid()


def columns(n: int) -> dict[str, np.ndarray]:
    index = np.arange(n)
    return dict(
        centroid_x=index + 12000.25,
        centroid_y=index - 299.75,
        centroid_flag=index % 2 == 0,
        bbox_minX=index + 12000,
        bbox_minY=index - 300,
        bbox_maxX=index + 12002,
        bbox_maxY=index - 298,
        score=1 - index / 10,
        pStar=index / 10,
        pBlend=index / 10,
        area=index + 1,
        badFraction=index / 20,
        star=index >= 5,
        galaxy=index < 5,
        binning=1 + index,
        flag_edge=index == 0,
        flag_bad=index > 0,
        flag_saturated=index == 3,
        flag_invalid=index == 4,
        flag_limited=index == 2,
    )


def test_catalog_is_filled() -> None:
    wcs = makeSkyWcs(
        geom.Point2D(12015, -290),
        geom.SpherePoint(150.0, 2.0, geom.degrees),
        makeCdMatrix(scale=0.2 * geom.arcseconds),
    )
    masks, origins = example_masks()
    found = measure(masks, origins, np.ones(SHAPE, dtype=np.float32))
    footprints = masks_to_footprints(masks, origins, found, BBOX)
    catalog = IdGenerator().make_source_catalog(make_schema())
    given = columns(3)
    fill_catalog(catalog, given, footprints, wcs)

    assert catalog["id"].tolist() == [1, 2, 3]
    assert catalog["parent"].tolist() == [0, 0, 0]
    assert catalog["deblend_nChild"].tolist() == [0, 0, 0]
    for name, values in given.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(catalog[f"maskrcnn_{name}"], values, rtol=1e-6)
        else:
            np.testing.assert_array_equal(catalog[f"maskrcnn_{name}"], values)
    np.testing.assert_array_equal(catalog.getX(), given["centroid_x"])
    positions = zip(given["centroid_x"], given["centroid_y"], strict=True)
    for record, footprint, (x, y) in zip(catalog, footprints, positions, strict=True):
        assert record.getFootprint() == footprint
        assert record.getCentroid() == geom.Point2D(x, y)
        sky = wcs.pixelToSky(geom.Point2D(x, y))
        assert record.getCoord().separation(sky).asArcseconds() < 1e-6

    with pytest.raises(ValueError, match="must be empty"):
        fill_catalog(catalog, given, footprints, wcs)
    empty = IdGenerator().make_source_catalog(make_schema())
    with pytest.raises(ValueError, match="wanted one value for each of 2 footprints"):
        fill_catalog(empty, given, footprints[:2], wcs)
    fill_catalog(empty, columns(0), [], wcs)
    assert len(empty) == 0


def test_columns_must_agree() -> None:
    catalog = IdGenerator().make_source_catalog(make_schema())
    wcs = makeSkyWcs(geom.Point2D(0, 0), geom.SpherePoint(0, 0, geom.degrees), np.diag([1e-4, 1e-4]))
    for wrong in ({"score": np.ones(4)}, {"other": np.ones(0)}):
        with pytest.raises(ValueError, match="wanted one value for each of 0 footprints in centroid_x"):
            fill_catalog(catalog, columns(0) | wrong, [], wcs)


def test_no_masks() -> None:
    image = np.ones(SHAPE, dtype=np.float32)
    masks, origins, index = clean_masks([], np.zeros((0, 2), dtype=int), SHAPE)
    found = measure(masks, origins, image)
    assert len(found) == len(index) == 0
    assert masks_to_footprints(masks, origins, found, BBOX) == []
    back, back_origins = footprints_to_masks([], BBOX)
    assert back == []
    assert back_origins.shape == (0, 2)
