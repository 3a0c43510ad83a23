# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""From the pixels of several bands to deblended sources.

`find_sources` is what the deblending task, the commands, the Python interface
and the Blending ToolKit call. Its stages, in order:

1. normalise the bands;
2. detect sources, tile by tile; their scores are calibrated to probabilities
   before anything is decided by them (both in `~.any_band`, or in `~.detection`
   for models of fixed bands);
3. grow masks that are only the core of a galaxy (`~.cores`), and join the
   pieces of saturated stars (`~.saturated`);
4. find the peak of each source (`~.peaks`) and measure its mask (`~.masks`);
5. make parents of the sources that touch (`~.parents`);
6. fit models to all sources in all bands (`~.models`, `lsst.meas.maskrcnn.profiles`);
7. share the flux of each parent among its sources, in all bands (`~.shares`).
"""

from __future__ import annotations

__all__ = ["DeblendSettings", "find_sources"]

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torchvision.models.detection import MaskRCNN

from ..images.settings import settings as settings_class
from ..network.any_band import AnyBandNetwork
from ..network.detections import Detections
from ..network.inference import DetectionSettings, select_device
from ..network.memory import release_memory
from ..network.model_file import MaskRcnnModel
from ..network.runtime import prepared_network
from ..profiles.blend import BlendSource
from ..profiles.model import ProfileFit
from .any_band import detect_any_band, image_wavelengths
from .cores import grow_cores
from .detection import DetectionImages, Normalize, detect_fixed_bands
from .image import MultibandImage
from .masks import MaskMeasurements, clean_masks, measure_masks, move_peaks
from .models import fit_models
from .parents import Parent, make_parents
from .peaks import find_peaks
from .saturated import join_saturated
from .shares import ParentStatistics, ShareSettings, SourceShare, share_parents
from .sources import SourceList

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the steps that are done and their number."""


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
    wavelengths: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> SourceList:
    """Find, classify and deblend the sources of an image.

    Parameters
    ----------
    image : `~.image.MultibandImage`
        Pixels in the bands of the model, which the network is given, and in
        others if wanted; flux is shared in all of them.
    model : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`
        The trained model.
    settings : `DeblendSettings`, optional
        How sources are found and deblended.
    normalizer : callable, optional
        Normalises flux, variance and usable pixels in place of the model.
    wavelengths : `~collections.abc.Mapping` [`str`, `float`], optional
        By band (nm), for models of any bands where the name does not say it.
    progress : callable, optional
        Called with a stage (``tiles`` or ``parents``), the steps done and all.

    Returns
    -------
    sources : `~.sources.SourceList`
        The sources, by descending score.

    Raises
    ------
    ValueError
        Raised if a band, a wavelength or the device is missing.
    lsst.meas.maskrcnn.network.model_file.ModelFileError
        Raised if the weights of the model are not those of its architecture.

    Examples
    --------
    >>> import numpy as np
    >>> from lsst.meas.maskrcnn import MultibandImage, find_sources, load_model
    >>> noise = np.random.default_rng(1).normal(size=(3, 64, 80))
    >>> image = MultibandImage(noise, bands=["g", "r", "z"], pixel_scale=0.168, psf_fwhm=[4, 4, 4])
    >>> len(find_sources(image, load_model()))
    0
    """
    settings = settings or DeblendSettings()
    timings = dict.fromkeys(("normalize", "forward", "merge", "masks", "profiles", "shares"), 0.0)
    device = select_device(settings.detection.device)
    # Of reading the image, and of the patch before this one.
    release_memory()
    with _timed(timings, "forward"):
        found, combined = _detect(image, model, settings.detection, device, normalizer, wavelengths, progress)
    timings.update(found.timings)
    with _timed(timings, "merge"):
        found = grow_cores(found, combined.snr, combined.fwhm)
        found = join_saturated(found, combined.saturated).sorted()
    with _timed(timings, "masks"):
        found = _clean(found, image.shape, settings.detection.min_area)
        peaks = find_peaks(combined.snr, found.soft, found.soft_origins, combined.fwhm)
        peaks = np.where(np.isfinite(found.positions), found.positions, peaks)
        measured = _measure(found.masks, found.origins, combined)
        measured = move_peaks(measured, found.masks, found.origins, peaks, combined.mean)
    with _timed(timings, "shares"):
        limits = settings.shares.max_parent_sources, settings.shares.max_parent_area
        parents = make_parents(found.masks, found.origins, image.shape, settings.shares.parent_grow, *limits)
    whole, n_valid = _measure_parents(parents, combined), int(np.count_nonzero(combined.valid))
    noise = combined.noise
    # These images are large, and the fit takes as much again.
    del combined
    release_memory()
    blended = _blend_sources(found, peaks)
    shared = _share(image, parents, blended, found.p_star, noise, settings.shares, device, timings, progress)
    shares, statistics, models = shared
    return SourceList(
        image, found, peaks, measured, whole, parents, shares, statistics, noise, n_valid, timings, models
    )


def _share(
    image: MultibandImage,
    parents: list[Parent],
    sources: list[BlendSource],
    p_star: npt.NDArray[np.floating],
    noise: npt.NDArray[np.float64],
    settings: ShareSettings,
    device: torch.device,
    timings: dict[str, float],
    progress: Progress | None,
) -> tuple[list[SourceShare], ParentStatistics, ProfileFit | None]:
    """Fit models to the sources of parents, and share the flux."""
    report = progress and functools.partial(progress, "parents")
    with_variance = _with_variance(image, noise)
    with _timed(timings, "profiles"):
        models = fit_models(with_variance, parents, sources, p_star, settings.local_sky, device)
    release_memory()
    with _timed(timings, "shares"):
        shares, statistics = share_parents(with_variance, parents, sources, settings, report, models)
    return shares, statistics, models


def _detect(
    image: MultibandImage,
    model: MaskRcnnModel,
    settings: DetectionSettings,
    device: torch.device,
    normalizer: Normalize | None,
    wavelengths: Mapping[str, float] | None,
    progress: Progress | None,
) -> tuple[Detections, DetectionImages]:
    """Detect with the network of the model."""
    report = progress and functools.partial(progress, "tiles")
    if not model.takes_any_bands:
        return detect_fixed_bands(
            cast(MaskRCNN, prepared_network(model, str(device))),
            image,
            model.metadata,
            settings,
            normalizer=normalizer,
            progress=report,
        )
    if normalizer is not None:
        raise ValueError(f"model {model.metadata.name!r} has its own normalisation; give no normalizer")
    return detect_any_band(
        cast(AnyBandNetwork, prepared_network(model, str(device))),
        image,
        image_wavelengths(image, wavelengths),
        settings,
        calibration=model.metadata.calibration,
        progress=report,
    )


def _clean(found: Detections, shape: tuple[int, int], min_area: int) -> Detections:
    """Cut masks at the edge of the image, and drop small ones."""
    masks, origins, kept = clean_masks(found.masks, found.origins, shape, min_area)
    return replace(found.take(kept), masks=masks, origins=origins)


def _measure(
    masks: Sequence[npt.NDArray[np.bool_]], origins: npt.NDArray[Any], images: DetectionImages
) -> MaskMeasurements:
    return measure_masks(
        masks, origins, images.mean, valid=images.valid, bad=images.bad, saturated=images.saturated
    )


def _measure_parents(parents: list[Parent], images: DetectionImages) -> MaskMeasurements:
    """Measure the pixels of the parents with more than one source."""
    blends = [parent for parent in parents if len(parent) > 1]
    corners = np.array([(parent.y0, parent.x0) for parent in blends], dtype=np.int64)
    return _measure([parent.pixels for parent in blends], corners, images)


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


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[stage] += time.perf_counter() - started
