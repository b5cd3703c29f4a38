"""Analyses are computed lazily, kept while they hold, and readable only where declared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from graphprune.errors import PassContractError
from graphprune.ir.program import Inputs, Program
from graphprune.pipeline.analysis_manager import AnalysisManager, AnalysisView
from graphprune.pipeline.observers import Observer
from graphprune.pipeline.pass_base import Analysis, Pass
from graphprune.tracing import capture


@dataclass(frozen=True)
class Base(Analysis[str]):
    """Options in, options out."""

    name = "base"
    option: int = 0
    policy: Mapping[str, str] = field(default_factory=dict)

    def compute(self, program: Program, analyses: AnalysisView) -> str:
        return f"base {self.option}"


@dataclass(frozen=True)
class Derived(Analysis[str]):
    """Reads Base."""

    name = "derived"
    depends = (Base,)

    def compute(self, program: Program, analyses: AnalysisView) -> str:
        return f"derived from {analyses.get(Base)}"


@dataclass(frozen=True)
class Other(Analysis[None]):
    """Reads nothing; its result is None, which counts as one."""

    name = "other"

    def compute(self, program: Program, analyses: AnalysisView) -> None:
        return None


@dataclass(frozen=True)
class Greedy(Analysis[str]):
    """Reads what it does not declare."""

    name = "greedy"

    def compute(self, program: Program, analyses: AnalysisView) -> str:
        return analyses.get(Base)


@dataclass(frozen=True)
class Demanding(Analysis[int]):
    """Has an option without a default."""

    name = "demanding"
    size: int
    seen: Any = None

    def compute(self, program: Program, analyses: AnalysisView) -> int:
        return self.size


@dataclass(frozen=True)
class Chicken(Analysis[int]):
    """Depends on Egg."""

    name = "chicken"

    def compute(self, program: Program, analyses: AnalysisView) -> int:
        return analyses.get(Egg)


@dataclass(frozen=True)
class Egg(Analysis[int]):
    """Depends on Chicken."""

    name = "egg"
    depends = (Chicken,)

    def compute(self, program: Program, analyses: AnalysisView) -> int:
        return analyses.get(Chicken)


Chicken.depends = (Egg,)


@dataclass(frozen=True)
class Reader(Pass):
    """Declares some analyses and preserves none."""

    name = "reader"
    requires = (Base, Derived, Other, Greedy, Demanding)

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        return program


@dataclass(frozen=True)
class KeepsBase(Reader):
    """Preserves Base alone."""

    preserves = (Base,)


@dataclass(frozen=True)
class KeepsDerived(Reader):
    """Preserves what depends on something it does not preserve."""

    preserves = (Derived, Other)


@dataclass(frozen=True)
class KeepsBoth(Reader):
    """Preserves Derived and what it depends on."""

    preserves = (Derived, Base)


@dataclass(frozen=True)
class KeepsAll(Reader):
    """Preserves all."""

    preserves = "all"


class Computed(Observer):
    """Lists what is really computed."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.ended: list[str] = []

    def before_analysis(self, analysis: Analysis[Any]) -> None:
        self.names.append(analysis.name)

    def after_analysis(self, analysis: Analysis[Any]) -> None:
        self.ended.append(analysis.name)


@pytest.fixture
def program() -> Program:
    return capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.zeros(2, 4))


@pytest.fixture
def manager() -> AnalysisManager:
    return AnalysisManager()


def recomputed(manager: AnalysisManager, program: Program) -> list[str]:
    """The analyses among Base, Derived and Other that have to be computed again."""
    log = Computed()
    manager.get(program, Base, [log])
    manager.get(program, Derived, [log])
    manager.get(program, Other, [log])
    return log.names


def other_graph(program: Program) -> Program:
    return program.with_(module=copy.deepcopy(program.module))


def test_nothing_is_computed_before_it_is_read_and_then_once(program: Program, manager: AnalysisManager) -> None:
    log = Computed()
    view = manager.view(program, Reader(), [log])
    assert log.names == []
    assert view.get(Derived) == view.get(Derived()) == "derived from base 0"
    assert view.get(Base) == "base 0"
    view.get(Other)
    view.get(Other)
    assert log.names == ["derived", "base", "other"]
    assert log.ended == ["base", "derived", "other"]


def test_options_are_part_of_the_key(program: Program, manager: AnalysisManager) -> None:
    view = manager.view(program, Reader())
    assert view.get(Base(option=3)) == "base 3"
    assert view.get(Base) == "base 0"
    assert len(manager.cached()) == 2


def test_mappings_and_lists_may_be_options(program: Program, manager: AnalysisManager) -> None:
    log = Computed()
    view = manager.view(program, Reader(), [log])
    view.get(Base(policy={"a": "1", "b": "2"}))
    view.get(Base(policy={"b": "2", "a": "1"}))
    view.get(Base(policy={"a": "2", "b": "1"}))
    view.get(Demanding(1, ["a"]))
    view.get(Demanding(1, ["a"]))
    assert log.names == ["base", "base", "demanding"]


def test_options_that_are_not_hashable_are_refused(program: Program, manager: AnalysisManager) -> None:
    with pytest.raises(PassContractError, match="Demanding has an option that is not hashable"):
        manager.view(program, Reader()).get(Demanding(1, {1, 2}))


def test_a_class_with_a_mandatory_option_cannot_stand_for_an_instance(program: Program, manager: AnalysisManager) -> None:
    with pytest.raises(PassContractError, match="Demanding was asked for without options"):
        manager.view(program, Reader()).get(Demanding)


@pytest.mark.parametrize("analysis", [Chicken, Chicken()])
def test_an_undeclared_analysis_names_both_classes(program: Program, manager: AnalysisManager, analysis: Any) -> None:
    with pytest.raises(
        PassContractError, match=r"Reader reads the analysis Chicken without declaring it; add it to Reader\.requires"
    ):
        manager.view(program, Reader()).get(analysis)


def test_an_analysis_too_must_declare_what_it_reads(program: Program, manager: AnalysisManager) -> None:
    log = Computed()
    with pytest.raises(PassContractError, match=r"Greedy reads the analysis Base without declaring it; add it to Greedy\.depends"):
        manager.view(program, Reader(), [log]).get(Greedy)
    assert manager.cached() == ()
    assert log.ended == ["greedy"]


def test_a_circle_is_an_error_with_its_path(program: Program, manager: AnalysisManager) -> None:
    with pytest.raises(PassContractError, match="Chicken depends on itself: Chicken -> Egg -> Chicken"):
        manager.get(program, Chicken)


@pytest.mark.parametrize(
    ("reader", "expected"),
    [
        (Reader(), ["base", "derived", "other"]),
        (KeepsBase(), ["derived", "other"]),
        (KeepsDerived(), ["base", "derived"]),
        (KeepsBoth(), ["other"]),
        (KeepsAll(), []),
    ],
)
def test_a_changed_program_keeps_what_is_preserved_with_all_it_depends_on(
    program: Program, manager: AnalysisManager, reader: Pass, expected: list[str]
) -> None:
    recomputed(manager, program)
    after = program.with_(source="changed") if reader.preserves == "all" else other_graph(program)
    manager.advance(reader, program, after)
    assert recomputed(manager, after) == expected


def test_the_same_program_keeps_everything_whatever_is_declared(program: Program, manager: AnalysisManager) -> None:
    recomputed(manager, program)
    manager.advance(Reader(), program, program)
    assert recomputed(manager, program) == []


def test_a_changed_program_with_the_same_graph_drops_what_is_not_preserved(program: Program, manager: AnalysisManager) -> None:
    recomputed(manager, program)
    after = program.with_(source="changed")
    manager.advance(KeepsBase(), program, after)
    assert recomputed(manager, after) == ["derived", "other"]


def test_another_graph_or_other_inputs_find_nothing(program: Program, manager: AnalysisManager) -> None:
    everything = ["base", "derived", "other"]
    assert recomputed(manager, program) == everything
    assert recomputed(manager, program.with_(source="same graph")) == []
    assert recomputed(manager, program.with_(inputs=Inputs((torch.zeros(3, 4),)))) == everything
    assert recomputed(manager, other_graph(program)) == everything


def test_other_constraints_find_nothing_even_if_a_pass_claims_to_preserve_all(program: Program, manager: AnalysisManager) -> None:
    everything = ["base", "derived", "other"]
    recomputed(manager, program)
    excluding = program.with_(exclude=("0",))
    manager.advance(KeepsAll(), program, excluding)
    assert recomputed(manager, excluding) == everything
    assert recomputed(manager, excluding.with_(exclude=("0",))) == []
    assert recomputed(manager, excluding.with_(policy={"heads": "head_dim"})) == everything
