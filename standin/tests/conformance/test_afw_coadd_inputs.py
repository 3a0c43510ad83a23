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
from lsst.afw.detection import GaussianPsf
from lsst.afw.geom import SkyWcs, makeCdMatrix, makeSkyWcs
from lsst.afw.geom.polygon import Polygon
from lsst.afw.image import CoaddInputs, ExposureF, PhotoCalib

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
