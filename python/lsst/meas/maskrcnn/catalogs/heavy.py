# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every source's share of every band, as HeavyFootprints, and what is measured on the way.

Arrays are (y, x) in pixels of the image, whose first pixel is (0, 0);
footprints are in the parent frame of the exposure, xy0 included.
"""

from __future__ import annotations

__all__ = ["ShareLimits", "SharedFlux", "SourceMasks", "parent_footprint", "share_parents"]

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

import lsst.geom as geom
from lsst.afw.detection import Footprint, HeavyFootprintF, PeakTable
from lsst.afw.geom import SpanSet
from lsst.afw.image import ExposureF, MaskX
from lsst.pex.exceptions import Exception as PexError

from ..deblend.shares import BlendSource, Shares, ShareSettings, share_flux
from .blends import Parent
from .deblend_columns import BandColumns, ParentColumns, overlap_columns
from .footprints import MaskMeasurements
from .mask_planes import defined_plane_bits

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class SourceMasks:
    """What the network knows of N sources.

    Parameters
    ----------
    masks : `~collections.abc.Sequence` [`numpy.ndarray`]
        Boolean masks, each (h, w).
    origins : `numpy.ndarray`, (N, 2), int
        (y0, x0) of each mask's first pixel in the image.
    soft : `~collections.abc.Sequence` [`numpy.ndarray`]
        Probability of each pixel to belong to the source, times 255, uint8,
        each (h, w); on every pixel of the mask and around it.
    soft_origins : `numpy.ndarray`, (N, 2), int
        (y0, x0) of the first pixel of each of ``soft``.
    is_star : `numpy.ndarray`, (N,), bool
        Whether it is taken for a star.
    measured : `~.footprints.MaskMeasurements`
        What `~.footprints.measure_masks` found on the masks, with the pixels
        of the peaks.
    peaks : `numpy.ndarray`, (N, 2), float
        (y, x) of the peaks between pixels.
    """

    masks: Sequence[npt.NDArray[np.bool_]]
    origins: npt.NDArray[np.int64]
    soft: Sequence[npt.NDArray[np.uint8]]
    soft_origins: npt.NDArray[np.int64]
    is_star: npt.NDArray[np.bool_]
    measured: MaskMeasurements
    peaks: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.masks)


@dataclasses.dataclass(frozen=True)
class ShareLimits:
    """From where on the flux of a parent is shared by masks alone.

    Parameters
    ----------
    max_sources : `int`
        Most sources of a parent.
    max_area : `int`
        Most pixels of a parent's bounding box.
    """

    max_sources: int = 2000
    max_area: int = 4_000_000


@dataclasses.dataclass(eq=False)
class SharedFlux:
    """Shares of N sources in all bands.

    Parameters
    ----------
    heavy : `dict` [`str`, `list` [`lsst.afw.detection.HeavyFootprintF`]]
        Image, mask and variance of each source's pixels by band. Those of a
        parent's sources add up to its image; variance and mask are those of
        the exposure.
    columns : `dict` [`str`, `~.deblend_columns.BandColumns`]
        Measurements on them by band.
    on_edge : `numpy.ndarray`, (N,), bool
        Whether the source's mask reaches the edge of its parent.
    parents : `~.deblend_columns.ParentColumns`
        What was found on the parents.
    """

    heavy: dict[str, list[HeavyFootprintF]]
    columns: dict[str, BandColumns]
    on_edge: npt.NDArray[np.bool_]
    parents: ParentColumns


def parent_footprint(
    parent: Parent, measured: MaskMeasurements, peak_ids: Mapping[int, int], bbox: geom.Box2I
) -> Footprint:
    """Make the footprint of a parent or an isolated source.

    Parameters
    ----------
    parent : `~.blends.Parent`
        Pixels and members.
    measured : `~.footprints.MaskMeasurements`
        What was measured on all sources; gives the peaks.
    peak_ids : `~collections.abc.Mapping` [`int`, `int`]
        Id of each member's peak by the source's index.
    bbox : `lsst.geom.Box2I`
        Box of the exposure: its minimum is xy0, and it becomes the region.

    Returns
    -------
    footprint : `lsst.afw.detection.Footprint`
        Footprint with a peak for each member, the brightest first.
    """
    footprint = _footprint(parent.pixels, parent.y0, parent.x0, bbox)
    values = measured.peak_value[parent.members]
    brightest = np.argsort(np.where(np.isfinite(values), -values, np.inf), kind="stable")
    for index in parent.members[brightest].tolist():
        _add_peak(footprint, index, measured, peak_ids[index], bbox)
    return footprint


def _footprint(pixels: npt.NDArray[np.bool_], y0: int, x0: int, bbox: geom.Box2I) -> Footprint:
    """Footprint of pixels of an array whose first pixel is (y0, x0) in the image."""
    corner = geom.Point2I(x0 + bbox.getMinX(), y0 + bbox.getMinY())
    plane = MaskX(geom.Box2I(corner, geom.Extent2I(pixels.shape[1], pixels.shape[0])))
    plane.array[:] = pixels
    return Footprint(SpanSet.fromMask(plane), PeakTable.makeMinimalSchema(), bbox)


def _add_peak(
    footprint: Footprint, index: int, measured: MaskMeasurements, peak_id: int, bbox: geom.Box2I
) -> None:
    peak = footprint.addPeak(
        float(measured.peak_x[index] + bbox.getMinX()),
        float(measured.peak_y[index] + bbox.getMinY()),
        float(measured.peak_value[index]),
    )
    # Peaks are numbered through a whole process; ids must not depend on what ran before.
    peak.setId(peak_id)


def share_parents(
    parents: Sequence[Parent],
    sources: SourceMasks,
    exposures: Mapping[str, ExposureF],
    *,
    settings: ShareSettings | None = None,
    limits: ShareLimits | None = None,
    bad_planes: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> SharedFlux:
    """Give every source its share of every band.

    Parameters
    ----------
    parents : `~collections.abc.Sequence` [`~.blends.Parent`]
        Parents that hold every source exactly once, isolated ones included.
    sources : `SourceMasks`
        The sources.
    exposures : `~collections.abc.Mapping` [`str`, \
            `lsst.afw.image.ExposureF`]
        Exposures of one box by band. They are not changed.
    settings : `~lsst.meas.maskrcnn.deblend.shares.ShareSettings`, optional
        How flux is shared.
    limits : `ShareLimits`, optional
        From where on masks alone decide.
    bad_planes : `~collections.abc.Sequence` [`str`], optional
        Mask planes of pixels of which no template is made; flux is shared
        there, too. Planes that an exposure does not define are passed over.
    progress : callable, optional
        Called with the number of parents done and their number.

    Returns
    -------
    shared : `SharedFlux`
        Shares and measurements.

    Notes
    -----
    Parents are worked on one by one, so that beside the exposures and what is
    returned memory is that of the largest parent.
    """
    settings = settings or ShareSettings()
    limits = limits or ShareLimits()
    n_sources = len(sources)
    shared = SharedFlux(
        heavy={band: cast(list[HeavyFootprintF], [None] * n_sources) for band in exposures},
        columns={band: BandColumns.make(n_sources) for band in exposures},
        on_edge=np.zeros(n_sources, dtype=bool),
        parents=ParentColumns.make(len(parents), list(exposures)),
    )
    views = [_Band(exposure, bad_planes) for exposure in exposures.values()]
    for index, parent in enumerate(parents):
        started = time.perf_counter()
        rows, columns = parent.box
        images = np.stack([view.image[rows, columns] for view in views])
        _describe_parent(index, parent, sources, images, views, list(exposures), shared.parents)
        shares = _share(index, parent, sources, images, views, settings, limits, shared.parents)
        if shares is not None and shares.model is not None:
            _compare(index, parent, images, shares.model, views, list(exposures), shared.parents)
        edge = parent.edge
        for place, source in enumerate(parent.members.tolist()):
            mask = _Pixels.make(sources.masks[source], sources.origins[source], parent)
            shared.on_edge[source] = edge[mask.rows, mask.columns].any()
            _fill_source(source, place, parent, sources, mask, images, shares, views, shared)
        shared.parents.runtime[index] = 1e3 * (time.perf_counter() - started)
        if progress is not None:
            progress(index + 1, len(parents))
    return shared


class _Band:
    """Pixels of an exposure, and what is asked of it for each parent."""

    def __init__(self, exposure: ExposureF, bad_planes: Sequence[str]) -> None:
        self.bbox = exposure.getBBox()
        self.image = exposure.image.array
        self.variance = exposure.variance.array
        self.mask = exposure.mask.array
        self.bad = defined_plane_bits(exposure.mask, bad_planes)
        self.no_data = defined_plane_bits(exposure.mask, ["NO_DATA"])
        self._psf = exposure.getPsf()

    def psf(self, y: float, x: float) -> npt.NDArray[np.float64] | None:
        """Image of the PSF at a position in array pixels, or its average."""
        if self._psf is None:
            return None
        here = geom.Point2D(x + self.bbox.getMinX(), y + self.bbox.getMinY())
        for position in (here, None):
            try:
                # A coadd's PSF is only defined where there is data: its own average position is.
                point = position if position is not None else self._psf.getAveragePosition()
                pixels = self._psf.computeKernelImage(point).array
            except PexError:
                continue
            if np.isfinite(pixels).all():
                return np.asarray(pixels)
        return None

    def coverage(self, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> float:
        """Fraction of pixels of the image that hold data."""
        return 1.0 - float(np.count_nonzero(self.mask[rows, columns] & self.no_data)) / max(len(rows), 1)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pixels:
    """Pixels of a mask in the box of its parent."""

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]

    @classmethod
    def make(cls, mask: npt.NDArray[np.bool_], origin: npt.NDArray[np.int64], parent: Parent) -> _Pixels:
        rows, columns = np.nonzero(mask)
        return cls(rows + int(origin[0]) - parent.y0, columns + int(origin[1]) - parent.x0)


def _describe_parent(
    index: int,
    parent: Parent,
    sources: SourceMasks,
    images: npt.NDArray[np.float32],
    views: Sequence[_Band],
    bands: Sequence[str],
    found: ParentColumns,
) -> None:
    """Measure the flux of a parent and how much of it is outside all masks."""
    found.area[index] = np.count_nonzero(parent.pixels)
    outside = parent.pixels.copy()
    for source in parent.members.tolist():
        pixels = _Pixels.make(sources.masks[source], sources.origins[source], parent)
        outside[pixels.rows, pixels.columns] = False
    rows, columns = np.nonzero(parent.pixels)
    for band, image, view in zip(bands, images, views, strict=True):
        total = float(np.nansum(image[parent.pixels], dtype=np.float64))
        rest = float(np.nansum(image[outside], dtype=np.float64))
        found.flux[band][index] = total
        found.outside[band][index] = rest / total if total > 0 else np.nan
        found.data_coverage[band][index] = view.coverage(rows + parent.y0, columns + parent.x0)


def _compare(
    index: int,
    parent: Parent,
    images: npt.NDArray[np.float32],
    model: npt.NDArray[np.float32],
    views: Sequence[_Band],
    bands: Sequence[str],
    found: ParentColumns,
) -> None:
    """Measure what the templates leave of the image, in pixels of which they could be made."""
    rows, columns = parent.box
    for band, image, fitted, view in zip(bands, images, model, views, strict=True):
        variance = view.variance[rows, columns]
        use = parent.pixels & ((view.mask[rows, columns] & view.bad) == 0)
        use &= np.isfinite(image) & np.isfinite(variance) & (variance > 0)
        if use.any():
            residual = (image[use] - fitted[use]).astype(np.float64)
            found.chi2[band][index] = np.mean(residual**2 / variance[use])


def _share(
    index: int,
    parent: Parent,
    sources: SourceMasks,
    images: npt.NDArray[np.float32],
    views: Sequence[_Band],
    settings: ShareSettings,
    limits: ShareLimits,
    found: ParentColumns,
) -> Shares | None:
    """Share the flux of one parent; `None` for an isolated source, which has all of it."""
    if len(parent) == 1:
        return None
    rows, columns = parent.box
    found.too_many[index] = len(parent) > limits.max_sources
    found.too_big[index] = parent.pixels.size > limits.max_area
    variances = np.stack([view.variance[rows, columns] for view in views])
    blended = [
        BlendSource(
            soft=sources.soft[source],
            y0=int(sources.soft_origins[source][0]) - parent.y0,
            x0=int(sources.soft_origins[source][1]) - parent.x0,
            peak_y=float(sources.peaks[source][0]) - parent.y0,
            peak_x=float(sources.peaks[source][1]) - parent.x0,
            is_star=bool(sources.is_star[source]),
        )
        for source in parent.members.tolist()
    ]
    by_mask = dataclasses.replace(settings, template="mask")
    if found.too_many[index] or found.too_big[index]:
        return share_flux(images, variances, parent.pixels, blended, settings=by_mask)
    good = np.stack([(view.mask[rows, columns] & view.bad) == 0 for view in views])
    middle = (0.5 * (rows.start + rows.stop - 1), 0.5 * (columns.start + columns.stop - 1))
    psfs = [view.psf(*middle) for view in views]
    known = [psf for psf in psfs if psf is not None]
    try:
        return share_flux(
            images,
            variances,
            parent.pixels,
            blended,
            psf_images=known if len(known) == len(psfs) else None,
            settings=settings,
            good=good,
        )
    except (ArithmeticError, np.linalg.LinAlgError, RuntimeError) as error:
        # A fit that fails is no reason to lose the sources of a blend.
        _LOG.warning(
            "Templates of the parent of %d sources at (y, x) = (%d, %d) failed (%s): shared by masks alone.",
            len(parent),
            parent.y0,
            parent.x0,
            error,
        )
        found.failed[index] = True
        return share_flux(images, variances, parent.pixels, blended, settings=by_mask)


def _fill_source(
    source: int,
    place: int,
    parent: Parent,
    sources: SourceMasks,
    mask: _Pixels,
    images: npt.NDArray[np.float32],
    shares: Shares | None,
    views: Sequence[_Band],
    shared: SharedFlux,
) -> None:
    """Make the HeavyFootprints of one source and measure its shares."""
    measured = sources.measured
    bbox = views[0].bbox
    peak = int(measured.peak_y[source]), int(measured.peak_x[source])
    if shares is None:
        y0, x0, pixels, support = parent.y0, parent.x0, images, parent.pixels
    else:
        share = shares.sources[place]
        y0, x0 = parent.y0 + share.y0, parent.x0 + share.x0
        pixels, support = share.pixels(images), share.footprint
    empty = not support.any()
    if empty:
        # One pixel of value 0 keeps measurements going, as upstream has it.
        y0, x0 = peak
        support, pixels = np.ones((1, 1), dtype=bool), np.zeros((len(views), 1, 1), dtype=np.float32)
    footprint = _footprint(support, y0, x0, bbox)
    _add_peak(footprint, source, measured, place + 1, bbox)
    rows, columns = np.nonzero(support)
    height, width = support.shape
    own_rows, own_columns = mask.rows + parent.y0 - y0, mask.columns + parent.x0 - x0
    inside = (own_rows >= 0) & (own_columns >= 0) & (own_rows < height) & (own_columns < width)
    at_peak = peak[0] - y0, peak[1] - x0
    has_peak = 0 <= at_peak[0] < height and 0 <= at_peak[1] < width
    for band, view, whole, mine in zip(shared.heavy, views, images, pixels, strict=True):
        heavy = HeavyFootprintF(footprint)
        heavy.getImageArray()[:] = mine[support]
        heavy.getMaskArray()[:] = view.mask[rows + y0, columns + x0]
        heavy.getVarianceArray()[:] = view.variance[rows + y0, columns + x0]
        shared.heavy[band][source] = heavy
        column = shared.columns[band]
        column.peak_instFlux[source] = mine[at_peak] if has_peak else 0.0
        column.zeroFlux[source] = empty or not heavy.getImageArray().any()
        column.dataCoverage[source] = view.coverage(rows + y0, columns + x0)
        own = np.zeros(len(mask.rows), dtype=np.float32)
        own[inside] = mine[own_rows[inside], own_columns[inside]]
        (
            column.maxOverlap[source],
            column.fluxOverlap[source],
            column.fluxOverlapFraction[source],
            column.blendedness[source],
        ) = overlap_columns(whole[mask.rows, mask.columns], own)
