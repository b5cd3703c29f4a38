"""New constants take the width of what they meet; values that depend on the position fix it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from tests.checking import analyse
from tests.passes.analysis.rules.observing import observe
from tests.zoo.case import net


@pytest.mark.parametrize(
    "function",
    [lambda t: torch.zeros(6), lambda t: torch.ones(t.shape), lambda t: torch.full((1, 6), 2.0), lambda t: t.new_zeros(6),
     lambda t: t.new_ones(t.shape[0]), lambda t: t.new_full((6,), 3.0), lambda t: t.new_empty(6)],
)  # fmt: skip
def test_constants_are_tied_to_what_they_meet_and_hold_nothing_back(function: Callable[[Tensor], Tensor]) -> None:
    seen = observe(lambda t: t + function(t), t=torch.randn(6))
    atoms = seen.atoms("t", 0)
    assert not seen.frozen & set(atoms)
    assert seen.result_atoms(-1) is not None


def test_an_axis_of_size_one_has_no_label() -> None:
    assert not observe(lambda t: t + torch.zeros(1, 6), t=torch.randn(6)).frozen


@pytest.mark.parametrize("function", [torch.zeros_like, torch.ones_like, lambda t: torch.full_like(t, 2.0)])
def test_likenesses_have_the_labels_of_their_model(function: Callable[[Tensor], Tensor]) -> None:
    seen = observe(lambda t: function(t), t=torch.randn(3, 6))
    assert [seen.result_atoms(axis) for axis in (0, 1)] == [seen.atoms("t", 0), seen.atoms("t", 1)]


BY_POSITION = [lambda t: torch.arange(t.shape[0]), lambda t: torch.linspace(0, 1, t.shape[0]), lambda t: torch.eye(t.shape[0])]


@pytest.mark.parametrize("function", BY_POSITION)
def test_values_by_position_fix_what_they_meet(function: Callable[[Tensor], Tensor]) -> None:
    """Of as many as an input has, which is another number in another call."""
    model = net(lambda self, x: self.b(self.t * x.sum() + function(x)), t=nn.Parameter(torch.randn(6)), b=nn.Linear(6, 2))
    found = analyse(model, torch.randn(6, dtype=torch.float64))
    assert any("combined element by element" in reason for reason in found.frozen_reasons("t", 0))


@pytest.mark.parametrize("function", BY_POSITION)
def test_values_by_position_are_sliced_where_a_width_says_how_many(function: Callable[[Tensor], Tensor]) -> None:
    """They are the same in every call: constants, which go along as parameters do."""
    seen = observe(lambda t: t + function(t), t=torch.randn(6))
    assert not seen.frozen and seen.result_atoms(-1) is not None


def test_rows_and_columns_of_an_identity_go_together() -> None:
    seen = observe(lambda t: t + torch.eye(t.shape[0]), t=torch.randn(6))
    atoms = seen.atoms("t", 0)
    assert not seen.frozen & set(atoms)
    for axis in (0, 1):
        assert all(seen.tied(*pair) for pair in zip(atoms, seen.result_atoms(axis) or [], strict=True))


def test_an_identity_of_one_has_no_labels() -> None:
    seen = observe(lambda t: t + torch.eye(t.shape[0] - 5), t=torch.randn(6))
    assert seen.result_atoms(1) == seen.atoms("t", 0) and not seen.frozen
    assert observe(lambda t: torch.eye(t.shape[0] - 5) + t[:1], t=torch.randn(6)).result_atoms(0) is None


def test_an_identity_that_is_no_square_fixes_what_it_meets() -> None:
    seen = observe(lambda t: t + torch.eye(t.shape[0] + 1, t.shape[0]), t=torch.randn(6))
    assert seen.frozen >= set(seen.atoms("t", 0))


def test_a_row_that_is_taken_from_an_identity_stays_and_the_others_may_go() -> None:
    seen = observe(lambda t: t + torch.eye(t.shape[0])[2], t=torch.randn(6))
    atoms = seen.atoms("t", 0)
    assert seen.frozen & set(atoms) == {atoms[2]}


def test_an_arange_made_while_tracing_is_data() -> None:
    """It is a constant of the graph, and its values depend on the position."""
    seen = observe(lambda t: t + torch.arange(6), t=torch.randn(6))
    assert set(seen.atoms("t", 0)) & seen.frozen or seen.classes, "it is frozen, or sliced along with its partner"


@pytest.mark.parametrize("function", [lambda t: torch.bernoulli(t.sigmoid()), lambda t: torch.normal(t, 1.0)])
def test_what_numbers_are_drawn_by_stays(function: Callable[[Tensor], Tensor]) -> None:
    seen = observe(lambda t: function(t), t=torch.randn(3, 6))
    assert seen.frozen == {*seen.atoms("t", 0), *seen.atoms("t", 1)} and not seen.results[0].fields


@pytest.mark.parametrize(
    "function",
    [
        lambda t: torch.rand(6),
        lambda t: torch.randn(3, 6)[:3],
        torch.rand_like,
        torch.randn_like,
        lambda t: torch.randint_like(t, 5),
        lambda t: torch.empty(6, dtype=t.dtype).normal_(),
        lambda t: torch.empty_like(t).uniform_(),
        lambda t: torch.bernoulli(t.sigmoid()),
        lambda t: torch.normal(t, 1.0),
        lambda t: F.dropout(t, 0.5, True),
    ],
)
def test_what_meets_numbers_drawn_at_random_stays(function: Callable[[Tensor], Tensor]) -> None:
    """A smaller model would draw fewer, and so others."""
    seen = observe(lambda t: t + function(t), t=torch.randn(3, 6))
    assert seen.frozen >= set(seen.atoms("t", 1))


def _filled(self: Any, x: Tensor) -> Tensor:
    y = x.new_empty(len(x), 2, 6).fill_(1.0)
    y[:, 0] = self.t(x)
    return y


def _zeros_beside(self: Any, x: Tensor) -> Tensor:
    y = x.new_empty(len(x), 2, 6)
    y[:, 0], y[:, 1] = self.t(x), x.new_zeros(len(x), 6)
    return y


def _masked(self: Any, x: Tensor) -> Tensor:
    y = x.new_empty(len(x), 2, 6)
    y[:, 0], y[:, 1] = self.t(x), self.t(x + 1)
    y[x[:, 0] > 0] = 0.0
    return y


def _written(self: Any, x: Tensor) -> Tensor:
    y = x.new_empty(len(x), 2, 6)
    y[:, 0], y[:, 1] = self.t(x), self.t(x + 1)
    return y


@pytest.mark.parametrize("body", [_filled, _zeros_beside, _masked, _written])
def test_what_is_written_into_memory_is_normalised_unless_constants_are(body: Any) -> None:
    """A statistic counts constants, whatever becomes of the channels beside them; memory as it was found nobody reads."""
    model = net(lambda self, x: self.b(self.norm(body(self, x))), t=nn.Linear(4, 6), norm=nn.LayerNorm(6), b=nn.Linear(6, 2))
    found = analyse(model, torch.randn(3, 4, dtype=torch.float64))
    frozen = any("a norm over" in reason for reason in found.frozen_reasons("t.weight", 0))
    assert frozen == (body is not _written)
    if not frozen:
        result = graphprune.run_pipeline(found.program, "channels,score{criterion=random},select{channels=50%},rewrite,verify")
        assert result.report.verification is not None and result.report.verification.error < 1e-10


def _rows(self: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(len(x), 3, 6)
    y[:, 0], y[:, 1] = self.t(x), self.t(x + 1)
    return y


def _rows_by_mask(self: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(len(x), 6)
    some = x[:, 0] > 0
    y[some] = self.t(x[some])
    return y


def _rows_in_front(self: Any, x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1, 6), self.t(x)])


def _part_of_a_row(self: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(len(x), 3, 6)
    y[:, 0] = self.t(x)
    y[:, 1, :4] = self.t(x)[:, :4]
    return y


def _part_of_a_row_first(self: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(len(x), 3, 6)
    y[:, 1, :4] = self.t(x)[:, :4]
    y[:, 0] = self.t(x)
    return y


def _part_of_a_row_scaled(self: Any, x: Tensor) -> Tensor:
    y = x.new_ones(len(x), 3, 6)
    y[:, 0] = self.t(x)
    y[:, 1, :4] *= 2.0
    return y


BODIES = [_rows, _rows_by_mask, _rows_in_front, _part_of_a_row, _part_of_a_row_first, _part_of_a_row_scaled]


@pytest.mark.parametrize("body", BODIES)
def test_zeros_into_which_rows_are_written_are_normalised_unless_parts_of_one_are(body: Any) -> None:
    """A row of zeros has the same statistics without some of its channels; zeros beside what parameters make do not."""
    norm = nn.LayerNorm(6, elementwise_affine=False)
    model = net(lambda self, x: self.b(self.norm(body(self, x))), t=nn.Linear(4, 6), norm=norm, b=nn.Linear(6, 2))
    found = analyse(model, torch.randn(3, 4, dtype=torch.float64))
    frozen = any("a norm over" in reason for reason in found.frozen_reasons("t.weight", 0))
    assert frozen == body.__name__.startswith("_part")
    if not frozen:
        result = graphprune.run_pipeline(found.program, "channels,score{criterion=random},select{channels=50%},rewrite,verify")
        assert result.report.widths["t"][1] < 6
        assert result.report.verification is not None and result.report.verification.error < 1e-10
