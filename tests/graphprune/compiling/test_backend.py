"""The backend computes what the plan applied by hand computes, and says so where it cannot."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn

import graphprune


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner = nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 1))
        self.head = nn.Linear(8, 5)
        self.scale = torch.rand(8, dtype=torch.float64)  # neither parameter nor buffer

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x)).relu()
        y = (y + self.inner(y)) * self.scale[:, None, None]
        return self.head(y.view(x.shape[0], 8, x.shape[2] * x.shape[3]).mean(2))  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(16, 96), nn.Linear(32, 16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, tokens, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(batch, tokens, 32))  # type: ignore[no-any-return]


class Branching(nn.Module):
    """Control flow on values: Dynamo guards on the option, fx.symbolic_trace cannot follow the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        if x.shape[-1] != 6:
            raise ValueError
        for _ in range(len(x.shape)):
            x = x * 0.5
        y = self.second(self.first(x).relu())
        return y * 2 if twice else y  # type: ignore[no-any-return]


class Broken(nn.Module):
    """A graph break after `b`: `a` and `d` lie within one part each, `b` and what reads it do not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 12)
        self.c, self.d = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu()).relu()
        torch._dynamo.graph_break()
        return self.d(self.c(y).relu())  # type: ignore[no-any-return]


def resnet() -> nn.Module:
    return torchvision.models.resnet18(num_classes=10)  # type: ignore[no-any-return]


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 3, 6, 6)),
    "resnet18": (resnet, (2, 3, 32, 32)),
    "attention": (Attention, (2, 5, 16)),
    "not-traceable": (Branching, (3, 6)),
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, message=".*(Dynamo|graph).*")
        yield
    torch._dynamo.reset()


def _model(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


def _input(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _compile(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend=graphprune.compile_backend, options={"inner": "eager", **options})


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("case", CASES)
def test_a_plan_gives_what_it_gives_by_hand_at_every_batch(case: str, inner: str) -> None:
    make, shape = CASES[case]
    model, x = _model(make), _input(*shape)
    by_hand = graphprune.prune(model, x, target="macs=60%")
    compiled = _compile(model, plan=by_hand.plan, inner=inner)
    with torch.no_grad():
        for batch in (shape[0], 5, 7):
            given = _input(batch, *shape[1:])
            torch.testing.assert_close(compiled(given), by_hand.model(given), rtol=1e-10, atol=1e-10)
            assert not torch.allclose(compiled(given), model(given))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # the second one for all batches


def test_a_target_chooses_what_prune_chooses() -> None:
    model, x = _model(Residual), _input(2, 3, 6, 6)
    by_hand = graphprune.prune(model, x, target="channels=50%", criterion="l1", ranking="local")
    backend = graphprune.Backend(target="channels=50%", inner="eager", selection={"criterion": "l1", "ranking": "local"})
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend)(x), by_hand.model(x), rtol=1e-10, atol=1e-10)
    (plan,) = backend.plans
    common = plan.kept.keys() & by_hand.plan.kept.keys()
    assert {name: plan.kept[name] for name in common} == {name: by_hand.plan.kept[name] for name in common}
    assert plan.kept.keys() - common == {"scale"}  # Dynamo knows where this constant is from


def test_the_name_is_registered() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    home, _, name = tomllib.loads(text)["project"]["entry-points"]["torch_dynamo_backends"]["graphprune"].partition(":")
    assert getattr(import_module(home), name) is graphprune.compile_backend


def test_training_through_the_compiled_model_trains_the_model_itself() -> None:
    """Gradients of what stays and running statistics are those of the slim model; what goes gets none."""
    model, x = _model(Residual), _input(4, 3, 6, 6)
    by_hand = graphprune.prune(model, x, target="channels=50%")
    compiled = _compile(model.train(), plan=by_hand.plan, inner="aot_eager")
    by_hand.model.train()
    for part in (model, by_hand.model):
        optimiser = torch.optim.SGD(part.parameters(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            (compiled if part is model else part)(x).square().sum().backward()
            optimiser.step()
    slim = dict(by_hand.model.state_dict())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(by_hand.plan.slice(name, tensor), slim[name], rtol=1e-10, atol=1e-10)
    assert model.stem.weight.grad is not None  # type: ignore[union-attr]
    with torch.no_grad():  # another graph, of the weights as they are now
        torch.testing.assert_close(compiled.eval()(x), by_hand.model.eval()(x), rtol=1e-10, atol=1e-10)


def test_weights_are_sliced_once_and_again_after_they_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _model(Residual), _input(2, 3, 6, 6)
    by_hand = graphprune.prune(model, x, target="channels=50%")
    compiled = _compile(model, plan=by_hand.plan)
    with torch.no_grad():
        compiled(x)
        cuts: list[str] = []
        slice_of = graphprune.Plan.slice

        def noted(self: graphprune.Plan, name: str, tensor: Tensor) -> Tensor:
            cuts.append(name)
            return slice_of(self, name, tensor)

        monkeypatch.setattr(graphprune.Plan, "slice", noted)
        compiled(x)
        assert cuts == []
        model.get_parameter("stem.weight").mul_(2)
        by_hand.model.get_parameter("stem.weight").mul_(2)
        torch.testing.assert_close(compiled(x), by_hand.model(x), rtol=1e-10, atol=1e-10)
        assert cuts == ["stem.weight"]


def test_what_was_decided_by_a_target_stays_decided() -> None:
    """Another shape, or train mode, compiles again: with weights that have changed since, but the same channels."""
    model, x = _model(Branching), _input(3, 6)
    backend = graphprune.Backend(target="channels=50%", inner="eager")
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        compiled(x)
        model.get_parameter("first.weight").copy_(model.get_parameter("first.weight").flip(0))
        compiled(x, twice=True)
        by_hand = graphprune.apply_plan(model, x, backend.plans[0])
        torch.testing.assert_close(compiled(x, twice=True), 2 * by_hand.model(x), rtol=1e-10, atol=1e-10)
    assert len(backend.plans) == 1


def test_over_a_graph_break_a_plan_cuts_what_lies_within_a_part() -> None:
    model, x = _model(Broken), _input(3, 6)
    kept = {"a.weight": {0: [1, 2]}, "a.bias": {0: [1, 2]}, "b.weight": {1: [1, 2]}}
    across = {"b.weight": {0: [0, 3], 1: [1, 2]}, "b.bias": {0: [0, 3]}, "c.weight": {1: [0, 3]}}
    plan = graphprune.prune(model, x, target="channels=99%").plan
    within, whole = (plan.model_copy(update={"kept": part}) for part in (kept, kept | across))
    by_hand = graphprune.apply_plan(model, x, within).model(x)
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.testing.assert_close(_compile(model, plan=whole)(x), by_hand, rtol=1e-10, atol=1e-10)
    texts = [str(one.message) for one in said if one.category is UserWarning]
    assert sum("graph break" in text and "test_backend.py" in text for text in texts) == 1
    assert sum("keeps channels of b.weight" in text for text in texts) == 1
    assert sum("keeps channels of c.weight" in text for text in texts) == 1


def test_parts_that_occur_twice_need_the_model() -> None:
    """Dynamo names a module's weights as that module does: which of two equal ones it is, names do not say."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())  # type: ignore[no-any-return]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Part(), Part()

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))  # type: ignore[no-any-return]

    model, x = _model(Whole), _input(3, 6)
    plan = graphprune.prune(model, x, target="channels=50%", exclude=["one.second.weight[0]"]).plan
    one = torch.compile(model.get_submodule("one"), backend=graphprune.Backend(plan=plan, inner="eager"))
    with torch.no_grad(), pytest.warns(UserWarning, match="fits 2 parts"):
        torch.testing.assert_close(one(x), model.get_submodule("one")(x))
    torch._dynamo.reset()
    two = torch.compile(model.get_submodule("two"), backend=graphprune.Backend(plan=plan, inner="eager", model=model))
    by_hand = graphprune.apply_plan(model, x, plan).model.get_submodule("two")
    with torch.no_grad():
        mine = dict(by_hand.named_parameters())
        y = nn.functional.linear(x, mine["first.weight"], mine["first.bias"]).relu()
        wanted = nn.functional.linear(y, mine["second.weight"], mine["second.bias"])
        torch.testing.assert_close(two(x), wanted, rtol=1e-10, atol=1e-10)


def test_other_weights_than_those_that_were_scored_are_not_cut() -> None:
    """Dynamo runs the code of one model for a second one of the same class; its channels have not been looked at."""
    first, second, x = _model(Branching), Branching().double().eval(), _input(3, 6)
    backend = graphprune.Backend(target="channels=50%", inner="eager")
    with torch.no_grad():
        torch.compile(first, backend=backend)(x)
        with pytest.warns(UserWarning, match="for other weights"):
            torch.testing.assert_close(torch.compile(second, backend=backend)(x), second(x))


def test_a_target_out_of_reach_leaves_the_graph_as_it_is() -> None:
    model, x = _model(Branching), _input(3, 6)
    with torch.no_grad(), pytest.warns(UserWarning, match="without pruning: .*macs"):
        torch.testing.assert_close(_compile(model, target="macs=0.1%")(x), model(x))


def test_the_inner_backend_gets_the_slim_graph() -> None:
    seen: list[list[int]] = []

    def inner(module: fx.GraphModule, examples: list[Tensor]) -> fx.GraphModule:
        seen.extend(list(example.shape) for example in examples)
        return module

    model, x = _model(Branching), _input(3, 6)
    with torch.no_grad():
        _compile(model, target="channels=50%", inner=inner)(x)
    assert seen == [[12, 6], [12], [4, 12], [4], [3, 6]]


@pytest.mark.slow
def test_inductor_compiles_the_slim_graph_for_every_batch() -> None:
    model, x = _model(Branching), _input(3, 6)
    by_hand = graphprune.prune(model, x, target="channels=50%")
    compiled = _compile(model, plan=by_hand.plan, inner="inductor")
    with torch.no_grad():
        for batch in (3, 5, 6):
            given = _input(batch, 6)
            torch.testing.assert_close(compiled(given), by_hand.model(given), rtol=1e-10, atol=1e-10)


def _vit() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 8, 2, 4, 32, 64, num_classes=5)  # type: ignore[no-any-return]


def _bert() -> nn.Module:
    """The encoder of BERT, as transformers spells it with its eager attention: tokens in, a score for each class out."""

    class Bert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places, self.norm = nn.Embedding(50, 32), nn.Embedding(16, 32), nn.LayerNorm(32)
            self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
            self.after, self.wide, self.narrow = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
            self.last, self.head = nn.LayerNorm(32), nn.Linear(32, 3)

        def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
            x = self.norm(self.words(tokens) + self.places(torch.arange(tokens.shape[1])))
            q, k, v = (part(x).view(*x.shape[:2], 4, 8).transpose(1, 2) for part in (self.query, self.key, self.value))
            weights = (q @ k.transpose(2, 3) / 8**0.5 + (1 - mask[:, None, None, :]) * -1e4).softmax(-1)
            x = self.after(x + self.out((weights @ v).transpose(1, 2).reshape(x.shape)))
            x = self.last(x + self.narrow(nn.functional.gelu(self.wide(x))))
            return self.head(x[:, 0].tanh())  # type: ignore[no-any-return]

    return Bert()


def _tokens(batch: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 50, (batch, 9))
    return tokens, (torch.arange(9) < 7).double().expand(batch, 9)


@pytest.mark.parametrize(
    ("make", "inputs"), [(_vit, lambda batch: (_input(batch, 3, 16, 16),)), (_bert, _tokens)], ids=["vit", "bert"]
)
def test_transformers_by_a_target(make: Callable[[], nn.Module], inputs: Callable[[int], tuple[Tensor, ...]]) -> None:
    """Heads, hidden layers and the residual stream go; the result is that of the plan by hand, at every batch."""
    model = _model(make)
    backend = graphprune.Backend(target="macs=50%", inner="eager", selection={"ranking": "local"})
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        compiled(*inputs(2))
        by_hand = graphprune.apply_plan(model, inputs(2), backend.plans[0])
        assert by_hand.report.after.macs <= 0.5 * by_hand.report.before.macs
        for batch in (2, 3, 5):
            given = inputs(batch)
            torch.testing.assert_close(compiled(*given), by_hand.model(*given), rtol=1e-9, atol=1e-9)
    assert len(backend.plans) == 1


class _Dropping(nn.Module):
    """Dropout as people write it, and in an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dropout, self.qkv, self.out = nn.Linear(8, 24), nn.Dropout(0.2), nn.Linear(24, 96), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.first(x).relu())
        x = nn.functional.dropout(x, 0.1, self.training, inplace=True)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], 32))  # type: ignore[no-any-return]


def test_dropout_keeps_no_channels_from_going_in_train_mode() -> None:
    """What train mode decided holds in eval mode, and is the plan applied by hand there."""
    model, x = _model(_Dropping).train(), _input(2, 5, 8)
    backend = graphprune.Backend(target="macs=50%", inner="eager", selection={"ranking": "local"})
    compiled = torch.compile(model, backend=backend)
    compiled(x).sum().backward()
    (plan,) = backend.plans
    assert len(plan.kept["first.weight"][0]) < 24 and len(plan.kept["qkv.weight"][0]) < 96
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), graphprune.apply_plan(model, x, plan).model.eval()(x))
    torch._dynamo.reset()
    given = graphprune.prune(model, x, target="macs=50%", ranking="local").plan
    again = graphprune.Backend(plan=given, inner="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.compile(model.train(), backend=again)(x)
    assert again.plans[0].kept == given.kept
