"""Capture: any way of giving inputs, the model left as it was, leaves where tracing fails, and errors that say where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.testing._internal.two_tensor import TwoTensor

import graphprune
from graphprune.channels.tape import describe
from graphprune.errors import CaptureError
from graphprune.ir.program import Inputs
from graphprune.tracing.inputs import normalise_inputs
from graphprune.training.optimiser_state import slice_state
from tests.checking import analyse, check_plan, max_error, run, state_hash
from tests.zoo.case import net

X = torch.randn(2, 4, dtype=torch.float64)


class Two(nn.Module):
    """A required and an optional input, and an option that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, scale: Tensor | None = None, *, negate: bool = False) -> Tensor:
        y = F.relu(self.a(x))
        if scale is not None:
            y = y * scale
        if negate:
            y = -y
        result: Tensor = self.b(y)
        return result


@pytest.mark.parametrize(
    "inputs",
    [X, (X,), [X], {"x": X}, (X, torch.tensor(2.0)),
     {"x": X, "scale": torch.rand(2, 1).double()}, {"scale": torch.tensor(3.0), "x": X},
     {"x": X, "negate": True}, Inputs((X,), {"negate": True}), {"x": X, "scale": None}],
    ids=["tensor", "tuple", "list", "dict", "two", "two by name", "other order", "option", "both ways", "none"],
)  # fmt: skip
def test_every_way_of_giving_inputs(inputs: Any) -> None:
    model = Two().double().eval()
    found = analyse(model, inputs)
    assert [g.size for g in found.groups.prunable] == [6]
    assert max_error(run(found.program.module, found.program.inputs), run(model, inputs)) == 0.0
    plan = found.random_plan(0)
    result = graphprune.apply_plan(model, inputs, plan)
    assert result.report.verification is not None and result.report.verification.passed


@pytest.mark.parametrize("inputs", [(X, None), {"negate": True, "scale": None, "x": X}, Inputs((X,), {"negate": False})])
def test_the_slim_model_is_called_as_the_example_was(inputs: Any, tmp_path: Path) -> None:
    """A training loop passes options with every batch; they are taken, in a saved model too, and a slim one of the slim one."""
    model = Two().double().eval()
    given = normalise_inputs(inputs)
    once = graphprune.prune(model, inputs, target="channels=80%")
    slim = graphprune.prune(once.model, inputs, target="channels=80%").model
    graphprune.save(once, tmp_path / "slim.safetensors")
    for module in (once.model, slim, graphprune.load(tmp_path / "slim.safetensors")):
        called = torch.compile(module, fullgraph=True, backend="eager")
        assert torch.equal(module(*given.args, **given.kwargs), module(X))
        assert torch.equal(called(*given.args, **given.kwargs), module(X))


@pytest.mark.parametrize(
    ("inputs", "other", "message"),
    [
        ((X, None), (X, torch.tensor(2.0)), "scale is None in this graph"),
        ({"x": X, "negate": False}, {"x": X, "negate": True}, "negate is False in this graph"),
    ],
)
def test_another_option_than_the_example_had_is_refused(inputs: Any, other: Any, message: str) -> None:
    slim = graphprune.prune(Two().double().eval(), inputs, target="channels=50%").model
    given = normalise_inputs(other)
    with pytest.raises(AssertionError, match=message):
        slim(*given.args, **given.kwargs)


@pytest.mark.parametrize("size", [(4, 6), [4, 6], torch.zeros(4, 6).shape])
@pytest.mark.parametrize("keep_class", [False, True])
def test_sizes_are_options(size: Any, keep_class: bool, tmp_path: Path) -> None:
    """Of results, as segmentation models take them: with each batch, as a tuple, a list or a shape."""

    class Resizing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor, size: Any, scales: Any = (1.0, (2.0, None))) -> Tensor:
            result: Tensor = F.interpolate(self.b(self.a(x).relu()), tuple(size)) * scales[0]
            return result

    model, x = Resizing().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    result = graphprune.prune(model, (x, size, [0.5, [2.0, None]]), target="channels=50%", keep_class=keep_class)
    graphprune.save(result, tmp_path / "slim.safetensors")
    for slim in (result.model, graphprune.load(tmp_path / "slim.safetensors")):
        assert torch.equal(slim(x, size, [0.5, [2.0, None]]), result.graph(x))
    with pytest.raises(AssertionError, match=r"size is [(\[]4, 6[)\]] in this graph"):
        result.graph(x, (5, 6))


def test_what_no_default_can_stand_for_is_no_argument() -> None:
    """An option in front of a tensor, and what is no plain value."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)

        def forward(self, x: Tensor, flip: bool, y: Tensor, axes: set[int]) -> Tensor:
            result: Tensor = self.a(x + y).flip(list(axes) if flip else [])
            return result

    program = graphprune.capture(Mixed().double().eval(), (X, True, X, {0}))
    assert [node.target for node in program.module.graph.nodes if node.op == "placeholder"] == ["x", "y"]
    assert not [node for node in program.module.graph.nodes if node.target is torch._assert]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_its_modes_are_left_alone(training: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 2)).double().train(training)
    model[1].eval()
    before = state_hash(model)
    program = graphprune.capture(model, X)
    assert state_hash(model) == before
    assert program.module.training == training and not program.module.get_submodule("1").training
    result = graphprune.prune(model, X, target="channels=50%")
    assert state_hash(model) == before
    assert result.model.training == training and not result.model.get_submodule("1").training


class Branches(nn.Module):
    """Control flow on values: it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return F.relu(self.inner(x))
        result: Tensor = self.inner(x)
        return result


def test_a_module_that_does_not_trace_is_a_leaf_with_a_reason() -> None:
    model = nn.Sequential(nn.Linear(4, 6), Branches(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double().eval()
    found = analyse(model, X)
    assert list(found.program.opaque) == ["1"] and "looks at the values of a tensor (bool" in found.program.opaque["1"]
    assert [(g.name, g.size) for g in found.groups.prunable] == [("2", 5)]
    assert any("module 1 does not trace" in text for text in found.frozen_reasons("0.weight", 0))
    slim = check_plan(found, found.random_plan(0), zeros=True, macs=False, again=False)
    assert isinstance(slim.get_submodule("1"), Branches)
    result = graphprune.prune(model, X, target="channels=60%")
    assert "1" in result.report.opaque


def test_an_opaque_module_inside_an_opaque_module_is_named_once() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Branches()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x)
            return y if bool(y.sum() > 0) else -y

    program = graphprune.capture(nn.Sequential(nn.Linear(4, 6), Outer()).double(), X)
    assert list(program.opaque) == ["1"]
    assert [n.target for n in program.module.graph.nodes if n.op == "call_module"] == ["0", "1"]


def test_a_model_whose_own_forward_does_not_trace() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight if x.sum() > 0 else x

    with pytest.raises(CaptureError, match=r"Bare.forward does not trace at .*test_\w+.py:\d+"):
        graphprune.capture(Bare(), torch.zeros(1, 6))
    assert [scope.path for scope in graphprune.capture(Branches(), torch.zeros(1, 6)).scopes] == ["inner"]


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (lambda: nn.Linear(4, 2), torch.zeros(2, 5), r"does not run on inputs float32\[2x5\]"),
        (lambda: nn.Linear(4, 2), torch.zeros(2, 4, dtype=torch.int64), r"does not run on inputs int64\[2x4\]"),
        (lambda: nn.Linear(4, 2), torch.zeros(2, 4, dtype=torch.float64), "does not run"),
        (lambda: nn.Embedding(4, 2), torch.zeros(2, 4), "does not run"),
        (lambda: nn.Linear(4, 2), (), "hold no tensor"),
        (lambda: nn.Linear(4, 2), "1x4", "hold no tensor"),
        (lambda: nn.Linear(4, 2), torch.zeros(0, 4), r"\(float32\[0x4\]\) have no elements, .* Give a batch with something in it"),
        (
            lambda: nn.Linear(4, 2),
            (torch.zeros(1, 4), torch.zeros(1)),
            r"\(float32\[1x4\], float32\[1\]\) do not fit Linear",
        ),
        (lambda: nn.Linear(4, 2), {"y": torch.zeros(1, 4)}, r"do not fit Linear.forward: .* for a forward that takes one, give"),
        (lambda: nn.LazyLinear(2), torch.zeros(1, 4), r"weight of LazyLinear is lazy and has no shape yet. Run the model once"),
        (lambda: torch.jit.script(nn.Linear(4, 2)), torch.zeros(1, 4), "scripted"),
        (lambda: torch.jit.trace(nn.Linear(4, 2), torch.zeros(1, 4)), torch.zeros(1, 4), "scripted"),
        (lambda: torch.relu, torch.zeros(1, 4), "Expected a torch.nn.Module"),
        (lambda: nn.Linear, torch.zeros(1, 4), "Expected a torch.nn.Module, got the class Linear. Make one of it"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inputs_and_models_that_cannot_be(model: Callable[[], Any], inputs: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        graphprune.prune(model(), inputs)


def test_messages_name_functions_without_their_addresses() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert describe(graph.call_function(F.embedding, (x, x))) == "function embedding"
    assert describe(graph.call_module("stem", (x,))) == "module stem"
    assert describe(graph.output(x)) == "the output"


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "parallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "both": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_taken_off(wrapper: str) -> None:
    """The plan is that of the model inside, and fits both; nothing of the model counts as unused."""
    inner = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    wrapped = WRAPPERS[wrapper](inner)
    result = graphprune.prune(wrapped, X, target="channels=50%")
    assert set(result.model.state_dict()) == set(inner.state_dict()) and result.report.unused == ()
    assert result.plan == graphprune.prune(inner, X, target="channels=50%").plan
    graphprune.verify(wrapped, WRAPPERS[wrapper](result.model), result.plan, X).check()
    state = {"averages": dict(inner.named_parameters())}
    cut, notes = slice_state(state, result.plan, wrapped, WRAPPERS[wrapper](result.model))
    assert notes == [] and torch.equal(cut["averages"]["0.weight"], result.model.get_parameter("0.weight"))


def test_functional_dropout_follows_the_mode() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(F.dropout(self.a(x), 0.5, self.training))

    model = net(forward, a=nn.Linear(4, 60), b=nn.Linear(60, 2))
    slim = graphprune.prune(model, X, target="channels=50%").model
    assert torch.equal(slim.eval()(X), slim(X))
    slim.train()
    assert not torch.equal(slim(X), slim(X))


def test_tensors_made_while_tracing_leave_nothing_on_the_model() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x) + torch.arange(6, dtype=torch.float64))

    model = net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    keys = set(model.__dict__), set(model.state_dict())
    result = graphprune.prune(model, X, target="channels=50%")
    assert (set(model.__dict__), set(model.state_dict())) == keys
    assert set(result.model.state_dict()) == keys[1], "constants are no part of the state"


def test_questions_about_tensors_are_answered_and_leave_no_node() -> None:
    """Of inputs, results, parameters and constants; in a batch norm's way, as part of an assertion, too."""

    def forward(self: Any, x: Tensor) -> Any:
        places = torch.arange(6, dtype=torch.float64)
        y = self.a(x)
        answers = [(one.dim(), one.ndim, one.dtype) for one in (x, y, self.a.weight, places, self.count)]
        double = torch.float64
        assert answers == [(2, 2, double), (2, 2, double), (2, 2, double), (1, 1, double), (0, 0, torch.int64)]
        torch._assert(y.ndim == 2, f"expected rows, got {y.ndim} axes")
        return self.b(y)

    model = net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    model.register_buffer("count", torch.tensor(0))
    program = graphprune.capture(model, X)
    assert [node.op for node in program.module.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]


def test_a_captured_program_is_a_model_again() -> None:
    model = Two().double().eval()
    once = graphprune.capture(model, X).module
    twice = graphprune.capture(once, X).module
    assert once.code == twice.code and set(twice.state_dict()) == set(model.state_dict())


def test_variable_arguments() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, *xs: Tensor, **named: Tensor) -> Tensor:
            result: Tensor = self.b(sum(self.a(x) for x in [*xs, *named.values()]))
            return result

    model = Many().double().eval()
    for inputs in ((X, X + 1), {"left": X, "right": X}):
        found = analyse(model, inputs)
        check_plan(found, found.random_plan(0), again=False)


def test_compiled_and_exported() -> None:
    """The slim model is an ordinary one for torch.compile and torch.export."""
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2)).double().eval()
    slim = graphprune.prune(model, X, target="channels=50%").model
    compiled = torch.compile(slim, fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), slim(X))
    exported = torch.export.export(slim, (X,))
    assert max_error(exported.module()(X), slim(X)) < 1e-12


def test_graph_modules_of_other_libraries_need_no_meta() -> None:
    """Torchvision's feature extractors are graph modules that skip the constructor of fx, and with it ``meta``."""

    class TwoGraphs(fx.GraphModule):
        def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
            nn.Module.__init__(self)
            self.a, self.b, self.graph = root.a, root.b, graph

    model = Two().double().eval()
    features = TwoGraphs(model, fx.Tracer().trace(model, concrete_args={"scale": None, "negate": False}))
    assert not hasattr(features, "meta")
    result = graphprune.prune(features, X, target="channels=50%")
    assert result.report.widths == {"a": (6, 3)}


@pytest.mark.parametrize(("kind", "dtype"), [(int, torch.int64), (float, torch.float64), (bool, torch.bool)])
def test_classes_of_numbers_as_dtypes(kind: Any, dtype: torch.dtype) -> None:
    """Torch takes them for dtypes; in the code of a graph they would be no Python."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.zeros(x.shape[0], dtype=kind), x.to(kind)

    program = graphprune.capture(Net(), torch.randn(3, 2))
    assert [tensor.dtype for tensor in program.module(torch.randn(4, 2))] == [dtype, dtype]


def test_what_a_model_compiles_inside_of_it_is_traced_as_its_code() -> None:
    """Dynamo has no part in a trace: it would compile what traces."""
    inner = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))

    def forbidden(module: fx.GraphModule, examples: Any) -> Any:
        raise AssertionError("compiled")

    class Compiling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.head = torch.compile(inner, backend=forbidden), nn.Linear(8, 2)
            self.scaled = torch.compile(lambda x: x * 2, backend=forbidden)

        def forward(self, x: torch.Tensor) -> Any:
            return self.head(self.scaled(self.part(x)))

    program = graphprune.capture(Compiling(), torch.zeros(2, 4))
    assert [node.op for node in program.module.graph.nodes].count("call_module") == 4


def test_quantised_weights_are_refused() -> None:
    """Of such tensors no slices can be scored or cut."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    model[0].weight = nn.Parameter(TwoTensor(torch.ones(8, 4), torch.ones(8, 4)))
    with pytest.raises(CaptureError, match=r"0\.weight of Sequential is no plain tensor but of TwoTensor.*quantise the slim one"):
        graphprune.prune(model, torch.zeros(2, 4))
