# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Mask planes by name."""

from __future__ import annotations

__all__ = ["defined_plane_bits"]

from collections.abc import Iterable

from lsst.afw.image import MaskX


def defined_plane_bits(mask: MaskX, planes: Iterable[str]) -> int:
    """Bits of those of some mask planes that a mask defines.

    Parameters
    ----------
    mask : `lsst.afw.image.MaskX`
        The mask.
    planes : `~collections.abc.Iterable` [`str`]
        Names of planes; those that the mask does not define are passed over.

    Returns
    -------
    bits : `int`
        For ``mask.array & bits``; 0 if no plane is left.
    """
    defined = mask.getMaskPlaneDict()
    present = [plane for plane in planes if plane in defined]
    return mask.getPlaneBitMask(present) if present else 0
