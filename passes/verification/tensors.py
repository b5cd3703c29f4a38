"""The tensors that a verification runs with: the original's, drawn where they are constant, whole with gaps and sliced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _disable_current_modes

from graphprune.arithmetic import is_fractional, real_parts
from graphprune.ir.twins import named_tensors, twin


def in_precision(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor in this dtype, or in the complex one of its precision."""
    if dtype is None or not is_fractional(tensor):
        return tensor
    return tensor.detach().to(dtype.to_complex() if tensor.is_complex() else dtype)


class Informative(Mapping[str, Tensor]):
    """The tensors that both models run with, by name: the original's, in a dtype, random where they are constant.

    random: names of the latter, as far as they were asked for.
    """

    def __init__(self, tensors: Mapping[str, Tensor], seed: int, dtype: torch.dtype | None) -> None:
        self._tensors, self._dtype = tensors, dtype
        self._seeds = {name: seed + place for place, name in enumerate(tensors)}
        self.random: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        tensor = in_precision(self._tensors[name], self._dtype)
        result = _informative(tensor, torch.Generator().manual_seed(self._seeds[name]))
        if result is not tensor:
            self.random.add(name)
        return result

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Made(Mapping[str, Tensor]):
    """What is made of tensors by name, each when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], make: Callable[[str, Tensor], Tensor]) -> None:
        self._tensors, self._make = tensors, make

    def __getitem__(self, name: str) -> Tensor:
        with _disable_current_modes():  # a node that runs under one may be what asks
            return self._make(name, self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _informative(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """The tensor, or random values where it is constant: means of zero and scales of one or 1e-6 hide errors."""
    if tensor.is_complex():
        parts = real_parts(tensor.detach())
        drawn = _informative(parts, generator)
        return tensor if drawn is parts else torch.view_as_complex(drawn)
    if not tensor.is_floating_point() or tensor.numel() < 2:
        return tensor
    low, high = tensor.detach().aminmax()
    if low != high:
        return tensor
    if float(low) == 0.0:
        random = torch.randn(tensor.shape, generator=generator) * 0.5
    else:
        random = torch.rand(tensor.shape, generator=generator) + 0.5
    return random.to(device=tensor.device, dtype=tensor.dtype)


def masked(tensor: Tensor, axes: Mapping[int, list[int]]) -> Tensor:
    """Full size, removed slices missing (NaN)."""
    if not axes or not is_fractional(tensor):
        return tensor
    result = tensor.detach().clone()
    for axis, indices in axes.items():
        gone = torch.ones(tensor.shape[axis], dtype=torch.bool, device=tensor.device)
        gone[indices] = False
        result.movedim(axis, 0)[gone] = torch.nan
    return result


def sliced(tensor: Tensor, axes: Mapping[int, list[int]]) -> Tensor:
    """The kept slices."""
    result = tensor.detach()
    for axis, indices in axes.items():
        result = result.index_select(axis, torch.tensor(indices, device=tensor.device))
    return result


def model_with(
    module: fx.GraphModule, full: Mapping[str, Tensor], values: Mapping[str, Tensor], loads: bool
) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
    """A copy of a module that runs with these tensors; or, where it loads them, one without values, and where they come from."""
    if not loads:
        return _with_tensors(module, values), None
    return _with_tensors(module, {name: tensor.to("meta") for name, tensor in full.items()}), values


def _with_tensors(module: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module in eval mode with these tensors in it, by name; others stay."""
    names = {id(tensor): name for name, tensor in named_tensors(module).items()}

    def replacement(tensor: Tensor) -> Tensor:
        value = values.get(names.get(id(tensor), ""))
        if value is None:
            return tensor
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(value, requires_grad=False)
        return value.detach().clone()  # a call may change it: in this copy alone

    return twin(module, replacement).eval()
