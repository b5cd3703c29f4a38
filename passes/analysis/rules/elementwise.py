"""Element-wise operators: outputs and inputs share positions, so labels at equal positions are tied."""

from __future__ import annotations

import numpy as np

from graphprune.passes.analysis.rules.wide import settled
from graphprune.rules import Call, rule


@rule(
    "pointwise", "leaky_relu", "elu", "softplus", "celu", "selu", "gelu", "silu", "mish", "hardshrink", "softshrink",
    "log_sigmoid", "hardswish", "hardsigmoid", "hardtanh", "relu6", "copy_", "lift_fresh", "_to_copy", "to",
    "dropout", "native_dropout", "nan_to_num", "_prelu_kernel", "type_as", "where",
    "masked_fill", "fill", "zero", "addcmul", "addcdiv", "lerp", "expand_as", "result_type", "_conj", "real", "round",
    "rrelu_with_noise", "threshold", "logical_not", "polar", "floor_divide",
    keeps_sizes=True,
)  # fmt: skip
def pointwise(call: Call) -> None:
    """``out[i] = f(a[i], b[i], ...)`` with broadcasting: labels at equal positions are tied; size 1 says nothing.

    In-place forms are the same rule: the written tensor is among the operands.
    """
    values = settled(call, [call.value(tensor) for tensor in call.inputs()], len(call.shape()))
    fields = call.space.join(values, call.shape(), call.reason("combined element by element with a tensor that cannot shrink"))
    for index in range(len(call.outputs)):
        call.set(fields, index)


@rule("log_sigmoid_forward", keeps_sizes=True)
def log_sigmoid(call: Call) -> None:
    """``out[i] = log(sigmoid(x[i]))``, and memory for the gradient that nothing else reads."""
    call.set(call.value(call.args[0]).fields)
    call.set((), 1)


@rule("alias", "clone", "contiguous", "detach", "lift_fresh_copy", moves=True)
def same(call: Call) -> None:
    """``out[i] = x[i]``: labels pass."""
    call.set(call.value(call.args[0]).fields)


@rule("glu")
def glu(call: Call) -> None:
    """``out = a * sigmoid(b)`` with a and b the halves of one axis: labels at equal positions of the halves are tied."""
    source = call.value(call.args[0])
    axis = call.arg("dim") % len(source.shape)
    fields = []
    for field in source.fields:
        if field.shape[axis] > 1:
            first, second = np.split(field, 2, axis)
            call.space.tie(first, second)
            field = first
        fields.append(field)
    call.set(fields)
