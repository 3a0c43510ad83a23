# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Settings of a stage: frozen dataclasses whose values are checked.

A setting is written once, as a field with its type, range, documentation and
default::

    @settings
    class ShareSettings:
        '''How flux is shared.'''

        reach: Annotated[float, Field(ge=0.0, description="How far a source reaches (px).")] = 8.0

The fields of the tasks' configurations are made from it
(`lsst.meas.maskrcnn.tasks.config_fields`), and the header of a model file
stores it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar, dataclass_transform

import pydantic
from pydantic.dataclasses import dataclass

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that checks its values, of a class with annotated fields that have defaults.

    Its ``__post_init__`` may raise a ValueError, whose message begins with the name of a field, for values
    that do not fit each other. The dataclass raises one with the name of the field, the value that was given
    and what was wanted, if a value has the wrong type, is out of its range or is not finite.
    """
    config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    made: Any = dataclass(frozen=True, config=config)(cls)
    initialise = made.__init__
    names = [field.name for field in dataclasses.fields(made)]

    @functools.wraps(initialise)
    def check(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            initialise(self, *args, **kwargs)
        except pydantic.ValidationError as error:
            problems = error.errors()
            for problem in problems:
                if problem["loc"] and isinstance(problem["loc"][0], int):
                    # A positional argument.
                    problem["loc"] = (names[problem["loc"][0]], *problem["loc"][1:])
            raise ValueError("; ".join(map(describe_problem, problems))) from None

    made.__init__ = check
    return made  # type: ignore[no-any-return]


def describe_problem(problem: Any) -> str:
    """Say in one sentence what pydantic found wrong with a value, one of ``ValidationError.errors()``."""
    name = ".".join(str(part) for part in problem["loc"])
    wanted = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"there is no setting {name}"
    if not name or problem["type"] == "value_error":
        return str(wanted)
    return f"{name} is {problem['input']!r}, wanted {wanted.removeprefix('Input should be ')}"
