"""Numbers that remember where they came from.

While a model is traced, ``x.shape[0]`` is an ordinary ``int`` with the value at the example inputs, so ``range``, ``if``,
assertions and C functions take it as it is. It also knows the expression that made it; where it ends up as an argument
of a recorded call, that expression becomes part of the graph, so the graph runs at other sizes too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Origin:
    """The expression behind a number: a function (or ``"size"``, of a tensor and an axis) and its arguments."""

    function: Callable[..., Any] | str
    arguments: tuple[Any, ...]


class SizeInt(int):
    """An integer with an origin."""

    origin: Origin


class SizeFloat(float):
    """A floating-point number with an origin."""

    origin: Origin


def size_of(tensor: torch.Tensor, axis: int) -> SizeInt:
    """``tensor.size(axis)``; axis is not negative."""
    number: SizeInt = _with_origin(SizeInt, tensor.shape[axis], Origin("size", (tensor, axis)))
    return number


def shape_of(tensor: torch.Tensor) -> torch.Size:
    """``tensor.shape`` of numbers with origins."""
    return torch.Size([size_of(tensor, axis) for axis in range(tensor.dim())])


def origin_of(number: Any) -> Origin | None:
    """Where a number came from; None for a constant."""
    return number.origin if isinstance(number, (SizeInt, SizeFloat)) else None


def _with_origin(kind: Any, value: Any, origin: Origin) -> Any:
    number = kind(value)
    number.origin = origin
    return number


def _plain(number: Any) -> Any:
    if isinstance(number, SizeInt):
        return int.__int__(number)
    return float.__float__(number) if isinstance(number, SizeFloat) else number


def _derive(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, with its origin where it is a number."""
    value = function(*map(_plain, arguments))
    origin = Origin(function, arguments)
    if type(value) is int:
        return _with_origin(SizeInt, value, origin)
    return _with_origin(SizeFloat, value, origin) if type(value) is float else value


def _binary(function: Callable[..., Any], swapped: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        return _derive(function, other, self) if swapped else _derive(function, self, other)

    return method


def _unary(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        return _derive(function, self)

    return method


def _round(self: Any, digits: int | None = None) -> Any:
    return _derive(round, self) if digits is None else _derive(round, self, digits)


def _power(self: Any, exponent: Any, modulus: Any = None) -> Any:
    if modulus is not None or not isinstance(exponent, (int, float)):
        return NotImplemented
    return _derive(operator.pow, self, exponent)


for _kind in (SizeInt, SizeFloat):
    for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod"):
        setattr(_kind, f"__{_name}__", _binary(getattr(operator, _name), swapped=False))
        setattr(_kind, f"__r{_name}__", _binary(getattr(operator, _name), swapped=True))
    _dunders: dict[str, Any] = {
        "__pow__": _power,
        "__rpow__": _binary(operator.pow, swapped=True),
        "__neg__": _unary(operator.neg),
        "__ceil__": _unary(math.ceil),
        "__floor__": _unary(math.floor),
        "__trunc__": _unary(int),
        "__round__": _round,
    }
    for _name, _method in _dunders.items():
        setattr(_kind, _name, _method)
