"""Shape inference on the meta device, remembered: networks repeat their blocks, and a meta kernel takes long.

A call that was seen before, with operands of the same shape, strides and dtype, makes its results without running.
Operators that work element by element or channel by channel are known after one call for any sizes in the same places.
Views run each time: their results share memory with their operands, and they are quick.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

import torch

_MOST = 100_000  # calls remembered; each takes about a kilobyte


_META: Final = torch.device("meta")
_NUMBERS: Final = frozenset({int, float, bool, type(None)})
_Places: TypeAlias = dict[int, int]  # size -> its place among the sizes of a call, negative; size 1 stays 1


class _Layout(NamedTuple):
    """What a result is made from. stride: None for contiguous ones, whose sizes may be places."""

    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
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
        places: _Places | None = {1: 1} if any_size else None
        try:
            key = (func, _key(args, places), _key(tuple(kwargs.items()), places) if kwargs else ())
            known = self._known.get(key)
        except TypeError:  # an argument that is no key, such as a generator
            return func(*args, **kwargs)
        if known is not None:
            return args[0] if kind == "in-place" else _make(known, list(places or ()))
        before = _key(args[:1], None)
        result = func(*args, **kwargs)
        if kind == "in-place":
            if _key(args[:1], None) == before and result is args[0]:
                self._known[key] = True
        elif (layout := _layout(result, places)) is not None:
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


def _key(item: Any, places: _Places | None) -> Any:
    """What the results depend on, with the places of sizes if any size will do. Not hashable for arguments that are no key."""
    if type(item) in _NUMBERS:
        return type(item), item
    if isinstance(item, torch.Tensor):
        if places is None:
            return item.shape, item.stride(), item.dtype
        return tuple([places.setdefault(size, -len(places)) for size in item.shape]), item.dtype
    if isinstance(item, (tuple, list)):
        return tuple([_key(part, places) for part in item])
    return type(item), item


def _layout(result: Any, places: _Places | None) -> Any:
    """What is needed to make the result again; None where that is more than meta tensors of the operands' sizes."""
    if isinstance(result, torch.Tensor):
        if not result.is_meta:
            return None
        if places is None:
            return _Layout(tuple(result.shape), result.stride(), result.dtype)
        if not result.is_contiguous() or any(size not in places for size in result.shape):
            return None
        return _Layout(tuple([places[size] for size in result.shape]), None, result.dtype)
    if isinstance(result, (tuple, list)):
        parts = [_layout(part, places) for part in result]
        return None if any(part is None for part in parts) else (type(result), parts)
    return None


def _make(layout: Any, sizes: list[int]) -> Any:
    """Results of a remembered layout. sizes: those of this call's operands, by place."""
    if isinstance(layout, _Layout):
        if layout.stride is not None:
            return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype, device=_META)
        return torch.empty([sizes[-size] if size < 0 else size for size in layout.shape], dtype=layout.dtype, device=_META)
    kind, parts = layout
    return kind([_make(part, sizes) for part in parts])


SHAPES = ShapeCache()
"""The cache of this process."""
