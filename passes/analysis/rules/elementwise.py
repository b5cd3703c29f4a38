"""Element-wise operators: outputs and inputs share positions, so labels at equal positions are tied."""

from __future__ import annotations

import numpy as np

from graphprune.labels import axes_of
from graphprune.rules import Call, rule


@rule(
    "pointwise", "leaky_relu", "elu", "softplus", "celu", "selu", "gelu", "silu", "mish", "hardshrink", "softshrink",
    "log_sigmoid", "hardswish", "hardsigmoid", "hardtanh", "relu6", "copy_", "lift_fresh", "_to_copy", "to",
    "dropout", "native_dropout", "bernoulli", "bernoulli_", "nan_to_num", "_prelu_kernel", "type_as", "where",
    "masked_fill", "fill", "zero", "addcmul", "addcdiv", "lerp", "expand_as", "result_type", "_conj", "real", "round",
    "rrelu_with_noise", "threshold", "logical_not",
    keeps_sizes=True,
)  # fmt: skip
def pointwise(call: Call) -> None:
    """``out[i] = f(a[i], b[i], ...)`` with broadcasting: labels at equal positions are tied; size 1 says nothing.

    In-place forms are the same rule: the written tensor is among the operands.
    """
    fields = call.join()
    for index in range(len(call.outputs)):
        call.set(fields, index)


@rule("alias", "clone", "contiguous", "detach", moves=True)
def same(call: Call) -> None:
    """``out[i] = x[i]``: labels pass."""
    call.set(call.value(call.args[0]).fields)


@rule("glu")
def glu(call: Call) -> None:
    """``out = a * sigmoid(b)`` with a and b the halves of one axis: labels at equal positions of the halves are tied."""
    source = call.value(call.args[0])
    axis = call.arg("dim", -1) % len(source.shape)
    why = call.reason("halved along an axis that cannot shrink alone")
    fields = []
    for field in source.fields:
        if field.shape[axis] > 1:
            single = call.space.restrict(field, [axis], why) if len(axes_of(field)) > 1 else field
            assert single is not None
            first, second = np.split(single, 2, axis)
            call.space.tie(first, second)
            field = first
        fields.append(field)
    call.set(fields)
