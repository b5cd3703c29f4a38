"""Exported programs: the constants of ATen calls follow the widths as those of functions and methods do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket

import graphprune
import tests.zoo.test_zoo  # noqa: F401  (makes the cases)
from graphprune.resizers import _CALLS, call_resizer
from graphprune.tracing import normalise_inputs
from tests.checking import max_error, run
from tests.zoo.case import CASES, net


def _shapes(self: Any, x: Tensor) -> Tensor:
    """Fixed-size views, slices, paddings, splits and a shuffle."""
    y = F.relu(self.stem(x))
    y = y.view(2, 2, 4, 6, 6).transpose(1, 2).reshape(2, 8, 6, 6)
    left, right = y.split([3, 5], 1)
    y = torch.cat((right, F.pad(left, (0, 0, 0, 0, 1, 1))), 1)
    y = self.depthwise(self.wide(y))
    y = y[:, 2:10] + y[:, 4:12]
    scores: Tensor = self.head(self.norm(y.mean((2, 3))))
    return scores


def _attention(self: Any, x: Tensor) -> Tensor:
    """Fused queries, keys and values, by fixed sizes."""
    qkv = self.qkv(x.flatten(2).transpose(1, 2)).view(2, 36, 3, 4, 2).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
    scores: Tensor = self.head(y.transpose(1, 2).reshape(2, 36, 8).mean(1))
    return scores


NETS = {
    "shapes": lambda: net(
        _shapes,
        stem=nn.Conv2d(3, 8, 3, padding=1),
        wide=nn.Conv2d(10, 12, 1),
        depthwise=nn.Conv2d(12, 12, 3, groups=12),
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 5),
    ),
    "attention": lambda: net(_attention, qkv=nn.Linear(3, 24), head=nn.Linear(8, 5)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_an_exported_program_is_pruned_as_the_model_is(name: str, seed: int) -> None:
    model = NETS[name]().double().eval()
    image = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    exported: Any = torch.export.export(model, (image,)).module(check_guards=False)
    options: dict[str, Any] = {"target": "channels=60%", "criterion": "random", "seed": seed}
    wanted = graphprune.prune(model, image, **options)
    found = graphprune.prune(exported, image, **options)
    assert found.report.verification is not None and found.report.verification.error < 1e-10
    assert found.report.after.parameters < found.report.before.parameters == wanted.report.before.parameters
    assert sum(p.numel() for p in found.model.parameters()) == found.report.after.parameters
    assert found.model(image).shape == (2, 5)


@pytest.mark.parametrize("kind", ["Conv{}d", "ConvTranspose{}d"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_counts_of_groups_follow_in_every_number_of_axes(kind: str, axes: int) -> None:
    """torch.export has operators and overloads of its own for each: transposed, and with a padding that is named."""
    plain, grouped = getattr(nn, f"Conv{axes}d"), getattr(nn, kind.format(axes))
    padding = {} if "Transpose" in kind else {"padding": "same"}
    model = nn.Sequential(plain(3, 8, 1), grouped(8, 8, 3, groups=4, **padding), nn.ReLU(), plain(8, 4, 1)).double().eval()
    image = torch.randn(2, 3, *[6] * axes, dtype=torch.float64)
    exported: Any = torch.export.export(model, (image,)).module(check_guards=False)
    result = graphprune.prune(exported, image, target="channels=50%", policy={"conv_groups": "whole"})
    assert result.report.verification is not None and result.report.verification.error < 1e-10
    assert [node.args[6] for node in result.graph.graph.nodes if len(node.args) > 6] == [2]


# What failed once: sizes of an unflatten, a slice with a step, a tensor that is made of a value; and constant indices.
@pytest.mark.parametrize(
    "name", ["torch_multi_head_attention", "gate_and_values_side_by_side", "constants_added", "channels_named_by_lists"]
)
def test_structures_of_the_zoo_are_pruned_once_exported(name: str) -> None:
    _prune_exported(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_structure_of_the_zoo_is_pruned_once_exported(name: str) -> None:
    _prune_exported(name)


def _listed(self: Any, x: Tensor) -> Tensor:
    y = self.stem(x)[:, [2, 0, 1, 5, 4, 3]]
    y = torch.cat([y[:, self.places], y.index_select(1, torch.tensor([1, 3, 5]))], 1)
    scores: Tensor = self.head(y).mean((2, 3))
    return scores


def _listed_and_changed(self: Any, x: Tensor) -> Tensor:
    """The list that is exported is not the one that is read."""
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    order[:2] = torch.tensor([0, 1])
    scores: Tensor = self.head(self.stem(x).index_select(1, order)).mean((2, 3))
    return scores


def _exported(body: Any) -> tuple[Any, Any, Tensor]:
    model: Any = net(body, stem=nn.Conv2d(3, 6, 1), head=nn.Conv2d(6, 5, 1)).double().eval()
    model.places = [0, 2, 4]
    image = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    return model, torch.export.export(model, (image,)).module(check_guards=False), image


def test_lists_and_constants_that_name_channels_are_counted_anew() -> None:
    model, exported, image = _exported(_listed)
    found, wanted = (graphprune.prune(given, image, target="channels=50%", ranking="local") for given in (exported, model))
    assert found.report.verification is not None and found.report.verification.error < 1e-10
    assert found.report.after.parameters == wanted.report.after.parameters
    assert found.report.after.parameters < 0.6 * found.report.before.parameters
    assert max_error(run(found.model, image), run(wanted.model, image)) < 1e-10


def test_a_constant_that_is_written_into_names_nothing() -> None:
    _, exported, image = _exported(_listed_and_changed)
    assert not graphprune.channel_groups(graphprune.capture(exported, image)).prunable


def _prune_exported(name: str) -> None:
    case = CASES[name]()
    inputs = normalise_inputs(case.inputs(2))
    exported: Any = torch.export.export(case.model, inputs.args, dict(inputs.kwargs)).module(check_guards=False)
    program = graphprune.capture(exported, inputs).under(policy=case.policy)
    if graphprune.channel_groups(program).prunable:
        policy = [f"{site}={choice}" for site, choice in case.policy.items()]
        channels = f"channels{{policy=[{';'.join(policy)}]}}"
        result = graphprune.run_pipeline(program, f"{channels},score{{criterion=random}},select{{channels=75%}},rewrite,verify")
        assert result.report.verification is not None and result.report.verification.error < 1e-10


# Overloads of TorchScript alone, and those whose sizes are data.
_OTHERS = {"select.t", "split.str", "split.default"} | {
    *("view.dtype", "narrow.Tensor", "tensor_split.tensor_indices_or_sections"),
    *("repeat_interleave.Tensor", "repeat_interleave.self_Tensor"),
}


def test_what_is_resized_by_name_is_resized_as_an_operator_of_aten_too() -> None:
    """torch.export keeps composed operators: one that is missing would leave old sizes in the graph of a program alone."""
    missing = []
    for target in list(_CALLS):
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if isinstance(packet, OpOverloadPacket) and not isinstance(target, OpOverload) else ():
            known = call_resizer(getattr(packet, overload)) is not None or f"{name}.{overload}" in _OTHERS
            if not known and not any(word in overload for word in ("out", "names", "Dimname", "dimname", "generator")):
                missing.append(f"{name}.{overload}")
    assert sorted(set(missing)) == []
