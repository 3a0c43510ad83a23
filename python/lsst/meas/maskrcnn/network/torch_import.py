# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Imports torch and torchvision in half the time; to be imported before both.

- The two make some 10^6 objects, none of them garbage, so garbage is collected only after them.
- `torchvision.ops.roi_align` imports ``torch._dynamo``, with sympy, for one function, which it calls only
  where it has no compiled operators. A placeholder stands for these modules until something of them is used.
"""

from __future__ import annotations

__all__: list[str] = []

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_COMPILER = ("torch._dynamo", "torch._dynamo.utils")
_FROZEN = 1000
"""Python 3.12 itself freezes some hundred objects; more are those of a program, and stay frozen."""


class _Placeholder(ModuleType):
    """A module that is imported when something is wanted of it."""

    def __getattr__(self, name: str) -> Any:
        # `inspect` asks every module for its file.
        if name.startswith("__") and (self.__name__, name) != (_COMPILER[0], "__path__"):
            raise AttributeError(f"{self.__name__} has not been imported")
        _remove_placeholders()
        return getattr(importlib.import_module(self.__name__), name)


def _is_compile_supported(device_type: str) -> bool:
    """What torchvision takes from ``torch._dynamo.utils``."""
    _remove_placeholders()
    return importlib.import_module("torch._dynamo.utils").is_compile_supported(device_type)


def _remove_placeholders() -> None:
    for name in _COMPILER:
        if isinstance(sys.modules.get(name), _Placeholder):
            del sys.modules[name]


@contextmanager
def _without_collection() -> Iterator[None]:
    """Switch the collection of garbage off, if it is on."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        if gc.get_freeze_count() < _FROZEN:
            # All objects count as old then, without the collection that would find so (0.2 s).
            gc.freeze()
            gc.unfreeze()
    finally:
        gc.enable()


def _import_torchvision() -> None:
    """Import torchvision, without the compiler of torch if nothing has imported that before."""
    if not any(name in sys.modules for name in ("torchvision", *_COMPILER)):
        for name in _COMPILER:
            sys.modules[name] = _Placeholder(name)
        sys.modules["torch._dynamo.utils"].is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    try:
        importlib.import_module("torchvision")
    finally:
        _remove_placeholders()


with _without_collection():
    importlib.import_module("torch")
    _import_torchvision()
