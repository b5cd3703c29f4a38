"""Structures of attention heads: how models spell them, share them, mix them and give them positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, case, net, vector

EMBED, HEADS, DIM = 12, 3, 4
INNER = HEADS * DIM

Attend = Callable[[Any, Tensor, Tensor, Tensor], Any]


def split_heads(t: Tensor, heads: int = HEADS) -> Tensor:
    """B x N x (heads x dim) to B x heads x N x dim."""
    return torch.unflatten(t, -1, (heads, -1)).transpose(1, 2)


def merge_heads(t: Tensor) -> Tensor:
    """The reverse of :func:`split_heads`."""
    return t.transpose(1, 2).flatten(2)


def around(attend: Attend, **parts: Any) -> nn.Module:
    """Projections of q, k and v, a rule of attention between them on B x heads x N x dim, and a projection of the heads."""

    def forward(self: Any, x: Tensor) -> Any:
        y = attend(self, split_heads(self.q(x)), split_heads(self.k(x)), split_heads(self.v(x)))
        return self.proj(merge_heads(y))

    layers = {name: nn.Linear(5, INNER) for name in "qkv"} | {"proj": nn.Linear(INNER, 2)}
    return net(forward, **(layers | parts))


def attended(*projections: Tensor) -> Any:
    """Torch's attention of q, k and v."""
    q, k, v = projections
    return F.scaled_dot_product_attention(q, k, v)


def scores(q: Tensor, k: Tensor) -> Any:
    """Scaled products of queries and keys."""
    return q @ k.transpose(-1, -2) * DIM**-0.5


# -- one layer for q, k and v --------------------------------------------------------------------------------------------


@case
def unflattened_and_unbound() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, DIM)).unbind(2)
        y = attended(*(t.transpose(1, 2) for t in (q, k, v)))
        return self.proj(merge_heads(y))

    return Case(net(forward, qkv=nn.Linear(5, 3 * INNER), proj=nn.Linear(INNER, 2)), vector(6, 5), {"qkv": HEADS})


@case
def parts_of_every_head() -> Case:
    """GPT-NeoX: q, k and v of one head stand beside each other."""

    def forward(self: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, HEADS, 3 * DIM).transpose(1, 2).chunk(3, dim=-1)
        return self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, n, INNER))

    return Case(net(forward, qkv=nn.Linear(5, 3 * INNER), proj=nn.Linear(INNER, 2)), vector(6, 5), {"qkv": HEADS})


@case
def parameters_multiplied_and_split() -> Case:
    """GPT-2: a weight of inputs x outputs used by addmm, and a causal mask kept in a buffer."""

    def forward(self: Any, x: Tensor) -> Any:
        b, n, c = x.shape
        y = torch.addmm(self.bias, x.view(-1, c), self.weight).view(b, n, 3 * INNER)
        q, k, v = (t.view(b, n, HEADS, DIM).permute(0, 2, 1, 3) for t in y.split(INNER, dim=2))
        logits = torch.matmul(q, k.transpose(-1, -2)) / torch.full([], v.size(-1) ** 0.5, dtype=v.dtype)
        logits = torch.where(self.mask[:, :, :n, :n], logits, torch.finfo(logits.dtype).min)
        y = torch.matmul(F.softmax(logits, dim=-1), v).permute(0, 2, 1, 3).contiguous()
        return self.proj(y.view(*y.size()[:-2], INNER))

    weight, bias = nn.Parameter(torch.randn(5, 3 * INNER)), nn.Parameter(torch.randn(3 * INNER))
    model = net(forward, weight=weight, bias=bias, proj=nn.Linear(INNER, 2))
    model.register_buffer("mask", torch.ones(9, 9).bool().tril().view(1, 1, 9, 9), persistent=False)
    return Case(model, vector(6, 5), {"bias": HEADS})


@case
def parts_by_slices() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.qkv(x)
        q, k, v = y[..., :INNER], y[..., INNER : 2 * INNER], y[..., -INNER:]
        return self.proj(merge_heads(attended(*map(split_heads, (q, k, v)))))

    return Case(net(forward, qkv=nn.Linear(5, 3 * INNER), proj=nn.Linear(INNER, 2)), vector(6, 5), {"qkv": HEADS})


@case
def key_and_value_in_one_layer() -> Case:
    """PVT: keys and values from a coarser map, made by one layer."""

    def forward(self: Any, x: Tensor) -> Any:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, HEADS, DIM).permute(0, 2, 1, 3)
        coarse = self.reduce(x.transpose(1, 2).reshape(b, c, 4, 4)).reshape(b, c, -1).permute(0, 2, 1)
        kv = self.kv(self.norm(coarse)).reshape(b, -1, 2, HEADS, DIM).permute(2, 0, 3, 1, 4)
        y = (scores(q, kv[0]).softmax(-1) @ kv[1]).transpose(1, 2).reshape(b, n, INNER)
        return self.proj(y)

    model = net(
        forward,
        q=nn.Linear(5, INNER),
        kv=nn.Linear(5, 2 * INNER),
        reduce=nn.Conv2d(5, 5, 2, 2),
        norm=nn.LayerNorm(5),
        proj=nn.Linear(INNER, 2),
    )
    return Case(model, vector(16, 5), {"q": HEADS, "reduce": 5})


@case
def spelled_as_einsum() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        q, k, v = (t.unflatten(-1, (HEADS, DIM)) for t in (self.q(x), self.k(x), self.v(x)))
        weights = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
        return self.proj(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(-2))

    layers = {name: nn.Linear(5, INNER) for name in "qkv"}
    return Case(net(forward, **layers, proj=nn.Linear(INNER, 2)), vector(6, 5), {"q": HEADS})


@case
def projections_by_einsum() -> Case:
    """Weights with axes of their own for heads and dimensions: an einsum merges both, so that one of them stays."""

    def forward(self: Any, x: Tensor) -> Any:
        q, k, v = (torch.einsum("bnc,chd->bhnd", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
        return torch.einsum("bhij,bhjd,hdo->bio", weights, v, self.out)

    weights = {name: nn.Parameter(torch.randn(5, HEADS, DIM)) for name in "qkv"}
    return Case(
        net(forward, **weights, out=nn.Parameter(torch.randn(HEADS, DIM, 2))),
        vector(6, 5),
        {"q": DIM, "v": DIM},
        {("q", 1): "merged"},
    )


@case
def torch_multi_head_attention() -> Case:
    """``nn.MultiheadAttention``: opened, and heads found in its fused projection."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.embed(x)
        return self.head(x + self.attn(x, x, x, need_weights=False)[0])

    model = net(
        forward, embed=nn.Linear(5, EMBED), attn=nn.MultiheadAttention(EMBED, HEADS, batch_first=True), head=nn.Linear(EMBED, 2)
    )
    return Case(model, vector(6, 5), {"embed": EMBED, "attn.in_proj_weight": HEADS})


@case
def torch_transformer_layer() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.head(self.layer(self.embed(x)))

    layer = nn.TransformerEncoderLayer(EMBED, HEADS, 7, batch_first=True, norm_first=True)
    model = net(forward, embed=nn.Linear(5, EMBED), layer=layer, head=nn.Linear(EMBED, 2))
    return Case(model, vector(6, 5), {"embed": EMBED, "layer.self_attn.in_proj_weight": HEADS, "layer.linear1": 7})


# -- other rules of attention ----------------------------------------------------------------------------------------------


@case
def talking_heads() -> Case:
    """Linear layers over the heads before and after the softmax: each side of each of them has heads of its own."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        logits = self.before(scores(q, k).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = self.after(logits.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return weights @ v

    model = around(attend, before=nn.Linear(HEADS, HEADS), after=nn.Linear(HEADS, HEADS))
    return Case(model, vector(6, 5), {"q": HEADS, "before": HEADS, "v": HEADS})


@case
def heads_mixed_by_convolution() -> Case:
    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return self.mix(scores(q, k)).softmax(-1) @ v

    return Case(around(attend, mix=nn.Conv2d(HEADS, HEADS, 1)), vector(6, 5), {"q": HEADS, "v": HEADS})


@case
def linear_attention() -> Case:
    """Keys and values are multiplied first; the sum over keys normalises."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        total = q @ k.sum(dim=-2, keepdim=True).transpose(-1, -2)
        return q @ (k.transpose(-1, -2) @ v) / (total + 1e-6)

    return Case(around(attend), vector(6, 5), {"q": HEADS})


@case
def linear_attention_by_positions_of_every_head() -> Case:
    case = linear_attention()
    return Case(case.model, case.inputs, {"q": DIM, "v": DIM}, zeros=False, policy={"heads": "head_dim"})


@case
def softmax_of_features() -> Case:
    """Efficient attention: a softmax over the dimensions of q, and over the tokens of k."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return q.softmax(dim=-1) @ (k.softmax(dim=-2).transpose(-1, -2) @ v)

    return Case(around(attend), vector(6, 5), {"q": HEADS})


@case
def attention_of_channels() -> Case:
    """XCiT: the dimensions of each head attend to each other, with a temperature for each head."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        q, k, v = (t.transpose(-2, -1) for t in (q, k, v))
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return (logits.softmax(dim=-1) @ v).transpose(-2, -1)

    return Case(around(attend, temperature=nn.Parameter(torch.randn(HEADS, 1, 1))), vector(6, 5), {"q": HEADS})


@case
def root_mean_square_of_queries() -> Case:
    """Qwen's: q and k are divided by the root mean square of each head."""

    def norm(t: Tensor, weight: Tensor) -> Tensor:
        return weight * (t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6))

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return F.scaled_dot_product_attention(norm(q, self.qn), norm(k, self.kn), v)

    model = around(attend, qn=nn.Parameter(torch.randn(DIM)), kn=nn.Parameter(torch.randn(DIM)))
    return Case(model, vector(6, 5), {"q": HEADS})


@case
def gated_heads() -> Case:
    """A gate for each head, from the input."""

    def forward(self: Any, x: Tensor) -> Any:
        y = attended(*(split_heads(layer(x)) for layer in (self.q, self.k, self.v)))
        y = y * self.gate(x).sigmoid().transpose(1, 2).unsqueeze(-1)
        return self.proj(merge_heads(y))

    layers = {name: nn.Linear(5, INNER) for name in "qkv"} | {"gate": nn.Linear(5, HEADS), "proj": nn.Linear(INNER, 2)}
    return Case(net(forward, **layers), vector(6, 5), {"q": HEADS})


@case
def learnt_keys_beside_the_tokens() -> Case:
    """Prefix tuning: keys and values of every head that come from no token."""

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        b = q.shape[0]
        k = torch.cat([self.keys.expand(b, -1, -1, -1), k], dim=2)
        v = torch.cat([self.values.expand(b, -1, -1, -1), v], dim=2)
        return F.scaled_dot_product_attention(q, k, v)

    keys, values = nn.Parameter(torch.randn(1, HEADS, 2, DIM)), nn.Parameter(torch.randn(1, HEADS, 2, DIM))
    return Case(around(attend, keys=keys, values=values), vector(6, 5), {"q": HEADS})


@case
def learnt_queries() -> Case:
    """A Perceiver's latents, or the object queries of DETR: one set of parameters asks the tokens of every image."""

    def forward(self: Any, x: Tensor) -> Any:
        latents = self.latents.unsqueeze(0).repeat(x.shape[0], 1, 1)
        for _ in range(2):
            y = attended(*map(split_heads, (self.q(latents), self.k(x), self.v(x))))
            latents = latents + self.proj(merge_heads(y))
        return self.head(latents)

    layers = {"q": nn.Linear(8, INNER), "k": nn.Linear(5, INNER), "v": nn.Linear(5, INNER), "proj": nn.Linear(INNER, 8)}
    model = net(forward, latents=nn.Parameter(torch.randn(4, 8)), **layers, head=nn.Linear(8, 2))
    return Case(model, vector(6, 5), {"latents": 8, "q": HEADS}, {("latents", 0): ""})


@case
def pooled_by_the_class_token() -> Case:
    """CaiT: only the class token asks."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.embed(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        q = self.q(x[:, 0]).unsqueeze(1)
        y = attended(*map(split_heads, (q, self.k(x), self.v(x))))
        return self.head(self.proj(merge_heads(y))[:, 0] + x[:, 0])

    layers = {name: nn.Linear(EMBED, INNER) for name in "qkv"} | {"proj": nn.Linear(INNER, EMBED), "head": nn.Linear(EMBED, 2)}
    model = net(forward, embed=nn.Linear(5, EMBED), token=nn.Parameter(torch.randn(1, 1, EMBED)), **layers)
    return Case(model, vector(6, 5), {"embed": EMBED, "q": HEADS})


@case
def shifted_windows() -> Case:
    """A whole block of Swin: shift, windows, masked attention with a table of positions, and everything back."""

    def partition(t: Tensor) -> Tensor:
        b, h, w, c = t.shape
        return t.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, c)

    def forward(self: Any, x: Tensor) -> Any:
        x = self.embed(x)
        b, h, w, _ = x.shape
        y = partition(torch.roll(self.norm(x), shifts=(-2, -2), dims=(1, 2)))
        q, k, v = self.qkv(y).reshape(-1, 16, 3, HEADS, DIM).permute(2, 0, 3, 1, 4).unbind(0)
        logits = scores(q, k) + self.table[self.index.view(-1)].view(16, 16, -1).permute(2, 0, 1).unsqueeze(0)
        windows = self.mask.shape[0]
        logits = logits.view(b, windows, HEADS, 16, 16) + self.mask.unsqueeze(1).unsqueeze(0)
        y = logits.view(-1, HEADS, 16, 16).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(-1, 16, INNER))
        y = y.view(b, h // 4, w // 4, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)
        return self.head(x + torch.roll(y, shifts=(2, 2), dims=(1, 2)))

    model = net(
        forward,
        embed=nn.Linear(5, EMBED),
        norm=nn.LayerNorm(EMBED),
        qkv=nn.Linear(EMBED, 3 * INNER),
        table=nn.Parameter(torch.randn(7, HEADS)),
        proj=nn.Linear(INNER, EMBED),
        head=nn.Linear(EMBED, 2),
    )
    model.register_buffer("index", torch.randint(0, 7, (16, 16)))
    model.register_buffer("mask", torch.randn(4, 16, 16, dtype=torch.float64))
    return Case(model, vector(8, 8, 5), {"embed": EMBED, "qkv": HEADS})


@case
def retention_with_a_group_norm_of_heads() -> Case:
    """RetNet, mLSTM: no softmax between, and a group norm with a group for each head behind. The same positions of every head go,
    since whole heads and the same channels of each group would be all channels at once."""

    def forward(self: Any, x: Tensor) -> Any:
        q, k, v = (split_heads(layer(x)) for layer in (self.q, self.k, self.v))
        y = merge_heads((q @ k.mT * self.decay) @ v)
        return self.proj(self.norm(y.flatten(0, 1)).view_as(y))

    layers = {name: nn.Linear(5, INNER) for name in "qkv"}
    model = net(forward, **layers, norm=nn.GroupNorm(HEADS, INNER), proj=nn.Linear(INNER, 2))
    model.register_buffer("decay", torch.rand(6, 6, dtype=torch.float64).tril())
    return Case(model, vector(6, 5), {"q": DIM, "v": DIM}, zeros=False)


@case
def local_attention_by_unfolding() -> Case:
    """Each pixel attends to its neighbours, which an unfold puts beside it."""

    def forward(self: Any, x: Tensor) -> Any:
        b, _, h, w = x.shape
        q, k, v = self.q(x), F.unfold(self.k(x), 3, padding=1), F.unfold(self.v(x), 3, padding=1)
        q, k, v = (t.view(b, HEADS, DIM, -1, h * w) for t in (q, k, v))
        weights = (q * k).sum(2, keepdim=True).softmax(3)
        return self.proj((weights * v).sum(3).reshape(b, INNER, h, w))

    layers = {name: nn.Conv2d(3, INNER, 1) for name in "qkv"}
    return Case(net(forward, **layers, proj=nn.Conv2d(INNER, 2, 1)), vector(3, 4, 4), {"q": HEADS})
