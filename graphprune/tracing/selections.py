"""What a mask selects of one tensor, written where it selects of another: ``x[mask] = y[mask]``, a choice element by element.

How many elements a mask of activations or of floating-point inputs selects, a trace does not know. Here it need not. Sums of what
was selected, and products with numbers (``x[mask] += 1``), are those of all elements, of which the same are chosen. Of other
functions the gradients of elements that are not chosen could be no zeros, but NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes

from graphprune.rules import tensors_in
from graphprune.tracing.untraced import Untraceable

_SUMS: Final = ("add", "sub", "__rsub__")
_PRODUCTS: Final = ("mul", "div", "neg")
_IN_PLACE: Final = frozenset(getattr(torch.Tensor, f"{name}_") for name in ("add", "sub", "mul", "div", "neg"))


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
        if self._is_linear(func, args, kwargs):
            return partial(self._compute, func)
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

    def _is_linear(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether this adds to what one mask has selected, or multiplies it with a number."""
        name = getattr(func, "__name__", "").removesuffix("_" if func in _IN_PLACE else "")
        found = [self._selected.get(id(one)) for one in args] if self._selected and name in _SUMS + _PRODUCTS and not kwargs else []
        chosen = [one for one in found if one is not None]
        if not chosen or any(_versions(one.source, one.mask) != one.versions for one in chosen):
            return False
        first = chosen[0]
        same = all(one.mask is first.mask and one.source.shape == first.source.shape for one in chosen)
        others = [one for one, selected in zip(args, found, strict=True) if selected is None]
        numbers = all(isinstance(one, (int, float)) or (name in _SUMS and _is_number(one)) for one in others)
        return same and numbers and (name in _SUMS or len(chosen) == 1)

    def _compute(self, func: Any, *args: Any) -> torch.Tensor:
        """The function of whole tensors in place of what was selected of them; in place, of what stands for a selection alone."""
        found = [self._selected.get(id(one)) for one in args]
        mask = next(one.mask for one in found if one is not None)
        plain = getattr(torch.Tensor, func.__name__.removesuffix("_")) if func in _IN_PLACE else func
        source = plain(*[given if one is None else one.source for given, one in zip(args, found, strict=True)])
        if func not in _IN_PLACE:
            return self._select(source, mask)
        if found[0] is None or source.dtype != found[0].source.dtype:
            self.refuse(args)
        self._selected[id(args[0])] = _Selected(args[0], source, mask, _versions(source, mask))
        return args[0]  # type: ignore[no-any-return]

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


def _is_number(item: Any) -> bool:
    """Whether a tensor holds one number."""
    return isinstance(item, torch.Tensor) and not item.dim()
