"""Structures of attention, in the spellings that models use, and of tensors that are cut into tokens and windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, case, conv, image, net, vector

EMBED, HEADS, DIM = 12, 3, 4


def _tail(**parts: nn.Module | nn.Parameter) -> dict[str, Any]:
    return {"embed": nn.Linear(5, EMBED), "proj": nn.Linear(HEADS * DIM, EMBED), "head": nn.Linear(EMBED, 2), **parts}


@case
def fused_qkv() -> Case:
    """timm's Attention: one linear layer, reshape, permute, unbind; whole heads are units."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, c))
        return self.head(x)

    model = net(forward, **_tail(qkv=nn.Linear(EMBED, 3 * EMBED)))
    return Case(model, vector(6, 5), {"embed": EMBED, "qkv": HEADS})


@case
def fused_qkv_taken_by_index() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        x = self.embed(x)
        b, n, _ = x.shape
        qkv = self.qkv(x).view(b, n, 3, HEADS, DIM).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = (q @ k.transpose(-2, -1) * DIM**-0.5).softmax(dim=-1)
        return self.head(x + self.proj((weights @ v).transpose(1, 2).reshape(b, n, HEADS * DIM)))

    model = net(forward, **_tail(qkv=nn.Linear(EMBED, 3 * EMBED, bias=False)))
    return Case(model, vector(6, 5), {"embed": EMBED, "qkv": HEADS})


@case
def fused_qkv_in_chunks() -> Case:
    """chunk along the last axis of B x N x C, where three equal parts stay equal because heads go whole."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=2)
        q, k, v = (t.view(b, n, HEADS, c // HEADS).transpose(1, 2) for t in (q, k, v))
        scores = torch.matmul(q, k.transpose(2, 3)) / (q.shape[-1] ** 0.5)
        y = torch.matmul(torch.softmax(scores, -1), v)
        return self.head(self.proj(y.transpose(1, 2).contiguous().view(b, n, -1)) + x)

    model = net(forward, **_tail(qkv=nn.Linear(EMBED, 3 * EMBED)))
    return Case(model, vector(6, 5), {"embed": EMBED, "qkv": HEADS})


@case
def separate_projections() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        x = self.embed(x)
        b, n, _ = x.size()
        q = self.q(x).view(b, n, HEADS, DIM).transpose(1, 2)
        k = self.k(x).view(b, n, HEADS, DIM).transpose(1, 2)
        v = self.v(x).view(b, n, HEADS, DIM).transpose(1, 2)
        scale = x.shape[-1] ** -0.5
        weights = F.softmax(q @ k.transpose(-1, -2) * scale, dim=-1)
        return self.head(x + self.proj((weights @ v).transpose(1, 2).flatten(2)))

    layers = {name: nn.Linear(EMBED, HEADS * DIM) for name in "qkv"}
    return Case(net(forward, **_tail(**layers)), vector(6, 5), {"embed": EMBED, "q": HEADS})


@case
def positions_of_every_head() -> Case:
    """Policy ``head_dim``: the same dimensions of every head; q with k, and v with the projection, go apart."""
    case = separate_projections()
    return Case(case.model, case.inputs, {"embed": EMBED, "q": DIM, "v": DIM}, policy={"heads": "head_dim"})


@case
def fused_attention_with_positions_of_every_head() -> Case:
    """The implicit scale of the attention stays the original's; one tensor holds q, k and v, so they shrink alike."""
    case = fused_qkv()
    return Case(case.model, case.inputs, {"embed": EMBED, "qkv": DIM}, policy={"heads": "head_dim"})


@case
def single_head() -> Case:
    """Without a head axis q and k shrink together, and v with the projection."""

    def forward(self: Any, x: Tensor) -> Any:
        q, k, v = self.q(x), self.k(x), self.v(x)
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)) / q.size(-1) ** 0.5, dim=-1)
        return self.proj(torch.bmm(weights, v))

    model = net(forward, q=nn.Linear(5, 8), k=nn.Linear(5, 8), v=nn.Linear(5, 6), proj=nn.Linear(6, 2))
    return Case(model, vector(6, 5), {"q": 8, "v": 6})


@case
def attention_with_bias_per_head() -> Case:
    """A relative position bias has one slice for each head."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, DIM).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) + self.bias[:, self.index].unsqueeze(0)).softmax(-1)
        return self.head(self.proj((weights @ v).transpose(1, 2).reshape(b, n, -1)))

    model = net(forward, **_tail(qkv=nn.Linear(EMBED, 3 * EMBED), bias=nn.Parameter(torch.randn(HEADS, 7))))
    model.register_buffer("index", torch.randint(0, 7, (6, 6)))
    return Case(model, vector(6, 5), {"embed": EMBED, "qkv": HEADS, "proj": EMBED}, {("bias", 1): "indexed by data"})


@case
def attention_with_normed_queries() -> Case:
    """A norm over head_dim, and q consumed twice: heads still go whole."""

    def forward(self: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, DIM).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self.qn(q), self.kn(k), v, scale=0.5)
        return self.proj((y + q).transpose(1, 2).reshape(b, n, -1))

    model = net(forward, qkv=nn.Linear(5, 3 * EMBED), qn=nn.LayerNorm(DIM), kn=nn.LayerNorm(DIM), proj=nn.Linear(EMBED, 2))
    return Case(model, vector(6, 5), {"qkv": HEADS}, {("qn.weight", 0): "cannot shrink"})


@case
def cross_attention_of_two_inputs() -> Case:
    def forward(self: Any, x: Tensor, context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        def heads(t: Tensor) -> Any:
            return t.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        y = F.scaled_dot_product_attention(heads(self.q(x)), heads(self.k(context)), heads(self.v(context)), attn_mask=mask)
        y = y.transpose(1, 2).flatten(-2)
        return self.proj(y), y.mean()

    model = net(forward, q=nn.Linear(5, EMBED), k=nn.Linear(4, EMBED), v=nn.Linear(4, EMBED), proj=nn.Linear(EMBED, 2))
    x, context = vector(6, 5), vector(7, 4)
    return Case(model, lambda n: {"x": x(n), "context": context(n), "mask": torch.ones(6, 7).bool().tril(3)}, {"q": HEADS})


@case
def grouped_queries() -> Case:
    """Two query heads share a key head (expand): a key head goes with both of its query heads."""

    def forward(self: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 4, DIM).transpose(1, 2)
        k, v = (t.view(b, n, 2, DIM).transpose(1, 2) for t in (self.k(x), self.v(x)))
        k, v = (t[:, :, None].expand(b, 2, 2, n, DIM).reshape(b, 4, n, DIM) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, 4 * DIM))

    model = net(forward, q=nn.Linear(5, 4 * DIM), k=nn.Linear(5, 2 * DIM), v=nn.Linear(5, 2 * DIM), proj=nn.Linear(4 * DIM, 2))
    return Case(model, vector(6, 5), {"q": 2})


@case
def class_token_and_positions() -> Case:
    """A ViT's front: patches, a class token, a position embedding, and the token taken at the end."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.position
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x[:, 0])

    model = net(
        forward,
        patches=nn.Conv2d(3, 6, 4, 4),
        token=nn.Parameter(torch.randn(1, 1, 6)),
        position=nn.Parameter(torch.randn(1, 5, 6)),
        norm=nn.LayerNorm(6),
        up=nn.Linear(6, 9),
        down=nn.Linear(9, 6),
        head=nn.Linear(6, 3),
    )
    return Case(model, image(), {"patches": 6, "up": 9})


@case
def windows() -> Case:
    """Swin's window partition and its reverse around a linear layer."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        y = self.mix(y).view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return self.b((x + torch.roll(y, (1, 1), (1, 2))).permute(0, 3, 1, 2))

    return Case(net(forward, a=conv(3, 6), mix=nn.Linear(6, 6), b=conv(6, 2)), image(), {"a": 6})


@case
def patch_merging() -> Case:
    """Swin's down-sampling: four shifted pictures side by side."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x).permute(0, 2, 3, 1)
        parts = [x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[..., 1::2, 1::2, :]]
        return self.reduce(self.norm(torch.cat(parts, -1)))

    model = net(forward, a=conv(3, 5), norm=nn.LayerNorm(20), reduce=nn.Linear(20, 3, bias=False))
    return Case(model, image(), {"a": 5})


@case
def repeated_and_expanded() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        twice = y.repeat(1, 2)
        spread = y.unsqueeze(1).expand(-1, 4, -1).mean(1)
        return self.b(twice) + self.c(spread)

    return Case(net(forward, a=nn.Linear(3, 5), b=nn.Linear(10, 2), c=nn.Linear(5, 2)), vector(3), {"a": 5})


@case
def sizes_in_arithmetic() -> Case:
    """Widths read from shapes: halves, views, and a divisor that is no size."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        half = y.shape[1] // 2
        left, right = y[:, :half], y[:, half:]
        z = (left * right).view(x.size(0), half, -1)
        return self.b(z.reshape(x.shape[0], -1) / y.shape[1])

    return Case(net(forward, a=conv(3, 8), b=nn.Linear(256, 3)), image(), {"a": 4})


@case
def inferred_sizes() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        z = y.view(y.shape[0], 6, -1).transpose(1, 2).reshape(-1, 6)
        return self.b(F.relu(z)).view(x.shape[0], 8, 8, -1).mean((1, 2))

    return Case(net(forward, a=conv(3, 6), b=nn.Linear(6, 3)), image(), {"a": 6})


@case
def einsum_contraction() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y, z = self.a(x), self.b(x)
        return torch.einsum("bnc,bmc->bnm", y, z) + torch.einsum("bnc,dc->bnd", y, self.w)

    model = net(forward, a=nn.Linear(5, 8), b=nn.Linear(5, 8), w=nn.Parameter(torch.randn(6, 8)))
    return Case(model, vector(6, 5), {"a": 8})


@case
def bilinear_pooling() -> Case:
    """The outer product of two feature maps, flattened: its axis is a product of two widths, of which one stays."""

    def forward(self: Any, x: Tensor) -> Any:
        y, z = self.a(x).flatten(2), self.b(x).flatten(2)
        return self.head(torch.bmm(y, z.transpose(1, 2)).flatten(1))

    model = net(forward, a=conv(3, 4), b=conv(3, 5), head=nn.Linear(20, 2))
    return Case(model, image(), {"b": 5}, {("a.weight", 0): "merged into one axis"})


def _masked_by_copies(mask_of: Callable[[Tensor], Tensor]) -> Case:
    """OpenCLIP's CoCa: one mask of each text is repeated for its heads, along the axis of the batch."""

    def forward(self: Any, x: Tensor, keep: Tensor) -> Any:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, HEADS, DIM).transpose(1, 2) for t in (self.q(x), self.k(x), self.v(x)))
        mask = torch.zeros(b, n, n, dtype=x.dtype).masked_fill(~keep.unsqueeze(1).expand(-1, n, -1), float("-inf"))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_of(mask).view(b, HEADS, -1, n))
        return self.head(self.proj(y.transpose(1, 2).flatten(2)))

    model = net(forward, **_tail(**{name: nn.Linear(EMBED, HEADS * DIM) for name in "qkv"}))
    x = vector(6, 5)
    groups = {"q": HEADS, "embed": EMBED, "proj": EMBED}
    return Case(model, lambda n: {"x": x(n), "keep": torch.arange(6).expand(n, 6) < 4}, groups)


@case
def mask_repeated_for_heads() -> Case:
    return _masked_by_copies(lambda mask: mask.repeat_interleave(HEADS, 0))


@case
def mask_repeated_to_a_size() -> Case:
    return _masked_by_copies(lambda mask: torch.repeat_interleave(mask, repeats=HEADS, dim=0, output_size=HEADS * len(mask)))


@case
def heads_in_the_batch() -> Case:
    """Heads folded into the batch and taken out of it again: the batch is computed by a division by the number of heads."""

    def fold(t: Tensor) -> Tensor:
        b, n, c = t.shape
        return t.reshape(b, n, HEADS, c // HEADS).transpose(1, 2).reshape(b * HEADS, n, c // HEADS)

    def forward(self: Any, x: Tensor) -> Any:
        q, k, v = (fold(layer(x)) for layer in (self.q, self.k, self.v))
        y = (q @ k.transpose(-1, -2) * DIM**-0.5).softmax(-1) @ v
        assert y.shape[0] % HEADS == 0
        y = y.reshape(y.shape[0] // HEADS, HEADS, y.shape[1], y.shape[2])
        return self.proj(y.transpose(1, 2).reshape(y.shape[0], y.shape[2], y.shape[1] * y.shape[3]))

    layers = {name: nn.Linear(5, HEADS * DIM) for name in "qkv"} | {"proj": nn.Linear(HEADS * DIM, 2)}
    return Case(net(forward, **layers), vector(6, 5), {"q": HEADS})
