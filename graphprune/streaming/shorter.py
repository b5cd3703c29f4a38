"""A copy of reduced depth of a model too large to build: of every run of equal blocks two are left, with random values.

Reduced depth is the same for all models: of every run of consecutive blocks in a container that have the same class and the same
shapes of tensors, two are left. What is left out repeats what is kept, and two neighbours keep what alternates.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, Final

import torch
from torch import Tensor, nn

_KEPT: Final = 2


def shorten(model: nn.Module) -> int:
    """Leave two of every run of equal blocks in lists and sequences of modules, in place; returns how many went."""
    gone = 0
    for module in list(model.modules()):
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            surplus = _surplus(list(module))
            gone += len(surplus)
            for index in reversed(surplus):
                del module[index]
    return gone


def _surplus(blocks: list[nn.Module]) -> list[int]:
    """Places of the blocks that repeat, after two like them."""
    runs = groupby(range(len(blocks)), lambda index: _signature(blocks[index]))
    return [index for signature, run in runs if len(signature) > 1 for index in list(run)[_KEPT:]]


def _signature(module: nn.Module) -> tuple[object, ...]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return type(module), *((name, tuple(tensor.shape)) for name, tensor in tensors)


def fill(model: nn.Module, seed: int = 0, dtype: torch.dtype | None = None) -> None:
    """Give every parameter and buffer without values random ones, in place: matrices scaled by their fan-in, vectors around one,
    zeros where they are integers. dtype: of the floating-point ones, instead of their own."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[int, Any] = {}
    for module in model.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for store in stores:
            for name, tensor in store.items():
                if tensor is not None and tensor.is_meta:
                    if id(tensor) not in made:
                        made[id(tensor)] = _filled(tensor, generator, dtype or tensor.dtype)
                    store[name] = made[id(tensor)]


def _filled(tensor: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor, device="cpu")
    values = _values(tensor, generator, dtype)
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _values(tensor: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    if tensor.dim() < 2:
        return torch.rand(tensor.shape, generator=generator, dtype=dtype) + 0.5
    scale: float = max(1, tensor[:1].numel()) ** -0.5
    return torch.randn(tensor.shape, generator=generator, dtype=dtype) * scale
