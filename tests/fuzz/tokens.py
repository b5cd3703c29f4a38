"""Blocks that read tokens or vectors: linear layers, attention, recurrent layers, norms and embeddings."""

from __future__ import annotations

from random import Random
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.block import WIDTHS, Block, Options, Shape, block, plain


@block
class Linear(Block):
    """A linear layer on the last axis."""

    weight = 8

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options | None:
        return None if len(shapes[0]) == 3 else {"out": random.choice(WIDTHS), "bias": random.random() < 0.6}

    def make(self, shape: Shape, out: int, bias: bool) -> None:
        self.linear = nn.Linear(shape[-1], out, bias)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x)


@block
class LastNorm(Block):
    """Layer and root-mean-square norms, as layers and spelled out."""

    weight = 8

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options | None:
        kinds = ["layer", "rms", "spelled", "plain"] + (["batch"] if len(shapes[0]) == 1 else [])
        return None if len(shapes[0]) == 3 else {"kind": random.choice(kinds)}

    def make(self, shape: Shape, kind: str) -> None:
        width = shape[-1]
        self.kind = kind
        if kind == "spelled":
            self.scale = nn.Parameter(torch.ones(width))
            return
        norms: dict[str, Any] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "batch": nn.BatchNorm1d}
        self.norm = norms[kind](width) if kind in norms else nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, x: Tensor) -> Any:
        if self.kind == "spelled":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        return self.norm(x)


@block
class Attention(Block):
    """Attention of one sequence on another or itself: separate, fused or grouped projections, fused or spelled products."""

    rank, weight = 2, 6

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        heads = random.choice([1, 2, 2, 4])
        kind = random.choice(["spelled", "fused", "chunks", "grouped", "einsum", "bias"])
        options = {"heads": heads, "dim": random.choice([2, 4]), "kind": kind, "residual": random.random() < 0.7}
        return options | {"norm": random.random() < 0.2 and kind != "fused" and heads > 1}

    def make(self, shape: Shape, heads: int, dim: int, kind: str, residual: bool, norm: bool) -> None:
        if norm and heads == 1:
            raise ValueError("positions that are normalised and then contracted: the silencing oracle has no weights for these")
        width = shape[1]
        self.heads, self.dim, self.kind, self.residual = heads, dim, kind, residual
        self.few = 2 if kind == "grouped" and heads == 4 else heads
        if kind in ("fused", "chunks"):
            self.qkv = nn.Linear(width, 3 * heads * dim)
        else:
            self.q = nn.Linear(width, heads * dim)
            self.k, self.v = nn.Linear(width, self.few * dim), nn.Linear(width, self.few * dim)
        if kind == "bias":
            self.table = nn.Parameter(torch.zeros(heads, 1, shape[0]))
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.out = nn.Linear(heads * dim, width)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        if self.kind == "fused":
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        q, k, v = self.qkv(x).chunk(3, -1) if self.kind == "chunks" else (self.q(x), self.k(x), self.v(x))
        return self._split(q, self.heads), self._split(k, self.few), self._split(v, self.few)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        if self.kind == "spelled":
            return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        if self.kind == "einsum":
            return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)
        mask = self.table if self.kind == "bias" else None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.few != self.heads)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self._projected(x)
        y = self._attend(self.norm(q), self.norm(k), v).transpose(1, 2)
        y = self.out(y.reshape(x.shape[0], x.shape[1], -1))
        return x + y if self.residual else y


@block
class MultiHead(Block):
    """torch's own attention layer."""

    rank = 2

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options | None:
        heads = [h for h in (1, 2, 4) if shapes[0][1] % h == 0]
        return {"heads": random.choice(heads)}

    def make(self, shape: Shape, heads: int) -> None:
        if shape[1] % heads:
            raise ValueError("heads")
        self.attention = nn.MultiheadAttention(shape[1], heads, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return x + self.attention(x, x, x, need_weights=False)[0]


@block
class Recurrent(Block):
    """Recurrent layers over the tokens."""

    rank = 2

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        return {
            "kind": random.choice(["RNN", "GRU", "LSTM"]),
            "hidden": random.choice([2, 4, 6]),
            "layers": random.choice([1, 1, 2]),
            "both": random.random() < 0.3,
        }

    def make(self, shape: Shape, kind: str, hidden: int, layers: int, both: bool) -> None:
        self.cell = getattr(nn, kind)(shape[1], hidden, num_layers=layers, bidirectional=both, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.cell(x)[0]


@block
class Conv1d(Block):
    """A convolution along the tokens, with a norm."""

    rank = 2

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        return {"out": random.choice(WIDTHS), "depthwise": random.random() < 0.4}

    def make(self, shape: Shape, out: int, depthwise: bool) -> None:
        groups = shape[1] if depthwise else 1
        self.conv = nn.Conv1d(shape[1], shape[1] if depthwise else out, 3, padding=1, groups=groups)
        self.norm = nn.BatchNorm1d(self.conv.out_channels)

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.conv(x.transpose(1, 2))).transpose(1, 2)


@block
class Gated(Block):
    """Gated units: the gate and the value are halves of one layer, or two layers."""

    rank = 2

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        return {"inner": random.choice(WIDTHS), "kind": random.choice(["glu", "chunk", "two"])}

    def make(self, shape: Shape, inner: int, kind: str) -> None:
        self.kind = kind
        self.up = nn.Linear(shape[1], inner if kind == "two" else 2 * inner)
        self.gate = nn.Linear(shape[1], inner) if kind == "two" else None
        self.down = nn.Linear(inner, shape[1])

    def forward(self, x: Tensor) -> Any:
        if self.gate is not None:
            return x + self.down(F.silu(self.gate(x)) * self.up(x))
        if self.kind == "glu":
            return x + self.down(F.glu(self.up(x), -1))
        left, right = self.up(x).chunk(2, dim=-1)
        return x + self.down(F.gelu(left) * right)


@block
class Modulated(Block):
    """Shift, scale and gate: rows of a table beside what a layer makes of the mean token, told apart by position."""

    rank = 2

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        return {"kind": random.choice(["chunks", "unbound", "indices"])}

    def make(self, shape: Shape, kind: str) -> None:
        width = shape[1]
        self.kind = kind
        self.table = nn.Parameter(torch.randn(3, width))
        self.embed, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        rows = self.table + self.embed(x.mean(1)).reshape(x.shape[0], 3, -1)
        if self.kind == "chunks":
            shift, scale, gate = rows.chunk(3, 1)
        else:
            parts = rows.unbind(1) if self.kind == "unbound" else [rows[:, i] for i in range(3)]
            shift, scale, gate = (row.unsqueeze(1) for row in parts)
        return x + gate * self.mix(x * (1 + scale) + shift)


@block
class MixTokens(Block):
    """Linear layers across the tokens, as in MLP mixers."""

    rank, weight = 2, 1

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        return {"inner": random.choice(WIDTHS)}

    def make(self, shape: Shape, inner: int) -> None:
        self.up, self.down = nn.Linear(shape[0], inner), nn.Linear(inner, shape[0])

    def forward(self, x: Tensor) -> Any:
        return x + self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)


@block
class Contract(Block):
    """A bare parameter that an einsum or a matrix product contracts with the channels, one matrix for each head."""

    rank = 2
    contracts: ClassVar[dict[str, tuple[int, ...]]] = {"matrix": (1,)}

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options | None:
        heads = [h for h in (1, 2, 3) if shapes[0][1] % h == 0]
        return {"heads": random.choice(heads), "out": random.choice([2, 4]), "einsum": random.random() < 0.5}

    def make(self, shape: Shape, heads: int, out: int, einsum: bool) -> None:
        if shape[1] % heads:
            raise ValueError("heads")
        self.heads, self.einsum = heads, einsum
        self.matrix = nn.Parameter(torch.zeros(heads, shape[1] // heads, out))

    def forward(self, x: Tensor) -> Any:
        y = x.view(x.shape[0], x.shape[1], self.heads, -1)
        y = torch.einsum("bnhd,hde->bnhe", y, self.matrix) if self.einsum else (y.transpose(1, 2) @ self.matrix).transpose(1, 2)
        return y.reshape(x.shape[0], x.shape[1], -1)


@block
class Positions(Block):
    """A learned table of positions that is added, and a token that is put before them."""

    rank = 2

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        return {"token": random.random() < 0.5}

    def make(self, shape: Shape, token: bool) -> None:
        self.token = nn.Parameter(torch.zeros(1, 1, shape[1])) if token else None
        self.table = nn.Parameter(torch.zeros(1, shape[0] + token, shape[1]))

    def forward(self, x: Tensor) -> Any:
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return x + self.table


@block
class Embed(Block):
    """Indices looked up in a table."""

    rank, weight = 1, 0  # drawn as the first step of an input of indices

    def make(self, shape: Shape, out: int, vocabulary: int) -> None:
        self.table = nn.Embedding(vocabulary, out)

    def forward(self, x: Tensor) -> Any:
        return self.table(x)


@block
class ToImage(Block):
    """A vector spread over places by a layer and a view."""

    rank = 1

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        return {"out": random.choice([2, 4, 6])}

    def make(self, shape: Shape, out: int) -> None:
        self.linear, self.out = nn.Linear(shape[0], out * 4), out

    def forward(self, x: Tensor) -> Any:
        return self.linear(x).view(-1, self.out, 2, 2)


@block
class RowsToImage(Block):
    """Tokens laid out as an image with a row of one, anew: torch has wrong gradients for a batch norm of such a view (2.14)."""

    rank, weight = 2, 1

    def forward(self, x: Tensor) -> Any:
        return x.transpose(1, 2).unsqueeze(-1).contiguous()


plain("MeanToken", lambda x: x.mean(1), rank=2)
plain("FirstToken", lambda x: x[:, 0], rank=2)
plain("LargestToken", lambda x: x.amax(1), rank=2)
plain("FlattenTokens", lambda x: x.reshape(x.shape[0], -1), rank=2, suits=lambda s: s[0] * s[1] <= 200)
plain("Untoken", lambda x: torch.stack(x.unbind(1)[::-1], 1), rank=2, suits=lambda s: s[0] <= 5)
