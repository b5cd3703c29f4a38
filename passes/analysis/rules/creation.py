"""New constants: any length will do, so their axes get labels of their own and shrink with what they meet."""

from __future__ import annotations

from graphprune.channels.labels import along
from graphprune.passes.analysis.rules.elementwise import pointwise
from graphprune.rules import Call, rule


@rule(
    "zeros",
    "ones",
    "full",
    "empty",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "empty_permuted",
    "empty_strided",
)
def constant(call: Call) -> None:
    """Every element is alike: each axis gets soft labels, tied to whatever it is combined with."""
    shape, unfilled = call.shape(), "empty" in call.name
    labels = {axis: call.space.fresh(n, soft=True, unfilled=unfilled) for axis, n in enumerate(shape) if n > 1}
    call.set([along(own, axis, len(shape)) for axis, own in labels.items()])


@rule("zeros_like", "ones_like", "full_like", "empty_like")
def like(call: Call) -> None:
    """Takes its size from another tensor, so it has its labels."""
    call.set(call.value(call.args[0]).fields)


@rule("eye")
def identity(call: Call) -> None:
    """Without rows and the columns of the same numbers it is a smaller identity, so both axes have the same labels."""
    rows, columns = call.shape()
    labels = None if call.open_bounds or rows != columns or rows == 1 else call.space.fresh(rows, soft=True)
    call.set([] if labels is None else [along(labels, axis, 2) for axis in (0, 1)])


@rule("arange", "linspace", "tril_indices", "triu_indices", "scalar_tensor")
def positional(call: Call) -> None:
    """Values depend on the position: no labels, and whatever meets them cannot shrink there."""
    call.set(())


@rule(
    "rand",
    "randn",
    "rand_like",
    "randn_like",
    "randint",
    "randint_like",
    "randperm",
    "normal",
    "uniform",
    "exponential",
    "multinomial",
)
def drawn(call: Call) -> None:
    """Which number is drawn depends on how many are drawn before it: as values that depend on the position."""
    call.freeze_inputs("the numbers of what is drawn by it")
    call.set(())


@rule("bernoulli")
def dropped(call: Call) -> None:
    """Zeros and ones, as dropout draws them: as :func:`drawn`, or by policy ``dropout`` as many as there are channels."""
    if call.choose("dropout") == "allow":
        pointwise(call)
    else:
        drawn(call)
