"""Scores of small models for the tests of criteria, and a model with known layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphprune.calibration import Calibration
from graphprune.passes.analysis.channels import ChannelGroups, ChannelsPass
from graphprune.passes.scoring.score import ScorePass
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.pass_manager import PassManager
from graphprune.tracing import capture
from tests.zoo.case import conv, net

Floats = npt.NDArray[np.float64]
Labelled = list[tuple[Tensor, Tensor]]


def scored(model: nn.Module, inputs: Any, criterion: str, data: Any = None, **options: Any) -> dict[str, Floats]:
    """Scores of every prunable group's units by the group's name, not normalised unless asked for."""
    if data is not None and not isinstance(data, Calibration):
        data = Calibration(data)
    program = capture(model, inputs).with_(calibration=data)
    score = ScorePass(criterion=criterion, **{"normalise": "none", **options})
    done = PassManager([ChannelsPass(), score]).run(program)
    groups = AnalysisManager().get(done, ChannelGroups)
    values = done.scores[criterion].values
    return {group.name: values[group.units] for group in groups.prunable}


def chain(channels: int = 5) -> Any:
    """Two convolutions with batch norms, and a classifier: groups ``a`` (read by b) and ``b`` (read by head)."""

    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.norm(self.a(x)))
        x = F.relu(self.last(self.b(x)))
        return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    parts = {"a": conv(3, channels), "norm": nn.BatchNorm2d(channels), "b": conv(channels, 4, 1), "last": nn.BatchNorm2d(4)}
    return net(forward, **parts, head=nn.Linear(4, 3))


def residual(channels: int = 5) -> Any:
    """One group ``a`` that two convolutions make, and b and the head read."""

    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        x = F.relu(x + self.b(x))
        return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    return net(forward, a=conv(3, channels), b=conv(channels, channels), head=nn.Linear(channels, 3))


def images(count: int = 6, size: int = 4, seed: int = 0) -> Tensor:
    """Random images."""
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labelled(count: int = 6, classes: int = 3) -> Labelled:
    """One batch of images with labels, each class in turn."""
    return [(images(count), torch.arange(count) % classes)]


def split(data: Labelled, sizes: Sequence[int]) -> Labelled:
    """One batch as batches of these sizes."""
    ((x, y),) = data
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def permuted(model: Any, order: Sequence[int]) -> Any:
    """A chain whose channels of group ``a`` stand in another order; it computes the same."""
    norm = model.norm
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(tensor[list(order)].clone())
        model.b.weight.copy_(model.b.weight[:, list(order)].clone())
    return model


def kill(model: Any, channel: int) -> Any:
    """A chain whose channel of group ``a`` is zero in every layer that has it."""
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias, model.norm.weight, model.norm.bias, model.b.weight.transpose(0, 1)):
            tensor[channel] = 0.0
    return model


def consumed(model: Any, x: Tensor) -> Tensor:
    """What layer b of a chain reads."""
    with torch.no_grad():
        return F.relu(model.norm(model.a(x)))
