# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets of pixels, ellipses, polygons and world coordinate systems."""

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from . import ellipses, polygon  # noqa: E402
from ._sky_wcs import SkyWcs, makeCdMatrix, makeSkyWcs, makeTanSipWcs  # noqa: E402
from ._span import Span  # noqa: E402
from ._span_set import SpanSet, Stencil  # noqa: E402
from ._transform import (  # noqa: E402
    TransformPoint2ToPoint2,
    linearizeTransform,
    makeTransform,
    makeWcsPairTransform,
)
from .ellipses import Ellipse, Quadrupole  # noqa: E402
from .polygon import Polygon, SinglePolygonException  # noqa: E402

# Last, because archives import modules that may import this one.
# isort: split
from . import _archive as _archive  # noqa: E402

__all__ = [
    "Ellipse",
    "Polygon",
    "Quadrupole",
    "SinglePolygonException",
    "SkyWcs",
    "Span",
    "SpanSet",
    "Stencil",
    "TransformPoint2ToPoint2",
    "ellipses",
    "linearizeTransform",
    "makeCdMatrix",
    "makeSkyWcs",
    "makeTanSipWcs",
    "makeTransform",
    "makeWcsPairTransform",
    "polygon",
]
