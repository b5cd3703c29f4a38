"""Look-ups: an axis that data index into must stay; the others pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graphprune.channels.labels import Field, Reason, Value, axes_of
from graphprune.passes.analysis.rules.wide import settled
from graphprune.rules import MASKS, Call, rule


@rule("embedding")
def embedding(call: Call) -> None:
    """``out[..., e] = weight[index[...], e]``: the vocabulary is indexed by data, e passes."""
    if call.args[1].is_floating_point():
        raise TypeError(f"an index must be of an integer dtype, not {str(call.args[1].dtype).removeprefix('torch.')}")
    weight = call.value(call.args[0])
    vocabulary, width = weight.vector(0), weight.vector(1)
    if vocabulary is not None:
        call.space.freeze(vocabulary, call.reason("indexed by data"))
    call.freeze_inputs("used as an index", call.args[1])
    rank = len(call.shape())
    call.set([] if width is None else [width.reshape((1,) * (rank - 1) + (-1,))])


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> None:
    """``out[bag, e]`` sums, averages or compares ``weight[i, e]`` over the bag's indices: the vocabulary stays, e passes."""
    weight, why = call.value(call.args[0]), call.reason("indexed by data")
    given = [field for tensor in call.inputs()[1:] for field in call.value(tensor).fields]
    vocabulary, width = weight.vector(0), weight.vector(1)
    for field in given if vocabulary is None else [vocabulary, *given]:
        call.space.freeze(field, why)
    call.set([] if width is None else [width.reshape(1, -1)])
    for index in range(1, len(call.outputs)):
        call.set([], index)


@rule("index_select")
def index_select(call: Call) -> None:
    """``out = x[.., index, ..]``: a constant index takes the labels that it names; any other fixes its axis."""
    value, axis, index = call.value(call.args[0]), call.args[1], call.args[2]
    why = call.reason("indexed by data")
    call.freeze_inputs("used as an index", index)
    if value.shape:
        call.set(_selected(call, value, axis % len(value.shape), index, why))


@rule("index")
def index(call: Call) -> None:
    """``x[i, j, :, ...]``: indexed axes must stay; the result's index axes stand where the first one was (or in front).

    A mask indexes as many axes as it has, and makes one of them. One constant index takes the labels that it names.
    """
    value, why = call.value(call.args[0]), call.reason("indexed by data")
    indexed, width = _indexed(call, call.args[1], why.text)
    given = [tensor for tensor in call.args[1] if tensor is not None]
    if len(given) == len(indexed) == 1 and given[0].dtype not in MASKS and given[0].dim() == 1:
        call.set(_selected(call, value, indexed[0], given[0], why))
        return
    fields = [call.space.restrict(f, [a for a in axes_of(f) if a not in indexed], why) for f in value.fields]
    lead = _lead(indexed)
    call.set([_replace_axes(field, indexed, lead, width) for field in fields if field is not None])


def _selected(call: Call, value: Value, axis: int, index: torch.Tensor, why: Reason) -> list[Field]:
    """Fields where an index takes them along an axis: by a constant that the rewriter can count anew, or of an axis that stays."""
    places = call.index(index) if call.is_node or call.recorder.calls("getitem") else None
    if places is None or len(places) < 2:
        fields = [call.space.restrict(field, [a for a in axes_of(field) if a != axis], why) for field in value.fields]
        return [field for field in fields if field is not None]
    places = places % value.shape[axis]
    return [field.take(places, axis) if field.shape[axis] > 1 else field for field in value.fields]


def _indexed(call: Call, indices: Sequence[torch.Tensor | None], text: str) -> tuple[list[int], int]:
    """The axes that are indexed, and how many they become; the indices themselves must stay."""
    indexed: list[int] = []
    axis = width = 0
    for tensor in indices:
        if tensor is None:
            axis += 1
            continue
        call.freeze_inputs(text, tensor)
        axes, made = (tensor.dim(), 1) if tensor.dtype in MASKS else (1, tensor.dim())
        indexed += range(axis, axis + axes)
        axis, width = axis + axes, max(width, made)
    return indexed, width


def _lead(indexed: list[int]) -> int:
    """Where the axes stand that indices make: where the first of adjacent ones was, or in front."""
    return indexed[0] if indexed == list(range(indexed[0], indexed[-1] + 1)) else 0


@rule("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave")
def selected(call: Call) -> None:
    """Places of elements, or elements, that data choose: how many is for them to say."""
    call.freeze_inputs("indexed by data")
    call.set(())


@rule("_pack_padded_sequence")
def pack(call: Call) -> None:
    """Rows of sequences one after another, as many as their lengths say: behind the first two axes all pass."""
    _repacked(call, 2, 1)


@rule("_pad_packed_sequence")
def unpack(call: Call) -> None:
    """The sequences again, and their lengths."""
    _repacked(call, 1, 2)


def _repacked(call: Call, old: int, new: int) -> None:
    """Other axes in front, in which data say what stands where."""
    why = call.reason("indexed by data")
    call.freeze_inputs("indexed by data", call.args[1])
    value = call.value(call.args[0])
    fields = [call.space.restrict(field, [axis for axis in axes_of(field) if axis >= old], why) for field in value.fields]
    call.set([field.reshape((1,) * new + field.shape[old:]) for field in fields if field is not None])


def _replace_axes(field: Field, indexed: list[int], lead: int, width: int) -> Field:
    rest = [size for axis, size in enumerate(field.shape) if axis not in indexed]
    return field.reshape([*rest[:lead], *[1] * width, *rest[lead:]])


@rule("gather")
def gather(call: Call) -> None:
    """``out[i, j, k] = x[i, index[i, j, k], k]``: the gathered axis must stay, the others are tied to those of the index."""
    source, index = call.value(call.args[0]), call.value(call.args[2])
    rank, axis = len(source.shape), call.args[1] % max(1, len(source.shape))
    why = call.reason("indexed by data")
    cut = {axis} | {a for a in range(rank) if source.shape[a] != index.shape[a]}  # the index may be shorter than the axis
    kept = [call.space.restrict(field, set(axes_of(field)) - cut, why) for field in source.fields]
    shape = tuple(1 if a in cut else n for a, n in enumerate(source.shape))
    passing = Value(shape, tuple(field for field in kept if field is not None))
    call.set(call.space.join(settled(call, [passing, index], rank), call.shape(), why))


@rule("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_reduce")
def scatter(call: Call) -> None:
    """``out[index[i, j], j] += src[i, j]`` on a copy of x: the axis that is scattered into must stay, the others are tied."""
    x, index, given = call.args[0], call.args[2], call.args[3]
    rank, axis = max(1, x.dim()), call.args[1] % max(1, x.dim())
    source = given if isinstance(given, torch.Tensor) and given.dim() else None
    why = call.reason("written at places that data give")
    along = [tensor for tensor in (x, source, index if "::scatter" in call.name else None) if tensor is not None and tensor.dim()]
    cut = {axis} | {a for a in range(rank) if len({tensor.shape[a] for tensor in along}) > 1}  # fewer than there are of x
    values = []
    for tensor in along:
        value = call.value(tensor)
        kept = [call.space.restrict(field, set(axes_of(field)) - cut, why) for field in value.fields]
        shape = tuple(1 if a in cut else n for a, n in enumerate(value.shape))
        values.append(Value(shape, tuple(field for field in kept if field is not None)))
    if index.dim() == 1 and "::index" in call.name:
        call.freeze_inputs("used as an index", index)
    met = call.reason("combined element by element with a tensor that cannot shrink")
    call.set(call.space.join(settled(call, values, rank), call.shape(), met))


@rule("index_put")
def index_put(call: Call) -> None:
    """``x[mask] = number`` writes element by element; ``x[i, :] = y`` at places that must stay, and the other axes are tied."""
    value, indices, number = call.value(call.args[0]), call.args[1], call.args[2]
    mask = indices[0]
    if len(indices) == 1 and mask.dtype.itemsize == 1 and number.numel() == 1:
        chosen = call.value(mask)
        tail = (1,) * (len(value.shape) - len(chosen.shape))
        spread = Value(chosen.shape + tail, tuple(field.reshape(field.shape + tail) for field in chosen.fields))
        why = call.reason("written where a mask that cannot shrink says")
        call.set(call.space.join(settled(call, [value, spread], len(value.shape)), value.shape, why))
        return
    why = call.reason("written at places that data give")
    indexed, width = _indexed(call, indices, why.text)
    rest = [axis for axis in range(len(value.shape)) if axis not in indexed]
    lead, written = _lead(indexed), call.value(number)
    axes = [*rest[:lead], *[None] * width, *rest[lead:]]  # of x, for those of what is written
    own = axes[len(axes) - len(written.shape) :]
    values = [_placed(call, value, range(len(value.shape)), rest, why), _placed(call, written, own, rest, why)]
    met = call.reason("combined element by element with a tensor that cannot shrink")
    call.set(call.space.join(settled(call, values, len(value.shape)), value.shape, met))


def _placed(call: Call, value: Value, axes: Sequence[int | None], rest: list[int], why: Reason) -> Value:
    """A value whose axes are these of the tensor that is written to; it may shrink along ``rest`` only."""
    rank = call.args[0].dim()

    def placed(sizes: Sequence[int]) -> tuple[int, ...]:
        found = {axis: size for axis, size in zip(axes, sizes, strict=True) if axis in rest}
        return tuple(found.get(axis, 1) for axis in range(rank))

    kept = [call.space.restrict(field, [a for a in axes_of(field) if axes[a] in rest], why) for field in value.fields]
    return Value(placed(value.shape), tuple(field.reshape(placed(field.shape)) for field in kept if field is not None))
