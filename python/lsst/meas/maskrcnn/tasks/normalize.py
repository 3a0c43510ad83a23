# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Subtasks that turn exposures into the array which the network sees."""

from __future__ import annotations

__all__ = [
    "LuptonNormalizeConfig",
    "LuptonNormalizeTask",
    "NormalizeBaseConfig",
    "NormalizeBaseTask",
    "ZScoreNormalizeConfig",
    "ZScoreNormalizeTask",
    "config_from_settings",
    "normalizeRegistry",
]

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

import lsst.afw.image as afwImage
import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase

from ..catalogs.mask_planes import defined_plane_bits
from ..images.normalize import NormalizedImage, normalize

# Pixels converted to nJy at once: bounds the memory for coordinates.
_BLOCK_SIZE = 262_144


class NormalizeBaseConfig(pexConfig.Config):
    """What all the normalisations have in common."""

    badMaskPlanes = pexConfig.ListField[str](
        doc="Mask planes whose pixels are set to zero and marked invalid. Planes that an exposure does not "
        "have are ignored. SAT is not among the defaults, so that stars with a saturated core stay "
        "detectable; nor are CR and INTRP, whose pixels hold interpolated values.",
        default=["BAD", "NO_DATA"],
    )
    clipSigma = pexConfig.RangeField(
        doc="Threshold of the sigma clipping for the sky level and its scatter, in standard deviations.",
        dtype=float,
        default=3.0,
        min=1.0,
    )
    clipIterations = pexConfig.RangeField(
        doc="Largest number of rounds of the sigma clipping; 0 for no clipping.",
        dtype=int,
        default=10,
        min=0,
    )


class LuptonNormalizeConfig(NormalizeBaseConfig):
    """Settings of `LuptonNormalizeTask`."""

    q = pexConfig.RangeField(
        doc="Q of Lupton et al. (2004): the curve turns from linear to logarithmic at stretch / Q.",
        dtype=float,
        default=10.0,
        min=0.0,
        inclusiveMin=False,
    )
    stretch = pexConfig.RangeField(
        doc="The stretch, in the unit that stretchUnit names.",
        dtype=float,
        default=200.0,
        min=0.0,
        inclusiveMin=False,
    )
    stretchUnit = pexConfig.ChoiceField[str](
        doc="Unit of stretch.",
        default="noise",
        allowed={
            "noise": "Multiples of the sky noise of the mean of the bands.",
            "nJy": "Flux in nJy.",
            "percentile": "Percentile (0 to 100) of the mean of the bands over the valid pixels.",
        },
    )
    scale = pexConfig.RangeField(
        doc="What becomes 1 in the output, in the unit that scaleUnit names.",
        dtype=float,
        default=20.0,
        min=0.0,
        inclusiveMin=False,
    )
    scaleUnit = pexConfig.ChoiceField[str](
        doc="Unit of scale.",
        default="noise",
        allowed={
            "noise": "A grey pixel of this many times the sky noise of the mean of the bands.",
            "nJy": "A grey pixel of this flux in nJy.",
            "percentile": "This percentile (0 to 100) of the output over the valid pixels of all bands.",
        },
    )
    background = pexConfig.ChoiceField[str](
        doc="The minimum that is subtracted from each band.",
        default="global",
        allowed={
            "global": "Sigma-clipped median of the valid pixels.",
            "local": "The same in the cells of a coarse mesh, interpolated linearly.",
            "none": "Zero: the exposures are sky-subtracted.",
        },
    )
    backgroundMesh = pexConfig.RangeField(
        doc="Side of a cell of the local background (pixels); well above the largest galaxy.",
        dtype=int,
        default=256,
        min=8,
    )
    noiseSource = pexConfig.ChoiceField[str](
        doc="Where the sky noise is taken from.",
        default="auto",
        allowed={
            "auto": "The variance plane, or the pixels where it is missing, unusable, or constant and at "
            "odds with the pixels.",
            "variance": "The variance plane, or the pixels where it is missing or unusable.",
            "pixels": "The clipped scatter of the pixels.",
        },
    )

    def validate(self) -> None:
        """Check what concerns two fields, and what a range cannot say."""
        super().validate()
        cls = type(self)
        for field, unit in ((cls.stretch, cls.stretchUnit), (cls.scale, cls.scaleUnit)):
            value, unit_name = getattr(self, field.name), getattr(self, unit.name)
            if not math.isfinite(value):
                raise pexConfig.FieldValidationError(field, self, f"{value} is not a finite number.")
            if unit_name == "percentile" and value > 100:
                raise pexConfig.FieldValidationError(
                    field,
                    self,
                    f"{field.name}={value} with {unit.name}='percentile' is above 100; lower it or choose "
                    "another unit.",
                )
        if not math.isfinite(self.q):
            raise pexConfig.FieldValidationError(cls.q, self, f"{self.q} is not a finite number.")


class ZScoreNormalizeConfig(NormalizeBaseConfig):
    """Settings of `ZScoreNormalizeTask`."""

    statistics = pexConfig.ChoiceField[str](
        doc="Which mean and standard deviation are used.",
        default="clipped",
        allowed={
            "clipped": "Median and scatter after sigma clipping: those of the sky.",
            "full": "Mean and standard deviation of all the valid pixels.",
        },
    )
    asinh = pexConfig.ChoiceField[str](
        doc="Whether the range is compressed with an asinh.",
        default="after",
        allowed={
            "none": "It is not.",
            "before": "Before the z-score: asinh of the flux above the sky in units of softening times the "
            "clipped standard deviation.",
            "after": "After it: asinh of the z-score divided by softening.",
        },
    )
    softening = pexConfig.RangeField(
        doc="Where the asinh turns from linear to logarithmic, in standard deviations.",
        dtype=float,
        default=1.0,
        min=0.0,
        inclusiveMin=False,
    )

    def validate(self) -> None:
        """Check what a range cannot say."""
        super().validate()
        if not math.isfinite(self.softening):
            raise pexConfig.FieldValidationError(
                type(self).softening, self, f"{self.softening} is not a finite number."
            )


class NormalizeBaseTask(pipeBase.Task):
    """Bring exposures to nJy, find the valid pixels, and normalise.

    A subclass names the function of `lsst.meas.maskrcnn.images.normalize`
    that does the last step.
    """

    ConfigClass = NormalizeBaseConfig
    _DefaultName = "normalize"

    config: NormalizeBaseConfig

    normalization: ClassVar[str]
    """Name in `normalizeRegistry` and in the header of a model file."""

    def settings(self) -> dict[str, Any]:
        """Settings as plain values, as they are written to a model file.

        Returns
        -------
        settings : `dict`
            Values by field name, for `images.normalize.normalize` and
            `config_from_settings`.
        """
        return self.config.toDict()

    def uses_variance(self) -> bool:
        """Say whether the variance planes can change the result.

        Returns
        -------
        uses : `bool`
            True if they can.
        """
        return True

    def run(self, *, exposures: Mapping[str, afwImage.ExposureF]) -> pipeBase.Struct:
        """Normalise the exposures of one piece of sky.

        Parameters
        ----------
        exposures : mapping [`str`, `lsst.afw.image.ExposureF`]
            Exposures by band, in the order of the bands of the model.  They
            are not changed.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``image``
                Normalised image, float32 (band, y, x) in the order of
                ``exposures``; zero at invalid pixels, finite everywhere.
            ``valid``
                Bool (y, x), True where all the bands are usable.
            ``bands``
                The bands (`tuple` of `str`).
            ``minimum``
                Level subtracted from each band, nJy, float64 (band,).
            ``noise``
                Sky noise of each band, nJy, float64 (band,).
            ``noiseSource``
                Where each comes from (`tuple` of `str`).
            ``stretch``, ``scale``
                See `images.normalize.NormalizedImage`.

        Raises
        ------
        ValueError
            If there is no exposure, one has no usable PhotoCalib, or their
            boxes differ.

        Notes
        -----
        Fluxes become nJy with the PhotoCalib of each exposure, whether it is
        constant or varies with position.  Beside the exposures, the memory
        needed is one float32 copy of the images, which becomes the result,
        and one of the variance planes where these are used.
        """
        bands = tuple(exposures)
        flux, variance, valid = self.calibrate(exposures)
        result = self.normalize_flux(flux, variance, valid, overwrite=True)
        for n, band in enumerate(bands):
            self.log.debug(
                "Band %s: minimum %g nJy, noise %g nJy (from %s).",
                band,
                result.minimum[n],
                result.noise[n],
                result.noise_source[n],
            )
        if result.valid.size and not result.valid.any():
            self.log.warning("No pixel is valid in all of the bands %s.", ", ".join(bands))
        return pipeBase.Struct(
            image=result.image,
            valid=result.valid,
            bands=bands,
            minimum=result.minimum,
            noise=result.noise,
            noiseSource=result.noise_source,
            stretch=result.stretch,
            scale=result.scale,
        )

    def calibrate(
        self, exposures: Mapping[str, afwImage.ExposureF]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None, npt.NDArray[np.bool_]]:
        """Stack the exposures of one piece of sky in nJy, as `run` does first.

        Parameters
        ----------
        exposures : mapping [`str`, `lsst.afw.image.ExposureF`]
            Exposures by band, in the order of the bands of the model.

        Returns
        -------
        flux : `numpy.ndarray`
            Flux per pixel, float32 (band, y, x).
        variance : `numpy.ndarray` or `None`
            Its variance, float32 (band, y, x); `None` if it does not matter.
        valid : `numpy.ndarray`
            Bool (y, x), False where a bad mask plane is set in any band.

        Raises
        ------
        ValueError
            If there is no exposure, one has no usable PhotoCalib, or their
            boxes differ.
        """
        self._check(exposures)
        return self._calibrate(exposures)

    def normalize_flux(
        self,
        flux: npt.NDArray[np.float32],
        variance: npt.NDArray[np.float32] | None,
        valid: npt.NDArray[np.bool_],
        overwrite: bool = False,
    ) -> NormalizedImage:
        """Normalise what `calibrate` gives, as `run` does last.

        Parameters
        ----------
        flux, variance, valid : `numpy.ndarray`
            As `calibrate` returns them.
        overwrite : `bool`, optional
            Whether the result may take the place of ``flux``.

        Returns
        -------
        result : `~lsst.meas.maskrcnn.images.normalize.NormalizedImage`
            Normalised image, and how it was normalised.
        """
        return normalize(self.normalization, flux, variance, valid, self.settings(), overwrite=overwrite)

    def _check(self, exposures: Mapping[str, afwImage.ExposureF]) -> None:
        """Raise ValueError if the exposures do not fit together."""
        if not exposures:
            raise ValueError("No exposure was given; one per band of the model is needed.")
        first_band = next(iter(exposures))
        first_box = exposures[first_band].getBBox()
        for band, exposure in exposures.items():
            box = exposure.getBBox()
            if box != first_box:
                raise ValueError(
                    f"The exposures do not cover the same pixels: band {first_band!r} has {first_box}, band "
                    f"{band!r} has {box}. Cut or warp them to one box first."
                )
            photo_calib = exposure.getPhotoCalib()
            if photo_calib is None:
                raise ValueError(
                    f"The exposure of band {band!r} has no PhotoCalib, so its pixels cannot be brought to "
                    "nJy. Attach one with exposure.setPhotoCalib(...), for instance "
                    "lsst.afw.image.PhotoCalib(nJyPerCount)."
                )
            mean = photo_calib.getCalibrationMean()
            if not (math.isfinite(mean) and mean > 0):
                raise ValueError(
                    f"The PhotoCalib of band {band!r} has a calibration mean of {mean} nJy per count; a "
                    "finite, positive one is needed. Calibrate the exposure anew."
                )

    def _calibrate(
        self, exposures: Mapping[str, afwImage.ExposureF]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None, npt.NDArray[np.bool_]]:
        """Stack the exposures in nJy.

        Returns flux and variance (band, y, x) and the mask of the pixels
        (y, x) that no bad mask plane marks in any of the bands.
        """
        box = next(iter(exposures.values())).getBBox()
        width, height = box.getWidth(), box.getHeight()
        flux = np.empty((len(exposures), height, width), dtype=np.float32)
        variance = np.empty_like(flux) if self.uses_variance() else None
        valid = np.ones((height, width), dtype=bool)
        step = max(1, _BLOCK_SIZE // max(1, width))
        x = np.arange(box.getMinX(), box.getMinX() + width, dtype=np.float64)
        for n, exposure in enumerate(exposures.values()):
            photo_calib = exposure.getPhotoCalib()
            image, mask = exposure.image.array, exposure.mask.array
            bits = defined_plane_bits(exposure.mask, self.config.badMaskPlanes)
            for start in range(0, height, step):
                rows = slice(start, min(start + step, height))
                y = np.arange(rows.start, rows.stop, dtype=np.float64) + box.getMinY()
                # A constant PhotoCalib answers with a constant array.
                factor = photo_calib.getLocalCalibrationArray(np.tile(x, len(y)), np.repeat(y, width))
                factor = np.asarray(factor).reshape(len(y), width)
                # Infinite and huge pixels may overflow; they become invalid.
                with np.errstate(invalid="ignore", over="ignore"):
                    flux[n, rows] = image[rows] * factor
                    if variance is not None:
                        variance[n, rows] = exposure.variance.array[rows] * factor**2
                if bits:
                    valid[rows] &= (mask[rows] & bits) == 0
        return flux, variance, valid


normalizeRegistry = pexConfig.makeRegistry(
    doc="Normalisations of exposures for the network; subclasses of `NormalizeBaseTask`.",
    configBaseType=NormalizeBaseConfig,
)


@pexConfig.registerConfigurable("lupton", normalizeRegistry)
class LuptonNormalizeTask(NormalizeBaseTask):
    """Compress the range with an asinh of the mean band, keeping colours.

    See `lsst.meas.maskrcnn.images.normalize.lupton_normalize` for the
    equation (Lupton et al. 2004, PASP 116, 133).
    """

    ConfigClass = LuptonNormalizeConfig
    _DefaultName = "luptonNormalize"

    config: LuptonNormalizeConfig

    normalization = "lupton"

    def uses_variance(self) -> bool:
        """Say whether the variance planes can change the result."""
        return self.config.noiseSource != "pixels"


@pexConfig.registerConfigurable("zscore", normalizeRegistry)
class ZScoreNormalizeTask(NormalizeBaseTask):
    """Bring each band to zero mean and unit standard deviation.

    See `lsst.meas.maskrcnn.images.normalize.zscore_normalize`.
    """

    ConfigClass = ZScoreNormalizeConfig
    _DefaultName = "zscoreNormalize"

    config: ZScoreNormalizeConfig

    normalization = "zscore"

    def uses_variance(self) -> bool:
        """Say that the variance planes cannot change the result."""
        return False


def config_from_settings(name: str, settings: Mapping[str, Any]) -> NormalizeBaseConfig:
    """Make the configuration that a model file's header describes.

    Parameters
    ----------
    name : `str`
        Name in `normalizeRegistry`.
    settings : mapping
        As given by ``settings()`` of the task; missing ones keep their
        defaults.

    Returns
    -------
    config : `NormalizeBaseConfig`
        A validated configuration of the class that belongs to the name.

    Raises
    ------
    ValueError
        If there is no such normalisation or it has no such setting.
    lsst.pex.config.FieldValidationError
        If a value is not allowed.

    Examples
    --------
    >>> config = config_from_settings("lupton", {"stretch": 300.0})
    >>> task = normalizeRegistry["lupton"](config=config)
    >>> task.settings()["stretch"]
    300.0
    """
    if name not in normalizeRegistry:
        raise ValueError(
            f"There is no normalisation {name!r}; known are {', '.join(sorted(normalizeRegistry))}."
        )
    config = normalizeRegistry[name].ConfigClass()
    unknown = sorted(set(settings) - set(config.keys()))
    if unknown:
        raise ValueError(
            f"Normalisation {name!r} has no setting {', '.join(unknown)}; known are "
            f"{', '.join(sorted(config.keys()))}. A model file with such settings needs a newer version of "
            "this package."
        )
    config.update(**settings)
    config.validate()
    return config
