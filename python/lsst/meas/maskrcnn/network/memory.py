# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Memory that is free and yet taken."""

from __future__ import annotations

import ctypes
import sys


def release_memory() -> None:
    """Give memory that is free back to the system, where the C library is glibc.

    A forward pass and the joint fit free some 350 and 150 MB in blocks that glibc keeps for others of
    their sizes; the larger arrays of what follows would be added to them.
    """
    if sys.platform == "linux":
        # Other C libraries of Linux have no such function.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
