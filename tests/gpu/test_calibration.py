"""Criteria of data, compensation and recalibration on a device see what they see on the CPU; the data may lie there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import graphprune
from graphprune.criteria import criteria_names
from graphprune.ir.twins import named_tensors
from tests.gpu.devices import everywhere, on_gpu
from tests.gpu.nets import made
from tests.loops import INPUT, Residual, digits
from tests.passes.scoring.scored import scored

_MEASURED = sorted({*criteria_names()} - {"random", "l1", "l2", "lamp", "sp-lamp", "fpgm", "euclidean", "cosine", "bn-scale"})


def _data() -> list[tuple[Tensor, Tensor]]:
    x, y, *_ = digits(count=128)
    return list(zip(x.split(64), y.split(64), strict=True))


def _residual(device: str) -> Residual:
    torch.manual_seed(0)
    return Residual().eval().to(device)


@everywhere
@pytest.mark.parametrize("criterion", _MEASURED)
def test_scores_are_those_of_the_cpu(criterion: str, device: str) -> None:
    """In float64, in which rounding explains nothing."""
    data = [(x.double(), y) for x, y in _data()]
    ours, theirs = (
        scored(_residual(where).double(), torch.zeros(INPUT, dtype=torch.float64, device=where), criterion, data)
        for where in (device, "cpu")
    )
    for group, scores in theirs.items():
        np.testing.assert_allclose(ours[group], scores, rtol=1e-6, atol=1e-9, err_msg=group)


@everywhere
@pytest.mark.parametrize("criterion", ["mean-activation", "apoz", "attention", "taylor", "fisher", "activation-similarity"])
def test_scores_in_float32_are_near_those_of_the_cpu(criterion: str, device: str) -> None:
    """By the kernels, where the device has some."""
    ours, theirs = (scored(_residual(where), torch.zeros(INPUT, device=where), criterion, _data()) for where in (device, "cpu"))
    for group, scores in theirs.items():
        np.testing.assert_allclose(ours[group], scores, rtol=5e-3, atol=1e-3 * float(np.abs(scores).max()), err_msg=group)


@everywhere
@pytest.mark.parametrize("name", ["lstm", "vit"])
@pytest.mark.parametrize("criterion", ["taylor", "mean-activation"])
def test_recurrent_and_attention_models_are_measured(name: str, criterion: str, device: str) -> None:
    """Gradients go back through a recurrent layer in eval mode, which kernels of cuDNN refuse."""
    model, x = made(name, device)
    torch.manual_seed(1)
    data = [(torch.randn(8, *x.shape[1:]), torch.arange(8))]
    result = graphprune.prune(model, x, criterion=criterion, data=data, target="channels=60%")
    assert result.report.verification is not None and result.report.verification.passed


@everywhere
@pytest.mark.parametrize("how", [{"compensate": "least-squares"}, {"compensate": "constants"}, {"recalibrate": True}], ids=str)
def test_weights_after_the_cut_are_those_of_the_cpu(how: dict[str, Any], device: str) -> None:
    found = []
    for where in (device, "cpu"):
        model, x = _residual(where).double(), torch.zeros(INPUT, dtype=torch.float64, device=where)
        data = [(images.double(), y) for images, y in _data()]
        result = graphprune.prune(model, x, target="channels=50%", data=data, **how)
        found.append({name: tensor.cpu() for name, tensor in named_tensors(result.model).items()})
    ours, theirs = found
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-8)


@everywhere
def test_selection_by_losses_chooses_as_on_the_cpu(device: str) -> None:
    kept = []
    for where in (device, "cpu"):
        model, x = _residual(where).double(), torch.zeros(INPUT, dtype=torch.float64, device=where)
        data = graphprune.Calibration([(images.double(), y) for images, y in _data()])
        program = graphprune.capture(model, x).with_(calibration=data)
        result = graphprune.run_pipeline(program, "channels,score{criterion=l2},loss-aware{macs=60%},rewrite,verify")
        kept.append(result.plan.kept)
    assert kept[0] == kept[1]


@on_gpu
def test_data_are_made_from_statistics(device: str) -> None:
    result = graphprune.prune(_residual(device), torch.zeros(INPUT, device=device), criterion="attention", data="synthetic")
    assert result.report.verification is not None and result.report.verification.passed
