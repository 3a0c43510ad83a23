# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measurement of sources that another catalogue describes."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from lsst.afw.detection import makeHeavyFootprint
from lsst.afw.geom import SpanSet, linearizeTransform, makeCdMatrix, makeSkyWcs, makeWcsPairTransform
from lsst.afw.image import ExposureF, MaskedImageF
from lsst.afw.table import IdFactory, SourceCatalog, SourceTable
from lsst.geom import Point2D, Point2I, SpherePoint, arcseconds, degrees
from lsst.meas.base import ForcedMeasurementTask, SingleFrameMeasurementTask

sys.path.append(str(Path(__file__).parent))
from meas_base_images import BBOX, SIGMA, gaussian, make_exposure, make_footprint, make_task

FLUX = 1e5
MOMENTS = (9.0, 5.0, 1.5)


def make_reference(exposure: ExposureF, x: float, y: float) -> SourceCatalog:
    """Measure a source on its image, with the columns of a deblender."""
    schema = SourceTable.makeMinimalSchema()
    schema.addField("deblend_nChild", type="I", doc="number of children")
    config = SingleFrameMeasurementTask.ConfigClass()
    config.plugins.names = list(make_task().plugins)
    task = SingleFrameMeasurementTask(schema=schema, config=config)
    catalog = SourceCatalog(SourceTable.make(schema, IdFactory.makeSource(7, 32)))
    catalog.addNew().setFootprint(make_footprint(x, y, 15))
    task.run(catalog, exposure)
    return catalog


def make_forced_task(reference: SourceCatalog, plugins: list[str] | None = None) -> ForcedMeasurementTask:
    """Return a task with the default plugins or others."""
    config = ForcedMeasurementTask.ConfigClass()
    if plugins is not None:
        config.plugins.names = plugins
    config.plugins.names |= {"base_Blendedness"}
    config.slots.psfFlux = "base_PsfFlux"
    config.slots.modelFlux = "base_GaussianFlux"
    return ForcedMeasurementTask(reference.schema, config=config)


def test_same_image() -> None:
    x, y = 30.3, 1370.8
    exposure = make_exposure()
    exposure.image.array += gaussian(x, y, FLUX, MOMENTS).astype(np.float32)
    reference = make_reference(exposure, x, y)
    task = make_forced_task(reference)
    # Another band: a third of the light.
    exposure.image.array *= np.float32(1 / 3)
    catalog = task.generateMeasCat(exposure, reference, exposure.getWcs(), IdFactory.makeSource(9, 32))
    assert len(catalog) == 1
    (record,), (source,) = catalog, reference
    assert record["objectId"] == source.getId()
    assert record["parentObjectId"] == 0
    assert record.getId() != source.getId()
    assert record.getCoord() == source.getCoord()
    task.attachTransformedFootprints(catalog, reference, exposure, exposure.getWcs())
    assert not record.getFootprint().isHeavy()
    before = exposure.image.array.copy()
    task.run(catalog, exposure, reference, exposure.getWcs(), exposureId=3)
    assert np.array_equal(exposure.image.array, before)
    assert record.getCentroid() == source.getCentroid()
    assert record.getShape() == source.getShape()
    assert not record["base_TransformedCentroid_flag"]
    assert not record["base_TransformedShape_flag"]
    for flux in ("Psf", "Gaussian"):
        name = f"base_{flux}Flux_instFlux"
        assert record[name] == pytest.approx(source[name] / 3, rel=1e-5)
        assert not record[f"base_{flux}Flux_flag"]
    assert record["base_CircularApertureFlux_12_0_instFlux"] == pytest.approx(FLUX / 3, rel=5e-3)
    assert record.getModelInstFlux() == record["base_GaussianFlux_instFlux"]
    # It is measured on the image as well, if not used.
    assert record["base_SdssCentroid_x"] == pytest.approx(x, abs=0.02)
    # Its two halves are only measured in single-frame measurement.
    assert math.isnan(record["base_Blendedness_raw"])


def test_aliases_and_fields() -> None:
    reference = make_reference(make_exposure(), 30.0, 1370.0)
    schema = make_forced_task(reference).schema
    assert schema.getAliasMap().get("slot_Centroid") == "base_TransformedCentroid"
    assert schema.getAliasMap().get("slot_Shape") == "base_TransformedShape"
    assert schema.getAliasMap().get("base_PsfFlux_flag_badCentroid") == "base_TransformedCentroid_flag"
    for name in ("objectId", "parentObjectId", "deblend_nChild", "base_InvalidPsf_flag"):
        assert name in schema
    assert schema.find("base_TransformedShape_xx").field.getUnits() == "pixel^2"
    assert "base_SdssCentroid_flag_badInitialCentroid" in schema.getAliasMap().keys()


def test_other_coordinates() -> None:
    x, y = 30.3, 1370.8
    exposure = make_exposure()
    exposure.image.array += gaussian(x, y, FLUX, MOMENTS).astype(np.float32)
    reference = make_reference(exposure, x, y)
    # The same sky, rotated by 90 degrees and with pixels twice as fine.
    target = make_exposure()
    cd = makeCdMatrix(scale=0.1 * arcseconds, orientation=90 * degrees)
    target.setWcs(
        makeSkyWcs(crpix=Point2D(35.0, 1375.0), crval=SpherePoint(150.0, 2.0, degrees), cdMatrix=cd)
    )
    source = reference[0]
    position = target.getWcs().skyToPixel(source.getCoord())
    task = make_forced_task(
        reference, ["base_TransformedCentroid", "base_TransformedShape", "base_PsfFlux", "base_GaussianFlux"]
    )
    catalog = task.generateMeasCat(target, reference, exposure.getWcs())
    task.attachTransformedFootprints(catalog, reference, target, exposure.getWcs())
    footprint = catalog[0].getFootprint()
    area = source.getFootprint().getArea()
    assert footprint.getArea() == pytest.approx(4 * area, rel=0.05)
    (peak,) = footprint.getPeaks()
    assert math.hypot(peak.getFx() - position.getX(), peak.getFy() - position.getY()) < 2.0
    config = ForcedMeasurementTask.ConfigClass()
    assert config.slots.centroid == "base_TransformedCentroid"
    task.run(catalog, target, reference, exposure.getWcs())
    record = catalog[0]
    assert record.getX() == pytest.approx(position.getX(), abs=1e-4)
    assert record.getY() == pytest.approx(position.getY(), abs=1e-4)
    # Twice the size, and x and y change places.
    assert record.getIxx() == pytest.approx(4 * source.getIyy(), rel=1e-3)
    assert record.getIyy() == pytest.approx(4 * source.getIxx(), rel=1e-3)
    assert abs(record.getIxy()) == pytest.approx(4 * abs(source.getIxy()), rel=1e-3)


def test_transform_between_images() -> None:
    first, second = make_exposure().getWcs(), make_exposure(shift=(5.0, -3.0)).getWcs()
    transform = makeWcsPairTransform(first, second)
    point = Point2D(12.0, 1350.0)
    there = transform.applyForward(point)
    assert (there.getX(), there.getY()) == pytest.approx((17.0, 1347.0), abs=1e-6)
    back = transform.applyInverse(there)
    assert (back.getX(), back.getY()) == pytest.approx((12.0, 1350.0), abs=1e-6)
    local = linearizeTransform(transform, point)
    np.testing.assert_allclose(local.getLinear().getMatrix(), np.identity(2), atol=1e-6)
    mapped = local(point)
    assert (mapped.getX(), mapped.getY()) == pytest.approx((17.0, 1347.0), abs=1e-6)
    points = transform.applyForward([point, Point2D(0.0, 1300.0)])
    assert points[1].getX() == pytest.approx(5.0, abs=1e-6)
    footprint = make_footprint(30.0, 1370.0).transform(first, second, BBOX)
    assert footprint.getSpans() == make_footprint(30.0, 1370.0).getSpans().shiftedBy(5, -3)
    assert (footprint.getPeaks()[0].getIx(), footprint.getPeaks()[0].getIy()) in {
        (34, 1366),
        (35, 1367),
        (35, 1366),
        (34, 1367),
    }
    # At the edge of the image it is cut.
    clipped = make_footprint(BBOX.getMaxX() - 3.0, 1370.0).transform(first, second, BBOX)
    assert BBOX.contains(clipped.getBBox())


def test_children_have_their_own_light() -> None:
    """Heavy footprints of the band, given by the caller."""
    exposure = make_exposure()
    positions = [(30.0, 1370.0), (35.0, 1370.0)]
    stars = [gaussian(*position, FLUX * (1 + i)) for i, position in enumerate(positions)]
    exposure.image.array += sum(stars).astype(np.float32)
    schema = SourceTable.makeMinimalSchema()
    schema.addField("deblend_nChild", type="I", doc="number of children")
    schema.addField("base_SdssShape_xx", type="D", doc="moment", units="pixel^2")
    schema.addField("base_SdssShape_yy", type="D", doc="moment", units="pixel^2")
    schema.addField("base_SdssShape_xy", type="D", doc="moment", units="pixel^2")
    schema.addField("center_x", type="D", doc="position", units="pixel")
    schema.addField("center_y", type="D", doc="position", units="pixel")
    schema.addField("center_flag", type="Flag", doc="never")
    schema.addField("base_SdssShape_flag", type="Flag", doc="never")
    schema.getAliasMap().set("slot_Centroid", "center")
    schema.getAliasMap().set("slot_Shape", "base_SdssShape")
    reference = SourceCatalog(SourceTable.make(schema, IdFactory.makeSimple()))
    parent = reference.addNew()
    parent["deblend_nChild"] = 2
    for _ in positions:
        reference.addNew().setParent(parent.getId())
    for record, (x, y) in zip(reference, [(32.0, 1370.0), *positions], strict=True):
        record["center_x"], record["center_y"] = x, y
        record["base_SdssShape_xx"] = record["base_SdssShape_yy"] = SIGMA**2
        record["base_SdssShape_xy"] = 0.0
        record.setCoord(exposure.getWcs().pixelToSky(Point2D(x, y)))
    task = make_forced_task(reference)
    catalog = task.generateMeasCat(exposure, reference, exposure.getWcs())
    whole = make_footprint(32.0, 1370.0, 20)
    catalog[0].setFootprint(whole)
    for record, star in zip(list(catalog)[1:], stars, strict=True):
        light = MaskedImageF(BBOX)
        light.image.array[:, :] = star
        record.setFootprint(makeHeavyFootprint(whole, light))
    task.run(catalog, exposure, reference, exposure.getWcs())
    for number in (1, 2):
        for flux in ("Psf", "Gaussian"):
            assert catalog[number][f"base_{flux}Flux_instFlux"] == pytest.approx(FLUX * number, rel=2e-3)
        assert catalog[number]["parentObjectId"] == parent.getId()
    assert catalog[0]["deblend_nChild"] == 2
    assert catalog[0]["base_CircularApertureFlux_17_0_instFlux"] == pytest.approx(3 * FLUX, rel=5e-3)


def test_footprints_of_the_psf() -> None:
    exposure = make_exposure()
    reference = make_reference(exposure, 30.0, 1370.0)
    reference[0].setCoord(exposure.getWcs().pixelToSky(Point2D(42.0, 1380.0)))
    task = make_forced_task(reference)
    catalog = task.generateMeasCat(exposure, reference, exposure.getWcs())
    task.attachPsfShapeFootprints(catalog, exposure, scaling=4)
    footprint = catalog[0].getFootprint()
    assert footprint.getArea() == pytest.approx(math.pi * (4 * SIGMA) ** 2, rel=0.05)
    assert footprint.contains(Point2I(42, 1380))
    assert isinstance(footprint.getSpans(), SpanSet)
    exposure.setPsf(None)
    with pytest.raises(RuntimeError, match="without a PSF"):
        task.attachPsfShapeFootprints(catalog, exposure)
