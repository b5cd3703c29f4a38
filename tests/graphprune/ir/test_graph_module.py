"""Graph modules whose code is generated when it is first needed: nobody can tell, except that it may never be."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import graphprune
from graphprune.ir.graph_module import GraphModule, add_node, adopt
from graphprune.ir.twins import twin
from tests.zoo.case import ready

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.a(x)))


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        return result


def _adopted() -> tuple[nn.Module, GraphModule]:
    torch.manual_seed(0)
    original = ready(Net())
    graph = fx.Tracer().trace(original)
    for node in graph.nodes:
        node.type = None  # torch up to 2.11 cannot pickle annotations that are text
    return original, adopt(original, graph, "Net")


def _saved(module: nn.Module) -> Any:
    stream = io.BytesIO()
    torch.save(module, stream)
    return torch.load(io.BytesIO(stream.getvalue()), weights_only=False)


def _compiled(module: Callable[..., Any]) -> Any:
    return torch.compile(module, fullgraph=True, backend="eager")


def _compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile(fullgraph=True, backend="eager")
    return module


def _recompiled(module: Any) -> Any:
    module.graph = module.graph
    return module


USES: dict[str, Callable[[Any], Any]] = {
    "called": lambda m: m,
    "forward": lambda m: m.forward,
    "forward of its class": lambda m: lambda x: type(m).forward(m, x),
    "deep copy": copy.deepcopy,
    "shallow copy": copy.copy,
    "twin": lambda m: twin(m, lambda tensor: tensor),
    "pickled": lambda m: pickle.loads(pickle.dumps(m)),
    "saved": _saved,
    "traced again": fx.symbolic_trace,
    "traced inside another": lambda m: fx.symbolic_trace(Outer(m)),
    "interpreted": lambda m: fx.Interpreter(m).run,
    "graph set again": _recompiled,
    "train and eval": lambda m: m.train().eval(),
    "exported": lambda m: torch.export.export(m, (X,)).module(),
    "exported inside another": lambda m: torch.export.export(Outer(m).eval(), (X,), strict=True).module(),
    "called in a compiled function": lambda m: _compiled(lambda x: m(x)),
    "compiled": _compiled,
    "compiled in place": _compiled_in_place,
    "compiled inside another": lambda m: _compiled(Outer(m).eval()),
    "compiled in place inside another": lambda m: _compiled_in_place(Outer(m).eval()),
    "compiled inside a container": lambda m: _compiled(Outer(nn.Sequential(m)).eval()),
}


@pytest.mark.parametrize("use", USES)
def test_it_works_in_every_first_use(use: str) -> None:
    torch._dynamo.reset()
    original, module = _adopted()
    assert torch.equal(USES[use](module)(X), original(X))


@pytest.mark.parametrize(
    "read", [lambda m: m.code, str, lambda m: m.print_readable(print_output=False)], ids=["code", "str", "text"]
)
def test_its_code_can_be_read_first(read: Callable[[Any], str]) -> None:
    assert "relu" in read(_adopted()[1])


def test_its_signature_and_line_numbers_can_be_read_first() -> None:
    assert list(inspect.signature(_adopted()[1].forward).parameters) == ["x"]
    assert isinstance(_adopted()[1]._lineno_map, dict)


def test_a_graph_that_is_only_analysed_generates_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    original, module = _adopted()
    generated: list[fx.Graph] = []
    python_code = fx.Graph.python_code

    def counted(graph: fx.Graph, *args: Any, **kwargs: Any) -> Any:
        generated.append(graph)
        return python_code(graph, *args, **kwargs)

    monkeypatch.setattr(fx.Graph, "python_code", counted)
    module.train().eval()
    assert module.state_dict().keys() == original.state_dict().keys() and len(list(module.graph.nodes)) == 5
    assert fx.Interpreter(module).run(X) is not None and not generated
    for _ in range(2):
        module(X)
    assert generated == [module.graph]


def test_the_first_use_sees_edits_and_later_ones_need_recompile() -> None:
    original, module = _adopted()
    node = next(node for node in module.graph.nodes if node.target is torch.relu)
    node.target = torch.sigmoid
    plain = original.get_submodule("b")(original.get_submodule("a")(X))
    assert torch.equal(module(X), torch.sigmoid(plain))
    node.target = torch.tanh
    assert torch.equal(module(X), torch.sigmoid(plain))
    module.recompile()
    assert torch.equal(module(X), torch.tanh(plain))


def test_two_modules_do_not_mix() -> None:
    """Each has a class of its own, where its forward goes."""
    first, second = _adopted()[1], _adopted()[1]
    next(node for node in second.graph.nodes if node.target is torch.relu).target = torch.sigmoid
    second(X)
    assert "relu" in first.code and "sigmoid" in second.code and type(first) is not type(second)


def test_the_module_tree_is_taken_over_with_modes_and_hooks() -> None:
    original, module = _adopted()
    assert module.get_submodule("a") is original.get_submodule("a") and not module.training
    seen: list[Tensor] = []
    module.register_forward_hook(lambda *call: seen.append(call[2]))
    assert module(X) is seen[0]


class Noisy(nn.Module):
    """Asks for the mode in its own code, and calls an operator by its overload and a function that was made within another one.

    Its graph refers to nodes inside of containers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.dropout(nn.functional.max_pool1d(self.a(x), 1), 0.5, self.training)
        y = y.clone(memory_format=torch.contiguous_format)  # which torch.save could not store
        return torch.cat([torch.ops.aten.add.Tensor(y, 1), y[:, : x.shape[1] - 1]], dim=1)


@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), _saved, copy.deepcopy], ids=["pickle", "save", "copy"])
@pytest.mark.parametrize("training", [False, True])
def test_a_pickled_one_follows_both_modes(copied: Callable[[Any], Any], training: bool) -> None:
    """fx's own way traces the code again, in which the mode becomes that of the moment."""
    module = graphprune.capture(ready(Noisy()), X).module.train(training)
    module.meta["note"] = "kept"
    found = copied(module)
    assert found.training is training and found.meta["note"] == "kept"
    assert [str(node) for node in found.graph.nodes] == [str(node) for node in module.graph.nodes]
    for mode in (False, True):
        torch.manual_seed(1)
        wanted = module.train(mode)(X)
        torch.manual_seed(1)
        assert torch.equal(found.train(mode)(X), wanted)
    assert not torch.equal(found.train()(X), found.eval()(X))


def test_a_deep_copy_has_the_attributes_that_were_set() -> None:
    """A scope's are read by the code around it: ``block.out_channels``. Copies are apart."""
    _, module = _adopted()
    module.__dict__["widths"] = [3, 4]
    copied: Any = copy.deepcopy(module)
    copied.widths.append(5)
    assert copied.widths == [3, 4, 5] and module.widths == [3, 4] and torch.equal(copied(X), module(X))


def test_a_node_is_added_as_fx_makes_it() -> None:
    """Read by what it reads, found by its target, and named apart."""
    graph = fx.Graph()
    x = add_node(graph, "placeholder", "x")
    nodes = [add_node(graph, "call_function", torch.add, (x, 1), {"alpha": x}, name) for name in ("sum", "sum", None)]
    wanted = [graph.create_node("call_function", torch.add, (x, 1), {"alpha": x}, "sum") for _ in range(3)]
    assert list(x.users) == [*nodes, *wanted] and all(node.all_input_nodes == [x] for node in nodes)
    assert list(graph.find_nodes(op="call_function", target=torch.add)) == [*nodes, *wanted]
    assert all((node.args, node.kwargs) == (one.args, one.kwargs) for node, one in zip(nodes, wanted, strict=True))
    assert len({node.name for node in graph.nodes}) == len(graph.nodes) and nodes[2].name == "add"
    graph.lint()
