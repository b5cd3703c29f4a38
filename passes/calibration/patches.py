"""What each contraction with a parameter reads: second moments of its input patches, on calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from graphprune.arithmetic import full_precision
from graphprune.calibration import MODEL_ERRORS
from graphprune.channels.tape import describe, tape_of
from graphprune.ir.program import Program, placeholder_values
from graphprune.ir.twins import named_tensors, twin
from graphprune.passes.calibration.contraction import Contraction, find_contraction, laid_out_as, sample_positions
from graphprune.passes.calibration.interpreters import Stepwise
from graphprune.passes.calibration.lanes import Watching, calibration_batches, copies, storage
from graphprune.passes.calibration.least_squares import SecondMoments
from graphprune.passes.calibration.loading import loaded, parts_of

_Lane: TypeAlias = tuple[int, Stepwise]
_Names: TypeAlias = dict[int, tuple[str, Tensor]]  # parameters with their first names, by their storage


@dataclass
class Patches:
    """One parameter at one node. weight: the parameter, while its part of the graph runs. places: the index in the flattened
    parameter of each element of the operator's matrix, (groups, inputs, taps, outputs). rows: moments of what goes in, and
    outputs: of what comes out, each output for itself."""

    weight: Tensor
    places: Tensor
    rows: SecondMoments = field(default_factory=SecondMoments)
    outputs: SecondMoments = field(default_factory=lambda: SecondMoments(diagonal=True))

    def matrix(self, values: Tensor) -> Tensor:
        """Values for each element of the parameter (its shape), as (groups, inputs, taps, outputs)."""
        return values.reshape(-1)[self.places]

    def add(self, call: Contraction, result: Tensor, picked: Tensor | None) -> None:
        """Take in some positions of a call (all: None)."""
        rows = call.inputs(result, picked).flatten(2)
        self.rows.add(rows)
        self.outputs.add(torch.unflatten(call.outputs(result, picked), 1, (len(rows), -1)).transpose(0, 1))

    def merge(self) -> None:
        """Take in what all processes of ``torch.distributed`` have seen."""
        self.rows.merge()
        self.outputs.merge()


class PatchSource:
    """The patches of a program, part of the graph by part: all batches run through a part before the next one begins, so that
    weights that are loaded on demand are loaded once.

    positions: of each sample at most, drawn from ``seed`` for each batch. The program runs in eval mode. what: needs data; where
    there are none, UsageError says so. parts: the nodes of each, with few weights and moments where weights are loaded on demand.
    """

    def __init__(self, program: Program, positions: int, seed: int, what: str) -> None:
        self._program, self._positions, self._seed = program, positions, seed
        self._module = cast(fx.GraphModule, twin(program.module, lambda tensor: tensor))
        for child in self._module.modules():
            child.training = False
        self._batches = calibration_batches(program, what)
        first = {id(tensor): name for name, tensor in reversed(program.tensors.items()) if isinstance(tensor, nn.Parameter)}
        self._first = {name: first[id(tensor)] for name, tensor in program.tensors.items() if id(tensor) in first}
        self.parts = parts_of(program, self._module, {} if program.weights is None else _moments(program))

    @cached_property
    def last(self) -> dict[str, int]:
        """The number of the last part that reads a parameter, or a view of it, by the parameter's name."""
        part_of = {node.name: number for number, part in enumerate(self.parts) for node in part}
        owners = _owners(self._program)
        found: dict[str, int] = {}
        for step in tape_of(self._program).steps:
            for leaf in tree_leaves([(operation.args, operation.kwargs) for operation in step.operations]):
                if isinstance(leaf, Tensor) and storage(leaf) in owners:
                    found[owners[storage(leaf)]] = part_of[step.node]
        return found

    def run(self) -> Iterator[tuple[int, dict[tuple[str, str], Patches]]]:
        """Each part's number, and its patches by node and parameter, in the order of the graph; weights have values until the next
        one is asked for."""
        program, batches = self._program, enumerate(self._batches)
        values = ((n, copies(placeholder_values(program.module.graph, batch.inputs))) for n, batch in batches)
        lanes: Iterable[_Lane] = ((n, Stepwise(self._module, given)) for n, given in values)
        lanes = list(lanes) if len(self.parts) > 1 else lanes
        names: _Names = {}
        for number, part in enumerate(self.parts):
            found: dict[tuple[str, str], Patches] = {}
            with loaded(program.weights, self._module, part):
                tensors = named_tensors(self._module)
                names |= {storage(tensors[name]): (first, tensors[name]) for name, first in self._first.items()}
                with torch.no_grad(), full_precision():
                    for lane, interpreter in lanes:
                        self._advance(lane, interpreter, part, names, found)
                for patches in found.values():
                    patches.merge()
                yield number, found
            # Parameters that an earlier part has read are there as long as they, or views of them, are read later.
            alive = {storage(leaf) for _, one in lanes for leaf in tree_leaves(list(one.env.values())) if isinstance(leaf, Tensor)}
            names = {key: parameter for key, parameter in names.items() if key in alive}

    def _advance(
        self, lane: int, interpreter: Stepwise, part: Sequence[fx.Node], names: _Names, found: dict[tuple[str, str], Patches]
    ) -> None:
        """Run a part of the graph on a batch."""
        batch = self._batches[lane]

        def see(_: int, operator: Any, args: tuple[Any, ...], result: Any) -> None:
            call = find_contraction(operator, args, lambda tensor: storage(tensor) in names)
            if call is None or call.weight.is_complex():  # of which no criterion says how to make up for rows
                return
            assert interpreter.node is not None
            name, parameter = names[storage(call.weight)]
            key = interpreter.node.name, name
            if key not in found:
                index = torch.arange(parameter.numel(), device=parameter.device).view(parameter.shape)
                found[key] = Patches(parameter.detach(), call.matrix(laid_out_as(call.weight, parameter, index)))
            picked = sample_positions(type(call), result, self._positions * batch.size, self._seed + lane)
            found[key].add(call, result, picked)

        try:
            with Watching(lane, see):
                interpreter.advance(part)
        except MODEL_ERRORS as error:
            assert self._program.calibration is not None
            where = "" if interpreter.node is None else describe(interpreter.node)
            raise self._program.calibration.run_error(batch, error, where) from error


def _owners(program: Program) -> dict[int, str]:
    """Parameters on the tape, by their storage."""
    tape = tape_of(program)
    names = ((storage(tensor), tape.names[id(tensor)]) for tensor in tape.held)
    return {key: name for key, name in names if isinstance(program.tensors.get(name), nn.Parameter)}


def _moments(program: Program) -> dict[str, int]:
    """For each node that contracts an activation with a parameter, the bytes that the moments of what goes in take."""
    owners = _owners(program)
    found: dict[str, int] = {}
    for step in tape_of(program).steps:
        for operation in step.operations:
            call = find_contraction(operation.operator, operation.args, lambda tensor: storage(tensor) in owners)
            if call is not None:
                groups, inputs, taps, _ = call.matrix(call.weight).shape
                found[step.node] = found.get(step.node, 0) + 8 * groups * (inputs * taps) ** 2
    return found
