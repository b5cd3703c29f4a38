"""Statistics of activations, and of activations times gradients."""

from typing import NamedTuple

import torch
from torch import Tensor


class Attention(NamedTuple):
    """Statistics."""

    sum: Tensor
    abs_sum: Tensor
    square_sum: Tensor
    fourth_sum: Tensor
    abs_max: Tensor
    nonzero: Tensor
    taylor: Tensor | None = None
    taylor_abs: Tensor | None = None
    indicator: Tensor | None = None


def activation_attention(activation: Tensor, gradient: Tensor | None = None, *, tau: float | None = None) -> Attention:
    """Placeholder."""
    d = (0, *range(2, activation.dim()))
    y = activation.double()
    plain = (y.sum(d), y.abs().sum(d), y.square().sum(d), y.pow(4).sum(d), y.abs().amax(d), (y != 0).sum(d))
    if gradient is None:
        return Attention(*plain)
    z = activation * gradient
    taylor = z.flatten(2).sum(2) if z.dim() > 2 else z
    return Attention(*plain, taylor, z.abs().sum(d), None if tau is None else (z.abs() > tau).sum(0).to(torch.int32))
