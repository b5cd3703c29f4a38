"""Lines of the user's source: where a node was made, where an error arose."""

from __future__ import annotations

import os
import sys
from dis import get_instructions
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

import torch

_ELSEWHERE: Final = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parent.parent}{os.sep}", "<")
_MOST_CODES: Final = 1_000  # that are remembered
_ENTRIES: Final = {
    name: str(Path(__file__).with_name(f"{module}.py"))
    for module, names in {"tracer": ("run", "placeholder", "finish"), "rehearsal": ("answer",)}.items()
    for name in names
}


def source_line() -> str:
    """The line of the model that is running, or empty where no line of its own is."""
    frame = _frame_of_model()
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def writes_attributes() -> bool:
    """Whether the function of the model that is running keeps something in attributes, or in what these hold."""
    frame = _frame_of_model()
    return frame is not None and _writes(frame.f_code)


def _frame_of_model() -> FrameType | None:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not is_of_model(frame.f_code):
        frame = None if is_trace_entry(frame.f_code) else frame.f_back
    return frame


@lru_cache(_MOST_CODES)
def _writes(code: CodeType) -> bool:
    return any(step.opname in ("STORE_ATTR", "STORE_SUBSCR") for step in get_instructions(code))


def is_of_model(code: CodeType) -> bool:
    """Whether code that runs in a trace is the model's own, rather than torch's or ours."""
    return not code.co_filename.startswith(_ELSEWHERE)


def is_trace_entry(code: CodeType) -> bool:
    """Whether code is where the tracer starts: beyond is whoever called us, not the model."""
    return _ENTRIES.get(code.co_name) == code.co_filename


def in_brackets(line: str) -> str:
    """A line for the end of a message, with its file's folder; empty where there is none.

    >>> in_brackets("/home/me/models/net.py:12")
    ' (models/net.py:12)'
    """
    return f" ({'/'.join(Path(line).parts[-2:])})" if line else ""


def error_line(error: BaseException) -> str:
    """The innermost line outside of torch and graphprune that an error passed through, or empty."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith(_ELSEWHERE):
            place = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
