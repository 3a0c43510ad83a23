# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Integers for the data IDs of tracts, patches and bands."""

from __future__ import annotations

__all__ = ("SkyMapDimensionPacker",)

from collections.abc import Mapping
from typing import Any

from lsst.daf.butler import DataCoordinate, DimensionGroup, DimensionPacker
from lsst.pex.config import Config, ConfigurableField, DictField, Field


class SkyMapDimensionPackerConfig(Config):
    """How many tracts, patches and bands the packed integer has room for."""

    bands = DictField[str, int](
        doc="Integer of each band name; None stands for the built-in list of common bands.",
        default=None,
        optional=True,
    )
    n_bands = Field[int](
        doc="Number of bands to leave room for; 0 leaves the band out, None means the size of 'bands'.",
        optional=True,
        default=0,
    )
    n_tracts = Field[int](
        doc="One more than the largest tract ID; None takes it from the skymap's dimension record.",
        optional=True,
        default=None,
    )
    n_patches = Field[int](
        doc="One more than the largest patch ID; None takes it from the skymap's dimension record.",
        optional=True,
        default=None,
    )


class SkyMapDimensionPacker(DimensionPacker):
    """Pack a (tract, patch[, band]) data ID into one integer.

    The integer is ``patch + n_patches * (tract + n_tracts * band_index)``.

    Parameters
    ----------
    fixed : `lsst.daf.butler.DataCoordinate`
        Data ID with the ``skymap`` dimension only; with its dimension record,
        unless ``n_tracts`` and ``n_patches`` are both given.
    dimensions : `lsst.daf.butler.DimensionGroup`, optional
        {skymap, tract, patch}, with or without band. By default the band is
        in it if ``n_bands`` is not 0.
    bands : `~collections.abc.Mapping` [`str`, `int`], optional
        Index of each band; by default that of `SUPPORTED_FILTERS`.
    n_bands : `int`, optional
        Bands to leave room for; 0 leaves the band out, `None` means
        ``len(bands)``.
    n_tracts, n_patches : `int`, optional
        Room for tracts, and for patches in a tract; by default as in the
        skymap's record.

    Raises
    ------
    ValueError
        Raised if ``dimensions`` is neither of the two allowed groups.
    """

    SUPPORTED_FILTERS = (
        [None]
        + list("ugrizyUBGVRIZYJHK")
        + [f"N{wavelength}" for wavelength in (387, 515, 656, 816, 921, 1010)]
        + [f"N{wavelength}" for wavelength in (419, 540, 708, 964)]
    )
    """Bands in the order of their default indices; index 0 is no band."""

    ConfigClass = SkyMapDimensionPackerConfig

    def __init__(
        self,
        fixed: DataCoordinate,
        dimensions: DimensionGroup | None = None,
        bands: Mapping[str, int] | None = None,
        n_bands: int | None = None,
        n_tracts: int | None = None,
        n_patches: int | None = None,
    ):
        if bands is None:
            bands = {band: index for index, band in enumerate(self.SUPPORTED_FILTERS)}  # type: ignore[misc]
        if dimensions is None:
            if n_bands is None:
                n_bands = len(bands)
            names = ["tract", "patch"] if n_bands == 0 else ["tract", "patch", "band"]
            dimensions = fixed.universe.conform(names)
        else:
            has_band = "band" in dimensions.names
            wanted = {"skymap", "tract", "patch"} | ({"band"} if has_band else set())
            if set(dimensions.names) != wanted:
                raise ValueError(
                    f"Cannot pack dimensions {dimensions}; wanted skymap, tract, patch and at most band."
                )
            if not has_band:
                n_bands = 0
            elif n_bands is None:
                n_bands = len(bands)
        if n_tracts is None:
            n_tracts = fixed.records["skymap"].tract_max  # type: ignore[union-attr]
        if n_patches is None:
            record = fixed.records["skymap"]
            n_patches = record.patch_nx_max * record.patch_ny_max  # type: ignore[union-attr]
        super().__init__(fixed, dimensions)
        self._bands = bands
        self._n_bands = n_bands
        self._n_tracts = n_tracts
        self._n_patches = n_patches

    @classmethod
    def make_config_field(
        cls, doc: str = "How to pack tract, patch, and possibly band into an integer."
    ) -> ConfigurableField:
        """Make a field whose ``apply(data_id)`` constructs a packer.

        Parameters
        ----------
        doc : `str`, optional
            Documentation of the field.

        Returns
        -------
        field : `lsst.pex.config.ConfigurableField`
            Field holding a `SkyMapDimensionPackerConfig`.
        """
        return ConfigurableField(doc, target=cls.from_config, ConfigClass=cls.ConfigClass)

    @classmethod
    def from_config(cls, data_id: DataCoordinate, config: Any) -> SkyMapDimensionPacker:
        """Construct a packer from a data ID and a config.

        Parameters
        ----------
        data_id : `lsst.daf.butler.DataCoordinate`
            Data ID with at least the ``skymap`` dimension.
        config : `SkyMapDimensionPackerConfig`
            The settings.

        Returns
        -------
        packer : `SkyMapDimensionPacker`
            New packer.
        """
        return cls(
            data_id.subset(data_id.universe.conform(["skymap"])),
            bands=config.bands,
            n_bands=config.n_bands,
            n_tracts=config.n_tracts,
            n_patches=config.n_patches,
        )

    @property
    def maxBits(self) -> int:
        """Number of bits that a packed ID needs at most (`int`)."""
        n_values = self._n_tracts * self._n_patches * (self._n_bands or 1)
        return (n_values - 1).bit_length()

    def _pack(self, dataId: DataCoordinate) -> int:
        # Docstring inherited.
        tract, patch = int(dataId["tract"]), int(dataId["patch"])
        if patch >= self._n_patches:
            raise ValueError(f"Patch ID {patch} is out of bounds; expected <{self._n_patches}.")
        if tract >= self._n_tracts:
            raise ValueError(f"Tract ID {tract} is out of bounds; expected <{self._n_tracts}.")
        packed = patch + self._n_patches * tract
        if not self._n_bands:
            return packed
        band = str(dataId["band"])
        index = self._bands.get(band)
        if index is None:
            raise ValueError(
                f"Band {band!r} is not among the bands of this packer, {list(self._bands)}; "
                "add it to the config field 'bands'."
            )
        if index >= self._n_bands:
            raise ValueError(
                f"Band index {index} of {band!r} is out of bounds; expected <{self._n_bands}. "
                "Raise the config field 'n_bands'."
            )
        return packed + index * self._n_patches * self._n_tracts

    def unpack(self, packedId: int) -> DataCoordinate:
        """Return the data ID of a packed ID.

        Parameters
        ----------
        packedId : `int`
            What `pack` returned.

        Returns
        -------
        dataId : `lsst.daf.butler.DataCoordinate`
            The data ID that it was packed from.
        """
        values: dict[str, Any] = {"skymap": self.fixed["skymap"]}
        if self._n_bands:
            position, packedId = divmod(packedId, self._n_tracts * self._n_patches)
            # As upstream: the position in the mapping, not the mapped index.
            values["band"] = list(self._bands)[position]
        values["tract"], values["patch"] = divmod(packedId, self._n_patches)
        return DataCoordinate.standardize(values, dimensions=self.dimensions)
