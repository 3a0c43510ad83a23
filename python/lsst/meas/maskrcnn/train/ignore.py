# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Regions of a training image that are neither positive nor negative.

What lies under masked pixels or below the limits of the truth is not known to
be a source, nor to be none. A network must not be told either.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

__all__ = [
    "IGNORED_SHARE",
    "IgnoringProposals",
    "IgnoringRoIHeads",
    "ignored_share",
    "respect_ignored_regions",
]

IGNORED_SHARE = 0.5
"""Share of a box that must lie in ignored regions for the box not to count
(`float`)."""


@torch.no_grad()
def ignored_share(boxes: Tensor, ignore_boxes: Tensor) -> Tensor:
    """Measure how much of each box lies in the union of others.

    Parameters
    ----------
    boxes : `torch.Tensor`
        Boxes, float, (box, 4), [x0, y0, x1, y1], half open.
    ignore_boxes : `torch.Tensor`
        The others, (region, 4), rounded to whole pixels; what is left of or
        above 0 does not count.

    Returns
    -------
    share : `torch.Tensor`
        Intersection over the area of the box, from 0 to 1, float32, (box,);
        0 for boxes without area.

    Notes
    -----
    From a summed-area table of the union, so that time and memory do not
    grow with the product of the two numbers.
    """
    boxes = boxes.float()
    if not len(ignore_boxes) or not len(boxes):
        return boxes.new_zeros(len(boxes))
    x0, y0, x1, y1 = ignore_boxes.round().long().clamp_min(0).unbind(dim=1)
    height, width = int(y1.max()), int(x1.max())
    edges = torch.zeros((height + 1, width + 1), dtype=torch.int32, device=boxes.device)
    one = torch.ones_like(x0, dtype=torch.int32)
    for row, column, sign in ((y0, x0, one), (y0, x1, -one), (y1, x0, -one), (y1, x1, one)):
        edges.index_put_((row, column), sign, accumulate=True)
    covered = edges.cumsum(0).cumsum(1)[:height, :width] > 0
    table = torch.zeros((height + 1, width + 1), dtype=torch.float32, device=boxes.device)
    table[1:, 1:] = covered.int().cumsum(0).cumsum(1).float()

    def at(y: Tensor, x: Tensor) -> Tensor:
        # The sum is bilinear within a pixel.
        y, x = y.clamp(0, height), x.clamp(0, width)
        row, column = y.long().clamp_max(max(height - 1, 0)), x.long().clamp_max(max(width - 1, 0))
        dy, dx = y - row, x - column
        top = table[row, column] * (1 - dx) + table[row, column + 1] * dx
        bottom = table[row + 1, column] * (1 - dx) + table[row + 1, column + 1] * dx
        return top * (1 - dy) + bottom * dy

    if height == 0 or width == 0:
        return boxes.new_zeros(len(boxes))
    left, top, right, bottom = boxes.unbind(dim=1)
    inside = at(bottom, right) - at(top, right) - at(bottom, left) + at(top, left)
    area = (right - left) * (bottom - top)
    return torch.where(area > 0, inside / area.clamp_min(1e-6), torch.zeros_like(area)).clamp(0.0, 1.0)


def _without_ignored(labels: Tensor, boxes: Tensor, target: dict[str, Tensor], threshold: float) -> Tensor:
    """Take negatives that lie in ignored regions out of the loss (label -1)."""
    regions = target.get("ignore_boxes")
    if regions is None or not len(regions):
        return labels
    share = ignored_share(boxes, regions)
    negative = labels == 0
    kept = torch.where(negative & (share > threshold), -torch.ones_like(labels), labels)
    if bool((kept >= 0).any()):
        return kept
    # A mean over nothing is not a number: the least covered box stays in.
    least = torch.where(negative, share, torch.full_like(share, 2.0)).argmin()
    kept[least] = labels[least]
    return kept


class IgnoringProposals(RegionProposalNetwork):
    """Region proposals that are not held against ignored regions.

    Targets may have ``ignore_boxes``, float32, (region, 4). An anchor that
    matches no source and lies mostly in their union is not sampled for the
    loss.

    Parameters
    ----------
    network : `torchvision.models.detection.rpn.RegionProposalNetwork`
        Whose place it takes: its modules and settings.
    threshold : `float`
        Share of an anchor that is mostly.
    """

    def __init__(self, network: RegionProposalNetwork, threshold: float = IGNORED_SHARE):
        super().__init__(
            network.anchor_generator,
            network.head,
            network.proposal_matcher.high_threshold,
            network.proposal_matcher.low_threshold,
            network.fg_bg_sampler.batch_size_per_image,
            network.fg_bg_sampler.positive_fraction,
            network._pre_nms_top_n,
            network._post_nms_top_n,
            network.nms_thresh,
            network.score_thresh,
        )
        self.ignored_share = threshold

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Match anchors and sources.

        Parameters
        ----------
        anchors : `list` [`torch.Tensor`]
            Of each image, (anchor, 4).
        targets : `list` [`dict`]
            Of each image.

        Returns
        -------
        labels : `list` [`torch.Tensor`]
            Of each anchor: 1 for a source, 0 for none, -1 for neither.
        matched : `list` [`torch.Tensor`]
            Box of the source that each anchor matches best.
        """
        labels, matched = super().assign_targets_to_anchors(anchors, targets)
        labels = [
            _without_ignored(label, boxes, target, self.ignored_share)
            for label, boxes, target in zip(labels, anchors, targets, strict=True)
        ]
        return labels, matched


class IgnoringRoIHeads(RoIHeads):
    """Heads whose classifier is not held against ignored regions.

    Parameters
    ----------
    heads : `torchvision.models.detection.roi_heads.RoIHeads`
        Whose place it takes: its modules and settings.
    threshold : `float`
        Share of a proposal that is mostly.
    """

    def __init__(self, heads: RoIHeads, threshold: float = IGNORED_SHARE):
        super().__init__(
            heads.box_roi_pool,
            heads.box_head,
            heads.box_predictor,
            heads.proposal_matcher.high_threshold,
            heads.proposal_matcher.low_threshold,
            heads.fg_bg_sampler.batch_size_per_image,
            heads.fg_bg_sampler.positive_fraction,
            heads.box_coder.weights,
            heads.score_thresh,
            heads.nms_thresh,
            heads.detections_per_img,
            heads.mask_roi_pool,
            heads.mask_head,
            heads.mask_predictor,
        )
        self.ignored_share = threshold

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Choose the proposals for the losses.

        Parameters
        ----------
        proposals : `list` [`torch.Tensor`]
            Of each image, (proposal, 4).
        targets : `list` [`dict`]
            Of each image.

        Returns
        -------
        proposals, matched, labels, regression_targets : `list`
            As torchvision has them.

        Raises
        ------
        ValueError
            Raised if there are no targets.
        """
        self.check_targets(targets)
        if targets is None:
            raise ValueError("targets should not be None")
        dtype = proposals[0].dtype
        sources = [target["boxes"].to(dtype) for target in targets]
        proposals = self.add_gt_proposals(proposals, sources)
        matched, labels = self.assign_targets_to_proposals(
            proposals, sources, [target["labels"] for target in targets]
        )
        labels = [
            _without_ignored(label, boxes, target, self.ignored_share)
            for label, boxes, target in zip(labels, proposals, targets, strict=True)
        ]
        chosen = self.subsample(labels)
        proposals = [boxes[index] for boxes, index in zip(proposals, chosen, strict=True)]
        labels = [label[index] for label, index in zip(labels, chosen, strict=True)]
        matched = [match[index] for match, index in zip(matched, chosen, strict=True)]
        boxes_of_matches = [
            boxes[match] if len(boxes) else torch.zeros((len(match), 4), dtype=dtype, device=match.device)
            for boxes, match in zip(sources, matched, strict=True)
        ]
        return proposals, matched, labels, self.box_coder.encode(boxes_of_matches, proposals)


def respect_ignored_regions(network: MaskRCNN, threshold: float = IGNORED_SHARE) -> None:
    """Let a network take ``ignore_boxes`` in its targets.

    Parameters
    ----------
    network : `torchvision.models.detection.MaskRCNN`
        The network. Its weights, their names and what it infers stay as they
        are; without ``ignore_boxes``, its losses too.
    threshold : `float`
        Share of an anchor or proposal in ignored regions above which it is
        no negative.

    Raises
    ------
    ValueError
        Raised if the threshold is no share.
    """
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold is {threshold}, wanted a share from 0 to below 1")
    network.rpn = IgnoringProposals(network.rpn, threshold)
    network.roi_heads = IgnoringRoIHeads(network.roi_heads, threshold)
