"""The check of a file that was written: it computes what the model computes, at several batches, and how long that takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from timeit import Timer
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from graphprune.arithmetic import full_precision
from graphprune.channels.tape import plain_containers
from graphprune.errors import UsageError, VerificationError, first_line
from graphprune.ir.program import Inputs
from graphprune.ir.twins import undisturbed
from graphprune.latency.batch import batch_of, with_batch
from graphprune.verification import TOLERANCE

_SLACK: Final = 10  # other runtimes add up in another order
TURNS: Final = 5
"""How often the time of a call is taken, of which the median counts."""
TURN: Final = 0.02
"""Seconds that each of these turns lasts at least."""


@dataclass(frozen=True)
class Job:
    """What is to be written.

    module: in eval mode. inputs: example inputs. dynamic: the leading size may be any. plan: JSON text to go with it. axes: others
    that may be, by the input's name.
    """

    module: fx.GraphModule
    inputs: Inputs
    path: Path
    dynamic: bool
    plan: str | None
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def by_name(self) -> dict[str, Any]:
        """The example inputs by the names that the graph has for them."""
        names = [str(node.target) for node in self.module.graph.find_nodes(op="placeholder")]
        return dict(zip(names, self.inputs.args, strict=False)) | dict(self.inputs.kwargs)


@dataclass(frozen=True)
class Exported:
    """What is known of a file that was written.

    batches: leading sizes that it was run at; none where it was not run, or at the sizes of the example alone. error: the largest
    error relative to the largest output. ms, eager_ms: milliseconds of a call at the example inputs, of what was written and of the
    model under PyTorch. note: a sentence to add. larger: inputs that it was run at, too, of twice the size on the axes that may
    have any.
    """

    batches: tuple[int, ...] = ()
    error: float | None = None
    ms: float | None = None
    eager_ms: float | None = None
    note: str = ""
    larger: str = ""

    def __str__(self) -> str:
        parts = [self.note] if self.note else []
        if self.error is not None:
            at = f" at batches {', '.join(map(str, self.batches))}" if self.batches else ""
            at += f" and at {self.larger}" if self.larger else ""
            parts.append(f"It was run{at}: largest relative error {self.error:.1e}")
        if self.ms is not None and self.eager_ms is not None:
            parts.append(f"A call takes {self.ms:.3g} ms, and {self.eager_ms:.3g} ms in PyTorch")
        return ". ".join(parts)


@dataclass(frozen=True)
class Ran:
    """Outputs of what was written for each case that it was given, and the milliseconds of a call of the first."""

    outputs: Sequence[Sequence[Tensor]]
    ms: float


def check(job: Job, run: Callable[[Sequence[Inputs]], Ran], *, keeps_state: bool = True) -> Exported:
    """Run what was written at several batches and compare it with the model.

    keeps_state: what was written remembers from call to call what the model does, in its buffers. Raises VerificationError where it
    differs, and UsageError where the model does not take larger sizes.
    """
    cases = _cases(job)
    larger = cases[-1].describe() if any(job.axes.values()) else ""
    if larger:
        _check_takes(job.module, cases[-1])
    ran = run(cases)
    worst, tolerance = 0.0, TOLERANCE[torch.float64]
    for given, found in zip(cases, ran.outputs, strict=True):
        with full_precision(), nullcontext() if keeps_state else undisturbed(job.module):
            wanted = tensors_of(job.module(*given.args, **given.kwargs))
        if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
            raise VerificationError(
                f"{job.path} is not written: its outputs have other shapes than the model's at {given.describe()}."
            )
        for reference, tensor in zip(wanted, found, strict=True):
            tolerance = max(tolerance, _SLACK * TOLERANCE.get(reference.dtype, 0.0))
            worst = max(worst, _error(reference, tensor))
    if not worst <= tolerance:
        raise VerificationError(
            f"{job.path} is not written: its outputs are off by {worst:.1e} (relative; tolerance {tolerance:.0e})."
        )
    batches = tuple(sorted({batch_of(given) for given in cases})) if job.dynamic else ()
    first = cases[0]
    with undisturbed(job.module):
        eager = milliseconds(lambda: job.module(*first.args, **first.kwargs))
    return Exported(batches, worst, ran.ms, eager, larger=larger)


def _check_takes(module: fx.GraphModule, given: Inputs) -> None:
    try:
        with undisturbed(module):
            module(*given.args, **given.kwargs)
    except Exception as error:  # whatever the model says of sizes
        raise UsageError(f"The model does not take {given.describe()}: {first_line(error)}. Leave out axes (--dynamic).") from error


def run_here(call: Callable[[Inputs], Any]) -> Callable[[Sequence[Inputs]], Ran]:
    """Run what was written in this process, where it was loaded as ``call``."""

    def run(cases: Sequence[Inputs]) -> Ran:
        with full_precision():
            outputs = [tensors_of(_ran(call, given)) for given in cases]
        return Ran(outputs, milliseconds(lambda: call(cases[0])))

    return run


def _ran(call: Callable[[Inputs], Any], given: Inputs) -> Any:
    try:
        return call(given)
    except Exception as error:  # runtimes raise many kinds, and programs of torch.export check their sizes
        raise VerificationError(
            f"It is not written: it does not run at {given.describe()} ({first_line(error)}). "
            "An example of other sizes may help: what is 1 within the model for it stays 1."
        ) from error


def milliseconds(call: Callable[[], Any]) -> float:
    """Milliseconds of a call: the median of a few turns."""

    def whole() -> None:
        call()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    timer = Timer(whole)
    count = max(1, round(TURN / max(timer.timeit(1), 1e-9)))
    return 1000 * median(timer.repeat(TURNS, min(count, 1000))) / min(count, 1000)


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    return [leaf for leaf in tree_leaves(plain_containers(result)) if isinstance(leaf, Tensor)]


def _cases(job: Job) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return torch.randn(leaf.shape, generator=generator, dtype=torch.float32).to(leaf)

    if not job.dynamic:
        return [job.inputs.map(drawn)]
    batch = batch_of(job.inputs)
    cases = [with_batch(job.inputs, size).map(drawn) for size in (batch, batch + 1, 1)]
    return [*cases, _doubled(job).map(drawn)] if any(job.axes.values()) else cases


def _doubled(job: Job) -> Inputs:
    """The example inputs with twice the size of every axis that may have any: what was equal or a multiple, is."""
    values = dict(job.by_name())
    for name, axes in job.axes.items():
        for axis in axes:
            values[name] = torch.cat([values[name]] * 2, axis)
    args = tuple(values.values())[: len(job.inputs.args)]
    return Inputs(args, {name: values[name] for name in job.inputs.kwargs})


def _error(reference: Tensor, tensor: Tensor) -> float:
    if not reference.numel():
        return 0.0
    wanted, found = reference.double().cpu(), tensor.double().cpu()
    return float((wanted - found).abs().max()) / max(float(wanted.abs().max()), 1e-12)
