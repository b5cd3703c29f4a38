"""Structures in forwards: loops over tensors, nested inputs, results of every kind, modules in every place."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import graphprune
from graphprune.channels.tape import plain_containers
from tests.checking import max_error, run
from tests.graphprune.tracing.forwards import check, double
from tests.zoo.case import net, ready

X, Y = double(2, 4), double(3, 4)


def layers(**more: Any) -> dict[str, Any]:
    return {"a": nn.Linear(4, 6), "b": nn.Linear(6, 2), **more}


# -- iteration -------------------------------------------------------------------------------------------------------


def over_a_tensor(x: Tensor) -> Any:
    """Three rows: their number is a decision of the example."""
    return torch.stack([row * (index + 1) for index, row in enumerate(x)])


def over_unbind(x: Tensor) -> Any:
    return torch.stack([row * 2 for row in x.unbind(1)], 1)


def over_chunks(x: Tensor) -> Any:
    left, right, *rest = x.chunk(3, dim=1)
    return torch.cat([right, left, *rest], 1)


def over_a_split_list(x: Tensor) -> Any:
    parts = list(x.split(2, 1))
    parts.reverse()
    return torch.cat([one * two for one, two in zip(parts, x.split([2, 2, 2], 1), strict=True)], 1)


def over_a_range_of_an_axis(x: Tensor) -> Any:
    total: Any = 0
    for index in range(x.shape[1]):
        total = total + x[:, index : index + 1] * index
    return x + total


def unpacked(x: Tensor) -> Any:
    a, b, c, d, e, f = x.T
    return torch.stack([f, e, d, c, b, a], 1)


def negative_and_ellipsis_indices(x: Tensor) -> Any:
    y = x[..., None, :][:, 0]
    return y + x[..., -1:] + x[:, ::2].sum(1, True) + x[None, ..., 1].squeeze(0)[:, None]


def index_lists(x: Tensor) -> Any:
    return x[:, [5, 0, 1, 2, 3, 4]] + x[:, torch.tensor([1, 0, 3, 2, 5, 4])]


def conditions_on_types(x: Tensor) -> Any:
    if isinstance(x, Tensor) and torch.is_tensor(x) and x.dtype in (torch.float64, torch.float32) and x.device.type != "cuda":
        x = x * 2
    if x.requires_grad or x.is_sparse or not torch.is_floating_point(x) or x.ndim > 2 or x.is_quantized:
        raise ValueError("not here")
    return x * torch.finfo(x.dtype).eps if x.stride(-1) == 99 else x


def functions_as_values(x: Tensor) -> Any:
    for function in (torch.relu, F.gelu, Tensor.tanh, lambda t: t + 1, torch.ops.aten.silu, torch.ops.aten.mul.Tensor):
        x = function(x, x) if function is torch.ops.aten.mul.Tensor else function(x)
    return x


def a_generator(x: Tensor) -> Any:
    def halves(t: Tensor) -> Iterable[Tensor]:
        yield t[:, :3]
        yield t[:, 3:]

    return torch.cat(tuple(half.flip(1) for half in halves(x)), 1)


def einsum(x: Tensor) -> Any:
    return torch.einsum("nc,nd->nd", x, x) + torch.einsum("nc,nc->n", [x, x])[:, None]


def out_of_place_chains(x: Tensor) -> Any:
    return 1 - (2 / (x.exp() + 1)) ** 2 % 3 + (3 ** x.abs()).log() - (-x) + abs(x) + (x @ x.T) @ x + (x > 0) * x


def logic(x: Tensor) -> Any:
    positive, large = x > 0, x.abs() >= 0.5
    return x * (positive & large) + x * (positive | ~large) * (positive ^ large) + torch.where(x == 0, x, -x).clamp(min=-1)


@pytest.mark.parametrize(
    "forward",
    [over_unbind, over_chunks, over_a_split_list, over_a_range_of_an_axis, unpacked, negative_and_ellipsis_indices, index_lists,
     conditions_on_types, functions_as_values, a_generator, einsum, out_of_place_chains, logic],
    ids=lambda forward: forward.__name__,
)  # fmt: skip
def test_operations(forward: Any) -> None:
    frozen = forward in (unpacked, over_a_range_of_an_axis, over_unbind, negative_and_ellipsis_indices, index_lists)
    check(net(lambda self, x: self.b(forward(self.a(x))), **layers()), X, Y, groups=0 if frozen else 1)


def test_iteration_is_unrolled_at_the_example_size() -> None:
    """A limit: the number of rows is control flow, as a condition on a size is."""
    model = net(lambda self, x: self.b(over_a_tensor(self.a(x))), **layers())
    found, _ = check(model, Y)
    assert [n.args[1] for n in found.program.module.graph.nodes if n.target is operator.getitem] == [0, 1, 2]


# -- inputs and results --------------------------------------------------------------------------------------------------


def test_nested_inputs() -> None:
    def forward(self: Any, batch: Any, *, extra: Any = None) -> Any:
        left, (right, *rest) = batch["pair"]
        y = self.a(left) + self.a(right) * batch["scale"]["value"]
        for item in rest:
            y = y + item
        return self.b(y if extra is None else y + extra[0])

    def inputs(n: int) -> Any:
        pair = [double(n, 4), (double(n, 4), double(n, 1))]
        return {"batch": {"pair": pair, "scale": OrderedDict(value=double(1)), "name": "x"}, "extra": [double(n, 6)]}

    check(net(forward, **layers()), inputs(2), inputs(3), groups=0)


def test_keyword_only_and_optional_inputs() -> None:
    def forward(self: Any, x: Tensor | None = None, *, mask: Tensor | None = None, scale: float = 2.0, y: Tensor) -> Any:
        z = self.a(y) * scale
        if x is not None:
            z = z + self.a(x)
        if mask is not None:
            z = z.masked_fill(mask[:, None], 0.0)
        return self.b(z)

    model = net(forward, **layers())
    check(model, {"y": X}, {"y": Y})
    check(model, {"y": X, "x": X + 1}, {"y": Y, "x": Y})
    check(model, {"y": X, "mask": torch.tensor([True, False])}, {"y": Y, "mask": torch.tensor([True, True, False])})


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Result:
    logits: Any
    hidden: Any = None
    name: str = "result"


RESULTS: dict[str, Any] = {
    "tuple": lambda y, n: (y, n),
    "list": lambda y, n: [y, [n, y]],
    "dict": lambda y, n: {"y": y, "more": {"n": n, 3: y}},
    "named tuple": lambda y, n: Pair(y, Pair(n, [y])),
    "dataclass": lambda y, n: Result(y, (n,)),
    "with constants": lambda y, n: (y, None, 3, "name", True, torch.float32, 0.5),
    "with sizes": lambda y, n: (y, n.shape[0], n.shape[0] * 2, tuple(y.shape)),
    "same twice": lambda y, n: (y, y),
    "a view": lambda y, n: (y, y[:1], y.T),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results(name: str) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        return RESULTS[name](self.b(y), y.sum(1))

    model = net(forward, **layers())
    found, _ = check(model, X, Y)
    assert [group.name for group in found.groups.prunable] == ["a"], "what the model returns keeps its width"
    for example in (X, Y):
        assert str(run(found.program.module, example)) == str(run(model, example))


def test_an_input_that_is_a_result() -> None:
    check(net(lambda self, x: (x, self.b(self.a(x)), x.shape[1]), **layers()), X, Y)


class Marked(Tensor):
    """A tensor of a class of its own, as libraries make for pictures and masks."""


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.as_subclass(Marked),
        lambda t: Tensor._make_subclass(Marked, t),
        lambda t: nn.Parameter(t, requires_grad=False),
    ],
)
@pytest.mark.parametrize("result", [lambda t: t, lambda t: {"y": t}, lambda t: Pair(t, t), lambda t: Result(t, None)])
def test_a_tensor_made_another_class_is_the_same_tensor(make: Callable[[Tensor], Tensor], result: Callable[[Tensor], Any]) -> None:
    """No call of torch says so. What comes out is frozen all the same, and is a plain tensor."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Any:
            y = make(self.first(x))
            y.add_(1)
            return result(make(self.last(y.relu())))

    model, x = Net().double().eval(), double(3, 5)
    slim = graphprune.prune(model, x, target="channels=50%", ranking="local")
    assert dict(slim.report.widths) == {"first": (8, 4)}
    with torch.no_grad():
        found, wanted = run(graphprune.capture(model, x).module, x), run(model, x)
        assert max_error(found, wanted) == 0
        leaves = tree_leaves(plain_containers(run(slim.model, double(2, 5))))
    assert {type(leaf) for leaf in leaves if isinstance(leaf, Tensor)} == {Tensor}


def test_the_models_own_input_is_not_written_by_the_capture() -> None:
    model = net(lambda self, x: self.b(self.a(x.mul_(2)).relu_()), **layers())
    given = X.clone()
    check(model, given, Y)
    assert torch.equal(given, X)


# -- modules in every place ------------------------------------------------------------------------------------------------


class Held(nn.Module):
    """Layers in lists, dicts and plain containers, shared, tied, by keyword."""

    plain: list[Any]

    def __init__(self) -> None:
        super().__init__()
        self.list = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6)])
        self.dict = nn.ModuleDict({"x": nn.Linear(6, 6), "y": nn.ReLU()})
        self.plain = [self.list[1], self.dict["x"]]
        self.shared = self.list[1]
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.plain[0].weight
        self.head = nn.Linear(6, 2)
        self.scales = nn.ParameterList([torch.rand(6), torch.rand(1)])
        self.named = nn.ParameterDict({"shift": torch.rand(6)})

    def forward(self, x: Tensor) -> Any:
        x = self.list[0](input=x)
        for layer in (*self.plain, self.shared, self.tied, *self.dict.values()):
            x = layer(x) + x
        for scale in self.scales:
            x = x * scale
        return self.head(x + self.named["shift"])


def test_modules_and_parameters_in_containers() -> None:
    found, _ = check(ready(Held()), X, Y)
    assert [group.size for group in found.groups.prunable] == [6]
    assert set(ready(Held()).state_dict()) - set(found.program.module.state_dict()) == {"shared.weight", "shared.bias"}


def test_tied_parameters_stay_tied() -> None:
    _, slim = check(ready(Held()), X)
    assert slim.get_submodule("tied").weight is slim.get_submodule("list.1").weight


def test_modules_that_the_model_does_not_register() -> None:
    """Layers in a plain list are no part of the model's state; their tensors are constants of the graph."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.hidden[0](self.a(x)))

    hidden = [nn.Linear(6, 6).double()]
    model = net(forward, **layers(hidden=hidden))
    check(model, X, Y)


def test_tensors_in_attributes_closures_and_lists() -> None:
    closed = double(6)

    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x) * self.scale + closed + self.table["deep"][0])

    model = net(forward, **layers(table={"deep": [double(6)]}))
    model.scale = double(6)
    check(model, X, Y)


def test_helpers_and_nested_containers() -> None:
    class Block(nn.Module):
        def __init__(self, width: int, depth: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.ReLU(True)) for _ in range(depth)])
            self.shortcut = nn.Identity()

        @property
        def last(self) -> Any:
            last: Any = self.layers[-1]
            return last[0]

        def helper(self, x: Tensor, *, flag: bool = False) -> Any:
            return self.layers[:1](x) if flag else self.layers(x)

        def forward(self, x: Tensor, **options: Any) -> Any:
            return self.helper(x, **options) + self.shortcut(x) + self.last.weight.sum(0) + self.last(input=x)

    model = net(lambda self, x: self.b(self.block(self.a(x), flag=True) + self.block(self.a(x))), **layers(block=Block(6, 2)))
    check(model, X, Y)


def test_a_forward_called_directly_and_through_super() -> None:
    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            return self.b.forward(F.relu(self.a.forward(x)))

    class Derived(Base):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * 2

    check(ready(Derived()), X, Y)


def test_a_captured_model_inside_a_model() -> None:
    inner = ready(Held())
    captured = graphprune.capture(inner, X).module
    model = net(lambda self, x: self.c(self.inner(x)).relu(), inner=captured, c=nn.Linear(2, 3))
    found, _ = check(model, X, Y)
    assert not found.program.opaque
    assert max_error(run(model, Y), run(found.program.module, Y)) == 0.0
