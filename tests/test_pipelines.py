# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pipelines: what they read and write, and the overrides for instruments."""

from __future__ import annotations

import functools
import importlib.util
import math
import re
import unittest
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import lsst.pex.config as pex_config
from lsst.daf.butler import Config
from lsst.daf.butler.tests import makeTestRepo
from lsst.meas.maskrcnn.ingest.repo import SEED_CONFIG
from lsst.meas.maskrcnn.tasks.compare import CompareDeblendersConfig
from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendConfig, MaskRcnnDeblendConnections
from lsst.meas.maskrcnn.tasks.evaluate import MaskRcnnEvaluateConfig
from lsst.meas.maskrcnn.tasks.normalize import LuptonNormalizeConfig, ZScoreNormalizeConfig
from lsst.meas.maskrcnn.tasks.simulate import SimulateScenesConfig
from lsst.meas.maskrcnn.tasks.train import MaskRcnnTrainConfig
from lsst.pipe.base import Pipeline
from lsst.pipe.base.tests.pipelineStepTester import PipelineStepTester

PROJECT = Path(__file__).resolve().parent.parent


def deblended(coadd: str) -> set[str]:
    """Names of what the deblending task makes."""
    names = ("Catalog", "Catalog_schema", "Deblended", "Deblended_schema", "Blends", "Object")
    return {f"{coadd}Coadd_maskRcnn{name}" for name in names}


NOT_COADDS = {"maskRcnnModel", "skyMap"}


@pytest.mark.parametrize(
    "overrides, inputs, outputs",
    [
        ({}, {"deepCoadd_calexp", *NOT_COADDS}, deblended("deep")),
        (
            {"maskRcnnDeblend:connections.coaddName": "goodSeeing"},
            {"goodSeeingCoadd_calexp", *NOT_COADDS},
            deblended("goodSeeing"),
        ),
        (
            {"maskRcnnDeblend:model_uri": "model.safetensors"},
            {"deepCoadd_calexp", "skyMap"},
            deblended("deep"),
        ),
    ],
)
def test_deblend(tmp_path: Path, overrides: dict[str, str], inputs: set[str], outputs: set[str]) -> None:
    butler = makeTestRepo(str(tmp_path), config=Config(SEED_CONFIG))
    tester = PipelineStepTester(
        filename=str(PROJECT / "pipelines" / "MaskRcnnDeblend.yaml"),
        step_suffixes=[""],
        initial_dataset_types=[
            (name, {"skymap", "tract", "patch", "band"}, "ExposureF", False) for name in inputs - NOT_COADDS
        ],
        expected_inputs=inputs,
        expected_outputs=outputs,
        pipeline_patches=overrides,
    )
    tester.run(butler, unittest.TestCase())


TRAINED = {"maskRcnnModel", "maskRcnnTraining_steps", "maskRcnnTraining_epochs"}


@pytest.mark.parametrize(
    "overrides, inputs, outputs",
    [
        ({}, {"deepCoadd_calexp", "maskRcnn_truth"}, TRAINED | {"maskRcnnTraining_plot"}),
        (
            {
                "maskRcnnTrain:use_truth_images": "True",
                "maskRcnnTrain:use_initial_model": "True",
                "maskRcnnTrain:do_plot": "False",
            },
            {"deepCoadd_calexp", "maskRcnn_truth", "maskRcnn_truthImage", "maskRcnnInitialModel"},
            TRAINED,
        ),
        (
            {
                "maskRcnnTrain:connections.exposures": "deep_coadd",
                "maskRcnnTrain:connections.outputName": "mine",
                "maskRcnnTrain:stages['heads'].learning_rate": "1e-2",
            },
            {"deep_coadd", "maskRcnn_truth"},
            {"maskRcnnModel", "mine_steps", "mine_epochs", "mine_plot"},
        ),
    ],
)
def test_train(tmp_path: Path, overrides: dict[str, str], inputs: set[str], outputs: set[str]) -> None:
    butler = makeTestRepo(str(tmp_path), config=Config(SEED_CONFIG))
    storage = {
        "maskRcnn_truth": ({"skymap", "tract", "patch"}, "SourceCatalog"),
        "maskRcnnInitialModel": (set(), "MaskRcnnModel"),
    }
    cells = "deep_coadd" in inputs and importlib.util.find_spec("lsst.images") is not None
    coadd = ({"skymap", "tract", "patch", "band"}, "CellCoadd" if cells else "ExposureF")
    tester = PipelineStepTester(
        filename=str(PROJECT / "pipelines" / "MaskRcnnTrain.yaml"),
        step_suffixes=[""],
        initial_dataset_types=[(name, *storage.get(name, coadd), False) for name in inputs],
        expected_inputs=inputs,
        expected_outputs=outputs,
        pipeline_patches=overrides,
    )
    tester.run(butler, unittest.TestCase())
    # What is registered is what is asked for, and no more.
    registered = {item.name for item in butler.registry.queryDatasetTypes()}
    assert {name for name in registered if not name.startswith("maskRcnnTrain_")} - {"packages"} == (
        inputs | outputs
    )


@pytest.mark.parametrize("name", ["Deblend", "Train"])
def test_pipeline_says_what_it_does(name: str) -> None:
    pipeline = Pipeline.from_uri(str(PROJECT / "pipelines" / f"MaskRcnn{name}.yaml"))
    assert pipeline.to_graph().description
    assert list(pipeline.task_labels) == [f"maskRcnn{name}"]


def test_pipeline_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A survey's own pipeline names this one by the package's variable."""
    monkeypatch.setenv("MEAS_MASKRCNN_DIR", str(PROJECT))
    path = tmp_path / "mine.yaml"
    path.write_text(
        "description: Mine\n"
        "imports:\n  - location: $MEAS_MASKRCNN_DIR/pipelines/MaskRcnnDeblend.yaml\n"
        "tasks:\n  maskRcnnDeblend:\n"
        "    class: lsst.meas.maskrcnn.tasks.deblend.MaskRcnnDeblendTask\n"
        "    config:\n      file: $MEAS_MASKRCNN_DIR/config/HSC.py\n      shares.parent_grow: 9.0\n"
    )
    graph = Pipeline.from_uri(str(path)).to_graph()
    config = graph.tasks["maskRcnnDeblend"].config
    assert config.shares.parent_grow == 9.0
    assert "BRIGHT_OBJECT" in config.bad_planes


def test_tables_of_tracts_come_from_those_of_patches() -> None:
    """Their tasks are not on PyPI: only names can be checked here."""
    tasks = yaml.safe_load((PROJECT / "pipelines" / "MaskRcnnObjectTable.yaml").read_text())["tasks"]
    config = MaskRcnnDeblendConfig()
    config.load(str(PROJECT / "config" / "LSSTCam.py"))
    made = {config.connections.objectTable, config.connections.blendStatistics}
    merging = [task["config"] for name, task in tasks.items() if name.startswith("consolidate")]
    assert {one["connections.inputCatalogs"] for one in merging} == made
    assert tasks["analyzeMaskRcnnParent"]["config"]["connections.data"] in {
        one["connections.outputCatalog"] for one in merging
    }


@pytest.mark.parametrize("instrument", ["HSC", "DECam", "LSSTCam", "LSSTComCam"])
def test_overrides(instrument: str) -> None:
    config = MaskRcnnDeblendConfig()
    config.load(str(PROJECT / "config" / f"{instrument}.py"))
    config.validate()
    default = MaskRcnnDeblendConfig()
    assert config.toDict() != default.toDict()
    rubin = instrument.startswith("LSST")
    names = config.connections
    assert names.exposures == ("deep_coadd" if rubin else "{coaddName}Coadd_calexp")
    made = MaskRcnnDeblendConfig.ConnectionsClass.outputs | {"outputSchema", "bandSchema"}
    outputs = {getattr(names, name) for name in made}
    assert len(outputs) == len(made)
    assert all(
        name.startswith("object_maskrcnn" if rubin else "{coaddName}Coadd_maskRcnn") for name in outputs
    )


def numbers(config: pex_config.Config, path: str = "") -> Iterator[tuple[str, type, bool]]:
    """Yield the fields that hold numbers: name, type of the number, and whether it is a list of them."""
    for name, field in config._fields.items():
        kind = getattr(field, "itemtype", None) or getattr(field, "dtype", None)
        if isinstance(getattr(config, name), pex_config.Config):
            yield from numbers(getattr(config, name), f"{path}{name}.")
        elif kind in (int, float) and not isinstance(field, pex_config.DictField):
            yield f"{path}{name}", kind, isinstance(field, pex_config.ListField)


@pytest.mark.parametrize(
    "kind",
    [
        MaskRcnnDeblendConfig,
        MaskRcnnTrainConfig,
        MaskRcnnEvaluateConfig,
        CompareDeblendersConfig,
        SimulateScenesConfig,
        LuptonNormalizeConfig,
        ZScoreNormalizeConfig,
    ],
)
def test_no_number_is_negative_or_nan(kind):
    fields = [
        (name, number, in_list)
        for name, number, in_list in numbers(kind())
        # Of tasks of others.
        if not name.startswith(("measurement.", "forcedMeasurement.", "catalogCalculation.", "applyApCorr."))
    ]
    assert fields
    for name, number, in_list in fields:
        for value in (number(-1), *([math.nan] if number is float else [])):
            config = kind()
            parent = functools.reduce(getattr, name.split(".")[:-1], config)
            with pytest.raises((ValueError, TypeError)):
                setattr(parent, name.split(".")[-1], [value] * 3 if in_list else value)
                config.validate()
                pytest.fail(f"{name} = {value} is taken")


@pytest.mark.parametrize("camera", ["LSSTCam", "LSSTComCam"])
def test_names_of_the_data_releases(camera: str) -> None:
    """Those of the page on deblending; no dataset keeps its old name."""
    config = MaskRcnnDeblendConfig(doModelImages=True)
    before = MaskRcnnDeblendConnections(config=config)
    config.load(str(PROJECT / "config" / f"{camera}.py"))
    after = MaskRcnnDeblendConnections(config=config)
    kinds = [name for name in before.allConnections if getattr(before, name).name.startswith("deepCoadd_")]
    names = {getattr(before, name).name: getattr(after, name).name for name in kinds}
    page = (PROJECT / "doc" / "lsst.meas.maskrcnn" / "deblending.rst").read_text()
    table = re.findall(r"^``(deepCoadd_\w+)`` +``(\w+)``$", page, re.MULTILINE)
    assert dict(table) == {old: new for old, new in names.items() if not old.endswith("_schema")}
    assert not any(new.startswith("deepCoadd") for new in names.values())
