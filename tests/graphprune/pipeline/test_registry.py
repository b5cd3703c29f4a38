"""Passes by name."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from graphprune.errors import PassContractError, PipelineError
from graphprune.ir.program import Program
from graphprune.pipeline import registry
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Pass
from graphprune.pipeline.registry import BUILT_IN, pass_class, pass_names, providers


@dataclass(frozen=True)
class Shuffle(Pass):
    """A pass of another package."""

    name = "shuffle"
    provides = ("plan",)

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """Return the program."""
        return program


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A package that registers several passes, good and bad."""
    module = types.ModuleType("plugin_of_test")
    module.Shuffle, module.other = Shuffle, 3  # type: ignore[attr-defined]
    targets = {"shuffle": "Shuffle", "alias": "Shuffle", "number": "other", "absent": "Missing", "score": "Shuffle"}
    found = EntryPoints(EntryPoint(name, f"plugin_of_test:{target}", "graphprune.passes") for name, target in targets.items())
    monkeypatch.setitem(sys.modules, "plugin_of_test", module)
    monkeypatch.setattr(registry, "entry_points", lambda group: found.select(group=group))
    return module


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_pass_loads_under_its_name(name: str) -> None:
    pytest.importorskip(BUILT_IN[name].partition(":")[0])
    assert pass_class(name).name == name


def test_a_built_in_pass_is_found_without_looking_at_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: pytest.fail("looked up"))
    assert pass_class("score").name == "score"


def test_built_in_passes_are_listed_in_pipeline_order() -> None:
    selecting = ("select", "knapsack", "greedy", "threshold", "loss-aware")
    assert pass_names()[:9] == ("channels", "score", *selecting, "rewrite", "verify")


def test_entry_points_add_passes_after_the_built_in_ones(plugin: types.ModuleType) -> None:
    assert pass_names() == (*BUILT_IN, "absent", "alias", "number", "shuffle")
    assert pass_class("shuffle") is Shuffle


def test_an_entry_point_cannot_replace_a_built_in_pass(plugin: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BUILT_IN", {"score": "plugin_of_test:absent_class"})
    with pytest.raises(PipelineError, match="plugin_of_test:absent_class"):
        pass_class("score")


def test_unknown_name_gives_the_nearest_and_the_list() -> None:
    with pytest.raises(PipelineError, match=r"There is no pass 'selct'; did you mean 'select'\? Passes: channels, score, select"):
        pass_class("selct")


def test_unknown_name_unlike_any_other_gives_the_list_only() -> None:
    with pytest.raises(PipelineError, match=r"There is no pass 'qqq'\. Passes: channels"):
        pass_class("qqq")


def test_a_pass_that_cannot_be_imported_names_its_target(plugin: types.ModuleType) -> None:
    with pytest.raises(PipelineError, match="Pass 'absent' cannot be loaded from plugin_of_test:Missing"):
        pass_class("absent")


def test_what_is_no_pass_or_has_another_name_is_refused(plugin: types.ModuleType) -> None:
    with pytest.raises(PassContractError, match="registered as the pass 'number', is not a subclass of Pass"):
        pass_class("number")
    with pytest.raises(PassContractError, match="Shuffle is named 'shuffle' but registered as 'alias'"):
        pass_class("alias")


def test_providers_lists_loadable_passes_that_provide_a_field(plugin: types.ModuleType) -> None:
    assert "shuffle" in providers("plan")
    assert providers("source") == ()
