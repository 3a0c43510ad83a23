# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Losses of an `~..network.any_band.AnyBandNetwork`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import box_iou

from ..network.any_band import AnyBandNetwork, Features
from .ignore import ignored_share
from .losses import Crops, seeded_generator

_WEIGHTS = {"centre": 1.0, "offset": 0.5, "side": 0.3, "class": 1.0, "box": 0.5, "mask": 1.0, "blend": 0.5}
"""Of the losses in their sum."""

BAND_LOSS_NAMES = tuple(f"loss_{name}" for name in _WEIGHTS)

_UNIT = 8.0
_PEAKS, _ROIS, _MASKS = 64, 64, 32
"""Peaks of an image that are proposals, proposals and masks in the losses."""

STAR_WEIGHT = 5.0
"""Weight of stars in the loss of the classes. P(star) then is that of a field where stars are five times as
many as in the scenes: of the sources of S/N 10 to 50 one in four is a star there, and few faint ones of
these would reach 0.5."""

_LEAST_PEAK = 0.03
_BETA = 1 / 9


class BandLossNetwork(nn.Module):
    """A network for any bands that returns its losses.

    The seed, with the number of the first crop, decides which proposals are sampled.
    """

    def __init__(self, network: AnyBandNetwork, seed: int):
        super().__init__()
        self.network, self.seed = network, seed
        self.names = BAND_LOSS_NAMES

    def forward(self, crops: Crops) -> dict[str, Tensor]:
        """Compute the losses (`BAND_LOSS_NAMES`) with their weights, float32, (image,).

        Each is a mean over all sources of the crops, the same for every image.
        """
        generator = seeded_generator(self.seed, crops.numbers[0])
        features = self.network.features(crops.images)
        losses = _centre_losses(features, crops.targets)
        losses.update(_source_losses(self.network, features, crops.targets, generator))
        count = len(crops.images)
        return {f"loss_{name}": (weight * losses[name]).expand(count) for name, weight in _WEIGHTS.items()}


def _centre_losses(features: Features, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    maps = features.centres.float()
    wanted, weight = torch.zeros_like(maps[:, 0]), torch.ones_like(maps[:, 0])
    offsets, sides, shares = [], [], []
    positives = maps.new_zeros(())
    for number, target in enumerate(targets):
        heat, own, cells = _draw_targets(target, maps.shape[-2:])
        wanted[number], weight[number] = heat, own
        # Where the map may peak instead of at the very cell, boxes are asked for too.
        rows, columns, which, share = cells
        positives = positives + (heat == 1).sum()
        if len(rows):
            value = maps[number, :, rows, columns]
            middle = torch.stack([columns, rows], dim=1)
            centres, boxes = target["centres"][which], target["boxes"][which]
            aim = centres - middle
            offsets.append((value[1:3].T - aim).abs().sum(dim=1) * share)
            reach = torch.cat([middle + 0.5 - boxes[:, :2], boxes[:, 2:] - middle - 0.5], dim=1)
            reach = torch.log(reach.clamp_min(0.5) / _UNIT)
            sides.append(F.smooth_l1_loss(value[3:7].T, reach, beta=0.1, reduction="none").sum(dim=1) * share)
            shares.append(share)
    logits = maps[:, 0]
    chance = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    hit = (wanted == 1).float()
    found = -((1 - chance) ** 2) * F.logsigmoid(logits) * hit
    missed = -((1 - wanted) ** 4) * chance**2 * F.logsigmoid(-logits) * (1 - hit) * weight
    total = positives.clamp_min(8.0)
    zero = maps.sum() * 0.0
    count = torch.cat(shares).sum().clamp_min(1.0) if shares else maps.new_ones(())
    return {
        "centre": (found.sum() + missed.sum()) / total,
        "offset": torch.cat(offsets).sum() / count if offsets else zero,
        "side": torch.cat(sides).sum() / count if sides else zero,
    }


def _draw_targets(
    target: dict[str, Tensor], shape: torch.Size | tuple[int, int]
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Heat and weight of the cells of an image, and the cells that have a box."""
    height, width = shape
    device = target["centres"].device
    heat = torch.zeros(height, width, device=device)
    weight = torch.ones_like(heat)
    known = target["known"].float()
    weight[: known.shape[0], : known.shape[1]] = known
    weight[known.shape[0] :], weight[:, known.shape[1] :] = 0.0, 0.0
    y, x = (torch.arange(side, dtype=torch.float32, device=device) for side in shape)
    fwhm = float(target["fwhm"])
    if len(target["ignore_centres"]):
        at = target["ignore_centres"]
        radius = max(fwhm, 2.0)
        near = ((x - at[:, :1])[:, None, :] ** 2 + (y - at[:, 1:])[:, :, None] ** 2 < radius**2).any(dim=0)
        weight[near] = 0.0
    centres, boxes = target["centres"], target["boxes"]
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    if not len(centres):
        return heat, weight, (empty, empty, empty, heat[0, :0])
    size = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1)
    sigma = (0.06 * size).clamp(max(0.8, 0.2 * fwhm), 5.0)
    cell = centres.round().long().clamp_min(0)
    cell = torch.minimum(cell, cell.new_tensor([width - 1, height - 1]))
    across = torch.exp(-0.5 * ((x - cell[:, :1]) / sigma[:, None]) ** 2)
    along = torch.exp(-0.5 * ((y - cell[:, 1:]) / sigma[:, None]) ** 2)
    heat, which = (along[:, :, None] * across[:, None, :]).max(dim=0)
    heat[cell[:, 1], cell[:, 0]] = 1.0
    rows, columns = torch.nonzero(heat > 0.3, as_tuple=True)
    # Two sources in a cell: the nearer one has it.
    return heat, weight, (rows, columns, which[rows, columns], heat[rows, columns])


def _source_losses(
    network: AnyBandNetwork, features: Features, targets: list[dict[str, Tensor]], generator: torch.Generator
) -> dict[str, Tensor]:
    with torch.no_grad():
        proposals = network.propose(features, _LEAST_PEAK, _PEAKS)
        chosen = [
            _sample(item.boxes, item.positions, target, generator)
            for item, target in zip(proposals, targets, strict=True)
        ]
    boxes, positions = [item[0] for item in chosen], [item[1] for item in chosen]
    labels, matched = torch.cat([item[2] for item in chosen]), [item[3] for item in chosen]
    logits, deltas, blend = network.classify(features, boxes, positions)
    logits, deltas, blend = logits.float(), deltas.float(), blend.float()
    positive = torch.where(labels > 0)[0]
    zero = logits.sum() * 0.0
    weights = logits.new_tensor([1.0, STAR_WEIGHT, 1.0])
    losses = {"class": F.cross_entropy(logits, labels, weights) if len(labels) else zero}
    losses.update(box=zero + deltas.sum() * 0.0, blend=zero + blend.sum() * 0.0, mask=zero)
    if not len(positive):
        # Several processes wait for a gradient of every parameter.
        losses["mask"] = zero + sum(item.sum() for item in network.parameters()) * 0.0
        return losses
    known = [(target, match) for target, match in zip(targets, matched) if len(target["boxes"])]
    truth = torch.cat([target["boxes"][match] for target, match in known])
    inside = torch.cat([item[item_labels > 0] for item, (_, _, item_labels, _) in zip(boxes, chosen)])
    aim = network.box_coder.encode_single(truth, inside)
    offsets = deltas.view(len(labels), -1, 4)[positive, labels[positive]]
    losses["box"] = F.smooth_l1_loss(offsets, aim, beta=_BETA, reduction="sum") / len(positive)
    mixed = torch.cat([target["blended"][match] for target, match in known])
    losses["blend"] = F.binary_cross_entropy_with_logits(blend[positive], mixed.float())
    few_boxes, few_truths, few_labels = [], [], []
    for (box, _, label, match), target in zip(chosen, targets):
        at = torch.where(label > 0)[0]
        pick = _shuffle(at, generator)[:_MASKS]
        few_boxes.append(box[at[pick]])
        few_labels.append(label[at[pick]])
        if len(pick):
            few_truths.append(project_masks_on_boxes(target["masks"], box[at[pick]], match[pick], 28))
    shapes = network.masks(features, few_boxes).float()
    index = torch.cat(few_labels)
    rows = torch.arange(len(index), device=index.device)
    losses["mask"] = F.binary_cross_entropy_with_logits(shapes[rows, index], torch.cat(few_truths))
    return losses


def _shuffle(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Draw on the CPU, so that all devices train on the same sources."""
    return torch.randperm(len(rows), generator=generator).to(rows.device)


def _sample(
    boxes: Tensor, positions: Tensor, target: dict[str, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Choose proposals; labels, and for the positive ones which source they match."""
    sources, centres = target["boxes"], target["centres"]
    count = len(sources)
    if count:
        # Sources that have no peak yet, and boxes as wrong as those of peaks are.
        size = (sources[:, 2:] - sources[:, :2]).repeat(1, 2)
        noise = torch.randn(count, 4, generator=generator).to(size) * 0.07 * size
        jitter = torch.randn(count, 2, generator=generator).to(size) * 0.4
        boxes = torch.cat([boxes, sources + noise])
        positions = torch.cat([positions, centres + jitter])
    large = (boxes[:, 2:] - boxes[:, :2] >= 1.0).all(dim=1)
    boxes, positions = boxes[large], positions[large]
    labels = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    match = torch.zeros_like(labels)
    if count and len(boxes):
        overlap, match = box_iou(boxes, sources).max(dim=1)
        labels = torch.where(overlap >= 0.5, target["labels"][match], labels)
        # Neither right nor wrong.
        labels[(overlap >= 0.3) & (overlap < 0.5)] = -1
    share = ignored_share(boxes, target["ignore_boxes"])
    labels[(labels == 0) & (share > 0.5)] = -1
    positive, negative = torch.where(labels > 0)[0], torch.where(labels == 0)[0]
    positive = positive[_shuffle(positive, generator)[: _ROIS // 2]]
    negative = negative[_shuffle(negative, generator)[: _ROIS - len(positive)]]
    index = torch.cat([positive, negative])
    return boxes[index], positions[index], labels[index], match[positive]
