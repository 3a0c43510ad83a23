# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pictures of what a network finds while it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..train.any_band_validation import BandSceneValidator
from ..train.validation import SceneValidator
from .overlay import lupton_rgb
from .picture_book import PageField, save_page


@dataclass(frozen=True)
class DrawnValidation:
    """A validation that also draws the first of its scenes, with the masks found and the true ones.

    The validator computes the figures; the folder takes ``validation_0001.png`` and so
    on. The pixel scale is in arcsec.
    """

    validator: SceneValidator | BandSceneValidator
    folder: Path
    pixel_scale: float

    def __call__(self, network: Any) -> dict[str, float]:
        """Return the figures of a network."""
        figures = self.validator(network)
        self.folder.mkdir(exist_ok=True)
        number = len(list(self.folder.glob("validation_*.png"))) + 1
        first = self.validator.first(network)
        found, flux, sigma = first.found, first.flux, first.noise
        likely = np.flatnonzero(found.scores >= 0.5)
        planes = [0, len(flux) // 2, -1]
        rgb = lupton_rgb(flux[planes], sigma[planes])
        of_truth: dict[str, Any] = {"masks": first.masks, "origins": first.origins, "is_star": first.is_star}
        about = f"truth: {len(first.asked)} sources, {int(first.asked.sum())} of them count"
        truth = PageField(rgb, self.pixel_scale, about, **of_truth, flagged=~first.asked, has_truth=True)
        of_found: dict[str, Any] = {"origins": found.origins[likely], "is_star": found.p_star[likely] > 0.5}
        masks = [found.masks[index] for index in likely]
        of_found |= {"masks": masks, "flagged": np.zeros(len(likely), bool)}
        about = f"found: {len(likely)} sources with a score of at least 0.5"
        predicted = PageField(rgb, self.pixel_scale, about, **of_found, has_truth=True)
        title = f"validation {number}: AP50 {figures['ap50']:.3f}"
        save_page(self.folder / f"validation_{number:04d}.png", [predicted, truth], title=title)
        return figures
