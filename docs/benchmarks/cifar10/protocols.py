"""What is run: methods and controls, at the same MACs and with the same training after the last cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from graphprune.training import Training, TrainingData


@dataclass(frozen=True)
class Row:
    """One run. title: as in the table. options: of the method. trained: it begins with the trained dense model."""

    model: str
    method: str
    title: str
    seed: int
    target: str
    options: Mapping[str, Any]
    trained: bool = True

    @property
    def key(self) -> str:
        """A name for files."""
        return f"{self.model}-{self.title.replace(' ', '_')}-{self.target.replace('=', '').replace('%', '')}-{self.seed}"


@dataclass(frozen=True)
class Protocol:
    """A training protocol.

    training: after cuts; its epochs are the schedule that methods go by. dense_training: of the dense model, where no checkpoint is
    given. validation: images set apart. images: training images of an epoch at most. calibration: images that criteria look at.
    targets: MACs that must remain. options: of each method, by title, besides the target.
    """

    name: str
    training: Training
    dense_training: Training | None
    validation: int
    calibration: int
    targets: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]]
    images: int | None = None
    from_scratch: bool = False

    @property
    def epochs(self) -> int:
        """Of the schedule."""
        return self.training.epochs

    @property
    def dense_epochs(self) -> int:
        """Of the dense model's training; 0 where it comes from a checkpoint."""
        return self.dense_training.epochs if self.dense_training is not None else 0

    def limited(self, data: TrainingData) -> TrainingData:
        """Data with so many training images at most."""
        if self.images is None or self.images >= len(data.train):
            return data
        index = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[: self.images].tolist()
        return replace(data, train=data.train.pick(index))

    def rows(self, model: str, seed: int) -> Iterator[Row]:
        """All runs for a model and a seed."""
        for target in self.targets:
            for title, (method, options) in METHOD_ROWS.items():
                scratch = method in ("laasp", "growing")
                if scratch and not self.from_scratch:
                    options = {**options, "trained": True}
                given = {"distil": False, **options, **self.options.get(title, {}), "target": target}
                if title == "class-aware":
                    continue  # it has no target; see the row below
                yield Row(model, method, title, seed, target, given, trained=not (scratch and self.from_scratch))
        yield Row(model, "class-aware", "class-aware", seed, "tolerance", {"distil": False, **self.options.get("class-aware", {})})


#: Title in the table, and the method with what makes it this row.
METHOD_ROWS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "random": ("iterative", {"criterion": "random"}),
    "uniform l2": ("iterative", {"criterion": "l2", "ranking": "local"}),
    "global l2": ("iterative", {"criterion": "l2"}),
    "global l2, distilled": ("iterative", {"criterion": "l2", "distil": True}),
    "global taylor": ("iterative", {"criterion": "taylor"}),
    "adaptive": ("adaptive", {"share": "macs", "rounds": 3}),
    "sp-lamp": ("sp-lamp", {"stages": 3, "round_to": 1}),
    "laasp": ("laasp", {}),
    "growing": ("growing", {}),
}

_FULL: Final = Training(epochs=200, lr=0.1, batch_size=128, weight_decay=5e-4, schedule="cosine")
_SHORT: Final = Training(epochs=4, lr=0.02, batch_size=128, weight_decay=5e-4, schedule="cosine")

PROTOCOLS: Final[Mapping[str, Protocol]] = {
    # 200 epochs for everybody: methods that begin with the trained model retrain for 200 epochs, at the learning rates of the
    # schedule; LAASP and growing have one training of 200 epochs, and LAASP the ones between its cuts.
    "full": Protocol(
        "full",
        _FULL,
        _FULL,
        validation=5000,
        calibration=2048,
        targets=("macs=50%", "macs=39%", "macs=25%"),
        options={
            "adaptive": {"rewind": 0.0},
            "sp-lamp": {"stage_epochs": 3},
            "class-aware": {"tolerance": 0.01, "tune_epochs": 5, "final_epochs": 60},
        },
        from_scratch=True,
    ),
    # For a CPU: a trained checkpoint, 4 epochs of 10,000 images after the last cut. It shows that the methods work and how far they
    # come with next to no training, and no more.
    "short": Protocol(
        "short",
        _SHORT,
        None,
        validation=5000,
        calibration=512,
        targets=("macs=50%",),
        options={
            "adaptive": {"rewind": 0.0, "rounds": 2},
            "sp-lamp": {"stages": 2, "stage_epochs": 1},
            "laasp": {"delta": 0.125, "delta_epochs": 1, "step": 4.0},
            "growing": {"strength": 2e-3, "start": 0.0, "latest": 0.5},
            "class-aware": {"tolerance": 0.02, "regularise_epochs": 2, "tune_epochs": 1, "max_rounds": 6},
        },
        images=10_000,
    ),
}
