"""Calibration without data: inputs whose activations have the statistics that the model's batch norms remember."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from graphprune.calibration import Batch, Calibration
from graphprune.errors import UsageError
from graphprune.ir.program import Inputs, Program
from graphprune.passes.calibration.consumers import Norm, find_norms
from graphprune.passes.calibration.lanes import Lanes, map_inputs

_RATE: Final = 0.1  # of Adam
_EPSILON: Final = 1e-6  # keeps channels that never vary from taking over


def synthesise(program: Program, *, samples: int = 128, batch: int = 64, steps: int = 100, seed: int = 0) -> Calibration:
    """Calibration data made up for a program: noise, changed until the mean and variance that every batch norm reads are those
    that it has in store.

    Minimises :func:`mismatch` by Adam on the floating-point inputs, each batch for itself, from noise drawn from ``seed``. samples:
    how many in all, of the shape of one example input. The batches have no targets: criteria with a loss cannot use them.

    Sources: DeepInversion (Yin et al., CVPR 2020, eq. 4), without its other priors; OBSPA (CVPR 2024) prunes on such data.
    Raises UsageError where the model has no batch norm with running statistics, or no input that can be changed.
    """
    norms = find_norms(program)
    if not norms:
        raise UsageError("Synthetic calibration needs batch norms with running statistics; the model has none. Give data.")
    if program.scopes:
        raise UsageError("Synthetic calibration needs a model that traces as a whole; this one is pruned in scopes. Give data.")
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(batch, samples - start) for start in range(0, samples, batch)]
    made = []
    for size in sizes:
        inputs, free = _noise(program, size, generator)
        optimiser = torch.optim.Adam(free, lr=_RATE)
        for _ in range(steps):
            optimiser.zero_grad()
            with torch.enable_grad():
                loss = mismatch(program, norms, Batch(inputs))
                gradients = torch.autograd.grad(loss, free)
            for leaf, gradient in zip(free, gradients, strict=True):
                leaf.grad = gradient
            optimiser.step()
        made.append(Batch(map_inputs(inputs, torch.Tensor.detach)))
    return Calibration(made, name="the synthetic data")


def mismatch(program: Program, norms: list[Norm], batch: Batch) -> Tensor:
    """``mean over norms and channels of (m - m')^2 / v' + (sqrt(v) - sqrt(v'))^2 / v'``: m, v of a batch's activations at the
    norm, m', v' its running statistics; shape (), differentiable in the batch's inputs."""
    lanes = Lanes(program.module, [batch], Calibration([batch], name="the synthetic data"))
    read_by: dict[str, list[Norm]] = {}
    for norm in norms:
        read_by.setdefault(norm.reads.name, []).append(norm)
    parts = []
    for node in program.module.graph.nodes:
        lanes.advance(node)
        for norm in read_by.get(node.name, ()):
            rows = lanes.values(node)[0].transpose(0, 1).flatten(1)
            mean, deviation = rows.mean(1), (rows.var(1, correction=0) + _EPSILON).sqrt()
            stored, variance = program.tensors[norm.mean].detach(), program.tensors[norm.variance].detach() + _EPSILON
            parts.append((((mean - stored).square() + (deviation - variance.sqrt()).square()) / variance).mean())
    return torch.stack(parts).mean()


def _noise(program: Program, size: int, generator: torch.Generator) -> tuple[Inputs, list[Tensor]]:
    """Inputs of ``size`` samples: noise where the example is floating-point, its first sample again elsewhere; and the noise."""
    first = next((leaf for leaf in _leaves(program.inputs) if isinstance(leaf, Tensor) and leaf.dim()), None)
    count = 0 if first is None else len(first)
    device = next(iter(program.tensors.values())).device

    def fill(leaf: Tensor) -> Tensor:
        shape = (size, *leaf.shape[1:]) if leaf.dim() and len(leaf) == count else tuple(leaf.shape)
        if leaf.is_floating_point():
            return torch.randn(shape, generator=generator).to(device, leaf.dtype).requires_grad_()
        return leaf.to(device) if shape == tuple(leaf.shape) else leaf[:1].to(device).expand(shape)

    inputs = map_inputs(program.inputs, fill)
    free = [leaf for leaf in _leaves(inputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not free:
        raise UsageError("Synthetic calibration needs floating-point inputs, which the model does not take. Give data.")
    return inputs, free


def _leaves(inputs: Inputs) -> list[Any]:
    return list(tree_leaves((inputs.args, dict(inputs.kwargs))))
