"""Options of methods that are texts with a meaning of their own, checked before anything is computed."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field

from graphprune.errors import UsageError
from graphprune.passes.scoring.expression import parse_criterion
from graphprune.passes.selection.target import parse_target, split_target


def _target(text: str) -> str:
    try:
        parse_target(*split_target(text))
    except UsageError as error:
        raise ValueError(str(error)) from error
    return text


def _criterion(text: str) -> str:
    try:
        parse_criterion(text)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return text


#: What must remain, such as ``macs=50%``.
Target: TypeAlias = Annotated[str, AfterValidator(_target)]

#: What stays of some layers, such as ``{"layer4.*": "30%", "layer1.0.conv1": 48}``.
Keep: TypeAlias = Annotated[
    dict[str, int | float | str],
    Field(
        description="What stays of some layers of the original in the end, as layer4.* = 30% or layer1.0.conv1 = 48 (channels); "
        "cuts on the way go as far with these as with the target, and without one the others stay whole."
    ),
]

#: A criterion with options, or a weighted sum, such as ``0.5*l2+0.5*taylor``.
Criterion: TypeAlias = Annotated[str, AfterValidator(_criterion)]
