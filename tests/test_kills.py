# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each command that writes, killed while it does or on a full disk, and run again: nothing is lost."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from killing import CASES, Trial

from lsst.daf.butler import Butler, DatasetType
from lsst.meas.maskrcnn.cli.evaluation_runs import open_butler
from lsst.meas.maskrcnn.ingest.repo import create_repo, open_repo, register_datasets
from lsst.meas.maskrcnn.tasks.normalize import LuptonNormalizeConfig

N_KILLS = 5
FULL = {name: 300 for name in ("train-any-band scenes", "preview", "compare-runs")}
"""Size of a file (bytes) at which the disk is full, for commands that write small ones."""


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trial]:
    """Makes a trial of a command, once for all tests."""
    return functools.cache(lambda name: Trial(CASES[name], tmp_path_factory.mktemp("trial") / "trial"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_killed_and_run_again(name: str, trial: Callable[[str], Trial]) -> None:
    events = trial(name).events
    for event in np.linspace(1, events, N_KILLS).astype(int):
        status, wrong = trial(name).disturb(event=int(event))
        # What the first run imported may have been a change too.
        assert status == -signal.SIGKILL or event == events
        assert not wrong, f"killed at change {event} of {events}"
    status, wrong = trial(name).disturb(file_size=FULL.get(name, 20_000))
    assert status == 1
    assert not wrong, "on a full disk"


_DONE_BY_THE_OTHER = "nother (command|demo) is|there already|holds a model already"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if re.match("simulate|ingest|train|demo", name)])
def test_two_at_once(name: str, trial: Callable[[str], Trial]) -> None:
    """Both succeed, or one says in a line what the other does; nothing is lost or there twice."""
    statuses, logs, wrong = trial(name).run_twice()
    assert 0 in statuses and set(statuses) <= {0, 1}, logs
    for status, log in zip(statuses, logs, strict=True):
        assert status == 0 or re.search(_DONE_BY_THE_OTHER, log.splitlines()[-1]), log
    assert not wrong


def test_halves_are_registered_anew(tmp_path: Path) -> None:
    """A run is registered in two steps, and a dataset type without its table if the disk is full."""
    butler = create_repo(tmp_path / "repo")
    butler.registry.registerDatasetType(
        DatasetType("other_config", ("skymap",), "Config", universe=butler.dimensions)
    )
    kind = DatasetType("some_config", (), "Config", universe=butler.dimensions)
    register_datasets(butler, [kind], "half")
    with contextlib.closing(sqlite3.connect(tmp_path / "repo" / "gen3.sqlite3")) as database:
        database.execute("DELETE FROM run")
        for (table,) in database.execute("SELECT tag_association_table FROM dataset_type").fetchall():
            database.execute(f"DROP TABLE {table}")
        database.commit()
    left = tmp_path / "repo" / "half" / "some_config"
    left.mkdir(parents=True)
    for name in ("tmp63j4ipvy", "ubi65wyqw48l2ayvsome_config.tmp.py", "kept.py"):
        (left / name).write_text("")
    with pytest.raises(RuntimeError, match="missing from database schema"):
        Butler.from_config(str(tmp_path / "repo")).query_datasets("some_config", "half", explain=False)
    butler = open_repo(tmp_path / "repo")
    assert list(butler.registry.queryDatasetTypes()) == []
    register_datasets(butler, [kind], "half")
    assert [path.name for path in left.iterdir()] == ["kept.py"]
    butler.put(LuptonNormalizeConfig(), "some_config", run="half")
    register_datasets(butler, [kind], "half")
    assert butler.find_dataset("some_config", collections="half") is not None


def test_reading_after_a_kill(tmp_path: Path) -> None:
    """A transaction that SQLite had begun to write is taken back."""
    create_repo(tmp_path / "repo")
    child = os.fork()
    if child == 0:
        connection = sqlite3.connect(tmp_path / "repo" / "gen3.sqlite3", isolation_level=None)
        connection.execute("PRAGMA cache_size = 2")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE junk (text TEXT)")
        connection.executemany("INSERT INTO junk VALUES (?)", [("x" * 3000,)] * 500)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    journal = tmp_path / "repo" / "gen3.sqlite3-journal"
    assert journal.stat().st_size
    assert open_butler(str(tmp_path / "repo")).collections.query("*") == []
    assert not journal.exists()
