# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Truth masks of single sources, and which of them to learn from."""

from __future__ import annotations

__all__ = ["peak_fraction_mask", "tight", "truth_selection"]

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .simulate import Scene


def peak_fraction_mask(image: np.ndarray, fraction: float) -> tuple[np.ndarray, int, int]:
    """Cut out the pixels of a source above a fraction of its peak.

    Parameters
    ----------
    image : `numpy.ndarray`, (h, w)
        Noise-free image of the single source.
    fraction : `float`
        Of the highest pixel.

    Returns
    -------
    mask : `numpy.ndarray` of `bool`, (mask h, mask w)
        The mask in its own bounding box; (0, 0) where no pixel qualifies.
    y0, x0 : `int`
        Where the mask's first pixel is in ``image``.
    """
    peak = image.max() if image.size else 0.0
    if not peak > 0:
        return np.zeros((0, 0), bool), 0, 0
    return tight(image > fraction * peak)


def tight(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Cut a mask down to its bounding box.

    Parameters
    ----------
    mask : `numpy.ndarray` of `bool`, (h, w)
        The mask.

    Returns
    -------
    part : `numpy.ndarray` of `bool`, (part h, part w)
        A copy of the part; (0, 0) where no pixel is set.
    y0, x0 : `int`
        Where its first pixel is in ``mask``.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return np.zeros((0, 0), bool), 0, 0
    columns = np.flatnonzero(mask.any(axis=0))
    y0, x0 = int(rows[0]), int(columns[0])
    return mask[y0 : rows[-1] + 1, x0 : columns[-1] + 1].copy(), y0, x0


def truth_selection(
    scene: Scene,
    min_area: int = 12,
    min_peak_snr: float = 5.0,
    sky_sigma: np.ndarray | float | None = None,
    min_visible: float = 0.0,
    min_peak_share: float = 0.0,
) -> np.ndarray:
    """Say which sources of a scene are fit to be truth.

    Parameters
    ----------
    scene : `Scene`
        A simulated scene.
    min_area : `int`
        Pixels of the truth mask on the image, at least.
    min_peak_snr : `float`
        Signal to sky noise of the source's brightest pixel in its best band,
        at least. Not asked of scenes without noise unless ``sky_sigma`` is
        given.
    sky_sigma : `float` or `numpy.ndarray`, (band,), optional
        Sky noise of a pixel, nJy, where the caller adds noise of their own.
    min_visible : `float`
        Share of the mask that must be on the image.
    min_peak_share : `float`
        Share of the light at its own brightest pixel that must be the
        source's own; above 0 it drops what is drowned by a neighbour.

    Returns
    -------
    usable : `numpy.ndarray` of `bool`, (N,)
        For each of ``scene.sources``.
    """
    sources = scene.sources
    usable = (sources["area"] >= max(min_area, 1)) & (sources["visible"] >= min_visible)
    if min_peak_share > 0:
        usable &= sources["peak_share"] >= min_peak_share
    if sky_sigma is None and not scene.config.noise:
        return usable
    ours = np.asarray(scene.sky_sigma, float)
    theirs = ours if sky_sigma is None else np.broadcast_to(np.asarray(sky_sigma, float), ours.shape)
    if not (np.isfinite(theirs).all() and (theirs > 0).all()):
        raise ValueError(f"sky_sigma is {sky_sigma!r}; it must be above 0 in each of {scene.bands}.")
    peaks = np.stack([sources[f"peak_snr_{band}"] for band in scene.bands])
    best = (peaks * (ours / theirs)[:, None]).max(axis=0)
    return usable & (best >= min_peak_snr)
