"""Checks of values: ``if torch.isnan(x).any(): raise ...``, ``assert (x >= 0).all()``, ``torch._check_tensor_all(x >= 0)``.

A trace knows nothing of values. Where it is asked for one only to choose between two branches, and one of them does nothing
but raise an error, the answer is the other: a model that has passed its own check computes what is behind it.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from functools import lru_cache
from itertools import dropwhile, pairwise
from types import CodeType, FrameType
from typing import Any, Final

import torch

from graphprune.tracing.source import is_of_model, is_trace_entry

QUESTIONS: Final = frozenset(
    {
        torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.equal, torch.Tensor.allclose, torch.equal, torch.allclose,
        torch.is_nonzero, torch.Tensor.is_nonzero,
    }
)  # fmt: skip
"""Calls that answer with a truth about values."""

LOOKS: Final = QUESTIONS | {
    torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.nonzero, torch.nonzero, torch.Tensor.__int__, torch.Tensor.__float__,
    torch.Tensor.__index__, torch.Tensor.__complex__,
}  # fmt: skip
"""Calls that a trace has no answer for: what a model does without one is not what it does with one."""

_CHECK_OF_TORCH: Final = torch._check_tensor_all_with.__code__  # raises unless all elements are true
_MOST_CODES: Final = 1_000  # whose instructions are remembered
_BETWEEN: Final = frozenset({"TO_BOOL", "NOP", "EXTENDED_ARG", "CACHE", "NOT_TAKEN"})
_JUMPS: Final = {
    f"POP_JUMP_{way}IF_{truth}": truth == "TRUE" for way in ("", "FORWARD_", "BACKWARD_") for truth in ("TRUE", "FALSE")
}
_LEAVING: Final = ("RETURN", "YIELD", "STORE", "DELETE", "FOR_ITER", "SEND", "END", "RERAISE")


def answer_that_passes() -> bool | None:
    """The answer to the question that the model's code is asking now, with which its check passes; None where it is no check."""
    running = list(_running())
    frames = [frame for frame in running if is_of_model(frame.f_code)]
    if not frames or any(map(_catches, frames)):
        return None
    if any(frame.f_code is _CHECK_OF_TORCH for frame in running[: running.index(frames[0])]):
        return True
    return _passing(frames[0].f_code, frames[0].f_lasti)


def _running() -> Iterator[FrameType]:
    """The functions that run in the trace, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_trace_entry(frame.f_code):
        yield frame
        frame = frame.f_back


def _catches(frame: FrameType) -> bool:
    """Whether an error of the running line may end in its function; ``with``, ``finally`` and a bare ``raise`` pass it on."""
    return _ends_errors(frame.f_code, frame.f_lasti)


@lru_cache(_MOST_CODES)
def _ends_errors(code: CodeType, place: int) -> bool:
    entries = vars(dis.Bytecode(code))["exception_entries"]  # which its types do not have
    for target in (entry.target for entry in entries if entry.start <= place < entry.end):
        for one, then in pairwise(dropwhile(lambda one: one.offset < target, _instructions(code))):  # noqa: B023
            if one.opname == "POP_EXCEPT" and then.opname != "RERAISE":
                return True  # somebody deals with it, before it can be raised again
            if then.opname == "RERAISE":
                if _ends_errors(code, then.offset):
                    return True
                break
    return False


@lru_cache(_MOST_CODES)
def _passing(code: CodeType, place: int) -> bool | None:
    after = dropwhile(lambda one: one.offset < place, _instructions(code))
    negated = False
    for index, one in enumerate(after):
        if one.opname == "UNARY_NOT":
            negated = not negated
        elif one.opname in _JUMPS:
            jumps_on = _JUMPS[one.opname] != negated
            if _raises(code, one.argval):
                return not jumps_on
            return jumps_on if _raises(code, one.offset + 2) else None
        elif index and one.opname not in _BETWEEN:
            return None  # the answer is used otherwise; the first instruction is the call that asks
    return None


def _raises(code: CodeType, place: int) -> bool:
    """Whether the code from a place on does nothing but raise an error."""
    for one in dropwhile(lambda one: one.offset < place, _instructions(code)):
        if one.opname == "RAISE_VARARGS":
            return True
        if "JUMP" in one.opname or one.opname.startswith(_LEAVING):
            return False
    return False


@lru_cache(_MOST_CODES)
def _instructions(code: CodeType) -> tuple[Any, ...]:
    return tuple(dis.get_instructions(code))
