"""From a table to targets: slim models are timed where the table is from, and refused anywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphprune
from graphprune.channels.groups import Groups
from graphprune.channels.propagate import propagate
from graphprune.errors import LatencyError
from graphprune.ir.program import Program
from graphprune.latency.clock import Subject
from graphprune.latency.environment import environment_of
from graphprune.latency.table import LatencyTable, Settings
from graphprune.latency.timing import Timing, standard_error
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.latency.profile import profile_latency
from graphprune.passes.latency.source import latency_from
from graphprune.pipeline.analysis_manager import AnalysisManager
from tests.planted_latency import PlantedClock, conv_ms

IMAGE = torch.zeros(1, 3, 4, 4)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 48, 1), nn.ReLU(), nn.Conv2d(48, 5, 1)).eval()


def planted(first: int, second: int) -> float:
    return 0.5 + conv_ms(first, 3) + conv_ms(second, first) + conv_ms(5, second)


@pytest.fixture
def here() -> tuple[Program, Groups, LatencyTable]:
    program = graphprune.capture(model(), IMAGE)
    groups = AnalysisManager().get(program, ChannelGroups)
    table = profile_latency(program, groups, environment_of(program.module), PlantedClock(), Settings(samples=24))
    return program, groups, table


def test_slim_models_are_timed_beside_the_whole_one(here: tuple[Program, Groups, LatencyTable]) -> None:
    program, groups, table = here
    clock = PlantedClock()
    latency = latency_from(program, groups, table, clock=clock)
    assert latency.measure is not None
    measured = latency.measure(np.array([20, 10]))
    assert measured.slim == pytest.approx(planted(20, 10)) and measured.whole == pytest.approx(planted(64, 48))
    assert clock.seen == [[20, 10, 5], [64, 48, 5]]
    assert measured.error == 0 and measured.parts is not None
    np.testing.assert_allclose(np.nansum(measured.parts), planted(20, 10) - 0.5, rtol=0.05)  # all but the overhead
    assert float(latency.model([20, 10])) == pytest.approx(planted(20, 10), rel=0.05)


@pytest.mark.parametrize("share", [0.8, 0.6, 0.45])
@pytest.mark.parametrize("select", ["select", "knapsack", "greedy"])
def test_the_rewritten_model_has_the_latency_that_was_asked_for(
    here: tuple[Program, Groups, LatencyTable], share: float, select: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphprune.passes.latency.source.DeviceClock", lambda environment, **options: PlantedClock())
    result = graphprune.prune(model(), IMAGE, target={"latency": share}, latency=here[2], select=select)
    widths = [after for _, after in result.report.widths.values()]
    reached = planted(*widths) / planted(64, 48)
    assert result.plan.achieved["latency"] == pytest.approx(reached, abs=1e-6)
    assert share - 0.06 <= reached <= share * 1.01, "a block of eight channels is a stair"
    assert result.report.verification is not None and result.report.verification.passed


class _Copies(PlantedClock):
    """The same times, of three copies that differ by 1 % each; the slim model's the other way round."""

    def whole(self, subjects: Sequence[Subject]) -> list[Timing]:
        slim, *others = super().whole(subjects)
        return [_of_copies(slim, 0.01), *(_of_copies(other, -0.01) for other in others)]


def _of_copies(timing: Timing, by: float) -> Timing:
    return timing.model_copy(update={"copies_ms": tuple((timing.median_ms * np.exp([-by, 0, by])).tolist())})


def test_the_plan_has_the_error_of_the_measured_share(
    here: tuple[Program, Groups, LatencyTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphprune.passes.latency.source.DeviceClock", lambda environment, **options: _Copies())
    plan = graphprune.prune(model(), IMAGE, target="latency=60%", latency=here[2], select="knapsack", verify=False).plan
    once = standard_error([-0.02, 0, 0.02])
    repeats = [plan.achieved["latency"] * once / times**0.5 for times in (2, 3, 4)]
    assert any(plan.errors["latency"] == pytest.approx(error, rel=1e-3) for error in repeats)
    assert f"± {plan.errors['latency']:.1%} measured" in str(plan.scores)
    predicted = graphprune.prune(model(), IMAGE, target="latency=60%", latency=here[2], measure=False, verify=False).plan
    assert predicted.errors == {}
    (told,) = (note["latency"] for note in predicted.scores.values())
    assert told.startswith(f"{predicted.achieved['latency']:.1%} predicted by the table") and told.endswith(
        "no slim model was timed"
    )


def test_rounding_to_where_the_latency_steps_keeps_whole_blocks(here: tuple[Program, Groups, LatencyTable]) -> None:
    """The planted layers work in blocks of eight, and the fitted staircase says so."""
    result = graphprune.prune(
        model(), IMAGE, target="latency=60%", latency=here[2], measure=False, round_to="auto", select="knapsack", verify=False
    )
    widths = [after for _, after in result.report.widths.values()]
    assert all(width % 8 == 0 for width in widths) and widths != [64, 48]


def test_a_table_of_elsewhere_is_refused_with_the_difference(here: tuple[Program, Groups, LatencyTable], tmp_path: Path) -> None:
    program, groups, table = here
    changes: list[tuple[dict[str, Any], str]] = [
        ({"environment": table.environment.model_copy(update={"name": "another card"})}, "the device name is"),
        ({"environment": table.environment.model_copy(update={"threads": 77})}, "number of threads is"),
        ({"inputs": "float32[8x3x4x4]"}, "was measured at float32"),
        ({"model": {**table.model, "0.weight": "float32[65, 3, 1, 1]"}}, "0.weight is float32"),
        ({"groups": {"0": 64, "2": 47}}, "2 is 48 here and 47"),
    ]
    for update, message in changes:
        other = table.model_copy(update=update)
        with pytest.raises(LatencyError, match=message):
            latency_from(program, groups, other)
        elsewhere = "environment" in update or "inputs" in update
        if elsewhere:  # whose predictions may be what is wanted
            assert latency_from(program, groups, other, measure=False).measure is None
        else:
            with pytest.raises(LatencyError, match=message):
                latency_from(program, groups, other, measure=False)
    path = tmp_path / "table.json"
    path.write_text(table.model_dump_json()[:-40])
    with pytest.raises(LatencyError, match="no valid latency table"):
        graphprune.prune(model(), IMAGE, target="latency=50%", latency=path)


def test_another_exclude_than_the_tables_is_refused(here: tuple[Program, Groups, LatencyTable]) -> None:
    with pytest.raises(LatencyError, match="does not fit"):
        graphprune.prune(model(), IMAGE, target="latency=80%", latency=here[2], exclude=["2.*"], measure=False)


def test_a_sweep_of_latency_goes_by_the_predictions(here: tuple[Program, Groups, LatencyTable]) -> None:
    task = graphprune.Sweep(metric="latency", points=3, ways=("global", "knapsack"))
    front = graphprune.sweep(model(), IMAGE, task, latency=here[2])
    assert all(point.reached and point.shares["latency"] <= point.asked + 1e-6 for point in front.points)
    by_way = {way: [p.score or 0.0 for p in front.points if p.way == way] for way in task.ways}
    assert all(best >= plain - 1e-9 for best, plain in zip(by_way["knapsack"], by_way["global"], strict=True))


def test_the_channels_are_followed_once(here: tuple[Program, Groups, LatencyTable], monkeypatch: pytest.MonkeyPatch) -> None:
    """For the table's check and for the passes alike; and for the table itself where there is none."""
    traced: list[Program] = []

    def counted(program: Program, policy: Any) -> Any:
        traced.append(program)
        return propagate(program, policy)

    monkeypatch.setattr("graphprune.passes.analysis.channels.propagate", counted)
    graphprune.prune(model(), IMAGE, target="latency=60%", latency=here[2], measure=False, exclude=(), verify=False)
    assert len(traced) == 1
    for module in ("graphprune.passes.latency.source", "graphprune.surveys.profiling"):
        monkeypatch.setattr(f"{module}.DeviceClock", lambda environment, **options: PlantedClock())
    graphprune.prune(model(), IMAGE, target="latency=60%", verify=False)
    assert len(traced) == 2


def test_without_a_table_the_model_is_measured_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("graphprune.passes.latency.source", "graphprune.surveys.profiling"):
        monkeypatch.setattr(f"{module}.DeviceClock", lambda environment, **options: PlantedClock())
    result = graphprune.prune(model(), IMAGE, target="latency=60%")
    assert 0.5 <= result.plan.achieved["latency"] <= 0.606
