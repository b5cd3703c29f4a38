"""FSDP2 in few words: which models are sharded, whole tensors of them, and graphs divided among processes."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

_BLOCK: Final = 4_000_000  # parameters that are gathered at a time: few enough to be small beside the model, many for a transfer


def divide(model: nn.Module, mesh: Any, **options: Any) -> None:
    """Leave each process of a mesh a part of a model's parameters. options: of ``fully_shard``.

    The layers of a graph are gathered some at a time as the forward and the backward pass come to them, and let go again. Other
    models are gathered whole for a step, since nothing tells which of their modules are called.
    """
    from torch.distributed.fsdp import fully_shard

    for block in blocks(model):
        fully_shard(list(block), mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)


def blocks(model: nn.Module) -> list[list[nn.Module]]:
    """Layers of a graph that are called once and share nothing, in the order of their calls, cut into lists of some size."""
    if not isinstance(model, fx.GraphModule):
        return []
    calls = Counter(node.target for node in model.graph.nodes if node.op == "call_module")
    taken = {node.target.rpartition(".")[0] for node in model.graph.nodes if node.op == "get_attr"}
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found: list[list[nn.Module]] = [[]]
    size = 0
    for name, count in calls.items():
        layer = model.get_submodule(str(name))
        own = list(layer.parameters())
        if not own or count > 1 or any(owners[id(parameter)] > 1 for parameter in own) or _within(str(name), taken):
            continue
        found[-1].append(layer)
        size += sum(parameter.numel() for parameter in own)
        if size > _BLOCK:
            found.append([])
            size = 0
    return [block for block in found if block]


def _within(name: str, taken: set[str]) -> bool:
    """Whether the graph reads tensors of a layer, or of a part of it, other than by calling it."""
    return any(owner == name or owner.startswith(f"{name}.") for owner in taken)


def is_divided(value: object) -> bool:
    """Whether a value is a tensor of which each process has a part."""
    if not _distributed():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def whole(value: Any) -> Tensor:
    """A tensor as it is; one that is divided, gathered from all processes."""
    return value.full_tensor() if is_divided(value) else value  # type: ignore[no-any-return]


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's parameters are divided among processes."""
    return _distributed() and (any(map(is_divided, model.parameters())) or bool(sharded_modules(model)))


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules that ``fully_shard`` was called on."""
    if not _distributed():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _distributed() -> bool:
    """Whether there are processes; asked first, since DTensor takes seconds to import."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
