# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sources of an image: the output of the engine."""

from __future__ import annotations

__all__ = ["SourceList"]

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import QTable

from ..network.detections import Detections
from ..profiles.model import ProfileFit
from .image import MultibandImage
from .masks import MaskMeasurements
from .object_table import make_object_table, short_columns
from .parents import Parent
from .shares import ParentStatistics, SourceShare


@dataclass(frozen=True, eq=False, repr=False)
class SourceList:
    """N sources of an image, deblended.

    Positions are in pixels of the image, whose first pixel is (0, 0).
    """

    image: MultibandImage
    """The image in which they were found."""
    detections: Detections
    """Boxes, masks, soft masks, and calibrated scores and P(star)."""
    peaks: npt.NDArray[np.float64]
    """(y, x) of the peaks, between pixels, (N, 2)."""
    measured: MaskMeasurements
    measured_parents: MaskMeasurements
    """What was measured on the masks, and on the parents with more than one source."""
    parents: list[Parent]
    """Sources whose grown masks touch, and isolated sources."""
    shares: list[SourceShare]
    """Share of each source in the pixels, by band."""
    statistics: ParentStatistics
    """What was found on the parents."""
    noise: npt.NDArray[np.float64]
    """Noise of the sky in each band of ``image``, (band,), nJy; NaN for bands that the model does not use."""
    n_valid_pixels: int
    """Number of pixels that hold data in all bands of the model."""
    timings: dict[str, float] = field(default_factory=dict)
    """Wall time by stage (s)."""
    models: ProfileFit | None = None
    """Models that were fitted to them; `None` if no band has a PSF."""

    def __len__(self) -> int:
        return len(self.detections)

    def __repr__(self) -> str:
        stars = int(np.count_nonzero(self.is_star))
        return f"<SourceList of {stars} stars and {len(self) - stars} galaxies in {self.image!r}>"

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """Probability of being a source, float32, (N,)."""
        return self.detections.scores

    @property
    def p_star(self) -> npt.NDArray[np.float32]:
        """Probability that a source is a star, float32, (N,)."""
        return self.detections.p_star

    @property
    def is_star(self) -> npt.NDArray[np.bool_]:
        """Whether it is classified as a star, bool, (N,)."""
        return np.asarray(self.detections.p_star >= 0.5)

    @functools.cached_property
    def parent(self) -> npt.NDArray[np.int64]:
        """Index of the parent of each source, (N,)."""
        parent = np.zeros(len(self), dtype=np.int64)
        for index, item in enumerate(self.parents):
            parent[item.members] = index
        return parent

    @functools.cached_property
    def is_isolated(self) -> npt.NDArray[np.bool_]:
        """Whether the source shares its flux with no other, bool, (N,)."""
        sizes = np.array([len(parent) for parent in self.parents], dtype=np.int64)
        return np.asarray(sizes[self.parent] == 1)

    @functools.cached_property
    def fluxes(self) -> npt.NDArray[np.float64]:
        """Flux of the deblended pixels, (N, band), nJy."""
        return self._sums(share.pixels(self.image.flux) for share in self.shares)

    @functools.cached_property
    def flux_errors(self) -> npt.NDArray[np.float64]:
        """Standard deviation of ``fluxes``, (N, band), nJy.

        That of a sum over independent pixels, weighted by the shares.
        """
        variance = self.image.variance
        if variance is None:
            variance = np.broadcast_to(self.noise[:, None, None] ** 2, self.image.flux.shape)
        windows = ((share, (slice(None), *share.box)) for share in self.shares)
        return np.sqrt(self._sums(share.weights**2 * variance[window] for share, window in windows))

    def _sums(self, of_sources: Iterable[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        sums = [np.nansum(pixels, axis=(1, 2), dtype=np.float64) for pixels in of_sources]
        return np.array(sums).reshape(len(self), len(self.image.bands))

    def require_models(self) -> ProfileFit:
        """Give the models.

        Returns
        -------
        models : `~lsst.meas.maskrcnn.profiles.model.ProfileFit`

        Raises
        ------
        ValueError
            Raised if there are none.
        """
        if self.models is None:
            raise ValueError("there are no models, as no band has a PSF; give MultibandImage a psf")
        return self.models

    @functools.cached_property
    def has_model_flux(self) -> npt.NDArray[np.bool_]:
        """Whether there are model fluxes in a band, bool, (band,): whether its PSF is known."""
        if self.models is None:
            return np.zeros(len(self.image.bands), bool)
        return np.asarray(np.isfinite(self.models.flux).any(axis=0))

    @functools.cached_property
    def is_model_flagged(self) -> npt.NDArray[np.bool_]:
        """Whether there is no model flux in a band or a reason not to trust it, bool, (N, band)."""
        models = self.models
        if models is None:
            return np.ones((len(self), len(self.image.bands)), bool)
        of_source = ~models.converged | models.misfit | models.edge | models.shared
        return np.asarray(~np.isfinite(models.flux) | models.core | of_source[:, None])

    def child_image(self, index: int, band: int | str, model: bool = False) -> npt.NDArray[np.float32]:
        """Draw one source alone.

        Parameters
        ----------
        index : `int`
            Which source.
        band : `int` or `str`
            Number or name of the band.
        model : `bool`, optional
            Whether to draw the model in place of the share of the image.

        Returns
        -------
        pixels : `numpy.ndarray`
            Its share of the image, float32, (y, x), nJy, on the whole image;
            0 outside its footprint. Of a model, 0 outside its window.

        Raises
        ------
        ValueError
            Raised if there are no models.
        """
        number = self._band(band)
        pixels = np.zeros(self.image.shape, np.float32)
        if model:
            self.require_models().add_to(pixels[None], index, bands=[number])
            return pixels
        share = self.shares[index]
        pixels[share.box] = share.pixels(self.image.flux)[number]
        return pixels

    def neighbors_removed(self, index: int) -> npt.NDArray[np.float32]:
        """Subtract every other source.

        Parameters
        ----------
        index : `int`
            The source that stays.

        Returns
        -------
        pixels : `numpy.ndarray`
            The image with this source, its sky and nothing else, float32,
            (band, y, x), nJy.
        """
        pixels = self.residual()
        share = self.shares[index]
        pixels[(slice(None), *share.box)] += share.pixels(self.image.flux)
        return pixels

    def residual(self, model: bool = False) -> npt.NDArray[np.float32]:
        """Subtract all sources.

        Parameters
        ----------
        model : `bool`, optional
            Whether to subtract the models in place of the shares.

        Returns
        -------
        pixels : `numpy.ndarray`
            Image less the shares of all sources, float32, (band, y, x), nJy:
            the sky outside the footprints, 0 in them. Less the models, noise
            and what they do not describe.

        Raises
        ------
        ValueError
            Raised if there are no models.
        """
        pixels = self.image.flux.copy()
        if model:
            models = self.require_models()
            for index in range(len(self)):
                models.add_to(pixels, index, sign=-1.0)
            return pixels
        for share in self.shares:
            pixels[(slice(None), *share.box)] -= share.pixels(self.image.flux)
        return pixels

    def segmentation(self) -> npt.NDArray[np.int32]:
        """Label the pixels.

        Returns
        -------
        labels : `numpy.ndarray`
            Row of the source plus 1, int32, (y, x); 0 is the sky. A pixel in
            the masks of several sources has that of the largest share.
        """
        labels = np.zeros(self.image.shape, np.int32)
        best = np.zeros(self.image.shape, np.float32)
        for index, (mask, (y0, x0)) in enumerate(
            zip(self.detections.masks, self.detections.origins.tolist(), strict=True)
        ):
            window = slice(y0, y0 + mask.shape[0]), slice(x0, x0 + mask.shape[1])
            # Pixels of the mask in which the source has no share are labelled where no other source is.
            weight = np.full(mask.shape, 1e-6, np.float32)
            rows, columns = np.nonzero(mask)
            weight[rows, columns] += self.shares[index].at(rows + y0, columns + x0).mean(axis=0)
            won = mask & (weight > best[window])
            labels[window][won] = index + 1
            best[window][won] = weight[won]
        return labels

    def to_table(self) -> QTable:
        """Make the object table.

        Returns
        -------
        table : `astropy.table.QTable`
            One row for each source, with units and descriptions. Names are
            those of the object tables of the LSST pipelines where these have
            the same: ``coord_ra``, ``coord_dec``, and by band
            ``<band>_sersicFlux`` with error, magnitude and flag. ``objectId`` is the
            label in `segmentation`; ``x`` and ``y`` count from 0. In bands without
            a zero point fluxes are in counts and magnitudes instrumental
            (-2.5 log10 of the counts), as their units and descriptions say.
            Bands without a PSF have no models; they get
            ``<band>_deblendedFlux`` with error, the sum of the deblended
            pixels, which is that of ``fluxes``.
        """
        table = make_object_table(self)
        return table[short_columns(table, self.image.bands)]

    def without_pixels(self) -> SourceList:
        """Forget the pixels of the image and of the models.

        Returns
        -------
        sources : `SourceList`
            All that has been measured is the same, and so are masks and shares.
        """
        models = None if self.models is None else replace(self.models, windows=[])
        return replace(self, image=self.image.without_pixels(), models=models)

    def _band(self, band: int | str) -> int:
        bands = tuple(self.image.bands)
        if isinstance(band, str):
            if band not in bands:
                raise ValueError(f"there is no band {band!r}; the image has {', '.join(bands)}")
            return bands.index(band)
        return range(len(bands))[band]
