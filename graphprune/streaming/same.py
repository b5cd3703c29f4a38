"""Whether two graphs compute the same: the same operators in the same order, with the same constants, on the same tensors.

Both run on the meta device. Parameters are the same where their names, shapes and dtypes are; buffers that are no part of the state
must have the same values.
"""

from __future__ import annotations

from collections.abc import Container
from math import isclose
from typing import Any

import torch
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten, tree_leaves

from graphprune.channels.tape import Operation, Tape, run_graph
from graphprune.ir.program import Program
from graphprune.ir.twins import named_tensors


def difference(first: Program, second: Program, state: Container[str]) -> str:
    """The first difference between what two programs compute at their example inputs, in words; an empty text where there is none.

    state: names of the tensors whose values are given; all others are compared.
    """
    ours, theirs = named_tensors(first.module), named_tensors(second.module)
    for name, tensor in ours.items():
        other = theirs.get(name)
        if other is None or (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
            return f"{name} is {_text(tensor)} in the slim model, and {_text(other)} by the config"
        if name not in state and (tensor.is_meta or other.is_meta or not torch.equal(tensor.cpu(), other.cpu())):
            return f"the buffer {name}, which is no part of the checkpoint, has other values by the config"
    one, two = _Reader(first), _Reader(second)
    return one.difference(two)


def _text(tensor: torch.Tensor | None) -> str:
    return "missing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


class _Reader:
    """A tape as a sequence of operators on named operands."""

    def __init__(self, program: Program) -> None:
        tape: Tape = run_graph(program)
        self._calls = {node.name: node for node in program.module.graph.nodes}
        self._results = {step.node: step.result for step in tape.steps}
        self._names: dict[int, object] = dict(tape.names)
        self.steps = [(step.node, operation) for step in tape.steps for operation in step.operations]
        self._inputs = [step for step in tape.steps if not step.operations and not step.refusal]
        for step in self._inputs:
            if isinstance(step.result, torch.Tensor):
                self._names.setdefault(id(step.result), ("input", step.node))
        self.refusals = [step.node for step in tape.steps if step.refusal]
        self._result, self._last = tape.steps[-1].result, tape.steps[-1].node

    def difference(self, other: _Reader) -> str:
        """The first difference to another tape."""
        if self.refusals or other.refusals:
            return f"{(self.refusals or other.refusals)[0]} is a module that was not traced into"
        for place, ((node, mine), (its, theirs)) in enumerate(zip(self.steps, other.steps, strict=False)):
            if not _same(self._operands(node, mine), other._operands(its, theirs)):
                return f"{node} ({mine.operator}) is computed in another way by the config"
            self._note(place, mine)
            other._note(place, theirs)
        if len(self.steps) != len(other.steps) or not _same(
            self._flat(self._result, self._last), other._flat(other._result, other._last)
        ):
            return "the config's model runs more operators, or others"
        return ""

    def _operands(self, node: str, operation: Operation) -> list[object]:
        operator, args = operation.operator, operation.args
        if operator is torch.ops.aten.split.Tensor:  # by one size, which the rewriter spells as several
            axis = args[2] if len(args) > 2 else 0
            operator, args = (
                torch.ops.aten.split_with_sizes.default,
                (args[0], [part.shape[axis] for part in operation.output], axis),
            )
        return [operator, *self._flat((args, operation.kwargs), node)]

    def _flat(self, tree: Any, node: str) -> list[object]:
        leaves, structure = tree_flatten(tree)
        return [str(structure), *(self._leaf(leaf, node) for leaf in leaves)]

    def _leaf(self, leaf: Any, node: str) -> object:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return self._names.get(id(leaf)) or self._made_of_numbers(node), tuple(leaf.shape), leaf.dtype

    def _made_of_numbers(self, node: str) -> object:
        """What tells apart tensors that a call makes of nothing but numbers; what is made of anything else equals nothing."""
        call = self._calls[node]
        given = tree_leaves(map_arg((call.args, call.kwargs), lambda other: self._results[other.name]))
        return object() if any(isinstance(item, torch.Tensor) for item in given) else (str(call.target), str(given))

    def _note(self, place: int, operation: Operation) -> None:
        for index, leaf in enumerate(tree_flatten(operation.output)[0]):
            if isinstance(leaf, torch.Tensor):
                self._names[id(leaf)] = (place, index)


def _same(first: list[object], second: list[object]) -> bool:
    return len(first) == len(second) and all(_equal(a, b) for a, b in zip(first, second, strict=True))


def _equal(first: object, second: object) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return first == second or isclose(first, second, rel_tol=1e-12)
    return first == second
