# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Formatters of images, masks, masked images and exposures."""

from __future__ import annotations

__all__ = [
    "FitsExposureFormatter",
    "FitsImageFormatter",
    "FitsImageFormatterBase",
    "FitsMaskFormatter",
    "FitsMaskedImageFormatter",
    "StandardFitsImageFormatterBase",
]

import copy
import hashlib
import json
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

# PSFs and BoundedFields can only be read once their classes exist.
import lsst.afw.detection
import lsst.afw.math  # noqa: F401
from lsst.afw.fits import CompressionOptions
from lsst.afw.image import (
    ExposureFitsReader,
    ExposureInfo,
    FilterLabel,
    ImageFitsReader,
    MaskedImageFitsReader,
    MaskFitsReader,
)
from lsst.daf.butler import FormatterV2
from lsst.utils.introspection import find_outside_stacklevel

from ..utils import add_provenance_to_fits_header

if TYPE_CHECKING:
    from lsst.daf.butler import DatasetProvenance
    from lsst.resources import ResourcePath

_PLANES = ("image", "mask", "variance")

_SEEDS = 9999
"""The number of seeds that FITS allows for dithering."""


class FitsImageFormatterBase(FormatterV2):
    """Base of the formatters of image-like objects."""

    can_read_from_local_file = True
    default_extension = ".fits"
    supported_extensions: ClassVar[frozenset[str]] = frozenset(
        {".fits", ".fits.gz", ".fits.fz", ".fz", ".fit"}
    )
    unsupported_parameters: ClassVar[frozenset[str]] = frozenset()

    ReaderClass: ClassVar[Any]
    """Class that reads the file."""

    _reader: Any = None

    @property
    def reader(self) -> Any:
        """The open file, while something is read."""
        if self._reader is None:
            raise RuntimeError(f"{type(self).__name__} has no open file: use it through Butler.get.")
        return self._reader

    @property
    def checked_parameters(self) -> dict[str, Any]:
        """The parameters of the get, checked by the storage class."""
        parameters = dict(self.file_descriptor.parameters or {})
        self.file_descriptor.storageClass.validateParameters(parameters)
        return parameters

    @property
    def storageClass_dtype(self) -> np.dtype | None:
        """Type of the pixels that the storage class has (`None`: any)."""
        dtype = getattr(self.file_descriptor.storageClass.pytype, "dtype", None)
        return None if dtype is None else np.dtype(dtype)

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        """Read an object or a component.

        Parameters
        ----------
        path : `str`
            Name of the file.
        component : `str`, optional
            Name of the component (default: the whole object).
        expected_size : `int`, optional
            Not used.

        Returns
        -------
        dataset : `object`
            The object or component.
        """
        with self.ReaderClass(path) as reader:
            self._reader = reader
            try:
                return self.readFull() if component is None else self.readComponent(component)
            finally:
                self._reader = None

    @abstractmethod
    def readComponent(self, component: str) -> Any:
        """Read a component.

        Parameters
        ----------
        component : `str`
            Its name.

        Returns
        -------
        component : `object`
            The component.

        Raises
        ------
        KeyError
            Raised for an unknown name.
        """
        raise NotImplementedError()

    @abstractmethod
    def readFull(self) -> Any:
        """Read the object (or the part that the parameters choose)."""
        raise NotImplementedError()


class StandardFitsImageFormatterBase(FitsImageFormatterBase):
    """Base of the formatters of objects that this package writes.

    Notes
    -----
    A write recipe holds, for each of "image", "mask" and "variance", what
    `lsst.afw.fits.CompressionOptions.from_mapping` understands, or `None` for
    no compression.
    """

    supported_write_parameters = frozenset({"recipe"})

    def readComponent(self, component: str) -> Any:
        """Read "bbox", "dimensions" or "xy0"; see the base class."""
        if component not in ("bbox", "dimensions", "xy0"):
            raise KeyError(f"Unknown component requested: {component}")
        bbox = self.reader.readBBox()
        if component == "dimensions":
            return bbox.getDimensions()
        return bbox.getMin() if component == "xy0" else bbox

    def readFull(self) -> Any:
        """Read the object (or the part that the parameters choose)."""
        return self.reader.read(**self.checked_parameters, dtype=self.storageClass_dtype)

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        """Write an object, compressed as the recipe says.

        Parameters
        ----------
        in_memory_dataset : `object`
            The object.
        uri : `lsst.resources.ResourcePath`
            The file.
        """
        recipe = self.get_image_compression_settings(self.write_parameters.get("recipe"))
        if recipe:
            in_memory_dataset.writeFitsWithOptions(uri.ospath, options=recipe)
        else:
            in_memory_dataset.writeFits(uri.ospath)

    def get_image_compression_settings(self, recipeName: str | None) -> dict[str, Any]:
        """Return the settings of a recipe.

        Parameters
        ----------
        recipeName : `str` or `None`
            Name of the recipe (`None`: "default" if there is one).

        Returns
        -------
        settings : `dict`
            The recipe; empty for no compression.

        Raises
        ------
        RuntimeError
            Raised for an unknown recipe.
        """
        if not recipeName:
            if "default" not in self.write_recipes:
                return {}
            recipeName = "default"
        if recipeName not in self.write_recipes:
            raise RuntimeError(
                f"Unrecognized recipe option given for compression: {recipeName}; there are "
                f"{sorted(self.write_recipes)}."
            )
        recipe = copy.deepcopy(self.write_recipes[recipeName])
        if recipe is None:
            return {}
        for plane in _PLANES:
            quantization = (recipe.get(plane) or {}).get("quantization")
            if quantization is not None and quantization.get("seed", 0) == 0:
                # The same data ID gives the same file.
                values = json.dumps(list(self.data_id.required_values)).encode()
                digest = hashlib.md5(values, usedforsecurity=False).digest()
                quantization["seed"] = 1 + int.from_bytes(digest, "big") % _SEEDS
        return recipe

    @classmethod
    def validate_write_recipes(cls, recipes: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Check recipes and complete them with default values.

        Parameters
        ----------
        recipes : `~collections.abc.Mapping` or `None`
            Recipes by name.

        Returns
        -------
        validated : `~collections.abc.Mapping` or `None`
            The complete recipes.

        Raises
        ------
        ValueError, KeyError
            Raised if a recipe is not understood.
        """
        if not recipes:
            return recipes
        validated: dict[str, Any] = {}
        for name, recipe in recipes.items():
            validated[name] = None if recipe is None else {}
            for plane in _PLANES if recipe is not None else ():
                try:
                    settings = recipe[plane]
                    options = None if settings is None else CompressionOptions.from_mapping(settings)
                except Exception as error:
                    error.add_note(f"Validating write recipe {name!r} ({plane!r} section).")
                    raise
                validated[name][plane] = None if options is None else options.to_dict()
        return validated


class FitsImageFormatter(StandardFitsImageFormatterBase):
    """Formatter of images."""

    ReaderClass = ImageFitsReader


class FitsMaskFormatter(StandardFitsImageFormatterBase):
    """Formatter of masks."""

    ReaderClass = MaskFitsReader


class FitsMaskedImageFormatter(StandardFitsImageFormatterBase):
    """Formatter of masked images."""

    ReaderClass: ClassVar[Any] = MaskedImageFitsReader

    def readComponent(self, component: str) -> Any:
        """Read a plane or what is derived of it; see the base class."""
        if component == "image":
            return self.reader.readImage(**self.checked_parameters, dtype=self.storageClass_dtype)
        if component == "mask":
            return self.reader.readMask(**self.checked_parameters)
        if component == "variance":
            return self.reader.readVariance(**self.checked_parameters, dtype=self.storageClass_dtype)
        return super().readComponent(component)


class FitsExposureFormatter(FitsMaskedImageFormatter):
    """Formatter of exposures."""

    ReaderClass = ExposureFitsReader

    _READERS: ClassVar[dict[str, str]] = {
        "id": "readExposureId",
        "metadata": "readMetadata",
        "wcs": "readWcs",
        "coaddInputs": "readCoaddInputs",
        "psf": "readPsf",
        "photoCalib": "readPhotoCalib",
        "filter": "readFilter",
        "validPolygon": "readValidPolygon",
        "apCorrMap": "readApCorrMap",
        "visitInfo": "readVisitInfo",
        "transmissionCurve": "readTransmissionCurve",
        "detector": "readDetector",
        "exposureInfo": "readExposureInfo",
    }

    def add_provenance(
        self, in_memory_dataset: Any, /, *, provenance: DatasetProvenance | None = None
    ) -> Any:
        """Write provenance to the metadata of an exposure.

        Parameters
        ----------
        in_memory_dataset : `lsst.afw.image.Exposure`
            The exposure.
        provenance : `lsst.daf.butler.DatasetProvenance`, optional
            Where it came from.

        Returns
        -------
        exposure : `lsst.afw.image.Exposure`
            The same object.
        """
        add_provenance_to_fits_header(in_memory_dataset.metadata, self.dataset_ref, provenance)
        return in_memory_dataset

    @property
    def checked_parameters(self) -> dict[str, Any]:
        """The parameters of the get, of which ``bbox`` and ``origin`` work.

        Raises
        ------
        NotImplementedError
            Raised for parameters that need a detector or another class.
        """
        given = super().checked_parameters
        # Parameters that ask for nothing need not be supported.
        parameters = {
            name: value for name, value in given.items() if value is not None and value is not False
        }
        unsupported = sorted(set(parameters) - {"bbox", "origin"})
        if unsupported:
            raise NotImplementedError(f"Parameters {unsupported} need the LSST Science Pipelines.")
        return parameters

    def readComponent(self, component: str) -> Any:
        """Read a component; see the base class."""
        if component == "summaryStats":
            return self.reader.readComponent(ExposureInfo.KEY_SUMMARY_STATS)
        if component not in self._READERS:
            return super().readComponent(component)
        result = getattr(self.reader, self._READERS[component])()
        return self._fixFilterLabels(result) if component == "filter" else result

    def readFull(self) -> Any:
        """Read the exposure (or the part that the parameters choose)."""
        result = super().readFull()
        result.setFilter(self._fixFilterLabels(result.getFilter()))
        return result

    def _fixFilterLabels(
        self, file_filter_label: FilterLabel | None, should_be_standardized: bool | None = None
    ) -> FilterLabel | None:
        """Replace a file's label by the one of the data ID.

        Parameters
        ----------
        file_filter_label : `lsst.afw.image.FilterLabel` or `None`
            Label in the file.
        should_be_standardized : `bool`, optional
            Whether the labels should agree (default: files of layout 2 and
            later).

        Returns
        -------
        label : `lsst.afw.image.FilterLabel` or `None`
            Label of the data ID, or the file's where the data ID lacks
            implied values.
        """
        names = self.data_id.dimensions.names
        missing = []
        values: dict[str, str | None] = {"band": None, "physical_filter": None}
        for name in values:
            if name not in names:
                continue
            value = self.data_id.get(name)
            values[name] = None if value is None else str(value)
            if value is None and not self.data_id.hasFull() and name in self.data_id.dimensions.implied:
                missing.append(name)
        if should_be_standardized is None:
            should_be_standardized = self.reader.readSerializationVersion() >= 2
        message = ""
        label = file_filter_label
        if missing:
            if not should_be_standardized:
                message = (
                    f"Data ID {self.data_id} is missing (implied) value(s) for {missing}; the correctness of "
                    "this Exposure's FilterLabel cannot be guaranteed. Call Registry.expandDataId before "
                    "Butler.get to avoid this."
                )
        else:
            band, physical = values["band"], values["physical_filter"]
            label = None if band is None and physical is None else FilterLabel(band=band, physical=physical)
            if label != file_filter_label and should_be_standardized:
                message = (
                    f"Reading {self.file_descriptor.location} with data ID {self.data_id}: filter label "
                    f"mismatch (file is {file_filter_label}, data ID is {label}).  This is probably a bug in "
                    "the code that produced it."
                )
        if message:
            warnings.warn(
                message,
                stacklevel=find_outside_stacklevel(
                    "lsst.obs.base", "lsst.pipe.base", "lsst.daf.butler", allow_methods={"runQuantum"}
                ),
            )
        return label
