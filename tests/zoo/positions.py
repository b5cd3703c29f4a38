"""Structures of attention with positions: tables of biases, rotations, slopes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, case, net, vector
from tests.zoo.heads import DIM, HEADS, around, scores


@case
def table_of_relative_positions() -> Case:
    """Swin's: a parameter of positions x heads, gathered by an index buffer."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        bias = self.table[self.index.view(-1)].view(6, 6, -1).permute(2, 0, 1).contiguous()
        return (scores(q, k) + bias.unsqueeze(0)).softmax(-1) @ v

    model = around(attend, table=nn.Parameter(torch.randn(7, HEADS)))
    model.register_buffer("index", torch.randint(0, 7, (6, 6)))
    return Case(model, vector(6, 5), {"q": HEADS}, {("table", 0): "indexed by data"})


@case
def embedding_of_relative_positions() -> Case:
    """T5's: buckets of distances, looked up for each head."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        n = q.shape[2]
        distance = torch.arange(n)[None, :] - torch.arange(n)[:, None]
        bias = self.bias(distance.clamp(-3, 3) + 3).permute([2, 0, 1]).unsqueeze(0)
        return (q @ k.transpose(3, 2) + bias).softmax(-1) @ v

    return Case(around(attend, bias=nn.Embedding(7, HEADS)), vector(6, 5), {"q": HEADS}, {("bias.weight", 0): "indexed by data"})


@case
def positions_by_continuous_network() -> Case:
    """Swin v2: the table is made by a small network, and the attention is a cosine with a temperature for each head."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        logits = logits * torch.clamp(self.logit_scale, max=4.6).exp()
        table = self.cpb2(F.relu(self.cpb1(self.coords))).view(-1, HEADS)
        bias = table[self.index.view(-1)].view(6, 6, -1).permute(2, 0, 1)
        return (logits + 16 * torch.sigmoid(bias).unsqueeze(0)).softmax(-1) @ v

    scale = nn.Parameter(torch.randn(HEADS, 1, 1))
    model = around(attend, logit_scale=scale, cpb1=nn.Linear(2, 8), cpb2=nn.Linear(8, HEADS, bias=False))
    model.register_buffer("coords", torch.randn(1, 7, 2, dtype=torch.float64))
    model.register_buffer("index", torch.randint(0, 7, (6, 6)))
    return Case(model, vector(6, 5), {"q": HEADS, "coords": 2, "cpb1": 8})


@case
def slopes_of_heads() -> Case:
    """ALiBi: each head has a slope of its own, in a constant that is made in the forward."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        slopes = torch.tensor([2.0**-i for i in range(1, HEADS + 1)], dtype=q.dtype)
        distance = torch.arange(q.shape[2], dtype=q.dtype)
        bias = slopes.view(1, HEADS, 1, 1) * distance.view(1, 1, 1, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    return Case(around(attend), vector(6, 5), {"q": HEADS})


def _rotate_half(t: Tensor) -> Any:
    first, second = t[..., : t.shape[-1] // 2], t[..., t.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


def _angles(n: int) -> Any:
    return torch.outer(torch.arange(n, dtype=torch.float64), torch.tensor([1.0, 0.1], dtype=torch.float64))


@case
def rotary_halves() -> Case:
    """Llama's: the halves of each head are turned against each other, by tables made in the forward."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        angles = torch.cat((_angles(q.shape[2]), _angles(q.shape[2])), dim=-1)
        cos, sin = angles.cos()[None, None], angles.sin()[None, None]
        q, k = q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin
        return F.scaled_dot_product_attention(q, k, v)

    return Case(around(attend), vector(6, 5), {"q": HEADS}, batch=True)


@case
def rotary_halves_by_positions_of_every_head() -> Case:
    """Policy ``head_dim``: dimension i goes with dimension i + DIM / 2, with which it is turned."""
    case = rotary_halves()
    return Case(case.model, case.inputs, {"q": DIM // 2, "v": DIM}, policy={"heads": "head_dim"})


@case
def rotary_of_all_dimensions_where_a_part_could_be_left() -> Case:
    """Phi-3's: what is not turned stands behind, and has no elements."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        turned = self.cos.shape[-1]
        cos, sin = self.cos[: q.shape[2]], self.sin[: q.shape[2]]
        q, k = (torch.cat((t[..., :turned] * cos + _rotate_half(t[..., :turned]) * sin, t[..., turned:]), dim=-1) for t in (q, k))
        return F.scaled_dot_product_attention(q, k, v)

    model = around(attend)
    angles = torch.cat((_angles(9), _angles(9)), dim=-1)
    model.register_buffer("cos", angles.cos())
    model.register_buffer("sin", angles.sin())
    return Case(model, vector(6, 5), {"q": HEADS})


def _rotate_pairs(t: Tensor, cos: Tensor, sin: Tensor) -> Any:
    even, odd = t[..., ::2], t[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


@case
def rotary_pairs() -> Case:
    """GPT-J's: neighbours are turned against each other; slices with a step take them apart."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        q, k = (_rotate_pairs(t, self.cos[: t.shape[2]], self.sin[: t.shape[2]]) for t in (q, k))
        return F.scaled_dot_product_attention(q, k, v)

    model = around(attend)
    model.register_buffer("cos", _angles(9).cos())
    model.register_buffer("sin", _angles(9).sin())
    return Case(model, vector(6, 5), {"q": HEADS})


@case
def rotary_pairs_by_positions_of_every_head() -> Case:
    """Policy ``head_dim``: a slice with a step of 2 stays one, because neighbours go together."""
    case = rotary_pairs()
    return Case(case.model, case.inputs, {"q": DIM // 2, "v": DIM}, policy={"heads": "head_dim"})


def _rotate_complex(t: Tensor, turns: Tensor) -> Any:
    pairs = torch.view_as_complex(t.reshape(*t.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(3)


@case
def rotary_complex() -> Case:
    """Llama's first code: pairs of dimensions are complex numbers."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        angles = _angles(q.shape[2])
        turns = torch.polar(torch.ones_like(angles), angles)
        return F.scaled_dot_product_attention(_rotate_complex(q, turns), _rotate_complex(k, turns), v)

    return Case(around(attend), vector(6, 5), {"q": HEADS})


@case
def rotary_complex_by_positions_of_every_head() -> Case:
    case = rotary_complex()
    return Case(case.model, case.inputs, {"q": DIM // 2, "v": DIM}, policy={"heads": "head_dim"})


@case
def learnt_positions_in_keys() -> Case:
    """Positions as vectors that queries are compared with; one per distance, the same for all heads."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        relative = torch.einsum("bhid,ijd->bhij", q, self.positions[self.index])
        return ((q @ k.transpose(-1, -2) + relative) * 0.5).softmax(-1) @ v

    model = around(attend, positions=nn.Parameter(torch.randn(7, DIM)))
    model.register_buffer("index", torch.randint(0, 7, (6, 6)))
    return Case(model, vector(6, 5), {"q": HEADS})


@case
def learnt_bias_for_each_pair_of_tokens() -> Case:
    """A bias of heads x tokens x tokens, where there are as many tokens as positions in a head: their axes are not one."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)

    model = around(attend, bias=nn.Parameter(torch.randn(HEADS, DIM, DIM)))
    return Case(model, vector(DIM, 5), {"q": HEADS}, {("bias", 1): "cannot shrink", ("bias", 2): "cannot shrink"})


@case
def waves_as_wide_as_the_tokens() -> Case:
    """SimpleViT's: sines and cosines computed in every call, for as many positions as there are and the width that tokens have."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        _, n, width = x.shape
        waves = 1.0 / 10_000 ** (torch.arange(width // 2, device=x.device) / (width // 2 - 1))
        angles = torch.arange(n, device=x.device, dtype=x.dtype)[:, None] * waves[None, :]
        return self.b(F.gelu(x + torch.cat((angles.sin(), angles.cos()), dim=1).type(x.dtype)))

    return Case(net(forward, a=nn.Linear(3, 8), b=nn.Linear(8, 2)), vector(6, 3), {"a": 4})


@case
def some_rows_of_a_constant_table() -> Case:
    """Rotary angles of an image: rows out of the middle of a table. The others are no channels: they save nothing."""

    def forward(self: Any, x: Tensor) -> Any:
        angles = torch.cat([self.table[9:11], self.table[-3:]])
        y = self.a(x)
        return self.b(F.relu(y * angles.cos() + y.flip(1) * angles.sin()))

    model = net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    model.register_buffer("table", torch.outer(torch.arange(-10.0, 10.0), torch.rand(6)).double())
    return Case(model, lambda n: torch.randn(n, 5, 4, dtype=torch.float64), {"table": 6})
