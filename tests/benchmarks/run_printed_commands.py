# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run the commands that README and pages print, as they are printed, and say which ran.

For example ``run_printed_commands.py evaluation.rst training.rst``. The commands of the pages run one after
another in one folder, where REPO is ``REPO``; pages that make what others read come first. Commands with
``...`` or inputs that only a reader has are listed as not run, and so is what takes more than ``--seconds``.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PAGES = PROJECT / "doc" / "lsst.meas.maskrcnn"
FIRST = ("README.md", "user-guide.rst", "evaluation.rst", "training.rst")
"""Pages that make a repository, a model in it, catalogues, and a trained model."""

# What a reader has to bring.
OWN = re.compile(
    r"\.\.\.|\$\{|pip install|runtests|^-c |run\.log|^source |^cd |/scratch/|\b(HSC/runs|survey/|COLLECTION"
    r"|DATA|FOLDER|BEFORE/|trainingset|field_1|fields\.csv|a_g\.fits|img_g\.fits|cutout\.fits|g\.fits|my_model"
    r"|nproc|parsl-local|u/me/deblended|cuda|CALIBRATED|TRACT|conda|setup\.sh|u/me/injected|injected_maskrcnn"
    r"|imported/mine|pipeline\.yaml|simulated/lsst-1yr|u/me/truth)"
)


def printed_commands(path: Path) -> list[str]:
    """Return the commands that a page prints, continued lines joined and comments removed."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    else:
        found = re.findall(r"^( *)\.\. code-block:: (?:bash|sh)\n\n((?:\1 +.*\n|\n)+)", text, re.M)
        blocks = [block for _, block in found]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = (" ".join(re.sub(r"(^|\s)#.*", "", line).split()) for line in lines)
    return [command for command in commands if command]


def run_page(path: Path, folder: Path, seconds: float) -> int:
    """Run the commands of a page in a folder; return how many failed."""
    environment = {**os.environ, "MEAS_MASKRCNN_DIR": str(PROJECT), "MPLBACKEND": "Agg"}
    places = [str(PROJECT / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    environment["PATH"] = os.pathsep.join(places)
    failed = 0
    for command in printed_commands(path):
        if OWN.search(command):
            print(f"{path.name}: not run, needs what a reader has: {command}", flush=True)
            continue
        began = time.monotonic()
        with subprocess.Popen(
            command,
            shell=True,
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                errors = process.communicate(timeout=seconds)[1]
                result = "ran" if process.returncode == 0 else f"FAILED ({process.returncode})"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                result = f"not finished in {seconds:.0f} s"
        print(f"{path.name}: {result}, {time.monotonic() - began:.0f} s: {command}", flush=True)
        if result.startswith("FAILED"):
            failed += 1
            print("\n".join(errors.strip().splitlines()[-3:]), flush=True)
    return failed


def main() -> int:
    """Run the pages that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", help="README.md or names of pages (default: all)")
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="most for a command (default: %(default)s)"
    )
    arguments = parser.parse_args()
    pages = [PROJECT / "README.md", *sorted(PAGES.glob("*.rst"))]
    pages.sort(key=lambda page: FIRST.index(page.name) if page.name in FIRST else len(FIRST))
    chosen = [page for page in pages if not arguments.pages or page.name in arguments.pages]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("tests", "config", "bin"):
            (folder / part).symlink_to(PROJECT / part)
        for part in ("any-band", "deblending", "picture-book"):
            (folder / "doc" / "lsst.meas.maskrcnn" / part).mkdir(parents=True)
        return min(sum(run_page(page, folder, arguments.seconds) for page in chosen), 1)


if __name__ == "__main__":
    sys.exit(main())
