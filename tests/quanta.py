# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Quanta of the deblending task, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lsst.pipe.base.testUtils as pipelineTests
from lsst.daf.butler import Butler, DataCoordinate, DatasetType, Quantum
from lsst.pipe.base import PipelineTask


def make_quantum(
    task: PipelineTask, butler: Butler, data_id: DataCoordinate, refs: Mapping[str, Any]
) -> Quantum:
    """Make a quantum without a sky map; ``makeQuantum`` knows no optional inputs that are single."""
    kind = DatasetType("skyMap", ("skymap",), "SkyMap", universe=butler.dimensions)
    butler.registry.registerDatasetType(kind)
    given = {**refs, "skyMap": data_id.subset(kind.dimensions)}
    quantum = pipelineTests.makeQuantum(task, butler, data_id, given)
    inputs = {**quantum.inputs, kind: ()}
    return Quantum(taskClass=type(task), dataId=quantum.dataId, inputs=inputs, outputs=quantum.outputs)
