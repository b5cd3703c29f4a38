"""Training with masks: the model keeps its full shape, and what a plan removes is held at zero.

A unit whose slices are all zero adds nothing to what it feeds, whatever its activation; so this trains as the smaller model does,
except where a statistic is taken over channels (layer norm), which the caller must refuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from graphprune.ir.twins import named_tensors
from graphprune.plans.plan import Plan


def expanded(plan: Plan, weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the smaller model at the original's shapes, zero where the plan removes something."""
    return {name: _scattered(tensor, like[name].shape, plan.kept.get(name, {})) for name, tensor in weights.items()}


def _scattered(tensor: Tensor, shape: torch.Size, kept: Mapping[int, list[int]]) -> Tensor:
    for axis, indices in kept.items():
        wide = list(tensor.shape)
        wide[axis] = shape[axis]
        tensor = tensor.new_zeros(wide).index_copy(axis, torch.tensor(indices, device=tensor.device), tensor)
    return tensor


@contextmanager
def masked(model: nn.Module, plan: Plan) -> Iterator[None]:
    """Within, optimisers keep what the plan removes of the model at zero, and its gradients count for nothing."""
    tensors = named_tensors(model)
    masks = {id(tensors[name]): _mask(tensors[name], kept) for name, kept in plan.kept.items()}

    def mask(tensor: Tensor) -> Tensor:
        """The tensor's mask, which follows it to the device that the loop moves the model to."""
        found = masks[id(tensor)] = masks[id(tensor)].to(tensor.device)
        return found

    def hold(optimiser: Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            for group in optimiser.param_groups:
                for parameter in group["params"]:
                    if id(parameter) in masks:  # old momentum moves it, and decays
                        parameter.mul_(mask(parameter))

    with ExitStack() as stack:
        for tensor in (tensors[name] for name in plan.kept if tensors[name].requires_grad):
            stack.callback(tensor.register_hook(lambda gradient, tensor=tensor: gradient * mask(tensor)).remove)
        stack.callback(register_optimizer_step_post_hook(hold).remove)
        yield


def _mask(tensor: Tensor, kept: Mapping[int, list[int]]) -> Tensor:
    mask = torch.ones_like(tensor)
    for axis, indices in kept.items():
        along = torch.zeros(tensor.shape[axis], dtype=tensor.dtype, device=tensor.device)
        along[torch.tensor(indices, device=tensor.device)] = 1
        mask *= along.view([-1 if a == axis else 1 for a in range(tensor.dim())])
    return mask
