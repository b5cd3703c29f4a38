"""Slim models of parametrised ones are saved with what makes their weights, and loaded: in a graph it is calls like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization

import graphprune
from tests.checking import run
from tests.zoo.case import ready

X = torch.randn(2, 3, 6, 6, dtype=torch.float64)


class MaxNorm(nn.Module):
    """Filters whose norms are limited, as in nets for EEG."""

    def __init__(self, limit: float = 0.5) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Any:
        norm = x.norm(2, dim=0, keepdim=True)
        return x * (norm.clamp(max=self.limit) / (norm + 1e-5))


class Masked(nn.Module):
    mask: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.rand_like(like) > 0.5).to(like))

    def forward(self, x: Tensor) -> Any:
        return x * self.mask


class Product(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Any:
        return left @ right

    def right_inverse(self, x: Tensor) -> Any:
        return x[:, :2].contiguous(), x[:2].contiguous()


MADE: dict[str, Callable[[Any], Any]] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": lambda layer: parametrizations.orthogonal(layer) if isinstance(layer, nn.Linear) else layer,
    "max norm": lambda layer: register_parametrization(layer, "weight", MaxNorm()),
    "two": lambda layer: register_parametrization(register_parametrization(layer, "weight", nn.Softplus()), "weight", MaxNorm()),
    "a mask": lambda layer: register_parametrization(layer, "weight", Masked(layer.weight)),
    "of a bias": lambda layer: register_parametrization(layer, "bias", nn.Softplus()),
    "of two tensors": lambda layer: register_parametrization(layer, "weight", Product()) if isinstance(layer, nn.Linear) else layer,
}


def model(parametrise: Callable[[Any], Any]) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.Flatten(),
        nn.Linear(32, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    )
    for layer in (net[0], net[3], net[5], net[7]):
        parametrise(layer)
    return ready(net)


@pytest.mark.parametrize("keep_class", [False, True])
@pytest.mark.parametrize("parametrise", MADE.values(), ids=list(MADE))
def test_it_is_saved_and_loaded(parametrise: Callable[[Any], Any], keep_class: bool, tmp_path: Path) -> None:
    original = model(parametrise)
    result = graphprune.prune(original, X, target="channels=80%", keep_class=keep_class)
    path = tmp_path / "slim.safetensors"
    graphprune.save(result, path)
    loaded: Any = graphprune.load(path, *([model(parametrise)] if keep_class else []))
    assert torch.equal(run(loaded, X), run(result.model, X))
    assert loaded.state_dict().keys() == result.model.state_dict().keys()
    assert [(name, p.shape) for name, p in loaded.named_parameters()] == [(n, p.shape) for n, p in result.model.named_parameters()]


def test_weight_norm_is_traced_through() -> None:
    program = graphprune.capture(model(parametrizations.weight_norm), X)
    assert not program.eval_only
    names = [node.name for node in program.module.graph.nodes]
    assert "_weight_norm" in names and not [
        node for node in program.module.graph.nodes if "parametrizations.weight.0" in str(node.target)
    ]
