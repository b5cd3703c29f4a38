"""Graphs that run on several batches at once, one node at a time, so that what comes later sees what was changed before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from graphprune.calibration import MODEL_ERRORS, Batch, Calibration, no_data
from graphprune.channels.tape import describe
from graphprune.ir.program import Inputs, Program, placeholder_values
from graphprune.ir.twins import twin
from graphprune.passes.calibration.interpreters import Stepwise
from graphprune.passes.calibration.loading import device_of

Watch = Callable[[int, Any, tuple[Any, ...], Any], None]


class Lanes:
    """A graph and its live values on every batch; a value is freed once no later node reads it.

    The graph runs in eval mode without gradients. module: what runs; its tensors are those of the one that is given, so that a
    change of one shows from the next node on. Memory: the live values of all batches.
    """

    def __init__(self, module: fx.GraphModule, batches: Sequence[Batch], data: Calibration) -> None:
        self.module = cast(fx.GraphModule, twin(module, lambda tensor: tensor))
        for child in self.module.modules():
            child.training = False
        self.lanes = [Stepwise(self.module, copies(placeholder_values(module.graph, batch.inputs))) for batch in batches]
        self.batches = batches
        self._data = data

    def compute(self, node: fx.Node, watch: Watch | None = None) -> Iterator[Any]:
        """Results of a node, batch by batch; not kept. watch: told (batch, operator, arguments, result) of each ATen operator."""
        for number, lane in enumerate(self.lanes):
            try:
                if watch is None:
                    yield lane.run_node(node)
                else:
                    with Watching(number, watch):
                        result = lane.run_node(node)
                    yield result
            except MODEL_ERRORS as error:
                raise self._data.run_error(self.batches[number], error, describe(node)) from error

    def advance(self, node: fx.Node, watch: Watch | None = None) -> None:
        """Compute and keep a node; placeholders in their order."""
        for lane, result in zip(self.lanes, self.compute(node, watch), strict=True):
            lane.env[node] = result
            lane.forget(node)

    def values(self, node: fx.Node) -> list[Any]:
        """What a node made, for each batch."""
        return [lane.env[node] for lane in self.lanes]


class Watching(TorchDispatchMode):
    """Within this mode ``watch`` is told of each ATen operator. number: of the batch."""

    def __init__(self, number: int, watch: Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._number, self._watch = number, watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._watch(self._number, func, args, result)
        return result


def calibration_batches(program: Program, what: str) -> list[Batch]:
    """The calibration data of a program, on its device. Raises UsageError where there are none."""
    if program.calibration is None:
        raise no_data(what)
    return [batch.to(device_of(program), program.inputs) for batch in program.calibration]


def map_inputs(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Inputs with a function applied to every tensor."""

    def mapped(leaf: Any) -> Any:
        return function(leaf) if isinstance(leaf, Tensor) else leaf

    return inputs.map(mapped)


def storage(tensor: Tensor) -> int:
    """What identifies the memory of a tensor and of its views."""
    return int(tensor.untyped_storage()._cdata)


def copies(values: list[Any]) -> list[Any]:
    """Values of placeholders that a model may write into."""
    return [value.clone() if isinstance(value, Tensor) else value for value in values]
