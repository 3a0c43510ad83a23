# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Connections in the forms that several tasks have."""

from __future__ import annotations

import lsst.pipe.base.connectionTypes as cT

SKYMAP = ("skymap",)
PATCH = ("skymap", "tract", "patch")
BAND = (*PATCH, "band")


def deferred_input(
    doc: str,
    name: str,
    storage: str,
    dimensions: tuple[str, ...],
    *,
    multiple: bool = True,
    optional: bool = False,
) -> cT.Input:
    """Make an input that is loaded when it is wanted; an optional one may be missing."""
    return cT.Input(
        doc=doc,
        name=name,
        storageClass=storage,
        dimensions=dimensions,
        multiple=multiple,
        deferLoad=True,
        deferGraphConstraint=optional,
        minimum=0 if optional else 1,
    )


def named_output(
    name: str, doc: str, storage: str = "ArrowAstropy", dimensions: tuple[str, ...] = SKYMAP
) -> cT.Output:
    """Make an output of which the name begins with the template ``outputName``."""
    return cT.Output(doc=doc, name=f"{{outputName}}_{name}", storageClass=storage, dimensions=dimensions)
