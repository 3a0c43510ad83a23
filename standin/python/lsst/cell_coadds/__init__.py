# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Subset of ``lsst.cell_coadds``: the PSF that an exposure made of a cell coadd has."""

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from ._stitched_psf import GridContainer, StitchedPsf, UniformGrid  # noqa: E402

__all__ = ["GridContainer", "StitchedPsf", "UniformGrid"]
