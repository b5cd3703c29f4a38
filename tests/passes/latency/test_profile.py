"""The driver: real slim models are made and timed by a planted clock; runs go on, and what fails keeps what was measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import graphprune
from graphprune.channels.groups import Groups
from graphprune.errors import DeviceError, LatencyError, UsageError
from graphprune.ir.program import Program
from graphprune.latency.model import LatencyModel, held_out_accuracy
from graphprune.latency.table import LatencyTable, Settings
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.latency.profile import profile_latency
from graphprune.pipeline.analysis_manager import AnalysisManager
from tests.planted_latency import HERE, PlantedClock, conv_ms


class _Residual(nn.Module):
    """A residual block between two convolutions, and a concat: passive pruning, and groups that add up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 40, 1), nn.Conv2d(40, 24, 1)
        self.side, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(40, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        y = y + self.second(torch.relu(self.first(y)))
        z: torch.Tensor = self.head(torch.cat([y, self.side(x)], 1))
        return z


def _planted(stem: int, first: int, side: int, overhead: float = 0.5) -> float:
    layers = ((stem, 3), (first, stem), (stem, first), (side, 3), (5, stem + side))
    return overhead + sum(conv_ms(out, inward) for out, inward in layers)


@pytest.fixture(scope="module")
def analysed() -> tuple[Program, Groups]:
    program = graphprune.capture(_Residual(), torch.zeros(1, 3, 4, 4))
    return program, AnalysisManager().get(program, ChannelGroups)


def test_the_planted_latency_of_the_whole_model_is_learnt(analysed: tuple[Program, Groups]) -> None:
    """From 24 slim models, at any widths: layers of one family share their measurements, and the concat's groups add up."""
    program, groups = analysed
    assert [group.name for group in groups.prunable] == ["stem", "first", "side"]
    clock = PlantedClock()
    table = profile_latency(program, groups, HERE, clock, Settings(samples=24))
    random = np.random.default_rng(7)
    widths = random.integers(1, groups.widths, size=(100, 3), endpoint=True)
    np.testing.assert_allclose(LatencyModel(table)(widths), [_planted(*row) for row in widths.tolist()], rtol=0.02)
    tested = held_out_accuracy(table)
    assert tested is not None and tested.worst < 0.05
    assert table.nodes["first"].family != table.nodes["stem"].family, "one has a fixed input"
    assert table.nodes["first"].family == table.nodes["second"].family
    assert [sorted(length.by_group) for length in table.nodes["head"].lengths] == [[0, 2]]


def test_models_are_narrowed_with_everything_that_is_coupled(analysed: tuple[Program, Groups]) -> None:
    program, groups = analysed
    clock = PlantedClock()
    table = profile_latency(program, groups, HERE, clock, Settings(samples=8))
    assert clock.seen == [[stem, first, stem, side, 5] for stem, first, side in table.widths.tolist()]


def test_whole_model_mode_gives_the_latency_of_each_group_alone(analysed: tuple[Program, Groups]) -> None:
    program, groups = analysed
    table = profile_latency(program, groups, HERE, PlantedClock(), Settings(mode="model", samples=8, step=1))
    assert not any(sample.nodes for sample in table.samples)
    model = LatencyModel(table)
    assert model(groups.widths) == pytest.approx(_planted(24, 40, 16)) and model([1, 1, 1]) == pytest.approx(_planted(1, 1, 1))
    assert set(model.terms) == {(), (0,), (1,), (2,)}


@pytest.mark.parametrize("mode", ["layers", "model"])
def test_a_run_that_is_killed_goes_on_to_the_same_table(analysed: tuple[Program, Groups], mode: str) -> None:
    program, groups = analysed
    settings = Settings.model_validate({"mode": mode, "samples": 12, "step": 8})
    complete = profile_latency(program, groups, HERE, PlantedClock(), settings)

    class Killed(Exception):
        pass

    saved: list[LatencyTable] = []

    def kill(after: int) -> Callable[[LatencyTable], None]:
        def save(table: LatencyTable) -> None:
            saved.append(table)
            if len(table.samples) >= after:
                raise Killed

        return save

    known = None
    for after in (1, 7, 9):
        with pytest.raises(Killed):
            profile_latency(program, groups, HERE, PlantedClock(), settings, known=known, save=kill(after))
        known = LatencyTable.model_validate_json(saved[-1].model_dump_json())
    clock = PlantedClock()
    assert profile_latency(program, groups, HERE, clock, settings, known=known) == complete
    assert known is not None and len(clock.seen) == len(complete.samples) - len(known.samples)


def test_a_finished_table_is_not_measured_again(analysed: tuple[Program, Groups]) -> None:
    program, groups = analysed
    table = profile_latency(program, groups, HERE, PlantedClock(), Settings(samples=8))
    clock = PlantedClock()
    assert profile_latency(program, groups, HERE, clock, Settings(samples=8), known=table) == table and not clock.seen


def test_a_device_that_vanishes_is_one_clear_error_and_keeps_what_was_measured(analysed: tuple[Program, Groups]) -> None:
    program, groups = analysed
    card = HERE.model_copy(update={"device": "cuda"})
    saved: list[LatencyTable] = []

    class OnCpu(PlantedClock):
        """The models stay on the CPU; only the clock believes in a card."""

    with pytest.MonkeyPatch.context() as patch, pytest.raises(DeviceError, match="8 samples are kept"):
        patch.setattr("graphprune.passes.latency.profile.torch.device", lambda kind: torch.empty(0).device)
        profile_latency(program, groups, card, OnCpu(fail_after=8), Settings(samples=12), save=saved.append)
    assert len(saved[-1].samples) == 8


def test_a_table_of_something_else_is_not_continued(analysed: tuple[Program, Groups]) -> None:
    program, groups = analysed
    table = profile_latency(program, groups, HERE, PlantedClock(), Settings(samples=8))
    other = HERE.model_copy(update={"name": "another"})
    with pytest.raises(LatencyError, match="device name"):
        profile_latency(program, groups, other, PlantedClock(), Settings(samples=8), known=table)
    with pytest.raises(LatencyError, match="samples is 9 here and 8"):
        profile_latency(program, groups, HERE, PlantedClock(), Settings(samples=9), known=table)


class _Keyed(nn.Module):
    """Takes its tensors in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        y: torch.Tensor = self.b(self.a(batch["x"])) * batch["y"]
        return y


def test_inputs_in_a_dictionary_are_measured_and_told_apart() -> None:
    def table(size: int) -> LatencyTable:
        program = graphprune.capture(_Keyed(), ({"x": torch.zeros(1, 3, size, size), "y": torch.ones(1)},))
        groups = AnalysisManager().get(program, ChannelGroups)
        return profile_latency(program, groups, HERE, PlantedClock(), Settings(samples=8))

    assert {"a", "b"} <= table(4).nodes.keys() and "float32[1x3x4x4]" in table(4).inputs
    with pytest.raises(LatencyError, match="inputs is"):
        table(8).check_continues(table(4))


def test_a_model_that_cannot_be_narrowed_is_refused() -> None:
    program = graphprune.capture(nn.Linear(3, 4), torch.zeros(1, 3))
    with pytest.raises(UsageError, match="no prunable group"):
        profile_latency(program, AnalysisManager().get(program, ChannelGroups), HERE, PlantedClock())
