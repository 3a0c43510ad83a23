# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every source's share of a band as HeavyFootprints, and what is measured on it.

Arrays are (y, x) in pixels of the image, whose first pixel is (0, 0);
footprints are in the parent frame of the exposure, xy0 included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import lsst.geom as geom
from lsst.afw.detection import Footprint, HeavyFootprintF
from lsst.afw.image import ExposureF

from ..deblend.masks import MaskMeasurements
from ..deblend.parents import Parent
from ..deblend.shares import measure_overlap
from ..deblend.sources import SourceList
from .deblend_columns import ParentFluxes, band_columns
from .exposures import flagged_pixels
from .footprints import make_footprint

_Indices = npt.NDArray[np.intp]


def parent_footprint(
    parent: Parent, measured: MaskMeasurements, peak_ids: Mapping[int, int], bbox: geom.Box2I
) -> Footprint:
    """Make the footprint of a parent or an isolated source, in the parent frame.

    It has one peak for each source, the brightest first, with its id in ``peak_ids`` (by index of source).
    """
    footprint = make_footprint(parent.pixels, parent.y0, parent.x0, bbox)
    values = measured.peak_value[parent.members]
    brightest = np.argsort(np.where(np.isfinite(values), -values, np.inf), kind="stable")
    for index in parent.members[brightest].tolist():
        _add_peak(footprint, index, measured, peak_ids[index], bbox)
    return footprint


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


class _ShareFootprint(NamedTuple):
    """Pixels in which a source has a share of the flux."""

    footprint: Footprint
    """The pixels and the peak, in the parent frame."""
    pixels: tuple[_Indices, _Indices]
    """Rows and columns in the image, in the order of the footprint, (n,)."""
    weights: npt.NDArray[np.float32]
    """Share of the source in them, (band, n)."""
    mask: tuple[_Indices, _Indices]
    """Rows and columns of the mask in the image, (m,)."""
    mask_weights: npt.NDArray[np.float32]
    """Share of the source in them, (band, m)."""
    peak: tuple[int, int]
    """(y, x) of the peak in the image."""
    peak_weights: npt.NDArray[np.float32]
    """Share of the source in the pixel of the peak, (band,)."""
    empty: bool
    """Whether the source has no share of any pixel; then the footprint is the pixel of the peak."""


def share_footprints(sources: SourceList, bbox: geom.Box2I) -> list[_ShareFootprint]:
    """Make the footprints of the shares of N sources, the same in all bands, in the parent frame."""
    place = np.zeros(len(sources), dtype=np.int64)
    for parent in sources.parents:
        place[parent.members] = np.arange(1, len(parent) + 1)
    return [_share_footprint(sources, index, int(place[index]), bbox) for index in range(len(sources))]


def _share_footprint(sources: SourceList, index: int, peak_id: int, bbox: geom.Box2I) -> _ShareFootprint:
    share, measured, found = sources.shares[index], sources.measured, sources.detections
    peak = int(measured.peak_y[index]), int(measured.peak_x[index])
    support = share.footprint
    y0, x0 = share.y0, share.x0
    empty = not support.any()
    if empty:
        # One pixel of value 0 keeps measurements going, as upstream has it.
        (y0, x0), support = peak, np.ones((1, 1), dtype=bool)
    footprint = make_footprint(support, y0, x0, bbox)
    _add_peak(footprint, index, measured, peak_id, bbox)
    rows, columns = np.nonzero(support)
    mask_rows, mask_columns = np.nonzero(found.masks[index])
    pixels = rows + y0, columns + x0
    mask = mask_rows + found.origins[index, 0], mask_columns + found.origins[index, 1]
    peak_weights = share.at(np.array([peak[0]]), np.array([peak[1]]))[:, 0]
    return _ShareFootprint(
        footprint, pixels, share.at(*pixels), mask, share.at(*mask), peak, peak_weights, empty
    )


def deblend_band(
    footprints: Sequence[_ShareFootprint], exposure: ExposureF, band: int
) -> tuple[list[HeavyFootprintF], dict[str, npt.NDArray[Any]]]:
    """Give each of N sources its share of band number ``band``, that of the exposure.

    The images of the sources of a parent add up to its image; variance and mask are those of the exposure.
    Columns are those of `~.deblend_columns.band_columns`.
    """
    image, variance, mask = exposure.image.array, exposure.variance.array, exposure.mask.array
    no_data = flagged_pixels(exposure, ["NO_DATA"])
    result, measured = [], []
    for item in footprints:
        heavy = HeavyFootprintF(item.footprint)
        pixels = _multiply(image[item.pixels], item.weights[band])
        heavy.getImageArray()[:] = pixels
        heavy.getMaskArray()[:] = mask[item.pixels]
        heavy.getVarianceArray()[:] = variance[item.pixels]
        result.append(heavy)
        whole = image[item.mask]
        measured.append(
            (
                _multiply(image[item.peak], item.peak_weights[band]),
                item.empty or not pixels.any(),
                1.0 - np.count_nonzero(no_data[item.pixels]) / max(len(pixels), 1),
                *measure_overlap(whole, _multiply(whole, item.mask_weights[band])),
            )
        )
    return result, band_columns(measured)


def _multiply(pixels: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Share of pixels: 0 where there is none, whatever the image has there."""
    result = np.zeros(np.shape(pixels), np.float32)
    np.multiply(pixels, weights, out=result, where=np.asarray(weights) > 0)
    return result


def parent_fluxes(sources: SourceList, exposures: Mapping[str, ExposureF]) -> dict[str, ParentFluxes]:
    """Measure the flux of all parents by band, and how much of it is outside all masks."""
    covered = np.zeros(sources.image.shape, dtype=bool)
    for mask, (y0, x0) in zip(sources.detections.masks, sources.detections.origins.tolist(), strict=True):
        covered[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] |= mask
    fluxes = {}
    for band, exposure in exposures.items():
        no_data = flagged_pixels(exposure, ["NO_DATA"])
        rows = []
        for parent in sources.parents:
            image = exposure.image.array[parent.box]
            total = float(np.nansum(image[parent.pixels], dtype=np.float64))
            outside = float(np.nansum(image[parent.pixels & ~covered[parent.box]], dtype=np.float64))
            missing = np.count_nonzero(no_data[parent.box] & parent.pixels)
            coverage = 1.0 - missing / np.count_nonzero(parent.pixels)
            rows.append((total, outside / total if total > 0 else np.nan, coverage))
        fluxes[band] = ParentFluxes(*np.array(rows, dtype=np.float64).reshape(-1, 3).T)
    return fluxes
