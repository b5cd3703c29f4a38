"""The roofline: recovers a planted device, counts what layers do as the cost model does, and says that it predicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

import graphprune
from graphprune.latency.clock import Subject
from graphprune.latency.roofline import Roofline, RooflineModel, fit_roofline, measure_roofline, probes
from graphprune.latency.timing import Timing
from graphprune.latency.work import Layers, Work
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.pipeline.analysis_manager import AnalysisManager
from tests.planted_latency import HERE, exactly

DEVICE = Roofline(rate=4e7, bandwidth=2e7, ramp=30.0, overhead=0.004)


def _work(count: int) -> Work:
    random = np.random.default_rng(0)
    made = 10 ** random.uniform(3, 6, count)
    macs = made * 10 ** random.uniform(0.5, 3.5, count) * (random.random(count) < 0.7)
    return Work(macs, np.where(macs > 0, made, 0), 4 * made * random.uniform(1.5, 4, count))


def test_a_planted_device_is_recovered() -> None:
    work = _work(60)
    found = fit_roofline(work, DEVICE(work))
    for name in ("rate", "bandwidth", "ramp", "overhead"):
        assert getattr(found, name) == pytest.approx(getattr(DEVICE, name), rel=0.02), name


class _DeviceClock:
    """Times probes by the planted device."""

    def whole(self, subjects: Sequence[Subject]) -> list[Timing]:
        known = {tuple(probe.shape) + _shape(probe.layer): probe for probe in probes()}
        found = []
        for subject in subjects:
            layer = next(iter(subject.module.children()))
            probe = known[tuple(subject.arguments[0].shape) + _shape(layer)]
            work = np.array([probe.work(4)], dtype=np.float64).T
            found.append(exactly(float(DEVICE(Work(*work))[0])))
        return found

    def nodes(self, subject: Subject) -> dict[str, float]:
        raise AssertionError("the roofline times plain layers as a whole")


def _shape(module: nn.Module) -> tuple[object, ...]:
    return tuple(size for parameter in module.parameters() for size in parameter.shape) or ("none",)


def test_measuring_the_probes_finds_the_device_and_tests_it_on_others() -> None:
    found = measure_roofline(HERE, _DeviceClock())
    assert found.error is not None and found.error.samples == -(-len(probes()) // 4) and found.error.worst < 0.01
    assert found.rate == pytest.approx(DEVICE.rate, rel=0.05)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.c(torch.relu(self.b(self.a(x)))).flatten(1))
        return y


def test_work_is_that_of_the_cost_model_and_the_prediction_is_the_sum_of_its_parts() -> None:
    program = graphprune.capture(_Net(), torch.zeros(2, 3, 4, 4))
    manager = AnalysisManager()
    groups, cost = manager.get(program, ChannelGroups), manager.get(program, ModelCost)
    widths = np.stack([groups.widths, np.maximum(1, groups.widths // 2), np.ones_like(groups.widths)])
    work = Layers(program, groups).at(widths)
    np.testing.assert_allclose(work.macs.sum(axis=-1), cost.macs(widths))
    model = RooflineModel(program, groups, DEVICE)
    assert not model.measured and (model.name, model.unit) == ("latency", "ms")
    assert model.parts(widths).shape == (3, len(model.terms))
    np.testing.assert_allclose(model.parts(widths).sum(axis=-1), model(widths))
    assert (np.diff(model(widths)) < 0).all()


def test_a_layer_moves_what_it_reads_owns_and_writes_and_a_view_moves_nothing() -> None:
    program = graphprune.capture(_Net(), torch.zeros(2, 3, 4, 4))
    groups = AnalysisManager().get(program, ChannelGroups)
    layers = Layers(program, groups)
    names = [node.name for node in program.module.graph.nodes if node.op.startswith("call")]
    moved = dict(zip(names, layers.at(groups.widths).bytes.tolist(), strict=True))
    assert moved["a"] == 4 * (2 * 3 * 16 + (8 * 3 * 9 + 8) + 2 * 8 * 16)
    assert moved["relu"] == 4 * 2 * (2 * 8 * 16)
    assert moved["flatten"] == 0


def test_a_term_depends_on_its_groups_only() -> None:
    program = graphprune.capture(_Net(), torch.zeros(2, 3, 4, 4))
    groups = AnalysisManager().get(program, ChannelGroups)
    model = RooflineModel(program, groups, Roofline(1.0, 1.0, 1.0, 0.1))
    for group in range(len(groups.prunable)):
        narrow = groups.widths.copy()
        narrow[group] = 1
        changed = np.flatnonzero(model.parts(narrow) != model.parts(groups.widths))
        assert {place for place, term in enumerate(model.terms) if group in term} == set(changed.tolist())
