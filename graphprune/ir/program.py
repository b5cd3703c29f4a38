"""The program: what passes read and return. Immutable; a pass that changes something returns a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils._pytree import tree_map

from graphprune.errors import UsageError
from graphprune.ir.handed import Taken
from graphprune.ir.twins import named_tensors
from graphprune.ir.weights import Weights

if TYPE_CHECKING:
    from graphprune.calibration import Calibration
    from graphprune.channels.groups import Groups
    from graphprune.channels.levers import Levers
    from graphprune.channels.tape import Tape
    from graphprune.compensation import Compensated
    from graphprune.costs.cost import Costs
    from graphprune.latency.source import Latency
    from graphprune.plans.plan import Plan
    from graphprune.scores import Scores
    from graphprune.verification import Verification


@dataclass(frozen=True)
class Inputs:
    """Example inputs: positional and keyword arguments of the model's forward, any nesting of tensors."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def map(self, function: Callable[[Any], Any]) -> Inputs:
        """Inputs of the same structure, with a function applied to every leaf."""
        return Inputs(tree_map(function, self.args), tree_map(function, dict(self.kwargs)))

    def to(self, device: str | torch.device) -> Inputs:
        """The same inputs on a device."""
        return self.map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf)

    def describe(self) -> str:
        """Shapes and dtypes in one line, for messages."""
        parts = [_describe(item) for item in self.args]
        parts += [f"{name}={_describe(item)}" for name, item in self.kwargs.items()]
        return ", ".join(parts)


def _describe(item: Any) -> str:
    if isinstance(item, torch.Tensor):
        return f"{str(item.dtype).removeprefix('torch.')}[{'x'.join(map(str, item.shape))}]"
    if isinstance(item, (list, tuple)):
        return f"[{', '.join(map(_describe, item))}]"
    return str(item) if item is None or isinstance(item, (bool, int, float, str)) else type(item).__name__


def placeholder_values(graph: fx.Graph, inputs: Inputs) -> list[Any]:
    """Example inputs in the order of the graph's placeholders; those left out at the end keep their defaults."""
    values = list(inputs.args)
    for node in [node for node in graph.nodes if node.op == "placeholder"][len(values) :]:
        if node.target not in inputs.kwargs:
            break
        values.append(inputs.kwargs[node.target])
    return values


@dataclass(frozen=True)
class Record:
    """What a rewrite did: costs before and after (at the example inputs) and the groups that it cut.

    widths: for every prunable group by name, units before and after.
    """

    before: Costs
    after: Costs
    groups: Groups
    widths: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Scope:
    """A submodule that is pruned in place. arguments: names of its forward, with the placeholders that stand for them (empty for
    one given as None or an option, or taken from other scopes), in the forward's order. taken: tensors of other scopes in them."""

    path: str
    arguments: tuple[tuple[str, str], ...]
    taken: tuple[Taken, ...] = ()


def names_of(option: str, given: Iterable[Any]) -> tuple[str, ...]:
    """Names of layers or tensors that an option takes: several, or a single one. Raises UsageError for what is none.

    >>> names_of("exclude", "layer1.*"), names_of("exclude", ["stem", "head"])
    (('layer1.*',), ('stem', 'head'))
    """
    found = (given,) if isinstance(given, str) else tuple(given)
    wrong = next((name for name in found if not isinstance(name, str)), None)
    if wrong is not None:
        raise UsageError(f"{option} takes names, as of model.named_modules(), and was given a {type(wrong).__name__}.")
    return found


@dataclass(frozen=True)
class Program:
    """A captured model on its way through the pipeline.

    module: the graph, with the model's module hierarchy, names and (shared, never modified) tensors.
    inputs: example inputs; only shapes and dtypes matter to the analyses.
    opaque: modules that could not be traced into, with the reason; their boundary is frozen.
    source: what the model was captured from, for the record.
    scopes: the submodules that the graph consists of, where the model as a whole does not trace.
    tape: the operators that the graph runs, where capture wrote them down (see :mod:`graphprune.channels.tape`).
    weights: where values are read from, by name, if the module's own tensors have none (meta device): each is loaded when it is
        asked for (see :mod:`graphprune.streaming` and :mod:`graphprune.placement`).
    exclude, policy: constraints on the channel analysis (see :class:`graphprune.passes.analysis.channels.ChannelsPass`).
    whole: what else stays whole, as ``exclude`` names it, with the reason in words: for those who prune in several steps.
    calibration: data that criteria measure activations and gradients on, where the user gave some.
    latency: what a target on latency is met by.
    levers: which groups only shrink together, in steps; no others shrink then.
    scores: results of scoring passes, by name.
    plan: the decision of a selection pass, not yet carried out.
    original, record: the graph before the rewrite and what was cut, once a rewrite has been done. original_weights: where its
        values are read from, if it has none of its own.
    verification: the proof of the last rewrite.
    eval_only: modules whose own code keeps its behaviour of eval mode in train mode, with the reason: it does more there than
        the graph can follow, or says that it has no gradients or others. Layers in them follow. A name that is no path is the
        model's class.
    compensation: how far each consumer of removed channels was off before and after its weights made up for them.
    untraced: why the model was not captured as a whole, where the user has named no scopes.
    """

    module: fx.GraphModule
    inputs: Inputs
    opaque: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    scopes: tuple[Scope, ...] = ()
    tape: Tape | None = field(default=None, repr=False, compare=False)
    weights: Weights | None = field(default=None, repr=False, compare=False)
    exclude: tuple[str, ...] = ()
    policy: Mapping[str, str] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    calibration: Calibration | None = field(default=None, repr=False, compare=False)
    latency: Latency | None = field(default=None, repr=False, compare=False)
    levers: Levers | None = field(default=None, repr=False, compare=False)
    scores: Mapping[str, Scores] = field(default_factory=dict)
    plan: Plan | None = None
    original: fx.GraphModule | None = None
    original_weights: Weights | None = field(default=None, repr=False, compare=False)
    record: Record | None = None
    verification: Verification | None = None
    eval_only: Mapping[str, str] = field(default_factory=dict)
    compensation: tuple[Compensated, ...] = ()
    untraced: str = ""

    def _repr_html_(self) -> str:
        from graphprune.html import of_program

        return of_program(self)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters, then buffers, by name, tied ones under each of their names."""
        return named_tensors(self.module)

    @property
    def values(self) -> Mapping[str, torch.Tensor]:
        """The same with their values: the module's own tensors, or what ``weights`` loads."""
        return self.tensors if self.weights is None else self.weights

    def under(self, exclude: Iterable[str] = (), policy: Mapping[str, str] | None = None) -> Program:
        """The program under constraints as a user gives them. Raises UsageError for what is none."""
        if not isinstance(policy, Mapping | None):
            raise UsageError(f'The policy {policy!r} is no mapping; write it as {{"heads": "whole"}}.')
        return self.with_(exclude=names_of("exclude", exclude), policy=dict(policy or {}))

    def with_(self, **changes: Any) -> Program:
        """A copy with some fields replaced; another graph has another tape, and other weights."""
        if "module" in changes:
            changes = {"tape": None, "weights": None} | changes
        result = replace(self, **changes)
        if result.module is self.module and "tensors" in self.__dict__:
            result.__dict__["tensors"] = self.tensors
        return result
