"""Optimal brain surgeon for whole channels: the error that is left once all other channels have made up for one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from graphprune.channels.groups import FROZEN
from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.calibration.least_squares import damped_factor
from graphprune.passes.calibration.patches import Patches, measure_patches


@criterion("obs")
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
    values = np.full(context.groups.unit_count, np.nan)
    consumers: dict[int, list[_Consumer]] = defaultdict(list)
    for consumer in _consumers(context, damping, positions):
        rows: dict[int, dict[int, Tensor]] = defaultdict(dict)
        for unit, own in consumer.rows.items():
            rows[int(context.groups.group_of[unit])][unit] = own
        for group, own_rows in rows.items():
            consumers[group].append(replace(consumer, rows=own_rows))
    for group, found in consumers.items():
        for unit, error in _eliminate(context.groups.prunable[group].units.tolist(), found):
            values[unit] = error
    return values


@dataclass
class _Consumer:
    """One group of a contraction. inverse: of H, (rows, rows). weights: (rows, outputs), as a share of the output's deviation.
    rows: of each unit. makes: the unit of each output."""

    inverse: Tensor
    weights: Tensor
    rows: dict[int, Tensor]
    makes: Tensor

    def errors(self, units: list[int]) -> Tensor:
        """The growth of the squared error when each of some units goes."""
        found = torch.zeros(len(units), dtype=self.weights.dtype, device=self.weights.device)
        by_size: dict[int, list[int]] = defaultdict(list)
        for place, unit in enumerate(units):
            if unit in self.rows:
                by_size[len(self.rows[unit])].append(place)
        for places in by_size.values():
            rows = torch.stack([self.rows[units[place]] for place in places])
            own = self.weights[rows]  # units, rows of each, outputs
            solved = torch.linalg.solve(self.inverse[rows.unsqueeze(2), rows.unsqueeze(1)], own)
            own_units = torch.tensor([units[place] for place in places], device=self.makes.device)
            stays = own_units.unsqueeze(1) != self.makes
            found[places] = ((own * solved).sum(1) * stays).sum(1).clamp_min(0)
        return found

    def remove(self, unit: int) -> None:
        """Take a unit out: the other weights make up for it, and H^-1 becomes that of the others."""
        rows = self.rows.pop(unit, None)
        if rows is None:
            return
        across = torch.linalg.solve(self.inverse[rows][:, rows], self.inverse[rows]).mT  # all rows, rows of the unit
        self.weights = self.weights - across @ self.weights[rows]
        self.inverse = self.inverse - across @ self.inverse[rows]


def _eliminate(units: list[int], consumers: list[_Consumer]) -> Iterator[tuple[int, float]]:
    """Units in the order in which they go, with the largest growth of the error so far."""
    left, worst = [unit for unit in units if any(unit in consumer.rows for consumer in consumers)], 0.0
    while left:
        errors = torch.stack([consumer.errors(left) for consumer in consumers]).sum(0)
        place = int(errors.argmin())
        worst = max(worst, float(errors[place]))
        yield left[place], worst
        for consumer in consumers:
            consumer.remove(left[place])
        del left[place]


def _consumers(context: ScoringContext, damping: float, positions: int) -> Iterator[_Consumer]:
    """Every group of every contraction that reads units."""
    for (_, name), patches in measure_patches(context.program, positions, context.seed, "Criterion obs").items():
        parameter = context.program.tensors[name]
        reads, makes = _units(context, name, patches)
        h, _, _, _ = patches.squares.moments(intercept=True)
        energy = float(patches.squares.spread().sum()) or 1.0
        weights = patches.matrix(parameter.detach()).double().flatten(1, 2) / energy**0.5  # groups, inputs and taps, outputs
        taps = patches.places.shape[2]
        for g in range(len(weights)):
            if bool((reads[g] == FROZEN).all()) or bool((reads[g].unsqueeze(1) == makes[g]).all()):
                continue  # nothing to remove here, or nothing is left of what it makes
            of_rows = reads[g].repeat_interleave(taps)
            rows = {int(unit): (of_rows == unit).nonzero().flatten() for unit in reads[g].unique() if unit != FROZEN}
            yield _Consumer(torch.cholesky_inverse(damped_factor(h[g : g + 1], damping))[0], weights[g], rows, makes[g])


def _units(context: ScoringContext, name: str, patches: Patches) -> tuple[Tensor, Tensor]:
    """The unit of each input, (groups, inputs), and of each output, (groups, outputs); FROZEN where nothing can go."""
    parameter = context.program.tensors[name]
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
