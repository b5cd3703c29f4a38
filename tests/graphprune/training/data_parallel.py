"""Run by torchrun in two processes: what each one has after a training goes to the folder that is named, one file for each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.distributed.tensor import DTensor

from graphprune.errors import DivergedError, UsageError
from graphprune.training import sharding
from graphprune.training.data import TrainingData
from graphprune.training.penalties import L1, penalised
from graphprune.training.preparation import Preparation
from graphprune.training.samples import ArraySamples
from graphprune.training.settings import Training
from graphprune.training.trainer import Trainer


class Net(nn.Module):
    """A small classifier; norm: with batch normalisation."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 2, 5, 5) and (n, 3)."""
        result: Tensor = self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))
        return result


def samples(count: int, seed: int, preparation: Preparation) -> ArraySamples:
    """Random samples, the same in each process."""
    generator = torch.Generator().manual_seed(seed)
    return ArraySamples(
        torch.randn(count, 2, 5, 5, generator=generator), torch.randint(3, (count,), generator=generator), preparation
    )


def run(norm: bool, **options: object) -> tuple[nn.Module, float]:
    """A model after two epochs with a penalty, and its accuracy on 37 samples."""
    preparation = Preparation(flip=norm, pad=int(norm))
    data = TrainingData(samples(50, 0, preparation), samples(37, 1, preparation))
    trainer = Trainer(data, Training(epochs=3, batch_size=16, ema=0.5 if norm else 0.0).changed(**options), device="cpu")
    torch.manual_seed(3)
    model = Net(norm).double()
    with penalised(model, L1(0.01)):
        state = trainer.train(model, range(1, 2), None)
        trainer.train(model, range(2, 3), state)
    return model, trainer.evaluate(model)


def run_sharded(graph: bool, **options: object) -> tuple[nn.Module, dict[str, Any], float]:
    """A model after two epochs without a penalty, as a graph or as it is; the state of its training, and its accuracy."""
    data = TrainingData(samples(50, 0, Preparation()), samples(37, 1, Preparation()))
    settings = Training(epochs=3, batch_size=16, clip=0.5, accumulate=2, optimiser="adamw", lr=0.01).changed(**options)
    trainer = Trainer(data, settings, device="cpu")
    torch.manual_seed(3)
    model: nn.Module = Net(norm=False).double()
    model = fx.symbolic_trace(model) if graph else model
    state = trainer.train(model, range(1, 2), None)
    state = trainer.train(model, range(2, 3), state)
    return model, state, trainer.evaluate(model)


def held() -> float:
    """The share of a sharded model's parameters that this process holds."""
    model = sharding.shard(Net(norm=False), torch.device("cpu"))
    whole = sum(parameter.numel() for parameter in model.parameters())
    own = [parameter.to_local() for parameter in model.parameters() if isinstance(parameter, DTensor)]
    return sum(tensor.numel() for tensor in own) / whole


def refused(action: Callable[[], object]) -> str:
    """What a UsageError says, or nothing."""
    try:
        action()
    except UsageError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    """Write what this process has."""
    plain, accuracy = run(norm=False, accumulate=2)
    normed, second = run(norm=True)
    try:
        run(norm=False, lr=1e300)
        diverged = ""
    except DivergedError as error:
        diverged = str(error)
    sharded = {name: run_sharded(graph, shard=True) for name, graph in {"graph": True, "module": False}.items()}
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    with torch.no_grad():
        x = samples(37, 1, Preparation()).x.double()
        own = [float((model.eval()(x).argmax(1) == samples(37, 1, Preparation()).y).sum()) / 37 for model in (plain, normed)]
    found = {
        "processes": count,
        "plain": plain.state_dict(),
        "normed": normed.state_dict(),
        "accuracy": [accuracy, second],
        "own": own,
        "diverged": diverged,
        "refused": refused(lambda: run(norm=False, batch_size=15)),
        "sharded": {name: [model.state_dict(), state, judged] for name, (model, state, judged) in sharded.items()},
        "held": held(),
        "unsharded": refused(lambda: run(norm=False, shard=True)),
        "averaged": refused(lambda: run_sharded(True, shard=True, ema=0.5)),
    }
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
