# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn simulate``: what it stores, that it resumes, and what it refuses."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lsst.daf.butler import Butler, CollectionType
from lsst.geom import Box2D
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.ingest.repo import create_repo
from lsst.meas.maskrcnn.network.model_file import load_model
from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendConfig, MaskRcnnDeblendTask

SMALL = ("--shape", "64", "80", "--preset", "hsc-500s", "--seed", "3")
TYPES = ("deepCoadd_calexp", "maskRcnn_truth", "maskRcnn_truthImage", "maskRcnn_truthFlux")
COUNT = 10


def make(root: Path, *arguments: str, count: int = COUNT) -> int:
    return maskrcnn("simulate", [str(root), *SMALL, "--count", str(count), *arguments])


def run_script(root: Path, *arguments: str, count: int = COUNT) -> subprocess.CompletedProcess[str]:
    """Make scenes in a process of their own, which knows no mask planes of other tests: afw writes
    all planes of a process into every file.
    """
    script = Path(__file__).resolve().parent.parent / "bin" / "simulate_scenes"
    return subprocess.run(
        [sys.executable, str(script), str(root), *SMALL, "--count", str(count), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    """Ten small scenes, made in one process."""
    root = tmp_path_factory.mktemp("reference") / "repo"
    run_script(root)
    return root


def files(root: Path) -> dict[str, bytes]:
    """All files but the database, whose rows hold times."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith("gen3.sqlite3")
    }


def patches(butler: Butler, collection: str, name: str = "maskRcnn_truth") -> list[int]:
    found = butler.query_datasets(name, collections=collection, find_first=False, explain=False)
    return sorted(ref.dataId["patch"] for ref in found)


def test_two_processes_make_the_same_bytes(repo, tmp_path):
    done = run_script(tmp_path / "repo", "--jobs", "2")
    assert f"Made {COUNT} scenes" in done.stdout
    one, two = files(repo), files(tmp_path / "repo")
    assert sorted(one) == sorted(two)
    assert len([name for name in one if name.endswith(".fits")]) == 10 * COUNT
    assert [name for name in one if one[name] != two[name]] == []


def test_collections(repo):
    butler = Butler.from_config(str(repo))
    expected = {"train": [0, 1, 2, 3, 4, 5, 6], "validation": [7], "test": [8, 9]}
    for split, numbers in expected.items():
        run = f"simulated/hsc-500s/seed3/{split}"
        assert butler.collections.get_info(run).type is CollectionType.RUN
        assert patches(butler, run) == numbers
        chain = f"simulated/hsc-500s/{split}"
        assert butler.collections.get_info(chain).type is CollectionType.CHAINED
        assert patches(butler, chain) == numbers
    assert patches(butler, "simulated/hsc-500s") == list(range(COUNT))
    for name in ("deepCoadd_calexp", "maskRcnn_truthImage", "maskRcnn_truthFlux"):
        assert patches(butler, "simulated/hsc-500s", name) == sorted(list(range(COUNT)) * 3)


def test_records_hold_the_truth(repo):
    butler = Butler.from_config(str(repo))
    records = {
        r.id: r for r in butler.query_dimension_records("patch", skymap="maskRcnnSim-hsc-500s", tract=3)
    }
    assert sorted(records) == list(range(COUNT))
    (tract,) = butler.query_dimension_records("tract", skymap="maskRcnnSim-hsc-500s")
    checked = 0
    for ref in butler.query_datasets("maskRcnn_truth", collections="simulated/hsc-500s"):
        catalog = butler.get(ref)
        exposure = butler.get("deepCoadd_calexp", ref.dataId, band="z", collections="simulated/hsc-500s")
        box = Box2D(exposure.getBBox())
        patch = ref.dataId["patch"]
        for record in catalog:
            if not box.contains(record.getCentroid()):
                continue
            vector = record.getCoord().getVector()
            assert records[patch].region.contains(vector) and tract.region.contains(vector)
            checked += 1
    assert checked > COUNT


def test_exposures_read_back(repo):
    butler = Butler.from_config(str(repo), collections="simulated/hsc-500s")
    data_id = {"skymap": "maskRcnnSim-hsc-500s", "tract": 3, "patch": 9}
    for band, fwhm in (("z", 0.68), ("r", 0.8), ("g", 0.8)):
        exposure = butler.get("deepCoadd_calexp", data_id, band=band)
        assert (exposure.getWidth(), exposure.getHeight()) == (80, 64)
        assert (exposure.getX0(), exposure.getY0()) == (9 * 80, 0)
        assert exposure.getFilter().bandLabel == band
        assert exposure.getPhotoCalib().getCalibrationMean() == 1.0
        assert exposure.getWcs().getPixelScale().asArcseconds() == pytest.approx(0.168, rel=2e-3)
        assert {"SAT", "CR", "BAD", "NO_DATA"} <= set(exposure.mask.getMaskPlaneDict())
        light = butler.get("maskRcnn_truthImage", data_id, band=band).image.array
        pull = (exposure.image.array - light) / np.sqrt(exposure.variance.array)
        pull = pull[exposure.mask.array == 0]
        assert 1.4826 * np.median(np.abs(pull - np.median(pull))) == pytest.approx(1.0, abs=0.1)
        center = exposure.getBBox().getCenter()
        radius = exposure.getPsf().computeShape(center).getDeterminantRadius()
        # Wings make the radius of a Moffat profile larger than that of a Gaussian core.
        assert fwhm / 2.355 * 0.6 < radius * 0.168 < fwhm / 2.355 * 1.8
    expected = MaskRcnnDeblendConfig().ConnectionsClass(config=MaskRcnnDeblendConfig()).exposures
    stored = butler.get_dataset_type("deepCoadd_calexp")
    assert (stored.name, stored.storageClass_name) == (expected.name, expected.storageClass)
    assert set(stored.dimensions.required) == set(expected.dimensions)


def test_sources_add_up_on_disk(repo):
    butler = Butler.from_config(str(repo), collections="simulated/hsc-500s")
    for ref in butler.query_datasets("maskRcnn_truthImage"):
        image = butler.get(ref).image
        total = image.Factory(image.getBBox(), 0.0)
        for record in butler.get("maskRcnn_truthFlux", ref.dataId):
            footprint = record.getFootprint()
            if footprint.getArea():
                part = image.Factory(footprint.getBBox(), 0.0)
                footprint.insert(part)
                total[footprint.getBBox()] += part
        peak = max(float(image.array.max()), 1.0)
        np.testing.assert_allclose(total.array, image.array, rtol=1e-5, atol=1e-6 * peak)


def test_the_deblender_runs_on_them(repo):
    butler = Butler.from_config(str(repo), collections="simulated/hsc-500s/test")
    data_id = {"skymap": "maskRcnnSim-hsc-500s", "tract": 3, "patch": 8}
    exposures = {band: butler.get("deepCoadd_calexp", data_id, band=band) for band in "zrg"}
    catalog = MaskRcnnDeblendTask().run(exposures=exposures, model=load_model()).catalog
    for record in catalog:
        assert exposures["z"].getBBox().contains(record.getFootprint().getBBox())


def test_more_scenes_can_be_added(repo, tmp_path):
    root = tmp_path / "repo"
    run_script(root, "--no-flux", count=2)
    before = {name: (root / name).stat().st_mtime_ns for name in files(root)}
    # Twice as many of them, and what was left out of the first.
    output = run_script(root, "--no-flux", count=4).stdout
    assert "2 of 4 scenes are there already." in output and "Made 2 scenes" in output
    run_script(root)
    assert f"{COUNT} of {COUNT} scenes are there already." in run_script(root).stdout
    assert {name: (root / name).stat().st_mtime_ns for name in before} == before
    one, two = files(repo), files(root)
    assert sorted(one) == sorted(two)
    # The configuration says whether the first scenes had the pixels of the single sources.
    assert [name for name in one if one[name] != two[name] and name.endswith(".fits")] == []
    # Another seed and another preset beside them.
    assert (
        maskrcnn(
            "simulate",
            [str(root), *SMALL[:3], "--seed", "4", "--preset", "hsc-500s", "hsc-wide", "--count", "2"],
        )
        == 0
    )
    butler = Butler.from_config(str(root))
    found = butler.query_datasets("maskRcnn_truth", collections="simulated/hsc-500s/train", find_first=False)
    assert {(r.dataId["tract"], r.dataId["patch"]) for r in found} >= {(3, 0), (3, 6), (4, 0), (4, 1)}
    assert butler.collections.get_info("simulated/hsc-500s/train").children == (
        "simulated/hsc-500s/seed3/train",
        "simulated/hsc-500s/seed4/train",
    )
    assert patches(butler, "simulated/hsc-wide") == [0, 1]


def test_killed_and_resumed(repo, tmp_path, project_dir):
    root = tmp_path / "repo"
    command = [sys.executable, str(project_dir / "bin" / "simulate_scenes"), str(root), *SMALL]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [*command, "--count", "300", "--jobs", "2"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 120
        while not list(root.glob("simulated/**/maskRcnn_truth/**/*.fits")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        # The others end by themselves: the pipe is closed when the last has gone.
        process.stderr.read()
    finally:
        if process.poll() is None:
            process.kill()
        process.stderr.close()
    butler = Butler.from_config(str(root))
    done = patches(butler, "simulated/hsc-500s")
    assert done and len(done) < 300
    for name in TYPES[:1] + TYPES[2:]:
        assert patches(butler, "simulated/hsc-500s", name) == sorted(done * 3)
    # A file without an entry, as a kill between the two leaves it.
    number = next(n for n in range(300) if n % 10 < 7 and n not in done)
    reference = f"simulated/hsc-500s/seed3/train/maskRcnn_truth/3/{number}"
    orphan = (
        root
        / reference
        / (f"maskRcnn_truth_3_{number}_maskRcnnSim-hsc-500s_simulated_hsc-500s_seed3_train.fits")
    )
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(b"half a file")
    count = max(number + 1, COUNT)
    run_script(root, count=count)
    assert sorted(set(patches(butler, "simulated/hsc-500s")) | set(done)) == sorted({*range(count), *done})
    assert not list(root.glob(".simulate_scenes*"))
    resumed = files(root)
    assert [name for name, data in files(repo).items() if resumed.get(name) != data] == []
    assert orphan.read_bytes() != b"half a file"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--preset", "hsc"], "'hsc'.*hsc-wide"),
        (["--count", "0"], "--count 0"),
        (["--jobs", "-1"], "--jobs -1"),
        (["--seed", "1000000"], "--seed 1000000"),
        (["--count", "10001"], "10000 scenes"),
        (["--split", "train=7,test=2"], "adds up to 9"),
        (["--split", "train:7"], "not understood"),
        (["--shape", "8", "8"], "16 px or more"),
        (["--bands", "q"], "q"),
        (["-c", "population.star_density"], "population.star_density"),
        (["-c", "population.stars=3"], "stars"),
        (["-c", "population.star_density=many"], "star_density=many"),
        (["-c", "seed=3"], "--seed"),
        (["--config-file", "no such.py"], "no such.py"),
        (["--preset", "hsc-wide", "crowded", "--skymap", "sky"], "--skymap"),
    ],
)
def test_refused_before_anything_is_made(tmp_path, capsys, arguments, message):
    assert maskrcnn("simulate", [str(tmp_path / "repo"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("maskrcnn simulate: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def test_foreign_folders_are_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert make(tmp_path / "mine", count=1) == 1
    assert make(tmp_path / "mine" / "letter.txt", count=1) == 1
    assert make(tmp_path / "mine" / "letter.txt" / "repo", count=1) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("maskrcnn simulate: ") for line in errors)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_different_scenes_do_not_mix(repo, tmp_path, capsys):
    root = tmp_path / "repo"
    assert make(root, count=1) == 0
    capsys.readouterr()
    for arguments, message in (
        (["-c", "population.star_density=40"], "population.star_density"),
        (["--bands", "r"], "bands"),
        (["--shape", "80", "64"], "--skymap"),
        (["--split", "test=3,train=7"], "already"),
    ):
        assert make(root, *arguments, count=1) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert make(root, "-c", "population.star_density=40", "--collection", "u/stars", count=1) == 0
    wide = ["--shape", "80", "64", "--skymap", "wide", "--collection", "wide"]
    assert make(root, *wide, count=1) == 0
    butler = Butler.from_config(str(root))
    assert len(butler.query_datasets("maskRcnn_truth", collections="u/stars/hsc-500s")) == 1
    assert {r.name for r in butler.query_dimension_records("skymap")} == {"maskRcnnSim-hsc-500s", "wide"}


def test_two_commands_do_not_make_the_same_scenes(tmp_path, capsys):
    root = tmp_path / "repo"
    assert make(root, count=1) == 0
    lock = root / ".simulate_scenes-simulated-hsc-500s-seed3.lock"
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert make(root, count=2) == 1
        assert "Another command" in capsys.readouterr().err
        assert maskrcnn("simulate", [str(root), *SMALL[:5], "--seed", "4", "--count", "1"]) == 0
    # A file that a killed command left is no lock.
    assert lock.exists()
    assert make(root, count=2) == 0
    assert not lock.exists()


def test_failed_scene_leaves_nothing(tmp_path, capsys, monkeypatch):
    """As when the disk is full."""
    from lsst.afw.image import ExposureF

    def full(self, *args):
        raise OSError(28, "No space left on device")

    root = tmp_path / "repo"
    create_repo(root)
    with monkeypatch.context() as patch:
        patch.setattr(ExposureF, "writeFitsWithOptions", full)
        assert make(root, count=2) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in error and "again" in error
    butler = Butler.from_config(str(root))
    assert patches(butler, "simulated/hsc-500s") == []
    assert not list(root.rglob("*.fits")) and not list(root.glob(".simulate_scenes*"))
    assert make(root, count=2) == 0


def test_presets_are_listed(capsys):
    assert maskrcnn("simulate", ["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("hsc-deep-noiseless") and " no " in line for line in lines)
