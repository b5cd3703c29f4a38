"""Pooling, resampling and spatial padding: each channel by itself, so channel labels pass and space cannot shrink."""

from __future__ import annotations

from graphprune.channels.labels import Field, Value, along
from graphprune.passes.analysis.rules.convolution import channel_labels
from graphprune.rules import Call, rule


@rule(
    "max_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d", "max_pool3d",
    "mkldnn_max_pool2d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "adaptive_max_pool1d", "fractional_max_pool2d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d",
)  # fmt: skip
def per_channel(call: Call) -> None:
    """``out[n, c, ...] = f(x[n, c, ...])``: labels of batch and channels pass, those of space are frozen.

    An unbatched input (rank one less) has its channels first; which axes are space follows from the operator's name.
    """
    value = call.value(call.args[0])
    rank = len(value.shape)
    space = int(next(c for c in call.name.partition("::")[2] if c.isdigit() and c != "0"))
    axis = rank - space - 1
    batch, vector = channel_labels(call, value, axis)
    for index, output in enumerate(call.outputs):
        fields: list[Field] = [*batch] if vector is None else [*batch, along(vector, axis, output.dim())]
        call.set(fields, index)


@rule("grid_sampler_2d", "grid_sampler_3d", "grid_sampler", "_grid_sampler_2d_cpu_fallback")
def sampled(call: Call) -> None:
    """``out[n, c, ...]`` is read from ``x[n, c]`` at places that data give: channels pass, the places' axes must stay."""
    batch, vector = channel_labels(call, call.value(call.args[0]))
    why = call.reason("sampled at places")
    for field in [*batch, *call.value(call.args[1]).fields]:
        call.space.freeze(field, why)
    call.set([] if vector is None else [along(vector, 1, len(call.shape()))])


@rule("max_unpool2d", "max_unpool3d")
def unpooled(call: Call) -> None:
    """``out[n, c, i[n, c, p]] = x[n, c, p]``: places in space are data, of the same samples and channels, whose labels are tied."""
    x, places = (call.value(tensor) for tensor in call.args[:2])
    fields = call.space.join([x, places], x.shape, call.reason("unpooled with a tensor that cannot shrink"))
    rank, axis = len(x.shape), len(x.shape) - len(call.args[2]) - 1
    batch, vector = channel_labels(call, Value(x.shape, tuple(fields)), axis)
    call.set(batch if vector is None else [*batch, along(vector, axis, rank)])


@rule("affine_grid_generator")
def places(call: Call) -> None:
    """Places from matrices: every element of a matrix counts."""
    call.freeze_inputs("a matrix that places are computed with")
    call.set(())
