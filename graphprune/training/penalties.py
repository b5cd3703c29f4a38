"""Penalties: terms of the training loss that depend on the parameters alone, added to whatever loop trains a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from graphprune.errors import UsageError


class Penalty(Protocol):
    """A term of the loss that depends on a model's parameters alone."""

    def value(self, model: nn.Module) -> Tensor:
        """The term, a scalar that can be differentiated by the parameters."""


@contextmanager
def penalised(model: nn.Module, penalty: Penalty) -> Iterator[None]:
    """Train with a penalty, whatever loop trains: its gradient joins those of the parameters right before every step.

    It is a hook on every optimiser that holds parameters of the model, as long as the block lasts. So it counts once for each
    step however many batches were accumulated, and also in a model that is wrapped for data-parallel training, whose
    parameters are the same tensors. It comes after the loop's own clipping, and with a loss scaler in the scale that the
    gradients have at that moment. The loss that the loop reports is without it, except from an optimiser's closure.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 3.0)
    >>> optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> with penalised(model, L1(0.5)):
    ...     optimiser.step()
    >>> model.weight.tolist()
    [[2.5, 2.5]]
    """
    hook = _Hook(model, penalty)
    handles = [register_optimizer_step_pre_hook(hook.before), register_optimizer_step_post_hook(hook.after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Hook:
    """What is called before and after the step of every optimiser."""

    def __init__(self, model: nn.Module, penalty: Penalty) -> None:
        self.model, self.penalty = model, penalty
        self.stepping: Optimizer | None = None  # an optimiser that steps another one inside counts once

    def before(self, optimiser: Optimizer, args: tuple[Any, ...], kwargs: dict[Any, Any]) -> tuple[Any, Any] | None:
        own = {id(parameter) for parameter in self.model.parameters() if parameter.requires_grad}
        held = [parameter for group in optimiser.param_groups for parameter in group["params"] if id(parameter) in own]
        if not held or self.stepping not in (None, optimiser):
            return None
        self.stepping = optimiser
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self.add(held, getattr(optimiser, "grad_scale", None))
            return None
        # The closure computes the gradients anew, as often as the optimiser calls it.
        return (args[0], self.closed(closure, held), *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}

    def after(self, optimiser: Optimizer, args: tuple[Any, ...], kwargs: dict[Any, Any]) -> None:
        if self.stepping is optimiser:
            self.stepping = None

    def closed(self, closure: Callable[[], Any], held: Sequence[Tensor]) -> Callable[[], Any]:
        def loss() -> Any:
            own = closure()
            value = self.add(held, None)
            return None if own is None else own + value

        return loss

    def add(self, held: Sequence[Tensor], scale: Tensor | None) -> Tensor:
        """Add the penalty's gradient, times the scale of a loss scaler that leaves unscaling to the optimiser; its value."""
        kind = held[0].device.type
        with torch.enable_grad(), torch.autocast(kind, enabled=False):
            value = self.penalty.value(self.model)
            gradients = torch.autograd.grad(value, held, allow_unused=True)
        for parameter, gradient in zip(held, gradients, strict=True):
            if gradient is None:
                continue
            scaled = gradient if scale is None else gradient * scale.to(gradient.device)
            parameter.grad = scaled.detach().clone() if parameter.grad is None else parameter.grad.add_(scaled)
        return value.detach()


@dataclass(frozen=True)
class L1:
    """``strength`` times the sum of the absolute values of the parameters (class-aware pruning, arXiv 2312.05875).

    biases: also of biases, the shifts of normalisations included, as the authors do.
    """

    strength: float = 1e-4
    biases: bool = True

    def value(self, model: nn.Module) -> Tensor:
        """The sum, in the dtype of the parameters."""
        chosen: list[Tensor] = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (self.biases or parameter.dim() > 1 or "bias" not in name.rpartition(".")[2])
        ]
        if not chosen:
            raise UsageError("The L1 penalty finds no parameters that are trained. Leave it out, or unfreeze some.")
        norms = torch._foreach_norm(chosen, 1)  # one kernel for many tensors
        return self.strength * torch.stack([norm.to(chosen[0].device) for norm in norms]).sum()


@dataclass(frozen=True)
class Orthogonality:
    """``strength`` times the sum over convolutions of ``||conv2d(W, W, padding) - T||_F``, filters that overlap by little.

    W: weights of 2-d convolutions with kernels larger than 1x1 and one group. T: 1 where a filter meets itself unshifted, else 0
    (class-aware pruning, arXiv 2312.05875, with the norm of "Orthogonal Convolutional Neural Networks", CVPR 2020). padding:
    how many positions filters are shifted against each other; 1 is the authors', 2 takes in every overlap of 3x3 kernels.
    """

    strength: float = 0.01
    padding: int = 1

    def value(self, model: nn.Module) -> Tensor:
        """The sum. Raises UsageError where the model has no such convolution."""
        weights = convolution_weights(model)
        if not weights:
            raise UsageError("The orthogonality penalty finds no convolution with a kernel larger than 1x1. Leave it out.")
        terms = [self._distance(weight).to(weights[0].device) for weight in weights]
        return self.strength * torch.stack(terms).sum()

    def _distance(self, weight: Tensor) -> Tensor:
        overlap = F.conv2d(weight, weight, padding=self.padding)  # (n, n, 2 padding + 1, 2 padding + 1)
        target = torch.zeros_like(overlap)
        target[:, :, self.padding, self.padding].fill_diagonal_(1)
        distance: Tensor = torch.linalg.vector_norm(overlap - target)
        return distance


_FUNCTIONS: Final = (torch.conv2d, F.conv2d)
_ARGUMENTS: Final = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def convolution_weights(model: nn.Module) -> list[Tensor]:
    """Weights of the 2-d convolutions with kernels larger than 1x1 and one group, each once; computed ones as they are now.

    Of modules with the attributes of a convolution, and of functional calls where the model is a graph.
    """
    found = {id(weight): weight for module in model.modules() if (weight := _module_weight(module)) is not None}
    for node in model.graph.nodes if isinstance(model, fx.GraphModule) else ():
        if node.op == "call_function" and node.target in _FUNCTIONS:
            arguments = dict(zip(_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
            source = arguments["weight"]
            weight = _attribute(model, str(source.target)) if isinstance(source, fx.Node) and source.op == "get_attr" else None
            if weight is not None and arguments.get("groups", 1) == 1 and _is_large(weight):
                found[id(weight)] = weight
    return list(found.values())


def _module_weight(module: nn.Module) -> Tensor | None:
    kernel, groups = getattr(module, "kernel_size", None), getattr(module, "groups", None)
    if kernel is None or groups != 1 or getattr(module, "transposed", False):
        return None
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) and _is_large(weight) else None


def _is_large(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.shape[2:].numel() > 1 and weight.requires_grad


def _attribute(model: nn.Module, path: str) -> Tensor | None:
    parent, _, name = path.rpartition(".")
    found = getattr(model.get_submodule(parent), name)
    return found if isinstance(found, Tensor) else None


@dataclass(frozen=True, eq=False)
class GroupL2:
    """``strength`` times the sum of ``c * ||slice||^2`` over slices of parameters, each with a coefficient c.

    coefficients: by the parameter's name and axis, one for each index, shape (length of the axis,). Give all slices of a unit
    the unit's coefficient, 0 to units that shall stay ("Neural Pruning via Growing Regularization", ICLR 2021).
    A tied parameter under several names counts once.
    """

    coefficients: Mapping[str, Mapping[int, Tensor]]
    strength: float = 1.0

    def value(self, model: nn.Module) -> Tensor:
        """The sum. Raises UsageError naming a parameter or axis that the model does not have."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        terms: dict[tuple[int, int], Tensor] = {}
        for name, axes in self.coefficients.items():
            for axis, coefficients in axes.items():
                parameter = parameters.get(name)
                if parameter is None or axis >= parameter.dim() or coefficients.shape != parameter.shape[axis : axis + 1]:
                    have = "is missing" if parameter is None else f"has the shape {list(parameter.shape)}"
                    raise UsageError(
                        f"The group penalty has {len(coefficients)} coefficients for axis {axis} of {name}, which {have}. "
                        "Make them for this model."
                    )
                rest = [other for other in range(parameter.dim()) if other != axis]
                norms = parameter.square().sum(rest) if rest else parameter.square()
                terms[id(parameter), axis] = norms @ coefficients.to(norms)
        if not terms:
            raise UsageError("The group penalty has no coefficients. Leave it out.")
        values = list(terms.values())
        return self.strength * torch.stack([term.to(values[0].device) for term in values]).sum()


@dataclass(frozen=True)
class Sum:
    """Several penalties added up."""

    penalties: Sequence[Penalty]

    def value(self, model: nn.Module) -> Tensor:
        """The sum of all their values."""
        first, *rest = (penalty.value(model) for penalty in self.penalties)
        return sum(rest, start=first)
