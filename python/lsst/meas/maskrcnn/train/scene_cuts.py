# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Training scenes cut into pieces."""

from __future__ import annotations

import numpy as np

from .targets import cut_mask
from .training_scene import TrainingScene


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
    rows, columns = (np.linspace(0, n, -(-n // size) + 1).round().astype(int) for n in scene.valid.shape)
    pieces = []
    for start in ((y, x) for y in zip(rows, rows[1:]) for x in zip(columns, columns[1:])):
        (y0, y1), (x0, x1) = start
        first, last = np.array([y0, x0]), np.array([y1, x1])
        there = np.flatnonzero(((low < last) & (high > first)).all(axis=1))
        kept, masks, origins = [], [], []
        for index in there.tolist():
            top, left = (low[index] - first).tolist()
            part, y, x = cut_mask(scene.masks[index], top, left, (y1 - y0, x1 - x0))
            if part.size:
                kept.append(index)
                masks.append(part.copy())
                origins.append((y, x))
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
