"""Losses of many trials in one sweep over a graph: all share what comes before the first node that they change."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from graphprune.arithmetic import taken_apart
from graphprune.calibration import MODEL_ERRORS, Batch, Calibration, never_negative
from graphprune.channels.groups import Groups
from graphprune.channels.tape import describe
from graphprune.ir.program import Program, placeholder_values
from graphprune.ir.twins import twin
from graphprune.passes.calibration.collect import overwritten_nodes
from graphprune.passes.selection.trials.silence import Silenced
from graphprune.passes.verification.missing import MissingData


@dataclass
class Work:
    """What trials cost. candidates: cuts that were compared. trials: different ones among them. abandoned: trials that were not
    run to the end. forwards: images that ran through the network, those that ran through a part of it by its share of the
    multiply-accumulates of the network as wide as it then was. What criteria measure on the data is not among them."""

    candidates: int = 0
    trials: int = 0
    abandoned: int = 0
    forwards: float = 0.0


class Sweep:
    """Runs a program, and trials of it from the first node that they change on, one batch at a time.

    Nothing is kept between batches: a trial starts from the live values of the program's own run. Eval mode, no gradients.
    bounded: whether the loss is known to be at least 0, once the program ran to its end.
    """

    def __init__(self, program: Program, groups: Groups, data: Calibration, work: Work) -> None:
        self._program = program
        self._data = data
        self._work = work
        self._nodes = list(program.module.graph.nodes)
        self._overwritten = overwritten_nodes(program, groups)
        self._behind = _behind(self._nodes, groups)
        self._interpreter = _Interpreter(program.module)
        self._device = next((tensor.device.type for tensor in program.tensors.values()), "cpu")
        self.bounded = False

    def output(self, batch: Batch) -> Any:
        """What the program returns for a batch."""
        return self._through(batch, (), [], whole=True)

    def run(self, batch: Batch, trials: Sequence[Silenced], *, whole: bool) -> tuple[list[float], float]:
        """The mean loss of each trial on a batch, and the program's own, which is NaN unless it is asked for (``whole``)."""
        losses = [0.0] * len(trials)
        output = self._through(batch, trials, losses, whole=whole)
        return losses, self._loss(output, batch) if whole else np.nan

    def _through(self, batch: Batch, trials: Sequence[Silenced], losses: list[float], *, whole: bool) -> Any:
        """Run the program, each trial on the way, and the program to its end if asked to; what it then returns."""
        waiting = sorted(range(len(trials)), key=lambda index: -trials[index].start)
        own = self._interpreter
        own.begin(placeholder_values(self._program.module.graph, batch.inputs))
        with torch.no_grad(), torch.autocast(self._device, enabled=False):
            for position, node in enumerate(self._nodes):
                while waiting and trials[waiting[-1]].start == position:
                    index = waiting.pop()
                    losses[index] = self._loss(self._rest(trials[index]), batch)
                    self._work.forwards += batch.size * self._behind[position]
                if not waiting and not whole:
                    self._work.forwards += batch.size * (1 - self._behind[position])
                    return None
                self._advance(node, batch)
        self._work.forwards += batch.size
        output = own.env.pop(self._nodes[-1])
        self.bounded = never_negative(self._data.loss, output)
        return output

    def _advance(self, node: fx.Node, batch: Batch) -> None:
        try:
            self._interpreter.step(node)
        except MODEL_ERRORS as error:
            raise self._data.run_error(batch, error, describe(node)) from error

    def _loss(self, output: Any, batch: Batch) -> float:
        return float(self._data.loss(output, batch.target))

    def _rest(self, trial: Silenced) -> Any:
        """What the graph returns with a trial's tensors, from the live values of the program's own run."""
        own, live = self._interpreter, self._interpreter.env
        own.env = self._copied(live)
        try:
            with own.replaced(trial.tensors), MissingData() if trial.missing else nullcontext():
                for node in self._nodes[trial.start :]:
                    with taken_apart(node.target) if trial.missing else nullcontext():
                        own.step(node)
            return own.env[self._nodes[-1]]
        finally:
            own.env = live

    def _copied(self, live: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Live values; those that a later node writes into as copies, views of one tensor as views of one copy."""
        written = {node.name: value for node, value in live.items() if node.name in self._overwritten}
        if not written:
            return dict(live)
        copies = copy.deepcopy(written)
        return {node: copies.get(node.name, value) for node, value in live.items()}


class _Interpreter(fx.Interpreter):
    """Runs nodes of a graph on a copy of its modules in eval mode, whose tensors can be replaced for a time. What no later node
    reads is freed."""

    def __init__(self, module: fx.GraphModule) -> None:
        own = twin(module, lambda tensor: tensor)
        self._places: dict[int, list[tuple[dict[str, Any], str]]] = {}
        for child in own.modules():
            child.training = False
            for store in (child._parameters, child._buffers):
                for name, tensor in store.items():
                    self._places.setdefault(id(tensor), []).append((store, name))
        super().__init__(own)
        self.extra_traceback = False

    def begin(self, arguments: Sequence[Any]) -> None:
        """Start from the beginning; arguments are copied, since models write into them."""
        self.env = {}
        self.args_iter = iter([value.clone() if isinstance(value, Tensor) else value for value in arguments])

    def step(self, node: fx.Node) -> None:
        """Run a node."""
        self.env[node] = self.run_node(node)
        for read in self.user_to_last_uses.get(node, []):
            del self.env[read]

    @contextmanager
    def replaced(self, tensors: Mapping[int, Tensor]) -> Iterator[None]:
        """Within, some tensors, by identity, are others."""
        before = [(store, name, store[name]) for key in tensors for store, name in self._places[key]]
        for store, name, tensor in before:
            store[name] = tensors[id(tensor)]
        try:
            yield
        finally:
            for store, name, tensor in before:
                store[name] = tensor


def _behind(nodes: Sequence[fx.Node], groups: Groups) -> list[float]:
    """The share of the multiply-accumulates that is left before each node."""
    macs: dict[str, int] = {}
    for term in groups.trace.macs:
        macs[term.node] = macs.get(term.node, 0) + prod(f if isinstance(f, int) else f.size for f in term.factors)
    amounts = np.array([macs.get(node.name, 0) for node in nodes], dtype=np.float64)
    left = np.cumsum(amounts[::-1])[::-1]
    shares: list[float] = (left / max(1.0, left[0])).tolist()
    return shares
