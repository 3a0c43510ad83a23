# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What scores mean: the fit, the model file that holds it, and the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixed_bands import toy_image, toy_scene
from pydantic import ValidationError

from lsst.meas.maskrcnn.cli import calibrate as command
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.deblend.deblend import DeblendSettings, find_sources
from lsst.meas.maskrcnn.deblend.image import MultibandImage
from lsst.meas.maskrcnn.deblend.shares import ShareSettings
from lsst.meas.maskrcnn.metrics.calibration import log_loss, reliability
from lsst.meas.maskrcnn.network.calibration import Calibration, CalibrationCurve, calibrate, fit_curve
from lsst.meas.maskrcnn.network.detections import Detections
from lsst.meas.maskrcnn.network.inference import DetectionSettings
from lsst.meas.maskrcnn.network.model_file import (
    default_model_path,
    load_model,
    read_metadata,
    read_model,
    write_model,
)
from lsst.meas.maskrcnn.report.calibration_figure import plot_calibrated
from lsst.meas.maskrcnn.train.any_band_validation import collect_band_cases
from lsst.meas.maskrcnn.train.band_scenes import read_band_scene
from lsst.meas.maskrcnn.train.calibrate import CalibrationCases, calibration_cases, cross_calibrate
from lsst.meas.maskrcnn.train.training_scene import TrainingScene, write_scene


@pytest.fixture(scope="module")
def fixed_path(fixed_model, tmp_path_factory) -> Path:
    """The file of a model of fixed bands."""
    path = tmp_path_factory.mktemp("model") / "toy.safetensors"
    write_model(fixed_model, path)
    return path


def overconfident(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """What comes true with p is given as 1 / (1 + exp(-2 logit(p)))."""
    p = rng.beta(0.8, 0.8, n)
    return 1.0 / (1.0 + ((1.0 - p) / p) ** 2), rng.random(n) < p


def test_known_distortion_is_undone(rng):
    curve = fit_curve(*overconfident(rng, 60_000))
    p = np.linspace(0.03, 0.97, 95)
    given = 1.0 / (1.0 + ((1.0 - p) / p) ** 2)
    np.testing.assert_allclose(curve.apply(given), p, atol=0.025)
    fresh, true = overconfident(rng, 60_000)
    assert reliability(fresh, true).expected_error > 0.05
    assert reliability(curve.apply(fresh), true).expected_error < 0.012
    assert log_loss(curve.apply(fresh), true) < log_loss(fresh, true) - 0.02


def test_curve_keeps_the_order(rng):
    curve = fit_curve(*overconfident(rng, 3000))
    assert len(curve.given) <= 30
    x = np.linspace(0.0, 1.0, 5001)
    value = np.interp(x, curve.given, curve.probability)
    assert (np.diff(value) > 0.0).all()
    np.testing.assert_allclose(curve.apply(x), value, rtol=1e-6)
    assert np.isnan(curve.apply([np.nan])).all()


def test_violations_are_pooled_by_hand():
    # Shares 1/4, 3/4, 2/4 with 4 cases each at 0.2, 0.4, 0.6: the last two pool to 5/8 at 0.5.
    given = np.repeat([0.2, 0.4, 0.6], 40)
    true = np.concatenate([np.arange(40) < n for n in (10, 30, 20)])
    curve = fit_curve(given, true, n_points=28)
    np.testing.assert_allclose(curve.given, [0.0, 0.2, 0.5, 1.0], atol=1e-7)
    np.testing.assert_allclose(curve.probability[1:3], [10.5 / 41, 50.5 / 81], atol=1e-6)


def test_what_cannot_be_fitted(rng):
    with pytest.raises(ValueError, match="Give more scenes"):
        fit_curve(rng.random(20), np.arange(20) < 10)
    with pytest.raises(ValueError, match="of both kinds"):
        fit_curve(rng.random(100), np.ones(100, bool))
    x = rng.random(2000)
    with pytest.raises(ValueError, match="do not rise with"):
        fit_curve(x, rng.random(2000) > x)
    with pytest.raises(ValueError, match="between 0 and 1"):
        fit_curve(x * 2, x > 0.5)
    with pytest.raises(ValueError, match="One outcome per case"):
        fit_curve(x, x[1:] > 0.5)


@pytest.mark.parametrize(
    ("given", "probability", "message"),
    [
        ((0.0, 1.0), (0.2,), "1 in 'probability'"),
        ((0.0, 0.9), (0.2, 0.4), "from 0 to 1"),
        ((0.0, 0.5, 1.0), (0.2, 0.2, 0.4), "'probability' must rise"),
        ((0.0, 0.5, 0.5, 1.0), (0.2, 0.3, 0.4, 0.5), "'given' must rise"),
        ((0.0, 1.0), (0.2, 1.4), "less than or equal to 1"),
    ],
)
def test_curves_that_are_none(given, probability, message):
    with pytest.raises(ValidationError, match=message):
        CalibrationCurve(given=given, probability=probability)


SIMPLE = Calibration(
    score=CalibrationCurve(given=(0.0, 0.5, 1.0), probability=(0.1, 0.3, 0.9)),
    p_star=CalibrationCurve(given=(0.0, 1.0), probability=(0.2, 0.8)),
)


def make_detections(scores: list[float], p_star: list[float]) -> Detections:
    """Squares of 4 x 4 px side by side."""
    n = len(scores)
    origins = np.stack([np.full(n, 3), 8 * np.arange(n)], axis=1).astype(np.int32)
    boxes = np.concatenate([origins[:, ::-1], origins[:, ::-1] + 4], axis=1).astype(np.float32)
    return Detections(
        boxes,
        np.array(scores, np.float32),
        np.array(p_star, np.float32),
        origins,
        [np.ones((4, 4), bool) for _ in range(n)],
    )


def test_applied_to_arrays():
    np.testing.assert_allclose(calibrate([1.0, 0.5, 0.25], SIMPLE, "score"), [0.9, 0.3, 0.2])
    np.testing.assert_allclose(calibrate([1.0, 0.5, 0.0], SIMPLE, "p_star"), [0.8, 0.5, 0.2])
    # Without a calibration, or a curve in it, nothing happens.
    assert calibrate([0.25], None, "score").tolist() == [0.25]
    assert calibrate([[0.5]], SIMPLE, "p_blend").tolist() == [[0.5]]


def test_probabilities_are_in_the_order_of_the_scores():
    given = np.random.default_rng(3).random((50, 4))
    for quantity in ("score", "p_star"):
        probability = calibrate(given, SIMPLE, quantity)
        assert probability.shape == given.shape and probability.dtype == np.float32
        assert (np.diff(probability.ravel()[given.argsort(axis=None)]) > 0).all()


def square_scene(places: list[tuple[int, int]], labels: list[int], peaks: list[float]) -> TrainingScene:
    """Squares of 4 x 4 px at (y, x) on an image of 40 x 70 px."""
    valid = np.ones((40, 70), bool)
    valid[30:] = False
    return TrainingScene(
        noiseless=np.zeros((3, 40, 70), np.float32),
        variance=np.ones((3, 40, 70), np.float32),
        valid=valid,
        labels=np.array(labels, dtype=np.int64),
        peak_flux=np.array([[0.5 * peak, peak, peak] for peak in peaks], np.float32).reshape(-1, 3),
        masks=[np.ones((4, 4), bool) for _ in places],
        origins=np.array(places, np.int32).reshape(-1, 2),
    )


def test_cases_of_an_image():
    found = make_detections([0.9, 0.8, 0.7, 0.6, 0.5], [0.9, 0.1, 0.2, 0.3, 0.4])
    found.origins[4] = (34, 50)
    # One right; one on a truth that does not count; one shifted by 2 px (IoU 1/3); one false; one on bad
    # pixels.
    scene = square_scene([(3, 0), (3, 8), (5, 16)], [1, 2, 1], [75.0, 2.5, 15.0])
    noise = np.array([1.5, 2.5, 2.5])
    cases = calibration_cases(found, scene, np.array([True, False, True]), noise, number=4)
    np.testing.assert_allclose(cases.score, [0.9, 0.7, 0.6])
    np.testing.assert_array_equal(cases.true, [True, False, False])
    np.testing.assert_array_equal(cases.counts, [True, True, True])
    np.testing.assert_array_equal(cases.on_source, [True, True, False])
    np.testing.assert_array_equal(cases.is_star, [True, True, False])
    np.testing.assert_allclose(cases.snr, [30.0, 6.0, np.nan])
    assert (cases.image == 4).all() and (cases.depth == 2.5).all()
    np.testing.assert_allclose(cases.classes()[0], [0.9, 0.2])
    nothing = calibration_cases(
        make_detections([], []), square_scene([], [], []), np.zeros(0, bool), np.ones(3)
    )
    assert len(nothing) == 0
    assert len(CalibrationCases.concatenate([nothing, cases])) == 3


def make_cases(rng: np.random.Generator, n: int = 20_000, images: int = 20) -> CalibrationCases:
    score, true = overconfident(rng, n)
    p_star, is_star = overconfident(rng, n)
    return CalibrationCases(
        score=score,
        counts=np.ones(n, bool),
        true=true,
        p_star=p_star,
        on_source=true,
        is_star=true & is_star,
        p_blend=np.full(n, np.nan),
        is_blend=np.zeros(n, bool),
        snr=np.where(true, rng.lognormal(3.0, 1.0, n), np.nan),
        depth=np.repeat(rng.choice([0.0, 1.0, 2.0, 4.0], images), n // images),
        image=np.repeat(np.arange(images), n // images),
    )


def test_cross_calibration_is_not_fitted_to_the_image(rng):
    cases = make_cases(rng)
    after = cross_calibrate(cases, n_folds=4)
    for before, now in ((cases.scores(), after.scores()), (cases.classes(), after.classes())):
        assert reliability(*now).expected_error < 0.3 * reliability(*before).expected_error
    # The cases of an image do not change what becomes of them.
    out = cases.image % 4 == 1
    flipped = CalibrationCases(**{**vars(cases), "true": np.where(out, ~cases.true, cases.true)})
    np.testing.assert_array_equal(cross_calibrate(flipped, n_folds=4).score[out], after.score[out])
    with pytest.raises(ValueError, match="cannot be divided"):
        cross_calibrate(cases, n_folds=21)


def test_figure(rng, tmp_path):
    cases = make_cases(rng, 4000)
    figure = plot_calibrated(cases, cross_calibrate(cases))
    assert len(figure.axes) == 12
    blends = replace(cases, p_blend=cases.p_star, is_blend=cases.is_star)
    assert len(plot_calibrated(blends, cross_calibrate(blends)).axes) == 18
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    error = reliability(*cases.scores()).expected_error
    assert labels[0].startswith("before: ") and f"{error:.3f}" in labels[0]
    figure.savefig(tmp_path / "f.png", dpi=40)
    with pytest.raises(ValueError, match="4000 cases before"):
        plot_calibrated(cases, cases.select(np.arange(3)))


def write_squares(folder: Path, count: int) -> None:
    """Scenes, not square, of the sources that the model knows, in its bands."""
    yy, xx = np.mgrid[:96, :160]
    for number in range(count):
        rng = np.random.default_rng([5, number])
        n = 14
        light = np.zeros((2, 96, 160), np.float32)
        masks, origins, peaks, labels = [], [], [], []
        for _ in range(n):
            y, x = rng.uniform(8, 88), rng.uniform(8, 152)
            star = rng.random() < 0.5
            peak = rng.lognormal(4.0, 1.0)
            sigma_x, sigma_y = (2.0, 2.0) if star else (6.0, 3.5)
            shape = np.exp(-0.5 * (((xx - x) / sigma_x) ** 2 + ((yy - y) / sigma_y) ** 2))
            light += (peak * shape).astype(np.float32)
            inside = shape > 0.08
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            masks.append(inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
            origins.append((rows[0], columns[0]))
            peaks.append([peak] * 2)
            labels.append(1 if star else 2)
        scene = TrainingScene(
            noiseless=light,
            variance=np.ones_like(light),
            valid=np.ones((96, 160), bool),
            labels=np.array(labels, dtype=np.int64),
            peak_flux=np.array(peaks, np.float32),
            origins=np.array(origins, np.int32),
            masks=masks,
            psf_fwhm=np.full(2, 4.0, np.float32),
        )
        write_scene(scene, folder / f"s{number:02d}.npz")


def test_command_from_scenes_to_model(tmp_path, capsys, fixed_path):
    write_squares(tmp_path, 24)
    output, figure = tmp_path / "new.safetensors", tmp_path / "f.png"
    arguments = [str(fixed_path), str(output), "--scenes", str(tmp_path)]
    assert maskrcnn("calibrate", [*arguments, "--figure", str(figure)]) == 0
    printed = capsys.readouterr().out
    assert "24 scenes" in printed and "p_star" in printed
    assert figure.stat().st_size > 10_000
    old, new = read_model(fixed_path), read_model(output)
    assert new.metadata.model_copy(update={"calibration": old.metadata.calibration}) == old.metadata
    assert all(torch.equal(new.state[name], value) for name, value in old.state.items())
    calibration = new.metadata.calibration
    assert calibration is not None
    assert calibration.provenance["scenes"]["count"] == 24
    assert calibration.provenance["after"]["score"]["brier"] > 0.0
    # The command again gives the same file, over itself.
    again = output.read_bytes()
    arguments[0] = str(output)
    assert maskrcnn("calibrate", arguments) == 0
    assert output.read_bytes() == again


def test_command_detects_as_the_deblender_does(rng, monkeypatch, fixed_model):
    """With the settings of the model, but with the scores of the network."""
    curve = CalibrationCurve(given=(0.0, 1.0), probability=(0.0, 0.9))
    calibration = Calibration(score=curve, p_star=curve)
    metadata = fixed_model.metadata.model_copy(update={"calibration": calibration})
    model = replace(fixed_model, metadata=metadata)
    image = toy_image(toy_scene(), rng)
    asked: list[DetectionSettings] = []

    def spy(image, model, settings):
        asked.append(settings.detection)
        return find_sources(image, model, settings)

    monkeypatch.setattr(command, "find_sources", spy)
    found = command.detector(model)(image)
    wanted = DetectionSettings(score_threshold=asked[0].score_threshold)
    assert asked == [wanted]
    probability = calibrate(found.scores, model.metadata.calibration, "score")
    assert (probability < found.scores - 0.005).any()
    settings = DeblendSettings(detection=DetectionSettings(score_threshold=float(probability.min())))
    np.testing.assert_array_equal(find_sources(image, model, settings).scores, probability)


@pytest.fixture(scope="module")
def calibrated_bands(tmp_path_factory) -> tuple[Path, Path]:
    """The model for any bands, calibrated on small scenes, and these scenes."""
    pytest.importorskip("galsim")
    from lsst.meas.maskrcnn.train.band_scenes import make_scenes

    folder = tmp_path_factory.mktemp("bands")
    for _ in make_scenes(folder, range(12), 31, (144, 160)):
        pass
    output = folder / "lite.safetensors"
    model = default_model_path()
    options = ["--scenes", str(folder), "--figure", str(folder / "f.png")]
    assert maskrcnn("calibrate", [str(model), str(output), *options]) == 0
    return output, folder


def test_command_calibrates_models_for_any_bands(calibrated_bands):
    output, folder = calibrated_bands
    old, new = load_model(), read_model(output)
    assert all(torch.equal(new.state[name], value) for name, value in old.state.items())
    calibration = new.metadata.calibration
    assert calibration is not None and calibration.p_blend is not None
    assert calibration.provenance["n_scenes"] == 12 and "iou" not in calibration.provenance
    # The default threshold is the smallest score at which 97 % are sources.
    scenes = [read_band_scene(path) for path in sorted(folder.glob("*.npz"))]
    cases = collect_band_cases(new.build().eval(), scenes, 0.02)
    score, true = calibrate(cases.score, calibration, "score"), cases.true
    threshold = new.metadata.architecture.detection_score
    assert true[score >= threshold].mean() >= 0.97
    below = np.sort(score[score < threshold])
    assert all(true[score >= one].mean() < 0.97 for one in below)
    # On a source is what is near one of S/N 5; blends and stars are among these.
    assert (cases.snr[cases.on_source] >= 5).all() and np.isnan(cases.snr[~cases.on_source]).all()
    assert 0 < (cases.is_blend & cases.on_source).sum() < cases.on_source.sum()
    assert not (cases.is_blend | cases.is_star)[~cases.on_source].any()
    # Bands, noise and masks of each scene are drawn; again they are the same.
    again = collect_band_cases(new.build().eval(), scenes, 0.02)
    np.testing.assert_array_equal(again.score, cases.score)


def test_curves_that_do_not_help_on_other_scenes_are_left_out():
    curve = CalibrationCurve(given=(0.0, 1.0), probability=(0.2, 0.8))
    fitted = Calibration(score=curve, p_star=curve, p_blend=curve)
    loss = {"score": (0.3, 0.4), "p_star": (0.3, 0.2), "p_blend": (0.3, 0.31)}
    figures = {
        when: {name: {"log_loss": values[place]} for name, values in loss.items()}
        for place, when in enumerate(("before", "after"))
    }
    kept = command.keep_better(fitted, figures)
    assert kept.score == curve and kept.p_star == curve
    np.testing.assert_allclose(kept.p_blend.apply([0.1, 0.7]), [0.1, 0.7], rtol=1e-6)


def test_deblender_calibrates_what_networks_of_any_bands_say(calibrated_bands):
    model = read_model(calibrated_bands[0])
    curve = CalibrationCurve(given=(0.0, 1.0), probability=(0.1, 0.6))
    calibration = model.metadata.calibration.model_copy(update={"p_blend": curve})
    architecture = model.metadata.architecture
    model = replace(model, metadata=model.metadata.model_copy(update={"calibration": calibration}))
    y, x = np.mgrid[:120, :140]
    rng = np.random.default_rng(8)
    stars = sum(
        peak * np.exp(-0.5 * ((y - rng.uniform(10, 110)) ** 2 + (x - rng.uniform(10, 130)) ** 2) / 1.7**2)
        for peak in np.geomspace(2.0, 60.0, 24)
    )
    flux = (stars + rng.normal(size=(2, 120, 140))).astype(np.float32)
    image = MultibandImage(flux, ("g", "i"), 0.2, psf_fwhm=[4.0, 4.0])
    plain = replace(model, metadata=model.metadata.model_copy(update={"calibration": None}))
    masks = ShareSettings(template="mask")
    lowest = DeblendSettings(detection=DetectionSettings(score_threshold=0.0), shares=masks)
    raw = find_sources(image, plain, lowest).detections
    found = find_sources(image, model, lowest).detections
    np.testing.assert_array_equal(found.scores, calibrate(raw.scores, calibration, "score"))
    np.testing.assert_array_equal(found.p_star, calibrate(raw.p_star, calibration, "p_star"))
    np.testing.assert_array_equal(found.p_blend, calibrate(raw.p_blend, calibration, "p_blend"))
    assert (found.p_blend != raw.p_blend).any()
    default = find_sources(image, model).detections
    assert 0 < len(default) < len(found)
    assert len(default) == (found.scores >= architecture.detection_score).sum()


@pytest.mark.slow
def test_command_simulates_scenes(tmp_path, capsys, fixed_path):
    output = tmp_path / "new.safetensors"
    arguments = [str(fixed_path), str(output), "--count", "20", "--presets", "hsc-500s", "lsst-1yr"]
    assert maskrcnn("calibrate", arguments) == 0
    calibration = read_metadata(output).calibration
    assert calibration is not None
    assert calibration.provenance["scenes"]["presets"] == ["hsc-500s", "lsst-1yr"]
    assert calibration.provenance["n_detections"] >= 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "3"], "--count 3"),
        (["--iou", "0"], "--iou 0"),
        (["--scenes", "nowhere"], "has 0 training scenes"),
        (["--presets", "mars"], "no preset mars"),
        (["--figure", "f.gif"], "must end in"),
        (["--device", "cuda:99"], "cuda:99"),
        (["lite", "--presets", "hsc-500s"], "of fixed bands"),
    ],
)
def test_command_refuses(tmp_path, capsys, fixed_path, options, message):
    output, model = tmp_path / "new.safetensors", fixed_path
    if options[0] == "lite":
        model, options = default_model_path(), options[1:]
    assert maskrcnn("calibrate", [str(model), str(output), *options]) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_command_names_what_is_no_model(tmp_path, capsys, fixed_path):
    (tmp_path / "m").write_bytes(b"SIMPLE  =" * 99)
    assert maskrcnn("calibrate", [str(tmp_path / "m"), str(tmp_path / "n")]) == 1
    assert "not a model file" in capsys.readouterr().err
    assert maskrcnn("calibrate", [str(fixed_path), str(tmp_path / "no" / "n")]) == 1
    assert "There is no folder" in capsys.readouterr().err
