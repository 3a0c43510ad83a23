# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn calibrate``: calibrate the scores of a model, and write the
calibration into the model file.
"""

from __future__ import annotations

import io
import math
import multiprocessing
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from tqdm import tqdm

from ..deblend.deblend import DeblendSettings, find_sources
from ..deblend.image import MultibandImage
from ..deblend.shares import ShareSettings
from ..images.files import write_atomically
from ..metrics.calibration import log_loss, reliability, threshold_at_purity
from ..metrics.classification import roc_curve
from ..network.any_band import AnyBandNetwork, AnyBandSpec
from ..network.calibration import Calibration, CalibrationCurve
from ..network.detections import Detections
from ..network.inference import DetectionSettings, select_device
from ..network.model_file import MaskRcnnModel, ModelMetadata, model_from_bytes, replace_metadata
from ..report.calibration_figure import plot_calibrated
from ..scenes.presets import PRESETS, preset_config
from ..scenes.simulate import simulate_scene
from ..train.any_band_validation import PURITY, collect_band_cases
from ..train.band_scenes import BandScene, read_band_scene, simulate_band_scene
from ..train.calibrate import CalibrationCases, collect_cases, cross_calibrate, fit_calibration
from ..train.scene_sources import SceneFiles
from ..train.training_scene import TrainingScene
from ..train.training_set import to_training_scene
from .command import Arguments, CommandError, check_folder, check_limits, command

_SHAPE, _BAND_SHAPE = (512, 512), (384, 384)
_COUNT = 200
_FEWEST = 10
_LOWEST_SCORE = 0.02
_STRAIGHT = CalibrationCurve(given=(0.0, 1.0), probability=(0.0, 1.0))
"""Leaves a probability as it was."""


_T = TypeVar("_T")


@command(ValueError, advice="; nothing was written")
def run(arguments: Arguments) -> None:
    """Calibrate a model."""
    _check(arguments)
    data = arguments.model.read_bytes()
    model = model_from_bytes(data, name=str(arguments.model))
    torch.set_num_threads(1)
    cases, described = (_any_band_cases if model.takes_any_bands else _fixed_cases)(model, arguments)
    after = cross_calibrate(cases)
    figures = {"before": _figures(cases), "after": _figures(after)}
    calibration = fit_calibration(
        cases,
        provenance={
            "n_detections": int(cases.counts.sum()),
            "n_sources": int(cases.true.sum()),
            "n_stars": int(cases.is_star.sum()),
            "n_blends": int(cases.is_blend.sum()),
            **described,
            "lowest_score": _LOWEST_SCORE,
            **figures,
        },
    )
    calibration = keep_better(calibration, figures, ("p_star",) if model.takes_any_bands else ())
    if arguments.figure is not None:
        picture = io.BytesIO()
        plot_calibrated(cases, after).savefig(picture, format=arguments.figure.suffix[1:])
        write_atomically(arguments.figure, picture.getvalue())
    metadata = _calibrated(model.metadata, calibration, cases)
    write_atomically(arguments.output.absolute(), replace_metadata(data, metadata, str(arguments.model)))
    print(
        f"{int(cases.counts.sum())} detections on {described['n_scenes']} scenes, "
        f"{int(cases.true.sum())} of them true, {int(cases.is_star.sum())} stars."
    )
    print(f"{'':15s}{'':>19s} {'':>7s} {'':>9s}   at 0.5 and above:")
    print(
        f"{'':15s}{'calibration error':>19s} {'Brier':>7s} {'log loss':>9s} {'number':>8s} {'purity':>7s} "
        f"{'completeness':>13s} {'ROC area':>9s}"
    )
    for name in figures["before"]:
        for when, rows in figures.items():
            row = rows[name]
            print(
                f"{name:8s}{when:7s}{row['expected_error']:19.4f} {row['brier']:7.4f} {row['log_loss']:9.4f} "
                f"{row['number']:8d} {row['purity']:7.3f} {row['completeness']:13.3f} {row['roc_area']:9.3f}"
            )
    if "p_blend" in figures["after"]:
        row = figures["after"]["p_blend"]
        print(f"{row['single']:.3f} are single, and {row['clean']:.3f} of the 90 % with the lowest P(blend).")
    kept = [name for name in figures["after"] if getattr(calibration, name) == _STRAIGHT]
    if kept:
        print(f"As they were: {', '.join(kept)}.")
    half = np.interp(0.5, calibration.score.probability, calibration.score.given)
    print(f"A probability of 0.5 is a score of {half:.3f}. Written to {arguments.output}.")


def keep_better(
    calibration: Calibration, figures: dict[str, dict[str, dict[str, float]]], keep: Sequence[str] = ()
) -> Calibration:
    """Leave probabilities of classes and blends as they are where a curve does not lower the log loss.

    ``figures`` are those of scenes that were not used in the fit, "before" and "after", by name. Those
    in ``keep`` are left in any case: P(star) of models for any bands holds for more stars than scenes have.
    """
    worse = [
        name
        for name in ("p_star", "p_blend")
        if name in keep
        or name in figures["after"]
        and figures["after"][name]["log_loss"] >= figures["before"][name]["log_loss"]
    ]
    return calibration.model_copy(update=dict.fromkeys(worse, _STRAIGHT))


def _calibrated(metadata: ModelMetadata, calibration: Calibration, cases: CalibrationCases) -> ModelMetadata:
    """Put a calibration into a header, and the threshold of the default purity if the model has its own."""
    update: dict[str, Any] = {"calibration": calibration}
    if isinstance(metadata.architecture, AnyBandSpec):
        score = float(calibration.score.apply(threshold_at_purity(*cases.scores(), PURITY)))
        # Cut off, not rounded up above the last score that passes.
        threshold = math.floor(1e4 * min(score, 0.9999)) / 1e4
        update["architecture"] = metadata.architecture.model_copy(update={"detection_score": threshold})
        print(f"A purity of {PURITY} from a probability of {threshold:.3f}, the default threshold.")
    return metadata.model_copy(update=update)


def _fixed_cases(model: MaskRcnnModel, arguments: Arguments) -> tuple[CalibrationCases, dict[str, Any]]:
    """Collect the cases of a model of fixed bands, and tell of what they are."""
    count, described, scenes = _open_scenes(arguments, model.metadata.bands)
    rules = {name: getattr(arguments, name) for name in ("iou", "min_area", "min_peak_snr")}
    with closing(scenes):
        counted = tqdm(scenes, total=count, unit="scene", disable=None)
        cases = collect_cases(detector(model, arguments.device), counted, model.metadata, **rules)
    return cases, {"scenes": described, "n_scenes": count, **rules}


def _any_band_cases(model: MaskRcnnModel, arguments: Arguments) -> tuple[CalibrationCases, dict[str, Any]]:
    """Collect the cases of a model of any bands, and tell of what they are."""
    if arguments.presets:
        raise CommandError("--presets is for models of fixed bands; leave it out, or give --scenes.")
    scenes: Generator[BandScene, None, None]
    if arguments.scenes is None:
        count, described = arguments.count or _COUNT, {"kind": "simulated", "seed": arguments.seed}
        described |= {"presets": "mixture of surveys", "shape": list(_BAND_SHAPE)}
        scenes = _simulate_all(partial(_simulate_bands, seed=arguments.seed), count, arguments.jobs)
    else:
        paths = _scene_paths(arguments)
        count, described = len(paths), {"kind": "files", "first": paths[0].name, "last": paths[-1].name}
        scenes = (read_band_scene(path) for path in paths)
    network = cast(AnyBandNetwork, model.build(select_device(arguments.device)).eval())
    with closing(scenes):
        counted = tqdm(scenes, total=count, unit="scene", disable=None)
        cases = collect_band_cases(network, counted, _LOWEST_SCORE)
    return cases, {"scenes": described, "n_scenes": count}


def _check(arguments: Arguments) -> None:
    """Refuse what would fail after minutes."""
    check_limits(arguments, count=(_FEWEST, math.inf), jobs=(1, math.inf), min_area=(1, math.inf))
    if not 0.0 < arguments.iou <= 1.0:
        raise CommandError(f"--iou {arguments.iou} is not possible; give a number above 0, at most 1.")
    if arguments.scenes is not None and arguments.presets:
        raise CommandError("--presets is for scenes that are simulated; leave it out with --scenes.")
    unknown = sorted(set(arguments.presets) - set(PRESETS))
    if unknown:
        raise CommandError(f"There is no preset {', '.join(unknown)}; known are {', '.join(PRESETS)}.")
    select_device(arguments.device)
    for path in (arguments.output, arguments.figure):
        if path is not None:
            check_folder(path)
    if arguments.figure is not None and arguments.figure.suffix not in (".png", ".pdf", ".svg"):
        raise CommandError(f"--figure {arguments.figure} must end in .png, .pdf or .svg.")


def _open_scenes(
    arguments: Arguments, bands: tuple[str, ...]
) -> tuple[int, dict[str, Any], Generator[TrainingScene, None, None]]:
    """Return the scenes that the options ask for: their number, what they are, themselves."""
    if arguments.scenes is None:
        count = arguments.count or _COUNT
        presets = tuple(arguments.presets) or tuple(PRESETS)
        described = {
            "kind": "simulated",
            "presets": list(presets),
            "shape": list(_SHAPE),
            "bands": list(bands),
            "seed": arguments.seed,
        }
        make = partial(_simulate, seed=arguments.seed, presets=presets, bands=bands)
        return count, described, _simulate_all(make, count, arguments.jobs)
    files = SceneFiles(_scene_paths(arguments))
    return len(files), files.describe(), (files.scene(number) for number in range(len(files)))


def _scene_paths(arguments: Arguments) -> list[Path]:
    paths = sorted(arguments.scenes.glob("*.npz"))[: arguments.count]
    if len(paths) < _FEWEST:
        raise CommandError(
            f"{arguments.scenes} has {len(paths)} training scenes (.npz), too few; make some with maskrcnn "
            "train --scenes or maskrcnn train-any-band scenes, or leave out --scenes to have them simulated."
        )
    return paths


def _simulate_all(make: partial[_T], count: int, jobs: int) -> Generator[_T, None, None]:
    """Simulate scenes, in processes beside this one if there are jobs for them."""
    if jobs == 1:
        yield from map(make, range(count))
        return
    with multiprocessing.get_context("spawn").Pool(jobs - 1) as pool:
        yield from pool.imap(make, range(count))


def _simulate(number: int, seed: int, presets: tuple[str, ...], bands: tuple[str, ...]) -> TrainingScene:
    """Make a scene of the presets in turn, with its pixels as they are."""
    config = preset_config(presets[number % len(presets)], shape=_SHAPE, bands=bands)
    return to_training_scene(simulate_scene(config, np.random.default_rng([seed, number])))


def _simulate_bands(number: int, seed: int) -> BandScene:
    """Make a scene of the mixture of surveys."""
    return simulate_band_scene(np.random.default_rng([seed, number]), _BAND_SHAPE)


def detector(model: MaskRcnnModel, device: str = "auto") -> Callable[[MultibandImage], Detections]:
    """Return a function that finds sources as the deblender does, but not calibrated.

    Detection settings are those of the model, but for a lower threshold of the score.
    """
    plain = replace(model, metadata=model.metadata.model_copy(update={"calibration": None}))
    settings = DeblendSettings(
        detection=DetectionSettings(score_threshold=_LOWEST_SCORE, device=device),
        # Masks are all that is compared.
        shares=ShareSettings(template="mask"),
    )
    return lambda image: find_sources(image, plain, settings).detections


def _figures(cases: CalibrationCases) -> dict[str, dict[str, Any]]:
    """Errors of probabilities, what has one of at least 0.5, and the area under the ROC curve.

    Completeness is that among the cases, not that on the sky. Of blends, also the share
    that is single, of all and of the 90 % with the lowest probability.
    """
    figures = {}
    quantities = {"score": cases.scores(), "p_star": cases.classes(), "p_blend": cases.blends()}
    for name, (given, true) in quantities.items():
        if not len(given):
            continue
        result = reliability(given, true, n_bins=20, equal_counts=True)
        kept = given >= 0.5
        figures[name] = {
            "expected_error": round(result.expected_error, 5),
            "brier": round(result.brier, 5),
            "log_loss": round(log_loss(given, true), 5),
            "number": int(kept.sum()),
            "purity": round(float(true[kept].mean()) if kept.any() else math.nan, 5),
            "completeness": round(float(kept[true].mean()), 5),
            "roc_area": round(roc_curve(given, true).area, 5),
        }
        if name == "p_blend":
            clean = ~true[given <= np.quantile(given, 0.9)]
            figures[name] |= {
                "single": round(float((~true).mean()), 5),
                "clean": round(float(clean.mean()), 5),
            }
    return figures
