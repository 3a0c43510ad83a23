# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Footprints and their detection as lsst.afw.detection defines them."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label

from lsst.afw.detection import (
    Footprint,
    FootprintControl,
    FootprintSet,
    HeavyFootprintCtrl,
    HeavyFootprintD,
    HeavyFootprintF,
    PeakCatalog,
    PeakTable,
    Threshold,
    createThreshold,
    footprintToBBoxList,
    makeHeavyFootprint,
    mergeFootprints,
    mergeHeavyFootprints,
    setMaskFromFootprintList,
)
from lsst.afw.geom import SpanSet, Stencil
from lsst.afw.image import ExposureF, ImageF, ImageI, Mask, MaskedImage, MaskedImageD, MaskedImageF
from lsst.afw.table import SOURCE_IO_NO_HEAVY_FOOTPRINTS, Schema, SourceCatalog, SourceTable
from lsst.geom import Box2I, Extent2I, Point2D, Point2I
from lsst.pex.exceptions import InvalidParameterError, LogicError, OutOfRangeError

# Neither square nor at the origin, so that swapped axes and a lost xy0 show.
BBOX = Box2I(Point2I(-40, 300), Extent2I(64, 48))

# x, y, height and sigma of Gaussians in that box.
BLOBS = ((-25, 312, 100.0, 2.0), (-8, 313, 60.0, 2.0), (10, 335, -50.0, 2.0), (5, 308, 30.0, 1.5))


def pixel_grid(bbox: Box2I) -> tuple[np.ndarray, np.ndarray]:
    """Return the parent x and y of each pixel."""
    y, x = np.mgrid[bbox.getMinY() : bbox.getMaxY() + 1, bbox.getMinX() : bbox.getMaxX() + 1]
    return x, y


@pytest.fixture
def image() -> ImageF:
    """Gaussians on an empty image."""
    image = ImageF(BBOX)
    x, y = pixel_grid(BBOX)
    for x0, y0, height, sigma in BLOBS:
        image.array[:, :] += height * np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / sigma**2)
    return image


@pytest.fixture
def masked_image(image: ImageF) -> MaskedImageF:
    """The same with a mask and a variance that differ from pixel to pixel."""
    masked_image = MaskedImageF(image)
    x, y = pixel_grid(BBOX)
    masked_image.mask.array[:, :] = (x + 3 * y) % 7
    masked_image.variance.array[:, :] = 1 + (x % 5) + (y % 3)
    return masked_image


def paint(footprints: list[Footprint], bbox: Box2I = BBOX) -> np.ndarray:
    """Count the footprints on each pixel."""
    result = np.zeros((bbox.getHeight(), bbox.getWidth()), int)
    for footprint in footprints:
        y, x = footprint.spans.indices()
        np.add.at(result, (np.asarray(y) - bbox.getMinY(), np.asarray(x) - bbox.getMinX()), 1)
    return result


def peak_positions(footprint: Footprint) -> list[tuple[int, int]]:
    return [(peak.getIx(), peak.getIy()) for peak in footprint.peaks]


@pytest.fixture
def heart() -> Footprint:
    """Two parts, one with two peaks and one with one."""
    spans = SpanSet(Box2I(Point2I(10, 20), Extent2I(4, 3))).union(
        SpanSet(Box2I(Point2I(16, 21), Extent2I(2, 5)))
    )
    footprint = Footprint(spans, Box2I(Point2I(0, 0), Extent2I(50, 60)))
    footprint.addPeak(11, 21, 5)
    footprint.addPeak(13.5, 20.25, 8)
    footprint.addPeak(16, 25, 6)
    return footprint


class TestPeaks:
    def test_schema(self) -> None:
        schema = PeakTable.makeMinimalSchema()
        fields = [
            (item.field.getName(), item.field.getTypeString(), item.field.getUnits()) for item in schema
        ]
        assert fields == [
            ("id", "L", ""),
            ("f_x", "F", "pixel"),
            ("f_y", "F", "pixel"),
            ("i_x", "I", "pixel"),
            ("i_y", "I", "pixel"),
            ("peakValue", "F", "count"),
        ]

    def test_add_peak(self, heart: Footprint) -> None:
        peak = heart.addPeak(12.75, 20.5, 1.25)
        assert (peak.getIx(), peak.getIy()) == (12, 20)
        assert (peak.getFx(), peak.getFy()) == (12.75, 20.5)
        assert peak.getI() == Point2I(12, 20)
        assert peak.getF() == Point2D(12.75, 20.5)
        assert peak.getCentroid() == Point2D(12.75, 20.5)
        assert peak.getCentroid(True) == Point2I(12, 20)
        assert peak.getPeakValue() == 1.25
        assert str(peak) == f"{peak.getId()}: (12,20)  (12.750,20.500)"

    def test_ids_differ(self, heart: Footprint) -> None:
        assert len({peak.getId() for peak in heart.peaks}) == 3

    def test_sort(self, heart: Footprint) -> None:
        heart.sortPeaks()
        assert [peak.getPeakValue() for peak in heart.peaks] == [8, 6, 5]
        heart.sortPeaks(PeakTable.getFyKey())
        assert [peak.getFy() for peak in heart.peaks] == [25, 21, 20.25]

    def test_own_schema(self) -> None:
        schema = PeakTable.makeMinimalSchema()
        key = schema.addField("significance", type=np.float64, doc="peak value over noise")
        footprint = Footprint(SpanSet(Box2I(Point2I(1, 2), Extent2I(3, 4))), schema)
        footprint.addPeak(2, 3, 10)
        assert math.isnan(footprint.peaks[0][key])
        footprint.updatePeakSignificance(2.5)
        assert footprint.peaks[0]["significance"] == 4

    def test_tables_are_shared(self) -> None:
        first, second = Footprint(SpanSet()), Footprint(SpanSet())
        peak = first.addPeak(1, 2, 3)
        second.peaks.append(peak)
        assert second.peaks[0].getId() == peak.getId()

    def test_bad_schema(self) -> None:
        with pytest.raises(InvalidParameterError):
            PeakCatalog(Schema())

    def test_peaks_are_only_set_once(self, heart: Footprint) -> None:
        with pytest.raises(LogicError):
            heart.setPeakSchema(PeakTable.makeMinimalSchema())
        other = Footprint(heart.spans)
        other.setPeakCatalog(heart.peaks)
        assert len(other.peaks) == 3


class TestFootprint:
    def test_empty(self) -> None:
        footprint = Footprint()
        assert footprint.getArea() == 0
        assert len(footprint.peaks) == 0
        assert footprint.getBBox().isEmpty()
        assert footprint.getRegion().isEmpty()
        assert not footprint.isHeavy()

    def test_geometry(self, heart: Footprint) -> None:
        assert heart.getArea() == 12 + 10
        assert heart.getBBox() == Box2I(Point2I(10, 20), Point2I(17, 25))
        assert heart.getRegion() == Box2I(Point2I(0, 0), Extent2I(50, 60))
        centroid = heart.getCentroid()
        assert centroid.getX() == pytest.approx((12 * 11.5 + 10 * 16.5) / 22)
        assert centroid.getY() == pytest.approx((12 * 21 + 10 * 23) / 22)
        y, x = np.asarray(heart.spans.indices(), float)
        shape = heart.getShape()
        assert shape.getIxx() == pytest.approx(x.var())
        assert shape.getIyy() == pytest.approx(y.var())
        assert shape.getIxy() == pytest.approx(((x - x.mean()) * (y - y.mean())).mean())

    def test_contains(self, heart: Footprint) -> None:
        assert heart.contains(Point2I(13, 22))
        assert Point2I(16, 25) in heart
        assert not heart.contains(Point2I(14, 22))
        assert not heart.contains(Point2I(16, 20))

    def test_bad_arguments(self, heart: Footprint) -> None:
        with pytest.raises(TypeError):
            Footprint(heart.getBBox())
        with pytest.raises(TypeError):
            heart.contains((1, 2))

    def test_copy(self, heart: Footprint) -> None:
        copy = Footprint(heart)
        assert copy == heart
        assert copy.getRegion() == heart.getRegion()
        copy.setSpans(SpanSet(Box2I(Point2I(10, 20), Extent2I(1, 1))))
        assert copy != heart
        assert heart.getArea() == 22
        copy.addPeak(10, 20, 1)
        assert len(heart.peaks) == 3

    def test_equality(self, heart: Footprint) -> None:
        other = Footprint(heart.spans)
        assert other != heart
        # The region does not count, nor does the order of the peaks.
        for peak in reversed(list(heart.peaks)):
            other.addPeak(peak.getFx(), peak.getFy(), peak.getPeakValue())
        assert other == heart
        other.peaks[0].setPeakValue(7)
        assert other != heart

    def test_shift(self, heart: Footprint) -> None:
        heart.shift(3, -5)
        assert heart.getBBox().getMin() == Point2I(13, 15)
        assert peak_positions(heart) == [(14, 16), (16, 15), (19, 20)]
        assert heart.peaks[1].getFx() == 16.5
        heart.shift(Extent2I(-3, 5))
        assert heart.getBBox().getMin() == Point2I(10, 20)

    def test_clip(self, heart: Footprint) -> None:
        heart.clipTo(Box2I(Point2I(12, 0), Point2I(16, 24)))
        assert heart.getArea() == 2 * 3 + 4
        assert peak_positions(heart) == [(13, 20)]

    def test_split(self, heart: Footprint) -> None:
        assert not heart.isContiguous()
        parts = heart.split()
        assert [part.getArea() for part in parts] == [12, 10]
        assert [peak_positions(part) for part in parts] == [[(11, 21), (13, 20)], [(16, 25)]]
        assert all(part.getRegion() == heart.getRegion() for part in parts)
        assert all(part.isContiguous() for part in parts)
        assert len(heart.peaks) == 3

    def test_dilate_and_erode(self, heart: Footprint) -> None:
        pixel = Footprint(SpanSet(Box2I(Point2I(7, 9), Extent2I(1, 1))))
        for stencil, area in ((Stencil.CIRCLE, 13), (Stencil.MANHATTAN, 13), (Stencil.BOX, 25)):
            grown = Footprint(pixel)
            grown.dilate(2, stencil)
            assert grown.getArea() == area
            grown.erode(2, stencil)
            assert grown == pixel
        heart.erode(SpanSet.fromShape(1, Stencil.BOX))
        # The 4 x 3 part leaves two pixels and the 2 x 5 part none.
        assert heart.getArea() == 2
        assert peak_positions(heart) == [(11, 21)]
        heart.dilate(SpanSet.fromShape(1, Stencil.BOX))
        assert heart.getArea() == 12

    def test_intersect(self, heart: Footprint) -> None:
        other = Footprint(SpanSet(Box2I(Point2I(13, 20), Extent2I(10, 2))))
        common = heart.intersect(other)
        assert common.getArea() == 2 + 2
        assert peak_positions(common) == [(13, 20)]

    def test_merge(self, heart: Footprint) -> None:
        other = Footprint(SpanSet(Box2I(Point2I(13, 20), Extent2I(10, 2))))
        other.addPeak(20, 20, 7)
        merged = mergeFootprints(heart, other)
        assert merged.getArea() == 22 + 20 - 4
        assert [peak.getPeakValue() for peak in merged.peaks] == [8, 7, 6, 5]
        assert merged.getRegion().isEmpty()
        # The peaks are copies, with the same IDs.
        merged.peaks[0].setPeakValue(9)
        assert heart.peaks[1].getPeakValue() == 8
        assert merged.peaks[0].getId() == heart.peaks[1].getId()
        schema = PeakTable.makeMinimalSchema()
        schema.addField("more", type=np.int32, doc="one more")
        with pytest.raises(InvalidParameterError):
            mergeFootprints(heart, Footprint(SpanSet(), schema))

    def test_bbox_list(self, heart: Footprint) -> None:
        boxes = footprintToBBoxList(heart)
        assert sorted(box.getArea() for box in boxes) == [10, 12]
        heart.spans = SpanSet.fromShape(4, offset=Point2I(-3, 8))
        boxes = footprintToBBoxList(heart)
        covered = paint([Footprint(SpanSet(box)) for box in boxes], heart.getBBox())
        np.testing.assert_array_equal(covered, heart.spans.asArray())

    def test_set_mask(self, heart: Footprint) -> None:
        mask = Mask(Box2I(Point2I(9, 19), Extent2I(6, 4)))
        bit = mask.getPlaneBitMask("DETECTED")
        setMaskFromFootprintList(mask, [heart], bit)
        assert np.count_nonzero(mask.array == bit) == 12
        with pytest.raises(OutOfRangeError):
            setMaskFromFootprintList(mask, [heart], bit, doClip=False)

    def test_flux(self, image: ImageF) -> None:
        footprint = Footprint(SpanSet(BBOX))
        assert footprint.computeFluxFromImage(image) == pytest.approx(image.array.sum(), rel=1e-5)
        one = Footprint(SpanSet(Box2I(Point2I(-25, 312), Extent2I(1, 1))))
        assert one.computeFluxFromArray(image.array, image.getXY0()) == pytest.approx(100, rel=1e-5)


class TestDetection:
    def test_known_blobs(self, image: ImageF) -> None:
        footprints = FootprintSet(image, Threshold(5)).getFootprints()
        assert [peak_positions(f) for f in footprints] == [[(5, 308)], [(-25, 312)], [(-8, 313)]]
        np.testing.assert_array_equal(paint(footprints), image.array >= 5)
        for footprint, index in zip(footprints, (3, 0, 1), strict=True):
            _, _, height, sigma = BLOBS[index]
            assert footprint.peaks[0].getPeakValue() == pytest.approx(height, rel=1e-5)
            # A Gaussian is above a level within a circle.
            assert footprint.getArea() == pytest.approx(2 * np.pi * sigma**2 * math.log(height / 5), rel=0.1)
            assert footprint.getRegion() == BBOX

    def test_negative(self, image: ImageF) -> None:
        footprints = FootprintSet(image, Threshold(5, Threshold.VALUE, False)).getFootprints()
        assert [peak_positions(f) for f in footprints] == [[(10, 335)]]
        assert footprints[0].peaks[0].getPeakValue() == pytest.approx(-50, rel=1e-5)
        np.testing.assert_array_equal(paint(footprints), image.array <= -5)

    def test_level_is_in_double_precision(self) -> None:
        image = ImageF(4, 1)
        image.array[0] = np.array([0.1, 0.0, np.nextafter(np.float32(0.1), np.float32(0)), 0.2], np.float32)
        # float32(0.1) is above the double 0.1, the number before it below.
        assert FootprintSet(image, Threshold(0.1)).getFootprints()[0].getArea() == 1
        assert paint(FootprintSet(image, Threshold(0.1)).getFootprints(), image.getBBox()).tolist() == [
            [1, 0, 0, 1]
        ]

    def test_nan_is_not_detected(self, image: ImageF) -> None:
        image[Point2I(-25, 313)] = np.nan
        footprints = FootprintSet(image, Threshold(5)).getFootprints()
        assert len(footprints) == 3
        assert not footprints[1].contains(Point2I(-25, 313))
        # NaN is not higher than its neighbours, either.
        assert peak_positions(footprints[1]) == [(-25, 312)]

    def test_nothing(self) -> None:
        for value in (0.0, np.nan):
            image = ImageF(Extent2I(9, 7))
            image.array[:, :] = value
            assert FootprintSet(image, Threshold(5)).getFootprints() == []
        assert FootprintSet(ImageF(Extent2I(9, 7)), Threshold(5)).getRegion().getArea() == 63

    def test_diagonal_neighbours_belong_together(self) -> None:
        image = ImageF(6, 5)
        image.array[[0, 1, 2, 4], [0, 1, 0, 5]] = 3
        areas = [f.getArea() for f in FootprintSet(image, Threshold(1)).getFootprints()]
        assert areas == [3, 1]

    def test_shapes_that_join_late(self) -> None:
        rows = (
            "#.#..###.",
            "#.#..#.#.",
            "###..###.",
            ".......#.",
            "##...###.",
            ".......##",
        )
        image = ImageF(9, 6)
        image.array[:, :] = [[character == "#" for character in row] for row in rows]
        footprints = FootprintSet(image, Threshold(0.5)).getFootprints()
        assert sorted(f.getArea() for f in footprints) == [2, 7, 14]
        assert paint(footprints, image.getBBox()).max() == 1

    def test_npix_min(self, image: ImageF) -> None:
        areas = [f.getArea() for f in FootprintSet(image, Threshold(5)).getFootprints()]
        kept = FootprintSet(image, Threshold(5), min(areas) + 1).getFootprints()
        assert [f.getArea() for f in kept] == [area for area in areas if area > min(areas)]
        assert len(FootprintSet(image, Threshold(5), npixMin=min(areas)).getFootprints()) == 3

    def test_include_multiplier(self, image: ImageF) -> None:
        threshold = Threshold(5, Threshold.VALUE, True, 10.0)
        footprints = FootprintSet(image, threshold).getFootprints()
        # Of 30, 100 and 60 only the last two reach 50; the area is that at 5.
        assert [peak_positions(f) for f in footprints] == [[(-25, 312)], [(-8, 313)]]
        assert footprints[0].getArea() == np.count_nonzero((image.array >= 5)[:, :25])

    def test_several_peaks(self) -> None:
        image = ImageF(Box2I(Point2I(100, 50), Extent2I(9, 5)))
        image.array[2] = [0, 1, 4, 2, 5, 2, 5, 1, 0]
        (footprint,) = FootprintSet(image, Threshold(1)).getFootprints()
        # Brightest first; of two of the same height the one further left.
        assert peak_positions(footprint) == [(104, 52), (106, 52), (102, 52)]
        assert [peak.getPeakValue() for peak in footprint.peaks] == [5, 5, 4]

    def test_plateau(self) -> None:
        image = ImageF(6, 5)
        image.array[2, 2:4] = 7
        (footprint,) = FootprintSet(image, Threshold(1)).getFootprints()
        assert peak_positions(footprint) == [(2, 2), (3, 2)]

    def test_at_the_edge(self) -> None:
        image = ImageF(6, 5)
        image.array[0, 1:4] = [3, 9, 4]
        (footprint,) = FootprintSet(image, Threshold(1)).getFootprints()
        # No peak can be at the edge, but each footprint has one.
        assert peak_positions(footprint) == [(2, 0)]
        assert footprint.peaks[0].getPeakValue() == 9
        image.array[:, :] *= -1
        (footprint,) = FootprintSet(image, Threshold(1, Threshold.VALUE, False)).getFootprints()
        assert peak_positions(footprint) == [(2, 0)]

    def test_without_peaks(self, image: ImageF) -> None:
        footprints = FootprintSet(image, Threshold(5), 1, False).getFootprints()
        assert [len(f.peaks) for f in footprints] == [0, 0, 0]

    def test_peak_schema(self, image: ImageF) -> None:
        schema = PeakTable.makeMinimalSchema()
        schema.addField("significance", type=np.float64, doc="peak value over noise")
        footprints = FootprintSet(image, Threshold(5), 1, True, schema).getFootprints()
        assert math.isnan(footprints[0].peaks[0]["significance"])
        assert len({peak.getId() for f in footprints for peak in f.peaks}) == 3
        grown = FootprintSet(FootprintSet(image, Threshold(5), 1, True, schema), 3, True)
        assert "significance" in grown.getFootprints()[0].peaks.schema

    def test_integer_image(self) -> None:
        image = ImageI(6, 5)
        image.array[1, 1:3] = [10, 12]
        (footprint,) = FootprintSet(image, Threshold(10.5)).getFootprints()
        assert footprint.getArea() == 1

    def test_pixel_noise(self, masked_image: MaskedImageF) -> None:
        threshold = createThreshold(5, "pixel_stdev")
        footprints = FootprintSet(masked_image, threshold).getFootprints()
        signal = masked_image.image.array.astype(float) / np.sqrt(masked_image.variance.array.astype(float))
        np.testing.assert_array_equal(paint(footprints), signal >= 5)

    def test_image_noise(self, rng: np.random.Generator) -> None:
        image = ImageF(BBOX)
        image.array[:, :] = rng.normal(0, 2, image.array.shape)
        image[Point2I(-10, 320)] = 100.0
        footprints = FootprintSet(image, createThreshold(10, "stdev")).getFootprints()
        assert [peak_positions(f) for f in footprints] == [[(-10, 320)]]
        # 10 sigma are about 20, whatever the outlier is.
        image[Point2I(-10, 320)] = 21.5
        assert len(FootprintSet(image, createThreshold(10, "stdev")).getFootprints()) == 1
        image[Point2I(-10, 320)] = 18.5
        assert len(FootprintSet(image, createThreshold(10, "variance")).getFootprints()) == 0

    def test_mask_plane_is_set(self, masked_image: MaskedImageF) -> None:
        masked_image.mask.array[:, :] = 0
        footprints = FootprintSet(masked_image, Threshold(5), "DETECTED", 3).getFootprints()
        bit = masked_image.mask.getPlaneBitMask("DETECTED")
        np.testing.assert_array_equal(masked_image.mask.array != 0, paint(footprints) > 0)
        assert set(np.unique(masked_image.mask.array)) == {0, bit}

    def test_in_a_mask(self) -> None:
        mask = Mask(BBOX)
        bit = mask.getPlaneBitMask("SAT")
        mask.array[3:5, 6:9] = bit
        mask.array[30:33, 40] = bit | 1
        mask.array[20, 20] = mask.getPlaneBitMask("CR")
        footprints = FootprintSet(mask, Threshold(bit, Threshold.BITMASK)).getFootprints()
        assert [f.getArea() for f in footprints] == [6, 3]
        assert [len(f.peaks) for f in footprints] == [0, 0]
        assert footprints[0].getBBox() == Box2I(Point2I(-34, 303), Extent2I(3, 2))
        assert len(FootprintSet(mask, Threshold(bit, Threshold.BITMASK), 4).getFootprints()) == 1
        with pytest.raises(InvalidParameterError):
            FootprintSet(mask, createThreshold(3, "stdev"))

    def test_bad_arguments(self, image: ImageF) -> None:
        with pytest.raises(TypeError):
            FootprintSet(image.array, Threshold(5))
        with pytest.raises(TypeError):
            FootprintSet(ExposureF(4, 4), Threshold(5))


class TestThreshold:
    def test_values(self) -> None:
        threshold = Threshold(3.5)
        assert threshold.getType() == Threshold.VALUE
        assert threshold.getValue() == 3.5
        assert threshold.getPolarity()
        assert threshold.getIncludeMultiplier() == 1
        assert createThreshold(3, "stdev").getValue(2.0) == 6
        assert createThreshold(3, "variance").getValue(4.0) == 6
        assert createThreshold(3, "pixel_stdev").getValue() == 3
        assert createThreshold(6, "bitmask").getType() == Threshold.BITMASK
        assert not createThreshold(3, "value", False).getPolarity()

    def test_errors(self) -> None:
        with pytest.raises(InvalidParameterError):
            createThreshold(3, "sigma")
        with pytest.raises(InvalidParameterError):
            createThreshold(3, "stdev").getValue()


class TestFootprintSets:
    def test_grow(self, image: ImageF) -> None:
        found = FootprintSet(image, Threshold(5))
        grown = FootprintSet(found, 4, True)
        expected = (
            sum(paint([Footprint(f.spans.dilated(4).clippedTo(BBOX))]) for f in found.getFootprints()) > 0
        )
        np.testing.assert_array_equal(paint(grown.getFootprints()), expected)
        assert grown.getRegion() == BBOX

    def test_growing_merges(self, image: ImageF) -> None:
        found = FootprintSet(image, Threshold(5))
        for radius in range(1, 9):
            grown = FootprintSet(found, radius, True).getFootprints()
            spans = [f.spans.dilated(radius).clippedTo(BBOX) for f in found.getFootprints()]
            _, n_parts = label(paint([Footprint(s) for s in spans]), np.ones((3, 3)))
            assert len(grown) == n_parts
            assert sorted(xy for f in grown for xy in peak_positions(f)) == [(-25, 312), (-8, 313), (5, 308)]
        # All have become one; the brightest peak is the first.
        assert [peak_positions(f) for f in grown] == [[(-25, 312), (-8, 313), (5, 308)]]
        # The originals are as they were.
        assert [len(f.peaks) for f in found.getFootprints()] == [1, 1, 1]

    def test_growing_over_a_hole(self) -> None:
        image = ImageF(40, 30)
        image.array[5:20, 5:20] = 1
        image.array[7:18, 7:18] = 0
        image.array[12, 12] = 2
        found = FootprintSet(image, Threshold(0.5))
        assert len(found.getFootprints()) == 2
        (grown,) = FootprintSet(found, 6, True).getFootprints()
        assert (12, 12) == peak_positions(grown)[0]
        assert len(grown.peaks) == sum(len(f.peaks) for f in found.getFootprints())

    @pytest.mark.parametrize(
        ("control", "width", "height", "area"),
        [
            (FootprintControl(True, False), 5, 5, 13),
            (FootprintControl(True, True), 5, 5, 13),
            (FootprintControl(True, False, False, False), 3, 1, 3),
            (FootprintControl(False, True, True, False), 3, 3, 5),
            (FootprintControl(False, False, False, True), 1, 3, 3),
        ],
    )
    def test_ways_to_grow(self, control: FootprintControl, width: int, height: int, area: int) -> None:
        image = ImageF(BBOX)
        image[Point2I(-20, 320)] = 1.0
        (footprint,) = FootprintSet(FootprintSet(image, Threshold(0.5)), 2, control).getFootprints()
        assert footprint.getBBox().getWidth() == width
        assert footprint.getBBox().getHeight() == height
        assert footprint.getArea() == area
        assert footprint.contains(Point2I(-20, 320))

    def test_grow_by_nothing_and_less(self, image: ImageF) -> None:
        found = FootprintSet(image, Threshold(5))
        same = FootprintSet(found, 0, True)
        assert same.getFootprints() == found.getFootprints()
        with pytest.raises(InvalidParameterError):
            FootprintSet(found, -1, True)

    def test_growing_is_clipped(self) -> None:
        image = ImageF(BBOX)
        image.array[0, 0] = 1
        (footprint,) = FootprintSet(FootprintSet(image, Threshold(0.5)), 3, False).getFootprints()
        # A quarter of the diamond.
        assert footprint.getArea() == 4 + 3 + 2 + 1
        assert footprint.getBBox().getMin() == BBOX.getMin()

    def test_merge(self, image: ImageF) -> None:
        positive = FootprintSet(image, Threshold(5))
        negative = FootprintSet(image, Threshold(5, Threshold.VALUE, False))
        positive.merge(negative, 1, 1, False)
        footprints = positive.getFootprints()
        assert len(footprints) == 4
        assert sorted(peak_positions(f)[0] for f in footprints) == sorted((x, y) for x, y, _, _ in BLOBS)
        positive.merge(negative, 12, 12)
        assert sum(len(f.peaks) for f in positive.getFootprints()) == 5
        with pytest.raises(InvalidParameterError):
            positive.merge(FootprintSet(Box2I(Point2I(0, 0), Extent2I(3, 3))))

    def test_merge_of_levels(self, image: ImageF) -> None:
        low, high = FootprintSet(image, Threshold(5)), FootprintSet(image, Threshold(50))
        low.merge(high)
        np.testing.assert_array_equal(paint(low.getFootprints()), image.array >= 5)
        # Both had the peak, so both records are there.
        assert [len(f.peaks) for f in low.getFootprints()] == [1, 2, 2]

    def test_copy(self, image: ImageF) -> None:
        found = FootprintSet(image, Threshold(5))
        copy = FootprintSet(found)
        copy.getFootprints()[0].setSpans(SpanSet())
        assert found.getFootprints()[0].getArea() > 0

    def test_empty(self) -> None:
        empty = FootprintSet(BBOX)
        assert empty.getFootprints() == []
        assert empty.getRegion() == BBOX
        assert FootprintSet(empty, 3, True).getFootprints() == []

    def test_set_region(self, image: ImageF) -> None:
        found = FootprintSet(image, Threshold(5))
        region = Box2I(Point2I(-100, 200), Extent2I(300, 300))
        found.setRegion(region)
        assert found.getRegion() == region
        assert all(f.getRegion() == region for f in found.getFootprints())

    def test_make_sources(self, image: ImageF) -> None:
        found = FootprintSet(image, Threshold(5))
        catalog = SourceCatalog(SourceTable.makeMinimalSchema())
        found.makeSources(catalog)
        assert len(catalog) == 3
        assert [r.getFootprint() for r in catalog] == found.getFootprints()

    def test_make_heavy(self, masked_image: MaskedImageF) -> None:
        found = FootprintSet(masked_image.image, Threshold(5))
        found.makeHeavy(masked_image)
        footprints = found.getFootprints()
        assert all(isinstance(f, HeavyFootprintF) for f in footprints)
        # The pixels below the level hold less than all the rest.
        total = sum(f.getImageArray().sum(dtype=float) for f in footprints)
        assert total == pytest.approx(masked_image.image.array[masked_image.image.array >= 5].sum(), rel=1e-5)

    def test_set_mask(self, image: ImageF) -> None:
        mask = Mask(BBOX)
        FootprintSet(image, Threshold(5)).setMask(mask, "BAD")
        np.testing.assert_array_equal(mask.array, (image.array >= 5) * mask.getPlaneBitMask("BAD"))

    def test_insert_into_image(self, image: ImageF) -> None:
        found = FootprintSet(image, Threshold(5))
        numbers = found.insertIntoImage()
        assert numbers.getBBox() == BBOX
        counts = np.bincount(numbers.array.ravel().astype(int))[1:]
        assert counts.tolist() == [f.getArea() for f in found.getFootprints()]

    def test_set_footprints(self, image: ImageF) -> None:
        found = FootprintSet(image, Threshold(5))
        found.setFootprints(found.getFootprints()[:1])
        assert len(found.getFootprints()) == 1


class TestHeavyFootprint:
    @pytest.fixture
    def footprint(self, image: ImageF) -> Footprint:
        return FootprintSet(image, Threshold(5)).getFootprints()[1]

    def test_pixels(self, footprint: Footprint, masked_image: MaskedImageF) -> None:
        heavy = makeHeavyFootprint(footprint, masked_image)
        assert isinstance(heavy, HeavyFootprintF)
        assert heavy.isHeavy()
        assert heavy == footprint
        y, x = np.asarray(footprint.spans.indices())
        where = (y - BBOX.getMinY(), x - BBOX.getMinX())
        for array, plane, dtype in (
            (heavy.getImageArray(), masked_image.image.array, np.float32),
            (heavy.getMaskArray(), masked_image.mask.array, np.int32),
            (heavy.getVarianceArray(), masked_image.variance.array, np.float32),
        ):
            assert array.dtype == dtype
            np.testing.assert_array_equal(array, plane[where])
        assert heavy.getMaskBitsSet() == np.bitwise_or.reduce(masked_image.mask.array[where])

    def test_arrays_are_views(self, footprint: Footprint, masked_image: MaskedImageF) -> None:
        heavy = HeavyFootprintF(footprint, masked_image)
        heavy.getImageArray()[:] = 3
        heavy.getMaskArray()[:] = 1
        assert set(heavy.getImageArray()) == {3}
        assert heavy.getMaskBitsSet() == 1
        # The image is not touched.
        assert masked_image.image[Point2I(-25, 312)] == pytest.approx(100, rel=1e-5)

    def test_modify_source(self, footprint: Footprint, masked_image: MaskedImageF) -> None:
        before = masked_image.image.array.copy()
        masked_image.mask.array[:, :] = 5
        control = HeavyFootprintCtrl(HeavyFootprintCtrl.SET)
        control.setImageVal(-1.0)
        control.setMaskVal(4)
        control.setVarianceVal(9.0)
        heavy = makeHeavyFootprint(footprint, masked_image, control)
        inside = paint([footprint]) > 0
        np.testing.assert_array_equal(heavy.getImageArray(), before[inside])
        assert set(heavy.getMaskArray()) == {5}
        np.testing.assert_array_equal(masked_image.image.array, np.where(inside, -1, before))
        np.testing.assert_array_equal(masked_image.mask.array, np.where(inside, 1, 5))
        assert set(masked_image.variance.array[inside]) == {9}

    def test_extract(self, footprint: Footprint, masked_image: MaskedImageF) -> None:
        heavy = makeHeavyFootprint(footprint, masked_image)
        inside = np.asarray(footprint.spans.asArray(), bool)
        image = heavy.extractImage()
        assert isinstance(image, ImageF)
        assert image.getBBox() == footprint.getBBox()
        np.testing.assert_array_equal(np.isfinite(image.array), inside)
        bbox = Box2I(footprint.getBBox())
        bbox.grow(3)
        image = heavy.extractImage(fill=-7, bbox=bbox)
        assert image.getBBox() == bbox
        assert np.count_nonzero(image.array != -7) == footprint.getArea()
        total = image.array[image.array != -7].sum()
        assert total == pytest.approx(heavy.getImageArray().sum(), rel=1e-6)
        masked = heavy.extractImage(fill=0, imageType=MaskedImage)
        np.testing.assert_array_equal(masked.mask.array[inside], heavy.getMaskArray())
        np.testing.assert_array_equal(masked.variance.array[inside], heavy.getVarianceArray())

    def test_insert_overwrites(self, footprint: Footprint, masked_image: MaskedImageF) -> None:
        heavy = makeHeavyFootprint(footprint, masked_image)
        image = ImageF(BBOX)
        image.array[:, :] = 1000
        heavy.insert(image)
        inside = paint([footprint]) > 0
        expected = np.where(inside, masked_image.image.array, 1000)
        np.testing.assert_array_equal(image.array, expected)
        target = MaskedImageF(BBOX)
        heavy.insert(target)
        np.testing.assert_array_equal(target.variance.array, np.where(inside, masked_image.variance.array, 0))
        np.testing.assert_array_equal(target.mask.array, np.where(inside, masked_image.mask.array, 0))

    def test_add_and_subtract(self, footprint: Footprint, masked_image: MaskedImageF) -> None:
        heavy = makeHeavyFootprint(footprint, masked_image)
        image = ImageF(BBOX)
        heavy.addTo(image)
        heavy.addTo(image)
        assert image[Point2I(-25, 312)] == pytest.approx(200, rel=1e-5)
        heavy.subtractFrom(image)
        heavy.subtractFrom(image)
        assert not image.array.any()

    def test_out_of_range(self, footprint: Footprint, masked_image: MaskedImageF) -> None:
        footprint.shift(-20, 0)
        with pytest.raises(OutOfRangeError):
            makeHeavyFootprint(footprint, masked_image)

    def test_dot(self, masked_image: MaskedImageF) -> None:
        first = makeHeavyFootprint(Footprint(SpanSet.fromShape(5, offset=Point2I(-25, 312))), masked_image)
        second = makeHeavyFootprint(
            Footprint(SpanSet.fromShape(4, Stencil.BOX, offset=Point2I(-21, 310))), masked_image
        )
        both = (paint([first]) > 0) & (paint([second]) > 0)
        expected = (masked_image.image.array[both].astype(float) ** 2).sum()
        assert first.dot(second) == pytest.approx(expected, rel=1e-6)
        assert second.dot(first) == pytest.approx(expected, rel=1e-6)
        norm = (first.getImageArray().astype(float) ** 2).sum()
        assert first.dot(first) == pytest.approx(norm, rel=1e-6)
        far = makeHeavyFootprint(Footprint(SpanSet.fromShape(2, offset=Point2I(10, 335))), masked_image)
        assert first.dot(far) == 0

    def test_merge(self, masked_image: MaskedImageF) -> None:
        first = Footprint(SpanSet.fromShape(5, offset=Point2I(-25, 312)))
        second = Footprint(SpanSet.fromShape(4, Stencil.BOX, offset=Point2I(-21, 310)))
        first.addPeak(-25, 312, 100)
        second.addPeak(-21, 310, 200)
        heavies = [makeHeavyFootprint(f, masked_image) for f in (first, second)]
        merged = mergeHeavyFootprints(*heavies)
        assert isinstance(merged, HeavyFootprintF)
        assert peak_positions(merged) == [(-21, 310), (-25, 312)]
        counts = paint([first, second])
        assert merged.getArea() == np.count_nonzero(counts)
        # Flux and variance add up, mask bits are united.
        total = sum(h.getImageArray().sum(dtype=float) for h in heavies)
        assert merged.getImageArray().sum(dtype=float) == pytest.approx(total, rel=1e-6)
        image = merged.extractImage(fill=0, bbox=BBOX, imageType=MaskedImage)
        np.testing.assert_allclose(image.image.array, counts * masked_image.image.array, rtol=1e-6)
        np.testing.assert_array_equal(image.mask.array, (counts > 0) * masked_image.mask.array)
        np.testing.assert_allclose(image.variance.array, counts * masked_image.variance.array)

    def test_double(self) -> None:
        image = MaskedImageD(BBOX)
        image.image.array[:, :] = 1 / 3
        heavy = makeHeavyFootprint(Footprint(SpanSet(BBOX)), image)
        assert isinstance(heavy, HeavyFootprintD)
        assert heavy.getImageArray()[5] == 1 / 3

    def test_no_pickle(self, footprint: Footprint, masked_image: MaskedImageF) -> None:
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(makeHeavyFootprint(footprint, masked_image))

    def test_catalog_round_trip(self, masked_image: MaskedImageF, tmp_path: Path) -> None:
        found = FootprintSet(masked_image.image, Threshold(5))
        footprints = found.getFootprints()
        catalog = SourceCatalog(SourceTable.makeMinimalSchema())
        for index in range(5):
            record = catalog.addNew()
            if index < 3:
                heavy = index != 1
                plain = footprints[index]
                record.setFootprint(makeHeavyFootprint(plain, masked_image) if heavy else plain)
            elif index == 4:
                record.setFootprint(Footprint(SpanSet()))
        path = tmp_path / "catalog with footprints.fits"
        catalog.writeFits(str(path))
        back = SourceCatalog.readFits(str(path))
        assert [r.getId() for r in back] == [r.getId() for r in catalog]
        assert back[3].getFootprint() is None
        assert back[4].getFootprint().getArea() == 0
        assert len(back[4].getFootprint().peaks) == 0
        for old, new in zip(catalog[:3], back[:3], strict=True):
            footprint = new.getFootprint()
            assert footprint == old.getFootprint()
            assert footprint.isHeavy() == old.getFootprint().isHeavy()
            # IDs of peaks are kept, regions are not.
            assert [p.getId() for p in footprint.peaks] == [p.getId() for p in old.getFootprint().peaks]
            assert footprint.getRegion().isEmpty()
            if footprint.isHeavy():
                for name in ("getImageArray", "getMaskArray", "getVarianceArray"):
                    np.testing.assert_array_equal(
                        getattr(footprint, name)(), getattr(old.getFootprint(), name)()
                    )
        # Records without a Footprint would crash upstream here.
        catalog[:3].writeFits(str(path))
        light = SourceCatalog.readFits(str(path), flags=SOURCE_IO_NO_HEAVY_FOOTPRINTS)
        assert [f.isHeavy() for f in (r.getFootprint() for r in light[:3])] == [False] * 3
