# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Figures of matplotlib as SVG inside a page, readable on a light and on a dark ground."""

from __future__ import annotations

import html
import io
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure

_COLOR = re.compile(r"#[0-9a-fA-F]{6}\b")
_STYLE = re.compile(r'style="([^"]*)"')
# The ground of hatches; a variable is understood in a style only.
_FILL = re.compile(r'\bfill="(#[0-9a-fA-F]{6})"')
_ID = re.compile(r'(\bid="|url\(#|xlink:href="#)')
_FONT = re.compile(r"'DejaVu Sans'[^;\"]*")

# Bjoern Ottosson's OKLab (https://bottosson.github.io/posts/oklab/), for which equal steps look equal.
_TO_CONE = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
# Lightness on white paper, and what becomes of it on a dark ground. The lightest greys, of shading, go down
# to the ground; the middle, in which curves are drawn, is moved little.
_LIGHT, _DARK = (0.0, 0.7, 1.0), (0.93, 0.60, 0.22)
_VIVID_CHROMA, _VIVID_LIGHTNESS = 0.08, 0.62


def dark_color(color: str) -> str:
    """Choose for a dark ground a colour of the same hue and turned lightness, both ``#rrggbb``.

    Examples
    --------
    >>> dark_color("#000000")
    '#e8e8e8'
    """
    if not _COLOR.fullmatch(color):
        raise ValueError(f"{color!r} is no colour; give #rrggbb.")
    value = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0
    linear = np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    lab = _TO_LAB @ np.cbrt(_TO_CONE @ linear)
    lightness = float(np.interp(lab[0], _LIGHT, _DARK))
    if np.hypot(lab[1], lab[2]) > _VIVID_CHROMA:
        lightness = max(lightness, _VIVID_LIGHTNESS)
    lab[0] = lightness
    linear = np.linalg.solve(_TO_CONE, np.linalg.solve(_TO_LAB, lab) ** 3)
    linear = np.clip(linear, 0.0, 1.0)
    value = np.where(linear > 0.0031308, 1.055 * linear ** (1.0 / 2.4) - 0.055, 12.92 * linear)
    return "#" + "".join(f"{round(255.0 * float(v)):02x}" for v in value)


class ThemedSvg:
    """Turns figures into SVG elements and keeps account of their colours.

    Each colour of a figure becomes a variable of CSS, which `styles` sets for either ground. White becomes
    the ground itself, and black the colour of text: ``--plot-ground`` and ``--plot-ink``.
    """

    def __init__(self) -> None:
        self._colors: set[str] = set()
        self._number = 0

    def element(self, figure: Figure, description: str) -> str:
        """Make an ``svg`` element, whose letters are letters, of a figure and its description in words."""
        self._number += 1
        buffer = io.StringIO()
        # Without these the file is the same whenever and wherever it is made.
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "meas_maskrcnn"}):
            figure.savefig(buffer, format="svg", metadata=nothing)
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        head, body = text.split(">", 1)
        box = re.search(r'viewBox="([^"]*)"', head)
        width = float(box.group(1).split()[2]) / 72.0 if box else 0.0
        # Its rule is for all elements of the document it lands in; the page's style sheet repeats it.
        body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
        body = _ID.sub(rf"\g<1>f{self._number}-", body)
        body = _FONT.sub("var(--font)", body)
        body = _FILL.sub(r'style="fill: \1"', body)
        body = _STYLE.sub(self._recolor, body)
        return (
            f'<svg class="plot" viewBox="{box.group(1) if box else ""}" role="img" '
            f'aria-label="{html.escape(description)}" style="--inches: {width:.2f}" '
            f'xmlns:xlink="http://www.w3.org/1999/xlink">{body.strip()}'
        )

    def styles(self, dark: bool) -> str:
        """Return the declarations of CSS variables for the colours of all figures so far."""
        return "".join(f"--p-{one[1:]}:{dark_color(one) if dark else one};" for one in sorted(self._colors))

    def _recolor(self, match: re.Match[str]) -> str:
        def variable(found: re.Match[str]) -> str:
            color = found.group(0).lower()
            if color == "#000000":
                return "var(--plot-ink)"
            if color == "#ffffff":
                return "var(--plot-ground)"
            self._colors.add(color)
            return f"var(--p-{color[1:]})"

        return f'style="{_COLOR.sub(variable, match.group(1))}"'
