# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fit of a few groups of sources at the same time.

Fluxes are linear: they are solved for at each step (variable projection). The
other parameters take Levenberg-Marquardt steps, with a damping by group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .mixtures import LOG_INDEX_RANGE
from .model import ProfileFit, pixels_at
from .psf import PsfStack
from .render import N_SHAPE, render_windows, window_pixels
from .steps import assemble, by_parameter, invert, next_damping, solve_within

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_STEPS = 25
_SETTLED = 0.1
"""A group has converged if the next step promises to lower chi^2 by less than this for each source."""
_NEAR = 3.0
"""A group is near the minimum if the step promises less than this for each source."""
_STILL = 0.01
"""A source is not drawn again for a step that promises less than this."""
_LARGEST_STEP = np.array([1.0, 1.0, 0.7, 0.7, 0.7, 0.5])
_LARGEST_DAMPING = 1e6
_FARTHEST = 2.5
"""How far the centre may be from the peak (px)."""
_LARGEST_SHEAR = 3.0
"""Of each component of the conformal shear: an axis ratio of 20."""

# Standard deviations of the priors. Centre: around the peak that was given (px). ln of the half-light
# radius: galaxies of 22 < H < 26 in deep HST fields (CANDELS, van der Wel et al. 2012) have a median of
# 0.35 arcsec and a scatter of 0.25 dex; taken twice as wide. Conformal shear: intrinsic ellipticity of 0.26
# a component (COSMOS, Leauthaud et al. 2007), which is half of it. ln of the index: a median of 1.3 and a
# scatter of 0.25 dex in the same fields.
_PRIOR_SIGMA = np.array([1.0, 1.0, 1.15, 0.55, 0.55, 0.6])


@dataclass
class _Windows:
    """Windows of one size around sources of one kind; P is the number of their pixels."""

    members: IntArray
    """Which sources of the block."""
    side: int
    is_star: bool
    index: torch.Tensor
    """Pixels of the windows in the images of the block, (n, band, P)."""
    weight: torch.Tensor
    """Inverse variance there, (n, band, P)."""
    share: torch.Tensor
    """Inverse variance over the number of the group's windows on each pixel, (n, band, P)."""
    pixels: torch.Tensor
    """Templates and derivatives as they were drawn last, (n, band, 7, P), of stars (n, band, 3, P)."""
    light: torch.Tensor
    """Models that are subtracted, (n, band, P)."""


@dataclass
class _Pairs:
    """Pairs of sources of a group whose windows overlap, from two sets of windows."""

    first: IntArray
    second: IntArray
    """Which sources of the block."""
    windows: tuple[_Windows, _Windows]
    places: tuple[IntArray, IntArray]
    """Their places in these."""
    pixels: tuple[torch.Tensor, torch.Tensor]
    """Pixels of the overlap in the windows of both, (pair, Q); where there are fewer, any at the end."""
    inside: torch.Tensor
    """Which of these are in the overlap, float32, (pair, Q)."""


@dataclass
class _State:
    """Parameters and what was found with them, by source of the block."""

    parameters: FloatArray
    flux: FloatArray
    own: FloatArray
    """Products of templates and derivatives of a source, (n, band, 7, 7)."""
    pair: FloatArray
    """Those of pairs."""
    gradient: FloatArray
    """Product of templates and derivatives with the residual, (n, band, 7)."""
    chi2: FloatArray
    """Of each source's part of the pixels, with the prior, (n,)."""
    level: FloatArray
    """Weighted sums of templates and derivatives, (n, band, 7): their products with a constant sky."""
    excess: FloatArray
    """Weighted sum of each source's part of the residual, (n, band)."""

    def take(self, other: _State, sources: npt.NDArray[np.bool_], pairs: npt.NDArray[np.bool_]) -> None:
        """Overwrite what belongs to some sources and pairs."""
        for name in ("parameters", "flux", "own", "gradient", "chi2", "level", "excess"):
            getattr(self, name)[sources] = getattr(other, name)[sources]
        self.pair[pairs] = other.pair[pairs]

    def copy(self) -> _State:
        return replace(self, **{name: value.copy() for name, value in vars(self).items()})


class Block:
    """Sources that are fitted at the same time."""

    def __init__(
        self,
        images: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
        is_star: npt.NDArray[np.bool_],
        halves: IntArray,
        origins: IntArray,
        prior: FloatArray,
        groups: IntArray,
        psfs: PsfStack,
        device: torch.device | str,
        sky_errors: FloatArray | None = None,
    ) -> None:
        self.is_star, self.halves, self.origins, self.prior = is_star, halves, origins, prior
        self.groups, self.psfs, self.device = groups, psfs, device
        # Lowest and highest parameters, (2, source, 6).
        self.limits = np.stack([np.full(prior.shape, -np.inf), np.full(prior.shape, np.inf)])
        self.limits[:, :, :2] = prior[:, :2] + _FARTHEST * np.array([-1.0, 1.0])[:, None, None]
        # Light beyond the window is not seen.
        self.limits[1, :, 2] = np.log(halves)
        self.limits[:, :, 3:5] = _LARGEST_SHEAR * np.array([-1.0, 1.0])[:, None, None]
        self.limits[:, :, 5] = np.array(LOG_INDEX_RANGE)[:, None]
        self.n_bands = len(images[0])
        self.windows = self._make_windows(images)
        self.pairs = self._make_pairs()
        self._share_pixels()
        first = [pairs.first for pairs in self.pairs] or [np.zeros(0, np.int64)]
        second = [pairs.second for pairs in self.pairs] or [np.zeros(0, np.int64)]
        self.first, self.second = np.concatenate(first), np.concatenate(second)
        self.buckets = list(_buckets(groups))
        self.sky_variance = self._make_sky_variance(sky_errors)
        self.has_sky = bool(self.sky_variance.any())
        # Parameters of the templates as they are drawn.
        self.drawn = np.full(prior.shape, np.nan)

    def _make_windows(
        self, images: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
    ) -> list[_Windows]:
        """Take the pixels of all windows, each once, and make the windows of each size and kind."""
        device, sides = self.device, 2 * self.halves + 1
        corner = self.origins.min(axis=0)
        kinds = sorted(set(zip(sides.tolist(), self.is_star.tolist(), strict=True)))
        chosen = [np.flatnonzero((sides == side) & (self.is_star == star)) for side, star in kinds]
        shape = tuple(((self.origins + sides[:, None]).max(axis=0) - corner).tolist())
        places = []
        for (side, _), members in zip(kinds, chosen, strict=True):
            y, x = (self.origins[members] - corner).T[..., None]
            rows, columns = window_pixels(side)
            places.append((y + rows) * shape[1] + x + columns)
        pixels, numbers = _number(places, shape)
        self.residual, weight = (
            torch.as_tensor(pixels_at(image, *(pixels + corner[:, None])).ravel(), device=device)
            for image in images
        )
        area = pixels.shape[1]
        made = []
        for (side, star), members, number in zip(kinds, chosen, numbers, strict=True):
            index = torch.as_tensor(number[:, None] + area * np.arange(self.n_bands)[:, None], device=device)
            at = weight[index]
            n_rows = 3 if star else 1 + N_SHAPE
            drawn = torch.zeros((*index.shape[:2], n_rows, index.shape[2]), device=device)
            made.append(_Windows(members, side, star, index, at, at, drawn, torch.zeros_like(at)))
        return made

    def _make_sky_variance(self, sky_errors: FloatArray | None) -> FloatArray:
        """Variance of the constant sky of each group, (group, band); 0 where there is none.

        Sources of a group have the same standard deviation of its prior, (n, band).
        """
        weight = np.zeros((int(self.groups.max()) + 1, self.n_bands))
        if sky_errors is None:
            return weight
        for windows in self.windows:
            part = windows.share.sum(dim=2).double().cpu().numpy()
            np.add.at(weight, self.groups[windows.members], part)
        error = np.zeros_like(weight)
        error[self.groups] = sky_errors
        with np.errstate(divide="ignore"):
            return np.where(weight > 0, 1.0 / (weight + error**-2.0), 0.0)

    def _make_pairs(self) -> list[_Pairs]:
        places = np.zeros(len(self.groups), np.int64)
        kinds = np.zeros(len(self.groups), np.int64)
        for number, windows in enumerate(self.windows):
            places[windows.members], kinds[windows.members] = np.arange(len(windows.members)), number
        middles = self.origins + self.halves[:, None]
        apart = np.hypot(*(middles[:, None] - middles).transpose(2, 0, 1))
        near = (self.groups[:, None] == self.groups) & (apart <= self.halves[:, None] + self.halves + 1)
        first, second = np.nonzero(np.triu(near, 1))
        swap = self.halves[first] > self.halves[second]
        first, second = np.where(swap, second, first), np.where(swap, first, second)
        found = []
        for a, b in sorted(set(zip(kinds[first].tolist(), kinds[second].tolist(), strict=True))):
            chosen = (kinds[first] == a) & (kinds[second] == b)
            i, j = first[chosen], second[chosen]
            both = self.windows[a], self.windows[b]
            shared = _overlap(self.origins[i] - self.origins[j], both[0].side, both[1].side)
            counts = (shared >= 0).sum(axis=1)
            n_pixels = shared.shape[1]
            # Pairs of similar overlap together.
            for least, most in itertools.pairwise((0, n_pixels // 6, n_pixels // 2, n_pixels)):
                some = np.flatnonzero((counts > least) & (counts <= most))
                if len(some):
                    own = np.argsort(shared[some] < 0, axis=1, kind="stable")[:, : counts[some].max()]
                    other = np.take_along_axis(shared[some], own, axis=1)
                    pixels = (
                        torch.as_tensor(own, device=self.device),
                        torch.as_tensor(np.maximum(other, 0), device=self.device),
                    )
                    inside = torch.as_tensor(other >= 0, device=self.device).float()
                    at = places[i[some]], places[j[some]]
                    found.append(_Pairs(i[some], j[some], both, at, pixels, inside))
        return found

    def _share_pixels(self) -> None:
        """Divide pixels by the windows of a group, so that each counts once in its sums."""
        counts = {id(windows): torch.ones_like(windows.weight[:, 0]) for windows in self.windows}
        for pairs in self.pairs:
            for windows, place, pixels in zip(pairs.windows, pairs.places, pairs.pixels, strict=True):
                number = counts[id(windows)]
                at = torch.as_tensor(place, device=self.device)[:, None] * number.shape[1] + pixels
                number.view(-1).index_add_(0, at.flatten(), pairs.inside.flatten())
        for windows in self.windows:
            windows.share = windows.weight / counts[id(windows)][:, None]

    def fit(
        self, parameters: FloatArray, flux: FloatArray, damping: FloatArray, max_steps: int = MAX_STEPS
    ) -> FloatArray:
        """Fit until every group has converged or the steps are used up; returns the damping by source.

        Without a step only fluxes are fitted.
        """
        n_sources, n_bands = flux.shape
        state = _State(
            parameters.copy(),
            flux.copy(),
            np.zeros((n_sources, n_bands, 1 + N_SHAPE, 1 + N_SHAPE)),
            np.zeros((len(self.first), n_bands, 1 + N_SHAPE, 1 + N_SHAPE)),
            np.zeros((n_sources, n_bands, 1 + N_SHAPE)),
            np.full(n_sources, np.inf),
            np.zeros((n_sources, n_bands, 1 + N_SHAPE)),
            np.zeros((n_sources, n_bands)),
        )
        everything = np.ones(n_sources, bool)
        self._evaluate(state, everything, everything)
        n_groups = int(self.groups.max()) + 1
        damping = np.maximum.reduceat(damping, np.unique(self.groups, return_index=True)[1])
        active, settled = np.ones(n_groups, bool), np.zeros(n_groups, bool)
        moved = np.zeros(n_groups, np.int64)
        size = np.bincount(self.groups, minlength=n_groups)
        trial = state.copy()
        for _ in range(max_steps):
            mine = active[self.groups]
            step, promise = self._step(state, damping, mine)
            # Without damping it would promise more.
            settled |= active & (self._sum(np.abs(promise)) * (1.0 + damping) < _SETTLED * size)
            active &= ~settled & (damping <= _LARGEST_DAMPING)
            if not active.any():
                break
            mine = active[self.groups]
            trial.take(state, mine, mine[self.first])
            moving = mine & (np.abs(promise) > _STILL)
            trial.parameters[moving] += step[moving]
            self._evaluate(trial, mine, moving)
            # Near the minimum neighbours, which move as well, would decide about chi^2.
            near = self._sum(promise) < _NEAR * size
            slopes = self._slope(state) + self._slope(trial)
            gain = np.where(
                near,
                self._sum((np.where(moving[:, None], step, 0.0) * slopes).sum(axis=1)),
                self._sum(state.chi2 - trial.chi2),
            )
            # Rounding of chi^2, which is summed in float32.
            better = active & (gain >= -1e-6 * self._sum(state.chi2) - 1e-3 * size)
            state.take(trial, better[self.groups], better[self.groups[self.first]])
            damping = next_damping(damping, gain / np.maximum(self._sum(promise), 1e-30), active, better)
            moved += better
        self.state, self.converged, self.steps = state, settled, moved
        return damping[self.groups]

    def _sum(self, values: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(self.groups, values), np.float64)

    def _evaluate(self, trial: _State, mine: npt.NDArray[np.bool_], moved: npt.NDArray[np.bool_]) -> None:
        """Draw the chosen sources, of which some moved, solve for fluxes, and find the gradient and chi^2."""
        for windows, rows, at in self._chosen(mine):
            self._draw(trial, windows, rows)
            self._subtract(windows, at, trial.flux[windows.members[rows]])
        start = 0
        for pairs in self.pairs:
            rows = np.flatnonzero(moved[pairs.first] | moved[pairs.second])
            if len(rows):
                trial.pair[start + rows] = self._products(pairs, rows)
            start += len(pairs.first)
        for windows, rows, at in self._chosen(mine):
            rest = self.residual[windows.index[at]]
            product = (windows.pixels[:, :, 0][at] * rest * windows.weight[at]).sum(dim=2)
            trial.gradient[windows.members[rows], :, 0] = product.double().cpu().numpy()
            if self.has_sky:
                excess = (rest * windows.share[at]).sum(dim=2)
                trial.excess[windows.members[rows]] = excess.double().cpu().numpy()
        self._remove_sky(trial, mine)
        self._solve_fluxes(trial, mine)
        for windows, rows, at in self._chosen(mine):
            self._subtract(windows, at, trial.flux[windows.members[rows]])
        deviation = (trial.parameters - self.prior) / _PRIOR_SIGMA
        for windows, rows, at in self._chosen(mine):
            chosen, pixels = windows.members[rows], windows.pixels[at]
            rest = self.residual[windows.index[at]]
            product = (pixels @ (rest * windows.weight[at])[..., None])[..., 0]
            trial.gradient[chosen, :, : product.shape[2]] = product.double().cpu().numpy()
            if self.has_sky:
                trial.excess[chosen] = (rest * windows.share[at]).sum(dim=2).double().cpu().numpy()
            chi2 = (rest.square_() * windows.share[at]).sum(dim=(1, 2))
            trial.chi2[chosen] = chi2.double().cpu().numpy() + (deviation[chosen] ** 2).sum(axis=1)
        self._remove_sky(trial, mine)

    def _remove_sky(self, trial: _State, mine: npt.NDArray[np.bool_]) -> None:
        """Bring gradient and chi^2 of the chosen sources to the best constant sky of their groups."""
        if not self.has_sky:
            return
        excess = np.zeros_like(self.sky_variance)
        np.add.at(excess, self.groups, trial.excess)
        sky = (excess * self.sky_variance)[self.groups]
        trial.gradient[mine] -= (trial.level * sky[..., None])[mine]
        trial.chi2[mine] -= (trial.excess * sky).sum(axis=1)[mine]

    def _chosen(self, mine: npt.NDArray[np.bool_]) -> Iterator[tuple[_Windows, IntArray, Any]]:
        """Windows with the rows of the chosen sources, also as an index of tensors."""
        for windows in self.windows:
            rows = np.flatnonzero(mine[windows.members])
            if len(rows) == len(windows.members):
                yield windows, rows, slice(None)
            elif len(rows):
                yield windows, rows, torch.as_tensor(rows, device=self.device)

    def _draw(self, trial: _State, windows: _Windows, rows: IntArray) -> None:
        """Draw templates and derivatives where they were drawn with other parameters last."""
        rows = rows[(trial.parameters != self.drawn)[windows.members[rows]].any(axis=1)]
        members = windows.members[rows]
        self.drawn[members] = trial.parameters[members]
        if not len(rows):
            return
        drawn = render_windows(
            trial.parameters[members],
            self.origins[members],
            windows.side,
            self.psfs.take(members),
            windows.is_star,
            self.device,
        )
        n = windows.pixels.shape[2]
        for part, pixels in drawn:
            at = torch.as_tensor(rows[part], device=self.device)
            heavy = pixels * windows.weight[at][:, :, None]
            windows.pixels[at] = pixels
            own = heavy @ pixels.transpose(2, 3)
            trial.own[members[part], :, :n, :n] = own.double().cpu().numpy()
            if self.has_sky:
                trial.level[members[part], :, :n] = heavy.sum(dim=3).double().cpu().numpy()

    def _subtract(self, windows: _Windows, at: Any, flux: FloatArray) -> None:
        """Subtract models with some fluxes in place of those that are subtracted."""
        factor = torch.as_tensor(flux, dtype=torch.float32, device=self.device)
        light = windows.pixels[:, :, 0][at] * factor[..., None]
        change = windows.light[at] - light
        self.residual.index_add_(0, windows.index[at].flatten(), change.flatten())
        windows.light[at] = light

    def _products(self, pairs: _Pairs, rows: IntArray) -> FloatArray:
        """Products of the templates and derivatives of pairs, (pair, band, 7, 7)."""
        first, second = pairs.windows
        found = np.zeros((len(rows), self.n_bands, 1 + N_SHAPE, 1 + N_SHAPE))
        n, m = first.pixels.shape[2], second.pixels.shape[2]
        step = max(1, 200_000 // (self.n_bands * m * pairs.inside.shape[1]))
        for begin in range(0, len(rows), step):
            part = rows[begin : begin + step]
            at = torch.as_tensor(part, device=self.device)
            i, j = (torch.as_tensor(place[part], device=self.device) for place in pairs.places)
            pixels, others = (index[at][:, None, None] for index in pairs.pixels)
            weight = first.weight[i].gather(2, pixels[:, 0].expand(-1, self.n_bands, -1))
            own = first.pixels[i].gather(3, pixels.expand(-1, self.n_bands, n, -1))
            other = second.pixels[j].gather(3, others.expand(-1, self.n_bands, m, -1))
            product = (own * (weight * pairs.inside[at][:, None])[:, :, None]) @ other.transpose(2, 3)
            found[begin : begin + step, :, :n, :m] = product.double().cpu().numpy()
        return found

    def _solve_fluxes(self, trial: _State, mine: npt.NDArray[np.bool_]) -> None:
        """Solve for the fluxes of the chosen sources."""
        own, pair = trial.own[..., 0, 0], trial.pair[..., 0, 0]
        for bucket in self.buckets:
            members = bucket[mine[bucket[:, 0]]]
            if not len(members):
                continue
            right = trial.gradient[members][..., 0].transpose(0, 2, 1)
            pairs, places = self._pairs_of(members)
            matrix = assemble(own[members], pair[pairs], places).transpose(0, 3, 1, 2)
            if self.has_sky:
                level = trial.level[members][..., 0] * np.sqrt(self.sky_variance[self.groups[members]])
                matrix = matrix - np.einsum("gib,gjb->gbij", level, level)
            diagonal = np.einsum("gbii->gbi", matrix)
            diagonal += 1e-6 * diagonal + 1e-30
            trial.flux[members] += np.linalg.solve(matrix, right[..., None])[..., 0].transpose(0, 2, 1)

    def _pairs_of(self, members: IntArray) -> tuple[IntArray, tuple[IntArray, IntArray, IntArray]]:
        """Take the pairs of groups of one size: which they are, their groups, and their places in these."""
        n_groups, size = members.shape
        group, place = np.full(len(self.groups), -1), np.zeros(len(self.groups), np.int64)
        group[members], place[members] = np.arange(n_groups)[:, None], np.arange(size)
        chosen = np.flatnonzero(group[self.first] >= 0)
        i, j = self.first[chosen], self.second[chosen]
        return chosen, (group[i], place[i], place[j])

    def _fisher(self, state: _State, members: IntArray) -> FloatArray:
        """Matrix of parameters and fluxes of groups of one size, (group, source, 6 + B, source, 6 + B)."""
        n_bands = state.flux.shape[1]
        size = N_SHAPE + n_bands
        # Derivatives by the parameters are those of a template times its flux.
        scale = np.ones((len(self.groups), n_bands, 1 + N_SHAPE))
        scale[..., 1:] = state.flux[..., None]
        mine = scale[members]
        own = by_parameter(state.own[members] * mine[..., None] * mine[..., None, :])
        precision = np.zeros(size)
        precision[:N_SHAPE] = _PRIOR_SIGMA**-2.0
        own += np.diag(precision)
        pairs, places = self._pairs_of(members)
        first, second = scale[self.first[pairs]], scale[self.second[pairs]]
        pair = by_parameter(state.pair[pairs] * first[..., None] * second[..., None, :])
        matrix = assemble(own, pair, places).transpose(0, 1, 3, 2, 4)
        if self.has_sky:
            level = np.zeros((*members.shape, n_bands, size))
            level[..., :N_SHAPE] = (state.level[..., 1:] * state.flux[..., None])[members]
            bands = np.arange(n_bands)
            level[:, :, bands, N_SHAPE + bands] = state.level[members][..., 0]
            level *= np.sqrt(self.sky_variance[self.groups[members]])[..., None]
            matrix = matrix - np.einsum("gibp,gjbq->gipjq", level, level)
        return matrix

    def _slope(self, state: _State) -> FloatArray:
        """Half of the derivatives of chi^2 by the parameters, (n, 6), with the opposite sign."""
        slope: FloatArray = np.einsum("nb,nbp->np", state.flux, state.gradient[..., 1:])
        return slope - (state.parameters - self.prior) / _PRIOR_SIGMA**2

    def _step(
        self, state: _State, damping: FloatArray, mine: npt.NDArray[np.bool_]
    ) -> tuple[FloatArray, FloatArray]:
        """Step of the parameters, (n, 6), and by how much chi^2 should fall, (n,)."""
        n_bands = state.flux.shape[1]
        step = np.zeros((len(self.groups), N_SHAPE + n_bands))
        right = np.concatenate([self._slope(state), state.gradient[..., 0]], axis=1)
        for bucket in self.buckets:
            members = bucket[mine[bucket[:, 0]]]
            if not len(members):
                continue
            fisher = self._fisher(state, members)
            n_groups, size, width = fisher.shape[:3]
            matrix = fisher.reshape(n_groups, size * width, -1)
            more = np.zeros((n_groups, size, width))
            more[..., :N_SHAPE] = damping[self.groups[members[:, 0]]][:, None, None]
            more[..., N_SHAPE:] = 1e-6
            diagonal = np.einsum("gii->gi", matrix)
            diagonal += diagonal * more.reshape(n_groups, -1) + 1e-30
            step[members] = solve_within(
                matrix, right[members], state.parameters[members], self.limits[:, members]
            )
        step = step[:, :N_SHAPE] / np.maximum(
            np.abs(step[:, :N_SHAPE] / _LARGEST_STEP).max(axis=1, keepdims=True), 1.0
        )
        return step, (step * right[:, :N_SHAPE]).sum(axis=1)

    def store(self, result: ProfileFit, members: IntArray, errors: bool) -> None:
        """Write the models to the results, with or without their errors."""
        state = self.state
        for windows, rows, at in self._chosen(np.ones(len(members), bool)):
            self._draw(state, windows, rows)
            self._subtract(windows, at, state.flux[windows.members])
        result.parameters[members], result.flux[members] = state.parameters, state.flux
        # A size or an axis ratio that has run away fits something else than the source.
        shape, lowest, highest = state.parameters[:, 2:5], *self.limits[:, :, 2:5]
        within = ((shape > lowest + 1e-6) & (shape < highest - 1e-6)).all(axis=1)
        result.converged[members] = self.converged[self.groups] & (self.is_star | within)
        result.n_iter[members] += self.steps[self.groups]
        for bucket in self.buckets if errors else ():
            fisher = self._fisher(state, bucket)
            n_groups, size, width = fisher.shape[:3]
            matrix = fisher.reshape(n_groups, size * width, -1)
            inverse = invert(matrix).reshape(fisher.shape)
            result.covariance[members[bucket]] = np.einsum("gsisj->gsij", inverse)
        for windows in self.windows:
            stamps = np.zeros((len(windows.members), self.n_bands, windows.side, windows.side), np.float32)
            stamps[:, :, *window_pixels(windows.side)] = windows.light.cpu().numpy()
            for member, stamp in zip(windows.members.tolist(), stamps, strict=True):
                result.windows[members[member]] = (*self.origins[member].tolist(), stamp)


def _number(places: list[IntArray], shape: tuple[int, ...]) -> tuple[IntArray, list[npt.NDArray[np.int32]]]:
    """Number the pixels of a box that are in any window: their y and x, (2, pixel), and the numbers.

    Sources that are fitted as both kinds lie anywhere: what is between them is left out.
    """
    covered = np.zeros(shape, bool)
    for place in places:
        covered.ravel()[place] = True
    pixels = np.stack(np.nonzero(covered))
    number = covered.ravel().astype(np.int32)
    # In place, as the box may be the whole image; from 1 on.
    np.cumsum(number, out=number)
    return pixels, [number[place] - np.int32(1) for place in places]


def _overlap(shift: IntArray, side: int, other: int) -> IntArray:
    """Pixels of windows in other ones from which they are shifted, (pair, pixel); -1 of those outside."""
    rows, columns = window_pixels(other)
    number = np.full((other, other), -1)
    number[rows, columns] = np.arange(len(rows))
    rows, columns = window_pixels(side)
    y, x = shift[:, :1] + rows, shift[:, 1:] + columns
    inside = (y >= 0) & (y < other) & (x >= 0) & (x < other)
    return np.where(inside, number[np.where(inside, y, 0), np.where(inside, x, 0)], -1)


def _buckets(groups: IntArray) -> Iterator[IntArray]:
    """Members of the groups of each size, (group, size)."""
    order = np.argsort(groups, kind="stable")
    numbers, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    for size in np.unique(sizes).tolist():
        yield order[starts[sizes == size][:, None] + np.arange(size)]
