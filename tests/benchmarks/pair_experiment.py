# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How well the flux of simulated pairs is shared: tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from lsst.meas.maskrcnn.report.plot_style import (
    DOUBLE_COLUMN,
    LEGEND_SIZE,
    NOTE_SIZE,
    OKABE_ITO,
    CurveStyle,
    make_figure,
)

__all__ = ["PairErrors", "PairExample", "draw_errors", "draw_examples", "format_table", "median_error"]

PAIR_STYLES = {
    "perfect": CurveStyle(OKABE_ITO["black"], (0, (1, 1.2)), ""),
    "profile": CurveStyle(OKABE_ITO["blue"], "-", "o"),
    "symmetric": CurveStyle(OKABE_ITO["green"], (0, (5, 1.5, 1, 1.5)), "D"),
    "nearest": CurveStyle(OKABE_ITO["vermilion"], (0, (5, 1.5)), "^"),
    "mask": CurveStyle(OKABE_ITO["purple"], (0, (3, 1, 1, 1, 1, 1)), "s"),
}
"""Curves of the ways to share flux, the same in each figure."""


@dataclass
class PairErrors:
    """Errors of the fluxes of pairs, by the way in which these are shared.

    Parameters
    ----------
    kind : `numpy.ndarray`
        What the pairs are made of, such as ``star-galaxy``, (pair,).
    snr : `numpy.ndarray`
        Signal to noise ratio of the source that has less of it, (pair,).
    separation : `numpy.ndarray`
        Distance of the two, in units of the FWHM of the PSF, (pair,).
    ratio : `numpy.ndarray`
        Flux of the brighter over that of the fainter, (pair,).
    n_found : `numpy.ndarray`
        Number of sources that share the flux, (pair,); more than 2 where
        something was found that is not there.
    errors : `dict` [`str`, `numpy.ndarray`]
        For each way, flux over true flux less 1, (pair, 2); NaN for pairs of
        which not both were found.
    """

    kind: npt.NDArray[np.str_]
    snr: npt.NDArray[np.float64]
    separation: npt.NDArray[np.float64]
    ratio: npt.NDArray[np.float64]
    n_found: npt.NDArray[np.int64]
    errors: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.kind)

    def choose(
        self,
        *,
        kind: str | None = None,
        snr: float | None = None,
        separation: float | None = None,
        ratio: float | None = None,
        largest_ratio: float = np.inf,
        n_found: int | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Choose pairs.

        Parameters
        ----------
        kind : `str`, optional
            What they are made of.
        snr, separation, ratio : `float`, optional
            Their values.
        largest_ratio : `float`
            Largest flux ratio.
        n_found : `int`, optional
            Number of sources that share the flux.

        Returns
        -------
        chosen : `numpy.ndarray`
            Of the pairs, bool, (pair,).
        """
        chosen = np.asarray(self.ratio <= largest_ratio)
        for values, wanted in (
            (self.kind, kind),
            (self.snr, snr),
            (self.separation, separation),
            (self.ratio, ratio),
            (self.n_found, n_found),
        ):
            if wanted is not None:
                chosen &= values == wanted
        return chosen

    def found(self, chosen: npt.NDArray[np.bool_]) -> float:
        """Tell the fraction of pairs of which both sources were found.

        Parameters
        ----------
        chosen : `numpy.ndarray`
            Which pairs, bool, (pair,).

        Returns
        -------
        fraction : `float`
            NaN if none is chosen.
        """
        some = next(iter(self.errors.values()))[chosen]
        return float(np.isfinite(some).all(axis=1).mean()) if len(some) else float("nan")


def median_error(
    errors: npt.NDArray[np.float64], rng: np.random.Generator, n_draws: int = 200
) -> tuple[float, float]:
    """Take the median of the absolute errors, with its uncertainty.

    Parameters
    ----------
    errors : `numpy.ndarray`
        Relative errors, (pair, 2). Pairs with NaN are left out.
    rng : `numpy.random.Generator`
        Chance of the bootstrap.
    n_draws : `int`
        Draws of the bootstrap, which is over pairs, as the errors of the two
        sources of one depend on each other.

    Returns
    -------
    median, uncertainty : `float`
        NaN if there is no pair.
    """
    size = np.abs(errors[np.isfinite(errors).all(axis=1)])
    if not len(size):
        return float("nan"), float("nan")
    draws = rng.integers(len(size), size=(n_draws, len(size)))
    medians = np.median(size[draws].reshape(n_draws, -1), axis=1)
    return float(np.median(size)), float(medians.std())


def format_table(
    pairs: PairErrors, methods: Sequence[str], rng: np.random.Generator, largest_ratio: float = 3.0
) -> str:
    """Write a table of median absolute errors in reStructuredText.

    Parameters
    ----------
    pairs : `PairErrors`
        The errors.
    methods : `~collections.abc.Sequence` [`str`]
        Keys of its errors, in the order of the columns.
    rng : `numpy.random.Generator`
        Chance of the bootstrap.
    largest_ratio : `float`
        Pairs up to this flux ratio are in one row, others in one of theirs.

    Returns
    -------
    table : `str`
        A ``list-table``: a row for each signal to noise ratio, separation and
        group of flux ratios. Numbers are per cent.
    """
    rows = [["S/N", "separation (FWHM)", "flux ratio", "pairs", "both found (%)", *methods]]
    groups: list[tuple[str, float | None]] = [(f"1 to {largest_ratio:g}", None)]
    groups += [(f"{value:g}", value) for value in np.unique(pairs.ratio) if value > largest_ratio]
    for snr in np.unique(pairs.snr):
        for separation in np.unique(pairs.separation):
            for name, ratio in groups:
                limit = largest_ratio if ratio is None else np.inf
                chosen = pairs.choose(snr=snr, separation=separation, ratio=ratio, largest_ratio=limit)
                if not chosen.any():
                    continue
                row = [
                    f"{snr:g}",
                    f"{separation:g}",
                    name,
                    str(np.count_nonzero(chosen)),
                    f"{100 * pairs.found(chosen):.0f}",
                ]
                for method in methods:
                    value, uncertainty = median_error(pairs.errors[method][chosen], rng)
                    row.append(f"{100 * value:.1f} ± {100 * uncertainty:.1f}")
                rows.append(row)
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def draw_errors(
    pairs: PairErrors, methods: Sequence[str], rng: np.random.Generator, limit: float | None = 0.05
) -> Figure:
    """Draw the median absolute error against separation.

    Parameters
    ----------
    pairs : `PairErrors`
        The errors.
    methods : `~collections.abc.Sequence` [`str`]
        Keys of its errors.
    rng : `numpy.random.Generator`
        Chance of the bootstrap.
    limit : `float`, optional
        An error at which to draw a line.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        A row for each signal to noise ratio, a column for each flux ratio.
    """
    ratios, levels = np.unique(pairs.ratio), np.unique(pairs.snr)
    separations = np.unique(pairs.separation)
    figure, axes = make_figure(
        DOUBLE_COLUMN, 0.7 + 1.9 * len(levels), len(levels), len(ratios), share_y=True, dpi=180
    )
    for place, panel in enumerate(axes):
        snr, ratio = levels[place // len(ratios)], ratios[place % len(ratios)]
        for method in methods:
            style = PAIR_STYLES.get(method, CurveStyle(OKABE_ITO["orange"], "-", "P"))
            values = np.array(
                [
                    median_error(
                        pairs.errors[method][pairs.choose(snr=snr, ratio=ratio, separation=separation)], rng
                    )
                    for separation in separations
                ]
            )
            panel.errorbar(
                separations,
                100.0 * values[:, 0],
                yerr=100.0 * values[:, 1],
                color=style.color,
                linestyle=style.line,
                marker=style.marker,
                markersize=3.5,
                linewidth=1.2,
                elinewidth=0.8,
                label=method,
            )
        if limit is not None:
            panel.axhline(100.0 * limit, color="#b0b0b0", linewidth=0.7, zorder=0)
        panel.set_yscale("log")
        panel.set_ylim(0.2, 300.0)
        panel.set_yticks([1, 10, 100], ["1", "10", "100"])
        panel.set_xlim(separations[0] - 0.15, separations[-1] + 0.15)
        note = f"S/N {snr:g}, flux ratio {ratio:g}"
        panel.text(0.96, 0.95, note, transform=panel.transAxes, ha="right", va="top", fontsize=NOTE_SIZE)
        if place % len(ratios) == 0:
            panel.set_ylabel("median |error| of flux (%)")
        if place // len(ratios) == len(levels) - 1:
            panel.set_xlabel("separation (FWHM)")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside upper center",
        ncols=len(methods),
        frameon=False,
        fontsize=LEGEND_SIZE,
        handlelength=3.0,
    )
    return figure


@dataclass(frozen=True)
class PairExample:
    """A pair as a picture.

    Parameters
    ----------
    name : `str`
        What it is.
    image : `numpy.ndarray`
        The image, (y, x).
    sigma : `float`
        Its noise.
    truth : `numpy.ndarray`
        The light of either source, (2, y, x).
    children : `dict` [`str`, `numpy.ndarray`]
        For each way to share, the pixels that either source gets, (2, y, x).
    """

    name: str
    image: npt.NDArray[np.float32]
    sigma: float
    truth: npt.NDArray[np.float32]
    children: dict[str, npt.NDArray[np.float32]]


def draw_examples(examples: Sequence[PairExample], methods: Sequence[str]) -> Figure:
    """Draw pairs, their true light, and what each way to share gives to one of the two.

    Parameters
    ----------
    examples : `~collections.abc.Sequence` [`PairExample`]
        The pairs, a row each.
    methods : `~collections.abc.Sequence` [`str`]
        Keys of their children.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Columns are the image, the true light of the fainter source, and its
        share; numbers are its flux over the true one.

    Raises
    ------
    ValueError
        Raised if there is no example.
    """
    if not examples:
        raise ValueError("there is no example to draw; give at least one")
    columns = 2 + len(methods)
    side = DOUBLE_COLUMN / columns
    figure, axes = make_figure(
        DOUBLE_COLUMN, (side + 0.12) * len(examples) + 0.1, len(examples), columns, dpi=200
    )
    for row, example in enumerate(examples):
        fainter = int(np.argmin(example.truth.sum(axis=(1, 2))))
        true_flux = float(example.truth[fainter].sum())
        panels: list[tuple[str, npt.NDArray[Any], str]] = [
            ("image", example.image, example.name),
            ("true light", example.truth[fainter], ""),
        ]
        for method in methods:
            pixels = example.children[method][fainter]
            panels.append((method, pixels, f"{np.nansum(pixels) / true_flux:.2f}"))
        brightest = max(float(example.truth[fainter].max()), 10.0 * example.sigma)
        norm = SymLogNorm(2.0 * example.sigma, vmin=-2.0 * example.sigma, vmax=2.0 * brightest)
        for panel, (title, pixels, note) in zip(
            axes[row * columns : (row + 1) * columns], panels, strict=True
        ):
            panel.imshow(pixels, origin="lower", cmap="magma", norm=norm, interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            if row == 0:
                panel.set_title(title)
            panel.text(
                0.04, 0.95, note, transform=panel.transAxes, color="white", va="top", fontsize=NOTE_SIZE
            )
    return figure
