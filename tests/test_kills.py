# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each command that writes, killed while it does or on a full disk, and run again: nothing is lost."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))
from killing import CASES, Trial

N_KILLS = 5


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_killed_and_run_again(name: str, tmp_path: Path) -> None:
    trial = Trial(CASES[name], tmp_path / "trial")
    for event in np.linspace(1, trial.events, N_KILLS).astype(int):
        status, wrong = trial.disturb(event=int(event))
        assert status == -signal.SIGKILL
        assert not wrong, f"killed at change {event} of {trial.events}"
    status, wrong = trial.disturb(file_size=20_000)
    assert status == 1
    assert not wrong, "on a full disk"
