"""A model divided among processes while it trains (FSDP2): parameters, gradients and the state of the optimiser."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.optim import optimizer as hooks
from torch.utils._pytree import tree_map

from graphprune.errors import UsageError

_BLOCK: Final = 4_000_000  # parameters that are gathered at a time: few enough to be small beside the model, many for a transfer


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a model, of whose parameters each process holds a part, on the device that it computes with.

    The layers of a graph are gathered some at a time as the forward and the backward pass come to them, and let go again. Other
    models are gathered whole for a step, since nothing tells which of their modules are called.

    Raises UsageError where hooks on the steps of optimisers are in force, such as penalties and masks: they know whole parameters.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if hooks._global_optimizer_pre_hooks or hooks._global_optimizer_post_hooks:
        raise UsageError(
            "Penalties and masks act on whole parameters, which sharded training does not have. "
            "Train with shard=false, or a method without them on the smaller model (masks=false)."
        )
    result = copy.deepcopy(model)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks(result):
        fully_shard(list(block), mesh=mesh)
    fully_shard(result, mesh=mesh)
    return result


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


def put_back(model: nn.Module, sharded: nn.Module) -> None:
    """Give a model the values of its sharded copy; one tensor at a time is whole on the device."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in [*sharded.named_parameters(), *sharded.named_buffers()]:
            own[name].copy_(_whole(tensor))


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser of a sharded model, as that of the whole model would be; on the CPU."""
    result: dict[str, Any] = tree_map(lambda value: _whole(value).cpu() if _is_sharded(value) else value, optimiser.state_dict())
    return result


def load_optimiser_state(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimiser of a sharded model the state of a whole one's, each process its part.

    Raises what ``load_state_dict`` does where the state is not of such a model.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    keys = [key for group in state["param_groups"] for key in group["params"]]
    divided = {
        key: {name: _like(value, parameter) for name, value in state["state"].get(key, {}).items()}
        for key, parameter in zip(keys, parameters, strict=True)
    }
    optimiser.load_state_dict({**state, "state": {key: entry for key, entry in divided.items() if entry}})


def _is_sharded(value: object) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def _whole(value: Any) -> Tensor:
    return value.full_tensor() if _is_sharded(value) else value  # type: ignore[no-any-return]


def _like(value: Any, parameter: Any) -> Any:
    """A part of what an optimiser keeps in the shape of a parameter, as the parameter is divided."""
    from torch.distributed.tensor import distribute_tensor

    if not isinstance(value, Tensor) or value.shape != parameter.shape or not _is_sharded(parameter):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
