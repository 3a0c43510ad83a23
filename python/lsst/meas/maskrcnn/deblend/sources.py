# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sources of an image: the output of the engine."""

from __future__ import annotations

__all__ = ["SourceList"]

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import astropy.units as u
import numpy as np
import numpy.typing as npt
from astropy.table import QTable

from ..images.units import AB_ZERO_POINT
from ..network.detections import Detections
from ..profiles.model import ProfileFit
from .image import MultibandImage
from .masks import MaskMeasurements
from .parents import Parent
from .shares import ParentStatistics, SourceShare

_MAG_PER_RATIO = 2.5 / np.log(10.0)
"""Magnitudes of a small relative change of the flux."""


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
        """Make a table of the sources.

        Returns
        -------
        table : `astropy.table.QTable`
            One row for each source: ``id``, ``parent``, ``x``, ``y`` (px),
            ``ra``, ``dec`` (deg), ``class``, ``p_star``, ``p_blend``, ``score``,
            ``area``, by band ``flux_<band>`` with error (nJy) and ``mag_<band>`` with
            error (AB), and flags. With models, the same of their
            fluxes (``model_flux_<band>``), their shapes and errors.
        """
        y, x = self.peaks.T
        ra, dec = self.image.to_sky(x, y)
        table = QTable()

        def add(name: str, values: npt.ArrayLike, doc: str, unit: u.UnitBase | None = None) -> None:
            column = np.asarray(values)
            table[name] = column if unit is None else column * unit
            table[name].info.description = doc

        add("id", np.arange(1, len(self) + 1), "Number of the source, that of segmentation()")
        add("parent", self.parent + 1, "Number of the parent; sources of one parent share its flux")
        add("x", x, "Column of the peak, from 0", u.pixel)
        add("y", y, "Row of the peak, from 0", u.pixel)
        add("ra", ra, "Right ascension of the peak", u.deg)
        add("dec", dec, "Declination of the peak", u.deg)
        add("class", np.where(self.is_star, "star", "galaxy"), "The likelier class")
        add("p_star", self.p_star, "Probability that the source is a star")
        about = "Probability that it is more than one source; NaN if the model does not say it"
        add("p_blend", self.detections.p_blend, about)
        add("score", self.scores, "Probability that this is a source and not background")
        add("area", self.measured.area, "Pixels of the mask", u.pixel)
        add("binning", self.detections.binning, "Binning of the image in which it was detected")
        with np.errstate(invalid="ignore", divide="ignore"):
            for number, band in enumerate(self.image.bands):
                flux, error = self.fluxes[:, number], self.flux_errors[:, number]
                add(f"flux_{band}", flux, f"Flux of the deblended pixels in {band}", u.nJy)
                add(f"flux_err_{band}", error, f"Standard deviation of flux_{band}", u.nJy)
                magnitude = AB_ZERO_POINT - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
                add(f"mag_{band}", magnitude, f"AB magnitude of flux_{band}", u.ABmag)
                error = _MAG_PER_RATIO * error / np.where(flux > 0, flux, np.nan)
                add(f"mag_err_{band}", error, f"Standard deviation of mag_{band}", u.mag)
                if self.models is not None:
                    self._add_model_flux(add, number, band)
        if self.models is not None:
            self._add_shapes(add)
        for name, values, doc in self._flags():
            add(name, values, doc)
        return table

    def _add_model_flux(self, add: Callable[..., None], number: int, band: str) -> None:
        models = self.require_models()
        flux, error = models.flux[:, number], models.flux_errors[:, number]
        add(f"model_flux_{band}", flux, f"Total flux of the model in {band}", u.nJy)
        add(f"model_flux_err_{band}", error, f"Standard deviation of model_flux_{band}", u.nJy)
        positive = np.where(flux > 0, flux, np.nan)
        magnitude = AB_ZERO_POINT - 2.5 * np.log10(positive)
        add(f"model_mag_{band}", magnitude, f"AB magnitude of model_flux_{band}", u.ABmag)
        add(f"model_mag_err_{band}", _MAG_PER_RATIO * error / positive, f"Error of model_mag_{band}", u.mag)

    def _add_shapes(self, add: Callable[..., None]) -> None:
        models = self.require_models()
        values, covariance = models.shapes()
        errors = np.sqrt(np.einsum("nii->ni", covariance))
        scale = self.image.pixel_scale
        for number, name, unit, factor, doc in (
            (0, "model_x", u.pixel, 1.0, "Column of the centre of the model, from 0"),
            (1, "model_y", u.pixel, 1.0, "Row of the centre of the model, from 0"),
            (2, "r50", u.arcsec, scale, "Half-light radius, geometric mean of the axes; 0 for stars"),
            (3, "e1", None, 1.0, "(a - b) / (a + b) times the cosine of twice the angle from x to y"),
            (4, "e2", None, 1.0, "(a - b) / (a + b) times the sine of twice the angle from x to y"),
            (5, "sersic_index", None, 1.0, "Sersic index; NaN for stars"),
        ):
            add(name, factor * values[:, number], doc, unit)
            add(f"{name}_err", factor * errors[:, number], f"Standard deviation of {name}", unit)
        add("model_is_star", models.is_star, "Whether the model is the PSF")
        add("chi2", models.chi2, "Chi squared in the window of the model, all bands")
        add("dof", models.dof, "Pixels there less parameters")
        add(
            "delta_chi2",
            models.delta_chi2,
            "Chi squared as a star less that as a galaxy, where both were tried",
        )
        add("flag_not_converged", ~models.converged, "The fit of the model did not converge")
        add("flag_same_place", models.shared, "It shares its model with another source at the same place")
        bad = "Pixels at the peak could not be fitted in some band"
        add("flag_core", models.core.any(axis=1), bad)

    def _flags(self) -> list[tuple[str, npt.NDArray[np.bool_], str]]:
        measured, (height, width) = self.measured, self.image.shape
        on_edge = (measured.box_min_x == 0) | (measured.box_min_y == 0)
        on_edge |= (measured.box_max_x == width - 1) | (measured.box_max_y == height - 1)
        limited = "So many sources were found here that the network was run on smaller parts of the image"
        fallback = "The flux of the parent was shared by masks alone"
        return [
            ("is_isolated", self.is_isolated, "Whether it shares its flux with no other source"),
            ("flag_edge", on_edge, "The mask touches the edge of the image"),
            ("flag_bad", measured.n_bad > 0, "A pixel of the mask is bad in some band"),
            ("flag_saturated", measured.n_saturated > 0, "A pixel of the mask is saturated in some band"),
            ("flag_invalid", measured.n_invalid > 0, "A pixel of the mask holds no data in some band"),
            ("flag_limited", self.detections.flag_limited, limited),
            ("flag_fallback", self.statistics.fallback[self.parent], fallback),
        ]

    def _band(self, band: int | str) -> int:
        bands = tuple(self.image.bands)
        if isinstance(band, str):
            if band not in bands:
                raise ValueError(f"there is no band {band!r}; the image has {', '.join(bands)}")
            return bands.index(band)
        return range(len(bands))[band]
