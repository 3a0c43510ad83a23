# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where training scenes come from."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..images.archives import ZipReader
from .training_scene import TrainingScene, read_scene, scene_errors


class SceneSource(ABC):
    """Where scenes come from, by number."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of scenes in an epoch."""

    @abstractmethod
    def scene(self, number: int) -> TrainingScene:
        """Return a scene, always the same for a number."""

    @abstractmethod
    def name(self, number: int) -> str:
        """Return the name of a scene for messages."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe by plain values what decides the scenes."""


class SceneFiles(SceneSource):
    """Scenes on disk, in files of `write_scene`; their order does not matter."""

    def __init__(self, paths: Iterable[str | os.PathLike[str]]):
        self.paths = sorted(Path(path) for path in paths)
        self._digest: str | None = None
        if not self.paths:
            raise ValueError("no training scenes were given; make some first")

    def __len__(self) -> int:
        return len(self.paths)

    def scene(self, number: int) -> TrainingScene:
        """Read a scene."""
        return read_scene(self.paths[number])

    def name(self, number: int) -> str:
        """Return the name of a scene for messages."""
        return self.paths[number].stem

    def describe(self) -> dict[str, Any]:
        """Describe the scenes by the checksums in their files; no pixel is read."""
        if self._digest is None:
            digest = hashlib.sha256()
            for path in self.paths:
                with scene_errors(path), ZipReader(path) as reader:
                    for member in reader.members:
                        digest.update(f"{member.filename} {member.file_size} {member.CRC}\n".encode())
            self._digest = digest.hexdigest()[:16]
        return {"kind": "files", "count": len(self.paths), "digest": self._digest}
