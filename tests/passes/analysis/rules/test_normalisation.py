"""Normalisations tie what is indexed by one channel, and note (or freeze) statistics over channels that may go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.passes.analysis.rules.observing import observe

WIDTH = 6


def batch_norm(t: Tensor, m: Tensor, v: Tensor, w: Tensor, c: Tensor) -> Tensor:
    return F.batch_norm(t, m, v, w, c)


@pytest.mark.parametrize("shape", [(1, WIDTH), (1, WIDTH, 1), (1, WIDTH, 1, 1), (1, WIDTH, 1, 1, 1)])
def test_batch_norm_ties_all_five_tensors(shape: tuple[int, ...]) -> None:
    tensors = {name: torch.rand(WIDTH) for name in "mvwc"}
    seen = observe(batch_norm, t=torch.randn(shape), **tensors)
    columns = zip(seen.atoms("t", 1), *(seen.atoms(name, 0) for name in "mvwc"), strict=True)
    assert seen.classes == {frozenset(column) for column in columns}
    assert not seen.frozen and not seen.statistics and seen.result_atoms(1) is not None


def test_batch_norm_of_data_freezes_its_tensors() -> None:
    tensors = {name: torch.rand(WIDTH) for name in "mvwc"}

    def function(x: Tensor, **parts: Tensor) -> Tensor:
        return batch_norm(x, **parts)

    seen = observe(function, x=torch.randn(2, WIDTH), **tensors)
    assert seen.frozen == {atom for name in "mvwc" for atom in seen.atoms(name, 0)}


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_passes_places_on(training: bool) -> None:
    """Where its statistics are those of the input itself, they are noted as taken over these places."""
    tensors = {name: torch.rand(WIDTH) for name in "mv"} if not training else {}

    def function(t: Tensor, m: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        return F.batch_norm(t, m, v, training=training)

    seen = observe(function, t=torch.randn(2, WIDTH, 5), **tensors)
    assert [seen.result_atoms(axis) for axis in (0, 2)] == [seen.atoms("t", axis) for axis in (0, 2)]
    assert seen.statistics == (set(seen.atoms("t", 0)) | set(seen.atoms("t", 2)) if training else set())
    assert not seen.frozen


LAYERS: dict[str, Callable[..., Any]] = {
    "layer norm": lambda t, w: F.layer_norm(t, (WIDTH,), w),
    "rms norm": lambda t, w: F.rms_norm(t, (WIDTH,), w),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_norm_over_channels_is_taken_over_the_kept_ones(name: str) -> None:
    function = LAYERS[name]
    seen = observe(lambda t, w: function(t, w), t=torch.randn(3, WIDTH), w=torch.randn(WIDTH))
    assert seen.classes == {frozenset(pair) for pair in zip(seen.atoms("t", 1), seen.atoms("w", 0), strict=True)}
    assert seen.statistics >= set(seen.atoms("t", 1)) and not seen.frozen
    assert seen.result_atoms(0) == seen.atoms("t", 0)


@pytest.mark.parametrize("name", LAYERS)
def test_the_policy_can_freeze_statistics(name: str) -> None:
    function = LAYERS[name]
    seen = observe(lambda t, w: function(t, w), policy={"statistics": "freeze"}, t=torch.randn(3, WIDTH), w=torch.randn(WIDTH))
    assert seen.frozen == set(seen.atoms("t", 1) + seen.atoms("w", 0))
    assert not seen.frozen & set(seen.atoms("t", 0))


@pytest.mark.parametrize("name", LAYERS)
def test_a_norm_within_heads_leaves_whole_heads(name: str) -> None:
    function = LAYERS[name]
    seen = observe(lambda t, w: function(t.view(3, WIDTH), w), t=torch.randn(3 * WIDTH), w=torch.randn(WIDTH))
    atoms = seen.atoms("t", 0)
    assert {g for g in seen.classes if g & set(atoms)} == {frozenset(atoms[h * WIDTH : (h + 1) * WIDTH]) for h in range(3)}
    assert seen.frozen == set(seen.atoms("w", 0)) and not seen.statistics & set(atoms)


@pytest.mark.parametrize(
    ("groups", "policy", "classes"),
    [
        (2, "within", [[0, 3], [1, 4], [2, 5]]),
        (3, "within", [[0, 2, 4], [1, 3, 5]]),
        (2, "whole", [[0, 1, 2], [3, 4, 5]]),
        (3, "whole", [[0, 1], [2, 3], [4, 5]]),
        (1, "whole", []),
        (1, "within", []),
        (6, "within", []),
    ],
)
def test_group_norm_cuts_positions_or_whole_groups(groups: int, policy: str, classes: list[list[int]]) -> None:
    tensors = {"t": torch.randn(2, WIDTH, 1, 1), "w": torch.randn(WIDTH), "c": torch.randn(WIDTH)}
    seen = observe(lambda t, w, c: F.group_norm(t, groups, w, c), policy={"norm_groups": policy}, **tensors)
    parts = [seen.atoms("t", 1), seen.atoms("w", 0), seen.atoms("c", 0)]
    rows = classes or [[i] for i in range(WIDTH)]
    assert seen.classes == {frozenset(part[i] for i in row for part in parts) for row in rows}
    changed = groups == 1 or (policy == "within" and groups < WIDTH)
    assert bool(seen.statistics) == changed and not seen.frozen
    assert bool(seen.trace.scalars) == (not changed), "where whole groups go, their number is a kept count"


def test_instance_norm_is_per_channel() -> None:
    seen = observe(lambda t, w: F.instance_norm(t, weight=w), t=torch.randn(1, WIDTH, 4, 4), w=torch.randn(WIDTH))
    channels = seen.atoms("t", 1)
    assert all(seen.tied(a, b) for a, b in zip(channels, seen.atoms("w", 0), strict=True))
    assert not seen.frozen & set(channels)
    assert all(not seen.tied(a, b) for a in channels for b in channels if a != b)


@pytest.mark.parametrize(
    "function", [lambda t: t.softmax(1), lambda t: F.log_softmax(t, -1), lambda t: t.cumsum(1), lambda t: t.cumprod(1)]
)
def test_softmax_and_running_sums_fix_their_axis(function: Callable[[Tensor], Tensor]) -> None:
    seen = observe(lambda t: function(t), t=torch.randn(3, 4))
    assert seen.frozen == set(seen.atoms("t", 1)) and seen.result_atoms(0) == seen.atoms("t", 0)
    assert seen.result_atoms(1) is None


def test_a_softmax_over_the_kept_by_policy() -> None:
    seen = observe(lambda t: t.softmax(1), policy={"softmax": "allow"}, t=torch.randn(3, 4))
    assert seen.statistics == set(seen.atoms("t", 1)) and not seen.frozen
    assert [seen.result_atoms(axis) for axis in (0, 1)] == [seen.atoms("t", axis) for axis in (0, 1)]


def test_weight_norm_ties_lengths_to_directions() -> None:
    seen = observe(lambda v, g: torch._weight_norm(v, g, 0), v=torch.randn(4, 3, 2), g=torch.rand(4, 1, 1))
    assert seen.classes == {frozenset(pair) for pair in zip(seen.atoms("v", 0), seen.atoms("g", 0), strict=True)}
    assert [seen.result_atoms(axis) for axis in range(3)] == [seen.atoms("v", axis) for axis in range(3)]
    assert not seen.frozen and not seen.statistics


def test_a_norm_over_positions_of_heads_by_policy() -> None:
    """By default heads go whole and no statistic changes; by ``head_dim`` the norm is over the positions that are kept."""
    given = {"t": torch.randn(12), "w": torch.rand(4)}
    seen = observe(lambda t, w: F.layer_norm(t.view(3, 4), (4,), w), **given)
    atoms = seen.atoms("t", 0)
    assert seen.classes == {frozenset(atoms[h * 4 : h * 4 + 4]) for h in range(3)}
    assert seen.frozen == set(seen.atoms("w", 0)) and not seen.statistics
    seen = observe(lambda t, w: F.layer_norm(t.view(3, 4), (4,), w), policy={"heads": "head_dim"}, **given)
    atoms, weight = seen.atoms("t", 0), seen.atoms("w", 0)
    assert seen.classes == {frozenset([*atoms[i::4], weight[i]]) for i in range(4)}
    assert not seen.frozen and seen.statistics


def test_a_norm_by_positions_leaves_the_samples_alone() -> None:
    seen = observe(lambda t: F.layer_norm(t, (WIDTH,)), policy={"heads": "head_dim"}, t=torch.randn(3, WIDTH))
    assert not seen.frozen and not seen.classes and seen.result_atoms(0) == seen.atoms("t", 0)
    seen = observe(lambda t: F.layer_norm(t.view(3, 4), (4,)), policy={"heads": "head_dim"}, t=torch.randn(12))
    assert seen.classes == {frozenset(seen.atoms("t", 0)[i::4]) for i in range(4)} and not seen.frozen


def test_saved_statistics_have_the_labels_of_what_they_are_of() -> None:
    """For the backward pass: of a layer norm those of the samples, of a batch norm those of the channels."""
    seen = observe(lambda t: torch.native_layer_norm(t, (WIDTH,), None, None, 1e-5), t=torch.randn(3, 4, WIDTH))
    for index in (1, 2):
        assert [seen.result_atoms(axis, index) for axis in (0, 1, 2)] == [seen.atoms("t", 0), seen.atoms("t", 1), None]
    given = {"t": torch.randn(3, WIDTH), "m": torch.rand(WIDTH), "v": torch.rand(WIDTH)}
    operator = torch.ops.aten._native_batch_norm_legit
    seen = observe(lambda t, m, v: operator(t, None, None, m, v, True, 0.1, 1e-5), **given)
    assert all(seen.tied(*row) for row in zip(seen.result_atoms(0, 1) or [], seen.atoms("t", 1), strict=True))


@pytest.mark.parametrize("axis", [0, 2])
def test_the_lengths_of_a_normed_weight_go_with_its_axis(axis: int) -> None:
    length = torch.rand([4 if a == axis else 1 for a in range(3)])
    shape = (4, 5, 6) if axis == 0 else (6, 5, 4)
    seen = observe(lambda v, g: torch._weight_norm_interface(v, g, axis), v=torch.randn(shape), g=length)
    assert seen.classes == {frozenset(pair) for pair in zip(seen.atoms("v", axis), seen.atoms("g", axis), strict=True)}
    assert seen.result_atoms(axis) == seen.atoms("v", axis) and seen.result_atoms(axis, 1) == seen.atoms("g", axis)
