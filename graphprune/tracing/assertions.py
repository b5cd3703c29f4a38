"""``assert`` statements of the model's code: what they ask of values is taken to hold, as what ``torch._assert`` asks is."""

from __future__ import annotations

import dis
from collections.abc import Mapping
from functools import lru_cache
from types import CodeType, FrameType
from typing import Final

_MOST_CODES: Final = 1_000  # whose decisions are remembered


def asserted(frame: FrameType) -> bool | None:
    """The truth that an assertion wants where a frame asks for one; None where it asks for another purpose."""
    return _wanted(frame.f_code).get(frame.f_lasti)


@lru_cache(_MOST_CODES)
def _wanted(code: CodeType) -> Mapping[int, bool]:
    """By offset, the truth with which a jump leads past what raises an AssertionError.

    The jump takes the truth of its operand itself, or an instruction of its own just before does.
    """
    steps = list(dis.get_instructions(code))
    raising = {step.offset for step in steps if step.opname == "LOAD_ASSERTION_ERROR" or step.argrepr == "AssertionError"}
    found: dict[int, bool] = {}
    for at, step in enumerate(steps):
        if step.opname.startswith("POP_JUMP") and step.opname.endswith(("IF_TRUE", "IF_FALSE")):
            through = steps[at + 1].offset in raising
            if through or step.argval in raising:
                before = steps[at - 1] if steps[at - 1].opname == "TO_BOOL" else step
                found[step.offset] = found[before.offset] = step.opname.endswith("IF_TRUE") is through
    return found
