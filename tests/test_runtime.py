# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Quicker ways to compute find the same sources."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixed_bands import grid, observe, toy_scene
from torchvision.models.detection import MaskRCNN

from lsst.meas.maskrcnn.metrics.spans import SpanMasks, mask_iou
from lsst.meas.maskrcnn.network import any_band, inference, runtime
from lsst.meas.maskrcnn.network.any_band import AnyBandNetwork, AnyBandSpec
from lsst.meas.maskrcnn.network.band_layers import pack_bands
from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.detections import Detections
from lsst.meas.maskrcnn.network.inference import DetectionSettings, detect
from lsst.meas.maskrcnn.network.memory import release_memory
from lsst.meas.maskrcnn.network.runtime import prepare_network
from lsst.meas.maskrcnn.network.spec import NetworkSpec


def find(network: MaskRCNN, image: np.ndarray, precision: str = "float32") -> Detections:
    settings = DetectionSettings(tile_size=192, tile_overlap=64, precision=precision, score_threshold=0.3)
    return detect(network, image, None, settings)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(7)
    return observe(toy_scene(200, 300, grid(200, 300, rng)), rng)[0]


@pytest.fixture(scope="module")
def expected(image, fixed_model) -> Detections:
    found = find(fixed_model.build(), image)
    assert len(found) >= 15
    return found


def agree(
    found: Detections,
    expected: Detections,
    box: float,
    score: float,
    iou: float,
    sure_score: float = 0.301,
    strays: int = 0,
) -> None:
    """Each source of some certainty in one is in the other, but for some strays."""
    pairs = mask_iou(
        SpanMasks.from_masks(found.masks, found.origins),
        SpanMasks.from_masks(expected.masks, expected.origins),
    )
    best = pairs.select(pairs.iou >= iou)
    # Scores at the threshold may fall on either side of it.
    assert len(set(np.flatnonzero(found.scores > sure_score)) - set(best.first.tolist())) <= strays
    assert len(set(np.flatnonzero(expected.scores > sure_score)) - set(best.second.tolist())) <= strays
    # Of those that overlap with one, the closest.
    best = best.select(np.argsort(best.iou, kind="stable"))
    other = np.flatnonzero(expected.scores > sure_score)
    one = np.full(len(expected), -1)
    one[best.second] = best.first
    other = other[one[other] >= 0]
    one = one[other]
    assert len(set(one.tolist())) == len(one)
    np.testing.assert_allclose(found.scores[one], expected.scores[other], atol=score)
    np.testing.assert_allclose(found.p_star[one], expected.p_star[other], atol=2 * score)
    np.testing.assert_allclose(found.boxes[one], expected.boxes[other], atol=box)


def test_same_detections(fixed_model, image, expected):
    found = find(prepare_network(fixed_model.build()), image)
    assert len(found) == len(expected)
    # With more proposals another one may win of two on a source.
    agree(found, expected, box=0.01, score=1e-4, iou=0.99, strays=2)


def test_tiles_together(fixed_model, image, expected, monkeypatch):
    monkeypatch.setattr(inference, "tiles_at_once", lambda device: 4)
    found = find(prepare_network(fixed_model.build()), image)
    agree(found, expected, box=0.01, score=1e-4, iou=0.99)


def test_bfloat16_is_close(fixed_model, image, expected):
    found = find(prepare_network(fixed_model.build()), image, "bfloat16")
    # Of two boxes on one source another one may win, and what is doubtful may go.
    agree(found, expected, box=2.0, score=0.15, iou=0.75, sure_score=0.65, strays=2)


def test_limits_of_proposals_are_obeyed(fixed_model, image, expected, monkeypatch):
    monkeypatch.setattr(runtime, "_PROPOSALS", 3)
    few = find(prepare_network(fixed_model.build()), image)
    tiles = 6
    assert 0 < len(few) <= 3 * tiles
    assert len(few) < len(expected)
    assert few.flag_limited.any() and not expected.flag_limited.any()
    # No proposal has so high an objectness.
    monkeypatch.setattr(runtime, "_MIN_OBJECTNESS", 0.999999)
    assert len(find(prepare_network(fixed_model.build()), image)) == 0


def test_training_network_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        prepare_network(build_network(NetworkSpec.light(2)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_memory_is_given_back() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("the C library is not glibc")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    # Blocks that are too small to be mapped on their own; the last one holds all others back.
    blocks = [np.ones(8_000) for _ in range(2_000)]
    last = blocks.pop()
    blocks.clear()
    before = resident()
    release_memory((2000, 2000))
    assert resident() < before - 60_000_000
    assert last.all()


def test_masks_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    network = AnyBandNetwork(AnyBandSpec()).eval()
    rng = np.random.default_rng(3)
    pixels = rng.normal(size=(2, 64, 64)).astype(np.float32)
    image = pack_bands(pixels, np.ones(pixels.shape, bool), [4.0, 4.0], [1.0, 1.0], [480.0, 620.0])
    corners = torch.from_numpy(rng.uniform(0.0, 40.0, (7, 2)).astype(np.float32))
    boxes = torch.cat([corners, corners + 12.0], dim=1)
    found = []
    for most in (64, 3):
        monkeypatch.setattr(any_band, "_MASKS_AT_ONCE", most)
        with torch.inference_mode():
            features = network.features([image, image])
            found.append(network.masks(features, [boxes[:5], boxes[5:]]))
            assert network.masks(features, [boxes[:0]] * 2).shape == (0, 3, 28, 28)
    assert found[0].shape == (7, 3, 28, 28)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
