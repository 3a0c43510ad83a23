# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images, masks, exposures and what belongs to them."""

from __future__ import annotations

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from ._apCorrMap import ApCorrMap  # noqa: E402
from ._coaddInputs import CoaddInputs  # noqa: E402
from ._exposure import (  # noqa: E402
    Exposure,
    ExposureD,
    ExposureF,
    ExposureI,
    ExposureL,
    ExposureU,
    bbox_contains_sky_coords,
    bbox_to_convex_polygon,
    makeExposure,
)
from ._exposureInfo import ExposureInfo  # noqa: E402
from ._filterLabel import FilterLabel, getDatabaseFilterLabel  # noqa: E402
from ._image import Image, ImageD, ImageF, ImageI, ImageL, ImageU  # noqa: E402
from ._mask import Mask, MaskPixel, MaskX  # noqa: E402
from ._maskedImage import (  # noqa: E402
    MaskedImage,
    MaskedImageD,
    MaskedImageF,
    MaskedImageI,
    MaskedImageL,
    MaskedImageU,
    VariancePixel,
    imagesOverlap,
    makeImageFromArray,
    makeMaskedImage,
    makeMaskedImageFromArrays,
    makeMaskFromArray,
)
from ._multiband import (  # noqa: E402  (needs the names above)
    IncompleteDataError,
    MultibandExposure,
    MultibandImage,
    MultibandMask,
    MultibandMaskedImage,
    MultibandPixel,
    computePsfImage,
)
from ._photoCalib import (  # noqa: E402
    Measurement,
    PhotoCalib,
    makePhotoCalibFromCalibZeroPoint,
    makePhotoCalibFromMetadata,
)
from ._readers import (  # noqa: E402
    ExposureFitsReader,
    ImageFitsReader,
    MaskedImageFitsReader,
    MaskFitsReader,
    bboxFromMetadata,
)
from ._slicing import LOCAL, PARENT, ImageOrigin  # noqa: E402
from ._summaryStats import ExposureSummaryStats  # noqa: E402
from ._transmissionCurve import TransmissionCurve  # noqa: E402
from ._visitInfo import RotType, VisitInfo, setVisitInfoMetadata, stripVisitInfoKeywords  # noqa: E402

__all__ = [
    "LOCAL",
    "PARENT",
    "ApCorrMap",
    "CoaddInputs",
    "Exposure",
    "ExposureD",
    "ExposureF",
    "ExposureFitsReader",
    "ExposureI",
    "ExposureInfo",
    "ExposureL",
    "ExposureSummaryStats",
    "ExposureU",
    "FilterLabel",
    "Image",
    "ImageD",
    "ImageF",
    "ImageFitsReader",
    "ImageI",
    "ImageL",
    "ImageOrigin",
    "ImageU",
    "IncompleteDataError",
    "Mask",
    "MaskFitsReader",
    "MaskPixel",
    "MaskX",
    "MaskedImage",
    "MaskedImageD",
    "MaskedImageF",
    "MaskedImageFitsReader",
    "MaskedImageI",
    "MaskedImageL",
    "MaskedImageU",
    "Measurement",
    "MultibandExposure",
    "MultibandImage",
    "MultibandMask",
    "MultibandMaskedImage",
    "MultibandPixel",
    "PhotoCalib",
    "RotType",
    "TransmissionCurve",
    "VariancePixel",
    "VisitInfo",
    "bboxFromMetadata",
    "bbox_contains_sky_coords",
    "bbox_to_convex_polygon",
    "computePsfImage",
    "getDatabaseFilterLabel",
    "imagesOverlap",
    "makeExposure",
    "makeImageFromArray",
    "makeMaskFromArray",
    "makeMaskedImage",
    "makeMaskedImageFromArrays",
    "makePhotoCalibFromCalibZeroPoint",
    "makePhotoCalibFromMetadata",
    "setVisitInfoMetadata",
    "stripVisitInfoKeywords",
]
