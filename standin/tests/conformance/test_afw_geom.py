# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""lsst.afw.geom as the package uses it: pixels, ellipses, sky coordinates."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from scipy import ndimage

import lsst.afw.math as afw_math
import lsst.pex.exceptions
from lsst.afw.geom import (
    Polygon,
    SkyWcs,
    Span,
    SpanSet,
    Stencil,
    makeCdMatrix,
    makeSkyWcs,
    makeTanSipWcs,
)
from lsst.afw.geom.ellipses import Axes, Ellipse, Quadrupole
from lsst.afw.image import ExposureF, ImageF, MaskX
from lsst.daf.base import PropertyList
from lsst.geom import (
    AffineTransform,
    Angle,
    Box2I,
    Extent2D,
    Extent2I,
    LinearTransform,
    Point2D,
    Point2I,
    SpherePoint,
    arcseconds,
    degrees,
    radians,
)

SHAPE = (13, 17)
CORNER = Point2I(105, 207)
FRAME = Box2I(CORNER, Extent2I(SHAPE[1], SHAPE[0]))


def make_spans(pixels):
    """Make a SpanSet of a boolean image whose first pixel is at CORNER."""
    mask = MaskX(Box2I(CORNER, Extent2I(pixels.shape[1], pixels.shape[0])))
    mask.array[:] = pixels
    return SpanSet.fromMask(mask)


def to_pixels(spans, margin=0):
    """Return the boolean image of a SpanSet in the frame plus a margin."""
    shape = (SHAPE[0] + 2 * margin, SHAPE[1] + 2 * margin)
    return spans.asArray(shape=shape, xy0=(CORNER.getX() - margin, CORNER.getY() - margin))


@pytest.fixture
def pairs():
    """Pairs of random boolean images, sparse to dense."""
    rng = np.random.default_rng(11)
    return [(rng.random(SHAPE) < p, rng.random(SHAPE) < q) for p in (0.1, 0.5, 0.8) for q in (0.2, 0.5, 0.9)]


def test_spans_round_trip(pairs):
    for pixels, _ in pairs:
        spans = make_spans(pixels)
        np.testing.assert_array_equal(to_pixels(spans), pixels)
        assert spans.getArea() == pixels.sum()
        yy, xx = np.nonzero(pixels)
        np.testing.assert_array_equal(spans.indices(), [yy + CORNER.getY(), xx + CORNER.getX()])
        box = Box2I(
            Point2I(int(xx.min()), int(yy.min())) + Extent2I(CORNER),
            Point2I(int(xx.max()), int(yy.max())) + Extent2I(CORNER),
        )
        assert spans.getBBox() == box
        assert spans.asArray().shape == (box.getHeight(), box.getWidth())
        assert SpanSet(list(spans)) == spans
        assert len(list(spans)) == len(spans)


def test_set_algebra(pairs):
    for a, b in pairs:
        first, second = make_spans(a), make_spans(b)
        np.testing.assert_array_equal(to_pixels(first.union(second)), a | b)
        np.testing.assert_array_equal(to_pixels(first.intersect(second)), a & b)
        np.testing.assert_array_equal(to_pixels(first.intersectNot(second)), a & ~b)
        assert first.overlaps(second) == bool((a & b).any())
        assert first.contains(second) == bool((a | ~b).all())
        assert first.union(second).contains(second)
        assert first.union(second) == second.union(first)
        assert first.intersectNot(first) == SpanSet()


def test_algebra_with_masks(pairs):
    for a, b in pairs[:3]:
        spans = make_spans(a)
        mask = MaskX(FRAME)
        mask.array[:] = np.where(b, 4, 1)
        np.testing.assert_array_equal(to_pixels(spans.intersect(mask, 4)), a & b)
        np.testing.assert_array_equal(to_pixels(spans.intersectNot(mask, 4)), a & ~b)
        np.testing.assert_array_equal(to_pixels(spans.union(mask, 4)), a | b)
        np.testing.assert_array_equal(to_pixels(SpanSet.fromMask(mask, 4)), b)


@pytest.mark.parametrize("stencil", [Stencil.CIRCLE, Stencil.BOX, Stencil.MANHATTAN])
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_dilate_and_erode(pairs, stencil, radius):
    element = SpanSet.fromShape(radius, stencil).asArray()
    for sparse, _ in pairs:
        # One full row: upstream does not erode with a stencil that fits no span.
        pixels = sparse.copy()
        pixels[6] = True
        spans = make_spans(pixels)
        padded = np.pad(pixels, 4)
        np.testing.assert_array_equal(
            to_pixels(spans.dilated(radius, stencil), 4), ndimage.binary_dilation(padded, element)
        )
        np.testing.assert_array_equal(
            to_pixels(spans.eroded(radius, stencil), 4), ndimage.binary_erosion(padded, element)
        )


def test_stencils():
    assert SpanSet.fromShape(2).getArea() == 13
    assert SpanSet.fromShape(2, Stencil.BOX).getArea() == 25
    assert SpanSet.fromShape(2, Stencil.MANHATTAN).getArea() == 13
    assert SpanSet.fromShape(3, Stencil.CIRCLE, offset=(5, 6)).getBBox().getCenter() == Point2D(5, 6)


def test_split(pairs):
    for pixels, _ in pairs:
        spans = make_spans(pixels)
        labels, n = ndimage.label(pixels)
        parts = spans.split()
        assert len(parts) == n
        assert spans.isContiguous() == (n == 1)
        seen = np.zeros(SHAPE, dtype=int)
        for part in parts:
            assert part.isContiguous()
            inside = to_pixels(part)
            assert len(np.unique(labels[inside])) == 1
            seen += inside
        np.testing.assert_array_equal(seen, pixels)


def test_moments(pairs):
    for pixels, _ in pairs:
        spans = make_spans(pixels)
        yy, xx = spans.indices().astype(float)
        assert tuple(spans.computeCentroid()) == pytest.approx((xx.mean(), yy.mean()))
        shape = spans.computeShape()
        assert shape.getIxx() == pytest.approx(xx.var())
        assert shape.getIyy() == pytest.approx(yy.var())
        assert shape.getIxy() == pytest.approx(np.mean((xx - xx.mean()) * (yy - yy.mean())))


def test_span_set_of_box_and_spans():
    spans = SpanSet(Box2I(Point2I(1, 2), Extent2I(3, 4)))
    assert str(spans) == "2: 1..3\n3: 1..3\n4: 1..3\n5: 1..3\n"
    assert [(s.getY(), s.getX0(), s.getX1()) for s in spans][0] == (2, 1, 3)
    # Touching and overlapping spans join; order does not matter.
    assert SpanSet([Span(1, 5, 6), Span(0, 0, 1), Span(1, 2, 4)]) == SpanSet([Span(0, 0, 1), Span(1, 2, 6)])
    assert Point2I(2, 3) in spans
    assert not spans.contains(Point2I(0, 3))
    with pytest.raises(TypeError):
        spans[0]
    empty = SpanSet()
    assert (len(empty), empty.getArea(), empty.getBBox().isEmpty()) == (0, 0, True)
    assert spans.shiftedBy(10, -2).getBBox().getMin() == Point2I(11, 0)
    assert spans.shiftedBy(Extent2I(10, -2)) == spans.shiftedBy(10, -2)
    assert spans.clippedTo(Box2I(Point2I(2, 0), Extent2I(10, 4))).getArea() == 4
    edge = spans.findEdgePixels()
    assert edge.getArea() == 10


def test_masks_and_images(pairs):
    pixels = pairs[4][0]
    spans = make_spans(pixels)
    mask = MaskX(FRAME)
    mask.array[:] = 1
    spans.setMask(mask, 6)
    np.testing.assert_array_equal(mask.array, np.where(pixels, 7, 1))
    spans.clearMask(mask, 3)
    np.testing.assert_array_equal(mask.array, np.where(pixels, 4, 1))
    image = ImageF(FRAME)
    spans.setImage(image, 2.5)
    np.testing.assert_array_equal(image.array, np.where(pixels, np.float32(2.5), 0))
    with pytest.raises(lsst.pex.exceptions.OutOfRangeError):
        spans.shiftedBy(100, 0).setImage(image, 1.0)
    spans.shiftedBy(3, 0).setImage(image, 1.0, doClip=True)
    other = ImageF(FRAME)
    spans.copyImage(image, other)
    np.testing.assert_array_equal(other.array, np.where(pixels, image.array, 0))


def test_flatten(pairs):
    pixels = pairs[4][0]
    spans = make_spans(pixels)
    image = np.arange(pixels.size, dtype=np.float64).reshape(SHAPE)
    flat = spans.flatten(image, CORNER)
    np.testing.assert_array_equal(flat, image[pixels])
    box = spans.getBBox()
    again = spans.unflatten(flat)
    assert again.shape == (box.getHeight(), box.getWidth())
    assert again.sum() == flat.sum()
    target = np.zeros(SHAPE)
    spans.unflatten(target, flat, CORNER)
    np.testing.assert_array_equal(target, np.where(pixels, image, 0))
    cube = np.stack([image, 2 * image], axis=-1)
    np.testing.assert_array_equal(spans.flatten(cube, CORNER), cube[pixels])
    with pytest.raises(lsst.pex.exceptions.OutOfRangeError):
        spans.flatten(image)


def test_ellipse_spans_hold_pixel_centres():
    ellipse = Ellipse(Axes(7.3, 3.1, 0.4), Point2D(100.2, 50.7))
    spans = SpanSet.fromShape(ellipse)
    y, x = np.mgrid[40:62, 90:111]
    core = Quadrupole(ellipse.getCore())
    q = np.array([[core.getIxx(), core.getIxy()], [core.getIxy(), core.getIyy()]])
    d = np.stack([x - 100.2, y - 50.7], axis=-1)
    inside = np.einsum("...i,ij,...j", d, np.linalg.inv(q), d) <= 1
    np.testing.assert_array_equal(spans.asArray(shape=x.shape, xy0=(90, 40)), inside)


def test_transformed_spans():
    spans = SpanSet(Box2I(Point2I(0, 0), Extent2I(3, 2)))
    shifted = spans.transformedBy(AffineTransform(Extent2D(4, 5)))
    assert shifted == spans.shiftedBy(4, 5)
    turned = spans.transformedBy(LinearTransform.makeRotation(90 * degrees))
    assert (turned.getBBox().getWidth(), turned.getBBox().getHeight()) == (2, 3)


def test_ellipses():
    axes = Axes(4.0, 2.0, 0.5)
    moments = Quadrupole(axes)
    assert moments.getIxx() + moments.getIyy() == pytest.approx(20)
    assert axes.getArea() == pytest.approx(math.pi * 8)
    assert moments.getDeterminantRadius() == pytest.approx(math.sqrt(8))
    assert moments.getTraceRadius() == pytest.approx(math.sqrt(10))
    again = Axes(moments)
    assert (again.getA(), again.getB(), again.getTheta()) == pytest.approx((4.0, 2.0, 0.5))
    assert Quadrupole(1, 2, 0.5).convolve(Quadrupole(1, 1, 0.0)).getIyy() == 3
    with pytest.raises(lsst.pex.exceptions.InvalidParameterError):
        Quadrupole(-1.0, 1.0, 0.0, True)


# Sky coordinates ------------------------------------------------------------


@pytest.fixture
def golden(shared_data):
    """What the real afw says about the WCS of exposure.fits."""
    return json.loads((shared_data / "afw" / "golden.json").read_text())["exposure"]["wcs"]


@pytest.fixture
def golden_wcs():
    """The WCS of exposure.fits, made anew."""
    cd = makeCdMatrix(0.2 * arcseconds, 30 * degrees, True)
    return makeSkyWcs(Point2D(131.5, 223.25), SpherePoint(150.25, -2.5, degrees), cd)


def check_golden(wcs, golden):
    assert tuple(wcs.getPixelOrigin()) == pytest.approx(golden["crpix_0based_parent"], abs=1e-9)
    origin = wcs.getSkyOrigin()
    assert [a.asDegrees() for a in origin] == pytest.approx(golden["crval_deg"], abs=1e-12)
    np.testing.assert_allclose(wcs.getCdMatrix(), golden["cd_deg_per_pix"], rtol=1e-12)
    scale = wcs.getPixelScale().asArcseconds()
    assert scale == pytest.approx(golden["pixel_scale_arcsec_at_pixel_origin"], abs=1e-9)
    scale = wcs.getPixelScale(Point2D(100, 200)).asArcseconds()
    assert scale == pytest.approx(golden["pixel_scale_arcsec_at_100_200"], abs=1e-9)
    assert wcs.isFits == golden["isFits"]
    assert wcs.isFlipped == golden["isFlipped"]
    assert str(wcs) == golden["str"]
    for position, sky in golden["pixelToSky_deg"].items():
        x, y = (float(v) for v in position.split(","))
        ra, dec = wcs.pixelToSky(Point2D(x, y))
        assert (ra.asDegrees(), dec.asDegrees()) == pytest.approx(sky, abs=1e-11)
        assert tuple(wcs.skyToPixel(wcs.pixelToSky(x, y))) == pytest.approx((x, y), abs=1e-6)
    metadata = wcs.getFitsMetadata()
    assert metadata.getOrderedNames() == list(golden["fits_metadata"])
    for key, value in golden["fits_metadata"].items():
        assert metadata[key] == (value if isinstance(value, str | int) else pytest.approx(value, rel=1e-12))


def test_wcs_answers_as_golden(golden, golden_wcs):
    check_golden(golden_wcs, golden)


def test_wcs_of_real_file_answers_as_golden(golden, shared_data):
    wcs = ExposureF.readFits(str(shared_data / "afw" / "exposure.fits")).getWcs()
    check_golden(wcs, golden)
    assert pickle.loads(pickle.dumps(wcs)) == wcs  # noqa: S301


def test_wcs_of_a_detected_scene(shared_data):
    wcs = ExposureF.readFits(str(shared_data / "scarlet" / "exposure_r.fits")).getWcs()
    assert tuple(wcs.getPixelOrigin()) == pytest.approx((12256, 8256))
    assert wcs.getPixelScale().asArcseconds() == pytest.approx(0.168, abs=1e-7)
    assert not wcs.isFlipped


def test_wcs_arrays(golden_wcs):
    rng = np.random.default_rng(5)
    x, y = rng.uniform(-3000, 3000, (2, 50))
    ra, dec = golden_wcs.pixelToSkyArray(x, y)
    points = golden_wcs.pixelToSky([Point2D(a, b) for a, b in zip(x, y, strict=True)])
    np.testing.assert_allclose(ra, [p.getRa().asRadians() for p in points], atol=1e-13)
    np.testing.assert_allclose(dec, [p.getDec().asRadians() for p in points], atol=1e-13)
    np.testing.assert_allclose(golden_wcs.skyToPixelArray(ra, dec), [x, y], atol=1e-6)
    ra_deg, _ = golden_wcs.pixelToSkyArray(x, y, degrees=True)
    np.testing.assert_allclose(np.deg2rad(ra_deg), ra)
    with pytest.raises(TypeError):
        golden_wcs.pixelToSkyArray(np.array([100]), np.array([200]))


def test_wcs_against_astropy(golden_wcs):
    from astropy.io.fits import Header
    from astropy.wcs import WCS

    header = Header()
    for name, value in golden_wcs.getFitsMetadata().toDict().items():
        header[name] = value
    x, y = np.meshgrid(np.linspace(-4000, 4000, 9), np.linspace(-4000, 4000, 9))
    expected = WCS(header).all_pix2world(x.ravel(), y.ravel(), 0)
    np.testing.assert_allclose(
        golden_wcs.pixelToSkyArray(x.ravel(), y.ravel(), degrees=True), expected, rtol=0, atol=1e-11
    )


def test_wcs_of_keywords_and_origin(golden_wcs):
    metadata = golden_wcs.getFitsMetadata()
    again = makeSkyWcs(metadata)
    assert tuple(again.getPixelOrigin()) == pytest.approx((131.5, 223.25))
    # The "A" keywords give the parent position of the first pixel.
    for key, value in (("CRPIX1A", 1.0), ("CRPIX2A", 1.0), ("CRVAL1A", 100), ("CRVAL2A", 200)):
        metadata.set(key, value)
    metadata.set("OTHER", 1)
    moved = makeSkyWcs(metadata, strip=True)
    assert tuple(moved.getPixelOrigin()) == pytest.approx((231.5, 423.25))
    assert "OTHER" in metadata
    assert not {"CTYPE1", "CRVAL1", "CD1_1", "CRPIX1A", "CRVAL2A"} & set(metadata.getOrderedNames())
    with pytest.raises(lsst.pex.exceptions.TypeError):
        makeSkyWcs(PropertyList())


def test_wcs_methods(golden_wcs):
    shifted = golden_wcs.copyAtShiftedPixelOrigin(Extent2D(1, 2))
    assert tuple(shifted.getPixelOrigin()) == pytest.approx((132.5, 225.25))
    assert shifted != golden_wcs
    assert shifted.copyAtShiftedPixelOrigin(Extent2D(0, 0)).pixelToSky(5.0, 6.0).separation(
        golden_wcs.pixelToSky(4.0, 4.0)
    ) < Angle(1e-13)
    tangent = golden_wcs.getTanWcs(Point2D(100, 200))
    assert tuple(tangent.getPixelOrigin()) == pytest.approx((100, 200))
    local = golden_wcs.linearizePixelToSky(Point2D(100, 200), arcseconds).getLinear().getMatrix()
    np.testing.assert_allclose(local, [[0.17320492, 0.10000028], [-0.10000028, 0.17320492]], atol=1e-8)
    inverse = golden_wcs.linearizeSkyToPixel(Point2D(100, 200), radians)
    product = golden_wcs.linearizePixelToSky(Point2D(100, 200), radians) * inverse
    np.testing.assert_allclose(product.getLinear().getMatrix(), np.eye(2), atol=1e-9)
    rotation = golden_wcs.getRelativeRotationToWcs(golden_wcs).asRadians()
    assert math.cos(rotation) == pytest.approx(1)
    with pytest.raises(TypeError):
        hash(golden_wcs)


def test_wcs_survives_a_file(golden_wcs, tmp_path):
    sip = np.zeros((3, 3))
    sip[2, 0], sip[1, 1] = 2e-6, -3e-6
    distorted = makeTanSipWcs(
        Point2D(500, 600), SpherePoint(30, 40, degrees), golden_wcs.getCdMatrix(), sip, sip.T.copy()
    )
    flat = makeSkyWcs(
        Point2D(5000.0, -20.5), SpherePoint(359.9, 60.0, degrees), makeCdMatrix(0.168 * arcseconds)
    )
    x, y = np.array([0.0, 100.0, 900.0]), np.array([5.0, 1000.0, 400.0])
    for i, wcs in enumerate((golden_wcs, flat, distorted)):
        path = str(tmp_path / f"{i}.fits")
        ExposureF(Box2I(Point2I(3, 4), Extent2I(5, 6)), wcs).writeFits(path)
        again = ExposureF.readFits(path).getWcs()
        np.testing.assert_allclose(again.pixelToSkyArray(x, y), wcs.pixelToSkyArray(x, y), rtol=0, atol=1e-13)
        # AST may fit the inverse of a distortion.
        tolerance = 0.05 if wcs is distorted else 1e-5
        np.testing.assert_allclose(
            again.skyToPixelArray(*wcs.pixelToSkyArray(x, y)), [x, y], rtol=0, atol=tolerance
        )
        assert again == wcs
        assert pickle.loads(pickle.dumps(wcs)) == wcs  # noqa: S301
        assert SkyWcs.readString(wcs.writeString()) == wcs


def test_sip_against_astropy():
    from astropy.io.fits import Header
    from astropy.wcs import WCS

    rng = np.random.default_rng(8)
    terms = np.zeros((2, 4, 4))
    for i in range(4):
        for j in range(4 - i):
            if i + j >= 2:
                terms[:, i, j] = rng.normal(size=2) * 1e-3 / 500.0 ** (i + j - 1)
    cd = makeCdMatrix(0.2 * arcseconds, 12 * degrees)
    wcs = makeTanSipWcs(Point2D(500, 600), SpherePoint(30, 40, degrees), cd, terms[0], terms[1])
    header = Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header["CRPIX1"], header["CRPIX2"], header["CRVAL1"], header["CRVAL2"] = 501, 601, 30, 40
    for k, name in enumerate("AB"):
        header[f"{name}_ORDER"] = 3
        for i in range(2):
            header[f"CD{k + 1}_{i + 1}"] = cd[k, i]
        for i, j in np.argwhere(terms[k] != 0):
            header[f"{name}_{i}_{j}"] = terms[k, i, j]
    x, y = rng.uniform(0, 1200, (2, 30))
    expected = WCS(header).all_pix2world(x, y, 0)
    np.testing.assert_allclose(wcs.pixelToSkyArray(x, y, degrees=True), expected, rtol=0, atol=1e-10)


# Polygons and statistics ----------------------------------------------------


def test_polygon(shared_data):
    polygon = Polygon([Point2D(0, 0), Point2D(4, 0), Point2D(4, 3)])
    assert polygon.calculateArea() == pytest.approx(6)
    assert polygon.calculatePerimeter() == pytest.approx(12)
    assert tuple(polygon.calculateCenter()) == pytest.approx((8 / 3, 1))
    assert polygon.contains(Point2D(3, 1))
    assert not polygon.contains(Point2D(1, 2))
    golden = json.loads((shared_data / "afw" / "golden.json").read_text())["exposure_full"]["validPolygon"]
    exposure = ExposureF.readFits(str(shared_data / "afw" / "exposure_full.fits"))
    vertices = exposure.info.getValidPolygon().getVertices()
    np.testing.assert_array_equal([tuple(v) for v in vertices], golden)


def test_clipped_statistics():
    rng = np.random.default_rng(2)
    image = ImageF(Extent2I(200, 150))
    image.array[:] = rng.normal(5.0, 2.0, image.array.shape)
    image.array[:3] = 1000.0
    image.array[10, 10] = np.nan
    flags = afw_math.MEANCLIP | afw_math.STDEVCLIP | afw_math.MEDIAN | afw_math.MEAN | afw_math.NPOINT
    stats = afw_math.makeStatistics(image, flags)
    assert stats.getValue(afw_math.NPOINT) == 200 * 150 - 1
    assert stats.getValue(afw_math.MEANCLIP) == pytest.approx(5.0, abs=0.05)
    assert stats.getValue(afw_math.STDEVCLIP) == pytest.approx(2.0, abs=0.06)
    assert stats.getValue(afw_math.MEDIAN) == pytest.approx(np.nanmedian(image.array), rel=1e-6)
    assert stats.getValue(afw_math.MEAN) == pytest.approx(np.nanmean(image.array.astype(float)))
    with pytest.raises(lsst.pex.exceptions.InvalidParameterError):
        stats.getValue(afw_math.IQRANGE)
    mask = MaskX(Extent2I(200, 150))
    mask.array[:3] = 2
    control = afw_math.StatisticsControl()
    control.setAndMask(2)
    masked = afw_math.makeStatistics(image, mask, afw_math.MEAN, control)
    assert masked.getValue() == pytest.approx(5.0, abs=0.05)


def test_grid_transform_makes_a_unit_circle() -> None:
    ellipse = Ellipse(Axes(7.3, 3.1, 0.4), Point2D(100.2, 50.7))
    grid = ellipse.getGridTransform()
    end = Point2D(100.2 + 7.3 * np.cos(0.4), 50.7 + 7.3 * np.sin(0.4))
    back = grid(end)
    assert np.hypot(back.getX(), back.getY()) == pytest.approx(1.0)
    assert tuple(grid(ellipse.getCenter())) == pytest.approx((0.0, 0.0), abs=1e-12)
    matrix = ellipse.getCore().getGridTransform().getMatrix()
    np.testing.assert_allclose(matrix, matrix.T)
    np.testing.assert_allclose(np.linalg.inv(matrix @ matrix), Quadrupole(ellipse.getCore()).getMatrix())
