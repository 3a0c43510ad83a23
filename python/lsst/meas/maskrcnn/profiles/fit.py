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

import numpy as np
import numpy.typing as npt
import torch

from ..network.memory import release_memory
from .block import MAX_STEPS, Block
from .model import FitSources, ProfileFit, add_stamp
from .psf import PsfMixture, PsfStack, draw_psf
from .render import N_SHAPE

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
PsfMixtures = Callable[[float, float], Sequence[PsfMixture]]
"""Takes a position (y, x), px; gives the PSF of each band there."""

WINDOW_HALVES = (10, 14, 18, 24, 32, 48, 64, 96, 128)
"""Half sides of the windows on which sources are drawn (px)."""

_BLOCK_SOURCES = 512
_BLOCK_PIXELS = 1_000_000
"""Most sources that are held in memory together, and most pixels of their windows in a band."""
_GROUP_SOURCES = 48
"""Most sources whose parameters are solved for together; larger groups are split in space."""
_FLUX_SWEEPS = 3
_SWEEPS, _SPLIT_SWEEPS = 2, 8
"""How often fluxes alone are fitted at first, and then everything, and what is in groups that were split."""
_SPLIT_STEPS = 8
"""Most steps of these in a sweep."""
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
    doubtful: npt.NDArray[np.float64] | None = None,
    device: torch.device | str = "cpu",
    local_sky: bool = False,
) -> ProfileFit:
    """Fit all sources of an image, float32, (band, y, x), from which the models are subtracted in place.

    ``weight`` is the inverse variance, float32, (band, y, x), 0 for pixels that are not fitted. The scale of
    a pixel (arcsec) is for the prior on sizes. Sources for which ``doubtful``, (N,), the logarithm of the
    odds of being a star, is finite are fitted as star and as galaxy. With ``local_sky`` a constant is fitted
    to each group and band, too; near much brighter sources it is in any case, with a prior by their light.
    Pixels are computed on ``device``.
    """
    for plane, known in zip(flux, weight, strict=True):
        plane[~(known > 0)] = 0.0
    run = _Run(flux, weight, sources, psfs, pixel_scale, device, local_sky)
    blocks = list(_blocks(sources))
    # Parts of groups that were split start with fluxes that know of each other.
    for members, groups, is_split in _FLUX_SWEEPS * blocks:
        if is_split:
            run.fit_block(members, groups, 0)
    for sweep in range(_SPLIT_SWEEPS):
        for members, groups, is_split in blocks:
            if sweep:
                members, groups = run.changed(members, groups)
            if len(members) and (sweep < _SWEEPS or is_split):
                # Neighbours of parts of groups that were split are fitted later: no need to converge yet.
                run.fit_block(members, groups, _SPLIT_STEPS if is_split else MAX_STEPS)
        if sweep == 0:
            if doubtful is not None and np.isfinite(doubtful).any():
                run.try_both(np.flatnonzero(np.isfinite(doubtful)), doubtful)
            run.allow_halos()
    result = run.result
    result.chi2, pixels = run.chi2(np.arange(len(sources)))
    free = np.where(result.is_star, 2, N_SHAPE) + len(flux)
    result.dof = np.maximum(pixels - free, 0)
    # What takes light away in all bands that are known is part of the model of a neighbour.
    negative = result.flux < -_NEGATIVE * result.flux_errors
    unknown = ~(result.flux_errors < UNKNOWN_ERROR)
    result.converged &= ~((negative | unknown).all(axis=1) & negative.any(axis=1))
    return result


def _blocks(sources: FitSources) -> Iterator[tuple[IntArray, IntArray, bool]]:
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
        start = self.prior.copy()
        start[:, 2] = np.where(sources.is_star, start[:, 2], np.log(sources.sizes))
        self.origins = np.rint(sources.positions).astype(np.int64) - sources.halves[:, None]
        self.damping = np.full(n_sources, 0.01)
        # Standard deviation of the prior on the constant sky of each source's group, (source, band).
        self.sky_errors = np.full((n_sources, n_bands), np.inf) if local_sky else None
        self.result = ProfileFit(
            start,
            np.zeros((n_sources, n_bands)),
            np.full((n_sources, N_SHAPE + n_bands, N_SHAPE + n_bands), np.nan),
            sources.is_star.copy(),
            np.full(n_sources, np.nan),
            np.zeros(n_sources, np.int64),
            np.zeros(n_sources, np.int64),
            np.zeros(n_sources, bool),
            np.full(n_sources, np.nan),
            [(0, 0, np.zeros((n_bands, 0, 0), np.float32))] * n_sources,
            np.zeros(n_sources, bool),
        )
        # What bright stars have beside the Gaussians of the PSF, and chi^2 in the windows after their fit.
        self.beside: dict[int, npt.NDArray[np.float32]] = {}
        self.fitted = np.full(n_sources, np.nan)

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
        y, x = np.clip(np.rint(positions).astype(np.int64), 0, np.array(self.weight.shape[1:]) - 1).T
        # Those for which it matters have not converged yet, and are fitted again with it.
        self.result.converged &= (self.sky_errors * np.sqrt(self.weight[:, y, x].T) < _LEAST_HALO).all(axis=1)

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

    def try_both(self, members: IntArray, odds: FloatArray) -> None:
        """Fit sources as what they are not, all others held, and keep what is likelier."""
        # They lie all over the image, and what blocks have freed is of other sizes.
        release_memory()
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
        self.fit_block(members, np.arange(len(members)))
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


_EXTENDED_COST = 4.0
"""By how much chi^2 has to be lower for a galaxy, which has four parameters more, if both are as likely."""
