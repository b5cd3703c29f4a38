"""Calibration data of scopes: the whole model runs on each batch, and what its scopes are called with is their batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from graphprune.calibration import Batch, Calibration, as_batch, run_error
from graphprune.errors import UsageError
from graphprune.ir.program import Inputs, Program
from graphprune.tracing.inputs import with_names
from graphprune.tracing.scopes import record_calls


class ScopeBatches:
    """Batches of a program of scopes, made anew at each reading from those of the model that they are in.

    model: runs on each batch in eval mode; nothing of it changes. example: how it is called: where it takes one list of images,
    so it is given those of a batch. samples: how many to use at most. Each scope gets what its first call in the model got.
    """

    def __init__(self, batches: Iterable[Any], model: nn.Module, program: Program, example: Inputs, samples: int | None) -> None:
        self._batches, self._model, self._program, self._example, self._samples = batches, model, program, example, samples

    def __iter__(self) -> Iterator[Batch]:
        left = self._samples
        for item in self._batches:
            if left == 0:
                return
            inputs, count = _as_called(as_batch(item, self._example.kwargs), self._example, left)
            left = None if left is None else left - count
            if count:
                yield self._of_scopes(inputs)

    def _of_scopes(self, inputs: Inputs) -> Batch:
        """What the scopes are called with when the model is called so, by the placeholders of the joint graph."""
        scopes = self._program.scopes
        try:
            calls = record_calls(self._model, inputs, paths={scope.path for scope in scopes})
        except Exception as error:
            raise run_error("the calibration data", inputs, error) from error
        given: dict[str, Any] = {}
        for scope in scopes:
            if scope.path not in calls:
                raise UsageError(
                    f"Scope {scope.path!r} is not called on a calibration batch ({inputs.describe()}). Give batches that reach "
                    "all scopes, or name others with scopes=."
                )
            call = calls[scope.path].inputs
            values = {**dict(with_names(self._model.get_submodule(scope.path), call.args)), **call.kwargs}
            given |= {placeholder: values.get(name) for name, placeholder in scope.arguments if placeholder}
        order = [str(node.target) for node in self._program.module.graph.nodes if node.op == "placeholder"]
        return Batch(Inputs(tuple(given[name] for name in order)))


def scope_calibration(data: Calibration, model: nn.Module, program: Program, example: Inputs) -> Calibration:
    """Data for the model as data for a program of its scopes."""
    return data.replaced(lambda batches, samples: ScopeBatches(batches, model, program, example, samples))


def _as_called(batch: Batch, example: Inputs, most: int | None) -> tuple[Inputs, int]:
    """A batch's inputs as the example calls the model, and how many samples they are; at most so many."""
    given, called = batch.inputs, (*example.args, *example.kwargs.values())
    values = (*given.args, *given.kwargs.values())
    if len(called) != 1 or not isinstance(called[0], (list, tuple)) or (given.kwargs and len(values) > 1):
        part = batch if most is None else batch.pick(slice(most))
        return part.inputs, part.size
    images = values if len(values) > 1 or (isinstance(values[0], Tensor) and values[0].dim() == 3) else values[0]
    chosen = list(images)[:most]
    return Inputs((), dict.fromkeys(given.kwargs, chosen)) if given.kwargs else Inputs((chosen,)), len(chosen)
