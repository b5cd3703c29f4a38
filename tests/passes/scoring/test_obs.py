"""The score of optimal brain surgery against least squares by numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphprune.calibration import Calibration
from graphprune.criteria import ScoringContext, find_criterion
from graphprune.errors import UsageError
from tests.checking import Analysed, analyse
from tests.zoo.case import net


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scored(found: Analysed, x: Tensor, **options: Any) -> Any:
    program = found.program.with_(calibration=Calibration([x[: len(x) // 2], x[len(x) // 2 :]]))
    return find_criterion("obs")(ScoringContext(program, found.groups), **{"damping": 1e-12, "positions": 10_000, **options})


def share_lost(rows: Any, outputs: Any) -> float:
    """Squared error of the best affine fit of outputs by rows, as a share of the outputs' variation."""
    rows, outputs = rows - rows.mean(0), outputs - outputs.mean(0)
    fit = rows @ np.linalg.lstsq(rows, outputs, rcond=None)[0]
    return float(((outputs - fit) ** 2).sum() / (outputs**2).sum())


def chain(first: nn.Module, second: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return net(lambda self, x: self.second(F.relu(self.first(x))), first=first, second=second)


def test_the_first_to_go_costs_what_least_squares_without_it_leaves() -> None:
    model, x = chain(nn.Linear(4, 6), nn.Linear(6, 5)), rand(80, 4)
    found = analyse(model, x)
    values = scored(found, x)
    with torch.no_grad():
        hidden, wanted = F.relu(model.get_submodule("first")(x)).numpy(), model(x).numpy()
    losses = [share_lost(np.delete(hidden, channel, 1), wanted) for channel in range(6)]
    units = found.units("first.weight", 0)
    first = int(np.argmin(losses))
    assert int(np.argmin(values[units])) == first
    assert values[units[first]] == pytest.approx(losses[first], rel=1e-6)
    second = min(share_lost(np.delete(hidden, [first, c], 1), wanted) - losses[first] for c in range(6) if c != first)
    assert sorted(values[units])[1] == pytest.approx(max(second, losses[first]), rel=1e-6)


def test_all_taps_of_a_kernel_go_together() -> None:
    model, x = chain(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3, padding=1, stride=2)), rand(8, 2, 8, 8)
    found = analyse(model, x)
    values = scored(found, x)
    with torch.no_grad():
        hidden = F.relu(model.get_submodule("first")(x))
        rows = F.unfold(hidden, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1).numpy()
        wanted = model(x).movedim(1, -1).flatten(0, 2).numpy()
    losses = [share_lost(np.delete(rows, range(9 * c, 9 * c + 9), 1), wanted) for c in range(4)]
    assert values[found.units("first.weight", 0)].min() == pytest.approx(min(losses), rel=1e-6)


def test_of_two_channels_that_replace_each_other_one_is_free() -> None:
    model, x = chain(nn.Linear(4, 6), nn.Linear(6, 5)), rand(80, 4)
    with torch.no_grad():
        for name in ("first.weight", "first.bias"):
            model.get_parameter(name)[3] = 2 * model.get_parameter(name)[1]
        model.get_parameter("second.weight")[:, [1, 3]] *= 10  # large, which a norm would take for important
    found = analyse(model, x)
    values = scored(found, x, damping=1e-9)[found.units("first.weight", 0)]
    assert min(values[1], values[3]) < 1e-6 < max(values[1], values[3])


def test_consumers_of_one_unit_add_up_and_depthwise_layers_have_nothing_to_say() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.first(x))
        return self.a(y), self.b(self.depthwise(y))

    torch.manual_seed(0)
    parts = {
        "first": nn.Conv2d(2, 5, 1),
        "a": nn.Conv2d(5, 3, 1),
        "b": nn.Conv2d(5, 2, 1),
        "depthwise": nn.Conv2d(5, 5, 3, groups=5),
    }
    model, x = net(forward, **parts), rand(12, 2, 6, 6)
    found = analyse(model, x)
    values = scored(found, x)[found.units("first.weight", 0)]
    with torch.no_grad():
        y = F.relu(model.get_submodule("first")(x))
        z = model.get_submodule("depthwise")(y)
        pairs = [
            (t.movedim(1, -1).flatten(0, 2).numpy(), model.get_submodule(n)(t).movedim(1, -1).flatten(0, 2).numpy())
            for t, n in ((y, "a"), (z, "b"))
        ]
    losses = [sum(share_lost(np.delete(rows, c, 1), wanted) for rows, wanted in pairs) for c in range(5)]
    assert values.min() == pytest.approx(min(losses), rel=1e-6) and int(values.argmin()) == int(np.argmin(losses))


def test_without_data_it_is_refused() -> None:
    found = analyse(chain(nn.Linear(4, 6), nn.Linear(6, 5)), rand(2, 4))
    with pytest.raises(UsageError, match="Criterion obs needs calibration data"):
        find_criterion("obs")(ScoringContext(found.program, found.groups))
