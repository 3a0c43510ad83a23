# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Blends cut out of images, with their models, to be drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..images.pixels import cut_square
from .arrays import BoolArray, FloatArray, IntArray

_MARGIN, _LEAST_SIDE = 12, 32
"""Pixels around the peaks of a blend, and the least side of a picture (px)."""
Stamp = tuple[int, int, NDArray[np.floating]]
"""First row and column, and pixels (band, y, x), of a model."""


@dataclass(frozen=True, eq=False)
class BlendCutout:
    """A blend cut out of an image, to be drawn."""

    # Flux per pixel in three bands, the reddest first, (band, size, size); NaN off the image.
    image: NDArray[np.floating]
    noise: FloatArray | None  # sky noise per band, (band,)
    residual: NDArray[np.floating] | None  # image minus model in units of the noise, (size, size)
    corner: tuple[int, int]  # (x0, y0) of the first pixel in the frame of the tract
    # Masks that reach into the cut-out, (y, x) each.
    truth_masks: list[BoolArray] = field(default_factory=list)
    # (y0, x0) of these masks in the cut-out, (mask, 2).
    truth_origins: IntArray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    # Their classes, (mask,).
    truth_is_star: BoolArray = field(default_factory=lambda: np.zeros(0, bool))
    detection_masks: list[BoolArray] = field(default_factory=list)
    detection_origins: IntArray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    detection_is_star: BoolArray = field(default_factory=lambda: np.zeros(0, bool))
    caption: str = ""  # what to write under it, one or two short lines
    # Sum of the models, like ``image``; NaN where a band is missing.
    model: NDArray[np.floating] | None = None
    # What to write above each model, and its pixels, like ``image``.
    children: list[tuple[str, NDArray[np.floating]]] = field(default_factory=list)
    sky: tuple[float, float] | None = None  # right ascension and declination of its middle (deg)


def add_models(
    cutout: BlendCutout, sigma: NDArray[np.floating], stamps: Mapping[int, Stamp], labels: Mapping[int, str]
) -> BlendCutout:
    """Add models, and the residual that they leave, to a cut-out.

    ``sigma`` is the standard deviation of the middle band, (size, size). Stamps are of
    the models of the blend and of sources near it, in the frame of ``cutout.corner``;
    labels are what to write above those that are the children, in their order.
    """
    x0, y0 = cutout.corner
    size, middle = len(sigma), len(cutout.image) // 2
    model, drawn = np.zeros(cutout.image.shape, dtype=np.float32), {}
    for key, (bottom, left, pixels) in stamps.items():
        drawn[key] = cut_square(pixels, x0 - left, y0 - bottom, size)
        # Off the stamp there is no light; a band of NaN in it is not known.
        drawn[key][:, np.isnan(drawn[key]).all(axis=0)] = 0.0
        model += np.nan_to_num(drawn[key])
    residual = (cutout.image[middle] - model[middle]) / sigma
    # Where the image lacks a band, so do its models.
    known = np.isfinite(cutout.image)
    model[~known & known.any(axis=0)] = np.nan
    children = [(label, drawn[key]) for key, label in labels.items() if key in drawn]
    return replace(cutout, model=model, residual=residual, children=children)


def child_label(name: int, is_star: bool, flux: float, error: float, truth: float | None = None) -> str:
    """Say what a child is: id, class, and flux with its error beside the truth."""
    # Counts can be small numbers.
    digits = max(0, -math.floor(math.log10(error))) if 0 < error < 1 else 0
    text = f"{name}: {'star' if is_star else 'galaxy'}\n{flux:,.{digits}f} ± {error:,.{digits}f}"
    return text if truth is None else f"{text}\ntrue {truth:,.{digits}f}"


def blend_square(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[int, int, int]:
    """Choose the first column, first row and side of a square around some positions (px)."""
    side = int(max(np.ptp(x), np.ptp(y), _LEAST_SIDE - 2 * _MARGIN) + 2 * _MARGIN)
    x0, y0 = (round(0.5 * float(axis.min() + axis.max() - side)) for axis in (x, y))
    return x0, y0, side


def busiest_blends(groups: Iterable[IntArray], flux: NDArray[np.floating], n: int) -> list[IntArray]:
    """Choose the groups of sources with the most members, each by descending flux, (source,)."""
    blends = [members[np.argsort(-flux[members], kind="stable")] for members in groups if len(members) > 1]
    blends.sort(key=lambda members: (-len(members), -float(np.nansum(flux[members]))))
    return blends[:n]
