"""Lines of the user's source: where a node was made, where an error arose."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

import torch

_ELSEWHERE: Final = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parent.parent}{os.sep}", "<")
_ENTRIES: Final = {
    (str(Path(__file__).with_name(f"{module}.py")), name)
    for module, names in {"tracer": ("run", "placeholder", "finish"), "rehearsal": ("answer",)}.items()
    for name in names
}


def source_line() -> str:
    """The line of the model that is running, or empty where no line of its own is."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if is_of_model(frame.f_code):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if is_trace_entry(frame.f_code):
            return ""
        frame = frame.f_back
    return ""


def is_of_model(code: CodeType) -> bool:
    """Whether code that runs in a trace is the model's own, rather than torch's or ours."""
    return not code.co_filename.startswith(_ELSEWHERE)


def is_trace_entry(code: CodeType) -> bool:
    """Whether code is where the tracer starts: beyond is whoever called us, not the model."""
    return (code.co_filename, code.co_name) in _ENTRIES


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
