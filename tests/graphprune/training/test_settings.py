"""The learning rate is a function of the epoch alone: a training of any part of the schedule has the rates of that part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as _lr

from graphprune.errors import UsageError
from graphprune.training.recipes import RECIPES, recipe
from graphprune.training.settings import Training


def _torch_rates(make: Any, rate: float, count: int) -> list[float]:
    """The oracle: the rates of a scheduler of torch, stepped count times."""
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), rate)
    schedule, rates = make(optimiser), []
    for _ in range(count):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        (
            Training(epochs=20, schedule="step", milestones=(0.3, 10, 0.75), gamma=0.2),
            lambda o: _lr.MultiStepLR(o, [6, 10, 15], 0.2),
        ),
        (Training(epochs=20), lambda o: _lr.CosineAnnealingLR(o, 20)),
        (Training(epochs=20, schedule="constant"), lambda o: _lr.ConstantLR(o, 1.0)),
    ],
)
def test_rates_are_those_of_torch(settings: Training, make: Any) -> None:
    assert [settings.learning_rate(epoch) for epoch in range(20)] == pytest.approx(_torch_rates(make, settings.lr, 20))


def test_one_cycle_rises_and_falls_as_torch_does() -> None:
    """torch counts its steps from the first to the last, we count from the start of the schedule to its end."""
    settings = Training(epochs=100, schedule="onecycle")
    expected = _torch_rates(lambda o: _lr.OneCycleLR(o, 0.1, total_steps=101, cycle_momentum=False), 0.1, 100)
    ours = [settings.learning_rate(epoch) for epoch in range(100)]
    assert ours == pytest.approx(expected, abs=0.1 * 0.03) and max(ours) == pytest.approx(0.1)
    assert settings.learning_rate(0) == pytest.approx(0.1 / 25) and settings.learning_rate(100) == pytest.approx(0.1 / 250_000)


def test_the_warm_up_rises_evenly_to_the_schedule() -> None:
    settings = Training(epochs=20, warmup=4, schedule="step", milestones=(10,))
    assert [settings.learning_rate(epoch) for epoch in (0, 2, 4, 5, 10)] == pytest.approx([0.001, 0.0505, 0.1, 0.1, 0.01])
    cosine = Training(epochs=20, warmup=4)
    assert cosine.learning_rate(4) == pytest.approx(0.1) and cosine.learning_rate(12) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0}, "lr: Input should be greater than 0"),
        ({"rate": 1}, "rate: Extra inputs"),
        ({"schedule": "linear"}, "schedule: Input should be"),
        ({"schedule": "step"}, "needs milestones"),
        ({"milestones": (3,)}, "no other schedule takes them"),
        ({"schedule": "step", "milestones": (5, 0.1)}, "must ascend"),
        ({"schedule": "step", "milestones": (5, 20)}, "before epoch 20"),
        ({"warmup": 20}, "before epoch 20"),
        ({"schedule": "onecycle", "warmup": 1}, "warm-up of its own"),
        ({"momentum": 0.0}, "nesterov needs momentum"),
        ({"batch_size": 10, "accumulate": 3}, "in 3 equal parts"),
        ({"lr": float("nan")}, "lr: Input should be"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"(?s)cannot have .*{words}"):
        Training().changed(**options)


def test_recipes_are_named_and_round_trip() -> None:
    for name, settings in RECIPES.items():
        assert Training.model_validate_json(settings.model_dump_json()) == recipe(name)
    laasp = recipe("laasp-cifar")
    assert [round(laasp.learning_rate(epoch), 9) for epoch in (59, 60, 120, 160, 190)] == [0.1, 0.01, 0.001, 1e-4, 1e-5]
    with pytest.raises(UsageError, match=r"no training recipe 'lasp'.*laasp-cifar"):
        recipe("lasp")
