"""Calibration of scopes: each scope is measured on what the whole model calls it with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.calibration import Calibration
from graphprune.errors import UsageError
from graphprune.ir.program import Program
from graphprune.passes.analysis.channels import ChannelGroups, ChannelsPass
from graphprune.passes.calibration.supply import calibrated
from graphprune.passes.scoring.score import ScorePass
from graphprune.pipeline.analysis_manager import AnalysisManager
from tests.checking import state_hash


class Detector(nn.Module):
    """Looks at data between a backbone for images and a head for a number of regions that follows from none of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))
        self.head = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))

    def regions(self, images: list[Tensor]) -> Tensor:
        features = self.backbone(torch.stack(images))
        found: Tensor = features.flatten(2)[:, :, :5].transpose(1, 2).reshape(-1, 6)
        return found.abs() if found.sum() > 0 else found - 1

    def forward(self, images: list[Tensor]) -> Tensor:
        result: Tensor = self.head(self.regions(images))
        return result


EXAMPLE = ([torch.rand(3, 10, 10), torch.rand(3, 10, 10)],)


@pytest.fixture
def model() -> nn.Module:
    net = Detector()
    with torch.no_grad():
        for batch in images():
            net.train().backbone(torch.stack(batch))
    return net.eval()


def images(seed: int = 1) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.rand(3, 10, 10, generator=generator) for _ in range(count)] for count in (3, 2)]


def pairs(seed: int = 1) -> list[tuple[list[Tensor], None]]:
    """Batches as data loaders of detection yield them: lists of images, with targets that nothing here reads."""
    return [(batch, None) for batch in images(seed)]


def scores(program: Program, criterion: str) -> dict[str, Any]:
    from graphprune.pipeline.pass_manager import PassManager

    done = PassManager([ChannelsPass(), ScorePass(criterion=criterion, normalise="none")]).run(program)
    groups = AnalysisManager().get(done, ChannelGroups)
    return {group.name: done.scores[criterion].values[group.units] for group in groups.prunable}


@pytest.mark.parametrize("criterion", ["attention", "apoz", "variance", "mean-activation", "activation-similarity"])
def test_scores_are_those_of_each_scope_on_its_own_inputs(model: Detector, criterion: str) -> None:
    before = state_hash(model)
    program = graphprune.capture(model, EXAMPLE)
    assert [scope.path for scope in program.scopes] == ["backbone", "head"]
    found = scores(calibrated(program, pairs(), whole=(model, EXAMPLE)), criterion)
    with torch.no_grad():
        own = {"backbone": [torch.stack(batch) for batch in images()], "head": [model.regions(batch) for batch in images()]}
    for path, batches in own.items():
        scope = model.get_submodule(path)
        alone = scores(graphprune.capture(scope, batches[0]).with_(calibration=Calibration(batches)), criterion)
        assert alone and all(np.allclose(found[f"{path}.{name}"], values, rtol=1e-6) for name, values in alone.items())
    assert state_hash(model) == before


def test_statistics_are_estimated_on_what_the_scope_reads(model: Detector) -> None:
    result = graphprune.prune(model, EXAMPLE, target="channels=99%", data=pairs(5), recalibrate=True, exclude=["backbone.0.*"])
    with torch.no_grad():
        made = torch.cat([model.backbone[0](torch.stack(batch)) for batch in images(5)])
    mean = result.model.get_buffer("backbone.1.running_mean")
    assert torch.allclose(mean, made.mean((0, 2, 3)), atol=1e-6)
    assert not torch.allclose(mean, model.get_buffer("backbone.1.running_mean"), atol=1e-4)


def test_a_head_is_compensated_on_the_regions_of_the_model(model: Detector) -> None:
    """Least squares on the very data brings the head's output nearer to the original's."""
    plain = graphprune.prune(model, EXAMPLE, target="channels=60%")
    helped = graphprune.prune(model, EXAMPLE, target="channels=60%", data=pairs(), compensate="least-squares")
    assert helped.plan.kept == plain.plan.kept and "head.2.weight" in {one.weight for one in helped.report.compensation}
    with torch.no_grad():
        regions = torch.cat([model.regions(batch) for batch in images()])
        wanted = model.head(regions)
        errors = [(one.model.get_submodule("head")(regions) - wanted).norm() for one in (helped, plain)]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("most", [1, 3, 4, 5, 9])
def test_samples_are_images_however_they_are_given(model: Detector, most: int) -> None:
    flat = [image for batch in images() for image in batch]
    ways: list[list[Any]] = [pairs(), [torch.stack(batch) for batch in images()], [{"images": batch} for batch in images()]]
    for batches in ways:
        program = calibrated(graphprune.capture(model, EXAMPLE), Calibration(batches, samples=most), whole=(model, EXAMPLE))
        assert program.calibration is not None
        given = torch.cat([batch.inputs.args[0] for batch in program.calibration])
        assert torch.equal(given, torch.stack(flat[:most]))
        regions = torch.cat([batch.inputs.args[1] for batch in program.calibration])
        assert len(regions) == 5 * min(most, 5)


def test_data_can_be_read_again_and_a_generator_is_read_once(model: Detector) -> None:
    def once() -> Iterator[Any]:
        yield from pairs()

    program = calibrated(graphprune.capture(model, EXAMPLE), once(), whole=(model, EXAMPLE))
    assert program.calibration is not None
    sums = [[float(batch.inputs.args[1].sum()) for batch in program.calibration] for _ in range(2)]
    assert len(sums[0]) == 2 and sums[0] == sums[1]


def test_what_scopes_cannot_be_calibrated_by(model: Detector) -> None:
    with pytest.raises(UsageError, match="gradients"):
        graphprune.prune(model, EXAMPLE, criterion="taylor", data=pairs())
    with pytest.raises(UsageError, match="does not run on the calibration data"):
        graphprune.prune(model, EXAMPLE, criterion="attention", data=[([torch.rand(4, 10, 10)] * 2, None)])
    with pytest.raises(UsageError, match="scopes"):
        graphprune.prune(model, EXAMPLE, criterion="attention", data="synthetic")


def test_a_scope_that_no_batch_reaches_is_named() -> None:
    class Skipping(Detector):
        def forward(self, images: list[Tensor]) -> Tensor:
            found = self.regions(images)
            return self.head(found) if len(images) > 1 else found

    net = Skipping().eval()
    with pytest.raises(UsageError, match="'head' is not called"):
        graphprune.prune(net, EXAMPLE, criterion="attention", data=[([torch.rand(3, 10, 10)], None)])
