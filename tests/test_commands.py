# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command ``maskrcnn``: help, options, completion, and the scripts in bin/."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lsst.meas.maskrcnn.cli import main as commands
from lsst.meas.maskrcnn.cli.command import CommandError, check_folder
from lsst.meas.maskrcnn.cli.main import main as maskrcnn

SCRIPTS = {
    "calibrate_model": "calibrate",
    "compare_runs": "compare-runs",
    "import_astro_rcnn": "import-astro-rcnn",
    "ingest_fits": "ingest-fits",
    "ingest_model": "ingest-model",
    "preview_scenes": "preview",
    "report": "evaluate-report",
    "simulate_scenes": "simulate",
    "train": "train",
    "train_any_band": "train-any-band",
}


@pytest.fixture
def given(monkeypatch) -> list[tuple[str, dict]]:
    """What commands are started with, instead of starting them."""
    calls: list[tuple[str, dict]] = []
    monkeypatch.setattr(
        commands, "_start", lambda module, options, function="run": calls.append((module, options))
    )
    return calls


def test_help_imports_nothing_heavy(project_dir):
    code = (
        "import sys; from lsst.meas.maskrcnn.cli.main import main; status = main('train', ['--help']);"
        "heavy = {'torch', 'numpy', 'astropy', 'lsst.daf', 'pydantic'} & set(sys.modules);"
        "sys.exit(status or (repr(heavy) if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: maskrcnn train [OPTIONS]") and "--minutes" in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(project_dir: Path, monkeypatch, capsys, name: str) -> None:
    """What is in bin/ calls the command of its name."""
    script = project_dir / "bin" / name
    assert os.access(script, os.X_OK)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert f"Usage: maskrcnn {SCRIPTS[name]} " in capsys.readouterr().out


def test_all_commands_are_there(project_dir):
    assert set(SCRIPTS.values()) | {"demo"} == set(commands.maskrcnn.commands)
    assert {path.name for path in (project_dir / "bin").iterdir()} >= {*SCRIPTS, "demo"}


def test_version_and_completion(monkeypatch, capsys):
    assert maskrcnn("", ["--version"]) == 0
    assert capsys.readouterr().out.startswith("maskrcnn, version ")
    monkeypatch.setenv("_MASKRCNN_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "maskrcnn ingest-m")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        maskrcnn("", [])
    assert capsys.readouterr().out.strip() == "plain,ingest-model"


def test_same_options_everywhere():
    """A letter means one thing in all commands."""
    meaning = {"-b": {"repo"}, "-j": {"jobs", "cores"}, "-c": {"config"}, "-i": {"input", "collection"}}
    meaning["-i"].add("collections")
    meaning["-o"] = {"out", "output", "collection"}
    for name, command in commands.maskrcnn.commands.items():
        for param in command.params:
            for option in param.opts:
                assert option not in meaning or param.name in meaning[option], (name, option)


def test_several_values(given):
    assert maskrcnn("demo", ["--fits", "a.fits", "b.fits", "--zeropoint", "-1", "2", "-o", "x"]) == 0
    assert maskrcnn("demo", ["--fits=a.fits", "b.fits", "--fits", "c.fits", "--size", "80", "70"]) == 0
    (_, first), (_, second) = given
    assert first["fits"] == (Path("a.fits"), Path("b.fits")) and first["zeropoint"] == ("-1", "2")
    assert len(second["fits"]) == 3 and second["size"] == (80, 70) and second["bands"] == ()


def test_words_stand_for_options(given):
    assert maskrcnn("compare-runs", ["repo", "one", "two", "--samples", "5"]) == 0
    assert maskrcnn("compare-runs", ["-b", "repo", "-i", "one", "two", "--samples", "5"]) == 0
    assert given[0] == given[1]
    assert given[0][1]["collections"] == ("one", "two")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare-runs", "repo"], "Missing option '-i'"),
        (["ingest-model"], "Missing option '-b'"),
        (["ingest-model", "repo", "file", "more"], "unexpected extra argument"),
        (["demo", "--fits"], "requires an argument"),
        (["demo", "--bandz", "g"], "No such option"),
        (["train", "repo", "--schedule", "none"], "is not one of"),
    ],
)
def test_wrong_options_are_named(capsys, arguments, message):
    assert maskrcnn("", arguments) == 2
    assert message in capsys.readouterr().err


def test_every_option_has_help():
    """But for those that say all by their name."""
    plain = {"bands", "count"}
    for name, command in commands.maskrcnn.commands.items():
        for param in command.params:
            assert isinstance(param, click.Option)
            assert param.help or param.name in plain, (name, param.name)
            assert not re.search(r"default", param.help or "") or name == "import-astro-rcnn"


def test_printed_commands_are_possible(project_dir, given, monkeypatch):
    """Those of README and pages have the options of the commands; run_printed_commands.py runs them."""
    monkeypatch.syspath_prepend(str(project_dir / "tests" / "benchmarks"))
    from run_printed_commands import PAGES, printed_commands

    wrong, number = [], 0
    for page in [project_dir / "README.md", *PAGES.glob("*.rst")]:
        for command in printed_commands(page):
            words = shlex.split(command)
            assert words[0] not in SCRIPTS, command
            if words[0] == "maskrcnn" and "..." not in words:
                number += 1
                if maskrcnn("", words[1:]):
                    wrong.append((page.name, command))
    assert not wrong and number > 30


def test_folders_that_cannot_be_written_to_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    check_folder(tmp_path.parent / "model.safetensors")
    with pytest.raises(
        CommandError, match=r"cannot be written to; choose another one for model\.safetensors"
    ):
        check_folder(tmp_path / "model.safetensors")
    with pytest.raises(CommandError, match="There is no folder"):
        check_folder(tmp_path / "none" / "model.safetensors")
