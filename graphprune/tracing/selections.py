"""What a mask selects and where it is written: ``x[mask] = y[mask]``, ``x[mask] *= 2``, a choice element by element.

As a choice it says of every element what becomes of it, which calls that select and write do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import torch
from torch.utils._pytree import tree_map

from graphprune.channels.tape import Operation
from graphprune.rules import tensors_in

_SUMS: Final = ("add", "sub", "__rsub__")
_SCALES: Final = ("mul", "div", "neg")
#: Stands where a mask does not select for what is there, whose root or inverse could have no gradient; NaN times zero is not zero.
_HARMLESS: Final = 0.5


class _Selected(NamedTuple):
    """``source[mask]``, or what was computed of it element by element.

    whole: computes the same of all elements. read: the tensors that it reads, and the result itself. versions: as they were then.
    """

    whole: Callable[[], torch.Tensor]
    shape: torch.Size
    mask: torch.Tensor
    read: tuple[torch.Tensor, ...]
    versions: tuple[int, ...]

    def stands(self, written: torch.Tensor | None = None) -> bool:
        """Whether nothing has been written since, but this tensor once."""
        now = zip(self.read, self.versions, strict=True)
        return all(tensor._version == version + (tensor is written) for tensor, version in now)


class Selections:
    """The selections of one trace.

    unknown: whether how many elements something has is for values to say that the trace does not know. unused: gets what was
    selected and is not read after all.
    """

    def __init__(self, unknown: Callable[[torch.Tensor], bool], unused: Callable[[Any], None]) -> None:
        self._unknown = unknown
        self._unused = unused
        self._selected: dict[int, _Selected] = {}

    def note(self, func: Any, args: Any, kwargs: Any, result: Any, operations: list[Operation]) -> None:
        """A call that was made, and the operators that it has run."""
        if func is torch.Tensor.__getitem__:
            source, mask = args
            if self._unknown(result) and isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
                read = (result, source, mask)
                self._selected[id(result)] = _Selected(lambda: source, source.shape, mask, read, _versions(read))
        elif self._selected and isinstance(result, torch.Tensor):
            self._note_computed(func, args, kwargs, result, operations)

    def _note_computed(self, func: Any, args: Any, kwargs: Any, result: Any, operations: list[Operation]) -> None:
        operands = tensors_in((args, kwargs))
        parts = {id(tensor): part for tensor in operands if (part := self._selected.get(id(tensor))) is not None}
        first = next(iter(parts.values()), None)
        if (
            first is None
            or not operations
            or first.mask.dim() != len(first.shape)
            or not all(torch.Tag.pointwise in run.operator.tags for run in operations)
            or not all(parts[id(one)].mask is first.mask if id(one) in parts else not one.dim() for one in operands)
        ):
            return
        writes = bool(args) and result is args[0]
        if not all(part.stands(result if writes else None) for part in parts.values()):
            return

        linear = _is_linear(func, [id(one) in parts for one in args])

        def operand(leaf: Any) -> Any:
            if id(leaf) not in parts:
                return leaf
            chosen = parts[id(leaf)].whole()
            return chosen if linear or not chosen.is_floating_point() else torch.where(first.mask, chosen, _HARMLESS)

        def whole() -> torch.Tensor:
            given = [tree_map(operand, tree) for tree in (args, kwargs)]
            target = (given[0][0].clone(), *given[0][1:]) if writes else given[0]
            made: torch.Tensor = func(*target, **given[1])
            return made

        others = [tensor for part in parts.values() for tensor in part.read if tensor is not result]
        read = (result, *others, *operands)
        self._selected[id(result)] = _Selected(whole, first.shape, first.mask, read, _versions(read))

    def body(self, func: Any, args: Any) -> Callable[..., Any] | None:
        """What is called in place of a call that writes what was selected; None for all others."""
        if func is not torch.Tensor.__setitem__ or len(args) != 3 or (found := self._selected.get(id(args[2]))) is None:
            return None
        target, index, value = args
        if index is not found.mask or target.shape != found.shape or not found.stands():
            return None
        self._unused((value,))
        return lambda x, mask, _: x.copy_(torch.where(mask[(..., *[None] * (x.dim() - mask.dim()))], found.whole(), x))


def _is_linear(func: Any, selected: list[bool]) -> bool:
    """Whether a call adds selections, or scales one: what it does where the mask does not select has no part in any gradient."""
    name = getattr(func, "__name__", "").removesuffix("_")
    return name in _SUMS or (name in _SCALES and selected[:1] == [True] and not any(selected[1:]))


def _versions(tensors: Iterable[torch.Tensor]) -> tuple[int, ...]:
    return tuple([tensor._version for tensor in tensors])
