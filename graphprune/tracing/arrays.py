"""Arrays of numpy that a model reads from tensors: ``pack_padded_sequence(x, lengths.cpu().numpy())``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from torch.utils._pytree import register_pytree_node

from graphprune.tracing.conversions import extreme
from graphprune.tracing.sizes import settle

_MIN, _MAX = extreme(min), extreme(max)


class Numbers(NDArrayOperatorsMixin, list[Any]):
    """Numbers that remember their places in a tensor, as an array of one axis.

    Taken one by one, as the least or the largest, or for a tensor, they are the graph's. What else numpy computes of them is what
    it is for the example inputs, which the graph checks.
    """

    __class__: Any = np.ndarray  # what isinstance sees
    ndim = 1

    def __init__(self, items: list[Any], dtype: Any) -> None:
        super().__init__(items)
        self._dtype = dtype

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return np.array(list(map(settle, self)), dtype or self._dtype)

    def __array_ufunc__(self, function: np.ufunc, method: str, *operands: Any, out: Any = None, **options: Any) -> Any:
        return getattr(function, method)(*(np.asarray(one) if isinstance(one, Numbers) else one for one in operands), **options)

    def min(self, axis: Any = None, out: Any = None) -> Any:
        """The least, with its origin."""
        return _MIN(self)

    def max(self, axis: Any = None, out: Any = None) -> Any:
        """The largest, with its origin."""
        return _MAX(self)

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index) if isinstance(index, int) else np.asarray(self)[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)


register_pytree_node(Numbers, lambda numbers: (list(numbers), numbers._dtype), lambda items, dtype: Numbers(list(items), dtype))
