# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tables in reStructuredText, for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], out: Path | None = None) -> None:
    """Print a table, and write it to a file if one is given."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = " ".join("=" * width for width in widths)
    texts = [" ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    text = "\n".join([rule, texts[0], rule, *texts[1:], rule])
    print(text, flush=True)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
