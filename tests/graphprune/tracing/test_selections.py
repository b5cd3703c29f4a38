"""What a mask of unknown values selects, and what may become of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from graphprune.errors import TraceError
from tests.checking import max_error, run
from tests.graphprune.tracing.forwards import double

X, OTHER = double(2, 5, 4), double(3, 7, 4)


class Masked(nn.Module):
    """Two layers whose results a body mixes, and one that reads what it makes of them."""

    body: Any

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 6, dtype=torch.float64), nn.Linear(4, 6, dtype=torch.float64)
        self.b = nn.Linear(6, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Any:
        return self.body(self.a(x), self.c(x))


def masked(body: Callable[..., Any]) -> Any:
    return type("Masked", (Masked,), {"body": body})().eval()


def single_elements(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z > y
    y[mask] = z[mask]
    return self.b(y)


def whole_rows(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z.sum(-1) > 0
    y[mask] = (z * 2)[mask]
    return self.b(y)


def both_ways(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z > y
    before = y[mask]
    out = torch.zeros_like(y)
    out[mask], out[~mask] = before, 1.0
    return self.b(out)


def multiplied(self: Any, y: Tensor, z: Tensor) -> Any:
    y[y > 0] *= 2
    return self.b(y) + self.b(z)


def of_two(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z > 0
    taken = y[mask]
    taken += 1
    y[mask] = torch.exp(taken) * z[mask] - 1
    return self.b(y)


def added_to(self: Any, y: Tensor, z: Tensor) -> Any:
    """As ranges are kept from being zero before something is divided by them."""
    span = (y - z).abs()
    span[span < 1.0] += 1.0
    return self.b(y / span)


def rooted(self: Any, y: Tensor, z: Tensor) -> Any:
    """Elements that are not chosen have neither a root nor a gradient of one."""
    mask = y > 0
    y[mask] = torch.log(y[mask].sqrt() + 1) / y[mask]
    return self.b(y)


CHOICES = {
    single_elements: ["a"], whole_rows: ["a"], both_ways: ["a"], multiplied: ["a"], of_two: ["a"], added_to: ["a"],
    rooted: ["a", "c"],
}  # fmt: skip


@pytest.mark.parametrize("body", CHOICES, ids=lambda body: body.__name__)
def test_what_a_mask_selects_is_written_where_it_selects(body: Any) -> None:
    model = masked(body)
    found = graphprune.capture(model, (X,))
    assert not found.opaque and not found.scopes
    for x in (X, OTHER):
        assert max_error(run(found.module, (x,)), run(model, (x,))) < 1e-12
    result = graphprune.prune(model, (X,), target="channels=50%")
    assert [group.name for group in result.groups.prunable] == CHOICES[body]


@pytest.mark.parametrize("body", CHOICES, ids=lambda body: body.__name__)
def test_gradients_are_those_of_the_model(body: Any) -> None:
    model = masked(body)
    slim = graphprune.capture(model, (X,)).module
    (model(X) ** 2).sum().backward()
    (slim(X) ** 2).sum().backward()
    for name, parameter in slim.named_parameters():
        wanted = model.get_parameter(name).grad
        assert (parameter.grad is None) == (wanted is None)
        assert wanted is None or max_error(parameter.grad, wanted) < 1e-12


def scaled(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z.sum(-1) > 0
    rows = 2 - y[mask] / 3
    rows *= 0.5
    y[mask] = -(rows + z[mask] * 4) - self.b.bias[0]
    return self.b(y)


def into_a_layer(self: Any, y: Tensor, z: Tensor) -> Any:
    return self.b(y[z.sum(-1) > 0])


def counted(self: Any, y: Tensor, z: Tensor) -> Any:
    return self.b(y) / y[z > 0].shape[0]


def returned(self: Any, y: Tensor, z: Tensor) -> Any:
    return self.b(y), y[z > 0]


def changed_before_it_is_written(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z > 0
    taken = z[mask]
    z.mul_(2)
    y[mask] = taken
    return self.b(y)


def changed_through_a_view(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z > 0
    taken = y[mask]
    taken[:1].mul_(3)
    taken.mul_(2)
    y[mask] = taken
    return self.b(y)


def of_a_sum(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z > 0
    y[mask] = y[mask] / y[mask].sum()
    return self.b(y)


def of_another_mask(self: Any, y: Tensor, z: Tensor) -> Any:
    y[z > 0] = z[z > 0]
    return self.b(y)


def of_another_size(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z.sum(-1) > 0
    y[mask] = z[..., :1][mask]
    return self.b(y)


def updated_in_place(self: Any, y: Tensor, z: Tensor) -> Any:
    y[z.sum(-1) > 0] *= 2
    return self.b(y)


def led_through_layers(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z.sum(-1) > 0
    y[mask] = torch.relu(self.f(y[mask]))
    return self.b(y)


def in_two_parts(self: Any, y: Tensor, z: Tensor) -> Any:
    mask, out = z.sum(-1) > 0, torch.zeros_like(y)
    out[mask], out[~mask] = F.layer_norm(y[mask], y.shape[-1:]), y[~mask] + z[~mask]
    return self.b(out)


def behind_an_axis(self: Any, y: Tensor, z: Tensor) -> Any:
    return self.b(y[:, z.sum((0, 2)) > 0].mean(1) + z.mean(1))


OTHER_USES = {
    into_a_layer: ["a", "c"], counted: [], returned: [], changed_before_it_is_written: [], changed_through_a_view: [],
    of_a_sum: [], of_another_mask: [], of_another_size: ["a", "c"], updated_in_place: ["a", "c"], led_through_layers: ["a", "c"],
    in_two_parts: ["a"], behind_an_axis: ["a"], scaled: ["a"],
}  # fmt: skip


@pytest.mark.parametrize("body", OTHER_USES, ids=lambda body: body.__name__)
def test_what_a_mask_selects_is_used_otherwise(body: Any) -> None:
    """As many as there are: the graph selects, and so does the slim one."""
    model = masked(body)
    model.f = nn.Linear(6, 6, dtype=torch.float64)
    found = graphprune.capture(model, (X,))
    assert not found.opaque and not found.scopes
    for x in (X, OTHER, torch.zeros_like(X)):
        for ours, theirs in zip(run_all(found.module, x), run_all(model, x), strict=True):
            assert max_error(ours, theirs) < 1e-12
    if OTHER_USES[body]:
        result = graphprune.prune(model, (X,), target="channels=50%", ranking="local")
        assert [group.name for group in result.groups.prunable] == OTHER_USES[body]


def run_all(model: Any, x: Tensor) -> tuple[Tensor, ...]:
    result = run(model, (x.clone(),))
    return result if isinstance(result, tuple) else (result,)


def branching(self: Any, y: Tensor, z: Tensor) -> Any:
    rows = y[z.sum(-1) > 0]
    return self.b(y) if rows.shape[0] == 0 else self.b(y) + self.b(rows).mean(0)


def looped_over(self: Any, y: Tensor, z: Tensor) -> Any:
    return sum(self.b(row) for row in y[z.sum(-1) > 0])


def of_a_result(self: Any, y: Tensor, z: Tensor) -> Any:
    rows = self.b(y[z.sum(-1) > 0])
    return self.b(y) + rows.mean(0) if rows.numel() else self.b(y)


def folded(self: Any, y: Tensor, z: Tensor) -> Any:
    return self.b(torch.cat([y[z > 0], y[~(z > 0)]]).view(y.shape))


@pytest.mark.parametrize("body", [branching, looped_over, of_a_result, folded], ids=lambda body: body.__name__)
def test_what_depends_on_how_many_a_mask_selects_does_not_trace(body: Any) -> None:
    """The layers are pruned as scopes at best."""
    assert [scope.path for scope in graphprune.capture(masked(body), (X,)).scopes] == ["a", "c", "b"]


def test_the_reason_says_what_is_not_known() -> None:
    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x[x > 0]
            return y if len(y) > 1 else -y

    with pytest.raises(TraceError, match="how many elements a mask selects depends on values"):
        graphprune.capture(Whole(), (X,))
