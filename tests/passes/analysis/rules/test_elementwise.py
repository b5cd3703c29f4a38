"""Element-wise operators: labels at equal positions are tied, an operand of size 1 says nothing, data without labels freeze."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.passes.analysis.rules.observing import Seen, observe


def coupled(seen: Seen, *names: str) -> set[frozenset[int]]:
    """Brute force: which atoms sit at the same position along each axis of the broadcast result."""
    rank = max(len(seen.shapes[name]) for name in names)
    pairs = set()
    for axis in range(rank):
        rows = []
        for name in names:
            own = axis - rank + len(seen.shapes[name])
            if own >= 0 and seen.shapes[name][own] > 1:
                rows.append(seen.atoms(name, own))
        pairs |= {frozenset(column) for column in zip(*rows, strict=True) if len(rows) > 1}
    return pairs


SHAPES = [((4, 6), (4, 6)), ((4, 6), (6,)), ((4, 1), (1, 6)), ((2, 4, 6), (4, 1)), ((1, 1), (4, 6)), ((4, 6), ())]
OPERATORS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: torch.sub(a, b, alpha=2),
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "maximum": torch.maximum,
    "pow": lambda a, b: a**b,
    "atan2": torch.atan2,
    "lerp": lambda a, b: torch.lerp(a, b, 0.5),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "compare": lambda a, b: a > b,
}


@pytest.mark.parametrize(("name", "shapes"), [*product(OPERATORS, SHAPES)])
def test_labels_at_equal_positions_are_tied(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    function = OPERATORS[name]
    seen = observe(lambda a, b: function(a, b), a=torch.randn(shapes[0]), b=torch.randn(shapes[1]))
    assert seen.classes == coupled(seen, "a", "b")
    assert not seen.frozen
    for axis, size in enumerate(seen.results[0].shape):
        assert (seen.result_atoms(axis) is not None) == (size > 1)


@pytest.mark.parametrize(
    "function",
    [F.relu, F.gelu, F.silu, torch.sigmoid, F.hardswish, F.hardsigmoid, F.relu6, F.elu, F.leaky_relu, torch.exp,
     torch.rsqrt, F.softplus,
     F.mish, torch.erf, lambda a: a.clamp(0, 1), lambda a: a.float(), lambda a: -a,
     lambda a: a.clone().relu_(),
     lambda a: a.clone().mul_(2), lambda a: F.hardtanh(a), lambda a: torch.nan_to_num(a), lambda a: 1 / a],
)  # fmt: skip
def test_one_operand_passes_its_labels(function: Callable[[Tensor], Tensor]) -> None:
    seen = observe(lambda a: function(a), a=torch.randn(4, 6))
    assert [seen.result_atoms(axis) for axis in (0, 1)] == [seen.atoms("a", 0), seen.atoms("a", 1)]
    assert not seen.classes and not seen.frozen


def test_data_of_full_size_cannot_shrink_and_freeze_their_partner() -> None:
    seen = observe(lambda x, a: x + a, x=torch.randn(4, 6), a=torch.randn(6))
    assert seen.frozen == set(seen.atoms("a", 0)) and seen.result_atoms(1) is None
    assert seen.reasons(seen.frozen) == {"combined element by element with a tensor that cannot shrink"}


def test_data_of_size_one_say_nothing() -> None:
    seen = observe(lambda x, a: x * a, x=torch.randn(4, 1), a=torch.randn(6))
    assert not seen.frozen and seen.result_atoms(1) == seen.atoms("a", 0)


def test_three_operands_are_tied_together() -> None:
    seen = observe(lambda a, b, c: torch.addcmul(a, b, c), a=torch.randn(5), b=torch.randn(3, 5), c=torch.randn(3, 1))
    assert seen.classes == coupled(seen, "a", "b", "c")


def test_in_place_addition_changes_what_the_tensor_is() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        y = a.clone()
        y += b
        return y

    seen = observe(function, a=torch.randn(6), b=torch.randn(6))
    assert seen.classes == coupled(seen, "a", "b")


def test_heads_meet_positions() -> None:
    """A field over heads x dim meets a vector over dim: heads go whole and the vector stays, or all go by positions."""
    given = {"a": torch.randn(12), "b": torch.randn(4)}
    seen = observe(lambda a, b: a.view(3, 4) + b, **given)
    a, b = seen.atoms("a", 0), seen.atoms("b", 0)
    assert seen.classes == {frozenset(a[head * 4 : head * 4 + 4]) for head in range(3)}
    assert seen.frozen == set(b)
    seen = observe(lambda a, b: a.view(3, 4) + b, policy={"heads": "head_dim"}, **given)
    assert seen.classes == {frozenset([*a[position::4], b[position]]) for position in range(4)}
    assert not seen.frozen


@pytest.mark.parametrize("heads", ["whole", "head_dim"])
def test_heads_meet_heads(heads: str) -> None:
    seen = observe(lambda a, b: a.view(3, 4) * b, policy={"heads": heads}, a=torch.randn(12), b=torch.randn(3, 1))
    a, b = seen.atoms("a", 0), seen.atoms("b", 0)
    if heads == "whole":
        assert seen.classes == {frozenset([*a[head * 4 : head * 4 + 4], b[head]]) for head in range(3)}
        assert not seen.frozen
    else:
        assert seen.classes == {frozenset(a[position::4]) for position in range(4)}
        assert seen.frozen == set(b)


@pytest.mark.parametrize("heads", ["whole", "head_dim"])
def test_heads_meet_axes_of_their_own(heads: str) -> None:
    """What has the axes of heads and of positions apart can lose along one only, for the other operand can."""
    seen = observe(lambda a, b: a.view(3, 4) + b, policy={"heads": heads}, a=torch.randn(12), b=torch.randn(3, 4))
    assert seen.frozen == set(seen.atoms("b", 1 if heads == "whole" else 0))


def test_a_field_that_spans_a_fixed_axis_keeps_to_the_others() -> None:
    seen = observe(lambda x, a: x + a.view(3, 4), x=torch.randn(1, 4), a=torch.randn(12))
    a = seen.atoms("a", 0)
    assert seen.classes == {frozenset(a[head * 4 : head * 4 + 4]) for head in range(3)}
    assert not seen.frozen


@pytest.mark.parametrize("dim", [0, -1])
def test_glu_ties_the_halves_of_its_axis(dim: int) -> None:
    seen = observe(lambda a: F.glu(a, dim), a=torch.randn(4, 6))
    atoms = seen.atoms("a", dim % 2)
    half = len(atoms) // 2
    assert seen.classes == {frozenset([atoms[i], atoms[i + half]]) for i in range(half)}
    assert seen.result_atoms(dim % 2) == atoms[:half] and not seen.frozen


@pytest.mark.parametrize("heads", ["whole", "head_dim"])
def test_heads_meet_a_tensor_of_higher_rank(heads: str) -> None:
    """What is tied are heads; by policy ``head_dim`` positions go, and the other tensor's heads must stay."""
    seen = observe(lambda t, m: t.view(3, 4) * m, policy={"heads": heads}, t=torch.randn(12), m=torch.randn(2, 3, 1))
    atoms, other = seen.atoms("t", 0), seen.atoms("m", 1)
    if heads == "whole":
        assert seen.classes == {frozenset([*atoms[4 * h : 4 * h + 4], other[h]]) for h in range(3)} and not seen.frozen
    else:
        assert seen.classes == {frozenset(atoms[i::4]) for i in range(4)} and seen.frozen == set(other)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_glu_along_any_axis_ties_its_halves(axis: int) -> None:
    seen = observe(lambda t: F.glu(t, axis), t=torch.randn(4, 6, 8))
    atoms = seen.atoms("t", axis % 3)
    half = len(atoms) // 2
    assert seen.classes == {frozenset(pair) for pair in zip(atoms[:half], atoms[half:], strict=True)} and not seen.frozen
