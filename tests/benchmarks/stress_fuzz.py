# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read many damaged files of every format and print what became of them.

python tests/benchmarks/stress_fuzz.py [--count 100000] [--seconds S] [--seed N] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzzing import Result, formats, fuzz

_AT_ONCE = 50


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="mutants of each format")
    parser.add_argument("--seconds", type=float, default=1e9, help="CPU time for each format, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of formats")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    print(
        f"{'format':20} {'mutants':>8} {'refused':>8} {'read':>7} {'raw':>5} {'lost':>5} {'> 5 s':>5} ",
        end="",
    )
    print(f"{'longest, s':>10} {'memory, MB':>10}")
    raw: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, form in formats(folder).items():
            if arguments.only and label not in arguments.only:
                continue
            total, start = Result(), time.process_time()
            done = 0
            while done < arguments.count and time.process_time() - start < arguments.seconds:
                part = fuzz(form, min(_AT_ONCE, arguments.count - done), arguments.seed + done, folder)
                done += _AT_ONCE
                for key in ("read", "refused", "lost", "slow", "raw"):
                    setattr(total, key, getattr(total, key) + getattr(part, key))
                total.longest = max(total.longest, part.longest)
                total.memory += part.memory
            raw.update({f"{label}: {text}": count for text, count in total.raw.items()})
            print(
                f"{label:20} {total.read + total.refused + sum(total.raw.values()):8d} {total.refused:8d} "
                f"{total.read:7d} {sum(total.raw.values()):5d} {total.lost:5d} {total.slow:5d} "
                f"{total.longest:10.2f} {total.memory:10.0f}",
                flush=True,
            )
    for text, count in raw.most_common(40):
        print(f"{count:6d} {text}")


if __name__ == "__main__":
    main()
