# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The pipelines that the page on switching from scarlet prints, as printed."""

from __future__ import annotations

import re
import sys
import textwrap
import types
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from coadd_repo import make_coadd_repo

from lsst.daf.butler import Butler, DatasetType
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.ingest.ingest_model import ingest_model
from lsst.meas.maskrcnn.network.model_file import default_model_path
from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendConfig
from lsst.pipe.base import Pipeline
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

PAGE = Path(__file__).resolve().parent.parent / "doc" / "lsst.meas.maskrcnn" / "switching-from-scarlet.rst"
PIPELINES = PAGE.parent.parent.parent / "pipelines"


def blocks(language: str) -> list[str]:
    """Code of the page in a language."""
    found = re.findall(rf"\.\. code-block:: {language}\n\n((?:   .*\n|\n)+)", PAGE.read_text())
    return [textwrap.dedent(text) for text in found]


PRINTED = blocks("yaml")
WHERE = {"skymap": "sky", "tract": 2, "patch": 0}
SIMULATED = {"skymap": "maskRcnnSim-lsst-1yr", "tract": 1}


@pytest.fixture
def simulated(tmp_path: Path) -> Path:
    """A repository of two small scenes, and a model."""
    root = tmp_path / "repo"
    command = "--preset lsst-1yr --shape 120 160 --count 2 --split test=10"
    assert maskrcnn("simulate", [str(root), *command.split()]) == 0
    ingest_model(Butler.from_config(str(root), writeable=True), default_model_path())
    return root


def run_pipeline(pipeline: Pipeline, root: Path, *inputs: str) -> Butler:
    butler = SimplePipelineExecutor.prep_butler(str(root), [*inputs, "models/maskRcnn"], "u/me/out")
    SimplePipelineExecutor.from_pipeline(pipeline, butler=butler).run(register_dataset_types=True)
    return butler


@pytest.mark.parametrize("text", PRINTED)
def test_what_the_next_task_reads_is_made(text: str) -> None:
    """The tasks that follow are not on PyPI, but what they read of ours is known here."""
    tasks = yaml.safe_load(text)["tasks"]
    own = MaskRcnnDeblendConfig()
    for name, value in tasks.pop("maskRcnnDeblend")["config"].items():
        part, _, last = name.rpartition(".")
        setattr(own.connections if part else own, last, value)
    connections = own.connections.ConnectionsClass(config=own)
    made = {
        getattr(connections, name).name for name in connections.allConnections if name in connections.outputs
    }
    made |= {getattr(connections, name).name for name in connections.initOutputs}
    (task,) = tasks.values()
    read = {value for name, value in task["config"].items() if name.startswith("connections.")}
    assert {name for name in read if "maskRcnn" in str(name)} <= made
    assert any("maskRcnn" in str(name) for name in read)


def test_matching_finds_its_columns(simulated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the truth, as the page makes it, and of the objects; the tasks are not on PyPI."""
    (code,) = (text for text in blocks("python") if "maskRcnn_truth" in text)
    exec(code.replace("REPO", str(simulated)), {})
    monkeypatch.setenv("MEAS_MASKRCNN_DIR", str(PIPELINES.parent))
    pipeline = Pipeline.from_uri(str(PIPELINES / "MaskRcnnInjected.yaml") + "#maskRcnnDeblend")
    pipeline.addConfigOverride("parameters", "exposures", "deepCoadd_calexp")
    butler = run_pipeline(pipeline, simulated, "simulated/lsst-1yr/test", "u/me/truth")

    tasks = yaml.safe_load((PIPELINES / "MaskRcnnMatchInjected.yaml").read_text())["tasks"]
    settings, config = tasks["matchInjected"]["config"], mock.MagicMock()
    upstream = "lsst.pipe.tasks", "lsst.pipe.tasks.match_tract_catalog_probabilistic"
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in upstream}):
        exec(settings["python"], {"config": config, "parameters": types.SimpleNamespace(bands="g,r,z")})
    match, diff = config.match_tract_catalog, config.diff_matched_catalog
    assert (
        tasks["analyzeInjected"]["config"]["connections.data"] == settings["connections.cat_output_matched"]
    )
    truth = butler.get(settings["connections.name_input_cat_ref"], SIMULATED)
    read = {match.column_ref_order, *match.columns_ref_meas, *match.columns_ref_select_true}
    assert read | set(diff.columns_ref_copy) <= set(truth.colnames)
    assert set(diff.columns_ref_mag_to_nJy) <= set(diff.columns_ref_copy)
    assert set(truth["source_type"]) == {"DeltaFunction", "Sersic"}

    merging = tasks["consolidateMaskRcnnObject"]["config"]
    assert merging["connections.outputCatalog"] == settings["connections.name_input_cat_target"]
    patches = [butler.get(merging["connections.inputCatalogs"], SIMULATED, patch=n) for n in (0, 1)]
    for objects in patches:
        read = {*match.columns_target_meas, *match.columns_target_err, *diff.columns_target_copy}
        assert read <= set(objects.colnames)
        # As the stacking of patches asks for.
        assert [column.dtype for column in objects.columns.values()] == [
            column.dtype for column in patches[0].columns.values()
        ]
    assert len(truth) > sum(map(len, patches)) > 5


def test_measurement_in_each_band(simulated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second pipeline with its task, on simulated patches without visits; needs pipe_tasks."""
    pytest.importorskip("lsst.pipe.tasks.multiBand")
    (code,) = (text for text in blocks("python") if "MeasureMergedCoaddSourcesTask" in text)
    module = types.ModuleType("my_package.measure")
    for name in ("my_package", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    exec(code, vars(module))
    butler = Butler.from_config(str(simulated), collections="simulated/lsst-1yr/test", run="coadds")
    kind = DatasetType("deep_coadd", (*WHERE, "band"), "ExposureF", universe=butler.dimensions)
    butler.registry.registerDatasetType(kind)
    for ref in butler.query_datasets("deepCoadd_calexp"):
        butler.put(butler.get(ref), kind, ref.dataId)
    (text,) = (text for text in PRINTED if "my_package" in text)
    path = simulated.parent / "pipeline.yaml"
    path.write_text("\n".join(line for line in text.splitlines() if "Handles" not in line))
    pipeline = Pipeline.from_uri(str(path))
    pipeline.addConfigOverride("measureObjectUnforced", "doPropagateFlags", False)
    butler = run_pipeline(pipeline, simulated, "coadds", "skymaps")
    for band in "grz":
        made = butler.get("object_unforced_measurement", SIMULATED, patch=0, band=band)
        own = butler.get("deepCoadd_maskRcnnDeblended", SIMULATED, patch=0, band=band)
        assert made["id"].tolist() == own["id"].tolist()
        children = np.asarray(made["parent"]) != 0
        np.testing.assert_array_equal(made["detect_isDeblendedSource"][children], True)
        assert np.isfinite(made["base_PsfFlux_instFlux"]).mean() > 0.9
        inner = made["detect_isPatchInner"] & made["detect_isTractInner"]
        np.testing.assert_array_equal(made["detect_isPrimary"], (made["deblend_nChild"] == 0) & inner)
        assert np.asarray(inner).mean() > 0.7


def test_forced_photometry(tmp_path: Path) -> None:
    """The first pipeline, on a simulated patch; needs drp_tasks."""
    pytest.importorskip("lsst.drp.tasks.forcedPhotCoadd")
    butler, exposures = make_coadd_repo(tmp_path / "repo", WHERE, "gri", "coadds")
    ingest_model(butler, default_model_path())
    (tmp_path / "pipeline.yaml").write_text(PRINTED[0])
    inputs = ["coadds", "models/maskRcnn"]
    writable = SimplePipelineExecutor.prep_butler(str(tmp_path / "repo"), inputs, "u/me/out")
    pipeline = Pipeline.from_uri(str(tmp_path / "pipeline.yaml"))
    SimplePipelineExecutor.from_pipeline(pipeline, butler=writable).run(register_dataset_types=True)
    catalog = writable.get("deepCoadd_maskRcnnCatalog", **WHERE)
    for band in exposures:
        forced = writable.get("object_forced_measurement", band=band, **WHERE)
        assert forced["id"].tolist() == catalog["id"].tolist()
        assert set(forced["base_InputCount_value"].tolist()) == {1}
        single = np.asarray(catalog["parent"]) != 0
        own = writable.get("deepCoadd_maskRcnnDeblended", band=band, **WHERE)
        flux, ours = forced["base_PsfFlux_instFlux"][single], own["base_PsfFlux_instFlux"][single]
        good = np.isfinite(flux) & np.isfinite(ours)
        assert good.sum() > 0
        np.testing.assert_allclose(
            flux[good], ours[good], rtol=0.2, atol=3 * np.nanmedian(own["base_PsfFlux_instFluxErr"])
        )
