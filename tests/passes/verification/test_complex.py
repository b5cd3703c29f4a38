"""Complex numbers: the oracle knows which of them are missing, and criteria take their magnitudes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.passes.verification.missing import MissingData
from graphprune.passes.verification.tensors import Informative
from graphprune.passes.verification.verify import relative_error
from tests.passes.verification.test_missing import OUT, C, agree, masked
from tests.zoo.time_steps import spectral_convolution


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def test_products_and_sums_leave_missing_numbers_out() -> None:
    agree(lambda t: t.sum(1), [(drawn(4, 6, 3), {1: C})], {})
    agree(torch.mm, [(drawn(5, 6), {1: C}), (drawn(6, 4), {0: C, 1: OUT})], {1: OUT})
    agree(lambda t: torch.fft.irfft(torch.nn.functional.pad(t, (0, 2)), dim=-1), [(drawn(2, 6, 3), {1: C})], {1: C})


def test_both_parts_of_a_missing_number_are_missing() -> None:
    with MissingData():
        summed = masked(drawn(4, 6, 3), {1: C}).sum(2)  # made by the oracle, rather than given
        assert summed.imag.isnan().sum() == summed.real.isnan().sum() == 4 * (6 - len(C))


def test_errors_are_relative_to_the_largest_part() -> None:
    one = torch.tensor([3 + 4j, 1j])
    assert relative_error(one, one.clone()) == 0.0
    assert relative_error(one, one + 1j) == pytest.approx(0.25)


def test_constant_weights_are_drawn() -> None:
    values = Informative({"same": torch.zeros(4, dtype=torch.complex64), "other": torch.randn(4, dtype=torch.complex64)}, 0, None)
    assert values["same"].dtype == torch.complex64 and len(set(values["same"].tolist())) == 4
    assert dict(values) and values.random == {"same"}


def test_a_wrong_slice_of_complex_weights_is_found() -> None:
    """Negative twin: the proof of a slim model with other complex weights fails."""
    model = spectral_convolution().model
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    result = graphprune.prune(model, x, target="channels=50%", ranking="local", criterion="l2")
    weight: Any = result.model.get_submodule("spectral").weight
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1j
    assert not graphprune.verify(model, result.model, result.plan, x).passed


@pytest.mark.parametrize("criterion", ["l1", "l2", "lamp", "fpgm", "euclidean"])
def test_criteria_of_weights_take_magnitudes(criterion: str) -> None:
    """Numbers that are turned in the complex plane are worth the same."""
    model = spectral_convolution().model
    turned = spectral_convolution().model
    turned.load_state_dict(model.state_dict())
    with torch.no_grad():
        turned.get_parameter("spectral.weight").mul_(1j)
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    plans = [graphprune.prune(one, x, target="channels=50%", ranking="local", criterion=criterion).plan for one in (model, turned)]
    assert plans[0].kept == plans[1].kept


def test_layers_with_complex_weights_are_left_as_they_are_by_compensation() -> None:
    model: nn.Module = spectral_convolution().model
    batches = [torch.randn(4, 3, 8, 6, dtype=torch.float64) for _ in range(2)]
    result = graphprune.prune(model, batches[0], target="channels=50%", ranking="local", data=batches, compensate="least-squares")
    notes = {entry.weight: entry.note for entry in result.report.compensation}
    assert "complex" in notes["spectral.weight"]
