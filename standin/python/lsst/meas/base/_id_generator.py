# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""64-bit IDs: a release, a packed data ID and a counter in one integer."""

from __future__ import annotations

__all__ = (
    "BaseIdGeneratorConfig",
    "DetectorExposureIdGeneratorConfig",
    "DetectorVisitIdGeneratorConfig",
    "FullIdGenerator",
    "IdGenerator",
    "SkyMapIdGeneratorConfig",
)

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lsst.afw.table import IdFactory, Schema, SourceCatalog, SourceTable
from lsst.daf.butler import DataCoordinate, DimensionPacker
from lsst.pex.config import Config, ConfigField, Field
from lsst.pipe.base import Instrument
from lsst.skymap.packers import SkyMapDimensionPacker

DEFAULT_RELEASE_ID = 0
"""Release ID where no config sets one (`int`)."""

DEFAULT_N_RELEASES = 64
"""Number of release IDs to leave room for where no config sets it (`int`)."""


class BaseIdGeneratorConfig(Config):
    """What the configs of `IdGenerator` have in common (abstract)."""

    release_id = Field[int](
        doc="Number of the data release to put into the IDs; 0 is reserved for no release.",
        default=DEFAULT_RELEASE_ID,
        check=lambda value: value >= 0,
    )
    n_releases = Field[int](
        doc="Number of release IDs, counted from 0, to leave room for; 1 leaves no room.",
        default=DEFAULT_N_RELEASES,
        check=lambda value: value > 0,
    )

    @classmethod
    def make_field(
        cls, doc: str = "Configuration for how to generate catalog IDs from data IDs."
    ) -> ConfigField:
        """Make a config field that holds this config.

        Parameters
        ----------
        doc : `str`, optional
            Documentation of the field.

        Returns
        -------
        field : `lsst.pex.config.ConfigField`
            New field.
        """
        return ConfigField(doc, dtype=cls)

    def apply(self, data_id: DataCoordinate, **kwargs: Any) -> IdGenerator:
        """Construct the generator for one data ID.

        Parameters
        ----------
        data_id : `lsst.daf.butler.DataCoordinate`
            Data ID that goes into all IDs, expanded with dimension records.
        **kwargs
            Further dimension values of the data ID.

        Returns
        -------
        id_generator : `IdGenerator`
            The generator.
        """
        packer = self._make_dimension_packer(data_id)
        return FullIdGenerator(
            packer,
            DataCoordinate.standardize(data_id, **kwargs, dimensions=packer.dimensions),
            release_id=self.release_id,
            n_releases=self.n_releases,
        )

    def _make_dimension_packer(self, data_id: DataCoordinate) -> DimensionPacker:
        """Make the packer of data IDs; derived classes say how.

        Parameters
        ----------
        data_id : `lsst.daf.butler.DataCoordinate`
            Data ID with at least the instrument or the skymap.

        Returns
        -------
        packer : `lsst.daf.butler.DimensionPacker`
            The packer.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define how data IDs are packed.")


class DetectorExposureIdGeneratorConfig(BaseIdGeneratorConfig):
    """IDs from {exposure, detector} data IDs."""

    packer: Any = Instrument.make_dimension_packer_config_field()

    def _make_dimension_packer(self, data_id: DataCoordinate) -> DimensionPacker:
        # Docstring inherited.
        return self.packer.apply(data_id, is_exposure=True)


class DetectorVisitIdGeneratorConfig(BaseIdGeneratorConfig):
    """IDs from {visit, detector} data IDs."""

    packer: Any = Instrument.make_dimension_packer_config_field()

    def _make_dimension_packer(self, data_id: DataCoordinate) -> DimensionPacker:
        # Docstring inherited.
        return self.packer.apply(data_id, is_exposure=False)


class SkyMapIdGeneratorConfig(BaseIdGeneratorConfig):
    """IDs from {skymap, tract, patch[, band]} data IDs."""

    packer = SkyMapDimensionPacker.make_config_field()

    def _make_dimension_packer(self, data_id: DataCoordinate) -> DimensionPacker:
        # Docstring inherited.
        return self.packer.apply(data_id)


class IdGenerator:
    """Makes the IDs of a catalogue's rows.

    The base class knows no data ID: its IDs are the bare counter, from 1 in
    `make_table_id_factory`. Generators that know their data ID come from
    ``config.apply(data_id)``, where ``config`` is a field made by
    `BaseIdGeneratorConfig.make_field`.
    """

    @property
    def catalog_id(self) -> int:
        """ID of the catalogue as a whole: release and data ID (`int`)."""
        return 0

    def __str__(self) -> str:
        return "[no data ID]"

    def make_table_id_factory(self) -> IdFactory:
        """Make a factory of row IDs.

        Returns
        -------
        factory : `lsst.afw.table.IdFactory`
            A new factory that starts at counter 1.
        """
        return IdFactory.makeSimple()

    def make_source_catalog(self, schema: Schema) -> SourceCatalog:
        """Make an empty catalogue whose new records get IDs from here.

        Parameters
        ----------
        schema : `lsst.afw.table.Schema`
            Schema of the catalogue.

        Returns
        -------
        catalog : `lsst.afw.table.SourceCatalog`
            Empty catalogue.
        """
        return SourceCatalog(SourceTable.make(schema, self.make_table_id_factory()))

    def arange(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """Make an array of row IDs; the arguments are `numpy.arange`'s.

        Parameters
        ----------
        *args, **kwargs
            Passed to `numpy.arange`, which makes the counter values. The
            factory of `make_table_id_factory` counts from 1.

        Returns
        -------
        ids : `numpy.ndarray`
            One ID for each counter value.
        """
        return np.arange(*args, **kwargs)

    @classmethod
    def unpacker_from_config(
        cls, config: BaseIdGeneratorConfig, fixed: DataCoordinate
    ) -> Callable[[int], tuple[int, DataCoordinate, int]]:
        """Make the inverse of the generators that a config makes.

        Parameters
        ----------
        config : `BaseIdGeneratorConfig`
            The config that made the IDs.
        fixed : `lsst.daf.butler.DataCoordinate`
            Data ID of the skymap or the instrument, with its record.

        Returns
        -------
        unpacker : `~collections.abc.Callable`
            As for `unpacker_from_dimension_packer`.
        """
        return cls.unpacker_from_dimension_packer(config._make_dimension_packer(fixed), config.n_releases)

    @classmethod
    def unpacker_from_dimension_packer(
        cls, dimension_packer: DimensionPacker, n_releases: int = DEFAULT_N_RELEASES
    ) -> Callable[[int], tuple[int, DataCoordinate, int]]:
        """Make the inverse of the generators that use a packer.

        Parameters
        ----------
        dimension_packer : `lsst.daf.butler.DimensionPacker`
            Packer that made the IDs.
        n_releases : `int`, optional
            Number of release IDs that they have room for.

        Returns
        -------
        unpacker : `~collections.abc.Callable`
            Takes an ID and returns the release ID (`int`), the data ID
            (`lsst.daf.butler.DataCoordinate`) and the counter (`int`).
        """
        bits = _IdGeneratorBits(dimension_packer, n_releases)

        def unpack(record_id: int) -> tuple[int, DataCoordinate, int]:
            catalog_id, counter = divmod(record_id, bits.n_counters)
            rest, packed_data_id = divmod(catalog_id, bits.n_data_ids)
            rest, release_id = divmod(rest, bits.n_data_ids)
            if rest:
                raise ValueError(
                    f"Record ID {record_id} leaves {rest} over after release {release_id}, packed data ID "
                    f"{packed_data_id} and counter {counter}; it was not made with this configuration."
                )
            return release_id, bits.packer.unpack(packed_data_id), counter

        return unpack


class FullIdGenerator(IdGenerator):
    """Makes IDs that hold a release and a data ID.

    Parameters
    ----------
    dimension_packer : `lsst.daf.butler.DimensionPacker`
        Packer of data IDs.
    data_id : `lsst.daf.butler.DataCoordinate`
        Data ID that goes into all IDs.
    release_id : `int`, optional
        Release that goes into all IDs.
    n_releases : `int`, optional
        Number of release IDs to leave room for.
    """

    def __init__(
        self,
        dimension_packer: DimensionPacker,
        data_id: DataCoordinate,
        release_id: int = DEFAULT_RELEASE_ID,
        n_releases: int = DEFAULT_N_RELEASES,
    ):
        self._bits = _IdGeneratorBits(dimension_packer, n_releases)
        self._release_id = release_id
        self._data_id = data_id.subset(dimension_packer.dimensions)
        self._packed_data_id: int = dimension_packer.pack(self._data_id)  # type: ignore[assignment]

    @property
    def data_id(self) -> DataCoordinate:
        """Data ID in all IDs (`lsst.daf.butler.DataCoordinate`)."""
        return self._data_id

    @property
    def release_id(self) -> int:
        """Release in all IDs (`int`)."""
        return self._release_id

    @property
    def catalog_id(self) -> int:
        # Docstring inherited.
        return self._packed_data_id + self._bits.n_data_ids * self._release_id

    def __str__(self) -> str:
        return str(self.data_id)

    def make_table_id_factory(self) -> IdFactory:
        # Docstring inherited.
        return IdFactory.makeSource(self.catalog_id, self._bits.counter_bits)

    def arange(self, *args: Any, **kwargs: Any) -> np.ndarray:
        # Docstring inherited.
        counters = super().arange(*args, **kwargs)
        n_too_large = int(np.count_nonzero(counters >= self._bits.n_counters))
        if n_too_large:
            raise ValueError(
                f"{n_too_large} of {counters.size} counter values are not below the upper bound "
                f"{self._bits.n_counters} that the data ID and the releases leave."
            )
        return counters + self.catalog_id * self._bits.n_counters


@dataclasses.dataclass
class _IdGeneratorBits:
    """The shares of the 64 bits."""

    packer: DimensionPacker
    """Packer of data IDs (`lsst.daf.butler.DimensionPacker`)."""

    n_releases: int = 0
    """Number of release IDs to leave room for (`int`)."""

    n_data_ids: int = dataclasses.field(init=False)
    """Number of packed data IDs to leave room for (`int`)."""

    counter_bits: int = dataclasses.field(init=False)
    """Number of bits of the counter (`int`)."""

    n_counters: int = dataclasses.field(init=False)
    """Number of counter values to leave room for (`int`)."""

    def __post_init__(self) -> None:
        self.n_data_ids = 1 << self.packer.maxBits
        upper_bits = (self.n_releases - 1).bit_length() + self.packer.maxBits
        self.counter_bits = IdFactory.computeReservedFromMaxBits(upper_bits)
        self.n_counters = 1 << self.counter_bits
