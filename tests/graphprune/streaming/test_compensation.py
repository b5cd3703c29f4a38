"""Compensation on checkpoints that are not in memory: the weights of the model in memory, with a few tensors there at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import graphprune
from graphprune.calibration import Calibration
from graphprune.cli import main
from graphprune.errors import UsageError
from graphprune.streaming import CheckpointReport, prune_checkpoint
from graphprune.streaming import prune as module
from graphprune.streaming.checkpoint import Checkpoint
from tests.graphprune.streaming.nets import INPUTS, Net, on_meta, save_sharded

IMAGES = torch.zeros(2, 3, 5, 5, dtype=torch.float64)


class Stages(nn.Module):
    """Convolutions, grouped ones too, whose constants go into batch norms, over a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.Conv2d(12, 8, 3, groups=2, padding=1, bias=False)
        self.norm, self.other = nn.BatchNorm2d(12), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, 4)."""
        x = self.stem(x)
        x = x + self.other(self.second(torch.relu(self.norm(self.first(x)))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Functional(nn.Module):
    """Parameters and statistics that its own code hands to operators, long before the last of them runs."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.variance: Tensor
        self.up, self.down = nn.Parameter(torch.randn(12, 3)), nn.Parameter(torch.randn(8, 12) / 3)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("variance", torch.ones(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, 4)."""
        mean, down = self.mean, self.down
        x = functional.linear(torch.relu(functional.linear(x.mean((2, 3)), self.up)), down)
        out: Tensor = self.head(torch.relu(functional.batch_norm(x, mean, self.variance)))
        return out


def words() -> Calibration:
    generator = torch.Generator().manual_seed(0)
    return Calibration([torch.randint(0, 40, (size, 6), generator=generator) for size in (8, 4)])


def images() -> Calibration:
    generator = torch.Generator().manual_seed(0)
    return Calibration([torch.randn(size, 3, 5, 5, generator=generator, dtype=torch.float64) for size in (6, 5)])


def pictures() -> list[Tensor]:
    """For the command: in float32."""
    return [batch.inputs.args[0].float() for batch in images()]


def net() -> Net:
    return Net(depth=3)


@pytest.fixture(
    params=[(net, INPUTS, words), (Stages, IMAGES, images), (Functional, IMAGES, images)], ids=lambda it: it[0].__name__
)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A model in float64, whose checkpoint is in a folder; and the arguments of both ways to prune it."""
    build, inputs, data = request.param
    torch.manual_seed(0)
    model = build().double().eval()
    save_sharded(model, tmp_path / "full")
    return model, {
        "example_inputs": inputs,
        "data": data(),
        "target": "channels=60%",
        "ranking": "local",
        "compensate": "least-squares",
    }


def bare(model: nn.Module) -> nn.Module:
    """The model without values, but for buffers that are no part of its state."""
    if isinstance(model, Net):
        return on_meta(depth=3).double()
    with torch.device("meta"):
        return type(model)().double().eval()


def streamed(model: nn.Module, folder: Path, out: str = "slim", **how: Any) -> CheckpointReport:
    inputs = how.pop("example_inputs")
    return prune_checkpoint(bare(model), inputs, folder / "full", folder / out, verify=False, **how)


def written(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def test_the_weights_are_those_of_the_model_in_memory(case: tuple[nn.Module, dict[str, Any]], tmp_path: Path) -> None:
    """And not those of the plan alone."""
    model, how = case
    report = streamed(model, tmp_path, **how)
    expected = graphprune.prune(model, **how)
    assert report.plan.kept == expected.plan.kept
    assert report.compensation == expected.report.compensation
    assert any(one.removed and one.after < one.before for one in report.compensation)
    found, state = written(tmp_path / "slim"), expected.graph.state_dict()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-10, atol=1e-12)
    streamed(model, tmp_path, "plain", **how | {"compensate": None})
    plain = written(tmp_path / "plain")
    changed = {name for name in found if not torch.equal(found[name], plain[name])}
    assert changed == {
        name for one in report.compensation if one.after < one.before for name in (one.weight, one.intercept) if name
    }


def test_few_tensors_are_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However deep the model is: what a node reads goes once it has run, and new weights wait in files."""
    most = [0]
    read = Checkpoint.tensor
    alive = weakref.WeakSet[Any]()

    def watched(self: Checkpoint, name: str) -> Tensor:
        tensor = read(self, name)
        alive.add(tensor.untyped_storage())
        most[0] = max(most[0], len(alive))
        return tensor

    monkeypatch.setattr(Checkpoint, "tensor", watched)
    found = []
    for depth in (2, 8):
        torch.manual_seed(0)
        save_sharded(Net(depth=depth).eval(), tmp_path / f"{depth}")
        most[0] = 0
        prune_checkpoint(
            on_meta(depth=depth), INPUTS, tmp_path / f"{depth}", tmp_path / f"slim{depth}", target="channels=60%", data=words(),
            compensate="least-squares", verify=False,
        )  # fmt: skip
        found.append(most[0])
    assert found[0] == found[1] <= 8


def test_an_unfinished_run_goes_on_to_the_same_bytes(case: tuple[nn.Module, dict[str, Any]], tmp_path: Path) -> None:
    model, how = case
    assert streamed(model, tmp_path, plan_only=True, **how).compensation == ()
    streamed(model, tmp_path, **how)
    names = sorted(path.name for path in (tmp_path / "slim").glob("*.safetensors"))
    whole = {name: (tmp_path / "slim" / name).read_bytes() for name in names}
    (tmp_path / "slim" / names[-1]).unlink()
    assert streamed(model, tmp_path, **how).resumed == len(names) - 1
    assert {name: (tmp_path / "slim" / name).read_bytes() for name in names} == whole


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda patch: {"data": None}, "Pass 'compensate' needs calibration data"),
        (lambda patch: {"compensate": "constants"}, "'constants' is not made of weights that are read one by one"),
        (lambda patch: patch.setattr(module, "ranks", lambda: 2) or {}, "several processes divide them"),
    ],
)
def test_what_cannot_be_compensated_is_refused_before_anything_is_written(
    change: Callable[[pytest.MonkeyPatch], dict[str, Any]], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    save_sharded(net().double().eval(), tmp_path / "full")
    how: dict[str, Any] = {"example_inputs": INPUTS, "data": words(), "compensate": "least-squares"} | change(monkeypatch)
    with pytest.raises(UsageError, match=says):
        streamed(net(), tmp_path, **how)
    assert not (tmp_path / "slim").exists()


def test_the_command_compensates_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model, here = Stages().eval(), Path(__file__).stem
    save_sharded(model, tmp_path / "full")
    command = ["prune-checkpoint", str(tmp_path / "full"), "--model", f"tests.graphprune.streaming.{here}:Stages", "-o"]
    command += [str(tmp_path / "slim"), "--input", "2x3x5x5", "--target", "channels=60%", "--compensate", "least-squares"]
    assert main([*command, "--calibrate", f"tests.graphprune.streaming.{here}:pictures"]) == 0
    assert "the relative error of their outputs on the calibration data fell from" in capsys.readouterr().out
    expected = graphprune.prune(
        model, IMAGES.float(), data=pictures(), target="channels=60%", ranking="local", compensate="least-squares"
    )
    state = expected.graph.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in written(tmp_path / "slim").items())
