# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The order of parents, isolated sources and children in a catalogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..deblend.parents import Parent


@dataclasses.dataclass(frozen=True, eq=False)
class RecordOrder:
    """Rows of the catalogue of parents, isolated sources and children.

    Parents and isolated sources come first, in the order of `make_parents`,
    then the children of the first parent, of the second, and so on: ids that
    ascend by row leave the catalogue sorted by parent, as
    ``SourceCatalog.getChildren`` wants it.
    """

    source: npt.NDArray[np.int64]
    """Index of the source of each row; -1 for parents."""
    parent: npt.NDArray[np.int64]
    """Index of the entry in the list of parents that the row is or is in."""
    parent_row: npt.NDArray[np.int64]
    """Row of the parent; -1 for parents and isolated sources."""
    n_child: npt.NDArray[np.int64]
    """Number of children."""
    n_member: npt.NDArray[np.int64]
    """Number of sources of the row's parent; 1 for isolated sources."""
    peak_id: npt.NDArray[np.int64]
    """Place among the sources of the parent, from 1; 0 for parents."""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def is_parent(self) -> npt.NDArray[np.bool_]:
        """Rows of parents, bool, (row,)."""
        return self.n_child > 0

    @property
    def is_child(self) -> npt.NDArray[np.bool_]:
        """Rows of children, bool, (row,)."""
        return self.parent_row >= 0

    def spread(self, values: npt.NDArray[Any], of_parents: float | bool) -> npt.NDArray[Any]:
        """Make a column (row,) of the values of the sources, (source,), and another one for parents."""
        rows = np.full(len(self), of_parents, dtype=values.dtype)
        has_source = self.source >= 0
        rows[has_source] = values[self.source[has_source]]
        return rows


def order_records(parents: Sequence[Parent]) -> RecordOrder:
    """Lay the parents of `make_parents`, isolated sources and children out in rows."""
    size = np.array([len(parent) for parent in parents], dtype=np.int64)
    first = np.array([parent.members[0] for parent in parents], dtype=np.int64)
    blended = np.flatnonzero(size > 1)
    owner = np.repeat(blended, size[blended])
    children = [parents[index].members for index in blended.tolist()]
    none = np.zeros(0, dtype=np.int64)
    places = [np.arange(1, n + 1) for n in size[blended]]
    return RecordOrder(
        source=np.concatenate([np.where(size > 1, -1, first), *children]).astype(np.int64),
        parent=np.concatenate([np.arange(len(parents)), owner]).astype(np.int64),
        parent_row=np.concatenate([np.full(len(parents), -1), owner]).astype(np.int64),
        n_child=np.concatenate([np.where(size > 1, size, 0), np.zeros(len(owner))]).astype(np.int64),
        n_member=np.concatenate([size, size[owner]]).astype(np.int64),
        peak_id=np.concatenate([np.where(size > 1, 0, 1), *places, none]).astype(np.int64),
    )
