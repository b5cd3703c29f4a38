"""Training with masks: the model keeps its full shape, and what a plan removes is held at zero.

A unit whose slices are all zero adds nothing to what it feeds, whatever its activation; so this trains as the smaller model does,
except where a statistic is taken over channels (layer norm), which the caller must refuse.

The masks of :class:`graphprune.compiling.masked.Masked` are another thing. They multiply what reads a unit in each call,
leave the weights as they are, and change between 0 and 1. Here the weights are zero, and the model is called as it always was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from graphprune.ir.twins import named_tensors
from graphprune.plans.plan import Plan


@contextmanager
def held_at_zero(model: nn.Module, plan: Plan) -> Iterator[None]:
    """Within, optimisers keep what the plan removes of the model at zero, and its gradients count for nothing."""
    tensors = named_tensors(model)
    masks = {id(tensors[name]): _mask(tensors[name], name, plan) for name in plan.kept}

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


def _mask(tensor: Tensor, name: str, plan: Plan) -> Tensor:
    """Ones where the plan keeps, zeros where it removes."""
    return plan.unslice(name, plan.slice(name, torch.ones_like(tensor)), tensor.shape)
