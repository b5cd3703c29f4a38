"""Proofs and measurements do not depend on switches that make products coarser, nor on fused kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphprune
from graphprune.arithmetic import full_precision, taken_apart

_BACKENDS: Any = torch.backends
_SWITCHES: dict[str, Any] = {
    "matmul": _BACKENDS.cuda.matmul,
    "conv": _BACKENDS.cudnn.conv,
    "rnn": _BACKENDS.cudnn.rnn,
    "mkldnn": _BACKENDS.mkldnn.matmul,
}


def _precisions() -> list[str]:
    return [switch.fp32_precision for switch in _SWITCHES.values()]


@pytest.fixture(autouse=True)
def _left_as_found() -> Iterator[None]:
    before = _BACKENDS.fp32_precision, _precisions()
    yield
    torch.set_float32_matmul_precision("highest")
    _BACKENDS.fp32_precision = before[0]
    for switch, precision in zip(_SWITCHES.values(), before[1], strict=True):
        switch.fp32_precision = precision


def _tell(how: str) -> None:
    """Ask torch for coarse products, in the ways that there are."""
    if how == "high":
        torch.set_float32_matmul_precision("high")
    elif how == "everything":
        _BACKENDS.fp32_precision = "tf32"
    elif how in _SWITCHES:
        _SWITCHES[how].fp32_precision = "tf32"


@pytest.mark.parametrize("how", ["nothing", "high", "everything", *_SWITCHES])
def test_nothing_is_coarse_within_and_all_is_as_before_afterwards(how: str) -> None:
    _tell(how)
    before = _precisions()
    assert "tf32" in before
    with full_precision():
        assert set(_precisions()) <= {"none", "ieee"}
    assert _precisions() == before


@pytest.mark.parametrize("how", ["high", "everything", "conv"])
def test_a_proof_runs_whatever_was_asked_for_and_leaves_it(how: str) -> None:
    """Switches of both generations, mixed, make torch's own ``cudnn.flags`` fail."""
    _tell(how)
    if how == "conv":
        _SWITCHES["conv"].fp32_precision = "ieee"
    before = _precisions()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    proof = graphprune.prune(model, torch.zeros(1, 3, 8, 8), target="channels=50%").report.verification
    assert proof is not None and proof.passed
    assert _precisions() == before


def test_recurrent_kernels_are_off_within_and_as_before_afterwards() -> None:
    before = torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled
    with taken_apart(torch.lstm):
        assert not torch.backends.cudnn.enabled and not torch.backends.mkldnn.enabled
    with taken_apart(torch.relu):
        assert (torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled) == before
    assert (torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled) == before


def _pruned() -> graphprune.PruneResult:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(288, 4))
    batches = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4)]
    options: dict[str, Any] = {"criterion": "taylor", "data": batches, "compensate": "least-squares", "recalibrate": True}
    return graphprune.prune(model, batches[0][0], target="macs=50%", **options)


def test_autocast_of_the_caller_changes_nothing() -> None:
    """Its casts would be operators of the tape, and hide what a proof is to find."""
    expected = _pruned()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _pruned()
        assert torch.is_autocast_enabled("cpu")
        with full_precision():
            assert (torch.eye(2) @ torch.eye(2)).dtype == torch.float32
    assert found.plan == expected.plan
    assert all(torch.equal(tensor, expected.model.state_dict()[name]) for name, tensor in found.model.state_dict().items())


def test_what_is_made_in_inference_mode_is_pruned_alike_and_trains(tmp_path: Path) -> None:
    """There torch runs composed operators whole, and no tensor made there ever has a gradient."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.zeros(1, 3, 8, 8)
    expected = graphprune.prune(model, x).plan
    with torch.inference_mode():
        result = graphprune.prune(model, x)
        graphprune.save(result, tmp_path / "slim.safetensors")
        slim = graphprune.load(tmp_path / "slim.safetensors")
    assert result.plan == expected
    for trained in (result.model, slim):
        trained(x).sum().backward()
        assert all(parameter.grad is not None for parameter in trained.parameters())
