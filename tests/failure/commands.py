"""The commands that are made to fail, on a model and data that are small enough to do so often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

HERE: Final = "tests.failure.commands"
_TRAINING: Final = (
    "--epochs",
    "2",
    "--set",
    "training.batch_size=16",
    "--set",
    "trained=false",
    "--set",
    "data.samples=32",
    "--set",
    "data.workers=0",
)


@dataclass(frozen=True)
class Command:
    """A command line without its output.

    out: what it writes. resumes: whether it goes on from what is there. results: the files to compare, within a folder. phases:
    what it does one after the other, each with a function that runs then, and after how many calls of it to look.
    """

    arguments: tuple[str, ...]
    out: str
    resumes: bool
    results: tuple[str, ...]
    phases: Mapping[str, tuple[str, int]]

    def line(self, *more: str) -> list[str]:
        """The command line, as the user would type it."""
        return [*self.arguments, "-o", self.out, *more]

    @property
    def work(self) -> tuple[str, int]:
        """Where the long work begins, which nothing that could be known before may reach."""
        return list(self.phases.values())[1][0], 0

    def inside(self, folder: str) -> Command:
        """The command with its output in a folder."""
        more = tuple(f"{folder}/{part}" if part == "plan.json" else part for part in self.arguments)
        return replace(self, arguments=more, out=f"{folder}/{self.out}")

    def result(self, folder: Path) -> dict[str, bytes]:
        """The content of its files, by name; of those that there are."""
        return {name: (folder / name).read_bytes() for name in self.results if (folder / name).exists()}


_LOADING: Final = ("graphprune.sources.load:load_source", 0)
_MODEL: Final = (f"{HERE}:net", "--input", "2x8")

COMMANDS: Final[Mapping[str, Command]] = {
    "prune": Command(
        (
            "prune",
            *_MODEL,
            "--calibrate",
            f"{HERE}:batches",
            "--criterion",
            "taylor",
            "--target",
            "params=50%",
            "--plan",
            "plan.json",
        ),
        "slim.safetensors",
        False,
        ("slim.safetensors", "plan.json"),
        {
            "loading": _LOADING,
            "calibrating": ("graphprune.passes.calibration.collect:Runner._advance", 1),
            "selecting": ("graphprune.passes.selection.select:SelectPass.run", 0),
            "rewriting": ("graphprune.passes.rewrite.rewrite:RewritePass.run", 0),
            "verifying": ("graphprune.passes.verification.verify:VerifyPass.run", 0),
            "writing the model": ("graphprune.files:_sync", 0),
            "writing the plan": ("graphprune.files:_sync", 2),
        },
    ),
    "profile": Command(
        ("profile", *_MODEL, "--samples", "12"),
        "latency.json",
        True,
        ("latency.json",),
        {
            "loading": _LOADING,
            "measuring the first models": ("graphprune.passes.latency.profile:_measure", 0),
            "measuring more": ("graphprune.passes.latency.profile:_measure", 2),
            "writing": ("graphprune.files:_sync", 2),
        },
    ),
    "run": Command(
        ("run", "iterative", f"{HERE}:net", "--data", f"{HERE}:Samples", *_TRAINING, "--set", "rounds=2", "--plot", "none"),
        "run",
        True,
        tuple(f"run/{name}" for name in ("slim.safetensors", "plan.json", "result.json", "rounds.jsonl")),
        {
            "loading": _LOADING,
            "training": ("graphprune.training.trainer:_Run._step", 5),
            "evaluating": ("graphprune.training.trainer:Trainer._accuracy", 1),
            "cutting": ("graphprune.runs.bench:Bench.slim", 1),
            "writing a snapshot": ("graphprune.files:_sync", 4),
            "testing": ("graphprune.cli.running:_tested", 0),
        },
    ),
    "sweep": Command(
        ("sweep", *_MODEL, "--calibrate", f"{HERE}:batches", "--criterion", "taylor", "--points", "4"),
        "front.json",
        True,
        ("front.json",),
        {
            "loading": _LOADING,
            "calibrating": ("graphprune.passes.calibration.collect:Runner._advance", 1),
            "selecting the first point": ("graphprune.surveys.pareto:_point", 0),
            "selecting another": ("graphprune.surveys.pareto:_point", 2),
            "writing": ("graphprune.files:_sync", 2),
        },
    ),
}


def net() -> nn.Module:
    """A classifier of (n, 8) into 4 classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


class Samples(Dataset[Any]):
    """96 labelled samples of shape (8,), which are somewhat easy to tell apart."""

    targets: Final = [number % 4 for number in range(96)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = self.targets[index]
        noise = torch.randn(8, generator=torch.Generator().manual_seed(index))
        return noise + 2 * nn.functional.one_hot(torch.tensor(label), 8), label


def batches() -> list[tuple[Tensor, Tensor]]:
    """Three batches of 16 labelled samples."""
    samples = Samples()
    pairs = [samples[index] for index in range(48)]
    x, y = torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])
    return list(zip(x.split(16), y.split(16), strict=True))
