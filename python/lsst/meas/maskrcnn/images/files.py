# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that are there whole or not at all, and what others put into them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_LOG = logging.getLogger(__name__)

_MOST_OBJECTS, _MOST_LEVELS = 1_000_000, 100
"""Lists and objects in a JSON document, and levels of them; an empty one takes 60 bytes for two of text."""

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse_json(text: bytes) -> Any:
    """Parse JSON that need not be of good will; too deep or too large a one is a ValueError, too."""
    brackets = np.frombuffer(text.translate(None, _NO_BRACKETS), np.uint8)
    if brackets.size > 2 * _MOST_OBJECTS:
        raise ValueError(f"{brackets.size} brackets, at most {2 * _MOST_OBJECTS} are read")
    opens = (brackets == ord("[")) | (brackets == ord("{"))
    # Brackets in texts count as well, but come in pairs.
    if (levels := np.cumsum(2 * opens.astype(np.int64) - 1).max(initial=0)) > _MOST_LEVELS:
        raise ValueError(f"lists and objects are nested {levels} deep, at most {_MOST_LEVELS} are read")
    return json.loads(text)


def one_line(error: object, width: int = 300) -> str:
    """Put a message, or that of an exception, into one line of at most ``width`` characters."""
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[BinaryIO]:
    """Hold a file of this name, made for it and empty, that only one process can hold at a time.

    At the end the file is removed, unless it was renamed. A file that a killed process left holds nobody up.
    A BlockingIOError is raised if another process holds it, without ``wait``.
    """
    while True:
        # This does not empty the file of another process.
        stream = path.open("ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            stream.close()
            raise
        except OSError as error:
            _LOG.debug("%s cannot be locked on this file system: %s", path, error)
        # The process that held it may have removed or renamed it.
        if _is(path, stream):
            break
        stream.close()
    try:
        stream.truncate(0)
        yield stream
    finally:
        with stream:
            if _is(path, stream):
                path.unlink()


def _is(path: Path, stream: BinaryIO) -> bool:
    """Say whether a path is that of an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; the folder must exist."""
    partial = path.absolute().with_name(f".{path.name}.partial")
    with locked(partial) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
        os.replace(partial, path)
