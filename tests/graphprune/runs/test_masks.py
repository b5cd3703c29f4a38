"""Training with masks is training the smaller model, seen at full shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import graphprune
from graphprune.errors import UsageError
from graphprune.methods import iterative
from graphprune.runs.fitting import Fitting
from tests.loops import INPUT, DigitsLoop, Residual

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
}


class Gelu(nn.Module):
    """An activation with f(0) = 0 is not needed: this one reads constants of removed channels, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 24), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(torch.sigmoid(self.first(x.flatten(1))))
        return y


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("build", [Residual, Gelu])
def test_masked_training_equals_training_of_the_smaller_model(build: Callable[[], nn.Module], optimiser: str) -> None:
    loop = DigitsLoop(3, torch.float64)
    model = build().double()
    example = torch.zeros(INPUT, dtype=torch.float64)
    found = graphprune.prune(model, example, target="channels=60%")
    slim, other = (graphprune.apply_plan(model, example, found.plan).model for _ in range(2))
    masked = Fitting(other, model, found.plan)

    def steps(trained: nn.Module) -> None:
        stepper = OPTIMISERS[optimiser](trained.parameters())
        trained.train()
        for index in torch.arange(300).split(50):
            stepper.zero_grad()
            loop.loss(trained, index, None).backward()
            stepper.step()

    steps(slim)
    with masked.held(None):
        steps(masked.model)
    weights = masked.weights()
    assert weights.keys() == slim.state_dict().keys()
    for name, tensor in slim.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-9, atol=1e-10)


def test_a_whole_run_gives_the_same_numbers_either_way() -> None:
    loop = DigitsLoop(2, torch.float64, count=400)
    model = Residual().double()

    def result(masks: bool) -> Any:
        return iterative(
            model,
            torch.zeros(INPUT, dtype=torch.float64),
            train=loop.train,
            evaluate=loop.evaluate,
            data=loop.data,
            masks=masks,
            epochs=2,
            trained=False,
            rounds=2,
            tune_epochs=1,
        )

    physical, masked = result(False), result(True)
    assert physical.plan.kept == masked.plan.kept
    for name, tensor in physical.model.state_dict().items():
        torch.testing.assert_close(masked.model.state_dict()[name], tensor, rtol=1e-7, atol=1e-9)


def test_masks_are_refused_where_a_statistic_runs_over_channels() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, 10))
    loop = DigitsLoop(1)
    with pytest.raises(UsageError, match="Masks are not exact"):
        iterative(model, torch.zeros(INPUT), train=loop.train, evaluate=loop.evaluate, masks=True, epochs=1)
