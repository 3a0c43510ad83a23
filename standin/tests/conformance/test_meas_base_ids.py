# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""IDs of catalogues against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lsst.afw.table import SourceTable
from lsst.daf.butler import DataCoordinate, DimensionUniverse
from lsst.meas.base import (
    BaseIdGeneratorConfig,
    DetectorVisitIdGeneratorConfig,
    FullIdGenerator,
    IdGenerator,
    SkyMapIdGeneratorConfig,
)
from lsst.pex.config import Config, FieldValidationError
from lsst.pex.exceptions import LengthError
from lsst.skymap.packers import SkyMapDimensionPacker

UNIVERSE = DimensionUniverse()


def make_data_id(**values: object) -> DataCoordinate:
    """Return a data ID of a sky map of 5 tracts with 3 x 3 patches."""
    values.setdefault("skymap", "toy")
    data_id = DataCoordinate.standardize(values, universe=UNIVERSE)
    record_class = UNIVERSE["skymap"].RecordClass
    record = record_class(name="toy", hash=b"toy", tract_max=5, patch_nx_max=3, patch_ny_max=3)
    records = dict.fromkeys(data_id.dimensions.elements)
    return data_id.expanded(records | {"skymap": record})


def test_packer_numbers() -> None:
    packer = SkyMapDimensionPacker(make_data_id(), n_bands=0)
    assert set(packer.dimensions.names) == {"skymap", "tract", "patch"}
    # 5 x 9 = 45 values, 0 to 44, take 6 bits.
    assert packer.maxBits == 6
    data_id = make_data_id(tract=2, patch=6)
    assert packer.pack(data_id) == 6 + 9 * 2
    assert packer.pack(make_data_id(tract=4, patch=8)) == 44
    assert packer.unpack(24) == data_id
    assert packer.pack(data_id, returnMaxBits=True) == (24, 6)


def test_packer_with_bands() -> None:
    packer = SkyMapDimensionPacker(make_data_id(), bands={"z": 0, "r": 1, "g": 2}, n_bands=None)
    # 45 x 3 = 135 values take 8 bits.
    assert packer.maxBits == 8
    data_id = make_data_id(tract=2, patch=6, band="r")
    assert packer.pack(data_id) == 24 + 45
    assert packer.unpack(69) == data_id


def test_packer_default_bands() -> None:
    packer = SkyMapDimensionPacker(make_data_id())
    # No band, 17 letters, 6 HSC and 4 DECam narrow bands: "g" is the third.
    assert len(packer.SUPPORTED_FILTERS) == 28
    data_id = make_data_id(tract=1, patch=1, band="g")
    assert packer.pack(data_id) == 10 + 2 * 45
    assert packer.unpack(100) == data_id
    assert packer.maxBits == (28 * 45 - 1).bit_length()


def test_packer_refuses() -> None:
    packer = SkyMapDimensionPacker(make_data_id(), bands={"z": 0, "r": 1}, n_bands=1)
    with pytest.raises(ValueError, match="Patch ID 9 is out of bounds"):
        packer.pack(make_data_id(tract=1, patch=9, band="z"))
    with pytest.raises(ValueError, match="Tract ID 5 is out of bounds"):
        packer.pack(make_data_id(tract=5, patch=1, band="z"))
    with pytest.raises(ValueError, match="'r'"):
        packer.pack(make_data_id(tract=1, patch=1, band="r"))
    with pytest.raises(ValueError, match="'i'"):
        packer.pack(make_data_id(tract=1, patch=1, band="i"))
    with pytest.raises(ValueError, match="dimensions"):
        SkyMapDimensionPacker(make_data_id(), UNIVERSE.conform(["tract", "patch", "visit"]))


def test_packer_from_config() -> None:
    config = SkyMapDimensionPacker.ConfigClass()
    config.n_tracts, config.n_patches, config.n_bands, config.bands = 7, 100, 3, {"r": 0, "g": 1}
    # Plain data IDs do when the config says all that the records would.
    data_id = DataCoordinate.standardize(skymap="toy", tract=2, patch=6, band="g", universe=UNIVERSE)
    packer = SkyMapDimensionPacker.from_config(data_id, config=config)
    assert packer.pack(data_id) == 6 + 200 + 700
    assert packer.maxBits == (7 * 100 * 3 - 1).bit_length()


class OwnerConfig(Config):
    """A config as tasks have them."""

    idGenerator = SkyMapIdGeneratorConfig.make_field()


def test_ids_by_hand() -> None:
    config = OwnerConfig()
    assert config.idGenerator.release_id == 0
    assert config.idGenerator.n_releases == 64
    config.idGenerator.release_id = 3
    generator = config.idGenerator.apply(make_data_id(tract=2, patch=6))
    assert isinstance(generator, FullIdGenerator)
    # 6 bits of data ID (24), above them 6 bits of release (3), and below
    # them the counter, which gets the rest of the 63 bits.
    assert generator.catalog_id == 24 + 64 * 3 == 216
    assert generator.release_id == 3
    first = 216 << 51
    factory = generator.make_table_id_factory()
    assert [factory(), factory()] == [first + 1, first + 2]
    np.testing.assert_array_equal(generator.arange(1, 4), np.array([1, 2, 3]) + first)
    assert "tract: 2" in str(generator)


def test_ids_without_release_bits() -> None:
    config = SkyMapIdGeneratorConfig()
    config.n_releases = 1
    generator = config.apply(make_data_id(tract=2, patch=6))
    assert generator.catalog_id == 24
    assert generator.make_table_id_factory()() == (24 << 57) + 1


def test_ids_of_a_survey() -> None:
    # The numbers of the LSST sky map: 18938 tracts of 10 x 10 patches need
    # 21 bits, and 64 releases 6, so that 36 are left.
    config = SkyMapIdGeneratorConfig()
    config.packer.n_tracts, config.packer.n_patches = 18938, 100
    data_id = DataCoordinate.standardize(skymap="lsst_cells_v1", tract=9813, patch=42, universe=UNIVERSE)
    generator = config.apply(data_id)
    assert generator.catalog_id == 981342
    assert generator.make_table_id_factory()() == 981342 * 2**36 + 1
    with pytest.raises(ValueError, match=str(2**36)):
        generator.arange(2**36, 2**36 + 1)


def test_ids_unpack() -> None:
    config = SkyMapIdGeneratorConfig()
    config.release_id = 5
    data_id = make_data_id(tract=4, patch=8)
    generator = config.apply(data_id)
    unpack = IdGenerator.unpacker_from_config(config, make_data_id())
    assert unpack(int(generator.arange(17, 18)[0])) == (5, data_id, 17)


def test_source_catalog() -> None:
    generator = SkyMapIdGeneratorConfig().apply(make_data_id(tract=0, patch=1))
    catalog = generator.make_source_catalog(SourceTable.makeMinimalSchema())
    assert len(catalog) == 0
    for _ in range(3):
        catalog.addNew()
    np.testing.assert_array_equal(catalog["id"], generator.arange(1, 4))
    assert len(set(catalog["id"])) == 3


def test_ids_of_patches_are_disjoint() -> None:
    config = SkyMapIdGeneratorConfig()
    ids = {
        int(config.apply(make_data_id(tract=tract, patch=patch)).arange(1, 2)[0])
        for tract in range(5)
        for patch in range(9)
    }
    assert len(ids) == 45


def test_base_generator() -> None:
    generator = IdGenerator()
    assert generator.catalog_id == 0
    assert str(generator) == "[no data ID]"
    assert generator.make_table_id_factory()() == 1
    np.testing.assert_array_equal(generator.arange(3), [0, 1, 2])


def test_bad_config() -> None:
    config = SkyMapIdGeneratorConfig()
    with pytest.raises(FieldValidationError):
        config.n_releases = 0
    with pytest.raises(FieldValidationError):
        config.release_id = -1
    with pytest.raises(NotImplementedError):
        BaseIdGeneratorConfig().apply(make_data_id(tract=0, patch=0))


def test_counter_overflow() -> None:
    config = SkyMapIdGeneratorConfig()
    # 59 bits of data ID and none of release: 4 are left for the counter.
    config.n_releases = 1
    config.packer.n_tracts, config.packer.n_patches = 2**30, 2**29
    factory = config.apply(make_data_id(tract=1, patch=1)).make_table_id_factory()
    assert [factory() & 15 for _ in range(15)] == list(range(1, 16))
    with pytest.raises(LengthError):
        factory()


def test_visit_config() -> None:
    config = DetectorVisitIdGeneratorConfig()
    config.packer = "observation"
    config.packer["observation"].n_detectors = 10
    config.packer["observation"].n_observations = 1000
    data_id = DataCoordinate.standardize(instrument="Toy", visit=12, detector=3, universe=UNIVERSE)
    generator = config.apply(data_id)
    assert generator.catalog_id == 12 * 10 + 3
