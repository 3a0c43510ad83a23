# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Exposures and catalogues in a Butler with its default configuration."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import astropy.io.fits
import numpy as np
import pytest

import lsst.afw.image as afwImage
import lsst.afw.table as afwTable
import lsst.geom as geom
from lsst.afw.detection import Footprint, GaussianPsf
from lsst.afw.geom import SpanSet, makeCdMatrix, makeSkyWcs
from lsst.daf.butler import Butler, DatasetType

BBOX = geom.Box2I(geom.Point2I(12000, 8000), geom.Extent2I(60, 40))

DATA_ID = {"skymap": "map", "tract": 3, "patch": 7, "band": "r"}


def make_exposure() -> afwImage.ExposureF:
    """An exposure of 60 x 40 pixels far from the origin, with everything."""
    exposure = afwImage.ExposureF(BBOX)
    y, x = np.mgrid[: BBOX.getHeight(), : BBOX.getWidth()]
    exposure.image.array[:] = np.sin(0.37 * x + 0.11 * y) * 100
    exposure.variance.array[:] = 4 + (x + y) % 7
    exposure.mask.array[:] = np.where((x + 2 * y) % 5 == 0, afwImage.Mask.getPlaneBitMask("SAT"), 0)
    exposure.setWcs(
        makeSkyWcs(
            crpix=geom.Point2D(12030.5, 8020.25),
            crval=geom.SpherePoint(150.1, 2.2, geom.degrees),
            cdMatrix=makeCdMatrix(scale=0.168 * geom.arcseconds),
        )
    )
    exposure.setPsf(GaussianPsf(21, 21, 2.0))
    exposure.setPhotoCalib(afwImage.PhotoCalib(57.5, 0.25))
    exposure.setFilter(afwImage.FilterLabel.fromBand("r"))
    exposure.info.setVisitInfo(afwImage.VisitInfo(exposureTime=30.0, id=7, instrumentLabel="ToyCam"))
    exposure.info.id = 123456789
    exposure.metadata.set("ANSWER", 42)
    return exposure


def make_catalog() -> afwTable.SourceCatalog:
    """A catalogue of three sources with footprints."""
    schema = afwTable.SourceTable.makeMinimalSchema()
    flux = schema.addField("flux", type=np.float64, doc="some flux", units="nJy")
    flag = schema.addField("bright", type="Flag", doc="whether bright")
    catalog = afwTable.SourceCatalog(schema)
    for i in range(3):
        record = catalog.addNew()
        record.setId(100 + i)
        record.set(flux, 1.5 * i)
        record.set(flag, i == 2)
        spans = SpanSet(geom.Box2I(geom.Point2I(12005 + 10 * i, 8004), geom.Extent2I(3 + i, 4)))
        footprint = Footprint(spans, BBOX)
        footprint.addPeak(12006 + 10 * i, 8005, 10.0 + i)
        record.setFootprint(footprint)
    return catalog


@pytest.fixture(scope="module")
def butler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Butler]:
    """A Butler with one patch, and the exposure in it."""
    root = tmp_path_factory.mktemp("butler") / "a repo"
    Butler.makeRepo(root)
    with Butler.from_config(root, run="run", writeable=True) as result:
        registry = result.registry
        registry.syncDimensionData(
            "instrument", {"name": "Cam", "visit_max": 10, "exposure_max": 10, "detector_max": 10}
        )
        registry.syncDimensionData("physical_filter", {"instrument": "Cam", "name": "R", "band": "r"})
        registry.syncDimensionData("physical_filter", {"instrument": "Cam", "name": "I", "band": "i"})
        registry.syncDimensionData(
            "skymap",
            {"name": "map", "hash": b"x", "tract_max": 10, "patch_nx_max": 10, "patch_ny_max": 10},
        )
        registry.syncDimensionData("tract", {"skymap": "map", "id": 3})
        registry.syncDimensionData("patch", {"skymap": "map", "tract": 3, "id": 7, "cell_x": 0, "cell_y": 0})
        universe = result.dimensions
        dimensions = {"skymap", "tract", "patch", "band"}
        for name, storage_class in (
            ("coadd", "ExposureF"),
            ("planes", "MaskedImageF"),
            ("picture", "ImageF"),
            ("bits", "MaskX"),
        ):
            registry.registerDatasetType(DatasetType(name, dimensions, storage_class, universe=universe))
        registry.registerDatasetType(
            DatasetType("sources", dimensions - {"band"}, "SourceCatalog", universe=universe)
        )
        result.put(make_exposure(), "coadd", DATA_ID)
        yield result


def test_exposure_round_trip(butler: Butler) -> None:
    expected = make_exposure()
    exposure = butler.get("coadd", DATA_ID)
    assert type(exposure) is afwImage.ExposureF
    assert exposure.getBBox() == BBOX
    np.testing.assert_array_equal(exposure.image.array, expected.image.array)
    np.testing.assert_array_equal(exposure.mask.array, expected.mask.array)
    np.testing.assert_array_equal(exposure.variance.array, expected.variance.array)
    assert exposure.photoCalib == expected.photoCalib
    assert exposure.getFilter() == afwImage.FilterLabel.fromBand("r")
    assert exposure.visitInfo == expected.visitInfo
    assert exposure.info.id == 123456789
    assert exposure.metadata["ANSWER"] == 42
    assert exposure.psf.getSigma() == 2.0
    position = geom.Point2D(12003, 8011)
    separation = exposure.wcs.pixelToSky(position).separation(expected.wcs.pixelToSky(position))
    assert separation.asArcseconds() < 1e-8


def test_pixels_are_compressed_without_loss(butler: Butler) -> None:
    uri = butler.getURI("coadd", DATA_ID)
    with astropy.io.fits.open(uri.ospath, disable_image_compression=True) as hdus:
        for hdu, name, bitpix in zip(hdus[1:4], ("IMAGE", "MASK", "VARIANCE"), (-32, 32, -32), strict=True):
            assert hdu.header["EXTNAME"] == name
            assert hdu.header["EXTTYPE"] == name
            assert hdu.header["ZIMAGE"] is True
            assert hdu.header["ZCMPTYPE"] == "GZIP_2"
            assert hdu.header["ZBITPIX"] == bitpix
            assert (hdu.header["ZTILE1"], hdu.header["ZTILE2"]) == (60, 1)
        assert hdus[0].header["LSST BUTLER DATASETTYPE"] == "coadd"
        assert hdus[0].header["LSST BUTLER RUN"] == "run"
    # Independent readers agree.
    with astropy.io.fits.open(uri.ospath) as hdus:
        np.testing.assert_array_equal(hdus["IMAGE"].data, make_exposure().image.array)
        np.testing.assert_array_equal(hdus["MASK"].data, make_exposure().mask.array)


@pytest.mark.parametrize("origin", [afwImage.PARENT, afwImage.LOCAL])
def test_part_of_an_exposure(butler: Butler, origin: afwImage.ImageOrigin) -> None:
    corner = geom.Point2I(12010, 8005) if origin == afwImage.PARENT else geom.Point2I(10, 5)
    box = geom.Box2I(corner, geom.Extent2I(20, 7))
    part = butler.get("coadd", DATA_ID, parameters={"bbox": box, "origin": origin})
    assert part.getBBox() == geom.Box2I(geom.Point2I(12010, 8005), geom.Extent2I(20, 7))
    np.testing.assert_array_equal(part.image.array, make_exposure().image.array[5:12, 10:30])
    np.testing.assert_array_equal(part.mask.array, make_exposure().mask.array[5:12, 10:30])
    # The WCS is about parent pixels and does not care about the cut.
    position = geom.Point2D(12012, 8006)
    expected = make_exposure().wcs.pixelToSky(position)
    assert part.wcs.pixelToSky(position).separation(expected).asArcseconds() < 1e-8


def test_components(butler: Butler) -> None:
    expected = make_exposure()

    def get(name: str, **parameters: object) -> object:
        return butler.get(f"coadd.{name}", DATA_ID, parameters=parameters)

    assert get("bbox") == BBOX
    assert get("dimensions") == BBOX.getDimensions()
    assert get("xy0") == BBOX.getMin()
    assert get("photoCalib") == expected.photoCalib
    assert get("filter") == afwImage.FilterLabel.fromBand("r")
    assert get("visitInfo") == expected.visitInfo
    assert get("id") == 123456789
    assert get("metadata")["ANSWER"] == 42
    assert get("psf").getSigma() == 2.0
    sky = get("wcs").pixelToSky(geom.Point2D(12030.5, 8020.25))
    assert sky.separation(geom.SpherePoint(150.1, 2.2, geom.degrees)).asArcseconds() < 1e-8
    image, mask, variance = get("image"), get("mask"), get("variance")
    assert type(image) is afwImage.ImageF
    assert type(mask) is afwImage.MaskX
    assert image.getBBox() == mask.getBBox() == variance.getBBox() == BBOX
    np.testing.assert_array_equal(image.array, expected.image.array)
    np.testing.assert_array_equal(mask.array, expected.mask.array)
    np.testing.assert_array_equal(variance.array, expected.variance.array)
    box = geom.Box2I(geom.Point2I(12001, 8002), geom.Extent2I(5, 3))
    assert get("mask", bbox=box).getBBox() == box
    for name in (
        "apCorrMap",
        "coaddInputs",
        "detector",
        "transmissionCurve",
        "validPolygon",
        "summaryStats",
    ):
        assert get(name) is None, name


def test_deferred(butler: Butler) -> None:
    handle = butler.getDeferred("coadd", DATA_ID)
    assert handle.get(component="bbox") == BBOX
    box = geom.Box2I(geom.Point2I(12001, 8002), geom.Extent2I(5, 3))
    assert handle.get(parameters={"bbox": box}).getBBox() == box


def test_box_that_does_not_fit(butler: Butler) -> None:
    box = geom.Box2I(geom.Point2I(0, 0), geom.Extent2I(5, 3))
    with pytest.raises(ValueError, match="doesn't fit in image"):
        butler.get("coadd", DATA_ID, parameters={"bbox": box})


def test_filter_of_the_data_id_wins(butler: Butler) -> None:
    exposure = make_exposure()
    exposure.setFilter(afwImage.FilterLabel.fromBandPhysical("r", "R"))
    butler.registry.registerRun("other")
    butler.put(exposure, "coadd", {**DATA_ID, "band": "i"}, run="other")
    with pytest.warns(UserWarning, match="filter label mismatch"):
        found = butler.get("coadd", {**DATA_ID, "band": "i"}, collections="other")
    assert found.getFilter() == afwImage.FilterLabel.fromBand("i")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*filter label mismatch")
        butler.get("coadd", DATA_ID)


def test_planes(butler: Butler) -> None:
    exposure = make_exposure()
    for name, plane in (
        ("planes", exposure.maskedImage),
        ("picture", exposure.image),
        ("bits", exposure.mask),
    ):
        butler.put(plane, name, DATA_ID)
        found = butler.get(name, DATA_ID)
        assert type(found) is type(plane)
        assert found.getBBox() == BBOX
        box = geom.Box2I(geom.Point2I(12001, 8002), geom.Extent2I(5, 3))
        assert butler.get(name, DATA_ID, parameters={"bbox": box}).getBBox() == box
    np.testing.assert_array_equal(butler.get("planes", DATA_ID).mask.array, exposure.mask.array)
    np.testing.assert_array_equal(butler.get("picture", DATA_ID).array, exposure.image.array)
    np.testing.assert_array_equal(butler.get("bits", DATA_ID).array, exposure.mask.array)
    np.testing.assert_array_equal(butler.get("planes.variance", DATA_ID).array, exposure.variance.array)


def test_catalog_round_trip(butler: Butler) -> None:
    data_id = {name: value for name, value in DATA_ID.items() if name != "band"}
    expected = make_catalog()
    butler.put(expected, "sources", data_id)
    catalog = butler.get("sources", data_id)
    assert type(catalog) is afwTable.SourceCatalog
    assert catalog.schema == expected.schema
    np.testing.assert_array_equal(catalog["id"], expected["id"])
    np.testing.assert_array_equal(catalog["flux"], expected["flux"])
    np.testing.assert_array_equal(catalog["bright"], [False, False, True])
    for found, record in zip(catalog, expected, strict=True):
        assert found.getFootprint().spans == record.getFootprint().spans
        assert found.getFootprint().peaks[0].getPeakValue() == record.getFootprint().peaks[0].getPeakValue()
