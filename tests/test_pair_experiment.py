# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tables and figures of the fluxes of pairs."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from pair_experiment import PairErrors, PairExample, draw_errors, draw_examples, format_table, median_error


def make_pairs() -> PairErrors:
    """Three pairs for each of 2 S/N, 2 separations and 3 ratios; the error is the ratio in per cent."""
    grid = np.array([(s, d, r) for s in (50.0, 200.0) for d in (1.0, 2.0) for r in (1.0, 3.0, 10.0)])
    snr, separation, ratio = np.repeat(grid, 3, axis=0).T
    kind = np.tile(["star-star", "star-galaxy", "galaxy-galaxy"], len(grid))
    errors = 0.01 * ratio[:, None] * np.array([1.0, -1.0])
    lost = errors.copy()
    lost[(separation == 1.0) & (kind == "star-star")] = np.nan
    n_found = np.where(kind == "galaxy-galaxy", 3, 2)
    return PairErrors(kind, snr, separation, ratio, n_found, {"ours": lost, "theirs": 2.0 * errors})


def test_choosing():
    pairs = make_pairs()
    assert len(pairs) == 36
    assert np.count_nonzero(pairs.choose(snr=50.0, separation=1.0, largest_ratio=3.0)) == 6
    assert np.count_nonzero(pairs.choose(kind="star-galaxy", ratio=10.0)) == 4
    assert np.count_nonzero(pairs.choose(n_found=3)) == 12
    assert pairs.found(pairs.choose(separation=1.0)) == pytest.approx(2 / 3)
    assert np.isnan(pairs.found(pairs.choose(snr=7.0)))


def test_median_error_by_hand(rng):
    """Pairs of which one error is not known do not count; the sign does not."""
    errors = np.array([[0.1, -0.3], [0.2, 0.2], [np.nan, 5.0]])
    value, uncertainty = median_error(errors, rng)
    assert value == pytest.approx(0.2)
    assert 0.0 <= uncertainty < 0.1
    assert np.isnan(median_error(errors[2:], rng)).all()


def test_table(rng):
    lines = format_table(make_pairs(), ["ours", "theirs"], rng).splitlines()
    assert lines[:3] == [".. list-table::", "   :header-rows: 1", ""]
    rows = " ".join(lines[3:]).split("* - ")[1:]
    cells = [[cell.strip() for cell in row.split(" - ")] for row in rows]
    # A row for ratios up to 3 and one for 10, for each S/N and separation.
    assert len(cells) == 1 + 2 * 2 * 2
    assert cells[0][-2:] == ["ours", "theirs"]
    assert cells[1][:5] == ["50", "1", "1 to 3", "6", "67"]
    assert cells[2][:5] == ["50", "1", "10", "3", "67"]
    assert cells[2][5] == "10.0 ± 0.0" and cells[2][6] == "20.0 ± 0.0"


def test_figures(rng):
    figure = draw_errors(make_pairs(), ["ours", "theirs"], rng)
    assert len(figure.axes) == 6
    curve = figure.axes[5].containers[1].lines[0]
    np.testing.assert_allclose(curve.get_ydata(), 20.0)
    np.testing.assert_allclose(curve.get_xdata(), [1.0, 2.0])
    image = np.ones((9, 12), np.float32)
    truth = np.stack([3.0 * image, image])
    example = PairExample("star-star", image, 0.1, truth, {"ours": np.stack([image, 0.5 * image])})
    figure = draw_examples([example], ["ours"])
    assert len(figure.axes) == 3
    assert figure.axes[2].texts[0].get_text() == "0.50"
    figure.savefig(io.BytesIO(), format="png")
    with pytest.raises(ValueError, match="at least one"):
        draw_examples([], ["ours"])
