# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of the detection image."""

from __future__ import annotations

import numpy as np

from lsst.meas.maskrcnn.deblend.detection import detection_image


def test_noise_is_one_and_units_do_not_matter():
    rng = np.random.default_rng(5)
    level, noise = np.array([30.0, -4.0, 0.5]), np.array([3.0, 20.0, 0.1])
    flux = (rng.normal(size=(3, 70, 120)) * noise[:, None, None] + level[:, None, None]).astype(np.float32)
    valid = rng.random((70, 120)) < 0.9
    flux[:, ~valid] = np.nan
    image = detection_image(flux, level, noise, valid)
    assert image.shape == (70, 120) and image.dtype == np.float32
    assert abs(image[valid].std() - 1.0) < 0.02 and abs(image[valid].mean()) < 0.03
    assert (image[~valid] == 0.0).all()
    expected = ((flux.astype(float) - level[:, None, None]) / noise[:, None, None]).sum(axis=0) / np.sqrt(3)
    np.testing.assert_allclose(image[valid], expected[valid], atol=1e-4)
    np.testing.assert_array_equal(detection_image(4 * flux, 4 * level, 4 * noise, valid), image)
