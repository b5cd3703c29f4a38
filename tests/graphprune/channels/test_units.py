"""Units are the connected components of atoms, and fields that must hold the same units share one vector."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from graphprune.channels.labels import Field, LabelSpace, along
from graphprune.channels.units import UnitVectors


def components(space: LabelSpace) -> list[int]:
    """Number of the connected component of each atom, in the order of their smallest atoms."""
    graph = nx.Graph()
    graph.add_nodes_from(range(space.size))
    for left, right in space.ties:
        graph.add_edges_from(zip(left.tolist(), right.tolist(), strict=True))
    number = {atom: index for index, one in enumerate(sorted(nx.connected_components(graph), key=min)) for atom in one}
    return [number[atom] for atom in range(space.size)]


@pytest.mark.parametrize("seed", range(40))
def test_units_are_the_connected_components_by_first_atom(seed: int) -> None:
    """Whole blocks, parts, permutations, repeats and earlier atoms tied to later ones, in any order."""
    random = np.random.default_rng(seed)
    space = LabelSpace()
    fields: list[Field] = [space.fresh(int(random.integers(1, 7))) for _ in range(6)]
    fields += [field[::-1] for field in fields] + [random.permutation(field) for field in fields]
    fields += [np.concatenate([fields[a], fields[b]]) for a, b in random.integers(0, 12, (6, 2))]
    fields += [space.fresh(6) for _ in range(3)]
    for _ in range(int(random.integers(0, 9))):
        left = fields[random.integers(len(fields))]
        right = fields[random.integers(len(fields))]
        size = min(left.size, right.size)
        space.tie(left if left.size == size else left[:size], right if right.size == size else right[-size:])
    vectors = UnitVectors(fields, space)
    assert vectors.unit_of.tolist() == components(space)
    assert vectors.count == len(set(components(space)))
    for field in fields:
        index = vectors.index(field)
        assert (vectors.units[vectors[index]] == vectors.unit_of[field]).all() and vectors.axis(field) == 0
        assert vectors.sizes[index] == field.size and (vectors.owners[vectors[index]] == index).all()


def test_what_is_tied_whole_shares_a_vector_and_what_is_not_does_not() -> None:
    space = LabelSpace()
    a, b, c = space.fresh(4), space.fresh(4), space.fresh(4)
    seen, turned, part = along(a, 1, 3), a[::-1], a[:3]
    space.tie(along(a, 0, 2), along(b, 0, 2))
    space.tie(c, turned)
    vectors = UnitVectors([seen, b, c, turned, part], space)
    assert vectors.axis(seen) == 1 and vectors.axis(b) == 0
    assert vectors.index(seen) == vectors.index(b)
    assert len({vectors.index(field) for field in (b, c, part)}) == 3
    assert vectors.units[vectors[vectors.index(turned)]].tolist() == [3, 2, 1, 0]


def test_a_field_over_two_axes_is_made_rectangular_along_the_innermost() -> None:
    space = LabelSpace()
    table, alone = space.fresh(6).reshape(2, 3), space.fresh(2)
    vectors = UnitVectors([table, alone], space)
    assert vectors.axis(table) == 1 and vectors.unit_of.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]


def test_ties_decide_along_which_axis_a_field_shrinks() -> None:
    space = LabelSpace()
    table = space.fresh(6).reshape(2, 3)
    space.tie(table, table[:, :1])
    vectors = UnitVectors([table], space)
    assert vectors.axis(table) == 0 and vectors.unit_of.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_chain_of_ties_in_the_worst_order_is_one_unit() -> None:
    space = LabelSpace()
    atoms = [space.fresh(1) for _ in range(200)]
    for index in (*range(1, 199, 2), *range(0, 199, 2)):
        space.tie(np.concatenate([atoms[index], atoms[index]]), np.concatenate([atoms[index + 1], atoms[index + 1]]))
    assert UnitVectors(atoms, space).count == 1


def test_nothing_at_all() -> None:
    vectors = UnitVectors([], LabelSpace())
    assert vectors.count == 0 and len(vectors) == 0 and vectors.units.size == 0
