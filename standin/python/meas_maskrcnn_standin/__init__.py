# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guard that keeps this distribution away from the LSST Science Pipelines.

Every leaf package of the distribution calls `refuse_beside_real_afw` before
it defines anything, so that a process never mixes classes of the real
``lsst.afw`` with the ones defined here.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["find_real_afw", "refuse_beside_real_afw"]

_MARK = "meas_maskrcnn_standin"
"""Text that only this distribution's ``lsst/afw/__init__.py`` holds."""


def find_real_afw(search_path: Iterable[str], afw_dir: str | None = None) -> Path | None:
    """Look for an ``lsst.afw`` that does not come from this distribution.

    Nothing is imported: only the file ``lsst/afw/__init__.py`` below each
    directory is looked at.

    Parameters
    ----------
    search_path : iterable of `str`
        Directories as in `sys.path`.
    afw_dir : `str`, optional
        Value of ``AFW_DIR``, which EUPS sets to the root of a set-up afw.

    Returns
    -------
    package : `pathlib.Path` or `None`
        The first directory ``.../lsst/afw`` of a real afw; `None` without one.
    """
    roots = [Path(afw_dir) / "python"] if afw_dir else []
    roots.extend(Path(entry or os.curdir) for entry in search_path)
    for root in dict.fromkeys(roots):
        package = root / "lsst" / "afw"
        try:
            text = (package / "__init__.py").read_text(encoding="utf-8", errors="replace")
        except OSError:
            # Missing, unreadable or inside a zip file: not an installed afw.
            continue
        if _MARK not in text:
            return package
    return None


@functools.cache
def _find_real_afw_once(search_path: tuple[str, ...], afw_dir: str | None) -> Path | None:
    return find_real_afw(search_path, afw_dir)


def _directories() -> tuple[str, ...]:
    """Return `sys.path` and the parents of what ``lsst.__path__`` names."""
    namespace = sys.modules.get("lsst")
    parents = [str(Path(entry).parent) for entry in getattr(namespace, "__path__", ())]
    return tuple(dict.fromkeys([*sys.path, *parents]))


def refuse_beside_real_afw(file: str) -> None:
    """Raise if the real ``lsst.afw`` can be imported in this process.

    Parameters
    ----------
    file : `str`
        ``__file__`` of the calling package, named in the message.

    Raises
    ------
    ImportError
        Raised if a real afw is on the module search path or set up by EUPS.
    """
    real = _find_real_afw_once(_directories(), os.environ.get("AFW_DIR"))
    if real is not None:
        raise ImportError(
            f"{Path(file).parent} of the distribution meas-maskrcnn-standin does not load beside the real "
            f"lsst.afw at {real}: uninstall meas-maskrcnn-standin or take it off the module search path."
        )
