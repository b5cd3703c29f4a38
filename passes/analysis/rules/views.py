"""Operators that move elements without changing them: labels move by the same arithmetic as the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphprune.channels.labels import Field, Value, along, axes_of
from graphprune.passes.analysis.rules.convolution import channel_labels
from graphprune.passes.analysis.rules.wide import narrowed, settled
from graphprune.rules import Call, rule


@rule("_unsafe_view", moves=True, views=True)
@rule("view", "reshape", "_reshape_alias", "flatten", "unflatten", moves=True)
def reshape(call: Call) -> None:
    """Row-major order is kept: a merged axis repeats labels, a split axis spreads them over several."""
    value = call.value(call.args[0])
    call.set(call.space.reshape(value, call.shape(), call.reason("merged into one axis with another prunable axis")))


@rule("permute", "transpose", "t", "movedim", "swapaxes", "numpy_T", "adjoint", moves=True)
def permute(call: Call) -> None:
    """``out = x.permute(order)``: fields are transposed alike."""
    source = call.value(call.args[0])
    rank = len(source.shape)
    name = call.func._schema.name
    if name == "aten::permute":
        order = [axis % rank for axis in call.args[1]]
    else:
        order = list(range(rank))
        first, second = (0, 1) if name == "aten::t" else (call.args[1] % rank, call.args[2] % rank)
        if rank > 1:
            order[first], order[second] = order[second], order[first]
    call.set([field.transpose(order) for field in source.fields])


@rule("as_strided")
def as_strided(call: Call) -> None:
    """A new view of the memory; labels pass where torch itself asks for one that shows every element where it was.

    Where the model asks for it, sizes and strides are those of the original's widths.
    """
    source = call.value(call.args[0])
    moved = (tuple(call.args[1]), tuple(call.args[2])) != (source.shape, tuple(source.stride))
    if moved or call.arg("storage_offset") or call.is_node:
        call.freeze_inputs("viewed through other strides")
        call.set(())
    else:
        call.set(source.fields)


@rule("unsqueeze", moves=True)
def unsqueeze(call: Call) -> None:
    """A new axis of size 1 carries no labels."""
    source = call.value(call.args[0])
    axis = call.args[1] % (len(source.shape) + 1)
    call.set([np.expand_dims(field, axis) for field in source.fields])


@rule("squeeze", moves=True)
def squeeze(call: Call) -> None:
    """Axes of size 1 carry no labels and go."""
    source = call.value(call.args[0])
    rank = len(source.shape)
    dims = call.args[1] if len(call.args) > 1 else list(range(rank))
    axes = {axis % rank for axis in (dims if isinstance(dims, Sequence) else [dims])}
    keep = [axis for axis in range(rank) if not (axis in axes and source.shape[axis] == 1)]
    call.set([field.reshape([field.shape[axis] for axis in keep]) for field in source.fields])


@rule("expand")
def expand(call: Call) -> None:
    """A broadcast axis repeats one value: any length will do, so it gets labels of its own."""
    source, shape = call.value(call.args[0]), call.shape()
    lead = len(shape) - len(source.shape)
    fields = [field.reshape((1,) * lead + field.shape) for field in source.fields]
    for axis, size in enumerate(shape):
        if size > 1 and (axis < lead or source.shape[axis - lead] == 1):
            fields.append(along(call.space.fresh(size, soft=True), axis, len(shape)))
    call.set(fields)


@rule("repeat")
def repeat(call: Call) -> None:
    """``out`` is the tensor tiled: labels are tiled alike; an axis of size 1 repeats one value, as in ``expand``."""
    source, shape = call.value(call.args[0]), call.shape()
    lead = len(shape) - len(source.shape)
    sizes = (1,) * lead + source.shape
    fields = []
    for field in source.fields:
        field = field.reshape((1,) * lead + field.shape)
        fields.append(
            np.tile(field, [n // old if varied > 1 else 1 for n, old, varied in zip(shape, sizes, field.shape, strict=True)])
        )
    for axis, (new, old) in enumerate(zip(shape, sizes, strict=True)):
        if new > 1 and old == 1:
            fields.append(along(call.space.fresh(new, soft=True), axis, len(shape)))
    call.set(fields)


def _without(call: Call, fields: Sequence[Field], axis: int, text: str) -> list[Field]:
    """Fields that no longer vary along ``axis``, which the operator addresses by position."""
    why = call.reason(text)
    kept = [call.space.restrict(f, [a for a in axes_of(f) if a != axis], why) if f.shape[axis] > 1 else f for f in fields]
    return [field for field in kept if field is not None]


@rule("slice")
def slice_(call: Call) -> None:
    """``out = x[start:end:step]`` on one axis: the labels in that range.

    With a step, runs of ``step`` neighbours go together: what is kept is then found with the same step.
    """
    source = call.value(call.args[0])
    axis = call.arg("dim") % len(source.shape)
    start, end, step = call.arg("start"), call.arg("end"), call.arg("step")
    if call.open_bounds and tuple(source.shape) != call.shape():
        call.set(_without(call, source.fields, axis, "sliced to a size that varies between calls"))
        return
    if step != 1:
        for field in source.fields:
            if field.shape[axis] > 1:
                first = np.arange(field.shape[axis]) // step * step
                call.space.tie(field, field.take(first, axis))
    window = [slice(None)] * len(source.shape)
    window[axis] = slice(start, end, step)
    call.set(_cut(call, source.fields, window, axis, call.shape()[axis]))


def _cut(call: Call, fields: Sequence[Field], window: list[slice], axis: int, size: int) -> list[Field]:
    """Fields in a window on one axis. Nothing is left of it at a size of 0, and fields over others, too, narrow to those."""
    if not size:
        narrow = [
            narrowed(call, field, [axis]) if axis in axes_of(field) and len(axes_of(field)) > 1 else field for field in fields
        ]
        fields = [field for field in narrow if field is not None]
    return [field[tuple(window)] if field.shape[axis] > 1 else field for field in fields]


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "tensor_split")
def split(call: Call) -> None:
    """Consecutive ranges of one axis: each part takes the labels in its range. Parts of one size can be kept so by a policy."""
    source = call.value(call.args[0])
    axis = call.arg("dim") % len(source.shape)
    start = 0
    parts: list[list[Field]] = []
    for index, part in enumerate(call.outputs):
        size = part.shape[axis]
        window = [slice(None)] * len(source.shape)
        window[axis] = slice(start, start + size)
        parts.append(_cut(call, source.fields, window, axis, size))
        call.set(parts[-1], index)
        start += size
    if len({part.shape[axis] for part in call.outputs}) == 1 and call.choose("parts") == "equal":
        for fields in parts[1:]:
            for first, field in zip(parts[0], fields, strict=True):
                call.space.tie(first, field)


@rule("select")
def select(call: Call) -> None:
    """``out = x[i]`` on one axis: what stands at that position must stay, and is found by counting what is kept before it."""
    source = call.value(call.args[0])
    axis, index = call.args[1] % len(source.shape), call.args[2]
    why = call.reason("indexed by position")
    fields = []
    for field in source.fields:
        if field.shape[axis] == 1:
            fields.append(field)
        elif len(axes_of(field)) == 1:
            call.space.freeze(field if call.open_bounds else field.take([index], axis), why)
        else:
            rest = call.space.restrict(field, [a for a in axes_of(field) if a != axis], why)
            assert rest is not None
            fields.append(rest)
    call.set([field.squeeze(axis) for field in fields])


@rule("unbind")
def unbind(call: Call) -> None:
    """All positions of one axis, each on its own: the axis must stay; other axes shrink alike in all parts."""
    source = call.value(call.args[0])
    axis = (call.args[1] if len(call.args) > 1 else 0) % len(source.shape)
    fields = _without(call, source.fields, axis, "taken apart by position")
    for index in range(len(call.outputs)):
        call.set([field.squeeze(axis) for field in fields], index)


@rule("cat", "concat")
def cat(call: Call) -> None:
    """Label vectors are concatenated along the axis and tied along the others; a part without labels cannot shrink."""
    tensors = [t for t in call.args[0] if t.numel() or t.dim() > 1]
    rank = len(call.shape())
    axis = call.arg("dim") % rank
    fixed_part = call.reason("concatenated beside a tensor that cannot shrink")
    values = [_narrowed_at(call, call.value(t), axis) for t in tensors]
    others = _other_axes(call, values, axis)
    if not any(value.on(axis) is not None for value in values):
        call.set(others)
        return
    parts = []
    for value in values:
        field = value.on(axis)
        if field is None:
            atoms = call.space.fresh(value.shape[axis], soft=True)
            call.space.freeze(atoms, fixed_part)
            field = along(atoms, axis, rank)
        parts.append(field)
    call.set([np.concatenate(parts, axis), *others])


def _narrowed_at(call: Call, value: Value, axis: int) -> Value:
    """A part whose field along the axis varies along no other."""
    wide = value.on(axis)
    if wide is None or len(axes_of(wide)) == 1:
        return value
    fields = [narrowed(call, field, [axis]) if field is wide else field for field in value.fields]
    return Value(value.shape, tuple(field for field in fields if field is not None))


def _other_axes(call: Call, values: Sequence[Value], axis: int) -> tuple[Field, ...]:
    why = call.reason("concatenated beside a tensor that cannot shrink")
    off = [Value(v.shape, tuple(field for field in v.fields if field.shape[axis] == 1)) for v in values]
    off = settled(call, off, len(call.shape()))
    fixed = {a for v in off for a, size in enumerate(v.shape) if a != axis and size > 1 and a not in v.labelled}
    return call.space.merge([field for value in off for field in value.fields], fixed, why)


@rule("stack")
def stack(call: Call) -> None:
    """A new axis of fixed length; labels of the parts are tied at equal positions."""
    axis = call.arg("dim") % len(call.shape())
    values = [call.value(t) for t in call.args[0]]
    why = call.reason("stacked beside a tensor that cannot shrink")
    fields = call.space.join(settled(call, values, len(values[0].shape)), values[0].shape, why)
    call.set([np.expand_dims(field, axis) for field in fields])


@rule("view_as_complex")
def view_as_complex(call: Call) -> None:
    """The last axis, of real and imaginary part, becomes one complex number: both parts go together."""
    source = call.value(call.args[0])
    call.set([field.squeeze(-1) for field in _without(call, source.fields, len(source.shape) - 1, "the parts of complex numbers")])


@rule("view_as_real")
def view_as_real(call: Call) -> None:
    """A new last axis of real and imaginary part."""
    call.set([np.expand_dims(field, -1) for field in call.value(call.args[0]).fields])


@rule("tril", "triu")
def triangle(call: Call) -> None:
    """One triangle of the last two axes is zeroed by position, so these must stay."""
    source = call.value(call.args[0])
    fields = list(source.fields)
    for axis in (len(source.shape) - 2, len(source.shape) - 1):
        fields = _without(call, fields, axis, "zeroed by position")
    call.set(fields)


@rule("flip")
def flip(call: Call) -> None:
    """Order reversed along some axes: labels are reversed alike."""
    source = call.value(call.args[0])
    rank = len(source.shape)
    call.set([np.flip(f, tuple(d % rank for d in call.args[1] if f.shape[d % rank] > 1)) for f in source.fields])


@rule("channel_shuffle", "native_channel_shuffle", moves=True)
def channel_shuffle(call: Call) -> None:
    """``view(n, g, c / g, ...)``, the two exchanged, flattened: the labels of the channel axis are permuted alike."""
    source, groups = call.value(call.args[0]), call.args[1]
    batch, vector = channel_labels(call, source)
    if vector is not None:
        table = vector.reshape(groups, -1)
        spread = any(len(axes_of(field)) > 1 for field in source.fields)
        if table.shape[1] == 1:
            call.scalar("groups", vector)  # nothing moves, and there are as many groups as channels
        elif spread or np.unique(vector).size < vector.size:
            call.space.tie(table, table[:1])  # no permutation of distinct atoms, which is redone: the groups shrink alike
        batch = [*batch, along(table.T.reshape(-1), 1, len(source.shape))]
    call.set(batch)


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> None:
    """``out[n, c, h r + i, w r + j] = x[n, c r^2 + i r + j, h, w]``: the r^2 channels of an output channel are one unit."""
    source = call.value(call.args[0])
    axis = len(source.shape) - 3
    batch, vector = channel_labels(call, source, axis)
    if vector is not None:
        table = vector.reshape(-1, call.args[1] ** 2)
        call.space.tie(table, table[:, :1])
        batch = [*batch, along(table[:, 0], axis, len(source.shape))]
    call.set(batch)


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> None:
    """``out[n, c r^2 + i r + j, h, w] = x[n, c, h r + i, w r + j]``: each label is repeated r^2 times."""
    source = call.value(call.args[0])
    axis = len(source.shape) - 3
    batch, vector = channel_labels(call, source, axis)
    if vector is not None:
        batch = [*batch, along(np.repeat(vector, call.args[1] ** 2), axis, len(source.shape))]
    call.set(batch)


@rule("roll")
def roll(call: Call) -> None:
    """A rotation by a fixed distance along an axis fixes the axis; other axes pass."""
    source = call.value(call.args[0])
    rank = len(source.shape)
    dims = call.arg("dims") or list(range(rank))
    fields = list(source.fields)
    for axis in dims if isinstance(dims, Sequence) else [dims]:
        fields = _without(call, fields, axis % rank, "rolled by a fixed distance")
    call.set(fields)


@rule("constant_pad_nd")
def pad(call: Call) -> None:
    """Padding on a labelled axis gets labels of its own, so that it shrinks with what it is added to."""
    source = call.value(call.args[0])
    rank = len(source.shape)
    amounts = list(call.args[1])
    before, after = [0] * rank, [0] * rank
    for index in range(len(amounts) // 2):
        before[rank - 1 - index], after[rank - 1 - index] = amounts[2 * index], amounts[2 * index + 1]
    fields = []
    for original in source.fields:
        padded = [a for a in axes_of(original) if before[a] or after[a]]
        field: Field | None = original
        if len(axes_of(original)) > 1 and padded:
            field = call.space.restrict(original, padded[:1], call.reason("padded on two prunable axes"))
        if field is not None:
            fields.append(_pad_field(call, field, before, after))
    call.set(fields)


def _pad_field(call: Call, field: Field, before: list[int], after: list[int]) -> Field:
    for axis in axes_of(field):
        size, rank = field.shape[axis], field.ndim
        low, high = max(0, -before[axis]), size - max(0, -after[axis])
        window = [slice(None)] * rank
        window[axis] = slice(low, high)
        parts = [field[tuple(window)]]
        if before[axis] > 0:
            parts.insert(0, along(call.space.fresh(before[axis], soft=True), axis, rank))
        if after[axis] > 0:
            parts.append(along(call.space.fresh(after[axis], soft=True), axis, rank))
        field = np.concatenate(parts, axis)
    return field


@rule("im2col")
def unfold(call: Call) -> None:
    """``out[n, c K + k, l] = x[n, c, place l shifted by k]``: each label is repeated for the K places of the kernel."""
    source = call.value(call.args[0])
    axis = len(source.shape) - 3
    batch, vector = channel_labels(call, source, axis)
    fields = [field.squeeze(-1) for field in batch]
    if vector is not None:
        fields.append(along(np.repeat(vector, call.shape()[axis] // vector.size), axis, axis + 2))
    call.set(fields)


@rule("col2im")
def fold(call: Call) -> None:
    """The reverse of ``im2col``, places added up: the K rows of an output channel are one unit."""
    source = call.value(call.args[0])
    axis = len(source.shape) - 2
    batch, vector = channel_labels(call, source, axis)
    fields = [np.expand_dims(field, -1) for field in batch]
    if vector is not None:
        table = vector.reshape(call.shape()[axis], -1)
        call.space.tie(table, table[:, :1])
        fields.append(along(table[:, 0], axis, axis + 3))
    call.set(fields)


@rule("unfold")
def windows(call: Call) -> None:
    """Windows that slide along one axis, put on a new last one: the axis must stay, others pass."""
    source = call.value(call.args[0])
    fields = _without(call, source.fields, call.args[1] % max(1, len(source.shape)), "cut into windows")
    call.set([np.expand_dims(field, -1) for field in fields])


@rule("unfold_backward")
def added_up(call: Call) -> None:
    """The reverse of ``unfold``, windows added up: the axis and that of the windows must stay, others pass."""
    source, axis = call.value(call.args[0]), call.args[2] % len(call.shape())
    fields = _without(call, _without(call, source.fields, axis, "cut into windows"), len(source.shape) - 1, "cut into windows")
    call.set([field.squeeze(-1) for field in fields])
