# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A gallery of blends: the image, the truth, what was found, what is left over."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.image
import numpy as np
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from ..metrics.arrays import BoolArray, IntArray
from ..metrics.cutouts import BlendCutout
from ..metrics.evaluation_metrics import GalleryEntry
from .overlay import lupton_rgb, mask_outlines

RESIDUAL_RANGE = 10.0
"""Residual at the ends of the colour scale, in units of the noise."""

# Blue and red of equal lightness, white between: grey print shows the size, colour the sign.
_RESIDUAL_COLORS = matplotlib.colormaps["RdBu_r"]
_OFF_IMAGE = (40 / 255,) * 3


_MOST_CHILDREN, _N_BUSIEST, _N_FAILURES = 8, 6, 10
"""Children of a blend, blends of the most sources, and sources that were not found rightly."""


def draw_entry(cutout: BlendCutout, *, kind: str, patch: tuple[int, int], quality: float) -> GalleryEntry:
    """Draw a cut-out of a kind and quality in a tract and patch."""
    residual = ""
    if cutout.residual is not None:
        colors = _RESIDUAL_COLORS(Normalize(-RESIDUAL_RANGE, RESIDUAL_RANGE)(cutout.residual))[..., :3]
        residual = _png(np.where(np.isfinite(cutout.residual)[..., None], colors, _OFF_IMAGE))

    def outlines(masks: Sequence[BoolArray], origins: IntArray) -> list[Any]:
        lines = mask_outlines(masks, origins)
        return [[[(float(x), float(y)) for x, y in line] for line in source] for source in lines]

    return GalleryEntry(
        kind=kind,
        tract=patch[0],
        patch=patch[1],
        caption=cutout.caption,
        quality=quality,
        size=cutout.image.shape[1],
        x0=cutout.corner[0],
        y0=cutout.corner[1],
        image=_png(lupton_rgb(cutout.image, cutout.noise)),
        residual=residual,
        model="" if cutout.model is None else _png(lupton_rgb(cutout.model, cutout.noise, sky=0.0)),
        children=[
            (label, _png(lupton_rgb(pixels, cutout.noise, sky=0.0)))
            for label, pixels in cutout.children[:_MOST_CHILDREN]
        ],
        sky=cutout.sky,
        truth_outlines=outlines(cutout.truth_masks, cutout.truth_origins),
        detection_outlines=outlines(cutout.detection_masks, cutout.detection_origins),
        truth_is_star=cutout.truth_is_star.tolist(),
        detection_is_star=cutout.detection_is_star.tolist(),
    )


_Cut = Callable[[int], BlendCutout]
_Kept = tuple[tuple[float, int], tuple[int, ...], GalleryEntry]
"""Rank by how extreme it is, the most extreme first, place and entry."""


class BlendGallery:
    """Blends and sources of several patches, in three bands, the reddest first.

    They are the ``number`` best and worst blends, those of the most sources, and the
    brightest sources that were missed, made up or measured wrongly.
    """

    def __init__(self, number: int, bands: Sequence[str]) -> None:
        self.number = number
        self.bands = list(bands)
        self._n_blends = 0
        kinds = "busiest", "best", "worst", "failure"
        self._kept: dict[str, list[_Kept]] = {kind: [] for kind in kinds}

    def add(self, patch: tuple[int, int], groups: NDArray[np.void], cut: _Cut) -> None:
        """Take those of the blends of a tract and patch that are extreme.

        ``groups`` are of `~lsst.meas.maskrcnn.metrics.blends.BLEND_DTYPE`; ``cut`` cuts
        out the group of a number.
        """
        n_truth, quality = groups["n_truth"], groups["quality"]
        blends = np.flatnonzero(n_truth > 1)
        self._n_blends += len(blends)
        # What is among the best is not shown among the worst, so that twice as many of those are kept.
        for kind, sign, number in (("best", -1.0, self.number), ("worst", 1.0, 2 * self.number)):
            for group in blends[np.lexsort((blends, -n_truth[blends], sign * quality[blends]))].tolist():
                rank = sign * float(quality[group]), -int(n_truth[group])
                if not self._offer(kind, number, rank, (*patch, group), float(quality[group]), cut):
                    break
        found = groups["n_detection"]
        for group in np.argsort(-found, kind="stable").tolist():
            rank, place = (-float(found[group]), -int(n_truth[group])), (*patch, group)
            value = float(quality[group])
            if found[group] < 2 or not self._offer("busiest", _N_BUSIEST, rank, place, value, cut):
                break

    def add_failures(
        self, patch: tuple[int, int], failures: Mapping[int, tuple[float, str]], cut: _Cut
    ) -> None:
        """Take the brightest of the failures of a tract and patch; ``cut`` cuts out a row of the table."""
        for row in sorted(failures, key=lambda row: -failures[row][0]):
            rank = -failures[row][0], row
            if not self._offer("failure", _N_FAILURES, rank, (*patch, row), failures[row][0], cut):
                break

    def _offer(
        self,
        kind: str,
        number: int,
        rank: tuple[float, int],
        place: tuple[int, ...],
        quality: float,
        cut: _Cut,
    ) -> bool:
        """Keep an entry if it is among the ``number`` most extreme; whether it is."""
        kept = self._kept[kind]
        if len(kept) >= number and rank >= kept[number - 1][0]:
            return False
        entry = draw_entry(cut(place[2]), kind=kind, patch=(place[0], place[1]), quality=quality)
        kept.append((rank, place, entry))
        kept.sort(key=lambda item: item[0])
        del kept[number:]
        return True

    def entries(self) -> list[GalleryEntry]:
        """Return all, by kind and the most extreme first; none of the best is among the worst."""
        best = self._kept["best"][: min(self.number, (self._n_blends + 1) // 2)]
        places = {place for _, place, _ in best}
        worst = [item for item in self._kept["worst"] if item[1] not in places][: self.number]
        others = self._kept["busiest"], self._kept["failure"]
        return [entry for _, _, entry in (*best, *worst, *others[0], *others[1])]


def _png(pixels: NDArray[Any]) -> str:
    buffer = io.BytesIO()
    # Images of the sky have their first row at the bottom, files at the top.
    matplotlib.image.imsave(buffer, np.ascontiguousarray(pixels[::-1]), format="png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
