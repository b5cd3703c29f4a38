"""How calls are spelled: operators by sign, methods by name, functions by themselves; and which of them write."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from graphprune.tracing.targets import opened, spell, writes

X = torch.rand(3, 3)
INTEGERS = torch.arange(3)


class Last(TorchFunctionMode):
    """Remembers the call that announced itself last."""

    call: tuple[Any, Any, Any]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.call = func, args, kwargs or {}
        return func(*args, **(kwargs or {}))


def announced(call: Callable[[], Any]) -> tuple[Any, Any, Any]:
    with Last() as mode:
        call()
    func, args, kwargs = mode.call
    return func, args, kwargs


def iadd(x: Any) -> Any:
    x += 1
    return x


CALLS: list[tuple[Callable[[], Any], Any]] = [
    (lambda: X + 1, operator.add), (lambda: 1 + X, operator.add), (lambda: 1 - X, operator.sub), (lambda: X * 2, operator.mul),
    (lambda: 2 / X, operator.truediv), (lambda: X / 2, operator.truediv), (lambda: X**2, "pow"), (lambda: 2**X, operator.pow),
    (lambda: X // 2, operator.floordiv), (lambda: 2 // X, operator.floordiv), (lambda: X % 2, "remainder"),
    (lambda: 2 % X, operator.mod), (lambda: X @ X, operator.matmul), (lambda: -X, "neg"), (lambda: ~INTEGERS, operator.invert),
    (lambda: INTEGERS & 1, operator.and_), (lambda: INTEGERS << 1, operator.lshift), (lambda: X[0], operator.getitem),
    (lambda: X == 1, operator.eq), (lambda: X > 1, "gt"), (lambda: X.relu(), "relu"), (lambda: X.view(9), "view"),
    (lambda: X.add(1, alpha=2), "add"), (lambda: torch.relu(X), torch.relu), (lambda: F.gelu(X), F.gelu),
    (lambda: X.split(1), "split"), (lambda: X.norm(), "norm"),
    (lambda: torch.ops.aten.relu.default(X), torch.ops.aten.relu.default),
]  # fmt: skip


@pytest.mark.parametrize(("call", "target"), CALLS)
def test_a_node_of_the_spelling_computes_the_same(call: Callable[[], Any], target: Any) -> None:
    func, args, kwargs = announced(call)
    found = spell(func, len(args) == 2 and not kwargs)
    args = args[::-1] if found.swapped else args
    function = getattr(torch.Tensor, found.target) if found.op == "call_method" else found.target
    result = function(*args, **kwargs)
    wanted = call()
    assert all(map(torch.equal, result, wanted)) if isinstance(wanted, (tuple, list)) else torch.equal(result, wanted)
    assert found.target == target or isinstance(target, str)


def test_properties_are_read_by_getattr() -> None:
    func, _, _ = announced(lambda: X.T)
    found = spell(func, False)
    assert (found.op, found.target, found.attribute) == ("call_function", getattr, "T")


@pytest.mark.parametrize("name", ["add_", "relu_", "__iadd__", "__setitem__", "masked_fill_", "index_put_"])
def test_writing_methods(name: str) -> None:
    assert writes(getattr(torch.Tensor, name))


@pytest.mark.parametrize(
    "func", [torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__getitem__, torch.relu, F.relu, torch.Tensor.__invert__]
)
def test_methods_that_do_not_write(func: Any) -> None:
    assert not writes(func)


def test_opened_functions_compute_the_same_and_do_not_announce_themselves() -> None:
    assert opened(F.relu) is None
    body = opened(F.multi_head_attention_forward)
    assert body is not None and opened(F.multi_head_attention_forward) is body
    x, w = torch.rand(5, 2, 4), torch.rand(12, 4)
    args = (x, x, x, 4, 2, w, torch.rand(12), None, None, False, 0.0, torch.rand(4, 4), torch.rand(4))
    with Last() as mode:
        found = body(*args)
    assert mode.call[0] is not F.multi_head_attention_forward
    assert torch.equal(found[0], F.multi_head_attention_forward(*args)[0])


@pytest.mark.parametrize("p", [1, 2, 3.0, float("inf")])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_a_limit_to_norms_in_parts_is_that_of_torch(p: float, dim: int) -> None:
    weight = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.logspace(-3, 3, 6)
    for limited in (torch.renorm, torch.Tensor.renorm):
        body = opened(limited)
        assert body is not None
        torch.testing.assert_close(body(weight, p=p, dim=dim, maxnorm=2.0), weight.renorm(p, dim, 2.0))


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_a_determinant_in_parts_is_that_of_torch(sign: float) -> None:
    matrix = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix[:, 0] *= torch.linalg.det(matrix).sign()[:, None] * sign
    for determinant in (torch.logdet, torch.Tensor.logdet):
        body = opened(determinant)
        assert body is not None
        torch.testing.assert_close(body(matrix), matrix.logdet(), equal_nan=True)
