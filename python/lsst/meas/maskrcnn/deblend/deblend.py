# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""From the pixels of several bands to deblended sources.

`find_sources` is what the deblending task, the commands, the Python interface
and the Blending ToolKit call. Its stages, in order:

1. normalise the bands of the model (`lsst.meas.maskrcnn.images.normalize`);
2. detect sources at each binning of the image, tile by tile; their scores are
   calibrated to probabilities before anything is decided by them
   (`~.detection`, `lsst.meas.maskrcnn.network.inference`);
3. merge what was detected at the several binnings (`~.merging`), and the pieces
   of saturated stars (`~.saturated`);
4. find the peak of each source (`~.peaks`) and measure its mask (`~.masks`);
5. make parents of the sources that touch (`~.parents`);
6. share the flux of each parent among its sources, in all bands (`~.shares`).
"""

from __future__ import annotations

__all__ = ["DeblendSettings", "check_bands", "find_sources"]

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..images.normalize import normalize
from ..images.settings import settings as settings_class
from ..network.detections import Detections
from ..network.inference import DetectionSettings, select_device
from ..network.model_file import MaskRcnnModel, ModelMetadata
from ..network.runtime import prepared_network
from ..profiles.blend import BlendSource
from .detection import DetectionImages, Normalize, detect_binnings
from .image import MultibandImage
from .masks import MaskMeasurements, clean_masks, measure_masks, move_peaks
from .merging import merge_scales
from .parents import Parent, make_parents, split_parents
from .peaks import find_peaks
from .saturated import join_saturated
from .shares import ShareSettings, share_parents
from .sources import SourceList

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the steps that are done and their number."""

_LOG = logging.getLogger(__name__)

_MAX_SCALE_RATIO = 1.5
"""Factor between the pixel scales of image and training images from which to
warn: the augmentations of the training reach about as far."""


@settings_class
class DeblendSettings:
    """How sources are found and deblended."""

    detection: Annotated[
        DetectionSettings, Field(description="How the network is run and which detections are kept.")
    ] = DetectionSettings()
    shares: Annotated[
        ShareSettings, Field(description="Which sources make a parent, and how its flux is shared.")
    ] = ShareSettings()


def find_sources(
    image: MultibandImage,
    model: MaskRcnnModel,
    settings: DeblendSettings | None = None,
    *,
    normalizer: Normalize | None = None,
    progress: Progress | None = None,
) -> SourceList:
    """Find, classify and deblend the sources of an image.

    Parameters
    ----------
    image : `~.image.MultibandImage`
        Pixels of one piece of sky in the bands of the model, and in others if
        they are there: the network is given the former, flux is shared in all
        of them.
    model : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`
        The trained model.
    settings : `DeblendSettings`, optional
        How to go about it.
    normalizer : callable, optional
        Normalises flux, variance and usable pixels in place of the model's own
        normalisation.
    progress : callable, optional
        Called with the name of a stage (``tiles`` or ``parents``), the steps
        that are done and their number.

    Returns
    -------
    sources : `~.sources.SourceList`
        The sources, by descending score.

    Raises
    ------
    ValueError
        Raised if a band of the model is missing, or the device is not there.
    lsst.meas.maskrcnn.network.model_file.ModelFileError
        Raised if the weights of the model are not those of its architecture.

    Examples
    --------
    >>> import numpy as np
    >>> from lsst.meas.maskrcnn import MultibandImage, find_sources, load_model
    >>> noise = np.random.default_rng(1).normal(size=(3, 64, 80))
    >>> image = MultibandImage(noise, bands=["g", "r", "z"], pixel_scale=0.168, psf_fwhm=[4, 4, 4])
    >>> len(find_sources(image, load_model("lite")))
    0
    """
    settings = settings or DeblendSettings()
    check_bands(image, model.metadata)
    _warn_of_pixel_scale(image, model.metadata)
    timings = dict.fromkeys(("normalize", "forward", "merge", "masks", "shares"), 0.0)
    levels, seen = _detect(image, model, settings.detection, normalizer, timings, progress)
    with _timed(timings, "merge"):
        found = merge_scales(levels, np.maximum(seen.snr, 0.0), seen.fwhm)
        found = join_saturated(found, seen.saturated).sorted()
    with _timed(timings, "masks"):
        masks, origins, kept = clean_masks(
            found.masks, found.origins, image.shape, settings.detection.min_area
        )
        found = replace(found.take(kept), masks=masks, origins=origins)
        peaks = find_peaks(seen.snr, found.soft, found.soft_origins, seen.fwhm)
        measured = measure_masks(
            masks, origins, seen.mean, valid=seen.valid, bad=seen.bad, saturated=seen.saturated
        )
        measured = move_peaks(measured, masks, origins, peaks, seen.mean)
    with _timed(timings, "shares"):
        parents = make_parents(masks, origins, image.shape, settings.shares.parent_grow)
        parents = split_parents(
            parents,
            masks,
            origins,
            settings.shares.parent_grow,
            settings.shares.max_parent_sources,
            settings.shares.max_parent_area,
        )
        shares, statistics = share_parents(
            _with_variance(image, seen.noise),
            parents,
            _blend_sources(found, peaks),
            settings.shares,
            _part(progress, "parents"),
        )
    return SourceList(
        image,
        found,
        peaks,
        measured,
        _measure_parents(parents, seen),
        parents,
        shares,
        statistics,
        seen.noise,
        int(np.count_nonzero(seen.valid)),
        timings,
    )


def check_bands(image: MultibandImage, metadata: ModelMetadata) -> None:
    """Check that an image has the bands of a model.

    Parameters
    ----------
    image : `~.image.MultibandImage`
        The image.
    metadata : `~lsst.meas.maskrcnn.network.model_file.ModelMetadata`
        Header of the model.

    Raises
    ------
    ValueError
        Raised if one is missing.
    """
    missing = [band for band in metadata.bands if band not in image.bands]
    if missing:
        raise ValueError(
            f"model {metadata.name!r} needs the bands {', '.join(metadata.bands)}, but the image has "
            f"{', '.join(image.bands)}: {', '.join(missing)} is missing. Add it, or choose another model."
        )


def _warn_of_pixel_scale(image: MultibandImage, metadata: ModelMetadata) -> None:
    """Warn if sources have other sizes than those the network has been trained on."""
    ratio = image.pixel_scale / metadata.pixel_scale
    if max(ratio, 1.0 / ratio) > _MAX_SCALE_RATIO:
        _LOG.warning(
            "Pixels are %.3f arcsec, but model %s was trained on %.3f arcsec: expect it to miss sources.",
            image.pixel_scale,
            metadata.name,
            metadata.pixel_scale,
        )


def _detect(
    image: MultibandImage,
    model: MaskRcnnModel,
    settings: DetectionSettings,
    normalizer: Normalize | None,
    timings: dict[str, float],
    progress: Progress | None,
) -> tuple[list[Detections], DetectionImages]:
    """Detect at each binning, in pixels of the whole image."""
    seen = image.select(model.metadata.bands)
    usable: npt.NDArray[np.bool_] = np.logical_and.reduce(np.asarray(seen.usable), axis=0)
    normalise = normalizer or functools.partial(normalize, model.metadata.normalization)
    if not (usable & np.isfinite(seen.flux).all(axis=0)).any():
        return [Detections.empty()], DetectionImages.make(
            image, seen, normalise(seen.flux, seen.variance, usable)
        )
    levels: list[Detections] = []
    images: list[DetectionImages] = []
    for level in detect_binnings(
        prepared_network(model, str(select_device(settings.device))),
        normalise,
        seen.flux,
        seen.variance,
        usable,
        settings,
        calibration=model.metadata.calibration,
        psf_fwhm=seen.psf_fwhm,
        progress=_part(progress, "tiles"),
    ):
        levels.append(level.detections)
        if level.binning == 1:
            images.append(DetectionImages.make(image, seen, level.image))
        for stage, seconds in level.detections.timings.items():
            timings[stage] = timings.get(stage, 0.0) + seconds
    return levels, images[0]


def _measure_parents(parents: list[Parent], seen: DetectionImages) -> MaskMeasurements:
    """Measure the pixels of the parents with more than one source."""
    blends = [parent for parent in parents if len(parent) > 1]
    return measure_masks(
        [parent.pixels for parent in blends],
        np.array([(parent.y0, parent.x0) for parent in blends], dtype=np.int64).reshape(-1, 2),
        seen.mean,
        valid=seen.valid,
        bad=seen.bad,
        saturated=seen.saturated,
    )


def _with_variance(image: MultibandImage, noise: npt.NDArray[np.float64]) -> MultibandImage:
    """Give an image without a variance that of its noise."""
    if image.variance is not None:
        return image
    sky = np.where(np.isfinite(noise) & (noise > 0), noise, 1.0).astype(np.float32) ** 2
    return replace(image, variance=np.broadcast_to(sky[:, None, None], image.flux.shape))


def _blend_sources(found: Detections, peaks: npt.NDArray[np.float64]) -> list[BlendSource]:
    """Describe the sources as the sharing of flux takes them."""
    return [
        BlendSource(soft, y0, x0, peak_y, peak_x, is_star)
        for soft, (y0, x0), (peak_y, peak_x), is_star in zip(
            found.soft,
            found.soft_origins.tolist(),
            peaks.tolist(),
            (found.p_star >= 0.5).tolist(),
            strict=True,
        )
    ]


def _part(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    """Report the steps of one stage."""
    if progress is None:
        return None

    def report(done: int, total: int) -> None:
        progress(stage, done, total)

    return report


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[stage] += time.perf_counter() - started
