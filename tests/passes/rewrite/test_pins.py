"""Numbers computed from a size that shrinks and used as data keep the original's value: the masked original has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from tests.checking import analyse, check_plan, max_error, run, zeroed
from tests.zoo.case import conv, net

Body = Callable[[Any, Tensor], Tensor]
IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LARGER = torch.randn(3, 3, 9, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

# Each body maps the 8 channels of a convolution to 8 channels that another convolution reads.
BODIES: dict[str, Body] = {
    "a power": lambda s, y: y * y.shape[1] ** -0.5,
    "a square root": lambda s, y: y / torch.sqrt(torch.tensor(y.shape[1], dtype=y.dtype)),
    "a sum over the channels divided by their number": lambda s, y: y + y.sum(1, keepdim=True) / y.shape[1],
    "the sum of a width and a resolution": lambda s, y: y / (y.shape[1] + y.shape[2]),
    "the product of a width and a resolution": lambda s, y: y / (y.shape[1] * y.shape[3]),
    "a part of a width and a resolution": lambda s, y: y * (y.shape[2] / (y.shape[1] // 2) - 1),
    "the number of all elements": lambda s, y: y / y.flatten(1).shape[1],
    "a dropout layer": lambda s, y: s.drop(y * 1.0) * (1 / y.shape[1]),
    "a keyword": lambda s, y: torch.add(y, y, alpha=y.shape[1]),
    "a bound": lambda s, y: y.clamp(max=y.shape[1] / 40),
}


def _model(body: Body) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(body(self, F.relu(self.a(x))))

    return net(forward, a=conv(3, 8), b=conv(8, 2), drop=nn.Dropout())


@pytest.mark.parametrize("name", BODIES)
def test_numbers_from_widths_are_the_original_s_at_every_resolution(name: str) -> None:
    found = analyse(_model(BODIES[name]), IMAGE)
    assert {g.name: g.size for g in found.groups.prunable} == {"a": 8}
    for seed in (0, 1):
        check_plan(found, found.random_plan(seed), other=LARGER, again=seed == 0)


def test_a_number_written_back_is_plain(tmp_path: Path) -> None:
    """It does not bring along where it came from, which no file could hold."""
    result = graphprune.prune(_model(lambda s, y: y / (y.shape[1] // 2)), IMAGE, target="channels=50%")
    numbers = [item for node in result.graph.graph.nodes for item in node.args if isinstance(item, int)]
    assert numbers and {type(number) for number in numbers} == {int}
    graphprune.save(result, tmp_path / "slim.safetensors")


def test_a_mean_is_taken_over_what_is_kept() -> None:
    """The negative twin of the sum divided by the number of channels: a mean is a statistic, and follows the width."""
    found = analyse(_model(lambda s, y: y + y.mean(1, keepdim=True)), IMAGE)
    assert [group.statistics is not None for group in found.groups.prunable] == [True]
    plan = found.random_plan(0)
    slim = check_plan(found, plan, other=LARGER, zeros=False)
    assert max_error(run(slim.eval(), IMAGE), run(zeroed(found.model, plan).eval(), IMAGE)) > 1e-6


@pytest.mark.parametrize("heads", ["whole", "head_dim"])
def test_attention_scaled_by_the_width_of_its_queries(heads: str) -> None:
    """The scale is computed from an axis that shrinks under ``head_dim`` and stays under ``whole``; both are exact."""

    def forward(self: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, 3, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q = q * q.shape[-1] ** -0.5
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))

    model = net(forward, **{name: nn.Linear(6, 12) for name in "qkv"}, out=nn.Linear(12, 2))
    found = analyse(model, TOKENS, policy={"heads": heads})
    assert {g.name: g.size for g in found.groups.prunable} == ({"q": 3} if heads == "whole" else {"q": 4, "v": 4})
    for seed in (0, 1):
        check_plan(found, found.random_plan(seed), other=TOKENS[:1, :3])


def test_a_batch_read_off_heads_folded_into_it_is_right_at_every_size() -> None:
    """Half of the heads of a batch of 2 stay: by chance, ``rows // heads * heads`` is right as it is for the example inputs."""

    def forward(self: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, 4, 3).transpose(1, 2).reshape(b * 4, n, 3) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(1, 2)
        batch = scores.shape[0] // 4
        scores = scores.view(batch, 4, n, n) + x.mean(-1)[:, None, None]
        y = scores.view(batch * 4, n, n).softmax(-1) @ v
        return self.out(y.view(b, 4, n, 3).transpose(1, 2).reshape(b, n, 12))

    found = analyse(net(forward, **{name: nn.Linear(6, 12) for name in "qkv"}, out=nn.Linear(12, 2)), TOKENS)
    assert {g.name: g.size for g in found.groups.prunable} == {"q": 4}
    result = graphprune.prune(found.model, TOKENS, target="channels=50%")
    assert list(result.report.widths.values()) == [(4, 2)]
    check_plan(found, result.plan, other=torch.cat([TOKENS, TOKENS[:1]]))


def test_a_number_that_a_layer_is_given_is_the_original_s() -> None:
    class Scaled(nn.Module):
        def forward(self, y: Tensor, by: float) -> Tensor:
            return y * by if bool((y > -1e9).all()) else y  # what does not trace stays a layer

    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.a(x))
        return self.b(y) * 2 + self.scaled(x, y.shape[1] * 0.1).mean()

    found = analyse(net(forward, a=conv(3, 8), b=conv(8, 2), scaled=Scaled()), IMAGE)
    assert found.program.opaque
    for seed in (0, 1):
        check_plan(found, found.random_plan(seed), other=LARGER, again=False)
