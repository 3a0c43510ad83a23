# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn compare-runs``: the figures of several evaluations in one table."""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.table import Table

from ..images.files import write_atomically
from ..metrics.run_comparison import RunComparison, RunComparisonError, compare_runs, settings_that_differ
from ..report.comparison_table import comparison_table, figure_label
from ..report.report_page import Page, Paragraph, Section, Value, format_value, render_page
from .command import Arguments, CommandError, check_folder, check_limits, command
from .evaluation_runs import find_run, open_butler, progress_bar

_FEW = 10
_SUFFIXES = (".csv", ".ecsv", ".html")


@command(RunComparisonError)
def run(arguments: Arguments) -> None:
    """Compare evaluations."""
    names = _names(arguments)
    butler = open_butler(arguments.repo)
    runs = [
        find_run(butler, name, skymap=arguments.skymap, evaluation=arguments.evaluation).run for name in names
    ]
    reference = names.index(arguments.reference) if arguments.reference else 0
    with progress_bar() as progress:
        comparison = compare_runs(runs, reference, n_samples=arguments.samples, progress=progress)
    warnings = settings_that_differ(runs, comparison.patches)
    if arguments.out is not None:
        write_atomically(arguments.out, _file(arguments.out, comparison, warnings).encode("utf-8"))
    for sentence in warnings:
        print(f"maskrcnn compare-runs: {sentence}", file=sys.stderr)
    try:
        print(_terminal(comparison), flush=True)
    except BrokenPipeError:
        # Whoever read this has enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _names(arguments: Arguments) -> list[str]:
    names = list(dict.fromkeys(arguments.collections))
    if arguments.reference and arguments.reference not in names:
        names.insert(0, arguments.reference)
    if len(names) < 2:
        raise CommandError(f"At least two different collections are needed; given was {names[0]!r}.")
    check_limits(arguments, samples=(2, math.inf))
    out = arguments.out
    if out is not None:
        if out.suffix not in _SUFFIXES:
            raise CommandError(f"{out} cannot be written; the name must end in {', '.join(_SUFFIXES)}.")
        check_folder(out)
    return names


def _terminal(comparison: RunComparison) -> str:
    """Lay the comparison out in columns."""
    table = comparison_table(comparison, "")
    lines = [
        f"{len(comparison.patches)} patches in common, {comparison.n_samples} resamplings of them",
        *table.note.split(". On the ")[0].split("; "),
        "",
    ]
    if len(comparison.patches) < _FEW:
        lines.insert(1, f"with fewer than {_FEW} patches, p is a hint at best")
    rows = [list(table.columns)]
    for row in table.rows:
        rows.append([format_value(cell) if isinstance(cell, Value) else str(cell) for cell in row])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [text.ljust(w) if i < 3 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _file(path: Path, comparison: RunComparison, warnings: Sequence[str]) -> str:
    if path.suffix == ".html":
        notes = [Paragraph(sentence, warning=True) for sentence in warnings]
        table = comparison_table(comparison, "Figures of the runs")
        sections = [Section("comparison", "Figures", [*notes, table])]
        about = f"{len(comparison.names)} runs, {len(comparison.patches)} patches"
        footer = "Made by maskrcnn compare-runs of meas_maskrcnn."
        return render_page(Page("Comparison of evaluations", about, (), sections, footer))
    stream = io.StringIO()
    _long_table(comparison).write(stream, format="ascii.ecsv" if path.suffix == ".ecsv" else "ascii.csv")
    return stream.getvalue()


def _long_table(comparison: RunComparison) -> Table:
    """Make a row for each figure and run."""
    rows = [
        {
            "figure": one.figure.name,
            "label": figure_label(one.figure),
            "object_class": one.figure.object_class,
            "definition": one.figure.definition,
            "iou": np.nan if one.figure.iou is None else one.figure.iou,
            "unit": one.figure.unit,
            "run": run,
            "is_reference": i == comparison.reference,
            "n_patches": len(comparison.patches),
            "value": one.value[i],
            "error": one.error[i],
            "difference": one.difference[i],
            "difference_error": one.difference_error[i],
            "p_value": one.p_value[i],
        }
        for one in comparison.figures
        for i, run in enumerate(comparison.names)
    ]
    about = {"reference": comparison.names[comparison.reference], "n_samples": comparison.n_samples}
    return Table(rows=rows, meta=about)
