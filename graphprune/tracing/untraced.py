"""What to say of code that does not trace, by the error that it raised."""

from __future__ import annotations

import re
from typing import Any, Final

import torch

from graphprune.errors import first_line, typed_line
from graphprune.tracing.source import error_line, in_brackets

_UNFAKED: Final = re.compile(r"(?P<name>(?P<library>\w+)::[\w.]+): .*(fake impl|Meta tensors)")
_QUANTISED: Final = "quantized"


class Untraceable(Exception):
    """Something that a graph cannot say."""


class LooksAtValues(Untraceable):
    """Code that needs to know what a tensor holds. question: the call that asks. line: where."""

    def __init__(self, question: Any, line: str) -> None:
        super().__init__(f"it looks at the values of a tensor ({question.__name__.strip('_')}{in_brackets(line)})")


def why_untraced(error: BaseException) -> str:
    """Why a module does not trace, to go into a sentence.

    >>> why_untraced(NotImplementedError("mine::mix.default: We could not find the fake impl for this operator. More."))
    'its operator mine::mix.default has no fake implementation, which runs it on shapes alone'
    """
    operator = _operator(error)
    if operator is None:
        return first_line(said) if isinstance(said := _said(error), Untraceable) else typed_line(said)
    if operator["library"] == _QUANTISED:
        return f"it is quantised ({operator['name']})"
    return f"its operator {operator['name']} has no fake implementation, which runs it on shapes alone"


def sentences(error: BaseException) -> str:
    """Why a whole model does not trace, and what to do about it."""
    operator = _operator(error)
    if operator is not None and operator["library"] == _QUANTISED:
        return f"{why_untraced(error)}. Prune the model first, and quantise the slim one."
    error = _said(error)
    if isinstance(error, Untraceable) and not isinstance(error, LooksAtValues):
        return f"{error}. Change that, or capture the part without it."
    return (
        f"{first_line(error)}. "
        "Its control flow depends on tensor values; capture the part that does not, or pass a torch.export program."
    )


def _said(error: BaseException) -> BaseException:
    """The error itself, or what a question of C code that no call has announced amounts to, as of an index that is a tensor."""
    asks = str(error).startswith("Tensor.item() cannot be called on meta tensors")
    return LooksAtValues(torch.Tensor.item, error_line(error)) if asks else error


def _operator(error: BaseException) -> re.Match[str] | None:
    return _UNFAKED.match(str(error).replace("\n", " ")) if isinstance(error, NotImplementedError) else None
