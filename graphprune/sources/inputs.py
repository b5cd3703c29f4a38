"""Example inputs from text such as ``1x3x224x224``, ``[3x320x300,3x300x280]`` or ``input_ids=1x10:int64``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

import torch

from graphprune.errors import UsageError
from graphprune.ir.program import Inputs
from graphprune.sources.source import Source

_SHAPE: Final = re.compile(r"\d+(x\d+)*", re.ASCII)
_DTYPES: Final = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
_OPTIONS: Final = {"True": True, "False": False, "None": None}
_BRACKETS: Final = {"[": 1, "]": -1}
_LARGEST: Final = 2**31


def example_inputs(source: Source, text: str | None = None, *, seed: int = 0) -> Inputs:
    """Example inputs for a source: those of ``text``, else those it brought, else its usual shape at random.

    Raises UsageError when the text is bad, or when there is none and the source brings nothing.
    """
    if text is not None:
        return parse_input(text, seed=seed)
    if source.inputs is not None:
        return source.inputs
    if source.default_input is not None:
        return Inputs((_random(source.default_input, torch.float32, torch.Generator().manual_seed(seed)),))
    raise UsageError(f"The input shape of {source.text} is not known. Give it with --input, for example --input 1x3x224x224.")


def parse_input(text: str, *, seed: int = 0) -> Inputs:
    """Example inputs from text: the arguments of a call, positional ones first.

    text: arguments joined by commas, each ``[name=]value``. A value is a tensor, ``shape[:dtype[:fill]]`` with the shape as
        sizes joined by ``x``; a list of values in square brackets; or ``True``, ``False`` or ``None``.
    seed: of the random values. Without a fill, floating-point tensors are standard normal; integer and bool tensors are
        zeros, which are valid indices of any table.

    Raises UsageError for text that does not read so.

    >>> parse_input("1x3x8x8,ids=1x10:int64,mask=1x10:int64:1").describe()
    'float32[1x3x8x8], ids=int64[1x10], mask=int64[1x10]'
    """
    return _Reader(text, seed).inputs()


class _Reader:
    """Reads one text, which its complaints quote."""

    def __init__(self, text: str, seed: int) -> None:
        self._text = text
        self._generator = torch.Generator().manual_seed(seed)

    def inputs(self) -> Inputs:
        """All arguments."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for part in self._split(self._text):
            name, equals, value = part.partition("=")
            if equals:
                self._check_name(name.strip(), kwargs)
                kwargs[name.strip()] = self._value(value.strip())
            elif kwargs:
                raise self._bad(f"{part!r} has no name and follows one that has")
            else:
                args.append(self._value(part))
        return Inputs(tuple(args), kwargs)

    def _split(self, text: str) -> Iterator[str]:
        """The parts between the commas that are in no bracket."""
        depth, begin = 0, 0
        for index, letter in enumerate(f"{text},"):
            depth += _BRACKETS.get(letter, 0)
            if depth < 0 or (index == len(text) and depth):
                raise self._bad("its brackets do not match")
            if letter == "," and not depth:
                yield text[begin:index].strip()
                begin = index + 1

    def _check_name(self, name: str, known: dict[str, Any]) -> None:
        if not name.isidentifier():
            raise self._bad(f"{name!r} is no argument name")
        if name in known:
            raise self._bad(f"the name {name} is given twice")

    def _value(self, part: str) -> Any:
        if part.startswith("[") and part.endswith("]"):
            return [self._value(item) for item in self._split(part[1:-1])]
        return _OPTIONS[part] if part in _OPTIONS else self._tensor(*part.split(":"))

    def _tensor(self, size: str, dtype_name: str = "float32", fill: str | None = None, *more: str) -> torch.Tensor:
        if not _SHAPE.fullmatch(size):
            raise self._bad(f"{size!r} is no shape")
        shape = tuple(map(int, size.split("x")))
        if 0 in shape or math.prod(shape) > _LARGEST:
            raise self._bad(f"the shape {size} is empty or too large")
        dtype = _DTYPES.get(dtype_name)
        if dtype is None:
            raise self._bad(f"{dtype_name!r} is not a dtype (one of {', '.join(_DTYPES)})")
        if fill is None:
            return _random(shape, dtype, self._generator)
        try:
            value = float(fill)
        except ValueError:
            value = math.nan
        if more or not math.isfinite(value):
            raise self._bad(f"{':'.join((fill, *more))!r} is no number to fill a tensor with")
        return torch.full(shape, value).to(dtype)

    def _bad(self, why: str) -> UsageError:
        forms = "1x3x224x224, 1x128:int64, [3x320x300,3x300x280] or input_ids=1x10:int64,attention_mask=1x10:int64:1"
        return UsageError(f"Cannot read --input {self._text!r}: {why}. Write it as {forms}.")


def _random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.zeros(shape, dtype=dtype)
