"""What to say of code that does not trace, by the error that it raised."""

from __future__ import annotations

import re
from typing import Any, Final

import torch

from graphprune.errors import first_line, typed_line
from graphprune.tracing.source import error_line, in_brackets

_UNFAKED: Final = (
    re.compile(r"(?P<name>\w+::[\w.]+): .*(fake impl|Meta tensors)"),
    re.compile(r"There was no fake impl registered for <CustomOpDef\((?P<name>\w+::[\w.]+)\)>"),  # of one written in Python
)
_SIZED_BY_VALUES: Final = re.compile(
    r"torch\.nonzero\(\) raises unimplemented|cannot repeat_interleave a meta tensor|data-dependent shape"
    r"|^aten::(bincount|_unique2|unique_\w+|masked_select|nonzero)\b"
)
_QUANTISED: Final = re.compile(r"quantized::|aten::quantize_")


class Untraceable(Exception):
    """Something that a graph cannot say."""


class LooksAtValues(Untraceable):
    """Code that needs to know what a tensor holds. question: the call that asks. line: where."""

    def __init__(self, question: Any, line: str) -> None:
        super().__init__(f"it looks at the values of a tensor ({question.__name__.strip('_')}{in_brackets(line)})")


class SizedByValues(LooksAtValues):
    """A call whose result is as large as values say. line: where."""

    def __init__(self, line: str) -> None:
        Untraceable.__init__(self, f"how large a result is depends on the values of a tensor{in_brackets(line)}")


def why_untraced(error: BaseException) -> str:
    """Why a module does not trace, to go into a sentence.

    >>> why_untraced(NotImplementedError("mine::mix.default: We could not find the fake impl for this operator. More."))
    'its operator mine::mix.default has no fake implementation, which runs it on shapes alone'
    """
    said = _said(error)
    operator = _operator(said)
    if operator is None:
        return first_line(said) if isinstance(said, Untraceable) else typed_line(said)
    if _QUANTISED.match(operator["name"]):
        return f"it is quantised ({operator['name']})"
    return f"its operator {operator['name']} has no fake implementation, which runs it on shapes alone"


def sentences(error: BaseException) -> str:
    """Why a whole model does not trace, and what to do about it."""
    error = _said(error)
    operator = _operator(error)
    if operator is not None and _QUANTISED.match(operator["name"]):
        return f"{why_untraced(error)}. Prune the model first, and quantise the slim one."
    if operator is not None:
        return f"{why_untraced(error)}. Register one (torch.library.register_fake), or capture the part without it."
    if isinstance(error, LooksAtValues):
        return (
            f"{error}. Its control flow depends on tensor values; capture the part that does not, or pass a torch.export program."
        )
    if isinstance(error, Untraceable):
        return f"{error}. Change that, or capture the part without it."
    return f"{typed_line(error)}. A trace runs it on shapes alone; capture the part that can do so, or pass a torch.export program."


def _said(error: BaseException) -> BaseException:
    """The error itself, or what a question of C code that no call has announced amounts to, as of an index that is a tensor."""
    if _SIZED_BY_VALUES.search(str(error)):
        return SizedByValues(error_line(error))
    if "BatchedTensorImpl" in str(error):
        return Untraceable(f"it maps code over batches (vmap), as flex attention does{in_brackets(error_line(error))}")
    asks = str(error).startswith("Tensor.item() cannot be called on meta tensors")
    return LooksAtValues(torch.Tensor.item, error_line(error)) if asks else error


def _operator(error: BaseException) -> re.Match[str] | None:
    if not isinstance(error, RuntimeError):  # as NotImplementedError is
        return None
    said = str(error).replace("\n", " ")
    return next((found for pattern in _UNFAKED if (found := pattern.match(said))), None)
