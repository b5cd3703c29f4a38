"""What a structure of the zoo is: a small model, inputs for any batch size, and the groups that must be found in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One structure.

    model: in float64 and eval mode, with informative normalisation statistics. inputs: example inputs for a batch size.
    groups: width of every prunable group, by name. frozen: for a tensor's axis, part of the reason why it must stay.
    zeros: the slim model equals the original with removed slices zeroed. batch: other batch sizes work. macs: torch's
    counter sees every product of the model. policy: for the analysis.
    """

    model: nn.Module
    inputs: Callable[[int], Any]
    groups: Mapping[str, int]
    frozen: Mapping[tuple[str, int], str] = field(default_factory=dict)
    zeros: bool = True
    batch: bool = True
    macs: bool = True
    policy: Mapping[str, str] = field(default_factory=dict)


def net(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    """A module with this forward and these layers, parameters and plain attributes; float64, eval mode, random statistics."""
    module = type("Net", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        setattr(module, name, part)
    return ready(module)


def ready(module: nn.Module) -> nn.Module:
    """Float64, eval mode, and random values in norms, whose fresh ones and zeros hide errors."""
    generator = torch.Generator().manual_seed(1)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return module.double().eval()


def image(channels: int = 3, size: int = 8) -> Callable[[int], Tensor]:
    """Random images."""
    return lambda batch: torch.randn(batch, channels, size, size, dtype=torch.float64)


def vector(*shape: int) -> Callable[[int], Tensor]:
    """Random tensors of this shape behind the batch axis."""
    return lambda batch: torch.randn(batch, *shape, dtype=torch.float64)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the resolution."""
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **options})


def pooled(head: nn.Linear, x: Tensor) -> Tensor:
    """Global average pooling and a classifier."""
    logits: Tensor = head(x.mean((2, 3)))
    return logits


CASES: dict[str, Callable[[], Case]] = {}


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    """Register a structure under its function's name."""
    assert build.__name__ not in CASES
    CASES[build.__name__] = build
    return build
