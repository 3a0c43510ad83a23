# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Templates of the sources of a blend, by which their flux is shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..profiles.blend import Blend
from ..profiles.elliptical import fit_profiles
from ..profiles.symmetry import symmetric_part

__all__ = ["TEMPLATES", "ShareSettings", "mask_templates", "profile_templates", "symmetric_templates"]

FloatArray = npt.NDArray[np.float32]


def mask_templates(blend: Blend) -> list[FloatArray]:
    """Make templates of 1, which leave it to the masks.

    Parameters
    ----------
    blend : `Blend`
        The blend.

    Returns
    -------
    templates : `list` [`numpy.ndarray`]
        Ones, float32, (band, y, x) on each source's box.
    """
    n_bands = len(blend.images)
    return [np.ones((n_bands, *mask.shape), np.float32) for mask in blend.masks]


def symmetric_templates(blend: Blend) -> list[FloatArray]:
    """Take the smaller of each pixel and its mirror image about the peak.

    Parameters
    ----------
    blend : `Blend`
        The blend.

    Returns
    -------
    templates : `list` [`numpy.ndarray`]
        Templates, at least 0, float32, (band, y, x) on each source's box; the
        PSF for stars.
    """
    return [symmetric_part(blend, index) for index in range(len(blend.sources))]


def profile_templates(blend: Blend) -> list[FloatArray]:
    """Fit the PSF to stars and elliptical profiles to galaxies.

    Parameters
    ----------
    blend : `Blend`
        The blend.

    Returns
    -------
    templates : `list` [`numpy.ndarray`]
        Models, at least 0, float32, (band, y, x) on each source's box.
    """
    return fit_profiles(blend)


TEMPLATES: dict[str, Callable[[Blend], list[FloatArray]]] = {
    "mask": mask_templates,
    "symmetric": symmetric_templates,
    "profile": profile_templates,
}
"""Templates by name: each makes one array (band, y, x) for each source, on its box."""


@dataclass(frozen=True)
class ShareSettings:
    """How the flux of a parent is shared.

    Parameters
    ----------
    template : `str`
        Key of `TEMPLATES`: ``mask``, ``symmetric`` or ``profile``.
    reach : `float`
        How far beyond its soft mask a source has a claim (px); at least the
        radius by which parents are grown.
    halo : `float`
        Least weight of a source in the core of its mask, where the soft mask
        is at least one half; it falls off outside. At 1 the template alone
        decides there. The template ``mask`` never takes more than 0.05.
    halo_scale : `float`
        Distance from that core over which the weight falls by a factor of e
        (px).
    smooth : `float`
        Standard deviation of the Gaussian with which symmetric templates are
        smoothed (px); 0 for none.
    sweeps : `int`
        How often the profiles of all sources are fitted in turn, at most.
    power : `float`
        Pixels count for the fit of a profile by their share in it to this
        power: the larger, the more the unblended ones alone decide.

    Raises
    ------
    ValueError
        Raised if a value is out of its range.
    """

    template: str = "profile"
    reach: float = 8.0
    halo: float = 1.0
    halo_scale: float = 6.0
    smooth: float = 1.0
    sweeps: int = 12
    power: float = 2.0

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise ValueError(f"template is '{self.template}', wanted one of {', '.join(sorted(TEMPLATES))}")
        if not 0 < self.halo <= 1:
            raise ValueError(f"halo is {self.halo}, wanted more than 0 and at most 1")
        if not self.halo_scale > 0:
            raise ValueError(f"halo_scale is {self.halo_scale} px, wanted more than 0")
        if self.sweeps < 1:
            raise ValueError(f"sweeps is {self.sweeps}, wanted at least 1")
        for name in ("reach", "smooth", "power"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted 0 or more")
