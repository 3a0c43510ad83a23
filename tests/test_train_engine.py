# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The training loop: the formula of a step, stages, losses, averages."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.table import Table
from toy_training import METADATA, SPEC, Recorder, ToySource

from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel, read_model
from lsst.meas.maskrcnn.train import loop
from lsst.meas.maskrcnn.train.loop import TrainingDiverged, train
from lsst.meas.maskrcnn.train.losses import LOSS_NAMES, Crops, LossNetwork
from lsst.meas.maskrcnn.train.stages import (
    StageSettings,
    TrainSettings,
    learning_rate,
    published_stages,
    set_trainable,
)


def toy_network(seed=1, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return build_network(SPEC.model_copy(update=changes))


def toy_crops(numbers, source=None):
    return Crops(*(source or ToySource()).crops(numbers), list(numbers))


def run(folder, *stages, source=None, recorder=None, initial=None, progress=None, keep=False, **settings):
    """Train in float32 and give the weights after every epoch, which is one step if nothing else is said."""
    recorder = recorder or Recorder()
    settings = TrainSettings(
        **{"stages": stages, "precision": "float32", "steps_per_epoch": 1, "average_decay": 0.0, **settings}
    )
    result = train(
        source or ToySource(),
        METADATA,
        settings,
        folder / "m.safetensors",
        initial=initial,
        device="cpu",
        validate=recorder,
        progress=progress,
        keep_checkpoint=keep,
    )
    return recorder.states, result


def is_norm_statistic(name):
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_a_step_is_the_formula(tmp_path, monkeypatch):
    """z <- beta z + grad, theta <- theta - alpha z, with the gradient clipped, then the decay of the weights
    added to it.
    """
    alpha, beta, decay, clip = 0.1, 0.8, 0.01, 0.5
    for name, value in (("MOMENTUM", beta), ("WEIGHT_DECAY", decay), ("GRADIENT_CLIP", clip)):
        monkeypatch.setattr(loop, name, value)
    stage = StageSettings("all", steps=3, learning_rate=alpha, batch_size=2)
    states, _ = run(tmp_path, stage, freeze_norm_after=1.0)

    network = toy_network()
    losses = LossNetwork(network, seed=1).train()
    theta = dict(network.named_parameters())
    z = {name: torch.zeros_like(value) for name, value in theta.items()}
    for step in range(3):
        network.zero_grad()
        sum(losses(toy_crops([2 * step, 2 * step + 1])).values()).mean().backward()
        norm = math.sqrt(sum(float(value.grad.double().square().sum()) for value in theta.values()))
        assert norm > clip
        with torch.no_grad():
            for name, value in theta.items():
                z[name] = beta * z[name] + value.grad * (clip / norm) + decay * value
                value -= alpha * z[name]
        for name, value in theta.items():
            torch.testing.assert_close(states[step][name], value.detach(), rtol=1e-4, atol=1e-6, msg=name)


def test_momentum_starts_anew_with_each_stage(tmp_path):
    slow = StageSettings("slow", steps=1, learning_rate=1e-12, batch_size=2)
    fast = replace(slow, name="fast", learning_rate=0.1)
    (_, second), _ = run(tmp_path, slow, fast)
    # One step of the crops 2 and 3 from the initial weights; the statistics of 0 and 1 play no part in it.
    network = toy_network()
    losses = LossNetwork(network, seed=1).train()
    sum(losses(toy_crops([2, 3])).values()).mean().backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    for name, value in network.named_parameters():
        expected = value.detach() * (1.0 - 0.1 * 1e-4) - 0.1 * value.grad
        torch.testing.assert_close(second[name], expected, rtol=1e-3, atol=1e-5)


def test_published_schedule():
    settings = TrainSettings()
    # 56 images in batches of 16 are 4 steps.
    assert settings.stage_steps(56) == [60, 40, 40, 60]
    assert replace(settings, steps_per_epoch=10).stage_steps(56) == [150, 100, 100, 150]
    assert [stage.trainable for stage in settings.stages] == ["heads", "all", "all", "all"]
    rates = [learning_rate(stage, step, step / 40) for stage in settings.stages for step in (0, 39)]
    assert rates == [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6]
    assert {stage.batch_size for stage in published_stages()} == {16}
    assert (loop.MOMENTUM, loop.WEIGHT_DECAY, loop.GRADIENT_CLIP) == (0.9, 1e-4, 5)


def test_learning_rates():
    cosine = StageSettings("a", steps=100, learning_rate=0.2, decay="cosine")
    assert [learning_rate(cosine, k, k / 100) for k in (0, 50, 100)] == pytest.approx([0.2, 0.1, 0.0])
    warm = replace(cosine, warmup_steps=10)
    assert learning_rate(warm, 4, 0.0) == pytest.approx(0.1)
    assert learning_rate(warm, 9, 0.0) == learning_rate(cosine, 9, 0.0)
    step = replace(cosine, decay="step")
    assert [learning_rate(step, 0, f) for f in (0.0, 0.66, 0.67, 0.88, 0.89)] == pytest.approx(
        [0.2, 0.2, 0.02, 0.02, 0.002]
    )


@pytest.mark.parametrize("trainable, start", [("heads", "backbone.body."), ("rpn|body.layer1", "roi_heads")])
def test_frozen_layers_stay(tmp_path, trainable, start):
    """Their weights and the statistics of their normalisation."""
    before = {name: value.clone() for name, value in toy_network().state_dict().items()}
    stage = StageSettings("part", trainable=trainable, steps=2, learning_rate=0.1, batch_size=2)
    states, _ = run(tmp_path, stage)
    moved = {name for name, value in states[-1].items() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith(start) for name in moved)
    if trainable == "heads":
        assert moved == {name for name in before if not name.startswith(start)}
    else:
        statistics = {name for name in before if is_norm_statistic(name) and "layer1" in name}
        assert statistics and moved & {name for name in before if is_norm_statistic(name)} == statistics


def test_frozen_layers_have_no_gradient():
    network = toy_network()
    names = set_trainable(network, "heads")
    losses = LossNetwork(network, seed=1)
    sum(losses(toy_crops([0, 1])).values()).mean().backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None} == set(names)
    assert any(name.startswith("backbone.fpn") for name in names)
    set_trainable(network, "all")
    assert all(p.requires_grad for p in network.parameters())
    with pytest.raises(ValueError, match=r"trainable is 'nose'.*backbone\.body\.conv1.*rpn\.head"):
        set_trainable(network, "nose")


def test_losses_are_those_of_torchvision():
    """Of one image, if all anchors and proposals are sampled, so that there are no draws."""
    everything = {"rpn_batch": 10**6, "roi_batch": 10**6, "roi_positive": 0.999999}
    network = toy_network(**everything).train()
    network.rpn.fg_bg_sampler.positive_fraction = 0.999
    crops = toy_crops([3])
    assert len(crops.targets[0]["labels"])
    set_trainable(network, "all", freeze_norm=True)
    with torch.no_grad():
        wanted = network(crops.images, crops.targets)
        losses = LossNetwork(network, seed=1)(crops)
    assert set(losses) == set(wanted) == set(LOSS_NAMES)
    for name in LOSS_NAMES:
        torch.testing.assert_close(losses[name], wanted[name][None], msg=name)


def test_losses_of_an_image_do_not_depend_on_its_neighbours():
    network = toy_network()
    set_trainable(network, "all", freeze_norm=True)
    losses = LossNetwork(network, seed=1)
    numbers = [3, 4, 7, 8, 11, 2]
    counts = [len(target["labels"]) for target in toy_crops(numbers).targets]
    assert min(counts) == 0 and max(counts) > 2
    with torch.no_grad():
        whole = losses(toy_crops(numbers))
        parts = [losses(toy_crops([number])) for number in numbers]
        repeated = losses(toy_crops(numbers))
        other = LossNetwork(network, seed=2)(toy_crops(numbers))
    for name in LOSS_NAMES:
        torch.testing.assert_close(
            whole[name], torch.cat([part[name] for part in parts]), rtol=1e-4, atol=1e-6
        )
    # Another seed samples others.
    assert not torch.equal(whole["loss_objectness"], other["loss_objectness"])
    assert torch.equal(whole["loss_objectness"], repeated["loss_objectness"])
    assert float(whole["loss_mask"][counts.index(0)]) == 0.0


def test_accumulated_parts_are_a_batch(tmp_path):
    stage = StageSettings("all", steps=2, learning_rate=0.1, batch_size=4)
    (tmp_path / "a").mkdir()
    whole, _ = run(tmp_path, stage, freeze_norm_after=0.0)
    parts, _ = run(tmp_path / "a", replace(stage, accumulate=2), freeze_norm_after=0.0)
    for name, value in whole[-1].items():
        torch.testing.assert_close(parts[-1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_average_of_the_weights(tmp_path):
    stage = StageSettings("all", steps=4, learning_rate=0.1, batch_size=2)
    (tmp_path / "a").mkdir()
    weights, _ = run(tmp_path, stage)
    averages, result = run(tmp_path / "a", stage, average_decay=0.2)
    name = "rpn.head.bbox_pred.weight"
    expected = toy_network().state_dict()[name].clone()
    for k, (weight, average) in enumerate(zip(weights, averages, strict=True), start=1):
        decay = min(0.2, k / (k + 10))
        expected = decay * expected + (1 - decay) * weight[name]
        torch.testing.assert_close(average[name], expected)
    # What is returned is what is in the file, in half precision.
    assert torch.equal(result.model.state[name], expected.half().float())
    assert torch.equal(read_model(tmp_path / "a" / "m.safetensors").state[name], result.model.state[name])


def test_normalisation_is_frozen_in_time(tmp_path):
    stage = StageSettings("all", steps=4, learning_rate=0.1, batch_size=2)
    states, _ = run(tmp_path, stage, freeze_norm_after=0.5)
    name = "backbone.body.bn1.running_mean"
    assert not torch.equal(states[0][name], states[1][name])
    assert torch.equal(states[1][name], states[3][name])
    assert not torch.equal(states[1]["rpn.head.bbox_pred.weight"], states[3]["rpn.head.bbox_pred.weight"])


def test_stages_go_on_with_the_crops(tmp_path):
    asked = []

    class Recording(ToySource):
        def crops(self, numbers):
            asked.append(list(numbers))
            return super().crops(numbers)

    stages = (
        StageSettings("first", steps=2, batch_size=2),
        StageSettings("second", steps=1, batch_size=4),
        StageSettings("third", steps=1, batch_size=1),
    )
    run(tmp_path, *stages, source=Recording())
    assert asked == [[0, 1], [2, 3], [4, 5, 6, 7], [8]]


def test_a_finished_training_can_be_kept(tmp_path):
    """The same call then gives the same result at once."""
    stage = StageSettings("all", steps=3, learning_rate=0.1, batch_size=2)
    _, first = run(tmp_path, stage, keep=True)
    assert (tmp_path / "m.safetensors.checkpoint").exists()
    (tmp_path / "m.safetensors").unlink()
    rows = []
    _, again = run(tmp_path, stage, progress=lambda *row: rows.append(row))
    assert not rows
    assert again.history == first.history and again.epochs == first.epochs
    assert all(torch.equal(again.model.state[name], value) for name, value in first.model.state.items())
    assert not (tmp_path / "m.safetensors.checkpoint").exists()


def test_history(tmp_path):
    rows = []
    recorder = Recorder()
    stages = (
        StageSettings("first", epochs=3, batch_size=4, learning_rate=0.01),
        StageSettings("second", steps=4, batch_size=4, learning_rate=0.002),
    )
    _, result = run(
        tmp_path,
        *stages,
        recorder=recorder,
        steps_per_epoch=None,
        log_every=5,
        validation_every=2,
        progress=lambda step, steps, row: rows.append((step, steps, row)),
    )
    # 12 images in batches of 4: 9 steps, then 4, of which one is of an epoch that ends early.
    assert [(row["step"], row["epoch"], row["stage"]) for row in result.history] == [
        (5, 1, "first"),
        (9, 3, "first"),
        (13, 4, "second"),
    ]
    assert [row["step"] for row in result.epochs] == [3, 6, 9, 12, 13]
    assert ["ap50_star" in row for row in result.epochs] == [False, True, False, True, True]
    assert len(recorder.states) == 3
    assert [row["learning_rate"] for row in result.history] == [0.01, 0.01, 0.002]
    for row in (*result.history, *result.epochs):
        assert row["loss"] == pytest.approx(sum(row[name] for name in LOSS_NAMES))
        assert row["seconds"] >= row["data_seconds"] >= 0
    # Means of the same steps.
    weights = (5, 4, 4)
    total = sum(n * row["loss"] for n, row in zip(weights, result.history))
    assert total == pytest.approx(sum(n * row["loss"] for n, row in zip((3, 3, 3, 3, 1), result.epochs)))
    assert {steps for _, steps, _ in rows} == {13}
    assert [row for _, _, row in rows if row["kind"] == "step"] == result.history
    assert [row for _, _, row in rows if row["kind"] == "epoch"] == result.epochs
    written = json.loads((tmp_path / "m.safetensors.history.json").read_text())
    assert written["history"] == result.history and written["epochs"] == result.epochs
    training = result.model.metadata.training
    assert (training["steps"], training["epochs"], training["crops"]) == (13, 5, 52)
    assert training["source"] == {"kind": "toy", "seed": 3}
    names = ["m.safetensors", "m.safetensors.history.csv", "m.safetensors.history.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    table = Table.read(tmp_path / names[1], format="ascii.csv")
    assert list(table["step"]) == [5, 9, 13, 3, 6, 9, 12, 13]
    assert table["loss"][1] == result.history[1]["loss"]


def test_best_model_and_early_end(tmp_path):
    """The model with the highest AP50 is kept; without a higher one the training ends."""
    recorder = Recorder()
    scores = iter([0.2, 0.5, 0.4, 0.3])
    stages = [StageSettings(name, epochs=3, batch_size=2, learning_rate=0.01) for name in ("one", "two")]
    recorder.figures = lambda: {"ap50": next(scores)}
    states, result = run(tmp_path, *stages, recorder=recorder, patience=2)
    assert [row["ap50"] for row in result.epochs] == [0.2, 0.5, 0.4, 0.3] and result.steps == 4
    best = read_model(tmp_path / "m.best.safetensors")
    assert best.metadata.training["step"] == 2 and best.metadata.training["ap50"] == 0.5
    for name, value in best.state.items():
        torch.testing.assert_close(value.float(), states[1][name].float(), rtol=1e-3, atol=1e-4)


def test_steps_that_the_minutes_allow(tmp_path, monkeypatch):
    """The bar ends where the training does."""
    clock = iter(np.arange(0.0, 1e4, 0.5))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    seen = []
    stage = StageSettings("all", steps=1000, batch_size=2)
    _, result = run(tmp_path, stage, minutes=2.0, log_every=2, progress=lambda *row: seen.append(row[:2]))
    assert 5 < result.steps < 100
    assert seen[-1][1] - result.steps <= 2
    assert all(step <= total < 200 for step, total in seen[2:])


def test_initial_model_and_new_planes(tmp_path):
    """A model starts the training; planes that it does not have begin with weights of zero."""
    initial = MaskRcnnModel.from_network(toy_network(seed=9), METADATA)
    still = StageSettings("still", steps=1, learning_rate=1e-12, batch_size=1)
    states, result = run(tmp_path, still, initial=initial)
    for name, value in toy_network(seed=9).named_parameters():
        torch.testing.assert_close(states[0][name], value.detach())
    assert result.model.metadata.training["initial"]["name"] == "toy"

    class Wide(ToySource):
        def crops(self, numbers):
            images, targets = super().crops(numbers)
            return [torch.cat([image, torch.ones_like(image)]) for image in images], targets

    wide = METADATA.model_copy(update={"architecture": SPEC.model_copy(update={"psf_channels": True})})
    settings = TrainSettings(stages=(still,), average_decay=0.0)
    result = train(Wide(), wide, settings, tmp_path / "w.safetensors", initial=initial, device="cpu")
    weight = result.model.state["backbone.body.conv1.weight"]
    assert weight.shape[1] == 2 and float(weight[:, 1].abs().max()) < 1e-6


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    stage = StageSettings("all", steps=5, batch_size=2)
    settings = {"freeze_norm_after": 0.0, "log_every": 1, "checkpoint_minutes": 0.0}
    with pytest.raises(
        TrainingDiverged, match=r"step 0 \(stage 'all'\) in crops 1 of image1 .*no checkpoint"
    ) as e:
        run(tmp_path, stage, source=ToySource(broken=[1]), **settings)
    assert e.value.checkpoint is None
    with pytest.raises(TrainingDiverged, match=r"crops 7 of image7 .*m\.safetensors\.checkpoint") as e:
        run(tmp_path, stage, source=ToySource(broken=[7]), **settings)
    assert (e.value.step, e.value.stage, e.value.crops, e.value.images) == (3, "all", [7], ["image7"])
    # The state before the step is good: with the image repaired, the run goes on.
    assert e.value.checkpoint == str(tmp_path / "m.safetensors.checkpoint")
    assert not (tmp_path / "m.safetensors").exists()
    _, result = run(tmp_path, stage, **settings)
    assert result.steps == 5


def test_a_rate_that_is_too_high_diverges(tmp_path):
    stage = StageSettings("all", steps=20, batch_size=2, learning_rate=1e20)
    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        run(tmp_path, stage)


def test_wall_time(tmp_path):
    """The schedule is pressed together: all stages take part, and the rate still decays to the end."""
    stages = (
        StageSettings("first", steps=10**6, batch_size=1, learning_rate=0.001),
        StageSettings("second", steps=10**6, batch_size=1, learning_rate=0.01, decay="cosine"),
    )
    _, result = run(tmp_path, *stages, minutes=0.05, steps_per_epoch=10**6)
    assert 2 <= result.steps < 10**5
    assert {row["stage"] for row in result.epochs} == {"first", "second"}
    assert result.history[-1]["learning_rate"] < 0.003
    assert result.model.metadata.training["steps"] == result.steps


def test_processes_make_the_same_crops(tmp_path):
    stage = StageSettings("all", steps=3, learning_rate=0.1, batch_size=2)
    (tmp_path / "a").mkdir()
    before = torch.random.get_rng_state()
    by_thread, _ = run(tmp_path, stage)
    by_process, _ = run(tmp_path / "a", stage, workers=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in by_thread[-1].items():
        assert torch.equal(by_process[-1][name], value), name


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_the_source_arrive(tmp_path, workers):
    class Broken(ToySource):
        def crops(self, numbers):
            if 3 in numbers:
                raise OSError("the disk is gone")
            return super().crops(numbers)

    with pytest.raises(OSError, match="the disk is gone"):
        run(tmp_path, StageSettings("all", steps=5, batch_size=1), source=Broken(), workers=workers)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"epochs": 0},
        {"batch_size": 0},
        {"accumulate": 3},
        {"learning_rate": 0.0},
        {"learning_rate": np.nan},
        {"warmup_steps": -1},
        {"decay": "linear"},
        {"trainable": "(unclosed"},
    ],
)
def test_stages_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StageSettings(**{"name": "a", "steps": 10, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"stages": ()},
        {"stages": published_stages() * 2},
        {"average_decay": 1.0},
        {"minutes": 0.0},
        {"log_every": 0},
        {"workers": -1},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainSettings(**wrong)


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        run(tmp_path / "none", StageSettings("all", steps=1))
    with pytest.raises(ValueError, match="device is 'tpu'"):
        train(ToySource(), METADATA, TrainSettings(), tmp_path / "m.safetensors", device="tpu")
    other = METADATA.model_copy(update={"architecture": SPEC.model_copy(update={"box_features": 8})})
    with pytest.raises(ValueError, match="'toy' do not fit.*box_features is 8 there, 16 here"):
        run(
            tmp_path,
            StageSettings("all", steps=1),
            initial=MaskRcnnModel.from_network(build_network(other.architecture), other),
        )
