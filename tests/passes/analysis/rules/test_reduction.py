"""Reductions: a reduced label ends there; other statistics than sums are noted; positions and orders freeze their axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.passes.analysis.rules.observing import observe

SUMS: dict[str, Callable[..., Any]] = {"sum": torch.sum, "norm": lambda t, d, k=False: t.norm(dim=d, keepdim=k)}
STATISTICS: dict[str, Callable[..., Any]] = {
    "mean": torch.mean,
    "amax": torch.amax,
    "amin": torch.amin,
    "var": lambda t, d, k=False: t.var(d, keepdim=k),
    "std": lambda t, d, k=False: t.std(d, unbiased=False, keepdim=k),
    "logsumexp": torch.logsumexp,
}


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("name", [*SUMS, *STATISTICS])
def test_a_reduced_label_ends_and_the_others_pass(name: str, keepdim: bool) -> None:
    function = {**SUMS, **STATISTICS}[name]
    seen = observe(lambda t: function(t, 1, keepdim), t=torch.randn(3, 4, 5))
    assert seen.results[0].shape == ((3, 1, 5) if keepdim else (3, 5))
    assert seen.result_atoms(0) == seen.atoms("t", 0) and seen.result_atoms(-1) == seen.atoms("t", 2)
    assert seen.statistics == (set() if name in SUMS else set(seen.atoms("t", 1)))
    assert not seen.frozen and not seen.classes


@pytest.mark.parametrize("dims", [None, (0, 1), (-1, 0), []])
def test_several_axes_at_once(dims: Any) -> None:
    seen = observe(lambda t: t.sum() if dims is None else t.sum(dims), t=torch.randn(3, 4))
    assert seen.results[0].shape == () and not seen.frozen and not seen.results[0].fields


def test_reducing_part_of_a_field_keeps_it_to_the_rest() -> None:
    """The mean over head_dim: whole heads go, and no statistic changes."""
    seen = observe(lambda t: t.view(3, 4).mean(-1), t=torch.randn(12))
    atoms = seen.atoms("t", 0)
    assert seen.classes == {frozenset(atoms[h * 4 : h * 4 + 4]) for h in range(3)}
    assert not seen.statistics and not seen.frozen


def test_a_sum_by_positions_takes_the_same_ones_of_all_heads() -> None:
    seen = observe(lambda t: t.view(3, 4).sum(-1), policy={"heads": "head_dim"}, t=torch.randn(12))
    atoms = seen.atoms("t", 0)
    assert seen.classes == {frozenset(atoms[position::4]) for position in range(4)}
    assert not seen.frozen and not seen.results[0].fields


def test_a_statistic_is_named_in_its_reason() -> None:
    seen = observe(lambda t: t.mean(1), t=torch.randn(3, 4))
    assert {why.text for _, why in seen.trace.space.statistics} == {"mean over prunable channels"}


def test_the_policy_can_freeze_a_mean() -> None:
    seen = observe(lambda t: t.mean(1), policy={"statistics": "freeze"}, t=torch.randn(3, 4))
    assert seen.frozen == set(seen.atoms("t", 1)) and seen.result_atoms(0) == seen.atoms("t", 0)


@pytest.mark.parametrize(
    "function",
    [lambda t: t.argmax(1), lambda t: t.max(1).indices, lambda t: sum(t.max(1)), lambda t: t.sort(1)[0], lambda t: t.topk(2, 1)[0],
     lambda t: t.argsort(1), lambda t: t.median(1)[0], lambda t: t.prod(1), lambda t: (t > 0).any(1),
     lambda t: t.kthvalue(2, 1)[0]],
)  # fmt: skip
def test_positions_and_orders_fix_their_axis(function: Callable[[Tensor], Tensor]) -> None:
    seen = observe(lambda t: function(t), t=torch.randn(3, 4))
    assert seen.frozen == set(seen.atoms("t", 1))
    assert seen.result_atoms(0) == seen.atoms("t", 0)


def test_an_extremum_whose_position_nobody_reads_is_a_statistic() -> None:
    seen = observe(lambda t: t.max(1)[0] + t.min(1).values, t=torch.randn(3, 4))
    assert seen.statistics == set(seen.atoms("t", 1)) and not seen.frozen
    assert seen.result_atoms(0) == seen.atoms("t", 0)


def test_sorting_without_a_dimension_sorts_the_last_axis() -> None:
    seen = observe(lambda t: t.sort().values, t=torch.randn(3, 4))
    assert seen.frozen == set(seen.atoms("t", 1)) and seen.result_atoms(0) == seen.atoms("t", 0)


def test_argmax_of_everything_fixes_everything() -> None:
    seen = observe(lambda t: t.argmax(), t=torch.randn(3, 4))
    assert seen.frozen == set(seen.atoms("t", 0) + seen.atoms("t", 1))


def test_the_maximum_of_two_tensors_is_no_reduction() -> None:
    seen = observe(lambda a, b: torch.max(a, b), a=torch.randn(4), b=torch.randn(4))
    assert seen.classes == {frozenset(pair) for pair in zip(seen.atoms("a", 0), seen.atoms("b", 0), strict=True)}
    assert not seen.statistics and not seen.frozen
