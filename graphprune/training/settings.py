"""The settings of a training, and its learning rate as a function of the epoch alone."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from graphprune.errors import UsageError, first_problem

_Share = Annotated[float, Field(ge=0, lt=1)]
_AtLeast0 = Annotated[float, Field(ge=0)]
_Over0 = Annotated[float, Field(gt=0)]
_Count = Annotated[int, Field(ge=1)]

_FIRST_LR = 0.01  # of the warm-up, as a share of the learning rate
_CYCLE_RISE, _CYCLE_FIRST, _CYCLE_LAST = 0.3, 1 / 25, 1 / 250_000  # torch's OneCycleLR: share of the epochs, shares of lr


class Training(BaseModel):
    """How a model is trained; all that the built-in loop needs to know besides the data. Its fields say what they are.

    >>> settings = Training(epochs=100, lr=0.1, schedule="step", milestones=(0.5, 75))
    >>> [round(settings.learning_rate(epoch), 6) for epoch in (0, 49.9, 50, 80)]
    [0.1, 0.1, 0.01, 0.001]
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: _Count = Field(default=20, description="Length of the whole schedule, also where only a part of it is run.")
    batch_size: _Count = Field(
        default=128,
        description="Samples of one step, over all processes and accumulated parts together; what is left over in an epoch waits "
        "for another order of the samples.",
    )
    optimiser: Literal["sgd", "adamw"] = Field(default="sgd", description="sgd goes by momentum and nesterov, adamw by betas.")
    lr: _Over0 = Field(default=0.1, description="Learning rate, the largest of the schedule.")
    momentum: _Share = Field(default=0.9, description="Of sgd.")
    nesterov: bool = Field(default=True, description="Of sgd.")
    betas: tuple[_Share, _Share] = Field(default=(0.9, 0.999), description="Of adamw.")
    weight_decay: _AtLeast0 = Field(default=5e-4, description="Strength of the decay of weights.")
    decay_norms: bool = Field(default=True, description="Decay vectors, too, such as the scales of normalisations and biases.")
    schedule: Literal["step", "cosine", "onecycle", "constant"] = Field(
        default="cosine", description="step: times gamma at each milestone; cosine: to 0; onecycle: up and down."
    )
    milestones: tuple[_Over0, ...] = Field(default=(), description="Of step: epochs, or below 1 shares of the epochs.")
    gamma: _Over0 = Field(default=0.1, description="Of step.")
    warmup: _AtLeast0 = Field(default=0.0, description="Epochs in which the learning rate rises to its place in the schedule.")
    label_smoothing: _Share = Field(default=0.0, description="Share of each target that is spread over all classes.")
    clip: _AtLeast0 = Field(default=0.0, description="Largest norm of all gradients together; 0: any.")
    ema: _Share = Field(
        default=0.0, description="Decay of averaged weights, which the model takes at the end of the schedule; 0: none."
    )
    precision: Literal["no", "bf16", "fp16"] = Field(
        default="no", description="Of matrix products and convolutions; no: that of the model."
    )
    accumulate: _Count = Field(default=1, description="Parts that a batch is computed in.")
    channels_last: bool = Field(default=False, description="Keep images in the channels_last memory format.")
    shard: bool = Field(
        default=False,
        description="Divide parameters, gradients and the optimiser's state among the processes (FSDP2), for a model whose "
        "training does not fit one device.",
    )
    compile: str = Field(default="no", description="A backend of torch.compile, such as inductor; no: none.")
    distil_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="Share of a teacher in the loss, where there is one."
    )
    temperature: _Over0 = Field(default=4.0, description="Of the comparison with a teacher.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        wrong = {
            "nesterov needs momentum over 0": self.optimiser == "sgd" and self.nesterov and not self.momentum,
            "schedule 'step' needs milestones, and no other schedule takes them": (self.schedule == "step")
            != bool(self.milestones),
            "milestones must ascend": list(self.steps) != sorted(set(self.steps)),
            f"milestones and warmup must come before epoch {self.epochs}": max(*self.steps, self.warmup, 0) >= self.epochs,
            "schedule 'onecycle' has a warm-up of its own": self.schedule == "onecycle" and self.warmup > 0,
            f"batches of {self.batch_size} cannot be computed in {self.accumulate} equal parts": self.batch_size % self.accumulate
            > 0,
        }
        for message, holds in wrong.items():
            if holds:
                raise ValueError(message)
        return self

    @property
    def steps(self) -> tuple[float, ...]:
        """The milestones as epochs."""
        return tuple(at * self.epochs if at < 1 else at for at in self.milestones)

    def changed(self, **options: object) -> Training:
        """These settings with some others. Raises UsageError naming an option that is unknown or out of range."""
        try:
            return Training.model_validate(self.model_dump() | options)
        except ValidationError as error:
            place, problem = first_problem(error, "these options")
            raise UsageError(f"The training cannot have {place}: {problem}.") from error

    def learning_rate(self, epoch: float) -> float:
        """The learning rate at a point of the schedule, 0 to ``epochs``: epoch 2.5 is in the middle of the third."""
        rise = min(1.0, _FIRST_LR + (1 - _FIRST_LR) * epoch / self.warmup) if self.warmup else 1.0
        return self.lr * rise * _SCHEDULES[self.schedule](self, epoch)


def _step(settings: Training, epoch: float) -> float:
    return settings.gamma ** sum(epoch >= at for at in settings.steps)


def _cosine(settings: Training, epoch: float) -> float:
    return _between(1, 0, (epoch - settings.warmup) / (settings.epochs - settings.warmup))


def _onecycle(settings: Training, epoch: float) -> float:
    peak = _CYCLE_RISE * settings.epochs
    if epoch < peak:
        return _between(_CYCLE_FIRST, 1, epoch / peak)
    return _between(1, _CYCLE_LAST, (epoch - peak) / (settings.epochs - peak))


def _constant(settings: Training, epoch: float) -> float:
    return 1.0


_SCHEDULES = {"step": _step, "cosine": _cosine, "onecycle": _onecycle, "constant": _constant}


def _between(first: float, last: float, way: float) -> float:
    """From first to last along half a cosine; way from 0 to 1."""
    return last + (first - last) * (1 + math.cos(math.pi * min(max(way, 0.0), 1.0))) / 2
