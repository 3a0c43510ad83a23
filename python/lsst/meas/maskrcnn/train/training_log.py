# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a training shows while it runs: a table, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..images.files import write_atomically


class TrainingLog:
    """Writes ``<output>.history.csv``, and into the folder ``<output>.tensorboard``.

    ``output`` is the model file of the training. Of an interrupted run all after ``step`` is forgotten.
    """

    def __init__(self, output: Path, step: int) -> None:
        self._table = output.with_name(f"{output.name}.history.csv")
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            folder = output.with_name(f"{output.name}.tensorboard")
            self._writer = SummaryWriter(folder.as_posix(), purge_step=step)

    def write(self, rows: Sequence[Mapping[str, Any]], last: Mapping[str, Any]) -> None:
        """Write all rows; TensorBoard gets the last one alone."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self._table, text.getvalue().encode())
        if self._writer is not None:
            for name, value in last.items():
                if isinstance(value, float):
                    self._writer.add_scalar(f"{last['kind']}/{name}", value, last["step"])
            self._writer.flush()
