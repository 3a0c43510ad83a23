# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which normalisation carries from one kind of data to another?

    python tests/benchmarks/normalization_matrix.py FOLDER [--steps 600] [--mixture SCENES]

Trains the small network with each normalisation and under equal budgets, on 56 scenes
of hsc-500s-noiseless and on scenes of all presets, and computes the average precision
of each on every preset. FOLDER takes scenes, models, figures.json, a table (matrix.rst)
and a figure (matrix.png); what is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_accuracy import CLASSES, make_scenes, precision

from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.network.model_file import read_model
from lsst.meas.maskrcnn.report.plot_style import DOUBLE_COLUMN, make_figure

# The stretch in nJy is that which the noise of hsc-500s sets, so that both start alike.
FIXED = ["-c", "normalize['lupton'].stretch_unit=nJy", "-c", "normalize['lupton'].scale_unit=nJy"]
NORMALIZATIONS = {"Lupton, noise": [], "Lupton, nJy": FIXED, "z-score": ["-c", "normalize=zscore"]}
ORDER = (
    "hsc-500s-noiseless",
    "hsc-500s",
    "hsc-wide",
    "hsc-deep-noiseless",
    "hsc-deep",
    "decam-120s",
    "lsst-1yr",
    "lsst-10yr",
    "cluster",
    "crowded",
)


def fixed_stretch() -> float:
    """Return the noise of the mean of the bands of hsc-500s (nJy)."""
    ((scene, _),) = make_scenes("hsc-500s", 1, 0, ("z", "r", "g"))
    return float(np.sqrt(np.median(scene.variance, axis=(1, 2)).sum()) / len(scene.variance))


def train_all(folder: Path, mixture: Path | None, steps: int, jobs: int) -> dict[tuple[str, str], Path]:
    """Train what is not there; returns the models by data and normalisation."""
    noise = fixed_stretch()
    data = {
        "hsc-500s-noiseless": (folder / "noiseless", 56, ["--presets", "hsc-500s-noiseless"], 3),
        "mixture": (mixture or folder / "mixture", 1000, [], 5),
    }
    models = {}
    for kind, (scenes, count, more, seed) in data.items():
        for name, options in NORMALIZATIONS.items():
            model = folder / f"{kind}_{name.replace(', ', '_')}.safetensors"
            models[kind, name] = model
            if model.exists() and not model.with_name(f"{model.name}.checkpoint").exists():
                continue
            extra = list(options)
            if options is FIXED:
                extra += ["-c", f"normalize['lupton'].stretch={200 * noise:.6g}"]
                extra += ["-c", f"normalize['lupton'].scale={20 * noise:.6g}"]
            arguments = [str(model), "--scenes", str(scenes), "--count", str(count), *more, *extra]
            arguments += ["--steps", str(steps), "--seed", str(seed), "--jobs", str(jobs), "--name", name]
            arguments += ["--schedule", "four-stages", "-c", "stage_order=['first']"]
            arguments += ["-c", f"stages['first'].warmup_steps={min(100, steps)}"]
            if maskrcnn("train", arguments):
                raise SystemExit(1)
    return models


def evaluate(
    models: dict[tuple[str, str], Path], path: Path, count: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Compute what is not in the file yet."""
    figures = json.loads(path.read_text()) if path.exists() else {}
    for preset in ORDER:
        missing = [key for key in models if preset not in figures.get("|".join(key), {})]
        if not missing:
            continue
        scenes = make_scenes(preset, count, seed, ("z", "r", "g"))
        for key in missing:
            figures.setdefault("|".join(key), {})[preset] = precision(
                read_model(models[key]), scenes, seed=seed
            )
            path.write_text(json.dumps(figures, indent=1))
    return figures


def write_table(figures: dict[str, dict[str, Any]], path: Path) -> None:
    """Write a table in reStructuredText: star / galaxy AP50."""
    head = ["preset", *(key.replace("|", ": ") for key in figures)]
    rows = [head]
    for preset in ORDER:
        cells = [f"``{preset}``"]
        for figure in figures.values():
            cells.append(" / ".join("{:.2f} ± {:.2f}".format(*figure[preset][c]["AP50"]) for c in CLASSES))
        rows.append(cells)
    mean = ["mean"]
    for figure in figures.values():
        mean.append(" / ".join(f"{np.mean([figure[p][c]['AP50'][0] for p in ORDER]):.2f}" for c in CLASSES))
    rows.append(mean)
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    rule = " ".join("=" * width for width in widths)
    lines = [" ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    path.write_text("\n".join([rule, lines[0], rule, *lines[1:], rule, ""]))


def plot(figures: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the matrix: a panel for each class, a row for each training."""
    figure, axes = make_figure(DOUBLE_COLUMN, 3.4, 1, 2, share_y=True)
    labels = [" | ".join(key.split("|")[::-1]) for key in figures]
    for ax, name in zip(axes, CLASSES, strict=True):
        values = np.array([[one[p][name]["AP50"][0] for p in ORDER] for one in figures.values()])
        ax.imshow(values, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            ax.text(
                column,
                row,
                f"{value:.2f}".lstrip("0"),
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if value < 0.6 else "black",
            )
        ax.set_xticks(range(len(ORDER)), ORDER, rotation=45, ha="right", fontsize=7)
        ax.set_yticks(range(len(labels)), labels, fontsize=7)
        ax.tick_params(length=0)
        ax.axhline(2.5, color="white", lw=2)
        ax.set_title(f"AP50, {name}", fontsize=9)
        for side in ax.spines.values():
            side.set_visible(False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--mixture", type=Path, help="folder with scenes of all presets, of maskrcnn train --seed 5"
    )
    parser.add_argument("--steps", type=int, default=600, help="default: %(default)s")
    parser.add_argument("--count", type=int, default=8, help="scenes per preset (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.jobs)
    models = train_all(arguments.folder, arguments.mixture, arguments.steps, arguments.jobs)
    figures = evaluate(models, arguments.folder / "figures.json", arguments.count, arguments.seed)
    write_table(figures, arguments.folder / "matrix.rst")
    plot(figures, arguments.folder / "matrix.png")


if __name__ == "__main__":
    main()
