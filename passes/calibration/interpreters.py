"""Interpreters that run a graph and show activations: to observers, or as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from graphprune.arithmetic import RECURRENT, is_fractional, real_parts, taken_apart
from graphprune.channels.filters import Filter, taps_of
from graphprune.passes.calibration.layout import Layout
from graphprune.statistic import Observer, Statistic, Tap


class Watcher(NamedTuple):
    """An observer at a tap. gradients: it sees gradients, too."""

    tap: Tap
    observer: Observer
    gradients: bool


@dataclass(frozen=True)
class Watch:
    """What is looked at. made: as a node has made it, by the node. read: as it is when another node reads it, by that node and
    the one that made it; for what is written into in between. overwritten: nodes whose result is written into later."""

    overwritten: frozenset[str] = frozenset()
    made: dict[str, list[Watcher]] = field(default_factory=dict)
    read: dict[str, dict[str, list[Watcher]]] = field(default_factory=dict)

    def add(self, statistic: Statistic, observer: Observer, filters: Sequence[Filter]) -> None:
        """Let an observer see the taps of its statistic."""
        for tap in () if statistic.place is None else taps_of(filters, statistic.place):
            if statistic.place == "consumed" and tap.node in self.overwritten:
                reader = next(f.node for f in filters if not f.makes and f.tap and (f.tap.node, f.tap.axis) == (tap.node, tap.axis))
                place = self.read.setdefault(reader, {}).setdefault(tap.node, [])
            else:
                place = self.made.setdefault(tap.node, [])
            place.append(Watcher(tap, observer, statistic.gradients))

    @property
    def taps(self) -> list[Tap]:
        """All taps, once for each observer."""
        places = [*self.made.values(), *(found for sources in self.read.values() for found in sources.values())]
        return [watcher.tap for found in places for watcher in found]

    @property
    def nodes(self) -> set[str]:
        """All nodes whose results are looked at."""
        return self.made.keys() | {name for sources in self.read.values() for name in sources}


class Stepwise(fx.Interpreter):
    """Runs a graph some nodes at a time, in their order; a value is freed once no later node reads it."""

    def __init__(self, module: nn.Module, arguments: Sequence[Any]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.args_iter = iter(arguments)
        self.node: fx.Node | None = None  # the one that runs

    def advance(self, nodes: Iterable[fx.Node]) -> Any:
        """Run the next nodes; returns the result of the last one."""
        result = None
        for node in nodes:
            self.node = node
            result = self.env[node] = self.run_node(node)
            self.forget(node)
        return result

    def run_node(self, n: fx.Node) -> Any:
        """A node's result, without the traces and the context that ``fx.Interpreter`` adds, which cost as much as small nodes."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return getattr(self, n.op)(n.target, args, kwargs)

    def forget(self, node: fx.Node) -> None:
        """Free what is not read after a node."""
        for read in self.user_to_last_uses.get(node, ()):
            del self.env[read]


class Watching(Stepwise):
    """Runs a graph on a batch of some size and shows activations, and their gradients, to observers as they are made."""

    def __init__(self, module: nn.Module, arguments: Sequence[Any], watch: Watch, size: int, layout: Layout) -> None:
        super().__init__(module, arguments)
        self._watch = watch
        self._size = size
        self._layout = layout

    def run_node(self, n: fx.Node) -> Any:
        """A node's result, once it was seen, and what it reads before that."""
        late: Mapping[str, Sequence[Watcher]] = self._watch.read.get(n.name, {})
        for source in n.all_input_nodes if late else ():
            if source.name in late:
                self.env[source] = self._seen(source.name, self.env[source], late[source.name])
        # Of recurrent kernels on a GPU there is a way back in train mode alone.
        with taken_apart(n.target if n.target in RECURRENT and torch.is_grad_enabled() else None):
            result = super().run_node(n)
        return self._seen(n.name, result, self._watch.made.get(n.name, ()))

    def _seen(self, name: str, result: Any, watchers: Sequence[Watcher]) -> Any:
        """An activation, once it was shown; a copy of it where gradients start."""
        if not watchers or not isinstance(result, Tensor):
            return result
        seen = result.detach()
        for tap, observer, gradients in watchers:
            if not gradients:
                observer.see(tap, self._layout.view(seen, tap, self._size))
        later = [watcher for watcher in watchers if watcher.gradients]
        if later and is_fractional(result):
            if not result.requires_grad:
                # A copy of what asks, so that operators which write into their input may do so.
                result = seen.clone().requires_grad_().clone()
            kept = seen.clone() if name in self._watch.overwritten else seen
            result.register_hook(partial(self._show, later, kept))
        return result

    def _show(self, watchers: Sequence[Watcher], activation: Tensor, gradient: Tensor) -> None:
        for tap, observer, _ in watchers:
            given, taken = (real_parts(self._layout.view(t, tap, self._size)) for t in (activation, gradient))
            observer.see_gradient(tap, given, taken)


class Keeping(Stepwise):
    """Runs a graph and keeps copies of the results of some nodes, as they are made."""

    def __init__(self, module: nn.Module, arguments: Sequence[Any], nodes: Collection[str]) -> None:
        super().__init__(module, arguments)
        self._nodes = nodes
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """A node's result, of which a copy is kept."""
        result = super().run_node(n)
        if n.name in self._nodes:
            self.found[n.name] = result.detach().clone()
        return result
