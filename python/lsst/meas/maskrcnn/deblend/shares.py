# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The share that each source of a blend has in the flux of each pixel.

Arrays are (y, x) or (band, y, x) in pixels of one parent's bounding box, whose
first pixel is (0, 0).

Examples
--------
>>> import numpy as np
>>> from lsst.meas.maskrcnn.deblend.shares import BlendSource, ShareSettings, share_flux
>>> image = np.ones((1, 5, 8), np.float32)
>>> soft = np.full((5, 5), 255, np.uint8)
>>> sources = [BlendSource(soft, 0, 0, 2.0, 2.0), BlendSource(soft, 0, 3, 2.0, 5.0)]
>>> parent = np.ones((5, 8), bool)
>>> shares = share_flux(image, image, parent, sources, settings=ShareSettings(template="mask"))
>>> shares.fluxes(image).round(3).tolist()
[[20.0], [20.0]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..profiles.blend import Blend, BlendSource
from .templates import TEMPLATES, ShareSettings

__all__ = ["TEMPLATES", "BlendSource", "ShareSettings", "Shares", "SourceShare", "share_flux"]

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

_SMALLEST_SHARE = 1e-3
"""Less than that of a pixel is none: a footprint ends there."""


@dataclass(frozen=True)
class SourceShare:
    """What one source has of a parent.

    Parameters
    ----------
    y0, x0 : `int`
        First pixel of the box in the parent's.
    weights : `numpy.ndarray`
        Its share of each pixel, from 0 to 1, float32, (band, y, x); 0 outside
        the parent.
    """

    y0: int
    x0: int
    weights: FloatArray

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the parent's arrays that the box covers."""
        height, width = self.weights.shape[1:]
        return slice(self.y0, self.y0 + height), slice(self.x0, self.x0 + width)

    @property
    def footprint(self) -> BoolArray:
        """Pixels of which the source has a share in some band, bool, (y, x)."""
        return np.asarray((self.weights > 0).any(axis=0))

    def pixels(self, images: FloatArray) -> FloatArray:
        """Take the source's share of an image.

        Parameters
        ----------
        images : `numpy.ndarray`
            The parent's images, (band, y, x).

        Returns
        -------
        pixels : `numpy.ndarray`
            Image times share, float32, (band, y, x) on the box. 0 where the
            source has no share, whatever the image has there; NaN where it
            has a share of a NaN.
        """
        weights = self.weights
        pixels = np.zeros(weights.shape, np.float32)
        np.multiply(images[(slice(None), *self.box)], weights, out=pixels, where=weights > 0)
        return pixels


@dataclass(frozen=True)
class Shares:
    """How the pixels of a parent are shared.

    Parameters
    ----------
    parent : `numpy.ndarray`
        Pixels of the parent, bool, (y, x).
    sources : `list` [`SourceShare`]
        The shares, in the order of the sources. On each pixel of the parent
        and in each band they add up to 1.
    model : `numpy.ndarray`, optional
        Sum of the templates of all sources, float32, (band, y, x); `None` if
        they are not in the units of the images.
    """

    parent: BoolArray
    sources: list[SourceShare]
    model: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def fluxes(self, images: FloatArray) -> npt.NDArray[np.float64]:
        """Add up each source's pixels.

        Parameters
        ----------
        images : `numpy.ndarray`
            The parent's images, (band, y, x). NaN counts as 0.

        Returns
        -------
        fluxes : `numpy.ndarray`
            Fluxes, (source, band).
        """
        sums = [np.nansum(share.pixels(images), axis=(1, 2), dtype=np.float64) for share in self.sources]
        return np.array(sums).reshape(len(self.sources), images.shape[0])


def share_flux(
    images: npt.ArrayLike,
    variances: npt.ArrayLike,
    parent: npt.ArrayLike,
    sources: Sequence[BlendSource],
    psf_images: Sequence[npt.ArrayLike] | None = None,
    settings: ShareSettings | None = None,
    good: npt.ArrayLike | None = None,
) -> Shares:
    r"""Share the flux of a parent among its sources.

    Parameters
    ----------
    images : array_like
        Images of the parent's bounding box, (band, y, x).
    variances : array_like
        Variances, (band, y, x).
    parent : array_like
        Pixels of the parent, bool, (y, x).
    sources : `~collections.abc.Sequence` [`BlendSource`]
        The sources, at least one.
    psf_images : `~collections.abc.Sequence`, optional
        Image of the PSF in each band, (y, x), of odd sides with the centre in
        the middle pixel. Without it stars are taken as galaxies are.
    settings : `ShareSettings`, optional
        How to share.
    good : array_like, optional
        Pixels of which templates may be made, bool, (band, y, x) or (y, x).
        All pixels are shared; those that are not finite are never good.

    Returns
    -------
    shares : `Shares`
        Share of each source.

    Raises
    ------
    ValueError
        Raised if shapes or types do not fit, or there is no source.

    Notes
    -----
    In each band a source :math:`i` has the share

    .. math:: w_i = m_i t_i / \sum_j m_j t_j

    of a pixel, where :math:`m` is its soft mask, raised to some least weight
    in the core of the mask and falling off around it, and :math:`t` its
    template. Where no template has anything, masks and the distance from them
    decide. Less than a thousandth of a pixel is no share. A single source has
    all of its parent.

    The variance and the mask of a child are those of the image, as in
    meas_deblender (``BaselineUtils::apportionFlux``): they are not scaled with
    the share, as the noise of what the neighbours have stays in the pixel.
    """
    blend = Blend.make(images, variances, parent, sources, psf_images, settings or ShareSettings(), good)
    if len(sources) == 1:
        return _all_to_one(blend)
    claims = TEMPLATES[blend.settings.template](blend)
    model = None
    if blend.settings.template != "mask":
        model = np.zeros(blend.images.shape, np.float32)
        for box, claim in zip(blend.boxes, claims, strict=True):
            model[(slice(None), *box)] += claim
    return replace(_normalise(blend, claims), model=model)


def _all_to_one(blend: Blend) -> Shares:
    """Give an isolated source all of its parent."""
    weights = np.broadcast_to(blend.parent.astype(np.float32), blend.images.shape).copy()
    return Shares(blend.parent, [SourceShare(0, 0, weights)])


def _normalise(blend: Blend, templates: list[FloatArray]) -> Shares:
    """Turn templates into shares that add up to 1."""
    shape = blend.images.shape
    total = np.zeros(shape, np.float64)
    plain = np.zeros(shape[1:], np.float64)
    bands = [(slice(None), *box) for box in blend.boxes]
    for window, box, mask, claim in zip(bands, blend.boxes, blend.masks, templates, strict=True):
        claim *= mask
        total[window] += claim
        plain[box] += mask
    # Where no template has anything, masks and distance from them decide.
    lost = ~((total > 0) & np.isfinite(total))
    np.copyto(total, plain, where=lost)
    total[:, ~blend.parent] = np.inf
    cut = min(_SMALLEST_SHARE, 0.5 / len(templates))
    kept = np.zeros(shape, np.float64)
    for window, mask, claim in zip(bands, blend.masks, templates, strict=True):
        np.copyto(claim, mask, where=lost[window])
        claim /= total[window]
        claim[claim < cut] = 0.0
        kept[window] += claim
    rest = np.broadcast_to(blend.parent.astype(np.float32), shape).copy()
    kept[:, ~blend.parent] = np.inf
    # The last source of a pixel takes what rounding leaves.
    last = np.full(shape, -1, np.int32)
    for index, (window, claim) in enumerate(zip(bands, templates, strict=True)):
        claim /= kept[window]
        rest[window] -= claim
        last[window][claim > 0] = index
    shares = []
    for index, (window, claim) in enumerate(zip(bands, templates, strict=True)):
        np.add(claim, rest[window], out=claim, where=last[window] == index)
        shares.append(SourceShare(window[1].start, window[2].start, claim))
    return Shares(blend.parent, shares)
