"""Convolutions: which channels go together, by brute force over the weight's own index arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d

from tests.passes.analysis.rules.observing import Seen, observe


def closed(pairs: set[tuple[int, int]]) -> set[frozenset[int]]:
    """Transitive closure of ties, classes of two or more."""
    groups: dict[int, set[int]] = {}
    for one, other in pairs:
        merged = groups.get(one, {one}) | groups.get(other, {other})
        for atom in merged:
            groups[atom] = merged
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def wanted(seen: Seen, groups: int, transposed: bool, whole: bool) -> set[frozenset[int]]:
    """Ties of a (transposed) grouped convolution of ``t`` with ``w`` and bias ``c``, element by element.

    Group g of the weight meets inputs g * ins ... of the input and makes outputs g * outs ...
    """
    channels, bias = seen.atoms("t", 1), seen.atoms("c", 0)
    first = seen.atoms("w", 0)
    per_group = seen.shapes["w"][1]
    second = seen.atoms("w", 1) if per_group > 1 else []
    ins, outs = (len(first) // groups, per_group) if transposed else (per_group, len(first) // groups)
    # Whole groups: everything of a group goes with its first input. Within: the same places of all groups go together.
    lead = [channels[g * ins] if whole else channels[i] for g in range(groups) for i in range(ins)]
    pairs = set(zip(channels, lead, strict=True))
    pairs |= set(zip(bias, [channels[g * ins] if whole else bias[o] for g in range(groups) for o in range(outs)], strict=True))
    pairs |= set(zip(channels if transposed else bias, first, strict=True))
    if second and not whole:
        pairs |= set(zip(bias if transposed else channels, second * groups, strict=True))
    return closed(pairs)


CONVOLUTIONS: dict[str, tuple[int, int, int]] = {
    "dense": (1, 6, 4),
    "grouped": (2, 6, 4),
    "three groups": (3, 6, 9),
    "depthwise": (6, 6, 6),
    "depthwise with multiplier": (6, 6, 12),
    "one output per group": (3, 6, 3),
}
FUNCTIONS: dict[bool, Callable[..., Any]] = {False: F.conv2d, True: F.conv_transpose2d}


@pytest.mark.parametrize("policy", ["within", "whole"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_channels_that_share_a_kernel_go_together(name: str, transposed: bool, policy: str) -> None:
    groups, inputs, outputs = CONVOLUTIONS[name]
    shape = (inputs, outputs // groups, 3, 3) if transposed else (outputs, inputs // groups, 3, 3)
    function = FUNCTIONS[transposed]

    def call(t: torch.Tensor, w: torch.Tensor, c: torch.Tensor) -> Any:
        return function(t, w, c, padding=1, groups=groups)

    tensors = {"t": torch.randn(1, inputs, 1, 1), "w": torch.randn(shape), "c": torch.randn(outputs)}
    seen = observe(call, policy={"conv_groups": policy}, **tensors)
    alone = groups > 1 and (inputs == groups or outputs == groups)
    whole = groups > 1 and (policy == "whole" or alone)
    assert seen.classes == wanted(seen, groups, transposed, whole)
    made = seen.result_atoms(1)
    assert made is not None and all(seen.tied(a, b) for a, b in zip(made, seen.atoms("c", 0), strict=True))
    kernel = set(seen.atoms("w", 2) + seen.atoms("w", 3))
    width = set(seen.atoms("w", 1)) if whole and seen.shapes["w"][1] > 1 else set()
    assert seen.frozen == kernel | width, "only the kernel's extent, and the width of groups that go whole, must stay"
    with FlopCounterMode(display=False) as counter:
        call(**tensors)
    assert seen.macs() == counter.get_total_flops() // 2


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_an_image_keeps_its_channels_and_lets_the_outputs_go(transposed: bool, groups: int) -> None:
    shape = (6, 4, 3, 3) if transposed else (6, 6 // groups, 3, 3)
    seen = observe(lambda x, w: FUNCTIONS[transposed](x, w, groups=groups), x=torch.randn(1, 6, 5, 5), w=torch.randn(shape))
    in_axis, out_axis = (0, 1) if transposed else (1, 0)
    assert seen.frozen >= set(seen.atoms("w", in_axis))
    assert not seen.frozen & set(seen.atoms("w", out_axis))
    assert seen.result_atoms(1) is not None


@pytest.mark.parametrize(("function", "rank"), [(F.conv1d, 1), (F.conv3d, 3), (F.conv_transpose1d, 1), (F.conv_transpose3d, 3)])
def test_other_dimensions_are_alike(function: Callable[..., Any], rank: int) -> None:
    seen = observe(lambda t, w: function(t, w), t=torch.randn(1, 4, *[1] * rank), w=torch.randn(4, 4, *[1] * rank))
    assert len(seen.classes) == 4 and not seen.frozen
    assert seen.result_atoms(1) == seen.atoms("w", 1 if "transpose" in function.__name__ else 0)


def test_a_batch_that_is_folded_with_channels_keeps_to_the_channels() -> None:
    """Space cannot shrink: a field over channels and space keeps to the channels."""
    seen = observe(lambda t, w: F.conv2d(t.view(1, 4, 3, 3), w), t=torch.randn(36), w=torch.randn(2, 4, 1, 1))
    atoms = seen.atoms("t", 0)
    assert seen.classes == {frozenset([*atoms[c * 9 : c * 9 + 9], seen.atoms("w", 1)[c]]) for c in range(4)}


@pytest.mark.parametrize("shape", [(4, 1, 5), (1, 4, 5)])
@pytest.mark.parametrize("function", [F.conv1d, F.conv_transpose1d])
def test_a_kernel_of_one_flat_axis_goes_by_its_outputs_or_else_by_its_inputs(function: Callable[..., Any], shape: Any) -> None:
    channels = shape[0 if "transpose" in function.__name__ else 1]
    seen = observe(lambda x, w: function(x, w.view(shape)), x=torch.randn(1, channels, 9), w=torch.randn(20))
    atoms = seen.atoms("w", 0)
    assert seen.classes == {frozenset(atoms[5 * i : 5 * i + 5]) for i in range(4)}


@pytest.mark.parametrize(("function", "out_axis"), [(F.conv1d, 0), (F.conv_transpose1d, 1)])
def test_a_kernel_of_one_flat_axis_goes_by_its_outputs_where_it_has_several(function: Callable[..., Any], out_axis: int) -> None:
    seen = observe(lambda x, w: function(x, w.view(4, 3, 5)), x=torch.randn(1, 4 if out_axis else 3, 9), w=torch.randn(60))
    table = torch.tensor(seen.atoms("w", 0)).view(4, 3, 5).movedim(out_axis, 0).flatten(1)
    assert seen.classes == {frozenset(row) for row in table.tolist()} and not seen.frozen & set(table.flatten().tolist())


def test_products_of_a_transposed_convolution_are_counted_from_its_inputs() -> None:
    seen = observe(lambda x, w: F.conv_transpose2d(x, w, stride=2), x=torch.randn(2, 6, 5, 5), w=torch.randn(6, 4, 3, 3))
    assert seen.macs() == 2 * 5 * 5 * 6 * 4 * 3 * 3


@pytest.mark.parametrize("inputs", [1, 6])
def test_products_of_a_deformable_convolution_follow_both_widths(inputs: int) -> None:
    def call(x: torch.Tensor, w: torch.Tensor) -> Any:
        return deform_conv2d(x, torch.zeros(1, 18, 5, 5, dtype=x.dtype), w, padding=1)

    seen = observe(call, x=torch.randn(1, inputs, 5, 5), w=torch.randn(4, inputs, 3, 3))
    assert seen.macs() == 25 * 9 * 4 * inputs
    (term,) = seen.trace.macs
    assert sum(not isinstance(factor, int) for factor in term.factors) == (1 if inputs == 1 else 2)
    seen = observe(lambda x, w: call(x, w.view(4, 6, 3, 3)), x=torch.randn(1, 6, 5, 5), w=torch.randn(216))
    atoms = seen.atoms("w", 0)
    assert {group & set(atoms) for group in seen.classes} == {frozenset(atoms[54 * i : 54 * i + 54]) for i in range(4)}
    assert observe(call, x=torch.randn(1, 6, 5, 5), w=torch.randn(1, 6, 3, 3)).macs() == 25 * 9 * 6
