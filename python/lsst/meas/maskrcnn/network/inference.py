# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection on images of any size: tiles, batches, masks and seams."""

from __future__ import annotations

__all__ = ["DetectionSettings", "autocast", "detect", "select_device"]

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
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
from torchvision.ops import clip_boxes_to_image, nms

from ..images.classes import GALAXY, STAR
from ..images.settings import settings
from ..images.tiles import Tile, concentric, make_tiles, overlapping_pairs, seam_keep
from .calibration import Calibration, calibrate
from .detections import Detections
from .masks import MASK_THRESHOLD, paste_soft_masks
from .psf import add_psf_planes

_SURE, _LAST_PROPOSALS, _CROWDED = 0.5, 0.1, 0.05
"""The proposals of a tile did not suffice if of the sources of at least the first
score, more than the last share come from the last proposals, which are this share
of all. The tenth proposals bring 0.1 to 3 % on scenes at the depths of surveys, 8 %
in crowded fields."""


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


class _Candidates(NamedTuple):
    """Boxes of a tile that may be sources, (candidate, ...), by descending score."""

    boxes: Tensor
    scores: Tensor
    """Calibrated probability of being a source."""
    p_star: Tensor
    """Calibrated probability that a source is a star."""
    labels: Tensor
    ranks: Tensor
    """Places among the proposals, the likeliest of which are first."""


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


def detect(
    network: MaskRCNN,
    image: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_] | None = None,
    settings: DetectionSettings | None = None,
    *,
    calibration: Calibration | None = None,
    psf_fwhm: npt.ArrayLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Detections:
    """Find the sources of a normalised image, tile by tile.

    Parameters
    ----------
    network : `torchvision.models.detection.MaskRCNN`
        A network in evaluation mode, as `MaskRcnnModel.build` returns it.
    image : `numpy.ndarray`
        Normalised image, float32, (band, y, x), finite.
    valid : `numpy.ndarray`, optional
        Usable pixels, bool, (y, x). Tiles without any are skipped.
    settings : `DetectionSettings`, optional
        How to detect; without a score threshold that of the network.
    calibration : `~.calibration.Calibration`, optional
        Takes scores and P(star) to probabilities before anything is decided.
    psf_fwhm : array_like, optional
        Widths of the PSF, (band,), px, for `~.psf.add_psf_planes`.
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

    Notes
    -----
    Of two boxes that overlap by more than the network's threshold, or of which
    one lies on the middle of the other, the one of higher score is kept,
    whatever their classes.
    """
    settings = settings or DetectionSettings()
    with_psf = bool(getattr(network, "psf_channels", False))
    _check_shapes(image, valid, cast(Any, network.backbone).body.conv1.in_channels // (2 if with_psf else 1))
    started = time.perf_counter()
    timings = dict.fromkeys(("forward", "suppression", "masks", "seams"), 0.0)
    height, width = image.shape[1:]
    # Overlapping tiles give the same there if they begin on one grid.
    divisor = int(cast(Any, network.transform).divisor)
    tiles = make_tiles(height, width, settings.tile_size, settings.tile_overlap, divisor)
    live = [tile for tile in tiles if valid is None or valid[tile.slices].any()]
    forward = _Forward(network, settings, calibration, timings)
    found: list[Detections] = []
    device = next(network.parameters()).device
    with torch.inference_mode(), autocast(device, settings.precision):
        for chosen in _batches(live, settings.batch_size, divisor):
            batch = [_tile_tensor(image, tile) for tile in chosen]
            if with_psf:
                batch = [add_psf_planes(pixels, psf_fwhm) for pixels in batch]
            found += [_to_image(item, tile) for item, tile in zip(forward.run(batch), chosen, strict=True)]
            if progress is not None:
                progress(len(tiles) - len(live) + len(found), len(tiles))
    clock = time.perf_counter()
    merged = _merge_tiles(found, live, (height, width), forward.overlap)
    now = time.perf_counter()
    merged.timings = timings | {"seams": now - clock, "total": now - started}
    return merged


def _check_shapes(image: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_] | None, bands: int) -> None:
    if image.ndim != 3 or image.shape[0] != bands:
        raise ValueError(f"image has shape {image.shape}, the network wants ({bands}, y, x)")
    if valid is not None and valid.shape != image.shape[1:]:
        raise ValueError(f"valid has shape {valid.shape}, the image's is {image.shape[1:]}")


def _batches(tiles: Sequence[Tile], most: int, align: int) -> Iterator[list[Tile]]:
    """Group tiles in a row, all of one size when padded for the network."""
    for _, group in itertools.groupby(
        tiles, lambda tile: (-(-tile.height // align), -(-tile.width // align))
    ):
        while batch := list(itertools.islice(group, most)):
            yield batch


def _to_image(found: Detections, tile: Tile) -> Detections:
    """Bring the detections of a tile to pixels of the image."""
    found.boxes += np.array([tile.x0, tile.y0, tile.x0, tile.y0], dtype=np.float32)
    found.origins += np.array([tile.y0, tile.x0], dtype=np.int32)
    found.soft_origins += np.array([tile.y0, tile.x0], dtype=np.int32)
    return found


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


def _take(found: _Candidates, index: Any) -> _Candidates:
    """Choose some of them by an index of tensors."""
    return _Candidates(*(column[index] for column in found))


class _Forward:
    """The network on a batch of tiles; boxes and masks in pixels of the tile."""

    def __init__(
        self,
        network: MaskRCNN,
        settings: DetectionSettings,
        calibration: Calibration | None,
        timings: dict[str, float],
    ):
        self._network = network
        self._heads = cast(RoIHeads, network.roi_heads)
        threshold = settings.score_threshold
        self._threshold = float(self._heads.score_thresh if threshold is None else threshold)
        self.overlap = float(self._heads.nms_thresh)
        self._most = int(self._heads.detections_per_img)
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

    def run(self, batch: Sequence[Tensor]) -> list[Detections]:
        """Detect on tiles, (plane, y, x) each."""
        self._clock = time.perf_counter()
        images: ImageList
        images, _ = self._network.transform([pixels.to(self._device) for pixels in batch])
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
        for size, chance, box in zip(
            images.image_sizes, chances.split(counts), boxes.split(counts), strict=True
        ):
            found = self._candidates(chance, box, size)
            index = _keep_best(found.boxes.cpu().numpy(), found.scores.cpu().numpy(), self.overlap)
            best = _take(found, torch.from_numpy(index).to(self._device))
            limited.append(len(index) > self._most or self._proposals_ran_out(best, len(chance)))
            kept.append(_take(best, slice(self._most)))
        self._count("suppression")

        places = [item.boxes for item in kept]
        labels = torch.cat([item.labels for item in kept])
        mask_logits = heads.mask_predictor(
            heads.mask_head(heads.mask_roi_pool(features, places, images.image_sizes))
        )
        cells = mask_logits[torch.arange(len(labels), device=self._device), labels].float().sigmoid()
        self._count("forward")

        cells_of_tiles = cells.split([len(item.boxes) for item in kept])
        return [
            self._paste(*parts)
            for parts in zip(kept, cells_of_tiles, images.image_sizes, limited, strict=True)
        ]

    def _candidates(self, chances: Tensor, boxes: Tensor, size: tuple[int, int]) -> _Candidates:
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
        return _take(_Candidates(chosen, scores, p_star, label, ranks), index)

    def _proposals_ran_out(self, kept: _Candidates, count: int) -> bool:
        """Whether more proposals, the likeliest of which are taken, would have brought more sources."""
        most = self._network.rpn.post_nms_top_n()
        if count < most:
            return False
        sure = kept.scores >= _SURE
        last = sure & (kept.ranks >= int((1.0 - _LAST_PROPOSALS) * most))
        return int(last.sum()) > _CROWDED * int(sure.sum())

    def _paste(self, item: _Candidates, cells: Tensor, size: tuple[int, int], over: bool) -> Detections:
        """Make the masks of a tile's detections."""
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
    found: Sequence[Detections], tiles: Sequence[Tile], shape: tuple[int, int], overlap: float
) -> Detections:
    """Put the tiles together so that each source is there once."""
    every = Detections.concatenate(found)
    tile_index = np.repeat(np.arange(len(tiles)), [len(item) for item in found])
    kept = seam_keep(every.boxes, every.scores, tile_index, tiles, *shape)
    # A blend may be detected otherwise in another tile, so that a source is there twice.
    boxes, tile_index = every.boxes[kept], tile_index[kept]
    order = _by_score(boxes, every.scores[kept])
    first, second, ratio = _overlaps(boxes[order])
    same = (ratio > overlap) | concentric(boxes[order[first]], boxes[order[second]])
    same &= tile_index[order[first]] != tile_index[order[second]]
    return every.take(kept[order[_drop_second(len(order), first[same], second[same])]]).sorted()


def _keep_best(
    boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], overlap: float
) -> npt.NDArray[np.int64]:
    """Keep the best of boxes that overlap, and of those with one middle; indices by descending score."""
    order = _by_score(boxes, scores)
    kept = nms(torch.from_numpy(boxes[order]), torch.from_numpy(scores[order]), overlap).numpy()
    order = order[np.sort(kept)]
    first, second, _ = _overlaps(boxes[order])
    same = concentric(boxes[order[first]], boxes[order[second]])
    return order[_drop_second(len(order), first[same], second[same])]


def _by_score(boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Order boxes by score, and by position where scores are equal."""
    return np.lexsort((boxes[:, 2], boxes[:, 3], boxes[:, 0], boxes[:, 1], -scores))


def _overlaps(
    boxes: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Find the pairs i < j of boxes that overlap, and their IoU."""
    if len(boxes) < 2:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, np.zeros(0)
    corners = boxes.astype(np.float64)
    pairs = [(i[i < j], j[i < j]) for i, j in overlapping_pairs(corners, corners)]
    first, second = (np.concatenate(part) for part in zip(*pairs, strict=True))
    area = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    low = np.maximum(corners[first, :2], corners[second, :2])
    high = np.minimum(corners[first, 2:], corners[second, 2:])
    both = np.prod(np.maximum(high - low, 0.0), axis=1)
    return first, second, both / np.maximum(area[first] + area[second] - both, 1e-12)


def _drop_second(
    count: int, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Drop the second of each pair whose first is kept, first ones first; indices of those kept."""
    keep = np.ones(count, dtype=bool)
    order = np.argsort(first, kind="stable")
    values, starts = np.unique(first[order], return_index=True)
    for i, seconds in zip(values.tolist(), np.split(second[order], starts[1:]), strict=False):
        if keep[i]:
            keep[seconds] = False
    return np.flatnonzero(keep)
