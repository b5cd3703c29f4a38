"""Consumers: the nodes whose weights can make up for what was removed before them, read off the tape of the slim graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from graphprune.channels.tape import Operation, Step, Tape, tape_of
from graphprune.ir.program import Program
from graphprune.passes.analysis.rules.normalisation import BATCH_NORMS
from graphprune.passes.calibration.contraction import find_contraction
from graphprune.passes.calibration.lanes import storage

_BATCH_NORMS: Final = frozenset(f"aten::{name}" for name in BATCH_NORMS)
_SUMS: Final = frozenset({"aten::add", "aten::add_"})


@dataclass(frozen=True)
class Norm:
    """A batch norm with running statistics: names of its tensors ("" for none), the node that runs it, the one whose result it
    normalises, and its epsilon."""

    node: fx.Node
    reads: fx.Node
    weight: str
    bias: str
    mean: str
    variance: str
    epsilon: float


@dataclass(frozen=True)
class Consumer:
    """A node that contracts a parameter with an activation.

    weight: the parameter. bias: its bias, if it has one of its own. norm: the batch norm that alone reads the result. sum: the
    node where the result, after the norm, is added to ``other``, which is known before it. obstacle: why its weights must stay.
    """

    node: fx.Node
    weight: str
    bias: str = ""
    norm: Norm | None = None
    sum: fx.Node | None = None
    other: fx.Node | None = None
    obstacle: str = ""


def find_consumers(program: Program) -> list[Consumer]:
    """The consumers of a program, in the order of its graph."""
    finder = _Finder(program)
    return [found for node in program.module.graph.nodes for found in finder.consumers(node)]


def find_norms(program: Program) -> list[Norm]:
    """The batch norms with running statistics, in the order of the graph; statistics that several nodes share are left out."""
    finder = _Finder(program)
    found = (finder.norm(node) for node in program.module.graph.nodes)
    return [norm for norm in found if norm is not None]


class _Finder:
    def __init__(self, program: Program) -> None:
        tape: Tape = tape_of(program)
        self.tensors = program.tensors
        self.steps: Mapping[str, Step] = {step.node: step for step in tape.steps}
        self.order = {node: number for number, node in enumerate(program.module.graph.nodes)}
        self.owner = {storage(tensor): tape.names[id(tensor)] for tensor in tape.held}
        self.readers: dict[str, set[str]] = {}
        for step in tape.steps:
            for operand in tree_leaves([(operation.args, operation.kwargs) for operation in step.operations]):
                name = self.name(operand)
                if name:
                    self.readers.setdefault(name, set()).add(step.node)

    def name(self, tensor: Any) -> str:
        """The parameter or buffer that a tensor of the tape is, or is a view of; "" if none."""
        return self.owner.get(storage(tensor), "") if isinstance(tensor, Tensor) else ""

    def private(self, name: str) -> bool:
        """Whether one node alone reads a tensor."""
        return bool(name) and len(self.readers[name]) == 1

    def consumers(self, node: fx.Node) -> Iterator[Consumer]:
        step = self.steps[node.name]
        found = [(operation, c) for operation in step.operations if (c := self._contraction(operation)) is not None]
        names = list(dict.fromkeys(self.name(contraction.weight) for _, contraction in found))
        for name in names:
            if len(found) > 1:
                yield Consumer(node, name, obstacle="one call contracts several times")
            elif self.tensors[name].is_complex():
                yield Consumer(node, name, obstacle="its weights are complex numbers")
            elif not self.private(name):
                others = ", ".join(sorted(self.readers[name] - {node.name}))
                yield Consumer(node, name, obstacle=f"{name} is also used by {others}")
            else:
                (operation, contraction) = found[0]
                yield self._consumer(node, step, operation, name, self.name(contraction.bias))

    def _contraction(self, operation: Operation) -> Any:
        return find_contraction(
            operation.operator, operation.args, lambda t: isinstance(self.tensors.get(self.name(t)), nn.Parameter)
        )

    def _consumer(self, node: fx.Node, step: Step, operation: Operation, weight: str, bias: str) -> Consumer:
        if not bias:
            bias = self._later_bias(step, operation)
        bias = bias if self.private(bias) else ""
        norm: Norm | None = None
        last, reader = node, _reader(node)
        while reader is not None:
            behind = None if norm is not None else self.norm(reader)
            if behind is None and not self._passes_on(reader, last):
                break
            norm, last, reader = norm or behind, reader, _reader(reader)
        if reader is None:
            return Consumer(node, weight, bias, norm)
        other = self._added(reader, last)
        known = other is not None and self.order[other] < self.order[node]
        return Consumer(node, weight, bias, norm, reader if known else None, other if known else None)

    def _later_bias(self, step: Step, contraction: Operation) -> str:
        """The parameter that an addition after the contraction adds along its last axis."""
        for operation in step.operations[step.operations.index(contraction) + 1 :]:
            if operation.operator._schema.name in _SUMS and len(operation.args) == 2:
                name = self.name(operation.args[1])
                if name and operation.args[1].shape == operation.output.shape[-1:] and not operation.kwargs:
                    return name
        return ""

    def norm(self, node: fx.Node) -> Norm | None:
        """The batch norm that a node runs, if its running statistics are its own."""
        operations = self.steps[node.name].operations
        found = [operation for operation in operations if operation.operator._schema.name in _BATCH_NORMS]
        if len(found) != 1:
            return None
        weight, bias, mean, variance = (self.name(tensor) for tensor in found[0].args[1:5])
        reads = [one for one in node.all_input_nodes if self.steps[one.name].result is found[0].args[0]]
        if not (self.private(mean) and self.private(variance)) or not reads:
            return None
        return Norm(node, reads[0], weight, bias, mean, variance, float(found[0].args[-1]))

    def _passes_on(self, reader: fx.Node, node: fx.Node) -> bool:
        """Whether a node returns its argument as it is (dropout in eval mode)."""
        step = self.steps[reader.name]
        return not step.operations and step.result is self.steps[node.name].result and reader.op != "output"

    def _added(self, reader: fx.Node, node: fx.Node) -> fx.Node | None:
        """What a node adds to another's result, if both have its shape."""
        operations, inputs = self.steps[reader.name].operations, reader.all_input_nodes
        if len(operations) != 1 or operations[0].operator._schema.name not in _SUMS or operations[0].kwargs or len(inputs) != 2:
            return None
        other = next(one for one in inputs if one is not node)
        shapes = {getattr(self.steps[one.name].result, "shape", None) for one in (reader, node, other)}
        return other if len(shapes) == 1 else None


def _reader(node: fx.Node) -> fx.Node | None:
    """The one node that reads another's result; None for several or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None
