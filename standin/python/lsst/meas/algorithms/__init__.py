# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Subset of ``lsst.meas.algorithms``: PSFs made from images."""

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from ._image_psf import ImagePsf, KernelPsf  # noqa: E402

__all__ = ["ImagePsf", "KernelPsf"]
