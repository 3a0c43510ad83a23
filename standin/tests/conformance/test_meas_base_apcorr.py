# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

import numpy as np

import lsst.geom as geom
from lsst.afw.image import ApCorrMap
from lsst.afw.math import ChebyshevBoundedField
from lsst.afw.table import SourceCatalog, SourceTable
from lsst.meas.base import ApplyApCorrTask

BOX = geom.Box2I(geom.Point2I(0, 0), geom.Extent2I(100, 100))
PSF = "base_PsfFlux"


def make_schema(*names):
    schema = SourceTable.makeMinimalSchema()
    for axis in "xy":
        schema.addField(f"c_{axis}", type=np.float64, doc="position", units="pixel")
    schema.getAliasMap().set("slot_Centroid", "c")
    for name in names:
        schema.addField(f"{name}_instFlux", type=np.float64, doc="flux", units="count")
        schema.addField(f"{name}_instFluxErr", type=np.float64, doc="error", units="count")
        schema.addField(f"{name}_flag", type="Flag", doc="failure")
    return schema


def make_catalog(schema, *names):
    catalog = SourceCatalog(schema)
    for number in range(3):
        record = catalog.addNew()
        record["c_x"], record["c_y"] = 10.0 + 30.0 * number, 50.0
        for name in names:
            record[f"{name}_instFlux"], record[f"{name}_instFluxErr"] = 100.0, 4.0
    return catalog


def make_map(middle, slope, *suffixes):
    corrections = ApCorrMap()
    for suffix in suffixes:
        # Linear in x: middle - slope at the left edge, middle + slope at the right one.
        corrections.set(f"{PSF}_{suffix}", ChebyshevBoundedField(BOX, np.array([[middle, slope]])))
    return corrections


def test_fluxes_and_errors_are_multiplied():
    schema = make_schema(PSF, "other")
    task = ApplyApCorrTask(schema=schema)
    catalog = make_catalog(schema, PSF, "other")
    task.run(catalog, make_map(1.1, 0.05, "instFlux", "instFluxErr"))
    x = (np.array([10.0, 40.0, 70.0]) - 49.5) / 50.0
    wanted = 1.1 + 0.05 * x
    np.testing.assert_allclose(catalog[f"{PSF}_instFlux"], 100.0 * wanted, rtol=1e-3)
    np.testing.assert_allclose(catalog[f"{PSF}_instFluxErr"], 4.0 * wanted, rtol=1e-3)
    assert not np.any(catalog[f"{PSF}_flag_apCorr"]) and not np.any(catalog[f"{PSF}_flag"])
    np.testing.assert_array_equal(catalog["other_instFlux"], 100.0)
    assert "other_apCorr" not in schema


def test_a_correction_that_is_not_there_is_flagged():
    schema = make_schema(PSF)
    task = ApplyApCorrTask(schema=schema)
    catalog = make_catalog(schema, PSF)
    task.run(catalog, make_map(1.1, 0.0, "instFlux"))
    assert np.all(catalog[f"{PSF}_flag_apCorr"])
    np.testing.assert_array_equal(catalog[f"{PSF}_instFlux"], 100.0)


def test_a_correction_below_0_is_not_applied():
    schema = make_schema(PSF)
    task = ApplyApCorrTask(schema=schema)
    catalog = make_catalog(schema, PSF)
    task.run(catalog, make_map(-1.0, 0.0, "instFlux", "instFluxErr"))
    assert np.all(catalog[f"{PSF}_flag_apCorr"]) and np.all(catalog[f"{PSF}_flag"])
    np.testing.assert_array_equal(catalog[f"{PSF}_instFlux"], 100.0)


def test_a_flux_can_get_the_correction_of_another():
    schema = make_schema(PSF, "other")
    config = ApplyApCorrTask.ConfigClass()
    config.proxies = {"other": PSF}
    config.doFlagApCorrFailures = False
    task = ApplyApCorrTask(schema=schema, config=config)
    catalog = make_catalog(schema, PSF, "other")
    task.run(catalog, make_map(1.2, 0.0, "instFlux", "instFluxErr"))
    np.testing.assert_allclose(catalog["other_instFlux"], 120.0)
