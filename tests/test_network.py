# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The network: it is built as asked, it learns, and tiles do not show."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from lsst.meas.maskrcnn.deblend.detection import detect
from lsst.meas.maskrcnn.images.normalize import LuptonSettings, normalize
from lsst.meas.maskrcnn.metrics.matching import greedy_match
from lsst.meas.maskrcnn.metrics.spans import mask_pairs
from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.detections import Detections
from lsst.meas.maskrcnn.network.inference import DetectionSettings, select_device
from lsst.meas.maskrcnn.network.masks import paste_soft_masks
from lsst.meas.maskrcnn.network.model_file import ModelMetadata
from lsst.meas.maskrcnn.network.spec import NetworkSpec
from lsst.meas.maskrcnn.train.augment import AugmentSettings
from lsst.meas.maskrcnn.train.dataset import CropSettings, CropSource
from lsst.meas.maskrcnn.train.loop import train
from lsst.meas.maskrcnn.train.stages import StageSettings, TrainSettings
from lsst.meas.maskrcnn.train.training_scene import TrainingScene, write_scene

sys.path.append(str(Path(__file__).parent))
from toy_training import boxes_of

POSITIONS = [(20, 30), (24, 100), (60, 62), (95, 20), (100, 96), (64, 114)]


def toy_scene(height: int = 128, width: int = 128, positions=POSITIONS) -> TrainingScene:
    """Draw round and elongated Gaussians (stars and galaxies) in two bands."""
    y, x = np.mgrid[:height, :width]
    noiseless = np.zeros((2, height, width), dtype=np.float32)
    masks, origins, labels, peaks = [], [], [], []
    for number, (y0, x0) in enumerate(positions):
        star = number % 2 == 0
        sigma_x, sigma_y = (2.0, 2.0) if star else (6.0, 3.5)
        profile = np.exp(-0.5 * (((x - x0) / sigma_x) ** 2 + ((y - y0) / sigma_y) ** 2))
        flux = 100.0 * np.array([1.0, 1.5 if star else 0.5])
        noiseless += (flux[:, None, None] * profile).astype(np.float32)
        mask = profile > 0.08
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        masks.append(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        origins.append((rows[0], columns[0]))
        labels.append(1 if star else 2)
        peaks.append(flux)
    return TrainingScene(
        noiseless=noiseless,
        variance=np.full_like(noiseless, 1.0),
        valid=np.ones((height, width), dtype=bool),
        labels=np.array(labels, dtype=np.int64),
        peak_flux=np.array(peaks, dtype=np.float32),
        origins=np.array(origins, dtype=np.int32),
        masks=masks,
    )


def observe(scene: TrainingScene, rng: np.random.Generator):
    """Draw noise on a scene and normalise it; the usable pixels as well."""
    flux = scene.noiseless + np.sqrt(scene.variance) * rng.standard_normal(scene.variance.shape)
    result = normalize(LuptonSettings(), flux.astype(np.float32), scene.variance, scene.valid)
    return result.image, result.valid


def toy_metadata() -> ModelMetadata:
    return ModelMetadata(
        name="toy",
        architecture=NetworkSpec.light(2),
        bands=("r", "g"),
        normalization=LuptonSettings(),
        pixel_scale=0.2,
    )


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """Train on one scene until the network knows it."""
    folder = tmp_path_factory.mktemp("overfit")
    write_scene(toy_scene(), folder / "scene.npz")
    settings = CropSettings(size=128, crops_per_scene=4)
    augment = AugmentSettings(depth_probability=1.0, depth_range=(0.5, 2.0), correlated_probability=0.5)
    source = CropSource([folder / "scene.npz"], LuptonSettings(), settings, seed=5, augment=augment)
    stage = StageSettings("all", steps=150, batch_size=2, learning_rate=0.02, warmup_steps=20, decay="cosine")
    schedule = TrainSettings(stages=(stage,), average_decay=0.9, seed=5)
    return train(source, toy_metadata(), schedule, folder / "m.safetensors").model, source


def test_one_scene_is_overfitted(overfitted):
    model, source = overfitted
    scene = toy_scene()
    image, valid = observe(scene, np.random.default_rng(3))
    found = detect(model.build(), image, valid)
    pairs = mask_pairs(found.masks, found.origins, scene.masks, scene.origins)
    match = greedy_match(pairs, found.scores, len(scene.masks))
    assert set(match) == set(range(len(POSITIONS)))  # all found, nothing else
    assert ((found.p_star > 0.5) == (scene.labels[match] == 1)).all()


def test_tiles_do_not_show(overfitted):
    """The same sources in one tile and in many, each once."""
    model, source = overfitted
    rng = np.random.default_rng(8)
    positions = [
        (int(y + rng.integers(-4, 5)), int(x + rng.integers(-4, 5)))
        for y in range(24, 250, 44)
        for x in range(26, 330, 48)
    ]
    scene = toy_scene(270, 340, positions)
    image, valid = observe(scene, rng)
    network = model.build()
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


def test_a_tile_without_valid_pixels_is_not_looked_at(overfitted):
    model, source = overfitted
    image, valid = observe(toy_scene(), np.random.default_rng(3))
    found = detect(model.build(), image, np.zeros_like(valid))
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.timings["forward"] == 0.0


@pytest.mark.parametrize("shape", [(2, 0, 0), (2, 1, 1), (2, 37, 5), (2, 33, 200)])
def test_odd_shapes(overfitted, shape):
    """Whatever the network makes of an image it has never seen the like of, it lies on the image."""
    found = detect(
        overfitted[0].build(), np.zeros(shape, dtype=np.float32), None, DetectionSettings(score_threshold=0.0)
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


def test_detect_refuses_what_it_cannot_use(overfitted):
    network = overfitted[0].build()
    with pytest.raises(ValueError, match=r"wants \(2, y, x\)"):
        detect(network, np.zeros((3, 64, 64), dtype=np.float32))
    with pytest.raises(ValueError, match="valid has shape"):
        detect(network, np.zeros((2, 64, 64), dtype=np.float32), np.ones((64, 32), dtype=bool))
    with pytest.raises(ValueError, match="not finite"):
        detect(network, np.full((2, 64, 64), np.nan, dtype=np.float32))


@pytest.mark.parametrize(
    "wrong", [{"tile_overlap": 512}, {"batch_size": 0}, {"score_threshold": 1.5}, {"suppression": "soft"}]
)
def test_detection_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DetectionSettings(**wrong)


def test_detection_limit(overfitted):
    model, source = overfitted
    image, valid = observe(toy_scene(), np.random.default_rng(3))
    network = model.build()
    every = detect(network, image, valid)
    network.roi_heads.detections_per_img = 2
    found = detect(network, image, valid, split_crowded=False)
    np.testing.assert_array_equal(found.scores, every.scores[:2])
    assert found.flag_limited.all()
    assert not every.flag_limited.any()


def test_a_crowded_tile_is_looked_at_in_quarters(overfitted):
    """Nothing is skipped for being crowded, and it is known where the limit was hit."""
    model, source = overfitted
    positions = [(y, x) for y in range(30, 250, 44) for x in range(30, 250, 44)]
    positions += [(y, x) for y in range(30, 250, 88) for x in range(310, 480, 60)]
    scene = toy_scene(256, 480, positions)
    image, valid = observe(scene, np.random.default_rng(8))
    network = model.build()
    settings = DetectionSettings(tile_size=256, tile_overlap=32)
    every = detect(network, image, valid, settings)
    dense = int((every.boxes[:, 0] < 256).sum())
    sparse = len(every) - dense
    assert dense > 20 > sparse > 6, (dense, sparse)
    network.roi_heads.detections_per_img = 20
    steps = []
    found = detect(network, image, valid, settings, progress=lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1] > 3
    assert len(found) > 0.9 * len(every)
    # The tile on the left was split, that on the right was not.
    assert found.flag_limited[found.boxes[:, 2] < 220].all()
    assert not found.flag_limited[found.boxes[:, 0] > 290].any()
    pairs = mask_pairs(found.masks, found.origins, scene.masks, scene.origins)
    match = greedy_match(pairs, found.scores, len(positions), 0.4)
    assert len(set(match[match >= 0])) >= 0.9 * len(positions)
    assert len(found) <= 1.05 * len(positions)


def test_soft_masks_hold_the_hard_ones(overfitted):
    model, source = overfitted
    image, valid = observe(toy_scene(150, 200), np.random.default_rng(3))
    found = detect(model.build(), image, valid, DetectionSettings(tile_size=120, tile_overlap=60))
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
    pasted = paste_soft_masks(cells, boxes, (50, 90), 0.5)
    (y0, x0), soft = pasted.soft_origins[0], pasted.soft[0]
    x = np.arange(x0, x0 + soft.shape[1])
    expected = (x - 10.0) / 56.0
    inside = (x > 11) & (x < 65)
    np.testing.assert_allclose(soft[4, inside], 255 * expected[inside], atol=0.51)
    assert x0 == 13 and y0 == 5  # 5 % of 56 px is 2.8 px
    assert pasted.origins[0].tolist() == [5, 38]
    # Where nothing is over the threshold there still is a soft mask.
    faint = paste_soft_masks(0.3 * torch.ones(1, side, side), boxes, (50, 90), 0.5)
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
    pasted = paste_soft_masks(cells, boxes, (200, 180), 0.5)
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


def test_big_endian_images_are_read(overfitted):
    """FITS pixels are big-endian, and torch takes no such array."""
    model, source = overfitted
    image, valid = observe(toy_scene(), np.random.default_rng(3))
    network = model.build()
    found = detect(network, image.astype(">f4"), valid)
    np.testing.assert_array_equal(found.boxes, detect(network, image, valid).boxes)
