"""Guards: where a forward decides by a size, the captured and the pruned model refuse sizes that would decide otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

import graphprune
from tests.checking import analyse, check_plan, max_error, run
from tests.graphprune.tracing.forwards import double
from tests.zoo.case import conv, net

EXAMPLE = double(2, 3, 8, 8)


def model_of(body: Callable[..., Any]) -> nn.Module:
    """A forward between two convolutions; it gets what the first one makes, and the input."""
    return net(lambda self, x: self.b(body(self.a(x), x)), a=conv(3, 4), b=conv(4, 2))


def checks(module: Any) -> list[str]:
    """What a graph checks."""
    texts = [str(node.args[1]) for node in module.graph.nodes if node.target is torch._assert]
    return [text.partition(" where ")[2].partition(" (")[0] for text in texts]


def of_input(y: Tensor, x: Tensor) -> Tensor:
    return y * 2 if x.shape[2] % 4 == 0 else y * 3


def of_what_is_made(y: Tensor, x: Tensor) -> Tensor:
    return y * 2 if y.shape[2] > 6 else y * 3


def of_two_sizes(y: Tensor, x: Tensor) -> Tensor:
    return y.transpose(2, 3) if y.shape[2] == y.shape[3] else y


def of_a_shape(y: Tensor, x: Tensor) -> Tensor:
    return y if tuple(x.shape[2:]) == (8, 8) else y[:, :, :8, :8]


def of_a_truth(y: Tensor, x: Tensor) -> Tensor:
    return y * 3 if x.shape[3] % 8 else y


def of_a_ratio(y: Tensor, x: Tensor) -> Tensor:
    return y if x.shape[2] / x.shape[3] <= 1.0 else y * 2


def over_a_range(y: Tensor, x: Tensor) -> Any:
    return y + sum(x[:, :, row : row + 1, :].mean() for row in range(x.shape[2]))


def over_rows(y: Tensor, x: Tensor) -> Any:
    return y + sum(row.mean() for row in x.unbind(2))


def copies_in_a_list(y: Tensor, x: Tensor) -> Any:
    return y * sum([1] * x.shape[2])


def written_by_the_model(y: Tensor, x: Tensor) -> Tensor:
    torch._assert(x.shape[2] == 8, "eight rows, please")
    return y


def an_assertion(y: Tensor, x: Tensor) -> Tensor:
    assert x.shape[-1] % 8 == 0
    return y


@pytest.mark.parametrize(
    ("body", "wanted", "others", "refused"),
    [
        (of_input, ["(x.shape[2] % 4) == 0"], [(3, 3, 12, 7)], (2, 3, 10, 8)),
        (of_what_is_made, ["a.shape[2] > 6"], [(1, 3, 7, 5)], (2, 3, 6, 8)),
        (of_two_sizes, ["a.shape[2] == a.shape[3]"], [(1, 3, 5, 5)], (2, 3, 8, 7)),
        (of_a_shape, ["x.shape[2] == 8", "x.shape[3] == 8"], [(5, 3, 8, 8)], (2, 3, 9, 8)),
        (of_a_truth, ["(x.shape[3] % 8) == 0"], [(2, 3, 5, 16)], (2, 3, 8, 9)),
        (of_a_ratio, ["(x.shape[2] / x.shape[3]) <= 1.0"], [(2, 3, 7, 8)], (2, 3, 9, 8)),
        (over_a_range, ["x.shape[2] == 8"], [(1, 3, 8, 5)], (2, 3, 9, 8)),
        (over_rows, ["x.shape[2] == 8"], [(1, 3, 8, 5)], (2, 3, 9, 8)),
        (copies_in_a_list, ["x.shape[2] == 8"], [(1, 3, 8, 5)], (2, 3, 9, 8)),
        (an_assertion, ["(x.shape[3] % 8) == 0"], [(1, 3, 8, 16)], (2, 3, 8, 9)),
    ],
    ids=lambda item: getattr(item, "__name__", None),
)
def test_other_branches_are_refused(body: Any, wanted: list[str], others: list[tuple[int, ...]], refused: tuple[int, ...]) -> None:
    model = model_of(body)
    found = analyse(model, EXAMPLE)
    slim = check_plan(found, found.random_plan(0), zeros=False, macs=False)
    for module in (found.program.module, slim):
        assert checks(module) == wanted
        with pytest.raises(AssertionError, match=r"another branch than the example inputs .*test_guards\.py:\d+\)\. Capture"):
            run(module, double(*refused))
    for shape in others:
        example = double(*shape)
        assert max_error(run(found.program.module, example), run(model, example)) == 0.0
        assert graphprune.verify(model, slim, found.random_plan(0), example).check().error < 1e-10


def test_a_check_of_the_model_s_own_keeps_its_words() -> None:
    program = graphprune.capture(model_of(written_by_the_model), EXAMPLE)
    for module in (program.module, graphprune.capture(program.module, EXAMPLE).module):
        assert len([node for node in module.graph.nodes if node.target is torch._assert]) == 1
        with pytest.raises(AssertionError, match="eight rows, please"):
            run(module, double(2, 3, 7, 8))


def equal_to_itself(y: Tensor, x: Tensor) -> Tensor:
    assert y.shape == y.relu().shape and x.shape[2] + 0 == x.shape[2] and not x.shape[2] - x.shape[2]
    return y


def of_widths(y: Tensor, x: Tensor) -> Tensor:
    weight = torch.ones(4, 3)
    assert y.shape[1] % 4 == 0 and y.shape[1] > weight.shape[1]
    return y


def one_from_many(y: Tensor, x: Tensor) -> Tensor:
    return y.expand(x.shape[0], -1, -1, -1) if x.shape[0] != 1 and x.shape[2] > 1 and x.numel() > 0 and x.shape[3] >= 2 else y


def as_numbers(y: Tensor, x: Tensor) -> Tensor:
    return y.reshape(x.shape[0], y.shape[1], -1).reshape(y.shape) * (x.shape[2] // 2)


def known_sizes(y: Tensor, x: Tensor) -> Tensor:
    parts = y.reshape(x.shape[0], 2, 2, *y.shape[2:])
    left, right = parts.unbind(1)
    assert parts.shape[2] == 2 and torch.zeros(x.shape[0], 3).shape == (x.shape[0], 3)
    return torch.cat([right, left], 1)


@pytest.mark.parametrize("body", [equal_to_itself, one_from_many, as_numbers, known_sizes, of_widths], ids=lambda b: b.__name__)
def test_what_cannot_come_out_differently_is_not_checked(body: Any) -> None:
    found = analyse(model_of(body), EXAMPLE)
    slim = check_plan(found, found.random_plan(0), zeros=False, macs=False, other=double(1, 3, 2, 6))
    assert checks(slim) == []
    if body is not of_widths:  # which axes hold channels, the capture does not know
        assert checks(found.program.module) == []


def test_a_size_of_one_is_a_case_of_its_own() -> None:
    program = graphprune.capture(model_of(one_from_many), EXAMPLE[:1])
    assert checks(program.module) == ["x.shape[0] == 1"]


def test_the_same_question_is_checked_once() -> None:
    """Also where it is asked of tensors that have the size from one another."""

    def body(y: Tensor, x: Tensor) -> Tensor:
        for _ in range(3):
            y = y + torch.relu(y) if y.shape[2] > 4 else y
        return y

    assert checks(graphprune.capture(model_of(body), EXAMPLE).module) == ["a.shape[2] > 4"]


def test_a_model_that_asks_for_its_mode() -> None:
    """Its two traces have the same checks, so the graph follows the mode."""

    def body(y: Tensor, x: Tensor) -> Tensor:
        for _ in range(2):
            y = y + torch.relu(y) if y.shape[2] > 4 and y.shape[3] >= y.shape[2] else y
        return y

    def forward(self: Any, x: Tensor) -> Any:
        y = nn.functional.dropout(body(self.a(x), x), 0.5, bool(self.training))
        return self.b(y)

    module = graphprune.capture(net(forward, a=conv(3, 4), b=conv(4, 2)), EXAMPLE).module
    assert checks(module) == ["a.shape[2] > 4", "a.shape[3] >= a.shape[2]"]
    assert max_error(run(module.train(), EXAMPLE), run(module.train(), EXAMPLE)) > 0.0


class OnData(nn.Module):
    """Does not trace, and compares sizes."""

    def forward(self, x: Tensor) -> Any:
        return x * 2 if x.shape[2] > 4 and bool(x.sum() > 1e9) else x


def test_a_module_that_stays_as_it_is_decides_by_itself() -> None:
    model = net(lambda self, x: self.b(self.on(self.a(x))), a=conv(3, 4), on=OnData(), b=conv(4, 2))
    assert checks(graphprune.capture(model, EXAMPLE).module) == []


def sizes_and_widths(y: Tensor, x: Tensor) -> Tensor:
    return y if y.shape[2] * y.shape[1] >= 32 else y * 2


def test_widths_in_a_check_of_sizes_are_the_original_s() -> None:
    found = analyse(model_of(sizes_and_widths), EXAMPLE)
    slim = check_plan(found, found.random_plan(0), zeros=False, macs=False, other=double(2, 3, 9, 3))
    with pytest.raises(AssertionError, match="another branch"):
        run(slim, double(2, 3, 7, 8))


@pytest.fixture(name="guarded")
def guarded_model() -> Any:
    """A pruned model with a check."""
    return graphprune.prune(model_of(of_input), EXAMPLE, target="channels=50%")


def test_compiled_with_dynamic_batch_and_resolution(guarded: Any) -> None:
    torch._dynamo.reset()
    compiled: Any = torch.compile(guarded.model, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(2, 3, 8, 8), (3, 3, 12, 7), (5, 3, 16, 9)]:
        example = double(*shape)
        assert max_error(run(compiled, example), run(guarded.model, example)) < 1e-10


def test_exported_with_dynamic_batch(guarded: Any, tmp_path: Path) -> None:
    batch, width = Dim("batch", min=1, max=64), Dim("width", min=4, max=64)
    exported = torch.export.export(guarded.model, (EXAMPLE,), dynamic_shapes=({0: batch, 3: width},)).module()
    example = double(5, 3, 8, 11)
    assert max_error(run(exported, example), run(guarded.model, example)) < 1e-10
    graphprune.save(guarded, tmp_path / "slim.pt2")


def test_stored_and_loaded(guarded: Any, tmp_path: Path) -> None:
    graphprune.save(guarded, tmp_path / "slim.safetensors")
    loaded = graphprune.load(tmp_path / "slim.safetensors")
    assert isinstance(loaded, fx.GraphModule) and checks(loaded) == ["(x.shape[2] % 4) == 0"]
    with pytest.raises(AssertionError, match="another branch"):
        run(loaded, double(2, 3, 10, 8))
