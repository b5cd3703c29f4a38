"""Whether a captured graph computes what its model does. The proof of a rewrite starts at the graph; this is the step before it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.arithmetic import full_precision, real_parts
from graphprune.errors import VerificationError, typed_line
from graphprune.ir.program import Inputs, Program, placeholder_values
from graphprune.ir.twins import named_tensors, undisturbed
from graphprune.passes.verification.steps import tensors_of
from graphprune.passes.verification.verify import relative_error
from graphprune.randomness import own_randomness, seed_generators
from graphprune.verification import TOLERANCE


def check_captured(model: nn.Module, inputs: Inputs, program: Program) -> None:
    """Run the model and its graph on the example inputs, in eval mode, and compare all tensors that they return.

    Nothing is compared where only submodules were captured, where values are elsewhere, where the model does not run, and where two
    runs of it differ. It is as before afterwards, its buffers included. Raises VerificationError where the graph computes something
    else.
    """
    tensors = named_tensors(model).values()
    if (
        program.scopes
        or program.weights is not None
        or any(leaf.is_meta for leaf in (*tensors, *tensors_of((inputs.args, inputs.kwargs))))
    ):
        return
    run = partial(_returned, lambda given: model(*given.args, **given.kwargs), inputs)
    with undisturbed(model, program.module), torch.no_grad(), full_precision(), own_randomness():
        try:
            expected = run()
        except Exception:  # whatever the model says of these values; the proof of the rewrite draws others, and tells
            return
        problem = _problem(expected, program)
        if problem and not _difference(expected, run()):
            raise VerificationError(
                f"The graph that was captured does not compute what {type(model).__name__} does on the example inputs: {problem}. "
                "Its code may take another path when it is traced; capture the parts that do not (scopes=[...], --scope)."
            )


def check_runs(model: nn.Module, inputs: Inputs) -> None:
    """Run a model whose scopes are slim on the example inputs, in eval mode: the code around may use what a graph does not have.

    Raises VerificationError where it fails. It ran on them before, when its scopes were captured.
    """
    with undisturbed(model), torch.no_grad(), own_randomness():
        try:
            _returned(lambda given: model(*given.args, **given.kwargs), inputs)
        except Exception as error:
            raise VerificationError(
                f"{type(model).__name__} does not run around its slim scopes: {typed_line(error)}. Name scopes whose methods and "
                "attributes the code around does not use (scopes=[...], --scope)."
            ) from error


def _problem(expected: list[Tensor], program: Program) -> str:
    """How what a graph returns on its example inputs is not what is expected, in words; an empty text where it is."""
    try:
        found = _returned(lambda given: program.module(*placeholder_values(program.module.graph, given)), program.inputs)
    except Exception as error:
        return f"it fails with {typed_line(error)}"
    return _difference(expected, found)


def _returned(call: Callable[[Inputs], Any], inputs: Inputs) -> list[Tensor]:
    """The tensors that a call returns for copies of the inputs, with draws that are the same each time."""
    seed_generators(0)
    return tensors_of(call(inputs.map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)))


def _difference(expected: list[Tensor], found: list[Tensor]) -> str:
    """The first difference, in words; an empty text where there is none."""
    if len(expected) != len(found):
        return f"it returns {len(found)} tensors instead of {len(expected)}"
    for index, (one, other) in enumerate(zip(expected, found, strict=True)):
        if one.shape != other.shape:
            return f"tensor {index} that it returns is {list(other.shape)} instead of {list(one.shape)}"
        error = _error(one, other)
        if not error <= TOLERANCE.get(one.dtype.to_real(), 0.0):
            return f"tensor {index} that it returns is off by {error:.1e}, relative to the largest value"
    return ""


def _error(one: Tensor, other: Tensor) -> float:
    """The relative error; where the first is no number, the other must not be one, either."""
    one, other = real_parts(one), real_parts(other)
    if one.is_floating_point() and one.dtype == other.dtype:
        missing = one.isnan()
        return relative_error(one.masked_fill(missing, 0.0), other.masked_fill(missing & other.isnan(), 0.0))
    return relative_error(one, other)
