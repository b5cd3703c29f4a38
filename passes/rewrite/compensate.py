"""Compensation: what reads removed channels gets the weights that make up for them best, by least squares on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, nan, prod, sqrt
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, fx

from graphprune.arithmetic import full_precision
from graphprune.channels.filters import find_filters
from graphprune.compensation import Compensated
from graphprune.errors import UsageError
from graphprune.ir.program import Program
from graphprune.passes.calibration.consumers import Consumer, Norm, find_consumers
from graphprune.passes.calibration.contraction import Contraction, find_contraction, kept_mask, laid_out_as, sample_positions
from graphprune.passes.calibration.lanes import Lanes, Watch, calibration_batches, storage
from graphprune.passes.calibration.least_squares import LeastSquares
from graphprune.passes.calibration.live import Filed, LiveTensors
from graphprune.passes.rewrite.copies import copy_of
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Pass
from graphprune.verification import TOLERANCE

_SMALLEST_SCALE: Final = 1e-3  # of a norm's largest: channels with less cannot correct the sum that they are added to


@dataclass(frozen=True)
class CompensatePass(Pass):
    """Give every layer behind a removed channel the weights with which it comes nearest to what it computed before.

    Both graphs run in step, one node after another, on all calibration batches. At each contraction with a parameter whose
    input differs, ``argmin_D sum_r ||y_r - (W + D) x_r - c||^2 + damping * mean(diag H) * ||D||^2`` is solved over rows r (samples
    and positions): y from the original, x from the slim model as it is compensated so far, so that later layers make up for
    what earlier ones leave; H the second moments of x, W the slice that the rewrite left. So the error on these rows never
    grows. Layers that are off by no more than rounding stay as they are.

    The constant c goes into the layer's bias, or into the running mean of a batch norm that alone reads it (exact in eval mode);
    where there is neither, it is left out. Where the result is added to something that is known before (a residual stream), y is
    what makes the sum that of the original. Groups of a convolution are solved each for itself. A parameter that is used more
    than once stays, with a note in the program's ``compensation``.

    damping: relative to the mean second moment. positions: at most, of each sample, drawn from ``seed`` for each batch.

    Memory: the values of both graphs that are alive at one time, for all samples. Where weights are loaded on demand, also those of
    a node and its moments (inputs times taps, squared); new weights wait in files of the temporary folder. Sources: He, Zhang &
    Sun, ICCV 2017, eq. 3 (least squares) and sec. 3.3 (the residual stream); ZipLM, NeurIPS 2023, eq. 3.
    """

    name: ClassVar[str] = "compensate"
    needs: ClassVar[tuple[str, ...]] = ("plan", "original", "calibration")
    provides: ClassVar[tuple[str, ...]] = ("compensation",)
    streams: ClassVar[bool] = True

    damping: float = 1e-3
    positions: int = 64
    residual: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.damping < inf:
            raise UsageError(f"compensate{{damping={self.damping}}} must be 0 or more and finite; 0.001 is the default.")
        if self.positions < 1:
            raise UsageError(f"compensate{{positions={self.positions}}} leaves nothing to fit; give at least 1.")

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """The program with new weights and what they achieve. Raises UsageError where the model does not run on the data."""
        if program.weights is not None and program.weights.together:
            raise UsageError(
                "Compensation needs the data of all processes at once, and those of a sharded model are divided. Leave it out."
            )
        sweep = _Sweep(program, self)
        with torch.no_grad(), full_precision():
            for node in sweep.module.graph.nodes:
                sweep.visit(node)
        done = (*program.compensation, *sweep.done, *_others(program, sweep))
        return program.with_(module=sweep.module, weights=sweep.weights, compensation=done)


def _others(program: Program, sweep: _Sweep) -> Iterator[Compensated]:
    """What lost inputs and was not solved, with the reason."""
    assert program.original is not None and program.plan is not None and program.record is not None
    listed = {(one.node, one.weight) for one in sweep.done}
    reasons = {(c.node.name, c.weight): c.obstacle for c in find_consumers(program)} | sweep.obstacles
    for found in find_filters(program.with_(module=program.original), program.record.groups):
        key = found.node, found.tensor
        if not found.makes and key not in listed and found.axis in program.plan.kept.get(found.tensor, {}):
            listed.add(key)
            why = reasons.get(key) or "the operator does not contract the parameter itself"
            yield Compensated(*key, removed=True, before=nan, after=nan, note=why)
    for key in sweep.obstacles.keys() - listed:
        yield Compensated(*key, removed=False, before=nan, after=nan, note=sweep.obstacles[key])


@dataclass
class _Call:
    """A batch's call of a contraction: its operands, its result, and the positions that count."""

    contraction: Contraction
    result: Tensor
    picked: Tensor | None


@dataclass(frozen=True)
class _Layout:
    """How rows are taken out of a contraction's result, or of anything of its shape; kept: the outputs that stay."""

    kind: type[Contraction]
    shape: torch.Size
    picked: Tensor | None
    kept: Tensor

    def rows(self, tensor: Tensor) -> Tensor:
        """Rows of the original's tensor, without removed outputs."""
        return self.kind.outputs(tensor.reshape(self.shape), self.picked)[:, self.kept]

    def fits(self, slim: Tensor) -> bool:
        """Whether the slim result has these rows and outputs."""
        rows = self.kind.outputs(slim, None).shape
        return rows[0] == prod(self.kind.places(self.shape)) and rows[1] == len(self.kept)


class _Sweep:
    """One way through both graphs. module, weights: the slim model, with tensors of its own, as far as it is compensated."""

    def __init__(self, program: Program, options: CompensatePass) -> None:
        assert program.original is not None and program.plan is not None and program.calibration is not None
        self.batches = calibration_batches(program, "compensate")
        self.options, self.plan = options, program.plan
        self.module = copy_of(program.module)
        written = None if program.weights is None else Filed()
        self.weights = None
        if program.weights is not None and written is not None:
            self.weights = program.weights.changed(self.module, written)
        self.slim = Lanes(self.module, self.batches, program.calibration)
        self.original = Lanes(program.original, self.batches, program.calibration)
        self.tensors = LiveTensors(self.slim.module, self.weights, written)
        self.full = LiveTensors(self.original.module, program.original_weights)
        self.done: list[Compensated] = []
        self.obstacles: dict[tuple[str, str], str] = {}
        self._nodes = {node.name: node for node in self.module.graph.nodes}
        self._rest = iter(program.original.graph.nodes)
        there = {node.name for node in program.original.graph.nodes}
        found = [c for c in find_consumers(program) if not c.obstacle and c.node.name in there]
        self._consumers = {consumer.node.name: consumer for consumer in found}
        summed = [c for c in found if c.sum is not None and c.sum.name in there and options.residual]
        self._sums = {c.sum.name: c.node.name for c in summed if c.sum is not None}
        self._layouts: dict[str, list[_Layout]] = {}
        self._removed: dict[str, bool] = {}
        self._targets: dict[str, list[Tensor]] = {}

    def visit(self, node: fx.Node) -> None:
        """Run a node of the slim graph; a consumer with its new weights."""
        consumer = self._consumers.get(node.name)
        with self.tensors.during(node):
            if consumer is not None:
                self._compensate(node, consumer)
            self.slim.advance(node)

    # -- what is wanted ----------------------------------------------------------------------------------------------------

    def _wanted(self, name: str) -> list[Tensor]:
        """Rows of the original's node of this name, for each batch; the original runs no further than that."""
        while name not in self._targets:
            node = next(self._rest)
            consumer = self._consumers.get(node.name)
            with self.full.during(node):
                if consumer is None:
                    self.original.advance(node)
                else:
                    self._targets[node.name] = self._run_original(node, consumer)
            branch = self._sums.get(node.name)
            if branch is not None:
                values = zip(self._layouts[branch], self.original.values(node), strict=True)
                self._targets[node.name] = [layout.rows(value) for layout, value in values]
                self._targets.pop(branch, None)
        return self._targets.pop(name)

    def _run_original(self, node: fx.Node, consumer: Consumer) -> list[Tensor]:
        layouts, results = list[_Layout](), list[Tensor]()
        parameter, rows = self.full[consumer.weight], list[Tensor]()
        stays = kept_mask(parameter, self.plan.kept.get(consumer.weight, {}))

        def see(number: int, call: _Call) -> None:
            kept = call.contraction.matrix(laid_out_as(call.contraction.weight, parameter, stays))
            self._removed[node.name] = not bool(kept.flatten(2).any(2).all())
            outputs = kept.flatten(1, 2).any(1).flatten().nonzero().flatten()
            layouts.append(_Layout(type(call.contraction), call.result.shape, call.picked, outputs))
            rows.append(layouts[-1].rows(call.result))
            results.append(call.result)

        self.original.advance(node, self._watch(parameter, see))
        self._layouts[node.name] = layouts
        if consumer.sum is not None and not all(map(_is_view_in_order, self.original.values(node), results)):
            self._sums.pop(consumer.sum.name, None)  # rows of the sum would be no rows of the contraction
        return rows

    def _watch(self, parameter: Tensor, see: Callable[[int, _Call], None]) -> Watch:
        """Shows each batch's contraction with a parameter."""

        def watch(number: int, operator: Any, args: tuple[Any, ...], result: Any) -> None:
            found = find_contraction(operator, args, lambda tensor: storage(tensor) == storage(parameter))
            if found is not None:
                most = self.options.positions * self.batches[number].size
                see(number, _Call(found, result, sample_positions(type(found), result, most, self.options.seed + number)))

        return watch

    # -- what is found -----------------------------------------------------------------------------------------------------

    def _compensate(self, node: fx.Node, consumer: Consumer) -> None:
        targets, others = self._wanted(node.name), []
        if consumer.sum is not None and consumer.other is not None and consumer.sum.name in self._sums:
            targets, others = self._wanted(consumer.sum.name), self.slim.values(self._nodes[consumer.other.name])
        fit = _Fit(self.tensors[consumer.weight])
        layouts = self._layouts.pop(node.name)

        def see(number: int, call: _Call) -> None:
            if number >= len(layouts) or not layouts[number].fits(call.result):
                self.obstacles[node.name, consumer.weight] = "its rows are channels too, some of which were removed"
                return
            found = call.contraction.outputs(call.result, call.picked)
            wanted = targets[number]
            if others:
                other = _for_all_samples(others[number], call.result.numel()).reshape(call.result.shape)
                other = call.contraction.outputs(other, call.picked)
                wanted = self._before_norm(wanted - other, consumer.norm)
                wanted = torch.where(wanted.isfinite(), wanted, found)
            fit.add(call, wanted, found)

        for _ in self.slim.compute(node, self._watch(self.tensors[consumer.weight], see)):
            pass
        if not fit.squares.count:
            self.obstacles.setdefault((node.name, consumer.weight), "the operator runs as another one on this device")
        if (node.name, consumer.weight) in self.obstacles:
            return
        intercept = consumer.bias or (consumer.norm.mean if consumer.norm is not None else "")
        change, constant, before, after = fit.solve(self.options.damping, bool(intercept))
        if after < before and before > TOLERANCE[fit.parameter.dtype]:
            fit.change(change)
            self.tensors.keep(consumer.weight, fit.parameter)
            if intercept:
                moved = self.tensors[intercept].add_(constant.flatten(), alpha=1 if consumer.bias else -1)
                self.tensors.keep(intercept, moved)
        else:
            after = before
        self.done.append(
            Compensated(node.name, consumer.weight, self._removed[node.name], before, after, fit.squares.count, intercept)
        )

    def _before_norm(self, rows: Tensor, norm: Norm | None) -> Tensor:
        """What a batch norm must be given to make these rows; NaN for channels that it all but switches off."""
        if norm is None:
            return rows
        scale = (self.tensors[norm.variance] + norm.epsilon).rsqrt()
        if norm.weight:
            scale = scale * self.tensors[norm.weight]
        scale = torch.where(scale.abs() > _SMALLEST_SCALE * scale.abs().max(), scale, nan)
        shift = self.tensors[norm.bias] if norm.bias else 0.0
        return (rows - shift) / scale + self.tensors[norm.mean]


def _is_view_in_order(value: Any, result: Tensor) -> bool:
    """Whether a node's value is the operator's result, at most reshaped."""
    same = isinstance(value, Tensor) and storage(value) == storage(result) and value.numel() == result.numel()
    return same and (value.shape == result.shape or (value.is_contiguous() and result.is_contiguous()))


def _for_all_samples(tensor: Tensor, count: int) -> Tensor:
    """A tensor of so many elements; one without samples (a table of positions) is repeated for each."""
    return tensor if tensor.numel() == count else tensor.expand(count // tensor.numel(), *tensor.shape[1:])


class _Fit:
    """The least squares of a consumer of a parameter, batch by batch."""

    def __init__(self, parameter: Tensor) -> None:
        self.squares = LeastSquares()
        self.parameter = parameter
        self._index = torch.arange(parameter.numel(), device=parameter.device).view(parameter.shape)
        self._error: Any = 0.0
        self._sum: Any = 0.0
        self._square: Any = 0.0

    def add(self, call: _Call, wanted: Tensor, found: Tensor) -> None:
        """Take in a batch: what should come out and what does, (rows, all outputs)."""
        self._places = call.contraction.matrix(laid_out_as(call.contraction.weight, self.parameter, self._index))
        rows = call.contraction.inputs(call.result, call.picked).flatten(2)
        missing = (wanted - found).unflatten(1, (len(rows), -1)).transpose(0, 1)
        self.squares.add(rows, missing)
        self._error = self._error + missing.double().square().sum()
        self._sum = self._sum + wanted.double().sum(0)
        self._square = self._square + wanted.double().square().sum(0)

    def solve(self, damping: float, intercept: bool) -> tuple[Tensor, Tensor, float, float]:
        """The change of the weights, the constant, and the relative error before and after."""
        change, constant = self.squares.solve(damping, intercept)
        scale = float((self._square - self._sum.square() / self.squares.count).sum().clamp_min(0)) or 1.0
        after = float(self.squares.error(change, constant).sum())
        return change, constant, sqrt(float(self._error) / scale), sqrt(max(0.0, after) / scale)

    def change(self, change: Tensor) -> None:
        """Add to the parameter, wherever in it the operator's matrix has its elements."""
        flat = self.parameter.detach().double().flatten()
        flat[self._places.flatten()] += change.flatten()
        self.parameter.copy_(flat.view(self.parameter.shape))
