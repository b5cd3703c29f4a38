"""Numpy in a forward: arrays that a model reads from tensors (``lengths.cpu().numpy()``), and what it computes of sizes.

Numbers that numpy computes of sizes, as ``np.prod(x.shape)``, remember where they came from where Python has the same. Else they,
and arrays of sizes, are what they are for the example inputs, which the graph checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from torch.utils._pytree import register_pytree_node

from graphprune.tracing.sizes import BY_ELEMENT, as_kind, derive, extreme, of_numpy, of_python, origin_of, plain, settle

_MIN, _MAX = extreme(min), extreme(max)
_ARRAY: Final = np.array


class Numbers(NDArrayOperatorsMixin, list[Any]):
    """Numbers that remember their places in a tensor, or sizes, as an array of one axis.

    Taken one by one, as the least or the largest, for a tensor, and as sums and products of their elements, they are the graph's.
    What else numpy computes of them is what it is for the example inputs, which the graph checks.
    """

    __class__: Any = np.ndarray  # what isinstance sees
    ndim = 1

    def __init__(self, items: list[Any], dtype: Any) -> None:
        super().__init__(items)
        self.dtype = np.dtype(dtype)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return _ARRAY(list(map(settle, self)), dtype or self.dtype)

    def __array_ufunc__(self, function: np.ufunc, method: str, *operands: Any, out: Any = None, **options: Any) -> Any:
        if method == "__call__" and out is None and not options and function in BY_ELEMENT:
            rows = [list(one) if isinstance(one, Numbers) else [of_python(one)] * len(self) for one in operands]
            if all(len(row) == len(self) and all(isinstance(one, (int, float)) for one in row) for row in rows):
                items = [of_numpy(function, *numbers) for numbers in zip(*rows, strict=True)]
                dtype = _ARRAY(list(map(plain, items))).dtype
                return _ARRAY(items) if dtype == np.bool_ else Numbers(items, dtype)
        return getattr(function, method)(*(one.__array__() if isinstance(one, Numbers) else one for one in operands), **options)

    @property
    def shape(self) -> tuple[int]:
        """How many there are."""
        return (len(self),)

    def astype(self, dtype: Any, **_: Any) -> Any:
        """The numbers as integers or floating-point ones."""
        return Numbers([as_kind(one, dtype) for one in self], dtype)

    def tolist(self) -> list[Any]:
        """The numbers."""
        return list(self)

    def min(self, axis: Any = None, out: Any = None) -> Any:
        """The least, with its origin."""
        return _MIN(self)

    def max(self, axis: Any = None, out: Any = None) -> Any:
        """The largest, with its origin."""
        return _MAX(self)

    def prod(self, axis: Any = None, dtype: Any = None, out: Any = None, **_: Any) -> Any:
        """The product, with its origin."""
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index) if isinstance(index, int) else self.__array__()[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(name)
        return getattr(self.__array__(), name)


register_pytree_node(Numbers, lambda numbers: (list(numbers), numbers.dtype), lambda items, dtype: Numbers(list(items), dtype))


def _settled(item: Any) -> Any:
    """An argument with numbers that the graph checks in place of sizes; the same object where it holds none."""
    if isinstance(item, slice):
        return slice(*map(_settled, (item.start, item.stop, item.step)))
    if isinstance(item, Numbers):  # which numpy asks
        return item
    if isinstance(item, (list, tuple)) and any(map(_holds_size, item)):
        return (tuple if isinstance(item, tuple) else list)(map(_settled, item))
    return item if origin_of(item) is None else settle(item)


def _holds_size(item: Any) -> bool:
    if isinstance(item, (list, tuple)) and not isinstance(item, Numbers):
        return any(map(_holds_size, item))
    return isinstance(item, slice) or origin_of(item) is not None


def _settling(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose arguments the graph checks where they are sizes."""

    @wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*map(_settled, args), **{name: _settled(value) for name, value in kwargs.items()})

    return call


def _of_sizes(function: Callable[..., Any], twin: Callable[..., Any], of_list: bool) -> Callable[..., Any]:
    """The function of numpy; the twin where a size, or a list of numbers with sizes among them, is all that it is given."""
    settling = _settling(function)

    @wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if len(args) == 1 and not kwargs else None
        items = given if isinstance(given, (list, tuple)) else [given]
        alone = all(isinstance(item, (int, float)) for item in items) and any(map(origin_of, items))
        return twin(given) if alone and (items is given) is of_list else settling(*args, **kwargs)

    return call


def _array(numbers: Any) -> Any:
    return Numbers(list(numbers), _ARRAY(list(map(plain, numbers))).dtype)


def _rounded(number: Any) -> Any:
    return derive(type(plain(number)), derive(round, number))


class _Indexed:
    """``np.mgrid`` and its like, whose bounds the graph checks where they are sizes."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def __getitem__(self, index: Any) -> Any:
        return self._held[_settled(index)]


TWINS: Final[dict[str, Any]] = {
    **{
        name: _settling(function)
        for name, function in vars(np).items()
        if callable(function) and not isinstance(function, (type, np.ufunc)) and not name.startswith("_")
    },
    **{name: _of_sizes(getattr(np, name), _array, of_list=True) for name in ("array", "asarray")},
    **{name: _of_sizes(getattr(np, name), _rounded, of_list=False) for name in ("round", "around")},
    "prod": _of_sizes(np.prod, math.prod, of_list=True),
    **{name: _Indexed(getattr(np, name)) for name in ("mgrid", "ogrid", "r_", "c_")},
}
"""What stands for functions of numpy while a model is traced."""
