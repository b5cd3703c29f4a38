"""Exact folding: what a removed channel contributed, where it is the same constant whatever the input, goes into the next layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import nan
from typing import Any, ClassVar

import torch
from torch import Tensor

from graphprune.calibration import Batch, Calibration
from graphprune.compensation import Compensated
from graphprune.errors import PipelineError
from graphprune.ir.program import Program
from graphprune.ir.twins import named_tensors
from graphprune.passes.calibration.consumers import Consumer, find_consumers
from graphprune.passes.calibration.contraction import Contraction, find_contraction, kept_mask, laid_out_as
from graphprune.passes.calibration.known import UnknownData
from graphprune.passes.calibration.lanes import Lanes, map_inputs, storage
from graphprune.passes.rewrite.copies import copy_of
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Pass


@dataclass(frozen=True)
class FoldConstantsPass(Pass):
    """Add to the bias of each layer what removed constant channels contributed to it.

    A channel is constant if its value depends on no input, as behind weights of zero or a norm's scale of zero; that is proved on
    the original graph, without data (:mod:`graphprune.passes.calibration.known`). ``sum over taps W[:, k] * c`` then goes into the
    layer's bias, or into the running mean of a batch norm that alone reads it (exact in eval mode). Folded exactly or not at all:
    not where padding replaces the constant at the borders, where the layer has no place for it, or where its parameter is used
    more than once. Comes after ``rewrite`` (and ``verify``, for it changes biases) and before other passes that change weights.
    """

    name: ClassVar[str] = "fold-constants"
    needs: ClassVar[tuple[str, ...]] = ("plan", "original")

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """A program with new biases, or the one given where no removed channel is a constant other than 0."""
        with torch.no_grad():
            amounts = dict(_amounts(program))
            if not amounts:
                return program
            module = copy_of(program.module)
            tensors = named_tensors(module)
            done = [_fold(consumer, amount, tensors, program) for consumer, amount in amounts.items()]
        return program.with_(module=module, compensation=(*program.compensation, *done))


def _fold(consumer: Consumer, amount: Tensor | None, tensors: dict[str, Tensor], program: Program) -> Compensated:
    """Add what removed constants contributed to each output; None where that is no constant."""
    place = consumer.bias or (consumer.norm.mean if consumer.norm is not None else "")
    note = consumer.obstacle
    if not note and amount is None:
        note = "padding replaces the constant at the borders"
    elif not note and not place:
        note = "it has no bias to fold a constant into"
    if not note and amount is not None:
        _check_untouched(place, tensors[place], program)
        tensors[place].add_(amount, alpha=1 if consumer.bias else -1)
    return Compensated(consumer.node.name, consumer.weight, True, nan, nan, 0, "" if note else place, note or "folded constants")


def _check_untouched(name: str, tensor: Tensor, program: Program) -> None:
    """Raise PipelineError where a tensor is no longer what the rewrite made it: another pass may have made up for the constants."""
    assert program.original is not None and program.plan is not None
    full = named_tensors(program.original)[name]
    if not torch.equal(full[program.plan.kept.get(name, {}).get(0, slice(None))], tensor):
        raise PipelineError(
            f"fold-constants: {name} was changed since the rewrite. Put fold-constants before passes that change weights."
        )


def _amounts(program: Program) -> Iterator[tuple[Consumer, Tensor | None]]:
    """For every consumer that lost constants other than 0: what they add to its outputs that stay; None if that varies."""
    assert program.original is not None and program.plan is not None
    tensors = named_tensors(program.original)
    consumers = {consumer.node.name: consumer for consumer in find_consumers(program)}
    for name, contraction, result in _calls(program, consumers):
        consumer = consumers[name]
        parameter = tensors[consumer.weight].detach()
        mask = kept_mask(parameter, program.plan.kept.get(consumer.weight, {}))
        kept, weights = (contraction.matrix(laid_out_as(contraction.weight, parameter, t)) for t in (mask, parameter))
        rows = contraction.inputs(result, None)  # groups, rows, inputs, taps
        gone = ~kept.flatten(2).any(2)
        inside = contraction.constants()
        if not bool((gone & (inside != 0) & ~inside.isnan()).any()):
            continue
        lost = gone & ~inside.isnan()
        same = (rows == rows[:, :1, :, :1]).all(3).all(1)
        if bool((lost & ~same).any()):
            yield consumer, None
            continue
        amount = torch.einsum("gi,gito->go", torch.where(lost, inside, 0.0), weights)
        yield consumer, amount.flatten()[kept.flatten(1, 2).any(1).flatten()]


def _calls(program: Program, consumers: Mapping[str, Consumer]) -> list[tuple[str, Contraction, Tensor]]:
    """The contractions of consumers in the original, on inputs of unknown content."""
    assert program.original is not None
    owners = {storage(tensor): name for name, tensor in reversed(named_tensors(program.original).items())}
    device = next((tensor.device for tensor in program.tensors.values()), torch.device("cpu"))
    batch = Batch(program.inputs).to(device, program.inputs)
    found: list[tuple[str, Contraction, Tensor]] = []
    with UnknownData() as unknown:
        hidden = Batch(map_inputs(batch.inputs, unknown.hide))
        lanes = Lanes(program.original, [hidden], Calibration([hidden], name="the example inputs"))
        for node in program.original.graph.nodes:
            consumer = consumers.get(node.name)

            def see(_: int, operator: Any, args: tuple[Any, ...], result: Any, consumer: Consumer | None = consumer) -> None:
                call = find_contraction(operator, args, lambda tensor: storage(tensor) in owners)
                if call is not None and consumer is not None and owners[storage(call.weight)] == consumer.weight:
                    found.append((consumer.node.name, call, result))

            lanes.advance(node, see if consumer is not None else None)
    return found
