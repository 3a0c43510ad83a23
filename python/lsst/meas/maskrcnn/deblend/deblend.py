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

from ..network import torch_import  # noqa: F401, before what imports torch

# isort: split

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
from ..network.wavelengths import MASK_WAVELENGTH
from ..profiles.blend import BlendSource
from ..profiles.classes import with_width
from ..profiles.model import ProfileFit
from .any_band import detect_any_band, image_wavelengths
from .cores import grow_cores
from .detection import FLAGS, DetectionImages, Normalize, detect_fixed_bands
from .image import MultibandImage
from .masks import MaskMeasurements, clean_masks, measure_masks, move_peaks
from .models import fit_models
from .outlines import redraw_masks
from .parents import Parent, make_parents
from .peaks import find_peaks
from .saturated import join_saturated
from .shares import ShareSettings, share_parents
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
    release_memory(image.shape)
    with _timed(timings, "forward"):
        found, combined = _detect(image, model, settings.detection, device, normalizer, wavelengths, progress)
    timings.update(found.timings)
    with _timed(timings, "merge"):
        found = grow_cores(found, combined.snr, combined.fwhm)
        found = join_saturated(found, combined.has("saturated")).sorted()
        found = _clean(found, image.shape, settings.detection.min_area)
        peaks = _find_peaks(found, combined)
    with _timed(timings, "shares"):
        parents = _make_parents(found, image.shape, settings.shares)
    noise, with_variance = combined.noise, _with_variance(image, combined.noise)
    # These images are large, and the fit takes as much again.
    combined = replace(combined, snr=np.zeros((0, 0), np.float32))
    release_memory(image.shape)
    with _timed(timings, "profiles"):
        outlines = _outline_band(image, wavelengths) if model.takes_any_bands else None
        models, found = _fit(with_variance, parents, found, peaks, settings, device, outlines)
    with _timed(timings, "masks"):
        whole, measured = _measure_parents(parents, combined), _measure_sources(found, peaks, combined)
    n_valid = int(np.count_nonzero(combined.has("valid")))
    del combined
    release_memory(image.shape)
    with _timed(timings, "shares"):
        report, sources = progress and functools.partial(progress, "parents"), _blend_sources(found, peaks)
        shares, statistics = share_parents(with_variance, parents, sources, settings.shares, report, models)
    return SourceList(
        image, found, peaks, measured, whole, parents, shares, statistics, noise, n_valid, timings, models
    )


def _make_parents(found: Detections, shape: tuple[int, int], settings: ShareSettings) -> list[Parent]:
    limits = settings.max_parent_sources, settings.max_parent_area
    return make_parents(found.masks, found.origins, shape, settings.parent_grow, *limits)


def _fit(
    image: MultibandImage,
    parents: list[Parent],
    found: Detections,
    peaks: npt.NDArray[np.float64],
    settings: DeblendSettings,
    device: torch.device,
    outlines: int | None,
) -> tuple[ProfileFit | None, Detections]:
    """Fit models, whose widths count in the classes of networks with outlines in a band, and so in masks."""
    by_width, sky = outlines is not None, settings.shares.local_sky
    blended = _blend_sources(found, peaks)
    models = fit_models(image, parents, blended, found.p_star, sky, device, by_width)
    if models is None or outlines is None:
        return models, found
    p_star = with_width(found.p_star, models.evidence).astype(np.float32)
    changed = np.flatnonzero((p_star >= 0.5) != (found.p_star >= 0.5))
    found = replace(found, p_star=p_star)
    return models, redraw_masks(found, changed, models, outlines, parents, settings.detection.min_area)


def _outline_band(image: MultibandImage, wavelengths: Mapping[str, float] | None) -> int:
    """Number of the band of whose light masks are outlines."""
    return int(np.argmin(np.abs(np.subtract(image_wavelengths(image, wavelengths), MASK_WAVELENGTH))))


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


def _find_peaks(found: Detections, images: DetectionImages) -> npt.NDArray[np.float64]:
    """Positions (y, x) of the sources by the network, or else where they are brightest, (N, 2)."""
    peaks = find_peaks(images.snr, found.soft, found.soft_origins, images.fwhm)
    return np.where(np.isfinite(found.positions), found.positions, peaks)


def _measure_sources(
    found: Detections, peaks: npt.NDArray[np.float64], images: DetectionImages
) -> MaskMeasurements:
    measured = _measure(found.masks, found.origins, images)
    return move_peaks(measured, found.masks, found.origins, peaks, images.mean)


def _measure(
    masks: Sequence[npt.NDArray[np.bool_]], origins: npt.NDArray[Any], images: DetectionImages
) -> MaskMeasurements:
    return measure_masks(masks, origins, images.mean, **{name: images.has(name) for name in FLAGS})


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
