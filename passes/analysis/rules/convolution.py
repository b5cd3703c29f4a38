"""Convolutions: the weight's axes are the channels; groups are cut within each, or whole."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

from graphprune.channels.labels import Field, Value, along, axes_of
from graphprune.passes.analysis.rules.contraction import contracted
from graphprune.rules import Call, rule

KERNEL = "the extent of a convolution kernel"


def channel_labels(call: Call, value: Value, axis: int = 1, apart: Collection[int] = ()) -> tuple[list[Field], Field | None]:
    """A batched input's fields off the channel axis (batch only), and the 1-D labels of the channel axis.

    Spatial axes cannot shrink, but for those ``apart``: a field over channels and space keeps to channels.
    """
    batch: list[Field] = []
    vector: Field | None = None
    for field in value.fields:
        axes = axes_of(field)
        if axes == (axis,):
            vector = field.reshape(-1)
            continue
        allowed = [axis] if axis in axes else [a for a in axes if a < axis or a in apart]
        narrowed = call.space.restrict(field, allowed, call.reason("its extent in space or batch cannot shrink"))
        if narrowed is None:
            continue
        if axis in axes:
            vector = narrowed.reshape(-1)
        else:
            batch.append(narrowed)
    return batch, vector


@rule("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "convolution_overrideable")
def convolution(call: Call) -> None:
    """``out[n, o] = sum_i x[n, g(o) I + i] * w[o, i] + b[o]`` (transposed: ``w[i, o]``), ``I`` inputs to each of ``groups``.

    One group: input channels are tied to the weight's input axis; the output takes the labels of its output axis. Along axes
    on which the kernel is a single place, every place stands for itself and its labels pass. An axis that the kernel covers
    as a whole is contracted as channels are.
    """
    inputs, weight = call.args[0], call.args[1]
    call.check_dtypes(inputs, weight)
    source, kernel = call.value(inputs), call.value(weight)
    transposed, groups = bool(call.arg("transposed", False)), int(call.arg("groups"))
    apart, covered = (set[int](), set[int]()) if transposed else _places(call)
    batch, channels = channel_labels(call, source, apart=apart | covered)
    kernel = _kernel(call, kernel, 1 if transposed else 0)
    extents: list[Field | int] = []
    for axis in range(2, len(kernel.shape)):
        batch, inner = contracted(call, Value(source.shape, tuple(batch)), axis) if axis in covered else (batch, None)
        call.space.match(inner, kernel.vector(axis), call.reason(KERNEL))
        extents.append(kernel.shape[axis] if inner is None else inner)
    first, second = kernel.vector(0), kernel.vector(1)
    in_axis, out_axis = (first, second) if transposed else (second, first)
    if groups == 1:
        call.space.match(channels, in_axis, call.reason("convolved over channels that cannot shrink"))
        out = out_axis
    else:
        out = _grouped(call, channels, kernel, groups, transposed)
    bias = call.arg("bias")
    if bias is not None:
        call.space.match(out, call.value(bias).vector(0), call.reason("biased by a tensor that cannot shrink"))
    shape = call.shape()
    fields = [*batch] if out is None else [*batch, along(out, 1, len(shape))]
    call.set(fields)
    if transposed:
        # Each input element meets taps x (outputs of its group): count from the input side.
        ins: Field | int = inputs.shape[1] if channels is None else channels
        outs: Field | int = weight.shape[1] if second is None else second
        call.macs(prod(weight.shape[2:]) * (inputs.numel() // inputs.shape[1]), ins, outs)
    else:
        call.macs(*extents, *call.volume(fields), weight.shape[1] if second is None else second)


def _places(call: Call) -> tuple[set[int], set[int]]:
    """Axes of space along which an output depends on its own place alone, and those that the kernel covers as a whole."""
    extents = tuple(call.args[1].shape[2:])
    strides, paddings = (tuple(call.arg(name)) for name in ("stride", "padding"))
    options = zip(strides * (len(extents) // len(strides)), paddings * (len(extents) // len(paddings)), strict=True)
    bare = [(axis, extents[axis - 2], stride) for axis, (stride, padding) in enumerate(options, 2) if padding == 0]
    apart = {axis for axis, extent, stride in bare if extent == stride == 1}
    return apart, {axis for axis, extent, _ in bare if extent == call.args[0].shape[axis]} - apart


def _kernel(call: Call, kernel: Value, out_axis: int) -> Value:
    """A weight that is made of one axis (a bank of flat kernels) shrinks along its outputs, or else along its inputs."""
    why = call.reason("one axis holds several of a convolution kernel")
    fields = []
    for field in kernel.fields:
        axes = axes_of(field)
        axis = out_axis if out_axis in axes else axes[0]
        fields.append(call.space.restrict(field, [axis], why) if len(axes) > 1 else field)
    return Value(kernel.shape, tuple(field for field in fields if field is not None))


def _grouped(call: Call, channels: Field | None, kernel: Value, groups: int, transposed: bool) -> Field | None:
    """Tie input, weight and output of a grouped convolution; returns the output's labels.

    ``whole`` groups: the inputs and outputs of one group are one unit, and ``groups`` follows. ``within``: the same
    positions of every group. A group with a single input or output (depthwise) can only go whole.
    """
    first, second = kernel.vector(0), kernel.vector(1)
    fixed = call.reason("convolved in groups over channels that cannot shrink")
    if first is None:
        first = call.space.fresh(kernel.shape[0], soft=True)
        call.space.freeze(first, fixed)
    per_group = first.reshape(groups, -1)
    outs = kernel.shape[1] if transposed else kernel.shape[0] // groups
    ins = kernel.shape[0] // groups if transposed else kernel.shape[1]
    if ins == 1 or outs == 1 or call.choose("conv_groups") == "whole":
        if second is not None:
            call.space.freeze(second, call.reason("the width of one convolution group, where groups go whole"))
        one = per_group[:, :1]
        call.space.tie(per_group, one)
        call.scalar("groups", one.reshape(-1))
        if channels is None:
            call.space.freeze(first, fixed)
        else:
            call.space.tie(channels.reshape(groups, -1), one)
        return first if not transposed else one.repeat(outs, axis=1).reshape(-1)
    call.space.tie(per_group, per_group[:1])
    if transposed:
        call.space.match(channels, first, fixed)
        return None if second is None else second.reshape(1, -1).repeat(groups, axis=0).reshape(-1)
    if channels is None or second is None:
        for labels in (channels, second):
            if labels is not None:
                call.space.freeze(labels, fixed)
    else:
        call.space.tie(channels.reshape(groups, -1), second.reshape(1, -1))
    return first


@rule("torchvision::deform_conv2d")
def deformable(call: Call) -> None:
    """A convolution whose taps lie where ``offset`` says: channels as in a convolution; offsets and their mask must stay.

    Channels with offsets of their own (``offset_groups``) lose the same places in each of these groups. With several
    groups of channels none can go: the call has no attribute that could follow.
    """
    inputs, weight, offset, mask, bias = call.args[:5]
    batch, channels = channel_labels(call, call.value(inputs))
    kernel = _kernel(call, call.value(weight), 0)
    stays = [*batch, *call.value(offset).fields, *call.value(mask).fields]
    stays += [field for field in kernel.fields if axes_of(field)[0] > 1]
    first, second = kernel.vector(0), kernel.vector(1)
    if int(call.arg("groups")) > 1:
        stays += [labels for labels in (channels, first, second) if labels is not None]
    else:
        call.space.match(channels, second, call.reason("convolved over channels that cannot shrink"))
    for field in stays:
        call.space.freeze(field, call.reason("a deformable kernel's place, or in one of its groups"))
    if channels is not None:
        table = channels.reshape(int(call.arg("offset_groups")), -1)
        call.space.tie(table, table[:1])
    call.space.match(first, call.value(bias).vector(0), call.reason("biased by a tensor that cannot shrink"))
    fields = [] if first is None else [along(first, 1, 4)]
    call.set(fields)
    call.macs(prod(weight.shape[2:]), *call.volume(fields), weight.shape[1] if second is None else second)
