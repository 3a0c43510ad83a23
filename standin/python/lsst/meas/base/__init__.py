# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Subset of ``lsst.meas.base``: what makes the IDs of catalogues."""

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from ._id_generator import (  # noqa: E402
    BaseIdGeneratorConfig,
    DetectorExposureIdGeneratorConfig,
    DetectorVisitIdGeneratorConfig,
    FullIdGenerator,
    IdGenerator,
    SkyMapIdGeneratorConfig,
)

__all__ = (
    "BaseIdGeneratorConfig",
    "DetectorExposureIdGeneratorConfig",
    "DetectorVisitIdGeneratorConfig",
    "FullIdGenerator",
    "IdGenerator",
    "SkyMapIdGeneratorConfig",
)
