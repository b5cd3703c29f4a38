"""Shallow copies of module trees with other tensors in them: the copy costs no memory and the original is not touched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def twin(module: nn.Module, replace: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy of a module tree that shares everything but its tensors; each becomes ``replace(tensor)``, tied ones once.

    Plain tensor attributes are replaced like parameters and buffers. Modules that appear twice stay one module.
    """
    modules: dict[int, nn.Module] = {}
    tensors: dict[int, torch.Tensor] = {}

    def new(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in tensors:
            tensors[id(tensor)] = replace(tensor)
        return tensors[id(tensor)]

    def copy(source: nn.Module) -> nn.Module:
        if id(source) in modules:
            return modules[id(source)]
        result: nn.Module = object.__new__(type(source))  # GraphModule.__new__ would make a class without forward
        modules[id(source)] = result
        result.__dict__ = {key: new(v) if isinstance(v, torch.Tensor) else v for key, v in source.__dict__.items()}
        for store in ("_parameters", "_buffers"):
            entries = source.__dict__[store]
            result.__dict__[store] = {key: None if v is None else new(v) for key, v in entries.items()}
        result.__dict__["_non_persistent_buffers_set"] = set(source._non_persistent_buffers_set)
        children = source.__dict__["_modules"]
        result.__dict__["_modules"] = {key: None if child is None else copy(child) for key, child in children.items()}
        return result

    return copy(module)


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, then buffers, by name, tied ones under each of their names."""
    parameters: dict[str, torch.Tensor] = {}
    buffers: dict[str, torch.Tensor] = {}

    def collect(prefix: str, source: nn.Module) -> None:
        parameters.update((prefix + name, tensor) for name, tensor in source._parameters.items() if tensor is not None)
        buffers.update((prefix + name, tensor) for name, tensor in source._buffers.items() if tensor is not None)
        for name, child in source._modules.items():
            if child is not None:
                collect(f"{prefix}{name}.", child)

    collect("", module)
    return parameters | buffers


def set_mode(module: nn.Module, training: bool) -> None:
    """Put one module in train or eval mode; nothing is written where it is in it (attribute writes of modules are slow)."""
    if module.training != training:
        module.training = training


def restore_modes(module: nn.Module, like: nn.Module) -> None:
    """Give every module the train or eval mode, and every buffer the persistence, of its namesake in ``like``."""
    others = dict(like.named_modules())
    for name, child in module.named_modules():
        other = others.get(name, like)
        set_mode(child, other.training)
        # What the namesake does not have as a buffer, tracing made: it is no part of the state.
        made = child._buffers.keys() - other._buffers.keys()
        child._non_persistent_buffers_set |= made | (other._non_persistent_buffers_set & child._buffers.keys())
