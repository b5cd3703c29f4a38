"""Statistics of activations, and of activations times gradients, in one read of each tensor."""

from graphprune.kernels.activation_attention.op import Attention, activation_attention

__all__ = ["Attention", "activation_attention"]
