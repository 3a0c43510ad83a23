# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The evaluation as a user runs it: simulated patches in a Butler, `pipetask run`, figures in the Butler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table

import lsst.geom as geom
import lsst.pipe.base as pipeBase
from lsst.afw.geom import SkyWcs, makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF, FilterLabel, PhotoCalib
from lsst.afw.table import SourceCatalog
from lsst.daf.butler import Butler, DatasetType
from lsst.meas.maskrcnn.catalogs.schema import make_schema
from lsst.meas.maskrcnn.catalogs.truth import make_truth_catalog, make_truth_flux
from lsst.meas.maskrcnn.ingest.exposures import gaussian_psf
from lsst.meas.maskrcnn.ingest.repo import PatchGeometry, create_repo, put_exposures, register_patches
from lsst.meas.maskrcnn.metrics.average_precision import compute_ap
from lsst.meas.maskrcnn.metrics.evaluation_metrics import outcomes_from_table
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import Scene, simulate_scene

PROJECT = Path(__file__).resolve().parent.parent
PIPELINE = PROJECT / "pipelines" / "MaskRcnnEvaluate.yaml"
SHAPE = (100, 128)
BBOX = geom.Box2I(geom.Point2I(12000, 8000), geom.Extent2I(SHAPE[1], SHAPE[0]))
PLOTS = (
    "precisionRecall",
    "completeness",
    "confusion",
    "roc",
    "fluxResidual",
    "calibration",
    "blends",
    "gallery",
)


def make_wcs() -> SkyWcs:
    return makeSkyWcs(
        geom.Point2D(12064.0, 8050.0),
        geom.SpherePoint(150.0, 2.0, geom.degrees),
        makeCdMatrix(scale=0.168 * geom.arcseconds),
    )


def make_exposures(scene: Scene) -> dict[str, ExposureF]:
    exposures = {}
    for band, image, variance in zip(scene.bands, scene.images, scene.variance):
        exposure = ExposureF(BBOX, make_wcs())
        exposure.image.array[:] = image
        exposure.variance.array[:] = variance
        exposure.setPhotoCalib(PhotoCalib(1.0))
        exposure.setFilter(FilterLabel.fromBand(band))
        exposure.setPsf(gaussian_psf(4.0))
        exposures[band] = exposure
    return exposures


def make_detections(truth: SourceCatalog) -> SourceCatalog:
    """What a perfect deblender would find."""
    catalog = SourceCatalog(make_schema())
    for source in truth:
        if source["truth_flag"]:
            continue
        record = catalog.addNew()
        record.setId(source.getId())
        record.setFootprint(source.getFootprint())
        star = bool(source["truth_isStar"])
        record["maskrcnn_star"], record["maskrcnn_galaxy"] = star, not star
        record["maskrcnn_score"], record["maskrcnn_pStar"] = 0.9, 0.9 if star else 0.1
        for axis in ("x", "y"):
            record[f"maskrcnn_centroid_{axis}"] = source[f"truth_centroid_{axis}"]
    return catalog


def put_patch(butler: Butler, number: int, scene: Scene, with_catalog: bool) -> SourceCatalog:
    """Put all that the task reads of a patch; returns the truth."""
    place = {"skymap": "sky", "tract": 3, "patch": number}

    def put(name: str, value: Any, storage: str = "SourceCatalog", **more: str) -> None:
        dataset_type = DatasetType(name, (*place, *more), storage, universe=butler.dimensions)
        butler.registry.registerDatasetType(dataset_type)
        butler.put(value, dataset_type, {**place, **more}, run="inputs")

    truth = make_truth_catalog(scene, make_wcs(), BBOX.getMin())
    put("maskRcnn_truth", truth)
    if with_catalog:
        put("deepCoadd_maskRcnnCatalog", make_detections(truth))
        for band in scene.bands:
            # The catalogue of a band holds each source's own pixels.
            put("deepCoadd_maskRcnnDeblended", make_truth_flux(scene, band, BBOX.getMin()), band=band)
    put_exposures(butler, "inputs", place, make_exposures(scene))
    metadata, own = pipeBase.TaskMetadata(), pipeBase.TaskMetadata()
    own["seconds_normalize"], own["seconds_detect"], own["seconds_forward"] = 0.5, 1.5, 1.4
    own["n_valid_pixels"], own["model"] = 20_000, "tiny"
    metadata["maskRcnnDeblend"] = own
    put("maskRcnnDeblend_metadata", metadata, "TaskMetadata")
    return truth


def pipetask(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the pipeline as a user does."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("pipetask", path=path)
    if program is None:
        pytest.fail("pipetask of lsst-ctrl-mpexec was not found")
    return subprocess.run(
        [
            *(program, "run", "-b", str(root), "-p", str(PIPELINE), "-i", "inputs"),
            *("--register-dataset-types", "-d", "skymap='sky'", "-c", "maskRcnnEvaluate:n_samples=20"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=root.parent,
        timeout=600,
    )


def test_pipetask(tmp_path: Path) -> None:
    """Two perfect catalogues, and a patch that has none."""
    root = tmp_path / "repo"
    butler = create_repo(root)
    butler.collections.register("inputs")
    geometries = [PatchGeometry(3, number, make_wcs(), BBOX, (number, 0)) for number in range(3)]
    config = preset_config("hsc-wide", shape=SHAPE, keep_models=True)
    register_patches(butler, "sky", geometries, config.bands, instrument="cam")
    truths = [
        put_patch(butler, number, simulate_scene(config, np.random.default_rng(number)), number != 2)
        for number in range(3)
    ]
    counts = [int(np.count_nonzero(~truth["truth_flag"])) for truth in truths]
    assert min(counts) > 3
    expected = (counts[0] + counts[1]) / sum(counts)

    done = pipetask(root, "-o", "u/test/evaluation", "-c", "maskRcnnEvaluate:missing=empty")
    assert done.returncode == 0, done.stderr
    butler = Butler.from_config(str(root), collections="u/test/evaluation", skymap="sky")
    metrics = butler.get("maskRcnnEvaluation_metrics")
    # The patch that the deblender failed on is not passed over.
    assert metrics.names == ("3,0", "3,1", "3,2")
    assert metrics.n_truth["all"] == counts
    assert metrics.get("completeness").value == pytest.approx(expected)
    assert metrics.get("ap", definition="pooled").value == pytest.approx(expected)
    assert metrics.get("purity").value == 1.0
    assert metrics.get("seconds_per_patch").value == 2.0
    assert metrics.get("megapixels_per_second").value == pytest.approx(0.01)
    assert (metrics.runs, metrics.models, metrics.skymap) == (["inputs"], ["tiny"], "sky")
    assert metrics.config["missing"] == "empty"
    matches = butler.get("maskRcnnEvaluation_matches")
    assert isinstance(matches, Table)
    assert len(matches) == sum(len(truth) for truth in truths)
    assert str(matches["flux_truth"].unit) == "nJy"
    assert matches["outcome"].tolist().count("missed") == counts[2]
    ratio = matches["flux_detected_r"] / matches["flux_truth_r"]
    assert np.nanmedian(ratio) == pytest.approx(1.0, abs=0.02)
    outcomes = butler.get("maskRcnnEvaluation_outcomes")
    again = compute_ap(outcomes_from_table(outcomes, metrics, "galaxy"), "pooled")
    assert again.mean == metrics.get("ap", definition="pooled", object_class="galaxy").value
    assert len(butler.get("maskRcnnEvaluation_precisionRecall")) > 0
    assert butler.get("maskRcnnEvaluation_gallery").bands == ["z", "r", "g"]
    for name in PLOTS:
        uri = butler.getURI(f"maskRcnnEvaluation_plot_{name}")
        assert uri.read(4) == b"\x89PNG"
    metadata = butler.get("maskRcnnEvaluate_metadata")
    assert metadata["maskRcnnEvaluate"]["n_patches"] == 3
    assert metadata["maskRcnnEvaluate"]["completeness_all"] == pytest.approx(expected)
