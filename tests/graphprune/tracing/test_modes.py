"""Train and eval mode, gradient modes, dtypes and devices: what a forward asks for, its captured form follows or keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from graphprune.tracing.sizes import literal
from graphprune.tracing.training import Mode
from tests.checking import run
from tests.graphprune.tracing.forwards import check, double, same
from tests.zoo.case import net, ready

X, Y = double(2, 4), double(3, 4)


def layers(**more: Any) -> dict[str, Any]:
    return {"a": nn.Linear(4, 6), "b": nn.Linear(6, 2), **more}


def test_a_mode_is_a_number_that_notes_questions() -> None:
    mode = Mode(True)
    assert mode.plain and not mode.consulted
    half = literal(0.5)
    for ask in (
        bool,
        int,
        float,
        lambda mode: mode == 1,
        lambda mode: half * mode,
        lambda mode: mode * 0.5,
        lambda mode: {1: 1}[mode],
    ):
        mode = Mode(True)
        assert ask(mode) and mode.consulted


def dropout(self: Any, x: Tensor) -> Any:
    return F.dropout(x, 0.5, training=self.training)


def dropout_by_a_rate(self: Any, x: Tensor) -> Any:
    return F.dropout(x, 0.5 if self.training else 0.0)


def dropout_by_a_product(self: Any, x: Tensor) -> Any:
    return F.dropout(x, 0.5 * self.training)


def dropout_under_a_condition(self: Any, x: Tensor) -> Any:
    return F.dropout(x, 0.5, True) if self.training else F.dropout(x, 0.5, False)


def dropout_of_features(self: Any, x: Tensor) -> Any:
    return F.dropout2d(x[:, :, None, None], 0.5, self.training)[:, :, 0, 0] + F.alpha_dropout(x, 0.5, self.training)


def attention(self: Any, x: Tensor) -> Any:
    q = x[:, None, None, :]
    return F.scaled_dot_product_attention(q, q, q, dropout_p=0.5 if self.training else 0.0)[:, 0, 0]


def module_dropout(self: Any, x: Tensor) -> Any:
    return self.drop(x)


class Path(nn.Module):
    """Stochastic depth."""

    def forward(self, x: Tensor) -> Any:
        if not self.training:
            return x
        return x * x.new_empty(x.shape[0], 1).bernoulli_(0.5) / 0.5


def stochastic_depth(self: Any, x: Tensor) -> Any:
    return self.path(x)


FOLLOWED = [
    dropout, dropout_by_a_rate, dropout_by_a_product, dropout_under_a_condition, dropout_of_features, attention, module_dropout,
    stochastic_depth,
]  # fmt: skip


@pytest.mark.parametrize("forward", FOLLOWED, ids=lambda forward: forward.__name__)
def test_randomness_follows_the_mode(forward: Any) -> None:
    parts = {**layers(drop=nn.Dropout(0.5), path=Path()), "a": nn.Linear(4, 60), "b": nn.Linear(60, 2)}
    model = net(lambda self, x: self.b(forward(self, self.a(x))), **parts)
    found, slim = check(model, double(64, 4), Y)
    for captured in (found.program.module, slim):
        captured.train()
        assert not torch.equal(captured(X), captured(X)), "train mode is random"
        captured.eval()
        assert torch.equal(captured(X), captured(X)), "eval mode is not"


def test_functional_batch_norm_follows_the_mode() -> None:
    class Norm(nn.Module):
        mean: Tensor
        var: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("mean", torch.rand(6))
            self.register_buffer("var", torch.rand(6) + 1)

        def forward(self, x: Tensor) -> Any:
            return self.b(F.batch_norm(self.a(x), self.mean, self.var, training=self.training))

    model = ready(Norm())
    _, slim = check(model, X, Y)
    before = slim.get_buffer("mean").clone()
    slim.train()(Y)
    assert not torch.equal(slim.get_buffer("mean"), before)


def test_a_mode_that_changes_more_than_constants_stays_in_eval() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.b(self.a(x))
        return y + torch.randn_like(y) if self.training else y

    model = net(forward, **layers())
    found, slim = check(model, X, Y)
    assert torch.equal(slim.train()(X), slim(X))
    reason = found.program.eval_only["Net"]
    assert "other calls from randn_like on" in reason and "test_modes.py:" in reason


def test_gradient_modes() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        with torch.no_grad():
            y = self.a(x)
        with torch.enable_grad(), torch.inference_mode(False):
            return self.b(y.detach()) + self.b(y)

    check(net(forward, **layers()), X, Y)
    model = net(torch.no_grad()(lambda self, x: self.b(self.a(x))), **layers())
    check(model, X, Y)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_capture_under_a_gradient_mode(context: Any) -> None:
    model = net(lambda self, x: self.b(self.a(x).relu()), **layers())
    with context():
        program = graphprune.capture(model, X)
    same(run(program.module, Y), run(model, Y))


def test_frozen_parameters_stay_frozen_and_gradients_flow() -> None:
    model = net(lambda self, x: self.b(self.a(x).relu()), **layers())
    model.a.requires_grad_(False)
    slim = graphprune.prune(model, X, target="channels=50%").model
    slim(X).sum().backward()
    assert slim.get_parameter("a.weight").grad is None and slim.get_parameter("b.weight").grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes(dtype: torch.dtype) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x.to(self.a.weight.dtype)).float()
        return self.b((y * torch.ones(6, dtype=y.dtype)).to(self.b.weight)).type_as(x)

    model = net(forward, **layers()).to(dtype)
    for example in (X.to(dtype), Y.to(dtype)):
        program = graphprune.capture(model, X.to(dtype))
        same(run(program.module, example), run(model, example))
    slim = graphprune.prune(model, X.to(dtype), target="channels=50%", verify=False).model
    assert slim(Y.to(dtype)).dtype == dtype


def test_conversions_follow_other_tensors() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        mask = torch.ones(x.shape[0], 1, device=x.device, dtype=x.dtype)
        return self.b(y.to(x.device).to(x.dtype).to(device=y.device, dtype=y.dtype) * mask.to(y)).double().cpu()

    check(net(forward, **layers()), X, Y)


def test_tensors_look_as_if_they_were_where_the_model_is() -> None:
    """Keras on torch moves what it is given, and makes memory without values for what is on the meta device."""

    def forward(self: Any, x: Tensor) -> Any:
        y = torch.empty_like(self.a(x), device="cpu") if x.is_meta else self.a(x)
        if self.a.weight.is_meta or not y.is_cpu or y.is_cuda or y.get_device() >= 0:
            y = y * 2
        return self.b(y)

    check(net(forward, **layers()), X, Y)


def test_types_are_those_of_the_model_and_conversions_to_them_dtypes() -> None:
    """YOLOX's head names the type of what it gets, and casts its grids to it; older code gives classes of tensors."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        assert y.type() == "torch.DoubleTensor"
        kind: Any = torch.DoubleTensor
        grid = torch.arange(6).type(y.type()) + torch.zeros(x.shape[0], 1).type(kind)
        return self.b(y + grid * 0 + (y > 0).type(dtype=torch.float64)).type("torch.FloatTensor").type(torch.float64)

    found, _ = check(net(forward, **layers()), X, Y)
    assert not found.program.opaque


def test_autocast_is_refused() -> None:
    """A graph cannot say it, and without it other numbers come out: around such a block only scopes are captured."""

    def forward(self: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.c(self.a(x))
        return self.b(y.to(x.dtype))

    model = net(forward, **layers(c=nn.Linear(6, 6))).float()
    assert [scope.path for scope in graphprune.capture(model, X.float()).scopes] == ["a", "c", "b"]
    with pytest.raises(graphprune.errors.CaptureError, match="autocast"):
        graphprune.capture(net(lambda self, x: _cast(x), **layers()).float(), X.float())


def _cast(x: Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ x.T


def test_capture_under_autocast() -> None:
    model = net(lambda self, x: self.b(self.a(x).relu()), **layers()).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        program = graphprune.capture(model, X.float())
    same(run(program.module, Y.float()), run(model, Y.float()))


def test_autocast_that_is_off() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            return self.b(self.a(x))

    check(net(forward, **layers()), X, Y)


def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    program = graphprune.capture(model, torch.zeros(2, 4, device="meta"))
    assert program.module(torch.zeros(3, 4, device="meta")).shape == (3, 2)


def looks_unless_compiled(self: Any, x: Tensor) -> Any:
    """A check of values, which libraries leave out when they are traced."""
    if not torch.compiler.is_compiling() and x.isnan().any():
        return x
    return F.dropout(self.a(x), 0.5 * self.training)


def looks_when_compiled(self: Any, x: Tensor) -> Any:
    """An operator for compilers that does not trace, in place of a loop that does (associative scans)."""
    y = self.b(x)
    return F.dropout(y * y.sum().item() if torch.compiler.is_compiling() else y + x, 0.5 * self.training)


def test_a_part_that_does_not_trace_when_it_knows_of_it_is_traced_unawares() -> None:
    one, other = net(looks_unless_compiled, a=nn.Linear(4, 6)), net(looks_when_compiled, b=nn.Linear(6, 6))
    model = ready(net(lambda self, x: self.c(self.other(self.one(x))), one=one, other=other, c=nn.Linear(6, 2)))
    found, _ = check(model, X, Y)
    assert not found.program.opaque and not found.program.eval_only


def test_what_traces_in_neither_way_is_a_leaf() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(x) * x.sum().item()

    model = ready(net(lambda self, x: self.c(self.other(x)), other=net(forward, b=nn.Linear(4, 6)), c=nn.Linear(6, 2)))
    assert set(graphprune.capture(model, X).opaque) == {"other"}


def test_a_model_without_values_that_does_not_run_is_refused_for_what_is_wrong_with_it() -> None:
    """Not for what it does when it knows nothing of the trace, nor for the lack of values."""

    def forward(self: Any, x: Tensor) -> Any:
        if not torch.compiler.is_compiling() and x.isnan().any():
            return x
        return self.b(x) @ self.b(x)

    model = net(lambda self, x: self.other(x), other=net(forward, b=nn.Linear(4, 6))).to("meta")
    with pytest.raises(graphprune.errors.CaptureError, match=r"other does not trace .*must have same reduction dim"):
        graphprune.capture(model, torch.zeros(2, 4))
