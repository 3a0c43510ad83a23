# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The images that went into a coadd, in memory and in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lsst.afw.table as afwTable
import lsst.geom as geom
import lsst.pex.exceptions as pexExceptions
from lsst.afw.detection import Footprint, GaussianPsf
from lsst.afw.geom import SkyWcs, SpanSet, makeCdMatrix, makeSkyWcs
from lsst.afw.geom.polygon import Polygon
from lsst.afw.image import CoaddInputs, ExposureF, PhotoCalib
from lsst.meas.base import SingleFrameMeasurementTask

BOX = geom.Box2I(geom.Point2I(10, 20), geom.Extent2I(30, 40))


def make_wcs(x: float) -> SkyWcs:
    center = geom.SpherePoint(150.0, 2.0, geom.degrees)
    return makeSkyWcs(geom.Point2D(x, 40.0), center, makeCdMatrix(0.2 * geom.arcseconds))


def make_inputs() -> CoaddInputs:
    schema = afwTable.ExposureTable.makeMinimalSchema()
    schema.addField("weight", type=np.float64, doc="weight")
    inputs = CoaddInputs(afwTable.ExposureTable.makeMinimalSchema(), schema)
    for number in (1, 2):
        record = inputs.ccds.addNew()
        record.setId(number)
        record["weight"] = 0.5 * number
        record.setBBox(BOX)
        record.setWcs(make_wcs(25.0 + 20.0 * number))
        record.setPsf(GaussianPsf(5, 5, 1.0 + number))
        record.setPhotoCalib(PhotoCalib(3.0 * number))
    inputs.ccds[1].setValidPolygon(Polygon(geom.Box2D(geom.Point2D(10, 20), geom.Point2D(20, 59))))
    return inputs


def check(inputs: CoaddInputs) -> None:
    assert len(inputs.visits) == 0
    first, second = inputs.ccds
    assert (first.getId(), second.getId()) == (1, 2)
    assert second["weight"] == 1.0
    assert first.getBBox() == BOX
    assert second.getPsf().getSigma() == 3.0
    assert first.getPhotoCalib().getCalibrationMean() == 3.0
    assert first.getValidPolygon() is None
    assert first.getVisitInfo() is None
    # Pixel (25, 40) of the first is (45, 40) of the second, beyond its box.
    place = first.getWcs().pixelToSky(geom.Point2D(25.0, 40.0))
    assert first.contains(place)
    assert not second.contains(place)
    assert [record.getId() for record in inputs.ccds.subsetContaining(place)] == [1]
    # Pixel (5 + 20, 40) of a grid whose origin is that of the second.
    point, wcs = geom.Point2D(25.0, 40.0), second.getWcs()
    assert [record.getId() for record in inputs.ccds.subsetContaining(point, wcs)] == [2]
    assert [record.getId() for record in inputs.ccds.subsetContaining(point, wcs, True)] == []


def test_coadd_inputs(tmp_path: Path) -> None:
    inputs = make_inputs()
    check(inputs)
    exposure = ExposureF(BOX, make_wcs(25.0))
    exposure.getInfo().setCoaddInputs(inputs)
    exposure.writeFits(str(tmp_path / "coadd.fits"))
    back = ExposureF(str(tmp_path / "coadd.fits")).getInfo().getCoaddInputs()
    check(back)
    assert back.ccds.schema == inputs.ccds.schema


def test_records_of_images() -> None:
    ccds = make_inputs().ccds
    copy = ccds.copy(deep=True)
    copy[0].setPsf(None)
    assert ccds[0].getPsf() is not None
    assert copy[1].getWcs() is not None
    assert ccds.find(2)["weight"] == 1.0
    with pytest.raises(pexExceptions.LogicError, match="does not have a Wcs"):
        ccds.addNew().contains(geom.SpherePoint(0.0, 0.0, geom.degrees))
    with pytest.raises(pexExceptions.InvalidParameterError, match="makeMinimalSchema"):
        afwTable.ExposureTable.make(afwTable.Schema())


def test_inputs_and_variance_are_measured() -> None:
    """Positions on one image, on two, and on none; the median of the variance around a source."""
    config = SingleFrameMeasurementTask.ConfigClass()
    config.plugins.names = ["base_PeakCentroid", "base_SdssShape", "base_InputCount", "base_Variance"]
    config.slots.centroid, config.slots.shape = "base_PeakCentroid", "base_SdssShape"
    for slot in ("psfShape", "apFlux", "modelFlux", "psfFlux", "gaussianFlux", "calibFlux"):
        setattr(config.slots, slot, None)
    config.doReplaceWithNoise = False
    schema = afwTable.SourceTable.makeMinimalSchema()
    task = SingleFrameMeasurementTask(schema, config=config)
    exposure = ExposureF(BOX, make_wcs(45.0))
    exposure.getInfo().setCoaddInputs(make_inputs())
    y, x = np.indices(exposure.image.array.shape)
    exposure.image.array[:] = 100.0 * np.exp(-0.5 * ((x - 9) ** 2 + (y - 12) ** 2) / 2.0**2)
    exposure.variance.array[:] = 4.0
    exposure.variance.array[12, 9] = 400.0
    catalog = afwTable.SourceCatalog(schema)
    record = catalog.addNew()
    footprint = Footprint(SpanSet.fromShape(4, offset=(19, 32)))
    footprint.addPeak(19.0, 32.0, 100.0)
    record.setFootprint(footprint)
    task.run(catalog, exposure)
    # It is at x = 39 of the second image, the last column of it.
    assert (record["base_InputCount_value"], record["base_InputCount_flag"]) == (2, False)
    assert (record["base_Variance_value"], record["base_Variance_flag"]) == (4.0, False)
    exposure.getInfo().setCoaddInputs(None)
    task.run(catalog, exposure)
    assert record["base_InputCount_flag_noInputs"] and record["base_InputCount_flag"]
