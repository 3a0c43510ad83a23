# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A page of figures, tables and pictures as one HTML file.

What goes onto the page is given as plain values; all text is escaped here.
The page needs no network: pictures, style and script are within it, and it
forbids the browser to load anything else.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import importlib.resources
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from ..metrics.evaluation_metrics import GalleryEntry
from .themed_svg import ThemedSvg


@dataclass(frozen=True)
class Value:
    """A number with its error."""

    value: float  # NaN where there is none
    error: float = math.nan  # standard error; NaN where it is not known
    digits: int = 3  # digits behind the decimal point
    signed: bool = False  # write the sign of positive numbers too, as of differences


Line = Sequence[tuple[float, float]]
Cell = str | int | float | Value


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text, which stands out if it is a warning."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """A table of which each column sorts, with a note below; a tall one shows some fifteen rows at a time."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    tall: bool = False


@dataclass(frozen=True)
class Plots:
    """Figures beside each other, each with a description for those who do not see it."""

    figures: Sequence[tuple[Figure, str]]
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """Names and what they stand for."""

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Details:
    """Long text that is folded until it is asked for; its lines are kept."""

    summary: str
    text: str


@dataclass(frozen=True)
class GalleryItem:
    """A picture with outlines, a title, and what was found in a line or two."""

    title: str
    details: str
    entry: GalleryEntry


@dataclass(frozen=True)
class Gallery:
    """Titles with their pictures, on which outlines are switched on and off.

    ``residual_range`` is the residual at the ends of the colour scale.
    """

    groups: Sequence[tuple[str, Sequence[GalleryItem]]]
    residual_range: float = 10.0
    note: str = ""


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures with a title each; every picture has its text, and is PNG in base64."""

    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    note: str = ""


Part = Paragraph | Table | Plots | Card | Details | Gallery | Pictures


@dataclass(frozen=True)
class Headline:
    """A figure at the top of the page, or a few words, with a note below it."""

    label: str
    value: Value | str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page with a title; its name is its address: letters, digits and hyphens."""

    name: str
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """All that is on the page; sections without parts are left out."""

    title: str
    subtitle: str = ""
    headlines: Sequence[Headline] = field(default_factory=tuple)
    sections: Sequence[Section] = field(default_factory=tuple)
    footer: str = ""
    verdict: str = ""


def render_page(page: Page) -> str:
    """Write a page as a whole HTML document."""
    sections = [section for section in page.sections if section.parts]
    names = [section.name for section in sections]
    if len(set(names)) != len(names):
        raise ValueError(f"Each section needs an address of its own; given were {names}.")
    writer = _Writer()
    body = "".join(writer.section(section) for section in sections)
    # A single section needs no way to it.
    links = "".join(
        f'<li><a href="#{_text(s.name)}">{_text(s.title)}</a></li>' for s in sections if len(sections) > 1
    )
    style, script = _resource("report.css"), _resource("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return string.Template(_resource("report.html")).substitute(
        title=_text(page.title),
        subtitle=_text(page.subtitle),
        script_digest=f"sha256-{digest}",
        style=string.Template(style).substitute(
            plot_light=writer.svg.styles(dark=False), plot_dark=writer.svg.styles(dark=True)
        ),
        script=script,
        links=links,
        verdict=f'<p class="verdict">{_text(page.verdict)}</p>' if page.verdict else "",
        headlines="".join(_headline(headline) for headline in page.headlines),
        sections=body,
        footer=_text(page.footer),
    )


def format_value(value: Value) -> str:
    """Write a number with its error, where that is known, as plain text; a dash where there is no number.

    Examples
    --------
    >>> format_value(Value(0.81649, 0.0121))
    '0.816 ± 0.012'
    """
    if not math.isfinite(value.value):
        return "–"
    sign = "+" if value.signed else "-"
    # A rounded -0.000 is no negative number.
    number = round(value.value, value.digits) + 0.0
    text = f"{number:{sign}.{value.digits}f}".replace("-", "\N{MINUS SIGN}")
    return text + (f" ± {value.error:.{value.digits}f}" if math.isfinite(value.error) else "")


_WIDE = 5.0
"""Width from which on a figure takes two places of a row (inch)."""


class _Writer:
    """Writes the parts of a page, with addresses that are not used twice."""

    def __init__(self) -> None:
        self.svg = ThemedSvg()
        self._galleries = 0

    def section(self, section: Section) -> str:
        name = _text(section.name)
        parts = "".join(self._part(part) for part in section.parts)
        return (
            f'<section id="{name}" aria-labelledby="{name}-title">'
            f'<h2 id="{name}-title">{_text(section.title)}</h2>{parts}</section>\n'
        )

    def _part(self, part: Part) -> str:
        if isinstance(part, Paragraph):
            start = '<p class="warning">' if part.warning else "<p>"
            return f"{start}{_text(part.text)}</p>"
        if isinstance(part, Table):
            return _table(part)
        if isinstance(part, Card):
            entries = "".join(
                f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in part.entries
            )
            return f'<dl class="card">{entries}</dl>'
        if isinstance(part, Details):
            return (
                f"<details><summary>{_text(part.summary)}</summary>"
                f'<pre tabindex="0">{_text(part.text)}</pre></details>'
            )
        if isinstance(part, Plots):
            figures = "".join(
                f'<div class="sheet{" wide" if figure.get_figwidth() > _WIDE else ""}">'
                f"{self.svg.element(figure, about)}</div>"
                for figure, about in part.figures
            )
            caption = f"<figcaption>{_text(part.caption)}</figcaption>" if part.caption else ""
            return f'<figure class="plots"><div class="sheets">{figures}</div>{caption}</figure>'
        if isinstance(part, Pictures):
            return _pictures(part)
        return self._gallery(part)

    def _gallery(self, gallery: Gallery) -> str:
        self._galleries += 1
        name = f"layer-{self._galleries}"
        items = [item for _, group in gallery.groups for item in group]
        has_residual = any(item.entry.residual for item in items)
        choices = [("image", "Image"), ("truth", "Truth"), ("found", "Detections"), ("both", "Both")]
        if has_residual:
            choices.append(("residual", "Residual"))
        radios = "".join(
            f'<label><input type="radio" name="{name}" value="{value}"{" checked" * (value == "both")}>'
            f"<span>{label}</span></label>"
            for value, label in choices
        )
        scale = (
            '<span class="scale"><span class="ramp" aria-hidden="true"></span>residual from '
            f"\N{MINUS SIGN}{gallery.residual_range:g} to +{gallery.residual_range:g} times the noise</span>"
            if has_residual
            else ""
        )
        groups = "".join(
            f'<h3>{_text(title)}</h3><ul class="tiles">' + "".join(_tile(item) for item in group) + "</ul>"
            for title, group in gallery.groups
            if group
        )
        return (
            f'<div class="gallery" data-layer="both"><fieldset class="layers"><legend>Show</legend>{radios}'
            '</fieldset><p class="key"><span class="star">star</span><span class="galaxy">galaxy</span>'
            '<span class="truth-line">truth: drawn through</span>'
            f'<span class="found-line">detection: dashed</span>{scale}</p>'
            '<p class="note">The choice is for all pictures. A click on a picture, or Enter or Space while '
            f"it is in focus, takes that picture to its next view.</p>{groups}{_note(gallery.note)}</div>"
        )


def _text(text: str) -> str:
    return html.escape(str(text))


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>' if text else ""


def _number(value: Value, space: str = "") -> str:
    """Write a number, and its error in small letters after a space."""
    number = _text(format_value(dataclasses.replace(value, error=math.nan)))
    if not (math.isfinite(value.error) and math.isfinite(value.value)):
        return number
    return f'{number}{space}<span class="error">± {value.error:.{value.digits}f}</span>'


def _resource(name: str) -> str:
    return (importlib.resources.files("lsst.meas.maskrcnn") / "templates" / name).read_text("utf-8")


def _pictures(part: Pictures) -> str:
    rows = "".join(
        f'<h3>{_text(title)}</h3><div class="row">'
        + "".join(
            f"<figure>{_picture('small', png, 96)}<figcaption>{_lines(text)}</figcaption></figure>"
            for text, png in pictures
        )
        + "</div>"
        for title, pictures in part.rows
    )
    return f'<div class="rows">{_note(part.note)}{rows}</div>'


def _lines(text: str) -> str:
    return "<br>".join(_text(line) for line in text.splitlines())


def _headline(headline: Headline) -> str:
    value = headline.value
    number = _text(value) if isinstance(value, str) else _number(value)
    label = f'<p class="label">{_text(headline.label)}</p>'
    return f'<li>{label}<p class="figure">{number}</p>{_note(headline.note)}</li>'


def _table(table: Table) -> str:
    width = len(table.columns)
    for row in table.rows:
        if len(row) != width:
            raise ValueError(f"A row of {table.caption!r} has {len(row)} cells for {width} columns: {row}.")
    numeric = [
        bool(table.rows) and all(not isinstance(row[i], str) for row in table.rows) for i in range(width)
    ]
    heads = "".join(
        f'<th scope="col" aria-sort="none"{" class=number" * is_number}>'
        f'<button type="button">{_text(name)}</button></th>'
        for name, is_number in zip(table.columns, numeric)
    )
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in table.rows)
    # A box that scrolls must be in reach of the keyboard.
    return (
        f'<div class="scroll{" tall" * table.tall}" tabindex="0" role="region" '
        f'aria-label="{_text(table.caption)}"><table '
        f'class="sortable"><caption>{_text(table.caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>{_note(table.note)}"
    )


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{_text(cell)}</td>"
    if not isinstance(cell, Value):
        cell = Value(float(cell), digits=0 if isinstance(cell, int | np.integer) else 3)
    key = f"{cell.value:.9g}" if math.isfinite(cell.value) else ""
    return f'<td class="number" data-value="{key}">{_number(cell, " ")}</td>'


def _tile(item: GalleryItem) -> str:
    entry = item.entry
    size = int(entry.size)
    layers = [_picture("base", entry.image, size)]
    if entry.residual:
        layers.append(_picture("residual", entry.residual, size))
    for kind, outlines, is_star in (
        ("truth", entry.truth_outlines, entry.truth_is_star),
        ("found", entry.detection_outlines, entry.detection_is_star),
    ):
        layers.append(
            f'<svg class="lines {kind}" viewBox="0 0 {size} {size}" aria-hidden="true">'
            f"{_paths(outlines, is_star, size)}</svg>"
        )
    n_truth, n_found = len(entry.truth_outlines), len(entry.detection_outlines)
    about = f"{item.title}. {item.details}. In the picture: {n_truth} true sources, {n_found} detections."
    has_residual = "true" if entry.residual else "false"
    return (
        f'<li><button type="button" class="picture" data-residual="{has_residual}" '
        f'aria-label="{_text(about)} Press for the next view.">{"".join(layers)}'
        '<span class="view"></span></button>'
        f'<p><strong>{_text(item.title)}</strong></p><p class="note">{_text(item.details)}</p></li>'
    )


def _picture(kind: str, png: str, size: int) -> str:
    # Only what base64 knows can be in the attribute.
    data = base64.b64encode(base64.b64decode(png, validate=True)).decode("ascii")
    return f'<img class="{kind}" alt="" width="{size}" height="{size}" src="data:image/png;base64,{data}">'


def _paths(outlines: Sequence[Sequence[Line]], is_star: Sequence[bool], size: int) -> str:
    # The first row of the picture is its lowest, and pixel 0 has its centre at 0.
    text = []
    for lines, star in zip(outlines, is_star):
        steps = [
            "M" + " ".join(f"{x + 0.5:.1f},{size - y - 0.5:.1f}" for x, y in line) for line in lines if line
        ]
        if steps:
            text.append(f'<path class="{"star" if star else "galaxy"}" d="{"".join(steps)}"/>')
    return "".join(text)
