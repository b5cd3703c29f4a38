"""Models whose parameters FSDP2 (``fully_shard``) has divided among processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

import torch
from torch import Tensor, fx, nn

from graphprune.errors import UsageError
from graphprune.ir.twins import named_tensors, twin
from graphprune.ir.weights import Weights
from graphprune.placement.fsdp import divide, is_divided, sharded_modules, whole
from graphprune.placement.placement import Placement, twin_graph, without

_MADE_BY: Final = "torch.distributed.fsdp"
_NOTE: Final = "__composable_api"  # torch's note on a module that fully_shard was called on


class Sharded(Placement):
    """A sharded model. All processes of its mesh must do the same with it at the same time.

    Raises UsageError where parameters are divided in another way than ``fully_shard`` does it, as for tensor parallelism.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = sharded_modules(model)
        for module in modules:
            module.reshard()  # a forward pass leaves those of the root whole
        self._parts: dict[str, Any] = {name: tensor for name, tensor in named_tensors(model).items() if is_divided(tensor)}
        self._mesh = _one_mesh(model, modules, self._parts.values())
        self._options = _options(modules)
        self._kept_on = next(iter(self._parts.values())).to_local().device
        stand_ins = {id(tensor): _stand_in(tensor) for tensor in self._parts.values()}
        self.plain = twin(model, lambda tensor: stand_ins.get(id(tensor), tensor))
        for module in self.plain.modules():
            if type(module) in map(type, modules):
                module.__class__ = type(module).__bases__[1]  # fully_shard has put FSDPModule before it
            without(module, _is_ours)
            for key in [key for key in module.__dict__ if key.startswith(_NOTE)]:
                del module.__dict__[key]

    def weights(self, module: nn.Module) -> Weights:
        """Gathered from all processes, to the device of the mesh."""

        def load(name: str) -> Tensor | None:
            part = self._parts.get(name)
            return None if part is None else whole(part.detach().to(self._mesh.device_type))

        return Weights(module, load, device=self._device, together=True)

    def place(self, slim: fx.GraphModule, weights: Weights) -> fx.GraphModule:
        """The slim model, divided on the same mesh in layers of its graph."""
        from torch.distributed.tensor import distribute_tensor

        result = twin_graph(slim)
        divide(result, self._mesh, **self._options)
        own = dict(result.named_parameters(remove_duplicate=False))
        parts: dict[int, nn.Parameter] = {}
        for name, parameter in own.items():
            if is_divided(parameter) and id(parameter) not in parts:
                part = distribute_tensor(weights[name].detach(), self._mesh, cast(Any, parameter).placements)
                parts[id(parameter)] = nn.Parameter(part.to(self._kept_on), requires_grad=parameter.requires_grad)
        state = {name: parts[id(parameter)] for name, parameter in own.items() if id(parameter) in parts}
        result.load_state_dict(state, strict=False, assign=True)
        return result

    @property
    def _device(self) -> torch.device:
        kind = self._mesh.device_type
        return torch.device(kind) if kind == "cpu" else torch.device(kind, torch.accelerator.current_device_index())


def _one_mesh(model: nn.Module, modules: list[Any], parts: Iterable[Any]) -> Any:
    """The mesh that all parameters are divided on, as ``fully_shard`` does it: along its last dimension, and no other."""
    meshes = {
        part.device_mesh: all(p.is_replicate() for p in part.placements[:-1]) and part.placements[-1].is_shard() for part in parts
    }
    if len(meshes) != 1 or not modules or not all(meshes.values()):
        raise UsageError(
            f"The parameters of {type(model).__name__} are divided in another way than fully_shard on one mesh does it. "
            "Prune the whole model, or its checkpoint (graphprune.prune_checkpoint), and divide the slim one."
        )
    return next(iter(meshes))


def _options(modules: list[Any]) -> dict[str, Any]:
    """How ``fully_shard`` was told to compute, and to keep what it divides."""
    groups = [state._fsdp_param_group for module in modules if (state := module._get_fsdp_state())._fsdp_param_group is not None]
    return {"mp_policy": groups[0].mp_policy, "offload_policy": groups[0].offload_policy} if groups else {}


def _stand_in(tensor: Tensor) -> Tensor:
    """A whole tensor without values."""
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _is_ours(hook: Any) -> bool:
    """Whether ``fully_shard`` has put a hook on a module."""
    return str(getattr(getattr(hook, "hook", hook), "__module__", "")).startswith(_MADE_BY)
