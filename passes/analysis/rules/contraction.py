"""Matrix products and attention: labels of a contracted axis are tied on both sides and end there."""

from __future__ import annotations

from math import prod

import numpy as np

from graphprune.channels.labels import Field, Value, axes_of
from graphprune.passes.analysis.rules.wide import settled
from graphprune.rules import Call, rule


def contracted(call: Call, value: Value, axis: int) -> tuple[list[Field], Field | None]:
    """Split a value's fields at a contracted axis: those of the other axes, and the 1-D labels of the axis itself.

    A field over the contracted axis and others (heads x head_dim) must shrink along one only: policy ``heads``.
    """
    rest: list[Field] = []
    vector: Field | None = None
    why = call.reason("contracted over an axis that cannot shrink alone")
    for field in value.fields:
        axes = axes_of(field)
        if axis not in axes:
            rest.append(field)
        elif len(axes) == 1:
            vector = field.reshape(-1)
        elif call.choose("heads") == "whole":
            narrowed = call.space.restrict(field, [a for a in axes if a != axis], why)
            assert narrowed is not None
            rest.append(narrowed)
        else:
            narrowed = call.space.restrict(field, [axis], why)
            assert narrowed is not None
            vector = narrowed.reshape(-1)
    return rest, vector


@rule("mm", "bmm", "addmm", "baddbmm", "addbmm")
def matmul(call: Call) -> None:
    """``out[.., m, n] = sum_k a[.., m, k] b[.., k, n] (+ c)``: k is tied between a and b; rows, columns, batch pass on."""
    tensors = call.inputs()
    call.check_dtypes(*tensors)
    left, right = (call.value(t) for t in tensors[-2:])
    rank = len(left.shape)
    rows, inner_left = contracted(call, left, rank - 1)
    columns, inner_right = contracted(call, right, rank - 2)
    why = call.reason("multiplied with a tensor that cannot shrink")
    call.space.match(inner_left, inner_right, why)
    # Batch axes are shared; the row axis belongs to the left operand alone, the column axis to the right one.
    operands = settled(call, [Value(left.shape, tuple(rows)), Value(right.shape, tuple(columns))], rank)
    fixed = {a for a in range(rank - 2) for v in operands if a not in v.labelled and v.shape[a] > 1}
    fields = call.space.merge([field for value in operands for field in value.fields], fixed, why)
    if len(tensors) == 3:
        bias = call.value(tensors[0])
        out = Value(call.shape(), fields)
        fields = call.space.join([out, bias], call.shape(), why)
    call.set(fields)
    inner = inner_left if inner_left is not None else inner_right
    call.macs(*call.volume(fields), left.shape[-1] if inner is None else inner)


def _varies(fields: list[Field], axis: int) -> bool:
    return any(field.shape[axis] > 1 for field in fields)


@rule("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_matmul(call: Call) -> None:
    """``out[s, n] = sum_k x[s, k] w[e(s), k, n]``, rows of x sorted by expert: k is tied, s and n pass, experts are told apart."""
    call.check_dtypes(*call.args[:2])
    rows, weight = (call.value(tensor) for tensor in call.args[:2])
    if (len(rows.shape), len(weight.shape)) != (2, 3) or call.arg("bias") is not None:
        call.freeze_inputs("a product of groups of another form than rows by experts")
        call.set(())
        return
    kept, inner = contracted(call, rows, 1)
    why = call.reason("multiplied with the weights of an expert that is chosen by data")
    narrow = [call.space.restrict(field, [axis for axis in axes_of(field) if axis > 0], why) for field in weight.fields]
    per_expert = Value(weight.shape[1:], tuple(field[0] for field in narrow if field is not None))
    columns, inner_right = contracted(call, per_expert, 0)
    call.space.match(inner, inner_right, call.reason("multiplied with a tensor that cannot shrink"))
    call.set([*kept, *columns])
    call.macs(*call.volume([*kept, *columns]), rows.shape[1] if inner is None else inner)


@rule("mv", "dot", "vdot")
def vector_product(call: Call) -> None:
    """``out[m] = sum_k a[m, k] b[k]``: as a matrix product with one column."""
    left, right = (call.value(t) for t in call.inputs())
    rest, inner = contracted(call, left, len(left.shape) - 1)
    call.space.match(inner, right.vector(0), call.reason("multiplied with a tensor that cannot shrink"))
    call.set([field.reshape(field.shape[:-1]) for field in rest])


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
def attention(call: Call) -> None:
    """``out[.., l, e] = sum_s softmax_s(sum_d q[.., l, d] k[.., s, d] * scale + bias) v[.., s, e]``.

    d is tied between q and k (the implicit scale ``d ** -0.5`` is pinned to the original's by the rewriter), batch and
    head axes are tied among all, e passes from v to the output. s and l cannot shrink. (What repeats keys for several queries is
    no such operator: torch takes it apart.)
    """
    query, key, value = (call.value(t) for t in call.args[:3])
    rank = len(query.shape)
    q_rest, q_inner = contracted(call, query, rank - 1)
    k_rest, k_inner = contracted(call, key, rank - 1)
    v_rest, v_inner = contracted(call, value, rank - 2)
    why = call.reason("attended together with a tensor that cannot shrink")
    call.space.match(q_inner, k_inner, why)
    call.space.match(v_inner, None, why)
    operands = [Value(v.shape, tuple(fields)) for v, fields in ((query, q_rest), (key, k_rest), (value, v_rest))]
    mask = call.arg("attn_mask", call.arg("attn_bias"))
    if mask is not None:
        bias = call.value(mask)
        inner = len(bias.shape) - 2
        kept = [call.space.restrict(field, [a for a in axes_of(field) if a < inner], why) for field in bias.fields]
        operands.append(Value(bias.shape, tuple(field for field in kept if field is not None)))
    operands = settled(call, operands, rank)
    fields, fixed = [], {rank - 2}
    for operand in operands:
        lead = rank - len(operand.shape)
        fields += [f.reshape((1,) * lead + f.shape) for f in operand.fields]
        fixed |= {a + lead for a, n in enumerate(operand.shape[: rank - 2 - lead]) if n > 1 and a not in operand.labelled}
    merged = call.space.merge(fields, fixed, why)
    call.set(merged)
    for index in range(1, len(call.outputs)):
        call.set((), index)
    batch = [f for f in merged if axes_of(f)[0] < rank - 2]
    fixed_batch = prod(n for a, n in enumerate(query.shape[: rank - 2]) if not _varies(batch, a))
    area = fixed_batch * query.shape[-2] * key.shape[-2]
    columns = next((f for f in merged if axes_of(f)[0] == rank - 1), None)
    call.macs(area, *batch, query.shape[-1] if q_inner is None else q_inner)
    call.macs(area, *batch, value.shape[-1] if columns is None else columns)


@rule("_trilinear")
def trilinear(call: Call) -> None:
    """``out = sum over sumdim of a * b * c``, each with axes of size 1 put in (``nn.Bilinear``): as a product and a sum."""
    values = []
    for tensor, name in zip(call.args[:3], ("expand1", "expand2", "expand3"), strict=True):
        value, new = call.value(tensor), tuple(call.arg(name))
        fields = tuple(np.expand_dims(field, new) for field in value.fields)
        sizes = iter(value.shape)
        rank = len(value.shape) + len(new)
        values.append(Value(tuple(1 if axis in new else next(sizes) for axis in range(rank)), fields))
    shape = np.broadcast_shapes(*(value.shape for value in values))
    why = call.reason("multiplied with a tensor that cannot shrink")
    product = call.space.join(settled(call, values, len(shape)), shape, why)
    call.macs(prod(n for axis, n in enumerate(shape) if not _varies(list(product), axis)), *product)
    summed = set(call.arg("sumdim"))
    narrow = [call.space.restrict(f, set(axes_of(f)) - summed, why) if set(axes_of(f)) - summed else None for f in product]
    keep = [axis for axis in range(len(shape)) if axis not in summed]
    call.set([field.reshape([field.shape[axis] for axis in keep]) for field in narrow if field is not None])
