# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The pipelines that the page on switching from scarlet prints, as printed."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml

from lsst.meas.maskrcnn.ingest.ingest_model import ingest_model
from lsst.meas.maskrcnn.network.model_file import default_model_path
from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendConfig
from lsst.pipe.base import Pipeline
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

sys.path.append(str(Path(__file__).parent))
from coadd_repo import make_coadd_repo

PAGE = Path(__file__).resolve().parent.parent / "doc" / "lsst.meas.maskrcnn" / "switching-from-scarlet.rst"
BLOCKS = re.findall(r"\.\. code-block:: yaml\n\n((?:   .*\n|\n)+)", PAGE.read_text())
PRINTED = [text for text in map(textwrap.dedent, BLOCKS) if text.startswith("description")]
WHERE = {"skymap": "sky", "tract": 2, "patch": 0}


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
