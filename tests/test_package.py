# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The package as a whole: metadata, imports, scripts."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from no_lsst import run_without_lsst

from lsst.meas.maskrcnn.cli.paths import package_dir, pipeline_path
from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendTask
from lsst.meas.maskrcnn.tasks.simulate import SimulateScenesTask
from lsst.pex.config import Config, ConfigField, ConfigurableField, RegistryField

SOURCES_ROOT = Path(__file__).resolve().parent.parent / "python" / "lsst" / "meas" / "maskrcnn"
SOURCES = sorted(SOURCES_ROOT.rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.add(node.module)
            if re.fullmatch(r"lsst(\.(afw|daf|pex|meas|obs|pipe))?", node.module):
                modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_pickle_and_small(path):
    forbidden = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not {name.split(".")[0] for name in imported_modules(path)} & forbidden
    assert not re.search(r"(?<!safetensors\.)torch\.load\(", path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 40_000


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name


ROOMS = (
    "images",
    "metrics",
    "scenes",
    "network",
    "profiles",
    "deblend",
    "train",
    "catalogs",
    "ingest",
    "compare",
    "report",
    "tasks",
    "cli",
)
WITHOUT_LSST = ("images", "metrics", "scenes", "network", "profiles", "deblend", "train", "report")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_rooms_import_downhill(path):
    """A room imports itself and those below; those that need no LSST package import none."""
    package = "lsst.meas.maskrcnn"
    inside = path.relative_to(SOURCES_ROOT).parts
    if len(inside) < 2 or inside[0] not in ROOMS:
        return
    allowed = ROOMS[: ROOMS.index(inside[0]) + 1]
    here = [package, *inside[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            target = ".".join([*here[: len(here) - node.level + 1], node.module or ""])
            assert target.removeprefix(f"{package}.").split(".")[0] in allowed, f"imports {target}"
    foreign = {name for name in imported_modules(path) if name.startswith("lsst.")}
    if inside[0] in WITHOUT_LSST:
        assert not foreign
    assert not {name for name in foreign if name.startswith(package)}, "rooms are imported by relative names"


def internal_functions(path: Path) -> set[int]:
    """Lines on which functions and classes begin whose names are not in ``__all__``."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assigned = {ast.unparse(node.targets[0]): node.value for node in body if isinstance(node, ast.Assign)}
    public = ast.literal_eval(assigned["__all__"]) if "__all__" in assigned else ()
    internal = (node for node in body if getattr(node, "name", None) not in public)
    kinds = ast.FunctionDef, ast.ClassDef
    return {item.lineno for node in internal for item in ast.walk(node) if isinstance(item, kinds)}


def test_docstrings_are_numpydoc(project_dir):
    """Parameters and their order are those of the code; internal functions need not list them."""
    pytest.importorskip("numpydoc", minversion="1.8")
    command = [sys.executable, "-m", "numpydoc", "lint", *map(str, SOURCES)]
    done = subprocess.run(command, cwd=project_dir, capture_output=True, text=True)
    internal = {str(path): internal_functions(path) for path in SOURCES}
    problems = []
    for line in filter(None, (done.stdout + done.stderr).splitlines()):
        found = re.match(r"(.+):(\d+): PR01 ", line)
        if not found or int(found[2]) not in internal[found[1]]:
            problems.append(line)
    assert not problems
    assert done.returncode in (0, 1)


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if ">>> " in path.read_text(encoding="utf-8")],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_examples_run(path):
    name = ".".join(["lsst.meas.maskrcnn", *path.relative_to(SOURCES_ROOT).with_suffix("").parts])
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted > 0
    assert failed == 0


def test_ups_table_lists_what_is_imported(project_dir):
    table = (project_dir / "ups" / "meas_maskrcnn.table").read_text()
    listed = set(re.findall(r"setup(?:Required|Optional)\((\w+)\)", table))
    two_levels = {"daf", "pex", "pipe", "meas", "obs", "ctrl"}
    missing = set()
    for path in SOURCES:
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] != "lsst" or len(parts) < 2 or parts[1:3] == ["meas", "maskrcnn"]:
                continue
            if parts[1] in two_levels and len(parts) < 3:
                continue
            name = "_".join(parts[1:3]) if parts[1] in two_levels else parts[1]
            if name not in listed:
                missing.add((name, path.name))
    assert not missing


def test_requirements_list_what_is_imported(project_dir):
    with (project_dir / "pyproject.toml").open("rb") as stream:
        project = tomllib.load(stream)["project"]
    extras = project["optional-dependencies"]
    entries = sum(
        (extras[name] for name in ("butler", "simulate", "plots", "train")), project["dependencies"]
    )
    names = {re.split(r"[<>=!\[ ;]", entry)[0].lower().replace("-", "_") for entry in entries}
    # The module of pillow; what the Butler requires; the extra of a module of the same name.
    names |= {"pil", "yaml", "btk"}
    missing = set()
    for path in SOURCES:
        for module in imported_modules(path):
            top = module.split(".")[0]
            if top != "lsst" and top not in sys.stdlib_module_names and top.lower() not in names:
                missing.add((top, path.name))
    assert not missing
    core = {re.split(r"[<>=!]", entry)[0] for entry in project["dependencies"]}
    wanted = {"torch", "torchvision", "safetensors", "numpy", "astropy", "scipy", "pydantic", "click"}
    assert core == wanted
    assert project["license"] == "GPL-3.0-or-later"


def test_every_config_field_has_a_doc():
    def check(config: Config, name: str) -> None:
        for key, field in config._fields.items():
            assert field.doc and len(field.doc.strip()) > 8, f"{name}.{key} has no doc"
            if isinstance(field, ConfigField):
                check(getattr(config, key), f"{name}.{key}")
            elif isinstance(field, ConfigurableField):
                check(getattr(config, key).value, f"{name}.{key}")
            elif isinstance(field, RegistryField):
                registry = getattr(config, key)
                for choice in registry.types:
                    check(registry[choice], f"{name}.{key}[{choice}]")

    # Fields of pipe_base itself are not ours to describe.
    for task in (MaskRcnnDeblendTask, SimulateScenesTask):
        check(task.ConfigClass(), task.__name__)


NO_LSST = """
import lsst.meas.maskrcnn.network
import lsst.meas.maskrcnn.network.inference
import lsst.meas.maskrcnn.train.loop
import lsst.meas.maskrcnn.images
import lsst.meas.maskrcnn.scenes.simulate
import lsst.meas.maskrcnn.report.overlay
foreign = [m for m in sys.modules if m.startswith("lsst.") and not m.startswith("lsst.meas")]
assert not foreign, foreign
from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.spec import NetworkSpec
build_network(NetworkSpec.light(3))
"""


def test_network_needs_no_lsst_package(project_dir):
    run_without_lsst(project_dir, NO_LSST)


def test_package_dir(monkeypatch, tmp_path, project_dir):
    assert package_dir() == project_dir
    monkeypatch.delenv("MEAS_MASKRCNN_DIR")
    assert (package_dir() / "pipelines" / "MaskRcnnDeblend.yaml").is_file()
    with pytest.raises(FileNotFoundError, match="Nothing.yaml"):
        pipeline_path("Nothing.yaml")
    monkeypatch.setenv("MEAS_MASKRCNN_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="MEAS_MASKRCNN_DIR"):
        package_dir()


def test_catalogues_are_read_whole(project_dir):
    """Without heavy pixels, or from an HDU of an archive, lsst.afw can crash."""
    for path in (project_dir / "python").rglob("*.py"):
        text = path.read_text()
        assert "SOURCE_IO" not in text, path
        assert not re.search(r"Catalog\.readFits\([^)]*(hdu|flags)", text), path


@pytest.mark.parametrize("name", ["bin/demo", "bin/runtests", "bin/environment.sh", ".ci/run"])
def test_shell_scripts_are_well_formed(project_dir, name):
    done = subprocess.run(["sh", "-n", str(project_dir / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["bin/demo", "bin/environment.sh"])
def test_files_in_the_current_folder_are_not_imported(project_dir, name):
    """The user's random.py is not Python's: -P keeps the current folder out."""
    calls = re.findall(r'(?:python|\$1)" (-P )?(?:-m|-c|-) (.{12})', (project_dir / name).read_text())
    assert calls
    # An old Python, of which only the version is asked, does not know -P; sys is built in.
    assert not [code for safe, code in calls if not safe and code != "'import sys;"]


@pytest.mark.parametrize("name", ["demo", "runtests"])
def test_help_needs_no_environment(project_dir, name, tmp_path):
    done = subprocess.run(
        [str(project_dir / "bin" / name), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0 and done.stdout.startswith(f"usage: bin/{name}")
    assert not done.stderr and not list(tmp_path.iterdir())


def copy_scripts(project_dir: Path, root: Path) -> Path:
    """A project with its scripts and metadata only."""
    for name in ("bin/demo", "bin/environment.sh", "pyproject.toml", "standin/pyproject.toml"):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((project_dir / name).read_bytes())
        target.chmod((project_dir / name).stat().st_mode | 0o200)
    return root / "bin" / "demo"


def fake_python(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return path


def test_old_python_is_named(project_dir, tmp_path):
    demo = copy_scripts(project_dir, tmp_path / "a project")
    python = fake_python(tmp_path / "old ones", "python3", "echo 3.9.2; exit 1\n")
    done = subprocess.run(
        [str(demo)], env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "3.9.2" in done.stderr and "3.11" in done.stderr


def test_missing_venv_module_is_named(project_dir, tmp_path):
    demo = copy_scripts(project_dir, tmp_path / "a project")
    script = 'case "$*" in *version_info*) echo 3.11.2; exit 0;; *) exit 1;; esac\n'
    python = fake_python(tmp_path / "bare", "python3", script)
    done = subprocess.run(
        [str(demo)], env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "python3-venv" in done.stderr


@pytest.mark.parametrize(
    ("there", "chosen", "reason"),
    [
        ({"python3": "3.11.2", "python3.12": "3.12.9", "python3.13": "3.13.1"}, "python3.13", "newest here"),
        ({"python3": "3.12.4", "python3.11": "3.11.2"}, "python3", "newest here"),
        ({"python3": "3.11.2"}, "python3", "newest here of 3.13, 3.12, 3.11; cell coadds of Rubin need 3.12"),
        ({"python3": "3.14.0", "python3.12": "3.12.4"}, "python3.12", "newest here"),
        ({"python3": "3.14.0"}, "python3", "newer than those tested"),
        ({"python3": "3.10.1", "python3.13": "bare", "python3.11": "3.11.9"}, "python3.11", "newest here"),
    ],
)
def test_the_newest_supported_python_is_taken(project_dir, tmp_path, there, chosen, reason):
    folder = tmp_path / "bin"
    for name, version in there.items():
        no_venv = "*venv*) exit 1;;" if version == "bare" else ""
        version = "3.13.0" if version == "bare" else version
        status = int(version < "3.11")
        answers = f'*version_info*) echo {version}; exit {status};; {no_venv} "-P - "*) exit 1;;'
        fake_python(folder, name, f'case "$*" in {answers} esac\n')
    for tool in ("cat", "date", "dirname", "rm"):
        (folder / tool).symlink_to(shutil.which(tool))
    code = f'project="{project_dir}"; me=x; . "$project"/bin/environment.sh; find_python; '
    code += 'echo "$python, $why"'
    done = subprocess.run(
        [shutil.which("sh"), "-euc", code], env={"PATH": str(folder)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{chosen}, ") and reason in done.stdout


LIGHT_IMPORT = """
import sys, time
start = time.process_time()
import lsst.meas.maskrcnn
seconds = time.process_time() - start
heavy = ("lsst.afw", "lsst.pipe", "lsst.daf", "galsim", "matplotlib", "torch", "scipy", "astropy")
loaded = [name for name in sys.modules if name.startswith(heavy)]
assert not loaded, loaded
assert seconds < 0.3, seconds
"""


def test_import_is_light() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT_IMPORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_come_on_first_use() -> None:
    import lsst.meas.maskrcnn as package

    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match="NoSuchTask"):
        package.NoSuchTask  # noqa: B018
