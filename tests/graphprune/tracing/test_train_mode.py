"""What a model adds to buffers in train mode alone its captured and slim forms add too; what they cannot follow is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from graphprune.ir.train_mode import add_in_train_mode
from tests.graphprune.tracing.forwards import check, double
from tests.zoo.case import net, ready

X, Y = double(2, 4), double(3, 4)


class Norm(nn.BatchNorm1d):
    """A batch norm with a forward of its own, in which something is done to the count of batches in train mode.

    start: what the count begins with.
    """

    num_batches_tracked: Tensor

    def __init__(self, count: Callable[[Any, Tensor], Any], start: Tensor | None = None) -> None:
        super().__init__(6)
        self.count = count
        if start is not None:
            self.num_batches_tracked = start

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count(self, x)
        momentum = 0.0 if self.momentum is None else self.momentum
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum).relu()


def model_of(norm: nn.Module, forward: Any = lambda self, x: self.b(self.drop(self.n(self.a(x))))) -> nn.Module:
    """Two layers with the norm and dropout between them."""
    return ready(net(forward, a=nn.Linear(4, 6), n=norm, b=nn.Linear(6, 2), drop=nn.Dropout(0.5)))


def adding(self: Any, x: Tensor) -> Any:
    self.num_batches_tracked.add_(1)


def adding_by_sign(self: Any, x: Tensor) -> Any:
    self.num_batches_tracked += 1


def adding_twice(self: Any, x: Tensor) -> Any:
    self.num_batches_tracked.add_(1).add_(2)


def trained(module: nn.Module, steps: int, shape: tuple[int, ...] = (8, 4)) -> dict[str, Tensor]:
    """The state after steps of gradient descent."""
    module = copy.deepcopy(module).train()
    optimiser = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(5)
    for _ in range(steps):
        optimiser.zero_grad()
        module(torch.randn(shape, generator=generator, dtype=torch.float64)).square().mean().backward()
        optimiser.step()
    return module.state_dict()


def check_training(model: nn.Module, captured: nn.Module, shape: tuple[int, ...] = (8, 4)) -> None:
    """Trained alike, the two are the same to the bit, statistics and counts included."""
    found, wanted = trained(captured, 3, shape), trained(model, 3, shape)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    assert any(not torch.equal(tensor, model.state_dict()[name]) for name, tensor in wanted.items())


@pytest.mark.parametrize("count", [adding, adding_by_sign, adding_twice])
@pytest.mark.parametrize("start", [None, torch.tensor(-0.0, dtype=torch.float64)], ids=["integer", "float"])
def test_what_is_added_in_train_mode_follows_the_mode(count: Any, start: Tensor | None) -> None:
    model = model_of(Norm(count, start))
    found, slim = check(model, X, Y)
    assert not found.program.eval_only
    check_training(model, found.program.module)
    amount = 9 if count is adding_twice else 3
    assert trained(slim, 3)["n.num_batches_tracked"] == amount


def test_nothing_runs_for_it_in_eval_mode() -> None:
    """The analyses see no operator, and a buffer of -0.0, to which 0 cannot be added without a change, is left as it is."""
    start = torch.tensor(-0.0, dtype=torch.float64)
    program = graphprune.capture(model_of(Norm(adding, start)), X)
    nodes = [node.name for node in program.module.graph.nodes if node.target is add_in_train_mode]
    assert program.tape is not None and len(nodes) == 1
    assert [step.operations for step in program.tape.steps if step.node in nodes] == [[]]
    program.module(X)
    assert torch.signbit(start) and start._version == 0


def reading_before(self: Any, x: Tensor) -> Any:
    y = self.a(x) + self.n.num_batches_tracked
    return self.b(self.n(y))


def reading_after(self: Any, x: Tensor) -> Any:
    y = self.n(self.a(x))
    return self.b(y + self.n.num_batches_tracked)


def calling_twice(self: Any, x: Tensor) -> Any:
    y = self.n(self.a(x))
    return self.b(self.n(y) + self.n.num_batches_tracked)


def asking_too(self: Any, x: Tensor) -> Any:
    return F.dropout(reading_after(self, x), 0.5 if self.training else 0.0)


@pytest.mark.parametrize("forward", [reading_before, reading_after, calling_twice, asking_too])
def test_it_is_added_where_the_model_adds_it(forward: Any) -> None:
    """Also where the whole runs in train mode, not only a module that asks."""
    model = model_of(Norm(adding, torch.tensor(2)), forward)
    check_training(model, graphprune.capture(model, X).module)


def test_adding_in_both_modes_is_a_call_as_any() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        self.n.num_batches_tracked.add_(1)
        return F.dropout(self.b(self.a(x)), 0.5 if self.training else 0.0)

    program = graphprune.capture(model_of(Norm(adding), forward), X)
    targets = [node.target for node in program.module.graph.nodes]
    assert "add_" in targets and add_in_train_mode not in targets and not program.eval_only


def test_a_module_that_becomes_a_leaf_adds_by_itself() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.n(self.a(x))
        return self.b(F.dropout(y, 0.5 if self.training else 0.0))

    class Looking(Norm):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if x.sum() > -1e9 else -y

    model = model_of(Looking(adding), forward)
    program = graphprune.capture(model, X)
    assert set(program.opaque) == {"n"} and not program.eval_only
    check_training(model, program.module)


def test_files_and_copies_keep_it(tmp_path: Path) -> None:
    result = graphprune.prune(model_of(Norm(adding)), X, target="channels=50%")
    graphprune.save(result, tmp_path / "slim.safetensors")
    wanted = trained(result.model, 3)
    assert wanted["n.num_batches_tracked"] == 3
    for copied in (graphprune.load(tmp_path / "slim.safetensors"), copy.deepcopy(result.model)):
        found = trained(copied, 3)
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_compiled_graph_follows_too() -> None:
    module = graphprune.capture(model_of(Norm(adding)), X).module
    compiled: Any = torch.compile(module, backend="eager", fullgraph=True)
    for training, count in ((True, 1), (False, 1), (True, 2)):
        compiled.train(training)
        compiled(X)
        assert module.get_buffer("n.num_batches_tracked") == count


def test_dead_code_elimination_leaves_it() -> None:
    module = graphprune.capture(model_of(Norm(adding)), X).module
    module.graph.eliminate_dead_code()
    assert any(node.target is add_in_train_mode for node in module.graph.nodes)


def assigning(self: Any, x: Tensor) -> Any:
    self.num_batches_tracked = self.num_batches_tracked + 1


def adding_data(self: Any, x: Tensor) -> Any:
    self.num_batches_tracked.add_(x.shape[0])


def adding_a_tensor(self: Any, x: Tensor) -> Any:
    self.num_batches_tracked.add_(self.num_batches_tracked)


def adding_to_a_vector(self: Any, x: Tensor) -> Any:
    self.running_mean.add_(1)


def adding_to_an_attribute(self: Any, x: Tensor) -> Any:
    self.count.tensor.add_(1)


def averaging(self: Any, x: Tensor) -> Any:
    self.num_batches_tracked.add_(1)
    self.momentum = 1 / float(self.num_batches_tracked)


adding_to_an_attribute.tensor = torch.tensor(0)  # type: ignore[attr-defined]
REFUSED = {
    assigning: "other calls from",
    adding_data: "other calls from",
    adding_a_tensor: "other calls from",
    adding_to_a_vector: "other calls from",
    adding_to_an_attribute: "other calls from",
    averaging: "other calls from",
}


class Dropping(nn.Module):
    """A layer behind a dropout that asks for the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Any:
        return self.layer(F.dropout(x, 0.5 if self.training else 0.0))


@pytest.mark.parametrize("count", REFUSED, ids=lambda count: count.__name__)
def test_a_module_that_does_more_stays_in_eval_and_is_named_and_the_others_follow(count: Any) -> None:
    parts = {"a": nn.Linear(4, 6), "n": Norm(count), "b": nn.Linear(6, 2), "d": Dropping()}
    model = ready(net(lambda self, x: self.d(self.b(self.n(self.a(x)))), **parts))
    program = check(model, X, Y)[0].program
    assert program.eval_only.keys() == {"n"}
    assert REFUSED[count] in program.eval_only["n"] and "test_train_mode.py:" in program.eval_only["n"]
    before = copy.deepcopy(program.module.state_dict())
    program.module.train()
    assert not torch.equal(program.module(X), program.module(X)), "the module that follows drops"
    assert all(torch.equal(before[name], tensor) for name, tensor in program.module.state_dict().items()), "the norm is still"
    assert graphprune.prune(model, X, target="channels=50%").report.eval_only == program.eval_only


def test_other_arguments_and_other_results_are_noticed() -> None:
    """The same calls of other tensors or constants are no graph of eval mode that follows the mode."""

    def other_tensors(self: Any, x: Tensor) -> Any:
        y, z = self.a(x), self.c(x)
        return self.b(y - z if self.training else z - y)

    def other_constant(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x) * (2.0 if self.training else 1.0))

    def other_data(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x) + torch.arange(6) * (2 if self.training else 1))

    def other_output(self: Any, x: Tensor) -> Any:
        y = self.b(self.a(x))
        return (y, y) if self.training else y

    for forward, reason in (
        (other_tensors, "sub gets other arguments"),
        (other_constant, "mul gets other arguments"),
        (other_data, "in train mode it reads other constants"),
        (other_output, "the result gets other arguments"),
    ):
        parts = {"a": nn.Linear(4, 6), "c": nn.Linear(4, 6), "b": nn.Linear(6, 2)}
        assert reason in graphprune.capture(net(forward, **parts), X).eval_only["Net"]
        inside = graphprune.capture(net(lambda self, x: self.m(x), m=net(forward, **parts)), X)
        assert inside.eval_only.keys() == {"m"}


def test_auxiliary_outputs_are_named_and_what_is_inside_follows() -> None:
    """As in inception: the model's own forward calls a head in train mode alone. Its batch norms and dropouts follow."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.n(self.a(x))
        aux = self.aux(y) if self.training else None
        y = self.b(self.drop(y))
        return (y, aux) if self.training else y

    model = model_of(Norm(adding), forward)
    model.aux = nn.Linear(6, 2).double()
    program = graphprune.capture(model, X)
    assert program.eval_only.keys() == {"Net"} and "other calls from aux on" in program.eval_only["Net"]
    before = program.module.get_buffer("n.running_mean").clone()
    program.module.train()
    assert not torch.equal(program.module(X), program.module(X))
    assert not torch.equal(program.module.get_buffer("n.running_mean"), before)


@pytest.mark.parametrize("weights", [True, False])
def test_the_dropout_of_attention_follows_whether_it_is_asked_for_its_weights_or_not(weights: bool) -> None:
    """torch calls it in train mode alone there; otherwise it is an argument of one call."""
    attention, x = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True).double(), double(2, 3, 4)
    program = graphprune.capture(net(lambda self, x: self.m(x, x, x, need_weights=weights)[0], m=attention), x)
    assert not program.eval_only
    program.module.train()
    assert not torch.equal(program.module(x), program.module(x))


def test_a_model_follows_but_for_its_modules_that_cannot() -> None:
    """The model's own code asks too; it follows though a module in it stays."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.b(F.dropout(self.n(self.a(x)), 0.5 if self.training else 0.0))

    program = graphprune.capture(model_of(Norm(averaging), forward), X)
    assert program.eval_only.keys() == {"n"}
    program.module.train()
    assert not torch.equal(program.module(X), program.module(X))


@pytest.mark.parametrize(
    ("name", "size"), [("resnetv2_18", 32), ("mobilenetv3_small_050", 32), ("regnetx_002", 32), ("vit_tiny_patch16_224", 16)]
)
def test_models_of_timm_are_fine_tuned_as_the_originals(name: str, size: int) -> None:
    """Batch norms with their own forward, dropout and stochastic depth: the same random numbers, statistics and counts."""
    timm = pytest.importorskip("timm")
    options = {"drop_path_rate": 0.2} if name != "resnetv2_18" else {}
    options |= {"img_size": size, "depth": 2, "attn_drop_rate": 0.1} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=5, drop_rate=0.3, **options).double().eval()
    program = graphprune.capture(model, double(2, 3, size, size))
    assert not program.eval_only
    check_training(model, program.module, (4, 3, size, size))


def contiguous_in_train_mode(turn: Any) -> Any:
    """diffusers' residual blocks: ``contiguous`` in train mode alone."""

    def forward(self: Any, x: Tensor) -> Any:
        y = turn(self.a(x))
        if self.training:
            y = y.contiguous()
        return self.b(self.drop(turn(y)))

    return forward


def test_what_makes_contiguous_what_is_so_already_is_no_other_call() -> None:
    model = model_of(nn.Identity(), contiguous_in_train_mode(lambda t: t))
    found, _ = check(model, X, Y)
    assert not found.program.eval_only
    check_training(model, found.program.module)


def test_what_makes_a_copy_in_train_mode_alone_is_another_call() -> None:
    """Writes into it would not reach what it is a copy of."""
    program = graphprune.capture(model_of(nn.Identity(), contiguous_in_train_mode(Tensor.t)), X)
    (reason,) = program.eval_only.values()
    assert "makes other calls from contiguous on" in reason
