# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where training scenes come from."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .training_scene import TrainingScene, read_scene


@runtime_checkable
class SceneSource(Protocol):
    """Where scenes come from, by number."""

    @property
    def endless(self) -> bool:
        """Whether every number has a scene of its own (`bool`).

        Otherwise there are as many as the length says.
        """

    def __len__(self) -> int:
        """Return the number of scenes in an epoch."""

    def scene(self, number: int) -> TrainingScene:
        """Return a scene, always the same for a number.

        Parameters
        ----------
        number : `int`
            From 0.

        Returns
        -------
        scene : `TrainingScene`
        """

    def expect(self, numbers: Sequence[int]) -> None:
        """Start to make scenes that will be needed soon.

        Parameters
        ----------
        numbers : `~collections.abc.Sequence` [`int`]
            Their numbers.
        """

    def name(self, number: int) -> str:
        """Return the name of a scene for messages.

        Parameters
        ----------
        number : `int`
            Of the scene.

        Returns
        -------
        name : `str`
        """

    def describe(self) -> dict[str, Any]:
        """Describe what decides the scenes.

        Returns
        -------
        description : `dict`
            Plain values.
        """


class _FixedScenes:
    """Scenes of which there is a fixed number, at hand at any time."""

    endless = False
    """Whether every number has a scene of its own (`bool`)."""

    def expect(self, numbers: Sequence[int]) -> None:
        """Do nothing: these scenes need not be made.

        Parameters
        ----------
        numbers : `~collections.abc.Sequence` [`int`]
            Not used.
        """


class SceneFiles(_FixedScenes):
    """Scenes on disk.

    Parameters
    ----------
    paths : `~collections.abc.Iterable` [`os.PathLike`]
        Files of `write_scene`; their order does not matter.

    Raises
    ------
    ValueError
        Raised if there are none.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]):
        self.paths = sorted(Path(path) for path in paths)
        self._digest: str | None = None
        if not self.paths:
            raise ValueError("no training scenes were given; make some first")

    def __len__(self) -> int:
        return len(self.paths)

    def scene(self, number: int) -> TrainingScene:
        """Read a scene.

        Parameters
        ----------
        number : `int`
            Number of the file.

        Returns
        -------
        scene : `TrainingScene`
        """
        return read_scene(self.paths[number])

    def name(self, number: int) -> str:
        """Return the name of a scene for messages.

        Parameters
        ----------
        number : `int`
            Number of the scene.

        Returns
        -------
        name : `str`
        """
        return self.paths[number].stem

    def describe(self) -> dict[str, Any]:
        """Describe the scenes by what they hold.

        Returns
        -------
        description : `dict`
            Their number and a digest of the arrays in them, by the checksums
            that the archives keep of each; no pixel is read.
        """
        if self._digest is None:
            digest = hashlib.sha256()
            for path in self.paths:
                with zipfile.ZipFile(path) as archive:
                    for member in archive.infolist():
                        digest.update(f"{member.filename} {member.file_size} {member.CRC}\n".encode())
            self._digest = digest.hexdigest()[:16]
        return {"kind": "files", "count": len(self.paths), "digest": self._digest}


class SceneList(_FixedScenes):
    """Scenes in memory.

    Parameters
    ----------
    scenes : `~collections.abc.Sequence` [`TrainingScene`]
        The scenes.

    Raises
    ------
    ValueError
        Raised if there are none.
    """

    def __init__(self, scenes: Sequence[TrainingScene]):
        self.scenes = list(scenes)
        if not self.scenes:
            raise ValueError("no training scenes were given; make some first")

    def __len__(self) -> int:
        return len(self.scenes)

    def scene(self, number: int) -> TrainingScene:
        """Return a scene.

        Parameters
        ----------
        number : `int`
            Its place in the list.

        Returns
        -------
        scene : `TrainingScene`
        """
        return self.scenes[number]

    def name(self, number: int) -> str:
        """Return the name of a scene for messages.

        Parameters
        ----------
        number : `int`
            Number of the scene.

        Returns
        -------
        name : `str`
        """
        return f"scene {number}"

    def describe(self) -> dict[str, Any]:
        """Describe the scenes by what they hold.

        Returns
        -------
        description : `dict`
            Their number and a digest of pixels and truth.
        """
        digest = hashlib.sha256()
        for scene in self.scenes:
            for value in vars(scene).values():
                for array in value if isinstance(value, list) else [value]:
                    digest.update(repr(array).encode() if array is None else np.asarray(array).tobytes())
        return {"kind": "memory", "count": len(self.scenes), "digest": digest.hexdigest()[:16]}
