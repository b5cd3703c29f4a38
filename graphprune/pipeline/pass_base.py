"""What a pass and an analysis are: frozen dataclasses whose fields are their options.

An analysis computes a fact about a program's graph. A pass reads facts, which it must declare, and returns a program.
Neither keeps state between runs, and neither modifies the graph or the tensors that it is given.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, TypeVar

from graphprune.errors import PassContractError, UsageError, did_you_mean
from graphprune.ir.program import Program

if TYPE_CHECKING:
    from graphprune.pipeline.analysis_manager import AnalysisView

R = TypeVar("R")

_KEBAB: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Analysis(ABC, Generic[R]):
    """A fact about a graph, computed when first asked for and kept until a pass changes the graph.

    Subclasses are frozen dataclasses. Their fields are options and part of the key under which the result is kept, so
    they must be hashable (mappings and lists of hashable values are fine). The result must depend on the program's
    graph, tensors, inputs and constraints (``exclude``, ``policy``, ``whole``) alone, not on its scores or plan, and must not be
    modified by those who read it.

    name: kebab-case, shown in timings. depends: the analyses that ``compute`` reads.
    """

    name: ClassVar[str]
    depends: ClassVar[tuple[type[Analysis[Any]], ...]] = ()

    @abstractmethod
    def compute(self, program: Program, analyses: AnalysisView) -> R:
        """The result for this program; reads other analyses through ``analyses`` and modifies nothing."""

    def fingerprint(self, result: R) -> object:
        """What two equal results have in common, comparable with ``==``.

        Used in debug mode to check that a pass preserves what it claims to. None (the default) means that results
        cannot be compared, and skips the check.
        """
        return None


@dataclass(frozen=True)
class Pass(ABC):
    """One step of a pipeline. Subclasses are frozen dataclasses; their fields are options in Python and in text.

    name: kebab-case, as in a text pipeline.
    requires: the analyses that ``run`` may read; reading another raises PassContractError.
    preserves: the analyses that stay true of the program returned, or ``"all"`` for a pass that leaves the graph as it
        is and only adds to the program. Read only if the pass returned another program than it was given.
    needs: fields of the program that must be present before (``"scores"``, ``"plan"``, ``"original"``).
    provides: fields of the program that are present afterwards.
    streams: whether it takes programs whose weights are loaded on demand; others are refused where it would run.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[type[Analysis[Any]], ...]] = ()
    preserves: ClassVar[tuple[type[Analysis[Any]], ...] | Literal["all"]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ()
    streams: ClassVar[bool] = False

    @abstractmethod
    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """A new program, or the one given if there was nothing to do."""

    def check_choices(self, **options: Iterable[str]) -> None:
        """Raise UsageError for an option, by its name, that is none of these texts."""
        for option, choices in options.items():
            known, value = list(choices), getattr(self, option)
            if value not in known:
                near = did_you_mean(value, known, ".")
                raise UsageError(f"{self.name}{{{option}={value}}} is not known{near} Choose from {', '.join(known)}.")


def is_present(program: Program, field_name: str) -> bool:
    """Whether a field of the program holds something: neither None nor an empty mapping, tuple or text."""
    value = getattr(program, field_name)
    return value is not None and value not in ((), "", {})


def check_declaration(cls: type[Pass]) -> None:
    """Check that a pass class declares itself as the manager and the text pipelines need it.

    Raises PassContractError for a class that is not itself a frozen dataclass (its options would be lost), a name that
    is missing or not kebab-case, a ``preserves`` that is text other than "all", or a field that programs do not have.
    """
    parameters = vars(cls).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise PassContractError(f"Pass class {cls.__name__} is not a frozen dataclass; decorate it with @dataclass(frozen=True).")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not _KEBAB.fullmatch(name):
        raise PassContractError(f"Pass class {cls.__name__} has the name {name!r}; give it a kebab-case one such as 'fold-norm'.")
    if isinstance(cls.preserves, str) and cls.preserves != "all":
        raise PassContractError(f"Pass class {cls.__name__} preserves {cls.preserves!r}; give a tuple of analyses, or 'all'.")
    known = {field.name for field in fields(Program)}
    for field_name in (*cls.needs, *cls.provides):
        if field_name not in known:
            raise PassContractError(f"Pass class {cls.__name__} needs or provides {field_name!r}, which no program has.")
