# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measurements of deblended sources against those of the real meas_base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lsst.afw.image import ExposureF
from lsst.afw.table import SchemaMapper, SourceCatalog
from lsst.meas.base import SingleFrameMeasurementTask

APERTURES = ("3_0", "4_5", "6_0", "9_0", "12_0", "17_0", "25_0", "35_0", "50_0", "70_0")
FLUXES = [
    "base_PsfFlux",
    "base_GaussianFlux",
    "base_SdssShape",
    *(f"base_CircularApertureFlux_{radius}" for radius in APERTURES),
]


@pytest.fixture(scope="module")
def wanted(shared_data: Path) -> SourceCatalog:
    """What the real meas_base measured."""
    return SourceCatalog.readFits(str(shared_data / "scarlet" / "measured_r.fits"))


@pytest.fixture(scope="module")
def measured(shared_data: Path) -> SourceCatalog:
    """The same sources, measured here."""
    sources = SourceCatalog.readFits(str(shared_data / "scarlet" / "deblended_r.fits"))
    exposure = ExposureF.readFits(str(shared_data / "scarlet" / "exposure_r.fits"))
    config = SingleFrameMeasurementTask.ConfigClass()
    config.plugins.names = [
        "base_PixelFlags",
        "base_SdssCentroid",
        "base_SdssShape",
        "base_PsfFlux",
        "base_GaussianFlux",
        "base_CircularApertureFlux",
        "base_SkyCoord",
        "base_LocalBackground",
    ]
    config.slots.calibFlux = None
    mapper = SchemaMapper(sources.schema)
    mapper.addMinimalSchema(sources.schema)
    schema = mapper.getOutputSchema()
    task = SingleFrameMeasurementTask(schema=schema, config=config)
    catalog = SourceCatalog(schema)
    catalog.extend(sources, mapper=mapper)
    task.run(catalog, exposure)
    return catalog.copy(deep=True)


@pytest.fixture(scope="module")
def bright(wanted: SourceCatalog) -> np.ndarray:
    """Which sources have a signal-to-noise ratio above 20."""
    return wanted["base_PsfFlux_instFlux"] > 20 * wanted["base_PsfFlux_instFluxErr"]


def test_schema(wanted: SourceCatalog, measured: SourceCatalog) -> None:
    def describe(catalog: SourceCatalog) -> list[tuple[str, ...]]:
        # Apostrophes come back from files doubled.
        return [
            (field.getName(), field.getTypeString(), field.getDoc().replace("''", "'"), field.getUnits())
            for field in (item.field for item in catalog.schema)
        ]

    assert describe(measured) == describe(wanted)
    aliases = {name: wanted.schema.getAliasMap().get(name) for name in wanted.schema.getAliasMap().keys()}
    assert "slot_Centroid" in aliases
    assert "base_GaussianFlux_flag_badShape" in aliases
    for name, target in aliases.items():
        assert measured.schema.getAliasMap().get(name) == target


def test_flags_are_equal(wanted: SourceCatalog, measured: SourceCatalog) -> None:
    names = [item.field.getName() for item in wanted.schema if item.field.getTypeString() == "Flag"]
    assert len(names) > 60
    different = [name for name in names if not np.array_equal(wanted[name], measured[name])]
    assert different == []
    # The field has sources at edges and some that fail, so that this says
    # something.
    assert sum(wanted[name].any() for name in names) > 20


def test_nan_where_upstream_has_nan(wanted: SourceCatalog, measured: SourceCatalog) -> None:
    for item in wanted.schema:
        if item.field.getTypeString() in ("D", "F"):
            name = item.field.getName()
            assert np.array_equal(np.isnan(wanted[name]), np.isnan(measured[name])), name


@pytest.mark.parametrize("name", FLUXES)
def test_fluxes(wanted: SourceCatalog, measured: SourceCatalog, bright: np.ndarray, name: str) -> None:
    flux, error = wanted[f"{name}_instFlux"], wanted[f"{name}_instFluxErr"]
    used = bright & np.isfinite(flux)
    assert used.sum() > 20
    np.testing.assert_allclose(measured[f"{name}_instFlux"][used], flux[used], rtol=0.01)
    np.testing.assert_allclose(measured[f"{name}_instFluxErr"][used], error[used], rtol=0.01)
    # The noise that neighbours were replaced with is the same to the last
    # random number, so that the faint ones agree as well.
    used = np.isfinite(flux)
    assert (np.abs(measured[f"{name}_instFlux"] - flux)[used] < 0.01 * error[used]).all()


def test_centroids(wanted: SourceCatalog, measured: SourceCatalog, bright: np.ndarray) -> None:
    for axis in "xy":
        name = f"base_SdssCentroid_{axis}"
        np.testing.assert_allclose(measured[name][bright], wanted[name][bright], rtol=0, atol=0.02)
        error = wanted[f"{name}Err"]
        used = bright & np.isfinite(error)
        np.testing.assert_allclose(measured[f"{name}Err"][used], error[used], rtol=0.02)


def test_second_moments(wanted: SourceCatalog, measured: SourceCatalog, bright: np.ndarray) -> None:
    size = 0.5 * (wanted["base_SdssShape_xx"] + wanted["base_SdssShape_yy"])[bright]
    for moment in ("xx", "yy", "xy"):
        name = f"base_SdssShape_{moment}"
        assert (np.abs(measured[name] - wanted[name])[bright] < 0.02 * size).all()
        psf = f"base_SdssShape_psf_{moment}"
        np.testing.assert_allclose(measured[psf], wanted[psf], rtol=1e-3, atol=1e-6)
        error = wanted[f"{name}Err"]
        used = bright & np.isfinite(error)
        np.testing.assert_allclose(measured[f"{name}Err"][used], error[used], rtol=0.02)


def test_local_background(wanted: SourceCatalog, measured: SourceCatalog) -> None:
    name = "base_LocalBackground_instFlux"
    # It has the width of a pixel's noise as its error.
    error = wanted[f"{name}Err"]
    assert (np.abs(measured[name] - wanted[name]) < 0.01 * error).all()
    np.testing.assert_allclose(measured[f"{name}Err"], error, rtol=0.01)


def test_psf_fit(wanted: SourceCatalog, measured: SourceCatalog) -> None:
    assert np.array_equal(measured["base_PsfFlux_npixels"], wanted["base_PsfFlux_npixels"])
    for name in ("base_PsfFlux_area", "base_PsfFlux_chi2"):
        np.testing.assert_allclose(measured[name], wanted[name], rtol=1e-3)


def test_sky_positions(wanted: SourceCatalog, measured: SourceCatalog) -> None:
    for name in ("coord_ra", "coord_dec"):
        # A milliarcsecond.
        np.testing.assert_allclose(
            np.asarray(measured[name], float), np.asarray(wanted[name], float), rtol=0, atol=5e-9
        )
    for name in ("coord_raErr", "coord_decErr"):
        used = np.isfinite(wanted[name])
        np.testing.assert_allclose(measured[name][used], wanted[name][used], rtol=0.02)
