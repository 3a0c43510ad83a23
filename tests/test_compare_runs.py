# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Comparison of evaluations, and its command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from evaluation_sample import make_sample

from lsst.daf.butler import CollectionType, DatasetType
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.ingest.repo import create_repo
from lsst.meas.maskrcnn.metrics.run_comparison import (
    EvaluatedRun,
    RunComparison,
    RunComparisonError,
    compare_runs,
    run_setting,
    settings_that_differ,
)

_KINDS = {"metrics": "MaskRcnnMetrics", "matches": "ArrowAstropy", "outcomes": "ArrowAstropy"}


@pytest.fixture(scope="module")
def runs() -> list[EvaluatedRun]:
    """A good run, a worse one, and a good one on other patches, of which two are shared."""

    def make(*arguments, **named) -> EvaluatedRun:
        return make_sample(*arguments, with_gallery=False, **named).run

    return [
        make("u/good", 6, 0.95),
        make("u/worse", 6, 0.6, seed=2),
        make("u/elsewhere", 4, 0.95, first_patch=4),
        make("u/far", 2, 0.95, first_patch=40),
    ]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory, runs: list[EvaluatedRun]) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("compare") / "repo"
    butler = create_repo(path)
    butler.registry.syncDimensionData(
        "skymap",
        {"name": "maskRcnnSim-test", "hash": b"0", "tract_max": 1, "patch_nx_max": 10, "patch_ny_max": 10},
    )
    for name, kind in _KINDS.items():
        butler.registry.registerDatasetType(
            DatasetType(f"maskRcnnEvaluation_{name}", ("skymap",), kind, universe=butler.dimensions)
        )
    for run in runs:
        butler.collections.register(run.name, CollectionType.RUN)
        parts = {"metrics": run.metrics, "matches": Table(run.matches), "outcomes": Table(run.outcomes)}
        for part, dataset in parts.items():
            butler.put(dataset, f"maskRcnnEvaluation_{part}", skymap="maskRcnnSim-test", run=run.name)
    yield path


def common_patches(runs: list[EvaluatedRun]) -> tuple[str, ...]:
    return compare_runs(runs, n_samples=2).patches


def _by_key(comparison: RunComparison) -> dict:
    return {one.figure.key: one for one in comparison.figures}


def test_run_against_itself(runs: list[EvaluatedRun]) -> None:
    comparison = compare_runs([runs[0], runs[0]], n_samples=50)
    assert len(comparison.figures) > 25
    for one in comparison.figures:
        assert one.value[0] == pytest.approx(one.value[1], nan_ok=True)
        assert np.isnan(one.difference[0]) and np.isnan(one.p_value[0])
        if np.isfinite(one.value[0]):
            assert one.difference[1] == 0.0
            assert one.difference_error[1] == 0.0
            assert one.p_value[1] == 1.0


def test_worse_run_is_found_worse(runs: list[EvaluatedRun]) -> None:
    found = _by_key(compare_runs(runs[:2], n_samples=300))
    for key in (
        ("ap", "all", "pooled", "all", 0.5, ""),
        ("ap", "star", "perImage", "all", 0.5, ""),
        ("completeness", "all", "", "all", None, ""),
        ("class_accuracy", "all", "", "all", None, ""),
    ):
        one = found[key]
        assert one.difference[1] == pytest.approx(one.value[1] - one.value[0])
        assert one.difference[1] < -3.0 * one.difference_error[1] < 0.0
        assert one.p_value[1] < 0.02
    # What does not depend on how many are found does not differ.
    assert found["flux_scatter", "all", "", "all", None, ""].p_value[1] > 0.05


def test_reference_turns_the_sign(runs: list[EvaluatedRun]) -> None:
    forward, backward = (_by_key(compare_runs(runs[:2], reference, n_samples=50)) for reference in (0, 1))
    key = ("ap", "all", "pooled", "all", 0.5, "")
    assert backward[key].difference[0] == pytest.approx(-forward[key].difference[1])
    assert np.isnan(backward[key].difference[1])


def test_only_common_patches_count(runs: list[EvaluatedRun]) -> None:
    """Figures of two runs with few patches in common are those of evaluations of these patches alone."""
    assert common_patches([runs[0], runs[2]]) == ("0,4", "0,5")
    comparison = compare_runs([runs[0], runs[2]], n_samples=20)
    assert comparison.patches == ("0,4", "0,5")
    alone = make_sample("u/good", 2, 0.95, first_patch=4, with_gallery=False).run
    stored = {value.key: value.value for value in alone.metrics.values}
    checked = 0
    for one in comparison.figures:
        if one.figure.key in stored:
            assert one.value[0] == pytest.approx(stored[one.figure.key], nan_ok=True)
            # The same detector, on the same patches.
            assert one.difference[1] == pytest.approx(0.0, abs=1e-12, nan_ok=True)
            checked += 1
    assert checked > 25


def test_order_of_patches_does_not_matter(runs: list[EvaluatedRun]) -> None:
    """Patches are paired by tract and patch, not by place."""
    run = runs[0]
    turn = np.arange(len(run.metrics.patches))[::-1]
    metrics = run.metrics.model_copy(
        update={
            "patches": [run.metrics.patches[i] for i in turn],
            "n_truth": {name: [counts[i] for i in turn] for name, counts in run.metrics.n_truth.items()},
        }
    )
    matches, outcomes = run.matches.copy(), run.outcomes.copy()
    matches["image"], outcomes["image"] = turn[matches["image"]], turn[outcomes["image"]]
    turned = EvaluatedRun("u/turned", metrics, matches, outcomes)
    for one in compare_runs([run, turned], n_samples=20).figures:
        assert one.difference[1] == pytest.approx(0.0, abs=1e-12, nan_ok=True)
        assert one.difference_error[1] == pytest.approx(0.0, abs=1e-12, nan_ok=True)


def test_what_cannot_be_compared(runs: list[EvaluatedRun]) -> None:
    with pytest.raises(RunComparisonError, match=r"no patch in common .* 0,40 0,41"):
        compare_runs([runs[0], runs[3]])
    other = make_sample("u/other", 2, skymap="other", with_gallery=False).run
    with pytest.raises(RunComparisonError, match="different sky maps"):
        compare_runs([runs[0], other])
    metrics = runs[0].metrics.model_copy(update={"iou_thresholds": [0.5 + 0.04 * i for i in range(10)]})
    with pytest.raises(RunComparisonError, match="other IoU thresholds"):
        compare_runs([runs[1], EvaluatedRun("u/x", metrics, runs[0].matches, runs[0].outcomes)], n_samples=2)


def test_settings_that_differ(runs: list[EvaluatedRun]) -> None:
    assert settings_that_differ(runs[:2], common_patches(runs[:2])) == []
    changed = make_sample(
        "u/changed", 6, config={"band": "i", "fields": {"score": "x"}}, with_gallery=False
    ).run
    sentences = settings_that_differ([runs[0], changed], common_patches([runs[0], changed]))
    assert sentences == ["The runs were evaluated with different band: r in u/good, i in u/changed."]
    counts = {name: [*numbers[:-1], numbers[-1] + 1] for name, numbers in runs[1].metrics.n_truth.items()}
    metrics = runs[1].metrics.model_copy(update={"n_truth": counts})
    other = EvaluatedRun("u/truths", metrics, runs[1].matches, runs[1].outcomes)
    # A catalogue without classes has the same truths.
    metrics = runs[1].metrics.model_copy(update={"n_truth": {"all": runs[1].metrics.n_truth["all"]}})
    plain = EvaluatedRun("u/plain", metrics, runs[1].matches, runs[1].outcomes)
    assert settings_that_differ([runs[0], plain], common_patches([runs[0], plain])) == []
    assert {one.figure.object_class for one in compare_runs([runs[0], plain], n_samples=5).figures} == {"all"}
    (sentence,) = settings_that_differ([runs[0], other], common_patches([runs[0], other]))
    assert "count different truths in 1 of 6 patches" in sentence
    assert run_setting(changed.metrics, "fields.score") == "x"
    assert run_setting(changed.metrics, "ap.nothing", 7) == 7
    assert run_setting(changed.metrics, "fields.score.deeper") is None


def test_command_prints_a_table(repo: Path, capsys) -> None:
    assert maskrcnn("compare-runs", [str(repo), "u/good", "u/worse", "--samples", "50"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[:4] == [
        "6 patches in common, 50 resamplings of them",
        "with fewer than 10 patches, p is a hint at best",
        "A: u/good (reference)",
        "B: u/worse",
    ]
    heads = re.split(r" {2,}", lines[5].strip())
    assert heads == ["Figure", "Class", "Definition", "A", "B", "B \N{MINUS SIGN} A", "p"]
    row = next(line for line in lines if line.startswith("AP at IoU 0.50") and "stars" in line)
    assert row.count("±") == 3
    assert max(map(len, lines)) < 140
    assert captured.err == ""


def test_command_writes_files(repo: Path, tmp_path: Path, capsys) -> None:
    for name in ("table.csv", "table.ecsv", "table.html"):
        path = tmp_path / name
        arguments = [str(repo), "u/good", "u/worse", "--reference", "u/worse", "--samples", "30"]
        assert maskrcnn("compare-runs", [*arguments, "--out", str(path)]) == 0
        if name.endswith("html"):
            assert "u/worse (reference)" in path.read_text("utf-8")
            continue
        table = Table.read(path, format="ascii.ecsv" if name.endswith("ecsv") else "ascii.csv")
        assert set(table["run"]) == {"u/good", "u/worse"}
        rows = table[(table["figure"] == "completeness") & (table["object_class"] == "all")]
        by_run = {row["run"]: row for row in rows}
        assert by_run["u/good"]["difference"] == pytest.approx(
            by_run["u/good"]["value"] - by_run["u/worse"]["value"]
        )
        assert np.isnan(by_run["u/worse"]["difference"])
        assert str(by_run["u/worse"]["is_reference"]) == "True"
        if name.endswith("ecsv"):
            assert table.meta["reference"] == "u/worse"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["u/good"], ["At least two different collections"]),
        (["u/good", "u/good"], ["At least two different collections"]),
        (["u/good", "u/none"], ["no collection 'u/none'"]),
        (["u/good", "u/far"], ["no patch in common"]),
        (["u/good", "u/worse", "--out", "x.txt"], ["x.txt cannot be written", ".csv"]),
        (["u/good", "u/worse", "--out", "/nowhere/x.csv"], ["no folder /nowhere"]),
        (["u/good", "u/worse", "--samples", "0"], ["--samples 0"]),
    ],
)
def test_command_errors(repo: Path, capsys, arguments: list[str], words: list[str]) -> None:
    assert maskrcnn("compare-runs", [str(repo), *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("maskrcnn compare-runs: ") and captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err
