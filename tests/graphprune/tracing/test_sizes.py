"""Numbers that remember: what they compute from sizes is right at every other size."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.tracing.sizes import Origin, Shape, SizeFloat, SizeInt, literal, origin_of, plain, shape_of, size_of


def evaluate(number: Any, sizes: tuple[int, ...]) -> Any:
    """What the expression behind a number is where the tensor has these sizes."""
    origin = origin_of(number)
    if origin is None:
        return number
    if origin.function == "size":
        return sizes[origin.arguments[1]]
    assert callable(origin.function)
    return origin.function(*(evaluate(argument, sizes) for argument in origin.arguments))


BINARY: list[Callable[..., Any]] = [
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod,
    lambda a, b: divmod(a, b)[0], lambda a, b: divmod(a, b)[1], lambda a, b: divmod(7, a)[1] + b,
    lambda a, b: 100 - a + 3 * b, lambda a, b: 100 // a % (b + 1), lambda a, b: literal(2.5) / a - b, lambda a, b: (a * 0.5) // b,
    lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a ^ b, lambda a, b: (a << 2) + (b >> 1), lambda a, b: 7 & a | 1 ^ b,
    lambda a, b: 2 ** (a % 4) + b**2, lambda a, b: (a / b) ** 0.5,
]  # fmt: skip
UNARY: list[Callable[..., Any]] = [
    operator.neg, operator.pos, abs, operator.invert, lambda a: math.ceil(a / 3), lambda a: math.floor(a * 0.7),
    lambda a: round(a / 3), lambda a: round(a / 3, 2), lambda a: math.trunc(-a / 3), lambda a: sum([a, a, 1]),
    lambda a: math.prod([a, 2, a]),
]  # fmt: skip
SIZES = st.tuples(*[st.integers(1, 64)] * 2)


@settings(max_examples=300, deadline=None)
@given(st.data(), SIZES, SIZES)
def test_expressions_are_right_at_other_sizes(data: st.DataObject, now: tuple[int, int], then: tuple[int, int]) -> None:
    def build(shape: Any, choices: list[tuple[int, int]]) -> list[Any]:
        numbers = list(shape)
        for binary, unary in choices:
            made = BINARY[binary](round(numbers[-1]) % 50 + 1, round(numbers[-2]) % 50 + 1)
            numbers.append(UNARY[unary](round(made)))
        return numbers

    choices = data.draw(st.lists(st.tuples(st.integers(0, len(BINARY) - 1), st.integers(0, len(UNARY) - 1)), max_size=4))
    traced = build(shape_of(torch.empty(now, device="meta")), choices)
    for number, plain_now, plain_then in zip(traced, build(now, choices), build(then, choices), strict=True):
        assert number == plain_now
        assert evaluate(number, then) == plain_then
        assert origin_of(number) is not None


def test_a_size_is_an_ordinary_number() -> None:
    size = size_of(torch.empty(3, 4, device="meta"), 1)
    assert isinstance(size, int) and size == 4 and hash(size) == hash(4) and {4: "x"}[size] == "x"
    assert list(range(size)) == [0, 1, 2, 3] and [5] * size == [5, 5, 5, 5] and "abcdef"[size] == "e"
    assert (f"{size}", f"{size:>3}", format(size, "d"), str(size), repr(size)) == ("4", "  4", "4", "4", "4")
    assert size > 3 and size != 5 and bool(size) and size.bit_length() == 3
    assert type(size * 1.5) is SizeFloat and type(size * 2) is SizeInt and type(size > 3) is bool


@pytest.mark.parametrize(
    "four", [np.int64(4), np.int32(4), np.float64(4), np.prod([2, 2]), np.array(4)], ids=lambda x: type(x).__name__
)
def test_numbers_of_numpy_are_as_those_of_python(four: Any) -> None:
    """On either side of an operator, whichever of the two is asked first."""
    size = size_of(torch.empty(5, device="meta"), 0)
    for number, wanted in ((four * size, 44), (size // four, 2), (four - size, -7), (size % four, 3), (size / four, 2.75)):
        assert evaluate(number, (11,)) == wanted and isinstance(number, (int, float)) and origin_of(number) is not None
    assert type(size > four) is bool and (four < size) is True and (size == four) is False
    assert np.sqrt(size) == np.sqrt(5) and (np.ones(2) * size).tolist() == [5.0, 5.0]


def test_a_shape_is_a_size_of_torch() -> None:
    shape = shape_of(torch.empty(2, 3, 4, device="meta"))
    assert isinstance(shape, torch.Size) and isinstance(shape, tuple) and tuple(shape) == torch.Size([2, 3, 4])
    assert repr(shape) == "torch.Size([2, 3, 4])" and len(shape) == 3
    for part in (shape[1:], shape[:-1] + shape[:1], shape + shape, shape[::2]):
        assert isinstance(part, Shape)
    assert evaluate(Shape(shape[1:]).numel(), (2, 5, 7)) == 35
    assert torch.zeros(shape).shape == (2, 3, 4)


@pytest.mark.parametrize("other", ["x", None, [1]])
def test_what_is_no_number_is_refused_as_by_an_int(other: Any) -> None:
    size = size_of(torch.empty(3, device="meta"), 0)
    with pytest.raises(TypeError):
        size - other
    with pytest.raises(TypeError):
        size**other


def test_constants_have_no_origin() -> None:
    assert origin_of(3) is None and origin_of(0.5) is None and origin_of("x") is None and origin_of(True) is None
    half = literal(0.5)
    assert half == 0.5 and origin_of(half) is None and origin_of(half * 3) is None and type(half * 3) is SizeFloat
    assert literal(3) == 3 and literal(("x", 0.5)) == ("x", 0.5) and type(plain(half)) is float
    size = size_of(torch.empty(3, device="meta"), 0)
    assert origin_of(half * size) == Origin(operator.mul, (half, size))
