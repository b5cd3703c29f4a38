"""A model divided among processes while it trains (FSDP2): parameters, gradients and the state of the optimiser."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as hooks
from torch.utils._pytree import tree_map

from graphprune.errors import UsageError
from graphprune.placement.fsdp import divide, is_divided, whole


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a model, of whose parameters each process holds a part, on the device that it computes with.

    See :func:`graphprune.placement.fsdp.divide` for how.

    Raises UsageError where hooks on the steps of optimisers are in force, such as penalties and masks: they know whole parameters.
    """
    from torch.distributed.device_mesh import init_device_mesh

    if hooks._global_optimizer_pre_hooks or hooks._global_optimizer_post_hooks:
        raise UsageError(
            "Penalties and masks act on whole parameters, which sharded training does not have. "
            "Train with shard=false, or a method without them on the smaller model (masks=false)."
        )
    result = copy.deepcopy(model)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    divide(result, mesh)
    return result


def put_back(model: nn.Module, sharded: nn.Module) -> None:
    """Give a model the values of its sharded copy; one tensor at a time is whole on the device."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in [*sharded.named_parameters(), *sharded.named_buffers()]:
            own[name].copy_(whole(tensor))


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser of a sharded model, as that of the whole model would be; on the CPU."""
    result: dict[str, Any] = tree_map(lambda value: whole(value).cpu() if is_divided(value) else value, optimiser.state_dict())
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


def _like(value: Any, parameter: Any) -> Any:
    """A part of what an optimiser keeps in the shape of a parameter, as the parameter is divided."""
    from torch.distributed.tensor import distribute_tensor

    if not isinstance(value, Tensor) or value.shape != parameter.shape or not is_divided(parameter):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
