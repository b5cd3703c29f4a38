"""Train and eval mode in a trace: the graph of eval mode, whose calls follow the mode where the original's do."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import fx

from graphprune.tracing.results import Mark

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


class Differs(BaseException):
    """What runs in train mode is not what runs in eval mode with other constants. No error: a model's code must not catch it."""


class Change(NamedTuple):
    """An argument of a node, by its index or name, that is a constant with another value in train mode."""

    node: fx.Node
    place: int | str
    then: Any


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
    return all(can_ask_again(value) if isinstance(value, tuple) else _lasts(value) for value in values)


def _lasts(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_meta
    return isinstance(value, _LASTING) and not isinstance(value, Mode)


def same_call(node: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes call the same thing, whatever with."""
    return node.op == other.op and str(node.target) == str(other.target)


def changes(nodes: Sequence[fx.Node], others: Sequence[fx.Node]) -> list[Change]:
    """The constants that differ between nodes of eval mode and of train mode. Raises Differs where anything else does."""
    if len(nodes) != len(others) or not all(map(same_call, nodes, others)):
        raise Differs
    found: list[Change] = []
    for node, twin in zip(nodes, others, strict=True):
        pairs = enumerate(zip(node.args, twin.args, strict=False))
        found += [Change(node, index, then) for index, (now, then) in pairs if _differ(now, then)]
        found += [Change(node, key, twin.kwargs[key]) for key, now in node.kwargs.items() if _differ(now, twin.kwargs.get(key))]
    return found


def follow_mode(changes: Iterable[Change]) -> Iterator[tuple[fx.Node, Any]]:
    """Make constants follow the graph module's mode: ``False`` becomes the mode, 0 the mode times the rate.

    Yields the nodes that it makes, with their values in eval mode.
    """
    for node, place, then in changes:
        now = node.args[place] if isinstance(place, int) else node.kwargs[place]
        made = _followed(node, now, then)
        if isinstance(place, int):
            node.update_arg(place, made[-1])
        else:
            node.update_kwarg(place, made[-1])
        yield from ((new, now) for new in made)


def _differ(now: Any, then: Any) -> bool:
    return (now is False and then is True) or (isinstance(now, (int, float)) and now == 0 and isinstance(then, float) and then > 0)


def _followed(node: fx.Node, now: Any, then: Any) -> list[fx.Node]:
    """Nodes that compute the constant, the last one its value."""
    with node.graph.inserting_before(node):
        mode = node.graph.get_attr("training")
        return [mode] if now is False else [mode, node.graph.call_function(operator.mul, (mode, then))]
