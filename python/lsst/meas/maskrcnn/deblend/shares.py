# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The share that each source of a blend has in the flux of each pixel.

Arrays are (y, x) or (band, y, x) in pixels of one parent's bounding box, whose
first pixel is (0, 0).

Examples
--------
>>> import numpy as np
>>> from lsst.meas.maskrcnn.deblend.shares import BlendSource, share_flux
>>> image = np.ones((1, 5, 8), np.float32)
>>> soft = np.full((5, 5), 255, np.uint8)
>>> sources = [BlendSource(soft, 0, 0, 2.0, 2.0), BlendSource(soft, 0, 3, 2.0, 5.0)]
>>> parent = np.ones((5, 8), bool)
>>> shares = share_flux(image, image, parent, sources, template="mask")
>>> shares.fluxes(image).round(3).tolist()
[[20.0], [20.0]]
"""

from __future__ import annotations

__all__ = ["ShareSettings"]

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..images.settings import settings
from ..profiles.blend import REACH, Blend, BlendSource
from ..profiles.model import ProfileFit, add_stamp
from ..profiles.symmetry import symmetric_part
from .image import MultibandImage
from .models import fit_models
from .parents import Parent

_LOG = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class SourceModel(NamedTuple):
    """Model of a source in the frame of its parent."""

    y0: int
    x0: int
    """First pixel of its window."""
    pixels: FloatArray
    """The model there, (band, y, x)."""
    star: tuple[float, float, npt.NDArray[np.float64]] | None
    """(y, x) and fluxes of a star, whose template is the PSF itself."""


def _models_of(fit: ProfileFit, members: Sequence[int], y0: int, x0: int) -> list[SourceModel]:
    """Models of some sources in the frame of a parent whose first pixel is (y0, x0)."""
    models = []
    for member in members:
        top, left, pixels = fit.windows[member]
        y, x = fit.parameters[member, :2]
        star = (y - y0, x - x0, fit.flux[member]) if fit.is_star[member] else None
        models.append(SourceModel(top - y0, left - x0, pixels, star))
    return models


_SMALLEST_SHARE = 1e-3
"""Smallest share of a pixel; footprints end there."""

_PIXEL_SCALE = 0.2
"""Side of a pixel (arcsec) where it is not given; only the prior on sizes depends on it."""


@settings
class ShareSettings:
    """Which sources make a parent, and how its flux is shared among them."""

    template: Annotated[
        Literal["profile", "symmetric", "mask"],
        Field(
            description="By what the flux of overlapping sources is shared.",
            json_schema_extra={
                "profile": "models that are fitted in all bands together: the PSF for stars, Sersic profiles "
                "for galaxies; the symmetric parts where no band has a PSF",
                "symmetric": "the part of each source that is symmetric about its peak, as SDSS has it",
                "mask": "the network's masks alone",
            },
        ),
    ] = "profile"
    local_sky: Annotated[
        bool,
        Field(
            description="Whether a constant is fitted to each parent and band together with its models: for "
            "images whose sky was not subtracted well, or with many sources below the limit of detection. "
            "Errors of fluxes get larger by it."
        ),
    ] = False
    parent_grow: Annotated[
        float,
        Field(
            ge=0.0,
            description="Radius by which the masks of sources are grown to make those of parents and "
            "isolated sources (px). Sources whose grown masks touch share their flux; flux further out "
            "belongs to no source. About 1.5 FWHM of the PSF is best for fluxes.",
        ),
    ] = 6.0
    max_parent_sources: Annotated[
        int,
        Field(
            ge=1,
            description="Most sources of a parent. One that has more is grown by less, so that it falls "
            "apart; where that does not help, flux is shared by masks alone (deblend_fallback).",
        ),
    ] = 2000
    max_parent_area: Annotated[
        int,
        Field(ge=1, description="Most pixels of the bounding box of a parent; as for max_parent_sources."),
    ] = 4_000_000


@dataclass(frozen=True)
class SourceShare:
    """Share of one source in the pixels of a parent."""

    y0: int
    x0: int
    """First pixel of the box in the parent's."""
    weights: FloatArray
    """Its share of each pixel, from 0 to 1, float32, (band, y, x); 0 outside the parent."""

    @classmethod
    def whole(cls, pixels: BoolArray, n_bands: int, y0: int = 0, x0: int = 0) -> SourceShare:
        """Give a source all pixels, bool, (y, x), of its parent, whose first one is (y0, x0)."""
        return cls(y0, x0, np.broadcast_to(pixels.astype(np.float32), (n_bands, *pixels.shape)))

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the parent's arrays that the box covers."""
        height, width = self.weights.shape[1:]
        return slice(self.y0, self.y0 + height), slice(self.x0, self.x0 + width)

    @property
    def footprint(self) -> BoolArray:
        """Pixels of which the source has a share in some band, bool, (y, x)."""
        return np.asarray((self.weights > 0).any(axis=0))

    def at(self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> FloatArray:
        """Get the shares, (band, n), of pixels (n,) in the frame of ``y0`` and ``x0``; 0 outside the box."""
        y, x = np.asarray(rows) - self.y0, np.asarray(columns) - self.x0
        height, width = self.weights.shape[1:]
        inside = (y >= 0) & (x >= 0) & (y < height) & (x < width)
        weights = np.zeros((len(self.weights), len(y)), np.float32)
        weights[:, inside] = self.weights[:, y[inside], x[inside]]
        return weights

    def pixels(self, images: FloatArray) -> FloatArray:
        """Take the source's share of the parent's images, (band, y, x), on the box.

        It is 0 where the source has no share, whatever the image has there; NaN where it has a share of a
        NaN.
        """
        pixels = np.zeros(self.weights.shape, np.float32)
        np.multiply(images[(slice(None), *self.box)], self.weights, out=pixels, where=self.weights > 0)
        return pixels


@dataclass(frozen=True)
class Shares:
    """How the pixels of a parent are shared."""

    parent: BoolArray
    """Pixels of the parent, bool, (y, x)."""
    sources: list[SourceShare]
    """The shares, in the order of the sources; on each pixel and in each band they add up to 1."""
    model: FloatArray | None = None
    """Sum of all templates, float32, (band, y, x); `None` if they are not in units of the images."""

    def __len__(self) -> int:
        return len(self.sources)

    def fluxes(self, images: FloatArray) -> npt.NDArray[np.float64]:
        """Add up each source's pixels of images (band, y, x), of which NaN counts as 0: (source, band)."""
        sums = [np.nansum(share.pixels(images), axis=(1, 2), dtype=np.float64) for share in self.sources]
        return np.array(sums).reshape(len(self.sources), images.shape[0])


def share_flux(
    images: npt.ArrayLike,
    variances: npt.ArrayLike,
    parent: npt.ArrayLike,
    sources: Sequence[BlendSource],
    psf_images: Sequence[npt.ArrayLike] | None = None,
    good: npt.ArrayLike | None = None,
    *,
    template: str = "profile",
    reach: float = REACH,
    models: Sequence[SourceModel] | None = None,
) -> Shares:
    r"""Share the flux of a parent among its sources.

    Images and variances are those of the parent's bounding box, (band, y, x), the
    parent's pixels bool, (y, x). PSFs are images (y, x) of odd sides with the
    centre in the middle pixel; without them stars are fitted as galaxies are.
    Templates are made of ``good`` pixels, bool, (band, y, x) or (y, x), but all are
    shared. A source has flux up to ``reach`` (px) beyond its soft mask. ``template`` is
    as in `ShareSettings`, ``models`` are given if they are fitted already. A ValueError
    is raised if shapes or types do not fit, or there is no source.

    In each band a source :math:`i` has the share

    .. math:: w_i = m_i t_i / \sum_j m_j t_j

    of a pixel, where :math:`m` is its soft mask, raised to some least weight
    in the core of the mask and falling off around it, and :math:`t` its
    template. Where no template has anything, masks and the distance from them
    decide. Less than a thousandth of a pixel is no share. A single source has
    all of its parent.

    The variance and the mask of a child are those of the image, as in
    meas_deblender (``BaselineUtils::apportionFlux``), as the noise of the
    neighbours' flux stays in the pixel.
    """
    blend = Blend.make(
        images, variances, parent, sources, psf_images, good, masks_only=template == "mask", reach=reach
    )
    if len(sources) == 1:
        return Shares(blend.parent, [SourceShare.whole(blend.parent, len(blend.images))])
    if template == "mask":
        n_bands = len(blend.images)
        return _normalise(blend, [np.ones((n_bands, *mask.shape), np.float32) for mask in blend.masks])
    if template == "profile" and models is None and psf_images is not None:
        models = _fit_alone(blend, psf_images)
    if template == "profile" and models is not None:
        templates = [_on_box(blend, index, model) for index, model in enumerate(models)]
    else:
        templates = [symmetric_part(blend, index) for index in range(len(sources))]
    total = np.zeros(blend.images.shape, np.float32)
    for box, part in zip(blend.boxes, templates, strict=True):
        total[(slice(None), *box)] += part
    return replace(_normalise(blend, templates), model=total)


def _fit_alone(blend: Blend, psf_images: Sequence[npt.ArrayLike]) -> list[SourceModel] | None:
    """Fit the sources of a blend of which no more is known than its own pixels."""
    bands = [str(band) for band in range(len(blend.images))]
    image = MultibandImage(
        blend.images, bands, _PIXEL_SCALE, blend.variances, bad=~blend.good, psf=list(psf_images)
    )
    members = np.arange(len(blend.sources))
    fit = fit_models(image, [Parent(members, 0, 0, blend.parent)], blend.sources)
    return None if fit is None else _models_of(fit, members.tolist(), 0, 0)


def _on_box(blend: Blend, index: int, model: SourceModel) -> FloatArray:
    """Draw a model on the box of a source, at least 0."""
    y0, x0, pixels, star = model
    if star is not None and blend.psfs is not None:
        flux = np.maximum(np.nan_to_num(star[2]), 0.0).astype(np.float32)
        return blend.psf_on_box(index, *star[:2]) * flux[:, None, None]
    rows, columns = blend.boxes[index]
    made = np.zeros((len(pixels), rows.stop - rows.start, columns.stop - columns.start), np.float32)
    add_stamp(made, y0 - rows.start, x0 - columns.start, np.maximum(pixels, 0.0), 1.0)
    return made


def _normalise(blend: Blend, templates: list[FloatArray]) -> Shares:
    """Turn templates into shares that add up to 1."""
    shape = blend.images.shape
    total = np.zeros(shape, np.float64)
    plain = np.zeros(shape[1:], np.float64)
    bands = [(slice(None), *box) for box in blend.boxes]
    for window, box, mask, share in zip(bands, blend.boxes, blend.masks, templates, strict=True):
        share *= mask
        total[window] += share
        plain[box] += mask
    # Where no template has anything, masks and distance from them decide.
    lost = ~((total > 0) & np.isfinite(total))
    np.copyto(total, plain, where=lost)
    total[:, ~blend.parent] = np.inf
    cut = min(_SMALLEST_SHARE, 0.5 / len(templates))
    kept = np.zeros(shape, np.float64)
    for window, mask, share in zip(bands, blend.masks, templates, strict=True):
        np.copyto(share, mask, where=lost[window])
        share /= total[window]
        share[share < cut] = 0.0
        kept[window] += share
    rest = np.broadcast_to(blend.parent.astype(np.float32), shape).copy()
    kept[:, ~blend.parent] = np.inf
    # The last source of a pixel takes what rounding leaves.
    last = np.full(shape, -1, np.int32)
    for index, (window, share) in enumerate(zip(bands, templates, strict=True)):
        share /= kept[window]
        rest[window] -= share
        last[window][share > 0] = index
    shares = []
    for index, (window, share) in enumerate(zip(bands, templates, strict=True)):
        np.add(share, rest[window], out=share, where=last[window] == index)
        shares.append(SourceShare(window[1].start, window[2].start, share))
    return Shares(blend.parent, shares)


@dataclass(eq=False)
class ParentStatistics:
    """What was found when the flux of M parents was shared, isolated sources included; (M, ...) each."""

    runtime: npt.NDArray[np.float32]
    """Time that it took, ms."""
    too_many: BoolArray
    too_big: BoolArray
    """Whether there were too many sources or pixels for templates."""
    failed: BoolArray
    """Whether the templates could not be made."""
    chi2: npt.NDArray[np.float64]
    """Mean over the pixels of (image - templates)^2 / variance, (M, band); NaN without templates."""

    @property
    def fallback(self) -> npt.NDArray[np.bool_]:
        """Whether flux was shared by masks alone though more was asked, bool, (M,)."""
        return np.asarray(self.too_many | self.too_big | self.failed)


def share_parents(
    image: MultibandImage,
    parents: Sequence[Parent],
    sources: Sequence[BlendSource],
    settings: ShareSettings,
    progress: Callable[[int, int], None] | None = None,
    models: ProfileFit | None = None,
) -> tuple[list[SourceShare], ParentStatistics]:
    """Share the flux of M parents among their N sources, in every band of an image that has a variance.

    Parents hold every source exactly once, isolated ones included; positions of sources are in pixels of the
    image. ``progress`` is called with the number of parents done and their number; ``models`` are those of
    the sources, if they are fitted already. Returns the share of each source, whose ``y0`` and ``x0`` are
    those in the image, and what was found on the parents.

    Parents are worked on one by one, so that beside the image and what is returned memory is that of the
    largest parent.
    """
    sizes = np.array([len(parent) for parent in parents], dtype=np.int64)
    areas = np.array([parent.pixels.size for parent in parents], dtype=np.int64)
    statistics = ParentStatistics(
        runtime=np.zeros(len(parents), np.float32),
        too_many=(sizes > 1) & (sizes > settings.max_parent_sources),
        too_big=(sizes > 1) & (areas > settings.max_parent_area),
        failed=np.zeros(len(parents), bool),
        chi2=np.full((len(parents), len(image.bands)), np.nan),
    )
    shares: dict[int, SourceShare] = {}
    for index, parent in enumerate(parents):
        started = time.perf_counter()
        if len(parent) == 1:
            whole = SourceShare.whole(parent.pixels, len(image.bands), parent.y0, parent.x0)
            shares[int(parent.members[0])] = whole
        else:
            found = _share_parent(image, index, parent, sources, settings, statistics, models)
            for member, share in zip(parent.members.tolist(), found.sources, strict=True):
                shares[member] = replace(share, y0=parent.y0 + share.y0, x0=parent.x0 + share.x0)
        statistics.runtime[index] = 1e3 * (time.perf_counter() - started)
        if progress is not None:
            progress(index + 1, len(parents))
    return [shares[index] for index in range(len(sources))], statistics


def _share_parent(
    image: MultibandImage,
    index: int,
    parent: Parent,
    sources: Sequence[BlendSource],
    settings: ShareSettings,
    statistics: ParentStatistics,
    models: ProfileFit | None,
) -> Shares:
    """Share the flux of one parent."""
    window = (slice(None), *parent.box)
    flux, variance = image.flux[window], np.asarray(image.variance)[window]
    members = [sources[member].moved(-parent.y0, -parent.x0) for member in parent.members.tolist()]
    reach = max(REACH, settings.parent_grow)
    template = "mask" if statistics.fallback[index] else settings.template
    good = ~np.asarray(image.bad)[window]
    middle = (parent.y0 + 0.5 * (flux.shape[1] - 1), parent.x0 + 0.5 * (flux.shape[2] - 1))
    psfs = [image.psf_image(band, *middle) for band in range(len(image.bands))] if template != "mask" else []
    known = [psf for psf in psfs if psf is not None]
    fitted = None
    if models is not None and template == "profile":
        fitted = _models_of(models, parent.members.tolist(), parent.y0, parent.x0)
    try:
        found = share_flux(
            flux,
            variance,
            parent.pixels,
            members,
            psf_images=known if len(known) == len(image.bands) else None,
            good=good,
            template=template,
            reach=reach,
            models=fitted,
        )
    except (ArithmeticError, np.linalg.LinAlgError, RuntimeError) as error:
        # A fit that fails is no reason to lose the sources of a blend.
        _LOG.warning(
            "Templates of the parent of %d sources at (y, x) = (%d, %d) failed (%s): shared by masks alone.",
            len(parent),
            parent.y0,
            parent.x0,
            error,
        )
        statistics.failed[index] = True
        return share_flux(flux, variance, parent.pixels, members, template="mask", reach=reach)
    if found.model is not None:
        use = parent.pixels & good & np.isfinite(flux) & np.isfinite(variance) & (variance > 0)
        for band, chosen in enumerate(use):
            if chosen.any():
                residual = (flux[band][chosen] - found.model[band][chosen]).astype(np.float64)
                statistics.chi2[index, band] = np.mean(residual**2 / variance[band][chosen])
    return found


def measure_overlap(
    image: npt.NDArray[np.float32], share: npt.NDArray[np.float32]
) -> tuple[float, float, float, float]:
    """Measure how much flux of others is in the pixels of a source, (n,), of which ``share`` is its own part.

    Returns max_overlap, flux_overlap, flux_overlap_fraction and blendedness, as ``deblend_maxOverlap`` and so
    on; NaN where no pixel is finite. The formulas are those of ``setDeblenderMetrics`` in
    ``lsst.meas.extensions.scarlet.metrics``, with the redistributed image in place of models: the model of
    the blend is the image itself, that of a source its share. Blendedness follows Bosch et al. (2018, PASJ
    70, S5).
    """
    finite = np.isfinite(image)
    if not finite.any():
        return (np.nan,) * 4
    blend = image[finite].astype(np.float64)
    own = share[finite].astype(np.float64)
    others = blend - own
    overlap, flux = float(others.sum()), float(own.sum())
    product = float(np.dot(blend, own))
    return (
        float(others.max()),
        overlap,
        overlap / flux if flux > 0 else 0.0,
        1.0 - float(np.dot(own, own)) / product if product != 0 else np.nan,
    )
