"""Numbers that a forward draws with ``random`` or numpy: none of them becomes a constant of the graph without a word."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from random import choice, uniform
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.passes.analysis.remedies import remedy
from tests.checking import analyse
from tests.graphprune.tracing.forwards import check, double
from tests.zoo.case import net

X, Y = double(3, 4), double(2, 4)


def model(drawing: Callable[[Any, Tensor], Tensor], **parts: Any) -> nn.Module:
    """Layers before and after a module with this forward."""
    inner = net(drawing, l=nn.Linear(8, 8), **parts)
    return net(lambda self, x: self.c(self.b(self.d(self.a(x)))), a=nn.Linear(4, 6), d=nn.Linear(6, 8), b=inner, c=nn.Linear(8, 2))


def skipped(self: Any, x: Tensor) -> Tensor:
    return x if uniform(0, 1) < 0.5 else self.l(x)


def chosen(self: Any, x: Tensor) -> Tensor:
    return self.l(x) * choice([1.0, 2.0])  # type: ignore[no-any-return]


def indexed(self: Any, x: Tensor) -> Tensor:
    return self.l(x) * [1.0, 2.0][int(random.random() * 2)]  # type: ignore[no-any-return]


def rooted(self: Any, x: Tensor) -> Tensor:
    return self.l(x) * math.sqrt(np.random.rand())  # type: ignore[no-any-return]


def of_an_array(self: Any, x: Tensor) -> Tensor:
    return self.l(x) + torch.from_numpy(np.random.randn(8))  # type: ignore[no-any-return]


def of_its_own(self: Any, x: Tensor) -> Tensor:
    return self.l(x) * self.numbers.random()  # type: ignore[no-any-return]


def of_a_generator(self: Any, x: Tensor) -> Tensor:
    return self.l(x) * torch.rand(1, generator=self.generator, dtype=x.dtype)  # type: ignore[no-any-return]


def seeding_torch(self: Any, x: Tensor) -> Tensor:
    torch.manual_seed(1)
    return self.l(x) + torch.rand_like(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("drawing", "reason", "parts"),
    [(skipped, r"draws numbers .* \(random.uniform \(.*/test_draws.py:\d+\)\)", {}), (chosen, "random.choice", {}),
     (indexed, "random.random", {}), (rooted, r"numpy\.random\.rand", {}), (of_an_array, r"numpy\.random\.randn", {}),
     (of_its_own, r"Generator\.random", {"numbers": np.random.default_rng(0)}),
     (of_its_own, r"Random\.random", {"numbers": random.Random(0)}),
     (of_a_generator, "a generator of its own", {"generator": torch.Generator()}), (seeding_torch, "seeds torch's generator", {})],
)  # fmt: skip
def test_a_module_that_uses_what_it_draws_stays_as_it_is(drawing: Any, reason: str, parts: dict[str, Any]) -> None:
    found = analyse(model(drawing, **parts), X)
    assert [group.name for group in found.groups.prunable] == ["a"]
    stays = [group.reason for group in found.groups.frozen if group.reason is not None and "does not trace" in str(group.reason)]
    assert stays and all(remedy(each).startswith("Draw in train mode alone") and re.search(reason, str(each)) for each in stays)


@pytest.mark.parametrize("drawing", [skipped, chosen, indexed, rooted, of_an_array])
def test_it_draws_the_same_in_both_models_of_a_proof(drawing: Any) -> None:
    before = random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]
    result = graphprune.prune(model(drawing), X, target="channels=80%")
    assert result.report.verification is not None and result.report.verification.passed and result.report.widths == {"a": (6, 4)}
    assert before == (random.getstate(), np.random.get_state(legacy=False)["state"]["pos"])


def unused(self: Any, x: Tensor) -> Tensor:
    drawn = random.uniform(0, 1), np.random.uniform(0, 1)
    return x if self.training and min(drawn) < 0.5 else self.l(x)


def seeded(self: Any, x: Tensor) -> Tensor:
    random.seed(1)
    np.random.seed(1)
    return self.l(x) * random.choice([1.0, 2.0, 3.0]) * np.random.rand() * np.random.RandomState(2).rand()  # type: ignore[no-any-return]


def in_torch(self: Any, x: Tensor) -> Tensor:
    torch.rand(())
    return self.l(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("drawing", [unused, seeded, in_torch])
def test_what_is_drawn_and_decides_nothing_is_no_matter(drawing: Any) -> None:
    found, _ = check(model(drawing), X, Y, groups=3)
    assert not found.program.opaque


def test_a_seed_counts_until_chance_is_back() -> None:
    def drawing(self: Any, x: Tensor) -> Tensor:
        before = random.getstate()
        random.seed(1)
        x = x * random.random()
        random.setstate(before)
        return self.l(x) * random.random()  # type: ignore[no-any-return]

    assert "random.random" in graphprune.capture(model(drawing), X).opaque["b"]


def test_layer_drop_in_train_mode_is_not_decided_by_the_trace() -> None:
    for seed in range(4):
        random.seed(seed)
        assert "random.uniform" in graphprune.capture(model(unused), X).eval_only["b"]


def test_the_functions_are_their_own_afterwards() -> None:
    functions = random.random, np.random.rand, np.random.default_rng, torch.manual_seed
    graphprune.capture(model(skipped), X)
    assert (random.random, np.random.rand, np.random.default_rng, torch.manual_seed) == functions
    assert type(random.random()) is float
