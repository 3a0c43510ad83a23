# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The width of the PSF as an input of the network."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from lsst.meas.maskrcnn.images.normalize import LuptonSettings
from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.inference import detect
from lsst.meas.maskrcnn.network.psf import PSF_UNIT, add_psf_planes, widen_input
from lsst.meas.maskrcnn.network.spec import NetworkSpec
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene
from lsst.meas.maskrcnn.train import dataset
from lsst.meas.maskrcnn.train.dataset import CropSettings, CropSource
from lsst.meas.maskrcnn.train.scene_sources import SceneFiles
from lsst.meas.maskrcnn.train.training_scene import read_scene, write_scene
from lsst.meas.maskrcnn.train.training_set import to_training_scene


def test_planes_hold_the_widths():
    pixels = torch.randn(3, 5, 7)
    planes = add_psf_planes(pixels, [4.0, np.nan, 6.0])
    assert planes.shape == (6, 5, 7)
    torch.testing.assert_close(planes[:3], pixels)
    # What is not known is 0, which no PSF is.
    np.testing.assert_allclose(planes[3:].amin((1, 2)), [4.0 / PSF_UNIT, 0.0, 6.0 / PSF_UNIT])
    np.testing.assert_allclose(planes[3:].amax((1, 2)), [4.0 / PSF_UNIT, 0.0, 6.0 / PSF_UNIT])
    assert not add_psf_planes(pixels, None)[3:].any()
    with pytest.raises(ValueError, match="one width for each of 3 bands"):
        add_psf_planes(pixels, [4.0, 5.0])


def test_widened_network_gives_the_same_answers():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        plain = build_network(NetworkSpec.light(2)).eval()
        wide = build_network(NetworkSpec.light(2, psf_channels=True)).eval()
    state = plain.state_dict()
    wide.load_state_dict(widen_input(state, 4))
    image = torch.rand(2, 64, 96)
    with torch.inference_mode():
        expected = plain.backbone(image[None])
        found = wide.backbone(add_psf_planes(image, [4.0, 5.0])[None])
    for key in expected:
        torch.testing.assert_close(found[key], expected[key])
    assert widen_input(state, 2) is state
    with pytest.raises(ValueError, match="input planes"):
        widen_input(state, 1)


def test_detect_gives_the_widths_to_the_network(monkeypatch):
    """A network that takes PSF planes gets them, in every tile."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = build_network(NetworkSpec.light(2, psf_channels=True)).eval()
    seen = []
    forward = network.backbone.forward
    monkeypatch.setattr(
        network.backbone, "forward", lambda x: (seen.append(x.float().clone()), forward(x))[1]
    )
    image = np.random.default_rng(1).normal(size=(2, 64, 96)).astype(np.float32)
    detect(network, image, psf_fwhm=[3.0, 5.0])
    detect(network, image)
    for planes, widths in zip(seen, ([3.0, 5.0], [0.0, 0.0]), strict=True):
        assert planes.shape[1] == 4
        np.testing.assert_allclose(planes[0, 2:, 10, 10], np.array(widths) / PSF_UNIT)
    with pytest.raises(ValueError, match="wants \\(2, y, x\\)"):
        detect(network, np.zeros((4, 64, 96), np.float32))


def test_crops_carry_the_width_of_their_scene(tmp_path, monkeypatch):
    scene = simulate_scene(preset_config("decam-120s", shape=(96, 120)), np.random.default_rng(5))
    kept = to_training_scene(scene)
    # Wings make the moments' width a little larger than the FWHM itself.
    ratio = kept.psf_fwhm / (scene.psf_fwhm / scene.pixel_scale)
    assert ((ratio > 1.0) & (ratio < 1.25)).all()
    write_scene(kept, tmp_path / "a.npz")
    np.testing.assert_array_equal(read_scene(tmp_path / "a.npz").psf_fwhm, kept.psf_fwhm)
    monkeypatch.setattr(dataset, "_PSF_KNOWN", 0.5)
    monkeypatch.setattr(dataset, "_PSF_JITTER", 0.01)
    settings = CropSettings(size=64)
    source = CropSource(SceneFiles([tmp_path / "a.npz"]), LuptonSettings(), settings, 3, psf_channels=True)
    images, _ = source.crops(range(40))
    given = np.array([image[3:, 5, 5].numpy() for image in images]) * PSF_UNIT
    known = given.any(axis=1)
    assert 8 < known.sum() < 32
    np.testing.assert_allclose(np.median(given[known], axis=0), kept.psf_fwhm, rtol=0.01)
    assert images[0].shape == (6, 64, 64)

    write_scene(dataclasses.replace(kept, psf_fwhm=None), tmp_path / "b.npz")
    assert read_scene(tmp_path / "b.npz").psf_fwhm is None
