"""What tests make of the rules: the lines that they run, and the analyses that they ask for."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final, TypeAlias

import numpy as np
from torch.utils._pytree import tree_leaves

from graphprune.channels import propagate as propagation
from graphprune.channels.groups import Groups
from graphprune.channels.labels import Field, Value
from graphprune.channels.propagate import Trace, propagate
from graphprune.ir.program import Program
from graphprune.pipeline.policy import Policy
from tests.mutants.mutate import ROOT, TARGETS

Lines: TypeAlias = set[tuple[str, int]]

_FILES: Final = {str(ROOT / prefix / file): file for file in TARGETS for prefix in ("", "graphprune")}


@contextmanager
def lines_run(found: Lines) -> Iterator[None]:
    """Add to ``found`` the lines of the rules that run meanwhile: file and number."""

    def line(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        found.add((_FILES[frame.f_code.co_filename], frame.f_lineno))
        return line

    def call(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        return line(frame, event, None) if frame.f_code.co_filename in _FILES else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


@dataclass
class Analysis:
    """One analysis that a test asked for, to be made again under other rules. lines: what it ran. seconds: of CPU."""

    program: Program
    policy: Policy | None
    lines: Lines
    facts: str
    seconds: float

    def changed(self) -> bool:
        """Whether the rules, as they are now, say anything else of the program. They may fail, too."""
        try:
            return facts(propagate(self.program, self.policy)) != self.facts
        except Exception:
            return True


@dataclass
class Recorder:
    """Takes the place of ``propagate`` wherever it was imported, and keeps what it was called with.

    failed: lines of analyses that raised an error.
    """

    found: dict[str, Analysis] = field(default_factory=dict)
    failed: Lines = field(default_factory=set)
    known: dict[str, Analysis] = field(default_factory=dict)

    def install(self) -> None:
        """Nothing that is imported later is recorded."""
        for module in list(sys.modules.values()):
            if getattr(module, "propagate", None) is propagate and module is not propagation and module.__name__ != __name__:
                setattr(module, "propagate", self)  # noqa: B010

    def __call__(self, program: Program, policy: Policy | None = None) -> Trace:
        """The trace, and a note of how it was made."""
        lines: Lines = set()
        try:
            with lines_run(lines):
                trace = propagate(program, policy)
        except Exception:
            self.failed |= lines
            raise
        program = program if program.tape is not None else program.with_(tape=trace.tape)
        start = time.process_time()
        said = facts(propagate(program, policy))
        analysis = Analysis(program, policy, lines, said, time.process_time() - start)
        self.found[said] = self.known.setdefault(said, analysis)
        return trace


def facts(trace: Trace) -> str:
    """A digest of all that is read from an analysis: equal ones lead to equal plans, costs and slim models."""
    groups = Groups(trace)
    unit_of, digest = groups.unit_of, hashlib.sha256()

    def units(labels: Field | int) -> Any:
        return labels if isinstance(labels, int) else (labels.shape, unit_of[labels].tobytes())

    def plain(tree: Any) -> list[Any]:
        leaves = tree_leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Value))
        return [(leaf.shape, [units(f) for f in leaf.fields]) for leaf in leaves if isinstance(leaf, Value)]

    for part in (
        [(group.name, group.units.tobytes(), str(group.reason), str(group.statistics)) for group in groups.prunable],
        [(group.units.tobytes(), str(group.reason)) for group in groups.frozen],
        [(name, plain(value)) for name, value in trace.parameters.items()],
        [(name, plain(value)) for name, value in trace.values.items()],
        [(name, plain(value)) for name, value in trace.operands],
        [(term.node, [units(factor) for factor in term.factors]) for term in trace.macs],
        [(name, units(labels)) for name, labels in trace.scalars.items()],
        [(s.source, s.target, s.axis, s.interior, units(s.before), units(s.after)) for s in trace.shuffles],
        [trace.missing, groups.group_of.tobytes(), np.shape(unit_of)],
    ):
        digest.update(repr(part).encode())
    return digest.hexdigest()
