"""The check of a file that was written: it computes what the model computes, at several batches, and how long that takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from timeit import Timer
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from graphprune.arithmetic import full_precision
from graphprune.errors import VerificationError
from graphprune.ir.program import Inputs
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

    module: in eval mode. inputs: example inputs. dynamic: the leading size may be any. plan: JSON text to go with it.
    """

    module: fx.GraphModule
    inputs: Inputs
    path: Path
    dynamic: bool
    plan: str | None


@dataclass(frozen=True)
class Exported:
    """What is known of a file that was written.

    batches: leading sizes that it was run at; none where it was not run, or at the sizes of the example alone. error: the largest
    error relative to the largest output. ms, eager_ms: milliseconds of a call at the example inputs, of what was written and of the
    model under PyTorch. note: a sentence to add.
    """

    batches: tuple[int, ...] = ()
    error: float | None = None
    ms: float | None = None
    eager_ms: float | None = None
    note: str = ""

    def __str__(self) -> str:
        parts = [self.note] if self.note else []
        if self.error is not None:
            at = f" at batches {', '.join(map(str, self.batches))}" if self.batches else ""
            parts.append(f"It was run{at}: largest relative error {self.error:.1e}")
        if self.ms is not None and self.eager_ms is not None:
            parts.append(f"A call takes {self.ms:.3g} ms, and {self.eager_ms:.3g} ms in PyTorch")
        return ". ".join(parts)


@dataclass(frozen=True)
class Ran:
    """Outputs of what was written for each case that it was given, and the milliseconds of a call of the first."""

    outputs: Sequence[Sequence[Tensor]]
    ms: float


def check(job: Job, run: Callable[[Sequence[Inputs]], Ran]) -> Exported:
    """Run what was written at several batches and compare it with the model. Raises VerificationError where it differs."""
    cases = _cases(job)
    ran = run(cases)
    worst, tolerance = 0.0, TOLERANCE[torch.float64]
    for given, found in zip(cases, ran.outputs, strict=True):
        with full_precision():
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
    batches = tuple(sorted(batch_of(given) for given in cases)) if job.dynamic else ()
    first = cases[0]
    return Exported(batches, worst, ran.ms, milliseconds(lambda: job.module(*first.args, **first.kwargs)))


def run_here(call: Callable[[Inputs], Any]) -> Callable[[Sequence[Inputs]], Ran]:
    """Run what was written in this process, where it was loaded as ``call``."""

    def run(cases: Sequence[Inputs]) -> Ran:
        with full_precision():
            outputs = [tensors_of(call(given)) for given in cases]
        return Ran(outputs, milliseconds(lambda: call(cases[0])))

    return run


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
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _cases(job: Job) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return torch.randn(leaf.shape, generator=generator, dtype=torch.float32).to(leaf)

    if not job.dynamic:
        return [job.inputs.map(drawn)]
    batch = batch_of(job.inputs)
    return [with_batch(job.inputs, size).map(drawn) for size in (batch, batch + 1, 1)]


def _error(reference: Tensor, tensor: Tensor) -> float:
    if not reference.numel():
        return 0.0
    wanted, found = reference.double().cpu(), tensor.double().cpu()
    return float((wanted - found).abs().max()) / max(float(wanted.abs().max()), 1e-12)
