# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Render scarlet's models and put them back into its catalogue.

Children have no pixels in ``deepCoadd_deblendedCatalog`` (``object_deblend``):
the models are in ``deepCoadd_scarletModelData`` (``object_scarlet_models``),
in the seeing of a narrow model PSF. What is done here is what
``updateCatalogFootprints`` of ``lsst.meas.extensions.scarlet`` does, in numpy:

1. The kernel that takes the model PSF to the observed PSF of each band is
   made once, by division in Fourier space (``lsst.scarlet.lite.fft``).
2. Each source is convolved with it in real space, within the parent's box:
   FFT noise would widen the footprints.
3. With ``redistribute``, each pixel of the image within the parent's
   footprint is shared among the sources in the ratio of their convolved
   models (``lsst.scarlet.lite.measure.conserve_flux``), so that the children
   add up to the image wherever any of them has light.

The arithmetic is in float32 and in upstream's order, so that the pixels are
those that upstream attaches.
"""

from __future__ import annotations

__all__ = ["attach_scarlet"]

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.fft

import lsst.geom as geom
from lsst.afw.detection import Footprint, HeavyFootprintF
from lsst.afw.geom import SpanSet
from lsst.afw.image import Exposure, MaskX
from lsst.afw.table import SourceCatalog, SourceRecord

from .scarlet_models import ScarletBlend, ScarletModelError, ScarletModels, ScarletSource

_FFT_PADDING = 3
"""Pixels that upstream adds before it divides in Fourier space."""


class RenderedSource(NamedTuple):
    """Flux per pixel of one source in the units of the exposures, float32, (band, y, x).

    The box, in the parent frame, is empty for a source without components or
    outside its parent.
    """

    box: geom.Box2I
    pixels: np.ndarray


def _difference_kernel(psf: np.ndarray, model_psf: np.ndarray) -> np.ndarray:
    """Kernels, (band, y, x), that take the model PSF, (y, x), to the observed PSFs, (band, y, x).

    As ``match_kernel`` of ``lsst.scarlet.lite.fft``: the quotient of the
    transforms of both, padded with zeros. With numpy 2, as upstream, the
    transforms are in single precision, which shows in the last digits.
    """
    if psf.ndim != 3 or model_psf.ndim != 2 or not all(n % 2 for n in psf.shape[1:] + model_psf.shape):
        raise ScarletModelError(
            f"PSFs of shape {psf.shape} and {model_psf.shape}; expected (band, y, x) and (y, x) with odd "
            "sides, so that each has a central pixel."
        )
    sides = [
        scipy.fft.next_fast_len(a + b + _FFT_PADDING, real=True)
        for a, b in zip(psf.shape[1:], model_psf.shape, strict=True)
    ]

    def transform(images: np.ndarray) -> np.ndarray:
        padded = np.zeros((len(images), *sides), dtype=np.float32)
        padded[_centered(images.shape[1:], sides)] = images
        return np.fft.rfftn(np.fft.ifftshift(padded, axes=(1, 2)), axes=(1, 2))

    numerator, denominator = transform(psf), transform(model_psf[None])
    quotient = np.zeros_like(numerator)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    kernels = np.fft.fftshift(np.fft.irfftn(quotient, s=sides, axes=(1, 2)), axes=(1, 2))
    return np.ascontiguousarray(kernels[_centered(psf.shape[1:], sides)], dtype=np.float32)


def render_blend(
    blend: ScarletBlend,
    bands: Sequence[str] | None = None,
    exposures: Mapping[str, Exposure] | None = None,
    redistribute: bool = False,
) -> dict[int, RenderedSource]:
    """Render all sources of a parent in the seeing of the exposures.

    Parameters
    ----------
    blend : `ScarletBlend`
        The parent.
    bands : `~collections.abc.Sequence` [`str`], optional
        Bands to render, in this order; by default all, in the model's order.
    exposures : `~collections.abc.Mapping` [`str`, `lsst.afw.image.Exposure`]
        Exposures by band, with the parent inside. Needed to redistribute flux, and
        for models that were stored without the observed PSF; otherwise not used.
    redistribute : `bool`, optional
        Share the pixels of the exposures instead of giving the models themselves.

    Returns
    -------
    rendered : `dict` [`int`, `RenderedSource`]
        By id, in the order of ``blend.sources``: the box of the source's
        components, grown by half a PSF and cut at the parent's box, and its
        pixels. With ``redistribute``, pixels outside the parent's
        footprint are zero, and where the exposure is NaN they are NaN.

    Raises
    ------
    ScarletModelError
        Raised if the models or the exposures lack a band, or the parent is
        not inside an exposure.
    """
    bands = blend.bands if bands is None else bands
    indices = [_band_index(blend.bands, band, f"blend {blend.id}") for band in bands]
    psf = _observed_psf(blend, bands, exposures) if blend.psf is None else blend.psf[indices]
    kernels = _difference_kernel(psf, blend.model_psf)
    images = total = None
    if redistribute:
        images = _images(blend, bands, exposures)
        scene = np.zeros_like(images)
        for source in blend.sources:
            _paint(source, indices, scene, blend.origin)
        reach = np.array(kernels.shape[1:]) // 2
        total = np.maximum(_convolve(scene, kernels)[_window(-reach, (0, 0), blend.shape)], 0)
    return {
        source.id: _render_source(blend, source, indices, kernels, images, total) for source in blend.sources
    }


def attach_scarlet(
    catalog: SourceCatalog,
    models: ScarletModels,
    exposures: Mapping[str, Exposure],
    band: str,
    redistribute: bool = True,
    *,
    allow_missing: bool = False,
) -> SourceCatalog:
    """Give scarlet's children their pixels in one band.

    Parameters
    ----------
    catalog : `lsst.afw.table.SourceCatalog`
        ``deepCoadd_deblendedCatalog`` (``object_deblend``), or some of its
        records. It is not changed.
    models : `ScarletModels`
        Models of the same patch.
    exposures : `~collections.abc.Mapping` [`str`, `lsst.afw.image.Exposure`]
        Exposures by band; only the one of ``band`` is used.
    band : `str`
        The band.
    redistribute : `bool`, optional
        Share the pixels of the exposure, as the Science Pipelines do before
        they measure; otherwise the footprints hold the models.
    allow_missing : `bool`, optional
        Leave children without a model as they are, instead of raising.

    Returns
    -------
    attached : `lsst.afw.table.SourceCatalog`
        A deep copy. Children have a `~lsst.afw.detection.HeavyFootprintF`
        over the pixels that are not zero, with one peak; a child without any
        has one pixel of value zero at its peak. ``deblend_scarletFlux``,
        ``deblend_peak_instFlux``, ``deblend_zeroFlux`` and, with
        ``redistribute``, ``deblend_dataCoverage`` of the children are set
        where the catalogue has them. Isolated sources and parents keep their
        footprints.

    Raises
    ------
    ScarletModelError
        Raised if the models lack the band or a child, or share no source
        with the catalogue, or if a parent is not inside the exposure.
    """
    _band_index(models.bands, band, "the models")
    attached = catalog.copy(deep=True)
    rows = {int(i): row for row, i in enumerate(attached["id"])}
    if not allow_missing:
        _check_children(attached, models)
    names = set(attached.schema.getNames())
    for blend in _with_regions(models.blends.values(), attached, rows):
        if not any(source.id in rows for source in blend.sources):
            continue
        rendered = render_blend(blend, [band], exposures, redistribute)
        index = blend.bands.index(band)
        for source in blend.sources:
            if source.id not in rows:
                continue
            record = attached[rows[source.id]]
            if source.peak is None:
                # Nothing is left of it, not even where it was.
                if "deblend_zeroFlux" in names:
                    record.set("deblend_zeroFlux", True)
                continue
            box, pixels = rendered[source.id]
            heavy = _heavy(box, pixels[0], source.peak)
            record.setFootprint(heavy)
            coverage = _coverage(heavy, exposures[band]) if redistribute else None
            _set_columns(record, names, source, index, box, pixels[0], coverage)
    return attached


def _band_index(bands: Sequence[str], band: str, where: str) -> int:
    if band not in bands:
        raise ScarletModelError(
            f"Band {band!r} was asked for, but the bands of {where} are {', '.join(bands) or 'none'}. "
            "Scarlet leaves out bands without a PSF; ask for those that it fitted."
        )
    return list(bands).index(band)


def _exposure(exposures: Mapping[str, Exposure] | None, band: str, why: str) -> Exposure:
    if exposures is None or band not in exposures:
        given = "none" if not exposures else ", ".join(exposures)
        raise ScarletModelError(f"The exposure in {band!r} is needed {why}, but got {given}; pass it.")
    return exposures[band]


def _observed_psf(
    blend: ScarletBlend, bands: Sequence[str], exposures: Mapping[str, Exposure] | None
) -> np.ndarray:
    """PSFs of the exposures where upstream computes them, in stamps of one size."""
    stamps = []
    for band in bands:
        exposure = _exposure(exposures, band, f"for its PSF, which is not stored with blend {blend.id},")
        if blend.psf_center is None:
            position = geom.Point2D(exposure.getBBox().getCenter())
        else:
            position = geom.Point2D(*blend.psf_center)
        stamps.append(exposure.getPsf().computeKernelImage(position).array)
    sides = np.max([stamp.shape for stamp in stamps], axis=0).tolist()
    psf = np.zeros((len(stamps), *sides), dtype=np.float32)
    for plane, stamp in zip(psf, stamps, strict=True):
        plane[_centered(stamp.shape, sides)] = stamp
    return psf


def _centered(shape: Sequence[int], sides: Sequence[int]) -> tuple[Any, ...]:
    """Index of an image in a larger one with the same centre, by the lengths of their last axes."""
    low = [(side - n + 1) // 2 for side, n in zip(sides, shape, strict=True)]
    return (..., *(slice(a, a + n) for a, n in zip(low, shape, strict=True)))


def _images(
    blend: ScarletBlend, bands: Sequence[str], exposures: Mapping[str, Exposure] | None
) -> np.ndarray:
    """Pixels of the parent's footprint, zero outside."""
    images = np.zeros((len(bands), *blend.shape), dtype=np.float32)
    region = _box(blend.origin, blend.shape)
    for plane, band in zip(images, bands, strict=True):
        exposure = _exposure(exposures, band, "to redistribute its flux")
        if not exposure.getBBox().contains(region):
            raise ScarletModelError(
                f"Blend {blend.id} covers {region}, which is not inside the {band} exposure's "
                f"{exposure.getBBox()}. Give the exposures of the patch that the models were made from."
            )
        pixels = exposure.image[region].array
        plane[...] = pixels if blend.spans is None else np.where(blend.spans, pixels, np.float32(0))
    return images


def _box(origin: Sequence[int], shape: Sequence[int]) -> geom.Box2I:
    return geom.Box2I(geom.Point2I(origin[1], origin[0]), geom.Extent2I(shape[1], shape[0]))


def _window(origin: Any, low: Any, high: Any) -> tuple[Any, ...]:
    """Index of the pixels from ``low`` to ``high`` of an array whose first pixel is ``origin``."""
    return (..., *(slice(a - o, b - o) for o, a, b in zip(origin, low, high, strict=True)))


def _paint(source: ScarletSource, indices: Sequence[int], target: np.ndarray, origin: Any) -> None:
    """Add the model of a source to a cube that starts at ``origin``, cut at its edge."""
    for component in source.components:
        pixels = component.pixels(indices)
        low = np.maximum(component.origin, origin)
        high = np.minimum(np.add(component.origin, pixels.shape[1:]), np.add(origin, target.shape[1:]))
        if (high > low).all():
            target[_window(origin, low, high)] += pixels[_window(component.origin, low, high)]


def _convolve(images: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Convolve in real space; the result is larger by the kernel's size less one.

    One step per pixel of the kernel or of the images, whichever has fewer
    that are not zero, on all bands at once. Either way terms are added in
    upstream's order: in that of the kernel's pixels, so backwards in the
    image's.
    """
    n_bands, height, width = images.shape
    rows, columns = kernels.shape[1:]
    result = np.zeros((n_bands, height + rows - 1, width + columns - 1), dtype=np.float32)
    steps = np.argwhere(images.any(axis=0))[::-1]
    stepped, blocks = images, kernels
    if len(steps) > rows * columns:
        steps = np.argwhere(np.ones((rows, columns), dtype=bool))
        stepped, blocks = kernels, images
    product = np.empty_like(blocks)
    for y, x in steps.tolist():
        np.multiply(blocks, stepped[:, y, x, None, None], out=product)
        result[:, y : y + blocks.shape[1], x : x + blocks.shape[2]] += product
    return result


def _render_source(
    blend: ScarletBlend,
    source: ScarletSource,
    indices: Sequence[int],
    kernels: np.ndarray,
    images: np.ndarray | None,
    total: np.ndarray | None,
) -> RenderedSource:
    first, last = np.array(blend.origin), np.add(blend.origin, blend.shape)
    # Light of the model outside the parent's box is lost, as upstream.
    low, high = np.maximum(source.box[:2], first), np.minimum(source.box[2:], last)
    if (high <= low).any():
        return RenderedSource(geom.Box2I(), np.zeros((len(indices), 0, 0), dtype=np.float32))
    model = np.zeros((len(indices), *(high - low)), dtype=np.float32)
    _paint(source, indices, model, low)
    reach = np.array(kernels.shape[1:]) // 2
    corner, end = np.maximum(low - reach, first), np.minimum(high + reach, last)
    # A copy, so that the larger array can go.
    pixels = _convolve(model, kernels)[_window(low - reach, corner, end)].copy()
    if images is not None and total is not None:
        here = _window(first, corner, end)
        np.maximum(pixels, 0, out=pixels)
        share = np.zeros_like(pixels)
        np.divide(pixels, total[here], out=share, where=total[here] != 0)
        # Rounding can leave a share a little above one.
        np.minimum(share, 1, out=share)
        pixels = share * images[here]
    return RenderedSource(_box(corner.tolist(), (end - corner).tolist()), pixels)


def _check_children(catalog: SourceCatalog, models: ScarletModels) -> None:
    known = {source.id for blend in models.blends.values() for source in blend.sources}
    ids, parents = np.asarray(catalog["id"]), np.asarray(catalog["parent"])
    is_leaf = (parents != 0) & ~np.isin(ids, parents)
    if "deblend_nChild" in catalog.schema.getNames():
        is_leaf &= np.asarray(catalog["deblend_nChild"]) == 0
    children = ids[is_leaf]
    missing = [int(i) for i in children if int(i) not in known]
    if missing or (known and len(ids) and known.isdisjoint(ids.tolist())):
        lacking = f"{len(missing)} of {len(children)} children in the catalogue"
        if missing:
            lacking += f" (such as {', '.join(map(str, missing[:5]))})"
        raise ScarletModelError(
            f"{lacking} have no model among the {len(known)} sources in {len(models.blends)} blends, and "
            f"{len(known) - len(known - set(ids.tolist()))} sources are in both. Give the models of the same "
            "patch and run, whole, or set allow_missing to leave such children as they are."
        )


def _with_regions(
    blends: Iterable[ScarletBlend], catalog: SourceCatalog, rows: Mapping[int, int]
) -> list[ScarletBlend]:
    """Blends with the region that upstream renders them in.

    Before models held the parent's spans, a parent could have several blends,
    and flux was shared among all of their sources within the footprint of the
    parent's record, in the catalogue itself.
    """
    ready: list[ScarletBlend] = []
    by_root: dict[int, list[ScarletBlend]] = {}
    for blend in blends:
        root = blend.id
        if blend.spans is not None:
            ready.append(blend)
            continue
        while root in rows and catalog[rows[root]].getParent() != 0:
            root = int(catalog[rows[root]].getParent())
        by_root.setdefault(root, []).append(blend)
    for root, members in by_root.items():
        footprint = catalog[rows[root]].getFootprint() if root in rows else None
        if footprint is None:
            ready.extend(members)
            continue
        box, spans = footprint.getBBox(), np.asarray(footprint.getSpans().asArray(), dtype=bool)
        origin = box.getMinY(), box.getMinX()
        whole = dataclasses.replace(members[0], id=root, origin=origin, shape=spans.shape, spans=spans)
        sources = tuple(source for member in members for source in member.sources)
        ready.append(dataclasses.replace(whole, sources=sources))
    return ready


def _heavy(box: geom.Box2I, pixels: np.ndarray, peak: tuple[int, int]) -> HeavyFootprintF:
    """Make a heavy footprint of the pixels that are not zero."""
    spans = SpanSet()
    if pixels.size:
        plane = MaskX(box)
        plane.array[:] = pixels != 0
        spans = SpanSet.fromMask(plane)
    empty = spans.getArea() == 0
    if empty:
        # Measurement wants a pixel; upstream gives it this one.
        spans = SpanSet(geom.Box2I(geom.Point2I(peak[1], peak[0]), geom.Extent2I(1, 1)))
    footprint = Footprint(spans)
    footprint.addPeak(float(peak[1]), float(peak[0]), 0.0 if empty else float(pixels.max()))
    heavy = HeavyFootprintF(footprint)
    heavy.getImageArray()[:] = 0 if empty else pixels[pixels != 0]
    heavy.getMaskArray()[:] = 0
    heavy.getVarianceArray()[:] = 0
    return heavy


def _coverage(footprint: Footprint, exposure: Exposure) -> float:
    """Part of a footprint that has data."""
    # The one pixel of a source without light may lie outside.
    spans = footprint.getSpans().clippedTo(exposure.getBBox())
    if spans.getArea() == 0:
        return 0.0
    mask = exposure.mask[spans.getBBox()].array
    no_data = (mask & exposure.mask.getPlaneBitMask("NO_DATA")) != 0
    return 1 - np.count_nonzero(no_data & spans.asArray()) / footprint.getArea()


def _set_columns(
    record: SourceRecord,
    names: set[str],
    source: ScarletSource,
    index: int,
    box: geom.Box2I,
    pixels: np.ndarray,
    coverage: float | None,
) -> None:
    y, x = source.peak or (0, 0)
    at_peak = 0.0
    if np.any(pixels != 0):
        y, x = y - box.getMinY(), x - box.getMinX()
        inside = 0 <= y < pixels.shape[0] and 0 <= x < pixels.shape[1]
        at_peak = float(pixels[y, x]) if inside else np.nan
    flux = sum(np.sum(component.pixels([index])) for component in source.components)
    values = {
        "deblend_scarletFlux": float(flux),
        "deblend_peak_instFlux": at_peak,
        "deblend_zeroFlux": not np.any(pixels != 0),
        "deblend_dataCoverage": coverage,
    }
    for name, value in values.items():
        if name in names and value is not None:
            record.set(name, value)
