"""Train mode without a second run: modules whose own code asked for the mode are run again, each by itself.

All else does in train mode what it did in eval mode, given that those modules make the same calls, with other constants at
most, and give the same results. Where they do not, or this is not certain, the whole model has to run again.
"""

from __future__ import annotations

from collections import ChainMap
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from graphprune.tape import Step
from graphprune.tracing.sizes import plain
from graphprune.tracing.tracer import Tracer
from graphprune.tracing.training import Change, Differs, Mode, Question, changes
from graphprune.tracing.writer import Writer


def rehearse(root: nn.Module, first: Tracer, announced: bool) -> list[Change]:
    """The constants of a finished run in eval mode that differ in train mode. Raises Differs where only a whole run can tell."""
    rehearsal = _Rehearsal(root, first)
    try:
        with rehearsal.running(announced):
            return [change for question in first.questions for change in rehearsal.answer(question)]
    finally:
        rehearsal.release()


class _Rehearsal(Tracer):
    """Runs single modules of a finished run again, in train mode."""

    writer: _PartWriter

    def __init__(self, root: nn.Module, first: Tracer) -> None:
        super().__init__(root, Mode(True), first)
        self._guards.go_on_from(first._guards)

    def _new_writer(self, earlier: Tracer | None) -> Writer:
        assert earlier is not None
        return _PartWriter(self._recording, self._results, self._shadow, earlier.writer)

    def answer(self, question: Question) -> list[Change]:
        """What differs in the nodes of a call."""
        self._results.go_to(question.start.calls)
        self.writer.go_to(question.start.nodes)
        module = self._shadow.part(question.path)
        try:
            result = self._run(module, question.path, self.writer.mark(), question.args, question.kwargs)
        except Exception as error:
            raise Differs from error
        if not _same(result, question.result):
            raise Differs
        return self.writer.changes(question.start.nodes, question.end.nodes)

    def _call_opaque(self, module: nn.Module, path: str, args: Any, kwargs: Any, error: Exception) -> Any:
        raise Differs from error


class _PartWriter(Writer):
    """Writes a part of a graph again, apart from it; what that part reads of the rest is one node."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._first: Writer = parts[-1]
        self._place = {node: place for place, node in enumerate(self._first.graph.nodes)}
        self._names |= self._first._names

    def go_to(self, start: int) -> None:
        """Start a part with the node that has so many before it."""
        self._start = start
        self.graph = fx.Graph()
        self._rest = self.graph.placeholder("rest")
        self.tape.steps[:] = [Step(self._rest.name)]
        self._offset = start - 1
        first = self._first
        self._places, self._held = ChainMap({}, first._places), ChainMap({}, first._held)
        self._made, self._numbers = ChainMap({}, first._made), ChainMap({}, first._numbers)

    def changes(self, start: int, end: int) -> list[Change]:
        """The constants of that part that differ. Raises Differs where anything else does."""
        assert self._wanted is not None
        return changes(self._wanted[start:end], list(self.graph.nodes)[1:])

    def stands(self, node: fx.Node) -> bool:
        """Whether a node is in this part, or before it."""
        place = self._place.get(node)
        return super().stands(node) and (node.graph is self.graph if place is None else place < self._start)

    def node(self, op: str, target: Any, args: Any = (), kwargs: Any = None) -> fx.Node:
        """A node at the end."""

        def here(node: fx.Node) -> fx.Node:
            return node if node.graph is self.graph else self._rest

        return super().node(op, target, map_arg(args, here), map_arg(kwargs or {}, here))


def _same(result: Any, other: Any) -> bool:
    """Whether nothing that follows can tell two results of a module apart."""
    if type(result) is not type(other) or isinstance(result, torch.Tensor):
        return result is other
    if isinstance(result, tuple):
        return len(result) == len(other) and all(map(_same, result, other))
    return bool(plain(result) == plain(other))
