"""The registry of operator rules, and the view of one operator call that a rule gets.

A rule is a function ``rule(call)`` registered for ATen operators by name. It reads the abstract values of the call's
tensors, writes ties and freezes into ``call.space``, and sets the values of the outputs; an output that it does not
set cannot shrink. An operator without a rule freezes everything it touches, by name.

Third parties add rules with :func:`rule` in any module that is imported before the analysis, or through the entry
point group ``graphprune.rules``.

Example::

    @rule("mylib::scale_shift")
    def scale_shift(call: Call) -> None:
        '''out[..., c] = x[..., c] * w[c]: labels of the last axis are tied.'''
        call.set(call.join())
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import prod
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import torch

from graphprune.channels.labels import Field, LabelSpace, Reason, Shape, Value
from graphprune.pipeline.policy import OF_AXES, Policy

Rule: TypeAlias = "Callable[[Call], None]"

_NO_TENSORS: Final = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})

#: Types of indices that say which elements are meant, and not where these are.
MASKS: Final = (torch.bool, torch.uint8)

_RULES: dict[str, Rule] = {}
_MOVING: set[str] = set()
_KEEPING_SIZES: set[str] = set()
_VIEWS: set[str] = set()


def rule(*operators: str, moves: bool = False, keeps_sizes: bool = False, views: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators, named ``add`` or ``namespace::name`` (all overloads).

    moves: the operators only move elements, one to one (they permute and reshape).
    keeps_sizes: they work element by element or channel by channel, so that their results have sizes of their operands.
    views: they are views of their operand, though their schemas do not say so.
    """

    def register(function: Rule) -> Rule:
        for name in operators:
            qualified = name if "::" in name else f"aten::{name}"
            if qualified in _RULES:
                raise ValueError(f"two rules for {qualified}: {_RULES[qualified].__name__} and {function.__name__}")
            _RULES[qualified] = function
            if moves:
                _MOVING.add(qualified)
            if keeps_sizes:
                _KEEPING_SIZES.add(qualified)
            if views:
                _VIEWS.add(qualified)
        return function

    return register


def rule_for(func: torch._ops.OpOverload) -> Rule | None:
    """The rule of an operator: its own, that of its out-of-place form, or the element-wise one for pointwise operators."""
    name = func._schema.name
    found = _RULES.get(name)
    if found is None and name.endswith("_"):
        found = _RULES.get(name[:-1])
    if found is None and torch.Tag.pointwise in func.tags:
        found = _RULES.get("aten::pointwise")
    return found


def keeps_sizes(func: torch._ops.OpOverload) -> bool:
    """Whether each size of an operator's results is a size of its operands, whatever these are."""
    name: str = func._schema.name
    return name in _KEEPING_SIZES or name.removesuffix("_") in _KEEPING_SIZES or torch.Tag.pointwise in func.tags


def only_moves(func: torch._ops.OpOverload) -> bool:
    """Whether an operator only moves elements, one to one."""
    return func._schema.name in _MOVING


def views_only(func: torch._ops.OpOverload) -> bool:
    """Whether an operator only looks at its operand's memory in another way, and moves nothing."""
    return bool(func.is_view) or func._schema.name in _VIEWS


class Recorder(Protocol):
    """What a call needs from the propagation that runs it."""

    space: LabelSpace
    policy: Policy

    def value_of(self, tensor: torch.Tensor) -> Value:
        """Abstract value of a tensor."""

    def set_value(self, tensor: torch.Tensor, fields: Sequence[Field]) -> Value:
        """Set the abstract value of a tensor."""

    def narrow_value(self, tensor: torch.Tensor, fields: Sequence[Field]) -> None:
        """Set the abstract value of a tensor that is known by wider fields, also where it is a node's."""

    def reason(self, text: str, operator: str) -> Reason:
        """A reason at the running node."""

    def record_macs(self, factors: Sequence[Field | int]) -> None:
        """Note multiply-accumulates."""

    def record_scalar(self, name: str, labels: Field) -> None:
        """Note a constant that is a kept count."""

    def choose(self, policy: str, labels: Sequence[Field]) -> str:
        """The policy's choice at the running node, about these labels."""

    def index(self, tensor: torch.Tensor) -> Field | None:
        """The places that a constant index names."""

    def is_read(self, tensor: torch.Tensor) -> bool:
        """Whether anything reads a part of the running node's value."""

    def calls(self, name: str) -> bool:
        """Whether the running node is a call of the operator of this name."""

    def has_open_bounds(self) -> bool:
        """Whether the running node computes its numbers from sizes that vary between calls."""


class _Schema(NamedTuple):
    """Name of an operator, and its arguments by name: their places, and their defaults if they have any."""

    name: str
    arguments: dict[str, tuple[int, list[Any]]]


@cache  # torch makes new objects for all of it each time that it is asked
def _schema(func: torch._ops.OpOverload) -> _Schema:
    arguments = enumerate(func._schema.arguments)
    places = {one.name: (place, [one.default_value] if one.has_default_value() else []) for place, one in arguments}
    return _Schema(func._schema.name, places)


class Call:
    """One operator call: arguments, results, and what a rule may do about them.

    func, name, args, kwargs, output: the operator, its qualified name, what it was given and what it returned.
    outputs: all tensors among the results. space: where ties and freezes are written.
    """

    __slots__ = ("_arguments", "args", "func", "kwargs", "name", "output", "outputs", "recorder", "space")

    def __init__(
        self, recorder: Recorder, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        self.recorder = recorder
        self.func = func
        self.name, self._arguments = _schema(func)
        self.args = args
        self.kwargs = kwargs
        self.output = output
        self.outputs = [output] if isinstance(output, torch.Tensor) else tensors_in((output,))
        self.space = recorder.space

    def arg(self, name: str, default: Any = None) -> Any:
        """An argument by its schema name."""
        place, defaults = self._arguments.get(name, (len(self.args), []))
        if place < len(self.args):
            return self.args[place]
        return self.kwargs[name] if name in self.kwargs else defaults[0] if defaults else default

    def value(self, tensor: torch.Tensor) -> Value:
        """Abstract value of an argument tensor."""
        return self.recorder.value_of(tensor)

    def inputs(self) -> list[torch.Tensor]:
        """All tensors among the arguments, in order, lists flattened."""
        return tensors_in((*self.args, *self.kwargs.values()))

    def shape(self, index: int = 0) -> Shape:
        """Shape of an output at the example inputs."""
        return tuple(self.outputs[index].shape)

    def set(self, fields: Sequence[Field], index: int = 0) -> None:
        """Set the label fields of an output. An atom that fills an axis of size 1 alone is frozen: the axis cannot go."""
        varied = []
        for field in fields:
            if field.size > 1:
                varied.append(field)
            else:
                self.space.freeze(field, self.reason("the only index left of an axis"))
        self.recorder.set_value(self.outputs[index], varied)

    def join(self, tensors: Sequence[torch.Tensor] | None = None) -> tuple[Field, ...]:
        """Element-wise combination of these tensors (default: all), broadcast to the first output."""
        chosen = self.inputs() if tensors is None else tensors
        reason = self.reason("combined element by element with a tensor that cannot shrink")
        return self.space.join([self.value(t) for t in chosen], self.shape(), reason)

    def reason(self, text: str) -> Reason:
        """A reason for freezing at this operator, graph node and source line."""
        return self.recorder.reason(text, self.name)

    def freeze_inputs(self, text: str, *tensors: torch.Tensor) -> None:
        """Freeze every label of these arguments, or of all of them."""
        why = self.reason(text)
        for tensor in tensors or self.inputs():
            for field in self.value(tensor).fields:
                self.space.freeze(field, why)

    def scalar(self, name: str, labels: Field) -> None:
        """A constant of this call (such as ``groups``) whose new value is the number of kept atoms in ``labels``."""
        self.recorder.record_scalar(name, labels)

    def macs(self, *factors: Field | int) -> None:
        """Multiply-accumulates of this call: a product of constants and of kept counts of label vectors."""
        self.recorder.record_macs(factors)

    def volume(self, fields: Sequence[Field], index: int = 0) -> list[Field | int]:
        """Number of elements of an output as cost factors: one constant for its fixed axes, and its label fields."""
        fixed = prod(n for axis, n in enumerate(self.shape(index)) if all(field.shape[axis] == 1 for field in fields))
        return [fixed, *fields]

    def index(self, tensor: torch.Tensor) -> Field | None:
        """The places that an index names which is 1-D, and a buffer or list: from now on the rewriter counts those anew that
        are kept, in the call that the graph node is. None for any other index."""
        return self.recorder.index(tensor)

    def check_dtypes(self, *tensors: torch.Tensor) -> None:
        """Raise TypeError for operands of several dtypes, which the meta device lets pass and every other refuses."""
        if len({tensor.dtype for tensor in tensors}) > 1:
            names = " and ".join(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
            raise TypeError(f"its operands are {names}, and must be of one dtype")

    def is_read(self, index: int) -> bool:
        """Whether anything reads an output; one that is no part of the graph node's value counts as read."""
        return self.recorder.is_read(self.outputs[index])

    @property
    def is_node(self) -> bool:
        """Whether the graph node calls this operator, rather than something that runs it."""
        return self.recorder.calls(self.name.partition("::")[2])

    @property
    def open_bounds(self) -> bool:
        """Whether the graph node computes its numbers from sizes that vary between calls (batch, resolution, length)."""
        return self.recorder.has_open_bounds()

    def choose(self, policy: str) -> str:
        """The policy's choice at this site (:class:`graphprune.pipeline.policy.Policy`)."""
        asked = self.inputs() if policy in OF_AXES else ()
        wide = [field for tensor in asked for field in self.value(tensor).fields if field.size not in field.shape]
        return self.recorder.choose(policy, wide)


def tensors_in(items: Iterable[Any]) -> list[torch.Tensor]:
    """Tensors among the items and the tuples, lists and dicts nested in them, in order."""
    found: list[torch.Tensor] = []
    for item in items:
        if type(item) in _NO_TENSORS:  # most are; isinstance takes several times as long to say no
            continue
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, (tuple, list)):
            found += tensors_in(item)
        elif isinstance(item, dict):
            found += tensors_in(item.values())
    return found
