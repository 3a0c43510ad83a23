# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kill the commands that write, or let them run out of space, run them again, and print what was lost.

python tests/benchmarks/stress_kills.py [--count 300] [--seconds S] [--seed N] [--only NAME ...]
    [--training 50]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from killing import CASES, Trial, train_for_any_bands, train_on_scenes

_KINDS = ("lost", "differing", "twice", "left over", "failed", "raw")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="kills over all commands")
    parser.add_argument("--seconds", type=float, default=1e9, help="wall time, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--training", type=int, default=0, help="kill two trainings so often, and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(arguments.seed)
    end = time.monotonic() + arguments.seconds
    results = {name: Counter[str]() for name in arguments.only}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.training:
            for number, training in enumerate((train_on_scenes, train_for_any_bands)):
                trial = Trial(training(2 * arguments.training), Path(folder) / str(number))
                kills, wrong = trial.disturb_often(arguments.training, rng)
                said = wrong or "the same to the bit"
                print(f"{training.__name__}, killed {kills} times: {said}", flush=True)
            return
        trials = {name: Trial(CASES[name], Path(folder) / str(n)) for n, name in enumerate(arguments.only)}
        done = Counter[str]()
        for number in range(arguments.count):
            if time.monotonic() > end:
                break
            # Those that take long come less often.
            name = min(arguments.only, key=lambda name: (done[name] + 1) * trials[name].seconds ** 0.5)
            trial, result = trials[name], results[name]
            # Every fourth at any time, every eighth out of space, the others when files change.
            if done[name] % 8 == 7:
                how = {"file_size": int(10 ** rng.uniform(3.0, 6.5))}
            elif done[name] % 4 == 1:
                how = {"after": float(rng.uniform(0.0, trial.seconds))}
            else:
                how = {"event": int(rng.integers(1, trial.events + 1))}
            done[name] += 1
            status, wrong = trial.disturb(**how)
            print(f"{number} {name} {how} {status}", file=sys.stderr, flush=True)
            result["file-size limit" if "file_size" in how else "killed" if status < 0 else "not killed"] += 1
            for kind, names in wrong.items():
                result[kind] += 1
                print(f"{name}: {how}, {kind}: {names[:4]}", flush=True)
    columns = ("killed", "not killed", "file-size limit", *_KINDS)
    print(f"{'command':18}", *(f"{column:>16}" for column in columns))
    for name, result in [*results.items(), ("all", sum(results.values(), Counter()))]:
        print(f"{name:18}", *(f"{result[column]:16d}" for column in columns))


if __name__ == "__main__":
    main()
