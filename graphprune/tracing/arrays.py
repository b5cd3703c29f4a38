"""Arrays of numpy that a model reads from tensors: ``pack_padded_sequence(x, lengths.cpu().numpy())``."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils._pytree import register_pytree_node

from graphprune.tracing.sizes import settle


class Numbers(list[Any]):
    """Numbers that remember their places in a tensor, as an array of one axis.

    Taken one by one, or for a tensor, they are the graph's. What numpy computes of them is what it is for the example inputs, which
    the graph checks.
    """

    __class__: Any = np.ndarray  # what isinstance sees
    ndim = 1

    def __init__(self, items: list[Any], dtype: Any) -> None:
        super().__init__(items)
        self._dtype = dtype

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return np.array(list(map(settle, self)), dtype or self._dtype)

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index) if isinstance(index, int) else np.asarray(self)[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)


def _of_the_example(function: Callable[..., Any], swapped: bool = False) -> Callable[..., Any]:
    def method(self: Numbers, *others: Any) -> Any:
        array = np.asarray(self)
        return function(*others, array) if swapped else function(array, *others)

    return method


for _name in [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "neg",
    "abs",
    "invert",
]:
    _function = getattr(operator, f"__{_name}__")
    setattr(Numbers, f"__{_name}__", _of_the_example(_function))
    if _name not in ["eq", "ne", "lt", "le", "gt", "ge", "neg", "abs", "invert"]:
        setattr(Numbers, f"__r{_name}__", _of_the_example(_function, swapped=True))
        setattr(Numbers, f"__i{_name}__", _of_the_example(_function))

register_pytree_node(Numbers, lambda numbers: (list(numbers), numbers._dtype), lambda items, dtype: Numbers(list(items), dtype))
