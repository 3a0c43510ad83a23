# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""lsst.geom as the package uses it: rounding, boxes, angles, the sphere."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

import lsst.pex.exceptions
from lsst.daf.base import DateTime, PropertyList, PropertySet
from lsst.geom import (
    AffineTransform,
    Angle,
    Box2D,
    Box2I,
    Extent2D,
    Extent2I,
    IntervalD,
    IntervalI,
    LinearTransform,
    Point2D,
    Point2I,
    SpherePoint,
    arcseconds,
    degrees,
    hours,
    radians,
)


def test_points_truncate_floats_and_round_positions():
    assert str(Point2I(1.5, 2)) == "(1, 2)"
    assert Point2I(-1.5, 2.9) == Point2I(-1, 2)
    assert Point2I(Point2D(1.6, 2.7)) == Point2I(2, 3)
    assert Point2I(Point2D(-0.5, -0.51)) == Point2I(0, -1)
    assert Point2I(np.int64(1), np.int32(2)) == Point2I(1, 2)


def test_point_arithmetic():
    p, e = Point2I(3, 4), Extent2I(1, -2)
    assert p + e == Point2I(4, 2)
    assert p - e == Point2I(2, 6)
    assert p - Point2I(1, 1) == Extent2I(2, 3)
    assert p + Extent2D(0.5, 0.5) == Point2D(3.5, 4.5)
    assert e * 2 == Extent2I(2, -4)
    assert e / 2 == Extent2D(0.5, -1.0)
    assert e // 2 == Extent2I(0, -1)
    p += e
    assert p == Point2I(4, 2)
    with pytest.raises(TypeError):
        Point2I(1, 1) + Point2I(1, 1)


def test_points_are_sequences():
    p = Point2D(1.0, 2.0)
    assert tuple(p) == (1.0, 2.0)
    assert (p[0], p[-1], len(p)) == (1.0, 2.0, 2)
    np.testing.assert_array_equal(np.array(p), [1.0, 2.0])
    p.x = 5.0
    assert p.getX() == 5.0
    assert repr(Point2I(-1, 2)) == "Point2I(-1, 2)"
    assert repr(Point2D(0.1, math.nan)) == "Point2D(0.10000000000000001, float('nan'))"
    with pytest.raises(IndexError):
        p[2]
    assert Point2I(1, 2) != Point2D(1, 2)


def test_box_limits():
    box = Box2I(Point2I(1, 2), Extent2I(3, 4))
    assert str(box) == "(minimum=(1, 2), maximum=(3, 5))"
    assert repr(box) == "Box2I(corner=Point2I(1, 2), dimensions=Extent2I(3, 4))"
    assert box.getMax() == Point2I(3, 5)
    assert (box.beginX, box.endX, box.beginY, box.endY) == (1, 4, 2, 6)
    assert (box.getWidth(), box.getHeight(), box.getArea()) == (3, 4, 12)
    assert box.getEnd() == Point2I(4, 6)
    assert box.getSlices() == (slice(2, 6, 1), slice(1, 4, 1))
    assert box.getCorners() == [Point2I(1, 2), Point2I(3, 2), Point2I(3, 5), Point2I(1, 5)]
    assert box.getCenter() == Point2D(2.0, 3.5)
    assert Box2I(Point2I(3, 5), Point2I(1, 2)) == box
    assert Box2I(Point2I(3, 5), Point2I(1, 2), invert=False).isEmpty()
    assert Box2I(corner=Point2I(1, 2), dimensions=Extent2I(3, 4)) == box
    assert Box2I(minimum=Point2I(1, 2), maximum=Point2I(3, 5)) == box


def test_empty_box():
    box = Box2I()
    assert box.isEmpty()
    assert box.getMin() == Point2I(0, 0)
    assert box.getDimensions() == Extent2I(0, 0)
    assert box.dilatedBy(3).isEmpty()
    assert box.expandedTo(Point2I(4, 5)) == Box2I(Point2I(4, 5), Extent2I(1, 1))
    assert not box.overlaps(Box2I(Point2I(0, 0), Extent2I(1, 1)))
    assert Box2D() == Box2D(Box2I())


def test_box_conversions():
    assert Box2D(Box2I(Point2I(1, 2), Extent2I(3, 4))) == Box2D(Point2D(0.5, 1.5), Point2D(3.5, 5.5))
    outer = Box2D(Point2D(0.2, 0.3), Point2D(3.7, 4.2))
    assert Box2I(outer) == Box2I(Point2I(0, 0), Point2I(4, 4))
    assert Box2I(outer, Box2I.SHRINK) == Box2I(Point2I(1, 1), Point2I(3, 3))
    assert Box2I.makeCenteredBox(Point2D(10.2, 20.0), Extent2I(3, 3)) == Box2I(Point2I(9, 19), Extent2I(3, 3))


def test_box_algebra_against_pixels():
    """Boxes agree with boolean images of their pixels."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        x0, y0, x1, y1 = rng.integers(0, 12, 4)
        w0, h0, w1, h1 = rng.integers(1, 8, 4)
        a = Box2I(Point2I(x0, y0), Extent2I(w0, h0))
        b = Box2I(Point2I(x1, y1), Extent2I(w1, h1))
        pixels = np.zeros((2, 24, 24), dtype=bool)
        pixels[0][a.getSlices()] = True
        pixels[1][b.getSlices()] = True
        common = np.zeros((24, 24), dtype=bool)
        common[a.clippedTo(b).getSlices()] = True
        np.testing.assert_array_equal(common, pixels.all(axis=0))
        assert a.overlaps(b) == common.any()
        assert a.contains(b) == bool(np.all(pixels[0][pixels[1]]))
        both = a.expandedTo(b)
        assert both.contains(a)
        assert both.contains(b)
        yy, xx = np.nonzero(pixels.any(axis=0))
        assert both == Box2I(Point2I(int(xx.min()), int(yy.min())), Point2I(int(xx.max()), int(yy.max())))
        inside = np.array([[Point2I(x, y) in a for x in range(24)] for y in range(24)])
        np.testing.assert_array_equal(inside, pixels[0])


def test_box_moves():
    box = Box2I(Point2I(-5, 10), Extent2I(7, 3))
    assert box.dilatedBy(2).erodedBy(2) == box
    assert box.erodedBy(2).isEmpty()
    assert box.dilatedBy(Extent2I(1, 0)) == Box2I(Point2I(-6, 10), Extent2I(9, 3))
    assert box.shiftedBy(Extent2I(5, -10)).getMin() == Point2I(0, 0)
    other = Box2I(box)
    other.grow(1)
    assert other == box.dilatedBy(1)
    other.clip(box)
    assert other == box
    x, y = box.grid()
    assert x.shape == (3, 7)
    assert (x[0, 0], y[-1, 0]) == (-5, 12)


def test_box2d_is_half_open():
    box = Box2D(Point2D(0, 0), Extent2D(2, 3))
    assert box.contains(Point2D(0, 0))
    assert not box.contains(Point2D(2, 0))
    box.include(Point2D(4, 5))
    assert box.contains(Point2D(4, 5))


def test_box2d_without_end() -> None:
    box = Box2D.makeCenteredBox(Point2D(0.0, 0.0), Extent2D(4.0, math.inf))
    assert not box.isEmpty() and box.getMin() == Point2D(-2.0, -math.inf)
    assert math.isnan(box.getMaxY()) and math.isnan(box.getCenterY())


def test_angles():
    assert str(1 * degrees) == "0.0174533 rad"
    assert float(1 * degrees) == 0.017453292519943295
    assert (180 * degrees).asRadians() == pytest.approx(math.pi)
    assert (1 * hours).asDegrees() == pytest.approx(15)
    assert (3600 * arcseconds).asDegrees() == pytest.approx(1)
    assert Angle(1) == 1.0
    assert Angle(-0.1).wrap().asRadians() == pytest.approx(2 * math.pi - 0.1)
    assert Angle(4.0).wrapCtr().asRadians() == pytest.approx(4.0 - 2 * math.pi)
    assert (350 * degrees).wrapNear(0 * degrees).asDegrees() == pytest.approx(-10)
    assert 2 * Angle(1.5) - Angle(1.0) == Angle(2.0)
    assert repr(Angle(30.5, degrees)) == "Angle(30.499999999999996, degrees)"
    with pytest.raises(TypeError):
        Angle(1) / Angle(2)


def test_sphere_point():
    a = SpherePoint(150.25, -2.5, degrees)
    assert repr(SpherePoint(1.0, 0.5, radians)) == (
        f"SpherePoint({math.degrees(1.0)!r}*degrees, {math.degrees(0.5)!r}*degrees)"
    )
    assert str(a) == "(150.2500000000, -2.5000000000)"
    assert SpherePoint(-10 * degrees, 5 * degrees).getRa().asDegrees() == pytest.approx(350)
    vector = a.getVector()
    assert vector.x() == pytest.approx(math.cos(math.radians(-2.5)) * math.cos(math.radians(150.25)))
    assert SpherePoint(vector).separation(a).asRadians() < 1e-14
    assert [v.asDegrees() for v in a] == pytest.approx([150.25, -2.5])
    with pytest.raises(lsst.pex.exceptions.InvalidParameterError):
        SpherePoint(0, 91, degrees)


@pytest.mark.parametrize("bearing", [0.0, 45.0, 90.0, 200.0])
def test_sphere_offset_and_bearing(bearing):
    start = SpherePoint(10, 20, degrees)
    end = start.offset(bearing * degrees, 1 * degrees)
    assert start.separation(end).asDegrees() == pytest.approx(1)
    # Rounding may bring a bearing of 0 out just below 360 degrees.
    found = start.bearingTo(end).wrapNear(bearing * degrees)
    assert found.asDegrees() == pytest.approx(bearing, abs=1e-10)
    # A bearing counts from East to North.
    if bearing == 90.0:
        assert end.getDec().asDegrees() == pytest.approx(21)


def test_transforms():
    rotation = LinearTransform.makeRotation(90 * degrees)
    assert np.allclose(np.array(rotation(Point2D(1, 0))), [0, 1])
    affine = AffineTransform(LinearTransform.makeScaling(2), Extent2D(1, -1))
    assert affine(Point2D(1, 2)) == Point2D(3, 3)
    assert affine(Extent2D(1, 2)) == Extent2D(2, 4)
    assert affine.inverted()(Point2D(3, 3)) == Point2D(1, 2)
    assert (affine * affine)(Point2D(1, 2)) == Point2D(7, 5)


@pytest.mark.parametrize(
    "value",
    [
        Point2I(1, -2),
        Point2D(0.1, 1e300),
        Extent2I(3, 4),
        Box2I(Point2I(1, 2), Extent2I(3, 4)),
        Box2D(Point2D(0.1, 0.2), Point2D(3.0, 4.5)),
        Angle(1.25),
        SpherePoint(1.0, 0.5, radians),
    ],
    ids=lambda v: type(v).__name__,
)
def test_pickles(value):
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301
    assert copy.deepcopy(value) == value


def test_exceptions_are_upstream_classes():
    pex = lsst.pex.exceptions
    assert issubclass(pex.NotFoundError, LookupError)
    assert not issubclass(pex.NotFoundError, KeyError)
    assert issubclass(pex.InvalidParameterError, pex.LogicError)
    assert not issubclass(pex.InvalidParameterError, ValueError)
    assert issubclass(pex.LengthError, pex.LogicError)
    assert issubclass(pex.OutOfRangeError, pex.LogicError)
    assert issubclass(pex.IoError, pex.RuntimeError) and issubclass(pex.IoError, OSError)
    assert issubclass(pex.RuntimeError, RuntimeError)


def test_property_list_keeps_order_types_and_comments():
    metadata = PropertyList()
    metadata.set("B", 1, "an integer")
    metadata.set("A", 1.5)
    metadata["FLAG"] = True
    metadata["NAME"] = "text"
    metadata["NONE"] = None
    metadata.add("H", ["a", "b"])
    assert metadata.getOrderedNames() == ["B", "A", "FLAG", "NAME", "NONE", "H"]
    assert metadata.toDict() == {
        "B": 1,
        "A": 1.5,
        "FLAG": True,
        "NAME": "text",
        "NONE": None,
        "H": ["a", "b"],
    }
    assert metadata.getComment("B") == "an integer"
    assert metadata["H"] == "b"
    assert metadata.getArray("H") == ["a", "b"]
    assert pickle.loads(pickle.dumps(metadata)) == metadata  # noqa: S301
    assert str(metadata).splitlines()[:3] == ["B = 1", "// an integer", "A = 1.5000000000000"]
    with pytest.raises(KeyError):
        metadata["MISSING"]
    assert metadata.get("MISSING", 7) == 7
    metadata.remove("B")
    assert "B" not in metadata


def test_property_set_hierarchy():
    metadata = PropertySet()
    metadata["a.b"] = 3
    metadata["c"] = {"d": 4.5}
    assert metadata.toDict() == {"a": {"b": 3}, "c": {"d": 4.5}}
    assert metadata.exists("c.d")
    other = metadata.deepCopy()
    other["a.b"] = 5
    assert metadata["a.b"] == 3


def test_dates():
    date = DateTime("2026-01-02T03:04:05.678", DateTime.TAI)
    assert date.toString(DateTime.TAI) == "2026-01-02T03:04:05.678000000"
    # TAI was 37 s ahead of UTC.
    assert date.toString(DateTime.UTC) == "2026-01-02T03:03:28.678000000Z"
    assert date.get(DateTime.MJD, DateTime.TAI) == pytest.approx(61042.12784349537, abs=1e-10)
    assert date.nsecs(DateTime.TT) - date.nsecs(DateTime.TAI) == 32_184_000_000
    assert not DateTime().isValid()
    assert DateTime(1000) > DateTime(10)


def test_intervals_within_32_bits() -> None:
    assert IntervalI(min=1, max=2**31 - 1).getSize() == 2**31 - 1
    for wrong in ({"min": -(2**31), "max": 2**31 - 1}, {"min": 2**31 - 1, "size": 2}):
        with pytest.raises(lsst.pex.exceptions.OverflowError):
            IntervalI(**wrong)
    for end in (np.inf, -np.inf):
        with pytest.raises(lsst.pex.exceptions.InvalidParameterError):
            IntervalD(min=end, max=end)
    assert IntervalD(min=-np.inf, max=np.inf).contains(3.0)


def test_integers_take_no_floats_in_place() -> None:
    point, extent = Point2I(1, 2), Extent2I(3, 4)
    with pytest.raises(TypeError):
        point += Extent2D(0.5, 0.5)
    with pytest.raises(TypeError):
        point -= Extent2D(0.5, 0.5)
    with pytest.raises(TypeError):
        extent *= 1.5
    with pytest.raises(TypeError):
        extent += point
    point += extent
    assert (point, extent) == (Point2I(4, 6), Extent2I(3, 4))


def test_epochs_and_the_beginning_of_utc() -> None:
    """The values of pyerfa; the table of leap seconds begins in 1961."""
    assert DateTime(2457073.05631, DateTime.JD, DateTime.TAI).get(DateTime.EPOCH) == 2015.1349933196439
    assert DateTime(2015.1349933196, DateTime.EPOCH, DateTime.TAI).get(DateTime.JD) == 2457073.056309984
    first = DateTime("1961-01-01T00:00:00Z", DateTime.UTC)
    assert first.toString(DateTime.UTC) == "1961-01-01T00:00:00.000000000Z"
    with pytest.raises(lsst.pex.exceptions.DomainError):
        DateTime("1960-01-01T23:59:59Z", DateTime.UTC)


def test_property_sets_in_each_other() -> None:
    inner, outer, flat = PropertySet(), PropertySet(), PropertySet(flat=True)
    inner.set("a", [1, 2])
    inner.set("foo", "bar")
    outer.set("b", inner)
    outer.set("c", 3.0)
    assert outer.valueCount() == 4
    assert outer.valueCount("b.a") == 2
    flat.set("b", inner)
    assert (flat.exists("b"), flat.exists("b.a"), flat.getArray("b.a")) == (False, True, [1, 2])
    for number in (-(2**63) - 1, 2**64):
        with pytest.raises(RuntimeError):
            inner.add("number", number)


def test_rotation_by_infinity() -> None:
    pole, point = SpherePoint(0.0, 90.0, degrees), SpherePoint(10.0, 20.0, degrees)
    assert not point.rotated(pole, np.inf * degrees).isFinite()
