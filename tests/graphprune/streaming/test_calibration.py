"""Criteria of activations on checkpoints that are not in memory: the scores of the model in memory, each weight read once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.calibration import Calibration
from graphprune.errors import UsageError
from graphprune.passes.analysis.channels import ChannelsPass
from graphprune.passes.calibration.loading import parts_of
from graphprune.passes.scoring.score import ScorePass
from graphprune.pipeline.pass_manager import PassManager
from graphprune.streaming import open_checkpoint, prune_checkpoint
from graphprune.streaming.weights import match, weights_of
from graphprune.tracing import capture
from tests.graphprune.streaming.nets import INPUTS, ROOT, Net, on_meta, save_sharded

_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
TARGET = "channels=50%"


def batches() -> list[Tensor]:
    """Batches of several sizes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 40, (size, 6), generator=generator) for size in (3, 2, 3, 1)]


def real_buffers() -> Net:
    """A model whose buffers have values, wherever it is built."""
    return on_meta()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture
def net(tmp_path: Path) -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    save_sharded(model, tmp_path / "full")
    return model


@pytest.mark.parametrize("criterion", ["attention", "apoz(at=produced)", "variance", "0.5*l2+0.5*mean-activation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scores_are_those_of_the_model_in_memory(tmp_path: Path, criterion: str, dtype: torch.dtype) -> None:
    """Bit for bit: the plan records the scores."""
    torch.manual_seed(0)
    net = Net().eval().to(dtype)
    save_sharded(net, tmp_path / "full")
    how: dict[str, Any] = {"target": TARGET, "criterion": criterion, "ranking": "local", "data": batches()}
    found = prune_checkpoint(on_meta().to(dtype), INPUTS, tmp_path / "full", tmp_path / "slim", **how).plan
    expected = graphprune.prune(net, INPUTS, **how).plan
    assert found.scores == expected.scores and found.kept == expected.kept


def _first_token(logits: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits[:, 0], target)


def _labelled() -> Calibration:
    return Calibration([(ids, ids[:, 0] % 3) for ids in batches()], loss=_first_token)


class Stages(nn.Module):
    """Convolutions with batch norms over a residual stream, and a parameter that is read first and used up to the end."""

    def __init__(self, channels: int = 6, depth: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(depth))
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, channels))
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, 4)."""
        gain = self.gain.view(-1, 1, 1)
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + torch.relu(norm(conv(x) * gain))
        out: Tensor = self.head(x.mean((2, 3)) * self.gain)
        return out


def _images() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 3, 5, 5, generator=generator, dtype=torch.float64), torch.arange(n) % 4) for n in (3, 2, 4)]


def _stages() -> Stages:
    torch.manual_seed(0)
    model = Stages().double().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norms" in name and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model


def _in_memory_and_streamed(
    full: nn.Module, bare: nn.Module, inputs: Tensor, criterion: str, data: Calibration, folder: Path
) -> list[Any]:
    """Scores of a model in memory, and of its checkpoint, which runs in several parts."""
    save_sharded(full, folder)
    streamed = capture(bare, inputs)
    streamed = streamed.with_(weights=weights_of(streamed.module, match(bare, open_checkpoint(folder))))
    assert len(parts_of(streamed, streamed.module)) > 2
    passes = [ChannelsPass(), ScorePass(criterion=criterion)]
    programs = (program.with_(calibration=data) for program in (capture(full, inputs), streamed))
    return [PassManager(passes).run(program).scores[criterion].values for program in programs]


@pytest.mark.parametrize("name", ["fpgm", "euclidean", "cosine"])
def test_filters_of_a_group_are_compared_as_in_memory(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    net, bare = Net(depth=6, tied=False).double().eval(), on_meta(depth=6, tied=False).double()
    expected, found = _in_memory_and_streamed(net, bare, INPUTS, f"{name}(scope=group)", _labelled(), tmp_path)
    assert found == pytest.approx(expected, rel=1e-10, nan_ok=True) and not np.array_equal(found, expected)


GRADIENTS = ["taylor", "taylor(at=produced)", "taylor(form=weight)", "fisher", "class-aware(samples=2)", "0.5*variance+0.5*taylor"]


@pytest.mark.parametrize("criterion", GRADIENTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scores_of_gradients_are_those_of_the_model_in_memory(tmp_path: Path, criterion: str, dtype: torch.dtype) -> None:
    """To rounding: weights are loaded a few layers at a time, forward and back."""
    torch.manual_seed(0)
    net = Net(depth=6, tied=False).to(dtype).eval()
    bare = on_meta(depth=6, tied=False).to(dtype)
    expected, found = _in_memory_and_streamed(net, bare, INPUTS, criterion, _labelled(), tmp_path)
    assert found == pytest.approx(expected, rel=1e-11 if dtype == torch.float64 else 1e-4, nan_ok=True)


@pytest.mark.parametrize("criterion", ["taylor(form=weight)", "bn-taylor", "0.5*bn-taylor+0.5*fisher"])
def test_scores_of_gradients_of_weights_that_several_parts_read(tmp_path: Path, criterion: str) -> None:
    """The parameter's gradient comes from every part that uses it."""
    with torch.device("meta"):
        bare = Stages().double().eval()
    data = Calibration(_images())
    expected, found = _in_memory_and_streamed(_stages(), bare, _images()[0][0], criterion, data, tmp_path)
    assert found == pytest.approx(expected, rel=1e-10, nan_ok=True)
    assert np.isfinite(expected).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("criterion", ["obs", "0.5*obs(damping=0.1,positions=3)+0.5*l2"])
def test_scores_of_second_moments_are_those_of_the_model_in_memory(tmp_path: Path, criterion: str, dtype: torch.dtype) -> None:
    """Bit for bit: what reads the residual stream waits in files for the last part, and goes the same way as in memory."""
    torch.manual_seed(0)
    net, bare = Net(depth=6).to(dtype).eval(), on_meta(depth=6).to(dtype)
    expected, found = _in_memory_and_streamed(net, bare, INPUTS, criterion, Calibration(batches()), tmp_path / "text")
    assert np.isfinite(expected).any() and np.array_equal(found, expected, equal_nan=True)
    with torch.device("meta"):
        without = Stages().to(dtype).eval()
    images = Calibration([x.to(dtype) for x, _ in _images()])
    expected, found = _in_memory_and_streamed(_stages().to(dtype), without, _images()[0][0].to(dtype), criterion, images, tmp_path)
    assert np.isfinite(expected).any() and np.array_equal(found, expected, equal_nan=True)


def test_second_moments_of_a_weight_that_an_earlier_part_has_read(tmp_path: Path) -> None:
    """The product with a view of it, much later, counts as it does in memory."""

    class Late(Stages):
        def forward(self, x: Tensor) -> Tensor:
            """Logits of shape (batch, 4)."""
            turned = self.head.weight.mT
            x = self.stem(x)
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = x + torch.relu(norm(conv(x)))
            out: Tensor = x.mean((2, 3)) @ turned
            return out

    torch.manual_seed(0)
    full = Late().double().eval()
    with torch.device("meta"):
        bare = Late().double().eval()
    data = Calibration([x for x, _ in _images()])
    expected, found = _in_memory_and_streamed(full, bare, _images()[0][0], "obs", data, tmp_path)
    assert np.isfinite(expected).any() and np.array_equal(found, expected, equal_nan=True)
    with torch.no_grad():
        full.head.weight[:, ::2] *= 9.0
    assert not np.array_equal(_in_memory_and_streamed(full, bare, _images()[0][0], "obs", data, tmp_path)[1], expected)


def test_gradients_of_a_tied_weight_come_from_all_its_uses(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, bare = Net(depth=8).double().eval(), on_meta(depth=8).double()
    expected, found = _in_memory_and_streamed(net, bare, INPUTS, "taylor(form=weight)", _labelled(), tmp_path)
    assert found == pytest.approx(expected, rel=1e-10, nan_ok=True)


def test_a_checkpoint_is_pruned_by_gradients_as_the_model_in_memory(net: Net, tmp_path: Path) -> None:
    how: dict[str, Any] = {"target": TARGET, "criterion": "taylor", "ranking": "local", "data": _labelled()}
    seen: list[int] = []
    found = prune_checkpoint(
        on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", **how,
        progress=lambda what, done, total: seen.append(done) if what == "Scoring" else None,
    ).plan  # fmt: skip
    assert found.kept == graphprune.prune(net, INPUTS, **how).plan.kept
    weights = sum(tensor.nbytes for tensor in net.parameters()) + net.shift.nbytes + net.head.weight.nbytes
    # For each batch, there and back; and once to see that they are finite, since some units have no score.
    assert seen[-1] == (2 * len(batches()) + 1) * weights


def test_every_weight_is_read_once_for_all_batches(net: Net, tmp_path: Path) -> None:
    seen: list[int] = []
    prune_checkpoint(
        on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", target=TARGET, criterion="attention", data=batches(),
        progress=lambda what, done, total: seen.append(done) if what == "Scoring" else None, plan_only=True,
    )  # fmt: skip
    weights = sum(tensor.nbytes for tensor in net.parameters()) + net.shift.nbytes
    assert seen[-1] == weights + net.head.weight.nbytes  # the tied one is read by the first layer, and by the last


def test_batches_that_the_model_does_not_take_are_named(net: Net, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not run on the calibration data"):
        prune_checkpoint(
            on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", criterion="attention", data=[torch.full((2, 6), 99)]
        )
    assert not (tmp_path / "slim").exists()


def test_a_buffer_without_values_anywhere_is_named(net: Net, tmp_path: Path) -> None:
    bare = on_meta()
    bare.scale = torch.ones(1, device="meta")
    with pytest.raises(UsageError, match="The buffer scale has no values"):
        prune_checkpoint(bare, INPUTS, tmp_path / "full", tmp_path / "slim", criterion="attention", data=batches())


def test_two_processes_measure_a_part_each_and_write_one_checkpoint(net: Net, tmp_path: Path) -> None:
    """As torchrun starts them: the plan is that of one process with all data."""
    command = [sys.executable, "-P", "-m", "graphprune", "prune-checkpoint", str(tmp_path / "full"), "-o", str(tmp_path / "slim")]
    command += ["--model", "tests.graphprune.streaming.test_calibration:real_buffers", "--input", "2x6:int64", "--target", TARGET]
    command += ["--criterion", "variance", "--calibrate", "tests.graphprune.streaming.test_calibration:batches"]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command, env={**_ENVIRONMENT, **meeting, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "3 files of weights" in said[0][0] and not said[1][0]
    expected = graphprune.prune(net, INPUTS, target=TARGET, criterion="variance", ranking="local", data=batches()).plan
    assert graphprune.Plan.load(tmp_path / "slim" / "plan.json").kept == expected.kept
