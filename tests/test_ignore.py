# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ignored regions have no part in the losses."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.models.detection.image_list import ImageList

from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.spec import NetworkSpec
from lsst.meas.maskrcnn.train.ignore import exclude_ignored, ignored_share
from lsst.meas.maskrcnn.train.losses import Crops, LossNetwork

HEIGHT, WIDTH = 96, 128
SOURCE = torch.tensor([[10.0, 12.0, 24.0, 26.0]])
IGNORED = torch.tensor([[64.0, 40.0, 100.0, 80.0]])


def make_network():
    # Enough of all to sample everything: the draws have no part in it then.
    spec = NetworkSpec.light(2).model_copy(
        update={"rpn_batch": 100_000, "roi_batch": 100_000, "roi_positive": 0.5}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return build_network(spec).train()


def make_target(ignore: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    masks = torch.zeros((1, HEIGHT, WIDTH), dtype=torch.uint8)
    masks[0, 12:26, 10:24] = 1
    target = {"boxes": SOURCE, "labels": torch.tensor([2]), "masks": masks}
    return target if ignore is None else {**target, "ignore_boxes": ignore}


def test_share_is_that_of_the_union():
    """Against painted pixels."""
    rng = np.random.default_rng(2)
    low = rng.integers(0, 60, (30, 2))
    regions = np.concatenate([low, low + rng.integers(0, 25, (30, 2))], axis=1)
    painted = np.zeros((90, 90), bool)
    for x0, y0, x1, y1 in regions:
        painted[y0:y1, x0:x1] = True
    corner = rng.integers(-10, 80, (200, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 30, (200, 2))], axis=1)
    expected = []
    for x0, y0, x1, y1 in boxes:
        area = (x1 - x0) * (y1 - y0)
        inside = painted[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)].sum()
        expected.append(inside / area if area else 0.0)
    share = ignored_share(torch.from_numpy(boxes).float(), torch.from_numpy(regions).float())
    np.testing.assert_allclose(share.numpy(), expected, atol=1e-5)
    # Parts of pixels count in part.
    share = ignored_share(torch.tensor([[0.5, 0.0, 2.5, 1.0]]), torch.tensor([[1.0, 0.0, 2.0, 4.0]]))
    np.testing.assert_allclose(share.numpy(), [0.5], atol=1e-6)
    assert not ignored_share(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.zeros((0, 4))).any()
    assert len(ignored_share(torch.zeros((0, 4)), IGNORED)) == 0
    assert not ignored_share(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[0.0, 0.0, 0.0, 9.0]])).any()


def anchor_labels(boxes: torch.Tensor, target: dict[str, torch.Tensor]) -> torch.Tensor:
    """Labels of anchors as the losses have them."""
    labels, _ = make_network().rpn.assign_targets_to_anchors([boxes], [target])
    return exclude_ignored(labels[0], boxes, target)


def test_anchors_in_ignored_regions_are_no_negatives():
    inside, half, outside = [70.0, 45.0, 90.0, 70.0], [50.0, 50.0, 76.0, 70.0], [30.0, 60.0, 50.0, 80.0]
    boxes = torch.tensor([inside, half, outside, SOURCE[0].tolist()])  # 12 / 26 of the second
    assert anchor_labels(boxes, make_target(IGNORED)).tolist() == [-1, 0, 0, 1]
    assert anchor_labels(boxes, make_target()).tolist() == [0, 0, 0, 1]
    # A true source in an ignored region is a source.
    everywhere = torch.tensor([[0.0, 0.0, float(WIDTH), float(HEIGHT)]])
    assert anchor_labels(boxes, make_target(everywhere)).tolist() == [-1, -1, -1, 1]


def test_an_image_in_which_all_is_ignored():
    """A mean over nothing is not a number: one box stays."""
    target = {
        "boxes": torch.zeros((0, 4)),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros((0, HEIGHT, WIDTH), dtype=torch.uint8),
        "ignore_boxes": torch.tensor([[0.0, 0.0, 1000.0, 1000.0]]),
    }
    losses = LossNetwork(make_network(), 1)(Crops([torch.randn(2, HEIGHT, WIDTH)], [target], [0]))
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    assert sorted(anchor_labels(torch.tensor([[1.0, 1.0, 5.0, 5.0]] * 3), target).tolist()) == [-1, -1, 0]


def classifier_losses(target: dict[str, torch.Tensor], proposals: torch.Tensor):
    """Losses of the heads, and the gradients of the finest features, (y, x)."""
    network = make_network()
    losses = LossNetwork(network, 1)
    for sampler in losses._samplers:
        sampler.numbers = [0]
    shapes = {"0": (24, 32), "1": (12, 16), "2": (6, 8)}
    generator = torch.Generator().manual_seed(2)
    features = {k: torch.randn(1, 64, *shape, generator=generator) for k, shape in shapes.items()}
    features["0"].requires_grad_()
    found = losses._classify(features, [proposals], [(HEIGHT, WIDTH)], [target])
    sum(loss.sum() for loss in found.values()).backward()
    return found, features["0"].grad[0].abs().sum(dim=0)


def test_gradients_of_the_heads_are_zero_in_ignored_regions():
    proposals = torch.tensor([[70.0, 45.0, 90.0, 70.0], [30.0, 60.0, 50.0, 80.0]])
    _, gradient = classifier_losses(make_target(IGNORED), proposals)
    # Features of stride 4: rows 11 to 18, columns 17 to 23 are those of the ignored proposal.
    assert gradient[3:6, 3:6].all()
    assert not gradient[12:17, 18:22].any()
    # Without the region it has a part in them.
    _, gradient = classifier_losses(make_target(), proposals)
    assert gradient[12:17, 18:22].all()


def test_objectness_in_ignored_regions_costs_nothing():
    """Whatever the network finds there."""
    network = make_network()
    losses = LossNetwork(network, 1)
    for sampler in losses._samplers:
        sampler.numbers = [0]
    images = ImageList(torch.zeros(1, 2, HEIGHT, WIDTH), [(HEIGHT, WIDTH)])
    with torch.no_grad():
        features = network.backbone(images.tensors)
    (anchors,) = network.rpn.anchor_generator(images, list(features.values()))
    inside = ignored_share(anchors, IGNORED) > 0.5

    def loss(target, objectness_in_region):
        logits = torch.where(inside, objectness_in_region, -2.0)
        counts, levels = [], []
        for feature in features.values():
            height, width = feature.shape[-2:]
            count = 3 * height * width
            part = logits[sum(counts) : sum(counts) + count]
            levels.append(part.reshape(height, width, 3).permute(2, 0, 1)[None])
            counts.append(count)
        deltas = [level.new_zeros((1, 12, *level.shape[-2:])) for level in levels]
        network.rpn.head.forward = lambda _: (levels, deltas)
        with torch.no_grad():
            return float(losses._propose(images, features, [target])[1]["loss_objectness"])

    assert loss(make_target(IGNORED), -2.0) == loss(make_target(IGNORED), 8.0)
    assert loss(make_target(), 8.0) > loss(make_target(), -2.0) + 0.1


def test_losses_without_regions_are_the_same():
    network = make_network()
    images = [torch.randn(2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))]
    losses = LossNetwork(network, 1)
    with torch.no_grad():
        plain = losses(Crops(images, [make_target()], [0]))
        empty = losses(Crops(images, [make_target(torch.zeros((0, 4)))], [0]))
    for name, loss in plain.items():
        assert torch.equal(loss, empty[name])
