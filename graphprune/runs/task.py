"""What a run is about, besides the method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from graphprune.calibration import Calibration
from graphprune.latency.clock import Clock
from graphprune.runs.history import Silent, Watch
from graphprune.runs.loop import Loop


@dataclass(frozen=True)
class Task:
    """The model, the loop and the data of a run.

    model, inputs: the original, never changed, and example inputs. loop: trains and evaluates. data: for criteria that look at
    activations or gradients, and for recalibration. exclude, policy, scopes: as for :func:`graphprune.prune`. folder: where the run
    is recorded; None keeps it in memory. verify: prove every cut. masks: train at full shape, with what is removed held at zero,
    instead of training the smaller model. recalibrate: estimate batch-norm statistics anew after each cut, where there are data.
    keep_class: the models of all stages are of the original's class. clock: what latencies are measured with; that of the device
    by default.
    """

    model: nn.Module
    inputs: Any
    loop: Loop
    data: Calibration | None = None
    exclude: tuple[str, ...] = ()
    policy: Mapping[str, str] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()
    folder: Path | None = None
    seed: int = 0
    verify: bool = True
    masks: bool = False
    recalibrate: bool = True
    keep_class: bool = False
    watch: Watch = field(default_factory=Silent)
    clock: Clock | None = None
