"""Answers to what a model's Python asks about values: ``if mask.any():``, ``int(lengths.max())``, ``lengths.tolist()``.

A question that only a check asks is answered so that it passes (:mod:`graphprune.tracing.checks`). Where integers of the inputs and
buffers decide alone (:mod:`graphprune.channels.values`), they say. A truth becomes a check in the graph, as a comparison of sizes
does: inputs for which it is another raise an error. A number is read in the graph, too, and may be any in another call; what
Python decides by it is checked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import fx
from torch.utils._pytree import tree_leaves, tree_map

from graphprune.channels.values import Values
from graphprune.rules import tensors_in
from graphprune.tracing.arrays import Numbers
from graphprune.tracing.checks import QUESTIONS, answer_that_passes
from graphprune.tracing.guards import Guards
from graphprune.tracing.sizes import Origin, Place, SizeFloat, SizeInt, settle, shape_of, with_origin
from graphprune.tracing.writer import Writer

_NUMBERS: Final[Mapping[Any, Callable[[Any], Any] | None]] = {
    torch.Tensor.item: None, torch.Tensor.__int__: int, torch.Tensor.__index__: int, torch.Tensor.__float__: float,
}  # fmt: skip
"""What reads one number, and what C code of Python makes of it, which is then the same in every call."""

_ANSWERED: Final = QUESTIONS | _NUMBERS.keys() | {torch.Tensor.tolist}


class Answers:
    """Answers the questions of one trace. call: runs a call of torch as the model's own."""

    def __init__(self, writer: Writer, guards: Guards, values: Values, call: Callable[..., torch.Tensor]) -> None:
        self._writer = writer
        self._guards = guards
        self._values = values
        self._call = call

    def to(self, question: Any, args: Any, kwargs: Any) -> Any:
        """What a call returns; None where more than what is known has a part in it."""
        if question in QUESTIONS and (passing := answer_that_passes()) is not None:
            self._writer.note_check(args)
            return passing
        if question is torch.Tensor.numpy:
            return self._array(args[0])
        if question not in _ANSWERED:
            return None
        reads = torch.Tensor.item if question in _NUMBERS else question
        answer = self._values.answer(reads, *self._writer.operands((args, kwargs)))
        kind = _NUMBERS.get(question)
        if isinstance(answer, bool):
            self._check(question, args, kwargs, answer)
            return kind(answer) if kind else answer
        if isinstance(answer, list):
            with torch._C.DisableTorchFunction():
                sizes = shape_of(args[0])
            return self._items(self._read("tolist", args[0], answer), answer, (), sizes) if _are_numbers(answer) else None
        if not isinstance(answer, (int, float)):
            return None
        node = self._read("item", args[0], answer)
        number = self._writer.number_read(node, answer, Origin("item", (*node.args, node)))
        return kind(settle(number)) if kind else number

    def _array(self, tensor: torch.Tensor) -> Numbers | None:
        """The numbers of a tensor of one axis, where the inputs decide them alone."""
        items = self.to(torch.Tensor.tolist, (tensor,), {}) if tensor.dim() == 1 else None
        return None if items is None else Numbers(items, str(tensor.dtype).removeprefix("torch."))

    def numbers_in(self, tree: Any) -> Any:
        """A structure with numbers in place of the tensors that hold one, where the inputs decide them alone; so in slices."""
        return tree_map(self._number_of, tree)

    def _number_of(self, leaf: Any) -> Any:
        if isinstance(leaf, slice):
            return slice(*map(self._bound, (leaf.start, leaf.stop, leaf.step)))
        number = self.to(torch.Tensor.item, (leaf,), {}) if isinstance(leaf, torch.Tensor) and is_number(leaf) else None
        return leaf if number is None else number

    def _bound(self, bound: Any) -> Any:
        """A bound of a slice; of a tensor that is a constant, one too."""
        return self._call(torch.Tensor.item, bound) if isinstance(bound, torch.Tensor) and is_number(bound) else bound

    def _check(self, question: Any, args: Any, kwargs: Any, answer: bool) -> None:
        """Have the graph refuse inputs for which the answer is another."""
        tensor, *others = args
        if others or kwargs:  # of two tensors
            name = question.__name__
            call = self._writer.argument(args), self._writer.argument(kwargs)
            said = self._writer.write_read(self._writer.node("call_function", getattr(torch, name), *call), answer)
            holds: Any = said if answer else self._writer.write_call(operator.not_, (said,), True)
        else:
            name = "bool"
            holds = tensor if answer else self._call(torch.logical_not, tensor)
        self._guards.note_truth(holds, f"{name}({self._writer.name_of(tensor)})", answer)

    def _read(self, method: str, tensor: torch.Tensor, value: Any) -> fx.Node:
        node = self._writer.node("call_method", method, self._writer.argument((tensor,)))
        return self._writer.write_read(node, value)

    def _items(self, node: fx.Node, values: list[Any], path: tuple[int, ...], sizes: tuple[Any, ...]) -> list[Any]:
        """The list that a node reads, of numbers that remember their places in it; so of a row at this path."""
        found: list[Any] = []
        for index, value in enumerate(values):
            at = (*path, index)
            place = Place(operator.getitem, (node, index), at, sizes[: len(at)])
            if isinstance(value, list):
                row = self._writer.node("call_function", operator.getitem, place.arguments)
                found.append(self._items(self._writer.write_read(row, value), value, at, sizes))
            else:
                found.append(with_origin(SizeFloat if isinstance(value, float) else SizeInt, value, place))
        return found


def is_number(tensor: torch.Tensor) -> bool:
    """Whether a tensor may stand for a number, as among the sizes of a view, or as what a new tensor is filled with."""
    return not tensor.dim() and not tensor.is_complex()


def holds_number(tree: Any) -> bool:
    """Whether there is such a tensor in a structure, or among the bounds of a slice in it."""
    leaves = [(leaf.start, leaf.stop, leaf.step) if isinstance(leaf, slice) else leaf for leaf in tree_leaves(tree)]
    return any(map(is_number, tensors_in(leaves)))


def _are_numbers(items: list[Any]) -> bool:
    """Whether a list of lists holds integers and floating-point numbers, and no truths."""
    return all(_are_numbers(item) if isinstance(item, list) else type(item) in (int, float) for item in items)
