"""Optimal brain surgeon for whole channels: the error that is left once all other channels have made up for one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from graphprune.channels.groups import FROZEN, Groups, Ints
from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.calibration.least_squares import damped_factor
from graphprune.passes.calibration.panels import FileRows, Panels, Rows
from graphprune.passes.calibration.patches import Patches, PatchSource

_WIDEST: Final = 64  # of the panels that are taken off a matrix together


@criterion("obs", streams=True)
def obs(context: ScoringContext, *, damping: float = 1e-3, positions: int = 32) -> Floats:
    """``max over removals so far of sum_c sum_o w_S^T [(H^-1)_SS]^-1 w_S / E_c``: what the consumers c of a unit cannot make up
    for when it goes, as a share of their outputs; shape (units,).

    S: the rows of a consumer's matrix that read the unit (its channels times the kernel's taps); w_S: their weights to output o;
    H: damped, centred second moments of the consumer's input patches; E_c: the summed variance of its outputs. It is the growth of
    the output's least squared error without S, the other weights and the bias fitted anew, as ``compensate`` does. Units of a
    group go one after another, the least first, and w and H^-1 follow each removal: of two that replace each other one is
    cheap. Outputs that go with the unit do not count. damping: relative to H's mean diagonal. positions: of each sample at most.

    Data: activations. Cost: K^2 for each row, K^3 for each consumer, K = inputs * taps. Sources: ZipLM, NeurIPS 2023, eq. 3 and 4,
    algorithm 1; Hassibi & Stork, NIPS 1992.
    """
    groups, values = context.groups, np.full(context.groups.unit_count, np.nan)
    source = PatchSource(context.program, positions, context.seed, "Criterion obs")
    last: dict[int, int] = defaultdict(int)  # the part in which the weights of a group are read for the last time
    for name, axes in context.axes.items():
        for group in {int(group) for _, units in axes for group in np.unique(groups.group_of[units])}:
            last[group] = max(last[group], source.last.get(name, 0))
    waiting: dict[int, list[_Consumer]] = defaultdict(list)
    with TemporaryDirectory(prefix="graphprune-") if len(source.parts) > 1 else nullcontext("") as folder:
        for part, found in source.run():
            for key in list(found):
                for layer in _layers(context, key[1], found.pop(key), damping):
                    for group in layer.groups(groups):
                        # What waits for later parts of a model that is not in memory must not stay there either.
                        keep = partial(_in_file, Path(folder)) if last[group] > part else _in_memory
                        waiting[group].append(layer.consumer(groups.prunable[group].units, keep))
            for group in [group for group in waiting if last[group] <= part]:
                units = groups.prunable[group].units
                for place, error in _eliminate(waiting.pop(group), len(units)):
                    values[units[place]] = error
    return values


def _in_memory(matrix: Tensor) -> Rows:
    return matrix


def _in_file(folder: Path, matrix: Tensor) -> Rows:
    return FileRows(folder / uuid4().hex, matrix)


@dataclass(frozen=True)
class _Layer:
    """One group of a contraction. inverse: of H, (rows, rows). weights: (rows, outputs), as a share of the output's deviation.
    reads, makes: the unit of each row, and of each output."""

    inverse: Tensor
    weights: Tensor
    reads: Ints
    makes: Ints

    def groups(self, groups: Groups) -> list[int]:
        """The groups of its rows."""
        found = np.unique(groups.group_of[self.reads[self.reads != FROZEN]])
        return [int(group) for group in found if group != FROZEN]

    def consumer(self, units: Ints, keep: Callable[[Tensor], Rows]) -> _Consumer:
        """Its rows that read some units. keep: puts a matrix where it stays until it is needed."""
        rows, row_of = _places(self.reads, units)
        outputs, output_of = _places(self.makes, units)
        weights, inverse = self.weights, self.inverse
        if not np.array_equal(rows, np.arange(len(inverse))):
            index = torch.from_numpy(rows).to(weights.device)
            weights, inverse = weights[index], inverse[index][:, index]
        own = weights[:, torch.from_numpy(outputs).to(weights.device)]
        return _Consumer(inverse, weights @ weights.mT, own, keep, row_of, output_of)


def _places(of: Ints, units: Ints) -> tuple[Ints, list[slice]]:
    """The indices at which each of some units stands, unit after unit; and for each unit where its own are among these."""
    order = np.argsort(units, kind="stable")
    at = np.minimum(np.searchsorted(units, of, sorter=order), len(units) - 1)
    found = np.flatnonzero(units[order[at]] == of)
    place = order[at[found]]
    bounds = [0, *accumulate(np.bincount(place, minlength=len(units)).tolist())]
    return found[np.argsort(place, kind="stable")], [slice(*pair) for pair in pairwise(bounds)]


class _Consumer:
    """What reads some units, after some of them went. inverse: of H. gram: products of the weights' rows with each other over all
    outputs. own: weights to the outputs that the units make. rows, outputs: of each unit among these.

    Of each unit's rows, the blocks of the inverse and of the products are at hand; of the rest, rows are read as units go.
    """

    def __init__(
        self,
        inverse: Tensor,
        gram: Tensor,
        own: Tensor,
        keep: Callable[[Tensor], Rows],
        rows: Sequence[slice],
        outputs: Sequence[slice],
    ) -> None:
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, (read, made) in enumerate(zip(rows, outputs, strict=True)):
            if read.stop > read.start:
                alike[read.stop - read.start, made.stop - made.start].append(place)
        self.rows = rows
        self.blocks = [_Blocks(places, rows, outputs, inverse, gram, own) for places in alike.values()]
        self.matrices = tuple(Panels(keep(matrix)) for matrix in (inverse, gram, own))

    def remove(self, place: int) -> None:
        """Take a unit out: the other weights make up for it, and H^-1 becomes that of the others."""
        rows = self.rows[place]
        if rows.stop == rows.start:
            return
        inverse, gram, own = (matrix[rows] for matrix in self.matrices)
        across = torch.linalg.solve(inverse[:, rows], inverse)  # the transpose of what other weights take over of these rows
        rest = gram - gram[:, rows] @ across
        for matrix, left, right in zip(
            self.matrices,
            (across, torch.cat([across, rest]), across),
            (inverse, torch.cat([gram, across]), own),
            strict=True,
        ):
            matrix.subtract(left.mT, right)
        for blocks in self.blocks:
            blocks.follow(place, across, inverse, gram, rest, own)


class _Blocks:
    """Units with equally many rows and outputs. places: theirs among the group's units. inverse, gram: (units, rows, rows).
    own: (units, rows, outputs)."""

    def __init__(
        self, places: Sequence[int], rows: Sequence[slice], outputs: Sequence[slice], inverse: Tensor, gram: Tensor, own: Tensor
    ) -> None:
        device = inverse.device
        self.places = torch.tensor(places, device=device)
        self._rows, self._outputs = (
            torch.tensor([list(range(given[place].start, given[place].stop)) for place in places], device=device).long()
            for given in (rows, outputs)
        )
        across = self._rows.unsqueeze(2), self._rows.unsqueeze(1)
        self._inverse, self._gram = inverse[across], gram[across]
        self._own = own[self._rows.unsqueeze(2), self._outputs.unsqueeze(1)]

    def errors(self) -> Tensor:
        """The growth of the squared error when each of the units goes, over the outputs that stay."""
        lost = self._gram - self._own @ self._own.mT
        solved = lost / self._inverse if lost.shape[1] == 1 else torch.linalg.solve(self._inverse, lost)
        return solved.diagonal(dim1=1, dim2=2).sum(1).clamp_min(0)

    def follow(self, place: int, across: Tensor, inverse: Tensor, gram: Tensor, rest: Tensor, own: Tensor) -> None:
        """A unit goes, as :meth:`_Consumer.remove` has it: tensors of shape (its rows, all rows), or (its rows, outputs)."""
        of_across, of_inverse, of_gram, of_rest = (each.mT[self._rows] for each in (across, inverse, gram, rest))
        self._inverse -= of_across @ of_inverse.mT
        self._gram -= of_across @ of_gram.mT + of_rest @ of_across.mT
        self._own -= of_across @ own[:, self._outputs].transpose(0, 1)
        gone = self.places == place
        self._inverse[gone] = torch.eye(self._inverse.shape[1], dtype=across.dtype, device=across.device)
        self._gram[gone], self._own[gone] = 0.0, 0.0


def _eliminate(consumers: list[_Consumer], count: int) -> Iterator[tuple[int, float]]:
    """The places of ``count`` units in the order in which they go, with the largest growth of the error so far."""
    # Panels of all consumers together take about four times as much as the matrices of one.
    width = max(1, min(_WIDEST, *(2 * len(consumer.matrices[0]) // len(consumers) for consumer in consumers)))
    left = torch.zeros(count, dtype=torch.bool, device=consumers[0].blocks[0].places.device)
    for consumer in consumers:
        for matrix in consumer.matrices:
            matrix.most = width
        for blocks in consumer.blocks:
            left[blocks.places] = True
    worst = 0.0
    while bool(left.any()):
        errors = torch.zeros(count, dtype=torch.float64, device=left.device)
        for consumer in consumers:
            for blocks in consumer.blocks:
                errors[blocks.places] += blocks.errors()
        errors[~left] = torch.inf
        place = int(errors.argmin())
        worst = max(worst, float(errors[place]))
        yield place, worst
        left[place] = False
        for consumer in consumers:
            consumer.remove(place)


def _layers(context: ScoringContext, name: str, patches: Patches, damping: float) -> Iterator[_Layer]:
    """Every group of a contraction that reads units."""
    reads, makes = _units(context, name, patches)
    h = patches.rows.centred()
    energy = float(patches.outputs.centred().clamp_min(0).sum()) or 1.0
    weights = patches.matrix(patches.weight).double().flatten(1, 2) / energy**0.5  # groups, inputs and taps, outputs
    taps = patches.places.shape[2]
    del patches
    for g in range(len(weights)):
        if bool((reads[g] == FROZEN).all()) or bool((reads[g].unsqueeze(1) == makes[g]).all()):
            continue  # nothing to remove here, or nothing is left of what it makes
        of_rows, of_outputs = reads[g].repeat_interleave(taps).numpy(force=True), makes[g].numpy(force=True)
        yield _Layer(torch.cholesky_inverse(damped_factor(h[g : g + 1], damping))[0], weights[g], of_rows, of_outputs)


def _units(context: ScoringContext, name: str, patches: Patches) -> tuple[Tensor, Tensor]:
    """The unit of each input, (groups, inputs), and of each output, (groups, outputs); FROZEN where nothing can go."""
    parameter = patches.weight
    groups, inputs, _, outputs = patches.places.shape
    reads, makes = (torch.full((groups, size), FROZEN, device=parameter.device) for size in (inputs, outputs))
    for axis, units in context.axes.get(name, ()):
        shape = [-1 if other == axis else 1 for other in range(parameter.dim())]
        of_elements = torch.from_numpy(units).to(parameter.device).view(shape).expand(parameter.shape)
        matrix = patches.matrix(of_elements)
        if bool((matrix == matrix[:, :, :1, :1]).all()):
            reads = matrix[:, :, 0, 0]
        if bool((matrix == matrix[:, :1, :1]).all()):
            makes = matrix[:, 0, 0]
    return reads, makes
