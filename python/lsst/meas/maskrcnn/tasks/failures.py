# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Error messages of quanta that fail."""

from __future__ import annotations

import atexit
import functools
import sys
from collections.abc import Callable
from typing import Any

import lsst.pipe.base as pipeBase

from ..images.files import one_line

_FAILED: list[str] = []
_MOST_PRINTED = 5

_RunQuantum = Callable[[Any, pipeBase.QuantumContext, Any, Any], None]


def say_where(run_quantum: _RunQuantum) -> _RunQuantum:
    """Make a quantum say where it failed, and why, in the last lines of pipetask.

    Task and data id are added to the exception, and the message is printed
    once more when the process ends: what the executor says at the end names
    neither. Processes that pipetask starts with ``-j`` do not print it again.
    """

    @functools.wraps(run_quantum)
    def run(
        self: pipeBase.PipelineTask, butlerQC: pipeBase.QuantumContext, inputRefs: Any, outputRefs: Any
    ) -> None:
        try:
            run_quantum(self, butlerQC, inputRefs, outputRefs)
        except Exception as error:
            where = f"{self.getName()} failed on {butlerQC.quantum.dataId}."
            error.add_note(where)
            if "lsst.ctrl.mpexec" in sys.modules:
                if not _FAILED:
                    atexit.register(_print_failures)
                _FAILED.append(f"{where} {type(error).__name__}: {one_line(error, 1000)}")
            raise

    return run


def _print_failures() -> None:
    for line in _FAILED[-_MOST_PRINTED:]:
        print(line, file=sys.stderr)
