"""Proofs and measurements do not depend on switches that make products coarser, nor on fused kernels."""

from __future__ import annotations

from collections.abc import Iterator
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
