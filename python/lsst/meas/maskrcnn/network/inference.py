# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection with networks of fixed bands."""

from __future__ import annotations

__all__ = ["DetectionSettings"]

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
from torchvision.ops import clip_boxes_to_image, nms

from ..images.classes import GALAXY, STAR
from ..images.settings import settings
from ..images.tiles import Tile
from .calibration import Calibration, calibrate
from .detections import Detections
from .masks import paste_soft_masks
from .psf import USUAL_FWHM, add_psf_planes
from .tile_detection import detect_in_tiles, tiles_at_once

_CONCENTRIC, _CONTAINED = 0.25, 0.7
"""Distance of two middles, in sides of the smaller box, up to which, and share of the smaller box in the
larger one, from which two boxes are on one source."""

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
            "takes the model's default, and in models of any bands keeps bright light that is in no other "
            "source whatever its probability.",
        ),
    ] = None
    min_area: Annotated[int, Field(ge=1, description="Fewest pixels of a mask that is kept.")] = 1
    tile_size: Annotated[
        int, Field(ge=64, description="Side of the square tiles that the network is given (px).")
    ] = 512
    tile_overlap: Annotated[int, Field(ge=0, description="Pixels that neighbouring tiles share.")] = 64
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


def select_device(name: str) -> torch.device:
    """Choose where to compute: ``cpu``, ``cuda`` (or ``cuda:N``), or ``auto``, a GPU where there is one.

    A ValueError is raised if the device is not there or the name is not known.
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
    """Make the context that computes in ``float32``, ``bfloat16`` or, by ``auto``, what is in hardware."""
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
    """Find the sources of a normalised image, float32, (band, y, x), finite, tile by tile.

    The network is in evaluation mode, as `MaskRcnnModel.build` returns it. Tiles without usable pixels,
    ``valid``, (y, x), are skipped. Without a score threshold in the settings that of the network holds. The
    calibration takes scores and P(star) to probabilities before anything is decided. Widths of the PSF,
    (band,), px, are for `~.psf.add_psf_planes`. ``progress`` is called with the number of tiles done and the
    number of tiles. A ValueError is raised if the arrays are not of these shapes, or not finite.

    Sources are by descending score; equal scores by y, then x. Of two boxes that overlap by more than the
    network's threshold, or of which one lies on the middle of the other, the one of higher score is kept,
    whatever their classes.
    """
    settings = settings or DetectionSettings()
    with_psf = bool(getattr(network, "psf_channels", False))
    _check_shapes(image, valid, cast(Any, network.backbone).body.conv1.in_channels // (2 if with_psf else 1))
    forward = _Forward(network, settings, calibration)
    device = next(network.parameters()).device
    widths = np.asarray(np.nan if psf_fwhm is None else psf_fwhm, float).ravel()
    known = widths[np.isfinite(widths)]

    def detect_tiles(tiles: list[Tile]) -> list[Detections]:
        live = [tile for tile in tiles if valid is None or valid[tile.slices].any()]
        batch = [_tile_tensor(image, tile) for tile in live]
        if with_psf:
            batch = [add_psf_planes(pixels, psf_fwhm) for pixels in batch]
        found = dict(zip(live, forward.run(batch), strict=True)) if live else {}
        return [
            found[tile].moved(tile.y0, tile.x0) if tile in found else Detections.empty() for tile in tiles
        ]

    with torch.inference_mode(), autocast(device, settings.precision):
        return detect_in_tiles(
            detect_tiles,
            (image.shape[1], image.shape[2]),
            float(np.median(known)) if len(known) else USUAL_FWHM,
            size=settings.tile_size,
            overlap=settings.tile_overlap,
            # Overlapping tiles give the same there if they begin on one grid.
            align=int(cast(Any, network.transform).divisor),
            together=tiles_at_once(device),
            progress=progress,
        )


def _check_shapes(image: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_] | None, bands: int) -> None:
    if image.ndim != 3 or image.shape[0] != bands:
        raise ValueError(f"image has shape {image.shape}, the network wants ({bands}, y, x)")
    if valid is not None and valid.shape != image.shape[1:]:
        raise ValueError(f"valid has shape {valid.shape}, the image's is {image.shape[1:]}")


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

    def __init__(self, network: MaskRCNN, settings: DetectionSettings, calibration: Calibration | None):
        self._network = network
        self._heads = cast(RoIHeads, network.roi_heads)
        threshold = settings.score_threshold
        self._threshold = float(self._heads.score_thresh if threshold is None else threshold)
        self.overlap = float(self._heads.nms_thresh)
        self._most = int(self._heads.detections_per_img)
        self._calibration = calibration
        self._device = next(network.parameters()).device

    def run(self, batch: Sequence[Tensor]) -> list[Detections]:
        """Detect on tiles, (plane, y, x) each."""
        images: ImageList
        images, _ = self._network.transform([pixels.to(self._device) for pixels in batch])
        features = self._network.backbone(images.tensors)
        proposals, _ = self._network.rpn(images, features)
        heads = self._heads
        pooled = heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes))
        logits, deltas = heads.box_predictor(pooled)
        chances = torch.softmax(logits.float(), dim=-1)
        boxes = heads.box_coder.decode(deltas.float(), list(proposals))

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

        places = [item.boxes for item in kept]
        labels = torch.cat([item.labels for item in kept])
        mask_logits = heads.mask_predictor(
            heads.mask_head(heads.mask_roi_pool(features, places, images.image_sizes))
        )
        cells = mask_logits[torch.arange(len(labels), device=self._device), labels].float().sigmoid()

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
        result = Detections(
            item.boxes.cpu().numpy(),
            item.scores.cpu().numpy(),
            item.p_star.cpu().numpy(),
            **paste_soft_masks(cells, item.boxes, size)._asdict(),
            flag_limited=np.full(len(item.boxes), over),
        )
        return result.take(np.array([mask.size > 0 for mask in result.masks], dtype=bool))


def _keep_best(
    boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], overlap: float
) -> npt.NDArray[np.int64]:
    """Keep the best of boxes that overlap, and of those with one middle; indices by descending score."""
    # Equal scores in the order of their places.
    order = np.lexsort((boxes[:, 2], boxes[:, 3], boxes[:, 0], boxes[:, 1], -scores))
    kept = nms(torch.from_numpy(boxes[order]), torch.from_numpy(scores[order]), overlap).numpy()
    best: list[int] = []
    for index in order[np.sort(kept)].tolist():
        if not _concentric(boxes[best].astype(float), boxes[index].astype(float)).any():
            best.append(index)
    return np.array(best, np.int64)


def _concentric(boxes: npt.NDArray[np.float64], box: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Say which of some boxes, (N, 4), and another one lie one on the middle of the other.

    The mask of a star reaches much farther than that of a galaxy of the same size (0.005
    and 0.08 of the peak in the published rule), so that a source which is taken for both
    has two boxes whose IoU is small.
    """
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    smaller = np.minimum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), (box[2:] - box[:2]).prod())
    offset = (boxes[:, :2] + boxes[:, 2:] - box[:2] - box[2:]) / 2
    near = np.hypot(offset[:, 0], offset[:, 1]) <= _CONCENTRIC * np.sqrt(smaller)
    return near & (np.clip(high - low, 0.0, None).prod(axis=1) >= _CONTAINED * smaller)
