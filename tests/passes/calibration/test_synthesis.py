"""Inputs made up from batch-norm statistics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.calibration import Batch, Calibration
from graphprune.errors import UsageError
from graphprune.ir.program import Inputs, Program
from graphprune.passes.calibration.consumers import find_norms
from graphprune.passes.calibration.synthesis import mismatch, synthesise
from graphprune.passes.rewrite.compensate import CompensatePass
from tests.passes.rewrite.compensating import after, error, without
from tests.zoo.case import ready


def model() -> nn.Module:
    """Its norms remember inputs with another mean in each channel."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 3, 1),
    )
    layers = layers.double().train()
    for _ in range(30):
        layers(data(32))
    return layers.eval()


def data(count: int) -> Tensor:
    return torch.randn(count, 2, 8, 8, dtype=torch.float64) * torch.tensor([0.5, 2.0]).view(2, 1, 1) + torch.tensor(
        [3.0, -1.0]
    ).view(2, 1, 1)


def captured() -> Program:
    return graphprune.capture(model(), torch.zeros(1, 2, 8, 8, dtype=torch.float64))


def test_the_statistics_come_nearer_to_those_of_the_norms() -> None:
    program = captured()
    norms = find_norms(program)
    made = synthesise(program, samples=24, batch=16, steps=40)
    assert [batch.size for batch in made] == [16, 8]
    noise = torch.randn(16, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        before = float(mismatch(program, norms, Batch(Inputs((noise,)))))
        now = max(float(mismatch(program, norms, batch)) for batch in made)
    assert now < 0.2 * before


def test_the_same_seed_makes_the_same_data_and_the_model_is_left_alone() -> None:
    program = captured()
    state = {name: tensor.clone() for name, tensor in program.tensors.items()}
    one, again, other = ([b.inputs.args[0] for b in synthesise(program, samples=4, steps=5, seed=s)] for s in (0, 0, 1))
    assert torch.equal(one[0], again[0]) and not torch.equal(one[0], other[0])
    assert all(torch.equal(state[name], tensor) and tensor.grad is None for name, tensor in program.tensors.items())
    assert not one[0].requires_grad


def test_it_serves_for_compensation_and_better_than_noise() -> None:
    x = data(64)
    slim = without(model(), x, {"0.weight": [0, 1, 2]})
    made = [batch.inputs.args[0] for batch in synthesise(captured(), samples=32, steps=60)]
    noise = torch.randn(32, 2, 8, 8, dtype=torch.float64)
    assert error(after(slim, made, CompensatePass()), x) < min(error(slim, x), error(after(slim, [noise], CompensatePass()), x))


def test_a_model_without_statistics_and_one_without_real_inputs_are_refused() -> None:
    bare = graphprune.capture(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), torch.zeros(1, 4))
    with pytest.raises(UsageError, match="has none"):
        synthesise(bare)
    tokens = ready(nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 4), nn.BatchNorm1d(4)))
    with pytest.raises(UsageError, match="floating-point"):
        synthesise(graphprune.capture(tokens, torch.zeros(2, dtype=torch.long)))


def test_its_batches_are_calibration_data() -> None:
    assert isinstance(synthesise(captured(), samples=2, steps=1), Calibration)
