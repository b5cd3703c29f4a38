"""prune(data=, compensate=, recalibrate=): what the public call does with calibration data, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.errors import UsageError


def model() -> nn.Module:
    """Random weights, with the batch-norm statistics of the batches."""
    torch.manual_seed(0)
    first, norm, second = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12, momentum=None), nn.Conv2d(12, 12, 3)
    result = nn.Sequential(first, norm, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    with torch.no_grad():
        for x, _ in batches():
            result(x)
    return result.eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 3, 6, 6, generator=random), torch.arange(16) % 5) for _ in range(3)]


X = torch.zeros(1, 3, 6, 6)
HALF: dict[str, Any] = {"target": "channels=50%", "ranking": "local"}


def error(original: nn.Module, slim: nn.Module) -> float:
    x = torch.cat([x for x, _ in batches()])
    with torch.no_grad():
        return float((original(x) - slim(x)).norm() / original(x).norm())


def test_compensation_follows_a_proved_rewrite_and_comes_nearer() -> None:
    original = model()
    plain = graphprune.prune(original, X, **HALF)
    better = graphprune.prune(original, X, data=batches(), compensate="least-squares", **HALF)
    assert better.report.verification is not None and better.report.verification.passed
    assert better.plan.kept == plain.plan.kept
    assert error(original, better.model) < error(original, plain.model)
    assert {one.weight for one in better.report.compensation if one.removed} == {"3.weight", "7.weight"}
    assert all(one.after <= one.before and not one.note for one in better.report.compensation)


def test_the_plan_of_a_compensated_model_gives_the_pruned_weights() -> None:
    """Plans hold what was removed: they are carried out without data, to the same weights each time."""
    original = model()
    plain = graphprune.prune(original, X, **HALF)
    better = graphprune.prune(original, X, data=batches(), compensate="least-squares", **HALF)
    again = graphprune.apply_plan(original, X, better.plan)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


def test_compensated_models_are_saved_and_verified_as_trained_ones_are(tmp_path: Path) -> None:
    original = model()
    better = graphprune.prune(original, X, data=batches(), compensate="least-squares", recalibrate=True, **HALF)
    graphprune.save(better, tmp_path / "slim.safetensors")
    loaded = graphprune.load(tmp_path / "slim.safetensors")
    x = batches()[0][0]
    assert torch.equal(loaded(x), better.model(x))
    assert graphprune.verify(original, loaded, better.plan, X, weights=False).passed
    assert not graphprune.verify(original, loaded, better.plan, X).passed


def test_recalibration_changes_statistics_alone() -> None:
    original = model()
    plain = graphprune.prune(original, X, **HALF)
    again = graphprune.prune(original, X, data=batches(), recalibrate=True, **HALF)
    states = plain.model.state_dict(), again.model.state_dict()
    changed = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert changed == {"1.running_mean", "1.running_var"}


def test_synthetic_data_compensate_without_any_sample() -> None:
    original = model()
    plain = graphprune.prune(original, X, **HALF)
    better = graphprune.prune(original, X, data="synthetic", compensate="least-squares", **HALF)
    assert error(original, better.model) < error(original, plain.model)


def test_constants_need_no_data() -> None:
    original = model()
    with torch.no_grad():
        original[0].weight[3] = 0  # type: ignore[index]
    result = graphprune.prune(original, X, compensate="constants", **HALF)
    assert result.report.verification is not None and result.report.verification.passed


def test_the_original_and_the_data_are_left_alone() -> None:
    original, data = model().train(), batches()
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    kept = [x.clone() for x, _ in data]
    graphprune.prune(original, X, data=data, criterion="taylor", compensate="least-squares", recalibrate=True, **HALF)
    assert original.training and all(p.grad is None for p in original.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in original.state_dict().items())
    assert all(torch.equal(one, x) for one, (x, _) in zip(kept, data, strict=True))


def test_a_generator_serves_criterion_and_compensation_alike() -> None:
    def once() -> Iterator[Any]:
        yield from batches()

    first = graphprune.prune(model(), X, data=once(), criterion="attention", compensate="least-squares", **HALF)
    second = graphprune.prune(model(), X, data=batches(), criterion="attention", compensate="least-squares", **HALF)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compensate": "least-squares"}, r"'compensate' needs calibration data"),
        ({"recalibrate": True}, r"'recalibrate' needs calibration data"),
        ({"criterion": "attention"}, r"needs calibration data"),
        ({"compensate": "median", "data": []}, r"no compensation 'median'. Compensations: least-squares, constants"),
        ({"criterion": "attention", "data": [torch.zeros(2, 3)]}, r"does not run on"),
    ],
)
def test_what_is_missing_or_unknown_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        graphprune.prune(model(), X, **options, **HALF)


class WithLoss(nn.Module):
    """What models of transformers do with labels: the loss is part of what they return."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.last(self.first(x).relu())
        return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


LABELLED = [{"x": torch.randn(8, 4, generator=torch.Generator().manual_seed(one)), "labels": torch.arange(8) % 3} for one in (0, 1)]


@pytest.mark.parametrize("options", [{"criterion": "attention"}, {"criterion": "taylor"}, {"compensate": "least-squares"}])
def test_a_model_that_is_called_with_labels_gets_those_of_the_data(options: dict[str, Any]) -> None:
    example = {"x": torch.zeros(2, 4), "labels": torch.zeros(2, dtype=torch.long)}
    result = graphprune.prune(WithLoss(), example, data=LABELLED, **HALF, **options)
    assert result.model(**LABELLED[0])["loss"].item() > 0
    plain = graphprune.prune(WithLoss(), {"x": torch.zeros(2, 4)}, data=LABELLED, **HALF, **options)
    assert plain.plan.kept == result.plan.kept  # cross-entropy is the default loss, too


def test_targets_that_fit_no_loss_are_said_to_belong_among_the_example_inputs() -> None:
    class Tokens(WithLoss):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.last(self.first(x).relu())
            return {"logits": logits} if labels is None else {"loss": logits.flatten(0, 1).logsumexp(1).mean(), "logits": logits}

    data = [{"x": torch.randn(2, 5, 4), "labels": torch.zeros(2, 5, dtype=torch.long)}]
    with pytest.raises(UsageError, match="have the targets among the example inputs, too"):
        graphprune.prune(Tokens(), {"x": data[0]["x"]}, data=data, criterion="taylor")
    assert graphprune.prune(Tokens(), data[0], data=data, criterion="taylor").report.after.macs > 0
