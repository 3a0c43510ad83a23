# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Training scenes binned, or cut into pieces."""

from __future__ import annotations

import math

import numpy as np

from ..images.binning import bin_psf_fwhm, sum_squares
from ..images.pixels import tight
from .training_scene import TrainingScene


def bin_scene(scene: TrainingScene, factor: int) -> TrainingScene:
    """Sum the pixels of a scene in squares of ``factor`` px; what does not fill a square is left out.

    Fluxes and variances are sums, so that the noise is that of uncorrelated pixels.
    A square is usable if half of its pixels are, and belongs to a source if half of
    them do; a source that has none of them keeps the one at its position. Peaks are
    those of Gaussian sources of the size of their masks, averaged over their places
    in a square.
    """
    if factor < 1:
        raise ValueError(f"factor is {factor}, wanted 1 or more")
    if factor == 1:
        return scene
    height, width = (side // factor for side in scene.valid.shape)
    if not (height and width):
        raise ValueError(f"a scene of {scene.valid.shape} px cannot be binned by {factor}")

    boxes = np.array([mask.shape for mask in scene.masks]).reshape(-1, 2) / 2.0 + scene.origins - 0.5
    positions = (boxes if scene.positions is None else scene.positions).astype(np.float64)
    positions = (positions + 0.5) / factor - 0.5
    kept, masks, origins = [], [], []
    for index, (mask, origin) in enumerate(zip(scene.masks, scene.origins, strict=True)):
        low = origin // factor
        high = np.minimum(-(-(origin + mask.shape) // factor), (height, width))
        if (low >= high).any():
            continue
        padded = np.zeros((high - low) * factor, dtype=bool)
        start = origin - low * factor
        part = mask[: padded.shape[0] - start[0], : padded.shape[1] - start[1]]
        padded[start[0] : start[0] + part.shape[0], start[1] : start[1] + part.shape[1]] = part
        counts = padded.reshape(high[0] - low[0], factor, high[1] - low[1], factor).sum(axis=(1, 3))
        small = 2 * counts >= factor**2
        if not small.any():
            inside = np.clip(np.rint(positions[index]).astype(int) - low, 0, high - low - 1)
            small[tuple(inside)] = True
        part, y, x = tight(small)
        kept.append(index)
        masks.append(part)
        origins.append(low + (y, x))

    peaks = scene.peak_flux[kept] * np.float32(factor**2)
    if scene.mask_levels is not None:
        # The variance of a Gaussian follows from area and level of its mask.
        area = np.array([np.count_nonzero(scene.masks[index]) for index in kept])
        level = np.where(scene.labels[kept] == 1, *scene.mask_levels)
        size = area / (-2.0 * math.pi * np.log(level))
        peaks = peaks * (size / (size + (factor**2 - 1) / 12.0)).astype(np.float32)[:, None]
    psf_fwhm = scene.psf_fwhm
    return TrainingScene(
        noiseless=None if scene.noiseless is None else sum_squares(scene.noiseless, factor),
        variance=sum_squares(scene.variance, factor),
        valid=2 * sum_squares(scene.valid, factor) >= factor**2,
        labels=scene.labels[kept],
        peak_flux=peaks.astype(np.float32),
        origins=np.array(origins, dtype=np.int32).reshape(-1, 2),
        masks=masks,
        noisy=scene.noisy,
        psf_fwhm=None if psf_fwhm is None else bin_psf_fwhm(psf_fwhm, factor).astype(np.float32),
        image=None if scene.image is None else sum_squares(scene.image, factor),
        ignore=None if scene.ignore is None else scene.ignore[kept],
        positions=positions[kept].astype(np.float32),
        mask_levels=scene.mask_levels,
    )


def split_scene(scene: TrainingScene, size: int) -> list[TrainingScene]:
    """Cut a scene by rows into equal pieces of at most ``size`` px, so that crops can be made of a part.

    A source that is cut belongs to the piece that its position is on; on the others
    what is left of it is ignored.
    """
    if size < 1:
        raise ValueError(f"size is {size}, wanted 1 or more")
    if max(scene.valid.shape) <= size:
        return [scene]
    shapes = np.array([mask.shape for mask in scene.masks], dtype=np.int64).reshape(-1, 2)
    low = scene.origins.astype(np.int64).reshape(-1, 2)
    high = low + shapes
    positions = 0.5 * (low + high - 1.0) if scene.positions is None else scene.positions.astype(float)
    ignore = np.zeros(len(shapes), bool) if scene.ignore is None else scene.ignore
    rows, columns = (
        np.linspace(0, side, -(-side // size) + 1).round().astype(int) for side in scene.valid.shape
    )
    pieces = []
    for start in ((y, x) for y in zip(rows, rows[1:]) for x in zip(columns, columns[1:])):
        (y0, y1), (x0, x1) = start
        first, last = np.array([y0, x0]), np.array([y1, x1])
        there = np.flatnonzero(((low < last) & (high > first)).all(axis=1))
        kept, masks, origins = [], [], []
        for index in there.tolist():
            a, b = np.maximum(low[index], first), np.minimum(high[index], last)
            part = scene.masks[index][
                a[0] - low[index, 0] : b[0] - low[index, 0], a[1] - low[index, 1] : b[1] - low[index, 1]
            ]
            part, y, x = tight(part)
            if not part.size:
                continue
            kept.append(index)
            masks.append(part)
            origins.append(a - first + (y, x))
        whole = ((low[kept] >= first) & (high[kept] <= last)).all(axis=1)
        own = ((positions[kept] >= first - 0.5) & (positions[kept] < last - 0.5)).all(axis=1)
        window = (slice(None), slice(y0, y1), slice(x0, x1))
        pieces.append(
            TrainingScene(
                noiseless=None if scene.noiseless is None else scene.noiseless[window],
                variance=scene.variance[window],
                valid=scene.valid[window[1:]],
                labels=scene.labels[kept],
                peak_flux=scene.peak_flux[kept],
                origins=np.array(origins, dtype=np.int32).reshape(-1, 2),
                masks=masks,
                noisy=scene.noisy,
                psf_fwhm=scene.psf_fwhm,
                image=None if scene.image is None else scene.image[window],
                ignore=ignore[kept] | ~(whole | own),
                positions=(positions[kept] - first).astype(np.float32),
                mask_levels=scene.mask_levels,
            )
        )
    return pieces
