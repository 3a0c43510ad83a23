# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Truth catalogues of scenes, in memory and through a Butler."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import astropy.units as u
import numpy as np
import pytest

import lsst.afw.image as afwImage
import lsst.afw.table as afwTable
import lsst.geom as geom
from lsst.afw.geom import SkyWcs, makeCdMatrix, makeSkyWcs
from lsst.daf.butler import Butler, DatasetType
from lsst.meas.maskrcnn.catalogs.truth import (
    TruthArrays,
    make_truth_catalog,
    make_truth_flux,
    make_truth_schema,
    read_truth,
)
from lsst.meas.maskrcnn.ingest.imported import ImportedConfig, ImportedScene
from lsst.meas.maskrcnn.scenes.config import MaskRule
from lsst.meas.maskrcnn.scenes.light import Stamp
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import Scene, simulate_scene
from lsst.meas.maskrcnn.scenes.truth import empty_sources

XY0 = geom.Point2I(12000, -8000)

SHAPE = (120, 190)

BBOX = geom.Box2I(XY0, geom.Extent2I(SHAPE[1], SHAPE[0]))

DATA_ID = {"skymap": "map", "tract": 3, "patch": 7}


def make_wcs() -> SkyWcs:
    """A WCS far from the poles, with its reference inside the scene."""
    return makeSkyWcs(
        crpix=geom.Point2D(12030.5, -7979.75),
        crval=geom.SpherePoint(150.1, 2.2, geom.degrees),
        cdMatrix=makeCdMatrix(scale=0.168 * geom.arcseconds),
    )


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A small scene of many sources, which overlap."""
    config = preset_config("hsc-wide", shape=SHAPE, keep_models=True)
    population = dataclasses.replace(config.population, galaxy_density=300.0, pair_fraction=0.6)
    config = dataclasses.replace(
        config, population=population, misregistration=0.2, mask_rule=MaskRule(band="r")
    )
    return simulate_scene(config, np.random.default_rng(12))


@pytest.fixture(scope="module")
def catalog(scene: Scene) -> afwTable.SourceCatalog:
    return make_truth_catalog(scene, make_wcs(), XY0)


@pytest.fixture(scope="module")
def butler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Butler]:
    """A Butler with one patch and the dataset types of truth."""
    root = tmp_path_factory.mktemp("truth") / "repo"
    Butler.makeRepo(root)
    with Butler.from_config(root, run="run", writeable=True) as result:
        registry = result.registry
        registry.syncDimensionData(
            "instrument", {"name": "Cam", "visit_max": 10, "exposure_max": 10, "detector_max": 10}
        )
        for band in "grz":
            registry.syncDimensionData("physical_filter", {"instrument": "Cam", "name": band, "band": band})
        registry.syncDimensionData(
            "skymap", {"name": "map", "hash": b"x", "tract_max": 10, "patch_nx_max": 10, "patch_ny_max": 10}
        )
        registry.syncDimensionData("tract", {"skymap": "map", "id": 3})
        registry.syncDimensionData("patch", {"skymap": "map", "tract": 3, "id": 7, "cell_x": 0, "cell_y": 0})
        for name, dimensions in (
            ("maskRcnn_truth", {"skymap", "tract", "patch"}),
            ("maskRcnn_truthFlux", {"skymap", "tract", "patch", "band"}),
        ):
            registry.registerDatasetType(
                DatasetType(name, dimensions, "SourceCatalog", universe=result.dimensions)
            )
        yield result


def on_image(mask: np.ndarray, origin: Any, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """The mask in the frame of the image."""
    result = np.zeros(shape, bool)
    y0, x0 = origin
    result[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
    return result


def toy_scene(**changes: Any) -> SimpleNamespace:
    """Three sources on 12 x 20 pixels: two overlap, the third has no mask.

    It has as few columns as an importer may give.
    """
    columns = [("id", "i8"), ("x", "f8"), ("y", "f8"), ("is_star", "?"), ("flux_r", "f8")]
    sources = np.array(
        [(11, 5.0, 4.0, True, 3631.0), (12, 7.0, 5.0, False, -1.0), (15, 25.0, 5.0, False, 2.0)], columns
    )
    corner = np.array([[True, True, False], [True, True, True]])
    first = np.zeros((2, 4, 5), np.float32)
    # The brightest pixels of the models in r are not in the masks.
    first[1] = np.arange(20).reshape(4, 5)
    values = {
        "bands": ("g", "r"),
        "images": np.zeros((2, 12, 20), np.float32),
        "sources": sources,
        "masks": [np.ones((3, 3), bool), corner, np.zeros((0, 0), bool)],
        "origins": np.array([(3, 4), (4, 6), (0, 0)]),
        "models": [Stamp(first, 3, 4), Stamp(-first[:, :, ::-1], 4, 5), None],
    }
    return SimpleNamespace(**(values | changes))


def test_schema() -> None:
    schema = make_truth_schema(("g", "z"))
    assert schema.contains(afwTable.SourceTable.makeMinimalSchema())
    units = {
        "truth_centroid_x": "pixel",
        "truth_halfLightRadius": "arcsec",
        "truth_positionAngle": "rad",
        "truth_area": "pixel",
        "truth_neighborDistance": "arcsec",
        "truth_neighborFluxRatio": "",
        "truth_g_flux": "nJy",
        "truth_z_mag": "mag",
        "truth_z_peakSnr": "",
    }
    for name, unit in units.items():
        assert schema.find(name).field.getUnits() == unit
    for item in schema:
        assert item.field.getDoc()
        assert "{" not in item.field.getDoc()
    assert schema["slot_Centroid_x"].asKey() == schema["truth_centroid_x"].asKey()
    assert "truth_r_flux" not in schema


def test_columns_are_those_of_the_scene(scene: Scene, catalog: afwTable.SourceCatalog) -> None:
    sources = scene.sources
    assert len(catalog) == len(sources) > 10
    np.testing.assert_array_equal(catalog["id"], sources["id"])
    np.testing.assert_array_equal(catalog["parent"], 0)
    np.testing.assert_array_equal(catalog.getX(), sources["x"] + 12000)
    np.testing.assert_array_equal(catalog.getY(), sources["y"] - 8000)
    np.testing.assert_array_equal(catalog["truth_isStar"], sources["is_star"])
    names = {
        "group": "group",
        "mag": "mag",
        "redshift": "redshift",
        "halfLightRadius": "half_light_radius",
        "bulgeFraction": "bulge_fraction",
        "sersicIndex": "sersic_index",
        "axisRatio": "axis_ratio",
        "positionAngle": "position_angle",
        "area": "area",
        "visibleFraction": "visible",
        "peakShare": "peak_share",
        "blendedness": "blendedness",
        "neighborDistance": "neighbor_distance",
        "neighborFluxRatio": "neighbor_flux_ratio",
    }
    names |= {f"flag_{name}": f"flag_{name}" for name in ("empty", "small", "faint", "masked", "edge")}
    for band in scene.bands:
        names |= {f"{band}_flux": f"flux_{band}", f"{band}_snr": f"snr_{band}"}
        names |= {f"{band}_peakSnr": f"peak_snr_{band}"}
    for field, column in names.items():
        np.testing.assert_array_equal(catalog[f"truth_{field}"], sources[column], err_msg=field)
    for band in scene.bands:
        expected = (sources[f"flux_{band}"] * u.nJy).to_value(u.ABmag)
        np.testing.assert_allclose(catalog[f"truth_{band}_mag"], expected, atol=1e-6)
    unfit = np.any([sources[f"flag_{name}"] for name in ("empty", "small", "faint", "masked")], axis=0)
    np.testing.assert_array_equal(catalog["truth_flag"], unfit)
    assert 0 < np.count_nonzero(unfit) < len(unfit)


def test_coordinates_are_those_of_the_wcs(catalog: afwTable.SourceCatalog) -> None:
    wcs = make_wcs()
    for record in catalog:
        separation = record.getCoord().separation(wcs.pixelToSky(record.getCentroid()))
        assert separation.asArcseconds() < 1e-7
    assert np.ptp(catalog["coord_ra"]) > 0


def test_footprints_are_the_masks(scene: Scene, catalog: afwTable.SourceCatalog) -> None:
    assert scene.sources["flag_empty"].any()
    overlapping = np.zeros(SHAPE, int)
    for i, record in enumerate(catalog):
        footprint = record.getFootprint()
        mask = on_image(scene.masks[i], scene.origins[i])
        overlapping += mask
        found = footprint.spans.asArray(SHAPE, XY0) if footprint.getArea() else np.zeros(SHAPE, bool)
        np.testing.assert_array_equal(found, mask)
        assert len(footprint.peaks) == (1 if mask.any() else 0)
        if not mask.any():
            continue
        # The brightest pixel of the source's own light, in the rule's band.
        stamp = scene.models[i]
        own = np.full(SHAPE, -np.inf)
        h, w = stamp.pixels.shape[1:]
        own[stamp.y0 : stamp.y0 + h, stamp.x0 : stamp.x0 + w] = stamp.pixels[scene.bands.index("r")]
        y, x = np.unravel_index(np.argmax(np.where(mask, own, -np.inf)), SHAPE)
        peak = footprint.peaks[0]
        assert (peak.getIx(), peak.getIy()) == (x + 12000, y - 8000)
        assert peak.getPeakValue() == own[y, x] > 0
    assert overlapping.max() > 1


def test_the_peak_is_in_the_band_of_the_mask_rule() -> None:
    scene = toy_scene()
    scene.models[0].pixels[0, 1, 2] = 7.0
    catalog = make_truth_catalog(scene, make_wcs(), XY0)
    assert catalog[0].getFootprint().peaks[0].getI() == geom.Point2I(12006, -7996)
    scene.config = SimpleNamespace(mask_rule=SimpleNamespace(band="r"))
    catalog = make_truth_catalog(scene, make_wcs(), XY0)
    peak = catalog[0].getFootprint().peaks[0]
    assert (peak.getI(), peak.getPeakValue()) == (geom.Point2I(12006, -7995), 12.0)
    # The model is brighter in the pixel next to it, which is not in the mask.
    peak = catalog[1].getFootprint().peaks[0]
    assert (peak.getI(), peak.getPeakValue()) == (geom.Point2I(12007, -7996), -2.0)


def test_the_peak_without_models_is_the_brightest_pixel() -> None:
    image = np.zeros((2, 12, 20), np.float32)
    image[0, 5, 8], image[0, 5, 9], image[0, 4, 6] = 5.0, np.nan, 4.0
    catalog = make_truth_catalog(toy_scene(models=None, images=image), make_wcs(), XY0)
    peak = catalog[1].getFootprint().peaks[0]
    assert (peak.getI(), peak.getPeakValue()) == (geom.Point2I(12008, -7995), 5.0)
    # The noise-free light goes before the image.
    light = np.zeros_like(image)
    light[0, 4, 7], light[0, 4, 8] = 3.0, 9.0
    catalog = make_truth_catalog(toy_scene(models=None, images=image, light=light), make_wcs(), XY0)
    peak = catalog[1].getFootprint().peaks[0]
    assert (peak.getI(), peak.getPeakValue()) == (geom.Point2I(12007, -7996), 3.0)


def test_what_an_importer_does_not_know_is_nan() -> None:
    catalog = make_truth_catalog(toy_scene(), make_wcs(), XY0)
    assert catalog["id"].tolist() == [11, 12, 15]
    for name in ("redshift", "halfLightRadius", "neighborDistance", "visibleFraction", "g_flux", "r_snr"):
        assert np.isnan(catalog[f"truth_{name}"]).all()
    assert catalog["truth_area"].tolist() == [9, 5, 0]
    np.testing.assert_allclose(catalog["truth_r_mag"], [22.5, np.nan, 31.4 - 2.5 * np.log10(2.0)], atol=1e-4)
    assert not catalog["truth_flag"].any()


def test_an_imported_scene() -> None:
    toy = toy_scene()
    sources = empty_sources(3, toy.bands)
    sources["x"], sources["y"] = toy.sources["x"], toy.sources["y"]
    image = toy.images.copy()
    image[1, 5, 4] = 1.0
    stamps = [Stamp(np.full((2, 3, 3), np.nan, np.float32), 3, 4) for _ in range(3)]
    for stamp in stamps:
        stamp.pixels[0] = np.eye(3)
    scene = ImportedScene(
        config=ImportedConfig("toy"),
        bands=toy.bands,
        images=image,
        variance=np.ones_like(image),
        mask=np.zeros(image.shape, np.uint8),
        pixel_scale=0.2,
        psf_fwhm=np.ones(2),
        sky_sigma=np.ones(2),
        wcs=make_wcs(),
        sources=sources,
        masks=toy.masks,
        origins=toy.origins,
        models=stamps,
        model_bands=("g",),
    )
    catalog = make_truth_catalog(scene, scene.wcs, XY0)
    assert catalog["id"].tolist() == [1, 2, 3]
    assert np.isnan(catalog["truth_r_flux"]).all()
    assert catalog[0].getFootprint().peaks[0].getI() == geom.Point2I(12004, -7997)
    flux = make_truth_flux(scene, "g", XY0)
    assert [record.getFootprint().getArea() for record in flux] == [3, 3, 3]
    assert flux[0].getFootprint().getImageArray().tolist() == [1.0] * 3
    with pytest.raises(ValueError, match=r"'r'; the scene has them in \['g'\]"):
        make_truth_flux(scene, "r", XY0)
    # In a band without models the image says where the peak is.
    scene.config = ImportedConfig("toy", MaskRule(band="r"))
    catalog = make_truth_catalog(scene, scene.wcs, XY0)
    assert catalog[0].getFootprint().peaks[0].getI() == geom.Point2I(12004, -7995)
    scene.sources = None
    for make in (lambda: make_truth_catalog(scene, scene.wcs, XY0), lambda: make_truth_flux(scene, "g", XY0)):
        with pytest.raises(ValueError, match="no truth"):
            make()


def test_an_id_factory_numbers_the_records(scene: Scene) -> None:
    factory = afwTable.IdFactory.makeSource(7, 40)
    catalog = make_truth_catalog(scene, make_wcs(), XY0, factory)
    first = 7 * 2**40 + 1
    np.testing.assert_array_equal(catalog["id"], np.arange(first, first + len(scene.sources)))
    flux = make_truth_flux(scene, "r", XY0, ids=catalog["id"])
    np.testing.assert_array_equal(flux["id"], catalog["id"])


def test_bad_scenes_are_refused() -> None:
    scene = toy_scene()
    with pytest.raises(ValueError, match="is_star"):
        make_truth_catalog(toy_scene(sources=scene.sources[["id", "x", "y"]]), make_wcs(), XY0)
    with pytest.raises(ValueError, match="3 sources, 2 masks"):
        make_truth_catalog(toy_scene(masks=scene.masks[:2]), make_wcs(), XY0)
    with pytest.raises(ValueError, match="keep_models"):
        make_truth_flux(toy_scene(models=None), "g", XY0)
    with pytest.raises(ValueError, match="the band 'u'"):
        make_truth_flux(scene, "u", XY0)
    with pytest.raises(ValueError, match="2 ids"):
        make_truth_flux(scene, "g", XY0, ids=np.array([1, 2]))
    with pytest.raises(ValueError, match="maskRcnn_truth"):
        read_truth(afwTable.SourceCatalog(afwTable.SourceTable.makeMinimalSchema()), BBOX)


def test_a_scene_without_sources() -> None:
    scene = toy_scene()
    none = toy_scene(sources=scene.sources[:0], masks=[], origins=np.zeros((0, 2), int), models=[])
    catalog = make_truth_catalog(none, make_wcs(), XY0)
    truth = read_truth(catalog, BBOX)
    assert len(truth) == 0
    assert truth.origins.shape == (0, 2)
    assert truth.bands == ("g", "r")
    assert len(make_truth_flux(none, "g", XY0)) == 0


@pytest.mark.parametrize("band", ["g", "r", "z"])
def test_the_pixels_of_all_sources_add_up_to_the_light(scene: Scene, butler: Butler, band: str) -> None:
    index = scene.bands.index(band)
    made = make_truth_flux(scene, band, XY0)
    butler.put(made, "maskRcnn_truthFlux", DATA_ID, band=band)
    catalog = butler.get("maskRcnn_truthFlux", DATA_ID, band=band)
    np.testing.assert_array_equal(catalog["id"], scene.sources["id"])
    np.testing.assert_array_equal(catalog[f"truth_{band}_flux"], scene.sources[f"flux_{band}"])
    image = afwImage.ImageF(BBOX)
    size = np.zeros(SHAPE)
    for record, before, stamp in zip(catalog, made, scene.models, strict=True):
        heavy = record.getFootprint()
        assert heavy.isHeavy()
        # No pixel is lost, and none is changed.
        own = afwImage.ImageF(BBOX)
        heavy.insert(own)
        model = np.zeros(SHAPE, np.float32)
        h, w = stamp.pixels.shape[1:]
        model[stamp.y0 : stamp.y0 + h, stamp.x0 : stamp.x0 + w] = stamp.pixels[index]
        np.testing.assert_array_equal(own.array, model)
        assert (heavy.getImageArray() != 0).all()
        assert not heavy.getMaskArray().any()
        assert not heavy.getVarianceArray().any()
        np.testing.assert_array_equal(before.getFootprint().getImageArray(), heavy.getImageArray())
        if model.any():
            y, x = np.unravel_index(np.argmax(model), SHAPE)
            assert heavy.peaks[0].getI() == geom.Point2I(int(x) + 12000, int(y) - 8000)
        heavy.addTo(image)
        size += np.abs(model)
    difference = np.abs(image.array - scene.light[index].astype(float))
    # Each sum is rounded once, and each addition once more.
    assert (difference <= 8 * np.finfo(np.float32).eps * size).all()
    assert size.max() > 0


def test_heavy_footprints_are_cut_at_the_image_and_around_dark_pixels() -> None:
    pixels = np.zeros((2, 5, 4), np.float32)
    pixels[1] = np.arange(1, 21).reshape(5, 4)
    pixels[1, 2, 1] = 0.0
    stamps = [Stamp(pixels, -1, -2), Stamp(pixels, 9, 18), Stamp(pixels, 12, 30)]
    catalog = make_truth_flux(toy_scene(models=stamps), "r", XY0)
    expected = np.zeros((12, 20), np.float32)
    expected[:4, :2] = pixels[1, 1:, 2:]
    expected[9:, 18:] = pixels[1, :3, :2]
    box = geom.Box2I(XY0, geom.Extent2I(20, 12))
    image = afwImage.ImageF(box)
    for record in catalog:
        record.getFootprint().addTo(image)
    np.testing.assert_array_equal(image.array, expected)
    assert [record.getFootprint().getArea() for record in catalog] == [8, 5, 0]
    # There is no light in the other band.
    dark = make_truth_flux(toy_scene(models=stamps), "g", XY0)
    assert [record.getFootprint().getArea() for record in dark] == [0, 0, 0]
    assert np.isnan(dark["truth_g_flux"]).all()


def check_arrays(truth: TruthArrays, scene: Scene) -> None:
    sources = scene.sources
    assert truth.bands == scene.bands
    np.testing.assert_array_equal(truth.ids, sources["id"])
    np.testing.assert_allclose(truth.x, sources["x"], atol=1e-10)
    np.testing.assert_allclose(truth.y, sources["y"], atol=1e-10)
    np.testing.assert_array_equal(truth.is_star, sources["is_star"])
    assert truth.is_star.dtype == bool
    for name in ("empty", "small", "faint", "masked", "edge"):
        np.testing.assert_array_equal(truth.flags[name], sources[f"flag_{name}"])
    for name, column in truth.columns.items():
        np.testing.assert_array_equal(column, sources[name])
    for band in scene.bands:
        for name in ("flux", "snr", "peak_snr"):
            np.testing.assert_array_equal(getattr(truth, name)[band], sources[f"{name}_{band}"])
        assert np.isfinite(truth.mag[band]).all()
    assert len(truth) == len(truth.masks) == len(truth.origins) == len(sources)
    for mask, origin, expected, expected_origin in zip(
        truth.masks, truth.origins, scene.masks, scene.origins, strict=True
    ):
        assert mask.dtype == bool
        assert mask.shape == expected.shape
        np.testing.assert_array_equal(on_image(mask, origin), on_image(expected, expected_origin))


def test_round_trip(scene: Scene, catalog: afwTable.SourceCatalog, butler: Butler) -> None:
    check_arrays(read_truth(catalog, BBOX), scene)
    butler.put(catalog, "maskRcnn_truth", DATA_ID)
    again = butler.get("maskRcnn_truth", DATA_ID)
    assert again.schema == catalog.schema
    np.testing.assert_array_equal(again["coord_ra"], catalog["coord_ra"])
    assert again.getCentroidSlot().isValid()
    for record, before in zip(again, catalog, strict=True):
        # An empty footprint comes back as one, and not as None.
        assert record.getFootprint() == before.getFootprint()
    truth = read_truth(again, BBOX)
    check_arrays(truth, scene)
    np.testing.assert_array_equal(truth.flagged, catalog["truth_flag"])
    # Arrays are copies.
    truth.x[:] = 0.0
    truth.ids[:] = 0
    assert (again["id"] > 0).all()
    assert (again.getX() > 11000).all()


def test_read_truth_of_a_selection(scene: Scene, catalog: afwTable.SourceCatalog) -> None:
    wanted = ~catalog["truth_flag"]
    wanted[np.flatnonzero(wanted)[::2]] = False
    selected = catalog[wanted]
    shifted = geom.Box2I(XY0 + geom.Extent2I(3, 10), geom.Extent2I(5, 5))
    truth = read_truth(selected, shifted)
    np.testing.assert_array_equal(truth.ids, scene.sources["id"][wanted])
    np.testing.assert_allclose(truth.x, scene.sources["x"][wanted] - 3, atol=1e-10)
    np.testing.assert_allclose(truth.y, scene.sources["y"][wanted] - 10, atol=1e-10)
    np.testing.assert_array_equal(truth.origins, scene.origins[wanted] - (10, 3))
