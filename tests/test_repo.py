# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small Butler repositories for the demonstration and for tests."""

from __future__ import annotations

import numpy as np
import pytest

import lsst.skymap
from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog, SourceTable
from lsst.geom import Box2D, Extent2I, Point2D, Point2I
from lsst.meas.maskrcnn.ingest import repo
from lsst.meas.maskrcnn.ingest.exposures import image_psf, scene_to_exposures, truth_to_exposures
from lsst.meas.maskrcnn.ingest.repo import (
    PatchGeometry,
    create_repo,
    patch_data_id,
    put_exposures,
    register_patches,
)
from lsst.meas.maskrcnn.ingest.scenes import SceneGrid, ingest_scene, missing_scenes, scene_dataset_types
from lsst.meas.maskrcnn.scenes.light import BandPsf

XY0 = (12000, 8000)


def test_scene_to_exposures(fake_scene):
    exposures = scene_to_exposures(fake_scene, xy0=XY0, nanojansky_per_count={"z": 2.0, "r": 0.5, "g": 1.0})
    assert list(exposures) == ["z", "r", "g"]
    for index, (band, scale) in enumerate(zip("zrg", (2.0, 0.5, 1.0))):
        exposure = exposures[band]
        assert exposure.getXY0() == Point2I(*XY0)
        assert exposure.getDimensions() == Extent2I(300, 200)
        assert exposure.getFilter().bandLabel == band
        # Counts and calibration give back nJy.
        assert exposure.getPhotoCalib().getCalibrationMean() == pytest.approx(scale)
        np.testing.assert_allclose(
            exposure.image.array * scale, fake_scene.images[index], rtol=1e-5, atol=1e-4
        )
        np.testing.assert_allclose(exposure.variance.array * scale**2, fake_scene.variance[index], rtol=1e-5)
        sigma = exposure.getPsf().computeShape(Point2D(*XY0)).getDeterminantRadius()
        assert sigma * 2.3548 * 0.168 == pytest.approx(0.7, rel=0.05)
    wcs = exposures["r"].getWcs()
    assert wcs.getPixelScale().asArcseconds() == pytest.approx(0.168)
    center = wcs.pixelToSky(Point2D(XY0[0] + 149.5, XY0[1] + 99.5))
    assert center.getRa().asDegrees() == pytest.approx(150.1, abs=1e-9)
    assert center.getDec().asDegrees() == pytest.approx(2.2, abs=1e-9)
    # North is up and East to the left.
    assert wcs.pixelToSky(Point2D(XY0[0], XY0[1] + 199.0)).getDec().asDegrees() > 2.2
    assert wcs.pixelToSky(Point2D(XY0[0], XY0[1])).getRa().asDegrees() > 150.1


def test_invalid_pixels_are_masked(fake_scene):
    fake_scene.images[1, 20:30, 40:60] = np.nan
    fake_scene.variance[0, 5, 7] = 0.0
    exposures = scene_to_exposures(fake_scene, xy0=XY0)
    no_data = {band: e.mask.array & e.mask.getPlaneBitMask("NO_DATA") != 0 for band, e in exposures.items()}
    assert no_data["r"].sum() == 200 and no_data["r"][20:30, 40:60].all()
    assert no_data["z"].sum() == 1 and no_data["z"][5, 7]
    assert not no_data["g"].any()


def test_coadds_have_what_the_pipeline_asks_for(fake_scene, tmp_path):
    """Input images, aperture corrections and mask planes, in files too."""
    exposure = scene_to_exposures(fake_scene, xy0=XY0)["r"]
    exposure.writeFits(str(tmp_path / "coadd.fits"))
    exposure = ExposureF(str(tmp_path / "coadd.fits"))
    assert {"CLIPPED", "INEXACT_PSF", "SENSOR_EDGE"} <= set(exposure.mask.getMaskPlaneDict())
    inputs = exposure.getInfo().getCoaddInputs()
    here = Point2D(XY0[0] + 10, XY0[1] + 20)
    (ccd,) = inputs.ccds.subsetContaining(here, exposure.getWcs())
    assert (ccd["visit"], ccd["filter"], ccd["goodpix"]) == (1, "r", 60000)
    assert not inputs.ccds.subsetContaining(Point2D(XY0[0] - 10, XY0[1]), exposure.getWcs())
    corrections = exposure.getInfo().getApCorrMap()
    assert corrections["base_PsfFlux_instFlux"].evaluate(here) == 1.0
    assert corrections["modelfit_CModel_instFluxErr"].evaluate(here) == 0.0


def test_sky_map(tmp_path):
    """Tracts are added to the dataset as scenes are; its pixels and patches are those of the scenes."""
    grid = SceneGrid("sky", (50, 70), 0.2)
    butler = create_repo(tmp_path / "repo")
    grid.register(butler, 4, [0, 101], "r")
    if not hasattr(lsst.skymap, "BaseSkyMap"):
        assert not list(butler.registry.queryDatasetTypes("skyMap"))
        pytest.skip("lsst.skymap has no sky maps: the stand-in")
    for tract in (7, 4):
        grid.register(butler, tract, [0, 101], "r")
    sky_map = butler.get("skyMap", skymap="sky", collections="skymaps")
    assert [tract.getId() for tract in sky_map] == [4, 7]
    for tract in (4, 7):
        geometry = grid.patch(tract, 101)
        info = sky_map[tract].getPatchInfo(101)
        assert info.getOuterBBox() == info.getInnerBBox() == geometry.bbox
        assert tuple(info.getIndex()) == geometry.cell
        corner = Point2D(geometry.bbox.getMin())
        sky = geometry.wcs.pixelToSky(corner)
        found = info.getWcs().skyToPixel(sky)
        assert (found.getX(), found.getY()) == pytest.approx((corner.getX(), corner.getY()), abs=1e-6)
        assert sky_map.findTract(sky).getId() == tract
        assert sky_map[tract].findPatch(sky).getSequentialIndex() == 101


def test_scene_shapes_must_fit(fake_scene):
    fake_scene.variance = fake_scene.variance[:, :, :-1]
    with pytest.raises(ValueError, match=r"\(3, 200, 299\)"):
        scene_to_exposures(fake_scene)


def test_round_trip_through_a_repo(fake_scene, tmp_path):
    exposures = scene_to_exposures(fake_scene, xy0=XY0)
    butler = create_repo(tmp_path / "a repo.v1")
    exposure = exposures["r"]
    patches = [
        PatchGeometry(3, 5, exposure.getWcs(), exposure.getBBox()),
        PatchGeometry(3, 6, exposure.getWcs(), exposure.getBBox().shiftedBy(Extent2I(280, 0)), cell=(1, 0)),
    ]
    for _ in range(2):  # Records that are there already do no harm.
        register_patches(butler, "sky", patches, fake_scene.bands)
    data_id = patch_data_id("sky", 3, 5)
    put_exposures(butler, "inputs", data_id, {"z": exposures["z"]})
    # A put that was cut short can be repeated.
    put_exposures(butler, "inputs", data_id, exposures)
    assert len(butler.query_datasets("deepCoadd_calexp", collections="inputs")) == 3
    back = butler.get("deepCoadd_calexp", {**data_id, "band": "r"}, collections="inputs")
    np.testing.assert_array_equal(back.image.array, exposure.image.array)
    assert back.getBBox() == exposure.getBBox()
    records = {r.id: r for r in butler.query_dimension_records("patch", skymap="sky")}
    assert set(records) == {5, 6}
    inside = exposure.getWcs().pixelToSky(Point2D(XY0[0] + 10, XY0[1] + 10)).getVector()
    assert records[5].region.contains(inside) and not records[6].region.contains(inside)
    (tract,) = butler.query_dimension_records("tract", skymap="sky")
    assert tract.region.contains(inside)
    (skymap,) = butler.query_dimension_records("skymap")
    assert (skymap.tract_max, skymap.patch_nx_max, skymap.patch_ny_max) == (4, 2, 1)


def test_create_repo_leaves_nothing_behind(monkeypatch, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="taken"):
        create_repo(tmp_path / "taken")
    monkeypatch.setattr(repo, "SEED_CONFIG", str(tmp_path / "no such.yaml"))
    with pytest.raises(FileNotFoundError):
        create_repo(tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]
    assert (tmp_path / "taken" / "letter.txt").read_text() == "mine"


def test_patches_are_checked(fake_scene, tmp_path):
    exposure = scene_to_exposures(fake_scene)["r"]
    patch = PatchGeometry(0, 0, exposure.getWcs(), exposure.getBBox())
    butler = create_repo(tmp_path / "repo")
    with pytest.raises(ValueError, match="No patches"):
        register_patches(butler, "sky", [], "r")
    with pytest.raises(ValueError, match="twice"):
        register_patches(butler, "sky", [patch, patch], "r")


def test_exposures_have_the_psf_of_the_scene(fake_scene):
    """Elongated along x: more light there, and swapped axes would show."""
    fake_scene.psfs = [BandPsf(0.7 + 0.1 * i, "moffat", 3.5, g1=0.15) for i in range(3)]
    wcs = SceneGrid("sky", (200, 300), 0.168).wcs(7)
    exposures = scene_to_exposures(fake_scene, xy0=XY0, wcs=wcs)
    for index, exposure in enumerate(exposures.values()):
        image = exposure.getPsf().computeKernelImage(Point2D(*XY0)).array
        size = len(image)
        assert image.shape == (size, size) and size % 2 == 1
        assert image.sum() == pytest.approx(1.0)
        expected = fake_scene.psfs[index].image(size, 0.168)
        np.testing.assert_allclose(image, expected, atol=1e-12)
        # Less than a percent of the light is beyond the image.
        assert fake_scene.psfs[index].missing_flux(np.array(0.168 * size / 2)) < 0.01
        shape = exposure.getPsf().computeShape(Point2D(*XY0))
        assert shape.getIxx() > 1.3 * shape.getIyy() and abs(shape.getIxy()) < 0.01
        assert exposure.getWcs() == wcs
    with pytest.raises(ValueError, match="odd"):
        image_psf(np.ones((4, 5)))


def test_truth_exposures_share_the_calibration(fake_scene):
    fake_scene.light = np.abs(fake_scene.images)
    exposures = scene_to_exposures(fake_scene, xy0=XY0, nanojansky_per_count={"z": 2.0, "r": 0.5, "g": 1.0})
    for index, (band, truth) in enumerate(truth_to_exposures(fake_scene, exposures).items()):
        scale = truth.getPhotoCalib().getCalibrationMean()
        assert scale == exposures[band].getPhotoCalib().getCalibrationMean()
        np.testing.assert_allclose(truth.image.array * scale, fake_scene.light[index], rtol=1e-6)
        assert truth.getBBox() == exposures[band].getBBox() and truth.getFilter().bandLabel == band
        assert not truth.mask.array.any() and not truth.variance.array.any()


def test_grid_of_scenes():
    grid = SceneGrid("sky", (200, 300), 0.2)
    assert grid.side == 100
    patch = grid.patch(11, 4217)
    assert patch.cell == (17, 42)
    assert patch.bbox.getMin() == Point2I(17 * 300, 42 * 200) and patch.bbox.getDimensions() == Extent2I(
        300, 200
    )
    # Neighbours abut: what leaves one enters the next.
    right, above = grid.patch(11, 4218), grid.patch(11, 4317)
    assert right.bbox.beginX == patch.bbox.endX and right.bbox.beginY == patch.bbox.beginY
    assert above.bbox.beginY == patch.bbox.endY and above.bbox.beginX == patch.bbox.beginX
    for point, home in (
        (Point2D(18 * 300 - 0.6, 42 * 200 + 30), patch),
        (Point2D(18 * 300 - 0.4, 42 * 200 + 30), right),
        (Point2D(17 * 300 + 30, 43 * 200 - 0.4), above),
    ):
        vector = patch.wcs.pixelToSky(point).getVector()
        inside = [p is home for p in (patch, right, above) if p.region().contains(vector)]
        assert inside == [True]
    # In the middle of the tract the scale is that of the scenes.
    middle = Point2D(100 * 300 / 2, 100 * 200 / 2)
    assert patch.wcs.getPixelScale(middle).asArcseconds() == pytest.approx(0.2, rel=1e-6)
    corner = patch.wcs.getPixelScale(Point2D(0, 0)).asArcseconds()
    assert corner == pytest.approx(0.2, rel=1e-3)
    with pytest.raises(ValueError, match="no patch 10000"):
        grid.patch(11, 10000)
    with pytest.raises(ValueError, match="no tract 1000000"):
        grid.wcs(1_000_000)
    with pytest.raises(ValueError, match="pixel scale"):
        SceneGrid("sky", (200, 300), 0.0)


def test_large_scenes_make_small_grids():
    """Far from its middle a tangent plane is stretched."""
    grid = SceneGrid("sky", (4096, 4096), 0.2)
    assert grid.side == 43
    wcs = grid.wcs(1)
    assert wcs.getPixelScale(Point2D(0, 0)).asArcseconds() == pytest.approx(0.2, rel=0.02)


def test_tracts_are_spread_over_the_sky():
    grid = SceneGrid("sky", (512, 512), 0.168)
    centers = [grid.wcs(seed).getSkyOrigin() for seed in range(100)]
    assert all(14 < c.getRa().asDegrees() < 346 and abs(c.getDec().asDegrees()) < 61 for c in centers)
    separations = [a.separation(b).asDegrees() for i, a in enumerate(centers) for b in centers[:i]]
    # A tract is 2.4 degrees wide.
    assert min(separations) > 4


def test_scenes_can_be_registered_later(tmp_path):
    butler = create_repo(tmp_path / "repo")
    grid = SceneGrid("sky", (64, 80), 0.168)
    grid.register(butler, 2, range(3), "zr")
    (tract,) = butler.query_dimension_records("tract", skymap="sky")
    grid.register(butler, 2, range(5), "zrg")
    grid.register(butler, 900_000, [9999], "g")
    records = butler.query_dimension_records("patch", skymap="sky", tract=2)
    assert sorted(r.id for r in records) == [0, 1, 2, 3, 4]
    after = {r.id: r for r in butler.query_dimension_records("tract", skymap="sky")}
    assert after[2].region == tract.region and set(after) == {2, 900_000}
    # The region of the tract holds patches that are not there yet.
    assert tract.region.contains(grid.patch(2, 9999).region())
    with pytest.raises(ValueError, match="--skymap"):
        SceneGrid("sky", (80, 64), 0.168).register(butler, 2, range(3), "zr")
    with pytest.raises(ValueError, match="--skymap"):
        SceneGrid("sky", (64, 80), 0.2).register(butler, 3, range(3), "zr")
    assert len(butler.query_dimension_records("patch", skymap="sky", tract=2)) == 5


def make_products(fake_scene) -> dict:
    fake_scene.light = fake_scene.images
    exposures = scene_to_exposures(fake_scene)
    catalogs = {}
    for band in fake_scene.bands:
        catalogs[band] = SourceCatalog(SourceTable.makeMinimalSchema())
        catalogs[band].addNew()["id"] = 17
    return {
        "exposures": exposures,
        "truth": catalogs["z"],
        "truthImages": truth_to_exposures(fake_scene, exposures),
        "truthFlux": catalogs,
    }


def test_a_scene_is_stored_whole_or_not_at_all(fake_scene, tmp_path, monkeypatch):
    products = make_products(fake_scene)
    butler = create_repo(tmp_path / "repo")
    SceneGrid("sky", (200, 300), 0.168).register(butler, 1, range(3), "zrg")
    types = scene_dataset_types(butler.dimensions)
    for dataset_type in types.values():
        butler.registry.registerDatasetType(dataset_type)
    butler.collections.register("run")
    staging = tmp_path / "staging"
    staging.mkdir()
    data_ids = [patch_data_id("sky", 1, number) for number in range(3)]
    arguments = (data_ids, fake_scene.bands, types)
    assert missing_scenes(butler, "run", *arguments) == [0, 1, 2]

    # The seventh of ten files cannot be written.
    write, written = ExposureF.writeFitsWithOptions, []

    def fails(self, *args):
        written.append(args)
        if len(written) == 4:
            raise OSError("disk full")
        write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ExposureF, "writeFitsWithOptions", fails)
        with pytest.raises(OSError, match="disk full"):
            ingest_scene(butler, "run", data_ids[1], products, types, staging)
    assert missing_scenes(butler, "run", *arguments) == [0, 1, 2]
    assert not list(staging.iterdir()) and not list((tmp_path / "repo").rglob("*.fits"))

    ingest_scene(butler, "run", data_ids[1], products, types, staging)
    assert missing_scenes(butler, "run", *arguments) == [0, 2]
    assert not list(staging.iterdir())
    # Again, and with one of them gone.
    ingest_scene(butler, "run", data_ids[1], products, types, staging)
    ref = butler.find_dataset("maskRcnn_truthImage", data_ids[1], band="r", collections="run")
    butler.pruneDatasets([ref], unstore=True, purge=True, disassociate=True)
    assert missing_scenes(butler, "run", *arguments) == [0, 1, 2]
    ingest_scene(butler, "run", data_ids[1], products, types, staging)
    assert missing_scenes(butler, "run", *arguments) == [0, 2]
    # The same place, the same id.
    assert butler.find_dataset("maskRcnn_truthImage", data_ids[1], band="r", collections="run").id == ref.id
    back = butler.get("maskRcnn_truthImage", data_ids[1], band="r", collections="run")
    np.testing.assert_array_equal(back.image.array, products["truthImages"]["r"].image.array)
    assert butler.get("maskRcnn_truthFlux", data_ids[1], band="g", collections="run")["id"].tolist() == [17]
    region = SceneGrid("sky", (200, 300), 0.168).patch(1, 1).region()
    (record,) = butler.query_dimension_records("patch", skymap="sky", tract=1, patch=1)
    assert record.region == region and Box2D(back.getBBox()).getArea() == 60000
