"""The pass manager: runs passes in the order given, holds each to its declaration, and tells observers."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import chain

import torch
from torch import fx
from torch.nn.parameter import is_lazy

from graphprune.errors import PassContractError, PipelineError, UsageError
from graphprune.ir.program import Program
from graphprune.ir.verify_graph import Problem, find_problems, graph_text
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.observers import Observer, Step
from graphprune.pipeline.pass_base import Pass, check_declaration, is_present
from graphprune.pipeline.registry import providers


class PassManager:
    """A pipeline, ready to run on programs.

    passes: in the order in which they run; the order is checked, never changed.
    observers: see :mod:`graphprune.pipeline.observers`.
    verify_each: check the structure of the graph after each pass; a pass answers only for what was sound before the run.
    stop_after: run only so many passes, to find the one that goes wrong.
    check_preserved: debug mode. Checks that no pass modifies a graph or a tensor in place, and computes the analyses
        that a pass claims to preserve anew and compares them.

    Raises PassContractError for a pass whose declaration is at fault and PipelineError for a negative ``stop_after``.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        observers: Sequence[Observer] = (),
        verify_each: bool = True,
        stop_after: int | None = None,
        check_preserved: bool = False,
    ) -> None:
        if stop_after is not None and stop_after < 0:
            raise PipelineError(f"stop_after={stop_after} is negative; give the number of passes to run.")
        for one in passes:
            check_declaration(type(one))
        self.passes = tuple(passes)
        self._observers = tuple(observers)
        self._verify_each = verify_each
        self._steps = [Step(index, self.passes) for index in range(len(self.passes))][:stop_after]
        self._check_preserved = check_preserved

    def run(self, program: Program, analyses: AnalysisManager | None = None) -> Program:
        """Run the passes on a program.

        analyses: results to start from and to leave behind, for callers that read some themselves.
        Raises PipelineError when a pass needs a field that is not there, PassContractError when a pass breaks its
        declaration or leaves an unsound graph, and whatever a pass raises. Order mistakes are found before any pass runs.
        """
        self._check_order(program)
        manager = AnalysisManager() if analyses is None else analyses
        start = program.module
        for step in self._steps:
            self._check_needs(step, program)
            _check_memory(step.current, program)
            program = self._run_step(step, program, manager, start)
        return program

    def _run_step(self, step: Step, before: Program, manager: AnalysisManager, start: fx.GraphModule) -> Program:
        for observer in self._observers:
            observer.before_pass(step, before)
        try:
            after = self._apply(step.current, before, manager)
            if self._verify_each and after.module is not before.module:
                _check_structure(step.current, after, start)
        except Exception as error:
            for observer in reversed(self._observers):
                observer.pass_failed(step, before, error)
            raise
        for observer in reversed(self._observers):
            observer.after_pass(step, before, after)
        return after

    def _apply(self, current: Pass, before: Program, manager: AnalysisManager) -> Program:
        snapshot = _snapshot(before.module) if self._check_preserved else None
        after = current.run(before, manager.view(before, current, self._observers))
        _check_result(current, before, after)
        if snapshot is not None and snapshot != _snapshot(before.module):
            raise PassContractError(
                f"Pass {current.name!r} modified the graph or the tensors it was given; it must return a new module."
            )
        manager.advance(current, before, after)
        if self._check_preserved and after.module is not before.module:
            _check_claims(current, after, manager)
        return after

    def _check_order(self, program: Program) -> None:
        provided: set[str] = set()
        for step in self._steps:
            self._check_needs(step, program, provided)
            provided.update(step.current.provides)

    def _check_needs(self, step: Step, program: Program, provided: Container[str] = ()) -> None:
        for field in step.current.needs:
            if field not in provided and not is_present(program, field):
                raise PipelineError(_missing(step, field))


def _check_memory(current: Pass, program: Program) -> None:
    if program.weights is not None and not current.streams:
        raise UsageError(
            f"Pass {current.name!r} needs all weights in memory, and those of this model are loaded one after another. "
            "Leave the pass out, or load the whole model."
        )


def _missing(step: Step, field: str) -> str:
    """Say what to put in front: a pass that stands too late, one that stands early enough but was undone, or any."""
    name = step.current.name
    late = [one.name for one in step.remaining[1:] if field in one.provides]
    early = [one.name for one in step.pipeline[: step.index] if field in one.provides]
    if late:
        return f"Pass {name!r} needs {field}, which {late[0]!r} provides later; put {late[0]!r} before it."
    if early:
        return (
            f"Pass {name!r} needs {field}, which a pass in between took away after {early[-1]!r}; repeat {early[-1]!r} before it."
        )
    known = providers(field)
    if known:
        return f"Pass {name!r} needs {field}; put {' or '.join(map(repr, known))} before it."
    return f"Pass {name!r} needs {field}, and no pass is known that provides it; give a program that has it."


def _check_result(current: Pass, before: Program, after: object) -> None:
    name = current.name
    if not isinstance(after, Program):
        raise PassContractError(
            f"Pass {name!r} returned {type(after).__name__}; {type(current).__name__}.run must return a Program."
        )
    if current.preserves == "all" and after.module is not before.module:
        raise PassContractError(f"Pass {name!r} returned a new graph although {type(current).__name__} preserves 'all' analyses.")
    missing = [field for field in current.provides if not is_present(after, field)]
    if missing:
        raise PassContractError(f"Pass {name!r} returned a program without {missing[0]}, which {type(current).__name__} provides.")


def _check_structure(current: Pass, after: Program, start: fx.GraphModule) -> None:
    """Raise PassContractError for problems that were not in the graph that the run started from."""
    found = find_problems(after.module)
    known = _identities(find_problems(start)) if found else frozenset()
    new = [problem for problem in found if (problem.place, problem.check) not in known]
    if not new:
        return
    more = f" ({len(new) - 1} more)" if len(new) > 1 else ""
    error = PassContractError(f"Pass {current.name!r} left an unsound graph: {new[0].message}{more}.")
    for problem in new[1:]:
        error.add_note(problem.message)
    raise error


def _check_claims(current: Pass, after: Program, manager: AnalysisManager) -> None:
    wrong = manager.falsified(after)
    if wrong:
        raise PassContractError(
            f"Pass {current.name!r} claims to preserve {type(wrong[0]).__name__}, which is different when computed anew; "
            f"take it out of {type(current).__name__}.preserves."
        )


def _identities(problems: Sequence[Problem]) -> frozenset[tuple[str, str]]:
    return frozenset((problem.place, problem.check) for problem in problems)


def _snapshot(module: fx.GraphModule) -> tuple[str, tuple[int, ...]]:
    """The graph with all shapes, and the number of in-place writes that each tensor has seen."""
    tensors = chain(module.parameters(), module.buffers())
    return graph_text(module), tuple(_writes(tensor) for tensor in tensors)


def _writes(tensor: torch.Tensor) -> int:
    return 0 if is_lazy(tensor) or tensor.is_inference() else tensor._version
