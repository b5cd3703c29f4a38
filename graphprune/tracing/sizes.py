"""Numbers that remember where they came from.

While a model is traced, ``x.shape[0]`` is an ordinary ``int`` with the value at the example inputs, so ``range``, ``if``,
assertions and C functions take it as it is. It also knows the expression that made it; where it ends up as an argument
of a recorded call, that expression becomes part of the graph, so the graph runs at other sizes too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import reduce, wraps
from typing import Any, Final

import numpy as np
import torch

from graphprune.tracing.training import Mode


@dataclass(slots=True)  # frozen ones take twice as long to make
class Origin:
    """The expression behind a number: a function (or ``"size"``, of a tensor and an axis) and its arguments. Never modified."""

    function: Callable[..., Any] | str
    arguments: tuple[Any, ...]


@dataclass(slots=True)
class Place(Origin):
    """An item of a list that was read from a tensor: of the node of that list (or row), at an index.

    path: its indices from the outermost list on. sizes: how many items the lists along it have.
    """

    path: tuple[int, ...]
    sizes: tuple[Any, ...]

    def note(self) -> None:
        """Have the graph check how many items there are, once the last one of them is used, as all are."""
        for index, size in zip(self.path, self.sizes, strict=True):
            if index == plain(size) - 1:
                settle(size)


# What functions of numpy do with single numbers: these of Python, one after the other.
BY_ELEMENT: Final[dict[Any, tuple[Callable[..., Any], ...]]] = {
    np.add: (operator.add,), np.subtract: (operator.sub,), np.multiply: (operator.mul,), np.divide: (operator.truediv,),
    np.floor_divide: (operator.floordiv,), np.remainder: (operator.mod,), np.power: (operator.pow,), np.maximum: (max,),
    np.minimum: (min,), np.negative: (operator.neg,), np.absolute: (operator.abs,), np.sqrt: (math.sqrt,), np.exp: (math.exp,),
    np.log: (math.log,), np.log2: (math.log2,), np.log10: (math.log10,), np.ceil: (math.ceil, float),
    np.floor: (math.floor, float), np.trunc: (math.trunc, float), np.rint: (round, float), np.equal: (operator.eq,),
    np.not_equal: (operator.ne,), np.less: (operator.lt,), np.less_equal: (operator.le,), np.greater: (operator.gt,),
    np.greater_equal: (operator.ge,),
}  # fmt: skip


def of_numpy(ufunc: Any, *numbers: Any) -> Any:
    """What a function of :data:`BY_ELEMENT` gives for these numbers, which control flow may depend on where it is a truth."""
    first, *others = BY_ELEMENT[ufunc]
    number = derive(first, *numbers)
    return (
        decide(first, *numbers) if isinstance(number, bool) else reduce(lambda one, function: derive(function, one), others, number)
    )


def of_python(number: Any) -> Any:
    """A number of numpy, also one in an array without axes, as the number of Python that it is; anything else as it is."""
    return number.item() if isinstance(number, np.generic) or (isinstance(number, np.ndarray) and not number.ndim) else number


def as_kind(number: Any, dtype: Any) -> Any:
    """A number as the integer, floating-point number or truth that one of a dtype of numpy is."""
    kind = type(np.dtype(dtype).type(0).item())
    return number if isinstance(number, kind) else derive(kind, number)


class _Size:
    """What numbers with an origin do with those of numpy, whose operators are asked first, and as one of numpy."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        numbers = [literal(of_python(one)) for one in inputs]
        known = ufunc in BY_ELEMENT and method == "__call__" and not options and (len(numbers) > 1 or origin_of(self))
        if known and all(isinstance(one, (int, float)) for one in numbers):
            return of_numpy(ufunc, *numbers)
        return getattr(ufunc, method)(*[settle(one) if origin_of(one) else plain(one) for one in inputs], **options)

    def item(self) -> Any:
        """The number."""
        return self

    def astype(self, dtype: Any, **_: Any) -> Any:
        """The number as one of the kind of a dtype."""
        return as_kind(self, dtype)


class SizeInt(_Size, int):
    """An integer with an origin."""

    origin: Origin

    def __int__(self) -> int:
        """For C code that makes a number of its own of it, as ``np.int64(n)`` does."""
        return int(settle(self))

    def __float__(self) -> float:
        """For C code that makes a number of its own of it, as ``torch.FloatTensor([n])`` does."""
        return float(settle(self))


class SizeFloat(_Size, float):
    """A floating-point number with an origin; or a constant, whose products with sizes have one (those of a float do not)."""

    origin: Origin | None = None

    def __float__(self) -> float:
        """For C code that makes a number of its own of it, as ``np.float32(n)`` does."""
        return float(settle(self))


def size_of(tensor: torch.Tensor, axis: int) -> SizeInt:
    """``tensor.size(axis)``; axis is not negative."""
    number: SizeInt = with_origin(SizeInt, tensor.shape[axis], Origin("size", (tensor, axis)))
    return number


def stride_of(tensor: torch.Tensor, axis: int) -> SizeInt:
    """``tensor.stride(axis)``; axis is not negative."""
    number: SizeInt = with_origin(SizeInt, tensor.stride(axis), Origin("stride", (tensor, axis)))
    return number


class Shape(tuple[SizeInt, ...]):
    """A ``torch.Size`` (which cannot be derived from) whose ``numel`` remembers the sizes."""

    __slots__ = ()
    __class__: Any = torch.Size  # what isinstance sees

    def numel(self) -> Any:
        """The product of the sizes."""
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        return Shape(item) if isinstance(index, slice) else item

    def __add__(self, other: Any) -> Any:
        return Shape((*self, *other)) if isinstance(other, tuple) else NotImplemented

    def __repr__(self) -> str:
        return repr(torch.Size(self))


def shape_of(tensor: torch.Tensor) -> Shape:
    """``tensor.shape`` of numbers with origins."""
    return Shape([size_of(tensor, axis) for axis in range(tensor.dim())])


def origin_of(number: Any) -> Origin | None:
    """Where a number came from; None for a constant."""
    return number.origin if isinstance(number, (SizeInt, SizeFloat)) else None


def read_whole(items: Any) -> Any:
    """The node of the list that was read from a tensor and that these are all items of, in their order; None for others."""
    places = [origin_of(item) for item in items] if isinstance(items, list) else []
    first = places[0] if places else None
    if not isinstance(first, Place) or [plain(size) for size in first.sizes] != [len(items)]:
        return None
    node = first.arguments[0]
    same = all(one is not None and one.arguments == (node, index) for index, one in enumerate(places))
    return node if same else None


def with_origin(kind: Any, value: Any, origin: Origin) -> Any:
    """A number of this kind that remembers its origin."""
    number = kind(value)
    number.origin = origin
    return number


def literal(value: Any) -> Any:
    """A float of the model's code or settings as a constant that sizes can be multiplied with; anything else as it is."""
    if type(value) is tuple:
        return tuple([literal(item) for item in value])
    return SizeFloat(value) if type(value) is float else value


def plain(number: Any) -> Any:
    """A number without its origin, and one of numpy as Python's own, as code can be written down that holds it."""
    if isinstance(number, SizeInt):
        return int.__int__(number)
    if isinstance(number, SizeFloat):
        return float.__float__(number)
    return of_python(number)


def derive(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result for these numbers, with its origin where it is a number too."""
    value = function(*map(plain, arguments))
    if all(origin_of(argument) is None for argument in arguments):
        return literal(value)
    kind = {int: SizeInt, float: SizeFloat}.get(type(value))
    return value if kind is None else with_origin(kind, value, Origin(function, arguments))


def of_list(function: Callable[..., Any], items: list[Any], node: Any) -> Any:
    """The result for a list that was :func:`read whole <read_whole>`, whatever number of items it has in another call."""
    value = function([plain(item) for item in items])
    return with_origin(SizeFloat if isinstance(value, float) else SizeInt, value, Origin(function, (node,)))


def extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    """``min`` or ``max``, whose numbers may come as one sequence."""

    @wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        node = read_whole(args[0]) if len(args) == 1 and not kwargs else None
        if node is not None:
            return of_list(function, args[0], node)
        numbers = tuple(args[0]) if len(args) == 1 else args
        if kwargs or not any(origin_of(number) for number in numbers):
            return function(numbers, **kwargs)
        return derive(function, *numbers) if len(numbers) > 1 else numbers[0]

    return call


# Gets every comparison of sizes that Python code makes in this context, and its outcome.
NOTING: ContextVar[Callable[[Callable[..., Any], tuple[Any, ...], bool], None] | None] = ContextVar("NOTING", default=None)


def decide(function: Callable[..., bool], *numbers: Any) -> bool:
    """The outcome of a comparison, which control flow may depend on."""
    outcome = function(*map(plain, numbers))
    note = NOTING.get()
    if note is not None and any(map(origin_of, numbers)):
        note(function, numbers, outcome)
    return outcome


def settle(number: Any) -> Any:
    """A number without its origin, for code that depends on its value: as many turns of a loop."""
    decide(operator.eq, number, plain(number))
    return plain(number)


def _comparison(function: Callable[..., bool]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        other = of_python(other)
        return decide(function, self, other) if isinstance(other, (int, float)) else NotImplemented

    return method


def _truth(self: Any) -> bool:
    return decide(operator.ne, self, 0)


def _binary(function: Callable[..., Any], swapped: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        other = of_python(other)
        if not isinstance(other, (int, float)):
            if isinstance(other, (list, tuple, str)):  # as many copies
                settle(self)
            return NotImplemented
        if isinstance(other, Mode):
            other = int(other)  # floats would take it without asking
        return derive(function, other, self) if swapped else derive(function, self, other)

    return method


def _unary(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        return derive(function, self)

    return method


def _round(self: Any, digits: int | None = None) -> Any:
    return derive(round, self) if digits is None else derive(round, self, digits)


def _power(self: Any, exponent: Any, modulus: Any = None) -> Any:
    if modulus is not None or not isinstance(exponent, (int, float)):
        return NotImplemented
    return derive(operator.pow, self, exponent)


def _divmod(self: Any, other: Any) -> Any:
    return self // other, self % other


def _swapped_divmod(self: Any, other: Any) -> Any:
    return other // self, other % self


def _give_operators(kind: Any, names: str) -> None:
    for name in names.split():
        function = getattr(operator, name, None) or getattr(operator, f"{name}_")  # and_, or_
        setattr(kind, f"__{name}__", _binary(function, swapped=False))
        setattr(kind, f"__r{name}__", _binary(function, swapped=True))
    for name in ["eq", "ne", "lt", "le", "gt", "ge"]:
        setattr(kind, f"__{name}__", _comparison(getattr(operator, name)))
    kind.__bool__ = _truth
    kind.__pow__ = _power
    kind.__round__ = _round
    kind.__divmod__, kind.__rdivmod__ = _divmod, _swapped_divmod
    for function in (operator.neg, operator.pos, operator.abs, math.ceil, math.floor, math.trunc):
        setattr(kind, f"__{function.__name__}__", _unary(function))


_give_operators(SizeInt, "add sub mul floordiv truediv mod pow and or xor lshift rshift")
_give_operators(SizeFloat, "add sub mul floordiv truediv mod pow")
SizeInt.__invert__ = _unary(operator.invert)  # type: ignore[method-assign]
