# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The deblender as one of Blending ToolKit's.

Blending ToolKit (BTK, https://github.com/LSSTDESC/BlendingToolKit) draws
blends of known galaxies and asks deblenders for them; `MaskRcnnDeblender` can
take part. This module needs BTK (``pip install "lsst-meas-maskrcnn[btk]"``)
and no package of the Science Pipelines.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import galsim
import numpy as np
import numpy.typing as npt
from astropy.table import Table
from btk.blend_batch import BlendBatch, DeblendBatch, DeblendExample
from btk.deblend import Deblender
from surveycodex.utilities import mag2counts, mean_sky_level

from ..catalogs.blends import Parent, make_parents
from ..deblend.peaks import find_peaks
from ..deblend.scales import ScaleSettings, detect_scales
from ..deblend.shares import BlendSource, ShareSettings, share_flux
from ..images.normalize import NormalizedImage, normalize, settings_keywords
from ..images.units import AB_ZERO_POINT, FWHM_PER_SIGMA
from ..network.inference import Detections, InferenceSettings, select_device
from ..network.model_file import MaskRcnnModel, ModelMetadata, default_model_path, read_model
from ..network.runtime import prepare_network

__all__ = ["MaskRcnnDeblender"]

_LOG = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]

_MAX_SCALE_RATIO = 1.5
"""Factor between the pixel scales of survey and model from which to warn."""

_PSF_RADIUS = 20
"""Half the side of an image of the PSF, px."""

_ARCSEC_PER_TURN = 360.0 * 3600.0


class MaskRcnnDeblender(Deblender):
    """Find the galaxies of a blend with Mask R-CNN, and share its flux.

    Parameters
    ----------
    max_n_sources : `int`
        Largest number of sources in a blend; of more, those of the highest
        scores are returned, with a warning.
    model : `~.network.model_file.MaskRcnnModel`, `str` or `os.PathLike`, \
            optional
        The trained model, or the path of its file; by default the model that
        comes with this package.
    bands : `~collections.abc.Mapping` [`str`, `str`], optional
        The survey's filter to use for a band of the model, where the two have
        different names.
    device : `str`
        Where the network computes: ``cpu``, ``cuda``, or ``auto`` for a GPU
        where there is one.
    inference : `~.network.inference.InferenceSettings`, optional
        Which detections are kept; by default those that the model's header
        asks for.
    scales : `~.deblend.scales.ScaleSettings`, optional
        The binnings of the image at which the network looks.
    shares : `~.deblend.shares.ShareSettings`, optional
        How the flux of overlapping sources is shared.
    parent_grow : `float`
        Radius by which masks are grown to make the pixels whose flux is
        shared (px). Flux further out belongs to nobody.

    Raises
    ------
    FileNotFoundError
        Raised if there is no such model file.
    lsst.meas.maskrcnn.network.model_file.ModelFileError
        Raised if it is not a model file that this version can use.
    ValueError
        Raised if ``bands`` names a band that the model does not have or a
        filter twice, the device is not there, or a number is out of its
        range.

    Notes
    -----
    BTK's images are in electrons, without sky. They become fluxes by the
    survey's zero points, their noise is that of the sky and the sources,
    whatever noise was drawn, and no background is taken off.

    The network sees the bands that it was trained on; flux is shared in all
    bands of the survey.
    """

    def __init__(
        self,
        max_n_sources: int,
        model: MaskRcnnModel | str | os.PathLike[str] | None = None,
        *,
        bands: Mapping[str, str] | None = None,
        device: str = "auto",
        inference: InferenceSettings | None = None,
        scales: ScaleSettings | None = None,
        shares: ShareSettings | None = None,
        parent_grow: float = 6.0,
    ) -> None:
        if max_n_sources < 1:
            raise ValueError(f"max_n_sources is {max_n_sources}, wanted 1 or more")
        if not (math.isfinite(parent_grow) and parent_grow >= 0):
            raise ValueError(f"parent_grow is {parent_grow} px, wanted 0 or more")
        super().__init__(max_n_sources)
        if not isinstance(model, MaskRcnnModel):
            model = read_model(default_model_path() if model is None else model)
        self.metadata = model.metadata
        self.bands = _choose_filters(self.metadata, bands or {})
        self.inference = inference or _model_settings(self.metadata)
        self.scales = scales or ScaleSettings()
        self.shares = shares or ShareSettings()
        self.parent_grow = parent_grow
        self._normalization = _without_background(self.metadata)
        self._network = prepare_network(model.build(select_device(device)))

    def deblend(self, ii: int, blend_batch: BlendBatch) -> DeblendExample:
        """Deblend one blend of a batch.

        Parameters
        ----------
        ii : `int`
            Which one.
        blend_batch : `btk.blend_batch.BlendBatch`
            The batch.

        Returns
        -------
        example : `btk.blend_batch.DeblendExample`
            Results with the attributes:

            ``catalog``
                One row for each source, by descending score: ``ra``, ``dec``
                (arcsec), ``x_peak``, ``y_peak`` (px, first pixel (0, 0)),
                ``score``, ``p_star``, ``area`` (px, of the mask), ``parent``
                (sources of one number share flux) and by filter
                ``flux_<name>`` (electron, sum of the deblended image).
            ``segmentation``
                Masks, bool, (source, y, x); they may overlap.
            ``deblended_images``
                Share of the image, electron, float32, (source, band, y, x),
                0 outside the footprint. On the union of the footprints the
                sources add up to the image.

        Raises
        ------
        ValueError
            Raised if the survey lacks a band of the model.
        """
        return self._deblend(blend_batch.blend_images[ii], blend_batch, self._read_conditions(blend_batch))

    def batch_call(self, blend_batch: BlendBatch, njobs: int = 1) -> DeblendBatch:
        """Deblend all blends of a batch.

        Parameters
        ----------
        blend_batch : `btk.blend_batch.BlendBatch`
            The batch.
        njobs : `int`
            Not used: torch has threads of its own, and processes that BTK
            forks from one in which it has computed can hang. Set the number
            of threads with ``torch.set_num_threads``.

        Returns
        -------
        batch : `btk.blend_batch.DeblendBatch`
            The results of `deblend` for each of them.

        Raises
        ------
        ValueError
            Raised if the survey lacks a band of the model.
        """
        conditions = self._read_conditions(blend_batch)
        examples = [self._deblend(image, blend_batch, conditions) for image in blend_batch.blend_images]
        return DeblendBatch(
            blend_batch.batch_size,
            self.max_n_sources,
            [example.catalog for example in examples],
            len(conditions.filters),
            blend_batch.image_size,
            np.stack([example.segmentation for example in examples]),
            np.stack([example.deblended_images for example in examples]),
        )

    def _read_conditions(self, blend_batch: BlendBatch) -> _Conditions:
        conditions = _Conditions.from_batch(blend_batch)
        missing = [name for name in self.bands if name not in conditions.filters]
        if missing:
            raise ValueError(
                f"Model '{self.metadata.name}' needs filters {list(self.bands)} for its bands "
                f"{list(self.metadata.bands)}, but survey {blend_batch.survey.name} has "
                f"{list(conditions.filters)}. Say with bands={{band of the model: filter}} which to use, or "
                "give a model that was trained on them."
            )
        ratio = conditions.pixel_scale / self.metadata.pixel_scale
        if max(ratio, 1.0 / ratio) > _MAX_SCALE_RATIO:
            _LOG.warning(
                "Pixels of %s are %.3f arcsec, but model %s was trained on %.3f arcsec: expect it to miss "
                "sources.",
                blend_batch.survey.name,
                conditions.pixel_scale,
                self.metadata.name,
                self.metadata.pixel_scale,
            )
        return conditions

    def _deblend(self, pixels: npt.ArrayLike, batch: BlendBatch, conditions: _Conditions) -> DeblendExample:
        images = np.asarray(pixels, dtype=np.float32)
        n_bands, *shape = images.shape
        variances = np.maximum(images, 0.0) + conditions.sky[:, None, None]
        chosen = [conditions.filters.index(name) for name in self.bands]
        gain = conditions.electrons[chosen, None, None]
        fwhm = conditions.psf_fwhm[chosen]
        found = self._find(images[chosen] / gain, variances[chosen] / gain**2, fwhm)
        segmentation = np.zeros((self.max_n_sources, *shape), dtype=bool)
        for mask, (y0, x0), plane in zip(found.masks, found.origins.tolist(), segmentation, strict=False):
            plane[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
        brightness = (images[chosen] / np.sqrt(conditions.sky[chosen, None, None])).sum(axis=0)
        sigma = {"psf_sigma": float(np.nanmedian(fwhm)) / FWHM_PER_SIGMA} if np.isfinite(fwhm).any() else {}
        peaks = find_peaks(brightness, found.soft, found.soft_origins, **sigma)
        parents = make_parents(found.masks, found.origins, (shape[0], shape[1]), self.parent_grow)
        deblended = np.zeros((self.max_n_sources, n_bands, *shape), dtype=np.float32)
        parent_of = np.zeros(len(found), dtype=np.int64)
        for number, parent in enumerate(parents):
            parent_of[parent.members] = number
            self._share(parent, found, peaks, images, variances, conditions, deblended)
        catalog = _make_catalog(found, peaks, batch)
        catalog["parent"] = parent_of
        for name, flux in zip(conditions.filters, _add_up(deblended[: len(found)]).T, strict=True):
            catalog[f"flux_{name}"] = flux
        return DeblendExample(self.max_n_sources, catalog, n_bands, batch.image_size, segmentation, deblended)

    def _normalise(
        self, flux: FloatArray, variance: FloatArray | None, valid: npt.NDArray[np.bool_]
    ) -> NormalizedImage:
        return normalize(self.metadata.normalization.name, flux, variance, valid, self._normalization)

    def _find(self, flux: FloatArray, variance: FloatArray, psf_fwhm: npt.NDArray[np.float64]) -> Detections:
        """Sources with a mask, at most as many as there is room for."""
        found = detect_scales(
            self._network,
            self._normalise,
            flux,
            variance,
            np.ones(flux.shape[1:], dtype=bool),
            settings=self.inference,
            scale_settings=self.scales,
            psf_fwhm=psf_fwhm,
        )
        found = found.take(np.array([bool(mask.any()) for mask in found.masks], dtype=bool))
        if len(found) > self.max_n_sources:
            _LOG.warning(
                "%d sources were found in a blend; those of the %d highest scores are kept. Raise "
                "max_n_sources to have all.",
                len(found),
                self.max_n_sources,
            )
            found = found.take(np.arange(self.max_n_sources))
        return found

    def _share(
        self,
        parent: Parent,
        found: Detections,
        peaks: npt.NDArray[np.float64],
        images: FloatArray,
        variances: FloatArray,
        conditions: _Conditions,
        deblended: FloatArray,
    ) -> None:
        """Write the shares of a parent's sources into their deblended images."""
        corner = np.array([parent.y0, parent.x0])
        sources = []
        for index in parent.members.tolist():
            y0, x0 = (found.soft_origins[index] - corner).tolist()
            peak_y, peak_x = (peaks[index] - corner).tolist()
            is_star = bool(found.p_star[index] >= 0.5)
            sources.append(BlendSource(found.soft[index], y0, x0, peak_y, peak_x, is_star))
        window = (slice(None), *parent.box)
        shares = share_flux(
            images[window], variances[window], parent.pixels, sources, conditions.psf_images, self.shares
        )
        for index, share in zip(parent.members.tolist(), shares.sources, strict=True):
            deblended[index][window][(slice(None), *share.box)] = share.pixels(images[window])


@dataclass(frozen=True)
class _Conditions:
    """How the images of a batch were taken, filter by filter of its survey."""

    filters: tuple[str, ...]
    pixel_scale: float
    electrons: FloatArray
    """Electrons of 1 nJy."""
    sky: FloatArray
    """Electrons of the sky in a pixel: the variance of an empty one."""
    psf_images: list[npt.NDArray[np.float64]] | None
    psf_fwhm: npt.NDArray[np.float64]
    """Px; NaN where not known."""

    @classmethod
    def from_batch(cls, batch: BlendBatch) -> _Conditions:
        survey = batch.survey
        names = tuple(survey.available_filters)
        filters = [survey.get_filter(name) for name in names]
        scale = float(survey.pixel_scale.to_value("arcsec"))
        # Counts are cut to whole electrons: of so many that it does not matter.
        bright = [mag2counts(AB_ZERO_POINT - 25.0, survey, item).to_value("electron") for item in filters]
        sky = [mean_sky_level(survey, item).to_value("electron") for item in filters]
        drawn = [_draw_psf(psf, scale) for psf in batch.psf]
        known = [image for image in drawn if image is not None]
        return cls(
            names,
            scale,
            np.array(bright, dtype=np.float64).astype(np.float32) / np.float32(1e10),
            np.array(sky, dtype=np.float32),
            [np.asarray(image.array, dtype=np.float64) for image in known]
            if len(known) == len(drawn)
            else None,
            np.array([np.nan if image is None else _adaptive_fwhm(image) for image in drawn]),
        )


def _draw_psf(psf: Any, pixel_scale: float) -> galsim.Image | None:
    """Draw a PSF as the survey's pixels see it, `None` where it cannot be drawn."""
    if not isinstance(psf, galsim.GSObject):
        # A batch that was read from a file has images, of a pixel scale that is not told.
        return None
    side = 2 * _PSF_RADIUS + 1
    return psf.drawImage(nx=side, ny=side, scale=pixel_scale)


def _adaptive_fwhm(image: galsim.Image) -> float:
    """FWHM in pixels of the Gaussian with the adaptive moments, NaN where they cannot be had."""
    moments = galsim.hsm.FindAdaptiveMom(image, strict=False)
    return FWHM_PER_SIGMA * moments.moments_sigma if not moments.error_message else math.nan


def _choose_filters(metadata: ModelMetadata, bands: Mapping[str, str]) -> tuple[str, ...]:
    """Filters in the order of the model's bands."""
    unknown = sorted(set(bands) - set(metadata.bands))
    if unknown:
        raise ValueError(
            f"bands maps {unknown}, but the bands of model '{metadata.name}' are {list(metadata.bands)}. Its "
            "keys are the model's bands, its values the survey's filters."
        )
    names = tuple(bands.get(band, band) for band in metadata.bands)
    if len(set(names)) != len(names):
        raise ValueError(
            f"bands gives filters {list(names)} for the model's bands {list(metadata.bands)}, one of them "
            "twice; each band needs a filter of its own."
        )
    return names


def _model_settings(metadata: ModelMetadata) -> InferenceSettings:
    """Settings that the model's header asks for."""
    spec = metadata.architecture
    return InferenceSettings(
        score_threshold=spec.detection_score,
        nms_threshold=spec.detection_nms,
        max_detections_per_tile=spec.detections_per_image,
    )


def _without_background(metadata: ModelMetadata) -> dict[str, Any]:
    """Settings of the model's normalisation, for images without sky."""
    settings = dict(metadata.normalization.settings)
    settings_keywords(metadata.normalization.name, settings)
    if "background" in settings:
        # In a stamp that is full of galaxies, the median of the pixels is their light.
        settings["background"] = "none"
    return settings


def _make_catalog(found: Detections, peaks: npt.NDArray[np.float64], batch: BlendBatch) -> Table:
    """Positions as BTK has them, and what the network says."""
    x, y = peaks[:, 1], peaks[:, 0]
    ra, dec = (3600.0 * np.asarray(value) for value in batch.wcs.pixel_to_world_values(x, y))
    # The right ascensions of BTK's truth are about 0, not below 360 deg.
    ra = (ra + 0.5 * _ARCSEC_PER_TURN) % _ARCSEC_PER_TURN - 0.5 * _ARCSEC_PER_TURN
    return Table(
        {
            "ra": ra,
            "dec": dec,
            "x_peak": x,
            "y_peak": y,
            "score": found.scores,
            "p_star": found.p_star,
            "area": np.array([np.count_nonzero(mask) for mask in found.masks], dtype=np.int64),
        }
    )


def _add_up(deblended: FloatArray) -> npt.NDArray[np.float64]:
    """Fluxes (source, band) of deblended images."""
    return np.asarray(deblended.sum(axis=(2, 3), dtype=np.float64))
