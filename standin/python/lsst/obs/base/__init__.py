# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage of images and catalogues in a Butler."""

from __future__ import annotations

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from .exposureAssembler import ExposureAssembler  # noqa: E402
from .utils import add_provenance_to_fits_header, strip_provenance_from_fits_header  # noqa: E402

__all__ = ["ExposureAssembler", "add_provenance_to_fits_header", "strip_provenance_from_fits_header"]
