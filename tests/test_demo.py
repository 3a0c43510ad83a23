# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The demonstration and what it is made of."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import time

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from matplotlib.axes import Axes
from pyarrow import parquet

from lsst.afw.detection import Footprint
from lsst.afw.geom import SpanSet
from lsst.afw.table import Point2DKey, SourceCatalog, SourceTable
from lsst.geom import Point2I
from lsst.meas.maskrcnn.catalogs.exposures import to_multiband_image
from lsst.meas.maskrcnn.cli import demo
from lsst.meas.maskrcnn.cli.command import CommandError
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.ingest.exposures import scene_to_exposures
from lsst.meas.maskrcnn.network.model_file import default_model_path, read_metadata
from lsst.meas.maskrcnn.report import overlay
from lsst.meas.maskrcnn.report.overlay import lupton_rgb, mask_outlines, save_overlay, write_regions


def tan_wcs(width: int, height: int, scale: float = 0.262) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [197.86, -1.41]
    wcs.wcs.crpix = [0.5 * (width + 1), 0.5 * (height + 1)]
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    return wcs


@pytest.fixture
def model_file():
    return default_model_path()


@pytest.fixture
def fits_files(tmp_path, rng):
    """Three images of 90 x 70 pixels with spaces in their names."""
    paths = []
    header = tan_wcs(90, 70).to_header()
    for band in "grz":
        data = rng.normal(0.0, 0.01, (70, 90)).astype(np.float32)
        data[30:34, 40:44] += 3.0
        data[5, 6] = np.nan
        header["BUNIT"] = "nanomaggy"
        path = tmp_path / f"my {band} image.fits"
        fits.writeto(path, data, header)
        paths.append(path)
    return paths


@pytest.mark.slow
def test_demo_twice(model_file, tmp_path, capfd):
    out = tmp_path / "an out folder"
    arguments = ["--out", str(out), "--model", str(model_file), "--size", "150", "100", "--cores", "1"]
    for _ in range(2):
        assert maskrcnn("demo", arguments) == 0
        said = capfd.readouterr().out
        assert re.search(r"^Found \d+ sources in 150 x 100 pixels", said, re.MULTILINE)
        assert re.search(r"^ *objectId +coord_ra +coord_dec +class +pStar .*sersicMag", said, re.MULTILINE)
        assert str(out / "overlay.png") in said and str(out / "catalog.fits") in said
    catalog = SourceCatalog.readFits(str(out / "catalog.fits"))
    table = parquet.read_table(out / "objects.parquet")
    assert table["objectId"].to_pylist() == catalog["id"][np.asarray(catalog["deblend_nChild"]) == 0].tolist()
    columns = set(table.column_names)
    assert (
        len(columns) == 43
        and {"pStar", "detect_isPrimary", "r_sersicMag", "r_deblend_blendedness"} <= columns
    )
    assert not {"tract", "refExtendedness", "r_psfFlux", "g_deblend_blendedness"} & columns
    assert "coord_ra" in columns and b"unit: deg" in table.schema.metadata[b"table_meta_yaml"]
    for name in ("overlay.png", "blends.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert (out / "regions.reg").read_text().startswith("# Region file format: DS9")
    assert not list(out.glob(".partial*")) and not list(out.glob(".repo*"))


@pytest.mark.slow
def test_demo_on_fits_images(model_file, fits_files, tmp_path, capfd):
    out = tmp_path / "out"
    arguments = [
        "--out",
        str(out),
        "--model",
        str(model_file),
        "--cores",
        "1",
        "--fits",
        *map(str, fits_files),
    ]
    assert maskrcnn("demo", arguments) == 0
    assert "Found" in capfd.readouterr().out
    assert (out / "objects.parquet").is_file()


def test_demo_refuses_in_one_line(model_file, fits_files, tmp_path, capfd):
    cases = [
        (["--model", str(tmp_path / "none.safetensors")], "none.safetensors"),
        (["--bands", "g", "r", "--fits", str(fits_files[0])], "one file per band"),
        (["--bands", "W1", "--fits", str(fits_files[0])], "wavelengths={'W1': 620.0}\" gives one"),
        (["--bands", "g", "g", "z", "--fits", *map(str, fits_files)], "--bands g g z names a band twice"),
        (["--bands", "W1"], "--bands W1 is not possible: conditions are for bands g, r, i, z, y, not for W1"),
        (["--config", "detection.score_threshold"], "write it like detection.score_threshold=0.3"),
        (
            ["--model", str(model_file), "--zeropoint", "1", "2", "--fits", *map(str, fits_files)],
            "2 numbers for the 3 bands",
        ),
        (["--model", str(model_file), "--size", "10", "10"], "10 x 10"),
        (["--model", str(fits_files[0])], "not a model file"),
    ]
    for arguments, words in cases:
        out = tmp_path / "out"
        assert maskrcnn("demo", ["--out", str(out), *arguments]) == 1
        error = capfd.readouterr().err
        assert error.startswith("maskrcnn demo: ") and error.count("\n") == 1 and words in error
        assert not out.exists()


def test_demo_refuses_other_bands_than_the_models(tmp_path, monkeypatch, capfd):
    metadata = read_metadata(default_model_path()).model_copy(update={"bands": ("z", "i")})
    monkeypatch.setattr(demo, "read_metadata", lambda path: metadata)
    out = tmp_path / "out"
    assert maskrcnn("demo", ["--out", str(out), "--bands", "g", "i", "--size", "64", "64"]) == 1
    assert "Model lite needs bands z, i, but there are g, i; give others" in capfd.readouterr().err
    assert not out.exists()


def test_demo_says_why_pipetask_failed(tmp_path):
    """The exception, and not that there is a traceback."""
    script = tmp_path / "pipetask"
    script.write_text(
        "print('lsst.daf.butler.cli.utils ERROR: Caught an exception, details are in traceback:')\n"
        "print('Traceback (most recent call last):')\n"
        "print('    raise AttributeError(f\"{name} has no attribute\")')\n"
        "print('AttributeError: Config has no attribute nofield')\nprint('end')\nraise SystemExit(1)\n"
    )
    with pytest.raises(
        CommandError, match=r"\(status 1\): AttributeError: Config has no attribute nofield; the"
    ):
        demo._run_pipetask([str(script)], tmp_path / "log")


def test_pipetask_ends_with_a_killed_demo(tmp_path):
    script, held = tmp_path / "pipetask", tmp_path / "held"
    script.write_text(
        f"import fcntl, time\nstream = open({str(held)!r}, 'w')\nfcntl.flock(stream, fcntl.LOCK_EX)\n"
        "print('at work', flush=True)\ntime.sleep(60)\n"
    )
    child = os.fork()
    if child == 0:
        os._exit(demo._run_pipetask([str(script)], tmp_path / "log"))
    try:
        while "at work" not in ((tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.02)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with held.open() as stream:
        for _ in range(500):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
        else:
            pytest.fail("pipetask goes on")


def test_demo_leaves_a_foreign_repo_alone(model_file, tmp_path, capfd):
    letter = tmp_path / "out" / "repo" / "letter.txt"
    letter.parent.mkdir(parents=True)
    letter.write_text("mine")
    assert (
        maskrcnn("demo", ["--out", str(tmp_path / "out"), "--model", str(model_file), "--size", "80", "80"])
        == 1
    )
    assert "left alone" in capfd.readouterr().err
    assert [p.name for p in letter.parent.iterdir()] == ["letter.txt"]


def test_rgb_keeps_hue_and_survives_odd_input(rng):
    noise = rng.normal(size=(3, 30, 40)).astype(np.float32)
    bright = noise.copy()
    bright[0, 10:15, 10:15] += 30.0
    rgb = lupton_rgb(bright)
    assert (rgb[10:15, 10:15, 0].astype(int) - rgb[10:15, 10:15, 2]).min() > 0
    for image in (np.zeros((3, 8, 9)), np.full((3, 8, 9), np.nan), np.full((3, 8, 9), 7.0)):
        assert lupton_rgb(image).shape == (8, 9, 3)
    with pytest.raises(ValueError, match=r"\(2, 5, 5\)"):
        lupton_rgb(np.zeros((2, 5, 5)))


def test_rgb_where_bands_are_missing(rng):
    """The other bands are shown in their mean there; without any it is dark grey."""
    noise = np.array([1.0, 2.0, 0.5])
    image = (rng.normal(size=(3, 60, 80)) * noise[:, None, None]).astype(np.float32) + 5.0
    image[:, 30:34, 60:64] += 60.0
    image[:, 30:34, 10:14] += 60.0
    whole = lupton_rgb(image, noise)
    image[0, :, 40:] = np.nan
    image[:, :10, 40:] = np.nan
    rgb = lupton_rgb(image, noise)
    assert (rgb[:10, 40:] == 40).all()
    assert np.abs(rgb[:, :40].astype(int) - whole[:, :40].astype(int)).mean() < 1.0
    source = rgb[30:34, 60:64].reshape(-1, 3).mean(axis=0)
    assert source.min() > 100 and source[1] <= source[0] <= source[2]
    # A band without a pixel, and its noise, hide nothing.
    image[0] = np.nan
    for given in (None, np.array([np.nan, 2.0, 0.5])):
        rgb = lupton_rgb(image, given)
        assert rgb[30:34, 10:14].min() > 100 and rgb[40:].mean() < 40
    counts = image[1:].repeat([2, 1], axis=0)
    scale = np.array([1.0, 1.0, 1e6])
    for given in (None, noise[[1, 1, 2]]):
        expected = lupton_rgb(counts, given, calibrated=False)
        noise_scaled = None if given is None else given * scale
        rgb = lupton_rgb(counts * scale[:, None, None], noise_scaled, calibrated=False)
        np.testing.assert_allclose(rgb.astype(int), expected.astype(int), atol=1)


def test_overlay_names_what_is_missing(tmp_path, monkeypatch):
    image = np.ones((3, 64, 80))
    image[0, :, 50:] = np.nan
    image[:, :20, :30] = np.nan
    image[:, 40, 7] = image[:, 40, 70] = np.nan
    shown = []
    keep = overlay._mark_missing
    monkeypatch.setattr(overlay, "_mark_missing", lambda *given: shown.append(keep(*given)) or shown[-1])
    lines = []
    contour = Axes.contour
    monkeypatch.setattr(Axes, "contour", lambda *given, **style: lines.append(contour(*given, **style)))
    none = np.zeros((0, 2), int), np.zeros(0, bool), []
    for number, plane in enumerate((image, image[:, 40:50, :50], np.full_like(image, np.nan))):
        save_overlay(tmp_path / f"{number}.png", plane, [], *none)
    assert [[one.get_label() for one in handles] for handles in shown] == [
        ["no data", "a band is missing"],
        [],
        ["no data"],
    ]
    # One line around the area, none around the bad pixel in it.
    (drawn,) = lines
    assert len(drawn.get_paths()[0].to_polygons(closed_only=False)) == 1


def test_outlines_and_regions(tmp_path):
    outlines = mask_outlines([np.ones((3, 4), dtype=bool)], np.array([[10, 20]]))
    (line,) = outlines[0]
    assert line.min(axis=0) == pytest.approx([19.5, 9.5]) and line.max(axis=0) == pytest.approx([23.5, 12.5])
    write_regions(tmp_path / "p.reg", outlines, np.array([True]), [12], None)
    assert "\nimage\npolygon(" in (tmp_path / "p.reg").read_text()
    wcs = tan_wcs(90, 70)
    write_regions(tmp_path / "r.reg", outlines, np.array([True]), [12], wcs)
    (polygon,) = re.findall(r"polygon\((.*)\) # .*text=\{12\} tag=\{star\}", (tmp_path / "r.reg").read_text())
    sky = np.array(polygon.split(","), dtype=float).reshape(-1, 2)
    pixels = wcs.wcs_world2pix(sky, 0)
    assert pixels.min(axis=0) == pytest.approx([19.5, 9.5], abs=1e-2)


def test_overlay_of_nothing(tmp_path):
    none = np.zeros(0)
    save_overlay(
        tmp_path / "o.png",
        np.zeros((3, 64, 80)),
        [],
        np.zeros((0, 2), int),
        none.astype(bool),
        none,
        wcs=tan_wcs(80, 64),
    )
    assert (tmp_path / "o.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="one number"):
        save_overlay(
            tmp_path / "p.png", np.zeros((3, 64, 80)), [], np.zeros((1, 2), int), none.astype(bool), none
        )


def test_summary_and_pictures(fake_scene, tmp_path):
    """What is said and drawn of a catalogue, without a network."""
    exposures = scene_to_exposures(fake_scene, xy0=(120, 80))
    truth = np.zeros(4, [("x", "f8"), ("y", "f8"), ("is_star", "?"), ("snr_r", "f8")])
    # The third is too faint to count, the last one off the image.
    truth["x"], truth["y"] = [50.0, 200.0, 30.0, -9.0], [40.0, 60.0, 30.0, 5.0]
    truth["snr_r"], truth["is_star"] = [50.0, 20.0, 2.0, 90.0], [True, False, False, True]
    schema = SourceTable.makeMinimalSchema()
    Point2DKey.addFields(schema, "here", "position", "pixel")
    for name, kind in (("deblend_nChild", "I"), ("maskrcnn_score", "F")):
        schema.addField(name, type=kind, doc=name)
    for name in ("maskrcnn_star", "maskrcnn_flag_edge"):
        schema.addField(name, type="Flag", doc=name)
    schema.getAliasMap().set("slot_Centroid", "here")
    catalog = SourceCatalog(SourceTable.make(schema))
    for x, y, star in ((171.0, 120.0, True), (320.5, 141.0, True)):
        record = catalog.addNew()
        record["here_x"], record["here_y"], record["maskrcnn_star"] = x, y, star
        record["maskrcnn_score"] = 0.75
        record.setFootprint(Footprint(SpanSet.fromShape(4, offset=Point2I(round(x), round(y)))))
    field = demo.Field("name", "a field", exposures, truth)
    image = to_multiband_image(exposures)
    first, second, third = demo._summarize(field, image, catalog)
    assert first == "Found 2 sources in 300 x 200 pixels (0.84' x 0.56'): 2 stars, 0 galaxies."
    assert "median 0.75" in second
    assert third.startswith("Of 2 drawn sources with S/N > 10 in r, 2 (100 %) have") and "1 of them" in third
    assert "z 27.4" in demo._summarize(demo.Field("name", "a field", exposures), image, catalog)[2]
    image.calibrated[2] = False
    third = demo._summarize(demo.Field("name", "a field", exposures), image, catalog)[2]
    assert "z 27.4" in third and "in counts: g " in third and "instrumental" in third
    demo._write_pictures(tmp_path, field, image, catalog)
    assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "regions.reg").read_text().count("polygon") == 2
