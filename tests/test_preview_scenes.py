# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn preview``: which pages it makes, of what, and what it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lsst.daf.butler import Butler, CollectionType
from lsst.geom import Point2I
from lsst.meas.maskrcnn.catalogs.truth import read_truth
from lsst.meas.maskrcnn.cli import preview_scenes
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.ingest.exposures import scene_to_exposures
from lsst.meas.maskrcnn.ingest.repo import (
    PatchGeometry,
    create_repo,
    patch_data_id,
    put_exposures,
    register_patches,
)
from lsst.meas.maskrcnn.report.overlay import lupton_rgb

COUNT = 9
SHAPE = (64, 96)


def blobs(bands: tuple[str, ...]) -> SimpleNamespace:
    """Round sources on noise, as much of a scene as images need."""
    rng = np.random.default_rng(5)
    yy, xx = np.mgrid[:90, :120]
    light = sum(400.0 * np.exp(-0.1 * ((yy - y) ** 2 + (xx - x) ** 2)) for y, x in ((20, 30), (60, 90)))
    sigma = np.linspace(8.0, 4.0, len(bands))[:, None, None]
    images = light + sigma * rng.normal(size=(len(bands), *xx.shape))
    return SimpleNamespace(
        bands=bands,
        images=images.astype(np.float32),
        variance=np.broadcast_to(sigma**2, images.shape).astype(np.float32),
        psf_fwhm=np.full(len(bands), 0.7),
        pixel_scale=0.168,
    )


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    """Simulated scenes, images without truth and an image in a single band."""
    root = tmp_path_factory.mktemp("preview") / "repo"
    shape = [str(n) for n in SHAPE]
    arguments = ["--preset", "hsc-500s", "--count", str(COUNT), "--shape", *shape, "--no-flux"]
    assert maskrcnn("simulate", [str(root), *arguments]) == 0
    butler = Butler.from_config(str(root), writeable=True)
    for name, bands in (("survey/plain", ("z", "r", "g")), ("survey/single", ("i",))):
        exposures = scene_to_exposures(blobs(bands), xy0=Point2I(300, 200))
        exposure = exposures[bands[0]]
        patch = PatchGeometry(5, 2, exposure.getWcs(), exposure.getBBox())
        skymap = name.replace("/", "_")
        register_patches(butler, skymap, [patch], bands, instrument="Survey")
        put_exposures(butler, name, patch_data_id(skymap, 5, 2), exposures)
    # As an output of a pipeline, which has its inputs in the chain.
    butler.collections.register("u/me/out", CollectionType.CHAINED)
    butler.collections.redefine_chain("u/me/out", ["simulated/hsc-500s/train", "survey/plain"])
    return root


@pytest.fixture
def pages(monkeypatch) -> list:
    """What the command would write."""
    taken: list = []

    def take(path, fields, **options):
        taken.append((Path(path).name, list(fields), options))

    monkeypatch.setattr(preview_scenes, "save_page", take)
    return taken


def test_a_page_per_collection(repo, tmp_path, capsys):
    out = tmp_path / "new" / "pages"
    assert maskrcnn("preview", [str(repo), "--out", str(out), "--panel", "96", "--count", "3"]) == 0
    names = ["simulated_hsc-500s.png", "survey_plain.png", "survey_single.png"]
    assert capsys.readouterr().out.split() == [str(out / name) for name in names]
    assert sorted(path.name for path in out.iterdir()) == names
    sizes = {}
    for name in names:
        with Image.open(out / name) as page:
            sizes[name] = page.size
    # Two scenes beside each other, each plain and with outlines; two rows.
    assert sizes[names[0]][0] > 4 * 96 and sizes[names[0]][1] > 2 * 64
    assert 96 < sizes[names[1]][0] < 2 * 96
    assert sizes[names[1]][0] == sizes[names[2]][0]


def test_script(repo, tmp_path, project_dir):
    command = [sys.executable, str(project_dir / "bin" / "preview_scenes"), str(repo)]
    command += ["--collection", "survey/plain", "--colors", "32", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "survey_plain.png") as page:
        assert page.mode == "P"


def test_fields_are_those_of_the_repository(repo, tmp_path, pages):
    assert maskrcnn("preview", [str(repo), "--out", str(tmp_path), "--count", "20"]) == 0
    butler = Butler.from_config(str(repo), collections="simulated/hsc-500s")
    (name, fields, options), *_ = pages
    assert (name, len(fields), options["outlines"]) == ("simulated_hsc-500s.png", COUNT, True)
    assert "z, r, g" in options["subtitle"]
    for number, field in enumerate(fields):
        data_id = {"skymap": "maskRcnnSim-hsc-500s", "tract": 1, "patch": number}
        exposures = [butler.get("deepCoadd_calexp", data_id, band=band) for band in "zrg"]
        truth = read_truth(butler.get("maskRcnn_truth", data_id), exposures[0].getBBox())
        assert field.has_truth and len(field.masks) == len(truth)
        np.testing.assert_array_equal(field.origins, truth.origins)
        np.testing.assert_array_equal(field.flagged, truth.flagged)
        noise = [np.sqrt(np.nanmedian(exposure.variance.array)) for exposure in exposures]
        image = np.stack([exposure.image.array for exposure in exposures])
        np.testing.assert_array_equal(field.rgb, lupton_rgb(image, np.array(noise)))
        assert field.pixel_scale == pytest.approx(0.168, rel=2e-3)
        x, y = truth.x, truth.y
        inside = (x > -0.5) & (x < SHAPE[1] - 0.5) & (y > -0.5) & (y < SHAPE[0] - 0.5)
        found = re.search(r"patch (\d+); (\d+) sources, (\d+) stars among them, (\d+) flagged", field.caption)
        numbers = [number, inside.sum(), (inside & truth.is_star).sum(), (inside & truth.flagged).sum()]
        assert [int(text) for text in found.groups()] == numbers
        assert f"noise {', '.join(f'{sigma:.3g}' for sigma in noise)} nJy per pixel" in field.caption


def test_images_without_truth(repo, tmp_path, pages):
    collections = ["survey/plain", "survey/single"]
    assert (
        maskrcnn("preview", [str(repo), "--out", str(tmp_path), "--collection", *collections, "--Q", "5"])
        == 0
    )
    (_, (plain,), options), (_, (single,), in_grey) = pages
    assert not plain.has_truth and "sources" not in plain.caption
    assert "Q 5" in options["subtitle"]
    scene = blobs(("z", "r", "g"))
    expected = lupton_rgb(scene.images, np.sqrt(scene.variance[:, 0, 0]), softening=5.0)
    assert np.abs(plain.rgb.astype(int) - expected).max() <= 1
    widths = re.search(r"seeing (.*) arcsec in z, r, g", plain.caption).group(1).split(", ")
    assert [float(text) for text in widths] == pytest.approx([0.7] * 3, rel=0.03)
    assert "noise 8, 6, 4 nJy" in plain.caption
    assert "i in grey" in in_grey["subtitle"]
    assert (single.rgb == single.rgb[..., :1]).all() and np.ptp(single.rgb) > 150


def test_middle_of_large_images(repo, tmp_path, pages):
    common = [str(repo), "--out", str(tmp_path), "--collection", "simulated/hsc-500s/test"]
    assert maskrcnn("preview", common) == 0
    assert maskrcnn("preview", [*common, "--cutout", "40"]) == 0
    (_, whole, _), (_, middle, _) = pages
    assert [field.caption.split(";")[0] for field in middle] == ["tract 1, patch 8"]
    assert middle[0].rgb.shape == (40, 40, 3)

    def paint(field, shape, start=(0, 0)):
        image = np.zeros((200, 200), int)
        for mask, (y0, x0) in zip(field.masks, field.origins):
            y0, x0 = y0 + 50 - start[0], x0 + 50 - start[1]
            image[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] += mask
        return image[50 : 50 + shape[0], 50 : 50 + shape[1]]

    expected = paint(whole[0], (40, 40), start=(12, 28))
    assert expected.any()
    np.testing.assert_array_equal(paint(middle[0], (40, 40)), expected)
    first, second = (int(re.search(r"(\d+) sources", f[0].caption).group(1)) for f in (whole, middle))
    assert 0 < second < first


def test_count_takes_fields_from_all_over(repo, tmp_path, pages):
    common = [str(repo), "--out", str(tmp_path), "--collection", "simulated/hsc-500s", "--no-outlines"]
    assert maskrcnn("preview", [*common, "--count", "3", "--bands", "g", "r", "z", "--stretch", "30"]) == 0
    ((_, fields, options),) = pages
    patches = [int(re.search(r"patch (\d+)", field.caption).group(1)) for field in fields]
    assert patches == [0, 4, 8]
    assert "g, r, z as red" in options["subtitle"] and "stretch 30 sigma" in options["subtitle"]
    assert options["outlines"] is False


def test_refuses_in_one_line(repo, tmp_path, capsys):
    empty = tmp_path / "empty"
    create_repo(empty)
    (tmp_path / "file").write_text("not a folder")

    def refused(*arguments: str) -> str:
        assert maskrcnn("preview", [*arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert captured.err.startswith("maskrcnn preview: ")
        return captured.err

    out = ("--out", str(tmp_path / "out"))
    assert "has no deepCoadd_calexp; put scenes into it with maskrcnn simulate" in refused(str(empty), *out)
    assert "can be opened" in refused(str(tmp_path / "nothing"), *out)
    words = refused(str(repo), *out, "--collection", "simulated/hsc")
    assert "no collection 'simulated/hsc'; with images it has simulated/hsc-500s, survey/plain" in words
    words = refused(str(repo), *out, "--bands", "y", "r", "g", "--collection", "survey/plain")
    assert "are there in y; give three of z, r, g" in words
    assert "--count 0 is not possible; give 1 or more" in refused(str(repo), *out, "--count", "0")
    assert "--colors 300 is not possible; give 2 to 256" in refused(str(repo), *out, "--colors", "300")
    assert "--Q -1.0 is not possible" in refused(str(repo), *out, "--Q", "-1")
    assert "cannot be made" in refused(str(repo), "--out", str(tmp_path / "file"))
    assert not (tmp_path / "out").exists()
    butler = Butler.from_config(str(empty), writeable=True)
    butler.collections.register("u/me/run")
    assert "'u/me/run' of" in refused(str(empty), *out, "--collection", "u/me/run")
