"""Look-ups: an axis that data index into must stay, the others pass where the result has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import graphprune
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.pipeline.analysis_manager import AnalysisManager
from tests.passes.analysis.rules.observing import observe
from tests.zoo.case import conv, image, net

INDEX = torch.tensor([2, 0])


def test_the_vocabulary_stays_and_the_width_passes() -> None:
    seen = observe(lambda x, w: F.embedding(x, w), x=torch.tensor([[1, 0, 2]]), w=torch.randn(7, 4))
    assert seen.frozen == set(seen.atoms("w", 0)) and seen.result_atoms(2) == seen.atoms("w", 1)


INDEXED: dict[str, tuple[Callable[..., Any], set[int], dict[int, int]]] = {
    "first axis": (lambda t, i: t[i], {0}, {1: 1, 2: 2}),
    "middle axis": (lambda t, i: t[:, i], {1}, {0: 0, 2: 2}),
    "last axis": (lambda t, i: t[..., i], {2}, {0: 0, 1: 1}),
    "two neighbours": (lambda t, i: t[:, i, i], {1, 2}, {0: 0}),
    "two apart": (lambda t, i: t[i, :, i], {0, 2}, {1: 1}),
    "by a table": (lambda t, i: t[:, i.view(1, 2)], {1}, {0: 0, 3: 2}),
    "selected": (lambda t, i: torch.index_select(t, 1, i), {1}, {0: 0, 2: 2}),
}


@pytest.mark.parametrize("name", INDEXED)
def test_indexed_axes_stay_and_the_others_are_where_the_result_has_them(name: str) -> None:
    """Result axis: operand axis, with numpy's rule for where the indexed axes go."""
    function, fixed, moved = INDEXED[name]
    seen = observe(lambda t, x: function(t, x), t=torch.randn(3, 4, 5), x=INDEX)
    operand = {atom for axis in range(3) for atom in seen.atoms("t", axis)}
    assert seen.frozen & operand == {atom for axis in fixed for atom in seen.atoms("t", axis)}
    for axis, source in moved.items():
        assert seen.result_atoms(axis) == seen.atoms("t", source)
    assert all(seen.result_atoms(axis) is None for axis in range(len(seen.results[0].shape)) if axis not in moved)


@pytest.mark.parametrize("function", [lambda t, i: t[i], lambda t, i: torch.index_select(t, 0, i), lambda t, i: F.embedding(i, t)])
def test_the_index_itself_cannot_be_cut(function: Callable[..., Any]) -> None:
    seen = observe(lambda t, i: function(t, i), t=torch.randn(3, 4), i=INDEX)
    field = seen.trace.parameters.get("i")
    assert field is None or seen.frozen >= set(seen.atoms("i", 0))


SELECTING: list[Callable[..., Any]] = [lambda t, i: torch.index_select(t, 0, i), lambda t, i: t[i]]


@pytest.mark.parametrize("function", SELECTING)
@pytest.mark.parametrize("places", [[2, 0, 3, 1], [0, 1, 2, 3], [0, 0, 1, 2], [3, -2], [0, 1, 2, 3, 3]])
def test_a_constant_index_takes_the_labels_that_it_names(function: Callable[..., Any], places: list[int]) -> None:
    seen = observe(lambda t, i: function(t, i), t=torch.randn(4, 3), i=torch.tensor(places))
    atoms = seen.atoms("t", 0)
    assert seen.result_atoms(0) == [atoms[i] for i in places] and seen.result_atoms(1) == seen.atoms("t", 1)
    assert not seen.frozen & set(atoms)


@pytest.mark.parametrize("places", [[1, 2], (2, 1)])
def test_so_does_a_list(places: Any) -> None:
    seen = observe(lambda t: t[..., places, :], t=torch.randn(2, 4, 3))
    atoms = seen.atoms("t", 1)
    assert seen.result_atoms(1) == [atoms[i] for i in places] and not seen.frozen & set(atoms)


KEEPING: list[Callable[..., Any]] = [
    lambda t: t[[2]],
    lambda t: t[[0, t.shape[0] - 1]],
    lambda t: t[[0, 1], [1, 2]],
    lambda t: t[[True, False, True]],
]


@pytest.mark.parametrize("function", KEEPING)
def test_axes_of_one_place_of_a_list_of_sizes_of_two_indices_and_of_a_mask_stay(function: Callable[..., Any]) -> None:
    seen = observe(function, t=torch.randn(3, 4))
    assert seen.frozen >= set(seen.atoms("t", 0)) and seen.result_atoms(0) is None


def test_samples_in_another_order_are_no_part_of_a_shuffle_around_them() -> None:
    """Between the views of a channel shuffle, whose run one ``index_select`` of channels replaces: they would lose their order."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x).unflatten(1, (2, 3))
        return self.b(y.index_select(0, self.order).transpose(1, 2).flatten(1, 2))

    model = net(forward, a=conv(3, 6), b=conv(6, 2))
    model.register_buffer("order", torch.tensor([1, 0]))
    program = graphprune.capture(model, image()(2))
    assert not AnalysisManager().get(program, ChannelGroups).trace.shuffles
    # Negative twin: without them there is one.
    plain = net(lambda self, x: self.b(self.a(x).unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)), a=model.a, b=model.b)
    assert AnalysisManager().get(graphprune.capture(plain, image()(2)), ChannelGroups).trace.shuffles


def test_a_mask_is_no_permutation() -> None:
    seen = observe(lambda t, i: t[:, i], t=torch.randn(4, 2), i=torch.tensor([True, False]))
    assert seen.frozen >= set(seen.atoms("t", 1)) and seen.result_atoms(1) is None


def test_a_permutation_given_by_the_caller_is_data() -> None:
    seen = observe(lambda x, t: torch.index_select(t, 0, x), x=torch.tensor([2, 0, 3, 1]), t=torch.randn(4, 3))
    assert seen.frozen == set(seen.atoms("t", 0))


PACKING: dict[str, tuple[Callable[..., Any], tuple[int, ...], int]] = {
    "packed": (lambda t, n: torch._pack_padded_sequence(t, n, True)[0], (2, 3, 5), 1),
    "padded": (lambda t, n: torch._pad_packed_sequence(t, n, True, 0.0, 2)[0], (4, 5), 2),
}


@pytest.mark.parametrize("name", PACKING)
def test_sequences_that_are_packed_and_their_lengths_stay_and_features_pass(name: str) -> None:
    function, shape, axis = PACKING[name]
    seen = observe(lambda t, n: function(t, n), t=torch.randn(shape), n=torch.tensor([2, 2]))
    last = len(shape) - 1
    fixed = {atom for place in range(last) for atom in seen.atoms("t", place)} | set(seen.atoms("n", 0))
    assert seen.frozen >= fixed and not seen.frozen & set(seen.atoms("t", last))
    assert [seen.result_atoms(place) for place in range(axis + 1)] == [None] * axis + [seen.atoms("t", last)]


def test_a_gathered_axis_stays_and_the_others_go_with_the_index() -> None:
    """An index that is repeated over an axis shrinks with it; one that holds data there fixes it."""
    seen = observe(lambda x, t: t.gather(1, x.expand(3, 2, 5)), x=torch.zeros(3, 2, 1, dtype=torch.long), t=torch.randn(3, 4, 5))
    assert seen.frozen >= set(seen.atoms("t", 1)) | set(seen.atoms("t", 0)) and not seen.frozen & set(seen.atoms("t", 2))
    assert seen.result_atoms(1) is None and seen.tied((seen.result_atoms(2) or [])[3], seen.atoms("t", 2)[3])
    seen = observe(lambda x, t: t.gather(1, x), x=torch.zeros(3, 2, 5, dtype=torch.long), t=torch.randn(3, 4, 5))
    assert seen.frozen == {atom for axis in range(3) for atom in seen.atoms("t", axis)}
    seen = observe(lambda x, t: t.gather(1, x), x=torch.zeros(3, 2, 4, dtype=torch.long), t=torch.randn(3, 4, 5))
    assert seen.frozen >= set(seen.atoms("t", 2)), "an index that is shorter names the first of an axis by position"


def test_a_gathered_axis_stays_at_any_length_of_the_index() -> None:
    seen = observe(lambda x, t: t.gather(1, x.expand(3, 4, 5)), x=torch.zeros(1, 1, 1, dtype=torch.long), t=torch.randn(3, 4, 5))
    operand = {atom for axis in range(3) for atom in seen.atoms("t", axis)}
    assert seen.frozen & operand == set(seen.atoms("t", 1)) and seen.result_atoms(1) is not None
    assert not set(seen.result_atoms(1) or []) & seen.frozen, "as many places are read as the index has"
    assert not observe(lambda x, t: t.sum().gather(0, x.sum()), x=torch.zeros(1, dtype=torch.long), t=torch.randn(3)).frozen


def test_gathering_positions_keeps_heads_whole() -> None:
    seen = observe(lambda x, t: t.view(3, 4).gather(1, x.expand(3, 4)), x=torch.zeros(1, 1, dtype=torch.long), t=torch.randn(12))
    atoms = seen.atoms("t", 0)
    assert {group & set(atoms) for group in seen.classes} >= {frozenset(atoms[4 * h : 4 * h + 4]) for h in range(3)}
    assert not seen.frozen & set(atoms) and seen.result_atoms(0) is not None


MASK = torch.tensor([True, False, True])


def test_a_mask_makes_one_axis_of_those_that_it_has() -> None:
    seen = observe(lambda t, m: t[m], t=torch.randn(3, 4, 5), m=MASK)
    assert seen.frozen >= set(seen.atoms("t", 0)) and [seen.result_atoms(axis) for axis in range(3)] == [
        None,
        seen.atoms("t", 1),
        seen.atoms("t", 2),
    ]
    seen = observe(lambda t, m: t[m], t=torch.randn(3, 4, 5), m=MASK.view(3, 1).repeat(1, 4))
    assert seen.frozen >= {*seen.atoms("t", 0), *seen.atoms("t", 1)} and not seen.frozen & set(seen.atoms("t", 2))
    assert [seen.result_atoms(axis) for axis in range(2)] == [None, seen.atoms("t", 2)]


def test_a_mask_behind_other_axes_and_beside_indices() -> None:
    seen = observe(lambda t, m: t[:, m], t=torch.randn(4, 3, 5), m=MASK)
    assert [seen.result_atoms(axis) for axis in range(3)] == [seen.atoms("t", 0), None, seen.atoms("t", 2)]
    seen = observe(lambda t, m, i: t[i, :, m], t=torch.randn(4, 6, 3, 5), m=MASK, i=INDEX)
    assert [seen.result_atoms(axis) for axis in range(3)] == [None, seen.atoms("t", 1), seen.atoms("t", 3)]
    seen = observe(lambda t, m, i: t[:, m, i], t=torch.randn(5, 3, 4), m=MASK, i=INDEX.view(1, 2).repeat(7, 1))
    assert [seen.result_atoms(axis) for axis in range(3)] == [seen.atoms("t", 0), None, None]


@pytest.mark.parametrize("function", [lambda t, m: m.nonzero() + t, lambda t, m: torch.masked_select(m, m > 0) + t])
def test_what_places_are_asked_of_stays(function: Callable[..., Any]) -> None:
    seen = observe(lambda t, m: function(t, m), t=torch.randn(1), m=torch.tensor([2, 0, 3, 1]))
    assert seen.frozen >= set(seen.atoms("m", 0)) and seen.reasons(seen.atoms("m", 0)) == {"indexed by data"}


def _masked(t: Tensor, mask: Tensor, number: float = 0.5) -> Tensor:
    t = t.clone()
    t[mask] = number
    return t


def test_writing_by_a_mask_is_element_by_element() -> None:
    seen = observe(lambda x, t: _masked(t, x), x=torch.ones(3, dtype=torch.bool), t=torch.randn(3, 4))
    assert seen.frozen == set(seen.atoms("t", 0)) and seen.result_atoms(1) == seen.atoms("t", 1)
    seen = observe(lambda x, t: _masked(t, x.view(3, 1).repeat(1, 4)), x=torch.ones(3, dtype=torch.bool), t=torch.randn(3, 4))
    assert seen.frozen == set(seen.atoms("t", 0)) and seen.tied((seen.result_atoms(1) or [])[2], seen.atoms("t", 1)[2])


def test_a_mask_that_can_shrink_is_tied_to_what_it_writes() -> None:
    seen = observe(lambda t, m: _masked(t, m > 0), t=torch.randn(3, 4), m=torch.randn(3))
    assert seen.classes == {frozenset(pair) for pair in zip(seen.atoms("t", 0), seen.atoms("m", 0), strict=True)}
    assert not seen.frozen and seen.result_atoms(1) == seen.atoms("t", 1)


def test_writing_at_places_freezes_their_axis() -> None:
    seen = observe(lambda x, t: _masked(t, x), x=torch.tensor([1, 0]), t=torch.randn(3, 4))
    assert seen.frozen == {*seen.atoms("t", 0)} and seen.result_atoms(1) == seen.atoms("t", 1)


def rows(index: Tensor, width: int) -> Tensor:
    """An index of rows, for every column."""
    return index.view(-1, 1).expand(-1, width)


WRITTEN: dict[str, Callable[..., Any]] = {
    "scatter": lambda t, s, i: t.scatter(0, rows(i, 4), s),
    "scatter_add": lambda t, s, i: t.scatter_add(0, rows(i, 4), s),
    "scatter_add_": lambda t, s, i: t.clone().scatter_add_(0, rows(i, 4), s),
    "scatter_reduce": lambda t, s, i: t.scatter_reduce(-2, rows(i, 4), s, "mean"),
    "index_add": lambda t, s, i: t.index_add(0, i, s),
    "index_copy": lambda t, s, i: t.index_copy(0, i, s),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_rows_that_are_written_to_stay_and_columns_are_tied(name: str) -> None:
    seen = observe(lambda t, s, i: WRITTEN[name](t, s, i), t=torch.randn(3, 4), s=torch.randn(2, 4), i=INDEX)
    assert seen.frozen >= {*seen.atoms("t", 0), *seen.atoms("s", 0)} and not seen.frozen & set(seen.atoms("t", 1))
    assert seen.result_atoms(1) == seen.atoms("t", 1) and seen.result_atoms(0) is None
    assert all(seen.tied(left, right) for left, right in zip(seen.atoms("t", 1), seen.atoms("s", 1), strict=True))


@pytest.mark.parametrize("axis", [1, -1])
def test_columns_that_are_written_to_stay_and_rows_are_tied(axis: int) -> None:
    seen = observe(lambda t, s, i: t.scatter(axis, i.expand(3, -1), s), t=torch.randn(3, 4), s=torch.randn(3, 2), i=INDEX)
    assert seen.result_atoms(0) == seen.atoms("t", 0) and seen.result_atoms(1) is None
    assert seen.frozen >= {*seen.atoms("t", 1), *seen.atoms("s", 1)} and not seen.frozen & set(seen.atoms("t", 0))
    assert all(seen.tied(left, right) for left, right in zip(seen.atoms("t", 0), seen.atoms("s", 0), strict=True))


def test_rows_stay_where_as_many_are_written_as_there_are() -> None:
    seen = observe(lambda t, s, i: t.scatter(0, i, s), t=torch.randn(3, 4), s=torch.randn(3, 4), i=torch.zeros(3, 4).long())
    assert seen.frozen >= {*seen.atoms("t", 0), *seen.atoms("s", 0)} and not seen.frozen & set(seen.atoms("t", 1))


def test_columns_stay_where_what_is_written_cannot_shrink() -> None:
    seen = observe(lambda x, t, i: t.scatter(0, rows(i, 4), x), x=torch.randn(2, 4), t=torch.randn(3, 4), i=INDEX)
    assert seen.frozen >= {*seen.atoms("t", 0), *seen.atoms("t", 1)}


def test_one_column_that_is_written_to_has_no_labels_and_rows_pass() -> None:
    seen = observe(lambda t, s, i: t.scatter(1, i.view(3, 1), s), t=torch.randn(3, 1), s=torch.randn(3, 1), i=torch.zeros(3).long())
    assert seen.result_atoms(0) == seen.atoms("t", 0) and not seen.frozen


def test_a_number_that_is_written_to_has_no_labels() -> None:
    seen = observe(lambda t, s, i: t.scatter(0, i, s), t=torch.randn(()), s=torch.randn(()), i=torch.tensor(0))
    assert not seen.results[0].fields


def test_where_a_narrow_index_writes_it_and_what_it_is_not_as_long_as_stay() -> None:
    seen = observe(lambda x, t: t.scatter(0, x, 1.0), x=torch.zeros(2, 3).long(), t=torch.randn(3, 4))
    assert seen.frozen == {*seen.atoms("t", 0), *seen.atoms("t", 1)}


@pytest.mark.parametrize("function", [lambda t, s, i: t.index_add(0, i, s), lambda t, s, i: t.index_copy(0, i, s)])
def test_indices_of_what_is_written_stay(function: Any) -> None:
    """An index that is a parameter of its own: its entries are no widths."""
    seen = observe(lambda t, s, i: function(t, s, i.round().long()), t=torch.randn(3, 4), s=torch.randn(2, 4), i=torch.rand(2))
    assert seen.frozen >= set(seen.atoms("i", 0)) and "used as an index" in seen.reasons(seen.atoms("i", 0))


def test_a_narrower_source_fixes_the_columns_too() -> None:
    seen = observe(lambda t, s, i: t.scatter(0, rows(i, 3), s), t=torch.randn(3, 4), s=torch.randn(2, 4), i=INDEX)
    assert seen.frozen >= {atom for name in "ts" for axis in (0, 1) for atom in seen.atoms(name, axis)}


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_the_vocabulary_of_bags_stays_and_the_width_passes(mode: str) -> None:
    bag = lambda x, o, w: F.embedding_bag(x, w, o, mode=mode)  # noqa: E731
    seen = observe(bag, x=torch.tensor([1, 0, 2]), o=torch.tensor([0, 2]), w=torch.randn(7, 4))
    assert seen.frozen >= set(seen.atoms("w", 0)) and not seen.frozen & set(seen.atoms("w", 1))
    assert seen.result_atoms(1) == seen.atoms("w", 1)
