"""New constants: any length will do, so their axes get labels of their own and shrink with what they meet."""

from __future__ import annotations

from graphprune.channels.labels import along
from graphprune.rules import Call, rule


@rule(
    "zeros",
    "ones",
    "full",
    "empty",
    "rand",
    "randn",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "empty_permuted",
    "empty_strided",
)
def constant(call: Call) -> None:
    """Every element is alike (or random): each axis gets soft labels, tied to whatever it is combined with."""
    shape = call.shape()
    call.set([along(call.space.fresh(n, soft=True), axis, len(shape)) for axis, n in enumerate(shape) if n > 1])


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like")
def like(call: Call) -> None:
    """Takes its size from another tensor, so it has its labels."""
    call.set(call.value(call.args[0]).fields)


@rule("arange", "linspace", "eye", "tril_indices", "triu_indices", "scalar_tensor", "randint", "randperm")
def positional(call: Call) -> None:
    """Values depend on the position: no labels, and whatever meets them cannot shrink there."""
    call.set(())
