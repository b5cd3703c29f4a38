"""The built-in loop takes the steps that a loop written by hand takes, and goes on from its state as if it had not stopped."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import TensorDataset

import graphprune
from graphprune.errors import DivergedError, UsageError
from graphprune.training.data import TrainingData
from graphprune.training.distillation import distilled
from graphprune.training.optimiser_state import slice_state
from graphprune.training.penalties import L1, Penalty, penalised
from graphprune.training.samples import ArraySamples, DatasetSamples
from graphprune.training.settings import Training
from graphprune.training.trainer import Progress, Trainer, build_optimiser

CPU = "cpu"


def _samples(count: int, seed: int = 0) -> ArraySamples:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, 4, 4, generator=generator, dtype=torch.float32)
    return ArraySamples(x, (x[:, 0].mean((1, 2)) > 0).long() + (x[:, 1].mean((1, 2)) > 0))


DATA = TrainingData(_samples(50), _samples(23, 1), _samples(31, 2))
SETTINGS = Training(epochs=4, batch_size=16, lr=0.05, schedule="onecycle")


class _Net(nn.Module):
    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))
        return result


def _net(norm: bool = False) -> _Net:
    torch.manual_seed(3)
    return _Net(norm).double()


def _by_hand(
    model: nn.Module, epochs: range, settings: Training, teacher: nn.Module | None = None, penalty: Penalty | None = None
) -> None:
    """The oracle: what train does, without its options for speed, memory and processes."""
    train = DATA.train
    assert isinstance(train, ArraySamples)
    decayed = [p for p in model.parameters() if p.dim() > 1 or settings.decay_norms]
    groups: list[dict[str, Any]] = [{"params": decayed}]
    groups.append({"params": [p for p in model.parameters() if p.dim() < 2 and not settings.decay_norms], "weight_decay": 0.0})
    optimiser: torch.optim.Optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    if settings.optimiser == "sgd":
        optimiser = torch.optim.SGD(
            groups, momentum=settings.momentum, nesterov=settings.nesterov, weight_decay=settings.weight_decay
        )
    for epoch in epochs:
        order = torch.randperm(50, generator=torch.Generator().manual_seed(int(torch.randint(2**62, ()))))
        for step in range(3):
            index = order[step * 16 : step * 16 + 16]
            logits = model(train.x[index].double())
            loss = F.cross_entropy(logits, train.y[index], label_smoothing=settings.label_smoothing)
            if teacher is not None:
                loss = distilled(loss, logits, teacher(train.x[index].double()).detach(), weight=0.5, temperature=4.0)
            loss = loss + (0 if penalty is None else penalty.value(model))
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            if settings.clip:
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate(epoch + step / 3)
            optimiser.step()


def _close(one: nn.Module, other: nn.Module, rtol: float = 1e-10, atol: float = 1e-13) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=rtol, atol=atol)


# -- the steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimiser": "adamw", "lr": 0.01, "decay_norms": False, "weight_decay": 0.1},
        {"nesterov": False, "momentum": 0.0, "label_smoothing": 0.1, "clip": 0.05},
        {"accumulate": 4},
        {"channels_last": True},
        {"compile": "eager"},
        {"schedule": "step", "milestones": (0.75,)},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_training_is_that_of_a_loop_written_by_hand(options: dict[str, Any]) -> None:
    """Also for epochs in the middle of the schedule, which is what rewinding runs."""
    settings = SETTINGS.changed(**options)
    ours, plain = (model := _net()), copy.deepcopy(model)
    torch.manual_seed(1)
    Trainer(DATA, settings, device=CPU).train(ours, range(2, 4), None)
    torch.manual_seed(1)
    _by_hand(plain, range(2, 4), settings)
    _close(ours, plain)
    assert not torch.equal(ours.conv.weight, _net().conv.weight)


def test_a_teacher_and_a_penalty_join_the_loss() -> None:
    teacher, ours = _net(), _net()
    nn.init.normal_(teacher.head.weight)
    plain, before = copy.deepcopy(ours), copy.deepcopy(teacher)
    torch.manual_seed(1)
    with penalised(ours, L1(0.01)):
        Trainer(DATA, SETTINGS.changed(accumulate=2), device=CPU).train(ours, range(0, 2), None, teacher=teacher)
    torch.manual_seed(1)
    _by_hand(plain, range(0, 2), SETTINGS, teacher, L1(0.01))
    _close(ours, plain)
    _close(teacher, before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in teacher.parameters()) and teacher.training


def test_frozen_parameters_stay_and_have_no_state() -> None:
    model = _net()
    model.conv.weight.requires_grad_(False)
    before = model.conv.weight.clone()
    state = Trainer(DATA, SETTINGS, device=CPU).train(model, range(0, 1), None)
    assert torch.equal(model.conv.weight, before)
    assert state["optimiser"]["param_groups"][0]["param_names"] == ["conv.bias", "head.weight", "head.bias"]


def test_low_precision_is_used_in_the_forward_and_nowhere_else() -> None:
    model, seen = _net().float(), set()
    model.head.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("no", torch.float32)):
        state = Trainer(DATA, SETTINGS.changed(precision=precision), device=CPU).train(model, range(0, 1), None)
        assert seen == {dtype} and all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert ("scaler" in state) == (precision == "fp16")
        seen.clear()


# -- the state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"optimiser": "adamw", "lr": 0.01}, {"ema": 0.9}])
def test_epoch_by_epoch_through_files_is_the_same_as_in_one_go(options: dict[str, Any]) -> None:
    trainer = Trainer(DATA, SETTINGS.changed(**options), device=CPU)
    whole, parts = (model := _net(norm=True)), copy.deepcopy(model)
    torch.manual_seed(1)
    trainer.train(whole, range(0, 4), None)
    torch.manual_seed(1)
    state = None
    for epoch in range(4):
        state = trainer.train(parts, range(epoch, epoch + 1), state)
        torch.save(state, file := io.BytesIO())
        file.seek(0)
        state = torch.load(file, weights_only=True)
    _close(whole, parts, rtol=0, atol=0)


def test_a_state_that_was_given_is_left_as_it_is_and_matters() -> None:
    trainer = Trainer(DATA, SETTINGS.changed(ema=0.9), device=CPU)
    model = _net()
    state = trainer.train(model, range(0, 1), None)
    before, fresh = copy.deepcopy(state), copy.deepcopy(model)
    for trained, given in ((model, state), (fresh, None)):
        torch.manual_seed(1)
        trainer.train(trained, range(1, 2), given)
    torch.testing.assert_close(state["optimiser"]["state"], before["optimiser"]["state"], rtol=0, atol=0)
    torch.testing.assert_close(state["ema"], before["ema"], rtol=0, atol=0)
    assert not torch.equal(model.conv.weight, fresh.conv.weight)


def test_the_settings_count_and_not_those_that_a_state_was_made_with() -> None:
    model = _net()
    state = Trainer(DATA, SETTINGS, device=CPU).train(model, range(0, 1), None)
    state = Trainer(DATA, SETTINGS.changed(weight_decay=0.25, momentum=0.5), device=CPU).train(model, range(1, 2), state)
    assert [state["optimiser"]["param_groups"][0][key] for key in ("weight_decay", "momentum")] == [0.25, 0.5]
    with pytest.raises(UsageError, match="not one of a training of this model"):
        Trainer(DATA, SETTINGS, device=CPU).train(nn.Linear(3, 3), range(0, 1), state)


def test_averaged_weights_move_in_at_the_end_of_the_schedule() -> None:
    trainer = Trainer(DATA, SETTINGS.changed(ema=0.75), device=CPU)
    model = _net()
    steps: list[Tensor] = []
    handle = register_optimizer_step_post_hook(lambda *_: steps.append(model.conv.weight.detach().clone()))
    try:
        state = trainer.train(model, range(0, 3), None)
        assert torch.equal(model.conv.weight, steps[-1]), "not before the end"
        trainer.train(model, range(3, 4), state)
    finally:
        handle.remove()
    average = steps[0]
    for weight in steps[1:]:
        average = 0.75 * average + 0.25 * weight
    torch.testing.assert_close(model.conv.weight.detach(), average, rtol=1e-12, atol=1e-15)


def test_a_training_goes_on_after_a_cut() -> None:
    trainer = Trainer(DATA, SETTINGS.changed(ema=0.9, decay_norms=False), device=CPU)
    model = _net(norm=True)
    state = trainer.train(model, range(0, 1), None)
    result = graphprune.prune(model, torch.zeros(1, 2, 4, 4, dtype=torch.float64), target="channels=50%")
    sliced, notes = slice_state(state, result.plan, model, result.model)
    after = trainer.train(result.model, range(1, 4), sliced)
    assert notes == [] and after["ema"]["module.conv.weight"].shape == (3, 2, 3, 3) and after["ema"]["n_averaged"] == 12


# -- judging -------------------------------------------------------------------------------------------------------------


def test_each_validation_sample_is_judged_once_in_eval_mode_and_the_test_is_left_alone() -> None:
    model = _net(norm=True)
    model.norm.eval()
    Trainer(DATA, SETTINGS, device=CPU).train(model, range(0, 1), None)
    assert model.training and not model.norm.training, "modes are put back, module by module"
    before = copy.deepcopy(model)
    validation, test = DATA.validation, DATA.test
    assert isinstance(validation, ArraySamples) and isinstance(test, ArraySamples)
    with torch.no_grad():
        right = [(before.eval()(part.x.double()).argmax(1) == part.y).sum().item() for part in (validation, test)]
    trainer = Trainer(TrainingData(DATA.train, validation, _Broken(3)), SETTINGS, device=CPU)
    assert trainer.evaluate(model) == right[0] / 23
    assert Trainer(DATA, SETTINGS, device=CPU).test(model) == right[1] / 31
    _close(model, before, rtol=0, atol=0)
    with pytest.raises(UsageError, match="no test samples"):
        Trainer(TrainingData(DATA.train, validation), SETTINGS, device=CPU).test(model)


def test_progress_is_told_with_the_mean_loss() -> None:
    told: list[Progress] = []
    data = TrainingData(_samples(200), DATA.validation)
    Trainer(data, SETTINGS.changed(batch_size=4), watch=told.append, device=CPU).train(_net(), range(1, 3), None)
    assert [(p.epoch, p.batch, p.batches) for p in told] == [(e, b, 50) for e in (1, 2) for b in (20, 40, 50)]
    assert all(0 < p.loss < 3 for p in told)


# -- what goes wrong -----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_epoch_and_batch() -> None:
    samples = _samples(200)
    samples.x[17] = float("nan")
    torch.manual_seed(5)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(int(torch.randint(2**62, ()))))
    batch = order.tolist().index(17) // 4
    trainer, model = Trainer(TrainingData(samples, DATA.validation), SETTINGS.changed(batch_size=4), device=CPU), _net()
    torch.manual_seed(5)
    with pytest.raises(DivergedError, match=f"The loss is nan at epoch 1, batch {batch} of 50"):
        trainer.train(model, range(1, 2), None)
    wild = Trainer(DATA, SETTINGS.changed(lr=1e300), device=CPU)
    with pytest.raises(DivergedError, match="at epoch 0, batch"):
        wild.train(_net(), range(0, 1), None)


class _Broken(DatasetSamples):
    """Samples of which batch ``at`` cannot be read."""

    def __init__(self, at: int) -> None:
        inner = TensorDataset(torch.randn(64, 2, 4, 4), torch.arange(64) % 3)
        super().__init__(inner, inner, np.arange(64) % 3)
        object.__setattr__(self, "at", at)

    def batches(self, order: Tensor, size: int, device: torch.device, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        for index, batch in enumerate(super().batches(order, size, device, seed)):
            if index == self.at:  # type: ignore[attr-defined]
                raise OSError("truncated file")
            yield batch


def test_data_that_cannot_be_read_name_epoch_and_batch_and_the_cause() -> None:
    trainer = Trainer(TrainingData(_Broken(2), _Broken(1), None), SETTINGS, device=CPU)
    with pytest.raises(UsageError, match="training data fail at epoch 3, batch 2: OSError: truncated file") as caught:
        trainer.train(_net(), range(3, 4), None)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(UsageError, match="validation data fail at batch 1: OSError"):
        trainer.evaluate(_net())


def test_what_does_not_fit_is_refused_before_the_first_step() -> None:
    trainer = Trainer(DATA, SETTINGS, device=CPU)
    with pytest.raises(UsageError, match=r"returns \[16, 2\] for 16 samples of the training data, with 3 classes"):
        trainer.train(nn.Sequential(nn.Flatten(), nn.Linear(32, 2)).double(), range(0, 1), None)
    with pytest.raises(UsageError, match="no parameters that are trained"):
        trainer.train(_net().requires_grad_(False), range(0, 1), None)
    for epochs in (range(3, 5), range(2, 0, -1)):
        with pytest.raises(UsageError, match="not consecutive ones of the 4"):
            trainer.train(_net(), epochs, None)
    with pytest.raises(UsageError, match="50 training samples, fewer than batch_size=64"):
        Trainer(DATA, SETTINGS.changed(batch_size=64), device=CPU)


def test_without_accelerate_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UsageError, match=r"pip install 'graphprune\[train\]'"):
        Trainer(DATA, SETTINGS)


def test_a_launch_for_another_loop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UsageError, match="launched with DEEPSPEED"):
        Trainer(DATA, SETTINGS)


def test_one_process_alone_has_nothing_to_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not Trainer(DATA, SETTINGS.changed(shard=True, ema=0.5), device=CPU).processes.sharded


def test_processes_that_were_launched_but_do_not_know_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Trainer(DATA, SETTINGS, device=CPU)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="2 processes were launched, but accelerate was set up before for 1"):
        Trainer(DATA, SETTINGS, device=CPU)


def test_vectors_are_a_group_without_decay_where_they_are_not_decayed() -> None:
    groups = build_optimiser(_net(norm=True), SETTINGS.changed(decay_norms=False)).param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
    assert groups[0]["param_names"] == ["conv.weight", "head.weight"]
    assert len(build_optimiser(nn.Linear(2, 2, bias=False), SETTINGS.changed(decay_norms=False)).param_groups) == 1
