"""A run that is interrupted anywhere and started again ends exactly as one that was not."""

from __future__ import annotations

import copy
import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from graphprune.errors import CheckError, DivergedError, RunError, UsageError
from graphprune.methods import MethodResult, adaptive, iterative
from graphprune.runs import Round, bench
from graphprune.runs.history import Silent
from tests.loops import INPUT, DigitsLoop, Residual


class Killed(BaseException):
    """Stands for whatever ends a process."""


class Interrupting(DigitsLoop):
    """A loop in which the process ends at a given call of train or evaluate."""

    def __init__(self, epochs: int, at: int) -> None:
        super().__init__(epochs, count=300)
        self.at, self.calls = at, 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise Killed

    def train(self, model: nn.Module, epochs: range, state: Any, /, **extras: nn.Module) -> Any:
        self._count()
        return super().train(model, epochs, state, **extras)

    def evaluate(self, model: nn.Module, /) -> float:
        self._count()
        return super().evaluate(model)


def _run(loop: DigitsLoop, folder: Path | None, **options: Any) -> MethodResult:
    torch.manual_seed(5)
    model = Residual()
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": loop.data, "folder": folder, "epochs": 3}
    return iterative(model, torch.zeros(INPUT), rounds=2, tune_epochs=2, trained=False, **how, **options)


def _same(first: MethodResult, second: MethodResult) -> None:
    assert first.plan == second.plan
    assert first.rounds == second.rounds
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("save_every", "at"),
    [
        (0.0, 3),  # an epoch and its evaluation fit into a process
        (0.0, 4),
        (1e9, 7),  # nothing is saved within a training, so a whole one must
    ],
)
def test_a_run_interrupted_everywhere_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every: float, at: int
) -> None:
    monkeypatch.setattr(bench, "_SAVE_EVERY", save_every)
    whole = _run(DigitsLoop(3, count=300), None)
    done, kills = None, 0
    while done is None:
        try:
            done = _run(Interrupting(3, at), tmp_path)
        except Killed:
            kills += 1
        assert kills < 20
    assert kills > 1
    _same(done, whole)


def test_data_that_are_drawn_at_random_are_drawn_again_where_a_run_ends_within_a_cut(tmp_path: Path) -> None:
    """A loader that shuffles goes by torch's generator, and so do the statistics of batch norms after the cut."""
    loop = DigitsLoop(3, count=300)
    images = torch.utils.data.TensorDataset(loop.x, loop.y)

    class Loader:
        def __init__(self, at: int) -> None:
            self.left = at

        def __iter__(self) -> Any:
            self.left -= 1
            if not self.left:
                raise Killed
            yield from islice(torch.utils.data.DataLoader(images, batch_size=32, shuffle=True), 2)

    def run(folder: Path, at: int) -> MethodResult:
        torch.manual_seed(5)
        how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": Loader(at), "folder": folder, "epochs": 3}
        return iterative(Residual(), torch.zeros(INPUT), target="macs=50%", trained=False, criterion="l2", **how)

    whole = run(tmp_path / "whole", 99)
    with pytest.raises(Killed):
        run(tmp_path / "killed", 1)
    torch.manual_seed(6)
    _same(run(tmp_path / "killed", 99), whole)


def test_a_finished_run_is_read_and_not_done_again(tmp_path: Path) -> None:
    first = _run(DigitsLoop(3, count=300), tmp_path)
    loop = DigitsLoop(3, count=300)
    _same(first, _run(loop, tmp_path))
    assert loop.trained == []


def test_an_epoch_is_not_trained_twice_after_its_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_SAVE_EVERY", 0.0)
    with pytest.raises(Killed):
        _run(Interrupting(3, at=3), tmp_path)
    loop = DigitsLoop(3, count=300)
    _run(loop, tmp_path)
    assert loop.trained[0] == 2


def test_a_folder_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    _run(DigitsLoop(3, count=300), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(RunError, match="has options"):
        _run(DigitsLoop(3, count=300), tmp_path, target="macs=40%")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_run_that_began_with_other_weights_is_refused(tmp_path: Path) -> None:
    """It would end with what the old weights became. Weights that the run itself trains may begin anywhere."""
    loop = DigitsLoop(2, count=100)
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "epochs": 1}
    torch.manual_seed(0)
    first, second = Residual(), Residual()
    result = iterative(first, torch.zeros(INPUT), folder=tmp_path / "trained", **how)
    with pytest.raises(RunError, match="has weights"):
        iterative(second, torch.zeros(INPUT), folder=tmp_path / "trained", **how)
    _same(iterative(copy.deepcopy(first), torch.zeros(INPUT), folder=tmp_path / "trained", **how), result)
    result = iterative(first, torch.zeros(INPUT), folder=tmp_path / "not", trained=False, **how)
    _same(iterative(second, torch.zeros(INPUT), folder=tmp_path / "not", trained=False, **how), result)


class Returning(DigitsLoop):
    """A loop that returns what it is told to."""

    state: Any = None
    accuracies: Any = (0.5,)

    def train(self, model: nn.Module, epochs: range, state: Any, /, **extras: nn.Module) -> Any:
        super().train(model, epochs, None)
        return self.state

    def evaluate(self, model: nn.Module, /) -> Any:
        return self.accuracies.pop(0) if len(self.accuracies) > 1 else self.accuracies[0]


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"best": np.float64(0.5)}, r"it holds numpy.*float\(value\) for a number of numpy"),
        (Residual(), "it holds"),
        ({"schedule": lambda epoch: 0.9**epoch}, "pickle"),
    ],
)
def test_a_state_that_could_not_be_read_back_is_refused_when_it_is_returned(state: Any, says: str, tmp_path: Path) -> None:
    """It would end the run at the next step, as a damaged file; a run whose loop is mended goes on."""
    loop = Returning(2, count=100)
    loop.state = state
    with pytest.raises(UsageError, match=f"cannot keep what train returned: .*{says}"):
        _run(loop, tmp_path)
    loop.state = {"best": 0.5}
    assert _run(loop, tmp_path).accuracy == 0.5


@pytest.mark.parametrize("named", [True, False])
def test_a_round_says_what_of_the_optimiser_did_not_go_on(named: bool) -> None:
    """A sorted order without names cannot be told; with names, only factored moments are lost."""

    class Factored(DigitsLoop):
        def train(self, model: nn.Module, epochs: range, state: Any, /, **extras: nn.Module) -> Any:
            given = sorted(model.named_parameters())
            optimiser = torch.optim.Adafactor(given if named else [parameter for _, parameter in given])
            optimiser.load_state_dict(state or optimiser.state_dict())
            functional.cross_entropy(model(self.x), self.y).backward()
            optimiser.step()
            return optimiser.state_dict()

    result = _run(Factored(3, count=100), None)
    note = result.rounds[1].note
    assert ("starts afresh: its row_var has the shape" in note and "more, in the journal" in note) is named
    assert ("The training starts from a fresh state: the optimiser's parameters cannot be told apart" in note) is not named
    assert f"round 1: {note}" in repr(result)
    assert all(row.note == "" for row in _run(DigitsLoop(3, count=100), None).rounds)


@pytest.mark.parametrize("value", [{"accuracy": 0.5}, (0.5, 1), None, torch.ones(2)])
def test_an_evaluation_that_is_no_number_is_refused(value: Any, tmp_path: Path) -> None:
    loop = Returning(2, count=100)
    loop.accuracies = [value]
    with pytest.raises(UsageError, match=f"evaluate returned {type(value).__name__}. Return one number"):
        _run(loop, tmp_path)
    loop.accuracies = [torch.tensor(0.5)]
    assert _run(loop, tmp_path).accuracy == 0.5


def test_an_evaluation_that_is_not_a_number_ends_the_run_or_is_rolled_back(tmp_path: Path) -> None:
    loop = Returning(2, count=100)
    loop.accuracies = [math.nan]
    with pytest.raises(CheckError, match="NaN for the model that the run begins with"):
        _run(loop, tmp_path / "first")
    loop.accuracies = [0.5]
    assert _run(loop, tmp_path / "first").accuracy == 0.5  # evaluate is mended
    loop.accuracies = [0.5, math.nan]
    with pytest.raises(CheckError, match=r"NaN for the model of round 1 \(accepted\)"):
        _run(loop, tmp_path / "second")
    loop.accuracies = [0.5, math.nan, 0.5]
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": loop.data, "epochs": 1}
    found = adaptive(Residual(), torch.zeros(INPUT), tolerance=1.0, max_rounds=2, step_share=0.2, **how)
    assert [row.status for row in found.rounds] == ["dense", "rolled back", "accepted"]
    assert found.rounds[1].accuracy is None and found.rounds[1].note == "evaluate returned NaN"


def test_only_the_snapshots_that_are_needed_stay(tmp_path: Path) -> None:
    result = _run(DigitsLoop(3, count=300), tmp_path)
    assert result.rounds[-1].status == "final"
    assert len(list((tmp_path / "snapshots").iterdir())) <= 2


def test_rounds_are_in_the_folder_and_told_once(tmp_path: Path) -> None:
    class Told(Silent):
        def __init__(self) -> None:
            self.rows: list[tuple[Round, bool]] = []

        def round(self, row: Round, *, repeated: bool) -> None:
            self.rows.append((row, repeated))

    first, second = Told(), Told()
    result = _run(DigitsLoop(3, count=300), tmp_path, watch=first)
    _run(DigitsLoop(3, count=300), tmp_path, watch=second)
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [line["accuracy"] for line in lines] == [row.accuracy for row in result.rounds]
    assert [row for row, _ in first.rows] == [row for row, _ in second.rows] == list(result.rounds)
    assert not any(repeated for _, repeated in first.rows)
    assert all(repeated for _, repeated in second.rows[:-1])


def test_the_users_generators_and_model_are_left_as_they_were() -> None:
    loop = DigitsLoop(3, count=300)
    model = Residual()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    iterative(model, torch.zeros(INPUT), train=loop.train, evaluate=loop.evaluate, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_momentum_goes_on_over_a_cut_as_that_of_the_kept_slices() -> None:
    seen: list[Any] = []

    class Watching(DigitsLoop):
        def train(self, model: nn.Module, epochs: range, state: Any, /, **extras: nn.Module) -> Any:
            seen.append((copy.deepcopy(state), model))  # before it is trained in place
            result = super().train(model, epochs, state, **extras)
            seen.append((copy.deepcopy(result), model))
            return result

    loop = Watching(2, count=300)
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "epochs": 2, "trained": False}
    iterative(Residual(), torch.zeros(INPUT), rounds=2, tune_epochs=1, final_epochs=0, target="macs=60%", **how)
    after_dense, before_tuning = seen[3], seen[4]
    wide = after_dense[0]["optimiser"]
    slim = before_tuning[0]["optimiser"]
    names = wide["param_groups"][0]["param_names"]
    moments = {name: wide["state"][index]["momentum_buffer"] for index, name in enumerate(names)}
    narrowed = 0
    for index, (name, parameter) in enumerate(before_tuning[1].named_parameters()):
        momentum = slim["state"][index]["momentum_buffer"]
        assert momentum.shape == parameter.shape
        narrowed += momentum.numel() < moments[name].numel()
        assert set(momentum.flatten().tolist()) <= set(moments[name].flatten().tolist())
    assert narrowed > 4


class Diverging(DigitsLoop):
    """A loop whose loss goes to NaN from a given call on."""

    def __init__(self, epochs: int, calls: range, *, raises: bool) -> None:
        super().__init__(epochs, count=300)
        self.bad, self.calls, self.raises = calls, 0, raises

    def train(self, model: nn.Module, epochs: range, state: Any, /, **extras: nn.Module) -> Any:
        self.calls += 1
        if self.calls - 1 not in self.bad:
            return super().train(model, epochs, state, **extras)
        if self.raises:
            raise DivergedError("The loss is NaN in epoch 1, batch 2.")
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        return None


@pytest.mark.parametrize("raises", [True, False])
def test_a_training_that_diverges_is_rolled_back_and_the_step_is_halved(raises: bool) -> None:
    loop = Diverging(2, range(2, 3), raises=raises)
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": loop.data, "epochs": 2, "trained": False}
    result = adaptive(Residual(), torch.zeros(INPUT), tolerance=1.0, max_rounds=2, rewind=0.0, step_share=0.2, **how)
    _, first, second = result.rounds
    assert first.status == "rolled back" and "NaN" in first.note and first.accuracy is None
    assert second.status == "accepted"
    assert second.values["step"] == first.values["step"] / 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.model.state_dict().values())


def test_a_method_that_cannot_go_on_stops_with_the_reason(tmp_path: Path) -> None:
    loop = Diverging(2, range(0, 9), raises=True)
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "epochs": 2, "trained": False}
    with pytest.raises(Exception, match="The loss is NaN in epoch 1, batch 2"):
        iterative(Residual(), torch.zeros(INPUT), folder=tmp_path, **how)


def test_an_unknown_option_is_named_with_those_there_are() -> None:
    loop = DigitsLoop(1)
    with pytest.raises(UsageError, match=r"adaptive: tolerence: .*Options: .*tolerance"):
        adaptive(Residual(), torch.zeros(INPUT), train=loop.train, evaluate=loop.evaluate, epochs=1, tolerence=0.1)
