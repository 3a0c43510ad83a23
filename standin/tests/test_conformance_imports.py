# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tests in ``conformance`` use public interfaces of lsst.afw and its neighbours alone."""

import ast
from pathlib import Path

import pytest

MODULES = sorted((Path(__file__).parent / "conformance").glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_internals_are_imported(path: Path) -> None:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    assert names
    private = [name for name in names if any(part.startswith("_") for part in name.split("."))]
    foreign = [name for name in names if name.startswith(("meas_maskrcnn_standin", "lsst.meas.maskrcnn"))]
    assert not private and not foreign
