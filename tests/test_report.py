# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page on an evaluation: what is on it, that nothing breaks out of it, and what is refused."""

from __future__ import annotations

import html.parser
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from evaluation_sample import make_sample, put_sample
from matplotlib.figure import Figure

from lsst.daf.butler import Butler, CollectionType
from lsst.meas.maskrcnn.cli import evaluation_runs
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.images.files import write_atomically
from lsst.meas.maskrcnn.ingest.ingest_model import ingest_model
from lsst.meas.maskrcnn.ingest.repo import create_repo
from lsst.meas.maskrcnn.metrics.evaluation_metrics import GalleryEntry
from lsst.meas.maskrcnn.network.model_file import default_model_path
from lsst.meas.maskrcnn.report.comparison_table import format_p_value
from lsst.meas.maskrcnn.report.evaluation_report import ReportContext, evaluation_page
from lsst.meas.maskrcnn.report.report_page import (
    Card,
    Details,
    Gallery,
    GalleryItem,
    Headline,
    Page,
    Paragraph,
    Pictures,
    Plots,
    Section,
    Table,
    Value,
    format_value,
    render_page,
)
from lsst.meas.maskrcnn.report.themed_svg import ThemedSvg, dark_color

_EVIL = "<script>alert(1)</script>\"' & <b>"


class Reader(html.parser.HTMLParser):
    """Text and elements of a page; complains of what is not closed."""

    _EMPTY = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self._EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"{tag} closes another element"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script") and data.strip():
            self.texts.append(data.strip())


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two evaluations on the same patches, one of them with its model, and one on another sky map."""
    path = tmp_path_factory.mktemp("report") / "repo"
    butler = create_repo(path)
    ingest_model(butler, default_model_path(), "models/lite")
    for name, quality in (("u/first", 0.9), ("u/second", 0.7)):
        put_sample(butler, make_sample(name, 3, quality), name)
    butler.collections.redefine_chain("u/first", ["u/first/run", "models/lite"])
    put_sample(butler, make_sample("u/both", 2, skymap="maskRcnnSim-test"), "u/both")
    put_sample(butler, make_sample("u/both", 2, skymap="other"), "u/both", "other")
    butler.collections.register("u/empty", CollectionType.RUN)
    yield path


@pytest.fixture(scope="module")
def written(repo: Path) -> str:
    """The page that the command writes."""
    out = repo.parent / "page.html"
    assert (
        maskrcnn(
            "evaluate-report",
            [str(repo), "u/first", "--compare", "u/second", "--out", str(out), "--samples", "50"],
        )
        == 0
    )
    return out.read_text("utf-8")


def test_page_has_all_parts(written: str) -> None:
    page = Reader(written)
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == [
        "models",
        "comparison",
        "completeness",
        "residuals",
        "classes",
        "blends",
        "gallery",
        "failures",
        "calibration",
        "precision",
        "patches",
        "network",
        "provenance",
        "figures",
    ]
    assert sum(tag == "svg" and attributes.get("class") == "plot" for tag, attributes in page.elements) > 15
    assert len(written) < 10e6
    # The figures of the evaluation stand on it, as they are.
    metrics = make_sample("u/first", 3, 0.9).run.metrics
    text = " ".join(page.texts)
    for value in (
        metrics.get("ap", object_class="star", definition="perImage", iou=0.5),
        metrics.get("ap", object_class="galaxy", definition="perImage", iou=0.5),
        metrics.get("ap", definition="pooled"),
        metrics.get("completeness"),
        metrics.get("purity"),
    ):
        assert f"{value.value:.3f} ± {value.error:.3f}" in text
    assert "Any one to eight bands" in text  # from the header of the model
    assert "u/first/run, models/lite" in text
    # First what is asked for first.
    cards = [words for words in page.texts if words.startswith(("Depth at", "Purity", "Flux bias", "AP50"))]
    assert cards[:5] == [
        "Depth at 50 % completeness",
        "Depth at 90 % completeness",
        "Purity",
        "Flux bias, model",
        "Flux bias, HeavyFootprint",
    ]
    (verdict,) = [words for words in page.texts if "true sources were found" in words]
    assert "Fluxes of the model at S/N > 20 are" in verdict and "90 % completeness: " in verdict
    assert "RA 150.10000°, Dec \N{MINUS SIGN}2.20000°" in text
    assert "Relative error of the model flux at S/N > 20, median" in text


def test_page_needs_nothing_else(written: str) -> None:
    page = Reader(written)
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "data", "action"):
            link = attributes.get(name)
            assert link is None or link.startswith(("data:", "#")), (tag, link)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert tag != "img" or "alt" in attributes
    assert not re.search(r"url\((?!#)|@import", written)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy


def test_comparison_agrees_with_the_figures(repo: Path) -> None:
    """Recomputed on all patches, the figures are those of the evaluation."""
    from lsst.meas.maskrcnn.metrics.run_comparison import compare_runs

    butler = Butler.from_config(str(repo))
    runs = [evaluation_runs.find_run(butler, name).run for name in ("u/first", "u/second")]
    comparison = compare_runs(runs, n_samples=20)
    checked = 0
    for i, run in enumerate(runs):
        stored = {value.key: value.value for value in run.metrics.values}
        for one in comparison.figures:
            if one.figure.key in stored:
                assert one.value[i] == pytest.approx(stored[one.figure.key], abs=1e-9, nan_ok=True), (
                    one.figure
                )
                checked += 1
    assert checked > 50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["u/firts"], ["no collection 'u/firts'", "'u/first'"]),
        (["u/empty"], ["'u/empty' holds no evaluation", "MaskRcnnEvaluate.yaml"]),
        (["u/both"], ["several sky maps", "'maskRcnnSim-test'", "'other'", "--skymap"]),
        (["u/first", "--skymap", "nowhere"], ["'nowhere'", "there is one on 'maskRcnnSim-test'"]),
        (["u/first", "--evaluation", "another"], ["no evaluation", "another_metrics", "--evaluation mask"]),
        (["u/first", "--out", "/nowhere/at/all.html"], ["no folder /nowhere/at"]),
        (["u/first", "--samples", "1"], ["--samples 1"]),
        (["u/first", "--gallery", "-1"], ["--gallery -1"]),
    ],
)
def test_errors(
    repo: Path, tmp_path: Path, monkeypatch, capsys, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert maskrcnn("evaluate-report", [str(repo), *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("maskrcnn evaluate-report: ") and captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err
    assert list(tmp_path.iterdir()) == []


def test_no_repository(tmp_path: Path, capsys) -> None:
    assert maskrcnn("evaluate-report", [str(tmp_path / "none"), "u/first"]) == 1
    assert "is no Butler repository" in capsys.readouterr().err
    repo = create_repo(tmp_path / "repo")
    repo.collections.register("u/run", CollectionType.RUN)
    assert maskrcnn("evaluate-report", [str(tmp_path / "repo"), "u/run"]) == 1
    assert "The repository holds no evaluation" in capsys.readouterr().err


def test_newer_format(tmp_path: Path, repo: Path, capsys) -> None:
    butler = Butler.from_config(str(repo), writeable=True)
    put_sample(butler, make_sample("u/newer", 1, with_gallery=False), "u/newer")
    ref = butler.find_dataset("maskRcnnEvaluation_metrics", skymap="maskRcnnSim-test", collections="u/newer")
    assert ref is not None
    path = Path(butler.getURI(ref).ospath)
    text = path.read_text()
    # The repository knows the size of the file, so that must stay.
    path.write_text(re.sub(r'("format_version": ?)1', r"\g<1>9", text))
    assert path.read_text() != text
    assert maskrcnn("evaluate-report", [str(repo), "u/newer", "--out", str(tmp_path / "x.html")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "The metrics have format version 9, but this code reads up to 1; update meas_maskrcnn" in error


def test_without_classes_and_fluxes() -> None:
    """A catalogue that knows nothing but footprints still has its page."""
    made = make_sample("u/plain", 2, 0.9)
    table = made.run.matches.copy()
    for name in (
        "p_star",
        "flux_detected",
        "flux_model",
        "blendedness",
        "mag",
        "snr",
        "mag_detected",
        "separation_arcsec",
    ):
        table[name] = np.nan
    table["score"] *= 50.0
    metrics = made.run.metrics.model_copy(
        update={
            "n_truth": {"all": made.run.metrics.n_truth["all"]},
            "values": made.run.metrics.select(name="ap", object_class="all"),
            "models": [],
        }
    )
    run = type(made.run)("u/plain", metrics, table, made.run.outcomes)
    page = evaluation_page(run, context=ReportContext("Plain"))
    kept = [section.name for section in page.sections if section.parts]
    assert kept == ["completeness", "failures", "precision", "patches", "provenance", "figures"]
    Reader(render_page(page))


def test_text_is_escaped() -> None:
    picture = _png()
    lines = [[[(1.0, 1.0), (3.0, 1.0), (3.0, 3.0), (1.0, 1.0)]]]
    figure = Figure()
    figure.subplots().set_title("<i>title</i>")
    page = Page(
        _EVIL,
        _EVIL,
        [Headline(_EVIL, Value(0.5), _EVIL), Headline(_EVIL, _EVIL)],
        [
            Section(
                "one",
                _EVIL,
                [
                    Paragraph(_EVIL, warning=True),
                    Table(_EVIL, [_EVIL, "b"], [[_EVIL, Value(1.0)]], _EVIL),
                    Plots([(figure, _EVIL)], _EVIL),
                    Card([(_EVIL, _EVIL)]),
                    Details(_EVIL, _EVIL),
                    Pictures([(_EVIL, [(_EVIL, picture)])], _EVIL),
                    Gallery(
                        [(_EVIL, [GalleryItem(_EVIL, _EVIL, _entry(picture, lines, [True]))])], note=_EVIL
                    ),
                ],
            )
        ],
        _EVIL,
        _EVIL,
    )
    text = render_page(page)
    reader = Reader(text)
    assert sum(tag == "script" for tag, _ in reader.elements) == 1
    assert not [tag for tag, _ in reader.elements if tag in ("b", "i")]
    assert "<i>title</i>" in reader.texts
    assert sum(one.count(_EVIL) for one in reader.texts) >= 15
    assert "$" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def test_pictures_must_be_base64() -> None:
    item = GalleryItem("a", "b", _entry('"><script>', [], []))
    with pytest.raises(ValueError):
        render_page(Page("t", sections=[Section("one", "One", [Gallery([("x", [item])])])]))


def test_outlines_are_on_their_pixels() -> None:
    """The first row is the lowest: a line around pixel (0, 0) runs around the lower left corner."""
    square = [[[(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)]]]
    item = GalleryItem("a", "b", _entry(_png(), square, [False]))
    text = render_page(Page("t", sections=[Section("one", "One", [Gallery([("x", [item])])])]))
    assert '<path class="galaxy" d="M0.0,8.0 1.0,8.0 1.0,7.0 0.0,7.0 0.0,8.0"/>' in text
    assert 'viewBox="0 0 8 8"' in text


def _entry(picture: str, lines: list, is_star: list[bool]) -> GalleryEntry:
    return GalleryEntry(
        kind="best",
        tract=0,
        patch=0,
        caption="",
        quality=0.5,
        size=8,
        x0=0,
        y0=0,
        image=picture,
        truth_outlines=lines,
        detection_outlines=[],
        truth_is_star=is_star,
        detection_is_star=[],
    )


def _png() -> str:
    import base64
    import io

    import matplotlib.image

    stream = io.BytesIO()
    matplotlib.image.imsave(stream, np.zeros((8, 8, 3), np.uint8), format="png")
    return base64.b64encode(stream.getvalue()).decode()


def test_tables_are_checked() -> None:
    with pytest.raises(ValueError, match="has 1 cells for 2 columns"):
        render_page(Page("t", sections=[Section("one", "One", [Table("T", ["a", "b"], [["x"]])])]))
    one = Section("one", "One", [Paragraph("x")])
    with pytest.raises(ValueError, match="address of its own"):
        render_page(Page("t", sections=[one, one]))


def test_numbers() -> None:
    assert format_value(Value(0.8164, 0.01249)) == "0.816 ± 0.012"
    assert format_value(Value(-0.0001, digits=2, signed=True)) == "+0.00"
    assert format_value(Value(-1.25, digits=1)) == "\N{MINUS SIGN}1.2"
    assert format_value(Value(float("nan"), 1.0)) == "–"
    assert format_p_value(0.0132, 1000) == "p = 0.013"
    assert format_p_value(0.5, 1000) == "p = 0.50"
    assert format_p_value(1 / 1001, 1000) == "p < 0.002"
    assert format_p_value(float("nan"), 1000) == ""


def test_sort_keys_keep_the_whole_number() -> None:
    """Cells sort by the number, not by what is left of it in print."""
    rows = [["a", Value(0.12345678)], ["b", Value(float("nan"))], ["c", 7]]
    text = render_page(Page("t", sections=[Section("one", "One", [Table("T", ["a", "b"], rows)])]))
    assert re.findall(r'data-value="([^"]*)"', text) == ["0.12345678", "", "7"]


@pytest.mark.parametrize("color", ["#000000", "#0072b2", "#d55e00", "#e69f00", "#00224e", "#7c7b78"])
def test_dark_colours_can_be_seen(color: str) -> None:
    """Contrast to the dark ground of at least 3, as WCAG asks of graphics."""

    def luminance(value: str) -> float:
        parts = np.array([int(value[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    assert (luminance(dark_color(color)) + 0.05) / (luminance("#1b1f24") + 0.05) > 3.0


def test_dark_colours_need_a_colour() -> None:
    with pytest.raises(ValueError, match="no colour"):
        dark_color("red")


def test_svg_colours_and_addresses() -> None:
    svg = ThemedSvg()
    elements = []
    for _ in range(2):
        figure = Figure()
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#0072b2", marker="o")
        axes.bar([0], [1], color="white", hatch="//", edgecolor="#d55e00")
        axes.set_xlabel("a & b")
        elements.append(svg.element(figure, 'what "is" seen'))
    ids = [re.findall(r'\bid="([^"]*)"', element) for element in elements]
    assert ids[0] and not set(ids[0]) & set(ids[1])
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]*)", elements[0]))
    assert used and used <= set(ids[0])
    # Nothing keeps a colour of its own, which would not follow the theme.
    assert not re.search(r"#[0-9a-fA-F]{6}\b", elements[0])
    wanted = set(re.findall(r"var\(--p-([0-9a-f]{6})\)", elements[0]))
    assert {"0072b2", "d55e00"} <= wanted
    for dark in (False, True):
        assert wanted <= set(re.findall(r"--p-([0-9a-f]{6}):#", svg.styles(dark)))
    assert "--p-0072b2:#0072b2;" in svg.styles(dark=False)
    assert 'aria-label="what &quot;is&quot; seen"' in elements[0]
    assert "a &amp; b" in elements[0]


def test_half_a_page_is_never_left(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
