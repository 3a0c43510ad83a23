# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that are there whole or not at all, and what others put into them."""

from __future__ import annotations

__all__ = ["one_line", "parse_json", "write_atomically"]

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_MOST_OBJECTS, _MOST_LEVELS = 1_000_000, 100
"""Lists and objects in a JSON document, and levels of them; an empty one takes 60 bytes for two of text."""

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse_json(text: bytes) -> Any:
    """Parse JSON that need not be of good will.

    Parameters
    ----------
    text : `bytes`
        The document.

    Returns
    -------
    content : `object`
        What it holds.

    Raises
    ------
    ValueError
        Raised if this is no JSON, is nested too deeply, or has too many objects.
    """
    brackets = np.frombuffer(text.translate(None, _NO_BRACKETS), np.uint8)
    if brackets.size > 2 * _MOST_OBJECTS:
        raise ValueError(f"{brackets.size} brackets, at most {2 * _MOST_OBJECTS} are read")
    opens = (brackets == ord("[")) | (brackets == ord("{"))
    # Brackets in texts count as well, but come in pairs.
    if (levels := np.cumsum(2 * opens.astype(np.int64) - 1).max(initial=0)) > _MOST_LEVELS:
        raise ValueError(f"lists and objects are nested {levels} deep, at most {_MOST_LEVELS} are read")
    return json.loads(text)


def one_line(error: object, width: int = 300) -> str:
    """Put a message into one line of at most ``width`` characters.

    Parameters
    ----------
    error : `object`
        The message, or an exception with one.
    width : `int`, optional
        The number of characters.

    Returns
    -------
    line : `str`
    """
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Parameters
    ----------
    path : `pathlib.Path`
        Where to; the folder must exist.
    data : `bytes`
        The content.

    Raises
    ------
    OSError
        Raised if the file cannot be written.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
