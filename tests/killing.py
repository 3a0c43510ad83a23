# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commands that are killed, or run out of space, while they write."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import logging
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from astropy.io import fits

from lsst.ctrl.mpexec.cli.pipetask import cli
from lsst.daf.butler import Butler, MissingDatasetTypeError
from lsst.meas.maskrcnn.cli import demo, train_any_band
from lsst.meas.maskrcnn.cli.command import CommandError
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.cli.paths import pipeline_path
from lsst.meas.maskrcnn.ingest.repo import create_repo
from lsst.meas.maskrcnn.network.model_file import default_model_path, read_model

sys.path.append(str(Path(__file__).parent))
from evaluation_sample import make_sample, put_sample
from test_import_astro_rcnn import write_set

_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
_STAMP = re.compile(r"(.*/)\d{8}T\d{6}Z")
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
    counter, modules = log.with_suffix(".events"), log.with_suffix(".modules")
    counter.write_bytes(b"\0" * 8)
    modules.unlink(missing_ok=True)
    sys.stdout.flush()
    # Through a pipe, so that what it says may have any size.
    with log.open("wb") as stream, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=stream) as said:
        assert said.stdin is not None
        child = _fork(command, arguments, said.stdin.fileno(), counter, modules, event, file_size)
        said.stdin.close()
        status = _wait(child, after)
    if modules.exists():
        # Further forks need not import them again.
        for name in set(modules.read_text().split()) - set(sys.modules):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    return os.waitstatus_to_exitcode(status), int.from_bytes(counter.read_bytes(), "little")


def _wait(child: int, after: float) -> int:
    """Wait for a process, or kill it after some time (s), if it is not 0; return what `os.waitpid` does."""
    end = time.monotonic() + after
    while after and time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.005)
    if after:
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _fork(
    command: str | Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    stream: int,
    counter: Path,
    modules: Path,
    event: int,
    file_size: int,
) -> int:
    """Run a command in a fork; return its number."""
    child = os.fork()
    if child:
        return child
    try:
        status = _run(command, arguments, stream, counter, event, file_size)
        if not file_size:
            modules.write_text("\n".join(sys.modules))
        os._exit(status)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        # Whatever happens, what the parent will clean up is not this process's.
        os._exit(70)


def _run(
    command: str | Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    stream: int,
    counter: Path,
    event: int,
    file_size: int,
) -> int:
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

    Times of day and durations are left out. Of runs whose names end in their times, the last one counts:
    that of a killed pipetask stays behind it.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "sqlite" not in path.name:
            found[str(path.relative_to(folder))] = _digest(path)
    for config in sorted(folder.rglob("butler.yaml")):
        root = config.parent
        butler = Butler.from_config(str(root))
        names, last = set(), dict[str, str]()
        for collection in sorted(butler.collections.query("*")):
            if stamped := _STAMP.fullmatch(collection):
                last[stamped[1]] = collection
        for collection in butler.collections.query("*"):
            info = butler.collections.get_info(collection)
            children = dict.fromkeys(map(_timeless, info.children))
            found[f"collection {_timeless(collection)}"] = f"{info.type.name} {list(children)}"
        for dataset_type in sorted(butler.registry.queryDatasetTypes()):
            try:
                refs = butler.query_datasets(dataset_type, "*", find_first=False, explain=False, limit=None)
            except MissingDatasetTypeError:
                continue
            for ref in refs:
                name = str(Path(butler.getURI(ref).ospath).relative_to(folder))
                names.add(name)
                stamped = _STAMP.fullmatch(ref.run)
                if stamped and last[stamped[1]] != ref.run:
                    continue
                label = f"dataset {ref.datasetType.name} {ref.dataId} {_timeless(ref.run)}"
                found[label] = "twice" if label in found else found.get(name, "missing")
        for name in list(found):
            path = folder / name
            if path.is_relative_to(root) and path.is_file():
                stamped = _STAMP.match(str(path.relative_to(root)))
                behind = stamped and not path.is_relative_to(root / last[stamped[1]])
                if name in names or path == config or behind:
                    del found[name]
    return found


def _timeless(run: str) -> str:
    return _STAMP.sub(r"\1TIME", run)


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix in (".yaml", ".json", ".ecsv", ".parq", ".png", ".log", ".html") or "history" in path.name:
        # These hold times.
        return "some" if data else "empty"
    if path.suffix == ".safetensors":
        model = read_model(path)
        about = model.metadata
        digest = hashlib.sha256(str([about.name, about.training.get("steps"), about.calibration]).encode())
        for name, value in sorted(model.state.items()):
            digest.update(name.encode() + np.ascontiguousarray(value.numpy()).tobytes())
        return digest.hexdigest()
    if path.suffix == ".fits":
        # Headers say in which run, and when.
        data = b""
        with fits.open(path, memmap=False) as hdus:
            for hdu in hdus:
                if "deblend_runtime" in (getattr(hdu.data, "names", None) or ()):
                    hdu.data["deblend_runtime"] = 0.0
                data += hdu.name.encode() + (b"" if hdu.data is None else hdu.data.tobytes())
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Case:
    """A command that writes: what makes its inputs in a folder, and its arguments there."""

    command: str | Callable[[Sequence[str]], int]
    arguments: Callable[[Path], list[str]]
    prepare: Callable[[Path], None] = lambda folder: None


_SCENES = ("--preset", "hsc-500s", "--shape", "64", "96", "--no-flux", "--seed", "3")
_SHORT = (
    "--schedule published -c stage_order=['heads'] --batch-size 2 --jobs 1 --device cpu -c crops.size=64 "
    "-c engine.checkpoint_minutes=0"
)


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


def _write_set(folder: Path) -> None:
    write_set(folder / "set_2")


def _evaluate(folder: Path) -> None:
    butler = create_repo(folder / "repo")
    for name, quality in (("u/first", 0.9), ("u/second", 0.7)):
        put_sample(butler, make_sample(name, 3, quality), name)


def _simulate_and_ingest(folder: Path) -> None:
    _simulate(folder)
    assert maskrcnn("ingest-model", [str(folder / "repo"), "--collection", "models/lite"]) == 0


def _pipetask(arguments: Sequence[str]) -> int:
    try:
        return int(cli.main(list(arguments), "pipetask", standalone_mode=False) or 0)
    except click.exceptions.Exit as error:
        return error.exit_code


def _resume_pipetask(arguments: Sequence[str]) -> int:
    """Do what the page on kills says."""
    collections = Butler.from_config(arguments[2], writeable=True).collections
    begun = "found" in collections.query("*") and collections.get_info("found").children
    more = ["--extend-run", "--skip-existing", "--clobber-outputs"] if begun else []
    try:
        return _pipetask([*arguments, *more])
    except click.ClickException as error:
        # Killed when all was done, nothing is left to do.
        if begun and "QuantumGraph was empty" in str(error):
            return 0
        raise


def _demo(arguments: Sequence[str]) -> int:
    """Run pipetask in the same process, so that the demo is killed at its changes too."""

    def run(command: Sequence[str], log: Path) -> None:
        log.touch()
        if _pipetask(command[1:]):
            raise CommandError("pipetask failed")

    demo._run_pipetask = run
    return maskrcnn("demo", arguments)


def _train_bands(arguments: Sequence[str]) -> int:
    """Train with a checkpoint after every step."""
    train_any_band.TrainSettings = functools.partial(train_any_band.TrainSettings, checkpoint_minutes=0.0)
    return maskrcnn("train-any-band train", arguments)


def _make_scenes(folder: Path) -> None:
    for name, count, seed in (("scenes", 10, 1), ("valid", 1, 2)):
        options = ["--count", str(count), "--seed", str(seed), "--size", "64"]
        assert maskrcnn("train-any-band scenes", [str(folder / name), *options]) == 0


def train_on_scenes(steps: int) -> Case:
    """Train without a repository."""
    return Case(
        "train",
        lambda folder: (
            [str(folder / "model.safetensors"), "--scenes", str(folder / "scenes")]
            + ["--count", "1", "--presets", "hsc-500s", "--steps", str(steps), *_SHORT.split()]
        ),
    )


def train_for_any_bands(steps: int) -> Case:
    """Train a network for any bands."""
    return Case(
        _train_bands,
        lambda folder: (
            ["--scenes", str(folder / "scenes"), "--valid", str(folder / "valid"), "-o", str(folder / "out")]
            + ["--steps", str(steps), "--batch-size", "1", "--crop-size", "64", "--device", "cpu"]
        ),
        _make_scenes,
    )


CASES = {
    "simulate": Case("simulate", lambda folder: [str(folder / "repo"), *_SCENES, "--count", "2"]),
    "ingest-fits": Case(
        "ingest-fits",
        lambda folder: (
            [str(folder / "repo"), "--band", f"g={folder}/g.fits", f"r={folder}/r.fits"]
            + ["--zeropoint", "27", "--psf-fwhm", "0.7"]
        ),
        _write_images,
    ),
    "ingest-model": Case(
        "ingest-model", lambda folder: [str(folder / "repo"), "--collection", "models/one"], _make_repo
    ),
    "import-astro-rcnn": Case(
        "import-astro-rcnn",
        lambda folder: (
            [str(folder / "repo"), str(folder), "--psf-fwhm", "0.9"]
            + ["--zeropoint", "z=28.4", "r=28.9", "g=29.4"]
        ),
        _write_set,
    ),
    "train": Case(
        "train",
        lambda folder: (
            [str(folder / "repo"), "-i", "simulated/hsc-500s", "-o", "trained/one"]
            + ["--steps", "3", *_SHORT.split()]
        ),
        _simulate,
    ),
    "train --scenes": train_on_scenes(3),
    "train-any-band scenes": Case(
        "train-any-band scenes", lambda folder: [str(folder / "scenes"), "--count", "2", "--size", "64"]
    ),
    "train-any-band train": train_for_any_bands(3),
    "calibrate": Case(
        "calibrate",
        lambda folder: (
            ["--model", str(default_model_path()), "-o", str(folder / "model.safetensors")]
            + ["--scenes", str(folder / "scenes"), "--device", "cpu"]
        ),
        _make_scenes,
    ),
    "pipetask": Case(
        _resume_pipetask,
        lambda folder: (
            ["run", "-b", str(folder / "repo"), "-p", str(pipeline_path("MaskRcnnDeblend.yaml"))]
            + ["-i", "simulated/hsc-500s,models/lite", "-o", "found", "--register-dataset-types"]
            + ["-c", "maskRcnnDeblend:doMeasure=False"]
        ),
        _simulate_and_ingest,
    ),
    "demo": Case("demo", lambda folder: ["--out", str(folder / "out"), "--size", "64", "64", "--cores", "1"]),
    "preview": Case(
        "preview",
        lambda folder: [str(folder / "repo"), "--out", str(folder / "pages"), "--panel", "64"],
        _simulate,
    ),
    "evaluate-report": Case(
        "evaluate-report",
        lambda folder: [
            str(folder / "repo"),
            "u/first",
            "--out",
            str(folder / "page.html"),
            "--samples",
            "50",
        ],
        _evaluate,
    ),
    "compare-runs": Case(
        "compare-runs",
        lambda folder: (
            [str(folder / "repo"), "u/first", "u/second", "--out", str(folder / "table.csv")]
            + ["--samples", "9"]
        ),
        _evaluate,
    ),
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
        work, began = self._start(), time.monotonic()
        status, self.events = self.run(self.case.arguments(work))
        self.seconds = time.monotonic() - began
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
        if status not in (0, 1, -signal.SIGKILL) or (status == 1 and self._is_raw(first)):
            wrong["raw"] = first.splitlines()[-3:]
        text = self.log.read_text()
        # It may have been killed after all was done.
        if again != 0 and not (again == 1 and "already" in text and not self._is_raw(text)):
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

    def _is_raw(self, text: str) -> bool:
        """Say whether a command ended in a traceback; pipetask does."""
        known = self.case.command is _resume_pipetask or text.splitlines()[-1].startswith("maskrcnn ")
        return "Traceback" in text and not known

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
