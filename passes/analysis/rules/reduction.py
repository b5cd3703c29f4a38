"""Reductions: a reduced label ends there. Sums are exact as they are; other statistics are taken over the kept channels."""

from __future__ import annotations

from collections.abc import Sequence

from graphprune.channels.labels import Field, Value, axes_of
from graphprune.passes.analysis.rules.normalisation import note_statistics
from graphprune.rules import Call, rule


def _axes(call: Call, rank: int) -> set[int]:
    dims = call.arg("dim")
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return set(range(rank))
    return {d % rank for d in (dims if isinstance(dims, Sequence) else [dims])} if rank else set()


def _surviving(call: Call, value: Value, reduced: set[int], keepdim: bool) -> list[Field]:
    """Fields off the reduced axes, in the output's rank."""
    fields = [field for field in value.fields if not set(axes_of(field)) & reduced]
    if keepdim:
        return fields
    keep = [axis for axis in range(len(value.shape)) if axis not in reduced]
    return [field.reshape([field.shape[axis] for axis in keep]) for field in fields]


def _narrow(call: Call, value: Value, reduced: set[int], inner: bool) -> Value:
    """Fields over reduced and other axes keep to the others, or (``inner``) to the reduced ones."""
    why = call.reason("reduced over part of its axes")
    fields = []
    for field in value.fields:
        axes = set(axes_of(field))
        mixed = axes & reduced and axes - reduced
        narrowed = call.space.restrict(field, axes & reduced if inner else axes - reduced, why) if mixed else field
        assert narrowed is not None
        fields.append(narrowed)
    if any(new is not old for new, old in zip(fields, value.fields, strict=True)):
        call.recorder.narrow_value(call.args[0], fields)  # for its other readers
    return Value(value.shape, tuple(fields))


def _reduce(call: Call, statistic: str | None) -> None:
    value = call.value(call.args[0])
    reduced = _axes(call, len(value.shape))
    value = _narrow(call, value, reduced, statistic is None and call.choose("heads") == "head_dim")
    if statistic:
        for field in value.fields:
            if set(axes_of(field)) <= reduced:
                note_statistics(call, field, statistic)
    for index in range(len(call.outputs)):
        keepdim = call.outputs[index].dim() == len(value.shape)
        call.set(_surviving(call, value, reduced, keepdim), index)


@rule("sum", "nansum", "linalg_vector_norm", "norm", "count_nonzero")
def total(call: Call) -> None:
    """``out = sum x`` over axes (or a norm): what is removed contributes nothing, as when it is masked to zero."""
    _reduce(call, None)


@rule("mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "logsumexp", "aminmax")
def statistic(call: Call) -> None:
    """A mean, variance or extremum over axes: taken over the kept channels, and noted as a changed statistic.

    Where the indices of a ``max`` are read, its axis must stay.
    """
    if len(call.outputs) == 2 and call.name in ("aten::max", "aten::min") and call.is_read(1):
        _positional(call)
        return
    _reduce(call, call.name.partition("::")[2])


@rule("equal")
def compared(call: Call) -> None:
    """One truth about all elements, which any of them may decide: they must stay."""
    call.freeze_inputs("compared as a whole")


@rule("argmax", "argmin", "any", "all", "prod", "median", "mode", "sort", "topk", "argsort", "kthvalue")
def _positional(call: Call) -> None:
    """Positions or orders along axes: those axes must stay, the others pass."""
    value = call.value(call.args[0])
    rank = len(value.shape)
    dims = call.arg("dim")
    reduced = set(range(rank)) if dims is None else {int(d) % rank for d in (dims if isinstance(dims, Sequence) else [dims])}
    why = call.reason("ordered or indexed along its axis")
    fields = [call.space.restrict(f, set(axes_of(f)) - reduced, why) for f in value.fields]
    narrowed = Value(value.shape, tuple(field for field in fields if field is not None))
    for index, output in enumerate(call.outputs):
        call.set(_surviving(call, narrowed, reduced, output.dim() == rank), index)
