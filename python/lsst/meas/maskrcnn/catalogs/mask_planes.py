# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Mask planes by name."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable

from lsst.afw.image import MaskX

from ..images.pixels import PLANES_OF_IMAGES

_LOG = logging.getLogger(__name__)


@functools.cache
def warn_of_planes(unknown: tuple[str, ...]) -> None:
    """Say once that mask planes are not defined; a misspelt one would have no effect for ever."""
    _LOG.warning(
        "No exposure has the mask planes %s of the configuration: they have no effect. Check their names.",
        ", ".join(unknown),
    )


def undefined_planes(masks: Iterable[MaskX], planes: Iterable[str]) -> tuple[str, ...]:
    """Names of mask planes that none of some masks defines, in either spelling."""
    defined = {name for mask in masks for name in mask.getMaskPlaneDict()}
    defined.update(name for pair in PLANES_OF_IMAGES.items() if defined.intersection(pair) for name in pair)
    return tuple(sorted(set(planes) - defined))


def defined_plane_bits(mask: MaskX, planes: Iterable[str]) -> int:
    """Bits, for ``mask.array & bits``, of those of some mask planes that a mask defines; 0 if none is left.

    Names are in the spelling of ``lsst.afw.image`` or of ``lsst.images``: CR stands for COSMIC_RAY too.
    """
    defined = mask.getMaskPlaneDict()
    wanted = set(planes)
    wanted.update(*(pair for pair in PLANES_OF_IMAGES.items() if wanted.intersection(pair)))
    present = sorted(wanted.intersection(defined))
    return mask.getPlaneBitMask(present) if present else 0
