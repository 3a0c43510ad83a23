# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The joint fit of all sources in all bands.

A star is the PSF; a galaxy is a Sersic profile whose centre, size, shape and
index are the same in all bands. Fluxes are free in each band. Both are sums of
Gaussians (`~.mixtures`), drawn on a square window around each source
(`~.render`). Sources of one group are fitted together; what is outside of it
is subtracted as it was fitted last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from ..network.memory import release_memory
from .block import MAX_STEPS, Block
from .classes import start_as_stars, width_evidence, with_width
from .model import FitSources, ProfileFit, add_stamp
from .psf import PsfMixture, PsfStack, draw_psf
from .render import N_SHAPE

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
PsfMixtures = Callable[[float, float], Sequence[PsfMixture]]
"""Takes a position (y, x), px; gives the PSF of each band there."""

NoiseFactors = Callable[[ProfileFit], FloatArray]
"""Takes the models as they are; gives the variances of fluxes over what weights make them, (band,)."""

_Blocked = tuple[IntArray, IntArray, bool]
"""Members of a block, the numbers of their groups, and whether one of these was split."""

WINDOW_HALVES = (10, 14, 18, 24, 32, 48, 64, 96, 128)
"""Half sides of the windows on which sources are drawn (px)."""

_BLOCK_SOURCES = 512
_BLOCK_PIXELS = 1_000_000
"""Most sources that are held in memory together, and most pixels of their windows in a band."""
_GROUP_SOURCES = 48
"""Most sources whose parameters are solved for together; larger groups are split in space."""
_FLUX_SWEEPS = 3
_SPLIT_SWEEPS = 10
"""How often fluxes alone are fitted at first in groups that were split, and how often all of it at last."""
_SPLIT_STEPS = 8
"""Most steps of these in a sweep, and of all before the classes are known."""
_NEIGHBOUR = 2.5
"""Distance (FWHM) up to which sources around one whose class has changed start again."""
_DAMPING = 0.01
"""Damping of the first step."""
_BRIGHT = 100.0
"""S/N from which on stars are drawn with more than the Gaussians of the PSF."""
_UNCHANGED = 0.5
"""Change of chi^2 in a window by other models up to which a source is not fitted again."""
UNKNOWN_ERROR = 1e12
"""Error of a flux (nJy) from which on it is not known at all: no pixel tells it."""

_HALO_SNR = 300.0
"""S/N from which on a source's light may be wrong for others far away: that of none in their own groups."""
_HALO_PART = 0.003
"""Error of the light of such a source at a distance d, times d^2, in units of its flux: 1.3 % of the flux for
each doubling of the distance."""
_LEAST_HALO = 0.02
"""Error of a group's sky from which on it is fitted again, in units of the noise of a pixel."""
_NEGATIVE = 5.0
"""S/N of negative fluxes from which on a model is none of a source."""
# Medians of the priors; their widths are in `~.block`.
_PRIOR_SIZE = 0.35  # arcsec
_PRIOR_INDEX = 1.3


def fit_profiles(
    flux: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    sources: FitSources,
    psfs: PsfMixtures,
    pixel_scale: float,
    p_star: FloatArray | None = None,
    fwhm: float | None = None,
    device: torch.device | str = "cpu",
    local_sky: bool = False,
    noise_factors: NoiseFactors = lambda models: np.ones(models.flux.shape[1]),
) -> ProfileFit:
    """Fit all sources of an image, float32, (band, y, x), from which the models are subtracted in place.

    ``weight`` is the inverse variance, float32, (band, y, x), 0 for pixels that are not fitted. The scale of
    a pixel (arcsec) is for the prior on sizes. Sources with a doubtful probability of being a star, (N,), are
    fitted as star and as galaxy; with the FWHM of the PSF (px) it takes in the widths of those that are
    fitted as galaxies at first. Errors are multiplied by the roots of ``noise_factors``, those of such widths
    by 1 at most. With ``local_sky`` a constant is fitted to each group and band, too; near much brighter
    sources it is in any case, with a prior by their light. Pixels are computed on ``device``.
    """
    for plane, known in zip(flux, weight, strict=True):
        plane[~(known > 0)] = 0.0
    if p_star is not None and fwhm is not None:
        sources = replace(sources, is_star=start_as_stars(p_star))
    run = _Run(flux, weight, sources, psfs, pixel_scale, device, local_sky)
    blocks = list(_blocks(sources))
    split = [block for block in blocks if block[2]]
    # Parts of groups that were split start with fluxes that know of each other.
    for members, groups, _ in _FLUX_SWEEPS * split:
        run.fit_block(members, groups, 0)
    run.sweep(blocks, few_steps=fwhm is not None)
    factors: FloatArray | None = None
    if p_star is not None:
        if fwhm is not None:
            factors = noise_factors(run.result)
            # They are high in fields that are full of sources, whatever the noise.
            p_star = run.classify(p_star, fwhm, min(float(np.sqrt(np.mean(factors))), 1.0))
            run.sweep(blocks, only_changed=True)
        run.try_both(p_star)
    run.allow_halos()
    run.sweep(blocks, only_changed=True)
    for _ in range(_SPLIT_SWEEPS):
        run.sweep(split, only_changed=True)
    result = run.result
    result.chi2, pixels = run.chi2(np.arange(len(sources)))
    free = np.where(result.is_star, 2, N_SHAPE) + len(flux)
    result.dof = np.maximum(pixels - free, 0)
    # What takes light away in all bands that are known is part of the model of a neighbour.
    negative = result.flux < -_NEGATIVE * result.flux_errors
    unknown = ~(result.flux_errors < UNKNOWN_ERROR)
    result.converged &= ~((negative | unknown).all(axis=1) & negative.any(axis=1))
    result.scale_errors(np.sqrt(noise_factors(result) if factors is None else factors))
    return result


def _blocks(sources: FitSources) -> Iterator[_Blocked]:
    """Split the sources into compact blocks: members, their groups, and whether a group was split."""
    order = np.argsort(sources.groups, kind="stable")
    starts = np.flatnonzero(np.diff(sources.groups[order], prepend=-1))
    pieces: list[tuple[IntArray, bool]] = []
    for group in np.split(order, starts[1:]) if len(order) else []:
        parts = _halve(sources.positions, group)
        pieces += [(part, len(parts) > 1) for part in parts]
    if not pieces:
        return
    centers = np.array([sources.positions[piece].mean(axis=0) for piece, _ in pieces])
    sizes = np.array([len(piece) for piece, _ in pieces])
    areas = np.array([((2 * sources.halves[piece] + 1) ** 2).sum() for piece, _ in pieces])
    todo = [np.arange(len(pieces))]
    while todo:
        chosen = todo.pop()
        if len(chosen) > 1 and (sizes[chosen].sum() > _BLOCK_SOURCES or areas[chosen].sum() > _BLOCK_PIXELS):
            todo += _cut(centers, chosen)
            continue
        members = np.concatenate([pieces[number][0] for number in chosen])
        groups = np.repeat(np.arange(len(chosen)), sizes[chosen])
        yield members, groups, any(pieces[number][1] for number in chosen)


def _halve(positions: FloatArray, members: IntArray) -> list[IntArray]:
    """Cut a group across its longer side until no part has too many members."""
    if len(members) <= _GROUP_SOURCES:
        return [members]
    return [part for piece in _cut(positions, members) for part in _halve(positions, piece)]


def _cut(positions: FloatArray, members: IntArray) -> list[IntArray]:
    axis = int(np.ptp(positions[members], axis=0).argmax())
    order = members[np.argsort(positions[members, axis], kind="stable")]
    return [order[: len(order) // 2], order[len(order) // 2 :]]


class _Run:
    """The models as they are, and the image of their sum."""

    def __init__(
        self,
        residual: npt.NDArray[np.float32],
        weight: npt.NDArray[np.float32],
        sources: FitSources,
        psfs: PsfMixtures,
        pixel_scale: float,
        device: torch.device | str,
        local_sky: bool,
    ) -> None:
        n_sources, n_bands = len(sources), len(residual)
        self.residual = residual
        self.weight, self.sources, self.psfs, self.device = weight, sources, psfs, device
        self.prior = np.zeros((n_sources, N_SHAPE))
        self.prior[:, :2] = sources.positions
        self.prior[:, 2], self.prior[:, 5] = np.log(_PRIOR_SIZE / pixel_scale), np.log(_PRIOR_INDEX)
        self.origins = np.rint(sources.positions).astype(np.int64) - sources.halves[:, None]
        self.damping = np.full(n_sources, _DAMPING)
        # Standard deviation of the prior on the constant sky of each source's group, (source, band).
        self.sky_errors = np.full((n_sources, n_bands), np.inf) if local_sky else None
        self.result = ProfileFit(
            self.prior.copy(),
            np.zeros((n_sources, n_bands)),
            np.full((n_sources, N_SHAPE + n_bands, N_SHAPE + n_bands), np.nan),
            sources.is_star.copy(),
            np.full(n_sources, np.nan),
            np.zeros(n_sources, np.int64),
            np.zeros(n_sources, np.int64),
            np.zeros(n_sources, bool),
            np.full(n_sources, np.nan),
            np.full(n_sources, np.nan),
            [(0, 0, np.zeros((n_bands, 0, 0), np.float32))] * n_sources,
            np.zeros(n_sources, bool),
        )
        self.result.parameters[:] = self._start()
        # What bright stars have beside the Gaussians of the PSF, and chi^2 in the windows after their fit.
        self.beside: dict[int, npt.NDArray[np.float32]] = {}
        self.fitted = np.full(n_sources, np.nan)

    def _start(self) -> FloatArray:
        """Parameters to start with."""
        start = self.prior.copy()
        start[:, 2] = np.where(self.result.is_star, start[:, 2], np.log(self.sources.sizes))
        return start

    def sweep(self, blocks: Sequence[_Blocked], only_changed: bool = False, few_steps: bool = False) -> None:
        """Fit the sources block by block."""
        for members, groups, is_split in blocks:
            if only_changed:
                members, groups = self.changed(members, groups)
            if len(members):
                # Neighbours of parts of groups that were split are fitted later: no need to converge yet.
                self.fit_block(members, groups, _SPLIT_STEPS if is_split or few_steps else MAX_STEPS)

    def allow_halos(self) -> None:
        """Let groups without a bright source have a constant sky by the light of bright ones around them.

        Otherwise, what is left of the halos of those would be taken for wings of faint sources.
        """
        if self.sky_errors is not None:
            return
        flux, errors = self.result.flux, self.result.flux_errors
        known = np.isfinite(flux) & (errors < UNKNOWN_ERROR)
        bright = (known & (flux > _HALO_SNR * errors)).any(axis=1)
        groups, positions = self.sources.groups, self.result.parameters[:, :2]
        faint = np.flatnonzero(np.bincount(groups, bright)[groups] == 0)
        if not bright.any() or not len(faint):
            return
        distance = np.hypot(*(positions[faint, None] - positions[bright]).transpose(2, 0, 1))
        light = np.where(known[bright], np.maximum(flux[bright], 0.0), 0.0)
        halo = np.zeros((int(groups.max()) + 1, flux.shape[1]))
        np.maximum.at(halo, groups[faint], _HALO_PART * np.maximum(distance, 1.0) ** -2.0 @ light)
        self.sky_errors = halo[groups]
        # Those for which it matters have not converged yet, and are fitted again with it.
        matters = self.sky_errors * np.sqrt(self._weight_at_cores()) >= _LEAST_HALO
        self.result.converged &= ~matters.any(axis=1)

    def _weight_at_cores(self) -> npt.NDArray[np.float32]:
        """Weight of the pixel at the centre of each model, (source, band)."""
        places = np.rint(self.result.parameters[:, :2]).astype(np.int64)
        y, x = np.clip(places, 0, np.array(self.weight.shape[1:]) - 1).T
        return self.weight[:, y, x].T

    def changed(self, members: IntArray, groups: IntArray) -> tuple[IntArray, IntArray]:
        """Take the groups that have not converged, or around which models have changed since."""
        moved = np.bincount(groups, ~self.result.converged[members]) > 0
        unlike = np.abs(self.chi2(members)[0] - self.fitted[members]) > _UNCHANGED
        moved |= np.bincount(groups, unlike) > 0
        chosen = moved[groups]
        return members[chosen], np.unique(groups[chosen], return_inverse=True)[1]

    def chi2(self, members: IntArray) -> tuple[FloatArray, IntArray]:
        """chi^2 in the squares around some sources as the models are, and how many pixels they hold."""
        found, n_pixels = np.zeros(len(members)), np.zeros(len(members), np.int64)
        for number, member in enumerate(members.tolist()):
            corner, side = self.origins[member].tolist(), 2 * int(self.sources.halves[member]) + 1
            window = (slice(None), *(slice(max(c, 0), max(c + side, 0)) for c in corner))
            rest, weight = self.residual[window], self.weight[window]
            found[number], n_pixels[number] = np.vdot(rest * rest, weight), np.count_nonzero(weight)
        return found, n_pixels

    def fit_block(self, members: IntArray, groups: IntArray, max_steps: int = MAX_STEPS) -> None:
        """Fit some sources, without steps their fluxes alone, and put them into the sum of all models."""
        for member in members.tolist():
            self.result.add_to(self.residual, member, 1.0)
            self._add_beside(member, -1.0)
        psfs = [self.psfs(y, x) for y, x in self.sources.positions[members].tolist()]
        block = Block(
            (self.residual, self.weight),
            self.result.is_star[members],
            self.sources.halves[members],
            self.origins[members],
            self.prior[members],
            groups,
            PsfStack.make(psfs),
            self.device,
            None if self.sky_errors is None else self.sky_errors[members],
        )
        # A damping that has grown belongs to other surroundings.
        damping = np.minimum(self.damping[members], 0.1)
        start = self.result.parameters[members], self.result.flux[members]
        self.damping[members] = block.fit(*start, damping, max_steps)
        block.store(self.result, members, errors=max_steps > 0)
        for member in members.tolist():
            self.result.add_to(self.residual, member, -1.0)
        self.fitted[members] = self.chi2(members)[0]
        for member, psf in zip(members.tolist(), psfs, strict=True):
            self._add_beside(member, 1.0)
            self._draw_beside(member, psf)
            self._add_beside(member, -1.0)
            if member in self.beside:
                self.result.windows[member][2][...] += self.beside[member]

    def _add_beside(self, member: int, sign: float) -> None:
        if member in self.beside:
            y0, x0, _ = self.result.windows[member]
            add_stamp(self.residual, y0, x0, self.beside[member], sign)

    def _draw_beside(self, member: int, psfs: Sequence[PsfMixture]) -> None:
        """Draw what a bright star has beside the Gaussians of the PSF: their misfit, and wings."""
        result = self.result
        self.beside.pop(member, None)
        variance = np.diag(result.covariance[member])[N_SHAPE:]
        if not (result.is_star[member] and (result.flux[member] > _BRIGHT * np.sqrt(variance)).any()):
            return
        y0, x0, pixels = result.windows[member]
        y, x = result.parameters[member, :2]
        axis = np.arange(pixels.shape[1], dtype=np.float64)
        drawn = np.stack([draw_psf(psf.spline, axis + y0 - y, axis + x0 - x) for psf in psfs])
        self.beside[member] = drawn * result.flux[member, :, None, None].astype(np.float32) - pixels

    def classify(self, p_star: FloatArray, fwhm: float, error_scale: float) -> FloatArray:
        """Take the widths into the probabilities; sources of another class, and those around, start again."""
        result = self.result
        result.evidence = width_evidence(result, p_star, fwhm, error_scale)
        # Of cores without pixels the width is not known.
        result.evidence[~(self._weight_at_cores() > 0).any(axis=1)] = np.nan
        p_star = with_width(p_star, result.evidence)
        is_star = p_star >= 0.5
        again = is_star != result.is_star
        distance = cKDTree(self.sources.positions[again]).query(self.sources.positions)[0]
        again = distance < _NEIGHBOUR * fwhm
        result.is_star[again] = is_star[again]
        result.parameters[again] = self._start()[again]
        result.flux[again], result.converged[again], self.damping[again] = 0.0, False, _DAMPING
        return p_star

    def try_both(self, p_star: FloatArray) -> None:
        """Fit doubtful sources as what they are not, all others held, and keep what is likelier."""
        with np.errstate(divide="ignore"):
            odds = np.log(p_star) - np.log1p(-p_star)
        members = np.flatnonzero((p_star > _DOUBTFUL[0]) & (p_star < _DOUBTFUL[1]))
        # They lie all over the image, and what blocks have freed is of other sizes.
        release_memory(self.residual.shape)
        for first in range(0, len(members), _BLOCK_SOURCES):
            self._try_both(members[first : first + _BLOCK_SOURCES], odds)

    def _try_both(self, members: IntArray, odds: FloatArray) -> None:
        result = self.result
        names = ("parameters", "flux", "covariance", "is_star", "n_iter", "converged")
        before = {name: getattr(result, name)[members].copy() for name in names}
        chi2 = self.chi2(members)[0]
        fitted = self.fitted[members]
        windows = [result.windows[member] for member in members.tolist()]
        beside = {member: self.beside.pop(member, None) for member in members.tolist()}
        result.is_star[members] ^= True
        size = np.log(self.sources.sizes[members])
        result.parameters[members, 2] = np.where(result.is_star[members], self.prior[members, 2], size)
        self.fit_block(members, np.arange(len(members)), _SPLIT_STEPS)
        delta = np.where(before["is_star"], 1.0, -1.0) * (chi2 - self.chi2(members)[0])
        result.delta_chi2[members] = delta
        back = (delta < 2.0 * odds[members] + _EXTENDED_COST) == before["is_star"]
        for name, values in before.items():
            getattr(result, name)[members[back]] = values[back]
        self.fitted[members[back]] = fitted[back]
        for number in np.flatnonzero(back).tolist():
            member = int(members[number])
            self.result.add_to(self.residual, member, 1.0)
            result.windows[member] = windows[number]
            self.beside.pop(member, None)
            if (old := beside[member]) is not None:
                self.beside[member] = old
            self.result.add_to(self.residual, member, -1.0)


_DOUBTFUL = 0.1, 0.9
"""Probabilities of being a star between which a source is fitted as both."""
_EXTENDED_COST = 4.0
"""By how much chi^2 has to be lower for a galaxy, which has four parameters more, if both are as likely."""
