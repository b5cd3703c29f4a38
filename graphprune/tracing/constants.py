"""Constants that a forward makes: the same data in every call, so they are computed once, and sliced as parameters are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from graphprune.rules import tensors_in
from graphprune.tracing.sizes import origin_of, plain
from graphprune.tracing.targets import CONSTANT_FACTORIES, KEPT_AS_CALLS, writes
from graphprune.tracing.tensor_types import LIFTS


class Constants:
    """The constants of one trace: real tensors, computed while the model runs on stand-ins.

    varies: whether a number that remembers its origin may be another one in another call, as no width of a layer is.
    """

    def __init__(self, varies: Callable[[Any], bool]) -> None:
        self._known: dict[int, torch.Tensor] = {}
        self._varies = varies

    def has(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether a call's result is a constant: it is made of constants and of numbers that are the same in every call."""
        if func is LIFTS:
            return not args[0].is_meta
        makes = func in CONSTANT_FACTORIES
        if not (makes or self._known):
            return False
        tensors = tensors_in((*args, *kwargs.values()))
        if not (tensors or makes) or any(id(tensor) not in self._known for tensor in tensors):
            return False
        sized = [number for leaf in tree_leaves((args, kwargs)) for number in _sized(leaf)]
        return not any(func in KEPT_AS_CALLS or self._varies(number) for number in sized)

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The call's result."""
        with _disable_current_modes():
            result = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
        self._known |= {id(tensor): tensor for tensor in tensors_in((result,))}
        return result

    def written(self, func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
        """The constant that a call writes into, first, and all that share its memory; empty where it writes into none."""
        if not self._known:
            return []
        target = args[0] if args and (writes(func) or kwargs.get("inplace")) else kwargs.get("out")
        if id(target) not in self._known:
            return []
        memory = target.untyped_storage()._cdata
        return [target, *(held for held in self._known.values() if held is not target and held.untyped_storage()._cdata == memory)]

    def drop(self, tensors: list[torch.Tensor]) -> None:
        """From here on these are data."""
        for tensor in tensors:
            del self._known[id(tensor)]


def _sized(leaf: Any) -> list[Any]:
    """The numbers that remember where they came from: a leaf itself, or those in a shape or slice."""
    parts = leaf if isinstance(leaf, tuple) else (leaf.start, leaf.stop, leaf.step) if isinstance(leaf, slice) else (leaf,)
    return [part for part in parts if origin_of(part) is not None]


def _plain(leaf: Any) -> Any:
    """A leaf without the origins of its numbers."""
    if isinstance(leaf, slice):
        return slice(plain(leaf.start), plain(leaf.stop), plain(leaf.step))
    return torch.Size(map(plain, leaf)) if isinstance(leaf, tuple) else plain(leaf)
