# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

# Workers of a parallel run would otherwise start one thread per core each. This must be set before numpy is
# imported.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

if TYPE_CHECKING:
    from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel

PROJECT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than about ten seconds")


@pytest.fixture(scope="session", autouse=True)
def package_environment() -> Iterator[None]:
    """Set what EUPS would set, and one thread for torch."""
    before = os.environ.get("MEAS_MASKRCNN_DIR")
    os.environ["MEAS_MASKRCNN_DIR"] = str(PROJECT)
    import torch

    torch.set_num_threads(1)
    yield
    if before is None:
        del os.environ["MEAS_MASKRCNN_DIR"]
    else:
        os.environ["MEAS_MASKRCNN_DIR"] = before


@pytest.fixture(scope="session")
def project_dir() -> Path:
    """Root of the package."""
    return PROJECT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the data for development and tests; skips without it."""
    given = os.environ.get("MASKRCNN_TESTDATA")
    path = Path(given) if given else PROJECT.parent / "shared" / "data"
    if not (path / "afw" / "golden.json").is_file():
        pytest.skip(f"test data not found in {path}; set MASKRCNN_TESTDATA")
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20260417)


@pytest.fixture(scope="session")
def fixed_model(tmp_path_factory: pytest.TempPathFactory) -> MaskRcnnModel:
    """A small network of the bands r and g that knows one scene, see fixed_bands.py."""
    from fixed_bands import learn

    return learn(tmp_path_factory.mktemp("fixed"))


@dataclass
class FakeScene:
    """Round Gaussian sources on noise: a scene without a simulator.

    Not square, so that swapped axes show.
    """

    bands: tuple[str, ...] = ("z", "r", "g")
    shape: tuple[int, int] = (200, 300)
    pixel_scale: float = 0.168
    n_sources: int = 25
    seed: int = 7
    images: np.ndarray = field(init=False)
    variance: np.ndarray = field(init=False)
    psf_fwhm: np.ndarray = field(init=False)
    sky_sigma: np.ndarray = field(init=False)
    x: np.ndarray = field(init=False)
    y: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        height, width = self.shape
        n_bands = len(self.bands)
        self.sky_sigma = np.linspace(8.0, 4.0, n_bands)
        self.psf_fwhm = np.full(n_bands, 0.7)
        self.x = rng.uniform(0, width - 1, self.n_sources)
        self.y = rng.uniform(0, height - 1, self.n_sources)
        yy, xx = np.mgrid[:height, :width]
        noiseless = np.zeros((n_bands, height, width))
        for x, y in zip(self.x, self.y):
            sigma = rng.uniform(1.8, 4.0)
            shape = np.exp(-0.5 * ((xx - x) ** 2 + (yy - y) ** 2) / sigma**2)
            noiseless += rng.uniform(30.0, 3000.0) * rng.uniform(0.4, 1.0, n_bands)[:, None, None] * shape
        noise = rng.normal(size=noiseless.shape) * self.sky_sigma[:, None, None]
        self.images = (noiseless + noise).astype(np.float32)
        self.variance = np.broadcast_to(self.sky_sigma[:, None, None] ** 2, noise.shape).astype(np.float32)


@pytest.fixture
def fake_scene() -> FakeScene:
    """A scene of 300 x 200 pixels in z, r, g."""
    return FakeScene()
