# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The deblender as one of Blending ToolKit's.

Blending ToolKit (BTK, https://github.com/LSSTDESC/BlendingToolKit) draws
blends of known galaxies and runs deblenders on them. This module needs BTK
(``pip install "lsst-meas-maskrcnn[btk]"``) and no package of the Science
Pipelines.
"""

from __future__ import annotations

__all__ = ["MaskRcnnDeblender"]

import logging
import os
from collections.abc import Mapping
from typing import Any

import galsim
import numpy as np
from astropy.table import Table
from btk.blend_batch import BlendBatch, DeblendBatch, DeblendExample
from btk.deblend import Deblender
from surveycodex.utilities import mag2counts, mean_sky_level

from ..deblend.deblend import DeblendSettings, find_sources
from ..deblend.image import MultibandImage
from ..deblend.sources import SourceList
from ..images.units import AB_ZERO_POINT
from ..metrics.arrays import Float32Array
from ..network.model_file import MaskRcnnModel, load_model

_LOG = logging.getLogger(__name__)

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
    model : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`, `str` or \
            `os.PathLike`, optional
        The trained model, the name of one that comes with this package, or
        the path of a file.
    bands : `~collections.abc.Mapping` [`str`, `str`], optional
        The survey's filter to use for a band of the model, where the two have
        different names.
    settings : `~lsst.meas.maskrcnn.deblend.deblend.DeblendSettings`, optional
        How sources are found and deblended.

    Raises
    ------
    FileNotFoundError
        Raised if there is no such model file.
    lsst.meas.maskrcnn.network.model_file.ModelFileError
        Raised if it is not a model file that this version can use.
    ValueError
        Raised if ``bands`` names a band that the model does not have, or a
        number is out of its range.

    Notes
    -----
    BTK's images are in electrons, without sky. They become fluxes by the
    survey's zero points; their noise is that of the sky and the sources,
    whatever noise was drawn. A network of fixed bands is given its own, others
    all bands; flux is shared in all bands of the survey.
    """

    def __init__(
        self,
        max_n_sources: int,
        model: MaskRcnnModel | str | os.PathLike[str] = "lite",
        *,
        bands: Mapping[str, str] | None = None,
        settings: DeblendSettings | None = None,
    ) -> None:
        if max_n_sources < 1:
            raise ValueError(f"max_n_sources is {max_n_sources}, wanted 1 or more")
        super().__init__(max_n_sources)
        self.model = model if isinstance(model, MaskRcnnModel) else load_model(model)
        self.bands = dict(bands or {})
        known = self.model.metadata.bands or tuple(self.bands)
        unknown = sorted(set(self.bands) - set(known))
        if unknown:
            raise ValueError(
                f"bands maps {unknown}, but the bands of model '{self.model.metadata.name}' are "
                f"{list(self.model.metadata.bands)}. Its keys are the model's bands, its values the survey's "
                "filters."
            )
        self.settings = settings or DeblendSettings()

    def deblend(self, ii: int, blend_batch: BlendBatch) -> DeblendExample:
        """Deblend one blend of a batch.

        Parameters
        ----------
        ii : `int`
            Which one.
        blend_batch : `btk.blend_batch.BlendBatch`
            The batch; `ValueError` is raised if its survey lacks a band of the model.

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
        """
        image = batch_image(blend_batch, ii, self.bands)
        sources = find_sources(image, self.model, self.settings)
        if len(sources) > self.max_n_sources:
            _LOG.warning(
                "%d sources were found in a blend; those of the %d highest scores are kept. Raise "
                "max_n_sources to have all.",
                len(sources),
                self.max_n_sources,
            )
        pixels = np.asarray(blend_batch.blend_images[ii], dtype=np.float32)
        segmentation = np.zeros((self.max_n_sources, *image.shape), dtype=bool)
        deblended = np.zeros((self.max_n_sources, *pixels.shape), dtype=np.float32)
        found = sources.detections
        count = min(len(sources), self.max_n_sources)
        for index in range(count):
            mask, (y0, x0), share = found.masks[index], found.origins[index], sources.shares[index]
            segmentation[index, y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
            deblended[index][(slice(None), *share.box)] = share.pixels(pixels)
        catalog = _make_catalog(sources, count, blend_batch)
        fluxes = deblended[:count].sum(axis=(2, 3), dtype=np.float64).T
        for name, flux in zip(blend_batch.survey.available_filters, fluxes, strict=True):
            catalog[f"flux_{name}"] = flux
        size = blend_batch.image_size
        return DeblendExample(self.max_n_sources, catalog, len(pixels), size, segmentation, deblended)

    def batch_call(self, blend_batch: BlendBatch, njobs: int = 1) -> DeblendBatch:
        """Deblend all blends of a batch, as `deblend` does each of them.

        Parameters
        ----------
        blend_batch : `btk.blend_batch.BlendBatch`
            The batch.
        njobs : `int`
            Not used: torch has threads of its own, and processes that BTK
            forks from one in which it has computed can hang. Set the number
            of threads with ``torch.set_num_threads``.
        """
        examples = [self.deblend(ii, blend_batch) for ii in range(len(blend_batch.blend_images))]
        return DeblendBatch(
            blend_batch.batch_size,
            self.max_n_sources,
            [example.catalog for example in examples],
            len(blend_batch.survey.available_filters),
            blend_batch.image_size,
            np.stack([example.segmentation for example in examples]),
            np.stack([example.deblended_images for example in examples]),
        )


def batch_image(batch: BlendBatch, ii: int, bands: Mapping[str, str] | None = None) -> MultibandImage:
    """Make the image of one blend in all filters of the survey, in its order.

    ``bands`` has the filter for a band, where the two have different names.
    """
    survey = batch.survey
    filters = [survey.get_filter(name) for name in survey.available_filters]
    names = {name: band for band, name in (bands or {}).items()}
    scale = float(survey.pixel_scale.to_value("arcsec"))
    # Counts are cut to whole electrons: of so many that it does not matter.
    bright = [mag2counts(AB_ZERO_POINT - 25.0, survey, item).to_value("electron") for item in filters]
    electrons = np.array(bright, dtype=np.float64)[:, None, None] / 1e10
    sky = np.array([mean_sky_level(survey, item).to_value("electron") for item in filters])[:, None, None]
    pixels = np.asarray(batch.blend_images[ii], dtype=np.float64)
    drawn = [_draw_psf(psf, scale) for psf in batch.psf]
    return MultibandImage(
        (pixels / electrons).astype(np.float32),
        [names.get(name, name) for name in survey.available_filters],
        scale,
        ((np.maximum(pixels, 0.0) + sky) / electrons**2).astype(np.float32),
        psf=lambda band, y, x: drawn[band],
    )


def _draw_psf(psf: Any, pixel_scale: float) -> Float32Array | None:
    """Draw a PSF on the survey's pixels, `None` where it cannot be drawn."""
    if not isinstance(psf, galsim.GSObject):
        # A batch that was read from a file has images, of a pixel scale that is not known.
        return None
    side = 2 * _PSF_RADIUS + 1
    return np.asarray(psf.drawImage(nx=side, ny=side, scale=pixel_scale).array)


def _make_catalog(sources: SourceList, count: int, batch: BlendBatch) -> Table:
    """Positions as BTK has them, scores and classes."""
    y, x = sources.peaks[:count].T
    ra, dec = (3600.0 * np.asarray(value) for value in batch.wcs.pixel_to_world_values(x, y))
    # The right ascensions of BTK's truth are about 0, not below 360 deg.
    ra = (ra + 0.5 * _ARCSEC_PER_TURN) % _ARCSEC_PER_TURN - 0.5 * _ARCSEC_PER_TURN
    return Table(
        {
            "ra": ra,
            "dec": dec,
            "x_peak": x,
            "y_peak": y,
            "score": sources.scores[:count],
            "p_star": sources.p_star[:count],
            "area": sources.measured.area[:count],
            "parent": sources.parent[:count],
        }
    )
