# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commands that are killed, or run out of space, while they write."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import resource
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits

from lsst.daf.butler import Butler, MissingDatasetTypeError
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.ingest.repo import create_repo
from lsst.meas.maskrcnn.network.model_file import read_model

_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
_SQL = re.compile(r"\s*(BEGIN IMMEDIATE|INSERT|UPDATE|DELETE|CREATE|COMMIT|SAVEPOINT|RELEASE)", re.I)


def run_in_child(
    command: str | Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    log: Path,
    *,
    event: int = 0,
    after: float = 0.0,
    file_size: int = 0,
) -> tuple[int, int]:
    """Run a command in a fork of this process.

    Parameters
    ----------
    command : `str`
        A subcommand of ``maskrcnn``.
    arguments : `~collections.abc.Sequence` [`str`]
        Its arguments.
    log : `pathlib.Path`
        Takes what it prints.
    event : `int`, optional
        Kill it before it changes files for the ``event``-th time: opens one
        to write, renames, removes, syncs, or begins or ends a transaction.
    after : `float`, optional
        Kill it after this time (s).
    file_size : `int`, optional
        Let no file grow larger than this (bytes), as if the disk were full.

    Returns
    -------
    status, events : `int`
        Exit status, negative for a signal; and how often it changed files.
    """
    counter = log.with_suffix(".events")
    counter.write_bytes(b"\0" * 8)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            os._exit(_run(command, arguments, log, counter, event, file_size))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)
    if after:
        end = time.monotonic() + after
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.005)
        else:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
    else:
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int.from_bytes(counter.read_bytes(), "little")


def _run(
    command: str | Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    log: Path,
    counter: Path,
    event: int,
    file_size: int,
) -> int:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
    logging.getLogger().handlers.clear()
    torch.set_num_threads(1)
    handle = os.open(counter, os.O_RDWR)
    count = 0

    def change() -> None:
        nonlocal count
        count += 1
        os.pwrite(handle, count.to_bytes(8, "little"), 0)
        if count == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def trace(statement: str) -> None:
        if _SQL.match(statement):
            change()

    def audit(name: str, details: tuple[Any, ...]) -> None:
        if name in _EVENTS or (
            name == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            change()

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        change()
        sync(descriptor)

    connect = sqlite3.connect

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(trace)
        return connection

    os.fsync, sqlite3.connect = fsync, traced
    sys.addaudithook(audit)
    if file_size:
        # Python ignores SIGXFSZ, so that writing fails.
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    return command(arguments) if callable(command) else maskrcnn(command, arguments)


def what_is_there(folder: Path) -> dict[str, str]:
    """Do `_what_is_there` in a process of its own: SQLite must not be open when this one forks."""
    found = folder.with_name("found.json")
    found.unlink(missing_ok=True)
    status, _ = run_in_child(
        lambda _: found.write_text(json.dumps(_what_is_there(folder))) * 0, [], folder.with_name("found.log")
    )
    assert status == 0, folder.with_name("found.log").read_text()
    return json.loads(found.read_text())


def _what_is_there(folder: Path) -> dict[str, str]:
    """Say what is in a folder, by name; a repository gives its datasets, and what does not belong to them.

    Times of day and durations are left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "sqlite" not in path.name:
            found[str(path.relative_to(folder))] = _digest(path)
    for config in sorted(folder.rglob("butler.yaml")):
        root = config.parent
        butler = Butler.from_config(str(root))
        names = set()
        for collection in butler.collections.query("*"):
            info = butler.collections.get_info(collection)
            found[f"collection {collection}"] = f"{info.type.name} {list(info.children)}"
        for dataset_type in sorted(butler.registry.queryDatasetTypes()):
            try:
                refs = butler.query_datasets(dataset_type, "*", find_first=False, explain=False, limit=None)
            except MissingDatasetTypeError:
                continue
            for ref in refs:
                name = str(Path(butler.getURI(ref).ospath).relative_to(folder))
                label = f"dataset {ref.datasetType.name} {ref.dataId} {ref.run}"
                found[label] = "twice" if label in found else found.get(name, "missing")
                names.add(name)
        for name in list(found):
            if (folder / name).is_relative_to(root) and (folder / name).is_file():
                if name in names or (folder / name) == config:
                    del found[name]
    return found


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix in (".yaml", ".json", ".ecsv", ".parq", ".png", ".log", ".html") or "history" in path.name:
        # These hold times.
        return "some" if data else "empty"
    if path.suffix == ".safetensors":
        model = read_model(path)
        digest = hashlib.sha256(str([model.metadata.name, model.metadata.training.get("steps")]).encode())
        for name, value in sorted(model.state.items()):
            digest.update(name.encode() + np.ascontiguousarray(value.numpy()).tobytes())
        return digest.hexdigest()
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Case:
    """A command that writes: what makes its inputs in a folder, and its arguments there."""

    command: str
    arguments: Callable[[Path], list[str]]
    prepare: Callable[[Path], None] = lambda folder: None


_SCENES = ("--preset", "hsc-500s", "--shape", "64", "96", "--no-flux", "--seed", "3")
_SHORT = "--batch-size 2 --jobs 1 --device cpu -c crops.size=64 -c engine.checkpoint_minutes=0"


def _make_repo(folder: Path) -> None:
    create_repo(folder / "repo")


def _write_images(folder: Path) -> None:
    rng = np.random.default_rng(5)
    for band in "gr":
        header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0})
        header.update({"CRPIX1": 40.0, "CRPIX2": 30.0, "CD1_1": -5e-5, "CD2_2": 5e-5, "FILTER": band})
        fits.PrimaryHDU(rng.normal(0.0, 1.0, (64, 80)).astype("f4"), header).writeto(folder / f"{band}.fits")


def _simulate(folder: Path) -> None:
    arguments = [str(folder / "repo"), *_SCENES, "--count", "2", "--split", "train=9,validation=1"]
    assert maskrcnn("simulate", arguments) == 0


def train_on_scenes(steps: int) -> Case:
    """Train without a repository."""
    return Case(
        "train",
        lambda folder: (
            [str(folder / "model.safetensors"), "--scenes", str(folder / "scenes")]
            + ["--count", "1", "--presets", "hsc-500s", "--steps", str(steps), *_SHORT.split()]
        ),
    )


CASES = {
    "simulate_scenes": Case("simulate", lambda folder: [str(folder / "repo"), *_SCENES, "--count", "2"]),
    "ingest_fits": Case(
        "ingest-fits",
        lambda folder: (
            [str(folder / "repo"), "--band", f"g={folder}/g.fits", f"r={folder}/r.fits"]
            + ["--zeropoint", "27", "--psf-fwhm", "0.7"]
        ),
        _write_images,
    ),
    "ingest_model": Case(
        "ingest-model", lambda folder: [str(folder / "repo"), "--collection", "models/one"], _make_repo
    ),
    "train": Case(
        "train",
        lambda folder: (
            [str(folder / "repo"), "-i", "simulated/hsc-500s", "-o", "trained/one"]
            + ["--schedule", "scratch", "--steps", "3", *_SHORT.split()]
        ),
        _simulate,
    ),
    "train --scenes": train_on_scenes(3),
}


@dataclass
class Trial:
    """Runs a case disturbed and undisturbed in a folder of its own."""

    case: Case
    folder: Path

    def __post_init__(self) -> None:
        self.log = self.folder / "log"
        self._inputs = self.folder / "inputs"
        self._inputs.mkdir(parents=True)
        status, _ = run_in_child(lambda _: bool(self.case.prepare(self._inputs)), [], self.log)
        assert status == 0, self.log.read_text()
        self.run = functools.partial(run_in_child, self.case.command, log=self.log)
        work = self._start()
        status, self.events = self.run(self.case.arguments(work))
        assert status == 0, self.log.read_text()
        self.wanted = what_is_there(work)

    def _start(self) -> Path:
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self._inputs, work)
        return work

    def disturb(self, **how: Any) -> tuple[int, dict[str, list[str]]]:
        """Run the command disturbed and then again; return the first status and what went wrong."""
        work = self._start()
        arguments = self.case.arguments(work)
        status, _ = self.run(arguments, **how)
        first = self.log.read_text()
        again, _ = self.run(arguments)
        wrong: dict[str, list[str]] = {}
        if status not in (0, 1, -signal.SIGKILL) or (status == 1 and "Traceback" in first):
            wrong["raw"] = first.splitlines()[-3:]
        text = self.log.read_text()
        # It may have been killed after all was done.
        if again != 0 and not (again == 1 and "already" in text and "Traceback" not in text):
            wrong["failed"] = text.splitlines()[-3:]
        self._compare(work, wrong)
        return status, wrong

    def disturb_often(self, kills: int, rng: np.random.Generator) -> tuple[int, dict[str, list[str]]]:
        """Kill the command so often at random changes, then let it end; return kills and what went wrong."""
        work = self._start()
        arguments, wrong = self.case.arguments(work), dict[str, list[str]]()
        done = 0
        while done < kills:
            # About 6 changes a step.
            status, _ = self.run(arguments, event=int(rng.integers(1, 16)))
            if status != -signal.SIGKILL:
                break
            done += 1
        else:
            status, _ = self.run(arguments)
        if status != 0:
            wrong["failed"] = self.log.read_text().splitlines()[-3:]
        self._compare(work, wrong)
        return done, wrong

    def run_twice(self) -> tuple[list[int], list[str], dict[str, list[str]]]:
        """Run the command in two processes at once; return the statuses, logs, and what is wrong."""
        work = self._start()
        logs = [self.folder / f"log{number}" for number in range(2)]
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda log: self.run(self.case.arguments(work), log=log)[0], logs))
        wrong: dict[str, list[str]] = {}
        self._compare(work, wrong)
        return done, [log.read_text() for log in logs], wrong

    def _compare(self, work: Path, wrong: dict[str, list[str]]) -> None:
        found = what_is_there(work)
        for name in {**self.wanted, **found}:
            there, here = self.wanted.get(name), found.get(name)
            if there != here:
                kind = (
                    "left over" if there is None else "lost" if here in (None, "missing", "empty") else here
                )
                wrong.setdefault(kind if kind in ("left over", "lost", "twice") else "differing", []).append(
                    name
                )
