"""Run calibration data through a program once, and let all statistics that are asked for see the activations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, fx, nn

from graphprune.arithmetic import full_precision, is_fractional, real_parts
from graphprune.calibration import MODEL_ERRORS, Batch, Calibration, no_data
from graphprune.channels.filters import Filter
from graphprune.channels.groups import Groups
from graphprune.channels.labels import Value
from graphprune.channels.tape import describe, tape_of
from graphprune.errors import UsageError, first_line
from graphprune.failures import memory_is_out, worker_is_lost
from graphprune.ir.program import Program, placeholder_values
from graphprune.ir.twins import named_tensors, twin
from graphprune.passes.calibration.interpreters import Keeping, Stepwise, Watch, Watching
from graphprune.passes.calibration.layout import Layout
from graphprune.passes.calibration.loading import device_of, loaded, parts_of, readers
from graphprune.passes.calibration.memory import within_memory
from graphprune.passes.calibration.recompute import Recomputation
from graphprune.statistic import Observer, Statistic, Totals, gathered

#: Batches of at most so many samples, each with its share of its class's samples.
Shares: TypeAlias = Callable[[int | None], Iterable[tuple[Batch, float]]]
_Lane: TypeAlias = tuple[Batch, float, Watching]


def collect(
    program: Program, groups: Groups, filters: Sequence[Filter], data: Calibration | None, statistics: Iterable[Statistic]
) -> dict[Statistic, Totals]:
    """Measure statistics on calibration data, in as few runs as possible: one, and one for each statistic of classes.

    The program runs in eval mode, without autocast and TF32, on the device of its weights; with gradients in float32 at least.
    Nothing of it changes. Where memory is out, the run starts again on batches half as large, which changes no total beyond
    rounding.

    Raises UsageError where there are no data or the model does not run on them, and MemoryShortError where no batch can be split.
    """
    wanted = list(dict.fromkeys(statistics))
    if not wanted:
        return {}
    if data is None:
        raise no_data("The criterion")
    if any(statistic.gradients for statistic in wanted):
        _check_backward(program)
    runner = Runner(program, groups, gradients=any(statistic.gradients for statistic in wanted))
    observers: dict[Statistic, Observer] = {}
    together = [statistic for statistic in wanted if not statistic.per_class]
    if together:
        observers |= _measured(runner, data, _plain(data), together, filters)
    for statistic in wanted:
        if statistic.per_class:
            observers |= _measured(runner, data, _by_class(data, statistic), [statistic], filters)
    for observer in observers.values():
        observer.totals.all_reduce()
        check_finite(observer.totals, data)
    return {statistic: observers[statistic].totals for statistic in wanted}


def _plain(data: Calibration) -> Shares:
    """Batches as they come."""
    return lambda size: ((part, 1.0) for batch in data for part in batch.parts(size))


def _by_class(data: Calibration, statistic: Statistic) -> Shares:
    """A batch for each class, with the share that it has of the class's samples in all processes."""
    classes = list(data.by_class(statistic.per_class))
    everywhere = Counter[int]()
    for sizes in gathered({label: batch.size for label, batch in classes}):
        everywhere.update(sizes)
    return lambda size: ((part, part.size / everywhere[label]) for label, batch in classes for part in batch.parts(size))


def _measured(
    runner: Runner, data: Calibration, shares: Shares, statistics: Sequence[Statistic], filters: Sequence[Filter]
) -> dict[Statistic, Observer]:
    """Observers that have seen all batches, in smaller ones where memory is short and that makes no difference."""

    def run(size: int | None) -> dict[Statistic, Observer]:
        observers = {statistic: statistic.observer(runner.groups) for statistic in statistics}
        runner.run(data, shares(size), observers, filters)
        return observers

    def why_whole() -> str:
        if runner.together:
            return "Its weights are gathered by all processes in step, so that it was not split."
        whole = next((statistic for statistic in statistics if not statistic.splits), None)
        if whole is not None:
            return f"{type(whole).__name__} looks at all samples of a batch together, so that it was not split."
        pair = next((batch for batch, _ in shares(2) if batch.size == 2), None)
        try:
            if pair is None or runner.apart(data, pair, statistics, filters):
                return ""
        except (RuntimeError, MemoryError) as error:
            if not memory_is_out(error):
                raise
            return "Nor do two samples fit, to see whether they may be run one by one: if they may, give batches of one."
        return "What the model computes of a sample depends on the others of its batch, so that it was not split."

    return within_memory(run, why_whole)


def _check_backward(program: Program) -> None:
    """Raise UsageError where a program cannot go back from a loss."""
    if program.scopes:
        reason = "a model that traces as a whole, to its loss; this one is pruned in scopes"
    elif program.weights is not None and program.weights.together:
        reason = "weights that each process loads by itself, batch by batch; here all processes gather them in step"
    else:
        return
    raise UsageError(f"A criterion of gradients needs {reason}. Use a criterion of activations or of weights.")


def check_finite(totals: Totals, data: Calibration) -> None:
    """Raise UsageError where what was measured is NaN or infinite."""
    for key, total in totals.sums.items():
        if not bool(torch.isfinite(total.sum())) and not bool(torch.isfinite(total).all()):  # the sum makes no other matrix
            where = f" at {key[0]}" if isinstance(key, tuple) else ""
            raise UsageError(
                f"What was measured{where} on {data.name} is NaN or infinite. Check the data, their scaling, and the weights."
            )


class Runner:
    """Runs a program on batches, with a copy of its modules, so that the program itself is left alone."""

    def __init__(self, program: Program, groups: Groups, *, gradients: bool) -> None:
        self.program = program
        self.groups = groups
        self.gradients = gradients
        self.module = cast(fx.GraphModule, twin(program.module, self._copy))
        for module in self.module.modules():
            module.training = False
        self.parts = parts_of(program, self.module)
        first = {id(tensor): name for name, tensor in reversed(program.tensors.items())}
        self._first = {name: first[id(tensor)] for name, tensor in program.tensors.items()}
        half = (torch.float16, torch.bfloat16) if gradients else ()
        self.weights = None if program.weights is None else program.weights.widened(half)
        self.device = device_of(program)
        self.together = program.weights is not None and program.weights.together
        self.overwritten = overwritten_nodes(program, groups)
        self.layout = Layout(program)

    def _copy(self, tensor: Tensor) -> Tensor:
        """A tensor of the copy: values are shared, in float32 where gradients would underflow in less."""
        value = tensor.detach()
        if self.gradients and value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        if not isinstance(tensor, nn.Parameter):
            return value.clone()
        return nn.Parameter(value, requires_grad=False)

    def run(
        self,
        data: Calibration,
        batches: Iterable[tuple[Batch, float]],
        observers: Mapping[Statistic, Observer],
        filters: Sequence[Filter],
    ) -> None:
        """Let observers see all batches. batches: with the share of each, for statistics of classes."""
        watch = _watch(self.overwritten, observers, filters)
        backward = any(statistic.gradients for statistic in observers)
        with self._arithmetic(backward):
            if self.together:
                batches = list(batches)
                self._look(data, [batch for batch, _ in batches], watch)
            if backward and len(self.parts) > 1:
                for batch, share in batches:
                    self._there_and_back(data, self._started(data, batch, share, watch), watch, observers)
                batches = []
            lanes: Iterable[_Lane] = (self._started(data, batch, share, watch) for batch, share in batches)
            lanes = list(lanes) if len(self.parts) > 1 else lanes  # all batches in step, so that weights are loaded once
            for part in self.parts:
                with self._within(part, observers):
                    for lane in lanes:
                        self._advance(data, lane, part, observers, backward)
        for observer in observers.values():
            observer.end()

    def apart(self, data: Calibration, pair: Batch, statistics: Iterable[Statistic], filters: Sequence[Filter]) -> bool:
        """Whether two samples run in one batch as each does alone, to rounding: what observers would see, and the loss."""
        watch = _watch(self.overwritten, {statistic: statistic.observer(self.groups) for statistic in statistics}, filters)
        both, *singles = (b.to(self.device, self.program.inputs) for b in (pair, *pair.parts(1)))
        with self._arithmetic(False):
            self.layout.see(both, watch.nodes, self._results)
            whole, *alone = (self._results(batch, watch.nodes) for batch in (both, *singles))
            for tap in watch.taps:
                one = self.layout.view(whole[tap.node], tap, 2)
                others = [self.layout.view(results[tap.node], tap, 1) for results in alone]
                if not _alike(one, torch.cat(others) if len(one) == 2 else others[0]):
                    return False
            if not any(statistic.gradients for statistic in statistics):
                return True
            outputs = [self._output(b) for b in (both, *singles)]
            losses = [data.loss(output, b.target).detach() for output, b in zip(outputs, (both, *singles), strict=True)]
            return _alike(losses[0], torch.stack(losses[1:]).mean(0))

    @contextmanager
    def _within(self, part: Sequence[fx.Node], observers: Mapping[Statistic, Observer]) -> Iterator[None]:
        """A block in which a part's weights have values, and observers see their gradients: at its end, or, where weights are
        loaded for it, each as soon as it is whole."""
        with loaded(self.weights, self.module, part):
            asking = [observer for statistic, observer in observers.items() if statistic.parameters]
            values = named_tensors(self.module) if asking else {}
            asked = {self._first[name]: t for name, t in values.items() if isinstance(t, nn.Parameter) and not t.is_meta}
            hooks = []
            try:
                for name, parameter in asked.items():
                    parameter.requires_grad_(is_fractional(parameter))
                    if self.weights is not None and parameter.requires_grad:
                        hooks.append(parameter.register_post_accumulate_grad_hook(partial(_show, asking, name)))
                yield
                for name, parameter in asked.items():
                    _show(asking, name, parameter)
            finally:
                for hook in hooks:
                    hook.remove()
                for parameter in asked.values():
                    parameter.requires_grad_(False)
                    parameter.grad = None

    @contextmanager
    def _arithmetic(self, backward: bool) -> Iterator[None]:
        gradients = torch.enable_grad() if backward else torch.no_grad()
        with full_precision(), gradients:
            yield

    def _look(self, data: Calibration, batches: Sequence[Batch], watch: Watch) -> None:
        """See how samples lie where other processes load weights too: all of them do, or none does, whatever their batches are."""
        pair = next((batch.to(self.device, self.program.inputs) for batch in batches if batch.size > 1), None)
        crowded = self.layout.crowded(watch.nodes)
        if not crowded or not any(gathered(pair is not None)):
            return
        if pair is not None:
            with _running(data, pair):
                self.layout.see(pair, watch.nodes, self._results)
            return
        for part in [*self.parts, *self.parts]:  # as often as a layout is seen
            with loaded(self.weights, self.module, part):
                pass

    def _started(self, data: Calibration, batch: Batch, share: float, watch: Watch) -> _Lane:
        batch = batch.to(self.device, self.program.inputs)
        with _running(data, batch):
            self.layout.see(batch, watch.nodes, self._results)
        return batch, share, Watching(self.module, self._values(batch), watch, batch.size, self.layout)

    def _advance(
        self, data: Calibration, lane: _Lane, part: list[fx.Node], observers: Mapping[Statistic, Observer], backward: bool
    ) -> None:
        """Run a part of the graph on a batch; the last one ends with the loss, where gradients are watched."""
        batch, share, interpreter = lane
        for observer in observers.values():
            observer.share = share
        with _running(data, batch, interpreter):
            output = interpreter.advance(part)
        if part is not self.parts[-1]:
            return
        if backward:
            _go_back(data, batch, output)
        for observer in observers.values():
            observer.end_batch(batch.size)

    def _there_and_back(self, data: Calibration, lane: _Lane, watch: Watch, observers: Mapping[Statistic, Observer]) -> None:
        """Run a batch whose weights are loaded part by part, and go back: every weight is read twice."""
        batch, share, _ = lane
        for observer in observers.values():
            observer.share = share

        def interpreter(arguments: Sequence[Any], watched: bool) -> Stepwise:
            nothing = Watch(self.overwritten)
            return Watching(self.module, arguments, watch if watched else nothing, batch.size, self.layout)

        asks = any(statistic.parameters for statistic in observers)
        asked = readers(self.module, self.module.graph.nodes) if asks else set()
        passes = Recomputation(
            self.parts,
            self._values(batch),
            interpreter,
            lambda part: self._within(part, observers),
            watch.nodes | asked,
        )
        steps = passes.run(lambda output: _go_back(data, batch, output))
        current: Stepwise | None = None
        while True:
            with _running(data, batch, current):
                current = next(steps, None)
            if current is None:
                break
        for observer in observers.values():
            observer.end_batch(batch.size)

    def _values(self, batch: Batch) -> list[Any]:
        """Values of the placeholders, in float32 where gradients would underflow in less; copies, since models write into them."""
        values = placeholder_values(self.program.module.graph, batch.inputs)
        half = (torch.float16, torch.bfloat16) if self.gradients else ()
        return [v.to(torch.float32 if v.dtype in half else v.dtype, copy=True) if isinstance(v, Tensor) else v for v in values]

    def _output(self, batch: Batch) -> Any:
        """What the program returns."""
        interpreter, result = Stepwise(self.module, self._values(batch)), None
        for part in self.parts:
            with loaded(self.weights, self.module, part):
                result = interpreter.advance(part)
        return result

    def _results(self, batch: Batch, nodes: Collection[str]) -> dict[str, Tensor]:
        """Results of some nodes, as they are when they are made."""
        keeper = Keeping(self.module, self._values(batch), nodes)
        with torch.no_grad():
            for part in self.parts:
                with loaded(self.weights, self.module, part):
                    keeper.advance(part)
        return keeper.found


@contextmanager
def _running(data: Calibration, batch: Batch, interpreter: Stepwise | None = None) -> Iterator[None]:
    """Errors of a model that does not run on a batch become the user's."""
    try:
        yield
    except MODEL_ERRORS as error:
        node = None if interpreter is None else interpreter.node
        raise data.run_error(batch, error, describe(node) if node is not None else "") from error


def _go_back(data: Calibration, batch: Batch, output: Any) -> None:
    """From the loss of an output to what it depends on."""
    try:
        loss = data.loss(output, batch.target)
        if not bool(torch.isfinite(loss)):
            raise UsageError(f"The loss on {data.name} is {loss.item()}. Check the data, their scaling, and the weights.")
        if loss.requires_grad:  # else it depends on nothing that is watched
            _backward(loss * batch.size)
    except (RuntimeError, MemoryError) as error:
        if not (memory_is_out(error) or worker_is_lost(error)):
            raise
        raise data.run_error(batch, error, "the loss and its way back") from error


def _backward(loss: Tensor) -> None:
    try:
        loss.backward()
    except RuntimeError as error:
        if memory_is_out(error) or worker_is_lost(error):
            raise
        raise UsageError(
            f"The loss does not go back through the model: {first_line(error)}. Use a criterion of activations or of weights."
        ) from error


def _show(observers: Sequence[Observer], name: str, parameter: Tensor) -> None:
    """Let observers see the gradient of a parameter, if it has one, and free it."""
    if parameter.grad is not None:
        for observer in observers:
            observer.see_weight(name, real_parts(parameter.detach()), real_parts(parameter.grad))
        parameter.grad = None


def _watch(overwritten: frozenset[str], observers: Mapping[Statistic, Observer], filters: Sequence[Filter]) -> Watch:
    watch = Watch(overwritten)
    for statistic, observer in observers.items():
        watch.add(statistic, observer, filters)
    return watch


def _alike(one: Tensor, other: Tensor) -> bool:
    """Equal to the rounding of operators that run on another number of samples."""
    if one.shape != other.shape:
        return False
    if not is_fractional(one):
        return torch.equal(one, other)
    most = torch.finfo(one.dtype).eps ** 0.5 * one.abs().max() if one.numel() else 0.0
    return bool(((one - other).abs() <= most).all())


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
