#!/usr/bin/env python
# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write COVERAGE.md: what there is of upstream's Python interface, and how upstream's own tests fare.

    python standin/make_coverage.py FOLDER

FOLDER has checkouts of lsst/geom, lsst/daf_base, lsst/afw and lsst/meas_base, side by side, in folders named
``geom``, ``daf_base``, ``afw`` and ``meas_base``. Their tests run from copies without the packages' own code.
What the tests ask for and the stand-in has not becomes a placeholder that raises NotImplementedError when it
is used, so that the other tests of a file run. With ``--keep``, tests of which there are
results are not run again.
"""

from __future__ import annotations

import argparse
import ast
import collections
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = ("geom", "daf_base", "afw", "meas_base")
MODULES = (
    "lsst.geom lsst.daf.base lsst.afw.geom lsst.afw.geom.ellipses lsst.afw.geom.polygon lsst.afw.image "
    "lsst.afw.table lsst.afw.table.io lsst.afw.math lsst.afw.detection lsst.afw.cameraGeom lsst.afw.coord "
    "lsst.afw.fits lsst.afw.typehandling lsst.meas.base"
).split()

# Modules for tests that are pure Python upstream, and private modules that they import from.
_HELPERS = {
    "lsst.geom.testUtils": "geom/python/lsst/geom/testUtils.py",
    "lsst.afw.image.testUtils": "afw/python/lsst/afw/image/testUtils.py",
    "lsst.afw.table.testUtils": "afw/python/lsst/afw/table/testUtils.py",
    "lsst.meas.base.tests": "meas_base/python/lsst/meas/base/tests.py",
}
_ALIASES = {
    "lsst.meas.base._measBaseLib": "lsst.meas.base",
    "lsst.geom._geom": "lsst.geom",
    "lsst.afw.image._basicUtils": "lsst.afw.image",
}

_NOT_THERE = re.compile(
    r"not in the stand-in|not in this subset|NotImplementedError|ImportError|ModuleNotFoundError"
    r"|AttributeError|takes no arguments"
    r"|KeyError: 'base_|ConstructorError|No executables|cannot be saved to an archive|is of a class not known"
    r"|unexpected keyword|takes \d+ positional|takes from \d+|missing \d+ required|is written as a part"
)
"""Failures for want of a feature: what is not there was asked for."""

_OLD_FILES = "files in a layout of before 2015 are not read"
_NAMED_HDU = "HDUs named after the file, as in file.fits[1], are not known"
_LOSSY = "the noise that sets the steps of lossy compression is astropy's estimate, without the mask"
_CHECKER = "CentroidResultKey.getX is not here, which the framework takes for a failure of the plugin"
REASONS = {
    "testHierarchy": "upstream's order is that of an unordered map of C++",
    "testDir": "private names are not upstream's",
    "testPreAllocate": "records of more than a gigabyte are refused on purpose",
    "testReadDESHeader": "TPV projections are refused",
    "testExtName": _NAMED_HDU,
    "testNeedAllHdus": _NAMED_HDU,
    "testReadableExtensionAsImage": _NAMED_HDU,
    "testIteration": "polygons and detectors are not sequences",
    "testTransform2": "polygons are transformed by WCSs alone",
    "testWeightedVector": "lists have no weights",
    "testExposureCatalogBackwardsCompatibility": "ExposureCatalogs have no files of their own",
    "testCompoundFieldFitsConversion": _OLD_FILES,
    "testFitsReadVersion0Compatibility": _OLD_FILES,
    "testOldFootprintPersistence": _OLD_FILES,
    "testArchiveImports": _OLD_FILES,
    "testCentroidDistance": _CHECKER,
    "testCentroidOutsideFootprint": _CHECKER,
    "testCheckErrors": _CHECKER,
    "testNoError": _CHECKER,
    "test_compressed_exposure": _LOSSY,
    "test_f32_lossy_masked": _LOSSY,
    "test_f32_lossy_no_mask": _LOSSY,
    "test_f64_lossy_masked": _LOSSY,
    "test_f64_lossy_no_mask": _LOSSY,
    "test_uzscale_header": _LOSSY,
}
"""Tests whose answer differs and stays so."""

_CLASS = re.compile(
    r'[\w>]\s*\(\s*(?:wrappers\.module|wrappers|mod|module|cls\w*|scope)\s*,\s*\(?\s*"([A-Z]\w*)"(\s*\+)?'
)
_METHOD = re.compile(r'\bcls\w*\s*\.\s*def\w*\(\s*"(\w+)"')
_FUNCTION = re.compile(r'\b(?:mod|module|wrappers\.module)\s*\.\s*def\(\s*"(\w+)"')


def upstream_interface(root: Path) -> dict[str, tuple[dict[str, set[str]], set[str]]]:
    """Read the names that upstream's wrappers and Python files define: by module, classes and functions."""
    found: dict[str, tuple[dict[str, set[str]], set[str]]] = {}
    for package in PACKAGES:
        top = root / package / "python"
        for path in sorted([*top.rglob("*.cc"), *top.rglob("*.py")]):
            module = ".".join(path.parent.relative_to(top).parts)
            for name in MODULES:
                if module == name or module.startswith(f"{name}."):
                    module = name
            if module not in MODULES or path.name in ("tests.py", "testUtils.py"):
                continue
            classes, functions = found.setdefault(module, (collections.defaultdict(set), set()))
            text = path.read_text(encoding="utf-8")
            (_read_wrapper if path.suffix == ".cc" else _read_python)(text, classes, functions)
    return found


def _read_wrapper(text: str, classes: dict[str, set[str]], functions: set[str]) -> None:
    tokens = [(match.start(), "class", match[1]) for match in _CLASS.finditer(text)]
    tokens += [(match.start(), "method", match[1]) for match in _METHOD.finditer(text)]
    tokens += [(match.start(), "function", match[1]) for match in _FUNCTION.finditer(text)]
    current = None
    for _, kind, name in sorted(tokens):
        if kind == "class":
            current = name
            classes[name] |= set()
        elif kind == "function":
            functions.add(name)
        elif current is not None and not name.startswith("_"):
            classes[current].add(name)


def _read_python(text: str, classes: dict[str, set[str]], functions: set[str]) -> None:
    tree = ast.parse(text)
    public: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets):
            public = {item.value for item in ast.walk(node.value) if isinstance(item, ast.Constant)}
    for node in tree.body:
        continued = any("continueClass" in ast.unparse(d) for d in getattr(node, "decorator_list", []))
        if isinstance(node, ast.ClassDef) and (node.name in public or continued):
            methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
            classes[node.name] |= {name for name in methods if not name.startswith("_")}
        elif isinstance(node, ast.FunctionDef) and node.name in public:
            functions.add(node.name)


def interface_lines(root: Path) -> Iterator[str]:
    """Say what of the interface is here, module by module."""
    interface = upstream_interface(root)
    for name in MODULES:
        classes, functions = interface.get(name, ({}, set()))
        module = importlib.import_module(name)
        here, absent = [], []
        for one in sorted(classes):
            own = next(
                (getattr(module, f"{one}{s}") for s in ("", "F", "D", "I") if hasattr(module, f"{one}{s}")),
                None,
            )
            if own is None:
                absent.append(one)
                continue
            missing = sorted(method for method in classes[one] if not hasattr(own, method))
            here.append(f"| `{one}` | {', '.join(f'`{m}`' for m in missing) or 'nothing'} |")
        known = sorted(one for one in functions if hasattr(module, one))
        absent += sorted(one for one in functions if not hasattr(module, one))
        yield f"\n### {name}\n"
        if here:
            yield "| class | missing |\n|---|---|"
            yield from here
        if known:
            yield f"\nFunctions: {', '.join(f'`{one}`' for one in known)}."
        if absent:
            yield f"\nNot here: {', '.join(f'`{one}`' for one in absent)}."


# ---- Upstream's tests ----


class _Placeholder(type):
    """A class that stands for what is not there."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(f"{cls.__name__}.{name}")

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__

    def __iter__(cls) -> Any:
        raise NotImplementedError(f"not in the stand-in: {cls.__name__}")


def _placeholder(name: str) -> Any:
    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"not in the stand-in: {name}")

    return _Placeholder(name, (), {"__new__": new})


def _fallback(parent: str) -> Any:
    def find(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if parent == "lsst.afw" and name[0].islower():
            return importlib.import_module(f"{parent}.{name}")
        return _placeholder(f"{parent}.{name}")

    return find


class _Finder:
    """Finds modules that are not there, and gives placeholders for all that they should have."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.startswith(("lsst.afw.", "astshim", "lsst.log", "pandas")) and name not in _HELPERS:
            return importlib.util.spec_from_loader(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__getattr__ = _fallback(module.__name__)  # type: ignore[method-assign]


def pytest_configure(config: Any) -> None:
    """Prepare a process for upstream's tests; pytest calls it where this file is its plugin."""
    root = Path(os.environ["UPSTREAM"])
    for name in [*MODULES, "lsst.afw"]:
        importlib.import_module(name).__getattr__ = _fallback(name)  # type: ignore[method-assign]
    sys.modules |= {private: sys.modules[public] for private, public in _ALIASES.items()}
    sys.meta_path.append(_Finder())  # type: ignore[arg-type]
    # Sources of meas_base's tests are on a detector, of which they ask nothing.
    wrapper = types.ModuleType("lsst.afw.cameraGeom.testUtils")
    attributes = {"detector": None, "__init__": lambda self, **kwargs: None}
    wrapper.DetectorWrapper = type("DetectorWrapper", (), attributes)  # type: ignore[attr-defined]
    sys.modules[wrapper.__name__] = sys.modules["lsst.afw.cameraGeom"].testUtils = wrapper  # type: ignore[attr-defined]
    for name, path in _HELPERS.items():
        parent, _, leaf = name.rpartition(".")
        spec: Any = importlib.util.spec_from_file_location(name, root / path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        setattr(sys.modules[parent], leaf, module)


def run_tests(root: Path, work: Path, package: str) -> None:
    """Run the tests of a package from a copy, and leave their results beside it."""
    shutil.rmtree(work / package, ignore_errors=True)
    shutil.copytree(root / package / "tests", work / package / "tests")
    environment = {**os.environ, "UPSTREAM": str(root)}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE / "python")])
    environment |= {f"{one.upper()}_DIR": str(work / one) for one in PACKAGES}
    options = (
        "-q -p make_coverage -p no:cacheprovider -p no:warnings --continue-on-collection-errors --tb=short"
    )
    command = [sys.executable, "-m", "pytest", *options.split(), f"--junitxml={work / package}.xml", "."]
    with open(work / f"{package}.log", "w", encoding="utf-8") as log:
        subprocess.run(
            command, cwd=work / package / "tests", env=environment, stdout=log, stderr=log, check=False
        )


def test_lines(work: Path) -> Iterator[str]:
    """Say how the tests went, file by file, and which answers differ."""
    differing = []
    for package in PACKAGES:
        counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for case in ElementTree.parse(work / f"{package}.xml").iter("testcase"):
            file = (case.get("classname") or case.get("name") or "").split(".")[0]
            bad = [child for child in case if child.tag in ("failure", "error")]
            lines = (
                [line[1:].strip() for line in (bad[0].text or "").splitlines() if line[:2] == "E "]
                if bad
                else []
            )
            if any(child.tag == "skipped" for child in case):
                kind = "skipped"
            elif not bad:
                kind = "passed"
            elif _NOT_THERE.search(" ".join(lines)) or not lines:
                kind = "not there"
            else:
                kind = "differs"
                differing.append((f"{package}/{file}", case.get("name") or "", lines[0][:160]))
            counts[file][kind] += 1
        total = sum(counts.values(), collections.Counter())
        yield f"\n### {package}\n\n| file | passed | not there | differs | skipped |\n|---|---|---|---|---|"
        for file, count in [("all", total), *sorted(counts.items())]:
            yield (
                f"| {file} | "
                + " | ".join(str(count[kind] or "") for kind in ("passed", "not there", "differs", "skipped"))
                + " |"
            )
    yield "\n### Answers that differ\n"
    for file, name, line in differing:
        reason = REASONS.get(name, f"`{line.replace('`', '')}`")
        yield f"- `{file}`, `{name}`: {reason}"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="folder with the checkouts")
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/standin_coverage"), help="folder for the runs"
    )
    parser.add_argument("--keep", action="store_true", help="run no tests of which there are results")
    arguments = parser.parse_args()
    root = arguments.folder.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not (arguments.keep and (arguments.work / f"{package}.xml").exists()):
            run_tests(root, arguments.work, package)
    lines = [
        "# What of upstream is here",
        "",
        "Made by `make_coverage.py`; do not edit. Of the Python interface, the classes and functions that",
        "upstream's wrappers and `__all__` name; private names and operators are not listed. Of upstream's",
        "own tests, by file, how many passed, how many failed for want of a feature, and in how many the",
        "answer differs.",
        "",
        "## Interface",
        *interface_lines(root),
        "",
        "## Tests of upstream",
        *test_lines(arguments.work),
    ]
    (HERE / "COVERAGE.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
