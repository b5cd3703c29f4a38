"""The proof of a checkpoint's plan, on a copy: what the copy may leave out, and what it has that the checkpoint has not."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import graphprune
from graphprune.streaming import CheckpointReport, open_checkpoint, prune_checkpoint
from tests.graphprune.streaming.nets import INPUTS, Net, save_sharded

TARGET = "channels=50%"


class _Empty(Net):
    """With a table of no rows, as of a vision transformer without registers."""

    def __init__(self) -> None:
        super().__init__()
        self.registers = nn.Parameter(torch.zeros(1, 0, 16))

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.cat([self.registers.expand(len(ids), -1, -1), self.embed(ids)], 1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


def test_tensors_without_elements_are_read_cut_and_proved(tmp_path: Path) -> None:
    net = _Empty().eval()
    save_sharded(net, tmp_path / "full")
    with torch.device("meta"):
        meta = _Empty().eval()
    report = prune_checkpoint(meta, INPUTS, tmp_path / "full", tmp_path / "slim", target=TARGET)
    assert report.proof.verification is not None and report.proof.verification.passed
    assert open_checkpoint(tmp_path / "slim").entries["registers"].shape == (1, 0, 8)


class _Sloped(Net):
    """Every channel has a factor of its own, which no tensor of the checkpoint holds."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * torch.linspace(0.5, 1.5, 16)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


def test_constants_of_a_forward_are_cut_with_the_rest(tmp_path: Path) -> None:
    """Also in the copy on which the plan is proved, which has its own."""
    net = _Sloped().eval()
    save_sharded(net, tmp_path / "full")
    with torch.device("meta"):
        meta = _Sloped().eval()
    report = prune_checkpoint(meta, INPUTS, tmp_path / "full", tmp_path / "slim", target=TARGET)
    expected = graphprune.prune(net, INPUTS, target=TARGET, ranking="local")
    assert report.plan.kept == expected.plan.kept and {"_tensor_constant0", "embed.weight"} <= report.plan.kept.keys()
    assert report.proof.verification is not None and report.proof.verification.passed and report.proof.left_out == 2


class _Row(nn.Module):
    """Layers in a row, without residuals; its own list of them is none that a module would register."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(16, 16) for _ in range(6)]
        for index, layer in enumerate(self.layers):
            self.add_module(str(index), layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


class _Rows(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*(nn.Linear(16, 16) for _ in range(6)))


def _pruned(make: type[nn.Module], folder: Path) -> CheckpointReport:
    torch.manual_seed(0)
    model = make().eval()
    save_file(model.state_dict(), folder / "full.safetensors")
    with torch.device("meta"):
        meta = make().eval()
    x = torch.randn(2, 16)
    report = prune_checkpoint(meta, x, folder / "full.safetensors", folder / "slim", target=TARGET)
    assert report.plan.kept == graphprune.prune(model, x, target=TARGET, ranking="local").plan.kept
    return report


def test_layers_in_a_row_that_lose_different_channels_are_proved_on_all_of_them(tmp_path: Path) -> None:
    """Two of them are no plan of a shorter row: one keeps other outputs than the next keeps inputs."""
    report = _pruned(_Rows, tmp_path)
    assert report.proof.verification is not None and report.proof.verification.passed and report.proof.left_out == 0


def test_layers_in_a_list_of_the_models_own_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    report = _pruned(_Row, tmp_path)
    assert report.proof.verification is not None and report.proof.verification.passed
