"""Train mode, found out from the modules that ask for it alone: the graph is the one that a second run of the whole gives."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from tests.graphprune.tracing.forwards import double
from tests.zoo.case import net

CAPTURE = importlib.import_module("graphprune.tracing.capture")
X = double(2, 4)


class Asking(nn.Module):
    """A layer and what is done with its result, which may ask for the mode. calls: how often its code has run."""

    def __init__(self, then: Callable[..., Any], calls: list[str] | None = None, **parts: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.then = then
        self.note = (calls if calls is not None else []).append
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Any, *more: Any) -> Any:
        self.note("ran")
        return self.then(self, self.layer(x), *more)


def plain(self: Any, x: Tensor) -> Any:
    return x.relu()


def dropping(self: Any, x: Tensor) -> Any:
    return F.dropout(x, 0.25 if self.training else 0.0)


def with_sizes(self: Any, x: Tensor) -> Any:
    if x.shape[0] > 3:
        x = x + 1
    parts = x.chunk(2, -1)
    parts[1].mul_(2)
    x = torch.cat(parts, -1) * x.shape[0] ** 0.5
    return F.dropout(x.view(x.shape[0], -1), 0.5, bool(self.training)) + x.new_zeros(x.shape)


def with_a_constant(self: Any, x: Tensor) -> Any:
    return dropping(self, x) + torch.arange(4)


def by_a_c_function(self: Any, x: Tensor) -> Any:
    return torch.dropout(F.dropout(x, 0.5, self.training), 0.25, self.training)


def counting(self: Any, x: Tensor) -> Any:
    self.count = getattr(self, "count", 0) + 1
    return F.dropout(x, 0.25 if self.training and self.count == 2 else 0.0) + self.count


def appending(self: Any, x: Tensor, seen: list[Tensor]) -> Any:
    seen.append(x)
    return F.dropout(torch.stack(seen).sum(0), 0.25 if self.training and len(seen) == 1 else 0.0)


def told(self: Any, x: Tensor, training: Any) -> Any:
    return F.dropout(x, 0.25 if training else 0.0)


def two(self: Any, x: Tensor) -> Any:
    first, second = x.relu(), x.tanh()
    return first, None if self.training else second


def calling_more(self: Any, x: Tensor) -> Any:
    if self.training:
        x = x.abs()
    return dropping(self, x)


def failing(self: Any, x: Tensor) -> Any:
    assert not self.training
    return dropping(self, x)


def looking_at_data(self: Any, x: Tensor) -> Any:
    return dropping(self, x) if x.sum() > 0 else x


def around(self: Any, x: Tensor) -> Any:
    return F.dropout(self.inner(x), 0.5 if self.training else 0.0)


def number(self: Any, x: Tensor) -> Any:
    return x, 0.5 if self.training else 0.0


def once(self: Any, x: Tensor) -> Any:
    return self.b(self.m(self.a(x)))


def again(self: Any, x: Tensor) -> Any:
    return self.b(self.m(self.m(self.a(x))))


def listing(self: Any, x: Tensor) -> Any:
    seen: list[Tensor] = []
    y = self.m(self.a(x), seen)
    return self.b(y + self.m(y, seen) + len(seen))


def telling(self: Any, x: Tensor) -> Any:
    return self.b(self.m(self.a(x), self.training))


def taking_two(self: Any, x: Tensor) -> Any:
    first, second = self.m(self.a(x))
    return self.b(self.d(first if second is None else first - second))


def taking_a_number(self: Any, x: Tensor) -> Any:
    y, rate = self.m(self.a(x))
    return self.b(F.dropout(y, rate))


def followed_by_another(self: Any, x: Tensor) -> Any:
    return self.b(self.d(self.m(self.a(x))))


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "dropout": (once, dropping, {}),
    "called-twice": (again, dropping, {}),
    "sizes": (again, with_sizes, {}),
    "constant": (again, with_a_constant, {}),
    "c-function": (once, by_a_c_function, {}),
    "state": (again, counting, {}),
    "list": (listing, appending, {}),
    "mode-as-argument": (telling, told, {}),
    "other-part": (taking_two, two, {}),
    "other-number": (taking_a_number, number, {}),
    "more-calls": (followed_by_another, calling_more, {}),
    "fails-in-train-mode": (followed_by_another, failing, {}),
    "opaque": (followed_by_another, looking_at_data, {}),
    "opaque-inside": (once, around, {"inner": Asking(looking_at_data)}),
    "inside": (once, around, {"inner": Asking(dropping)}),
}


def model_of(name: str) -> nn.Module:
    """The model of a case."""
    forward, then, parts = CASES[name]
    return net(forward, a=nn.Linear(4, 4), m=Asking(then, **parts), b=nn.Linear(4, 2), d=Asking(dropping))


def text(program: graphprune.Program) -> list[str]:
    """All that a capture says: nodes with their arguments and metas, and the steps of the tape."""
    nodes = [f"{node.format_node()} {node.args} {node.kwargs} {node.meta}" for node in program.module.graph.nodes]
    assert program.tape is not None
    return nodes + [f"{step.node} {step.result} {[run.operator for run in step.operations]}" for step in program.tape.steps]


def unable(*args: Any) -> Any:
    return [], {"m": "not asked"}


STAYS_IN_EVAL = {
    "more-calls": "in train mode it makes other calls from abs on",
    "other-part": "it returns something else in train mode",
    "fails-in-train-mode": "it does not trace in train mode",
}


@pytest.mark.parametrize("name", sorted(CASES.keys() - STAYS_IN_EVAL.keys()))
def test_it_is_the_graph_that_a_run_of_the_whole_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name)
    found = text(graphprune.capture(model, X))
    monkeypatch.setattr(CAPTURE, "rehearse", unable)
    assert found == text(graphprune.capture(model, X))


@pytest.mark.parametrize("name", sorted(CASES.keys() - STAYS_IN_EVAL.keys()))
def test_what_differs_by_constants_follows_the_mode(name: str) -> None:
    program = graphprune.capture(model_of(name), X)
    assert any(node.target == "training" for node in program.module.graph.nodes) and not program.eval_only


@pytest.mark.parametrize("name", STAYS_IN_EVAL)
def test_a_module_that_does_more_stays_in_eval_mode_and_the_next_one_follows(name: str) -> None:
    program = graphprune.capture(model_of(name), X)
    assert program.eval_only.keys() == {"m"} and program.eval_only["m"].startswith(STAYS_IN_EVAL[name])
    modes = [node for node in program.module.graph.nodes if node.target == "training"]
    assert len(modes) == 1, "that of d alone"


def runs(then: Callable[..., Any], other: Callable[..., Any] = plain) -> tuple[int, int]:
    """How often the code of a module and of the one after it run in a capture."""
    first: list[str] = []
    second: list[str] = []
    model = net(lambda self, x: self.n(self.m(x)), m=Asking(then, first), n=Asking(other, second))
    program = graphprune.capture(model, X)
    assert not program.opaque
    return len(first), len(second)


def test_only_modules_that_ask_run_again() -> None:
    assert runs(dropping) == (2, 1)
    assert runs(plain, dropping) == (1, 2)
    assert runs(dropping, dropping) == (2, 2)
    assert runs(plain) == (1, 1)
    assert runs(with_sizes) == (2, 1)
    assert runs(by_a_c_function) == (3, 1)  # twice in the first run: C functions take no mode but a bool


def test_a_run_that_differs_ends_there() -> None:
    assert runs(calling_more) == (3, 1)  # by itself, and with the whole up to there
    assert runs(two_of_one) == (3, 2)  # the same calls with another result: the whole runs to its end


def two_of_one(self: Any, x: Tensor) -> Any:
    first, second = x.relu(), x.tanh()
    return second if self.training else first


def test_a_difference_that_no_line_of_the_model_makes_names_none() -> None:
    """Hooks of torch make it; the line that has called for the capture is not to blame."""
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2)).double().eval()
    (reason,) = graphprune.capture(model, X).eval_only.values()
    assert reason.startswith("in train mode it makes other calls from") and ".py" not in reason
