# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection on images of any size: tiles, batches, masks and seams.

Boxes are [x0, y0, x1, y1], half open, in pixels of the array, whose first
pixel is (0, 0): the pixel in column 3 has x0 = 3 and x1 = 4. This is the only
convention inside this room; that of afw (inclusive, with xy0) begins in
`lsst.meas.maskrcnn.catalogs`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import clip_boxes_to_image, nms

from ..imaging.tiles import Tile, concentric, make_tiles, seam_keep
from .psf import add_psf_planes

__all__ = ["Detections", "InferenceSettings", "autocast", "detect", "paste_masks", "select_device"]

Precision = Literal["auto", "float32", "bfloat16"]

_PASTE_CELLS = 4_000_000
"""Largest number of mask pixels that are computed at once."""


@dataclass(frozen=True)
class InferenceSettings:
    """How an image is cut and which detections are kept.

    Parameters
    ----------
    tile_size : `int`
        Side of a tile (px).
    tile_overlap : `int`
        Pixels that neighbouring tiles share; at least the size of the
        largest sources that matter.
    batch_size : `int`
        Tiles per forward pass.
    score_threshold : `float`
        Smallest probability of being a source, 1 - P(background).
    nms_threshold : `float`
        Box IoU over which the weaker of two detections is dropped, whatever
        their classes.
    mask_threshold : `float`
        Mask probability from which a pixel belongs to a source.
    max_detections_per_tile : `int`
        Largest number of detections in a tile; the best are kept.
    precision : `str`
        ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the device
        computes it natively.
    """

    tile_size: int = 512
    tile_overlap: int = 128
    batch_size: int = 2
    score_threshold: float = 0.5
    nms_threshold: float = 0.5
    mask_threshold: float = 0.5
    max_detections_per_tile: int = 300
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.tile_overlap < self.tile_size:
            raise ValueError(
                f"tile_overlap ({self.tile_overlap} px) must be at least 0 and smaller than "
                f"tile_size ({self.tile_size} px)"
            )
        for name in ("batch_size", "max_detections_per_tile", "tile_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, given {getattr(self, name)}")
        for name in ("score_threshold", "nms_threshold", "mask_threshold"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, given {getattr(self, name)}")


@dataclass
class Detections:
    """Sources found in an image.

    Parameters
    ----------
    boxes : `numpy.ndarray`
        [x0, y0, x1, y1], half open, float32, (source, 4), array pixels.
    scores : `numpy.ndarray`
        Probability of being a source, float32, (source,).
    p_star : `numpy.ndarray`
        P(star) / (P(star) + P(galaxy)), float32, (source,).
    origins : `numpy.ndarray`
        (y0, x0) of each mask, int32, (source, 2), array pixels.
    masks : `list` [`numpy.ndarray`]
        Masks, bool, (y, x) each, tight around the source.
    timings : `dict` [`str`, `float`]
        Wall time by part: ``forward``, ``masks``, ``seams``, ``total`` (s).
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    p_star: npt.NDArray[np.float32]
    origins: npt.NDArray[np.int32]
    masks: list[npt.NDArray[np.bool_]]
    timings: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scores)


@dataclass
class _Found:
    """Detections of one tile, in image pixels, before the seams."""

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    p_star: npt.NDArray[np.float32]
    origins: npt.NDArray[np.int32]
    masks: list[npt.NDArray[np.bool_]]


def select_device(name: str = "auto") -> torch.device:
    """Choose where to compute.

    Parameters
    ----------
    name : `str`
        ``cpu``, ``cuda`` (or ``cuda:N``), or ``auto``: a GPU where there is
        one.

    Returns
    -------
    device : `torch.device`

    Raises
    ------
    ValueError
        Raised if the device is not there or the name is not known.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise ValueError(f"device is '{name}', wanted 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device '{name}' was asked for, but torch sees {torch.cuda.device_count() or 'no'} GPU; "
            "use 'auto' or 'cpu'"
        )
    return torch.device(name)


def autocast(device: torch.device | str, precision: str) -> AbstractContextManager[Any]:
    """Make the context in which a network computes at some precision.

    Parameters
    ----------
    device : `torch.device` or `str`
        Where it computes.
    precision : `str`
        ``float32``, ``bfloat16`` or ``auto``.

    Returns
    -------
    context : context manager

    Raises
    ------
    ValueError
        Raised if the precision is not known.
    """
    kind = torch.device(device).type
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision is '{precision}', wanted 'auto', 'float32' or 'bfloat16'")
    enabled = precision == "bfloat16" or (precision == "auto" and _native_bfloat16(kind))
    return torch.autocast(kind, torch.bfloat16, enabled=enabled)


def _native_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Emulated bfloat16 is several times slower than float32, and torch has no
    # public call that tells the two apart on a CPU.
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe is not None else False


def detect(
    network: MaskRCNN,
    image: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_] | None = None,
    settings: InferenceSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
    psf_fwhm: npt.ArrayLike | None = None,
) -> Detections:
    """Find the sources of a normalised image.

    Parameters
    ----------
    network : `torchvision.models.detection.MaskRCNN`
        A network in evaluation mode, as `MaskRcnnModel.build` returns it.
    image : `numpy.ndarray`
        Normalised image, float32, (band, y, x), finite.
    valid : `numpy.ndarray`, optional
        Usable pixels, bool, (y, x). Tiles without any are not looked at.
    settings : `InferenceSettings`, optional
        How to cut and what to keep.
    progress : callable, optional
        Called with the number of tiles done and the number of tiles.
    psf_fwhm : array_like, optional
        Widths of the PSF as `~.psf.add_psf_planes` takes them, (band,), px,
        for networks that want them; `None` or NaN where it is not known.

    Returns
    -------
    detections : `Detections`
        By descending score; equal scores by y, then x.

    Raises
    ------
    ValueError
        Raised if the arrays are not of the shapes above, or not finite.
    """
    settings = settings or InferenceSettings()
    with_psf = bool(getattr(network, "psf_channels", False))
    bands = cast(Any, network.backbone).body.conv1.in_channels // (2 if with_psf else 1)
    if image.ndim != 3 or image.shape[0] != bands:
        raise ValueError(f"image has shape {image.shape}, the network wants ({bands}, y, x)")
    height, width = image.shape[1:]
    if valid is not None and valid.shape != (height, width):
        raise ValueError(f"valid has shape {valid.shape}, the image's is {(height, width)}")

    started = time.perf_counter()
    timings = {"forward": 0.0, "masks": 0.0, "seams": 0.0}
    found: list[_Found] = []
    owner: list[int] = []
    tiles = make_tiles(height, width, settings.tile_size, settings.tile_overlap) if height and width else []
    live = [
        index
        for index, tile in enumerate(tiles)
        if valid is None or valid[tile.y0 : tile.y1, tile.x0 : tile.x1].any()
    ]
    done = len(tiles) - len(live)
    device = next(network.parameters()).device
    with torch.inference_mode(), autocast(device, settings.precision):
        for first in range(0, len(live), settings.batch_size):
            chosen = live[first : first + settings.batch_size]
            batch = [_tile_tensor(image, tiles[index]) for index in chosen]
            if with_psf:
                batch = [add_psf_planes(pixels, psf_fwhm) for pixels in batch]
            for index, result in zip(chosen, _detect_batch(network, batch, settings, timings), strict=True):
                tile = tiles[index]
                result.boxes += np.array([tile.x0, tile.y0, tile.x0, tile.y0], dtype=np.float32)
                result.origins += np.array([tile.y0, tile.x0], dtype=np.int32)
                found.append(result)
                owner.append(index)
            done += len(chosen)
            if progress is not None:
                progress(done, len(tiles))
    merged = _merge(found, owner, tiles, height, width, timings)
    merged.timings["total"] = time.perf_counter() - started
    return merged


def _tile_tensor(image: npt.NDArray[np.float32], tile: Tile) -> Tensor:
    view = image[:, tile.y0 : tile.y1, tile.x0 : tile.x1]
    pixels = torch.from_numpy(np.ascontiguousarray(view, dtype=np.float32))
    # One non-finite pixel would spread over the whole tile without a trace.
    if not bool(torch.isfinite(pixels).all()):
        raise ValueError(
            f"the image is not finite in rows {tile.y0} to {tile.y1}, columns {tile.x0} to {tile.x1}; "
            "normalise it first (imaging.normalize sets unusable pixels to zero)"
        )
    return pixels


def _detect_batch(
    network: MaskRCNN, batch: Sequence[Tensor], settings: InferenceSettings, timings: dict[str, float]
) -> list[_Found]:
    """Run the network on tiles; boxes and masks in pixels of the tile."""
    clock = time.perf_counter()
    device = next(network.parameters()).device
    images: ImageList
    images, _ = network.transform([pixels.to(device) for pixels in batch])
    heads = cast(RoIHeads, network.roi_heads)
    features = network.backbone(images.tensors)
    proposals, _ = network.rpn(images, features)
    pooled = heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes))
    logits, deltas = heads.box_predictor(pooled)
    probabilities = torch.softmax(logits.float(), dim=-1)
    decoded = heads.box_coder.decode(deltas.float(), list(proposals))

    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    counts = [len(p) for p in proposals]
    for size, chances, boxes in zip(
        images.image_sizes, probabilities.split(counts), decoded.split(counts), strict=True
    ):
        kept.append(_select(chances, boxes, size, settings))
    boxes_of_tiles = [item[0] for item in kept]
    mask_logits = heads.mask_predictor(
        heads.mask_head(heads.mask_roi_pool(features, boxes_of_tiles, images.image_sizes))
    )
    labels = torch.cat([item[3] for item in kept])
    cells = mask_logits[torch.arange(len(labels), device=device), labels].float().sigmoid()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    timings["forward"] += time.perf_counter() - clock

    clock = time.perf_counter()
    results = []
    for (boxes, scores, p_star, _), part, size in zip(
        kept, cells.split([len(b) for b in boxes_of_tiles]), images.image_sizes, strict=True
    ):
        origins, masks = paste_masks(part, boxes, size, settings.mask_threshold)
        full = np.array([mask.size > 0 for mask in masks], dtype=bool)
        results.append(
            _Found(
                boxes.cpu().numpy()[full],
                scores.cpu().numpy()[full],
                p_star.cpu().numpy()[full],
                origins[full],
                [mask for mask in masks if mask.size],
            )
        )
    timings["masks"] += time.perf_counter() - clock
    return results


def _select(
    chances: Tensor, boxes: Tensor, size: tuple[int, int], settings: InferenceSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keep what is a source: its box, score, P(star) and label."""
    scores = 1.0 - chances[:, 0]
    sources = chances[:, 1:]
    label = sources.argmax(dim=1) + 1
    p_star = sources[:, 0] / sources.sum(dim=1).clamp_min(1e-12)
    chosen = boxes[torch.arange(len(boxes), device=boxes.device), label]
    chosen = clip_boxes_to_image(chosen, size)
    sides = chosen[:, 2:] - chosen[:, :2]
    index = torch.nonzero((scores >= settings.score_threshold) & (sides >= 1.0).all(dim=1))[:, 0]
    index = index[nms(chosen[index], scores[index], settings.nms_threshold)]
    index = index[_first_of_concentric(chosen[index])]
    index = index[: settings.max_detections_per_tile]
    return chosen[index], scores[index], p_star[index], label[index]


def _first_of_concentric(boxes: Tensor) -> Tensor:
    """Drop boxes that lie on the middle of an earlier one, or around it.

    Parameters
    ----------
    boxes : `torch.Tensor`
        Boxes by descending score, (source, 4).

    Returns
    -------
    kept : `torch.Tensor`
        Indices of the boxes to keep, ascending, int64.
    """
    corners = boxes.cpu().numpy()
    keep = np.ones(len(corners), dtype=bool)
    for i in range(len(corners)):
        if keep[i]:
            later = corners[i + 1 :]
            keep[i + 1 :] &= ~concentric(np.broadcast_to(corners[i], later.shape), later)
    return torch.from_numpy(np.flatnonzero(keep)).to(boxes.device)


def paste_masks(
    cells: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float
) -> tuple[npt.NDArray[np.int32], list[npt.NDArray[np.bool_]]]:
    """Bring the square masks of the mask head to pixels.

    Parameters
    ----------
    cells : `torch.Tensor`
        Mask probabilities, float32, (source, cell, cell).
    boxes : `torch.Tensor`
        Their boxes, float32, (source, 4).
    size : `tuple` [`int`]
        Height and width of the tile.
    threshold : `float`
        Probability from which a pixel belongs to the source.

    Returns
    -------
    origins : `numpy.ndarray`
        (y0, x0) of each mask, int32, (source, 2).
    masks : `list` [`numpy.ndarray`]
        Masks, bool, (y, x) each, tight; of no pixel where none is over the
        threshold.

    Notes
    -----
    The inverse of torchvision's ``project_masks_on_boxes``, which makes the
    targets of the mask head: cell j of n has its centre at x0 + (j + 0.5)
    (x1 - x0) / n, and there the pixel in column i stands at i, not at i + 0.5.
    """
    count, side = len(cells), cells.shape[-1]
    origins = np.zeros((count, 2), dtype=np.int32)
    masks: list[npt.NDArray[np.bool_]] = [np.zeros((0, 0), dtype=bool)] * count
    if not count:
        return origins, masks
    lower = (boxes[:, :2].floor() - 1).clamp_min(0)
    upper = torch.minimum(boxes[:, 2:].ceil() + 1, boxes.new_tensor([size[1], size[0]]))
    extents = (upper - lower).long()
    order = torch.argsort(extents.amax(dim=1)).tolist()
    largest = extents.amax(dim=1).tolist()
    first = 0
    while first < count:
        # Sources of similar size share a grid; its cells bound the memory.
        last = first + 1
        while last < count and (last + 1 - first) * largest[order[last]] ** 2 <= _PASTE_CELLS:
            if largest[order[last]] > 2 * largest[order[first]] + 8:
                break
            last += 1
        index = torch.tensor(order[first:last], device=boxes.device)
        first = last
        width, height = (int(v) for v in extents[index].amax(dim=0))
        x = (torch.arange(width, device=boxes.device) + lower[index, :1] - boxes[index, :1]) / (
            boxes[index, 2:3] - boxes[index, :1]
        )
        y = (torch.arange(height, device=boxes.device) + lower[index, 1:2] - boxes[index, 1:2]) / (
            boxes[index, 3:4] - boxes[index, 1:2]
        )
        grid = torch.stack(
            [
                (2.0 * x - 1.0)[:, None, :].expand(-1, height, -1),
                (2.0 * y - 1.0)[:, :, None].expand(-1, -1, width),
            ],
            dim=-1,
        )
        values = functional.grid_sample(
            cells[index].reshape(-1, 1, side, side), grid, align_corners=False, padding_mode="border"
        )[:, 0]
        # Beyond half a cell outside of its box a mask says nothing.
        reach = 0.5 / side
        inside = ((x > -reach) & (x < 1.0 + reach))[:, None, :] & ((y > -reach) & (y < 1.0 + reach))[
            :, :, None
        ]
        painted = ((values >= threshold) & inside).cpu().numpy()
        corner = lower[index].long().cpu().numpy()
        limit = extents[index].cpu().numpy()
        for row, where in enumerate(index.tolist()):
            mask = painted[row, : limit[row, 1], : limit[row, 0]]
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if not len(rows):
                continue
            masks[where] = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
            origins[where] = corner[row, 1] + rows[0], corner[row, 0] + columns[0]
    return origins, masks


def _merge(
    found: list[_Found],
    owner: list[int],
    tiles: list[Tile],
    height: int,
    width: int,
    timings: dict[str, float],
) -> Detections:
    """Put the tiles together so that each source is there once."""
    clock = time.perf_counter()
    if not found:
        return Detections(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.float32),
            np.zeros((0, 2), np.int32),
            [],
            timings,
        )
    boxes = np.concatenate([item.boxes for item in found])
    scores = np.concatenate([item.scores for item in found])
    p_star = np.concatenate([item.p_star for item in found])
    origins = np.concatenate([item.origins for item in found])
    masks = [mask for item in found for mask in item.masks]
    tile_index = np.repeat(owner, [len(item.scores) for item in found])
    kept = seam_keep(boxes, scores, tile_index, tiles, height, width)
    kept = kept[np.lexsort((boxes[kept, 0], boxes[kept, 1], -scores[kept]))]
    timings["seams"] += time.perf_counter() - clock
    return Detections(
        boxes[kept], scores[kept], p_star[kept], origins[kept], [masks[i] for i in kept], timings
    )
