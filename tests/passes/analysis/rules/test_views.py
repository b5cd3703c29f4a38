"""Views: labels move exactly as the data does; fixed positions freeze, and independent axes that merge cannot both stay free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.passes.analysis.rules.observing import check_labels_move_like_data, observe

MOVES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Any]]] = {
    "split an axis": ((4, 6), lambda t: t.view(4, 2, 3)),
    "split both axes": ((4, 6), lambda t: t.reshape(2, 2, 3, 2)),
    "merge and split one field": ((24,), lambda t: t.view(2, 3, 4).permute(2, 0, 1).reshape(8, 3)),
    "insert ones": ((4, 6), lambda t: t.view(1, 4, 1, 6, 1)),
    "remove ones": ((4, 1, 6), lambda t: t.view(4, 6)),
    "unflatten": ((12, 2), lambda t: t.unflatten(0, (-1, 4))),
    "flatten one": ((1, 6, 1, 1), lambda t: t.flatten(1)),
    "permute": ((2, 3, 4), lambda t: t.permute(2, -3, 1)),
    "transpose": ((2, 3, 4), lambda t: t.transpose(-1, 0)),
    "t": ((3, 4), lambda t: t.t()),
    "t of a vector": ((3,), lambda t: t.t()),
    "T": ((3, 4), lambda t: t.T),
    "mT": ((2, 3, 4), lambda t: t.mT),
    "movedim": ((2, 3, 4), lambda t: torch.movedim(t, 0, 2)),
    "swapaxes": ((2, 3, 4), lambda t: torch.swapaxes(t, 0, 1)),
    "unsqueeze": ((3, 4), lambda t: t.unsqueeze(-2)),
    "none index": ((3, 4), lambda t: t[:, None, :, None]),
    "squeeze all": ((1, 3, 1, 4), lambda t: t.squeeze()),
    "squeeze one": ((1, 3, 1, 4), lambda t: t.squeeze(2)),
    "squeeze what is no one": ((3, 4), lambda t: t.squeeze(0)),
    "squeeze several": ((1, 3, 1, 4), lambda t: t.squeeze((0, 2))),
    "expand": ((3, 1, 4), lambda t: t.expand(2, -1, 5, 4)),
    "expand_as": ((1, 4), lambda t: t.expand(3, 4)),
    "repeat": ((2, 3), lambda t: t.repeat(2, 1, 3)),
    "repeat once": ((1, 3), lambda t: t.repeat(1, 2)),
    "tile": ((2, 3), lambda t: torch.tile(t, (2, 2))),
    "slice": ((6, 5), lambda t: t[1:4]),
    "slice from the end": ((6, 5), lambda t: t[..., -3:]),
    "slice past the end": ((6, 5), lambda t: t[2:99, :-2]),
    "narrow": ((6, 5), lambda t: t.narrow(0, 2, 3)),
    "split": ((8, 2), lambda t: t.split(3)),
    "split into sizes": ((2, 7), lambda t: torch.split(t, [2, 2, 3], dim=-1)),
    "chunk": ((8, 2), lambda t: t.chunk(3)),
    "tensor_split": ((7, 2), lambda t: t.tensor_split(3, 0)),
    "unsafe_split": ((6, 2), lambda t: torch.unsafe_split(t, 2)),
    "flip": ((4, 5), lambda t: t.flip(-1, 0)),
    "flip the middle": ((3, 4, 5), lambda t: t.flip(1)),
    "flip one": ((4, 5), lambda t: torch.flip(t, [0])),
    "channel_shuffle": ((2, 6, 1, 1), lambda t: F.channel_shuffle(t, 3)),
    "pixel_shuffle": ((2, 8, 3, 3), lambda t: F.pixel_shuffle(t, 2)),
    "pixel_unshuffle": ((2, 3, 4, 4), lambda t: F.pixel_unshuffle(t, 2)),
    "clone": ((3, 4), lambda t: t.clone()),
    "contiguous": ((3, 4), lambda t: t.transpose(0, 1).contiguous()),
}


@pytest.mark.parametrize("name", [n for n in MOVES if not n.startswith("pixel")])
def test_labels_move_like_data(name: str) -> None:
    shape, function = MOVES[name]
    seen = check_labels_move_like_data(lambda t: function(t), t=torch.randn(shape))
    assert not seen.frozen


@pytest.mark.parametrize("function", [lambda t: t.repeat(2, 1), lambda t: t.expand(2, 3)])
def test_a_repeated_value_has_labels_of_its_own(function: Callable[[Tensor], Any]) -> None:
    seen = observe(lambda t: function(t), t=torch.randn(3))
    repeated = seen.result_atoms(0)
    assert repeated is not None and len(set(repeated)) == 2 and not set(repeated) & set(seen.atoms("t", 0)) and not seen.frozen


@pytest.mark.parametrize("name", ["pixel_shuffle", "pixel_unshuffle"])
def test_pixels_may_freeze_space_but_never_lie(name: str) -> None:
    """Channels merge with space here: what is not frozen must be where the data is."""
    shape, function = MOVES[name]
    seen = observe(lambda t: function(t), t=torch.randn(shape))
    assert not seen.frozen & set(seen.atoms("t", 1)), "channels stay free"


def test_concatenation_keeps_every_part_where_it_is() -> None:
    seen = check_labels_move_like_data(lambda a, b: torch.cat([a, b], -1), a=torch.randn(2, 3), b=torch.randn(2, 4))
    assert seen.result_atoms(1) == seen.atoms("a", 1) + seen.atoms("b", 1)
    assert seen.classes == {frozenset(pair) for pair in zip(seen.atoms("a", 0), seen.atoms("b", 0), strict=True)}
    assert not seen.frozen


def test_concatenation_beside_data_fixes_that_part_only() -> None:
    seen = observe(lambda x, a: torch.cat([x, a], 1), x=torch.randn(2, 3), a=torch.randn(1, 4).expand(2, 4).clone())
    assert not seen.frozen & set(seen.atoms("a", 1))
    assert seen.frozen >= set(seen.atoms("a", 0)), "the batch axis meets the data"
    labels = seen.result_atoms(1)
    assert labels is not None and labels[3:] == seen.atoms("a", 1) and set(labels[:3]) <= seen.frozen


def test_concatenation_of_one_tensor_with_itself_repeats_its_labels() -> None:
    seen = observe(lambda a: torch.cat([a, a], 0), a=torch.randn(3, 4))
    assert seen.result_atoms(0) == seen.atoms("a", 0) * 2
    assert not seen.classes


def test_stack_ties_its_parts() -> None:
    seen = observe(lambda a, b: torch.stack([a, b], 1), a=torch.randn(2, 3), b=torch.randn(2, 3))
    pairs = [*zip(seen.atoms("a", 0), seen.atoms("b", 0), strict=True), *zip(seen.atoms("a", 1), seen.atoms("b", 1), strict=True)]
    assert seen.classes == {frozenset(pair) for pair in pairs}
    assert seen.result_atoms(1) is None and not seen.frozen


POSITIONS: dict[str, tuple[Callable[[Tensor], Any], set[int]]] = {
    "index": (lambda t: t[:, 2], {2}),
    "from the end": (lambda t: t[:, -1], {3}),
    "select": (lambda t: torch.select(t, -1, 2), {2}),
    "two": (lambda t: t[:, 0] + t[:, 3], {0, 3}),
    "all": (lambda t: t.unbind(1), {0, 1, 2, 3}),
    "computed": (lambda t: t[:, t.shape[1] - 1], {3}),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_what_is_taken_by_position_is_frozen_and_nothing_else(name: str) -> None:
    function, positions = POSITIONS[name]
    seen = observe(lambda t: function(t), t=torch.randn(3, 4))
    assert seen.frozen == {atom for place, atom in enumerate(seen.atoms("t", 1)) if place in positions}
    assert all(seen.result_atoms(0, index) == seen.atoms("t", 0) for index in range(len(seen.results)))


def test_unbinding_ties_what_is_taken_apart() -> None:
    """Over (3, heads, dim) of one axis, the same position of each of the three goes together."""
    seen = observe(lambda t: t.view(3, 4).unbind(0), t=torch.randn(12))
    atoms = seen.atoms("t", 0)
    assert seen.classes == {frozenset(atoms[position::4]) for position in range(4)}
    assert not seen.frozen


@pytest.mark.parametrize(("shifts", "axes"), [(1, 0), ((1, 2), (0, 1)), ((2,), None)])
def test_a_roll_fixes_its_axes(shifts: Any, axes: Any) -> None:
    seen = observe(lambda t: torch.roll(t, shifts, axes), t=torch.randn(4, 5))
    rolled = {0, 1} if axes is None else set(axes if isinstance(axes, tuple) else [axes])
    assert seen.frozen == {atom for axis in rolled for atom in seen.atoms("t", axis)}


def test_a_position_that_varies_between_calls_freezes_its_axis() -> None:
    seen = observe(lambda x, t: t[x.shape[0] - 1], x=torch.randn(3), t=torch.randn(4, 5))
    assert seen.frozen == set(seen.atoms("t", 0)) and seen.result_atoms(0) == seen.atoms("t", 1)


@pytest.mark.parametrize("start", [0, 1, 5])
def test_neighbours_go_together_where_a_step_takes_one_of_them(start: int) -> None:
    seen = observe(lambda t: t[start::2], t=torch.randn(7, 5))
    atoms = seen.atoms("t", 0)
    assert seen.classes == {frozenset(atoms[i : i + 2]) for i in (0, 2, 4)}
    assert seen.frozen == (set(atoms[4:6]) if start == 5 else set())  # the only one left
    assert start == 5 or seen.tied(atoms[start], (seen.result_atoms(0) or [])[0])


def test_a_step_whose_bounds_vary_between_calls_freezes_its_axis() -> None:
    seen = observe(lambda x, t: t[: x.shape[0] : 2], x=torch.randn(3), t=torch.randn(6, 5))
    assert seen.frozen == set(seen.atoms("t", 0))


def test_complex_numbers_have_both_their_parts() -> None:
    seen = observe(lambda t: torch.view_as_real(torch.view_as_complex(t.view(3, 4, 2))), t=torch.randn(24))
    atoms = seen.atoms("t", 0)
    assert seen.classes == {frozenset(atoms[i : i + 2]) for i in range(0, 24, 2)} and not seen.frozen


@pytest.mark.parametrize("function", [torch.tril, torch.triu])
def test_a_triangle_fixes_its_axes(function: Callable[[Tensor], Tensor]) -> None:
    seen = observe(lambda t: function(t), t=torch.randn(2, 3, 4))
    assert seen.frozen == {*seen.atoms("t", 1), *seen.atoms("t", 2)} and seen.result_atoms(0) == seen.atoms("t", 0)


def test_unfolding_repeats_a_channel_for_each_place_and_folding_takes_it_back() -> None:
    seen = observe(lambda t: F.unfold(t, 3, padding=1), t=torch.randn(2, 4, 5, 5))
    assert seen.result_atoms(1) == [atom for atom in seen.atoms("t", 1) for _ in range(9)]
    assert seen.frozen == {*seen.atoms("t", 2), *seen.atoms("t", 3)}
    seen = observe(lambda t: F.fold(t, (5, 5), 3, padding=1), t=torch.randn(2, 18, 25))
    atoms = seen.atoms("t", 1)
    assert seen.classes == {frozenset(atoms[:9]), frozenset(atoms[9:])} and seen.result_atoms(1) == [atoms[0], atoms[9]]


@pytest.mark.parametrize("heads", ["whole", "head_dim"])
def test_heads_concatenated_along_their_positions(heads: str) -> None:
    """By whole heads, both parts keep their positions; by positions, the parts have positions of their own."""
    policy = {"heads": heads}
    seen = observe(lambda a, b: torch.cat([a.view(3, 4), b.view(3, 2)], 1), policy=policy, a=torch.randn(12), b=torch.randn(6))
    a, b = seen.atoms("a", 0), seen.atoms("b", 0)
    if heads == "whole":
        assert seen.classes == {frozenset([*a[h * 4 : h * 4 + 4], *b[h * 2 : h * 2 + 2]]) for h in range(3)}
    else:
        assert seen.classes == {frozenset(a[i::4]) for i in range(4)} | {frozenset(b[i::2]) for i in range(2)}
    assert not seen.frozen & {*a, *b}


@pytest.mark.parametrize("function", [lambda t: t[2:3], lambda t: t.split([1, 5])[0], lambda t: t.narrow(0, 5, 1)])
def test_a_single_index_that_is_cut_out_must_stay(function: Callable[[Tensor], Any]) -> None:
    seen = observe(lambda t: function(t), t=torch.randn(6, 5))
    assert len(seen.frozen) == 1 and seen.frozen < set(seen.atoms("t", 0))
    assert all(field.size > 1 for value in seen.results for field in value.fields), "a field that does not vary is no field"


@pytest.mark.parametrize(
    ("pads", "axis", "front", "back"),
    [((0, 0, 2, 1), 0, 2, 1), ((1, 0), 1, 1, 0), ((-1, 2), 1, -1, 2), ((0, 0, -1, -1), 0, -1, -1)],
)
def test_padding_has_labels_of_its_own(pads: tuple[int, ...], axis: int, front: int, back: int) -> None:
    seen = observe(lambda t: F.pad(t, pads), t=torch.randn(4, 5))
    atoms = seen.atoms("t", axis)
    left = atoms[max(0, -front) : len(atoms) - max(0, -back)]
    labels = seen.result_atoms(axis)
    assert labels is not None and len(labels) == len(atoms) + front + back
    assert labels[max(0, front) : len(labels) - max(0, back)] == left
    fresh = [atom for atom in labels if atom not in left]
    assert len(set(fresh)) == len(fresh) and not set(fresh) & set(seen.atoms("t", 0) + seen.atoms("t", 1))


def test_independent_axes_that_merge_cannot_both_stay_free() -> None:
    seen = observe(lambda t: t.flatten(), t=torch.randn(3, 5))
    assert seen.frozen == set(seen.atoms("t", 0)), "the narrower one yields"
    assert seen.result_atoms(0) == seen.atoms("t", 1) * 3


def test_an_empty_list_is_no_part_of_a_concatenation() -> None:
    """torch lets a tensor of shape [0] stand beside any other."""
    seen = observe(lambda t: torch.cat([torch.zeros(0), t], 1), t=torch.randn(3, 4))
    assert [seen.result_atoms(axis) for axis in (0, 1)] == [seen.atoms("t", 0), seen.atoms("t", 1)] and not seen.frozen


@pytest.mark.parametrize("axis", [0, 1])
def test_padding_heads_or_positions_keeps_a_field_to_the_padded_axis(axis: int) -> None:
    seen = observe(lambda t: F.pad(t.view(3, 4), (0, 1) if axis else (0, 0, 0, 1)), t=torch.randn(12))
    atoms = seen.atoms("t", 0)
    assert seen.classes == {frozenset(atoms[i::4] if axis else atoms[4 * i : 4 * i + 4]) for i in range(4 if axis else 3)}
    assert len(seen.result_atoms(axis) or []) == 5 - (not axis) and seen.result_atoms(1 - axis) is None and not seen.frozen


def test_parts_of_one_size_are_kept_so_by_a_policy() -> None:
    equal = observe(lambda t: t.split(2), policy={"parts": "equal"}, t=torch.randn(6, 3))
    first, second, third = (equal.result_atoms(0, part) or [] for part in range(3))
    assert equal.classes == {frozenset(atoms) for atoms in zip(first, second, third, strict=True)}
    assert not observe(lambda t: t.split(2), t=torch.randn(6, 3)).classes
    assert not observe(lambda t: t.split(4), policy={"parts": "equal"}, t=torch.randn(6, 3)).classes


def test_windows_fix_the_axis_that_they_slide_along() -> None:
    seen = observe(lambda t: t.unfold(1, 2, 1), t=torch.randn(3, 4, 5))
    assert seen.frozen == set(seen.atoms("t", 1))
    assert [seen.result_atoms(axis) for axis in (0, 1, 2, 3)] == [seen.atoms("t", 0), None, seen.atoms("t", 2), None]
    assert not observe(lambda t: t.sum().unfold(0, 1, 1), t=torch.randn(3)).frozen


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t.as_strided((4, 4), (4, 1)),
        lambda t: t.as_strided((2, 2), (1, 2)),
        lambda t: t.as_strided((4, 4), (1, 4)),
        lambda t: t.as_strided((4, 4), (4, 1), 0).as_strided((3, 4), (4, 1), 4),
    ],
)
def test_strides_that_are_given_freeze(function: Callable[[Tensor], Any]) -> None:
    seen = observe(lambda t: function(t), t=torch.randn(4, 4))
    assert seen.frozen == set(seen.atoms("t", 0) + seen.atoms("t", 1))


def test_strides_that_torch_gives_a_result_let_labels_pass() -> None:
    """An average over all places of a tensor whose channels lie side by side is given the strides of one place."""
    seen = observe(lambda t: F.adaptive_avg_pool1d(t.transpose(1, 2), 1), t=torch.randn(2, 5, 4))
    assert seen.result_atoms(1) == seen.atoms("t", 2) and not seen.frozen & set(seen.atoms("t", 2))


def test_an_operator_without_a_rule_freezes_and_is_named() -> None:
    seen = observe(lambda t: torch.linalg.inv(t), t=torch.randn(3, 3))
    assert seen.frozen == set(seen.atoms("t", 0) + seen.atoms("t", 1))
    assert any("has no rule" in reason for reason in seen.reasons(seen.atoms("t", 0)))
    assert list(seen.trace.missing)


def test_a_shuffle_beside_places_that_vary_together_shrinks_alike_in_all_groups() -> None:
    """It is redone only where no field lies on two axes; any other shuffle stays as it is."""
    seen = observe(lambda t: F.channel_shuffle(t.view(1, 6, 2, 2), 2), t=torch.randn(6, 4))
    channels = seen.atoms("t", 0)
    assert {frozenset(pair) for pair in zip(channels[:3], channels[3:], strict=True)} <= seen.classes
    alone = observe(lambda t: F.channel_shuffle(t.view(1, 6, 1, 4), 2), t=torch.randn(6, 4))
    assert not alone.classes
