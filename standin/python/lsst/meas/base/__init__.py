# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Subset of ``lsst.meas.base``: measurement of sources, ids of catalogues."""

from meas_maskrcnn_standin import refuse_beside_real_afw

refuse_beside_real_afw(__file__)

from ._aperture_flux import (  # noqa: E402
    ApertureFluxAlgorithm,
    ApertureFluxControl,
    ApertureFluxResult,
    CircularApertureFluxAlgorithm,
)
from ._blendedness import (  # noqa: E402
    BlendednessAlgorithm,
    BlendednessControl,
)
from ._exceptions import (  # noqa: E402
    FatalAlgorithmError,
    MeasurementError,
    PixelValueError,
)
from ._flag_handler import (  # noqa: E402
    FlagDefinition,
    FlagDefinitionList,
    FlagHandler,
)
from ._gaussian_flux import (  # noqa: E402
    GaussianFluxAlgorithm,
    GaussianFluxControl,
)
from ._id_generator import (  # noqa: E402
    BaseIdGeneratorConfig,
    DetectorExposureIdGeneratorConfig,
    DetectorVisitIdGeneratorConfig,
    FullIdGenerator,
    IdGenerator,
    SkyMapIdGeneratorConfig,
)
from ._inputs import (  # noqa: E402
    CentroidChecker,
    SafeCentroidExtractor,
    SafeShapeExtractor,
)
from ._local_background import (  # noqa: E402
    LocalBackgroundAlgorithm,
    LocalBackgroundControl,
)
from ._pixel_flags import (  # noqa: E402
    PixelFlagsAlgorithm,
    PixelFlagsControl,
)
from ._psf_flux import (  # noqa: E402
    PsfFluxAlgorithm,
    PsfFluxControl,
)
from ._results import (  # noqa: E402
    FULL_COVARIANCE,
    NO_UNCERTAINTY,
    SIGMA_ONLY,
    CentroidResult,
    CentroidResultKey,
    FluxResult,
    FluxResultKey,
    ShapeResult,
    ShapeResultKey,
    UncertaintyEnum,
)
from ._sdss_centroid import (  # noqa: E402
    SdssCentroidAlgorithm,
    SdssCentroidControl,
)
from ._sdss_shape import (  # noqa: E402
    SdssShapeAlgorithm,
    SdssShapeControl,
    SdssShapeResult,
    SdssShapeResultKey,
)
from .apCorrRegistry import (  # noqa: E402
    addApCorrName,
    getApCorrNameSet,
)
from .applyApCorr import (  # noqa: E402
    ApplyApCorrConfig,
    ApplyApCorrTask,
)
from .baseMeasurement import (  # noqa: E402
    BaseMeasurementConfig,
    BaseMeasurementPlugin,
    BaseMeasurementPluginConfig,
    BaseMeasurementTask,
    SourceSlotConfig,
)
from .catalogCalculation import (  # noqa: E402
    CatalogCalculationConfig,
    CatalogCalculationPlugin,
    CatalogCalculationPluginConfig,
    CatalogCalculationTask,
)
from .classification import (  # noqa: E402
    CatalogCalculationClassificationConfig,
    CatalogCalculationClassificationPlugin,
)
from .forcedMeasurement import (  # noqa: E402
    ForcedMeasurementConfig,
    ForcedMeasurementTask,
    ForcedPlugin,
    ForcedPluginConfig,
)
from .generic import (  # noqa: E402
    ForcedInputCountPlugin,
    ForcedVariancePlugin,
    GenericPlugin,
    InputCountConfig,
    InputCountPlugin,
    SingleFrameInputCountPlugin,
    SingleFrameVariancePlugin,
    VarianceConfig,
    VariancePlugin,
)
from .noiseReplacer import (  # noqa: E402
    DummyNoiseReplacer,
    NoiseReplacer,
    NoiseReplacerConfig,
)
from .pluginRegistry import (  # noqa: E402
    PluginMap,
    PluginRegistry,
    generateAlgorithmName,
    register,
)
from .plugins import (  # noqa: E402
    ForcedPeakCentroidConfig,
    ForcedPeakCentroidPlugin,
    ForcedTransformedCentroidConfig,
    ForcedTransformedCentroidPlugin,
    ForcedTransformedShapeConfig,
    ForcedTransformedShapePlugin,
    SingleFrameClassificationSizeExtendednessConfig,
    SingleFrameClassificationSizeExtendednessPlugin,
    SingleFramePeakCentroidConfig,
    SingleFramePeakCentroidPlugin,
    SingleFrameSkyCoordConfig,
    SingleFrameSkyCoordPlugin,
)
from .pluginsBase import (  # noqa: E402
    BasePlugin,
    BasePluginConfig,
)
from .sfm import (  # noqa: E402
    SingleFrameMeasurementConfig,
    SingleFrameMeasurementTask,
    SingleFramePlugin,
    SingleFramePluginConfig,
)
from .wrappers import (  # noqa: E402
    wrapAlgorithm,
    wrapAlgorithmControl,
    wrapForcedAlgorithm,
    wrapSimpleAlgorithm,
    wrapSingleFrameAlgorithm,
)

__all__ = (
    "FULL_COVARIANCE",
    "NO_UNCERTAINTY",
    "SIGMA_ONLY",
    "ApertureFluxAlgorithm",
    "ApertureFluxControl",
    "ApertureFluxResult",
    "ApplyApCorrConfig",
    "ApplyApCorrTask",
    "BaseIdGeneratorConfig",
    "BaseMeasurementConfig",
    "BaseMeasurementPlugin",
    "BaseMeasurementPluginConfig",
    "BaseMeasurementTask",
    "BasePlugin",
    "BasePluginConfig",
    "BlendednessAlgorithm",
    "BlendednessControl",
    "CatalogCalculationClassificationConfig",
    "CatalogCalculationClassificationPlugin",
    "CatalogCalculationConfig",
    "CatalogCalculationPlugin",
    "CatalogCalculationPluginConfig",
    "CatalogCalculationTask",
    "CentroidChecker",
    "CentroidResult",
    "CentroidResultKey",
    "CircularApertureFluxAlgorithm",
    "DetectorExposureIdGeneratorConfig",
    "DetectorVisitIdGeneratorConfig",
    "DummyNoiseReplacer",
    "FatalAlgorithmError",
    "FlagDefinition",
    "FlagDefinitionList",
    "FlagHandler",
    "FluxResult",
    "FluxResultKey",
    "ForcedInputCountPlugin",
    "ForcedMeasurementConfig",
    "ForcedMeasurementTask",
    "ForcedPeakCentroidConfig",
    "ForcedPeakCentroidPlugin",
    "ForcedPlugin",
    "ForcedPluginConfig",
    "ForcedTransformedCentroidConfig",
    "ForcedTransformedCentroidPlugin",
    "ForcedTransformedShapeConfig",
    "ForcedTransformedShapePlugin",
    "ForcedVariancePlugin",
    "FullIdGenerator",
    "GaussianFluxAlgorithm",
    "GaussianFluxControl",
    "GenericPlugin",
    "IdGenerator",
    "InputCountConfig",
    "InputCountPlugin",
    "LocalBackgroundAlgorithm",
    "LocalBackgroundControl",
    "MeasurementError",
    "NoiseReplacer",
    "NoiseReplacerConfig",
    "PixelFlagsAlgorithm",
    "PixelFlagsControl",
    "PixelValueError",
    "PluginMap",
    "PluginRegistry",
    "PsfFluxAlgorithm",
    "PsfFluxControl",
    "SafeCentroidExtractor",
    "SafeShapeExtractor",
    "SdssCentroidAlgorithm",
    "SdssCentroidControl",
    "SdssShapeAlgorithm",
    "SdssShapeControl",
    "SdssShapeResult",
    "SdssShapeResultKey",
    "ShapeResult",
    "ShapeResultKey",
    "SingleFrameClassificationSizeExtendednessConfig",
    "SingleFrameClassificationSizeExtendednessPlugin",
    "SingleFrameInputCountPlugin",
    "SingleFrameMeasurementConfig",
    "SingleFrameMeasurementTask",
    "SingleFramePeakCentroidConfig",
    "SingleFramePeakCentroidPlugin",
    "SingleFramePlugin",
    "SingleFramePluginConfig",
    "SingleFrameSkyCoordConfig",
    "SingleFrameSkyCoordPlugin",
    "SingleFrameVariancePlugin",
    "SkyMapIdGeneratorConfig",
    "SourceSlotConfig",
    "UncertaintyEnum",
    "VarianceConfig",
    "VariancePlugin",
    "addApCorrName",
    "generateAlgorithmName",
    "getApCorrNameSet",
    "register",
    "wrapAlgorithm",
    "wrapAlgorithmControl",
    "wrapForcedAlgorithm",
    "wrapSimpleAlgorithm",
    "wrapSingleFrameAlgorithm",
)
