"""Statistics of activations on a CPU: right in every layout and dtype, one read, and an operator that compiles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graphprune.kernels.activation_attention import Attention, activation_attention, reference
from tests.kernels import common

DTYPES = (*common.HALVES_AND_SINGLE, torch.float64)
SHAPES = [(3, 5, 4, 6), (1, 1, 1, 1), (2, 63, 7, 7), (5, 33), (4, 3, 2049), (0, 4, 3, 3), (2, 3, 0, 5), (2, 3, 2, 3, 4, 2)]


def _pair(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An activation as after ReLU, with signs and exact zeros, and a gradient."""
    a = torch.randn(shape, dtype=torch.float64)
    return torch.where(a > -0.5, a, 0.0).to(dtype), torch.randn(shape, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_are_those_of_a_plain_loop(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    a, g = _pair(shape, dtype)
    with common.poisoned():
        plain, both = activation_attention(a), activation_attention(a, g, tau=0.25)
    common.assert_attention(plain, common.attention(a), dtype)
    common.assert_attention(both, common.attention(a, g, 0.25), dtype)
    assert plain.sum.dtype == torch.promote_types(dtype, torch.float32)


def test_the_comparison_sees_a_wrong_result() -> None:
    """The negative twin of every test here: one count off, one sum off, one result missing."""
    a, g = _pair((2, 3, 4, 4), torch.float32)
    found, expected = activation_attention(a, g, tau=0.1), common.attention(a, g, 0.1)
    common.assert_attention(found, expected, a.dtype)
    assert found.indicator is not None
    for wrong in (
        found._replace(nonzero=found.nonzero + 1),
        found._replace(fourth_sum=found.fourth_sum * 1.0001),
        found._replace(indicator=found.indicator.flip(0)),
        found._replace(taylor=None),
    ):
        with pytest.raises(AssertionError):
            common.assert_attention(wrong, expected, a.dtype)


@pytest.mark.parametrize("block", [7, 64, reference.BLOCK])
def test_results_do_not_depend_on_the_layout_or_on_the_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "BLOCK", block)
    a, g = _pair((3, 5, 6, 4), torch.float64)
    expected = common.attention(a, g, 0.3)
    others = common.layouts(g)
    for name, values in common.layouts(a).items():
        for gradient in (others[name], others["contiguous"], others["channels_last"]):
            common.assert_attention(activation_attention(values, gradient, tau=0.3), expected, a.dtype)


def test_one_negative_value_is_seen_among_those_of_a_relu() -> None:
    """Without one, absolute values are not computed."""
    a = torch.randn(3, 5, 6, 4, dtype=torch.float64).relu()
    a[0, 0, 0, 0] = -0.0
    plain = activation_attention(a)
    common.assert_attention(plain, common.attention(a), a.dtype)
    a[2, 4, 5, 3] = -7.0
    found = activation_attention(a)
    common.assert_attention(found, common.attention(a), a.dtype)
    assert torch.equal(plain.abs_sum, plain.sum) and found.abs_sum[4] > found.sum[4] + 13


def test_channels_may_lie_in_any_dimension_but_the_first() -> None:
    a, g = _pair((2, 7, 5), torch.float64)  # tokens: [N, L, C]
    expected = common.attention(a.movedim(-1, 1), g.movedim(-1, 1), 0.3)
    common.assert_attention(activation_attention(a, g, tau=0.3, channel_dim=-1), expected, a.dtype)
    common.assert_attention(activation_attention(a, g, tau=0.3, channel_dim=2), expected, a.dtype)


def test_tau_is_a_strict_bound_and_optional() -> None:
    a = torch.tensor([[[1.0, -2.0, 0.0]]])
    found = activation_attention(a, torch.ones_like(a), tau=1.0)
    assert found.indicator is not None and found.indicator.tolist() == [[0, 1, 0]]
    assert activation_attention(a, torch.ones_like(a)).indicator is None
    # Below the smallest float32, tau is zero: whatever the gradient reaches counts.
    alive = activation_attention(a, torch.ones_like(a), tau=1e-50).indicator
    assert alive is not None and alive.tolist() == [[1, 1, 0]]


def test_values_that_are_not_finite_stay_in_their_channel() -> None:
    a = torch.ones(2, 3, 4)
    a[0, 0, 1], a[1, 1, 2] = torch.nan, -torch.inf
    found = activation_attention(a)
    assert math.isnan(found.abs_max[0]) and math.isnan(found.sum[0]) and found.nonzero.tolist() == [8, 8, 8]
    assert found.abs_max[1] == torch.inf and found.sum[1] == -torch.inf and found.abs_max[2] == 1


class _Largest(TorchDispatchMode):
    """The size in bytes of the largest memory that is made, other than that of one tensor."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known, self.bytes = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() != self.known:
            self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return result


def test_no_copy_of_the_tensor_is_made_in_any_layout() -> None:
    a = torch.randn(16, 16, 160, 80).to(torch.bfloat16)
    for name, values in common.layouts(a).items():
        with _Largest(values) as seen:
            reference.statistics_with_gradient(values, values, None, 1)
        assert seen.bytes == 4 * reference.BLOCK < a.nbytes // 2, name
    with _Largest(a) as seen:  # the negative twin
        a.float()
    assert seen.bytes == 2 * a.nbytes


def test_an_activation_that_is_trained_through_is_read_without_a_graph() -> None:
    a = torch.randn(2, 3, 4, requires_grad=True)
    assert not any(value.requires_grad for value in activation_attention(a) if value is not None)


def test_arguments_that_do_not_fit_are_refused() -> None:
    a = torch.ones(2, 3, 4)
    with pytest.raises(TypeError, match=r"floating point activations, but this one is torch\.int64"):
        activation_attention(a.long())
    for dim in (0, 3, -3, -4):
        with pytest.raises(ValueError, match="3 dimensions has no channels at dimension"):
            activation_attention(a, channel_dim=dim)
    with pytest.raises(ValueError, match="give the gradient too"):
        activation_attention(a, tau=0.0)
    with pytest.raises(ValueError, match="must not be negative"):
        activation_attention(a, a, tau=-1.0)
    for unlike in (a[:1], a.double()):
        with pytest.raises(ValueError, match="must be alike"):
            activation_attention(a, unlike)


@pytest.mark.parametrize("tau", [None, 0.5])
def test_the_operators_keep_the_contract_of_torch_library(tau: float | None) -> None:
    a, g = _pair((2, 3, 4, 5), torch.float32)
    torch.library.opcheck(torch.ops.graphprune.activation_attention.default, (a, 1))
    torch.library.opcheck(torch.ops.graphprune.activation_attention_gradient.default, (a, g, tau, 1))


def test_it_compiles_into_one_graph() -> None:
    def score(a: Tensor, g: Tensor) -> tuple[Attention, Tensor]:
        found = activation_attention(a.relu(), g, tau=0.1)
        return found, found.abs_sum / found.nonzero

    a, g = _pair((2, 3, 4, 5), torch.float32)
    for x, y in zip(torch.compile(score, fullgraph=True, backend="aot_eager")(a, g)[0], score(a, g)[0], strict=True):
        assert x is not None and y is not None and torch.equal(x, y)
