"""Folders of Python source: they compute what the model computes, in both modes, with torch alone."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import graphprune
from graphprune.errors import ArtifactError, UsageError, VerificationError
from graphprune.exporting import export_model, folder
from graphprune.ir.program import Inputs
from tests.zoo.case import ready

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


class Net(nn.Module):
    """What source has to spell: lists, names that are no identifiers, parameters and buffers of its own, ties, the mode, in-place
    calls, a slice, sizes, and layers that are no convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8, eps=1e-3)
        self.blocks = nn.ModuleList([Block(8), Block(8)])
        self.named = nn.ModuleDict({"a-b": nn.GroupNorm(2, 8)})
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.register_buffer("shift", torch.rand(8, 1, 1), persistent=False)
        self.left, self.right = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.right.weight = self.left.weight
        self.again = self.left
        self.lstm = nn.LSTM(8, 4, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        y = self.norm(self.stem(x))
        for block in self.blocks:
            y = block(y)
        y = self.named["a-b"](y) * self.scale + self.shift
        y = functional.dropout(y, 0.5, self.training)
        y += gain
        y = y[:, :, : y.shape[2] // 2].flatten(2).transpose(1, 2)
        y = self.again(self.right(self.left(y)))
        return self.lstm(y)[0].clamp(max=float("inf"))  # type: ignore[no-any-return]


def _imported(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("written_module", path / "module.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _written(path: Path, model: nn.Module) -> tuple[Any, Any]:
    program = graphprune.capture(model, X)
    export_model(program.module, program.inputs, path, format="fx-folder", plan='{"kept": {}}')
    return program.module, _imported(path).load()


def test_it_computes_what_the_model_computes_in_both_modes(tmp_path: Path) -> None:
    wanted, found = _written(tmp_path / "net", ready(Net()))
    for training in (False, True):
        results = []
        for one in (wanted, found):
            torch.manual_seed(0)
            results.append(one.train(training)(X))
        assert torch.equal(*results)
    assert found.state_dict().keys() == wanted.state_dict().keys()
    assert found.left.weight is found.right.weight


def test_it_holds_source_weights_and_plan_and_no_pickle(tmp_path: Path) -> None:
    _written(tmp_path / "net", ready(Net()))
    assert sorted(os.listdir(tmp_path / "net")) == ["README.md", "model.safetensors", "module.py", "plan.json"]
    assert json.loads((tmp_path / "net" / "plan.json").read_text()) == {"kept": {}}
    text = (tmp_path / "net" / "module.py").read_text()
    assert "self.stem = nn.Conv2d(3, 8, (3, 3), padding='same', bias=False" in text
    assert "self.blocks[1].body[2](" in text and "x = self.stem(x)\n" in text
    assert not any(word in text for word in ("import graphprune", "pickle", "exec(", "= None\n"))


def test_the_batch_count_of_train_mode_needs_no_graphprune(tmp_path: Path) -> None:
    """The one function of graphprune that graphs call is written out."""

    class Counting(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 2)
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen.add_(1)
            return self.head(x)  # type: ignore[no-any-return]

    _, found = _written(tmp_path / "net", ready(Counting()))
    found.train()(X), found.eval()(X)
    assert int(found.seen) == 1


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    _written(tmp_path / "net", ready(Net()))
    file = tmp_path / "net" / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if name != "scale"}, file)
    with pytest.raises(ValueError, match="scale"):
        _imported(tmp_path / "net").load()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('broken source')", "broken source"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
    ],
)
def test_nothing_is_left_where_the_source_does_not_run(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "source_of", lambda module, inputs: source)
    program = graphprune.capture(nn.Linear(4, 2), torch.zeros(1, 4))
    with pytest.raises(VerificationError, match=rf"a process of its own it does not run .*{said}"):
        export_model(program.module, program.inputs, tmp_path / "net", format="fx-folder")
    assert list(tmp_path.iterdir()) == []


def test_a_layer_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight if x.sum() > 0 else x

    program = graphprune.capture(nn.Sequential(nn.Linear(4, 4), Odd()), torch.zeros(1, 4))
    with pytest.raises(ArtifactError, match=r"as Python source: .*Odd"):
        export_model(program.module, Inputs((torch.zeros(2, 4),)), tmp_path / "net", format="fx-folder")
    assert list(tmp_path.iterdir()) == []


@dataclass
class Scores:
    loss: Tensor | None = None
    logits: Tensor | None = None


class Naming(nn.Module):
    """Returns a class of its own, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Scores:
        return Scores(logits=self.outer(self.inner(x).relu()))


def test_a_class_of_results_is_written_with_the_names_of_its_fields(tmp_path: Path) -> None:
    wanted, found = _written(tmp_path / "net", ready(Naming()))
    with torch.no_grad():
        result = found(X)
        assert torch.equal(result.logits, wanted(X).logits) and result.loss is None
        assert result["logits"] is result[0] is result.logits and type(result).__name__ == "Scores"
        assert len(torch.utils._pytree.tree_leaves(result)) == 1
    assert "graphprune" not in (tmp_path / "net" / "module.py").read_text().replace("written by graphprune", "")


def test_a_folder_that_exists_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()  # but for an empty one
    _written(tmp_path / "net", ready(Naming()))
    with pytest.raises(UsageError, match=r"it exists\. Remove it, or choose another path"):
        _written(tmp_path / "net", ready(Naming()))
