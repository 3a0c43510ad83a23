# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The comparison of deblenders as a task, with all that can be missing, and as a user runs it."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table

import lsst.geom as geom
import lsst.pex.config as pexConfig
from lsst.afw.geom import makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF, PhotoCalib
from lsst.afw.table import SourceCatalog
from lsst.daf.butler import Butler, Config, DatasetRef, DatasetType, FileDataset, FormatterV2
from lsst.daf.butler.tests import makeTestRepo
from lsst.meas.maskrcnn import CompareDeblendersTask
from lsst.meas.maskrcnn.catalogs.exposures import NO_ZERO_POINT
from lsst.meas.maskrcnn.catalogs.truth import make_truth_catalog, make_truth_flux
from lsst.meas.maskrcnn.compare.deblender import DeblendedField, make_parents
from lsst.meas.maskrcnn.compare.scarlet_models import read_scarlet_models
from lsst.meas.maskrcnn.compare.summary import DIFFERENCE
from lsst.meas.maskrcnn.ingest.repo import SEED_CONFIG, PatchGeometry, create_repo, register_patches
from lsst.meas.maskrcnn.metrics.spans import SpanMasks
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene
from lsst.meas.maskrcnn.tasks.compare import (
    CompareDeblendersConfig,
    CompareDeblendersConnections,
    DeblenderInputError,
)
from lsst.pipe.base.tests.pipelineStepTester import PipelineStepTester
from lsst.pipe.base.testUtils import lintConnections

PROJECT = Path(__file__).resolve().parent.parent
PIPELINE = PROJECT / "pipelines" / "CompareDeblenders.yaml"
PLOTS = ("flux", "residual", "gallery")


class ScarletFormatter(FormatterV2):
    """Stands where scarlet's own would be, if it were installed; nothing is read through it."""

    default_extension = ".scarlet"


def read(folder: Path, name: str) -> SourceCatalog:
    return SourceCatalog.readFits(str(folder / f"{name}.fits"))


def data(shared_data: Path) -> dict[str, Any]:
    """What the real pipeline left of a patch; its own pixels stand for the first deblender."""
    folder = shared_data / "scarlet"
    return {
        "exposures": {band: ExposureF.readFits(str(folder / f"exposure_{band}.fits")) for band in "grz"},
        "catalog": read(folder, "deblended_r"),
        "bandCatalogs": {band: read(folder, f"deblended_{band}") for band in "grz"},
        "otherCatalog": read(folder, "deblendedCatalog"),
        "otherParents": read(folder, "object_parent_patch"),
    }


def make_task(**settings: Any) -> CompareDeblendersTask:
    config = CompareDeblendersConfig()
    config.n_samples = 50
    config.update(**settings)
    config.validate()
    return CompareDeblendersTask(config=config)


def values_of(metrics: Any) -> dict[tuple[str, str, str], float]:
    return {(one.name, one.definition, one.band): one.value for one in metrics.values}


def test_connections() -> None:
    lintConnections(CompareDeblendersConnections)


@pytest.mark.parametrize(
    "settings, missing, names",
    [
        ({}, set(), {"exposures": "deepCoadd_calexp", "otherCatalog": "deepCoadd_deblendedCatalog"}),
        (
            {"dataset_names": "newer"},
            set(),
            {
                "exposures": "deep_coadd",
                "otherCatalog": "object_deblend",
                "otherModels": "object_scarlet_models",
                "otherParents": "object_parent_patch",
            },
        ),
        ({"baseline": "sep"}, {"otherCatalog", "otherParents", "otherModels"}, {}),
        ({"do_truth": False}, {"truth", "truthFlux", "truths"}, {}),
        ({"do_plots": False}, {"plotFlux", "plotResidual", "plotGallery"}, {}),
    ],
)
def test_connections_by_config(settings: dict[str, Any], missing: set[str], names: dict[str, str]) -> None:
    config = CompareDeblendersConfig()
    config.update(**settings)
    connections = CompareDeblendersConnections(config=config)
    every = set(CompareDeblendersConnections(config=CompareDeblendersConfig()).allConnections)
    assert every - set(connections.allConnections) == missing
    for name, wanted in names.items():
        assert getattr(connections, name).name == wanted
        assert connections.allConnections[name].name == wanted


def test_given_name_is_kept() -> None:
    config = CompareDeblendersConfig(dataset_names="newer")
    config.connections.exposures = "my_coadd"
    connections = CompareDeblendersConnections(config=config)
    assert connections.exposures.name == "my_coadd"
    assert connections.otherCatalog.name == "object_deblend"


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"other_name": "maskRcnn"}, "must differ"),
        ({"name": "mask-rcnn"}, "be words"),
        ({"ignore_flags": ["dim"]}, r"ignore_flags are \['dim'\]"),
    ],
)
def test_bad_config(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(pexConfig.FieldValidationError, match=words):
        make_task(**settings)


def test_scarlet_beside_itself(shared_data: Path) -> None:
    """The pipeline's own pixels beside those made from the models: nothing differs."""
    # The files are older than DM-54841, as their iterations tell.
    task = make_task()
    inputs = task.read(
        **data(shared_data),
        otherModels=read_scarlet_models(shared_data / "scarlet" / "scarletModelData.scarlet"),
    )
    results = task.run(**inputs.getDict(), tract=1, patch=2)
    values = values_of(results.metrics)
    assert values["sources", "scarlet", ""] == values["matched", "", ""] == 65
    assert values["parents", "scarlet", ""] == 41 and values["blends", "", ""] == 41
    assert values["not_converged", "scarlet", ""] == 0
    assert values["children_per_parent", "scarlet", ""] == pytest.approx(38 / 14)
    for band in "grz":
        assert values["flux_ratio", "", band] == pytest.approx(1.0, abs=1e-4)
        assert values["flux_ratio_scatter", "", band] < 1e-3
    assert values["iou", "", ""] > 0.99
    # The models fit the data to the noise; the first has none.
    assert 0.9 < values["chi2", "scarlet", ""] < 1.2
    assert np.isnan(values["chi2", "maskRcnn", ""])
    assert values["runtime_per_parent", "scarlet", ""] > 0
    assert len(results.sources) == 65 and len(results.blends) == 41 and len(results.truths) == 0
    assert str(results.sources["flux_r_scarlet"].unit) == "nJy"
    assert results.sources["flux_ratio_r"].unit is None
    assert results.metrics.names == ("1,2",)


def test_without_models(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Children have positions only: counts and matches are there, fluxes are of isolated sources."""
    task = make_task()
    with caplog.at_level(logging.WARNING):
        results = task.run(**task.read(**data(shared_data)).getDict())
    assert "38 of 65 sources of scarlet have no mask" in caplog.text
    values = values_of(results.metrics)
    assert values["matched", "", ""] == 65 and values["without_mask", "scarlet", ""] == 38
    ratio = results.sources["flux_ratio_r"]
    assert int(np.isfinite(ratio).sum()) == 27 and np.isnan(values["chi2", "scarlet", ""])
    # What scarlet said of its own fit is in its catalogue of parents.
    assert values["chi2_reported", "scarlet", ""] == pytest.approx(0.35, abs=0.1)
    for name in PLOTS:
        getattr(results, f"plot{name.capitalize()}").canvas.draw()


def test_skipped_blend(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A blend that scarlet skipped has parents and no children: only the other's sources are there."""
    inputs = data(shared_data)
    parents, catalog = inputs["otherParents"], inputs["otherCatalog"]
    chosen = next(record for record in parents if record["deblend_nChild"] == 6)
    chosen["deblend_skipped"] = True
    chosen["deblend_skipped_parentTooBig"] = True
    chosen["deblend_nChild"] = 0
    keep = np.array([record.getParent() != chosen.getId() for record in catalog])
    inputs["otherCatalog"] = catalog[keep].copy(deep=True)
    task = make_task(do_plots=False)
    with caplog.at_level(logging.WARNING):
        results = task.run(**task.read(**inputs).getDict())
    assert "scarlet skipped or failed on 1 parents" in caplog.text
    values = values_of(results.metrics)
    assert values["skipped", "scarlet", ""] == 1 and values["sources", "scarlet", ""] == 59
    assert values["only_here", "maskRcnn", ""] == 6
    skipped = results.blends[np.asarray(results.blends["n_skipped_scarlet"]) == 1]
    assert len(skipped) == 1
    assert skipped["n_children_maskRcnn"][0] == 6 and skipped["n_children_scarlet"][0] == 0
    assert skipped["significance"][0] > 5.0


def test_nothing_in_common(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    inputs = data(shared_data)
    half = np.array([record["deblend_peak_center_x"] < 12250 for record in inputs["catalog"]])
    inputs["catalog"] = inputs["catalog"][half].copy(deep=True)
    inputs["otherCatalog"] = inputs["otherCatalog"][~half].copy(deep=True)
    inputs["otherParents"] = None
    task = make_task()
    with caplog.at_level(logging.WARNING):
        results = task.run(**task.read(**inputs).getDict())
    assert "maskRcnn and scarlet have no source in common" in caplog.text
    assert values_of(results.metrics)["matched", "", ""] == 0
    assert len(results.sources) == 65 and set(results.sources["outcome"]) == {"only maskRcnn", "only scarlet"}
    for name in PLOTS:
        getattr(results, f"plot{name.capitalize()}").canvas.draw()


def test_another_patch(shared_data: Path) -> None:
    inputs = data(shared_data)
    for name in inputs["exposures"]:
        inputs["exposures"][name].setXY0(geom.Point2I(0, 0))
    task = make_task()
    with pytest.raises(DeblenderInputError, match="None of the 65 sources of maskRcnn lies on the exposures"):
        task.run(**task.read(**inputs).getDict())
    inputs["exposures"] = {}
    with pytest.raises(DeblenderInputError, match="No exposure"):
        task.read(**inputs)
    inputs = data(shared_data) | {"otherCatalog": None}
    with pytest.raises(DeblenderInputError, match="set config.baseline"):
        task.read(**inputs)


def test_truth_without_masks(shared_data: Path) -> None:
    """What was drawn, as positions and fluxes, judges both."""
    inputs = data(shared_data)
    drawn = Table.read(shared_data / "scarlet" / "truth.fits")
    ids = np.arange(1, len(drawn) + 1, dtype=np.int64)
    parents, spans = make_parents(ids, ids, SpanMasks(np.zeros(len(ids) + 1, int), *np.zeros((3, 0), int)))
    flux = {
        band: np.array(drawn[f"flux_{band}"]) * exposure.getPhotoCalib().getCalibrationMean()
        for band, exposure in inputs["exposures"].items()
    }
    truth = DeblendedField(
        "truth", ids, ids, np.array(drawn["x"]), np.array(drawn["y"]), np.where(drawn["is_star"], 1, 2),
        spans, flux, parents, spans,
    )  # fmt: skip
    task = make_task()
    results = task.run(**task.read(**inputs).getDict(), truth=truth)
    values = values_of(results.metrics)
    assert values["completeness", "scarlet", ""] == pytest.approx(64 / 75)
    assert values["purity", "maskRcnn", ""] == pytest.approx(64 / 65)
    assert values["completeness", DIFFERENCE, ""] == 0.0
    assert abs(values["flux_residual", "maskRcnn", "r"]) < 0.05
    assert ("iou_truth", "scarlet", "") not in values
    assert len(results.truths) == 75 and results.metrics.patches[0].n_truth == 75
    assert "completeness/neighbor_distance/scarlet" in results.metrics.tables


@pytest.mark.parametrize(
    "overrides, inputs",
    [
        (
            {},
            {
                "deepCoadd_maskRcnnCatalog": "SourceCatalog",
                "deepCoadd_deblendedCatalog": "SourceCatalog",
                "deepCoadd_calexp": "ExposureF",
            },
        ),
        (
            {"compareDeblenders:dataset_names": "newer"},
            {
                "deepCoadd_maskRcnnCatalog": "SourceCatalog",
                "object_deblend": "SourceCatalog",
                "deep_coadd": "ExposureF",
            },
        ),
    ],
)
def test_pipeline(tmp_path: Path, overrides: dict[str, str], inputs: dict[str, str]) -> None:
    butler = makeTestRepo(str(tmp_path), config=Config(SEED_CONFIG))
    patch = {"skymap", "tract", "patch"}
    newer = bool(overrides)
    optional = {
        "deepCoadd_maskRcnnDeblended": ({*patch, "band"}, "SourceCatalog"),
        "deepCoadd_maskRcnnBlends": (patch, "ArrowAstropy"),
        "object_parent_patch": (patch, "SourceCatalog"),
        "object_scarlet_models" if newer else "deepCoadd_scarletModelData": (patch, "LsstScarletModelData"),
        "maskRcnn_truth": (patch, "SourceCatalog"),
        "maskRcnn_truthFlux": ({*patch, "band"}, "SourceCatalog"),
        "maskRcnnDeblend_metadata": (patch, "TaskMetadata"),
    }
    tester = PipelineStepTester(
        filename=str(PIPELINE),
        step_suffixes=[""],
        initial_dataset_types=[
            *(
                (name, {*patch, "band"} if storage == "ExposureF" else patch, storage, False)
                for name, storage in inputs.items()
            ),
            *((name, *what, False) for name, what in optional.items()),
        ],
        expected_inputs=set(inputs) | set(optional),
        expected_outputs={
            *(f"deblenderComparison_{name}" for name in ("metrics", "sources", "blends", "truths")),
            *(f"deblenderComparison_plot_{name}" for name in PLOTS),
        },
        pipeline_patches=overrides,
    )
    tester.run(butler, unittest.TestCase())


def pipetask(root: Path, output: str, *arguments: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("pipetask", path=path)
    if program is None:
        pytest.fail("pipetask of lsst-ctrl-mpexec was not found")
    done = subprocess.run(
        [
            *(program, "run", "-b", str(root), "-p", str(PIPELINE), "-i", "inputs", "-o", output),
            *("--register-dataset-types", "-d", "skymap='sky'"),
            *("-c", "compareDeblenders:n_samples=20", *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=root.parent,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_pipetask(tmp_path: Path, shared_data: Path) -> None:
    """With models as a file that scarlet wrote, and without them and parents."""
    root = tmp_path / "repo"
    butler = create_repo(root)
    butler.collections.register("inputs")
    inputs = data(shared_data)
    wcs = makeSkyWcs(
        geom.Point2D(12256.0, 8256.0),
        geom.SpherePoint(150.0, 2.0, geom.degrees),
        makeCdMatrix(scale=0.168 * geom.arcseconds),
    )
    box = geom.Box2I(geom.Point2I(12000, 8000), geom.Extent2I(512, 512))
    geometries = [PatchGeometry(3, number, wcs, box, (number, 0)) for number in range(2)]
    register_patches(butler, "sky", geometries, ("g", "r", "z"), instrument="cam")

    def new_type(name: str, storage: str, *more: str) -> DatasetType:
        dimensions = ("skymap", "tract", "patch", *more)
        dataset_type = DatasetType(name, dimensions, storage, universe=butler.dimensions)
        butler.registry.registerDatasetType(dataset_type)
        return dataset_type

    for number in range(2):
        place = {"skymap": "sky", "tract": 3, "patch": number}
        names = {"catalog": "deepCoadd_maskRcnnCatalog", "otherCatalog": "deepCoadd_deblendedCatalog"}
        if number == 0:
            names["otherParents"] = "object_parent_patch"
        for key, name in names.items():
            butler.put(inputs[key], new_type(name, "SourceCatalog"), place, run="inputs")
        for band, exposure in inputs["exposures"].items():
            calexp = new_type("deepCoadd_calexp", "ExposureF", "band")
            butler.put(exposure, calexp, {**place, "band": band}, run="inputs")
            heavy = new_type("deepCoadd_maskRcnnDeblended", "SourceCatalog", "band")
            butler.put(inputs["bandCatalogs"][band], heavy, {**place, "band": band}, run="inputs")
    models = new_type("deepCoadd_scarletModelData", "LsstScarletModelData")
    data_id = butler.registry.expandDataId({"skymap": "sky", "tract": 3, "patch": 0})
    ref = DatasetRef(models, data_id, run="inputs")
    file = FileDataset(
        str(shared_data / "scarlet" / "scarletModelData.scarlet"), [ref], formatter=ScarletFormatter
    )
    butler.ingest(file, transfer="copy")

    pipetask(root, "u/test/comparison")
    butler = Butler.from_config(str(root), collections="u/test/comparison", skymap="sky")
    both = [butler.get("deblenderComparison_metrics", tract=3, patch=number) for number in range(2)]
    values = [values_of(one) for one in both]
    assert values[0]["matched", "", ""] == values[1]["matched", "", ""] == 65
    assert values[0]["without_mask", "scarlet", ""] == 0 and values[1]["without_mask", "scarlet", ""] == 38
    assert values[0]["flux_ratio", "", "r"] == pytest.approx(1.0, abs=1e-4)
    assert np.isnan(values[1]["runtime_per_parent", "scarlet", ""])
    assert both[0].runs == ["inputs"] and both[0].catalog == "maskRcnn,scarlet"
    table = butler.get("deblenderComparison_sources", tract=3, patch=0)
    assert isinstance(table, Table) and str(table["flux_r_scarlet"].unit) == "nJy" and len(table) == 65
    assert len(butler.get("deblenderComparison_blends", tract=3, patch=0)) == 41
    assert len(butler.get("deblenderComparison_truths", tract=3, patch=1)) == 0
    for name in PLOTS:
        uri = butler.getURI(f"deblenderComparison_plot_{name}", tract=3, patch=0)
        assert uri.read(4) == b"\x89PNG"


def test_truth_of_a_simulated_patch() -> None:
    """A perfect catalogue with its pixels beside a baseline, judged by masks, fluxes and blendedness."""
    pytest.importorskip("sep", reason="sep is not installed")
    scene = simulate_scene(
        preset_config("hsc-wide", shape=(180, 240), keep_models=True), np.random.default_rng(6)
    )
    corner = geom.Point2I(12000, 8000)
    wcs = makeSkyWcs(
        geom.Point2D(12100.0, 8100.0),
        geom.SpherePoint(150.0, 2.0, geom.degrees),
        makeCdMatrix(scale=0.168 * geom.arcseconds),
    )
    exposures = {}
    for band, image, variance in zip(scene.bands, scene.images, scene.variance):
        exposure = ExposureF(geom.Box2I(corner, geom.Extent2I(240, 180)), wcs)
        exposure.image.array[:], exposure.variance.array[:] = image, variance
        exposure.setPhotoCalib(PhotoCalib(1.0))
        exposures[band] = exposure
    exposures["g"].getMetadata().set(NO_ZERO_POINT, True)
    truth = make_truth_catalog(scene, wcs, corner)
    flux = {band: make_truth_flux(scene, band, corner) for band in scene.bands}
    task = make_task(baseline="sep", name="perfect")
    inputs = task.read(
        exposures=exposures, catalog=truth, bandCatalogs=flux, truth=truth, truthFlux=flux, seconds=4.0
    )
    results = task.run(**inputs.getDict())
    values = values_of(results.metrics)
    counted = int(np.count_nonzero(~np.asarray(truth["truth_flag"], dtype=bool)))
    assert results.metrics.patches[0].n_truth == counted > 10
    assert results.metrics.patches[0].n_truth_ignored == len(truth) - counted
    assert values["completeness", "perfect", ""] == 1.0 and values["iou_truth", "perfect", ""] == 1.0
    assert values["seconds", "perfect", ""] == 4.0
    # Isophotes lose light, and what is within them is not all of the mask.
    assert 0.3 < values["completeness", "sep", ""] < 1.0
    assert 0.1 < values["iou_truth", "sep", ""] < 1.0
    assert values["flux_residual", "sep", "r"] < -0.02
    assert abs(values["flux_residual", "perfect", "r"]) < 0.02
    assert {f"{what}/blendedness/sep" for what in ("completeness", "flux_residual", "iou_truth")} <= set(
        results.metrics.tables
    )
    np.testing.assert_allclose(results.truths["blendedness"], truth["truth_blendedness"])
    results.plotResidual.canvas.draw()
    # Without a zero point fluxes are counts.
    assert [str(results.sources[f"flux_{band}_sep"].unit) for band in "gr"] == ["ct", "nJy"]
    labels = {axis.get_xlabel() for axis in results.plotFlux.axes}
    assert {"sep flux (counts)", "sep flux (nJy)"} <= labels
