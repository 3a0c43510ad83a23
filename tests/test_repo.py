# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small Butler repositories for the demonstration and for tests."""

from __future__ import annotations

import numpy as np
import pytest

from lsst.geom import Extent2I, Point2D, Point2I
from lsst.meas.maskrcnn.scenes.repo import (
    PatchGeometry,
    create_repo,
    patch_data_id,
    put_exposures,
    register_patches,
    scene_to_exposures,
)

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


def test_create_repo_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="taken"):
        create_repo(tmp_path / "taken")
    with pytest.raises(FileNotFoundError):
        create_repo(tmp_path / "new", seed_config=str(tmp_path / "no such.yaml"))
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
