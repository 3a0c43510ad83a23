# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Schemas, catalogues and their files answer as the package expects.

The expected answers are those of the real library: files that it wrote, with
a list of what they hold, and a transcript of calls.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import astropy.table
import numpy as np
import pytest
from astropy.io import fits

import lsst.afw.detection as afwDetection
import lsst.afw.fits
import lsst.afw.geom as afwGeom
import lsst.afw.table as afwTable
import lsst.daf.base
import lsst.geom
import lsst.pex.exceptions as pexExceptions


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> dict[str, Any]:
    with open(shared_data / "afw" / "golden.json") as stream:
        return json.load(stream)["catalog"]


@pytest.fixture
def golden_path(shared_data: Path) -> str:
    return str(shared_data / "afw" / "catalog.fits")


def plain(value: Any) -> Any:
    """Return a field's value as JSON would hold it."""
    if isinstance(value, lsst.geom.Angle):
        return value.asRadians()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value


def make_schema() -> afwTable.Schema:
    """Return a schema with a field of every type."""
    schema = afwTable.SourceTable.makeMinimalSchema()
    schema.addField("a_flag", type="Flag", doc="a flag")
    schema.addField("b_flag", type="Flag", doc="another flag")
    schema.addField("an_angle", type="Angle", doc="an angle")
    schema.addField("a_float", type=np.float32, doc="a float", units="count")
    schema.addField("a_double", type=float, doc="a double", units="nJy")
    schema.addField("an_int", type=np.int32, doc="an int", units="pixel")
    schema.addField("a_long", type="L", doc="a long")
    schema.addField("a_ushort", type=np.uint16, doc="a ushort")
    schema.addField("a_byte", type="B", doc="a byte")
    schema.addField("a_string", type=str, size=16, doc="a string")
    schema.addField("a_text", type="String", size=0, doc="a string of any length")
    schema.addField("some_floats", type="ArrayF", size=3, doc="three floats")
    schema.addField("some_doubles", type="ArrayD", size=2, doc="two doubles")
    schema.addField("some_ints", type="ArrayI", size=0, doc="any number of ints")
    schema.addField("some_ushorts", type="ArrayU", size=2, doc="two ushorts")
    schema.addField("some_bytes", type="ArrayB", size=4, doc="four bytes")
    afwTable.Point2DKey.addFields(schema, "centroid", "where it is", "pixel")
    afwTable.CovarianceMatrix2fKey.addFields(schema, "centroid", ["x", "y"], "pixel")
    schema.addField("centroid_flag", type="Flag", doc="no centroid")
    schema.addField("flux_instFlux", type=np.float64, doc="flux", units="count")
    schema.addField("flux_instFluxErr", type=np.float64, doc="flux error", units="count")
    schema.getAliasMap().set("slot_Centroid", "centroid")
    schema.getAliasMap().set("slot_PsfFlux", "flux")
    schema.getAliasMap().set("other", "a_double")
    return schema


def make_catalog(n: int = 5, footprints: bool = False) -> afwTable.SourceCatalog:
    """Return a catalogue with something else in every record."""
    catalog = afwTable.SourceCatalog(make_schema())
    catalog.reserve(n)
    for i in range(n):
        record = catalog.addNew()
        record.setId(100 + i)
        record.setCoord(lsst.geom.SpherePoint((10 + i) * lsst.geom.degrees, -i * lsst.geom.degrees))
        record.setParent(100 if i % 2 else 0)
        record["a_flag"] = i % 2 == 0
        record["b_flag"] = i % 3 == 0
        record["an_angle"] = (0.5 + i) * lsst.geom.degrees
        record["a_float"] = 0.5 * i
        record["a_double"] = 1e10 + i / 3
        record["an_int"] = -i
        record["a_long"] = 10**12 + i
        record["a_ushort"] = 60000 + i
        record["a_byte"] = 200 + i
        record["a_string"] = f"src{i}"
        record["a_text"] = "v" * i
        record["some_floats"] = np.array([i, i + 0.5, i + 0.25], dtype=np.float32)
        record["some_doubles"] = np.array([2.0 * i, -i])
        record["some_ints"] = np.arange(i, dtype=np.int32)
        record["some_ushorts"] = np.array([65535, i], dtype=np.uint16)
        record["some_bytes"] = np.array([255, i, 0, 1], dtype=np.uint8)
        record["centroid_x"] = 110.25 + 8 * i
        record["centroid_y"] = 210.75 + 5 * i
        record["centroid_xErr"] = 0.1 * (i + 1)
        record["centroid_yErr"] = 0.2 * (i + 1)
        record["centroid_x_y_Cov"] = 0.001 * (i + 1)
        record["centroid_flag"] = i == 3
        record["flux_instFlux"] = 100.0 * (i + 1)
        record["flux_instFluxErr"] = 2.5 * (i + 1)
        if footprints:
            spans = afwGeom.SpanSet.fromShape(2 + i, offset=(100 + 10 * i, 200 - i))
            footprint = afwDetection.Footprint(spans)
            footprint.addPeak(100 + 10 * i, 200 - i, 50.0 - i)
            record.setFootprint(footprint)
    return catalog


def assert_same_values(a: Any, b: Any) -> None:
    """Compare all fields of two records, NaN with NaN."""
    for name in a.schema.getOrderedNames():
        np.testing.assert_equal(plain(a[name]), plain(b[name]), err_msg=name)


# ---- Schema -------------------------------------------------------------


def test_schema_names_and_counts() -> None:
    schema = make_schema()
    with pytest.raises(TypeError):
        len(schema)
    assert schema.getFieldCount() == len(schema.getOrderedNames()) == len(schema.getNames())
    assert isinstance(schema.getNames(), set)
    assert schema.getOrderedNames()[:4] == ["id", "coord_ra", "coord_dec", "parent"]
    assert schema.getFlagFieldCount() == 3
    assert "some" in schema.getNames(topOnly=True)
    assert "id" in schema and "other" in schema and "slot_Centroid_x" in schema
    assert "nope" not in schema
    assert schema.join("a", "b", "c") == "a_b_c"


def test_schema_offsets_are_those_of_the_records() -> None:
    schema = make_schema()
    offsets = {item.field.getName(): item.key.getOffset() for item in schema}
    assert offsets["a_flag"] == offsets["b_flag"] == offsets["centroid_flag"] == 32
    assert repr(schema["b_flag"].asKey()) == "Key['Flag'](offset=32, bit=1)"
    assert repr(schema["an_int"].asKey()) == "Key<I>(offset=64, nElements=1)"
    assert repr(schema["a_string"].asKey()) == "Key<String>(offset=83, nElements=16)"
    assert repr(schema["a_text"].asKey()) == "Key<String>(offset=128, nElements=0)"


def test_schema_missing_fields_raise_what_upstream_raises() -> None:
    schema = make_schema()
    with pytest.raises(KeyError):
        schema.find("nope")
    with pytest.raises(pexExceptions.NotFoundError):
        schema["nope"].asKey()
    assert not issubclass(pexExceptions.NotFoundError, KeyError)
    with pytest.raises(pexExceptions.NotFoundError):
        schema["slot_Centroid"].asKey()
    assert schema["slot_Centroid"]["x"].asKey() == schema["centroid_x"].asKey()
    assert schema["centroid"].find("x").key == schema.find("centroid_x").key
    assert {"x", "y", "xErr", "yErr", "x_y_Cov", "flag"} <= schema["centroid"].getNames()


def test_add_field_forms_and_refusals() -> None:
    schema = afwTable.Schema()
    assert isinstance(schema.addField("a", type=np.float32, doc="d"), afwTable.Key["F"])
    assert isinstance(schema.addField("b", float, "a double", "nJy"), afwTable.Key["D"])
    field = afwTable.Field["I"]("c", "an int", "pixel")
    assert isinstance(schema.addField(field), afwTable.Key["I"])
    found = schema.find("c").field
    assert (found.getName(), found.getDoc(), found.getUnits()) == ("c", "an int", "pixel")
    assert repr(found) == 'Field[\'I\'](name="c", doc="an int", units="pixel")'
    for wrong in (int, bool, "nonsense"):
        with pytest.raises(KeyError):
            schema.addField("d", type=wrong)
    with pytest.raises(ValueError, match="bogus"):
        schema.addField("d", type=float, units="bogus")
    schema.addField("d", type=float, units="bogus", parse_strict="silent")
    with pytest.raises(pexExceptions.InvalidParameterError):
        schema.addField("a", type=np.float32)
    key = schema.addField("a", type=np.float32, doc="new", doReplace=True)
    assert key == schema.find("a").key and schema.find("a").field.getDoc() == "new"
    assert afwTable.Field["String"]("s", size=7).getSize() == 7


def test_schema_extract_and_iteration() -> None:
    schema = make_schema()
    assert list(schema.extract("centroid_*Err")) == ["centroid_xErr", "centroid_yErr"]
    assert set(schema.extract("slot_PsfFlux*")) == {"slot_PsfFlux_instFlux", "slot_PsfFlux_instFluxErr"}
    assert set(schema.extract(regex=r"some_(\w+)", sub=r"\1")) == {
        "floats",
        "doubles",
        "ints",
        "ushorts",
        "bytes",
    }
    with pytest.raises(ValueError, match="sub"):
        schema.extract("*", sub="x")
    key, field = next(iter(schema))
    assert field.getName() == "id" and key == schema.find("id").key
    assert schema.find(key).field.getName() == "id"


def test_schema_copies_and_comparison() -> None:
    schema = make_schema()
    longer = afwTable.Schema(schema)
    assert longer == schema
    longer.addField("more", type=np.int32)
    assert longer != schema and "more" not in schema
    assert longer.contains(schema) and not schema.contains(longer)
    other = afwTable.Schema()
    other.addField("x", type=np.int64, doc="unlike")
    same = afwTable.Schema()
    same.addField("y", type=np.int64, doc="like")
    assert other == same, "schemas are equal when keys are"
    assert not other.compare(same, afwTable.Schema.EQUAL_NAMES)
    again = copy.deepcopy(schema)
    assert again == schema and again.getOrderedNames() == schema.getOrderedNames()


def test_aliases() -> None:
    aliases = make_schema().getAliasMap()
    assert aliases.apply("slot_Centroid_x") == "centroid_x"
    assert aliases.get("other") == "a_double"
    assert list(aliases.keys()) == ["other", "slot_Centroid", "slot_PsfFlux"]
    assert aliases.erase("other") and len(aliases) == 2
    with pytest.raises(pexExceptions.NotFoundError):
        aliases.get("other")
    aliases.set("p", "q")
    aliases.set("q", "p")
    with pytest.raises(pexExceptions.RuntimeError):
        aliases.apply("p")


# ---- Records ------------------------------------------------------------


def test_defaults_of_a_new_record() -> None:
    catalog = afwTable.SourceCatalog(make_schema())
    record = catalog.addNew()
    assert [record.getId(), catalog.addNew().getId()] == [1, 2]
    assert afwTable.SourceCatalog(afwTable.SourceTable.make(make_schema(), None)).addNew().getId() == 0
    assert math.isnan(record["a_float"]) and math.isnan(record["a_double"])
    assert np.isnan(record["some_floats"]).all() and np.isnan(record["an_angle"].asRadians())
    assert record["an_int"] == record["a_ushort"] == record["a_byte"] == 0
    assert record["a_flag"] is False and record["a_string"] == record["a_text"] == ""
    assert record["some_ints"].shape == (0,) and record.getFootprint() is None
    assert record["some_bytes"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("coord_ra", 1.0, TypeError),
        ("an_int", 1.5, TypeError),
        ("a_string", "x" * 17, pexExceptions.LengthError),
        ("some_floats", [1.0, 2.0, 3.0], RuntimeError),
        ("some_floats", np.zeros(3), RuntimeError),
        ("some_floats", np.zeros(4, dtype=np.float32), pexExceptions.LengthError),
        ("nope", 1, KeyError),
    ],
)
def test_values_that_do_not_fit_are_refused(name: str, value: Any, error: type[Exception]) -> None:
    record = make_catalog(1)[0]
    with pytest.raises(error):
        record[name] = value


def test_values_that_are_converted() -> None:
    record = make_catalog(1)[0]
    record["a_float"] = 3
    record["a_flag"] = np.True_
    record["a_double"] = np.float32(1.5)
    record["an_int"] = np.int64(7)
    assert (record["a_float"], record["a_flag"], record["a_double"], record["an_int"]) == (3.0, True, 1.5, 7)
    record["b_flag"] = 1
    assert record["b_flag"] is True


def test_record_access_by_key_and_alias() -> None:
    catalog = make_catalog()
    key = catalog.schema.find("a_double").key
    record = catalog[2]
    assert record[key] == record["a_double"] == record["other"] == record.get("other")
    record.set(key, 4.0)
    assert catalog["a_double"][2] == 4.0
    assert set(record.extract("centroid_?")) == {"centroid_x", "centroid_y"}
    view = record["some_floats"]
    view[0] = -1.0
    assert catalog["some_floats"][2, 0] == -1.0
    assert catalog[2] == record and catalog[1] != record


def test_slots() -> None:
    catalog = make_catalog()
    record = catalog[1]
    assert record.getCentroid() == lsst.geom.Point2D(118.25, 215.75)
    assert record.getX() == 118.25 and record.getPsfInstFlux() == 200.0
    assert record.getCentroidFlag() is False
    expected = np.array([[0.04, 0.002], [0.002, 0.16]])
    np.testing.assert_allclose(record.getCentroidErr(), expected, rtol=1e-6)
    assert record.getCentroidErr().dtype == np.float32
    np.testing.assert_array_equal(catalog.getX(), catalog["centroid_x"])
    np.testing.assert_array_equal(catalog.getPsfInstFlux(), catalog["slot_PsfFlux_instFlux"])
    with pytest.raises(pexExceptions.LogicError):
        record.getApInstFlux()
    catalog.table.defineApFlux("flux")
    assert record.getApInstFlux() == 200.0 and catalog.schema.getAliasMap().get("slot_ApFlux") == "flux"


def test_functor_keys() -> None:
    schema = make_schema()
    box = afwTable.Box2IKey.addFields(schema, "bbox", "bounding box", "pixel")
    shape = afwTable.QuadrupoleKey.addFields(schema, "shape", "moments")
    errors = afwTable.CoordKey.addErrorFields(schema)
    assert schema.find("bbox_min_x").field.getDoc() == "bounding box (minimum)"
    assert schema.find("coord_ra_dec_Cov").field.getUnits() == "rad rad"
    record = afwTable.SourceCatalog(schema).addNew()
    value = lsst.geom.Box2I(lsst.geom.Point2I(-3, 4), lsst.geom.Extent2I(5, 6))
    record.set(box, value)
    assert record.get(box) == value and record["bbox_max_x"] == 1
    point = afwTable.Point2DKey(schema["centroid"])
    record.set(point, lsst.geom.Point2D(1.5, -2.5))
    assert record.get(point) == lsst.geom.Point2D(1.5, -2.5)
    moments = afwGeom.ellipses.Quadrupole(4.0, 3.0, 0.5)
    record.set(shape, moments)
    assert record.get(shape).getIxy() == 0.5
    matrix = np.array([[4.0, 0.5], [0.5, 9.0]], dtype=np.float32)
    record.set(errors, matrix)
    np.testing.assert_allclose(record.get(errors), matrix, rtol=1e-6)
    assert record["coord_raErr"] == 2.0
    assert afwTable.CoordKey(schema["coord"]).isValid() and not afwTable.Point2DKey().isValid()


def test_update_coord_follows_the_wcs() -> None:
    schema = make_schema()
    afwTable.CoordKey.addErrorFields(schema)
    catalog = afwTable.SourceCatalog(schema)
    record = catalog.addNew()
    wcs = afwGeom.makeSkyWcs(
        crpix=lsst.geom.Point2D(100, 200),
        crval=lsst.geom.SpherePoint(150 * lsst.geom.degrees, 2 * lsst.geom.degrees),
        cdMatrix=afwGeom.makeCdMatrix(scale=0.2 * lsst.geom.arcseconds),
    )
    record["centroid_x"], record["centroid_y"] = 110.0, 190.0
    record["centroid_xErr"] = record["centroid_yErr"] = 0.5
    record["centroid_x_y_Cov"] = 0.0
    record.updateCoord(wcs)
    assert record.getCoord() == wcs.pixelToSky(lsst.geom.Point2D(110, 190))
    expected = (0.1 * lsst.geom.arcseconds).asRadians()
    assert record["coord_decErr"] == pytest.approx(expected, rel=1e-4)


# ---- Catalogues ---------------------------------------------------------


def test_columns_are_views() -> None:
    catalog = make_catalog()
    for name, dtype in (
        ("id", np.int64),
        ("coord_ra", np.float64),
        ("a_float", np.float32),
        ("an_int", np.int32),
        ("some_floats", np.float32),
    ):
        column = catalog[name]
        assert column.dtype == dtype and column.flags.writeable and len(column) == 5, name
    assert catalog["some_floats"].shape == (5, 3)
    catalog["a_float"][3] = -7.0
    assert catalog[3]["a_float"] == -7.0
    catalog["other"] = np.arange(5.0)
    assert catalog[4]["a_double"] == 4.0
    catalog["an_int"] = 3
    assert (catalog["an_int"] == 3).all()


def test_flag_columns_are_read_only_copies() -> None:
    catalog = make_catalog()
    column = catalog["a_flag"]
    assert column.dtype == bool and not column.flags.writeable
    assert column.tolist() == [True, False, True, False, True]
    with pytest.raises(ValueError, match="read-only"):
        column[:] = True
    catalog["a_flag"] = np.array([False, True, True, False, False])
    assert [record["a_flag"] for record in catalog] == [False, True, True, False, False]
    assert catalog["b_flag"].tolist() == [True, False, False, True, False], "neighbouring bits stay"
    catalog["a_flag"] = True
    assert catalog["a_flag"].all()
    with pytest.raises(pexExceptions.LengthError):
        catalog["a_flag"] = np.zeros(3, dtype=bool)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("a_string", TypeError),
        ("a_text", TypeError),
        ("a_ushort", TypeError),
        ("some_ints", pexExceptions.LogicError),
        ("nope", KeyError),
        (9, IndexError),
        ([0, 2], TypeError),
        (np.array([0, 2]), RuntimeError),
    ],
)
def test_what_a_catalog_does_not_index(key: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make_catalog()[key]


def test_slices_and_masks_share_records() -> None:
    catalog = make_catalog(footprints=True)
    part = catalog[1:3]
    assert part.isContiguous() and len(part) == 2 and part[0] == catalog[1]
    part["a_double"][0] = -1.0
    assert catalog[1]["a_double"] == -1.0
    assert not catalog[::2].isContiguous() and catalog[::2]["id"].tolist() == [100, 102, 104]
    assert catalog[-1].getId() == 104 and catalog[np.int64(1)].getId() == 101
    subset = catalog[catalog["a_flag"]]
    assert not subset.isContiguous() and subset["id"].tolist() == [100, 102, 104]
    assert not subset["id"].flags.writeable
    assert subset[1].getFootprint() is catalog[2].getFootprint()
    with pytest.raises(pexExceptions.Exception):
        _ = subset.columns
    deep = subset.copy(deep=True)
    assert deep.isContiguous() and deep["id"].tolist() == [100, 102, 104]
    assert deep[1].getFootprint() is catalog[2].getFootprint()
    deep["id"][0] = 1
    assert catalog[0].getId() == 100
    assert len(catalog.subset(np.zeros(5, dtype=bool))) == 0
    with pytest.raises(pexExceptions.LengthError):
        catalog.subset(np.zeros(4, dtype=bool))


def test_growing_beyond_a_block_and_preallocating() -> None:
    schema = afwTable.Schema()
    key = schema.addField("n", type=np.int32)
    grown = afwTable.BaseCatalog(schema)
    reserved = afwTable.BaseCatalog(schema)
    reserved.reserve(1000)
    for i in range(1000):
        grown.addNew().set(key, i)
        reserved.addNew().set(key, i)
    assert not grown.isContiguous() and reserved.isContiguous()
    np.testing.assert_array_equal(grown["n"], np.arange(1000))
    np.testing.assert_array_equal(reserved["n"], np.arange(1000))
    assert [record.get(key) for record in grown] == list(range(1000))
    resized = afwTable.BaseCatalog(schema)
    resized.resize(300)
    assert len(resized) == 300 and resized.isContiguous() and (resized["n"] == 0).all()


def test_sort_find_and_children() -> None:
    catalog = make_catalog()
    assert catalog.isSorted() and catalog.find(102).getId() == 102 and catalog.find(99) is None
    with pytest.raises(AssertionError):
        catalog.getChildren(100)
    catalog.sort(afwTable.SourceTable.getParentKey())
    assert catalog["id"].tolist() == [100, 102, 104, 101, 103], "the sort is stable"
    assert catalog.getChildren(100)["id"].tolist() == [101, 103]
    assert [len(part) for part in catalog.getChildren([0, 100, 7])] == [3, 2, 0]
    children, numbers = catalog.getChildren(100, [1, 2, 3, 4, 5])
    assert len(children) == 2 and numbers == [4, 5]
    key = catalog.schema.find("a_float").key
    catalog.sort(key)
    assert catalog.isSorted(key) and catalog.find(1.5, key).getId() == 103
    assert catalog.lower_bound(0.9, key) == 2 and catalog.upper_bound(1.0, key) == 3
    assert catalog.between(0.5, 1.5, key) == slice(1, 4, 1)


def test_append_delete_and_extend() -> None:
    catalog = make_catalog()
    other = make_catalog()
    catalog.append(other[0])
    assert len(catalog) == 6 and catalog[5] == other[0]
    del catalog[0]
    assert catalog["id"].tolist() == [101, 102, 103, 104, 100]
    del catalog[1:3]
    assert catalog["id"].tolist() == [101, 104, 100]
    catalog.extend(other[1:2], deep=True)
    assert catalog[3] != other[1] and catalog[3].getId() == 101
    catalog.extend([other[4]])
    assert catalog[4] == other[4]
    assert [record.getId() for record in catalog] == [101, 104, 100, 101, 104]
    catalog.clear()
    assert len(catalog) == 0 and catalog.isContiguous() and len(catalog["id"]) == 0
    with pytest.raises(pexExceptions.LogicError):
        afwTable.SourceCatalog(afwTable.SourceTable.makeMinimalSchema()).extend(other, deep=True)


def test_mapper() -> None:
    catalog = make_catalog(footprints=True)
    mapper = afwTable.SchemaMapper(catalog.schema)
    mapper.addMinimalSchema(afwTable.SourceTable.makeMinimalSchema())
    for name in ("a_flag", "some_ints", "a_string", "some_floats"):
        mapper.addMapping(catalog.schema.find(name).key)
    renamed = mapper.addMapping(catalog.schema.find("a_double").key, "renamed")
    extra = mapper.editOutputSchema().addField("extra", type=np.float32, doc="new")
    assert mapper.isMapped(catalog.schema.find("a_double").key)
    assert mapper.getMapping(catalog.schema.find("a_double").key) == renamed
    with pytest.raises(pexExceptions.NotFoundError):
        mapper.getMapping(catalog.schema.find("an_int").key)
    output = afwTable.SourceCatalog(mapper.getOutputSchema())
    output.extend(catalog[1:], mapper=mapper)
    assert output.isContiguous() and output["id"].tolist() == [101, 102, 103, 104]
    assert output["renamed"].tolist() == catalog["a_double"][1:].tolist()
    assert output["a_flag"].tolist() == [False, True, False, True]
    assert output[3]["some_ints"].tolist() == [0, 1, 2, 3] and output[3]["a_string"] == "src4"
    assert math.isnan(output[0].get(extra))
    assert output[0].getFootprint() is catalog[1].getFootprint()
    record = output.addNew()
    record.assign(catalog[0], mapper)
    assert record.getId() == 100
    with pytest.raises(pexExceptions.InvalidParameterError):
        make_catalog().extend(catalog, mapper=mapper)


def test_mapper_joins_compares_and_renames() -> None:
    schema = afwTable.Schema()
    x = schema.addField("x", type=np.int32, doc="an int")
    y = schema.addField("y", type=np.float64, doc="a double", units="nJy")
    first, second = afwTable.SchemaMapper.join([schema, schema], ["a_", "b_"])
    assert first.getOutputSchema().getOrderedNames() == ["a_x", "a_y", "b_x", "b_y"]
    assert first.getMapping(x) == first.getOutputSchema().find("a_x").key
    assert second.getMapping(x) == second.getOutputSchema().find("b_x").key
    with pytest.raises(pexExceptions.LengthError):
        afwTable.SchemaMapper.join([schema, schema], ["a_"])
    mapper, same = afwTable.SchemaMapper(schema), afwTable.SchemaMapper(schema)
    for each in (mapper, same):
        each.addMapping(y, "renamed")
    assert mapper == same
    key = mapper.addMapping(y, "again")
    assert mapper.getOutputSchema().getOrderedNames() == ["again"] and mapper.getMapping(y) == key
    assert mapper != same
    assert mapper.getOutputSchema().find("again").field.getUnits() == "nJy"
    mapper.addOutputField("more", type="Flag", doc="a flag")
    with pytest.raises(pexExceptions.LogicError):
        mapper.addMinimalSchema(schema)
    minimal = afwTable.SourceTable.makeMinimalSchema()
    rest = afwTable.SchemaMapper.removeMinimalSchema(make_schema(), minimal)
    assert rest.getOutputSchema().getOrderedNames()[0] == "a_flag"


def test_covariance_and_array_keys() -> None:
    schema = afwTable.Schema()
    covariance = afwTable.CovarianceMatrix3fKey.addFields(schema, "m", ["xx", "yy", "xy"], "pixel^2")
    diagonal = afwTable.CovarianceMatrix2dKey.addFields(schema, "d", ["x", "y"], "pixel", diagonalOnly=True)
    array = afwTable.ArrayDKey.addFields(schema, "flux", "flux in aperture %d", "nJy", [3.0, 6.0, 9.0])
    record = afwTable.BaseCatalog(schema).addNew()
    matrix = np.array([[4.0, 1.0, 2.0], [1.0, 9.0, 3.0], [2.0, 3.0, 16.0]], dtype=np.float32)
    record.set(covariance, matrix)
    np.testing.assert_allclose(record.get(covariance), matrix)
    assert record["m_xx_xy_Cov"] == 2.0 and record["m_yy_xy_Cov"] == 3.0
    assert covariance.getElement(record, 2, 0) == covariance.getElement(record, 0, 2) == 2.0
    covariance.setElement(record, 0, 1, 7.0)
    assert record["m_xx_yy_Cov"] == 7.0
    assert afwTable.CovarianceMatrix3fKey(schema["m"], ["xx", "yy", "xy"]) == covariance
    with pytest.raises(pexExceptions.LogicError):
        diagonal.setElement(record, 0, 1, 1.0)
    with pytest.raises(pexExceptions.LengthError):
        afwTable.CovarianceMatrix3fKey.addFields(schema, "n", ["x", "y"], "pixel")
    record.set(array, np.array([1.0, 2.0, 3.0]))
    assert record["flux_1"] == 2.0 and record.get(array[1:]).tolist() == [2.0, 3.0]
    assert array.getSize() == 3 and array[2] == schema.find("flux_2").key
    assert afwTable.ArrayDKey(schema["flux"]) == array


def test_shape_slots() -> None:
    schema = afwTable.SourceTable.makeMinimalSchema()
    for name in ("shape", "psf"):
        afwTable.QuadrupoleKey.addFields(schema, name, "moments")
    catalog = afwTable.SourceCatalog(schema)
    record = catalog.addNew()
    with pytest.raises(pexExceptions.LogicError):
        record.getShape()
    catalog.table.defineShape("shape")
    catalog.table.definePsfShape("psf")
    record["shape_xx"], record["shape_yy"], record["shape_xy"] = 4.0, 3.0, 0.5
    record["psf_xx"] = 1.5
    assert record.getShape().getIyy() == 3.0 and record.getIxy() == 0.5 and record.getPsfIxx() == 1.5
    assert catalog.getIxx().tolist() == [4.0]
    slot = catalog.table.getShapeSlot()
    assert slot.isValid() and not catalog.table.getCentroidSlot().isValid()
    assert record.get(slot.getMeasKey()).getIxx() == 4.0


def test_id_factories() -> None:
    table = afwTable.SourceTable.make(make_schema(), afwTable.IdFactory.makeSimple())
    catalog = afwTable.SourceCatalog(table)
    assert [catalog.addNew().getId() for _ in range(3)] == [1, 2, 3]
    factory = afwTable.IdFactory.makeSource(5, 20)
    assert [factory(), factory()] == [(5 << 20) + 1, (5 << 20) + 2]
    factory.notify((5 << 20) + 10)
    assert factory() == (5 << 20) + 11 and factory.clone()() == (5 << 20) + 12
    with pytest.raises(pexExceptions.InvalidParameterError):
        afwTable.IdFactory.makeSource(2**50, 20)
    small = afwTable.IdFactory.makeSource(1, 1)
    small()
    with pytest.raises(pexExceptions.LengthError):
        small()


def test_minimal_schema_is_wanted() -> None:
    schema = afwTable.Schema()
    schema.addField("x", type=np.int32)
    with pytest.raises(pexExceptions.InvalidParameterError):
        afwTable.SourceTable.make(schema)


def test_as_astropy() -> None:
    catalog = make_catalog()
    table = catalog.asAstropy()
    assert isinstance(table, astropy.table.Table) and len(table) == 5
    assert str(table["coord_ra"].unit) == "rad" and str(table["a_float"].unit) == "ct"
    assert table["a_float"].description == "a float"
    assert table["a_string"].tolist() == [f"src{i}" for i in range(5)]
    assert table["a_flag"].dtype == bool and "some_ints" not in table.colnames
    assert "a_string" not in catalog.asAstropy(unviewable="skip").colnames
    with pytest.raises(ValueError):
        catalog.asAstropy(unviewable="raise")
    table["a_double"][0] = -5.0
    assert catalog[0]["a_double"] == -5.0
    quantities = catalog.asAstropy(cls=astropy.table.QTable)
    assert quantities["a_double"].unit.to_string() == "nJy"
    # Upstream cannot print a record with a byte above 127.
    assert "a_float" in repr(catalog[::2])


def test_extract_columns() -> None:
    catalog = make_catalog()
    columns = catalog.extract("centroid_?", "a_f*", "a_s*", where=catalog["a_flag"], copy=True)
    assert set(columns) >= {"centroid_x", "a_flag", "a_float"} and "a_string" not in columns
    assert columns["centroid_x"].tolist() == [110.25, 126.25, 142.25]


# ---- Files --------------------------------------------------------------


def test_golden_values(golden: dict[str, Any], golden_path: str) -> None:
    catalog = afwTable.SourceCatalog.readFits(golden_path)
    assert len(catalog) == golden["n"]
    items = list(catalog.schema)
    assert [item.field.getName() for item in items] == [field["name"] for field in golden["fields"]]
    for item, field in zip(items, golden["fields"], strict=True):
        assert repr(item.field) == field["repr"]
        assert item.key.getTypeString() == field["type"]
        assert item.field.getUnits() == field["units"]
        assert item.field.getDoc() == field["doc"]
    assert dict(catalog.schema.getAliasMap().items()) == golden["aliases"]
    metadata = catalog.getMetadata()
    assert {name: list(metadata.getArray(name)) for name in metadata.names()} == golden["metadata"]
    for record, expected in zip(catalog, golden["records"], strict=True):
        for name, value in expected["values"].items():
            assert plain(record[name]) == value, name
        slots = expected["slots"]
        assert (record.getX(), record.getY()) == (slots["getX"], slots["getY"])
        assert record.getPsfInstFlux() == slots["psfFlux"]
        assert record.getPsfInstFluxErr() == slots["psfFluxErr"]
        assert record.getPsfFluxFlag() == slots["psfFlag"]
        assert (record.getIxx(), record.getIyy(), record.getIxy()) == (
            slots["Ixx"],
            slots["Iyy"],
            slots["Ixy"],
        )
        np.testing.assert_allclose(record.getCentroidErr(), slots["centroidErr"], rtol=1e-7)


def test_golden_footprints(golden: dict[str, Any], golden_path: str) -> None:
    catalog = afwTable.SourceCatalog.readFits(golden_path)
    for record, expected in zip(catalog, golden["records"], strict=True):
        footprint, values = record.getFootprint(), expected["footprint"]
        assert type(footprint).__name__ == values["class"]
        assert footprint.isHeavy() == values["isHeavy"] and footprint.getArea() == values["area"]
        box = footprint.getBBox()
        assert [box.getMinX(), box.getMinY(), box.getWidth(), box.getHeight()] == values["bbox"]
        region = footprint.getRegion()
        assert [region.getMinX(), region.getMinY(), region.getWidth(), region.getHeight()] == values["region"]
        spans = [[s.getY(), s.getX0(), s.getX1()] for s in footprint.getSpans()]
        assert spans == values["spans_y_x0_x1"]
        centroid = footprint.getCentroid()
        assert [centroid.getX(), centroid.getY()] == pytest.approx(values["centroid"], rel=1e-14)
        peaks = footprint.getPeaks()
        schema = [
            [i.field.getName(), i.key.getTypeString(), i.field.getUnits(), i.field.getDoc()]
            for i in peaks.schema
        ]
        assert schema == values["peak_schema"]
        assert [{name: peak[name] for name in values["peaks"][0]} for peak in peaks] == values["peaks"]
        if values["isHeavy"]:
            assert footprint.getImageArray().tolist() == values["heavy_image"]
            assert footprint.getMaskArray().tolist() == values["heavy_mask"]
            assert footprint.getVarianceArray().tolist() == values["heavy_variance"]


def read_hdus(path: str, skip: tuple[str, ...] = ()) -> list[tuple[list[tuple[str, Any, str]], bytes]]:
    """Return cards and raw data of every HDU."""
    content = Path(path).read_bytes()
    result = []
    with fits.open(path) as hdus:
        for hdu in hdus:
            info = hdu.fileinfo()
            # Releases of cfitsio put comments after CONTINUE cards, or leave them out.
            cards = [(c.keyword, c.value, c.comment if len(c.image) == 80 else "") for c in hdu.header.cards]
            cards = [card for card in cards if not card[0].startswith(skip)]
            result.append((cards, content[info["datLoc"] : info["datLoc"] + info["datSpan"]]))
    return result


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("catalog", 0),
        ("catalog_nofootprints", afwTable.SOURCE_IO_NO_FOOTPRINTS),
        ("catalog_noheavy", afwTable.SOURCE_IO_NO_HEAVY_FOOTPRINTS),
    ],
)
def test_written_layout_is_that_of_the_real_file(
    shared_data: Path, golden_path: str, tmp_path: Path, name: str, flags: int
) -> None:
    catalog = afwTable.SourceCatalog.readFits(golden_path)
    path = str(tmp_path / "written.fits")
    catalog.writeFits(path, flags=flags)
    real = read_hdus(str(shared_data / "afw" / f"{name}.fits"))
    for (cards, data), (real_cards, real_data) in zip(read_hdus(path), real, strict=True):
        assert cards == real_cards
        assert data == real_data


@pytest.mark.parametrize(
    "name", ["deblendedCatalog", "deblended_r", "measured_r", "mergeDet", "object_parent_patch"]
)
def test_pipeline_catalogs_are_written_as_they_were(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = str(shared_data / "scarlet" / f"{name}.fits")
    catalog = afwTable.SourceCatalog.readFits(source)
    path = str(tmp_path / "written.fits")
    catalog.writeFits(path)
    skip = ("TDOC", "TFDOC")  # Apostrophes come doubled.
    for written, real in zip(read_hdus(path, skip), read_hdus(source, skip), strict=True):
        assert written == real


def test_flags_when_reading(golden_path: str) -> None:
    catalog = afwTable.SourceCatalog.readFits(golden_path, flags=afwTable.SOURCE_IO_NO_FOOTPRINTS)
    assert all(record.getFootprint() is None for record in catalog)
    assert "footprint" not in catalog.schema
    catalog = afwTable.SourceCatalog.readFits(golden_path, 1, afwTable.SOURCE_IO_NO_HEAVY_FOOTPRINTS)
    assert not catalog[3].getFootprint().isHeavy()
    assert len(catalog[3].getFootprint().peaks) == 1


def test_apostrophes_in_docs_come_back_doubled(tmp_path: Path) -> None:
    schema = afwTable.SourceTable.makeMinimalSchema()
    schema.addField("x", type=np.float64, doc="The source's x")
    path = str(tmp_path / "catalog.fits")
    afwTable.SourceCatalog(schema).writeFits(path)
    assert afwTable.SourceCatalog.readFits(path).schema.find("x").field.getDoc() == "The source''s x"


def test_base_catalog_reads_sources(golden_path: str) -> None:
    catalog = afwTable.BaseCatalog.readFits(golden_path)
    assert type(catalog).__name__ == "BaseCatalog" and isinstance(catalog[0], afwTable.SourceRecord)
    # As a SourceCatalog it would crash upstream.
    index = afwTable.BaseCatalog.readFits(golden_path, hdu=2)
    assert index.schema.getOrderedNames()[:2] == ["id", "cat.archive"]
    assert isinstance(index.table, afwTable.BaseTable) and len(index) == 16


def test_hsc_catalog(shared_data: Path) -> None:
    catalog = afwTable.SourceCatalog.readFits(str(shared_data / "afw" / "hsc_deepCoadd_meas.fits"))
    assert len(catalog) == 10 and catalog.schema.getFieldCount() > 300
    assert sum(len(record.getFootprint().peaks) for record in catalog) == 31
    # Files of version 1 have names that were changed later.
    assert "base_PsfFlux_instFlux" in catalog.schema and "base_SdssCentroid_xErr" in catalog.schema
    np.testing.assert_array_equal(catalog["base_PsfFlux_instFlux"], catalog["base_PsfFlux_flux"])
    assert np.isfinite(catalog.getX()).all()


@pytest.mark.parametrize("n", [0, 1, 5])
def test_round_trip(tmp_path: Path, n: int) -> None:
    catalog = make_catalog(n, footprints=True)
    path = str(tmp_path / "cat.fits")
    catalog.writeFits(path)
    back = afwTable.SourceCatalog.readFits(path)
    assert back.schema == catalog.schema and len(back) == n
    assert back.schema.compare(catalog.schema, afwTable.Schema.IDENTICAL) == afwTable.Schema.IDENTICAL
    for a, b in zip(back, catalog, strict=True):
        assert_same_values(a, b)
        assert a.getFootprint() == b.getFootprint()


def test_round_trip_of_parts_in_another_order(tmp_path: Path) -> None:
    catalog = make_catalog(footprints=True)
    catalog[1].setFootprint(catalog[0].getFootprint())
    catalog[2].setFootprint(None)
    catalog.sort(afwTable.SourceTable.getParentKey())
    path = str(tmp_path / "cat.fits")
    catalog.writeFits(path)
    back = afwTable.SourceCatalog.readFits(path)
    for a, b in zip(back, catalog, strict=True):
        assert_same_values(a, b)
    assert back[1].getFootprint() is None
    assert back[0].getFootprint() is back[3].getFootprint(), "one object in the file is one in memory"


def test_metadata_and_long_texts_survive(tmp_path: Path) -> None:
    schema = afwTable.Schema()
    doc = "a doc with (brackets) and many words, " * 6
    schema.addField("x", type=np.int32, doc=doc.strip())
    catalog = afwTable.BaseCatalog(schema)
    catalog.addNew()["x"] = 7
    metadata = lsst.daf.base.PropertyList()
    metadata.set("SHORT", 3, "a comment")
    metadata.set("A_LONG_KEYWORD", "hierarch")
    metadata.set("NUMBER", 1.25e-30)
    metadata.set("YES", True)
    metadata.set("TEXT", "x" * 200)
    metadata.set("MANY", [1, 2, 3])
    catalog.table.setMetadata(metadata)
    path = str(tmp_path / "cat.fits")
    catalog.writeFits(path)
    back = afwTable.BaseCatalog.readFits(path)
    assert back.schema.find("x").field.getDoc() == doc.strip()
    read = back.getMetadata()
    for name in ("SHORT", "A_LONG_KEYWORD", "NUMBER", "YES", "TEXT"):
        assert read.getScalar(name) == metadata.getScalar(name), name
    assert list(read.getArray("MANY")) == [1, 2, 3]
    assert read.getComment("SHORT") == "a comment"
    with fits.open(path) as hdus:
        hdus.verify("exception")
        assert hdus[1].data["x"].tolist() == [7]


def test_astropy_reads_what_is_written(tmp_path: Path) -> None:
    path = str(tmp_path / "cat.fits")
    make_catalog().writeFits(path)
    table = astropy.table.Table.read(path, hdu=1)
    assert table["a_ushort"].tolist() == [60000 + i for i in range(5)]
    assert table["some_ushorts"].tolist() == [[65535, i] for i in range(5)]
    assert table["flags"][:, 0].tolist() == [True, False, True, False, True]
    assert [str(text).strip() for text in table["a_string"]] == [f"src{i}" for i in range(5)]


def test_append_mode(tmp_path: Path) -> None:
    path = str(tmp_path / "cat.fits")
    schema = afwTable.Schema()
    schema.addField("x", type=np.int32)
    for i in range(2):
        catalog = afwTable.BaseCatalog(schema)
        catalog.addNew()["x"] = i
        catalog.writeFits(path, mode="a" if i else "w")
    assert [afwTable.BaseCatalog.readFits(path, hdu=n)[0]["x"] for n in (1, 2)] == [0, 1]
    assert afwTable.Schema.readFits(path) == schema


def test_bad_files_raise_fits_error(tmp_path: Path, golden_path: str) -> None:
    with pytest.raises(lsst.afw.fits.FitsError):
        afwTable.SourceCatalog.readFits(str(tmp_path / "missing.fits"))
    (tmp_path / "text.fits").write_text("this is no FITS file" * 200)
    with pytest.raises(lsst.afw.fits.FitsError):
        afwTable.SourceCatalog.readFits(str(tmp_path / "text.fits"))
    with pytest.raises(lsst.afw.fits.FitsError):
        afwTable.SourceCatalog.readFits(golden_path, hdu=40)
    with pytest.raises(lsst.afw.fits.FitsError):
        make_catalog().writeFits(str(tmp_path / "no such folder" / "cat.fits"))


def test_deepcopy_keeps_footprints(golden_path: str) -> None:
    catalog = afwTable.SourceCatalog.readFits(golden_path)
    back = copy.deepcopy(catalog)
    assert type(back) is afwTable.SourceCatalog
    assert type(back[3].getFootprint()).__name__ == "HeavyFootprintF"
    for a, b in zip(back, catalog, strict=True):
        assert_same_values(a, b)


def test_simple_catalog_round_trip(tmp_path: Path) -> None:
    catalog = afwTable.SimpleCatalog(afwTable.SimpleTable.makeMinimalSchema())
    catalog.addNew().setCoord(lsst.geom.SpherePoint(1.0, 0.5, lsst.geom.radians))
    path = str(tmp_path / "simple.fits")
    catalog.writeFits(path)
    with fits.open(path) as hdus:
        assert len(hdus) == 2 and hdus[1].header["AFW_TYPE"] == "SIMPLE"
        assert hdus[1].header["AFW_TABLE_VERSION"] == afwTable.Schema.VERSION
    back = afwTable.SimpleCatalog.readFits(path)
    assert back[0].getRa().asRadians() == 1.0
