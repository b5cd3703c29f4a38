"""Structures of attention in which query heads share heads of keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, case, net, vector
from tests.zoo.heads import DIM, HEADS, INNER, merge_heads, scores, split_heads


def _few_keys(share: Callable[[Tensor], Tensor], heads: int = 2) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        q, k, v = split_heads(self.q(x), 4), split_heads(self.k(x), heads), split_heads(self.v(x), heads)
        return self.proj(merge_heads(scores(q, share(k)).softmax(-1) @ share(v)))

    return net(
        forward, q=nn.Linear(5, 4 * DIM), k=nn.Linear(5, heads * DIM), v=nn.Linear(5, heads * DIM), proj=nn.Linear(4 * DIM, 2)
    )


@case
def grouped_queries_by_repetition() -> Case:
    return Case(_few_keys(lambda t: t.repeat_interleave(2, dim=1)), vector(6, 5), {"q": 2})


@case
def grouped_queries_by_tiling() -> Case:
    """Query heads 0 and 2 share a key head here, 1 and 3 the other."""
    return Case(_few_keys(lambda t: t.repeat(1, 2, 1, 1)), vector(6, 5), {"q": 2})


@case
def multi_query() -> Case:
    """One key head for all query heads, which go alone."""
    frozen = {("k.weight", 0): "", ("v.weight", 0): ""}
    return Case(_few_keys(lambda t: t, heads=1), vector(6, 5), {"q": 4}, frozen)


@case
def multi_query_by_expansion() -> Case:
    return Case(_few_keys(lambda t: t.expand(-1, 4, -1, -1), heads=1), vector(6, 5), {"q": 4})


@case
def grouped_queries_of_torch() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        q, k, v = split_heads(self.q(x), 4), split_heads(self.k(x), 2), split_heads(self.v(x), 2)
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))

    model = net(forward, q=nn.Linear(5, 4 * DIM), k=nn.Linear(5, 2 * DIM), v=nn.Linear(5, 2 * DIM), proj=nn.Linear(4 * DIM, 2))
    return Case(model, vector(6, 5), {"q": 2})


@case
def shared_part_of_keys() -> Case:
    """DeepSeek's latent attention: each key is a part of its own head beside one that all heads share."""

    def forward(self: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q = split_heads(self.q(x))
        latent, shared = self.down(x).split([6, 2], dim=-1)
        own, v = split_heads(self.up(self.norm(latent))).split([DIM - 2, DIM], dim=-1)
        k = torch.cat([own, shared.view(b, n, 1, 2).transpose(1, 2).expand(-1, HEADS, -1, -1)], dim=-1)
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))

    model = net(
        forward,
        q=nn.Linear(5, INNER),
        down=nn.Linear(5, 8),
        norm=nn.LayerNorm(6),
        up=nn.Linear(6, HEADS * (2 * DIM - 2)),
        proj=nn.Linear(INNER, 2),
    )
    return Case(model, vector(6, 5), {"q": HEADS, "down": 6})
