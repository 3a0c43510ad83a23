# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ignored regions have no part in the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.spec import NetworkSpec
from lsst.meas.maskrcnn.train.ignore import ignored_share, respect_ignored_regions

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
        network = build_network(spec).train()
    respect_ignored_regions(network)
    return network


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


def rpn_losses(network, target, objectness_in_region: float):
    """Losses of the proposals where the network calls anchors in the region sources."""
    rpn = network.rpn
    images = ImageList(torch.zeros(1, 2, HEIGHT, WIDTH), [(HEIGHT, WIDTH)])
    with torch.no_grad():
        features = list(network.backbone(images.tensors).values())
    (anchors,) = rpn.anchor_generator(images, features)
    inside = ignored_share(anchors, IGNORED) > 0.5
    logits = torch.where(inside, objectness_in_region, -2.0).requires_grad_()
    deltas = torch.zeros((len(anchors), 4), requires_grad=True)
    labels, matched = rpn.assign_targets_to_anchors([anchors], [target])
    losses = rpn.compute_loss(logits, deltas, labels, rpn.box_coder.encode(matched, [anchors]))
    sum(losses).backward()
    return float(losses[0].detach()), logits.grad[inside], logits.grad[~inside]


def test_proposals_in_ignored_regions_cost_nothing():
    network = make_network()
    quiet, loud = (rpn_losses(network, make_target(IGNORED), logit) for logit in (-2.0, 8.0))
    assert quiet[0] == loud[0]
    assert not loud[1].any()
    assert loud[2].any()
    # Without the region they do.
    quiet, loud = (rpn_losses(network, make_target(), logit) for logit in (-2.0, 8.0))
    assert loud[0] > quiet[0] + 0.1
    assert loud[1].all()


def roi_sample(network, proposals, target):
    return network.roi_heads.select_training_samples([proposals], [target])


def test_classifier_is_not_asked_about_ignored_regions():
    network = make_network()
    inside, outside, half = [70.0, 45.0, 90.0, 70.0], [30.0, 60.0, 50.0, 80.0], [50.0, 50.0, 76.0, 70.0]
    proposals = torch.tensor([inside, outside, half])
    boxes, matched, labels, regression = roi_sample(network, proposals, make_target(IGNORED))
    torch.testing.assert_close(boxes[0], torch.tensor([outside, half, SOURCE[0].tolist()]))
    assert labels[0].tolist() == [0, 0, 2]
    assert len(matched[0]) == len(regression[0]) == 3
    boxes, _, labels, _ = roi_sample(network, proposals, make_target())
    assert labels[0].tolist() == [0, 0, 0, 2]


def test_gradients_of_the_classifier_are_zero_there(monkeypatch):
    """The whole of the heads' losses, whatever is seen in the region."""
    network = make_network()
    proposals = torch.tensor([[70.0, 45.0, 90.0, 70.0], [30.0, 60.0, 50.0, 80.0]])
    shapes = {"0": (24, 32), "1": (12, 16), "2": (6, 8)}
    features = {k: torch.randn(1, 64, *shape, requires_grad=True) for k, shape in shapes.items()}
    network.roi_heads(features, [proposals], [(HEIGHT, WIDTH)], [make_target(IGNORED)])
    _, losses = network.roi_heads(features, [proposals], [(HEIGHT, WIDTH)], [make_target(IGNORED)])
    sum(losses.values()).backward()
    gradient = features["0"].grad[0].abs().sum(dim=0)
    # Features of stride 4: rows 11 to 18, columns 17 to 23 are those of the ignored proposal.
    assert gradient[3:6, 3:6].all()
    assert not gradient[11:18, 17:23].any()


def test_sources_win_over_regions():
    """A true source in an ignored region is a source."""
    network = make_network()
    everywhere = torch.tensor([[0.0, 0.0, float(WIDTH), float(HEIGHT)]])
    boxes, _, labels, _ = roi_sample(
        network, torch.tensor([[30.0, 60.0, 50.0, 80.0]]), make_target(everywhere)
    )
    assert labels[0].tolist() == [2]
    torch.testing.assert_close(boxes[0], SOURCE)


def test_an_image_in_which_all_is_ignored():
    """The losses are numbers all the same."""
    network = make_network()
    target = {
        "boxes": torch.zeros((0, 4)),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros((0, HEIGHT, WIDTH), dtype=torch.uint8),
        "ignore_boxes": torch.tensor([[0.0, 0.0, 1000.0, 1000.0]]),
    }
    losses = network([torch.randn(2, HEIGHT, WIDTH)], [target])
    assert all(torch.isfinite(loss) for loss in losses.values())
    labels, _ = network.rpn.assign_targets_to_anchors([torch.tensor([[1.0, 1.0, 5.0, 5.0]] * 3)], [target])
    assert sorted(labels[0].tolist()) == [-1.0, -1.0, 0.0]


def test_losses_without_regions_are_those_of_torchvision():
    """And so are the names of the weights and what is inferred."""
    network = make_network()
    images = [torch.randn(2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))]
    state = network.state_dict()
    losses = network(images, [make_target(torch.zeros((0, 4)))])
    found = network.eval()(images)[0]
    network.rpn.__class__ = RegionProposalNetwork
    network.roi_heads.__class__ = RoIHeads
    plain = network(images)[0]
    for key in plain:
        torch.testing.assert_close(found[key], plain[key])
    network.train()
    expected = network(images, [make_target()])
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])
    assert list(state) == list(network.state_dict())


def test_threshold():
    network = make_network()
    respect_ignored_regions(network, 0.3)
    half = torch.tensor([[50.0, 50.0, 76.0, 70.0]])  # 12 / 26 of it
    _, _, labels, _ = roi_sample(network, half, make_target(IGNORED))
    assert labels[0].tolist() == [2]
    with pytest.raises(ValueError, match="threshold is 1.0"):
        respect_ignored_regions(network, 1.0)
