# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which pixels can be used."""

import numpy as np

from lsst.meas.maskrcnn.images.pixels import usable_pixels


def test_flux_variance_and_mask_decide():
    flux = np.ones((2, 3, 4))
    flux[0, 0, 1], flux[1, 0, 2] = np.nan, -np.inf
    variance = np.ones_like(flux)
    variance[0, 1] = 0.0, -1.0, np.nan, np.inf
    valid = np.ones((3, 4), bool)
    valid[2, 3] = False
    expected = np.ones(flux.shape, bool)
    expected[0, 0, 1] = expected[1, 0, 2] = False
    expected[0, 1] = False
    expected[:, 2, 3] = False
    np.testing.assert_array_equal(usable_pixels(flux, variance, valid), expected)
    expected[0, 1] = True
    np.testing.assert_array_equal(usable_pixels(flux, valid=valid), expected)
    assert usable_pixels(np.zeros((0, 5))).shape == (0, 5)
