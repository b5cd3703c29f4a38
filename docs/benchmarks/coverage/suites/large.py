"""Models too large to build with values: their parameters on the meta device, and a copy of reduced depth.

Reduced depth is the same for all models: of every run of consecutive blocks in a container that have the same class and
the same shapes of tensors, two are left. What is left out repeats what is kept, and two neighbours keep what alternates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor, nn

_KEPT = 2


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built within hold parameters without values; their buffers, which may be computed, are real."""
    usual = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        usual(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = usual  # type: ignore[method-assign]


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


def fill(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter without values random ones, in place: matrices scaled by their fan-in, vectors around one."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(_values(parameter, generator), parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]


def _values(parameter: Tensor, generator: torch.Generator) -> Tensor:
    if parameter.dim() < 2:
        return torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype) + 0.5
    fan_in = parameter[0].numel()
    return torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * fan_in**-0.5
