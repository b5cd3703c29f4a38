"""Train and eval mode in a trace: the graph of eval mode, whose calls follow the mode where the original's do."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, Final, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.node import map_arg

from graphprune.channels.tape import Operation, Step
from graphprune.ir.train_mode import add_in_train_mode
from graphprune.tracing.results import Mark
from graphprune.tracing.source import in_brackets

SOURCE: Final = "graphprune.drops_of"  # in the meta data of a node that stands for what is dropped of another: that one
_DROPS: Final = "graphprune.drops"  # so the node of the graph
_LASTING: Final = (int, float, str, type(None), torch.dtype, torch.device)


class Mode(int):
    """What ``self.training`` is while a model is traced: as an argument it is recorded, for anything else it is 0 or 1.

    consulted: whether Python code looked at its value, so that the trace depends on it.
    """

    consulted: bool = False

    @property
    def plain(self) -> bool:
        """The mode, looked at by ourselves."""
        return int.__bool__(self)


def _consulting(name: str) -> Callable[..., Any]:
    usual = getattr(int, name)

    def method(self: Mode, *others: Any) -> Any:
        self.consulted = True
        return usual(self, *others)

    return method


for _name in (
    "bool", "int", "float", "index", "hash", "eq", "ne", "lt", "le", "gt", "ge", "neg", "invert", "add", "radd", "sub", "rsub",
    "mul", "rmul", "truediv", "rtruediv", "and", "rand", "or", "ror", "xor", "rxor",
):  # fmt: skip
    setattr(Mode, f"__{_name}__", _consulting(f"__{_name}__"))


DROPS: Final = frozenset({F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout})
"""Functions of a tensor, a rate, and whether to drop anything at all."""


class Differs(BaseException):
    """What runs in train mode is more than a graph of eval mode can follow; its text says what it is.

    No error: a model's code must not catch it.
    """


class Change(NamedTuple):
    """An argument of a node, by its index or name, that is a constant with another value in train mode."""

    node: fx.Node
    place: int | str
    then: Any

    def follow(self, mode: fx.Node) -> Iterator[Step]:
        """Make the constant follow the mode: ``False`` becomes the mode, 0 the mode times the rate, a tensor what is left of it."""
        now = self.node.args[self.place] if isinstance(self.place, int) else self.node.kwargs[self.place]
        value = mode
        if isinstance(self.then, fx.Node):
            value = self.then.meta[_DROPS]
        elif now is not False:
            with self.node.graph.inserting_before(self.node):
                value = self.node.graph.call_function(operator.mul, (mode, self.then))
            yield Step(value.name, result=now)
        if isinstance(self.place, int):
            self.node.update_arg(self.place, value)
        else:
            self.node.update_kwarg(self.place, value)


class Addition(NamedTuple):
    """A number that is added to a scalar buffer in train mode alone, before a node.

    name: the buffer's. tensor: its stand-in.
    """

    node: fx.Node
    name: str
    tensor: torch.Tensor
    amount: float

    def follow(self, mode: fx.Node) -> Iterator[Step]:
        """Make the graph add it in train mode."""
        graph = self.node.graph
        with graph.inserting_before(self.node):
            buffer = graph.get_attr(self.name)
            adding = graph.call_function(add_in_train_mode, (buffer, self.amount, mode))
        yield from (Step(buffer.name, result=self.tensor), Step(adding.name))


class Drop(NamedTuple):
    """What train mode alone drops elements of, before a node, where eval mode goes on with the tensor itself.

    drops: the function. tensor: its stand-in, made by ``source``. dropped: what stands for it in the run in train mode. made: the
    node that stands for that one in :class:`Change`.
    """

    node: fx.Node
    drops: Any
    source: fx.Node
    rate: float
    tensor: torch.Tensor
    dropped: torch.Tensor
    made: fx.Node

    def follow(self, mode: fx.Node) -> Iterator[Step]:
        """Make the graph drop elements in train mode."""
        with self.node.graph.inserting_before(self.node):
            new = self.made.meta[_DROPS] = self.node.graph.call_function(
                self.drops, (self.source.meta.get(_DROPS, self.source), self.rate, mode)
            )
        new.meta.update({key: self.node.meta[key] for key in ("source", "module") if key in self.node.meta})
        yield Step(new.name, [Operation(torch.ops.aten.alias.default, (self.tensor,), {}, self.dropped)], self.dropped)


Difference: TypeAlias = Change | Addition | Drop


class Question(NamedTuple):
    """A call of a module whose own code asked for the mode: what it got and gave, and where the run was before and after it."""

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    start: Mark
    end: Mark


def can_ask_again(values: Any) -> bool:
    """Whether a call with these values, or a result of them, can be repeated later: nothing in them has changed by then."""
    with torch._C.DisableTorchFunction():
        return all(can_ask_again(value) if isinstance(value, tuple) else _lasts(value) for value in values)


def _lasts(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_meta
    return isinstance(value, _LASTING) and not isinstance(value, Mode)


def same_call(node: fx.Node, op: str, target: Any) -> bool:
    """Whether a node calls this, whatever with."""
    return node.op == op and (node.target is target or str(node.target) == str(target))


def changes(node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Change]:
    """The constant arguments of a node that are these in train mode. Raises Differs where others than constants differ."""
    before, after = _arguments(node.target, node.args, node.kwargs), _arguments(node.target, args, kwargs)
    found: list[Change] = []
    for (place, now), (other_place, then) in zip_longest(before, after, fillvalue=("", None)):
        if place == other_place and (
            _follows(now, then) or (isinstance(then, fx.Node) and then.meta.get(SOURCE, then) is now is not then)
        ):
            found.append(Change(node, place, then))
        elif place != other_place or now != then:
            raise Differs(f"in train mode {_called(node.op, node.target)} gets other arguments{in_brackets(line_of(node))}")
    return found


def other_call(op: str, target: Any, line: str) -> str:
    """Why a graph cannot follow a mode in which this is, or is not, called."""
    return f"in train mode it makes other calls from {_called(op, target)} on{in_brackets(line)}"


def line_of(node: fx.Node) -> str:
    """The line of the model that a node was made in, or empty."""
    return str(node.meta.get("source", ""))


def follow_mode(found: Iterable[Difference]) -> Iterator[tuple[fx.Node, Step]]:
    """Make a graph follow the mode of its module; yields the steps of the nodes that it makes, with those that they come before."""
    found = list(found)
    if not found:
        return
    places = {node: place for place, node in enumerate(found[0].node.graph.nodes)}
    found.sort(key=lambda one: places[one.node])
    first = found[0].node
    with first.graph.inserting_before(first):
        mode = first.graph.get_attr("training")
    yield first, Step(mode.name, result=False)
    for one in found:
        yield from ((one.node, step) for step in one.follow(mode))


def keep_still(nodes: Iterable[fx.Node]) -> None:
    """Make nodes that were given the mode do what they do in eval mode: their module follows it as a whole or not at all."""
    for node in nodes:
        node.args, node.kwargs = map_arg(
            (node.args, node.kwargs), lambda given: False if given.op == "get_attr" and given.target == "training" else given
        )


def _called(op: str, target: Any) -> str:
    return "the result" if op == "output" else str(getattr(target, "__name__", target))


def _arguments(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Places and values of a call's arguments, without the message of a check, which has a line of the model in it."""
    return [*enumerate(args[:1] if target in (torch._assert, torch._assert_async) else args), *kwargs.items()]


def _follows(now: Any, then: Any) -> bool:
    """Whether a constant can follow the mode."""
    return (now is False and then is True) or (isinstance(now, (int, float)) and now == 0 and isinstance(then, float) and then > 0)
