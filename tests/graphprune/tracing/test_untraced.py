"""What is said of code that does not trace: of operators that run on values alone, and of quantised models."""

from __future__ import annotations

import re
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
    with pytest.raises(CaptureError, match=r"it is quantised \((quantized|aten)::\S+\)\. Prune the model first, and quantise"):
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


def _mixed(self: Any, x: Tensor) -> Any:
    rows = torch.where(x.argmax(-1) > 0)[0]
    return x.index_add(0, rows, self.l(x[rows]))


def _sorted(self: Any, x: Tensor) -> Any:
    counts = torch.bincount(x.argmax(-1), minlength=8).tolist()
    return torch.cat([self.l(part) for part in x.split(counts)])


@pytest.mark.parametrize(
    ("forward", "reason"),
    [(_mixed, r"how large a result is depends on the values of a tensor \(.*test_untraced.py:\d+\)"),
     (_sorted, "how large a result"),
     (lambda self, x: self.l(x) * float(x.sum()), r"it looks at the values of a tensor \(item \(.*test_untraced.py:\d+\)\)"),
     (lambda self, x: x[:, (x.sum() > 0).long() :], r"it looks at the values of a tensor \(item")],
)  # fmt: skip
def test_routing_by_values_is_said_in_plain_words(forward: Any, reason: str) -> None:
    """As mixtures of experts route; torch's own words are about its registrations of operators."""
    inner = type("Mixture", (nn.Module,), {"forward": forward})()
    inner.l = nn.Linear(8, 8)
    program = graphprune.capture(nn.Sequential(nn.Linear(4, 32), nn.Linear(32, 8), inner).eval(), torch.randn(5, 4))
    assert re.search(reason, program.opaque["2"])


def test_flex_attention_stays_and_the_rest_is_proved() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    def forward(self: Any, x: Tensor) -> Any:
        q, k, v = (layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return flex_attention(q, k, v).transpose(1, 2).flatten(2)

    inner = type("Flex", (nn.Module,), {"forward": forward})()
    inner.q, inner.k, inner.v = (nn.Linear(4, 16) for _ in range(3))
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 4), inner).eval()
    result = graphprune.prune(model, torch.randn(2, 5, 4), target="channels=60%")
    assert (
        list(result.report.widths) == ["0"]
        and "as flex attention does" in graphprune.capture(model, torch.randn(2, 5, 4)).opaque["3"]
    )
    assert result.report.verification is not None and result.report.verification.passed


@torch.library.custom_op("graphprune_tests::without_fake", mutates_args=())
def _without_fake(x: Tensor) -> Tensor:
    return x.clone()


def test_a_whole_model_is_told_of_the_operator_that_lacks_a_fake_implementation() -> None:
    """And nothing of values: its code looks at none."""

    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = _without_fake(x)
            return result

    with pytest.raises(CaptureError, match=r"graphprune_tests::without_fake\S* has no fake .* Register one") as raised:
        graphprune.capture(Head(), _X)
    assert "values" not in str(raised.value)


def test_other_errors_of_a_trace_are_not_called_questions_about_values() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.is_meta or x.untyped_storage().device.type == "meta":
                raise KeyError("no table for meta")
            return x

    with pytest.raises(CaptureError, match=r"KeyError: 'no table for meta'\. A trace runs it on shapes alone"):
        graphprune.capture(Picky(), _X)
