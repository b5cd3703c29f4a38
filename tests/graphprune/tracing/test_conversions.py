"""Names of C functions in a model's code: of sizes they keep the origin, of anything else they are what they were."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from functools import lru_cache
from math import sqrt
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.tracing.conversions import Conversions
from graphprune.tracing.sizes import origin_of, size_of
from tests.checking import run
from tests.graphprune.tracing.forwards import check, double
from tests.zoo.case import net

SIZE = size_of(torch.empty(16, 9, device="meta"), 0)


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function as part of a model."""
    model = net(lambda self: function(*args))
    with Conversions(model).remembered():
        return model()


@pytest.mark.parametrize(
    ("function", "value"),
    [(lambda n: int(n), 16), (lambda n: int(n * 0.3), 4), (lambda n: float(n), 16.0), (lambda n: sqrt(n), 4.0),
     (lambda n: math.sqrt(n / 4), 2.0), (lambda n: math.isqrt(n), 4), (lambda n: math.log2(n), 4.0), (lambda n: min(n, 20), 16),
     (lambda n: max([n, 20]), 20), (lambda n: max(m for m in (n, 3)), 16), (lambda n: min(3, 2, n), 2),
     (lambda n: [int(m) for m in (n, n)][1], 16), (lambda n: (lambda m: int(m / 2))(n), 8), (lambda n: math.pow(n, 2), 256.0)],
)  # fmt: skip
def test_sizes_keep_their_origin(function: Any, value: Any) -> None:
    found = call(function, SIZE)
    assert found == value and origin_of(found) is not None


def test_the_length_of_a_tensor_is_a_size() -> None:
    check(net(lambda self, x: self.b(self.a(x) * len(x)), a=nn.Linear(4, 6), b=nn.Linear(6, 2)), double(2, 4), double(3, 4))


@pytest.mark.parametrize(
    "function",
    [lambda: (int("12"), int("ff", 16), int(3.9), float("nan") != 0, float(2)), lambda: (min([2, 1]), max("a", "b")),
     lambda: (max([], default=3), min([1, -2], key=abs), len([1, 2]), len("abc")), lambda: isinstance(3, int),
     lambda: torch.zeros(2, dtype=cast(Any, int)).dtype, lambda: list(map(int, "12")), lambda: int.from_bytes(b"a", "big"),
     lambda: math.sqrt(2.0) + math.log(8, 2) + math.pow(2, 3)],
)  # fmt: skip
def test_everything_else_is_as_before(function: Any) -> None:
    assert call(function) == function()


@pytest.mark.parametrize(
    "function", [lambda: max([]), lambda: int("x"), lambda: len(cast(Any, 3)), lambda: math.sqrt(-1), lambda: min(1, "a")]
)
def test_errors_are_the_same(function: Any) -> None:
    found = []
    for attempt in (function, lambda: call(function)):
        try:
            attempt()
        except (TypeError, ValueError) as error:
            found.append((type(error), str(error)))
    assert len(found) == 2 and found[0] == found[1]


SETTINGS: Any = ({"by": 2}, [1])


def helper(n: Any) -> Any:
    return int(n / SETTINGS[0]["by"])


@lru_cache
def table(n: int, dtype: torch.dtype) -> Tensor:
    return torch.arange(n, dtype=dtype)


class Helpers:
    @staticmethod
    def static(n: Any) -> Any:
        return int(n / 2)

    @property
    def prop(self) -> Any:
        return int(SIZE / 2)


def test_helpers_are_reached_by_name() -> None:
    for function in (lambda n: helper(n), lambda n: Helpers.static(n), lambda n: Helpers().prop):
        assert origin_of(call(function, SIZE)) is not None


def _importing(n: Any) -> Any:
    from . import forwards

    return forwards.halved(n)


def _importing_by_name(n: Any) -> Any:
    from tests.graphprune.tracing.forwards import halved

    return halved(n)


@pytest.mark.parametrize("function", [_importing, _importing_by_name])
def test_helpers_are_reached_that_a_function_imports_itself(function: Any) -> None:
    """As forwards import einops, whose caches would be asked for the sizes of the example."""
    assert origin_of(call(function, SIZE)) is not None


def test_nothing_is_left_behind() -> None:
    before = helper.__code__, set(vars(builtins)), math.sqrt, table
    with pytest.raises(RuntimeError, match="stop"), Conversions(net(lambda self: helper(table(3)))).remembered():
        assert helper.__code__ is not before[0]
        raise RuntimeError("stop")
    assert (helper.__code__, set(vars(builtins)), math.sqrt, table) == before


def test_caches_of_functions_keep_nothing_of_a_trace_and_give_it_nothing() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x) + table(x.shape[1], x.dtype)[:, None])

    model = net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    short, long = double(2, 5, 4), double(1, 7, 4)
    table.cache_clear()
    graphprune.capture(model, short)
    assert table.cache_info().currsize == 0
    run(model, short)
    found, _ = check(model, short, long)
    assert not found.program.scopes


def test_equal_code_of_two_files_says_where_it_is() -> None:
    """Python takes code objects for equal whatever their file, and the source lines of nodes are read off them."""
    layers = []
    for name in ("one.py", "two.py"):
        scope: dict[str, Any] = {}
        exec(compile("def forward(self, x):\n    return self.inner(x)[:int(x.shape[0])]", name, "exec"), scope)
        layers.append(net(scope["forward"], inner=nn.Linear(4, 4)))
    program = graphprune.capture(nn.Sequential(*layers), double(2, 4))
    found = [node.meta["source"] for node in program.module.graph.nodes if node.op == "call_module"]
    assert found == ["one.py:2", "two.py:2"]


def test_a_graph_that_is_captured_again_keeps_them_too() -> None:
    """Its code is generated; otherwise, what it makes of sizes would be the example's."""

    class Grid(nn.Module):
        def forward(self, x: Tensor) -> Any:
            side = int(x.shape[1] ** 0.5)
            return x + torch.arange(side * side)

    once = graphprune.capture(Grid(), torch.zeros(2, 4)).module
    twice: Any = graphprune.capture(once, torch.zeros(2, 4)).module
    assert twice.code == once.code
    assert torch.equal(twice(torch.zeros(2, 9))[0], torch.arange(9.0))
