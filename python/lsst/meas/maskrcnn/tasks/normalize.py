# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Subtasks that normalise the pixels of several bands for the network."""

from __future__ import annotations

__all__ = [
    "LuptonNormalizeConfig",
    "LuptonNormalizeTask",
    "NormalizeBaseTask",
    "ZScoreNormalizeConfig",
    "ZScoreNormalizeTask",
    "normalizeRegistry",
]

from typing import Any

import numpy as np
import numpy.typing as npt

import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase

from ..images.normalize import LuptonSettings, NormalizedImage, ZScoreSettings, normalize
from .config_fields import make_config

_LuptonConfig: Any = make_config(LuptonSettings, "LuptonNormalizeConfig", leave_out=("kind",))
_ZScoreConfig: Any = make_config(ZScoreSettings, "ZScoreNormalizeConfig", leave_out=("kind",))


class LuptonNormalizeConfig(_LuptonConfig):
    """Settings of `LuptonNormalizeTask`."""


class ZScoreNormalizeConfig(_ZScoreConfig):
    """Settings of `ZScoreNormalizeTask`."""


class NormalizeBaseTask(pipeBase.Task):
    """Normalise the pixels of several bands; subclasses have the settings."""

    ConfigClass = pexConfig.Config
    _DefaultName = "normalize"

    config: Any

    def run(
        self,
        *,
        flux: npt.NDArray[np.float32],
        variance: npt.NDArray[np.float32] | None = None,
        valid: npt.NDArray[np.bool_] | None = None,
        overwrite: bool = False,
    ) -> NormalizedImage:
        """Normalise an image as the configuration says.

        Parameters
        ----------
        flux, variance, valid, overwrite
            As `lsst.meas.maskrcnn.images.normalize.normalize` takes them.

        Returns
        -------
        result : `~lsst.meas.maskrcnn.images.normalize.NormalizedImage`
            Normalised image, and how it was normalised.
        """
        result = normalize(self.config.settings(), flux, variance, valid, overwrite=overwrite)
        for n, level in enumerate(result.minimum):
            self.log.debug(
                "Band %d: level %g nJy, noise %g nJy (from %s).",
                n,
                level,
                result.noise[n],
                result.noise_source[n],
            )
        if result.valid.size and not result.valid.any():
            self.log.warning("No pixel is valid in all of the %d bands.", len(flux))
        return result


normalizeRegistry = pexConfig.makeRegistry(
    doc="Normalisations of images for the network; subclasses of `NormalizeBaseTask`.",
    configBaseType=pexConfig.Config,
)


@pexConfig.registerConfigurable("lupton", normalizeRegistry)
class LuptonNormalizeTask(NormalizeBaseTask):
    """Compress the range with an asinh of the mean band, which keeps colours.

    See `lsst.meas.maskrcnn.images.normalize` for the equation (Lupton et al.
    2004, PASP 116, 133).
    """

    ConfigClass = LuptonNormalizeConfig
    _DefaultName = "luptonNormalize"


@pexConfig.registerConfigurable("zscore", normalizeRegistry)
class ZScoreNormalizeTask(NormalizeBaseTask):
    """Bring each band to zero mean and unit standard deviation."""

    ConfigClass = ZScoreNormalizeConfig
    _DefaultName = "zscoreNormalize"
