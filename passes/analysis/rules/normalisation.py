"""Normalisations: affine parameters are tied to their channels; statistics over channels are taken over the kept ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from graphprune.channels.labels import Field, Value, along, axes_of
from graphprune.passes.analysis.rules.convolution import channel_labels
from graphprune.rules import Call, rule

#: ATen operators that normalise each channel by statistics of its own, or by those that are kept for it.
BATCH_NORMS: Final = (
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit_functional",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "batch_norm_with_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
)


def note_statistics(call: Call, field: Field, what: str) -> Field | None:
    """A statistic over these labels: noted, or frozen (None) by policy ``statistics``."""
    why = call.reason(f"{what} over prunable channels")
    if call.choose("statistics") == "freeze":
        call.space.freeze(field, why)
        return None
    call.space.note_statistics(field, why)
    return field


def _channels_with_parameters(call: Call, value: Value) -> tuple[list[Field], Field | None]:
    """Fields of the batch, and the labels of the channels, tied to those of every per-channel parameter and statistic."""
    why = call.reason("normalised with parameters that cannot shrink")
    batch, vector = channel_labels(call, value)
    for parameter in [t for t in call.inputs()[1:] if t.dim() == 1]:
        labels = call.value(parameter).vector(0)
        call.space.match(vector, labels, why)
        vector = labels if vector is None else vector
    return batch, vector


@rule(*BATCH_NORMS, keeps_sizes=True)
def batch_norm(call: Call) -> None:
    """``out[n, c] = (x[n, c] - mean[c]) / sqrt(var[c] + eps) * w[c] + b[c]``: everything indexed by c is tied.

    Statistics of the input itself (a kernel that is standardised over what it reads) are taken over what is kept of its other axes.
    """
    value = call.value(call.args[0])
    own = call.arg("training", "with_update" in call.name)
    others = [field for field in value.fields if field.shape[1] == 1]
    passed = [field for field in others if not own or note_statistics(call, field, "a batch norm") is not None]
    _, vector = _channels_with_parameters(call, replace(value, fields=tuple(f for f in value.fields if f.shape[1] > 1)))
    call.set(passed if vector is None else [*passed, along(vector, 1, len(value.shape))])
    for index in range(1, len(call.outputs)):
        saved = call.outputs[index]
        call.set([along(vector, 0, 1)] if vector is not None and saved.shape == (vector.size,) else [], index)


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(call: Call) -> None:
    """Statistics over the last axes, per-element affine: fields on those axes are tied to the affine parameters.

    A field over normalised and other axes (heads x head_dim) keeps to the others, whole heads, or by policy ``heads`` to
    the normalised ones.
    """
    value = call.value(call.args[0])
    rank = len(value.shape)
    inner = set(range(rank - len(call.args[1]), rank))
    why = call.reason("normalised with parameters that cannot shrink")
    fields = []
    for field in value.fields:
        axes = set(axes_of(field))
        kept: Field | None = field
        if axes & inner and axes - inner:
            kept = call.space.restrict(field, axes - inner if call.choose("heads") == "whole" else axes & inner, why)
        if kept is not None and set(axes_of(kept)) & inner:
            kept = note_statistics(call, kept, "a norm")
        if kept is not None:
            fields.append(kept)
    parameters = [call.value(t) for t in list(call.inputs())[1:]]
    call.set(call.space.join([Value(value.shape, tuple(fields)), *parameters], value.shape, why))
    for index in range(1, len(call.outputs)):
        saved = call.outputs[index]
        call.set([f for f in fields if not set(axes_of(f)) & inner] if saved.dim() == rank else [], index)


@rule("native_group_norm")
def group_norm(call: Call) -> None:
    """Statistics over the channels of each of ``group`` groups. ``within`` (policy ``norm_groups``): the same positions
    of every group go, statistics over the kept; ``whole``: groups go and ``num_groups`` follows, statistics unchanged."""
    value, groups = call.value(call.args[0]), int(call.arg("group"))
    batch, vector = _channels_with_parameters(call, value)
    if vector is not None:
        table = vector.reshape(groups, -1)
        if table.shape[1] == 1 or (groups > 1 and call.choose("norm_groups") == "whole"):
            call.space.tie(table, table[:, :1])
            call.scalar("num_groups", table[:, 0])
        else:
            call.space.tie(table, table[:1])
            vector = note_statistics(call, vector, "a group norm")
    call.set(batch if vector is None else [*batch, along(vector, 1, len(value.shape))])
    for index in range(1, len(call.outputs)):
        call.set((), index)


@rule("_softmax", "softmax", "_log_softmax", "log_softmax", "_safe_softmax")
def softmax(call: Call) -> None:
    """``out = exp(x) / sum exp(x)`` along an axis: it must stay, or by policy ``softmax`` the kept channels on it are weighed
    against each other. Of a field over several axes those off the axis may shrink in both cases."""
    value = call.value(call.args[0])
    axis = call.args[1] % len(value.shape) if value.shape else 0
    own = next((field for field in value.fields if axes_of(field) == (axis,)), None)
    if own is not None and call.choose("softmax") == "allow" and note_statistics(call, own, "a softmax") is not None:
        call.set(value.fields)
    else:
        along_axis(call)


@rule("cumsum", "cumprod", "logcumsumexp")
def along_axis(call: Call) -> None:
    """Each output depends on positions along one axis (cumulative sums): the axis must stay, others pass."""
    value = call.value(call.args[0])
    axis = call.args[1] % len(value.shape) if value.shape else 0
    why = call.reason("normalised or accumulated along its axis")
    fields = [call.space.restrict(f, [a for a in axes_of(f) if a != axis], why) for f in value.fields]
    call.set([field for field in fields if field is not None])


@rule("_fft_c2c", "_fft_r2c", "_fft_c2r")
def transformed(call: Call) -> None:
    """Fourier transforms along some axes: these must stay, others pass."""
    value = call.value(call.args[0])
    rank = len(value.shape)
    why = call.reason("transformed along its axis")
    over = {axis % rank for axis in call.args[1]}
    fields = [call.space.restrict(f, set(axes_of(f)) - over, why) for f in value.fields]
    call.set([field for field in fields if field is not None])


@rule("_weight_norm_interface")
def weight_norm(call: Call) -> None:
    """``out = v * g / |v|``, the norm over all axes but one: labels pass, and ``g`` is tied along that axis.

    What is removed adds nothing to a norm, as when it is masked to zero.
    """
    direction, length = (call.value(tensor) for tensor in call.args[:2])
    axis = call.arg("dim") % len(direction.shape)
    why = call.reason("scaled by a tensor that cannot shrink")
    call.space.match(direction.vector(axis), length.vector(axis), why)
    call.set(direction.fields)
    call.set(length.fields, 1)
