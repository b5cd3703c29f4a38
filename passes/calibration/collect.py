"""Run calibration data through a program once, and let all statistics that are asked for see the activations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, fx, nn

from graphprune.calibration import Batch, Calibration, no_data
from graphprune.errors import UsageError, first_line
from graphprune.filters import Filter
from graphprune.groups import Groups
from graphprune.labels import Value
from graphprune.passes.calibration.interpreters import Keeping, Watch, Watching
from graphprune.passes.calibration.layout import Layout
from graphprune.passes.calibration.loading import device_of, loaded, parts_of
from graphprune.program import Program, placeholder_values
from graphprune.statistic import Observer, Statistic, Totals, gathered
from graphprune.tape import tape_of
from graphprune.twins import named_tensors, twin

_Lane: TypeAlias = tuple[Batch, Watching]


def collect(
    program: Program, groups: Groups, filters: Sequence[Filter], data: Calibration | None, statistics: Iterable[Statistic]
) -> dict[Statistic, Totals]:
    """Measure statistics on calibration data, in as few runs as possible: one, and one for each statistic of classes.

    The program runs in eval mode, without autocast, on the device of its weights; with gradients in float32 at least. Nothing
    of it changes. Raises UsageError where there are no data, or the model does not run on them.
    """
    wanted = list(dict.fromkeys(statistics))
    if not wanted:
        return {}
    if data is None:
        raise no_data("The criterion")
    if any(statistic.gradients for statistic in wanted):
        _check_backward(program)
    observers = {statistic: statistic.observer(groups) for statistic in wanted}
    runner = Runner(program, groups, gradients=any(s.gradients for s in wanted), parameters=any(s.parameters for s in wanted))
    together = [statistic for statistic in wanted if not statistic.per_class]
    if together:
        runner.run(data, data, {statistic: observers[statistic] for statistic in together}, filters)
    for statistic in wanted:
        if statistic.per_class:
            classes = list(data.by_class(statistic.per_class))
            everywhere = Counter[int]()
            for sizes in gathered({label: batch.size for label, batch in classes}):
                everywhere.update(sizes)
            for label, batch in classes:
                observers[statistic].share = batch.size / everywhere[label]
                runner.run(data, [batch], {statistic: observers[statistic]}, filters)
    for observer in observers.values():
        observer.totals.all_reduce()
        check_finite(observer.totals, data)
    return {statistic: observer.totals for statistic, observer in observers.items()}


def _check_backward(program: Program) -> None:
    """Raise UsageError where a program cannot go back from a loss."""
    if program.scopes:
        reason = "a model that traces as a whole, to its loss; this one is pruned in scopes"
    elif program.weights is not None:
        reason = "a backward pass through all weights at once; here they are loaded one after another"
    else:
        return
    raise UsageError(f"A criterion of gradients needs {reason}. Use a criterion of activations or of weights.")


def check_finite(totals: Totals, data: Calibration) -> None:
    """Raise UsageError where what was measured is NaN or infinite."""
    for key, total in totals.sums.items():
        if not bool(torch.isfinite(total).all()):
            where = f" at {key[0]}" if isinstance(key, tuple) else ""
            raise UsageError(
                f"What was measured{where} on {data.name} is NaN or infinite. Check the data, their scaling, and the weights."
            )


class Runner:
    """Runs a program on batches, with a copy of its modules, so that the program itself is left alone."""

    def __init__(self, program: Program, groups: Groups, *, gradients: bool, parameters: bool) -> None:
        self.program = program
        self.gradients = gradients
        self._asks = parameters  # else gradients start at the first activations that are watched
        self.module = cast(fx.GraphModule, twin(program.module, self._copy))
        for module in self.module.modules():
            module.training = False
        self.parts = parts_of(program, self.module)
        self.device = device_of(program)
        self.overwritten = overwritten_nodes(program, groups)
        self.layout = Layout(program)

    def _copy(self, tensor: Tensor) -> Tensor:
        """A tensor of the copy: values are shared, in float32 where gradients would underflow in less."""
        value = tensor.detach()
        if self.gradients and value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        if not isinstance(tensor, nn.Parameter):
            return value.clone()
        return nn.Parameter(value, requires_grad=self._asks and value.is_floating_point())

    def run(
        self, data: Calibration, batches: Iterable[Batch], observers: Mapping[Statistic, Observer], filters: Sequence[Filter]
    ) -> None:
        """Let observers see all batches."""
        watch = Watch(self.overwritten)
        for statistic, observer in observers.items():
            watch.add(statistic, observer, filters)
        backward = any(statistic.gradients for statistic in observers)
        with torch.autocast(self.device.type, enabled=False), torch.enable_grad() if backward else torch.no_grad():
            lanes: Iterable[_Lane] = (self._started(data, batch.to(self.device, self.program.inputs), watch) for batch in batches)
            lanes = list(lanes) if len(self.parts) > 1 else lanes  # all batches in step, so that weights are loaded once
            for part in self.parts:
                with loaded(self.program, self.module, part):
                    for batch, interpreter in lanes:
                        with self._running(data, batch):
                            result = interpreter.advance(part)
                        if part is self.parts[-1]:
                            self._ended(data, batch, result, backward)
                            for observer in observers.values():
                                observer.end_batch(batch.size)
        parameters = {name: t.grad for name, t in named_tensors(self.module).items() if t.grad is not None}
        for observer in observers.values():
            observer.end(parameters)

    def _started(self, data: Calibration, batch: Batch, watch: Watch) -> _Lane:
        with self._running(data, batch):
            self.layout.see(batch, watch.nodes, self._results)
        return batch, Watching(self.module, self._values(batch), watch, batch.size, self.layout)

    @staticmethod
    @contextmanager
    def _running(data: Calibration, batch: Batch) -> Iterator[None]:
        """Errors of a model that does not run on a batch become the user's."""
        try:
            yield
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise data.run_error(batch, error) from error

    @staticmethod
    def _ended(data: Calibration, batch: Batch, output: Any, backward: bool) -> None:
        """Go back from the loss, where gradients are watched."""
        if not backward:
            return
        loss = data.loss(output, batch.target)
        if not bool(torch.isfinite(loss)):
            raise UsageError(f"The loss on {data.name} is {loss.item()}. Check the data, their scaling, and the weights.")
        if loss.requires_grad:  # else it depends on nothing that is watched
            _backward(loss * batch.size)

    def _values(self, batch: Batch) -> list[Any]:
        """Values of the placeholders, in float32 where gradients would underflow in less; copies, since models write into them."""
        values = placeholder_values(self.program.module.graph, batch.inputs)
        half = (torch.float16, torch.bfloat16) if self.gradients else ()
        return [v.to(torch.float32 if v.dtype in half else v.dtype, copy=True) if isinstance(v, Tensor) else v for v in values]

    def _results(self, batch: Batch, nodes: Collection[str]) -> dict[str, Tensor]:
        """Results of some nodes, as they are when they are made."""
        keeper = Keeping(self.module, self._values(batch), nodes)
        with torch.no_grad():
            for part in self.parts:
                with loaded(self.program, self.module, part):
                    keeper.advance(part)
        return keeper.found


def _backward(loss: Tensor) -> None:
    try:
        loss.backward()
    except RuntimeError as error:
        raise UsageError(
            f"The loss does not go back through the model: {first_line(error)}. Use a criterion of activations or of weights."
        ) from error


def overwritten_nodes(program: Program, groups: Groups) -> frozenset[str]:
    """Nodes whose result a later operator writes into, so that a backward pass would find other values in it."""
    tape = tape_of(program)
    written: set[int] = set()
    found = []
    for step in reversed(tape.steps):
        value = groups.trace.values.get(step.node)
        if isinstance(value, Value) and value.storage in written:
            found.append(step.node)
        for operation in step.operations:
            if operation.operator._schema.is_mutable and isinstance(operation.output, Tensor):
                written.add(operation.output.untyped_storage()._cdata)
    return frozenset(found)
