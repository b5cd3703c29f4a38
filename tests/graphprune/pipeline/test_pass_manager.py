"""The pass manager holds passes to their declarations, checks their order, and tells observers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch
from torch import nn

from graphprune.errors import PassContractError, PipelineError
from graphprune.ir.program import Program
from graphprune.pipeline import pass_manager
from graphprune.pipeline.analysis_manager import AnalysisManager, AnalysisView
from graphprune.pipeline.observers import Observer, Step
from graphprune.pipeline.pass_base import Analysis, Pass, is_present
from graphprune.pipeline.pass_manager import PassManager
from graphprune.tracing import capture

Change = Callable[[Program], Any]


@dataclass(frozen=True)
class Widths(Analysis[list[int]]):
    """The first axis of every weight."""

    name = "widths"

    def compute(self, program: Program, analyses: AnalysisView) -> list[int]:
        return [tensor.shape[0] for tensor in program.module.parameters()]

    def fingerprint(self, result: list[int]) -> object:
        return tuple(result)


@dataclass(frozen=True)
class Do(Pass):
    """Does what it is told."""

    name = "do"
    requires = (Widths,)
    change: Change = field(default=lambda program: program)

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        analyses.get(Widths)
        result = self.change(program)
        return result  # type: ignore[no-any-return]


@dataclass(frozen=True)
class KeepAll(Do):
    """Claims to leave the graph as it is."""

    name = "keep-all"
    preserves = "all"


@dataclass(frozen=True)
class KeepWidths(Do):
    """Claims to leave the widths as they are."""

    name = "keep-widths"
    preserves = (Widths,)


@dataclass(frozen=True)
class Scorer(Do):
    """Adds scores."""

    name = "scorer"
    provides = ("scores",)


@dataclass(frozen=True)
class Selector(Do):
    """Reads scores."""

    name = "selector"
    needs = ("scores",)


def with_scores(program: Program) -> Program:
    return program.with_(scores={"l2": object()})


def narrowed(program: Program, *, attributes: bool = True) -> Program:
    """A copy of the program whose first layer gives 6 channels instead of 8, its module attributes adapted or not."""
    module = copy.deepcopy(program.module)
    layer = module.get_submodule("0")
    assert isinstance(layer, nn.Linear)
    layer.weight, layer.bias = nn.Parameter(layer.weight[:6].detach()), nn.Parameter(layer.bias[:6].detach())
    layer.out_features = 6 if attributes else 8
    return program.with_(module=module)


def renamed(program: Program) -> Program:
    return program.with_(module=copy.deepcopy(program.module))


@pytest.fixture
def program() -> Program:
    return capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.zeros(2, 4))


class Log(Observer):
    """Writes down every call."""

    def __init__(self, calls: list[str], name: str = "") -> None:
        self.calls, self.name = calls, name

    def before_pass(self, step: Step, program: Program) -> None:
        self.calls.append(f"{self.name}before {step.index} {step.current.name}")

    def after_pass(self, step: Step, before: Program, after: Program) -> None:
        self.calls.append(f"{self.name}after {step.index} {step.current.name}{'' if after is before else ' changed'}")

    def pass_failed(self, step: Step, program: Program, error: Exception) -> None:
        self.calls.append(f"{self.name}failed {step.current.name} {error}")

    def before_analysis(self, analysis: Analysis[Any]) -> None:
        self.calls.append(f"{self.name}before (A) {analysis.name}")

    def after_analysis(self, analysis: Analysis[Any]) -> None:
        self.calls.append(f"{self.name}after (A) {analysis.name}")


def fail(program: Program) -> Program:
    raise ValueError("broken")


# ------------------------------------------------------------------------------------------------ running


def test_passes_run_in_order_on_each_other_s_results(program: Program) -> None:
    def source(text: str) -> Change:
        return lambda program: program.with_(source=program.source + text)

    assert PassManager([Do(source("a")), Do(source("b"))]).run(program).source == "ab"


def test_no_passes_return_the_same_program(program: Program) -> None:
    assert PassManager([]).run(program) is program


@pytest.mark.parametrize(("stop_after", "calls"), [(None, 3), (0, 0), (2, 2), (9, 3)])
def test_stop_after_runs_only_so_many(program: Program, stop_after: int | None, calls: int) -> None:
    seen: list[str] = []
    PassManager([Do(), Do(), Do()], [Log(seen)], stop_after=stop_after).run(program)
    assert sum(call.startswith("before") and "(A)" not in call for call in seen) == calls


def test_negative_stop_after_is_refused() -> None:
    with pytest.raises(PipelineError, match="stop_after=-1 is negative"):
        PassManager([], stop_after=-1)


def test_a_manager_can_run_twice_without_state(program: Program) -> None:
    manager = PassManager([Scorer(with_scores), Selector()])
    assert manager.run(program).scores.keys() == manager.run(program).scores.keys() == {"l2"}


def test_observers_form_a_stack_around_passes_and_analyses(program: Program) -> None:
    calls: list[str] = []
    PassManager([Do(renamed)], [Log(calls, "1 "), Log(calls, "2 ")]).run(program)
    assert calls == [
        "1 before 0 do",
        "2 before 0 do",
        "1 before (A) widths",
        "2 before (A) widths",
        "2 after (A) widths",
        "1 after (A) widths",
        "2 after 0 do changed",
        "1 after 0 do changed",
    ]


def test_a_failure_reaches_observers_and_stops_the_pipeline(program: Program) -> None:
    calls: list[str] = []
    with pytest.raises(ValueError, match="broken"):
        PassManager([Do(), Do(fail), Do()], [Log(calls)]).run(program)
    assert calls[-2:] == ["before 1 do", "failed do broken"]


def test_analyses_given_to_the_run_hold_its_results_afterwards(program: Program) -> None:
    analyses = AnalysisManager()
    calls: list[str] = []
    PassManager([KeepAll(with_scores)]).run(program, analyses)
    assert analyses.cached() == (Widths(),)
    assert analyses.get(program, Widths, [Log(calls)]) == [8, 8]
    assert calls == []


# ------------------------------------------------------------------------------------------------ contract


def test_a_result_that_is_no_program_is_the_pass_s_fault(program: Program) -> None:
    with pytest.raises(PassContractError, match=r"Pass 'do' returned NoneType; Do\.run must return a Program"):
        PassManager([Do(lambda program: None)]).run(program)


def test_preserving_all_and_returning_a_new_graph_is_the_pass_s_fault(program: Program) -> None:
    with pytest.raises(PassContractError, match="Pass 'keep-all' returned a new graph although KeepAll preserves 'all'"):
        PassManager([KeepAll(renamed)]).run(program)
    assert PassManager([KeepAll(with_scores)]).run(program).scores


def test_a_field_that_is_declared_but_not_provided_is_the_pass_s_fault(program: Program) -> None:
    with pytest.raises(PassContractError, match="Pass 'scorer' returned a program without scores, which Scorer provides"):
        PassManager([Scorer()]).run(program)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"name": "Not Kebab"}, "has the name 'Not Kebab'"),
        ({"name": "bad", "preserves": "some"}, "preserves 'some'"),
        ({"name": "bad", "needs": ("score",)}, "needs or provides 'score', which no program has"),
    ],
)
def test_faulty_declarations_are_found_when_the_pipeline_is_made(attributes: dict[str, Any], message: str) -> None:
    cls: Any = dataclass(frozen=True)(type("Faulty", (Do,), attributes))
    with pytest.raises(PassContractError, match=f"Pass class Faulty .*{message}"):
        PassManager([cls()])


def test_a_pass_without_a_name_is_refused() -> None:
    @dataclass(frozen=True)
    class Nameless(Pass):
        def run(self, program: Program, analyses: AnalysisView) -> Program:
            return program

    with pytest.raises(PassContractError, match="Nameless has the name None"):
        PassManager([Nameless()])


# ------------------------------------------------------------------------------------------------ order


def test_fields_present_from_the_start_satisfy_needs(program: Program) -> None:
    present = {one.name for one in fields(program) if is_present(program, one.name)}
    assert present == {"module", "inputs", "tape"}
    assert PassManager([Selector()]).run(with_scores(program)).scores


def test_a_missing_field_names_the_pass_that_stands_too_late_and_nothing_runs(program: Program) -> None:
    calls: list[str] = []
    with pytest.raises(PipelineError, match="Pass 'selector' needs scores, which 'scorer' provides later; put 'scorer' before it"):
        PassManager([Do(), Selector(), Scorer(with_scores)], [Log(calls)]).run(program)
    assert calls == []


def test_a_missing_field_names_a_registered_pass_that_provides_it(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_manager, "providers", lambda name: ("score", "other") if name == "scores" else ())
    with pytest.raises(PipelineError, match="Pass 'selector' needs scores; put 'score' or 'other' before it"):
        PassManager([Selector()]).run(program)


def test_a_missing_field_that_nothing_provides_says_so(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_manager, "providers", lambda name: ())
    with pytest.raises(PipelineError, match="no pass is known that provides it"):
        PassManager([Selector()]).run(program)


def test_a_field_taken_away_on_the_way_is_noticed_before_the_pass_that_needs_it(program: Program) -> None:
    calls: list[str] = []
    clear = Do(lambda program: program.with_(scores={}))
    with pytest.raises(PipelineError, match="took away after 'scorer'; repeat 'scorer' before it"):
        PassManager([Scorer(with_scores), clear, Selector()], [Log(calls)]).run(program)
    assert calls[-1] == "after 1 do changed"


def test_passes_beyond_stop_after_need_nothing(program: Program) -> None:
    assert PassManager([Do(), Selector()], stop_after=1).run(program) is program


# ------------------------------------------------------------------------------------------------ structure


def test_an_unsound_graph_names_the_pass_and_the_node(program: Program) -> None:
    half_done = Do(lambda program: narrowed(program, attributes=False))
    with pytest.raises(
        PassContractError, match=r"Pass 'do' left an unsound graph: node _0 calls 0, whose weight has shape \(6, 4\)"
    ) as caught:
        PassManager([half_done]).run(program)
    assert "(1 more)" in str(caught.value)
    assert "whose bias has shape (6,)" in caught.value.__notes__[0]


def test_verify_each_can_be_switched_off_and_sound_changes_pass(program: Program) -> None:
    half_done = Do(lambda program: narrowed(program, attributes=False))
    assert PassManager([half_done], verify_each=False).run(program).module is not program.module
    assert PassManager([Do(narrowed)]).run(program).module is not program.module


def test_a_pass_does_not_answer_for_what_was_unsound_before(program: Program) -> None:
    """Models whose attributes never agreed with their weights work in PyTorch, and must not be refused."""
    stale = narrowed(program, attributes=False)
    assert PassManager([Do(), KeepAll(with_scores)]).run(stale).scores

    def drop_relu(program: Program) -> Program:
        module = copy.deepcopy(program.module)
        del module._modules["1"]
        return program.with_(module=module)

    with pytest.raises(PassContractError, match=r"node _1 .* refers to 1"):
        PassManager([Do(drop_relu)]).run(stale)


# ------------------------------------------------------------------------------------------------ debug mode


def test_debug_mode_finds_a_false_claim_to_preserve(program: Program) -> None:
    with pytest.raises(
        PassContractError, match=r"'keep-widths' claims to preserve Widths, .* take it out of KeepWidths\.preserves"
    ):
        PassManager([KeepWidths(narrowed)], check_preserved=True).run(program)
    assert PassManager([KeepWidths(narrowed)]).run(program).module is not program.module


def test_debug_mode_accepts_a_true_claim_to_preserve(program: Program) -> None:
    analyses = AnalysisManager()
    PassManager([KeepWidths(renamed)], check_preserved=True).run(program, analyses)
    assert analyses.cached() == (Widths(),)


def _write_weight(program: Program) -> Program:
    with torch.no_grad():
        program.module.get_parameter("0.weight").zero_()
    return program.with_(source="written")


def _edit_graph(program: Program) -> Program:
    node = next(node for node in program.module.graph.nodes if node.op == "call_module" and node.target == "1")
    node.replace_all_uses_with(node.args[0])
    program.module.graph.erase_node(node)
    return program


def _edit_then_copy(program: Program) -> Program:
    return renamed(_edit_graph(program))


@pytest.mark.parametrize("change", [_write_weight, _edit_graph, _edit_then_copy])
def test_debug_mode_finds_changes_in_place(program: Program, change: Change) -> None:
    with pytest.raises(PassContractError, match="Pass 'do' modified the graph or the tensors it was given"):
        PassManager([Do(change)], check_preserved=True).run(program)


def test_debug_mode_accepts_passes_that_change_nothing_or_copy(program: Program) -> None:
    passes = [Do(), Do(narrowed), KeepAll(with_scores), Do(renamed)]
    assert PassManager(passes, check_preserved=True).run(program).scores
