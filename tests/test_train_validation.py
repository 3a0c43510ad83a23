# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Average precision during a training, its history and its plot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scene_list import SceneList

import lsst.meas.maskrcnn.train.validation as validation
from lsst.meas.maskrcnn.images.normalize import LuptonSettings, normalize
from lsst.meas.maskrcnn.network.detections import Detections
from lsst.meas.maskrcnn.report.training_curves import history_table, plot_training
from lsst.meas.maskrcnn.train.training_scene import TrainingScene
from lsst.meas.maskrcnn.train.validation import (
    SceneValidator,
    ValidationImage,
    validation_image,
    validation_precision,
)

SHAPE = (40, 60)
# y0, x0 of squares of 6 x 5 px, class, and whether it is asked for.
SOURCES = ((2, 3, 1, True), (20, 30, 2, True), (30, 50, 2, True), (10, 40, 2, False))


def make_image() -> ValidationImage:
    return ValidationImage(
        image=np.zeros((3, *SHAPE), np.float32),
        valid=np.ones(SHAPE, bool),
        labels=np.array([source[2] for source in SOURCES]),
        masks=[np.ones((6, 5), bool) for _ in SOURCES],
        origins=np.array([source[:2] for source in SOURCES], np.int32),
        asked=np.array([source[3] for source in SOURCES]),
    )


def found_at(*rows: tuple[int, int, float, float]) -> Detections:
    """Detections of 6 x 5 px at y0, x0 with a score and a probability of a star."""
    table = np.array(rows, dtype=float).reshape(-1, 4)
    return Detections(
        boxes=np.zeros((len(rows), 4), np.float32),
        scores=table[:, 2].astype(np.float32),
        p_star=table[:, 3].astype(np.float32),
        origins=table[:, :2].astype(np.int32),
        masks=[np.ones((6, 5), bool) for _ in rows],
    )


def judge(monkeypatch: pytest.MonkeyPatch, *found: Detections) -> dict[str, float]:
    answers = iter(found)
    monkeypatch.setattr(validation, "detect", lambda *arguments, **named: next(answers))
    return validation_precision(torch.nn.Identity(), [make_image() for _ in found])


def test_perfect(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = judge(monkeypatch, found_at((2, 3, 0.9, 1.0), (20, 30, 0.8, 0.0), (30, 50, 0.7, 0.0)))
    assert figures == {
        "ap50_star": 1.0,
        "ap50_galaxy": 1.0,
        "ap50": 1.0,
        "n_star": 1.0,
        "n_galaxy": 2.0,
        "n_detections": 3.0,
    }


def test_precision_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Galaxies: a false one first, then a true one, and one that is missed; over two images."""
    first = found_at((0, 20, 0.95, 0.1), (20, 30, 0.8, 0.1))
    second = found_at((2, 3, 0.9, 0.9))
    figures = judge(monkeypatch, first, second)
    # One of four at a precision of 1/2.
    assert figures["ap50_galaxy"] == pytest.approx(0.25 * 0.5)
    # One of two at a precision of 1.
    assert figures["ap50_star"] == pytest.approx(0.5)
    assert figures["ap50"] == pytest.approx((0.125 + 0.5) / 2)
    assert (figures["n_star"], figures["n_galaxy"]) == (2, 4)


def test_sources_that_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither right nor wrong, whatever the class."""
    rows = [(2, 3, 0.5, 1.0), (20, 30, 0.5, 0.0), (30, 50, 0.5, 0.0)]
    for p_star in (0.0, 1.0):
        figures = judge(monkeypatch, found_at((10, 40, 0.9, p_star), *rows))
        assert figures["ap50"] == 1.0
    # A second one on the same source is wrong.
    figures = judge(monkeypatch, found_at((10, 40, 0.9, 1.0), (10, 40, 0.8, 1.0), *rows))
    assert figures["ap50_star"] == pytest.approx(0.5)


def test_modes_of_the_network_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
    network.train()
    network[0].eval()
    seen: list[bool] = []

    def fake(network: torch.nn.Module, *arguments: Any, **named: Any) -> Detections:
        seen.append(network.training or network[1].training)
        return found_at()

    monkeypatch.setattr(validation, "detect", fake)
    figures = validation_precision(network, [make_image()])
    assert seen == [False]
    assert (network.training, network[0].training, network[1].training) == (True, False, True)
    assert figures["ap50"] == 0.0
    figures = validation_precision(network, [])
    assert math.isnan(figures["ap50"])


def make_scene(noisy: bool) -> TrainingScene:
    """Squares of falling brightness on a sky with sigma 1."""
    pixels = np.zeros((2, *SHAPE), np.float32)
    peaks = np.array([[100.0, 50.0], [4.0, 2.0], [2.0, 6.0]], np.float32)
    masks = [np.ones((6, 5), bool), np.ones((6, 5), bool), np.ones((3, 3), bool)]
    origins = np.array([[2, 3], [20, 30], [30, 50]], np.int32)
    for mask, (y0, x0), peak in zip(masks, origins, peaks, strict=True):
        pixels[:, y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] += peak[:, None, None]
    rng = np.random.default_rng(3)
    return TrainingScene(
        noiseless=pixels,
        variance=np.ones_like(pixels),
        valid=np.ones(SHAPE, bool),
        labels=np.array([1, 2, 2]),
        peak_flux=peaks,
        origins=origins,
        masks=masks,
        noisy=noisy,
        psf_fwhm=np.array([3.0, 4.0], np.float32),
        image=(pixels + rng.normal(size=pixels.shape)).astype(np.float32) if noisy else None,
    )


def test_scene_as_it_is() -> None:
    """Its own noise, normalised as in the deblender."""
    scene = make_scene(noisy=True)
    settings = LuptonSettings()
    item = validation_image(scene, settings, np.random.default_rng(1))
    assert scene.image is not None
    expected = normalize(settings, scene.image.copy(), scene.variance.copy(), scene.valid)
    np.testing.assert_array_equal(item.image, expected.image)
    np.testing.assert_array_equal(item.psf_fwhm, [3.0, 4.0])
    # The second is too faint in each band; the third too small.
    assert list(item.asked) == [True, False, False]
    item = validation_image(scene, settings, np.random.default_rng(1), min_area=9)
    assert list(item.asked) == [True, False, True]
    item = validation_image(scene, settings, np.random.default_rng(1), min_peak_snr=3.0)
    assert list(item.asked) == [True, True, False]
    # Without noise nothing is faint.
    item = validation_image(make_scene(noisy=False), settings, np.random.default_rng(1))
    assert list(item.asked) == [True, True, False]


def test_validator_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def fake(network: torch.nn.Module, image: np.ndarray, *arguments: Any, **named: Any) -> Detections:
        seen.append(image.copy())
        return found_at((2, 3, 0.9, 1.0))

    monkeypatch.setattr(validation, "detect", fake)
    scenes = SceneList([make_scene(noisy=True), make_scene(noisy=False)])
    validator = SceneValidator(scenes, LuptonSettings())
    first, second = validator(torch.nn.Identity()), validator(torch.nn.Identity())
    assert first == second
    assert first["ap50_star"] == 1.0
    np.testing.assert_array_equal(seen[0], seen[2])


ROWS = [
    {
        "kind": "step",
        "step": step,
        "epoch": step // 50,
        "stage": "heads" if step <= 100 else "all",
        "learning_rate": 1e-3 if step <= 100 else 1e-4,
        "elapsed": 2.0 * step,
        "loss": 1.0 / step,
        "loss_mask": 0.5 / step,
        "seconds": 2.0,
    }
    for step in range(1, 201)
]


def test_table() -> None:
    rows = [*ROWS[:2], {**ROWS[2], "ap50": 0.5, "ap50_star": None}]
    table = history_table(rows)
    assert table.colnames[:3] == ["step", "epoch", "stage"]
    assert "kind" not in table.colnames
    assert table["step"].dtype == np.int64
    assert table["elapsed"].unit == "s"
    np.testing.assert_array_equal(table["ap50"], [np.nan, np.nan, 0.5])
    assert np.isnan(table["ap50_star"]).all()
    assert len(history_table([])) == 0
    assert history_table([]).colnames == ["step", "epoch", "stage"]


def test_plot() -> None:
    epochs = [{**row, "ap50": 0.5, "ap50_star": 0.6, "ap50_galaxy": 0.4} for row in ROWS[49::50]]
    figure = plot_training(history_table(ROWS), history_table(epochs), ["heads", "all"])
    assert isinstance(figure, Figure)
    losses, rates, precision = figure.axes
    total = losses.get_lines()[0]
    # Means over neighbours keep the range and the mean of what they are made of.
    assert 0 < total.get_xdata()[0] < total.get_xdata()[-1] <= 200
    assert total.get_ydata()[0] == pytest.approx(np.mean([1.0 / s for s in range(1, 9)]), rel=0.2)
    np.testing.assert_array_equal(rates.get_lines()[0].get_ydata()[[0, -1]], [1e-3, 1e-4])
    labels = {line.get_label(): line.get_ydata() for line in precision.get_lines()}
    np.testing.assert_array_equal(labels["star"], [0.6] * 4)
    assert {text.get_text() for text in losses.texts} == {"heads", "all"}
    # Where the second stage begins.
    assert any(list(line.get_xdata()) == [101, 101] for line in rates.get_lines())
    figure.canvas.draw()


def test_plot_of_nothing() -> None:
    figure = plot_training(history_table([]), history_table([]))
    assert figure.axes[2].texts[0].get_text() == "no validation"
    figure.canvas.draw()
