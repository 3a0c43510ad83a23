# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which rows of object tables are primary where patches and tracts overlap."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from astropy.table import Table, vstack

import lsst.geom as geom
import lsst.skymap
from lsst.afw.geom import SkyWcs, makeCdMatrix, makeSkyWcs
from lsst.daf.butler import Butler, DatasetType
from lsst.meas.maskrcnn.catalogs.tables import select_primary
from lsst.meas.maskrcnn.ingest.exposures import scene_to_exposures
from lsst.meas.maskrcnn.ingest.ingest_model import ingest_model
from lsst.meas.maskrcnn.ingest.repo import PatchGeometry, create_repo, put_exposures, register_patches
from lsst.meas.maskrcnn.network.model_file import default_model_path
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene
from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendConfig, MaskRcnnDeblendTask
from lsst.pipe.base import Pipeline, Struct
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

PIPELINE = Path(__file__).resolve().parent.parent / "pipelines" / "MaskRcnnDeblend.yaml"
SCALE = 0.2
INNER, BORDER = (150, 100), 40
CENTERS = ((150.0, 2.0), (150.01, 2.0))
"""Of two tracts, 180 px apart, which overlap."""


class Patch:
    """What the task reads of a patch."""

    def __init__(self, inner: geom.Box2I, tract: geom.Box2I) -> None:
        self._inner, self._outer = inner, inner.dilatedBy(BORDER).clippedTo(tract)

    def getInnerBBox(self) -> geom.Box2I:
        return self._inner

    def getOuterBBox(self) -> geom.Box2I:
        return self._outer


class Tract:
    """What the task reads of a tract, here of 2 x 3 patches."""

    def __init__(self, number: int, center: tuple[float, float]) -> None:
        self._number, self._center = number, center

    def getId(self) -> int:
        return self._number

    def getWcs(self) -> SkyWcs:
        middle = geom.Point2D(INNER[0] - 0.5, 1.5 * INNER[1] - 0.5)
        center = geom.SpherePoint(*self._center, geom.degrees)
        return makeSkyWcs(middle, center, makeCdMatrix(scale=SCALE * geom.arcseconds))

    def __getitem__(self, number: int) -> Patch:
        row, column = divmod(number, 2)
        corner = geom.Point2I(column * INNER[0], row * INNER[1])
        whole = geom.Box2I(geom.Point2I(0, 0), geom.Extent2I(2 * INNER[0], 3 * INNER[1]))
        return Patch(geom.Box2I(corner, geom.Extent2I(*INNER)), whole)


class SkyMap:
    """What the task reads of a sky map, with tracts around some centres."""

    def __init__(self, centers: Sequence[tuple[float, float]] = CENTERS) -> None:
        self._centers = centers

    def __getitem__(self, number: int) -> Tract:
        return Tract(number, self._centers[number])

    def findTractIdArray(self, ra: np.ndarray, dec: np.ndarray, degrees: bool) -> np.ndarray:
        assert degrees
        distances = [
            np.hypot((ra - ra0) * np.cos(np.radians(dec)), dec - dec0) for ra0, dec0 in self._centers
        ]
        return np.argmin(distances, axis=0)


def real_sky_map(centers: Sequence[tuple[float, float]] = CENTERS) -> Any:
    """One of lsst.skymap, with the same tracts."""
    discrete = pytest.importorskip("lsst.skymap.discreteSkyMap", reason="lsst.skymap has no sky maps")
    config = discrete.DiscreteSkyMapConfig()
    config.raList, config.decList = ([center[axis] for center in centers] for axis in (0, 1))
    config.radiusList = [0.99 * INNER[0] * SCALE / 3600.0] * len(centers)
    config.pixelScale, config.projection, config.tractOverlap = SCALE, "TAN", 0.0
    config.tractBuilder["legacy"].patchInnerDimensions = list(INNER)
    config.tractBuilder["legacy"].patchBorder = BORDER
    return discrete.DiscreteSkyMap(config)


def place(sky_map: Any, tract: int, patch: int) -> Struct:
    return Struct(skyMap=sky_map, tractInfo=sky_map[tract], patchInfo=sky_map[tract][patch])


def make_table(wcs: SkyWcs, x: Any, y: Any) -> Table:
    """A table of objects with what matters here."""
    x, y = np.array(x, dtype=float), np.array(y, dtype=float)
    ra, dec = wcs.pixelToSkyArray(x, y, degrees=True)
    primary = np.ones(len(x), bool)
    return Table({"coord_ra": ra, "coord_dec": dec, "x": x, "y": y, "detect_isPrimary": primary})


def test_edges_of_a_patch() -> None:
    """Half a pixel from the middle of the last one the next patch begins."""
    sky_map = SkyMap(CENTERS[:1])
    x = [149.49, 149.5, 149.51, 10.0, 10.0, 10.0, np.nan, -0.5, -0.51]
    y = [50.0, 50.0, 50.0, 99.49, 99.5, 99.51, 50.0, 50.0, 50.0]
    expected = {
        0: [1, 0, 0, 1, 0, 0, 0, 1, 0],
        1: [0, 1, 1, 0, 0, 0, 0, 0, 0],
        2: [0, 0, 0, 0, 1, 1, 0, 0, 0],
    }
    for number, inside in expected.items():
        table = make_table(sky_map[0].getWcs(), x, y)
        select_primary(table, place(sky_map, 0, number))
        assert table["detect_isPatchInner"].tolist() == list(map(bool, inside))
        assert table["detect_isPrimary"].tolist() == list(map(bool, inside))
        assert table["detect_isTractInner"].tolist() == list(np.isfinite(x))
        assert table.colnames[-3:] == ["detect_isPatchInner", "detect_isTractInner", "detect_isPrimary"]
        assert "inner regions" in table["detect_isPrimary"].description
        assert all(table[name].dtype == bool for name in table.colnames[-3:])


def test_edges_of_a_tract() -> None:
    """A source on the far side of the line between two tracts is the other's."""
    sky_map = SkyMap()
    (ra0, dec0), (ra1, _) = CENTERS
    for tract, nearer in ((0, [True, False]), (1, [False, True])):
        table = Table({"coord_ra": 0.5 * (ra0 + ra1) + np.array([-1e-5, 1e-5]), "coord_dec": [dec0, dec0]})
        table["x"], table["y"] = [10.0, 20.0], [30.0, 40.0]
        table["detect_isPrimary"] = True
        select_primary(table, place(sky_map, tract, 0))
        assert table["detect_isTractInner"].tolist() == table["detect_isPrimary"].tolist() == nearer
        assert table["detect_isPatchInner"].all()


def test_what_was_not_primary_does_not_become_so() -> None:
    sky_map = SkyMap(CENTERS[:1])
    table = make_table(sky_map[0].getWcs(), [50.0, 60.0], [50.0, 50.0])
    table["detect_isPrimary"][1] = False
    select_primary(table, place(sky_map, 0, 0))
    assert table["detect_isPrimary"].tolist() == [True, False]
    empty = make_table(sky_map[0].getWcs(), [], [])
    select_primary(empty, place(sky_map, 0, 0))
    assert empty["detect_isPrimary"].dtype == empty["detect_isPatchInner"].dtype == bool


@pytest.mark.parametrize("make", [SkyMap, real_sky_map])
def test_every_place_is_primary_once(make: Any) -> None:
    """Of all patches and tracts that see it."""
    sky_map = make()
    x, y = np.random.default_rng(2).uniform([5, 5], [295, 295], (400, 2)).T
    ra, dec = sky_map[0].getWcs().pixelToSkyArray(x, y, degrees=True)
    seen, primary = np.zeros((2, len(ra)), int)
    for tract in (0, 1):
        x, y = sky_map[tract].getWcs().skyToPixelArray(ra, dec, degrees=True)
        for patch in range(6):
            box = geom.Box2D(sky_map[tract][patch].getOuterBBox())
            inside = (x > box.getMinX()) & (x < box.getMaxX()) & (y > box.getMinY()) & (y < box.getMaxY())
            table = make_table(sky_map[tract].getWcs(), x[inside], y[inside])
            select_primary(table, place(sky_map, tract, patch))
            seen[inside] += 1
            primary[inside] += table["detect_isPrimary"]
    assert np.mean(seen > 1) > 0.3
    assert seen.max() > 4
    np.testing.assert_array_equal(primary, 1)


def make_sky_map() -> Any:
    """A sky map of one tract, a real one where there are such."""
    return (real_sky_map if hasattr(lsst.skymap, "BaseSkyMap") else SkyMap)(CENTERS[:1])


def test_a_tract_that_the_sky_map_lacks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As that of an imported image whose first pixel has a negative number."""
    monkeypatch.setattr(lsst.skymap, "BaseSkyMap", SkyMap, raising=False)
    task = MaskRcnnDeblendTask(config=MaskRcnnDeblendConfig(doMeasure=False))
    context = mock.MagicMock()
    context.get.return_value.get.return_value = SkyMap(CENTERS[:1])
    for tract, words in ((0, ""), (1, "has no such tract")):
        context.quantum.dataId = {"tract": tract, "patch": 3}
        with caplog.at_level(logging.INFO):
            found = task._read_sky_map(context, Struct(skyMap="ref"))
        assert words in caplog.text
        assert (found is None) == bool(words) == bool(caplog.text)


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of two patches that overlap, without a sky map."""
    root = tmp_path_factory.mktemp("overlap") / "repo"
    butler = create_repo(root)
    tract = make_sky_map()[0]
    boxes = {number: tract[number].getOuterBBox() for number in (2, 3)}
    whole = boxes[2].expandedTo(boxes[3])
    config = preset_config("lsst-1yr", shape=(whole.getHeight(), whole.getWidth()))
    scene = simulate_scene(config, np.random.default_rng(5))
    exposures = scene_to_exposures(scene, xy0=tuple(whole.getMin()), wcs=tract.getWcs())
    geometries = [PatchGeometry(0, n, tract.getWcs(), box, (n % 2, n // 2)) for n, box in boxes.items()]
    register_patches(butler, "sky", geometries, config.bands, instrument="cam")
    for number, box in boxes.items():
        parts = {band: exposure[box].clone() for band, exposure in exposures.items()}
        put_exposures(butler, "coadds", {"skymap": "sky", "tract": 0, "patch": number}, parts)
    ingest_model(butler, default_model_path())
    return root


def find_objects(root: Path, output: str, *inputs: str) -> Table:
    """Run the task; returns the tables of both patches."""
    collections = ["coadds", "models/maskRcnn", *inputs]
    butler = SimplePipelineExecutor.prep_butler(str(root), collections, output)
    pipeline = Pipeline.from_uri(str(PIPELINE))
    pipeline.addConfigOverride("maskRcnnDeblend", "doMeasure", False)
    SimplePipelineExecutor.from_pipeline(pipeline, butler=butler).run(register_dataset_types=True)
    where = {"skymap": "sky", "tract": 0}
    return vstack([butler.get("deepCoadd_maskRcnnObject", where, patch=number) for number in (2, 3)])


def pairs(table: Table) -> tuple[Table, Table]:
    """Rows of the sources that both patches have, in their own rows of pixels and off all edges."""
    first, second = (table[table["patch"] == number] for number in (2, 3))
    x, y = np.asarray(first["x"]), np.asarray(first["y"])
    distance = np.hypot(x[:, None] - np.asarray(second["x"]), y[:, None] - np.asarray(second["y"]))
    clear = (np.abs(x - INNER[0] + 0.5) > 1.0) & (y > INNER[1] + 1.0) & (y < 2.0 * INNER[1] - 2.0)
    one, two = np.nonzero((distance < 0.5) & clear[:, None])
    return first[one], second[two]


def test_through_the_butler(
    overlapping: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a sky map among the input collections, a source of two patches is primary in one of them."""
    with caplog.at_level(logging.INFO):
        before = find_objects(overlapping, "u/before")
    assert caplog.text.count("No sky map among the inputs") == 2
    assert before["detect_isPrimary"].all()
    assert "detect_isPatchInner" not in before.colnames
    assert "not considered" in before["detect_isPrimary"].description

    sky_map = make_sky_map()
    if not hasattr(lsst.skymap, "BaseSkyMap"):
        # The storage class names it.
        monkeypatch.setattr(lsst.skymap, "BaseSkyMap", SkyMap, raising=False)
    butler = Butler.from_config(str(overlapping), writeable=True)
    kind = DatasetType("skyMap", ("skymap",), "SkyMap", universe=butler.dimensions)
    butler.registry.registerDatasetType(kind)
    butler.collections.register("skymaps")
    butler.put(sky_map, kind, skymap="sky", run="skymaps")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        after = find_objects(overlapping, "u/after", "skymaps")
    assert "sky map" not in caplog.text

    first, second = pairs(before)
    assert len(first) >= 4
    assert (first["detect_isPrimary"] & second["detect_isPrimary"]).all()
    first, second = pairs(after)
    assert (first["detect_isPrimary"] ^ second["detect_isPrimary"]).all()
    assert first["detect_isPrimary"].any() and second["detect_isPrimary"].any()
    np.testing.assert_array_equal(
        after["detect_isPrimary"], after["detect_isPatchInner"] & after["detect_isTractInner"]
    )
    # Nothing else has changed.
    after.remove_columns(["detect_isPatchInner", "detect_isTractInner"])
    assert after.colnames == before.colnames
    assert before["objectId"].tolist() == after["objectId"].tolist()
