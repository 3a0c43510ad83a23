# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Residuals of positions, fluxes and colours."""

import numpy as np
import pytest

from lsst.meas.maskrcnn.metrics.binned import robust_statistics
from lsst.meas.maskrcnn.metrics.match_table import make_match_table, match_table_dtype
from lsst.meas.maskrcnn.metrics.residuals import (
    binned_centroid_residual,
    binned_flux_residual,
    centroid_residuals,
    color_residuals,
    flux_residual,
    flux_residuals,
)

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


def test_flux_residual_by_hand():
    np.testing.assert_allclose(flux_residual([11.0, 0.0, 5.0], [10.0, 10.0, 0.0]), [0.1, -1.0, np.nan])
    magnitude = flux_residual([1.0, 100.0, -1.0], [100.0, 1.0, 1.0], "magnitude")
    np.testing.assert_allclose(magnitude, [5.0, -5.0, np.nan])
    with pytest.raises(ValueError, match="'relative' or 'magnitude'"):
        flux_residual([1.0], [1.0], "ratio")


def test_known_offsets_are_recovered(table):
    stars = centroid_residuals(table, True)
    assert stars.unit == "pixel"
    assert stars.x.median == pytest.approx(0.3, abs=0.005)
    assert stars.x.scatter == pytest.approx(0.05, rel=0.05)
    assert stars.y.median == pytest.approx(-0.1, abs=0.01)
    assert stars.y.scatter == pytest.approx(0.1, rel=0.05)
    whole = centroid_residuals(table, n_sigma=100.0)
    assert whole.x.outliers.hits == whole.radial.outliers.hits == 50
    assert whole.y.outliers.hits == 0
    arcsec = centroid_residuals(table, True, pixel_scale=0.2)
    assert arcsec.unit == "arcsec"
    assert arcsec.x.median == pytest.approx(0.2 * stars.x.median)
    assert arcsec.radial.outliers.hits == stars.radial.outliers.hits


def test_a_bias_that_grows_with_blendedness_is_recovered(table):
    edges = np.linspace(0.0, 1.0, 6)
    binned = binned_flux_residual(table, edges)
    assert binned.n.sum() == N - 100
    np.testing.assert_allclose(binned.median, 0.25 * 0.5 * (edges[1:] + edges[:-1]), atol=0.006)
    # The noise, and the bias's own range of 0.05 within a bin.
    np.testing.assert_allclose(binned.scatter, np.hypot(0.05, 0.05 / np.sqrt(12.0)), rtol=0.06)
    magnitudes = binned_flux_residual(table, edges, kind="magnitude", band="r")
    np.testing.assert_allclose(magnitudes.median, -2.5 * np.log10(1.0 + binned.median), atol=1e-4)
    assert flux_residuals(table).median == pytest.approx(0.125, abs=0.005)
    assert flux_residuals(table, band="g").median == pytest.approx(1.125 * 10**-0.04 - 1.0, abs=0.005)
    galaxies = binned_flux_residual(table, edges, is_star=False)
    stars = binned_flux_residual(table, edges, is_star=True)
    np.testing.assert_array_equal(galaxies.n + stars.n, binned.n)


def test_offsets_in_bins(table):
    binned = binned_centroid_residual(table, [0.0, 0.5, 1.0], is_star=True, component="offset_x")
    np.testing.assert_allclose(binned.median, 0.3, atol=0.006)
    np.testing.assert_allclose(binned.scatter, 0.05, rtol=0.06)


def test_known_colour_error_is_recovered(table):
    colours = color_residuals(table, "gri")
    assert list(colours) == ["g-r", "r-i"]
    assert all(len(value) == len(table) for value in colours.values())
    assert np.isnan(colours["g-r"][-100:]).all()
    assert robust_statistics(colours["g-r"]).median == pytest.approx(0.1)
    assert robust_statistics(colours["r-i"]).median == pytest.approx(0.0, abs=1e-12)
    stars = color_residuals(table, "gr", True)["g-r"]
    assert np.isfinite(stars).sum() == np.count_nonzero(table["truth_is_star"][: N - 100])
    with pytest.raises(ValueError, match="two bands"):
        color_residuals(table, ["g"])


def test_nothing():
    empty = np.zeros(0, dtype=match_table_dtype(("g", "r")))
    assert centroid_residuals(empty).x.n == 0 and flux_residuals(empty).n == 0
    assert binned_flux_residual(empty, [0.0, 1.0]).n.tolist() == [0]
    assert len(color_residuals(empty, "gr")["g-r"]) == 0
