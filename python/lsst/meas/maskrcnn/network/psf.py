# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The width of the PSF as an input of the network.

A star has the size of the PSF, so a network can separate stars from small
galaxies on images of any seeing only if it knows that size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PSF_UNIT = 8.0
"""FWHM that is 1 in a PSF plane (`float`, px)."""

USUAL_FWHM = 4.5
"""FWHM that stands for one that is not known (`float`, px)."""

_FIRST_WEIGHT = "backbone.body.conv1.weight"


def add_psf_planes(pixels: Tensor, fwhm: npt.ArrayLike | None) -> Tensor:
    """Append one constant plane per band with the width of its PSF to an image (band, y, x).

    Widths are the full width at half maximum of the Gaussian with the adaptive moments of the PSF, as afw's
    ``computeShape`` has it, (band,), px. What is not finite or not above 0, and `None`, stands for a PSF that
    is not known: its plane is 0. A ValueError is raised if the number of widths is not that of the bands.
    """
    bands = len(pixels)
    widths = np.zeros(bands) if fwhm is None else np.asarray(fwhm, dtype=float)
    if widths.shape != (bands,):
        raise ValueError(f"psf_fwhm has shape {widths.shape}, wanted one width for each of {bands} bands")
    known = np.isfinite(widths) & (widths > 0)
    values = torch.as_tensor(np.where(known, widths, 0.0) / PSF_UNIT, dtype=pixels.dtype)
    return torch.cat([pixels, values[:, None, None].expand(pixels.shape)])


def widen_input(state: dict[str, Tensor], planes: int) -> dict[str, Tensor]:
    """Let the weights of a network of `~.build.build_network` take further input planes.

    The new planes have weights of zero: the network's answers do not change. A ValueError is raised if the
    state has more planes than wanted.
    """
    weight = state[_FIRST_WEIGHT]
    given = weight.shape[1]
    if given > planes:
        raise ValueError(f"the model has {given} input planes, the network to train only {planes}")
    if given == planes:
        return state
    new = weight.new_zeros((weight.shape[0], planes - given, *weight.shape[2:]))
    return {**state, _FIRST_WEIGHT: torch.cat([weight, new], dim=1)}
