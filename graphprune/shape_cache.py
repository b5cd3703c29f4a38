"""Shape inference on the meta device, remembered: networks repeat their blocks, and a meta kernel takes long.

A call that was seen before, with operands of the same shape, strides and dtype, makes its results without running.
Operators that work element by element or channel by channel are known after one call for any sizes in the same places.
Views run each time: their results share memory with their operands, and they are quick.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

_MOST = 100_000  # calls remembered; each takes about a kilobyte


class _Layout(NamedTuple):
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class ShapeCache:
    """Runs operators on meta tensors. What it remembers are facts about operators, which hold for every model."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}
        self._kinds: dict[Any, str] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], any_size: bool = False) -> Any:
        """The operator's result, from memory where that is sound.

        any_size: each size of the results is a size of the operands, whatever these are; all operands are contiguous.
        """
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _kind(func._schema)
        if kind == "view":
            return func(*args, **kwargs)
        sizes = _Sizes(any_size)
        try:
            key = (func, sizes.key(args), sizes.key(tuple(kwargs.items())))
            known = self._known.get(key)
        except TypeError:  # an argument that is no key, such as a generator
            return func(*args, **kwargs)
        if known is not None:
            return args[0] if kind == "in-place" else sizes.make(known)
        before = _Sizes(False).key(args[:1])
        result = func(*args, **kwargs)
        if kind == "in-place":
            if _Sizes(False).key(args[:1]) == before and result is args[0]:
                self._known[key] = True
        elif (layout := sizes.layouts(result)) is not None:
            self._known[key] = layout
        if len(self._known) > _MOST:
            self._known.clear()
        return result


def _kind(schema: Any) -> str:
    """``new`` results share no memory with arguments; ``in-place`` returns its first argument; all others are views."""
    written = [argument.alias_info is not None for argument in schema.arguments]
    if not any(written) and all(result.alias_info is None for result in schema.returns):
        return "new"
    first = schema.arguments[0].alias_info
    if first is not None and first.is_write and not any(written[1:]) and len(schema.returns) == 1:
        return "in-place"
    return "view"


class _Sizes:
    """Turns operands into keys, and remembered layouts into results; sizes go by place if any size will do."""

    def __init__(self, any_size: bool) -> None:
        self._by_place = any_size
        self._places: dict[int, int] = {1: 1}  # size -> its place; negative, so that it is no size
        self._sizes: list[int] = []

    def key(self, item: Any) -> Any:
        """What the results depend on. Raises TypeError (when hashed) for arguments that are no key."""
        if isinstance(item, torch.Tensor):
            return self._layout(item)
        if isinstance(item, (tuple, list)):
            return tuple([self.key(part) for part in item])
        return (type(item), item)

    def _layout(self, tensor: torch.Tensor) -> _Layout:
        shape, stride = tuple(tensor.shape), tensor.stride()
        if self._by_place:
            return _Layout(tuple([self._place(size) for size in shape]), (), tensor.dtype)
        return _Layout(shape, stride, tensor.dtype)

    def _place(self, size: int) -> int:
        place = self._places.get(size)
        if place is None:
            self._sizes.append(size)
            place = self._places[size] = -len(self._sizes)
        return place

    def layouts(self, result: Any) -> Any:
        """What is needed to make the result again; None where that is more than meta tensors of the operands' sizes."""
        if isinstance(result, torch.Tensor):
            if not result.is_meta or (self._by_place and not self._same_sizes(result)):
                return None
            return self._layout(result)
        if isinstance(result, (tuple, list)):
            parts = [self.layouts(part) for part in result]
            return None if any(part is None for part in parts) else (type(result), parts)
        return None

    def _same_sizes(self, tensor: torch.Tensor) -> bool:
        return tensor.is_contiguous() and all(size in self._places for size in tensor.shape)

    def make(self, layout: Any) -> Any:
        """Results of a remembered layout, at the sizes of this call's operands."""
        if isinstance(layout, _Layout):
            shape = [self._sizes[-size - 1] if size < 0 else size for size in layout.shape]
            if layout.stride or not layout.shape:
                return torch.empty_strided(shape, layout.stride, dtype=layout.dtype, device="meta")
            return torch.empty(shape, dtype=layout.dtype, device="meta")
        kind, parts = layout
        return kind([self.make(part) for part in parts])


SHAPES = ShapeCache()
"""The cache of this process."""
