"""The state of a training goes on after a cut: what was kept for the weights that stay is kept, and what cannot be is reported."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.optim.swa_utils import AveragedModel

import graphprune
from graphprune.errors import PlanError, UsageError
from graphprune.plans.plan import Plan
from graphprune.training.optimiser_state import slice_state

X = torch.linspace(-1, 1, 4 * 3 * 36, dtype=torch.float64).reshape(4, 3, 6, 6)
Y = torch.tensor([0, 1, 2, 1])

Make = Callable[[Iterable[Any]], Optimizer]
OPTIMISERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01),
}


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(F.relu(self.second(F.relu(self.norm(self.first(x))))).mean((2, 3)))
        return result


def _step(model: nn.Module, optimiser: Optimizer, times: int = 3) -> None:
    model.train()
    for _ in range(times):
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(X), Y))
        optimiser.step()


def _cut(model: nn.Module) -> tuple[Plan, nn.Module]:
    result = graphprune.prune(model, X, target="channels=60%", criterion="random", seed=1)
    return result.plan, result.model


def _sliced(plan: Plan, name: str, tensor: Tensor) -> Tensor:
    """The oracle: the kept slices, one index at a time."""
    for axis, kept in plan.kept.get(name, {}).items():
        tensor = torch.stack([tensor.select(axis, index) for index in kept], dim=axis)
    return tensor


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_every_state_of_a_parameter_is_sliced_as_the_parameter(optimiser: str, named: bool) -> None:
    model = _Net().double()
    before = OPTIMISERS[optimiser](model.named_parameters() if named else model.parameters())
    _step(model, before)
    plan, slim = _cut(model)
    state = before.state_dict()
    untouched = copy.deepcopy(state)
    sliced, notes = slice_state({"optimiser": state, "epoch": 3}, plan, model, slim)
    after = OPTIMISERS[optimiser](slim.named_parameters() if named else slim.parameters())
    after.load_state_dict(sliced["optimiser"])
    assert notes == [] and sliced["epoch"] == 3 and plan.kept["second.weight"].keys() == {0, 1}
    originals, checked = dict(model.named_parameters()), 0
    for name, parameter in slim.named_parameters():
        for key, value in before.state[originals[name]].items():
            expected = _sliced(plan, name, value) if value.dim() else value
            assert torch.equal(after.state[parameter][key], expected)
            checked += value.dim() > 0
    assert checked >= 7, "each parameter has at least one array"
    torch.testing.assert_close(state["state"], untouched["state"], rtol=0, atol=0)
    assert state["param_groups"] == untouched["param_groups"]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_training_goes_on_as_that_of_the_masked_model(optimiser: str) -> None:
    """Weights that are zero and get no gradient: a slim model with sliced state takes the very steps that its original takes."""
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    kept = [0, 2, 3, 5]
    plan = Plan(kept={"0.weight": {0: kept}, "0.bias": {0: kept}, "2.weight": {1: kept}}, model={})
    for name, axes in plan.kept.items():
        parameter = model.get_parameter(name)
        mask = torch.zeros_like(parameter).index_fill_(min(axes), torch.tensor(kept), 1)
        with torch.no_grad():
            parameter.mul_(mask)
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.randint(3, (7,))
    slim = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()

    def steps(model: nn.Module, optimiser: Optimizer) -> None:
        for _ in range(3):
            optimiser.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(x), y))
            optimiser.step()

    before = OPTIMISERS[optimiser](model.named_parameters())
    steps(model, before)
    slim.load_state_dict({name: _sliced(plan, name, tensor) for name, tensor in model.state_dict().items()})
    after = OPTIMISERS[optimiser](slim.named_parameters())
    state, notes = slice_state(before.state_dict(), plan, model, slim)
    after.load_state_dict(state)
    steps(model, before)
    steps(slim, after)
    assert notes == []
    for name, tensor in slim.named_parameters():
        torch.testing.assert_close(tensor, _sliced(plan, name, model.get_parameter(name)), rtol=1e-9, atol=1e-12)


def _decayed(model: nn.Module, named: bool) -> list[dict[str, Any]]:
    parts = [[(n, p) for n, p in model.named_parameters() if (p.dim() > 1) == matrix] for matrix in (True, False)]
    return [
        {"params": part if named else [p for _, p in part], "weight_decay": w} for part, w in zip(parts, (0.1, 0.0), strict=True)
    ]


@pytest.mark.parametrize("named", [True, False])
def test_groups_of_parameters_stay_groups(named: bool) -> None:
    """Without names they are told apart by shape, which is possible for this split."""
    model = _Net().double()
    before = OPTIMISERS["sgd"](_decayed(model, named))
    _step(model, before)
    plan, slim = _cut(model)
    state, notes = slice_state([before.state_dict()], plan, model, slim)
    after = OPTIMISERS["sgd"](_decayed(slim, named))
    after.load_state_dict(state[0])
    assert notes == [] and [group["weight_decay"] for group in after.param_groups] == [0.1, 0.0]
    for name, parameter in slim.named_parameters():
        expected = _sliced(plan, name, before.state[model.get_parameter(name)]["momentum_buffer"])
        assert torch.equal(after.state[parameter]["momentum_buffer"], expected)


def test_groups_that_cannot_be_told_apart_start_afresh() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
    optimiser = OPTIMISERS["sgd"]([{"params": list(part.parameters())} for part in model])
    torch.autograd.backward(model(torch.ones(1, 4, dtype=torch.float64)).sum())
    optimiser.step()
    plan = Plan(kept={}, model={})
    state, notes = slice_state({"optimiser": optimiser.state_dict()}, plan, model, copy.deepcopy(model))
    assert state is None and len(notes) == 1 and "cannot be told apart" in notes[0] and "named_parameters" in notes[0]


def test_an_optimiser_of_some_parameters_is_known_by_its_names_only() -> None:
    model = _Net().double()
    part = [(name, parameter) for name, parameter in model.named_parameters() if name.startswith("second")]
    plan, slim = _cut(model)
    for named in (True, False):
        optimiser = OPTIMISERS["sgd"](part if named else [parameter for _, parameter in part])
        _step(model, optimiser)
        state, notes = slice_state(optimiser.state_dict(), plan, model, slim)
        if named:
            kept = state["state"][0]["momentum_buffer"]
            assert notes == [] and kept.shape == slim.get_parameter("second.weight").shape
        else:
            assert state is None and "cannot be told apart" in notes[0]


def test_averaged_weights_are_sliced_as_the_weights_under_the_names_of_wrappers_too() -> None:
    model = _Net().double()
    averaged = AveragedModel(model, use_buffers=True)
    plan, slim = _cut(model)
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (wrapped, named, rest), notes = slice_state((averaged.state_dict(), plain, torch.ones(3)), plan, model, slim)
    again = AveragedModel(slim, use_buffers=True)
    again.load_state_dict(wrapped)
    assert notes == [] and torch.equal(rest, torch.ones(3))
    for name, tensor in slim.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], _sliced(plan, name, plain[name]))
        assert torch.equal(named[name], tensor)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)
        self.third = nn.Conv2d(8, 8, 1)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.third(F.relu(self.second(F.relu(self.first(x))))).mean((2, 3)))
        return result


def test_a_tied_parameter_is_sliced_once() -> None:
    model = _Tied().double()
    before = OPTIMISERS["adam"](model.named_parameters())
    _step(model, before)
    plan, slim = _cut(model)
    state, notes = slice_state(before.state_dict(), plan, model, slim)
    after = OPTIMISERS["adam"](slim.named_parameters())
    after.load_state_dict(state)
    _step(slim, after, times=1)
    assert notes == [] and len(after.state) == 7
    moment = state["state"][state["param_groups"][0]["param_names"].index("second.weight")]["exp_avg"]
    assert moment.shape == slim.get_parameter("second.weight").shape


@pytest.mark.parametrize("named", [True, False])
def test_what_has_another_shape_starts_afresh_and_is_reported(named: bool) -> None:
    """Factored moments show no shape, so that a single group goes by the order alone."""
    model = _Net().double()
    before = torch.optim.Adafactor(model.named_parameters() if named else model.parameters())
    _step(model, before, times=1)
    plan, slim = _cut(model)
    averaged = {"first.weight": torch.zeros(2), "other": torch.zeros(2)}
    state, notes = slice_state({"optimiser": before.state_dict(), "ema": averaged}, plan, model, slim)
    after = torch.optim.Adafactor(slim.named_parameters())
    after.load_state_dict(state["optimiser"])
    _step(slim, after, times=1)
    assert state["ema"].keys() == {"other"}
    assert any("first.weight starts afresh: its row_var" in note for note in notes) and "The averaged first.weight" in notes[-1]
    names = [name for name, _ in model.named_parameters()]
    kept = {names[index] for index in state["optimiser"]["state"]}
    assert kept == {name for name, parameter in model.named_parameters() if parameter.dim() == 1}


def test_parameters_that_come_and_go_are_reported_and_the_others_keep_their_state() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4, bias=False), nn.Linear(4, 2)).double()
    slim = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 4), nn.Linear(4, 2)).double()
    kept = [0, 1, 2, 4, 5]
    plan = Plan(kept={"0.weight": {0: kept}, "2.weight": {1: kept}}, model={})
    before = OPTIMISERS["sgd"](model.named_parameters())
    torch.autograd.backward(model(torch.ones(2, 4, dtype=torch.float64)).sum())
    before.step()
    state, notes = slice_state(before.state_dict(), plan, model, slim)
    after = OPTIMISERS["sgd"](slim.named_parameters())
    after.load_state_dict(state)
    assert [note.split(" state of ")[1] for note in notes] == [
        "0.bias is dropped: the slim model has no such parameter.",
        "2.bias starts afresh: the parameter is new.",
    ]
    buffers = {n: after.state.get(p, {}).get("momentum_buffer") for n, p in slim.named_parameters()}
    assert buffers.pop("2.bias") is None
    for name, buffer in buffers.items():
        assert torch.equal(buffer, _sliced(plan, name, before.state[model.get_parameter(name)]["momentum_buffer"]))
    grouped = OPTIMISERS["sgd"](_decayed(model, named=True)).state_dict()
    assert slice_state(grouped, plan, model, slim)[0] is None


def test_states_keyed_by_name_keep_their_keys() -> None:
    """The form of torch.distributed.checkpoint."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    slim = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    plan = Plan(kept={"0.weight": {0: [0, 2]}, "0.bias": {0: [0, 2]}, "1.weight": {1: [0, 2]}}, model={})
    names = [f"module.{name}" for name, _ in model.named_parameters()]
    entries = {f"module.{name}": {"exp_avg": parameter.detach()} for name, parameter in model.named_parameters()}
    state, notes = slice_state({"state": entries, "param_groups": [{"lr": 0.1, "params": names}]}, plan, model, slim)
    assert notes == [] and state["param_groups"] == [{"lr": 0.1, "params": names}]
    assert torch.equal(state["state"]["module.1.weight"]["exp_avg"], model.get_parameter("1.weight").detach()[:, [0, 2]])


def test_models_that_the_plan_does_not_lead_between_are_refused() -> None:
    model, slim = nn.Linear(4, 3), nn.Linear(4, 2)
    for kept in ([0], [0, 3]):
        with pytest.raises(PlanError, match="weight of shape"):
            slice_state(None, Plan(kept={"weight": {0: kept}}, model={}), model, slim)
    assert slice_state(None, Plan(kept={"weight": {0: [0, 2]}}, model={}), model, slim) == (None, [])


def test_a_state_that_holds_itself_starts_afresh() -> None:
    state: dict[str, Any] = {}
    state["again"] = [state]
    found, notes = slice_state(state, Plan(kept={"weight": {0: [0, 2]}}, model={}), nn.Linear(4, 3), nn.Linear(4, 2))
    assert found is None and notes == ["The training starts from a fresh state: the old one holds itself, or is nested too deep."]


def test_an_optimiser_itself_is_refused_and_not_handed_back_uncut() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    result = graphprune.prune(model, torch.zeros(1, 8), target="channels=50%")
    optimiser = torch.optim.AdamW(model.parameters())
    for state in (optimiser, {"optimiser": optimiser}, [AveragedModel(model)]):
        with pytest.raises(UsageError, match=r"Give its state_dict\(\)"):
            slice_state(state, result.plan, model, result.model)
