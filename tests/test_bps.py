# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The submit files of ``bps/``: six patches through Parsl, with a worker that is killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lsst.daf.butler import Butler
from lsst.meas.maskrcnn.cli.main import main as maskrcnn

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "bps").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_submit_file_names_what_there_is(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    for name in content.get("includeConfigs", []):
        if "MEAS_MASKRCNN_DIR" in name:
            assert Path(name.replace("${MEAS_MASKRCNN_DIR}", str(ROOT))).is_file(), name
    if "pipelineYaml" in content:
        pipeline = Path(content["pipelineYaml"].replace("${MEAS_MASKRCNN_DIR}", str(ROOT)))
        tasks = yaml.safe_load(pipeline.read_text())["tasks"]
        assert {cluster["pipetasks"] for cluster in content["cluster"].values()} <= set(tasks)
        assert set(tasks) < set(content["pipetask"])


def kill_a_quantum(submission: subprocess.Popen[bytes], wanted: str) -> bool:
    """Kill the first process that runs a quantum of a submission, once it is there."""
    while submission.poll() is None:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if "run-qbb" in command and wanted in command and "python" in command.split(" ")[0]:
                os.kill(int(entry.parent.name), signal.SIGKILL)
                return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_six_patches_and_a_killed_worker(tmp_path: Path) -> None:
    pytest.importorskip("lsst.ctrl.bps.parsl", reason="lsst-ctrl-bps-parsl is not installed")
    repo = tmp_path / "repo"
    options = ["--count", "6", "--shape", "100", "110", "--no-flux", "--split", "test=10"]
    assert maskrcnn("simulate", [str(repo), *options]) == 0
    assert maskrcnn("ingest-model", [str(repo)]) == 0
    command = [
        *("bps", "submit", str(ROOT / "bps" / "parsl-local.yaml"), "-b", str(repo)),
        *("-i", "simulated/hsc-wide/test,models/maskRcnn", "-o", "deblended"),
        *("-d", "skymap='maskRcnnSim-hsc-wide'"),
    ]
    # BPS puts its folder into $PWD.
    own = {"MEAS_MASKRCNN_DIR": str(ROOT), "OMP_NUM_THREADS": "1", "PWD": str(tmp_path)}
    environment = {**os.environ, **own}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with (tmp_path / "log").open("wb") as log:
        submission = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        killed = kill_a_quantum(submission, str(tmp_path))
        submission.wait(timeout=1800)
    text = (tmp_path / "log").read_text(errors="replace")
    assert killed, text[-3000:]
    with Butler.from_config(str(repo)) as butler:
        for name, count in (("deepCoadd_maskRcnnObject", 6), ("deepCoadd_maskRcnnDeblended", 18)):
            refs = butler.query_datasets(name, collections="deblended", find_first=False)
            assert len(refs) == len({ref.dataId for ref in refs}) == count, text[-3000:]
            for ref in refs:
                butler.get(ref)
