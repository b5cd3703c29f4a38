"""Train mode without a second run: modules whose own code asked for the mode are run again, each by itself.

All else does in train mode what it did in eval mode, given that those modules make the same calls, with other constants at
most, add numbers to buffers at most, and give the same results. A module that does more stays as it is in eval mode.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn

from graphprune.errors import first_line
from graphprune.tracing.repeat import RepeatOfParts
from graphprune.tracing.sizes import plain
from graphprune.tracing.source import error_line, in_brackets
from graphprune.tracing.tracer import Tracer
from graphprune.tracing.training import Difference, Differs, Mode, Question
from graphprune.tracing.untraced import why_untraced


def rehearse(root: nn.Module, first: Tracer, announced: bool) -> tuple[list[Difference], dict[str, str]]:
    """What is different in train mode from a finished run in eval mode, and the modules that cannot follow, with the reason."""
    answers: dict[str, list[Difference]] = defaultdict(list)
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
    answers: dict[str, list[Difference]],
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

    writer: RepeatOfParts

    def __init__(self, root: nn.Module, first: Tracer) -> None:
        super().__init__(root, Mode(True), first)
        self._guards.go_on_from(first._guards)

    def _new_writer(self, earlier: Tracer | None) -> RepeatOfParts:
        assert earlier is not None
        return RepeatOfParts(self._recording, self._results, self._shadow, earlier.writer)

    def answer(self, question: Question) -> list[Difference]:
        """What differs in the nodes of a call. Raises Differs where the graph cannot follow."""
        self._results.go_to(question.start.calls)
        self.writer.go_to(question.start.nodes)
        module = self._shadow.part(question.path)
        try:
            result = self._run(module, question.path, self.writer.mark(), question.args, question.kwargs)
        except Exception as error:
            place = in_brackets(error_line(error))
            raise Differs(f"it does not trace in train mode{place}: {why_untraced(error)}") from error
        self.writer.check_end(question.end.nodes)
        if not _same(result, question.result):
            raise Differs("it returns something else in train mode")
        return self.writer.found

    def _call_opaque(self, module: nn.Module, path: str, args: Any, kwargs: Any, error: Exception) -> Any:
        raise Differs(f"{path} does not trace in train mode: {first_line(error)}") from error


def _same(result: Any, other: Any) -> bool:
    """Whether nothing that follows can tell two results of a module apart."""
    if type(result) is not type(other) or isinstance(result, torch.Tensor):
        return result is other
    if isinstance(result, tuple):
        return len(result) == len(other) and all(map(_same, result, other))
    return bool(plain(result) == plain(other))
