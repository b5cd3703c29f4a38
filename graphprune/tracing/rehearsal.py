"""Train mode without a second run: modules whose own code asked for the mode are run again, each by itself.

All else does in train mode what it did in eval mode, given that those modules make the same calls, with other constants at
most, add numbers to buffers at most, and give the same results. A module that does more stays as it is in eval mode.
"""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from graphprune.errors import first_line
from graphprune.tracing.sizes import plain
from graphprune.tracing.source import error_line, in_brackets
from graphprune.tracing.tracer import Tracer
from graphprune.tracing.training import Addition, Change, Differs, Mode, Question, changes
from graphprune.tracing.writer import Writer


def rehearse(root: nn.Module, first: Tracer, announced: bool) -> tuple[list[Change | Addition], dict[str, str]]:
    """What is different in train mode from a finished run in eval mode, and the modules that cannot follow, with the reason."""
    answers: dict[str, list[Change | Addition]] = defaultdict(list)
    stays: dict[str, str] = {}
    questions: Iterator[Question] = iter(first.questions)
    while (question := next(questions, None)) is not None:
        _ask(root, first, announced, chain((question,), questions), answers, stays)
    return [one for path, found in answers.items() if path not in stays for one in found], stays


def _ask(
    root: nn.Module,
    first: Tracer,
    announced: bool,
    questions: Iterable[Question],
    answers: dict[str, list[Change | Addition]],
    stays: dict[str, str],
) -> None:
    """Ask all, or up to the first that cannot follow: what its run has left behind is not to be used again."""
    rehearsal = _Rehearsal(root, first)
    path = ""
    try:
        with rehearsal.running(announced):
            for question in questions:
                path = question.path
                if path not in stays:
                    answers[path] += rehearsal.answer(question)
    except Differs as differs:
        stays[path] = str(differs)
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

    def answer(self, question: Question) -> list[Change | Addition]:
        """What differs in the nodes of a call. Raises Differs where the graph cannot follow."""
        self._results.go_to(question.start.calls)
        self.writer.go_to(question.start.nodes)
        module = self._shadow.part(question.path)
        try:
            result = self._run(module, question.path, self.writer.mark(), question.args, question.kwargs)
        except Exception as error:
            place = in_brackets(error_line(error))
            raise Differs(f"it does not trace in train mode{place}: {type(error).__name__}: {first_line(error)}") from error
        found = self.writer.changes(question.start.nodes, question.end.nodes)
        if not _same(result, question.result):
            raise Differs("it returns something else in train mode")
        return found

    def _call_opaque(self, module: nn.Module, path: str, args: Any, kwargs: Any, error: Exception) -> Any:
        raise Differs(f"{path} does not trace in train mode: {first_line(error)}") from error


class _PartWriter(Writer):
    """Writes a part of a graph again, apart from it; what it reads of the rest is in a graph of its own."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._first: Writer = parts[-1]
        self._place = {node: place for place, node in enumerate(self._first.graph.nodes)}
        self._names |= self._first._names
        self._rest: dict[fx.Node, fx.Node] = {}
        self._rest_graph = fx.Graph()

    def go_to(self, start: int) -> None:
        """Start a part with the node that has so many before it."""
        self._start = start
        self.graph = fx.Graph()
        for left in (self._rest, self.tape.steps, self.additions):
            left.clear()
        self._offset = start
        first = self._first
        self._places, self._held = ChainMap({}, first._places), ChainMap({}, first._held)
        self._made, self._numbers = ChainMap({}, first._made), ChainMap({}, first._numbers)

    def changes(self, start: int, end: int) -> list[Change | Addition]:
        """What differs in that part. Raises Differs where the graph cannot follow."""
        assert self._wanted is not None
        outer = {stand_in: node for node, stand_in in self._rest.items()}
        return [*changes(self._wanted[start:end], list(self.graph.nodes), outer), *self.additions]

    def stands(self, node: fx.Node) -> bool:
        """Whether a node is in this part, or before it."""
        place = self._place.get(node)
        return super().stands(node) and (node.graph is self.graph if place is None else place < self._start)

    def node(self, op: str, target: Any, args: Any = (), kwargs: Any = None) -> fx.Node:
        """A node at the end."""

        def here(node: fx.Node) -> fx.Node:
            if node.graph is self.graph:
                return node
            if node not in self._rest:
                self._rest[node] = self._rest_graph.placeholder(node.name)
            return self._rest[node]

        return super().node(op, target, map_arg(args, here), map_arg(kwargs or {}, here))


def _same(result: Any, other: Any) -> bool:
    """Whether nothing that follows can tell two results of a module apart."""
    if type(result) is not type(other) or isinstance(result, torch.Tensor):
        return result is other
    if isinstance(result, tuple):
        return len(result) == len(other) and all(map(_same, result, other))
    return bool(plain(result) == plain(other))
