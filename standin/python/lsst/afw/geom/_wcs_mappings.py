# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""How pixels map to the plane of projection, and the plane to the sky."""

from __future__ import annotations

import dataclasses

import numpy as np

from ._ast import (
    AstObject,
    apply_mapping,
    invert_numerically,
    zenithal_colatitude,
    zenithal_radius,
)

__all__ = ["AstPixels", "LinearPixels", "PixelMapping", "SipPixels", "SkyProjection"]


class PixelMapping:
    """A map of pixels to intermediate world coordinates in degrees."""

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        """Map pixels (2, N) to the plane."""
        raise NotImplementedError

    def inverse(self, plane: np.ndarray) -> np.ndarray:
        """Map the plane (2, N) to pixels."""
        raise NotImplementedError

    def shifted(self, shift: np.ndarray) -> PixelMapping:
        """Return the map for pixels whose origin moved by ``shift`` (2,)."""
        raise NotImplementedError

    def jacobian(self, pixel: np.ndarray) -> np.ndarray:
        """Return the derivatives (2, 2) at a pixel (2,)."""
        steps = np.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
        plane = self.forward(pixel[:, None] + steps)
        return 0.5 * (plane[:, [0, 2]] - plane[:, [1, 3]])


@dataclasses.dataclass(frozen=True, eq=False)
class LinearPixels(PixelMapping):
    """A matrix about a reference pixel.

    Parameters
    ----------
    crpix : `numpy.ndarray`, shape (2,)
        Reference pixel, counted from 0.
    cd : `numpy.ndarray`, shape (2, 2)
        Degrees per pixel.
    """

    crpix: np.ndarray
    cd: np.ndarray

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        """Map pixels (2, N) to the plane."""
        return self.cd @ (pixels - self.crpix[:, None])

    def inverse(self, plane: np.ndarray) -> np.ndarray:
        """Map the plane (2, N) to pixels."""
        return np.linalg.solve(self.cd, plane) + self.crpix[:, None]

    def shifted(self, shift: np.ndarray) -> PixelMapping:
        """Return the map for pixels whose origin moved by ``shift`` (2,)."""
        return dataclasses.replace(self, crpix=self.crpix + shift)

    def jacobian(self, pixel: np.ndarray) -> np.ndarray:
        """Return the derivatives (2, 2) at a pixel (2,)."""
        return self.cd.copy()


@dataclasses.dataclass(frozen=True, eq=False)
class SipPixels(LinearPixels):
    """A matrix after a polynomial distortion (SIP).

    Shupe et al. 2005, ASPC 347, 491: (u, v) from the reference pixel become
    u + A(u, v), v + B(u, v).

    Parameters
    ----------
    crpix, cd : `numpy.ndarray`
        As in `LinearPixels`.
    a, b : `numpy.ndarray`, shape (order + 1, order + 1)
        Coefficients of u^i v^j at [i, j].
    ap, bp : `numpy.ndarray` or `None`
        Coefficients of the way back, which FITS files have; it is solved for.
    """

    a: np.ndarray
    b: np.ndarray
    ap: np.ndarray | None = None
    bp: np.ndarray | None = None

    def _distort(self, uv: np.ndarray) -> np.ndarray:
        return uv + _polynomial_pair(self.a, self.b, uv)

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        """Map pixels (2, N) to the plane."""
        return self.cd @ self._distort(pixels - self.crpix[:, None])

    def inverse(self, plane: np.ndarray) -> np.ndarray:
        """Map the plane (2, N) to pixels."""
        uv = np.linalg.solve(self.cd, plane)
        # The polynomials of the way back are approximate.
        uv = invert_numerically(self._distort, uv)
        return uv + self.crpix[:, None]

    def jacobian(self, pixel: np.ndarray) -> np.ndarray:
        """Return the derivatives (2, 2) at a pixel (2,)."""
        u, v = pixel - self.crpix
        derivative = np.eye(2)
        for row, c in enumerate((self.a, self.b)):
            i = np.arange(1, c.shape[0])[:, None]
            j = np.arange(1, c.shape[1])[None, :]
            derivative[row, 0] += np.polynomial.polynomial.polyval2d(u, v, c[1:] * i)
            derivative[row, 1] += np.polynomial.polynomial.polyval2d(u, v, c[:, 1:] * j)
        return self.cd @ derivative


def _polynomial_pair(a: np.ndarray, b: np.ndarray, uv: np.ndarray) -> np.ndarray:
    return np.stack([np.polynomial.polynomial.polyval2d(uv[0], uv[1], c) for c in (a, b)])


@dataclasses.dataclass(frozen=True, eq=False)
class AstPixels(PixelMapping):
    """A map as it was read from an AST dump.

    Parameters
    ----------
    chain : `tuple` [`tuple` [`AstObject`, `bool`], ...]
        Mappings and whether each runs forward.
    offset : `numpy.ndarray`, shape (2,)
        Taken from pixels before the first mapping.
    """

    chain: tuple[tuple[AstObject, bool], ...]
    offset: np.ndarray

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        """Map pixels (2, N) to the plane."""
        p = pixels - self.offset[:, None]
        for mapping, upright in self.chain:
            p = apply_mapping(mapping, p, upright)
        return p

    def inverse(self, plane: np.ndarray) -> np.ndarray:
        """Map the plane (2, N) to pixels."""
        p = plane
        for mapping, upright in reversed(self.chain):
            p = apply_mapping(mapping, p, not upright)
        return p + self.offset[:, None]

    def shifted(self, shift: np.ndarray) -> PixelMapping:
        """Return the map for pixels whose origin moved by ``shift`` (2,)."""
        return dataclasses.replace(self, offset=self.offset + shift)


@dataclasses.dataclass(frozen=True, eq=False)
class SkyProjection:
    """A zenithal projection of the plane on the sky.

    Parameters
    ----------
    basis : `numpy.ndarray`, shape (3, 3)
        Unit vectors (ICRS) as rows: the tangent point, the direction of
        x of the plane (East) and of y (North).
    name : `str`
        ``TAN``, ``STG``, ``SIN``, ``ARC`` or ``ZEA``.
    """

    basis: np.ndarray
    name: str = "TAN"

    @classmethod
    def at(cls, lon: float, lat: float, name: str = "TAN") -> SkyProjection:
        """Make a projection about a position in radians, North up."""
        ca, sa, cd, sd = np.cos(lon), np.sin(lon), np.cos(lat), np.sin(lat)
        basis = np.array([[cd * ca, cd * sa, sd], [-sa, ca, 0.0], [-sd * ca, -sd * sa, cd]])
        return cls(basis, name)

    def upright(self) -> tuple[SkyProjection, np.ndarray]:
        """Return the same projection with North up, and the turn to it.

        A zenithal projection does not care about directions, so a rotation
        of the basis about the tangent point can go into the CD matrix.

        Returns
        -------
        sky : `SkyProjection`
            The projection with y of the plane towards North.
        rotation : `numpy.ndarray`, shape (2, 2)
            What takes the old plane to the new one.
        """
        x, y, z = self.basis[0].tolist()
        sky = SkyProjection.at(np.arctan2(y, x), np.arctan2(z, np.hypot(x, y)), self.name)
        return sky, sky.basis[1:] @ self.basis[1:].T

    def to_sky(self, plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map the plane (2, N) in degrees to longitude and latitude."""
        x, y = np.deg2rad(plane)
        if self.name == "TAN":
            vector = self.basis[0][:, None] + self.basis[1][:, None] * x + self.basis[2][:, None] * y
        else:
            radius = np.hypot(x, y)
            angle = zenithal_colatitude(self.name, radius)
            safe = np.where(radius == 0, 1.0, radius)
            vector = self.basis[0][:, None] * np.cos(angle) + np.sin(angle) * (
                self.basis[1][:, None] * (x / safe) + self.basis[2][:, None] * (y / safe)
            )
        lon = np.arctan2(vector[1], vector[0])
        lon = np.where(lon < 0, lon + 2.0 * np.pi, lon)
        return lon, np.arctan2(vector[2], np.hypot(vector[0], vector[1]))

    def to_plane(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Map longitude and latitude to the plane (2, N) in degrees."""
        vector = np.stack([np.cos(lon) * np.cos(lat), np.sin(lon) * np.cos(lat), np.sin(lat)])
        z, x, y = self.basis @ vector
        if self.name == "TAN":
            with np.errstate(divide="ignore", invalid="ignore"):
                plane = np.where(z > 0, np.stack([x, y]) / z, np.nan)
            return np.rad2deg(plane)
        sine = np.hypot(x, y)
        radius = zenithal_radius(self.name, np.arctan2(sine, z))
        safe = np.where(sine == 0, 1.0, sine)
        return np.rad2deg(np.stack([x, y]) * (radius / safe))
