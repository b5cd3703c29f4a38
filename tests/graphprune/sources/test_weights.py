"""Weight files: every usual wrapping is read, and a bad file leaves the model as it was."""

from __future__ import annotations

import argparse
import re
import sys
import types
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from graphprune.errors import UsageError
from graphprune.sources import load_source, load_weights

State = dict[str, Any]


def _net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def _prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def _same(model: nn.Module, state: State) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def _copy(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _refused(path: Path, model: nn.Module | None = None) -> str:
    """The message; the model and the file must be as before."""
    model = model if model is not None else _net()
    before, content = _copy(model), path.read_bytes() if path.is_file() else None
    with pytest.raises(UsageError) as caught:
        load_weights(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (path.read_bytes() if path.is_file() else None) == content
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt", ".pth.tar", ".7", ""])
def test_every_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    state, model, path = _net().state_dict(), _net(), tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    load_weights(model, path)
    assert _same(model, state)


@pytest.mark.parametrize(
    "wrap",
    [
        *(
            lambda state, key=key: {key: state, "epoch": 3}
            for key in ("state_dict", "model_state_dict", "model", "net", "module", "ema")
        ),
        lambda state: {"model": {"state_dict": state, "step": 1}, "ema": {}},
        _prefixed("module."),
        _prefixed("_orig_mod."),
        _prefixed("module._orig_mod."),
        _prefixed("_orig_mod.module."),
        lambda state: {"state_dict": _prefixed("module.")(state), "best_prec1": 93.4},
        lambda state: {"model_ema": _prefixed("module.")(state), "optimizer": {"state": {}, "param_groups": []}},
        lambda state: {
            "state_dict": {**_prefixed("model.")(state), "loss.weight": torch.ones(2)},
            "pytorch-lightning_version": "2",
        },
        lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
        lambda state: {name: value for name, value in _prefixed("net.")(state).items() if "num_batches" not in name},
    ],
)
def test_checkpoints_and_wrapper_prefixes_are_taken_off(tmp_path: Path, wrap: Callable[[State], State]) -> None:
    state, model = _net().state_dict(), _net()
    torch.save(wrap(state), tmp_path / "checkpoint.pt")
    load_weights(model, tmp_path / "checkpoint.pt")
    assert _same(model, state)


def test_two_networks_in_a_file_are_not_told_apart(tmp_path: Path) -> None:
    state = _net().state_dict()
    torch.save(_prefixed("student.")(state) | _prefixed("teacher.")(state), tmp_path / "w.pt")
    assert "extra (student.0.weight" in _refused(tmp_path / "w.pt")
    torch.save({"student": state, "teacher": state}, tmp_path / "w.pt")
    assert "holds a dict with the keys student, teacher, not weights by name" in _refused(tmp_path / "w.pt")


def test_what_is_missing_behind_a_prefix_is_named_as_the_model_has_it(tmp_path: Path) -> None:
    state = _net().state_dict()
    del state["2.bias"]
    torch.save(_prefixed("module.")(state), tmp_path / "w.pt")
    assert "1 missing (2.bias)" in _refused(tmp_path / "w.pt")


def test_other_objects_beside_the_weights_need_trust(tmp_path: Path) -> None:
    state, model = _net().state_dict(), _net()
    torch.save({"state_dict": state, "when": Fraction(1, 3)}, tmp_path / "w.pt")
    assert "--trust-pickle" in _refused(tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt", trust_pickle=True)
    assert _same(model, state)
    whole, other = _net(), _net()
    torch.save(whole, tmp_path / "whole.pt")
    load_weights(other, tmp_path / "whole.pt", trust_pickle=True)
    assert _same(other, whole.state_dict())


def test_code_that_is_not_here_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = types.ModuleType("gone_module")
    gone.Gone = type("Gone", (), {"__module__": "gone_module"})  # type: ignore[attr-defined]
    with monkeypatch.context() as patches:
        patches.setitem(sys.modules, "gone_module", gone)
        torch.save({"model": gone.Gone()}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="needs code that is not here: No module named 'gone_module'"):
        load_weights(_net(), tmp_path / "w.pt", trust_pickle=True)


def test_a_model_whose_own_names_start_with_module_is_left_alone(tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = _net()

    state, model = Wrapper().state_dict(), Wrapper()
    torch.save(state, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert _same(model, state)


def test_batch_counters_may_be_missing(tmp_path: Path) -> None:
    state = {name: value for name, value in _net().state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pt")
    model = _net()
    load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    model.get_submodule("2").weight = model.get_submodule("0").weight
    return model


def test_a_tied_tensor_may_be_stored_once_and_stays_tied(tmp_path: Path) -> None:
    model = _tied()
    save_file({"0.weight": torch.eye(3)}, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert model.get_submodule("2").weight is model.get_submodule("0").weight
    assert torch.equal(model.state_dict()["2.weight"], torch.eye(3))


def test_missing_and_extra_names_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    state = _net().state_dict()
    for name in ("0.weight", "0.bias", "1.running_mean", "2.weight"):
        state[f"old.{name}"] = state.pop(name)
    torch.save(state, tmp_path / "w.pt")
    message = _refused(tmp_path / "w.pt")
    assert "of 9 tensors, 4 missing (0.weight, 0.bias, 1.running_mean, ...)" in message
    assert "and 4 extra (old.0.weight, old.0.bias, old.1.running_mean, ...)" in message


def test_one_missing_weight_alone(tmp_path: Path) -> None:
    state = _net().state_dict()
    del state["2.bias"]
    torch.save(state, tmp_path / "w.pt")
    message = _refused(tmp_path / "w.pt")
    assert "1 missing (2.bias)" in message and "extra" not in message


def test_wrong_shapes_are_named_with_both_shapes(tmp_path: Path) -> None:
    state = _net().state_dict()
    state["2.weight"] = torch.zeros(5, 4, 1, 1)
    torch.save(state, tmp_path / "w.pt")
    message = _refused(tmp_path / "w.pt")
    assert "1 wrong shapes (2.weight is 5x4x1x1 but should be 2x4x1x1)" in message and "(num_classes=10)" in message


@pytest.mark.parametrize(("name", "value"), [("2.bias", float("nan")), ("0.weight", float("inf")), ("1.running_var", float("nan"))])
def test_a_value_that_is_not_finite_names_its_tensor(tmp_path: Path, name: str, value: float) -> None:
    state = _copy(_net())
    state[name].view(-1)[1] = value
    torch.save(state, tmp_path / "w.pt")
    message = _refused(tmp_path / "w.pt")
    assert re.match(rf"{re.escape(name)} of .*w\.pt holds 1 NaN or infinite values of \d+\.", message)


def test_an_attention_mask_of_minus_infinity_is_fine(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")


class _RunsCode:
    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.mark, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_needs_code_is_refused_and_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    content = {"state_dict": _RunsCode(tmp_path / "mark")}
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    message = _refused(tmp_path / "evil.pt")
    assert "can run any code" in message and "save only model.state_dict()" in message
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", [".safetensors", ".pt", ".th"])
@pytest.mark.parametrize("left", [0, 5, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, left: float) -> None:
    path, state = tmp_path / f"w{kind}", _net().state_dict()
    save_file(state, path) if kind == ".safetensors" else torch.save(state, path, _use_new_zipfile_serialization=kind == ".pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(left if left >= 1 else left * len(content))])
    assert "truncated" in _refused(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, not weights by name"),
        ([torch.zeros(3)], "holds a list, not weights by name"),
        ({"optimizer": {}, "epoch": 3}, "holds a dict with the keys optimizer, epoch, not weights by name"),
        ({}, "holds a dict, not weights by name"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert message in _refused(tmp_path / "w.pt")


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    assert "There is no weights file" in _refused(tmp_path / "w.pt")
    (tmp_path / "w.h5").write_bytes(b"x")
    assert "Use one of .safetensors, .pt, .pth, .th, .bin" in _refused(tmp_path / "w.h5")


def test_load_source_puts_the_weights_in(tmp_path: Path) -> None:
    state = load_source("torchvision:squeezenet1_1", seed=5).model.state_dict()
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    assert _same(load_source("torchvision:squeezenet1_1", weights=tmp_path / "w.pth").model, state)


def test_a_dict_that_holds_itself_is_refused(tmp_path: Path) -> None:
    circle: dict[str, Any] = {}
    circle["state_dict"] = circle
    torch.save(circle, tmp_path / "w.pt")
    assert "not weights by name" in _refused(tmp_path / "w.pt")


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda t: t.to("meta"), lambda t: torch.nested.nested_tensor([t])])
def test_tensors_that_are_not_dense_are_refused(change: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path) -> None:
    state = dict(_net().state_dict())
    state["0.weight"] = change(state["0.weight"])
    torch.save(state, tmp_path / "w.pt")
    assert "0.weight of" in _refused(tmp_path / "w.pt")


def test_values_of_eight_bits_are_compared_too(tmp_path: Path) -> None:
    model = nn.Linear(2, 1, bias=False)
    save_file({"weight": torch.tensor([[1.0, 2.0]]).to(torch.float8_e4m3fn)}, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert model.weight.tolist() == [[1.0, 2.0]]
    save_file({"weight": torch.tensor([[1.0, torch.nan]]).to(torch.float8_e4m3fn)}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="holds 1 NaN or infinite values of 2"):
        load_weights(model, tmp_path / "w.safetensors")
