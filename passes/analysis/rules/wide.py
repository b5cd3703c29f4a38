"""Fields over several axes (heads x head_dim) that meet fields over fewer of them: which of the axes shrinks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from graphprune.channels.labels import Field, Value, axes_of
from graphprune.rules import Call


def shrinking(call: Call, axes: Iterable[int], met: Iterable[int]) -> set[int]:
    """The axes along which a field over ``axes`` may shrink where something else holds or fixes those in ``met``.

    Policy ``heads``: ``whole`` gives way so that the outermost axis can go, ``head_dim`` so that the innermost can.
    """
    axes, met = set(axes), set(met)
    wanted = min(axes) if call.choose("heads") == "whole" else max(axes)
    return axes & met if wanted in met else axes - met


def narrowed(call: Call, field: Field, met: Iterable[int]) -> Field | None:
    """The field on its :func:`shrinking` axes only; None when it is frozen."""
    why = call.reason("met a tensor that holds one of its axes")
    return call.space.restrict(field, shrinking(call, axes_of(field), met), why)


def settled(call: Call, values: Sequence[Value], rank: int) -> list[Value]:
    """Operands that broadcast to ``rank`` axes, with no two fields that share a part of their axes only.

    A field over several axes narrows where another operand has labels on some of these; what is then without labels on
    an axis fixes that axis for the others, as any operand does.
    """
    result = list(values)
    while any(_is_wide(field) for value in result for field in value.fields):
        found = _first_overlap(result, rank)
        if found is None:
            break
        index, field, met = found
        value = result[index]
        lead = rank - len(value.shape)
        fields = [narrowed(call, item, {a - lead for a in met}) if item is field else item for item in value.fields]
        result[index] = replace(value, fields=tuple(item for item in fields if item is not None))
    return result


def _is_wide(field: Field) -> bool:
    return field.size not in field.shape


def _first_overlap(values: Sequence[Value], rank: int) -> tuple[int, Field, set[int]] | None:
    """An operand's field over several axes, some of which (and not just these) another operand's field varies along."""
    placed = [(i, f, {a + rank - len(v.shape) for a in axes_of(f)}) for i, v in enumerate(values) for f in v.fields]
    for index, field, axes in placed:
        if len(axes) > 1:
            for other, _, met in placed:
                if other != index and axes & met and not axes <= met:
                    return index, field, met
    return None
