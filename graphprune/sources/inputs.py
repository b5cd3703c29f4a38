"""Example inputs from text such as ``1x3x224x224`` or ``x:1x3x32x32,ids:1x10:int64``."""

from __future__ import annotations

import math
import re

import torch

from graphprune.errors import UsageError
from graphprune.program import Inputs
from graphprune.sources.source import Source

_SHAPE = re.compile(r"\d+(x\d+)*", re.ASCII)
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
_LARGEST = 2**31


def example_inputs(source: Source, text: str | None = None, *, seed: int = 0) -> Inputs:
    """Example inputs for a source: those of ``text``, else those it brought, else its usual shape at random.

    Raises UsageError when the text is bad, or when there is none and the source brings nothing.
    """
    if text is not None:
        parsed = parse_input(text, seed=seed)
        return Inputs((), parsed) if isinstance(parsed, dict) else Inputs(parsed)
    if source.inputs is not None:
        return source.inputs
    if source.default_input is not None:
        return Inputs((_random(source.default_input, torch.float32, torch.Generator().manual_seed(seed)),))
    raise UsageError(f"The input shape of {source.text} is not known. Give it with --input, for example --input 1x3x224x224.")


def parse_input(text: str, *, seed: int = 0) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
    """Example inputs from text: a tuple of positional tensors, or a dict when the parts are named.

    text: parts joined by commas, each ``[name:]shape[:dtype]`` with the shape as sizes joined by ``x``, batch first.
    seed: of the random values. Floating-point inputs are standard normal; integer and bool inputs are zeros, which
        are valid indices of any table.

    Raises UsageError for text that does not read so.

    >>> [tuple(item.shape) for item in parse_input("1x3x8x8,1x10:int64")]
    [(1, 3, 8, 8), (1, 10)]
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [_part(part.strip(), text) for part in text.split(",")]
    names = [name for name, _, _ in parts if name is not None]
    tensors = [_random(shape, dtype, generator) for _, shape, dtype in parts]
    if not names:
        return tuple(tensors)
    if len(names) < len(parts):
        raise _bad(text, "some parts have a name and some have none")
    if len(set(names)) < len(names):
        raise _bad(text, "a name is given twice")
    return dict(zip(names, tensors, strict=True))


def _part(part: str, text: str) -> tuple[str | None, tuple[int, ...], torch.dtype]:
    pieces = part.split(":")
    name = None if _SHAPE.fullmatch(pieces[0]) else pieces.pop(0)
    if name is not None and not name.isidentifier():
        raise _bad(text, f"{name!r} is neither a shape nor an argument name")
    if not pieces or not _SHAPE.fullmatch(pieces[0]):
        raise _bad(text, f"{part!r} has no shape")
    shape = tuple(int(size) for size in pieces[0].split("x"))
    if 0 in shape or math.prod(shape) > _LARGEST:
        raise _bad(text, f"the shape {pieces[0]} is empty or too large")
    dtype = _DTYPES.get(pieces[1]) if len(pieces) == 2 else torch.float32
    if dtype is None or len(pieces) > 2:
        raise _bad(text, f"{':'.join(pieces[1:])!r} is not a dtype (one of {', '.join(_DTYPES)})")
    return name, shape, dtype


def _random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.zeros(shape, dtype=dtype)


def _bad(text: str, why: str) -> UsageError:
    return UsageError(f"Cannot read --input {text!r}: {why}. Write it as 1x3x224x224, 1x128:int64 or x:1x3x32x32,y:1x10.")
