"""Every resizer, in each spelling of its call: random plans are exact, and the constant that it resizes has really changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from graphprune.resizers import can_resize
from tests.checking import analyse, check_plan
from tests.zoo.case import conv, net, ready

Body = Callable[[Any, Tensor], Tensor]
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
OTHER = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

# Each body maps the 8 channels of a convolution on 8 x 8 pixels to something that a linear layer reads.
SHAPES: dict[str, Body] = {
    "view of literals": lambda s, y: y.view(-1, 8 * 64),
    "view of a tuple": lambda s, y: y.view((y.size(0), 512)),
    "view of a list": lambda s, y: y.view([y.shape[0], 8, 64]).flatten(1),
    "view of a size": lambda s, y: y.view(y.size()).flatten(1),
    "added and multiplied in one": lambda s, y: torch.addcmul(y, y, s.scale.view(8, 1, 1)).flatten(1),
    "view keyword": lambda s, y: torch.reshape(input=y, shape=(-1, 512)),
    "reshape function": lambda s, y: torch.reshape(y, (y.shape[0], y.shape[1], 64)).flatten(1),
    "reshape with arithmetic": lambda s, y: y.reshape(y.shape[0], y.shape[1] * y.shape[2] * y.shape[3]),
    "reshape with halves": lambda s, y: y.reshape(y.shape[0], 2 * (y.shape[1] // 2), -1).flatten(1),
    "view_as": lambda s, y: (y.view(-1, 512).view_as(y)).flatten(1),
    "reshape_as": lambda s, y: y.flatten(1).reshape_as(y).flatten(1),
    "view and dtype": lambda s, y: y.view(torch.float64).flatten(1),
    "unflatten method": lambda s, y: y.flatten(1).unflatten(1, (8, 64)).flatten(1),
    "unflatten function": lambda s, y: torch.unflatten(y.flatten(1), dim=-1, sizes=(8, -1)).flatten(1),
    "unflatten from the end": lambda s, y: y.permute(0, 2, 3, 1).unflatten(-1, (8, 1)).squeeze(-1).permute(0, 3, 1, 2).flatten(1),
    "expand of literals": lambda s, y: (y + s.scale.view(1, 8, 1, 1).expand(2, 8, 8, 8)[:1]).flatten(1),
    "expand of a shape": lambda s, y: (y + s.scale.view(1, 8, 1, 1).expand(y.shape)).flatten(1),
    "expand_as": lambda s, y: (y * s.scale.view(1, 8, 1, 1).expand_as(y)).flatten(1),
    "broadcast_to": lambda s, y: (y * torch.broadcast_to(s.scale.view(8, 1, 1), (8, 8, 8))).flatten(1),
    "broadcast_to method": lambda s, y: (y * s.scale.view(8, 1, 1).broadcast_to(y.shape[0], 8, 8, 8)).flatten(1),
    "repeat": lambda s, y: (y + s.scale.view(1, 8, 1, 1).repeat(1, 1, 8, 8)).flatten(1),
    "new_zeros": lambda s, y: (y + y.new_zeros(8, 1, 1)).flatten(1),
    "new_zeros of a shape": lambda s, y: (y + y.new_zeros(y.shape)).flatten(1),
    "new_ones of a tuple": lambda s, y: (y + y.new_ones((8, 1, 1))).flatten(1),
    "new_full": lambda s, y: (y * y.new_full((8, 8, 8), 0.5)).flatten(1),
    "ones of a size": lambda s, y: (y * torch.ones(y.size(), dtype=torch.float64)).flatten(1),
    "full": lambda s, y: (y * torch.full((y.shape[0], y.shape[1], 1, 1), 0.5, dtype=torch.float64)).flatten(1),
    "full_like": lambda s, y: (y * torch.full_like(y, 0.5)).flatten(1),
    "narrow": lambda s, y: torch.cat([y.narrow(1, 3, 5), torch.narrow(y, 1, 0, 3)], 1).flatten(1),
    "slices": lambda s, y: torch.cat([y[:, :3], y[:, 3:]], 1).flatten(1),
    "slices from the end": lambda s, y: torch.cat([y[:, -3:], y[:, :-3]], 1).flatten(1),
    "slices after dots": lambda s, y: torch.cat([y[..., :5, :, :], y[..., 5:8, :, :]], 1).flatten(1),
    "slices of a half": lambda s, y: torch.cat([y[:, y.shape[1] // 2 :], y[:, : y.shape[1] // 2]], 1).flatten(1),
    "slices past the end": lambda s, y: y[:, 0:100].flatten(1),
    "split method": lambda s, y: torch.cat(_pair(y.split([3, 5], 1)), 1).flatten(1),
    "split function": lambda s, y: torch.cat(_pair(torch.split(y, 4, dim=1)), 1).flatten(1),
    "split keywords": lambda s, y: torch.cat(_pair(torch.split(tensor=y, split_size_or_sections=4, dim=-3)), 1).flatten(1),
    "split_with_sizes": lambda s, y: torch.cat(_pair(y.split_with_sizes([6, 2], dim=1)), 1).flatten(1),
    "chunk": lambda s, y: torch.cat(_pair(torch.chunk(y, chunks=2, dim=1)), 1).flatten(1),
    "tensor_split": lambda s, y: torch.cat(_pair(torch.tensor_split(y, 2, dim=1)), 1).flatten(1),
    "tensor_split at indices": lambda s, y: torch.cat(_pair(y.tensor_split([3], dim=1)), 1).flatten(1),
    "chunk of another axis": lambda s, y: torch.cat(_pair(y.chunk(2, -1)), -1).flatten(1),
    "pad and cut": lambda s, y: F.pad(y, (0, 0, 0, 0, 1, 2))[:, 1:9].flatten(1),
    "negative pad": lambda s, y: torch.cat([F.pad(y, (0, 0, 0, 0, -3, 0)), F.pad(y, (0, 0, 0, 0, 0, -5))], 1).flatten(1),
    "pad of space and channels": lambda s, y: F.pad(y, [1, 0, 0, 1, 0, 2], value=0.0)[:, :8, :8, 1:].flatten(1),
    "layer_norm": lambda s, y: F.layer_norm(y.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2).flatten(1),
    "layer_norm of a shape": lambda s, y: F.layer_norm(y, y.shape[1:]).flatten(1),
    "torch.layer_norm": lambda s, y: torch.layer_norm(y, [8, 8, 8]).flatten(1),
    "layer_norm keywords": lambda s, y: _wide(F.layer_norm(y.mean((2, 3)), normalized_shape=(8,), weight=s.scale)),
    "rms_norm": lambda s, y: F.rms_norm(y.permute(0, 2, 3, 1), [8], s.scale).permute(0, 3, 1, 2).flatten(1),
    "group_norm": lambda s, y: F.group_norm(y, 4, s.scale).flatten(1),
    "group_norm keywords": lambda s, y: F.group_norm(input=y, num_groups=8, weight=s.scale).flatten(1),
    "torch.group_norm": lambda s, y: torch.group_norm(y, 2).flatten(1),
    "instance_norm": lambda s, y: F.instance_norm(y, weight=s.scale).flatten(1),
    "batch_norm": lambda s, y: F.batch_norm(y, s.shift, s.scale).flatten(1),
    "depthwise": lambda s, y: F.conv2d(y, s.depth, groups=8).flatten(1),
    "depthwise by position": lambda s, y: torch.conv2d(y, s.depth, None, 1, 0, 1, 8).flatten(1),
    "depthwise by its width": lambda s, y: F.conv2d(y, s.depth, groups=y.shape[1]).flatten(1),
    "depthwise transposed": lambda s, y: F.conv_transpose2d(y, s.depth, groups=8).flatten(1),
    "depthwise transposed by position": lambda s, y: F.conv_transpose2d(y, s.depth, None, 1, 0, 0, 8).flatten(1),
    "attention over channels": lambda s, y: _attended(y, None),
    "attention with a scale": lambda s, y: _attended(y, 0.3),
    "divided by the width": lambda s, y: (y / y.shape[1] ** 0.5 * y.size(1)).flatten(1),
    "added to the width": lambda s, y: torch.add(y, y, alpha=1).flatten(1) / (y.shape[1] + 1),
    "clamped to the width": lambda s, y: y.clamp(max=y.shape[1]).flatten(1),
    "channel_shuffle": lambda s, y: F.channel_shuffle(y, 2).flatten(1),
    "flip": lambda s, y: y.flip(1).flatten(1),
    "stack and unbind": lambda s, y: torch.cat(_pair(torch.stack([y, y * 2], 1).unbind(1)), 1).flatten(1)[:, :512],
    "unsqueeze and squeeze": lambda s, y: y.unsqueeze(1).squeeze(1).flatten(1),
    "movedim": lambda s, y: torch.movedim(y, 1, -1).reshape(-1, 64, 8).transpose(1, 2).reshape(-1, 512),
    "swapped axes": lambda s, y: y.swapaxes(1, 3).swapaxes(3, 1).flatten(1),
}  # fmt: skip


def _wide(y: Tensor) -> Tensor:
    return y[:, :, None].repeat(1, 1, 64).flatten(1)


def _pair(parts: Any) -> list[Tensor]:
    first, second = parts[0], parts[1]
    return [second, first]


def _attended(y: Tensor, scale: float | None) -> Tensor:
    tokens = y.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(tokens, tokens, tokens, scale=scale).transpose(1, 2).flatten(1)


@pytest.mark.parametrize("name", SHAPES)
def test_calls(name: str) -> None:
    body = SHAPES[name]

    def forward(self: Any, x: Tensor) -> Any:
        return self.head(body(self, F.relu(self.a(x))))

    model = net(
        forward,
        a=conv(3, 8),
        head=nn.Linear(512, 3),
        scale=nn.Parameter(torch.rand(8)),
        shift=nn.Parameter(torch.rand(8)),
        depth=nn.Parameter(torch.randn(8, 1, 1, 1)),
    )
    found = analyse(model, IMAGE)
    assert found.groups.prunable, "something can be removed around the call"
    statistics = any(group.statistics for group in found.groups.prunable)
    batch = OTHER if name != "expand of literals" else None
    for seed in (0, 1):
        slim = check_plan(found, found.random_plan(seed), other=batch, zeros=not statistics, again=seed == 0)
        assert slim.a.out_channels < 8


LAYERS: dict[str, tuple[nn.Module, Callable[[Any], list[int]]]] = {
    "Conv2d": (nn.Conv2d(8, 8, 1), lambda m: [m.in_channels, m.out_channels]),
    "Conv2d in groups": (nn.Conv2d(8, 8, 3, padding=1, groups=2), lambda m: [m.in_channels, m.out_channels]),
    "Conv2d depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8), lambda m: [m.in_channels, m.out_channels, m.groups]),
    "Conv2d padded": (nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect"), lambda m: [m.in_channels, m.out_channels]),
    "ConvTranspose2d": (nn.ConvTranspose2d(8, 8, 1), lambda m: [m.in_channels, m.out_channels]),
    "ConvTranspose2d depthwise": (nn.ConvTranspose2d(8, 8, 1, groups=8), lambda m: [m.in_channels, m.out_channels, m.groups]),
    "BatchNorm2d": (nn.BatchNorm2d(8), lambda m: [m.num_features]),
    "BatchNorm2d without statistics": (nn.BatchNorm2d(8, track_running_stats=False), lambda m: [m.num_features]),
    "InstanceNorm2d": (nn.InstanceNorm2d(8, affine=True, track_running_stats=True), lambda m: [m.num_features]),
    "GroupNorm": (nn.GroupNorm(4, 8), lambda m: [m.num_channels]),
    "GroupNorm of single channels": (nn.GroupNorm(8, 8), lambda m: [m.num_channels, m.num_groups]),
    "LayerNorm": (nn.LayerNorm([8, 8, 8]), lambda m: [m.normalized_shape[0]]),
    "LayerNorm without parameters": (nn.LayerNorm([8, 8, 8], elementwise_affine=False), lambda m: [m.normalized_shape[0]]),
    "RMSNorm": (nn.RMSNorm([8, 8, 8]), lambda m: [m.normalized_shape[0]]),
    "PReLU": (nn.PReLU(8), lambda m: [m.num_parameters]),
    "Linear": (nn.Linear(8, 5), lambda m: [m.out_features]),
    "Dropout2d": (nn.Dropout2d(), lambda m: [0]),
    "AvgPool2d": (nn.AvgPool2d(3, 1, 1), lambda m: [0]),
    "Identity": (nn.Identity(), lambda m: [0]),
    "Softmax over space": (nn.Softmax(3), lambda m: [0]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_modules(name: str) -> None:
    layer, sizes = LAYERS[name]
    assert can_resize(layer)
    width = 5 if name == "Linear" else 8

    def forward(self: Any, x: Tensor) -> Any:
        return self.head(F.relu(self.layer(self.a(x))).flatten(1))

    model = net(forward, a=conv(3, 8), layer=layer, head=nn.Linear(8 * 8 * width, 3))
    found = analyse(model, IMAGE)
    before = sizes(model.layer)
    statistics = any(group.statistics for group in found.groups.prunable)
    for seed in (0, 1):
        slim = check_plan(found, found.random_plan(seed), other=OTHER, zeros=not statistics)
        after = sizes(slim.layer)
        assert all(new < old for new, old in zip(after, before, strict=True) if old) or name == "Linear"
    assert sizes(model.layer) == before


def test_unflatten_module() -> None:
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Unflatten(1, (8, 2, 2)), conv(8, 4), nn.Flatten(), nn.Linear(16, 2))
    ready(model)
    x = torch.randn(2, 5, dtype=torch.float64)
    found = analyse(model, x)
    slim = check_plan(found, found.random_plan(0), other=torch.randn(4, 5, dtype=torch.float64))
    assert slim.get_submodule("2").unflattened_size[0] < 8


def test_embedding_module() -> None:
    model = nn.Sequential(nn.Embedding(9, 8, padding_idx=0), nn.LayerNorm(8), nn.Linear(8, 3))
    ready(model)
    tokens = torch.randint(0, 9, (2, 4))
    found = analyse(model, tokens)
    slim = check_plan(found, found.random_plan(0), zeros=False, other=torch.randint(0, 9, (5, 7)))
    assert slim.get_submodule("0").embedding_dim < 8 and slim.get_submodule("0").num_embeddings == 9


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (nn.MultiheadAttention(8, 2), {"a": 8, "layer.in_proj_weight": 2, "layer.out_proj": 8, "b": 6}),
        (nn.LSTM(8, 8, num_layers=2, bidirectional=True), {"a": 8, "layer.weight_ih_l0": 8, "b": 6}),
        (nn.GRU(8, 8, batch_first=True), {"a": 8, "layer.weight_ih_l0": 8, "b": 6}),
        (nn.RNN(8, 8, nonlinearity="relu"), {"a": 8, "layer.weight_ih_l0": 8, "b": 6}),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_layer_that_no_resizer_knows_is_taken_apart(layer: nn.Module, sizes: dict[str, int]) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        z = self.layer(y, y, y)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(y)[0]
        return self.head(F.relu(self.b(z)))

    width = 16 if getattr(layer, "bidirectional", False) else 8
    model = net(forward, a=nn.Linear(4, 8), layer=layer, b=nn.Linear(width, 6), head=nn.Linear(6, 2))
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    found = analyse(model, x)
    assert {g.name: g.size for g in found.groups.prunable} == sizes
    for seed in range(3):
        check_plan(found, found.random_plan(seed), zeros=True)


def test_the_original_graph_and_its_tensors_are_untouched() -> None:
    model = ready(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4))).train()
    found = analyse(model, IMAGE)
    code = found.program.module.code
    slim = graphprune.apply_plan(model, IMAGE, found.random_plan(0), verify=False).model
    assert found.program.module.code == code
    mine = {t.data_ptr() for t in [*model.parameters(), *model.buffers()]}
    assert not mine & {t.data_ptr() for t in [*slim.parameters(), *slim.buffers()]}
    assert slim.training and all(module.training for module in slim.modules())


def test_dtype_gradients_memory_format_and_persistence_are_kept() -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), conv(8, 4)).to(torch.bfloat16).to(memory_format=torch.channels_last)
    model.get_parameter("0.weight").requires_grad_(False)
    model.register_buffer("note", torch.ones(2), persistent=False)
    x = torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)
    found = analyse(model, x)
    slim = graphprune.apply_plan(model, x, found.random_plan(0)).model
    weight = slim.get_parameter("2.weight")
    assert weight.dtype == torch.bfloat16 and weight.is_contiguous(memory_format=torch.channels_last)
    assert not slim.get_parameter("0.weight").requires_grad and weight.requires_grad
    assert "note" not in slim.state_dict()


def test_ties_are_kept() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = nn.Sequential(nn.Linear(3, 6), first, nn.ReLU(), second, nn.Linear(6, 2)).double().eval()
    x = torch.randn(2, 3, dtype=torch.float64)
    found = analyse(model, x)
    slim = check_plan(found, found.random_plan(0))
    assert slim.get_parameter("1.weight") is slim.get_parameter("3.weight")


def test_the_slim_model_trains() -> None:
    model = ready(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 2))).train()
    slim = graphprune.prune(model, IMAGE, target="channels=50%").model
    optimiser = torch.optim.Adam(slim.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = slim(IMAGE).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in slim.parameters())
