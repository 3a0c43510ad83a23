# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Positions, areas and flagged pixels of masks.

Arrays are (y, x) in pixels of the image, whose first pixel is (0, 0).
"""

from __future__ import annotations

__all__ = ["MaskMeasurements", "clean_masks", "measure_masks", "move_peaks"]

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class MaskMeasurements:
    """What is measured within N masks, in array coordinates.

    Parameters
    ----------
    area : `numpy.ndarray`, (N,), int64
        Number of pixels in the mask.
    peak_x, peak_y : `numpy.ndarray`, (N,), int64
        Brightest valid pixel of the detection image (the first in row order
        among equals).
    peak_value : `numpy.ndarray`, (N,), float32
        Value of the detection image there.
    centroid_x, centroid_y : `numpy.ndarray`, (N,), float64
        Mean position weighted with the positive part of the detection image;
        the centre of the mask's box where there is none.
    centroid_flag : `numpy.ndarray`, (N,), bool
        The centroid is such a box centre.
    box_min_x, box_min_y, box_max_x, box_max_y : `numpy.ndarray`, (N,), int64
        Smallest box around the mask's pixels, inclusive.
    n_invalid, n_bad, n_saturated : `numpy.ndarray`, (N,), int64
        Number of the mask's pixels that are not valid, bad, saturated.
    """

    area: np.ndarray
    peak_x: np.ndarray
    peak_y: np.ndarray
    peak_value: np.ndarray
    centroid_x: np.ndarray
    centroid_y: np.ndarray
    centroid_flag: np.ndarray
    box_min_x: np.ndarray
    box_min_y: np.ndarray
    box_max_x: np.ndarray
    box_max_y: np.ndarray
    n_invalid: np.ndarray
    n_bad: np.ndarray
    n_saturated: np.ndarray

    def __len__(self) -> int:
        return len(self.area)


def clean_masks(
    masks: Sequence[np.ndarray], origins: np.ndarray, shape: tuple[int, int], min_area: int = 1
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Cut masks at the image's edge and drop those with too few pixels.

    Parameters
    ----------
    masks : `~collections.abc.Sequence` [`numpy.ndarray`]
        N boolean masks, each (h, w).
    origins : `numpy.ndarray`, (N, 2), int
        (y0, x0) of each mask's first pixel in the image.
    shape : `tuple` [`int`, `int`]
        Height and width of the image.
    min_area : `int`, optional
        Fewest pixels of a mask that is kept; at least 1.

    Returns
    -------
    kept_masks : `list` [`numpy.ndarray`]
        Masks that remain, views where nothing was cut.
    kept_origins : `numpy.ndarray`, (M, 2), int64
        Their origins.
    kept : `numpy.ndarray`, (M,), int64
        Their indices among the N.

    Raises
    ------
    ValueError
        Raised if the origins do not match the masks or ``min_area`` < 1.
    """
    origins = np.asarray(origins, dtype=np.int64).reshape(-1, 2)
    if len(origins) != len(masks):
        raise ValueError(f"Got {len(origins)} origins for {len(masks)} masks.")
    if min_area < 1:
        raise ValueError(f"min_area must be at least 1, got {min_area}.")
    height, width = shape
    kept_masks: list[np.ndarray] = []
    kept_origins: list[tuple[int, int]] = []
    kept: list[int] = []
    for index, (mask, (y0, x0)) in enumerate(zip(masks, origins.tolist(), strict=True)):
        top, left = max(0, -y0), max(0, -x0)
        if top or left or y0 + mask.shape[0] > height or x0 + mask.shape[1] > width:
            mask = mask[top : max(top, height - y0), left : max(left, width - x0)]
            y0, x0 = y0 + top, x0 + left
        if mask.size and np.count_nonzero(mask) >= min_area:
            kept_masks.append(mask)
            kept_origins.append((y0, x0))
            kept.append(index)
    return (
        kept_masks,
        np.array(kept_origins, dtype=np.int64).reshape(-1, 2),
        np.array(kept, dtype=np.int64),
    )


def measure_masks(
    masks: Sequence[np.ndarray],
    origins: np.ndarray,
    detection: np.ndarray,
    *,
    valid: np.ndarray,
    bad: np.ndarray | None = None,
    saturated: np.ndarray | None = None,
) -> MaskMeasurements:
    """Measure positions, areas and masked pixels within masks.

    The pixels of all masks are laid out in one array and reduced per mask,
    so that the work per source is one `numpy.flatnonzero`.

    Parameters
    ----------
    masks : `~collections.abc.Sequence` [`numpy.ndarray`]
        N boolean masks, each (h, w), inside the image and none of them empty
        (see `clean_masks`).
    origins : `numpy.ndarray`, (N, 2), int
        (y0, x0) of each mask's first pixel in the image.
    detection : `numpy.ndarray`, (y, x), float32
        Image that gives peaks and centroids.
    valid : `numpy.ndarray`, (y, x), bool
        Pixels that may be used.
    bad, saturated : `numpy.ndarray`, (y, x), bool, optional
        Pixels to count.

    Returns
    -------
    measurements : `MaskMeasurements`
        What was measured, in array coordinates.

    Raises
    ------
    ValueError
        Raised if a mask is empty or not inside the image.
    """
    height, width = detection.shape
    n_masks = len(masks)
    origins = np.asarray(origins, dtype=np.int64).reshape(-1, 2)
    if n_masks == 0:
        none, nothing = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float64)
        return MaskMeasurements(
            area=none,
            peak_x=none,
            peak_y=none,
            peak_value=nothing.astype(np.float32),
            centroid_x=nothing,
            centroid_y=nothing,
            centroid_flag=np.zeros(0, dtype=bool),
            box_min_x=none,
            box_min_y=none,
            box_max_x=none,
            box_max_y=none,
            n_invalid=none,
            n_bad=none,
            n_saturated=none,
        )
    shapes = np.array([mask.shape for mask in masks], dtype=np.int64)
    if (origins < 0).any() or (origins + shapes > (height, width)).any():
        raise ValueError(f"Masks must lie inside the image of shape {(height, width)}; cut them first.")
    pixels = [np.flatnonzero(mask) for mask in masks]
    area = np.array([len(p) for p in pixels], dtype=np.int64)
    if (area == 0).any():
        raise ValueError(f"{np.count_nonzero(area == 0)} of {n_masks} masks are empty; drop them first.")
    starts = np.concatenate([[0], np.cumsum(area)[:-1]])
    owner = np.repeat(np.arange(n_masks), area)
    rows, columns = np.divmod(np.concatenate(pixels), shapes[owner, 1])
    del pixels
    rows += origins[owner, 0]
    columns += origins[owner, 1]

    flux = detection[rows, columns]
    usable = valid[rows, columns]
    # Pixels without a value cannot be the peak unless there is nothing else.
    brightness = np.where(usable & np.isfinite(flux), flux, -np.inf).astype(np.float32)
    peak_value = np.maximum.reduceat(brightness, starts)
    is_peak = np.flatnonzero(brightness == peak_value[owner])
    first = is_peak[np.unique(owner[is_peak], return_index=True)[1]]
    peak_value = np.where(np.isfinite(peak_value), peak_value, np.float32(np.nan))

    weight = np.where(np.isfinite(brightness), np.maximum(brightness, 0), 0).astype(np.float64)
    total = np.add.reduceat(weight, starts)
    box_min_x = np.minimum.reduceat(columns, starts)
    box_max_x = np.maximum.reduceat(columns, starts)
    # Pixels are in row order within each mask.
    box_min_y = rows[starts]
    box_max_y = rows[starts + area - 1]
    has_flux = total > 0
    divisor = np.where(has_flux, total, 1)
    # Moments about the box corner: sums of large coordinates lose digits.
    offset_x = np.add.reduceat(weight * (columns - box_min_x[owner]), starts) / divisor
    offset_y = np.add.reduceat(weight * (rows - box_min_y[owner]), starts) / divisor
    centroid_x = np.where(has_flux, box_min_x + offset_x, (box_min_x + box_max_x) / 2)
    centroid_y = np.where(has_flux, box_min_y + offset_y, (box_min_y + box_max_y) / 2)

    def count(plane: np.ndarray | None) -> np.ndarray:
        if plane is None:
            return np.zeros(n_masks, dtype=np.int64)
        return np.add.reduceat(plane[rows, columns].astype(np.int64), starts)

    return MaskMeasurements(
        area=area,
        peak_x=columns[first],
        peak_y=rows[first],
        peak_value=peak_value,
        centroid_x=centroid_x,
        centroid_y=centroid_y,
        centroid_flag=~has_flux,
        box_min_x=box_min_x,
        box_min_y=box_min_y,
        box_max_x=box_max_x,
        box_max_y=box_max_y,
        n_invalid=area - np.add.reduceat(usable.astype(np.int64), starts),
        n_bad=count(bad),
        n_saturated=count(saturated),
    )


def move_peaks(
    measurements: MaskMeasurements,
    masks: Sequence[np.ndarray],
    origins: np.ndarray,
    peaks: np.ndarray,
    detection: np.ndarray,
) -> MaskMeasurements:
    """Put the peaks of masks where they were found by other means.

    The brightest pixel of a mask is often its neighbour's.

    Parameters
    ----------
    measurements : `MaskMeasurements`
        What was measured on the N masks.
    masks : `~collections.abc.Sequence` [`numpy.ndarray`]
        The masks, each (h, w).
    origins : `numpy.ndarray`, (N, 2), int
        (y0, x0) of each mask's first pixel in the image.
    peaks : `numpy.ndarray`, (N, 2), float
        (y, x) of the peaks in the image; where one is not in its mask, the
        nearest pixel of that takes its place.
    detection : `numpy.ndarray`, (y, x), float32
        Image that gives the values of the peaks.

    Returns
    -------
    moved : `MaskMeasurements`
        The same with other ``peak_x``, ``peak_y`` and ``peak_value``.
    """
    places = np.rint(np.asarray(peaks, dtype=np.float64).reshape(-1, 2)).astype(np.int64)
    for index, (mask, origin) in enumerate(zip(masks, np.asarray(origins, dtype=np.int64), strict=True)):
        y, x = places[index] - origin
        if not (0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x]):
            rows, columns = np.nonzero(mask)
            nearest = int(np.argmin((rows - y) ** 2 + (columns - x) ** 2))
            places[index] = origin + (rows[nearest], columns[nearest])
    rows, columns = places.T
    return dataclasses.replace(
        measurements, peak_y=rows, peak_x=columns, peak_value=detection[rows, columns].astype(np.float32)
    )
