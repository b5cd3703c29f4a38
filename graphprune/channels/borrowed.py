"""Sizes that a call takes from other tensors: ``y.reshape(n, length, c)``, with the ``c`` of what a block was given.

Code that does so works on a slim model only where the two lose as many channels. The policy ``sizes`` makes them lose the same
positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from torch import fx

from graphprune.channels.labels import Field, Shape, Value, axes_of


def given_shape(node: fx.Node, values: Mapping[str, Any]) -> Sequence[Any]:
    """The sizes of a call whose arguments behind the tensor are the shape of its result; none for any other call.

    values: by node name, as in a :class:`~graphprune.channels.propagate.Trace`.
    """
    result, sizes = values.get(node.name), node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    if not isinstance(result, Value) or len(sizes) != len(result.shape):
        return ()
    numbers = [values[size.name] if isinstance(size, fx.Node) else size for size in sizes]
    return sizes if all(number in (-1, length) for number, length in zip(numbers, result.shape, strict=True)) else ()


def borrowed(node: fx.Node, values: Mapping[str, Any]) -> Iterator[tuple[Field, Field]]:
    """Labels of a call's result, and those of the other tensor whose number one of its sizes is, or with others makes up.

    Of ``reshape(n, length, heads, c // heads)`` they lie on the last two axes. values: as for :func:`given_shape`.
    """
    result: Any = values.get(node.name)
    for axis, size in enumerate(given_shape(node, values)):
        for labels in _counted(size, values) if isinstance(size, fx.Node) else ():
            axes = _made_of(result.shape, axis, labels.size)
            shape = [length if at in axes else 1 for at, length in enumerate(result.shape)]
            yield from ((field, labels.reshape(shape)) for field in result.fields if axes and set(axes) <= set(axes_of(field)))


def _counted(number: fx.Node, values: Mapping[str, Any]) -> list[Field]:
    """The labels on the axis whose size a number is, or is computed from; none where it is computed from several."""
    while len(number.all_input_nodes) == 1:
        source = number.all_input_nodes[0]
        value = values[source.name]
        if isinstance(value, Value):
            axis = number.args[1] if len(number.args) == 2 and isinstance(number.args[1], int) else None
            return [field for field in value.fields if axis is not None and axes_of(field) == (axis % len(value.shape),)]
        number = source
    return []


def _made_of(shape: Shape, axis: int, count: int) -> range:
    """The fewest neighbouring axes, among them this one, that have so many positions; none if there are no such."""
    around = [range(first, end) for first in range(axis + 1) for end in range(axis + 1, len(shape) + 1)]
    return min((axes for axes in around if prod(shape[axes.start : axes.stop]) == count), key=len, default=range(0))
