"""Label propagation: carries labels through every ATen operator on a program's tape.

No operator is named here; :mod:`graphprune.rules` says what each one does to labels.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import fx
from torch.utils._pytree import tree_leaves, tree_map

from graphprune.arithmetic import is_fractional
from graphprune.channels.borrowed import borrowed
from graphprune.channels.labels import Field, LabelSpace, Reason, Value, along, axes_of
from graphprune.channels.shuffles import Shuffle, find_shuffles
from graphprune.channels.tape import Operation, Step, Tape, describe, run_error, tape_of
from graphprune.ir.handed import is_handed_over
from graphprune.ir.program import Program
from graphprune.ir.reads import reads_numbers
from graphprune.pipeline.policy import Policy
from graphprune.rules import Call, only_moves, rule_for, tensors_in

_PLAIN: Final = (torch.Tensor, int, float, NoneType)  # results with nothing nested in them


@dataclass(frozen=True)
class MacsTerm:
    """Multiply-accumulates of one operator call: a product of constants and of kept counts of label vectors."""

    node: str
    factors: tuple[Field | int, ...]


class TiedBy(NamedTuple):
    """Who wrote down the ties before ``end`` (and after those of the entry before): an operator at a graph node."""

    end: int
    node: str
    operator: str


class Choice(NamedTuple):
    """What a policy chose at a graph node, and the labels that it was asked about."""

    policy: str
    node: str
    choice: str
    labels: Sequence[Field]


@dataclass
class Trace:
    """Everything that one abstract execution wrote down.

    parameters: abstract value of every parameter and buffer that was used, by its first name.
    aliases: other names of the same tensors.
    values: abstract value of every graph node's result (same nesting), by node name.
    operands: every other labelled tensor value that an operator saw or made, with the node that ran.
    shuffles: runs of views that permute one axis.
    scalars: constants whose new value is a kept count, by (node name, constant name).
    indices: constant indices, by the name of the node that reads labelled axes by them.
    missing: operators without a rule, with the nodes that call them.
    tied: who wrote down each tie, run by run.
    choices: what the policy chose for fields over several axes.
    tape: what was read. known: every tensor of the tape with its abstract value, by identity.
    weights: names of the parameters among the tensors.
    """

    space: LabelSpace
    tape: Tape
    parameters: dict[str, Value] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    operands: list[tuple[str, Value]] = field(default_factory=list)
    shuffles: list[Shuffle] = field(default_factory=list)
    scalars: dict[tuple[str, str], Field] = field(default_factory=dict)
    indices: dict[str, Field] = field(default_factory=dict)
    macs: list[MacsTerm] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    operators: int = 0
    tied: list[TiedBy] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    known: dict[int, tuple[torch.Tensor, Value]] = field(default_factory=dict)
    weights: frozenset[str] = frozenset()


def propagate(program: Program, policy: Policy | None = None) -> Trace:
    """Carry labels through the program. Raises CaptureError when it cannot run on its example inputs."""
    tape = tape_of(program)
    state = _Propagation(tape, policy or Policy())
    nodes = {node.name: node for node in program.module.graph.nodes}
    for step in tape.steps:
        node = nodes[step.node]
        try:
            state.run(step, node)
        except TypeError as error:  # operands of several dtypes: the meta device lets them pass
            raise run_error(program.inputs, error, describe(node), node.meta.get("source", "")) from error
    moving = frozenset(state.movers - state.workers)
    trace = state.trace
    trace.weights = frozenset(name for name, tensor in program.tensors.items() if isinstance(tensor, torch.nn.Parameter))
    trace.shuffles = find_shuffles(program.module.graph, trace.values, moving)
    return trace


class _Propagation:
    """Applies the rule of every operator of a tape."""

    def __init__(self, tape: Tape, policy: Policy) -> None:
        self.space = LabelSpace()
        self.policy = policy
        self.trace = Trace(self.space, tape, aliases=dict(tape.aliases))
        self.node: fx.Node | None = None
        self._place = ("", "")
        self.open_bounds: bool | None = None
        self._result: Any = None
        self.movers: set[str] = set()  # nodes that ran operators which only move elements ...
        self.workers: set[str] = set()  # ... and nodes that ran others
        self._tape = tape
        self._values = self.trace.known
        self._rules: dict[Any, Any] = {}
        self._copied: dict[int, torch.Tensor] = {}  # vectors, by the identity of their copies
        self._handed: set[int] = set()  # tensors that scopes make for others
        self._written: set[int] = set()  # memory that operators have written into

    def run(self, step: Step, node: fx.Node) -> None:
        """Carry labels through one node."""
        self.node = node
        self._place = (node.name, node.meta.get("source", ""))
        self.open_bounds = None
        self._result = step.result
        for operation in step.operations:
            self._apply(operation)
        result = step.result
        if step.refusal:
            self.freeze_tensors(step.boundary, step.refusal, node.op.removeprefix("call_"))
            self.freeze_results(result, step.refusal)
        elif is_handed_over(node):
            self._hand_over(step, node)
        elif node.op == "output":
            self.freeze_tensors(self._returned(result), "it reaches the model's output", "output")
        plain = isinstance(result, _PLAIN)
        self.trace.values[node.name] = self.value_or_item(result) if plain else tree_map(self.value_or_item, result)
        if self.choose("sizes", ()) == "tied":
            for field, other in borrowed(node, self.trace.values):
                self.space.tie(field, other)
            self._credit("sizes")

    def _hand_over(self, step: Step, node: fx.Node) -> None:
        """What scopes hand to each other is no output; of its sizes, those that the code around reads stay."""
        self._handed |= {id(tensor) for tensor in (step.result, *tensors_in(run.args for run in step.operations))}
        read = node.args[-1]
        assert isinstance(read, tuple)
        for item in self.value_of(step.result).fields:
            if not set(read).isdisjoint(axes_of(item)):
                self.space.freeze(item, self.reason("its size is read by the code around the scopes", "scope"))

    def _returned(self, result: Any) -> list[torch.Tensor]:
        return [tensor for tensor in tensors_in((result,)) if id(tensor) not in self._handed]

    def _credit(self, name: str) -> None:
        """Note who wrote down the ties that are new."""
        if len(self.space.ties) > (self.trace.tied[-1].end if self.trace.tied else 0):
            self.trace.tied.append(TiedBy(len(self.space.ties), self._place[0], name))

    def _apply(self, operation: Operation) -> None:
        func = operation.operator
        known = self._rules.get(func)
        if known is None:
            known = self._rules[func] = rule_for(func), only_moves(func)
        rule, moves = known
        self.trace.operators += 1
        assert self.node is not None
        if moves and operation.output.dim() == operation.args[0].dim() == 1:
            self._copied[id(operation.output)] = operation.args[0]
        if func._schema.is_mutable:
            self._note_written(operation)
        call = Call(self, *operation)
        if rule is not None:
            rule(call)
            (self.movers if moves else self.workers).add(self._place[0])
            self._credit(call.name)
            return
        self.workers.add(self._place[0])
        self.trace.missing.setdefault(call.name, []).append(self.node.name)
        call.freeze_inputs(f"operator {call.name} has no rule")
        for index in range(len(call.outputs)):
            call.set((), index)

    def _note_written(self, operation: Operation) -> None:
        """Know which memory holds something else now: what parameters make, or what is of none."""
        target, *given = tensors_in((operation.args, operation.kwargs))
        self._written.add(target.untyped_storage()._cdata)
        if not self.space.has_soft:
            return
        values = [self.value_of(tensor).fields for tensor in given if is_fractional(tensor)]  # the others say where
        made = bool(values) and all(values) and not any(self.space.padding(item).any() for fields in values for item in fields)
        for item in self.value_of(target).fields:
            self.space.write(item, made)

    # -- what a rule's call asks for (graphprune.rules.Recorder) ---------------------------------------------------

    def value_of(self, tensor: torch.Tensor) -> Value:
        """The tensor's value; a parameter or buffer gets its labels at its first use."""
        known = self._values.get(id(tensor))
        if known is not None:
            return known[1]
        name = self._tape.names.get(id(tensor))
        if name is None:
            return self.set_value(tensor, ())
        rank = tensor.dim()
        fields = [along(self.space.fresh(size), axis, rank) for axis, size in enumerate(tensor.shape) if size > 1]
        value = self.trace.parameters[name] = self._remember(tensor, fields)
        return value

    def set_value(self, tensor: torch.Tensor, fields: Sequence[Field]) -> Value:
        """Set the abstract value of what an operator saw or made."""
        value = self._remember(tensor, fields)
        if fields:
            self.trace.operands.append((self._place[0], value))
        return value

    def narrow_value(self, tensor: torch.Tensor, fields: Sequence[Field]) -> None:
        """Set the abstract value of a tensor that is known by wider fields, also where it is a node's."""
        before = self.value_of(tensor)
        after = self.set_value(tensor, fields)
        self.trace.values.update({name: after for name, value in self.trace.values.items() if value is before})

    def _remember(self, tensor: torch.Tensor, fields: Sequence[Field]) -> Value:
        """A tensor's value, kept with the tensor, so that its identity is not reused."""
        storage = tensor.untyped_storage()._cdata
        value = Value(tuple(tensor.shape), tuple(fields), tensor.element_size(), storage, tensor.stride())
        self._values[id(tensor)] = (tensor, value)
        return value

    def value_or_item(self, item: Any) -> Any:
        """The value of a tensor; anything else as it is."""
        return self.value_of(item) if isinstance(item, torch.Tensor) else item

    def reason(self, text: str, operator: str) -> Reason:
        """A reason at the node that runs."""
        return Reason(text, operator, *self._place)

    def record_macs(self, factors: Sequence[Field | int]) -> None:
        """Multiply-accumulates of the running node."""
        assert self.node is not None
        self.trace.macs.append(MacsTerm(self.node.name, tuple(factors)))

    def record_scalar(self, name: str, labels: Field) -> None:
        """A constant of the running node that is a kept count."""
        assert self.node is not None
        self.trace.scalars[self.node.name, name] = labels

    def choose(self, policy: str, labels: Sequence[Field]) -> str:
        """The policy's choice at the running node, about these labels."""
        assert self.node is not None
        path = [str(self.node.target)] if self.node.op == "call_module" else []
        choice = self.policy.choose(policy, self.node.name, *path)
        if labels:
            self.trace.choices.append(Choice(policy, self.node.name, choice, labels))
        return choice

    def index(self, tensor: torch.Tensor) -> Field | None:
        """The places that a constant index of the running node names; so do copies of it, as exported graphs make them."""
        while tensor.untyped_storage()._cdata not in self._written and id(tensor) in self._copied:
            tensor = self._copied[id(tensor)]
        if tensor.untyped_storage()._cdata in self._written:
            return None
        data = self._tape.constants.get(id(tensor))
        if data is None or data.dim() != 1:
            return None
        assert self.node is not None
        found = self.trace.indices[self.node.name] = data.numpy(force=True).astype(np.int64)
        return found

    def is_read(self, tensor: torch.Tensor) -> bool:
        """Whether anything reads a part of the running node's value."""
        assert self.node is not None
        parts = self._result if isinstance(self._result, (tuple, list)) else ()
        at = next((index for index, part in enumerate(parts) if part is tensor), None)
        return at is None or any(user.target is not operator.getitem or user.args[1] == at for user in self.node.users)

    def calls(self, name: str) -> bool:
        """Whether the running node is a call of the operator of this name."""
        assert self.node is not None
        return str(getattr(self.node.target, "__name__", self.node.target)).partition(".")[0] == name

    def has_open_bounds(self) -> bool:
        """Whether the running node computes its numbers from sizes that vary between calls."""
        if self.open_bounds is None:
            assert self.node is not None
            numbers = [arg for arg in self.node.all_input_nodes if not _holds_value(self.trace.values[arg.name])]
            self.open_bounds = any(varies(arg, self.trace.values) for arg in numbers)
        return self.open_bounds

    def freeze_results(self, tree: Any, text: str) -> None:
        """Give results that nothing is known of labels that are frozen, so that what meets them knows why."""
        for tensor in tensors_in((tree,)):
            rank = tensor.dim()
            atoms = [along(self.space.fresh(n, soft=True), axis, rank) for axis, n in enumerate(tensor.shape) if n > 1]
            self.set_value(tensor, atoms)
        self.freeze_tensors(tree, text, "opaque")

    def freeze_tensors(self, tree: Any, text: str, operator: str) -> None:
        """Freeze every label of every tensor in a structure."""
        why = self.reason(text, operator)
        for tensor in tensors_in((tree,)):
            for item in self.value_of(tensor).fields:
                self.space.freeze(item, why)


def _holds_value(item: Any) -> bool:
    return any(isinstance(leaf, Value) for leaf in tree_leaves(item, is_leaf=lambda leaf: isinstance(leaf, Value)))


def varies(number: fx.Node, values: Mapping[str, Any]) -> bool:
    """Whether what the graph computes may be another in a call: by data, an option, or a tensor size that is no channel count.

    A channel count is an axis with labels; the axes of a shape are told apart where the shape is indexed.
    """
    if reads_numbers(number) or isinstance(values[number.name], Value):
        return True
    sources = number.all_input_nodes
    index = number.args[1] if len(number.args) > 1 and isinstance(number.args[1], int) else None
    for source in sources:
        value = values[source.name]
        if isinstance(value, Value):
            axes = range(len(value.shape)) if index is None else [index % max(1, len(value.shape))]
            if any(axis not in value.labelled for axis in axes):
                return True
        elif index is not None and isinstance(value, (tuple, list)) and source.all_input_nodes:
            tensor = values[source.all_input_nodes[0].name]
            if isinstance(tensor, Value) and index % len(value) not in tensor.labelled:
                return True
        elif source.op == "placeholder" or varies(source, values):
            return True
    return False
