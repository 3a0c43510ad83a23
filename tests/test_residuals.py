# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Residuals of positions, fluxes and colours."""

import numpy as np
import pytest

from lsst.meas.maskrcnn.metrics.binned import divide, robust_statistics
from lsst.meas.maskrcnn.metrics.binned_figures import binned_residual, residual_bins
from lsst.meas.maskrcnn.metrics.match_table import MatchedSources, make_match_table
from lsst.meas.maskrcnn.metrics.summary import color_residuals

N = 20_000


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """Known biases: 0.3 and -0.1 px, flux 1 + blendedness / 4, g 0.1 mag too faint; then unmatched ones."""
    rng = np.random.default_rng(5)
    blendedness = rng.uniform(0.0, 1.0, N)
    flux = 10.0 ** rng.uniform(1.0, 4.0, N)
    is_star = rng.random(N) < 0.2
    truth = {
        "id": np.arange(N),
        "x": rng.uniform(0.0, 3000.0, N),
        "y": rng.uniform(0.0, 2000.0, N),
        "is_star": is_star,
        "blendedness": blendedness,
        "flux": flux,
        "flux_g": 0.5 * flux,
        "flux_r": flux,
        "flux_i": 1.5 * flux,
    }
    n_found = N - 100
    sigma = np.where(is_star, 0.05, 0.2)[:n_found]
    measured = flux[:n_found] * (1.0 + 0.25 * blendedness[:n_found] + 0.05 * rng.normal(size=n_found))
    found = {
        "id": np.arange(n_found),
        "x": truth["x"][:n_found] + 0.3 + sigma * rng.normal(size=n_found),
        "y": truth["y"][:n_found] - 0.1 + 2.0 * sigma * rng.normal(size=n_found),
        "is_star": is_star[:n_found],
        "score": np.ones(n_found),
        "flux": measured,
        "flux_g": 0.5 * measured * 10.0**-0.04,
        "flux_r": measured,
        "flux_i": 1.5 * measured,
    }
    found["x"][:50] += 100.0
    return make_match_table(truth, found, np.arange(n_found), bands=("g", "r", "i"))


def test_ratios_by_hand():
    np.testing.assert_allclose(divide([11.0, 0.0, 5.0], [10.0, 10.0, 0.0]), [1.1, 0.0, np.nan])


def test_a_bias_that_grows_with_blendedness_is_recovered(table):
    sources = MatchedSources(table)
    column, edges = residual_bins(sources)
    assert column == "blendedness"
    residual = divide(table["flux_detected"], table["flux_truth"]) - 1.0
    binned = binned_residual(sources, residual, None)
    assert binned.n.sum() == N - 100
    np.testing.assert_allclose(binned.median, 0.25 * 0.5 * (edges[1:] + edges[:-1]), atol=0.01)
    # The noise, and the bias's own range within a bin of 0.1.
    np.testing.assert_allclose(binned.scatter[2:], np.hypot(0.05, 0.025 / np.sqrt(12.0)), rtol=0.08)
    galaxies, stars = (binned_residual(sources, residual, star) for star in (False, True))
    np.testing.assert_array_equal(galaxies.n + stars.n, binned.n)
    offsets = binned_residual(sources, table["offset_x"], True)
    np.testing.assert_allclose(offsets.median, 0.3, atol=0.01)
    np.testing.assert_allclose(offsets.scatter[2:], 0.05, rtol=0.15)


def test_magnitude_where_blendedness_is_not_known(table):
    plain = table[:50].copy()
    plain["blendedness"] = np.nan
    plain["mag"] = np.linspace(20.0, 22.0, 50)
    sources = MatchedSources(plain)
    column, edges = residual_bins(sources)
    assert (column, edges.tolist()) == ("mag", [20.0, 20.5, 21.0, 21.5, 22.0])
    assert binned_residual(sources, plain["offset_x"], None).n.sum() == 50


def test_known_colour_error_is_recovered(table):
    colours = color_residuals(MatchedSources(table, bands=("g", "r", "i")))
    assert list(colours) == ["g-r", "r-i"]
    assert all(len(value) == len(table) for value in colours.values())
    assert np.isnan(colours["g-r"][-100:]).all()
    assert robust_statistics(colours["g-r"]).median == pytest.approx(0.1)
    assert robust_statistics(colours["r-i"]).median == pytest.approx(0.0, abs=1e-12)
    assert color_residuals(MatchedSources(table, bands=("g",))) == {}


def test_nothing(table):
    empty = table[:0]
    assert binned_residual(MatchedSources(empty), np.zeros(0), None).n.sum() == 0
    assert len(color_residuals(MatchedSources(empty, bands=("g", "r")))["g-r"]) == 0
