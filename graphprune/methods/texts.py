"""Options of methods that are texts with a meaning of their own, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

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


def _keep(given: Any) -> Any:
    if not isinstance(given, Mapping):
        raise ValueError('what stays of some layers is a table, as {"layer4.*" = "30%", "layer1.0.conv1" = 48}')
    for pattern, amount in given.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float, str)):
            raise ValueError(f"what stays of {pattern!r} is a share, as 30%, or a number of channels")
    return dict(given)


#: What stays of some layers, such as ``{"layer4.*": "30%", "layer1.0.conv1": 48}``.
Keep: TypeAlias = Annotated[
    dict[str, int | float | str],
    BeforeValidator(_keep),
    Field(
        description="What stays of some layers of the original in the end, as layer4.* = 30% or layer1.0.conv1 = 48 (channels); "
        "cuts on the way go as far with these as with the target. Where keep alone is given, there is no target."
    ),
]

#: A criterion with options, or a weighted sum, such as ``0.5*l2+0.5*taylor``.
Criterion: TypeAlias = Annotated[
    str,
    AfterValidator(_criterion),
    Field(description="How important channels are, as l2, attention(p=2) or 0.5*l2+0.5*taylor; `graphprune passes` lists them."),
]

#: How scores of different groups are made comparable.
Normalise: TypeAlias = Annotated[
    str, Field(description="What the scores of a group are divided by: max, mean, none; or gaussian, which standardises them.")
]
