# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Memory that is free and yet taken."""

from __future__ import annotations

import ctypes
import sys

_LARGE = 1_000_000
"""Pixels from which on an image is large."""


def release_memory(shape: tuple[int, ...]) -> None:
    """Give memory that is free back to the system if an image, (..., y, x), is large; does so with glibc.

    A forward pass and the joint fit free some 350 and 150 MB in blocks that glibc keeps for others of
    their sizes; the larger arrays of what follows would be added to them. Small images have no larger ones,
    and would take the same memory again at once.
    """
    if sys.platform == "linux" and shape[-2] * shape[-1] >= _LARGE:
        # Other C libraries of Linux have no such function.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
