"""What is said of code that does not trace: of operators that run on values alone, and of quantised models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.errors import CaptureError, TargetError
from graphprune.passes.analysis.remedies import remedy
from tests.checking import analyse

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
_X = torch.randn(2, 3, 8, 8)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.head(self.b(self.a(self.quant(x)).relu()).relu().mean((2, 3))))


def _converted() -> nn.Module:
    model: Any = _Net().eval()
    model.qconfig = torch.ao.quantization.default_qconfig
    prepared = torch.ao.quantization.prepare(model)
    prepared(_X)
    return torch.ao.quantization.convert(prepared)  # type: ignore[no-any-return]


def _prepared(version: int) -> nn.Module:
    model: Any = _Net().train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86", version=version)
    prepared: nn.Module = torch.ao.quantization.prepare_qat(model)
    prepared(_X)
    return prepared.eval()


def test_a_quantised_model_is_to_be_pruned_before() -> None:
    with pytest.raises(CaptureError, match=r"it is quantised \(quantized::\S+\)\. Prune the model first, and quantise"):
        graphprune.prune(_converted(), _X)


def test_layers_that_are_quantised_are_frozen_and_the_others_go() -> None:
    model = torch.ao.quantization.quantize_dynamic(_Net().eval(), {nn.Linear})
    result = graphprune.prune(model, _X, target="channels=50%")
    assert result.report.widths == {"a": (8, 4)}
    reasons = [group.reason for group in result.report.groups.frozen if "quantised" in str(group.reason)]
    assert reasons and all(remedy(reason).startswith("Prune the model first") for reason in reasons if reason is not None)


@pytest.mark.parametrize("version", [0, 1])
def test_a_model_that_is_prepared_for_quantisation_stays_with_the_remedy(version: int) -> None:
    model = _prepared(version)
    if not version:
        model.apply(torch.ao.quantization.disable_observer)
    with pytest.raises(TargetError, match=r"quanti[sz]"):
        graphprune.prune(model, _X, target="channels=50%")
    groups = analyse(model, _X).groups
    reasons = [group.reason for group in groups.frozen if "quant" in str(group.reason)]
    assert reasons and all(remedy(reason).startswith("Prune the model first") for reason in reasons if reason is not None)
