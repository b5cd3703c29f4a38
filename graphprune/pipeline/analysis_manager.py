"""Analyses on demand: computed when first read, kept while the graph stays, readable only where declared."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from graphprune.errors import PassContractError
from graphprune.ir.program import Program
from graphprune.pipeline.observers import Observer
from graphprune.pipeline.pass_base import Analysis, Pass

R = TypeVar("R")


class AnalysisManager:
    """The results of analyses of one graph.

    Results belong to a program's graph and inputs (by identity) and constraints (by value). A program that differs in
    one of these finds none of them, unless :meth:`advance` has carried over what a pass preserves. One manager can
    serve several runs over the same program.
    """

    def __init__(self) -> None:
        self._subject: Program | None = None
        self._results: dict[tuple[Hashable, ...], tuple[Analysis[Any], Any]] = {}
        self._active: list[Analysis[Any]] = []

    def get(self, program: Program, analysis: Analysis[R] | type[Analysis[R]], observers: Sequence[Observer] = ()) -> R:
        """The result of an analysis, computed if it is not there yet.

        analysis: an instance, or a class, which stands for the instance with default options. Raises PassContractError
            for an analysis that depends on itself or whose options are not hashable.
        """
        self._bind(program)
        wanted = _resolve(analysis)
        key = _key(wanted)
        if key not in self._results:
            self._results[key] = wanted, self._compute(program, wanted, observers)
        return cast(R, self._results[key][1])

    def view(self, program: Program, reader: Pass, observers: Sequence[Observer] = ()) -> AnalysisView:
        """What a pass is given: the analyses that it declares."""
        return AnalysisView(self, program, type(reader), type(reader).requires, tuple(observers))

    def cached(self) -> tuple[Analysis[Any], ...]:
        """The analyses whose results are kept at present, in the order of their computation."""
        return tuple(analysis for analysis, _ in self._results.values())

    def advance(self, reader: Pass, before: Program, after: Program) -> None:
        """Carry results over from the program that a pass was given to the one that it returned.

        Kept is what the pass preserves, as long as everything that it depends on is preserved too.
        """
        if after is before:
            return
        self._bind(before)
        preserved = type(reader).preserves
        if preserved == "all":
            self._bind(after)
            return
        kept = set(preserved)
        self._results = {key: entry for key, entry in self._results.items() if _closure(type(entry[0])) <= kept}
        self._subject = after

    def falsified(self, program: Program) -> list[Analysis[Any]]:
        """The kept analyses that give another result when computed anew; those that cannot be compared are left out."""
        self._bind(program)
        fresh = AnalysisManager()
        wrong = []
        for analysis, result in list(self._results.values()):
            claimed = analysis.fingerprint(result)
            if claimed is not None and claimed != analysis.fingerprint(fresh.get(program, analysis)):
                wrong.append(analysis)
        return wrong

    def _bind(self, program: Program) -> None:
        if self._subject is None or not _same_subject(self._subject, program):
            self._results = {}
        self._subject = program

    def _compute(self, program: Program, analysis: Analysis[R], observers: Sequence[Observer]) -> R:
        if analysis in self._active:
            circle = " -> ".join(type(one).__name__ for one in (*self._active[self._active.index(analysis) :], analysis))
            raise PassContractError(f"Analysis {type(analysis).__name__} depends on itself: {circle}.")
        view = AnalysisView(self, program, type(analysis), type(analysis).depends, tuple(observers))
        self._active.append(analysis)
        try:
            for observer in observers:
                observer.before_analysis(analysis)
            return analysis.compute(program, view)
        finally:
            self._active.pop()
            for observer in reversed(observers):
                observer.after_analysis(analysis)


@dataclass(frozen=True)
class AnalysisView:
    """The analyses that one pass or analysis declares, for the program it was given."""

    _manager: AnalysisManager
    _program: Program
    _reader: type[Pass] | type[Analysis[Any]]
    _declared: tuple[type[Analysis[Any]], ...]
    _observers: tuple[Observer, ...]

    def get(self, analysis: Analysis[R] | type[Analysis[R]]) -> R:
        """The result of a declared analysis; a class stands for its instance with default options.

        Raises PassContractError if the analysis is not in the reader's ``requires`` (of a pass) or ``depends``.
        """
        self._check(analysis if isinstance(analysis, type) else type(analysis))
        return self._manager.get(self._program, analysis, self._observers)

    def _check(self, cls: type[Analysis[Any]]) -> None:
        if cls not in self._declared:
            where = "requires" if issubclass(self._reader, Pass) else "depends"
            reader = self._reader.__name__
            raise PassContractError(f"{reader} reads the analysis {cls.__name__} without declaring it; add it to {reader}.{where}.")


def _same_subject(first: Program, second: Program) -> bool:
    same_graph = first.module is second.module and first.inputs is second.inputs
    return same_graph and all(getattr(first, name) == getattr(second, name) for name in ("exclude", "policy", "whole"))


def _resolve(analysis: Analysis[R] | type[Analysis[R]]) -> Analysis[R]:
    if not isinstance(analysis, type):
        return analysis
    try:
        return analysis()
    except TypeError as error:
        raise PassContractError(f"Analysis {analysis.__name__} was asked for without options, which it needs: {error}.") from error


def _closure(cls: type[Analysis[Any]]) -> set[type[Analysis[Any]]]:
    """The class and everything that it depends on, directly or not."""
    found: set[type[Analysis[Any]]] = set()
    pending = [cls]
    while pending:
        current = pending.pop()
        if current not in found:
            found.add(current)
            pending += current.depends
    return found


def _key(analysis: Analysis[Any]) -> tuple[Hashable, ...]:
    try:
        key = (type(analysis), *(_hashable(getattr(analysis, field.name)) for field in fields(analysis)))
        hash(key)
    except TypeError as error:
        raise PassContractError(f"Analysis {type(analysis).__name__} has an option that is not hashable: {error}.") from error
    return key


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    return cast(Hashable, value)
