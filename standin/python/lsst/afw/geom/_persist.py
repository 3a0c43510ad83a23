# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""World coordinate systems as archives hold them.

An archive holds ``1 SkyWcs 0`` (version, class, whether a FITS approximation
follows) and the AST dump of a FrameSet with the frames PIXELS, IWC
(intermediate world coordinates) and SKY.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lsst.daf.base import PropertyList
from lsst.pex.exceptions import TypeError

from ._ast import AstError, AstObject, apply_mapping, matrix_of, new_mapping, parse_ast, polynomials_of
from ._sky_wcs import SkyWcs
from ._wcs_mappings import AstPixels, LinearPixels, PixelMapping, SipPixels, SkyProjection

__all__ = ["wcs_from_archive_string", "wcs_from_old_records", "wcs_to_archive_string"]

_PROJECTION_NAMES = {
    "TAN": "gnomonic",
    "STG": "stereographic",
    "SIN": "orthographic",
    "ARC": "zenithal equidistant",
    "ZEA": "zenithal equal area",
}

_FRAMES = """\
 Begin FrameSet
#   Title = "ICRS coordinates; {name} projection"
#   Naxes = 2
#   Domain = "SKY"
#   Epoch = 2000
#   Lbl1 = "Right ascension"
#   Lbl2 = "Declination"
#   System = "ICRS"
#   Uni1 = "hh:mm:ss.s"
#   Uni2 = "ddd:mm:ss"
#   Dir1 = 0
#   Bot2 = -1.5707963267948966
#   Top2 = 1.5707963267948966
 IsA Frame
    Nframe = 3
#   Base = 1
    Currnt = 3
    Lnk2 = 1
    Lnk3 = 2
    Frm1 =
       Begin Frame
#         Title = "2-d coordinate system"
          Naxes = 2
          Domain = "PIXELS"
#         Lbl1 = "Axis 1"
#         Lbl2 = "Axis 2"
          Ax1 =
             Begin Axis
             End Axis
          Ax2 =
             Begin Axis
             End Axis
       End Frame
    Frm2 =
       Begin Frame
          Title = "FITS Intermediate World Coordinates"
          Naxes = 2
          Domain = "IWC"
#         Lbl1 = "Axis 1"
#         Lbl2 = "Axis 2"
#         Uni1 = "deg"
#         Uni2 = "deg"
          Ax1 =
             Begin Axis
                Unit = "deg"
             End Axis
          Ax2 =
             Begin Axis
                Unit = "deg"
             End Axis
       End Frame
    Frm3 =
       Begin SkyFrame
          Ident = " "
       IsA Object
#         Title = "ICRS coordinates; {name} projection"
          Naxes = 2
#         Domain = "SKY"
#         Epoch = 2000
#         Lbl1 = "Right ascension"
#         Lbl2 = "Declination"
          System = "ICRS"
          AlSys = "ICRS"
#         Uni1 = "hh:mm:ss.s"
#         Uni2 = "ddd:mm:ss"
#         Dir1 = 0
#         Bot2 = -1.5707963267948966
#         Top2 = 1.5707963267948966
          Ax1 =
             Begin SkyAxis
             End SkyAxis
          Ax2 =
             Begin SkyAxis
             End SkyAxis
       IsA Frame
          Proj = "{name}"
#         SkyTol = 0.001
          SRefIs = "Ignored"
          SRef1 = {lon:.17g}
          SRef2 = {lat:.17g}
       End SkyFrame
    Map2 =
{map2}
    Map3 =
{map3}
 End FrameSet
"""


def wcs_to_archive_string(wcs: SkyWcs) -> str:
    """Return the text of a coordinate system as upstream writes it.

    Parameters
    ----------
    wcs : `SkyWcs`
        The system. One that was read and not changed gives its own text.
    """
    if wcs._text is not None:
        return wcs._text
    lon, lat = wcs._origin
    body = _FRAMES.format(
        name=_PROJECTION_NAMES[wcs._sky.name],
        lon=lon,
        lat=lat,
        map2="\n".join(_dump_pixels(wcs._pixels).write(7)),
        map3="\n".join(_dump_sky(wcs._sky).write(7)),
    )
    wcs._text = f"1 SkyWcs {int(wcs.hasFitsApproximation())} {body}"
    return wcs._text


def _compound(a: AstObject, b: AstObject, *, invert_a: bool = False, **head: int) -> AstObject:
    new = AstObject("CmpMap").add("Nin", head.pop("Nin", 2))
    for key, value in head.items():
        new.add(key, value)
    new.is_a("Mapping")
    if invert_a:
        new.add("InvA", 1)
    return new.add("MapA", a).add("MapB", b)


def _window(shift: np.ndarray, scale: np.ndarray | None = None) -> AstObject:
    new = new_mapping("WinMap")
    for i in range(2):
        new.add(f"Sft{i + 1}", float(shift[i]))
        if scale is not None:
            new.add(f"Scl{i + 1}", float(scale[i]))
    return new


def _matrix(matrix: np.ndarray, inverse: np.ndarray) -> AstObject:
    new = new_mapping("MatrixMap", matrix.shape[0])
    for prefix, values in (("M", matrix), ("IM", inverse)):
        for i, value in enumerate(values.ravel().tolist()):
            new.add(f"{prefix}{i}", value)
    return new.add("Form", "Full")


def _dump_pixels(pixels: PixelMapping) -> AstObject:
    """Return the mapping of PIXELS to IWC."""
    if isinstance(pixels, SipPixels):
        matrix = _matrix(pixels.cd, np.linalg.inv(pixels.cd))
        return _compound(_window(-pixels.crpix), _compound(_sip_polynomial(pixels), matrix))
    if isinstance(pixels, LinearPixels):
        diagonal = pixels.cd[0, 1] == 0.0 and pixels.cd[1, 0] == 0.0
        if diagonal:
            scale = np.diag(pixels.cd)
            return _simplified(_window(-pixels.crpix * scale, scale))
        # AST keeps the size of each row apart from its direction.
        scale = np.hypot(pixels.cd[:, 0], pixels.cd[:, 1])
        rotation = pixels.cd / scale[:, None]
        shift = scale * (rotation @ -pixels.crpix)
        return _simplified(_compound(_matrix(rotation, np.linalg.inv(rotation)), _window(shift, scale)))
    if not isinstance(pixels, AstPixels):
        raise TypeError(f"Cannot write a {type(pixels).__name__}.")
    (mapping, upright), *rest = reversed(pixels.chain)
    result = mapping if upright else _compound(mapping, new_mapping("UnitMap"), invert_a=True)
    for mapping, upright in rest:
        result = _compound(mapping, result, invert_a=not upright)
    return _compound(_window(-pixels.offset), result)


def _simplified(mapping: AstObject) -> AstObject:
    """Mark a mapping as one that AST cannot make simpler."""
    mapping.items["IsSimp"] = "1"
    mapping.parts.insert(1, "IsSimp")
    return mapping


def _sip_polynomial(pixels: SipPixels) -> AstObject:
    new = new_mapping("PolyMap")
    _add_polynomials(new, "F", (pixels.a, pixels.b))
    if pixels.ap is not None and pixels.bp is not None:
        _add_polynomials(new, "I", (pixels.ap, pixels.bp))
        return new
    return new.add("IterInv", 1).add("NiterInv", 30).add("TolInv", 1e-8)


def _add_polynomials(new: AstObject, suffix: str, terms: tuple[np.ndarray, np.ndarray]) -> None:
    """Add u + A(u, v) and v + B(u, v) to a PolyMap."""
    full = []
    for axis, values in enumerate(terms):
        size = max(2, values.shape[0])
        padded = np.zeros((size, size))
        padded[: values.shape[0], : values.shape[1]] = values
        padded[(1, 0) if axis == 0 else (0, 1)] += 1.0
        powers = np.argwhere(padded != 0.0)
        full.append((powers, padded[tuple(powers.T)]))
    powers = np.concatenate([p for p, _ in full])
    for i in range(2):
        new.add(f"MP{suffix}{i + 1}", int(powers[:, i].max()))
    for i, (part, _) in enumerate(full):
        new.add(f"NC{suffix}{i + 1}", len(part))
    for i, value in enumerate(np.concatenate([v for _, v in full]).tolist()):
        new.add(f"C{suffix}{i + 1}", value)
    for i, value in enumerate(powers.ravel().tolist()):
        new.add(f"P{suffix}{i + 1}", value)


def _sphere(pole: float | None, *, inverted: bool) -> AstObject:
    new = AstObject("SphMap").add("Nin", 3).add("Nout", 2)
    if inverted:
        new.add("Invert", 1)
    new.is_a("Mapping").add("UntRd", 1)
    return new.add("PlrLg", 0 if pole is None else pole)


def _dump_sky(sky: SkyProjection) -> AstObject:
    """Return the mapping of IWC to SKY.

    It is the inverse of: sky to unit vectors, a rotation to the native
    sphere of the projection, the projection, radians to degrees.
    """
    lon = float(np.arctan2(sky.basis[0, 1], sky.basis[0, 0]) % (2.0 * np.pi))
    # The native x axis points South, y East and z at the tangent point.
    rotation = np.stack([-sky.basis[2], sky.basis[1], sky.basis[0]], axis=1) + 0.0
    plane = AstObject("WcsMap").add("Nin", 2).add("Invert", 1).is_a("Mapping").add("Type", sky.name)
    zoom = new_mapping("ZoomMap").add("Zoom", 57.295779513082323)
    projected = _compound(_sphere(None, inverted=True), _compound(plane, zoom), Nin=3, Nout=2)
    native = _compound(_matrix(rotation, rotation.T), projected, invert_a=True, Nin=3, Nout=2)
    down = _compound(_sphere(lon, inverted=False), native, invert_a=True, Invert=1)
    return _compound(down, _simplified(new_mapping("UnitMap")), invert_a=True)


# Reading --------------------------------------------------------------------


def wcs_from_archive_string(text: str | bytes) -> SkyWcs:
    """Make a coordinate system of the text of an archive.

    Parameters
    ----------
    text : `str` or `bytes`
        As `wcs_to_archive_string` or upstream wrote it.

    Returns
    -------
    wcs : `SkyWcs`
        The system; it keeps the text.

    Raises
    ------
    lsst.pex.exceptions.TypeError
        Raised if the text is no SkyWcs, is damaged, or holds a mapping that
        is not known here.
    """
    if isinstance(text, bytes):
        text = text.decode("ascii", errors="replace")
    fields = text.split(None, 3)
    if len(fields) < 4 or fields[0] != "1":
        raise TypeError(f"Unsupported version {fields[0] if fields else ''}")
    if fields[1] != "SkyWcs":
        raise TypeError(f"Class name in stream {fields[1]} != SkyWcs")
    try:
        pixels, sky, origin = _read_frame_set(parse_ast(fields[3]))
    except (AstError, ValueError) as error:
        raise TypeError(f"Cannot read the AST dump of a SkyWcs: {error}") from error
    return SkyWcs._make(pixels, sky, text=text, origin=origin)


def _read_frame_set(root: AstObject) -> tuple[PixelMapping, SkyProjection, tuple[float, float] | None]:
    if root.name != "FrameSet":
        raise AstError(f"The AST serialization was read as a {root.name} instead of a FrameSet")
    n = root.integer("Nframe", 1)
    domains = {}
    for i in range(1, n + 1):
        frame = root.child(f"Frm{i}")
        domains["SKY" if frame.name == "SkyFrame" else frame.text("Domain")] = i
    if not {"PIXELS", "IWC", "SKY"} <= set(domains):
        raise AstError(f"The frames are {sorted(domains)}; PIXELS, IWC and SKY are wanted.")
    chain = _chain(root, root.integer("Base", 1), domains["IWC"])
    pixels = _simplify(chain)
    sky_frame = root.child(f"Frm{domains['SKY']}")
    system = sky_frame.text("System", "ICRS")
    if system != "ICRS":
        raise AstError(f"The sky frame is {system}; ICRS is wanted.")
    sky = _read_projection(_chain(root, domains["IWC"], domains["SKY"]))
    if isinstance(pixels, LinearPixels) and sky.basis[1, 2] != 0.0:
        sky, rotation = sky.upright()
        pixels = dataclasses.replace(pixels, cd=rotation @ pixels.cd)
    origin = None
    if "SRef1" in sky_frame.items:
        origin = (sky_frame.number("SRef1"), sky_frame.number("SRef2"))
    return pixels, sky, origin


_Chain = list[tuple[AstObject, bool]]


def _chain(root: AstObject, start: int, end: int) -> _Chain:
    """Return the mappings from one frame to another."""

    def up(index: int) -> list[int]:
        # Lnk names the node that a node's mapping comes from.
        path = [index]
        while path[-1] != 1:
            path.append(root.integer(f"Lnk{path[-1]}", 1))
        return path

    def step(index: int) -> tuple[AstObject, bool]:
        return root.child(f"Map{index}"), root.integer(f"Inv{index}") == 0

    start, end = (root.integer(f"Node{i}", i) for i in (start, end))
    from_start, from_end = up(start), up(end)
    common = next(i for i in from_start if i in from_end)
    back = [(m, not upright) for m, upright in map(step, from_start[: from_start.index(common)])]
    return back + [step(i) for i in reversed(from_end[: from_end.index(common)])]


def _affine(mapping: AstObject, forward: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Return matrix and offset of a mapping, or `None` if not linear."""
    if mapping.name == "CmpMap":
        parts = [
            _affine(mapping.child("Map" + k), (mapping.integer("Inv" + k) == 0) == forward) for k in "AB"
        ]
        if parts[0] is None or parts[1] is None:
            return None
        if mapping.integer("Series", 1):
            (m1, o1), (m2, o2) = parts if forward else parts[::-1]  # type: ignore[misc]
            return m2 @ m1, m2 @ o1 + o2
        n = parts[0][0].shape[0] + parts[1][0].shape[0]
        matrix = np.zeros((n, n))
        k = parts[0][0].shape[0]
        matrix[:k, :k], matrix[k:, k:] = parts[0][0], parts[1][0]
        return matrix, np.concatenate([parts[0][1], parts[1][1]])
    n = mapping.integer("Nin", 2)
    if mapping.name == "MatrixMap" and mapping.integer("Nout", n) == n:
        matrix, offset = matrix_of(mapping, n), np.zeros(n)
    elif mapping.name in ("WinMap", "ShiftMap"):
        matrix = np.diag([mapping.number(f"Scl{i + 1}", 1.0) for i in range(n)])
        offset = np.array([mapping.number(f"Sft{i + 1}") for i in range(n)])
    elif mapping.name in ("ZoomMap", "UnitMap"):
        matrix, offset = np.eye(n) * mapping.number("Zoom", 1.0), np.zeros(n)
    else:
        return None
    if forward:
        return matrix, offset
    inverse = np.linalg.inv(matrix)
    return inverse, -inverse @ offset


def _simplify(chain: _Chain) -> PixelMapping:
    """Return a linear or SIP map where the mappings are one."""
    flat = _flatten(chain)
    joined: list[tuple[np.ndarray, np.ndarray] | tuple[AstObject, bool]] = []
    linear: tuple[np.ndarray, np.ndarray] | None = None
    for mapping, forward in flat:
        part = _affine(mapping, forward)
        if part is None:
            if linear is not None:
                joined.append(linear)
            linear = None
            joined.append((mapping, forward))
        elif linear is None:
            linear = part
        else:
            linear = (part[0] @ linear[0], part[0] @ linear[1] + part[1])
    if linear is not None:
        joined.append(linear)
    if all(isinstance(p[0], np.ndarray) for p in joined):
        matrix, offset = joined[0] if joined else (np.eye(2), np.zeros(2))
        return LinearPixels(-np.linalg.solve(matrix, offset), matrix)  # type: ignore[arg-type]
    # A SIP distortion: shift, polynomial, matrix without shift.
    if len(joined) == 3 and isinstance(joined[1][0], AstObject):
        poly, upright = joined[1]
        before, after = joined[0], joined[2]
        if (
            isinstance(poly, AstObject)
            and poly.name == "PolyMap"
            and upright
            and np.array_equal(np.asarray(before[0]), np.eye(2))
            and np.array_equal(np.asarray(after[1]), np.zeros(2))
        ):
            sip = _read_sip(poly)
            if sip is not None:
                return SipPixels(-np.asarray(before[1]), np.asarray(after[0]), *sip)
    return AstPixels(tuple(chain), np.zeros(2))


def _flatten(chain: _Chain) -> _Chain:
    """Take serial compounds apart."""
    result: _Chain = []
    for mapping, forward in chain:
        if mapping.name == "CmpMap" and mapping.integer("Series", 1):
            parts = [(mapping.child("Map" + k), (mapping.integer("Inv" + k) == 0) == forward) for k in "AB"]
            result.extend(_flatten(parts if forward else parts[::-1]))
        else:
            result.append((mapping, forward))
    return result


_SipTerms = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]


def _read_sip(poly: AstObject) -> _SipTerms | None:
    """Return the SIP terms of a polynomial of the plane, if it is one."""
    if poly.integer("Nin", 2) != 2 or poly.integer("Nout", 2) != 2:
        return None
    result: list[np.ndarray] = []
    both = not poly.integer("IterInv") and poly.integer("NCI1") > 0
    for suffix in "FI" if both else "F":
        for axis, (powers, values) in enumerate(polynomials_of(poly, suffix)):
            order = int(powers.sum(axis=1).max(initial=1))
            if order > 9:
                return None
            terms = np.zeros((order + 1, order + 1))
            terms[tuple(powers.T)] = values
            terms[(1, 0) if axis == 0 else (0, 1)] -= 1.0
            result.append(terms)
    return (result[0], result[1], result[2], result[3]) if both else (result[0], result[1], None, None)


def _find(chain: _Chain, name: str) -> AstObject | None:
    for mapping, _ in chain:
        if mapping.name == name:
            return mapping
        children = [v for v in mapping.items.values() if isinstance(v, AstObject)]
        found = _find([(c, True) for c in children], name)
        if found is not None:
            return found
    return None


def _read_projection(chain: _Chain) -> SkyProjection:
    """Return the projection that a chain of IWC to SKY amounts to."""
    projection = _find(chain, "WcsMap")
    if projection is None:
        raise AstError("The map of the plane to the sky holds no projection.")
    name = projection.text("Type")
    # The centre and two points one degree away fix the basis.
    plane = np.array([[0.0, 1.0, 0.0, 0.3], [0.0, 0.0, 1.0, -0.7]])
    points = plane
    for mapping, forward in chain:
        points = apply_mapping(mapping, points, forward)
    lon, lat = points
    vectors = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    rows = [vectors[0]]
    for v in vectors[1:3]:
        tangent = v - (v @ vectors[0]) * vectors[0]
        rows.append(tangent / np.linalg.norm(tangent))
    basis = np.stack(rows)
    # With North up the directions follow from the position, free of rounding.
    upright = SkyProjection.at(float(lon[0]), float(lat[0]), name)
    sky = upright if np.allclose(upright.basis, basis, rtol=0, atol=1e-13) else SkyProjection(basis, name)
    again = np.stack(sky.to_sky(plane))
    difference = (again - np.stack([lon, lat]) + np.pi) % (2.0 * np.pi) - np.pi
    if not np.all(np.abs(difference * np.array([np.cos(lat), np.ones(4)])) < 1e-12):
        raise AstError("The map of the plane to the sky is not a zenithal projection.")
    return sky


def wcs_from_old_records(record: Any, sip: Any = None) -> SkyWcs:
    """Make a system of the records of afw before 2018 (``TanWcs``).

    Parameters
    ----------
    record : mapping of `str`
        ``crval`` (degrees), ``crpix`` (counted from 0), ``cd`` (4), ``ctype1``,
        ``ctype2``, ``equinox``, ``radesys``, ``cunit1``, ``cunit2``.
    sip : mapping of `str`, optional
        ``A``, ``B``, ``Ap``, ``Bp``: square matrices, as flat arrays in
        column order.
    """
    metadata = PropertyList()
    for i in range(2):
        metadata.set(f"CRVAL{i + 1}", float(_pair(record, "crval", i)))
        metadata.set(f"CRPIX{i + 1}", float(_pair(record, "crpix", i)) + 1.0)
        ending = "" if sip is None or str(record[f"ctype{i + 1}"]).endswith("-SIP") else "-SIP"
        metadata.set(f"CTYPE{i + 1}", str(record[f"ctype{i + 1}"]).strip() + ending)
        metadata.set(f"CUNIT{i + 1}", str(record[f"cunit{i + 1}"]).strip())
    # Eigen writes matrices column by column.
    cd = np.asarray(record["cd"], dtype=float).reshape(2, 2).T
    for i in range(2):
        for j in range(2):
            metadata.set(f"CD{i + 1}_{j + 1}", float(cd[i, j]))
    metadata.set("EQUINOX", float(record["equinox"]))
    metadata.set("RADESYS", str(record["radesys"]).strip() or "ICRS")
    for name, key in (("A", "A"), ("B", "B"), ("AP", "Ap"), ("BP", "Bp")):
        if sip is None:
            break
        values = np.asarray(sip[key], dtype=float)
        size = round(values.size**0.5)
        terms = values.reshape(size, size).T
        metadata.set(f"{name}_ORDER", size - 1)
        for i, j in np.argwhere(terms != 0.0).tolist():
            metadata.set(f"{name}_{i}_{j}", float(terms[i, j]))
    return SkyWcs(metadata)


def _pair(record: Any, name: str, index: int) -> float:
    """Return an element of a point that is one array or two fields."""
    try:
        value = record[name]
    except KeyError:
        return float(record[f"{name}_{'xy'[index]}"])
    return float(value[index])
