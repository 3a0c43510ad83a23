# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The network: it is built as asked, it learns, and tiles do not show."""

import numpy as np
import pytest
import torch
from fixed_bands import POSITIONS, grid, observe, toy_scene
from pydantic import ValidationError
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import nms
from toy_training import boxes_of

from lsst.meas.maskrcnn.metrics.matching import greedy_match
from lsst.meas.maskrcnn.metrics.spans import mask_pairs
from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.detections import Detections
from lsst.meas.maskrcnn.network.inference import DetectionSettings, _keep_best, detect, select_device
from lsst.meas.maskrcnn.network.masks import paste_soft_masks
from lsst.meas.maskrcnn.network.spec import NetworkSpec


def test_one_scene_is_overfitted(fixed_model):
    scene = toy_scene()
    image, valid = observe(scene, np.random.default_rng(3))
    found = detect(fixed_model.build(), image, valid)
    pairs = mask_pairs(found.masks, found.origins, scene.masks, scene.origins)
    match = greedy_match(pairs, found.scores, len(scene.masks))
    assert set(match) == set(range(len(POSITIONS)))  # all found, nothing else
    assert ((found.p_star > 0.5) == (scene.labels[match] == 1)).all()


def test_tiles_do_not_show(fixed_model):
    """The same sources in one tile and in many, each once."""
    rng = np.random.default_rng(8)
    positions = grid(270, 340, rng)
    scene = toy_scene(270, 340, positions)
    image, valid = observe(scene, rng)
    network = fixed_model.build()
    results = []
    for size, overlap in ((512, 0), (128, 48), (160, 64)):
        found = detect(network, image, valid, DetectionSettings(tile_size=size, tile_overlap=overlap))
        pairs = mask_pairs(found.masks, found.origins, scene.masks, scene.origins)
        match = greedy_match(pairs, found.scores, len(positions), 0.4)
        matched = match[match >= 0]
        assert len(matched) >= 0.9 * len(positions)
        assert len(found) <= 1.05 * len(positions)
        assert (np.diff(found.scores) <= 0).all()
        results.append(set(matched.tolist()))
    assert all(len(a ^ results[0]) <= 0.1 * len(positions) for a in results[1:])


def test_a_tile_without_valid_pixels_is_not_looked_at(fixed_model):
    image, valid = observe(toy_scene(), np.random.default_rng(3))
    found = detect(fixed_model.build(), image, np.zeros_like(valid))
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize("shape", [(2, 0, 0), (2, 1, 1), (2, 37, 5), (2, 33, 200)])
def test_odd_shapes(fixed_model, shape):
    """Whatever the network makes of an image it has never seen the like of, it lies on the image."""
    found = detect(
        fixed_model.build(), np.zeros(shape, dtype=np.float32), None, DetectionSettings(score_threshold=0.0)
    )
    height, width = shape[1:]
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2:] <= [width, height]).all()
    for mask, (y0, x0) in zip(found.masks, found.origins, strict=True):
        assert mask.any()
        assert 0 <= y0 and y0 + mask.shape[0] <= height
        assert 0 <= x0 and x0 + mask.shape[1] <= width
    if min(shape[1:]) == 0:
        assert len(found) == 0


def test_detect_refuses_what_it_cannot_use(fixed_model):
    network = fixed_model.build()
    with pytest.raises(ValueError, match=r"wants \(2, y, x\)"):
        detect(network, np.zeros((3, 64, 64), dtype=np.float32))
    with pytest.raises(ValueError, match="valid has shape"):
        detect(network, np.zeros((2, 64, 64), dtype=np.float32), np.ones((64, 32), dtype=bool))
    with pytest.raises(ValueError, match="not finite"):
        detect(network, np.full((2, 64, 64), np.nan, dtype=np.float32))


@pytest.mark.parametrize("wrong", [{"tile_overlap": 512}, {"min_area": 0}, {"score_threshold": 1.5}])
def test_detection_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DetectionSettings(**wrong)


def test_detection_limit(fixed_model):
    image, valid = observe(toy_scene(), np.random.default_rng(3))
    network = fixed_model.build()
    every = detect(network, image, valid)
    network.roi_heads.detections_per_img = 2
    found = detect(network, image, valid)
    np.testing.assert_array_equal(found.scores, every.scores[:2])
    assert found.flag_limited.all()
    assert not every.flag_limited.any()


def test_the_best_of_boxes_that_overlap_is_kept():
    # IoU 11 / 21 with the first; far from both; a small box on the middle of the first.
    boxes = np.array(
        [[42, 42, 58, 58], [47, 42, 63, 58], [56, 42, 72, 58], [47, 46, 55, 54]], dtype=np.float32
    )
    scores = np.array([0.8, 0.9, 0.7, 0.95], dtype=np.float32)
    assert _keep_best(boxes[:3], scores[:3], 0.5).tolist() == [1, 2]
    assert _keep_best(boxes[:3], scores[:3], 0.55).tolist() == [1, 0, 2]
    assert _keep_best(boxes[[0, 3]], scores[[0, 3]], 0.5).tolist() == [1]
    assert _keep_best(boxes[:0], scores[:0], 0.5).tolist() == []


def test_many_boxes_are_those_of_torchvision_where_none_are_concentric():
    rng = np.random.default_rng(4)
    corner = rng.uniform(0, 150, (300, 2))
    boxes = np.concatenate([corner, corner + 20], axis=1).astype(np.float32)
    scores = rng.permutation(300).astype(np.float32) / 300
    # Equal squares are concentric only if their IoU is over 0.5 as well.
    expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.5).numpy()
    np.testing.assert_array_equal(_keep_best(boxes, scores, 0.5), expected)


def test_soft_masks_hold_the_hard_ones(fixed_model):
    image, valid = observe(toy_scene(150, 200), np.random.default_rng(3))
    found = detect(fixed_model.build(), image, valid, DetectionSettings(tile_size=120, tile_overlap=60))
    assert len(found) >= 6
    assert found.binning.dtype == np.int8 and (found.binning == 1).all()
    for mask, (y0, x0), soft, (soft_y0, soft_x0) in zip(
        found.masks, found.origins, found.soft, found.soft_origins, strict=True
    ):
        assert soft.dtype == np.uint8
        wide = np.zeros(image.shape[1:], dtype=np.uint8)
        wide[soft_y0 : soft_y0 + soft.shape[0], soft_x0 : soft_x0 + soft.shape[1]] = soft
        hard = np.zeros(image.shape[1:], dtype=bool)
        hard[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
        assert (wide[hard] >= 127).all() and (wide[~hard] <= 128).all()
        # Tight about what is over 5 %.
        for edge in (soft[0], soft[-1], soft[:, 0], soft[:, -1]):
            assert edge.max() >= 12
        assert soft.size >= mask.size


def test_soft_masks_are_the_probabilities():
    """A linear ramp is sampled exactly, on the pixels where it is defined."""
    side = 28
    ramp = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    cells = ramp.expand(1, side, side)
    boxes = torch.tensor([[10.0, 5.0, 66.0, 33.0]])
    pasted = paste_soft_masks(cells, boxes, (50, 90))
    (y0, x0), soft = pasted.soft_origins[0], pasted.soft[0]
    x = np.arange(x0, x0 + soft.shape[1])
    expected = (x - 10.0) / 56.0
    inside = (x > 11) & (x < 65)
    np.testing.assert_allclose(soft[4, inside], 255 * expected[inside], atol=0.51)
    assert x0 == 13 and y0 == 5  # 5 % of 56 px is 2.8 px
    assert pasted.origins[0].tolist() == [5, 38]
    # Where nothing is over the threshold there still is a soft mask.
    faint = paste_soft_masks(0.3 * torch.ones(1, side, side), boxes, (50, 90))
    assert faint.masks[0].size == 0
    assert (faint.soft[0] == 77).all()


def test_detections_are_taken_and_joined():
    masks = [np.ones((2, 3), dtype=bool), np.ones((1, 4), dtype=bool)]
    found = Detections(
        np.array([[4, 5, 7, 7], [1, 2, 5, 3]], dtype=np.float32),
        np.array([0.5, 0.5], dtype=np.float32),
        np.array([0.1, 0.9], dtype=np.float32),
        np.array([[5, 4], [2, 1]], dtype=np.int32),
        masks,
        {"forward": 1.0},
    )
    assert [part.tolist() for part in found.soft] == [[[255] * 3] * 2, [[255] * 4]]
    both = Detections.concatenate([found, found.take(np.array([True, False]))])
    assert len(both) == 3 and both.timings == {"forward": 2.0}
    ordered = both.sorted()
    np.testing.assert_array_equal(ordered.boxes[:, 1], [2, 5, 5])
    assert ordered.masks[0] is masks[1]
    assert len(Detections.concatenate([])) == 0
    with pytest.raises(ValueError, match="one length"):
        Detections(found.boxes[:1], found.scores, found.p_star, found.origins, masks)


def test_paste_is_the_inverse_of_the_training_target():
    """A mask brought to cells as in training and pasted back is the same."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:200, :180]
    masks = []
    for _ in range(60):
        cy, cx, a, b = rng.uniform(0, 200), rng.uniform(0, 180), rng.uniform(2, 40), rng.uniform(2, 40)
        mask = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1
        if mask.sum() >= 12:
            masks.append(mask)
    stack = np.stack(masks)
    boxes = torch.from_numpy(boxes_of(stack))
    cells = project_masks_on_boxes(
        torch.from_numpy(stack.astype(np.float32)), boxes, torch.arange(len(stack)), 28
    )
    pasted = paste_soft_masks(cells, boxes, (200, 180))
    for mask, part, (y0, x0) in zip(stack, pasted.masks, pasted.origins, strict=True):
        whole = np.zeros_like(mask)
        whole[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
        iou = (whole & mask).sum() / (whole | mask).sum()
        assert iou > 0.85, (iou, mask.sum())
        assert part.any(axis=0).all() or part.any(axis=1).all()


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_published_architectures(backbone):
    network = build_network(NetworkSpec.published(4, backbone)).eval()
    with torch.inference_mode():
        (result,) = network([torch.zeros(4, 70, 90)])
    assert result["boxes"].shape[1] == 4
    assert network.backbone.body.conv1.in_channels == 4


def test_nothing_is_resized_and_no_statistics_are_applied():
    network = build_network(NetworkSpec.light(3))
    image = torch.randn(3, 50, 70)
    images, _ = network.transform([image])
    assert images.tensors.shape == (1, 3, 64, 96)
    assert torch.equal(images.tensors[0, :, :50, :70], image)
    assert not images.tensors[0, :, 50:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"returned_layers": (2, 3)}, "consecutive"),
        ({"anchor_sizes": ((8.0,),)}, "levels"),
        ({"anchor_sizes": ((8.0, 9.0), (8.0,), (8.0,), (8.0,), (8.0,))}, "differ"),
        ({"anchor_sizes": ((-8.0,), (8.0,), (8.0,), (8.0,), (8.0,))}, "greater than 0"),
        ({"anchor_sizes": ((), (), (), (), ())}, "at least one anchor"),
        ({"anchor_ratios": ()}, "at least one anchor"),
        ({"mask_channels": ()}, "mask_channels"),
        ({"mask_channels": (0,)}, "greater than 0"),
        ({"detection_nms": 1.0}, "detection_nms"),
        ({"backbone": "resnet19"}, "backbone"),
        ({"colour": 1}, "colour"),
    ],
)
def test_specifications_are_checked(change, message):
    with pytest.raises(ValidationError, match=message):
        NetworkSpec(in_channels=3, **change)


def test_devices():
    assert select_device("cpu").type == "cpu"
    assert select_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="wanted 'auto'"):
        select_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU"):
            select_device("cuda")


@pytest.mark.parametrize("name", ["cpu:x", "cuda:x", "cuda:99"])
def test_devices_that_are_not_there(name):
    with pytest.raises(ValueError, match=f"device.*{name}"):
        select_device(name)


def test_big_endian_images_are_read(fixed_model):
    """FITS pixels are big-endian, and torch takes no such array."""
    image, valid = observe(toy_scene(), np.random.default_rng(3))
    network = fixed_model.build()
    found = detect(network, image.astype(">f4"), valid)
    np.testing.assert_array_equal(found.boxes, detect(network, image, valid).boxes)
