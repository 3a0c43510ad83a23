# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection on images of any size: tiles, batches, masks and seams."""

from __future__ import annotations

__all__ = ["Candidates", "DetectionSettings", "Suppression", "autocast", "detect_tiles", "select_device"]

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import clip_boxes_to_image

from ..images.classes import GALAXY, STAR
from ..images.settings import settings
from ..images.tiles import Tile, make_tiles, seam_keep
from .calibration import Calibration, calibrate
from .detections import Detections
from .masks import MASK_THRESHOLD, paste_soft_masks
from .psf import add_psf_planes

_SURE, _LAST_PROPOSALS, _CROWDED = 0.5, 0.1, 0.05
"""A tile is crowded if of the sources of at least the first score, more than
the last share come from the last proposals, which are this share of all. The
tenth proposals bring 0.1 to 3 % on scenes at the depths of surveys, 8 % in
crowded fields, where detection in quarters then finds a fifth more."""

_SMALLEST_PART = 64
"""Smallest side of the parts of a tile that holds too many sources, px."""


@settings
class DetectionSettings:
    """How the network is run and which of its detections are kept."""

    score_threshold: Annotated[
        float | None,
        Field(
            ge=0.0,
            le=1.0,
            description="Lowest calibrated probability of being a source of the sources that are kept; None "
            "takes the model's default.",
        ),
    ] = None
    nms_threshold: Annotated[
        float | None,
        Field(
            ge=0.0,
            le=1.0,
            description="Overlap (IoU) of two boxes above which they may be of one source; None takes the "
            "model's default.",
        ),
    ] = None
    suppression: Annotated[
        Literal["hard", "mask"],
        Field(
            description="What happens to the one of lower score of two detections that may be of one source.",
            json_schema_extra={
                "hard": "it is dropped",
                "mask": "it is dropped, unless the two differ in place and colour and in their masks; finds "
                "more of the closest pairs, and more sources that are not there",
            },
        ),
    ] = "hard"
    binnings: Annotated[
        tuple[int, ...],
        Field(
            min_length=1,
            description="Pixels per binned pixel and axis of the images in which sources are detected, "
            "ascending from 1; coarse ones find large galaxies.",
        ),
    ] = (1, 2, 4)
    min_area: Annotated[int, Field(ge=1, description="Fewest pixels of a mask that is kept.")] = 1
    tile_size: Annotated[
        int, Field(ge=64, description="Side of the square tiles that the network is given (px).")
    ] = 512
    tile_overlap: Annotated[
        int,
        Field(
            ge=0,
            description="Pixels that neighbouring tiles share; models of fixed bands may cut larger sources "
            "at seams.",
        ),
    ] = 64
    batch_size: Annotated[
        int, Field(ge=1, description="Tiles in one forward pass; memory grows with it.")
    ] = 2
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(
            description="Arithmetic of the forward pass.",
            json_schema_extra={
                "auto": "bfloat16 where the device has it in hardware, else float32",
                "float32": "single precision",
                "bfloat16": "mixed precision",
            },
        ),
    ] = "auto"
    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|cuda(:\d+)?)$",
            description="Where the network runs: auto (a GPU where there is one), cpu, cuda or cuda:N.",
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        if self.tile_overlap >= self.tile_size:
            raise ValueError(
                f"tile_overlap is {self.tile_overlap} px, wanted less than tile_size, {self.tile_size} px"
            )
        steps = self.binnings
        if steps[0] != 1 or steps[-1] > 64 or any(b <= a for a, b in zip(steps, steps[1:], strict=False)):
            raise ValueError(f"binnings are {steps}, wanted ascending whole numbers from 1 to at most 64")


class Candidates(NamedTuple):
    """Boxes of a tile that may be sources, (candidate, ...), by descending score."""

    boxes: Tensor
    scores: Tensor
    """Calibrated probability of being a source."""
    p_star: Tensor
    """Calibrated probability that a source is a star."""
    labels: Tensor
    ranks: Tensor
    """Places among the proposals, the likeliest of which are first."""


class Suppression(NamedTuple):
    """How repeated detections of one source are recognised.

    `lsst.meas.maskrcnn.deblend.suppression.make_suppression` makes them.
    Indices are by descending score.
    """

    in_tile: Callable[[Tensor, Candidates], npt.NDArray[np.int64]]
    """Takes the pixels of a tile and its candidates; gives the indices of those kept."""
    by_masks: Callable[[Tensor, Candidates], npt.NDArray[np.int64] | None]
    """Takes masks on the cells of the mask head; gives the indices of those kept, `None` for all."""
    at_seams: Callable[
        [npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]], npt.NDArray[np.int64]
    ]
    """Takes boxes, scores and numbers of tiles; gives the indices of those kept."""


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
            f"device '{name}' was asked for, but torch finds {torch.cuda.device_count() or 'no'} GPU; "
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
    # public call to distinguish the two on a CPU.
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe is not None else False


def detect_tiles(
    network: MaskRCNN,
    image: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_] | None,
    settings: DetectionSettings,
    suppression: Suppression,
    *,
    calibration: Calibration | None = None,
    psf_fwhm: npt.ArrayLike | None = None,
    split_crowded: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Detections:
    """Find the sources of a normalised image, tile by tile.

    Parameters
    ----------
    network : `torchvision.models.detection.MaskRCNN`
        A network in evaluation mode, as `MaskRcnnModel.build` returns it.
    image : `numpy.ndarray`
        Normalised image, float32, (band, y, x), finite.
    valid : `numpy.ndarray` or `None`
        Usable pixels, bool, (y, x). Tiles without any are skipped.
    settings : `DetectionSettings`
        How to detect; without a score threshold that of the network.
    suppression : `Suppression`
        Which detections are of one source.
    calibration : `~.calibration.Calibration`, optional
        Takes scores and P(star) to probabilities before anything is decided.
    psf_fwhm : array_like, optional
        Widths of the PSF, (band,), px, for `~.psf.add_psf_planes`.
    split_crowded : `bool`, optional
        Detect again in quarters of tiles that hold more sources than the
        network can give? Otherwise only the best are kept.
    progress : callable, optional
        Called with the number of tiles done and the number of tiles.

    Returns
    -------
    detections : `~.detections.Detections`
        By descending score; equal scores by y, then x.

    Raises
    ------
    ValueError
        Raised if the arrays are not of the shapes above, or not finite.
    """
    with_psf = bool(getattr(network, "psf_channels", False))
    _check_shapes(image, valid, cast(Any, network.backbone).body.conv1.in_channels // (2 if with_psf else 1))
    started = time.perf_counter()
    timings = dict.fromkeys(("forward", "suppression", "masks", "seams"), 0.0)
    height, width = image.shape[1:]
    # Overlapping tiles give the same there if they begin on one grid.
    divisor = int(cast(Any, network.transform).divisor)
    tiles = make_tiles(height, width, settings.tile_size, settings.tile_overlap, divisor)
    live = [tile for tile in tiles if valid is None or valid[tile.slices].any()]
    queue = _TileQueue(live, settings.tile_overlap, divisor, split_crowded)
    forward = _Forward(network, settings.score_threshold, suppression, calibration, timings)
    finished: list[Tile] = []
    found: list[Detections] = []
    skipped = len(tiles) - len(live)
    device = next(network.parameters()).device
    with torch.inference_mode(), autocast(device, settings.precision):
        while chosen := queue.take(settings.batch_size):
            batch = [_tile_tensor(image, tile) for tile in chosen]
            planes = [add_psf_planes(pixels, psf_fwhm) for pixels in batch] if with_psf else batch
            results = forward.run(batch, planes, [queue.can_split(tile) for tile in chosen])
            for tile, result in zip(chosen, results, strict=True):
                if result is None:
                    queue.split(tile)
                else:
                    found.append(_to_image(result, tile, queue.is_part(tile)))
                    finished.append(tile)
            if progress is not None:
                progress(skipped + queue.done, skipped + queue.total)
    clock = time.perf_counter()
    merged = _merge_tiles(found, finished, image.shape[1:], suppression)
    now = time.perf_counter()
    merged.timings = timings | {"seams": now - clock, "total": now - started}
    return merged


def _check_shapes(image: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_] | None, bands: int) -> None:
    if image.ndim != 3 or image.shape[0] != bands:
        raise ValueError(f"image has shape {image.shape}, the network wants ({bands}, y, x)")
    if valid is not None and valid.shape != image.shape[1:]:
        raise ValueError(f"valid has shape {valid.shape}, the image's is {image.shape[1:]}")


def _to_image(found: Detections, tile: Tile, is_part: bool) -> Detections:
    """Bring the detections of a tile to pixels of the image."""
    found.boxes += np.array([tile.x0, tile.y0, tile.x0, tile.y0], dtype=np.float32)
    found.origins += np.array([tile.y0, tile.x0], dtype=np.int32)
    found.soft_origins += np.array([tile.y0, tile.x0], dtype=np.int32)
    found.flag_limited |= is_part
    return found


class _TileQueue:
    """Tiles that wait; those that hold too many sources come back in quarters."""

    def __init__(self, tiles: Sequence[Tile], overlap: int, align: int, may_split: bool):
        self._align = align
        self._overlap = overlap
        self._waiting = deque(tiles)
        self._parts: set[Tile] = set()
        self._may_split = may_split
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
        return self._may_split and max(tile.height, tile.width) >= 2 * _SMALLEST_PART

    def split(self, tile: Tile) -> None:
        side = max(tile.height, tile.width)
        overlap = min(self._overlap, side // 4)
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


def _take(found: Candidates, index: Any) -> Candidates:
    """Choose some of them by an index of tensors."""
    return Candidates(*(column[index] for column in found))


class _Forward:
    """The network on a batch of tiles; boxes and masks in pixels of the tile."""

    def __init__(
        self,
        network: MaskRCNN,
        score_threshold: float | None,
        suppression: Suppression,
        calibration: Calibration | None,
        timings: dict[str, float],
    ):
        self._network = network
        self._heads = cast(RoIHeads, network.roi_heads)
        self._threshold = float(self._heads.score_thresh if score_threshold is None else score_threshold)
        self._most = int(self._heads.detections_per_img)
        self._suppression = suppression
        self._calibration = calibration
        self._timings = timings
        self._device = next(network.parameters()).device
        self._clock = time.perf_counter()

    def _count(self, stage: str) -> None:
        """Add the time since the last call to a stage; a GPU finishes first."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._timings[stage] += now - self._clock
        self._clock = now

    def run(
        self, batch: Sequence[Tensor], planes: Sequence[Tensor], splits: Sequence[bool]
    ) -> list[Detections | None]:
        """Detect; a tile that may be split and holds more than the limit has no result."""
        self._clock = time.perf_counter()
        images: ImageList
        images, _ = self._network.transform([pixels.to(self._device) for pixels in planes])
        features = self._network.backbone(images.tensors)
        proposals, _ = self._network.rpn(images, features)
        heads = self._heads
        pooled = heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes))
        logits, deltas = heads.box_predictor(pooled)
        chances = torch.softmax(logits.float(), dim=-1)
        boxes = heads.box_coder.decode(deltas.float(), list(proposals))
        self._count("forward")

        counts = [len(p) for p in proposals]
        kept, limited = [], []
        for pixels, chance, box in zip(batch, chances.split(counts), boxes.split(counts), strict=True):
            found = self._candidates(chance, box, (pixels.shape[1], pixels.shape[2]))
            index = self._suppression.in_tile(pixels, found)
            kept.append(_take(found, torch.from_numpy(index).to(self._device)))
            over = len(index) > self._most or self._proposals_ran_out(kept[-1], len(chance))
            limited.append(over)
        whole = [not (over and split) for over, split in zip(limited, splits, strict=True)]
        kept = [_take(item, slice(self._most if keep else 0)) for item, keep in zip(kept, whole, strict=True)]
        self._count("suppression")

        places = [item.boxes for item in kept]
        labels = torch.cat([item.labels for item in kept])
        mask_logits = heads.mask_predictor(
            heads.mask_head(heads.mask_roi_pool(features, places, images.image_sizes))
        )
        cells = mask_logits[torch.arange(len(labels), device=self._device), labels].float().sigmoid()
        self._count("forward")

        results: list[Detections | None] = []
        cells_of_tiles = cells.split([len(item.boxes) for item in kept])
        for item, part, size, over, keep in zip(
            kept, cells_of_tiles, images.image_sizes, limited, whole, strict=True
        ):
            results.append(self._paste(item, part, size, over) if keep else None)
        return results

    def _candidates(self, chances: Tensor, boxes: Tensor, size: tuple[int, int]) -> Candidates:
        """Choose the box of the likelier class of each proposal, and those over the threshold."""
        sources = chances[:, 1:]
        raw_star = sources[:, 0] / sources.sum(dim=1).clamp_min(1e-12)
        raw_scores = 1.0 - chances[:, 0]
        scores = torch.from_numpy(calibrate(raw_scores.cpu().numpy(), self._calibration, "score"))
        p_star = torch.from_numpy(calibrate(raw_star.cpu().numpy(), self._calibration, "p_star"))
        scores, p_star = scores.to(boxes.device), p_star.to(boxes.device)
        label = torch.where(p_star >= 0.5, STAR, GALAXY)
        chosen = boxes[torch.arange(len(boxes), device=boxes.device), label]
        chosen = clip_boxes_to_image(chosen, size)
        sides = chosen[:, 2:] - chosen[:, :2]
        index = torch.nonzero((scores >= self._threshold) & (sides >= 1.0).all(dim=1))[:, 0]
        ranks = torch.arange(len(boxes), device=boxes.device)
        return _take(Candidates(chosen, scores, p_star, label, ranks), index)

    def _proposals_ran_out(self, kept: Candidates, count: int) -> bool:
        """Whether more proposals, the likeliest of which are taken, would have brought more sources."""
        most = self._network.rpn.post_nms_top_n()
        if count < most:
            return False
        sure = kept.scores >= _SURE
        last = sure & (kept.ranks >= (1.0 - _LAST_PROPOSALS) * most)
        return int(last.sum()) > _CROWDED * int(sure.sum())

    def _paste(self, item: Candidates, cells: Tensor, size: tuple[int, int], over: bool) -> Detections:
        """Make the masks of a tile's detections."""
        index = self._suppression.by_masks(cells, item)
        if index is not None:
            rows = torch.from_numpy(index).to(self._device)
            item, cells = _take(item, rows), cells[rows]
        self._count("suppression")
        pasted = paste_soft_masks(cells, item.boxes, size, MASK_THRESHOLD)
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
        result = result.take(np.array([mask.size > 0 for mask in pasted.masks], dtype=bool))
        self._count("masks")
        return result


def _merge_tiles(
    found: Sequence[Detections], tiles: Sequence[Tile], shape: tuple[int, ...], suppression: Suppression
) -> Detections:
    """Put the tiles together so that each source is there once."""
    every = Detections.concatenate(found)
    tile_index = np.repeat(np.arange(len(tiles)), [len(item) for item in found])
    kept = seam_keep(every.boxes, every.scores, tile_index, tiles, shape[0], shape[1])
    # A blend may be detected otherwise in another tile, so that a source is there twice.
    again = suppression.at_seams(every.boxes[kept], every.scores[kept], tile_index[kept])
    return every.take(kept[again]).sorted()
