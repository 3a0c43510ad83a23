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
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import clip_boxes_to_image

from ..deblend.suppression import (
    DECAYS,
    SUPPRESSIONS,
    BlendRule,
    keep_blends,
    keep_hard,
    keep_soft,
    measure_colors,
    same_masks,
)
from ..images.tiles import Tile, make_tiles, seam_keep
from .psf import add_psf_planes

__all__ = [
    "Detections",
    "InferenceSettings",
    "SoftMasks",
    "autocast",
    "detect",
    "paste_masks",
    "paste_soft_masks",
    "select_device",
]

Precision = Literal["auto", "float32", "bfloat16"]
Suppression = Literal["mask", "hard", "soft"]
SoftDecay = Literal["gaussian", "linear"]

_PASTE_CELLS = 4_000_000
"""Largest number of mask pixels that are computed at once."""

_SOFT_FLOOR = 0.05
"""Mask probability from which a pixel is in a soft mask."""

_SURE, _LAST_PROPOSALS, _CROWDED = 0.5, 0.1, 0.05
"""A tile is crowded if of the sources of at least the first, more than the last
come from the last proposals, which are this share of all. The tenth proposals
bring 0.1 to 3 % on scenes at the depths of surveys, 8 % in crowded fields,
where looking at quarters then finds a fifth more."""

_SMALLEST_PART = 64
"""Smallest side of the parts of a tile that holds too many sources, px."""


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
        Box IoU over which two detections may be of one source.
    suppression : `str`
        What happens to the weaker of them. ``hard``: it is dropped;
        ``mask``: it is dropped unless the two are two sources by their
        places and colours, or the masks of two that were kept turn out to be
        the same; ``soft``: its score is lowered. ``mask`` finds more of the
        closest pairs, and more sources that are not there.
    separation : `float`
        For ``mask``: distance of the centres of two boxes from which they
        are two sources, in units of the FWHM of the PSF, or of a quarter of the
        side of the smaller box if that is more.
    color_separation : `float`
        For ``mask``: the same for sources of different colours.
    color_difference : `float`
        For ``mask``: significance from which colours differ, in standard
        deviations.
    mask_overlap : `float`
        For ``mask``: overlap of two masks from which they are the same.
    soft_decay : `str`
        For ``soft``: ``gaussian``, scores are multiplied by
        exp(-IoU^2 / soft_sigma); or ``linear``, by 1 - IoU where the IoU is
        over ``nms_threshold``.
    soft_sigma : `float`
        For ``soft``: see there.
    mask_threshold : `float`
        Mask probability from which a pixel belongs to a source.
    max_detections_per_tile : `int`
        Largest number of detections in a tile. One that holds more, or for
        which the network's proposals did not suffice, is looked at again in
        quarters.
    split_crowded : `bool`
        Whether to do so; otherwise only the best are kept.
    precision : `str`
        ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the device
        computes it natively.
    """

    tile_size: int = 512
    tile_overlap: int = 128
    batch_size: int = 2
    score_threshold: float = 0.5
    nms_threshold: float = 0.5
    suppression: Suppression = "hard"
    separation: float = 0.5
    color_separation: float = 0.35
    color_difference: float = 10.0
    mask_overlap: float = 0.8
    soft_decay: SoftDecay = "gaussian"
    soft_sigma: float = 0.5
    mask_threshold: float = 0.5
    max_detections_per_tile: int = 300
    split_crowded: bool = True
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
        for name, choices in (("suppression", SUPPRESSIONS), ("soft_decay", DECAYS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is '{getattr(self, name)}', wanted one of {choices}")
        for name in ("separation", "color_separation", "color_difference"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must be at least 0, given {getattr(self, name)}")
        if not self.soft_sigma > 0.0:
            raise ValueError(f"soft_sigma must be greater than 0, given {self.soft_sigma}")
        for name in ("score_threshold", "nms_threshold", "mask_threshold", "mask_overlap"):
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
        Wall time by part: ``forward``, ``suppression``, ``masks``, ``seams``,
        ``total`` (s).
    soft : `list` [`numpy.ndarray`], optional
        Probability of each pixel to belong to the source, times 255 and
        rounded, uint8, (y, x) each: on every pixel of the mask and every
        one over 5 %. By default 255 on the masks.
    soft_origins : `numpy.ndarray`, optional
        (y0, x0) of each of ``soft``, int32, (source, 2), array pixels; by
        default those of the masks.
    binning : `numpy.ndarray`, optional
        Binning of the image in which each was found, int8, (source,); by
        default 1.
    flag_limited : `numpy.ndarray`, optional
        Whether the tile of each held more sources than the limits of a tile
        allow, so that it was looked at in parts where it could be, bool,
        (source,); by default none.

    Raises
    ------
    ValueError
        Raised if the lengths disagree.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    p_star: npt.NDArray[np.float32]
    origins: npt.NDArray[np.int32]
    masks: list[npt.NDArray[np.bool_]]
    timings: dict[str, float] = field(default_factory=dict)
    soft: list[npt.NDArray[np.uint8]] = cast(Any, None)
    soft_origins: npt.NDArray[np.int32] = cast(Any, None)
    binning: npt.NDArray[np.int8] = cast(Any, None)
    flag_limited: npt.NDArray[np.bool_] = cast(Any, None)

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.soft is None:
            self.soft = [np.where(mask, np.uint8(255), np.uint8(0)) for mask in self.masks]
            self.soft_origins = np.array(self.origins, dtype=np.int32)
        if self.binning is None:
            self.binning = np.ones(count, dtype=np.int8)
        if self.flag_limited is None:
            self.flag_limited = np.zeros(count, dtype=bool)
        lengths = {name: len(getattr(self, name)) for name in _PER_SOURCE}
        if set(lengths.values()) != {count}:
            raise ValueError(f"the parts of detections are not of one length: {lengths}")

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls) -> Self:
        """Make detections of nothing.

        Returns
        -------
        detections : `Detections`
        """
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.float32),
            np.zeros((0, 2), np.int32),
            [],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Self:
        """Put detections one after the other.

        Parameters
        ----------
        parts : `~collections.abc.Sequence` [`Detections`]
            The detections; their timings are added up.

        Returns
        -------
        detections : `Detections`
            All of them, in the order of the parts.
        """
        if not parts:
            return cls.empty()
        values: dict[str, Any] = {}
        for name in _PER_SOURCE:
            columns = [getattr(part, name) for part in parts]
            if isinstance(columns[0], list):
                values[name] = [item for column in columns for item in column]
            else:
                values[name] = np.concatenate(columns)
        timings: dict[str, float] = {}
        for part in parts:
            for key, seconds in part.timings.items():
                timings[key] = timings.get(key, 0.0) + seconds
        return cls(timings=timings, **values)

    def take(self, index: npt.NDArray[np.integer[Any] | np.bool_]) -> Self:
        """Choose some of the detections.

        Parameters
        ----------
        index : `numpy.ndarray`
            Their indices, int, in the order wanted; or bool, (source,).

        Returns
        -------
        detections : `Detections`
            The chosen ones, which share pixels with these.
        """
        rows = np.flatnonzero(index) if index.dtype == bool else index
        values: dict[str, Any] = {}
        for name in _PER_SOURCE:
            column = getattr(self, name)
            values[name] = [column[i] for i in rows] if isinstance(column, list) else column[rows]
        return type(self)(timings=dict(self.timings), **values)

    def sorted(self) -> Self:
        """Order the detections as `detect` does.

        Returns
        -------
        detections : `Detections`
            By descending score; equal scores by y, then x of their boxes'
            first pixels, then the last ones.
        """
        corners = self.boxes
        return self.take(
            np.lexsort((corners[:, 2], corners[:, 3], corners[:, 0], corners[:, 1], -self.scores))
        )


_PER_SOURCE = (
    "boxes",
    "scores",
    "p_star",
    "origins",
    "masks",
    "soft",
    "soft_origins",
    "binning",
    "flag_limited",
)


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
    timings = dict.fromkeys(("forward", "suppression", "masks", "seams"), 0.0)
    # Two tiles see the same where they overlap if they begin on one grid.
    divisor = int(cast(Any, network.transform).divisor)
    tiles = make_tiles(height, width, settings.tile_size, settings.tile_overlap, divisor)
    live = [tile for tile in tiles if valid is None or valid[tile.slices].any()]
    work = _TileQueue(live, settings, divisor)
    seen: list[Tile] = []
    found: list[Detections] = []
    skipped = len(tiles) - len(live)
    fwhm = _mean_fwhm(psf_fwhm)
    device = next(network.parameters()).device
    with torch.inference_mode(), autocast(device, settings.precision):
        while chosen := work.take(settings.batch_size):
            batch = [_tile_tensor(image, tile) for tile in chosen]
            if with_psf:
                batch = [add_psf_planes(pixels, psf_fwhm) for pixels in batch]
            splits = [work.can_split(tile) for tile in chosen]
            results = _detect_batch(network, batch, splits, settings, fwhm, timings)
            for tile, result in zip(chosen, results, strict=True):
                if result is None:
                    work.split(tile)
                    continue
                result.boxes += np.array([tile.x0, tile.y0, tile.x0, tile.y0], dtype=np.float32)
                result.origins += np.array([tile.y0, tile.x0], dtype=np.int32)
                result.soft_origins += np.array([tile.y0, tile.x0], dtype=np.int32)
                result.flag_limited |= work.is_part(tile)
                found.append(result)
                seen.append(tile)
            if progress is not None:
                progress(skipped + work.done, skipped + work.total)
    clock = time.perf_counter()
    merged = _merge(found, seen, height, width, settings, fwhm)
    timings["seams"] += time.perf_counter() - clock
    timings["total"] = time.perf_counter() - started
    merged.timings = timings
    return merged


class _TileQueue:
    """Tiles to look at; those that hold too many sources come back in quarters."""

    def __init__(self, tiles: Sequence[Tile], settings: InferenceSettings, align: int):
        self._align = align
        self._waiting = deque(tiles)
        self._parts: set[Tile] = set()
        self._settings = settings
        self.total = len(tiles)
        self.done = 0

    def take(self, count: int) -> list[Tile]:
        """Return the next tiles, all of one size when padded for the network."""
        chosen: list[Tile] = []
        while self._waiting and len(chosen) < count:
            if chosen and self._padded(self._waiting[0]) != self._padded(chosen[0]):
                break
            chosen.append(self._waiting.popleft())
        self.done += len(chosen)
        return chosen

    def _padded(self, tile: Tile) -> tuple[int, int]:
        return -(-tile.height // self._align), -(-tile.width // self._align)

    def can_split(self, tile: Tile) -> bool:
        return self._settings.split_crowded and max(tile.height, tile.width) >= 2 * _SMALLEST_PART

    def split(self, tile: Tile) -> None:
        side = max(tile.height, tile.width)
        overlap = min(self._settings.tile_overlap, side // 4)
        parts = [
            Tile(tile.y0 + part.y0, tile.x0 + part.x0, tile.y0 + part.y1, tile.x0 + part.x1)
            for part in make_tiles(tile.height, tile.width, -(-(side + overlap) // 2), overlap, self._align)
        ]
        self._parts.update(parts)
        self._waiting.extend(parts)
        self.total += len(parts)

    def is_part(self, tile: Tile) -> bool:
        return tile in self._parts


def _tile_tensor(image: npt.NDArray[np.float32], tile: Tile) -> Tensor:
    view = image[:, tile.y0 : tile.y1, tile.x0 : tile.x1]
    pixels = torch.from_numpy(np.ascontiguousarray(view, dtype=np.float32))
    # One non-finite pixel would spread over the whole tile without a trace.
    if not bool(torch.isfinite(pixels).all()):
        raise ValueError(
            f"the image is not finite in rows {tile.y0} to {tile.y1}, columns {tile.x0} to {tile.x1}; "
            "normalise it first (images.normalize sets unusable pixels to zero)"
        )
    return pixels


def _detect_batch(
    network: MaskRCNN,
    batch: Sequence[Tensor],
    splits: Sequence[bool],
    settings: InferenceSettings,
    fwhm: float | None,
    timings: dict[str, float],
) -> list[Detections | None]:
    """Run the network on tiles; boxes and masks in pixels of the tile.

    A tile that may be split and holds more than the limit has no result.
    """
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
    _wait(device)
    timings["forward"] += time.perf_counter() - clock

    clock = time.perf_counter()
    counts = [len(p) for p in proposals]
    planes = len(batch[0]) // (2 if getattr(network, "psf_channels", False) else 1)
    kept = [
        _select(chances, boxes, pixels[:planes], settings, fwhm)
        for pixels, chances, boxes in zip(
            batch, probabilities.split(counts), decoded.split(counts), strict=True
        )
    ]
    most = network.rpn.post_nms_top_n()
    limited = [
        len(item.boxes) > settings.max_detections_per_tile or _proposals_ran_out(item, count, most)
        for item, count in zip(kept, counts, strict=True)
    ]
    whole = [not (over and split) for over, split in zip(limited, splits, strict=True)]
    kept = [
        item.take(slice(settings.max_detections_per_tile if keep else 0))
        for item, keep in zip(kept, whole, strict=True)
    ]
    timings["suppression"] += time.perf_counter() - clock

    clock = time.perf_counter()
    boxes_of_tiles = [item.boxes for item in kept]
    mask_logits = heads.mask_predictor(
        heads.mask_head(heads.mask_roi_pool(features, boxes_of_tiles, images.image_sizes))
    )
    labels = torch.cat([item.labels for item in kept])
    cells = mask_logits[torch.arange(len(labels), device=device), labels].float().sigmoid()
    cells_of_tiles = list(cells.split([len(boxes) for boxes in boxes_of_tiles]))
    _wait(device)
    timings["forward"] += time.perf_counter() - clock

    if settings.suppression == "mask":
        clock = time.perf_counter()
        for number, item in enumerate(kept):
            index = torch.from_numpy(
                same_masks(
                    cells_of_tiles[number],
                    item.boxes,
                    item.labels,
                    settings.mask_overlap,
                    settings.mask_threshold,
                )
            ).to(device)
            kept[number] = item.take(index)
            cells_of_tiles[number] = cells_of_tiles[number][index]
        timings["suppression"] += time.perf_counter() - clock

    clock = time.perf_counter()
    results: list[Detections | None] = []
    for item, part, size, over, keep in zip(
        kept, cells_of_tiles, images.image_sizes, limited, whole, strict=True
    ):
        if not keep:
            results.append(None)
            continue
        pasted = paste_soft_masks(part, item.boxes, size, settings.mask_threshold)
        result = Detections(
            item.boxes.cpu().numpy(),
            item.scores.cpu().numpy(),
            item.p_star.cpu().numpy(),
            pasted.origins,
            pasted.masks,
            soft=pasted.soft,
            soft_origins=pasted.soft_origins,
            flag_limited=np.full(len(item.boxes), over),
        )
        results.append(result.take(np.array([mask.size > 0 for mask in pasted.masks], dtype=bool)))
    timings["masks"] += time.perf_counter() - clock
    return results


class _Candidates(NamedTuple):
    """Boxes of a tile that are sources, by descending score."""

    boxes: Tensor
    scores: Tensor
    p_star: Tensor
    labels: Tensor
    ranks: Tensor
    """Places among the proposals, the likeliest of which are first."""

    def take(self, index: Any) -> _Candidates:
        return _Candidates(*(column[index] for column in self))


def _select(
    chances: Tensor, boxes: Tensor, pixels: Tensor, settings: InferenceSettings, fwhm: float | None
) -> _Candidates:
    """Keep what is a source, once."""
    scores = 1.0 - chances[:, 0]
    sources = chances[:, 1:]
    label = sources.argmax(dim=1) + 1
    p_star = sources[:, 0] / sources.sum(dim=1).clamp_min(1e-12)
    chosen = boxes[torch.arange(len(boxes), device=boxes.device), label]
    chosen = clip_boxes_to_image(chosen, (pixels.shape[1], pixels.shape[2]))
    sides = chosen[:, 2:] - chosen[:, :2]
    index = torch.nonzero((scores >= settings.score_threshold) & (sides >= 1.0).all(dim=1))[:, 0]
    found = _Candidates(chosen[index], scores[index], p_star[index], label[index], index)
    corners, chance = found.boxes.cpu().numpy(), found.scores.cpu().numpy()
    if settings.suppression == "hard":
        rows = keep_hard(corners, chance, settings.nms_threshold)
    elif settings.suppression == "soft":
        rows, lowered = keep_soft(
            corners,
            chance,
            settings.score_threshold,
            decay=settings.soft_decay,
            overlap=settings.nms_threshold,
            sigma=settings.soft_sigma,
        )
        chance[rows] = lowered
        found = found._replace(scores=torch.from_numpy(chance).to(boxes.device))
    else:
        rule = BlendRule(
            settings.nms_threshold,
            settings.separation,
            settings.color_separation,
            settings.color_difference,
        )
        rows = keep_blends(corners, chance, rule, measure_colors(pixels, corners), fwhm)
    return found.take(torch.from_numpy(rows).to(boxes.device))


def _proposals_ran_out(kept: _Candidates, count: int, most: int) -> bool:
    """Say whether more proposals would have brought more sources.

    They are taken by how likely they are, so that if the last ones of as many
    as may be still are sources, the next ones were too.
    """
    if count < most:
        return False
    sure = kept.scores >= _SURE
    last = sure & (kept.ranks >= (1.0 - _LAST_PROPOSALS) * most)
    return int(last.sum()) > _CROWDED * int(sure.sum())


def _mean_fwhm(psf_fwhm: npt.ArrayLike | None) -> float | None:
    """Mean of the widths that are known, px."""
    if psf_fwhm is None:
        return None
    widths = np.asarray(psf_fwhm, dtype=float)
    known = widths[np.isfinite(widths) & (widths > 0)]
    return float(known.mean()) if len(known) else None


def _wait(device: torch.device) -> None:
    """Let a GPU finish, so that time is counted where it was spent."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class SoftMasks(NamedTuple):
    """Masks in pixels, hard and soft."""

    origins: npt.NDArray[np.int32]
    """(y0, x0) of each mask, (source, 2)."""

    masks: list[npt.NDArray[np.bool_]]
    """Pixels over the threshold, (y, x) each, tight; of no pixel where there
    are none."""

    soft_origins: npt.NDArray[np.int32]
    """(y0, x0) of each of ``soft``, (source, 2)."""

    soft: list[npt.NDArray[np.uint8]]
    """Probability times 255, rounded, (y, x) each, on all pixels of the mask
    and those over 5 %; of no pixel where there are none."""


def paste_masks(
    cells: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float
) -> tuple[npt.NDArray[np.int32], list[npt.NDArray[np.bool_]]]:
    """Bring the square masks of the mask head to pixels.

    Parameters
    ----------
    cells, boxes, size, threshold
        As in `paste_soft_masks`.

    Returns
    -------
    origins : `numpy.ndarray`
        (y0, x0) of each mask, int32, (source, 2).
    masks : `list` [`numpy.ndarray`]
        Masks, bool, (y, x) each, tight; of no pixel where none is over the
        threshold.
    """
    pasted = paste_soft_masks(cells, boxes, size, threshold)
    return pasted.origins, pasted.masks


def paste_soft_masks(cells: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> SoftMasks:
    """Bring the square masks of the mask head to pixels, hard and soft.

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
    masks : `SoftMasks`
        The masks of all sources.

    Notes
    -----
    The inverse of torchvision's ``project_masks_on_boxes``, which makes the
    targets of the mask head: cell j of n has its centre at x0 + (j + 0.5)
    (x1 - x0) / n, and there the pixel in column i stands at i, not at i + 0.5.
    """
    count, side = len(cells), cells.shape[-1]
    result = SoftMasks(
        np.zeros((count, 2), dtype=np.int32),
        [np.zeros((0, 0), dtype=bool)] * count,
        np.zeros((count, 2), dtype=np.int32),
        [np.zeros((0, 0), dtype=np.uint8)] * count,
    )
    if not count:
        return result
    lower = (boxes[:, :2].floor() - 1).clamp_min(0)
    upper = torch.minimum(boxes[:, 2:].ceil() + 1, boxes.new_tensor([size[1], size[0]]))
    extents = (upper - lower).long()
    sides = extents.amax(dim=1)
    order = torch.argsort(sides, stable=True).tolist()
    largest = sides.tolist()
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
        # Beyond half a cell outside of its box a mask says nothing, and pixels
        # beyond its own grid are those of larger sources.
        reach = 0.5 / side
        x_inside = (x > -reach) & (x < 1.0 + reach)
        y_inside = (y > -reach) & (y < 1.0 + reach)
        x_inside &= torch.arange(width, device=boxes.device) < extents[index, :1]
        y_inside &= torch.arange(height, device=boxes.device) < extents[index, 1:]
        inside = x_inside[:, None, :] & y_inside[:, :, None]
        painted = ((values >= threshold) & inside).cpu().numpy()
        levels = (values * 255.0 + 0.5).to(torch.uint8) * inside
        shown = (values >= min(threshold, _SOFT_FLOOR)) & inside
        _cut_out(painted, painted, lower[index], index, result.masks, result.origins)
        _cut_out(
            levels.cpu().numpy(), shown.cpu().numpy(), lower[index], index, result.soft, result.soft_origins
        )
    return result


def _cut_out(
    pixels: npt.NDArray[Any],
    shown: npt.NDArray[np.bool_],
    corner: Tensor,
    index: Tensor,
    cutouts: list[npt.NDArray[Any]],
    origins: npt.NDArray[np.int32],
) -> None:
    """Cut arrays (source, y, x) down to what is shown of each source."""
    rows: npt.NDArray[np.bool_] = np.logical_or.reduce(shown, axis=2)
    columns: npt.NDArray[np.bool_] = np.logical_or.reduce(shown, axis=1)
    y0, x0 = rows.argmax(axis=1), columns.argmax(axis=1)
    y1 = rows.shape[1] - rows[:, ::-1].argmax(axis=1)
    x1 = columns.shape[1] - columns[:, ::-1].argmax(axis=1)
    corners = corner.long().cpu().numpy()
    there = np.flatnonzero(rows.any(axis=1))
    where = index.cpu().numpy()
    origins[where[there]] = np.stack([corners[there, 1] + y0[there], corners[there, 0] + x0[there]], axis=1)
    for source in there.tolist():
        cutouts[where[source]] = pixels[source, y0[source] : y1[source], x0[source] : x1[source]].copy()


def _merge(
    found: Sequence[Detections],
    tiles: Sequence[Tile],
    height: int,
    width: int,
    settings: InferenceSettings,
    fwhm: float | None,
) -> Detections:
    """Put the tiles together so that each source is there once."""
    every = Detections.concatenate(found)
    tile_index = np.repeat(np.arange(len(tiles)), [len(item) for item in found])
    kept = seam_keep(every.boxes, every.scores, tile_index, tiles, height, width)
    # Where one tile sees a blend and the other sees it otherwise, a source may
    # still be there twice.
    rule = BlendRule(settings.nms_threshold, settings.separation, settings.separation)
    again = keep_blends(every.boxes[kept], every.scores[kept], rule, fwhm=fwhm, groups=tile_index[kept])
    return every.take(kept[again]).sorted()
