"""Choices of the policy that leave nothing to remove are reversed, unless they are the user's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.channels.groups import Groups
from graphprune.channels.propagate import propagate
from graphprune.passes.analysis.channels import groups_of
from tests.zoo.case import net


def table(rows: bool = True) -> graphprune.Program:
    """What a layer makes, as a table of three rows, beside a table of weights. rows: they are told apart afterwards."""

    def forward(self: Any, x: Tensor) -> Any:
        t = self.table + self.a(x).reshape(len(x), 3, -1)
        return self.b(t[:, 0] * t[:, 1] + t[:, 2]) if rows else self.b(t.sum(1))

    return graphprune.capture(net(forward, a=nn.Linear(5, 12), table=nn.Parameter(torch.randn(3, 4)), b=nn.Linear(4, 2)), X)


X = torch.randn(2, 5, dtype=torch.float64)


def sizes(groups: Groups) -> dict[str, int]:
    return {group.name: group.size for group in groups.prunable}


def test_a_default_that_leaves_nothing_is_reversed() -> None:
    assert sizes(groups_of(table(), {}, ())) == {"a": 4}


def test_a_default_that_leaves_something_stands() -> None:
    assert sizes(groups_of(table(rows=False), {}, ())) == {"a": 3}


def test_a_default_that_leads_to_another_is_reversed_with_it() -> None:
    """Whole rows leave nothing to the heads of the contraction, and whole heads nothing to what is left of the rows."""

    def forward(self: Any, x: Tensor) -> Any:
        t = self.table + self.a(x).reshape(len(x), 3, -1)
        heads = (t[:, 0] * t[:, 1] + t[:, 2]).view(len(x), 2, -1)
        return torch.einsum("bhd,hde->bhe", heads, self.matrix)

    model = net(forward, a=nn.Linear(5, 12), table=nn.Parameter(torch.randn(3, 4)), matrix=nn.Parameter(torch.randn(2, 2, 5)))
    assert sizes(groups_of(graphprune.capture(model, X), {}, ())) == {"a": 2}


@pytest.mark.parametrize("policy", [{"heads": "whole"}, {"heads@add": "whole"}, {"heads@ad*": "whole"}])
def test_what_the_user_chose_stands(policy: dict[str, str]) -> None:
    assert sizes(groups_of(table(), policy, ())) == {}


def test_constraints_reverse_nothing() -> None:
    """Else a plan, which is applied without them, would be made of other units."""
    program = table(rows=False)
    assert sizes(groups_of(program, {}, ("table[0]",))) == {}


def test_what_a_policy_allows_is_never_reversed() -> None:
    """What is split asks whether its parts stay alike, whatever it varies along; only a sum asks which of its axes shrinks."""

    def forward(self: Any, x: Tensor) -> Any:
        first, *_, last = self.a(x).reshape(len(x), 3, -1).chunk(3, 1)
        return self.b((first + last).squeeze(1)) + self.a(x).reshape(len(x), 3, -1).sum(1)[:, :2]

    trace = propagate(graphprune.capture(net(forward, a=nn.Linear(5, 12), b=nn.Linear(4, 2)), X))
    assert {choice.policy for choice in trace.choices} == {"heads"}


def test_a_plan_of_reversed_choices_applies() -> None:
    result = graphprune.prune(table().module, X, target="channels=50%")
    again = graphprune.apply_plan(table().module, X, result.plan)
    assert again.report.after == result.report.after
    assert result.report.widths == {"a": (4, 2)}
