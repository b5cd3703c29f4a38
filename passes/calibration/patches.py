"""What each contraction with a parameter reads: second moments of its input patches, on calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.ir.program import Program
from graphprune.passes.calibration.contraction import find_contraction, laid_out_as, sample_positions
from graphprune.passes.calibration.lanes import Lanes, calibration_batches, storage
from graphprune.passes.calibration.least_squares import LeastSquares


@dataclass
class Patches:
    """One parameter at one node. squares: moments of (patches, outputs). places: the index in the flattened parameter of each
    element of the operator's matrix, (groups, inputs, taps, outputs)."""

    squares: LeastSquares
    places: Tensor

    def matrix(self, values: Tensor) -> Tensor:
        """Values for each element of the parameter (its shape), as (groups, inputs, taps, outputs)."""
        return values.reshape(-1)[self.places]


def measure_patches(program: Program, positions: int, seed: int, what: str) -> Mapping[tuple[str, str], Patches]:
    """Patches of every contraction with a parameter, by node and parameter, in the order of the graph.

    positions: of each sample at most, drawn from ``seed`` for each batch. The program runs in eval mode, one batch after another.
    Raises UsageError, which says ``what`` needs data, where there are none.
    """
    names = {storage(t): name for name, t in reversed(program.tensors.items()) if isinstance(t, nn.Parameter)}
    found: dict[tuple[str, str], Patches] = {}
    with torch.no_grad():
        for number, batch in enumerate(calibration_batches(program, what)):
            assert program.calibration is not None
            lanes = Lanes(program.module, [batch], program.calibration)
            for node in program.module.graph.nodes:

                def see(
                    _: int, operator: Any, args: tuple[Any, ...], result: Any, node: str = node.name, size: int = batch.size
                ) -> None:
                    call = find_contraction(operator, args, lambda tensor: storage(tensor) in names)
                    if call is None:
                        return
                    name = names[storage(call.weight)]
                    picked = sample_positions(type(call), result, positions * size, seed + number)  # noqa: B023
                    rows = call.inputs(result, picked).flatten(2)
                    if (node, name) not in found:
                        parameter = program.tensors[name]
                        index = torch.arange(parameter.numel(), device=parameter.device).view(parameter.shape)
                        places = call.matrix(laid_out_as(call.weight, parameter, index))
                        found[node, name] = Patches(LeastSquares(), places)
                    outputs = call.outputs(result, picked)
                    found[node, name].squares.add(rows, torch.unflatten(outputs, 1, (len(rows), -1)).transpose(0, 1))

                lanes.advance(node, see)
    return found
