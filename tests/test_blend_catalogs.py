# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parents, shares as HeavyFootprints, and the columns of the deblender."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

import lsst.geom as geom
import lsst.meas.maskrcnn.deblend.shares as shares_module
from lsst.afw.detection import GaussianPsf
from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog, SourceTable
from lsst.meas.base import IdGenerator
from lsst.meas.maskrcnn.catalogs.deblend_columns import (
    PRIMARY_FIELDS,
    ParentFluxes,
    add_fields,
    fill_parent_columns,
    fill_primary_flags,
    fill_relations,
)
from lsst.meas.maskrcnn.catalogs.exposures import flagged_pixels, psf_image
from lsst.meas.maskrcnn.catalogs.heavy import deblend_band, parent_fluxes, share_footprints
from lsst.meas.maskrcnn.catalogs.record_order import order_records
from lsst.meas.maskrcnn.catalogs.schema import extend_band_schema, make_schema
from lsst.meas.maskrcnn.catalogs.source_catalog import masks_on_edge
from lsst.meas.maskrcnn.catalogs.tables import parent_table
from lsst.meas.maskrcnn.deblend.image import MultibandImage
from lsst.meas.maskrcnn.deblend.masks import measure_masks
from lsst.meas.maskrcnn.deblend.models import fit_models
from lsst.meas.maskrcnn.deblend.parents import Parent, make_parents
from lsst.meas.maskrcnn.deblend.shares import (
    BlendSource,
    Shares,
    ShareSettings,
    SourceShare,
    measure_overlap,
    share_parents,
)
from lsst.meas.maskrcnn.deblend.sources import SourceList
from lsst.meas.maskrcnn.network.detections import Detections

SHAPE = (40, 70)
XY0 = (12000, -300)


def square(side: int = 3) -> np.ndarray:
    return np.ones((side, side), dtype=bool)


# --- parents


def test_masks_that_overlap_or_touch_make_a_parent() -> None:
    """Four masks: two overlap, a third meets them at a corner, the last is one pixel away."""
    masks = [square()] * 4
    origins = np.array([[10, 10], [20, 20], [12, 12], [15, 15]])
    parents = make_parents(masks, origins, SHAPE)
    assert [parent.members.tolist() for parent in parents] == [[0, 2, 3], [1]]
    assert [(parent.y0, parent.x0, parent.pixels.shape) for parent in parents] == [
        (10, 10, (8, 8)),
        (20, 20, (3, 3)),
    ]
    assert parents[0].pixels.sum() == 9 + 9 - 1 + 9
    origins[3] = [16, 16]
    assert [len(parent) for parent in make_parents(masks, origins, SHAPE)] == [2, 1, 1]


def test_masks_are_grown_by_discs() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[4, 4] = mask[4, 5] = True
    for radius in (0.0, 1.0, 1.5, 2.9, 4.0):
        (parent,) = make_parents([mask], [[5, 30]], SHAPE, radius)
        image = np.zeros(SHAPE, dtype=bool)
        image[9, 34:36] = True
        expected = ndimage.distance_transform_edt(~image) <= radius
        found = np.zeros(SHAPE, dtype=bool)
        found[parent.box] = parent.pixels
        np.testing.assert_array_equal(found, expected)
        assert parent.pixels.any(axis=0).all()
        assert parent.pixels.any(axis=1).all()


def test_growth_stops_at_the_edge_of_the_image() -> None:
    parents = make_parents([square(2), square(2)], [[0, 0], [38, 68]], SHAPE, 5.0)
    assert [(parent.y0, parent.x0, parent.pixels.shape) for parent in parents] == [
        (0, 0, (7, 7)),
        (33, 63, (7, 7)),
    ]
    (narrow,) = make_parents([square(1)], [[0, 0]], (1, 2), 9.0)
    assert narrow.pixels.tolist() == [[True, True]]


def test_the_pieces_of_a_mask_stay_together() -> None:
    """A mask in two pieces, each touched by another source, joins all three."""
    pieces = np.zeros((5, 30), dtype=bool)
    pieces[:, :3] = pieces[:, -3:] = True
    parents = make_parents([square(), pieces, square(), square()], [[4, 8], [5, 10], [6, 39], [30, 5]], SHAPE)
    assert [parent.members.tolist() for parent in parents] == [[0, 1, 2], [3]]
    assert not parents[0].pixels[:, 10:20].any()


def test_parents_share_no_pixel_and_hold_every_source_once(rng: np.random.Generator) -> None:
    """Random masks: the union is that of the grown masks, whatever the order of the sources."""
    masks, origins = [], []
    for _ in range(60):
        mask = rng.random((5, 7)) > 0.5
        mask[2, 3] = True
        masks.append(mask)
        origins.append([rng.integers(0, 195), rng.integers(0, 293)])
    shape = (200, 300)
    parents = make_parents(masks, origins, shape, 2.0)
    assert sorted(np.concatenate([parent.members for parent in parents]).tolist()) == list(range(60))
    assert [parent.members[0] for parent in parents] == sorted(parent.members[0] for parent in parents)
    assert any(len(parent) > 1 for parent in parents)
    times = np.zeros(shape, dtype=int)
    for parent in parents:
        times[parent.box] += parent.pixels
    union = np.zeros(shape, dtype=bool)
    for mask, (y, x) in zip(masks, origins, strict=True):
        union[y : y + 5, x : x + 7] |= mask
    np.testing.assert_array_equal(times, (ndimage.distance_transform_edt(~union) <= 2.0).astype(int))

    shuffled = rng.permutation(60)
    again = make_parents([masks[i] for i in shuffled], np.array(origins)[shuffled], shape, 2.0)
    assert {frozenset(shuffled[parent.members].tolist()) for parent in again} == {
        frozenset(parent.members.tolist()) for parent in parents
    }


def test_parents_over_a_limit_fall_apart(rng: np.random.Generator) -> None:
    """A grid of sources 8 pixels apart is one parent when grown by 4, and none when by less."""
    origins = np.array([[4 + 8 * i, 4 + 8 * j] for i in range(6) for j in range(9)])
    masks, shape = [square(2)] * len(origins), (60, 90)
    (whole,) = make_parents(masks, origins, shape, 4.0)
    assert len(whole) == 54
    parts = make_parents(masks, origins, shape, 4.0, max_sources=20, max_area=10_000)
    assert [part.members.tolist() for part in parts] == [[index] for index in range(54)]
    for part, alone in zip(parts, make_parents(masks, origins, shape, 2.0), strict=True):
        assert (part.y0, part.x0) == (alone.y0, alone.x0)
        np.testing.assert_array_equal(part.pixels, alone.pixels)
    assert len(make_parents(masks, origins, shape, 4.0, 100, 1000)) == 54
    assert len(make_parents(masks, origins, shape, 4.0, 54, 10_000)) == 1
    # Masks that overlap stay together.
    overlapping = [square(9)] * len(origins)
    (dense,) = make_parents(overlapping, origins, shape, 1.0, 20, 10_000)
    assert len(dense) == 54


def test_no_source_has_no_parent() -> None:
    assert make_parents([], np.zeros((0, 2)), SHAPE) == []


# --- rows and relations


def some_parents(*members: list[int]) -> list[Parent]:
    return [Parent(np.array(m), 0, 0, np.ones((1, 1), dtype=bool)) for m in members]


def filled(parents: list[Parent]) -> SourceCatalog:
    schema = make_schema()
    add_fields(schema, "detect", PRIMARY_FIELDS)
    catalog = IdGenerator().make_source_catalog(schema)
    order = order_records(parents)
    catalog.resize(len(order))
    fill_relations(catalog, order)
    fill_primary_flags(catalog)
    return catalog


def test_relations() -> None:
    """By hand: sources 0, 3 and 4 are a blend, 1 is alone, 2 and 5 are another blend."""
    parents = some_parents([0, 3, 4], [1], [2, 5])
    order = order_records(parents)
    assert order.source.tolist() == [-1, 1, -1, 0, 3, 4, 2, 5]
    assert order.parent.tolist() == [0, 1, 2, 0, 0, 0, 2, 2]
    catalog = filled(parents)
    assert catalog["id"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert catalog["parent"].tolist() == [0, 0, 0, 1, 1, 1, 3, 3]
    expected = {
        "peakId": [0, 1, 0, 1, 2, 3, 1, 2],
        "nChild": [3, 0, 2, 0, 0, 0, 0, 0],
        "nPeaks": [3, 1, 2, 1, 1, 1, 1, 1],
        "parentNPeaks": [0, 0, 0, 3, 3, 3, 2, 2],
        "parentNChild": [0, 0, 0, 3, 3, 3, 2, 2],
        "blendNChild": [0, 0, 0, 3, 3, 3, 2, 2],
        "blendId": [0, 0, 0, 1, 1, 1, 3, 3],
    }
    for name, values in expected.items():
        assert catalog[f"deblend_{name}"].tolist() == values, name
    assert [child.getId() for child in catalog.getChildren(1)] == [4, 5, 6]
    assert len(catalog.getChildren(2)) == 0
    assert [record.getId() for record in catalog.getChildren(0)] == [1, 2, 3]
    assert catalog["detect_isPrimary"].tolist() == [False, True, False, *[True] * 5]
    assert catalog["detect_isDeblendedSource"].tolist() == catalog["detect_isPrimary"].tolist()
    assert catalog["detect_fromBlend"].tolist() == [False] * 3 + [True] * 5
    assert catalog["detect_isIsolated"].tolist() == [False, True] + [False] * 6


def test_all_or_none_of_the_sources_are_blended() -> None:
    assert filled(some_parents([0], [1]))["parent"].tolist() == [0, 0]
    assert filled(some_parents([0, 1]))["parent"].tolist() == [0, 1, 1]
    assert len(filled([])) == 0


def test_ids_must_ascend() -> None:
    catalog = SourceCatalog(SourceTable.make(make_schema(), None))
    catalog.resize(3)
    with pytest.raises(ValueError, match="must be positive and ascend"):
        fill_relations(catalog, order_records(some_parents([0, 1])))


# --- columns


def test_every_field_says_what_it_is() -> None:
    schema = make_schema()
    add_fields(schema, "detect", PRIMARY_FIELDS)
    band = SourceCatalog.Table.makeMinimalSchema()
    extend_band_schema(band)
    for item in [*schema, *band]:
        assert len(item.field.getDoc()) > 5, item.field.getName()
        # afw reads apostrophes back from FITS doubled.
        assert "'" not in item.field.getDoc(), item.field.getName()
    schema.checkUnits()
    band.checkUnits()
    names = set(schema.getNames())
    # As the pipeline and scarlet know them.
    for name, kind in {
        "deblend_nChild": "I",
        "deblend_nPeaks": "I",
        "deblend_parentNPeaks": "I",
        "deblend_parentNChild": "I",
        "deblend_peakId": "I",
        "deblend_peak_center_x": "I",
        "deblend_peak_center_y": "I",
        "deblend_peak_instFlux": "D",
        "deblend_maxOverlap": "F",
        "deblend_fluxOverlap": "F",
        "deblend_fluxOverlapFraction": "F",
        "deblend_blendedness": "F",
        "deblend_dataCoverage": "F",
        "deblend_blendId": "L",
        "deblend_blendNChild": "I",
        "deblend_edgePixels": "Flag",
        "deblend_zeroFlux": "Flag",
        "deblend_skipped": "Flag",
        "deblend_failed": "Flag",
        "deblend_runtime": "F",
    }.items():
        assert name in names
        assert schema.find(name).field.getTypeString() == kind, name
    # With it, SetPrimaryFlagsTask would look for scarlet's models.
    assert "deblend_scarletFlux" not in names
    for chosen in (schema, band):
        assert {name for name in chosen.getNames() if name.startswith("deblend")} == {
            name for name in names if name.startswith("deblend")
        }


def test_band_fields_come_to_a_schema_that_has_some() -> None:
    """As those of forced measurement, which copies deblend_nChild."""
    bare = SourceCatalog.Table.makeMinimalSchema()
    bare.addField("deblend_nChild", type=np.int32, doc="copied")
    extend_band_schema(bare)
    assert bare.find("deblend_nChild").field.getDoc() == "copied"
    assert "deblend_blendedness" in bare


def test_overlap_by_hand() -> None:
    image = np.array([10.0, 20.0, 30.0, np.nan], dtype=np.float32)
    own = np.array([10.0, 5.0, 15.0, np.nan], dtype=np.float32)
    biggest, overlap, fraction, blendedness = measure_overlap(image, own)
    assert biggest == 15.0
    assert overlap == 30.0
    assert fraction == pytest.approx(30.0 / 30.0)
    assert blendedness == pytest.approx(1 - (100 + 25 + 225) / (100 + 100 + 450))
    assert measure_overlap(image, image) == (0.0, 0.0, 0.0, 0.0)
    assert measure_overlap(-image, -own)[2] == 0.0
    assert np.isnan(measure_overlap(image[3:], own[3:])).all()


# --- shares


class Shared:
    """Shares of the sources of a field, and what is made of them for the catalogues."""

    def __init__(self, sources: SourceList, exposures: dict[str, ExposureF]) -> None:
        self.sources = sources
        self.parents = sources.statistics
        self.fluxes = parent_fluxes(sources, exposures)
        self.on_edge = masks_on_edge(sources)
        footprints = share_footprints(sources, exposures["g"].getBBox())
        self.heavy, self.columns = {}, {}
        for number, (band, exposure) in enumerate(exposures.items()):
            self.heavy[band], self.columns[band] = deblend_band(footprints, exposure, number)


@dataclasses.dataclass
class Field:
    """Two blends and an isolated source in two bands, with exact profiles."""

    exposures: dict[str, ExposureF]
    detections: Detections
    truth: np.ndarray
    """Light of each source, (source, band, y, x)."""

    def share(self, grow: float = 2.0, settings: ShareSettings | None = None) -> tuple[list[Parent], Shared]:
        exposures, found = list(self.exposures.values()), self.detections
        image = MultibandImage(
            np.stack([exposure.image.array for exposure in exposures]),
            list(self.exposures),
            0.2,
            np.stack([exposure.variance.array for exposure in exposures]),
            bad=np.stack([flagged_pixels(exposure, ["CR", "NO_DATA"]) for exposure in exposures]),
            psf=lambda band, y, x: psf_image(exposures[band], y, x),
        )
        parents = make_parents(found.masks, found.origins, SHAPE, grow)
        peaks = np.array(POSITIONS, dtype=float)
        blended = [
            BlendSource(soft, y0, x0, y, x, star)
            for soft, (y0, x0), (y, x), star in zip(
                found.soft, found.soft_origins.tolist(), peaks.tolist(), found.p_star >= 0.5, strict=True
            )
        ]
        models = fit_models(image, parents, blended)
        shares, statistics = share_parents(
            image, parents, blended, settings or ShareSettings(), models=models
        )
        measured = measure_masks(
            found.masks,
            found.origins,
            np.nan_to_num(image.flux.sum(axis=0)),
            valid=np.ones(SHAPE, dtype=bool),
        )
        sources = SourceList(
            image,
            found,
            peaks,
            measured,
            measured,
            parents,
            shares,
            statistics,
            np.ones(2),
            image.flux[0].size,
        )
        return parents, Shared(sources, self.exposures)


POSITIONS = ((10, 12), (10, 19), (28, 40), (29, 47), (10, 58))


@pytest.fixture
def field(rng: np.random.Generator) -> Field:
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    colors = np.array([[100.0, 300.0], [200.0, 80.0], [500.0, 400.0], [90.0, 110.0], [150.0, 150.0]])
    profiles = np.array([np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / (2 * 2.0**2)) for y, x in POSITIONS])
    truth = colors[:, :, None, None] * profiles[:, None]
    exposures = {}
    for band, light in zip("gr", truth.sum(axis=0), strict=True):
        exposure = ExposureF(geom.Box2I(geom.Point2I(*XY0), geom.Extent2I(SHAPE[1], SHAPE[0])))
        exposure.image.array[:] = light + rng.normal(0.0, 1.0, SHAPE)
        exposure.variance.array[:] = 1.0 + 0.01 * xx
        exposure.mask.array[10, 19] |= exposure.mask.getPlaneBitMask("CR")
        exposure.mask.array[:, 62:] |= exposure.mask.getPlaneBitMask("NO_DATA")
        exposure.setPsf(GaussianPsf(21, 21, 2.0))
        exposures[band] = exposure
    masks, origins, soft, soft_origins = [], [], [], []
    for (y, x), profile in zip(POSITIONS, profiles, strict=True):
        y0, x0 = y - 5, x - 5
        masks.append(profile[y - 3 : y + 4, x - 3 : x + 4] > 0.4)
        origins.append((y - 3, x - 3))
        soft.append(np.rint(255 * profile[y0 : y + 6, x0 : x + 6]).astype(np.uint8))
        soft_origins.append((y0, x0))
    detections = Detections(
        boxes=np.array([[x - 3, y - 3, x + 4, y + 4] for y, x in POSITIONS], dtype=np.float32),
        scores=np.linspace(0.9, 0.6, 5, dtype=np.float32),
        p_star=np.array([0.9, 0.1, 0.9, 0.1, 0.1], dtype=np.float32),
        origins=np.array(origins, dtype=np.int32),
        masks=masks,
        soft=soft,
        soft_origins=np.array(soft_origins, dtype=np.int32),
    )
    return Field(exposures, detections, truth)


@pytest.mark.parametrize("template", ["mask", "symmetric", "profile"])
def test_shares_add_up_to_the_image(field: Field, template: str) -> None:
    """On every pixel of every parent, in every band, to float32; nothing outside."""
    field.exposures["r"].image.array[11, 15] = np.nan
    parents, shared = field.share(settings=ShareSettings(template=template))
    assert [parent.members.tolist() for parent in parents] == [[0, 1], [2, 3], [4]]
    for band, exposure in field.exposures.items():
        for parent in parents:
            total = exposure.image.clone()
            total.array[:] = 0.0
            for source in parent.members:
                shared.heavy[band][source].addTo(total)
            expected = np.zeros(SHAPE, dtype=np.float32)
            expected[parent.box] = np.where(parent.pixels, exposure.image.array[parent.box], 0.0)
            np.testing.assert_allclose(total.array, expected, rtol=3e-7, atol=1e-6)


def test_heavy_footprints_bring_mask_and_variance(field: Field) -> None:
    parents, shared = field.share()
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for band, exposure in field.exposures.items():
        for source, heavy in enumerate(shared.heavy[band]):
            spans = heavy.getSpans()
            assert exposure.getBBox().contains(heavy.getBBox())
            xy0 = geom.Point2I(*XY0)
            np.testing.assert_array_equal(
                heavy.getVarianceArray(), spans.flatten(exposure.variance.array, xy0)
            )
            np.testing.assert_array_equal(heavy.getMaskArray(), spans.flatten(exposure.mask.array, xy0))
            (peak,) = heavy.getPeaks()
            # At most a pixel off for the noise.
            assert abs(peak.getIy() - XY0[1] - POSITIONS[source][0]) <= 1
            assert abs(peak.getIx() - XY0[0] - POSITIONS[source][1]) <= 1
    assert [heavy.getPeaks()[0].getId() for heavy in shared.heavy["g"]] == [1, 2, 1, 2, 1]
    # The isolated source has what is there.
    last = shared.heavy["g"][4].getSpans().flatten(field.exposures["g"].image.array, geom.Point2I(*XY0))
    np.testing.assert_array_equal(shared.heavy["g"][4].getImageArray(), last)


def test_columns_of_shares_against_truth(field: Field) -> None:
    """What is measured on shares is near what the true profiles give."""
    parents, shared = field.share(settings=ShareSettings(template="profile"))
    for number, (band, exposure) in enumerate(field.exposures.items()):
        columns = shared.columns[band]
        for source in range(4):
            image = exposure.image.array
            y, x = field.detections.origins[source]
            mask = np.zeros(SHAPE, dtype=bool)
            mask[y : y + 7, x : x + 7] = field.detections.masks[source]
            own = field.truth[source, number][mask]
            expected = measure_overlap(field.truth[:, number].sum(axis=0)[mask], own)
            assert columns["fluxOverlap"][source] == pytest.approx(expected[1], abs=0.1 * own.sum())
            assert columns["blendedness"][source] == pytest.approx(expected[3], abs=0.05)
            measured = shared.sources.measured
            peak = measured.peak_y[source], measured.peak_x[source]
            assert 0.5 * image[peak] < columns["peak_instFlux"][source] <= image[peak]
        assert columns["fluxOverlap"][4] == columns["blendedness"][4] == columns["maxOverlap"][4] == 0
        np.testing.assert_array_equal(columns["dataCoverage"][:4], 1.0)
        assert 0.5 < columns["dataCoverage"][4] < 1.0
        assert not columns["zeroFlux"].any()
        np.testing.assert_allclose(
            shared.fluxes[band].flux,
            [np.nansum(exposure.image.array[parent.box][parent.pixels]) for parent in parents],
            rtol=1e-5,
        )
        # The disc around a mask down to 40 % of the peak.
        assert ((shared.fluxes[band].outside > 0.2) & (shared.fluxes[band].outside < 0.6)).all()
        # Round Gaussians, which the templates can be: what is left is noise.
        assert (shared.parents.chi2[:2, number] < 2.0).all()
        assert np.isnan(shared.parents.chi2[2, number])
    assert (shared.parents.runtime > 0).all()
    assert not shared.on_edge.any()
    assert field.share(grow=0.0)[1].on_edge.all()


def test_limits_bite_without_losing_anything(field: Field) -> None:
    """A parent over a limit is shared as with masks alone, and says so."""
    settings = ShareSettings(template="symmetric")
    for exposure in field.exposures.values():
        # Templates that do not fit show.
        exposure.image.array[10, 16] += 500.0
    assert field.share(settings=settings)[1].parents.chi2[0, 0] > 10.0
    _, plain = field.share(settings=ShareSettings(template="mask"))
    for limits in ({"max_parent_sources": 1}, {"max_parent_area": 50}):
        _, limited = field.share(settings=dataclasses.replace(settings, **limits))
        assert limited.parents.fallback.tolist()[:2] == [True, True]
        assert limited.parents.too_many.any() == ("max_parent_sources" in limits)
        assert limited.parents.too_big.any() == ("max_parent_area" in limits)
        for one, other in zip(plain.heavy["g"], limited.heavy["g"], strict=True):
            np.testing.assert_array_equal(one.getImageArray(), other.getImageArray())
    _, free = field.share(settings=settings)
    assert not free.parents.fallback.any()
    assert not np.array_equal(free.heavy["g"][0].getImageArray(), plain.heavy["g"][0].getImageArray())


def test_templates_that_fail_fall_back(
    field: Field, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = shares_module.share_flux

    def fragile(*args: object, template: str, **kwargs: object) -> object:
        if template != "mask":
            raise np.linalg.LinAlgError("no fit")
        return whole(*args, template=template, **kwargs)

    monkeypatch.setattr(shares_module, "share_flux", fragile)
    parents, shared = field.share(settings=ShareSettings(template="profile"))
    assert shared.parents.failed.tolist() == [True, True, False]
    assert "no fit" in caplog.text
    order = order_records(parents)
    catalog = filled(parents)
    fill_parent_columns(catalog, order, shared.parents, shared.on_edge)
    assert catalog["deblend_failed"].tolist() == [True, True, False, True, True, True, True]
    assert catalog["deblend_fallback"].tolist() == catalog["deblend_failed"].tolist()
    assert not catalog["deblend_skipped"].any()
    assert (catalog["deblend_runtime"] > 0).tolist() == [True, True, False, False, False, False, False]


def test_a_source_without_pixels_keeps_its_place(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pixel of value 0 remains, so that measurements have something to fail on."""
    whole = shares_module.share_flux

    def greedy(images: np.ndarray, *args: object, **kwargs: object) -> Shares:
        shares = whole(images, *args, **kwargs)
        everything = np.broadcast_to(shares.parent.astype(np.float32), images.shape)
        none = np.zeros_like(shares.sources[1].weights)
        second = dataclasses.replace(shares.sources[1], weights=none)
        return dataclasses.replace(shares, sources=[SourceShare(0, 0, everything.copy()), second])

    monkeypatch.setattr(shares_module, "share_flux", greedy)
    _, shared = field.share()
    assert shared.columns["g"]["zeroFlux"].tolist() == [False, True, False, True, False]
    heavy = shared.heavy["g"][1]
    assert heavy.getImageArray().tolist() == [0.0]
    assert heavy.getSpans().contains(heavy.getPeaks()[0].getI())
    assert shared.columns["g"]["peak_instFlux"][1] == 0.0
    assert shared.columns["g"]["fluxOverlapFraction"][1] == 0.0
    assert shared.columns["g"]["fluxOverlap"][1] > 0.0


def test_statistics_of_parents(field: Field) -> None:
    parents, shared = field.share()
    order = order_records(parents)
    table = parent_table(filled(parents), order, shared.sources, shared.fluxes)
    assert table["objectId"].tolist() == [1, 2, 3]
    assert table["deblend_nChild"].tolist() == [2, 2, 1]
    assert table["footprintArea"].tolist() == [parent.pixels.sum() for parent in parents]
    assert all(column.description for column in table.columns.values())
    np.testing.assert_array_equal(table["g_instFlux"], shared.fluxes["g"].flux)
    none = np.zeros(0)
    nothing = dict.fromkeys("gr", ParentFluxes(none, none, none))
    empty = parent_table(filled([]), order_records([]), shared.sources, nothing)
    assert len(empty) == 0
    assert empty.colnames == table.colnames
    assert [empty[name].dtype for name in empty.colnames] == [table[name].dtype for name in table.colnames]
