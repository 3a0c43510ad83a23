# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Positions, areas and flagged pixels of masks; masks that are joined and grown.

Arrays are (y, x) in pixels of the image, whose first pixel is (0, 0).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..images.pixels import tight
from ..network.detections import Detections

BoolArray = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, eq=False)
class MaskMeasurements:
    """What is measured within N masks, in array coordinates; (N,) each."""

    area: np.ndarray
    """Number of pixels in the mask, int64."""
    peak_x: np.ndarray
    peak_y: np.ndarray
    """Brightest valid pixel of the detection image (the first in row order among equals), int64."""
    peak_value: np.ndarray
    """Value of the detection image there, float32."""
    centroid_x: np.ndarray
    centroid_y: np.ndarray
    """Mean position weighted with the positive part of the detection image, float64."""
    centroid_flag: np.ndarray
    """Whether that is the centre of the mask's box, as there is no positive pixel, bool."""
    box_min_x: np.ndarray
    box_min_y: np.ndarray
    box_max_x: np.ndarray
    box_max_y: np.ndarray
    """Smallest box around the mask's pixels, inclusive, int64."""
    n_invalid: np.ndarray
    n_bad: np.ndarray
    n_saturated: np.ndarray
    """Number of the mask's pixels that are not valid, bad, saturated, int64."""

    def __len__(self) -> int:
        return len(self.area)


def clean_masks(
    masks: Sequence[np.ndarray], origins: np.ndarray, shape: tuple[int, int], min_area: int = 1
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Cut N masks at the edge of an image and drop those with fewer than ``min_area`` pixels.

    ``origins``, (N, 2), are (y0, x0) of their first pixels in the image, of ``shape`` (y, x). Returns the
    masks that remain, views where nothing was cut, their origins, (M, 2), and their indices among the N,
    (M,), int64.
    """
    origins = np.asarray(origins, dtype=np.int64).reshape(-1, 2)
    height, width = shape
    pieces: list[np.ndarray] = []
    corners: list[tuple[int, int]] = []
    kept: list[int] = []
    for index, (mask, (y0, x0)) in enumerate(zip(masks, origins.tolist(), strict=True)):
        top, left = max(0, -y0), max(0, -x0)
        if top or left or y0 + mask.shape[0] > height or x0 + mask.shape[1] > width:
            mask = mask[top : max(top, height - y0), left : max(left, width - x0)]
        if mask.size and np.count_nonzero(mask) >= min_area:
            pieces.append(mask)
            corners.append((y0 + top, x0 + left))
            kept.append(index)
    return pieces, np.array(corners, dtype=np.int64).reshape(-1, 2), np.array(kept, dtype=np.int64)


def measure_masks(
    masks: Sequence[np.ndarray],
    origins: np.ndarray,
    detection: np.ndarray,
    *,
    valid: np.ndarray,
    bad: np.ndarray | None = None,
    saturated: np.ndarray | None = None,
) -> MaskMeasurements:
    """Measure positions, areas and masked pixels within N masks, inside the image and none of them empty.

    ``origins``, (N, 2), are (y0, x0) of their first pixels in the image. The image ``detection``, (y, x),
    gives peaks and centroids; its ``valid`` pixels may be used, ``bad`` and ``saturated`` ones are counted. A
    ValueError is raised if a mask is empty or not inside the image (see `clean_masks`).
    """
    rows, columns, area = _pixels_of(masks, origins, detection.shape)
    # The pixels of all masks lie in one array, which is reduced by mask.
    starts = np.cumsum(area) - area
    owner = np.repeat(np.arange(len(masks)), area)
    flux = detection[rows, columns]
    usable = valid[rows, columns]
    # Pixels without a value cannot be the peak unless there is nothing else.
    brightness = np.where(usable & np.isfinite(flux), flux, -np.inf).astype(np.float32)
    peak_value = np.maximum.reduceat(brightness, starts)
    is_peak = np.flatnonzero(brightness == peak_value[owner])
    first = is_peak[np.unique(owner[is_peak], return_index=True)[1]]

    weight = np.where(np.isfinite(brightness), np.maximum(brightness, 0), 0).astype(np.float64)
    total = np.add.reduceat(weight, starts)
    has_flux = total > 0
    measured = {}
    for axis, places in (("x", columns), ("y", rows)):
        low, high = np.minimum.reduceat(places, starts), np.maximum.reduceat(places, starts)
        # Moments about the corner of the box: sums of large coordinates lose digits.
        offset = np.add.reduceat(weight * (places - low[owner]), starts) / np.where(has_flux, total, 1)
        measured[f"box_min_{axis}"], measured[f"box_max_{axis}"] = low, high
        measured[f"peak_{axis}"] = places[first]
        measured[f"centroid_{axis}"] = np.where(has_flux, low + offset, (low + high) / 2)
    for name, plane in (("n_bad", bad), ("n_saturated", saturated)):
        chosen = np.zeros(len(rows), bool) if plane is None else plane[rows, columns]
        measured[name] = np.add.reduceat(chosen.astype(np.int64), starts)
    return MaskMeasurements(
        area=area,
        peak_value=np.where(np.isfinite(peak_value), peak_value, np.float32(np.nan)),
        centroid_flag=~has_flux,
        n_invalid=area - np.add.reduceat(usable.astype(np.int64), starts),
        **measured,
    )


def _pixels_of(
    masks: Sequence[np.ndarray], origins: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of all masks, one mask after the other, and the area of each."""
    origins = np.asarray(origins, dtype=np.int64).reshape(-1, 2)
    shapes = np.array([mask.shape for mask in masks], dtype=np.int64).reshape(-1, 2)
    if (origins < 0).any() or (origins + shapes > shape).any():
        raise ValueError(f"Masks must lie inside the image of shape {shape}; cut them first.")
    pixels = [np.flatnonzero(mask) for mask in masks]
    area = np.array([len(p) for p in pixels], dtype=np.int64)
    if (area == 0).any():
        raise ValueError(f"{np.count_nonzero(area == 0)} of {len(masks)} masks are empty; drop them first.")
    owner = np.repeat(np.arange(len(masks)), area)
    rows, columns = np.divmod(np.concatenate([*pixels, np.zeros(0, np.int64)]), shapes[owner, 1])
    return rows + origins[owner, 0], columns + origins[owner, 1], area


def move_peaks(
    measurements: MaskMeasurements,
    masks: Sequence[np.ndarray],
    origins: np.ndarray,
    peaks: np.ndarray,
    detection: np.ndarray,
) -> MaskMeasurements:
    """Put the peaks of N masks to (y, x), (N, 2), where `~.peaks.find_peaks` found them.

    One outside its mask is moved to the nearest pixel of that. The image ``detection``, (y, x), gives the
    values.
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


def join(found: Detections, kept: BoolArray, parts: dict[int, list[int]]) -> Detections:
    """Give sources the pixels of their parts, by index; returns those that are ``kept``, bool, (source,)."""
    index = np.flatnonzero(kept)
    result = found.take(index)
    place = {int(source): number for number, source in enumerate(index)}
    for source, others in parts.items():
        if source not in place or not others:
            continue
        number, group = place[source], [source, *others]
        _set_pixels(
            result,
            number,
            ([found.masks[i] for i in group], found.origins[group]),
            ([found.soft[i] for i in group], found.soft_origins[group]),
        )
        result.boxes[number, :2] = found.boxes[group, :2].min(axis=0)
        result.boxes[number, 2:] = found.boxes[group, 2:].max(axis=0)
        result.scores[number] = found.scores[group].max()
        result.flag_limited[number] = found.flag_limited[group].any()
    return result


_Patches = tuple[Sequence[npt.NDArray[Any]], npt.NDArray[np.integer[Any]]]
"""Arrays (y, x), and the first pixel (y, x) of each."""


def _set_pixels(found: Detections, place: int, masks: _Patches, soft: _Patches) -> None:
    """Give a source the pixels of several masks, in place."""
    found.masks[place], found.origins[place] = _union(*masks)
    found.soft[place], found.soft_origins[place] = _union(*soft)


def _union(
    patches: Sequence[npt.NDArray[Any]], origins: npt.NDArray[np.integer[Any]]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.integer[Any]]]:
    """Largest value of each pixel, and the origin of the result."""
    low = origins.min(axis=0)
    high = (origins + [patch.shape for patch in patches]).max(axis=0)
    result = np.zeros(high - low, dtype=patches[0].dtype)
    for patch, (y, x) in zip(patches, origins - low, strict=True):
        view = result[y : y + patch.shape[0], x : x + patch.shape[1]]
        np.maximum(view, patch, out=view)
    return result, low


def paint_mask(
    found: Detections, index: int, corner: Sequence[int] | npt.NDArray[np.int64], shape: tuple[int, ...]
) -> BoolArray:
    """Draw the mask of a source, bool, on a window of the image with its first pixel (y, x) and shape."""
    result = np.zeros(shape, dtype=bool)
    mask = found.masks[index]
    start = found.origins[index].astype(np.int64) - corner
    low, high = np.maximum(start, 0), np.minimum(start + mask.shape, shape)
    if (low < high).all():
        part = mask[low[0] - start[0] : high[0] - start[0], low[1] - start[1] : high[1] - start[1]]
        result[low[0] : high[0], low[1] : high[1]] = part
    return result


def add_pixels(found: Detections, place: int, region: BoolArray, origin: npt.NDArray[np.int64]) -> None:
    """Give a source further pixels, bool, the first of which is (y, x) on the image, in place."""
    region, y, x = tight(region)
    origin = origin + np.array([y, x])
    soft = np.where(region, np.uint8(255), np.uint8(0))
    _set_pixels(
        found,
        place,
        ([found.masks[place], region], np.stack([found.origins[place], origin])),
        ([found.soft[place], soft], np.stack([found.soft_origins[place], origin])),
    )
    corners = [origin[1], origin[0], origin[1] + region.shape[1], origin[0] + region.shape[0]]
    box = found.boxes[place]
    found.boxes[place] = [*np.minimum(box[:2], corners[:2]), *np.maximum(box[2:], corners[2:])]
