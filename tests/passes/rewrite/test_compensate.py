"""Compensation: least squares against numpy, redundant channels made up for exactly, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tests.zoo.test_zoo  # noqa: F401  (fills the table of structures)
from graphprune.calibration import Batch, Calibration
from graphprune.channels.filters import find_filters
from graphprune.compensation import Compensated
from graphprune.errors import PipelineError, UsageError
from graphprune.ir.program import Program
from graphprune.ir.twins import named_tensors
from graphprune.ir.weights import Weights
from graphprune.passes.rewrite.compensate import CompensatePass
from graphprune.passes.rewrite.fold_constants import FoldConstantsPass
from graphprune.passes.rewrite.rewrite import RewritePass
from graphprune.pipeline.pass_manager import PassManager
from graphprune.tracing import normalise_inputs
from tests.checking import analyse
from tests.passes.rewrite.compensating import after, error, without
from tests.zoo.case import CASES, net

EXACT = CompensatePass(damping=1e-13, positions=10_000)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain(first: nn.Module, second: nn.Module, **more: nn.Module) -> nn.Module:
    """first, ReLU, second, then a norm where one is given."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.second(F.relu(self.first(x)))
        return self.norm(y) if hasattr(self, "norm") else y

    torch.manual_seed(3)
    return net(forward, first=first, second=second, **more)


def result(program: Program, node: str) -> Compensated:
    return next(one for one in program.compensation if one.node == node)


def test_a_linear_layer_gets_the_closed_form_ridge_solution() -> None:
    model = chain(nn.Linear(6, 8), nn.Linear(8, 5))
    x = rand(40, 6)
    program = after(without(model, x, {"first.weight": [1, 4, 6]}), [x[:25], x[25:]], CompensatePass(damping=0.05))
    with torch.no_grad():
        hidden = F.relu(model.get_submodule("first")(x)).numpy()
        wanted = model(x).numpy()
    kept = [0, 2, 3, 5, 7]
    old = model.get_parameter("second.weight").detach().numpy()[:, kept]
    u = hidden[:, kept]
    missing = wanted - u @ old.T - model.get_parameter("second.bias").detach().numpy()
    centred, target = u - u.mean(0), missing - missing.mean(0)
    h = centred.T @ centred
    change = np.linalg.solve(h + 0.05 * np.trace(h) / len(h) * np.eye(len(h)), centred.T @ target)
    new = named_tensors(program.module)
    np.testing.assert_allclose(new["second.weight"].detach().numpy(), old + change.T, rtol=1e-9, atol=1e-11)
    bias = model.get_parameter("second.bias").detach().numpy() + missing.mean(0) - u.mean(0) @ change
    np.testing.assert_allclose(new["second.bias"].detach().numpy(), bias, rtol=1e-9, atol=1e-11)
    left = wanted - (u @ (old + change.T).T + bias)
    found = result(program, "second")
    spread = np.linalg.norm(wanted - wanted.mean(0))
    assert found.before == pytest.approx(np.linalg.norm(missing) / spread, rel=1e-9)
    assert found.after == pytest.approx(np.linalg.norm(left) / spread, rel=1e-9)
    assert (found.rows, found.intercept, found.removed, found.note) == (40, "second.bias", True, "")


CONSUMERS: dict[str, Callable[[], tuple[nn.Module, nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Linear(4, 8), nn.Linear(8, 3), rand(60, 4)),
    "linear without bias": lambda: (nn.Linear(4, 8), nn.Linear(8, 3, bias=False), rand(60, 4)),
    "tokens": lambda: (nn.Linear(4, 8), nn.Linear(8, 3), rand(9, 7, 4)),
    "conv1d": lambda: (nn.Conv1d(3, 8, 3), nn.Conv1d(8, 4, 3, padding=1), rand(12, 3, 17)),
    "1x1": lambda: (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), rand(6, 3, 9, 9)),
    "padded": lambda: (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, padding=1), rand(6, 3, 9, 9)),
    "same": lambda: (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, (1, 3), padding="same"), rand(6, 3, 9, 8)),
    "strided": lambda: (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, stride=(2, 1), padding=(1, 0)), rand(9, 3, 10, 9)),
    "dilated": lambda: (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, dilation=2, padding=2), rand(6, 3, 9, 10)),
    "grouped": lambda: (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, groups=2, padding=1), rand(6, 3, 9, 9)),
    "transposed": lambda: (
        nn.Conv2d(3, 8, 3),
        nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1),
        rand(6, 3, 8, 9),
    ),
    "3d": lambda: (nn.Conv3d(2, 8, 2), nn.Conv3d(8, 3, (1, 2, 3), padding=(0, 1, 1)), rand(4, 2, 5, 6, 7)),
}


@pytest.mark.parametrize("kind", CONSUMERS)
def test_a_duplicated_channel_is_made_up_for_exactly(kind: str) -> None:
    """Without compensation the output is off: the negative twin."""
    first, second, x = CONSUMERS[kind]()
    model = chain(first, second)
    with torch.no_grad():
        for name in ("weight", "bias"):  # 1 and 2 are alike, and stand in the same half
            model.get_parameter(f"first.{name}")[2] = 2 * model.get_parameter(f"first.{name}")[1]
            if kind == "grouped":  # whole positions go from both halves
                model.get_parameter(f"first.{name}")[6] = 3 * model.get_parameter(f"first.{name}")[5]
    slim = without(model, x, {"first.weight": [2]})
    done = after(slim, [x[: len(x) // 2], x[len(x) // 2 :]], EXACT)
    assert error(slim, x) > 1e-2
    assert error(done, x) < 1e-9
    fresh = rand(*x.shape, seed=9)
    assert error(done, fresh) < 1e-9
    assert result(done, "second").after < 1e-6 < result(done, "second").before  # from sums of squares: half the digits


@pytest.mark.parametrize("kind", CONSUMERS)
def test_the_error_on_the_calibration_rows_falls(kind: str) -> None:
    first, second, x = CONSUMERS[kind]()
    slim = without(chain(first, second), x, {"first.weight": [0, 3]})
    done = after(slim, [x], CompensatePass(positions=10_000))
    assert error(done, x) < error(slim, x)
    assert result(done, "second").after < result(done, "second").before
    sampled = after(slim, [x], CompensatePass(positions=5))
    assert result(sampled, "second").rows <= result(done, "second").rows
    assert result(sampled, "second").after <= result(sampled, "second").before


def test_a_constant_goes_into_the_running_mean_of_a_norm_that_alone_reads_the_layer() -> None:
    model = chain(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, bias=False), norm=nn.BatchNorm2d(4))
    with torch.no_grad():
        model.get_parameter("first.weight")[5] = 0.0
        model.get_parameter("first.bias")[5] = 1.5  # a constant channel
    x = rand(6, 3, 9, 9)
    slim = without(model, x, {"first.weight": [5]})
    done = after(slim, [x], EXACT)
    assert error(slim, x) > 1e-2 and error(done, x) < 1e-9
    assert result(done, "second").intercept == "norm.running_mean"
    assert not torch.equal(done.module.get_buffer("norm.running_mean"), slim.module.get_buffer("norm.running_mean"))


def test_without_a_place_for_the_constant_there_is_none() -> None:
    first, second, x = nn.Linear(4, 8), nn.Linear(8, 3, bias=False), rand(60, 4)
    done = after(without(chain(first, second), x, {"first.weight": [0]}), [x], EXACT)
    assert result(done, "second").intercept == ""
    assert result(done, "second").after < result(done, "second").before


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a, self.b, self.c, self.d = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(4))
        self.n, self.m, self.head = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.stem(x))
        y = F.relu(y + self.n(self.b(F.relu(self.a(y)))))
        return self.head(F.relu(self.m(self.d(F.relu(self.c(y)))) + y))


def test_the_last_layer_of_a_branch_makes_up_for_the_stream_that_it_is_added_to() -> None:
    """Its target is the original's sum, less the slim stream: so the head sees a smaller error."""
    torch.manual_seed(0)
    model = Residual().double().eval()
    x = rand(16, 3, 8, 8)
    slim = without(model, x, {"stem.weight": [1], "a.weight": [0, 2], "c.weight": [3]})
    heads = {on: result(after(slim, [x], CompensatePass(residual=on)), "head") for on in (True, False)}
    assert heads[True].before < heads[False].before
    assert heads[True].after <= heads[False].after


def test_a_parameter_that_is_used_twice_stays_with_a_note() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.first(x))
        return self.shared(y) + self.shared(torch.tanh(y))

    torch.manual_seed(0)
    model = net(forward, first=nn.Linear(4, 6), shared=nn.Linear(6, 3))
    x = rand(30, 4)
    slim = without(model, x, {"first.weight": [0]})
    done = after(slim, [x], EXACT)
    notes = [one for one in done.compensation if one.weight == "shared.weight"]
    assert notes and all("also used by" in one.note and np.isnan(one.after) for one in notes)
    assert torch.equal(done.module.get_parameter("shared.weight"), slim.module.get_parameter("shared.weight"))


def _permuted(self: Any, x: Tensor) -> Any:
    y = F.relu(self.first(x))
    return self.head((self.table + torch.einsum("btd,de->bet", y, self.weight)).transpose(1, 2))


def _added_later(self: Any, x: Tensor) -> Any:
    y = F.relu(self.first(x))
    z = self.second(y.transpose(1, 2).contiguous().transpose(1, 2))  # not contiguous: the bias is added by another operator
    return self.head(self.other(x) + z)


def _positions(self: Any, x: Tensor) -> Any:
    return self.head(self.table + self.second(F.relu(self.first(x))))


SUMS: dict[str, Callable[[], nn.Module]] = {
    "result permuted": lambda: net(_permuted, weight=nn.Parameter(torch.randn(8, 5)), table=nn.Parameter(torch.randn(1, 5, 7))),
    "bias added later": lambda: net(_added_later, second=nn.Linear(8, 5), other=nn.Linear(4, 5)),
    "one table for all samples": lambda: net(_positions, second=nn.Linear(8, 5), table=nn.Parameter(torch.randn(1, 7, 5))),
}


@pytest.mark.parametrize("kind", SUMS)
def test_sums_with_something_known_before_are_made_up_for_exactly(kind: str) -> None:
    torch.manual_seed(0)
    model = SUMS[kind]()
    model.add_module("first", nn.Linear(4, 8).double())
    model.add_module("head", nn.Linear(5, 3).double())
    with torch.no_grad():
        for name in ("first.weight", "first.bias"):
            model.get_parameter(name)[2] = 2 * model.get_parameter(name)[1]
    x = rand(20, 7, 4)
    slim = without(model, x[:1], {"first.weight": [2]})
    assert error(slim, x) > 1e-2
    assert error(after(slim, [x[:12], x[12:]], EXACT), x) < 1e-9


def test_rows_that_are_channels_themselves_stay_with_a_note() -> None:
    """Mixing over tokens: what is cut are rows of the product, so that those of the original do not pair up with those left."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.first(x)).transpose(1, 2)  # samples, channels, tokens
        return self.head((y + self.mix(y)).transpose(1, 2))

    torch.manual_seed(0)
    model = net(forward, first=nn.Linear(4, 6), mix=nn.Linear(7, 7), head=nn.Linear(6, 2))
    x = rand(30, 7, 4)
    slim = without(model, x, {"first.weight": [0]})
    done = after(slim, [x[:20], x[20:]], CompensatePass())
    assert "rows are channels" in result(done, "mix").note and result(done, "head").after < result(done, "head").before
    assert torch.equal(done.module.get_parameter("mix.weight"), slim.module.get_parameter("mix.weight"))


def test_a_transformer_layer_is_compensated_behind_attention_and_in_its_mlp() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.1)
    model = nn.Sequential(layer, nn.Linear(16, 3)).double().eval()
    x = rand(24, 5, 16)
    slim = without(model, x, {"0.linear1.weight": range(10), "0.self_attn.in_proj_weight": [0]})
    done = after(slim, [x[:16], x[16:]], CompensatePass())
    assert error(done, x) < error(slim, x)
    fitted = {one.weight: one for one in done.compensation if not one.note}
    assert {"0.self_attn.out_proj.weight", "0.linear2.weight"} <= fitted.keys()
    assert all(one.after < one.before for one in fitted.values() if one.removed)


@pytest.mark.parametrize("name", sorted(CASES)[::8])
def test_no_consumer_of_the_zoos_structures_gets_worse_or_goes_unmentioned(name: str) -> None:
    case = CASES[name]()
    found = analyse(case.model, case.inputs(2), policy=case.policy)
    batches = [Batch(normalise_inputs(case.inputs(size))) for size in ((4, 3) if case.batch else (2,))]
    program = found.program.with_(plan=found.random_plan(0), policy=found.policy, calibration=Calibration(batches))
    done = PassManager([RewritePass(), FoldConstantsPass(), CompensatePass()]).run(program)
    mentioned = {(one.node, one.weight) for one in done.compensation}
    assert all(one.note or one.after <= one.before for one in done.compensation)
    for reader in find_filters(program, found.groups):
        if not reader.makes and done.plan is not None and reader.axis in done.plan.kept.get(reader.tensor, {}):
            assert (reader.node, reader.tensor) in mentioned
    assert all(bool(torch.isfinite(t).all()) for t in done.module.parameters())


def test_a_weight_that_is_computed_stays_with_a_note() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return F.linear(F.relu(self.first(x)), self.weight * 2)

    torch.manual_seed(0)
    model = net(forward, first=nn.Linear(4, 6), weight=nn.Parameter(torch.randn(3, 6)))
    x = rand(30, 4)
    done = after(without(model, x, {"first.weight": [0]}), [x], EXACT)
    assert [one.note for one in done.compensation if one.weight == "weight"] == [
        "the operator does not contract the parameter itself"
    ]


def test_later_layers_make_up_for_earlier_ones() -> None:
    """A layer whose own inputs all stay is solved too, for what reaches it is off."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4)).double().eval()
    x = rand(200, 5)
    slim = without(layers, x, {"0.weight": [0, 1, 2]})
    done = after(slim, [x], CompensatePass())
    last = done.compensation[-1]
    assert (last.weight, last.removed) == ("4.weight", False) and last.after < last.before
    assert error(done, x) < error(slim, x)


def test_untouched_layers_keep_their_weights_bit_for_bit() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)).double().eval()
    x = rand(50, 5)
    slim = without(layers, x, {"2.weight": [0, 1, 2]})
    done = after(slim, [x], CompensatePass())
    for name, tensor in named_tensors(slim.module).items():
        assert torch.equal(tensor, named_tensors(done.module)[name]) == (not name.startswith("4.")), name


def test_dead_channels_and_a_damping_of_zero_do_no_harm() -> None:
    model = chain(nn.Linear(4, 8), nn.Linear(8, 3))
    with torch.no_grad():
        for dead in (1, 2):
            model.get_parameter("first.weight")[dead] = 0.0
            model.get_parameter("first.bias")[dead] = -1.0
        model.get_parameter("first.weight")[4] = model.get_parameter("first.weight")[3]
        model.get_parameter("first.bias")[4] = model.get_parameter("first.bias")[3]
    x = rand(50, 4)
    done = after(without(model, x, {"first.weight": [0]}), [x], CompensatePass(damping=0.0))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in named_tensors(done.module).values())
    assert result(done, "second").after < result(done, "second").before


def test_runs_agree_bit_for_bit_and_the_split_into_batches_does_not_matter() -> None:
    model = chain(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    x = rand(12, 3, 9, 9)
    slim = without(model, x, {"first.weight": [0, 3]})
    one, again = (named_tensors(after(slim, [x], CompensatePass(positions=9)).module) for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    whole, parts = (
        named_tensors(after(slim, batches, CompensatePass(positions=10_000)).module) for batches in ([x], [x[:5], x[5:6], x[6:]])
    )
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-9, atol=1e-12) for name in whole)


def test_the_program_it_was_given_and_modes_stay() -> None:
    model = chain(nn.Linear(4, 8), nn.Linear(8, 3)).train()
    x = rand(30, 4)
    slim = without(model, x, {"first.weight": [0]})
    before = {name: tensor.clone() for name, tensor in named_tensors(slim.module).items()}
    done = after(slim, [x], CompensatePass())
    assert all(torch.equal(before[name], tensor) for name, tensor in named_tensors(slim.module).items())
    assert done.module.training and done.original is slim.original and done.plan is slim.plan


def test_what_it_cannot_do_is_refused() -> None:
    model = chain(nn.Linear(4, 8), nn.Linear(8, 3))
    slim = without(model, rand(2, 4), {"first.weight": [0]})
    with pytest.raises(PipelineError, match="calibration"):
        PassManager([CompensatePass()]).run(slim)
    with pytest.raises(UsageError, match="does not run on the calibration data"):
        after(slim, [rand(3, 5)], CompensatePass())
    with pytest.raises(UsageError, match="damping=-1"):
        CompensatePass(damping=-1)
    with pytest.raises(UsageError, match="positions=0"):
        CompensatePass(positions=0)


def test_data_that_processes_divide_are_refused() -> None:
    """Each would solve on its own part, and their weights would differ."""
    model, x = chain(nn.Linear(6, 8), nn.Linear(8, 5)), rand(8, 6)
    program = without(model, x, {"first.weight": [1, 4, 6]})
    sharded = Weights(program.module, lambda name: None, together=True)
    with pytest.raises(UsageError, match="those of a sharded model are divided"):
        after(program.with_(weights=sharded), [x], CompensatePass())
