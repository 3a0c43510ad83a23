# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Mask R-CNN for any bands, whose proposals are the centres of sources.

The first convolution has a bank of filters; a band's own filters are a mixture
of these by its wavelength, PSF and noise. Bands are summed, so neither their
number nor their order matters, and a pixel without data in one band is left out
there. Proposals are the peaks of a map of the centres of sources, with the pixels of
the image (as in CenterNet2, Zhou et al. 2021, arXiv:2103.07461):
one peak is one source, and two sources one FWHM apart are two peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from ..images.classes import CLASS_NAMES
from .band_layers import (
    FIELD,
    PLANES,
    SIDE,
    UNIT,
    Bands,
    BandStem,
    CentreHead,
    OutlineHead,
    StampHead,
    start_at_zero,
)

_Count = Annotated[int, Field(gt=0)]

_MASKS_AT_ONCE = 64
"""Masks that are computed together: each takes some 0.8 MB on its way."""


class AnyBandSpec(BaseModel):
    """Architecture of an `AnyBandNetwork`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["any-band"] = "any-band"
    filters: _Count = 6
    """Filters in the bank for each feature of the first convolution."""

    fpn_channels: _Count = 64
    box_features: _Count = 256
    stamp_features: _Count = 64
    mask_channels: tuple[_Count, ...] = (64, 64)
    proposals: _Count = 1000
    """Largest number of sources in an image."""

    divisor: int = 16

    detection_score: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.35
    """Default for the smallest score that is reported."""


class BandProposals(NamedTuple):
    """Peaks of the map of centres of an image, the likeliest first."""

    boxes: Tensor
    """[x0, y0, x1, y1], (peak, 4), px."""

    positions: Tensor
    """(x, y), (peak, 2), px; 0 is the middle of the first pixel."""

    scores: Tensor
    """Probability of a source there, (peak,)."""


class Features(NamedTuple):
    """What the heads of a batch look at."""

    bands: Bands
    levels: dict[str, Tensor]
    centres: Tensor
    """The map of centres, (image, 7, y, x)."""

    sizes: list[tuple[int, int]]


def _pool(cells: int) -> MultiScaleRoIAlign:
    """Pooling of the levels' features at the scales that they have."""
    pool = MultiScaleRoIAlign(["0", "1", "2"], output_size=cells, sampling_ratio=1)
    pool.scales = [0.25, 0.125, 0.0625]
    pool.map_levels = LevelMapper(2, 4, pool.canonical_scale, pool.canonical_level)
    return pool


class AnyBandNetwork(nn.Module):
    """Mask R-CNN for any number of bands."""

    def __init__(self, spec: AnyBandSpec):
        super().__init__()
        self.spec = spec
        channels = spec.fpn_channels
        body = resnet.resnet18(weights=None)
        self.stem = BandStem(spec.filters)
        self.norm = nn.BatchNorm2d(64)
        layers = {name: getattr(body, name) for name in ("layer1", "layer2", "layer3")}
        self.body = nn.ModuleDict(layers)
        self.fpn = FeaturePyramidNetwork([64, 128, 256], channels)
        self.centre_head = CentreHead(channels)
        self.box_pool = _pool(7)
        self.box_head = TwoMLPHead(channels * 49, spec.box_features)
        self.stamp_head = StampHead(spec.stamp_features)
        width = spec.box_features + 2 * spec.stamp_features
        classes = 1 + len(CLASS_NAMES)
        self.hidden = nn.Linear(width, spec.box_features)
        self.hidden_block = nn.Sequential(
            nn.Linear(spec.box_features, spec.box_features),
            nn.ReLU(),
            nn.Linear(spec.box_features, spec.box_features),
        )
        start_at_zero(self.hidden_block)
        self.field = nn.Sequential(nn.Linear(FIELD, 32), nn.ReLU(), nn.Linear(32, spec.box_features))
        start_at_zero(self.field)
        self.classes = nn.Linear(spec.box_features, classes)
        self.box_deltas = nn.Linear(spec.box_features, 4 * classes)
        self.blend = nn.Linear(spec.box_features, 1)
        self.mask_pool = _pool(14)
        self.mask_head = MaskRCNNHeads(channels, list(spec.mask_channels), 1)
        self.mask_predictor = MaskRCNNPredictor(spec.mask_channels[-1], spec.mask_channels[-1], classes)
        self.outline_head = OutlineHead(channels)
        # Boxes are those of the masks, of one band.
        self.mask_band = nn.Linear(SIDE, spec.box_features)
        start_at_zero(self.mask_band)
        self.box_coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, images: list[Tensor]) -> Features:
        """Compute the features of images of any numbers of bands, of `~.band_layers.pack_bands`."""
        batch, sizes = _stack(images, self.spec.divisor)
        bands = Bands.of(batch)
        stem = F.relu(self.norm(self.stem(bands)))
        x = F.max_pool2d(stem, 3, stride=2, padding=1)
        levels = {}
        for number, name in enumerate(("layer1", "layer2", "layer3")):
            x = self.body[name](x)
            levels[str(number)] = x
        levels = self.fpn(levels)
        return Features(bands, levels, self.centre_head(levels["0"], stem), sizes)

    def propose(self, features: Features, least: float | Sequence[Tensor], most: int) -> list[BandProposals]:
        """Find the peaks of the map of centres of each image.

        They have at least some probability, one for all or one for each pixel, (y, x), of each image; of an
        image the ``most`` likeliest are returned.
        """
        maps = features.centres.float()
        if isinstance(least, float):
            least = [maps.new_full(size, least) for size in features.sizes]
        chance = maps[:, 0].sigmoid()
        peak = chance == F.max_pool2d(chance[:, None], 3, stride=1, padding=1)[:, 0]
        proposals = []
        for values, is_peak, scores, lowest in zip(maps, peak, chance, least):
            height, width = lowest.shape
            enough = is_peak[:height, :width] & (scores[:height, :width] >= lowest)
            rows, columns = torch.nonzero(enough, as_tuple=True)
            score, order = scores[rows, columns].sort(descending=True, stable=True)
            order, score = order[:most], score[:most]
            rows, columns = rows[order], columns[order]
            boxes, positions = decode_cells(values[:, rows, columns], rows, columns)
            limit = boxes.new_tensor([width, height, width, height])
            boxes = torch.minimum(boxes.clamp_min(0.0), limit)
            proposals.append(BandProposals(boxes, positions, score))
        return proposals

    def classify(
        self, features: Features, boxes: list[Tensor], positions: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Classify sources by their boxes, (source, 4), and positions (x, y), (source, 2), in each image, px.

        Returns logits of background, star and galaxy, (source, 3); corrections of the boxes, (source, 12);
        and the logit of being a blend, (source,).
        """
        pooled = self.box_head(self.box_pool(features.levels, boxes, features.sizes))
        stamps = self.stamp_head(features.bands, positions)
        hidden = pooled + self.hidden(torch.cat([pooled, stamps], dim=1))
        bands = features.bands
        side = self.mask_band(bands.side()[torch.arange(len(boxes)), bands.mask_band()])
        lengths = torch.tensor([len(item) for item in boxes], device=side.device)
        hidden = F.relu(hidden + torch.repeat_interleave(side + self.field(bands.field()), lengths, dim=0))
        hidden = F.relu(hidden + self.hidden_block(hidden))
        return self.classes(hidden), self.box_deltas(hidden), self.blend(hidden)[:, 0]

    def masks(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """Compute the masks of boxes in each image, (source, 4), px: logits, (source, class, 28, 28)."""
        pooled = self.mask_pool(features.levels, boxes, features.sizes)
        inputs = pooled, *self.outline_head(features.bands, boxes)
        parts = zip(*(item.split(_MASKS_AT_ONCE) for item in inputs))
        return torch.cat([self._masks_of(*part) for part in parts])

    def _masks_of(self, pooled: Tensor, factor: Tensor, summand: Tensor, cells: Tensor) -> Tensor:
        found = self.mask_predictor.conv5_mask(self.mask_head(pooled * factor + summand))
        found = F.relu(found + self.outline_head.pixels(cells))
        return cast(Tensor, self.mask_predictor.mask_fcn_logits(found))


def decode_cells(values: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Read boxes, (cell, 4), and positions (x, y), (cell, 2), px, from the map of centres, (7, cell)."""
    middle = torch.stack([columns, rows], dim=1)
    positions = middle + values[1:3].T
    sides = UNIT * values[3:7].T.clamp(-4.0, 4.0).exp()
    corner = middle + 0.5
    return torch.cat([corner - sides[:, :2], corner + sides[:, 2:]], dim=1), positions


def _stack(images: list[Tensor], divisor: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Pad images, and their bands, to one shape."""
    sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
    height, width = (-(-max(size[axis] for size in sizes) // divisor) * divisor for axis in (0, 1))
    if len(images) == 1 and sizes[0] == (height, width):
        return images[0][None], sizes
    count = max(len(image) for image in images) // PLANES
    batch = images[0].new_zeros((len(images), PLANES, count, height, width))
    for target, image in zip(batch, images, strict=True):
        planes = image.reshape(PLANES, -1, *image.shape[-2:])
        own = planes.shape[1]
        target[:2, :own, : image.shape[-2], : image.shape[-1]] = planes[:2]
        target[2:, :own] = planes[2:, :, :1, :1]
    return batch.reshape(len(images), PLANES * count, height, width), sizes
