# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Losses of a Mask R-CNN, image by image.

torchvision's own losses are means over all that was sampled in a batch, by
draws from torch's global generator: cut the batch into parts and neither the
draws nor the means are the same. Here every image has its own mean and its own
draws, which depend on the run and the number of its crop alone. So the loss of
a batch, the mean over its images, is the same however the batch is spread over
processes, and a step can be repeated exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.models.detection.rpn import concat_box_prediction_layers

from .ignore import exclude_ignored

LOSS_NAMES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
"""Names of the losses, as torchvision has them."""

_BETA = 1 / 9


# No dataclass, list or dict, because Lightning Fabric would look into it and round the boxes to bfloat16.
class Crops:
    """Crops of one pass, float32, (plane, y, x), their targets, and their numbers.

    Targets have ``boxes``, ``labels``, ``masks`` and perhaps ``ignore_boxes``.
    """

    def __init__(self, images: list[Tensor], targets: list[dict[str, Tensor]], numbers: list[int]):
        self.images = images
        self.targets = targets
        self.numbers = numbers

    def map(self, function: Any) -> Crops:
        """Make a copy with changed tensors."""
        return Crops(
            [function(image) for image in self.images],
            [{key: function(value) for key, value in target.items()} for target in self.targets],
            self.numbers,
        )

    def split(self, parts: int) -> list[Crops]:
        """Cut into parts of one size; the number of crops must be a multiple of that of parts."""
        size = len(self.images) // parts
        cuts = [slice(k * size, (k + 1) * size) for k in range(parts)]
        return [Crops(self.images[cut], self.targets[cut], self.numbers[cut]) for cut in cuts]


def seeded_generator(*numbers: int) -> torch.Generator:
    """Make a generator of torch whose draws some numbers decide, none of them below 0."""
    words = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) >> 1)


@dataclass
class _Sampler:
    """torchvision's `BalancedPositiveNegativeSampler` with draws of its own for every image."""

    batch_size_per_image: int
    positive_fraction: float
    stream: int
    seed: int
    numbers: Sequence[int] = ()

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positives, negatives = [], []
        for number, matched in zip(self.numbers, matched_idxs, strict=True):
            generator = seeded_generator(self.seed, number, self.stream)
            positive = torch.where(matched >= 1)[0]
            negative = torch.where(matched == 0)[0]
            wanted = min(len(positive), int(self.batch_size_per_image * self.positive_fraction))
            positives.append(self._draw(matched, positive, wanted, generator))
            wanted = min(len(negative), self.batch_size_per_image - wanted)
            negatives.append(self._draw(matched, negative, wanted, generator))
        return positives, negatives

    @staticmethod
    def _draw(matched: Tensor, indices: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randperm(len(indices), generator=generator)[:wanted].to(indices.device)
        mask = torch.zeros_like(matched, dtype=torch.uint8)
        mask[indices[chosen]] = 1
        return mask


class LossNetwork(nn.Module):
    """A network that returns its losses, image by image.

    Its samplers are replaced; its weights and what it infers stay as they are. The seed,
    with the number of a crop, decides which anchors and proposals are sampled in it.
    """

    def __init__(self, network: MaskRCNN, seed: int):
        super().__init__()
        self.network = network
        self.names = LOSS_NAMES
        self._samplers = [
            _Sampler(old.batch_size_per_image, old.positive_fraction, stream, seed)
            for stream, old in enumerate((network.rpn.fg_bg_sampler, network.roi_heads.fg_bg_sampler))
        ]
        network.rpn.fg_bg_sampler, network.roi_heads.fg_bg_sampler = self._samplers

    def forward(self, crops: Crops) -> dict[str, Tensor]:
        """Compute the losses (`LOSS_NAMES`) of each image, float32, (image,).

        Those of proposals and classes are means over the anchors and proposals sampled
        in the image; the box losses are sums over the positive ones divided by the
        number of all sampled; that of the masks is the mean over the positive ones, or
        0 without any.
        """
        network = self.network
        for sampler in self._samplers:
            sampler.numbers = crops.numbers
        images, targets = network.transform(crops.images, crops.targets)
        features = network.backbone(images.tensors)
        proposals, losses = self._propose(images, features, targets)
        losses.update(self._classify(features, proposals, images.image_sizes, targets))
        return losses

    def _propose(
        self, images: Any, features: dict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Do what ``RegionProposalNetwork.forward`` does."""
        rpn = self.network.rpn
        levels = list(features.values())
        objectness, deltas = rpn.head(levels)
        anchors = rpn.anchor_generator(images, levels)
        per_level = [level[0].numel() for level in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        n = len(anchors)
        with torch.no_grad():
            decoded = rpn.box_coder.decode(deltas, anchors).view(n, -1, 4)
            proposals, _ = rpn.filter_proposals(decoded, objectness, images.image_sizes, per_level)
            labels, matched = rpn.assign_targets_to_anchors(anchors, targets)
            labels = list(map(exclude_ignored, labels, anchors, targets))
            wanted = rpn.box_coder.encode(matched, anchors)
            positives, negatives = rpn.fg_bg_sampler(labels)
        scores, regressions = [], []
        rows = zip(objectness.view(n, -1), deltas.view(n, -1, 4), wanted, labels, positives, negatives)
        for logits, offsets, aim, label, positive, negative in rows:
            at = torch.where(positive)[0]
            sampled = torch.cat([at, torch.where(negative)[0]])
            count = max(len(sampled), 1)
            given, true = logits[sampled].float(), label[sampled]
            score = F.binary_cross_entropy_with_logits(given, true, reduction="sum")
            regression = F.smooth_l1_loss(offsets[at].float(), aim[at], beta=_BETA, reduction="sum")
            scores.append(score / count)
            regressions.append(regression / count)
        losses = {"loss_objectness": torch.stack(scores), "loss_rpn_box_reg": torch.stack(regressions)}
        return proposals, losses

    def _classify(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Do what ``RoIHeads.forward`` does."""
        heads = self.network.roi_heads
        with torch.no_grad():
            proposals, matched, labels, wanted = self._sample_proposals(proposals, targets)
        counts = [len(label) for label in labels]
        pooled = heads.box_roi_pool(features, proposals, sizes)
        logits, regression = heads.box_predictor(heads.box_head(pooled))
        classes, boxes = [], []
        rows = zip(logits.float().split(counts), regression.float().split(counts), labels, wanted)
        for scores, offsets, label, aim in rows:
            at = torch.where(label > 0)[0]
            offsets = offsets.view(len(label), -1, 4)[at, label[at]]
            classes.append(F.cross_entropy(scores, label, reduction="sum") / max(len(label), 1))
            boxes.append(F.smooth_l1_loss(offsets, aim[at], beta=_BETA, reduction="sum") / max(len(label), 1))

        positive = [torch.where(label > 0)[0] for label in labels]
        inside = [proposal[at] for proposal, at in zip(proposals, positive)]
        shapes = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, inside, sizes))).float()
        masks = []
        cells = shapes.split([len(at) for at in positive])
        parts = zip(cells, positive, inside, matched, labels, targets)
        for shape, at, boxes_at, index, label, target in parts:
            if not len(at):
                masks.append(shape.sum() * 0.0)
                continue
            truth = project_masks_on_boxes(target["masks"], boxes_at, index[at], shape.shape[-1])
            masks.append(F.binary_cross_entropy_with_logits(shape[torch.arange(len(at)), label[at]], truth))
        losses = {"loss_classifier": classes, "loss_box_reg": boxes, "loss_mask": masks}
        return {name: torch.stack(of_images) for name, of_images in losses.items()}

    def _sample_proposals(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Do what ``RoIHeads.select_training_samples`` does, and leave out ignored regions."""
        heads = self.network.roi_heads
        sources = [target["boxes"].to(proposals[0].dtype) for target in targets]
        proposals = heads.add_gt_proposals(proposals, sources)
        classes = [target["labels"] for target in targets]
        matched, labels = heads.assign_targets_to_proposals(proposals, sources, classes)
        labels = list(map(exclude_ignored, labels, proposals, targets))
        sampled = heads.subsample(labels)
        proposals = [boxes[index] for boxes, index in zip(proposals, sampled, strict=True)]
        labels = [label[index] for label, index in zip(labels, sampled, strict=True)]
        matched = [match[index] for match, index in zip(matched, sampled, strict=True)]
        matched_boxes = [
            boxes[match] if len(boxes) else boxes.new_zeros((len(match), 4))
            for boxes, match in zip(sources, matched, strict=True)
        ]
        return proposals, matched, labels, heads.box_coder.encode(matched_boxes, proposals)
