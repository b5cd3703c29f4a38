"""What a mask selects of one tensor, written where it selects of another: ``x[mask] = y[mask]``, a choice element by element.

How many elements a mask of activations or of floating-point inputs selects, a trace does not know. Here it need not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes

from graphprune.rules import tensors_in
from graphprune.tracing.untraced import Untraceable


class _Selected(NamedTuple):
    """``source[mask]``, as these were then. stands_for: what the model has of it, whose size says nothing."""

    stands_for: torch.Tensor
    source: torch.Tensor
    mask: torch.Tensor
    versions: tuple[int, int]


class Selections:
    """The selections of one trace. is_known: whether the inputs alone decide what a tensor holds."""

    def __init__(self, is_known: Callable[[torch.Tensor], bool]) -> None:
        self._is_known = is_known
        self._selected: dict[int, _Selected] = {}

    def body(self, func: Any, args: Any, kwargs: Any) -> Callable[..., Any] | None:
        """What is called in place of a call that selects, or that writes what was selected; None for all others.

        Raises Untraceable for other uses of what was selected.
        """
        if (
            func is torch.Tensor.__setitem__
            and len(args) == 3
            and (found := self._selected.get(id(args[2])))
            and _written(found, *args)
        ):
            return lambda x, mask, _: x.copy_(torch.where(mask[(..., *[None] * (x.dim() - mask.dim()))], found.source, x))
        self.refuse((args, kwargs))
        return self._select if func is torch.Tensor.__getitem__ and self._selects(*args) else None

    def refuse(self, tree: Any) -> None:
        """Raise Untraceable where something selected is among arguments or results."""
        if self._selected and any(id(tensor) in self._selected for tensor in tensors_in((tree,))):
            raise Untraceable("how many elements a mask selects depends on values that the model computes or is to judge")

    def _selects(self, source: torch.Tensor, mask: Any) -> bool:
        """Whether this is a selection of unknown size."""
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or not (mask.is_meta and mask.dim()):
            return False
        return mask.shape == source.shape[: mask.dim()] and not self._is_known(mask)

    def _select(self, source: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            stands_for = torch.empty(0, dtype=source.dtype, device="meta")
        self._selected[id(stands_for)] = _Selected(stands_for, source, mask, _versions(source, mask))
        return stands_for


def _written(selected: _Selected, target: torch.Tensor, index: Any, value: Any) -> bool:
    """Whether a selection is written where the same mask selects."""
    same = index is selected.mask and value is selected.stands_for
    return same and target.shape == selected.source.shape and selected.versions == _versions(selected.source, selected.mask)


def _versions(source: torch.Tensor, mask: torch.Tensor) -> tuple[int, int]:
    return source._version, mask._version
