# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the deblending task leaves in the Butler, read by code that knows the pipeline's conventions only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from astropy.table import Table
from quanta import make_quantum

import lsst.afw.table as afwTable
import lsst.geom as geom
import lsst.pipe.base as pipeBase
import lsst.pipe.base.testUtils as pipelineTests
from lsst.afw.image import ExposureF, FilterLabel
from lsst.daf.butler import Butler, DataCoordinate
from lsst.daf.butler.tests import addDatasetType
from lsst.meas.maskrcnn.catalogs.exposures import NO_ZERO_POINT
from lsst.meas.maskrcnn.ingest.ingest_model import ingest_model
from lsst.meas.maskrcnn.ingest.repo import PatchGeometry, create_repo, put_exposures, register_patches
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel, default_model_path, load_model
from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendConfig, MaskRcnnDeblendTask

BANDS = ("g", "r", "z")
PATCH = {"skymap": "sky", "tract": 0, "patch": 5}


@pytest.fixture(scope="module")
def model() -> MaskRcnnModel:
    return load_model()


@pytest.fixture(scope="module")
def exposures(shared_data: Any) -> dict[str, ExposureF]:
    """Three bands of a simulated HSC-like patch, as the Science Pipelines wrote them."""
    exposures = {}
    for band in BANDS:
        exposures[band] = ExposureF.readFits(str(shared_data / "scarlet" / f"exposure_{band}.fits"))
        exposures[band].setFilter(FilterLabel.fromBand(band))
    return exposures


@pytest.fixture(scope="module")
def butler(exposures: dict[str, ExposureF], tmp_path_factory: pytest.TempPathFactory) -> Butler:
    """A repository in which the task has run with its defaults."""
    root = tmp_path_factory.mktemp("products") / "repo"
    writeable = create_repo(root)
    reference = exposures["r"]
    geometry = PatchGeometry(0, 5, reference.getWcs(), reference.getBBox(), (5, 0))
    register_patches(writeable, "sky", [geometry], BANDS, instrument="cam")
    put_exposures(writeable, "run", PATCH, exposures)
    ingest_model(writeable, default_model_path(), collection="run")
    task = MaskRcnnDeblendTask(config=MaskRcnnDeblendConfig())
    made = Butler.from_config(butler=writeable, run="run")
    for name, kind in (
        ("Catalog", "SourceCatalog"),
        ("Deblended", "SourceCatalog"),
        ("Blends", "ArrowAstropy"),
        ("Object", "ArrowAstropy"),
    ):
        dimensions = {*PATCH, "band"} if name == "Deblended" else set(PATCH)
        addDatasetType(made, f"deepCoadd_maskRcnn{name}", dimensions, kind)
        addDatasetType(made, f"deepCoadd_maskRcnn{name}_schema", set(), kind)
    data_id = made.registry.expandDataId(PATCH)
    quantum = make_quantum(
        task,
        made,
        data_id,
        {
            "exposures": [{**PATCH, "band": band} for band in BANDS],
            "model": DataCoordinate.make_empty(made.dimensions),
            "catalog": data_id,
            "bandCatalogs": [{**PATCH, "band": band} for band in BANDS],
            "blendStatistics": data_id,
            "objectTable": data_id,
        },
    )
    pipelineTests.runTestQuantum(task, made, quantum, mockRun=False)
    for name, catalog in (("Catalog", task.outputSchema), ("Deblended", task.bandSchema)):
        made.put(catalog, f"deepCoadd_maskRcnn{name}_schema")
    return made


@pytest.fixture
def catalog(butler: Butler) -> afwTable.SourceCatalog:
    return butler.get("deepCoadd_maskRcnnCatalog", PATCH)


@pytest.fixture
def by_band(butler: Butler) -> Mapping[str, afwTable.SourceCatalog]:
    return {band: butler.get("deepCoadd_maskRcnnDeblended", PATCH, band=band) for band in BANDS}


REASONS = ("isolatedParent", "parentTooBig", "tooManyPeaks", "masked")

# --- conventions of the pipeline, and nothing of this package


def primary(catalog: afwTable.SourceCatalog) -> np.ndarray:
    """What SetPrimaryFlagsTask calls deblended sources, where there are no models of scarlet's."""
    return np.asarray(catalog["deblend_nChild"]) == 0


def test_a_consumer_walks_the_blends(
    catalog: afwTable.SourceCatalog, by_band: Mapping[str, afwTable.SourceCatalog], butler: Butler
) -> None:
    """Down from parents to children and back up; fluxes of children add up to the exposure."""
    assert catalog.isSorted(afwTable.SourceTable.getParentKey())
    top = catalog.getChildren(0)
    parents = [record for record in top if record["deblend_nChild"] > 0]
    assert len(parents) >= 5
    seen = 0
    for parent in parents:
        children = catalog.getChildren(parent.getId())
        assert len(children) == parent["deblend_nChild"] == parent["deblend_nPeaks"] > 1
        assert len(parent.getFootprint().getPeaks()) == len(children)
        peaks = {peak.getId(): peak.getI() for peak in parent.getFootprint().getPeaks()}
        for child in children:
            assert child.getParent() == parent.getId()
            assert child["deblend_nChild"] == 0
            assert child["deblend_parentNChild"] == child["deblend_parentNPeaks"] == len(children)
            center = geom.Point2I(child["deblend_peak_center_x"], child["deblend_peak_center_y"])
            assert peaks.pop(child["deblend_peakId"]) == center
            spans = child.getFootprint().getSpans()
            assert parent.getFootprint().getSpans().contains(spans)
        assert not peaks
        seen += len(children)
    alone = [record for record in top if record["deblend_nChild"] == 0]
    assert seen + len(alone) == np.count_nonzero(primary(catalog))
    assert all(len(record.getFootprint().getPeaks()) == 1 for record in alone)

    for band, shares in by_band.items():
        for name in ("id", "parent", "deblend_nChild", "deblend_peakId", "deblend_parentNChild"):
            assert shares[name].tolist() == catalog[name].tolist()
        image = butler.get("deepCoadd_calexp", PATCH, band=band).image
        for parent in parents:
            footprint = parent.getFootprint()
            total = image.Factory(footprint.getBBox())
            total.array[:] = 0.0
            for child in shares.getChildren(parent.getId()):
                assert child.getFootprint().isHeavy()
                assert footprint.getSpans().contains(child.getFootprint().getSpans())
                child.getFootprint().addTo(total)
            inside = footprint.getSpans().asArray()
            expected = np.where(inside, image[footprint.getBBox()].array, 0)
            np.testing.assert_allclose(total.array, expected, rtol=3e-7, atol=1e-5)
        for record in alone:
            heavy = shares.find(record.getId()).getFootprint()
            assert heavy.getSpans().contains(record.getFootprint().getSpans())
            flat = heavy.getSpans().flatten(image.array, image.getXY0())
            np.testing.assert_array_equal(heavy.getImageArray(), flat)


def test_a_consumer_selects_primary_sources(catalog: afwTable.SourceCatalog) -> None:
    leaf, child = primary(catalog), np.asarray(catalog["parent"]) != 0
    np.testing.assert_array_equal(catalog["detect_isPrimary"], leaf)
    np.testing.assert_array_equal(catalog["detect_isDeblendedSource"], leaf)
    np.testing.assert_array_equal(catalog["detect_fromBlend"], child)
    np.testing.assert_array_equal(catalog["detect_isIsolated"], leaf & ~child)


def test_a_consumer_reads_slots(
    catalog: afwTable.SourceCatalog,
    by_band: Mapping[str, afwTable.SourceCatalog],
    exposures: dict[str, ExposureF],
    shared_data: Any,
) -> None:
    """Positions and fluxes through the slots, against what was drawn."""
    truth = Table.read(shared_data / "scarlet" / "truth.fits")
    leaves = catalog[primary(catalog)].copy(deep=True)
    distance = np.hypot(
        np.asarray(truth["x"])[:, None] - leaves.getX(), np.asarray(truth["y"])[:, None] - leaves.getY()
    )
    nearest = distance.argmin(axis=1)
    bright = np.asarray(truth["flux_r"]) > 200_000
    found = (distance.min(axis=1) < 1.5) & bright
    assert found.sum() >= 0.8 * bright.sum()
    assert np.median(distance.min(axis=1)[found]) < 0.3
    row = nearest[found]
    drawn = {band: np.asarray(truth[f"flux_{band}"])[found] for band in BANDS}
    star = np.asarray(truth["is_star"], dtype=bool)[found]
    assert np.median(np.abs(leaves.getPsfInstFlux()[row] / drawn["r"] - 1)[star]) < 0.05
    # A Gaussian does not hold the wings of a galaxy.
    assert 0.8 < np.median(leaves.getModelInstFlux()[row] / drawn["r"]) < 1.05
    assert leaves["slot_Centroid_flag"][row].sum() <= 0.25 * len(row)

    # Colours by force at one place, for isolated and blended sources alike.
    ids = leaves["id"][row]
    for band in "gz":
        ratio = drawn[band] / drawn["r"]
        for slot, chosen, limit in (("Psf", star, 0.05), ("Model", ~star, 0.15)):
            # The Gaussian of a galaxy is that of the reference band, whose PSF is another.
            flux = {
                name: np.array([getattr(by_band[name].find(int(i)), f"get{slot}InstFlux")() for i in ids])
                for name in (band, "r")
            }
            color = -2.5 * np.log10(flux[band] / flux["r"] / ratio)[chosen]
            assert len(color) >= 4
            assert np.median(np.abs(color)) < limit, (band, slot)
    # Positions by force are those of the reference band.
    reference = np.array([catalog.find(int(i)).getCentroid() for i in ids])
    for shares in by_band.values():
        positions = np.array([shares.find(int(i)).getCentroid() for i in ids])
        np.testing.assert_allclose(positions, reference, atol=1e-3)
    wcs = exposures["r"].getWcs()
    for record in leaves:
        if not record["slot_Centroid_flag"]:
            sky = wcs.pixelToSky(record.getCentroid())
            assert record.getCoord().separation(sky).asArcseconds() < 1e-3


def test_schemas_on_disk_are_those_of_the_catalogues(
    catalog: afwTable.SourceCatalog, by_band: Mapping[str, afwTable.SourceCatalog], butler: Butler
) -> None:
    assert butler.get("deepCoadd_maskRcnnCatalog_schema").schema == catalog.schema
    for shares in by_band.values():
        assert butler.get("deepCoadd_maskRcnnDeblended_schema").schema == shares.schema
    for schema in (catalog.schema, by_band["g"].schema):
        for item in schema:
            assert item.field.getDoc(), item.field.getName()
    for name in ("base_PixelFlags_flag", "base_Blendedness_abs", "base_ClassificationExtendedness_value"):
        assert name in catalog.schema


def test_extendedness_tells_stars_from_galaxies(catalog: afwTable.SourceCatalog, shared_data: Any) -> None:
    truth = Table.read(shared_data / "scarlet" / "truth.fits")
    leaves = catalog[primary(catalog)].copy(deep=True)
    right = []
    for source in truth[np.asarray(truth["flux_r"]) > 100_000]:
        distance = np.hypot(leaves.getX() - source["x"], leaves.getY() - source["y"])
        record = leaves[int(distance.argmin())]
        if distance.min() < 1.5 and not record["base_ClassificationExtendedness_flag"]:
            right.append((record["base_ClassificationExtendedness_value"] < 0.5) == source["is_star"])
    assert len(right) > 10
    assert np.mean(right) > 0.8


def test_table_of_parents(butler: Butler, catalog: afwTable.SourceCatalog) -> None:
    """With the names and meanings that the deblender metrics of analysis_tools ask for."""
    table = butler.get("deepCoadd_maskRcnnBlends", PATCH)
    parents = catalog[np.asarray(catalog["parent"]) == 0].copy(deep=True)
    assert np.asarray(table["objectId"]).tolist() == parents["id"].tolist()
    n_child = np.asarray(table["deblend_nChild"])
    assert n_child.tolist() == np.maximum(parents["deblend_nChild"], 1).tolist()
    assert n_child.sum() == np.count_nonzero(primary(catalog))
    # Peaks less those of children and of isolated parents that are skipped (never here) are "dropouts".
    assert np.array_equal(table["deblend_nPeaks"], n_child)
    # ParentObjectSelector takes rows in which both are 0.
    assert not np.asarray(table["parentObjectId"]).any() and not np.asarray(table["sky_object"]).any()
    for name in ("failed", "incompleteData", "skipped", *(f"skipped_{x}" for x in REASONS)):
        assert table[f"deblend_{name}"].dtype == bool and not np.asarray(table[f"deblend_{name}"]).any()
    assert (np.asarray(table["deblend_iterations"]) > 0).all()
    for rows in (n_child > 1, n_child == 1):
        assert 0.5 < np.nanmedian(np.asarray(table["deblend_chi2"])[rows]) < 3.0
    blends = n_child > 1
    areas = [record.getFootprint().getArea() for record in parents if record["deblend_nChild"]]
    assert np.asarray(table["footprintArea"])[blends].tolist() == areas
    for band in BANDS:
        image = butler.get("deepCoadd_calexp", PATCH, band=band).image
        blended = [record.getFootprint() for record in parents if record["deblend_nChild"]]
        sums = [footprint.computeFluxFromImage(image) for footprint in blended]
        np.testing.assert_allclose(table[f"{band}_instFlux"][blends], sums, rtol=1e-4)
        bright = blends & (np.asarray(table[f"{band}_instFlux"]) > 5e5)
        assert (np.asarray(table[f"{band}_outsideFraction"])[bright] < 0.25).all()
    assert (np.asarray(table["deblend_runtime"]) > 0).all()
    assert set(table["patch"]) == {PATCH["patch"]} and set(table["tract"]) == {PATCH["tract"]}


OBJECT_COLUMNS = """
objectId parentObjectId coord_ra coord_dec coord_raErr coord_decErr x y
sersic_reff_major sersic_reff_majorErr sersic_reff_minor sersic_reff_minorErr sersic_theta sersic_index
sersic_indexErr sersic_chi2_reduced footprintArea class pStar refExtendedness score pBlend
detect_isPrimary detect_isIsolated flag flag_edge flag_bad flag_saturated flag_invalid flag_fallback
flag_limited flag_notConverged flag_samePlace
""".split()
OBJECT_BAND_COLUMNS = """
sersicFlux sersicFluxErr sersicFlux_flag sersicMag sersicMagErr deblendedFlux deblendedFluxErr
deblend_blendedness psfFlux psfFluxErr psfFlux_flag
""".split()
"""Other tasks read them, and those of pipelines."""


def test_object_table(
    butler: Butler,
    catalog: afwTable.SourceCatalog,
    by_band: Mapping[str, afwTable.SourceCatalog],
    shared_data: Any,
) -> None:
    """Rows are the sources of the catalogue, with fluxes in nJy and degrees; read back with units."""
    table = butler.get("deepCoadd_maskRcnnObject", PATCH)
    leaf = primary(catalog)
    assert np.asarray(table["objectId"]).tolist() == catalog["id"][leaf].tolist()
    assert np.asarray(table["parentObjectId"]).tolist() == catalog["parent"][leaf].tolist()
    assert np.array_equal(table["detect_isIsolated"], catalog["detect_isIsolated"][leaf])
    assert all(table[name].description for name in table.colnames if name not in ("tract", "patch"))
    of_bands = [f"{band}_{name}" for band in BANDS for name in OBJECT_BAND_COLUMNS]
    assert set(table.colnames) == {*OBJECT_COLUMNS, *of_bands, "tract", "patch"}
    assert (str(table["coord_ra"].unit), str(table["g_psfFlux"].unit)) == ("deg", "nJy")
    for name in ("x", "y"):
        np.testing.assert_array_equal(table[name], catalog[f"maskrcnn_profile_{name}"][leaf])
    wcs = butler.get("deepCoadd_calexp", PATCH, band="r").getWcs()
    sky = wcs.pixelToSkyArray(np.asarray(table["x"]), np.asarray(table["y"]), degrees=True)
    np.testing.assert_allclose((table["coord_ra"], table["coord_dec"]), sky, rtol=1e-12)
    for band, made in by_band.items():
        calibration = butler.get("deepCoadd_calexp", PATCH, band=band).getPhotoCalib()
        for name, slot in (("psfFlux", "PsfFlux"), ("sersicFlux", "ModelFlux")):
            expected = calibration.instFluxToNanojansky(made, f"slot_{slot}")[leaf]
            np.testing.assert_allclose(table[f"{band}_{name}"], expected[:, 0], rtol=1e-5)
            np.testing.assert_allclose(table[f"{band}_{name}Err"], expected[:, 1], rtol=1e-5)
            assert np.array_equal(table[f"{band}_{name}_flag"], made[f"slot_{slot}_flag"][leaf])
        expected = made["deblend_blendedness"][leaf]
        np.testing.assert_allclose(table[f"{band}_deblend_blendedness"], expected, rtol=1e-4, atol=1e-6)
    truth = Table.read(shared_data / "scarlet" / "truth.fits")
    good = (table["pStar"] < 0.1) & table["detect_isIsolated"] & ~table["flag"]
    assert good.sum() >= 10
    distance = np.hypot(
        np.asarray(table["x"])[good][:, None] - truth["x"], np.asarray(table["y"])[good][:, None] - truth["y"]
    )
    near = distance.min(axis=1) < 2.0
    unit = butler.get("deepCoadd_calexp", PATCH, band="r").getPhotoCalib().getCalibrationMean()
    drawn = unit * np.asarray(truth["flux_r"])[distance.argmin(axis=1)]
    ratio = np.asarray(table["r_sersicFlux"])[good] / drawn
    assert near.mean() > 0.9 and 0.9 < np.median(ratio[near]) < 1.1


# --- options


@pytest.fixture(scope="module")
def small(exposures: dict[str, ExposureF]) -> dict[str, ExposureF]:
    """A part of the patch that holds a blend."""
    box = geom.Box2I(geom.Point2I(12250, 8150), geom.Extent2I(250, 180))
    return {band: exposure[box].clone() for band, exposure in exposures.items()}


def run(exposures: dict[str, ExposureF], model: MaskRcnnModel, **fields: Any) -> pipeBase.Struct:
    config = MaskRcnnDeblendConfig()
    for name in [name for name in fields if name in config.shares.keys()]:
        setattr(config.shares, name, fields.pop(name))
    config.update(**fields)
    config.validate()
    return MaskRcnnDeblendTask(config=config).run(exposures=exposures, model=model)


def test_exposures_stay_as_they_were(small: dict[str, ExposureF], model: MaskRcnnModel) -> None:
    before = {band: exposure.clone() for band, exposure in small.items()}
    results = run(small, model)
    assert (results.catalog["parent"] != 0).any()
    for band, exposure in small.items():
        for plane in ("image", "mask", "variance"):
            np.testing.assert_array_equal(
                getattr(exposure, plane).array, getattr(before[band], plane).array, err_msg=f"{band} {plane}"
            )


def test_objects_without_a_zero_point(small: dict[str, ExposureF], model: MaskRcnnModel) -> None:
    """Fluxes of such a band are in counts, forced ones as well."""
    unknown = {band: exposure.clone() for band, exposure in small.items()}
    unknown["r"].getMetadata().set(NO_ZERO_POINT, True)
    table = run(unknown, model).objectTable
    for band in BANDS:
        units = ("ct", "mag(ct)") if band == "r" else ("nJy", "mag(AB)")
        for name, unit in zip(
            ("psfFlux", "sersicFlux", "deblendedFlux", "sersicMag"), (*units[:1] * 3, units[1])
        ):
            assert str(table[f"{band}_{name}"].unit) == unit, (band, name)


def test_tables_of_chosen_bands(small: dict[str, ExposureF], model: MaskRcnnModel) -> None:
    """Columns are those of output_bands, in patches that lack a band as well; only values differ."""
    wanted = ["u", *sorted(BANDS)]
    results = run(small, model, output_bands=wanted)
    full = run(small, model)
    for name in ("objectTable", "blendStatistics"):
        table, plain = results.getDict()[name], full.getDict()[name]
        ends = [column[2:] for column in plain.colnames if column.startswith("r_")]
        added = [f"u_{end}" for end in ends]
        assert set(table.colnames) == {*plain.colnames, *added}
        assert table.colnames[-len(added) * len(wanted) :] == [f"{b}_{end}" for b in wanted for end in ends]
        for column in set(plain.colnames) - {"deblend_runtime"}:
            np.testing.assert_array_equal(table[column], plain[column], err_msg=column)
        for column, end in zip(added, ends):
            like = table[f"r_{end}"]
            assert (table[column].dtype, table[column].unit) == (like.dtype, like.unit)
            empty = np.asarray(table[column])
            assert empty.all() if empty.dtype == bool else np.isnan(empty).all()
        assert np.isfinite(table[f"r_{ends[0]}"]).any()
    fewer = run(small, model, output_bands=["r"]).objectTable
    assert {column[:2] for column in fewer.colnames} & {f"{band}_" for band in BANDS} == {"r_"}


def test_two_runs_give_the_same(small: dict[str, ExposureF], model: MaskRcnnModel) -> None:
    """Whatever the order of the exposures, and whatever ran before."""
    first = run(small, model)
    second = run(dict(reversed(small.items())), model)
    for name in first.catalog.schema.getOrderedNames():
        if name != "deblend_runtime":
            np.testing.assert_array_equal(first.catalog[name], second.catalog[name], err_msg=name)
    for band in BANDS:
        for one, other in zip(first.bandCatalogs[band], second.bandCatalogs[band], strict=True):
            if one.getFootprint().isHeavy():
                np.testing.assert_array_equal(
                    one.getFootprint().getImageArray(), other.getFootprint().getImageArray()
                )
            assert [peak.getId() for peak in one.getFootprint().getPeaks()] == [
                peak.getId() for peak in other.getFootprint().getPeaks()
            ]


def test_reference_band(small: dict[str, ExposureF], model: MaskRcnnModel) -> None:
    r, g = run(small, model), run(small, model, reference_band="g")
    for results, band in ((r, "r"), (g, "g")):
        # The columns of the catalogue are those of its reference band.
        for name in ("deblend_peak_instFlux", "deblend_blendedness", "deblend_dataCoverage"):
            np.testing.assert_array_equal(results.catalog[name], results.bandCatalogs[band][name])
        leaf = primary(results.catalog) & ~results.catalog["base_PsfFlux_flag"]
        np.testing.assert_allclose(
            results.catalog["base_PsfFlux_instFlux"][leaf],
            results.bandCatalogs[band]["base_PsfFlux_instFlux"][leaf],
            rtol=1e-5,
        )
    assert not np.allclose(r.catalog["deblend_peak_instFlux"][-3:], g.catalog["deblend_peak_instFlux"][-3:])
    with pytest.raises(pipeBase.InvalidQuantumError, match=r"reference_band is 'i'.*\['g', 'r', 'z'\]"):
        run(small, model, reference_band="i")


def test_without_measurement(small: dict[str, ExposureF], model: MaskRcnnModel) -> None:
    """Nothing stands in the way of the pipeline's own columns."""
    results = run(small, model, doMeasure=False, doPrimaryFlags=False)
    for catalog in (results.catalog, *results.bandCatalogs.values()):
        names = catalog.schema.getNames()
        assert not [name for name in names if name.startswith(("base_", "detect_"))]
        assert catalog["maskrcnn_flag_unmeasured"].all()
    assert np.isfinite(results.catalog.getX()).all()
    measured = run(small, model)
    assert results.catalog["id"].tolist() == measured.catalog["id"].tolist()
    for one, other in zip(results.bandCatalogs["g"], measured.bandCatalogs["g"], strict=True):
        assert one.getFootprint().getSpans() == other.getFootprint().getSpans()


def test_exposures_without_a_psf(
    small: dict[str, ExposureF], model: MaskRcnnModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Only what can be measured is, of sources; positions are always there."""
    bare = {band: exposure.clone() for band, exposure in small.items()}
    bare["g"].setPsf(None)
    results = run(bare, model)
    parents = ~primary(results.catalog)
    np.testing.assert_array_equal(results.catalog["maskrcnn_flag_unmeasured"], parents)
    assert results.bandCatalogs["g"]["maskrcnn_flag_unmeasured"].all()
    np.testing.assert_array_equal(results.bandCatalogs["z"]["maskrcnn_flag_unmeasured"], parents)
    for made in (results.catalog, results.bandCatalogs["z"]):
        for slot in ("Centroid", "Shape", "PsfFlux", "ApFlux"):
            assert made[f"slot_{slot}_flag"][parents].all()
            assert not made[f"slot_{slot}_flag"].all()
    assert caplog.text.count("Nothing is measured") == 1
    bare["r"].setPsf(None)
    results = run(bare, model)
    for catalog in (results.catalog, *results.bandCatalogs.values()):
        assert catalog["maskrcnn_flag_unmeasured"].all()
        np.testing.assert_array_equal(catalog.getX(), results.catalog["maskrcnn_centroid_x"])
        assert catalog["slot_Centroid_flag"].all()
    assert results.bandCatalogs["g"][-1].getFootprint().isHeavy()


def test_parents_over_limits_are_flagged(
    small: dict[str, ExposureF], model: MaskRcnnModel, caplog: pytest.LogCaptureFixture
) -> None:
    results = run(small, model, max_parent_sources=1)
    catalog = results.catalog
    blended = ~primary(catalog) | (catalog["parent"] != 0)
    np.testing.assert_array_equal(catalog["deblend_fallback"], blended)
    np.testing.assert_array_equal(catalog["deblend_fallback_tooManyPeaks"], blended)
    assert not catalog["deblend_fallback_parentTooBig"].any()
    parents = results.blendStatistics[np.asarray(results.blendStatistics["deblend_nChild"]) > 1]
    assert parents["deblend_fallback"].all()
    assert "shared by masks alone" in caplog.text
    # No source is lost for it, and masks that overlap cannot be taken apart.
    plain = run(small, model).catalog
    assert primary(catalog).sum() == primary(plain).sum()
    assert 0 < (~primary(catalog)).sum() <= (~primary(plain)).sum()


def test_growth_joins_sources(small: dict[str, ExposureF], model: MaskRcnnModel) -> None:
    few, many = run(small, model, parent_grow=0.0).catalog, run(small, model, parent_grow=8.0).catalog
    assert primary(few).sum() == primary(many).sum()
    assert (few["parent"] == 0).sum() - (~primary(few)).sum() > (many["parent"] == 0).sum() - (
        ~primary(many)
    ).sum()
