"""Structures of normalisations, statistics over channels, buffers and constants."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, case, conv, image, net, pooled, vector


def _normed(norm: nn.Module, width: int = 8) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        return pooled(self.head, self.b(F.relu(self.norm(self.a(x)))))

    return net(forward, a=conv(3, width), norm=norm, b=conv(width, 4), head=nn.Linear(4, 2))


@case
def group_norm_within() -> Case:
    return Case(_normed(nn.GroupNorm(2, 8)), image(), {"a": 4, "b": 4})


@case
def group_norm_whole() -> Case:
    return Case(_normed(nn.GroupNorm(4, 8)), image(), {"a": 4, "b": 4}, policy={"norm_groups": "whole"})


@case
def group_norm_of_one_group() -> Case:
    return Case(_normed(nn.GroupNorm(1, 8)), image(), {"a": 8, "b": 4})


@case
def group_norm_of_single_channels() -> Case:
    return Case(_normed(nn.GroupNorm(8, 8)), image(), {"a": 8, "b": 4})


@case
def instance_norm() -> Case:
    return Case(_normed(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), image(), {"a": 8, "b": 4})


@case
def instance_norm_without_parameters() -> Case:
    return Case(_normed(nn.InstanceNorm2d(8)), image(), {"a": 8, "b": 4})


@case
def batch_norm_without_parameters() -> Case:
    return Case(_normed(nn.BatchNorm2d(8, affine=False)), image(), {"a": 8, "b": 4})


@case
def layer_norm() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(F.gelu(self.norm(self.a(x))))

    return Case(net(forward, a=nn.Linear(5, 8), norm=nn.LayerNorm(8), b=nn.Linear(8, 3)), vector(4, 5), {"a": 8})


@case
def layer_norm_channels_last() -> Case:
    """ConvNeXt: permute, normalise over channels, permute back; a layer scale on the residual branch."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        y = self.depth(x).permute(0, 2, 3, 1)
        y = self.down(F.gelu(self.up(self.norm(y)))) * self.scale
        return pooled(self.head, x + y.permute(0, 3, 1, 2))

    model = net(
        forward,
        a=conv(3, 6),
        depth=conv(6, 6, groups=6),
        norm=nn.LayerNorm(6),
        up=nn.Linear(6, 12),
        down=nn.Linear(12, 6),
        scale=nn.Parameter(torch.full((6,), 1e-6)),
        head=nn.Linear(6, 3),
    )
    return Case(model, image(), {"a": 6, "up": 12})


@case
def layer_norm_over_two_axes() -> Case:
    """Channels and space normalised together: the weight has labels on the channels only."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.norm(self.a(x)))

    model = net(forward, a=conv(3, 6), norm=nn.LayerNorm([6, 8, 8]), b=conv(6, 2))
    return Case(model, image(), {"a": 6}, {("norm.weight", 1): "cannot shrink"})


@case
def functional_layer_norm() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        return self.b(F.layer_norm(y, (y.shape[-1],), self.weight, self.bias) + F.layer_norm(y, (8,)))

    model = net(
        forward, a=nn.Linear(5, 8), weight=nn.Parameter(torch.randn(8)), bias=nn.Parameter(torch.randn(8)), b=nn.Linear(8, 3)
    )
    return Case(model, vector(5), {"a": 8})


@case
def rms_norm() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(F.gelu(self.norm(self.a(x))))

    return Case(net(forward, a=nn.Linear(5, 8), norm=nn.RMSNorm(8), b=nn.Linear(8, 3)), vector(4, 5), {"a": 8})


@case
def rms_norm_spelled_out() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.b(self.weight * y)

    model = net(forward, a=nn.Linear(5, 8), weight=nn.Parameter(torch.randn(8)), b=nn.Linear(8, 3))
    return Case(model, vector(4, 5), {"a": 8})


@case
def layer_norm_spelled_out() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return self.b(y * self.weight[:, None, None] + self.bias.view(1, -1, 1, 1))

    model = net(forward, a=conv(3, 6), weight=nn.Parameter(torch.randn(6)), bias=nn.Parameter(torch.randn(6)), b=conv(6, 2))
    return Case(model, image(), {"a": 6})


@case
def divided_by_its_norm() -> Case:
    """F.normalize and x / ||x||: the removed channels add nothing to the norm."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        return self.b(F.normalize(y, dim=1) + y / y.norm(dim=1, keepdim=True))

    return Case(net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 3)), vector(5), {"a": 8})


@case
def statistics_frozen_by_policy() -> Case:
    case = layer_norm()
    return Case(case.model, case.inputs, {}, {("a.weight", 0): "a norm over prunable channels"}, policy={"statistics": "freeze"})


@case
def mean_over_channels() -> Case:
    """CBAM's spatial attention: the mean and the maximum over channels."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        maps = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
        return self.b(y * self.map(maps).sigmoid())

    return Case(net(forward, a=conv(3, 6), map=conv(2, 1), b=conv(6, 2)), image(), {"a": 6}, {("map.weight", 1): "cannot shrink"})


@case
def sum_over_channels() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        return self.b(y) + y.sigmoid().sum(1, keepdim=True)

    return Case(net(forward, a=conv(3, 6), b=conv(6, 2)), image(), {"a": 6}, zeros=False)


@case
def frozen_batch_norm() -> Case:
    """torchvision's FrozenBatchNorm2d: no parameter, four buffers, reshaped."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        bias = self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale
        return self.b(F.relu(x * scale + bias))

    model = net(forward, a=conv(3, 6, bias=False), b=conv(6, 2))
    for name in ("weight", "bias", "running_mean", "running_var"):
        model.register_buffer(name, torch.rand(6, dtype=torch.float64) + 0.5)
    return Case(model, image(), {"a": 6})


@case
def constants_added() -> Case:
    """Zeros and ones made in the forward, of fixed and of computed size."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        y = y + y.new_zeros(y.shape[0], 6, 1, 1) + torch.ones_like(y)
        return self.b(y * y.new_full((y.shape[1], 1, 1), 2.0))

    return Case(net(forward, a=conv(3, 6), b=conv(6, 2)), image(), {"a": 6}, zeros=True)


@case
def buffer_of_zeros_added() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(F.relu(self.a(x) + self.offset))

    model = net(forward, a=conv(3, 6), b=conv(6, 2))
    model.register_buffer("offset", torch.zeros(6, 1, 1, dtype=torch.float64), persistent=False)
    return Case(model, image(), {"a": 6})


@case
def mask_of_one_channel() -> Case:
    """Broadcasting is not coupling: the mask's single channel meets all of them."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        return self.b(y * torch.sigmoid(self.mask(x))) + self.c(torch.maximum(y, x[:, :1]))

    return Case(net(forward, a=conv(3, 6), mask=conv(3, 1), b=conv(6, 2), c=conv(6, 2)), image(), {"a": 6})


@case
def parametric_relu() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.c(self.shared(self.b(self.act(self.a(x)))))

    model = net(forward, a=conv(3, 6), act=nn.PReLU(6), b=conv(6, 4), shared=nn.PReLU(), c=conv(4, 2))
    return Case(model, image(), {"a": 6, "b": 4})


@case
def softmax_over_channels() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x).softmax(1)) + self.c(F.relu(self.d(x)))

    model = net(forward, a=conv(3, 6), b=conv(6, 2), d=conv(3, 4), c=conv(4, 2))
    return Case(model, image(), {"d": 4}, {("a.weight", 0): "along its axis"})


@case
def index_from_data() -> Case:
    def forward(self: Any, x: Tensor, index: Tensor) -> Any:
        return self.c(self.b(self.a(x)[:, index]))

    model = net(forward, a=nn.Linear(3, 6), b=nn.Linear(2, 5), c=nn.Linear(5, 2))
    x = vector(3)
    return Case(model, lambda n: (x(n), torch.tensor([4, 1])), {"b": 5}, {("a.weight", 0): "indexed by data"})


@case
def embedding_and_linear() -> Case:
    def forward(self: Any, tokens: Tensor) -> Any:
        return self.b(F.relu(self.a(self.embed(tokens) + self.position[: tokens.shape[1]])))

    model = net(forward, embed=nn.Embedding(11, 6), position=nn.Parameter(torch.randn(9, 6)), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    return Case(model, lambda n: torch.randint(0, 11, (n, 5)), {"embed": 6, "a": 8}, {("embed.weight", 0): "indexed by data"})


@case
def dropout_that_follows_the_mode() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        x = F.dropout(F.relu(self.a(x)), 0.5, self.training)
        return self.b(self.drop(F.dropout(x, p=0.3, training=self.training)))

    return Case(net(forward, a=nn.Linear(3, 8), drop=nn.Dropout(0.2), b=nn.Linear(8, 3)), vector(3), {"a": 8})


@case
def gated_linear_unit() -> Case:
    """GLU halves its input: unit i is output i and gate i."""

    def forward(self: Any, x: Tensor) -> Any:
        value, gate = self.split(x).chunk(2, dim=-1)
        return self.b(F.glu(self.a(x), dim=-1)) + self.c(F.silu(gate) * value)

    model = net(forward, a=nn.Linear(3, 12), b=nn.Linear(6, 2), split=nn.Linear(3, 10), c=nn.Linear(5, 2))
    return Case(model, vector(3), {"a": 6, "split": 5})


@case
def mean_over_padded_channels() -> Case:
    """Zeros that a statistic counts cannot go unnoticed: the padding stays, the channels may go."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.pad(self.a(x), (0, 0, 0, 0, 1, 2))
        return self.b(y * y.mean(1, keepdim=True).sigmoid())

    return Case(net(forward, a=conv(3, 6), b=conv(9, 2)), image(), {"a": 6})


@case
def memory_written_row_by_row_and_normalised() -> Case:
    """SAINT: each column of a table has an embedding of its own; attention is over the columns, and then over the rows."""

    def forward(self: Any, x: Tensor) -> Any:
        y = torch.empty(len(x), 3, 6, dtype=x.dtype)
        for index, embed in enumerate(self.embed):
            y[:, index, :] = embed(x[:, index].unsqueeze(1))
        y = y + self.mix(self.norm(y))
        rows = y.flatten(1)
        y = (rows + self.up(F.relu(self.down(self.wide(rows))))).unflatten(1, (3, 6))
        return self.head(y[:, 0])

    embed = nn.ModuleList([nn.Linear(1, 6) for _ in range(3)])
    layers = {"mix": nn.Linear(6, 6), "down": nn.Linear(18, 5), "up": nn.Linear(5, 18), "head": nn.Linear(6, 2)}
    model = net(forward, embed=embed, norm=nn.LayerNorm(6), wide=nn.LayerNorm(18), **layers)
    return Case(model, lambda n: torch.randn(n, 3, dtype=torch.float64), {"embed.0": 6, "down": 5})


@case
def zeros_written_step_by_step_and_normalised() -> Case:
    """A recurrent decoder: states go into zeros of the output's size as they come, behind a first one that stays zero."""

    def forward(self: Any, x: Tensor) -> Any:
        state = x.new_zeros(len(x), 6)
        out = x.new_zeros(len(x), 4, 6)
        for step in range(3):
            state = torch.tanh(self.read(x[:, step]) + self.pass_on(state))
            out[:, step + 1] = state
        return self.head(out * torch.rsqrt(out.pow(2).mean(-1, keepdim=True) + 1e-5))

    layers = {"read": nn.Linear(4, 6), "pass_on": nn.Linear(6, 6), "head": nn.Linear(6, 2)}
    return Case(net(forward, **layers), lambda n: torch.randn(n, 3, 4, dtype=torch.float64), {"read": 6})


@case
def lengths_read_off_a_mask() -> Case:
    """The last place that a mask of integers has, as attention over texts of several lengths needs it."""

    def forward(self: Any, x: Tensor, mask: Tensor) -> Any:
        last = torch.where(mask.bool(), torch.arange(x.shape[1]), 0).max(dim=1).values + 1
        seen = mask @ mask.T
        return self.b(F.relu(self.a(x)).sum(1) / last[:, None]) * seen.sum(1, keepdim=True)

    def inputs(n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, 3, 4, dtype=torch.float64), torch.ones(n, 3, dtype=torch.long)

    return Case(net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2)), inputs, {"a": 6})
