# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read, evaluate and write the text form of AST objects.

AST (Warren-Smith & Berry, Starlink SUN/211) dumps an object as lines between
``Begin Class`` and ``End Class``: items ``Name = value``, nested objects
after ``Name =``, and lines with ``#`` for values that are defaults. Only the
mappings that world coordinate systems of images are made of are known here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = ["AstError", "AstObject", "apply_mapping", "parse_ast"]


class AstError(ValueError):
    """A dump is damaged, or holds an object that is not known here."""


@dataclasses.dataclass
class AstObject:
    """An object of a dump.

    Parameters
    ----------
    name : `str`
        Class, such as ``CmpMap``.
    items : `dict`
        Values (`str`) and nested objects by name.
    parts : `list`
        Names of the items in order, and the ``IsA`` lines between them.
    """

    name: str
    items: dict[str, Any] = dataclasses.field(default_factory=dict)
    parts: list[str] = dataclasses.field(default_factory=list)

    def add(self, key: str, value: Any) -> AstObject:
        """Append an item: a nested object, a quoted string or a number."""
        if isinstance(value, str):
            self.items[key] = f'"{value}"'
        elif isinstance(value, float):
            self.items[key] = f"{value:.17g}"
        else:
            self.items[key] = value if isinstance(value, AstObject) else str(value)
        self.parts.append(key)
        return self

    def is_a(self, name: str) -> AstObject:
        """Close the section of a base class."""
        self.parts.append("IsA " + name)
        return self

    def write(self, indent: int) -> list[str]:
        """Return the lines of the dump."""
        pad = " " * indent
        lines = [f"{pad}Begin {self.name}"]
        for part in self.parts:
            if part.startswith("IsA "):
                lines.append(pad + part)
                continue
            value = self.items[part]
            if isinstance(value, AstObject):
                lines.append(f"{pad}   {part} =")
                lines.extend(value.write(indent + 6))
            else:
                lines.append(f"{pad}   {part} = {value}")
        return [*lines, f"{pad}End {self.name}"]

    def number(self, key: str, default: float = 0.0) -> float:
        """Return a float item."""
        return float(self.items.get(key, default))

    def integer(self, key: str, default: int = 0) -> int:
        """Return an integer item."""
        return int(float(self.items.get(key, default)))

    def text(self, key: str, default: str = "") -> str:
        """Return a string item."""
        return str(self.items.get(key, default)).strip('"').strip()

    def child(self, key: str) -> AstObject:
        """Return a nested object."""
        value = self.items.get(key)
        if not isinstance(value, AstObject):
            raise AstError(f"The AST {self.name} lacks its {key}.")
        return value


def new_mapping(name: str, n_in: int = 2) -> AstObject:
    """Start a mapping; what its class adds comes after."""
    return AstObject(name).add("Nin", n_in).is_a("Mapping")


_ITEM = re.compile(r"^(\w+)\s*=\s*(.*)$")


def parse_ast(text: str) -> AstObject:
    """Parse the dump of one object.

    Parameters
    ----------
    text : `str`
        The dump, from ``Begin`` to ``End``.

    Raises
    ------
    AstError
        Raised if the text is not a dump, or ends too early.
    """
    lines = (line.strip() for line in text.splitlines())
    lines = (line for line in lines if line and not line.startswith("#"))
    first = next(lines, "")
    if not first.startswith("Begin "):
        raise AstError(f"An AST object starts with 'Begin', not with {first[:40]!r}.")
    return _parse_object(first.split()[1], lines)


def _parse_object(name: str, lines: Iterator[str]) -> AstObject:
    new = AstObject(name)
    for line in lines:
        if line.startswith("End "):
            return new
        if line.startswith("IsA "):
            new.parts.append(line)
            continue
        match = _ITEM.match(line)
        if match is None:
            raise AstError(f"Cannot read the line {line!r} of an AST {name}.")
        key, value = match[1], match[2].strip()
        new.parts.append(key)
        if value.startswith('"'):
            # A comment may follow the closing quote.
            new.items[key] = value[: value.rfind('"') + 1]
        elif value:
            new.items[key] = value.split("#")[0].strip()
        else:
            begin = next(lines, "")
            if not begin.startswith("Begin "):
                raise AstError(f"Item {key} of an AST {name} has no object.")
            new.items[key] = _parse_object(begin.split()[1], lines)
    raise AstError(f"The AST {name} has no end.")


# Evaluation -----------------------------------------------------------------


def apply_mapping(mapping: AstObject, points: np.ndarray, forward: bool = True) -> np.ndarray:
    """Send points through a mapping.

    Parameters
    ----------
    mapping : `AstObject`
        The mapping, taken as not inverted as a whole.
    points : `numpy.ndarray`, shape (n_axes, N)
        Positions.
    forward : `bool`, optional
        Direction.

    Returns
    -------
    points : `numpy.ndarray`, shape (n_axes, N)
        Positions on the other side.

    Raises
    ------
    AstError
        Raised if the mapping is of a class that is not known here.
    """
    function = _MAPPINGS.get(mapping.name)
    if function is None:
        raise AstError(f"An AST mapping of class {mapping.name} is not known here.")
    return function(mapping, points, forward)


def _cmp_map(m: AstObject, p: np.ndarray, forward: bool) -> np.ndarray:
    # A compound ignores how its parts were inverted on their own.
    parts = [(m.child("MapA"), m.integer("InvA") == 0), (m.child("MapB"), m.integer("InvB") == 0)]
    if m.integer("Series", 1):
        for part, upright in parts if forward else parts[::-1]:
            p = apply_mapping(part, p, upright == forward)
        return p
    first, upright = parts[0]
    n = _n_axes(first, upright == forward)
    return np.concatenate(
        [
            apply_mapping(first, p[:n], upright == forward),
            apply_mapping(parts[1][0], p[n:], parts[1][1] == forward),
        ],
        axis=0,
    )


def _n_axes(m: AstObject, forward: bool) -> int:
    n_in = m.integer("Nin", 2)
    # Nin and Nout are written as seen with the object's own Invert.
    n_out = m.integer("Nout", n_in)
    return n_in if forward == (m.integer("Invert") == 0) else n_out


def _win_map(m: AstObject, p: np.ndarray, forward: bool) -> np.ndarray:
    shift = np.array([m.number(f"Sft{i + 1}") for i in range(p.shape[0])])[:, None]
    scale = np.array([m.number(f"Scl{i + 1}", 1.0) for i in range(p.shape[0])])[:, None]
    return p * scale + shift if forward else (p - shift) / scale


def _zoom_map(m: AstObject, p: np.ndarray, forward: bool) -> np.ndarray:
    zoom = m.number("Zoom", 1.0)
    return p * zoom if forward else p / zoom


def _matrix_map(m: AstObject, p: np.ndarray, forward: bool) -> np.ndarray:
    matrix = matrix_of(m, p.shape[0])
    return matrix @ p if forward else np.linalg.solve(matrix, p)


def matrix_of(m: AstObject, n: int) -> np.ndarray:
    """Return the matrix of a square MatrixMap."""
    form = m.text("Form", "Full")
    if form == "Unit":
        return np.eye(n)
    if form == "Diagonal":
        return np.diag([m.number(f"M{i}") for i in range(n)])
    return np.array([[m.number(f"M{n * i + j}") for j in range(n)] for i in range(n)])


def _unit_map(m: AstObject, p: np.ndarray, forward: bool) -> np.ndarray:
    return p


def _sph_map(m: AstObject, p: np.ndarray, forward: bool) -> np.ndarray:
    if not forward:
        lon, lat = p
        return np.stack([np.cos(lon) * np.cos(lat), np.sin(lon) * np.cos(lat), np.sin(lat)])
    x, y, z = p
    at_pole = (x == 0) & (y == 0)
    lon = np.where(at_pole, m.number("PlrLg"), np.arctan2(y, x))
    return np.stack([lon, np.arctan2(z, np.hypot(x, y))])


def zenithal_radius(projection: str, colatitude: np.ndarray) -> np.ndarray:
    """Return the radius in the plane of an angle from the pole.

    Calabretta & Greisen 2002, A&A 395, 1077, section 5.1. All in radians.
    """
    if projection == "TAN":
        # Only the near hemisphere is projected.
        return np.where(colatitude < 0.5 * np.pi, np.tan(colatitude), np.nan)
    if projection == "STG":
        return 2.0 * np.tan(0.5 * colatitude)
    if projection == "SIN":
        return np.where(colatitude <= 0.5 * np.pi, np.sin(colatitude), np.nan)
    if projection == "ARC":
        return colatitude
    if projection == "ZEA":
        return 2.0 * np.sin(0.5 * colatitude)
    raise AstError(f"The projection {projection} is not known here; TAN, STG, SIN, ARC and ZEA are.")


def zenithal_colatitude(projection: str, radius: np.ndarray) -> np.ndarray:
    """Return the angle from the pole of a radius in the plane, in radians."""
    if projection == "TAN":
        return np.arctan(radius)
    if projection == "STG":
        return 2.0 * np.arctan(0.5 * radius)
    if projection == "ARC":
        return radius
    with np.errstate(invalid="ignore"):
        if projection == "SIN":
            return np.arcsin(radius)
        if projection == "ZEA":
            return 2.0 * np.arcsin(0.5 * radius)
    raise AstError(f"The projection {projection} is not known here; TAN, STG, SIN, ARC and ZEA are.")


def _wcs_map(m: AstObject, p: np.ndarray, forward: bool) -> np.ndarray:
    projection = m.text("Type")
    if forward:
        lon, lat = p
        radius = zenithal_radius(projection, 0.5 * np.pi - lat)
        return np.stack([radius * np.sin(lon), -radius * np.cos(lon)])
    x, y = p
    colatitude = zenithal_colatitude(projection, np.hypot(x, y))
    return np.stack([np.arctan2(x, -y), 0.5 * np.pi - colatitude])


def _perm_map(m: AstObject, p: np.ndarray, forward: bool) -> np.ndarray:
    n = _n_axes(m, not forward)
    key = "Out" if forward else "In"
    return np.stack([p[m.integer(f"{key}{i + 1}", i + 1) - 1] for i in range(n)])


def _tran_map(m: AstObject, p: np.ndarray, forward: bool) -> np.ndarray:
    key = "A" if forward else "B"
    return apply_mapping(m.child("Map" + key), p, (m.integer("Inv" + key) == 0) == forward)


def _unit_norm_map(m: AstObject, p: np.ndarray, forward: bool) -> np.ndarray:
    n = p.shape[0] if forward else p.shape[0] - 1
    centre = np.array([m.number(f"Ctr{i + 1}") for i in range(n)])[:, None]
    if not forward:
        return p[:-1] * p[-1:] + centre
    p = p - centre
    norm = np.sqrt((p * p).sum(axis=0, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.concatenate([p / norm, norm])


def polynomials_of(m: AstObject, suffix: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (powers (K, n_in), coefficients (K,)) of each output."""
    n_in = m.integer("Nin", 2)
    n_out = m.integer("Nout", n_in)
    if suffix == "I":
        n_in, n_out = n_out, n_in
    result, coefficient, power = [], 0, 0
    for i in range(n_out):
        count = m.integer(f"NC{suffix}{i + 1}")
        values = np.array([m.number(f"C{suffix}{coefficient + k + 1}") for k in range(count)])
        powers = np.array(
            [[m.integer(f"P{suffix}{power + k * n_in + j + 1}") for j in range(n_in)] for k in range(count)],
            dtype=int,
        ).reshape(count, n_in)
        result.append((powers, values))
        coefficient += count
        power += count * n_in
    return result


def _evaluate(polynomials: list[tuple[np.ndarray, np.ndarray]], p: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            (values[:, None] * np.prod(p[None, :, :] ** powers[:, :, None], axis=1)).sum(axis=0)
            for powers, values in polynomials
        ]
    )


def _poly_map(m: AstObject, p: np.ndarray, forward: bool) -> np.ndarray:
    if forward:
        return _evaluate(polynomials_of(m, "F"), p)
    if not m.integer("IterInv") and m.integer("NCI1"):
        return _evaluate(polynomials_of(m, "I"), p)
    polynomials = polynomials_of(m, "F")
    return invert_numerically(lambda q: _evaluate(polynomials, q), p)


def invert_numerically(
    function: Callable[[np.ndarray], np.ndarray], target: np.ndarray, steps: int = 30
) -> np.ndarray:
    """Solve ``function(p) = target`` with Newton's method.

    Parameters
    ----------
    function : callable
        Map of arrays (n, N) to arrays (n, N), close to linear.
    target : `numpy.ndarray`, shape (n, N)
        Values to reach; also where the search starts.
    steps : `int`, optional
        Most iterations.
    """
    n = target.shape[0]
    p = target.copy()
    for _ in range(steps):
        value = function(p)
        jacobian = np.empty((p.shape[1], n, n))
        for j in range(n):
            # Central differences of low-order polynomials lose little.
            step = np.zeros((n, 1))
            step[j] = 1e-3 * max(1.0, float(np.max(np.abs(p[j]), initial=0.0)))
            jacobian[:, :, j] = ((function(p + step) - function(p - step)) / (2.0 * step[j])).T
        with np.errstate(invalid="ignore"):
            change = np.linalg.solve(jacobian, (target - value).T[..., None])[..., 0].T
        p = p + change
        if not np.any(np.abs(change) > 1e-13 * np.maximum(1.0, np.abs(p))):
            break
    return p


_MAPPINGS: dict[str, Callable[[AstObject, np.ndarray, bool], np.ndarray]] = {
    "CmpMap": _cmp_map,
    "MatrixMap": _matrix_map,
    "PermMap": _perm_map,
    "PolyMap": _poly_map,
    "ShiftMap": _win_map,
    "SphMap": _sph_map,
    "TranMap": _tran_map,
    "UnitMap": _unit_map,
    "UnitNormMap": _unit_norm_map,
    "WcsMap": _wcs_map,
    "WinMap": _win_map,
    "ZoomMap": _zoom_map,
}
