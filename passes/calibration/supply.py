"""The data that a program is calibrated on, from what users give."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from torch import nn

from graphprune.calibration import Calibration
from graphprune.ir.program import Program
from graphprune.ir.twins import unwrapped
from graphprune.passes.calibration.synthesis import synthesise
from graphprune.sources import load_calibration
from graphprune.tracing import normalise_inputs
from graphprune.tracing.scope_data import scope_calibration

#: What stands for data that are to be made.
SYNTHETIC: Final = "synthetic"


def calibrated(
    program: Program,
    data: Calibration | Iterable[Any] | str | None,
    *,
    seed: int = 0,
    whole: tuple[nn.Module, Any] | None = None,
) -> Program:
    """A program with calibration data; see ``data`` of :func:`graphprune.prune`.

    whole: for a program of scopes, the model that they are in and the example inputs of its capture, as the data are for the model.
    """
    if data is None:
        return program.with_(calibration=None)
    if isinstance(data, str) and data == SYNTHETIC:
        return program.with_(calibration=synthesise(program, seed=seed))
    example = normalise_inputs(whole[1]) if whole else program.inputs
    found = load_calibration(data, like=example) if isinstance(data, str) else data
    found = (found if isinstance(found, Calibration) else Calibration(found)).called_as(example)
    if program.scopes and whole is not None:
        found = scope_calibration(found, unwrapped(whole[0]), program, example)
    return program.with_(calibration=found)
