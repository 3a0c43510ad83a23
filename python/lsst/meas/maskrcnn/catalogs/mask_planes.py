# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Mask planes by name."""

from __future__ import annotations

from collections.abc import Iterable

from lsst.afw.image import MaskX

_SAME = ({"INTRP", "INTERPOLATED"}, {"CR", "COSMIC_RAY"}, {"SAT", "SATURATED"}, {"EDGE", "DETECTION_EDGE"})
"""Names of one plane in ``lsst.afw.image`` and in ``lsst.images``."""


def defined_plane_bits(mask: MaskX, planes: Iterable[str]) -> int:
    """Bits of those of some mask planes that a mask defines.

    Parameters
    ----------
    mask : `lsst.afw.image.MaskX`
        The mask.
    planes : `~collections.abc.Iterable` [`str`]
        Names of planes, in the spelling of ``lsst.afw.image`` or of
        ``lsst.images``: CR stands for COSMIC_RAY too. Those that the mask does
        not define are passed over.

    Returns
    -------
    bits : `int`
        For ``mask.array & bits``; 0 if no plane is left.
    """
    defined = mask.getMaskPlaneDict()
    wanted = set(planes)
    wanted.update(*(names for names in _SAME if names & wanted))
    present = sorted(wanted.intersection(defined))
    return mask.getPlaneBitMask(present) if present else 0
