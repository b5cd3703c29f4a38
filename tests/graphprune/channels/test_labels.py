"""The label algebra against plain index arithmetic: reshapes, joins, restrictions, ties and freezes."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.channels.labels import Field, LabelSpace, Reason, Value, along, axes_of, simplify

WHY = Reason("because")
quick = settings(max_examples=60, derandomize=True, deadline=None, database=None)


def tied(space: LabelSpace) -> set[frozenset[int]]:
    return {frozenset((a, b)) for left, right in space.ties for a, b in zip(left.tolist(), right.tolist(), strict=True) if a != b}


def frozen(space: LabelSpace) -> set[int]:
    return {int(atom) for atoms, _ in space.freezes for atom in atoms}


def factorisations(size: int) -> list[tuple[int, ...]]:
    """Shapes of this size with up to three axes."""
    return [
        (a, b, size // a // b) for a in range(1, size + 1) if size % a == 0 for b in range(1, size // a + 1) if size // a % b == 0
    ]


@quick
@given(st.sampled_from(factorisations(24)), st.sampled_from(factorisations(24)), st.integers(0, 2))
def test_a_reshape_moves_labels_as_it_moves_data(old: tuple[int, ...], new: tuple[int, ...], axis: int) -> None:
    space = LabelSpace()
    if old[axis] == 1:
        return
    field = along(space.fresh(old[axis]), axis, 3)
    wanted = np.broadcast_to(field, old).reshape(new)
    found = space.reshape(Value(old, (field,)), new, WHY)
    if (wanted == wanted.flat[0]).all():
        return
    assert len(found) == 1 and found[0].ndim == len(new)
    assert (np.broadcast_to(found[0], new) == wanted).all()
    assert all(size in (1, n) for size, n in zip(found[0].shape, new, strict=True))
    assert not space.freezes


@quick
@given(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4), st.data())
def test_two_fields_through_a_reshape_are_exact_or_frozen(shape: list[int], data: st.DataObject) -> None:
    old = tuple(shape)
    new = data.draw(st.sampled_from(factorisations(prod(old))))
    space = LabelSpace()
    fields = [along(space.fresh(n), axis, len(old)) for axis, n in enumerate(old) if n > 1]
    found = space.reshape(Value(old, tuple(fields)), new, WHY)
    moved = [np.broadcast_to(field, old).reshape(new) for field in fields]
    for field, labels in zip(fields, moved, strict=True):
        same = any((np.broadcast_to(f, new) == labels).all() for f in found)
        assert same or set(field.ravel().tolist()) <= frozen(space)
    taken = [axis for field in found for axis in axes_of(field)]
    assert len(taken) == len(set(taken)), "fields of one tensor lie on disjoint axes"


def test_padding_yields_to_parameters_in_a_conflict() -> None:
    space = LabelSpace()
    soft, hard = along(space.fresh(8, soft=True), 0, 2), along(space.fresh(3), 1, 2)
    found = space.reshape(Value((8, 3), (soft, hard)), (24,), WHY)
    assert frozen(space) == set(soft.ravel().tolist())
    assert len(found) == 1 and set(found[0].ravel().tolist()) == set(hard.ravel().tolist())


def test_soft_atoms_are_known() -> None:
    space = LabelSpace()
    first, soft, last = space.fresh(3), space.fresh(2, soft=True), space.fresh(3)
    assert [space.soft(field).tolist() for field in (first, soft, last)] == [[False] * 3, [True] * 2, [False] * 3]
    assert space.size == 8 and np.concatenate([first, soft, last]).tolist() == list(range(8))


def test_a_tie_of_broadcast_fields_covers_every_position() -> None:
    space = LabelSpace()
    table = space.fresh(12).reshape(3, 4)
    space.tie(table, table[:1])
    assert tied(space) == {frozenset((column, row * 4 + column)) for row in (1, 2) for column in range(4)}


@pytest.mark.parametrize("keep", [(0,), (1,), (0, 1), ()])
def test_restriction_ties_the_other_axes_or_freezes(keep: tuple[int, ...]) -> None:
    space = LabelSpace()
    field = space.fresh(6).reshape(2, 3)
    result = space.restrict(field, keep, WHY)
    if not keep:
        assert result is None and frozen(space) == set(range(6))
        return
    assert result is not None and axes_of(result) == keep and not space.freezes
    same = {
        frozenset((int(a), int(b)))
        for a, b in zip(field.ravel(), np.broadcast_to(result, field.shape).ravel(), strict=True)
        if a != b
    }
    assert tied(space) == same


def test_matching_ties_both_or_freezes_the_only_one() -> None:
    space = LabelSpace()
    a, b = space.fresh(3), space.fresh(3)
    space.match(a, b, WHY)
    assert tied(space) == {frozenset((i, i + 3)) for i in range(3)} and not space.freezes
    space.match(None, a, WHY)
    assert frozen(space) == set(a.tolist())
    space.match(None, None, WHY)


def join(space: LabelSpace, *operands: tuple[tuple[int, ...], dict[int, Field]], shape: tuple[int, ...]) -> tuple[Field, ...]:
    values = [Value(own, tuple(along(labels, axis, len(own)) for axis, labels in fields.items())) for own, fields in operands]
    return space.join(values, shape, WHY)


def test_joining_broadcasts_and_ties() -> None:
    space = LabelSpace()
    a, b, c = space.fresh(4), space.fresh(3), space.fresh(4)
    found = join(space, ((1, 3, 4), {2: a, 1: b}), ((4,), {0: c}), ((3, 1), {}), shape=(1, 3, 4))
    assert tied(space) == {frozenset((int(x), int(y))) for x, y in zip(a, c, strict=True)}
    assert frozen(space) == set(b.tolist()), "(3, 1) holds data without labels at full size"
    assert {axes_of(field) for field in found} == {(2,)}


def test_a_size_of_one_is_no_coupling() -> None:
    space = LabelSpace()
    a = space.fresh(5)
    found = join(space, ((2, 5), {1: a}), ((1, 1), {}), ((), {}), shape=(2, 5))
    assert len(found) == 1 and not space.freezes and not space.ties


def test_simplify_drops_axes_along_which_nothing_changes() -> None:
    column: npt.NDArray[np.int64] = np.array([[1, 1], [2, 2]])
    simple = simplify(column)
    assert simple is not None and simple.tolist() == [[1], [2]]
    assert simplify(np.array([[3, 3], [3, 3]])) is None
    both = np.array([[1, 2], [3, 4]])
    kept = simplify(both)
    assert kept is not None and kept.shape == (2, 2)


def test_values_know_their_fields() -> None:
    space = LabelSpace()
    rows, columns = along(space.fresh(2), 0, 3), along(space.fresh(4), 2, 3)
    value = Value((2, 3, 4), (rows, columns))
    assert value.labelled == {0, 2} and value.on(1) is None and value.on(-1) is columns
    vector = value.vector(0)
    assert vector is not None and vector.tolist() == [0, 1]


def test_a_reason_says_what_and_where() -> None:
    assert str(Reason("it is data", "aten::add", "add_1", "model.py:7")) == "it is data (add_1 at model.py:7)"
    assert str(Reason("it is data", node="add_1")) == "it is data (add_1)"
    assert str(Reason("it is data")) == "it is data"


def test_an_axis_given_up_to_agree_is_fixed_for_all() -> None:
    """F lies on two axes, its partners on one each: to agree on the first, F gives up the second, which then cannot shrink."""
    space = LabelSpace()
    both = space.fresh(12).reshape(3, 4)
    one, other = space.fresh(3).reshape(3, 1), space.fresh(4).reshape(1, 4)
    for order in ([both, one, other], [one, other, both]):
        why = Reason("does not fit")
        space.freezes.clear()
        left = space.merge(order, (), why)
        frozen = np.concatenate([atoms for atoms, _ in space.freezes])
        assert [axes_of(field) for field in left] == [(0,)]
        assert set(other.ravel()) <= set(frozen)
