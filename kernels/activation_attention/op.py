"""The operators ``graphprune::activation_attention`` and ``..._gradient``, and the function in front of them."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch
from torch import Tensor

from graphprune.kernels.activation_attention import reference


class Attention(NamedTuple):
    """Statistics of an activation ``[N, C, *spatial]``, summed over samples and locations.

    Sums are float32 (float64 for float64 activations). Those over activation times gradient are there where a gradient was given.
    """

    sum: Tensor
    """``[C]``: of a."""
    abs_sum: Tensor
    """``[C]``: of \\|a\\|."""
    square_sum: Tensor
    """``[C]``: of a^2."""
    fourth_sum: Tensor
    """``[C]``: of a^4."""
    abs_max: Tensor
    """``[C]``: largest \\|a\\|, 0 where there is no value."""
    nonzero: Tensor
    """``[C]`` int64: values that are not zero."""
    taylor: Tensor | None = None
    """``[N, C]``: of a * g over locations, per sample."""
    taylor_abs: Tensor | None = None
    """``[C]``: of \\|a * g\\|."""
    indicator: Tensor | None = None
    """``[C, *spatial]`` int32: samples with \\|a * g\\| > tau, where tau was given."""


def activation_attention(
    activation: Tensor, gradient: Tensor | None = None, *, tau: float | None = None, channel_dim: int = 1
) -> Attention:
    """Statistics of an activation, and of activation times gradient, in one read of each tensor.

    Any layout is read as it lies, without a copy. Runs as a Triton kernel on CUDA tensors and in PyTorch elsewhere. The same
    input gives the same bits in every run on one device; layouts and devices agree to rounding, and exactly in counts and
    maxima. Sums are taken in float32 (float64 for float64) and may overflow to infinity from \\|a\\| of about 1e9 on; NaN
    counts as not zero, and as NaN in the sums and the maximum of its channel. Nothing here is differentiable.

    Args:
        activation: Floating point, ``[N, C, *spatial]``, or with the channels at ``channel_dim``.
        gradient: Gradient of the loss by the activation: its shape, dtype and device, in any layout.
        tau: Threshold of the indicator, zero or more; only together with a gradient.
        channel_dim: The channels' dimension; any but the first, which holds the samples.

    Returns:
        Per-channel statistics.

    Raises:
        TypeError: The activation is not floating point.
        ValueError: Wrong dimensions, a gradient unlike the activation, or a tau that is negative or has no gradient.

    Attention of a filter, the mean of \\|a\\|^p, is from "Adaptive activation-based structured pruning" (Zhao et al., 2022);
    \\|sum of a * g\\| from "Pruning convolutional neural networks for resource efficient inference" (Molchanov et al., 2017);
    the indicator from "Class-aware pruning for efficient neural networks" (Jiang et al., 2024).

    Example:
        >>> import torch
        >>> from graphprune.kernels.activation_attention import activation_attention
        >>> a = torch.tensor([[[1.0, -2.0], [0.0, 3.0]]])  # one sample, two channels, two locations
        >>> found = activation_attention(a, torch.ones_like(a), tau=1.5)
        >>> found.square_sum, found.nonzero
        (tensor([5., 9.]), tensor([2, 1]))
        >>> found.taylor, found.indicator
        (tensor([[-1.,  3.]]), tensor([[0, 1],
                [0, 1]], dtype=torch.int32))
    """
    channel_dim = _check(activation, gradient, tau, channel_dim)
    if gradient is None:
        sums, nonzero = _attention(activation.detach(), channel_dim)
        return Attention(*_five(sums), nonzero)
    sums, nonzero, taylor, indicator = _attention_gradient(activation.detach(), gradient.detach(), tau, channel_dim)
    return Attention(*_five(sums), nonzero, taylor, sums[5], None if tau is None else indicator)


def _five(sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return sums[0], sums[1], sums[2], sums[3], sums[4]


def _check(activation: Tensor, gradient: Tensor | None, tau: float | None, channel_dim: int) -> int:
    """The channels' dimension counted from the front, where the arguments fit together."""
    if not activation.is_floating_point():
        raise TypeError(f"Statistics are of floating point activations, but this one is {activation.dtype}.")
    if not -activation.ndim < channel_dim < activation.ndim or channel_dim == 0:
        raise ValueError(
            f"An activation of {activation.ndim} dimensions has no channels at dimension {channel_dim}; samples are at 0."
        )
    if gradient is None:
        if tau is not None:
            raise ValueError("The indicator compares |activation * gradient| with tau: give the gradient too.")
    elif (gradient.shape, gradient.dtype, gradient.device) != (activation.shape, activation.dtype, activation.device):
        raise ValueError(
            f"The gradient is {tuple(gradient.shape)} {gradient.dtype} on {gradient.device}, "
            f"the activation {tuple(activation.shape)} {activation.dtype} on {activation.device}: they must be alike."
        )
    if tau is not None and not tau >= 0:
        raise ValueError(f"tau is a threshold of an absolute value and must not be negative, but is {tau}.")
    return channel_dim % activation.ndim


def _has_kernel(tensor: Tensor) -> bool:
    """Whether the kernel takes a tensor. It has no float64, and Triton is not there on every system."""
    return tensor.dtype != torch.float64 and importlib.util.find_spec("triton") is not None


@torch.library.custom_op(
    "graphprune::activation_attention", mutates_args=(), schema="(Tensor activation, int channel_dim) -> (Tensor, Tensor)"
)
def _attention(activation: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    return reference.statistics(activation, channel_dim)


@_attention.register_kernel("cuda")
def _(activation: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    if not _has_kernel(activation):
        return reference.statistics(activation, channel_dim)
    from graphprune.kernels.activation_attention.launch import launch  # needs Triton

    return launch(activation, channel_dim)


@_attention.register_fake
def _(activation: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    channels = activation.shape[channel_dim]
    sums = activation.new_empty((len(reference.SUMS) - 1, channels), dtype=reference.accumulator(activation.dtype))
    return sums, activation.new_empty(channels, dtype=torch.int64)


@torch.library.custom_op(
    "graphprune::activation_attention_gradient",
    mutates_args=(),
    schema="(Tensor activation, Tensor gradient, float? tau, int channel_dim) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _attention_gradient(
    activation: Tensor, gradient: Tensor, tau: float | None, channel_dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return reference.statistics_with_gradient(activation, gradient, tau, channel_dim)


@_attention_gradient.register_kernel("cuda")
def _(activation: Tensor, gradient: Tensor, tau: float | None, channel_dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not _has_kernel(activation):
        return reference.statistics_with_gradient(activation, gradient, tau, channel_dim)
    from graphprune.kernels.activation_attention.launch import launch_with_gradient  # needs Triton

    return launch_with_gradient(activation, gradient, tau, channel_dim)


@_attention_gradient.register_fake
def _(activation: Tensor, gradient: Tensor, tau: float | None, channel_dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    samples, channels, *spatial = activation.movedim(channel_dim, 1).shape
    wide = reference.accumulator(activation.dtype)
    return (
        activation.new_empty((len(reference.SUMS), channels), dtype=wide),
        activation.new_empty(channels, dtype=torch.int64),
        activation.new_empty((samples, channels), dtype=wide),
        activation.new_empty((channels, *spatial) if tau is not None else 0, dtype=torch.int32),
    )
