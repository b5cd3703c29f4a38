"""Structures that multiply features by what they make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, case, conv, image, net, vector

# -- gated units -----------------------------------------------------------------------------------------------------------


@case
def gate_beside_values() -> Case:
    """SwiGLU of two layers."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.down(F.silu(self.gate(x)) * self.up(x))

    model = net(forward, gate=nn.Linear(5, 8), up=nn.Linear(5, 8, bias=False), down=nn.Linear(8, 2))
    return Case(model, vector(6, 5), {"gate": 8})


@case
def gate_and_values_in_one_layer() -> Case:
    """SwiGLU of one fused layer, and GEGLU by slices."""

    def forward(self: Any, x: Tensor) -> Any:
        gate, up = self.fused(x).chunk(2, dim=-1)
        y = self.sliced(x)
        return self.down(F.silu(gate) * up) + self.out(y[..., :6] * F.gelu(y[..., 6:]))

    model = net(forward, fused=nn.Linear(5, 16), sliced=nn.Linear(5, 12), down=nn.Linear(8, 2), out=nn.Linear(6, 2))
    return Case(model, vector(6, 5), {"fused": 8, "sliced": 6})


@case
def gate_and_values_side_by_side() -> Case:
    """GPT-OSS: gates and values alternate; a step of 2 takes them apart."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.fused(x)
        gate, up = y[..., ::2].clamp(max=7.0), y[..., 1::2].clamp(-7.0, 7.0)
        return self.down((up + 1) * gate * torch.sigmoid(gate * 1.7))

    return Case(net(forward, fused=nn.Linear(5, 12), down=nn.Linear(6, 2)), vector(4, 5), {"fused": 6})


@case
def gating_over_tokens() -> Case:
    """gMLP: half of the features gates the other half, after a layer over the tokens."""

    def forward(self: Any, x: Tensor) -> Any:
        u, v = self.up(x).chunk(2, dim=-1)
        v = self.tokens(self.norm(v).transpose(-1, -2)).transpose(-1, -2)
        return self.down(u * v)

    model = net(forward, up=nn.Linear(5, 12), norm=nn.LayerNorm(6), tokens=nn.Linear(4, 4), down=nn.Linear(6, 2))
    return Case(model, vector(4, 5), {"up": 6})


@case
def experts_mixed() -> Case:
    """A soft mixture of experts: the bank's axis of experts goes with the gate, the hidden width by itself."""

    def forward(self: Any, x: Tensor) -> Any:
        weights = self.gate(x).softmax(-1)
        hidden = F.relu(torch.einsum("bc,ech->beh", x, self.up))
        return torch.einsum("be,beh,eho->bo", weights, hidden, self.down)

    parts = {"gate": nn.Linear(5, 3), "up": nn.Parameter(torch.randn(3, 5, 7)), "down": nn.Parameter(torch.randn(3, 7, 2))}
    return Case(net(forward, **parts), vector(5), {"up": 7}, {("gate.weight", 0): "along its axis"})


# -- attention to channels and places ---------------------------------------------------------------------------------------


@case
def efficient_channel_attention() -> Case:
    """ECA: a convolution along the channels makes neighbours of them, so all must stay."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        gate = self.eca(y.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return self.c(self.b(y * gate[:, :, None, None].sigmoid()))

    model = net(forward, a=conv(3, 6), eca=nn.Conv1d(1, 1, 3, padding=1), b=conv(6, 5), c=conv(5, 2))
    return Case(model, image(), {"b": 5}, {("a.weight", 0): "in space"})


@case
def attention_to_channels_and_places() -> Case:
    """CBAM: a shared network on the mean and maximum of each channel, and a map of those of each place."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))) + self.up(F.relu(self.down(F.adaptive_max_pool2d(x, 1))))
        x = x * gate.sigmoid()
        places = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.b(x * self.map(places).sigmoid())

    model = net(forward, a=conv(3, 6), down=conv(6, 3, 1), up=conv(3, 6, 1), map=conv(2, 1, 7), b=conv(6, 2))
    return Case(model, image(), {"a": 6, "down": 3})


@case
def maximum_with_places_over_channels() -> Case:
    """``max(dim)`` returns places too, which nobody reads here."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        places = torch.cat([torch.max(x, 1, keepdim=True)[0], torch.mean(x, 1).unsqueeze(1)], dim=1)
        return self.b(x * self.map(places).sigmoid())

    return Case(net(forward, a=conv(3, 6), map=conv(2, 1), b=conv(6, 2)), image(), {"a": 6}, {("map.weight", 1): "cannot shrink"})


@case
def selective_kernels() -> Case:
    """SKNet: branches stacked, and weighted by a softmax over the branches."""

    def forward(self: Any, x: Tensor) -> Any:
        branches = torch.stack([F.relu(self.a(x)), F.relu(self.b(x))], dim=1)
        hidden = F.relu(self.down(branches.sum(1).mean((2, 3), keepdim=True)))
        b, c = hidden.shape[0], branches.shape[2]
        gate = self.up(hidden).view(b, 2, c, 1, 1).softmax(1)
        return self.c((branches * gate).sum(1))

    model = net(forward, a=conv(3, 6), b=conv(3, 6, 5), down=conv(6, 4, 1), up=conv(4, 12, 1), c=conv(6, 2))
    return Case(model, image(), {"a": 6, "down": 4})


@case
def split_attention() -> Case:
    """ResNeSt: the branches are parts of one grouped convolution, the softmax over the branches of a radix view."""

    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        b, c, h, w = x.shape
        parts = x.reshape(b, 2, c // 2, h, w)
        gap = parts.sum(1).mean((2, 3), keepdim=True)
        gate = self.up(F.relu(self.down(gap))).view(b, 1, 2, -1).transpose(1, 2).softmax(1).reshape(b, -1)
        return self.b((parts * gate.view(b, 2, c // 2, 1, 1)).sum(1))

    model = net(forward, a=conv(3, 12), down=conv(6, 4, 1), up=conv(4, 12, 1), b=conv(6, 2))
    return Case(model, image(), {"a": 6, "down": 4})


@case
def global_context() -> Case:
    """GCNet: a softmax over places pools the features of an image."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        b, c, h, w = x.shape
        weights = self.key(x).view(b, 1, h * w).softmax(2).unsqueeze(3)
        context = torch.matmul(x.view(b, c, h * w).unsqueeze(1), weights).view(b, c, 1, 1)
        return self.b(x + self.up(F.relu(self.norm(self.down(context)))))

    model = net(
        forward, a=conv(3, 6), key=conv(6, 1, 1), down=conv(6, 4, 1), norm=nn.GroupNorm(1, 4), up=conv(4, 6, 1), b=conv(6, 2)
    )
    return Case(model, image(), {"a": 6, "down": 4})


@case
def double_attention() -> Case:
    """Non-local block: places attend to places, with an inner width of their own."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        b, _, h, w = x.shape
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        weights = torch.bmm(theta.transpose(1, 2), phi).softmax(-1)
        y = torch.bmm(g, weights.transpose(1, 2)).view(b, -1, h, w)
        return self.b(x + self.out(y))

    layers = {"theta": conv(6, 4, 1), "phi": conv(6, 4, 1), "g": conv(6, 5, 1), "out": conv(5, 6, 1)}
    return Case(net(forward, a=conv(3, 6), **layers, b=conv(6, 2)), image(size=4), {"a": 6, "theta": 4, "g": 5})


def _modulated(parts: Callable[[Tensor], Sequence[Tensor]]) -> Case:
    """adaLN-single (PixArt, Sana, LTX): rows of a table of the block plus what one layer makes of the condition."""

    def forward(self: Any, x: Tensor, c: Tensor) -> Any:
        x = self.stem(x)
        shift, scale, gate = parts(self.table + self.embed(F.silu(self.time(c))).reshape(len(c), 3, -1))
        y = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
        return self.head(x + gate * self.block(y))

    layers = {"stem": nn.Linear(5, 8), "time": nn.Linear(3, 6), "embed": nn.Linear(6, 24), "block": nn.Linear(8, 8)}
    model = net(forward, table=nn.Parameter(torch.randn(3, 8)), head=nn.Linear(8, 2), **layers)
    x, c = vector(4, 5), vector(3)
    return Case(model, lambda n: {"x": x(n), "c": c(n)}, {"stem": 8, "time": 6}, {("table", 0): ""})


@case
def rows_of_a_table_by_chunks() -> Case:
    """The rows are told apart, so that the columns can go: not what the policy of heads prefers."""
    return _modulated(lambda t: t.chunk(3, dim=1))


@case
def rows_of_a_table_unbound() -> Case:
    return _modulated(lambda t: [row.unsqueeze(1) for row in t.unbind(1)])
