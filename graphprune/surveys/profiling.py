"""Profiling a model: its latency table, for targets on latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from graphprune.channels.groups import Groups
from graphprune.claims import claimed
from graphprune.files import check_writable
from graphprune.ir.program import Program
from graphprune.latency.clock import Clock, DeviceClock
from graphprune.latency.environment import Environment, environment_of
from graphprune.latency.table import LatencyTable, Settings
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.latency.profile import profile_latency
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.tracing import capture

#: Slim models that are measured in mode ``layers``, by whether each is compiled.
SAMPLES: Mapping[bool, int] = {False: 24, True: 10}


def profile(
    model: nn.Module,
    example_inputs: Any,
    *,
    device: str = "cpu",
    compile: bool = False,
    mode: str = "layers",
    samples: int | None = None,
    step: int = 0,
    exclude: Sequence[str] = (),
    policy: Mapping[str, str] | None = None,
    scopes: Sequence[str] = (),
    source: str = "",
    path: str | Path | None = None,
    clock: Clock | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatencyTable:
    """Measure how long a model takes at different widths of its groups, on this machine as busy as it is.

    model, example_inputs, exclude, policy, scopes: as for :func:`graphprune.prune`; the inputs have the batch that counts.
    device, compile: where (``cpu`` or ``cuda``) and how it runs; compiled, whole models are timed so and layers eagerly. mode:
    ``layers`` varies all groups at once and times each layer; ``model`` times whole models with one group narrowed at a time, as
    the SP-LAMP paper does. samples: slim models of mode ``layers``. step: the smallest interval of widths that mode ``model``
    divides, 0 for a thirty-second of each group. path: a file for the table, saved while it grows; a run that was interrupted
    goes on from it. progress: called with the number of models done, and of all.

    Raises UsageError for a model without prunable groups or a file that another process writes, LatencyError where the file is of
    something else, DeviceError where the device fails.
    """
    environment = environment_of(model, device, compile=compile)
    count = SAMPLES[compile] if samples is None else samples
    settings = Settings.model_validate({"mode": mode, "samples": count, "step": step})
    program = capture(model, example_inputs, scopes=scopes, source=source)
    program = program.under(exclude, policy)
    groups = AnalysisManager().get(program, ChannelGroups)
    return profile_program(program, groups, environment, settings, path=path, clock=clock, progress=progress)


def profile_program(
    program: Program,
    groups: Groups,
    environment: Environment,
    settings: Settings | None = None,
    *,
    path: str | Path | None = None,
    clock: Clock | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatencyTable:
    """The same for a model that was captured and analysed."""
    found, timer = settings or Settings(samples=SAMPLES[environment.compile == "compile"]), clock or DeviceClock(environment)
    if path is None:
        return profile_latency(program, groups, environment, timer, found, progress=progress)
    target = Path(path)
    check_writable(target)
    with claimed(target):
        known = LatencyTable.load(target) if target.exists() else None
        return profile_latency(
            program, groups, environment, timer, found, known=known, save=lambda table: table.save(target), progress=progress
        )
