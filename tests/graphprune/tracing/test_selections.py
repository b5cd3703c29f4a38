"""What a mask of unknown values selects, and where it may go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
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


def added_to(self: Any, y: Tensor, z: Tensor) -> Any:
    """As ranges are kept from being zero before something is divided by them."""
    span = (y - z).abs()
    span[span < 1.0] += 1.0
    return self.b(y / span)


def scaled(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z.sum(-1) > 0
    rows = 2 - y[mask] / 3
    rows *= 0.5
    y[mask] = -(rows + z[mask] * 4) - self.b.bias[0]
    return self.b(y)


@pytest.mark.parametrize("body", [single_elements, whole_rows, both_ways, added_to, scaled], ids=lambda body: body.__name__)
def test_what_a_mask_selects_is_written_where_it_selects(body: Any) -> None:
    model = masked(body)
    found = graphprune.capture(model, (X,))
    assert not found.opaque and not found.scopes
    for x in (X, OTHER):
        assert max_error(run(found.module, (x,)), run(model, (x,))) < 1e-12
    result = graphprune.prune(model, (X,), target="channels=50%")
    assert [group.name for group in result.groups.prunable] == ["a"]


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


def of_another_mask(self: Any, y: Tensor, z: Tensor) -> Any:
    y[z > 0] = z[z > 0]
    return self.b(y)


def of_another_size(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z.sum(-1) > 0
    y[mask] = z[..., :1][mask]
    return self.b(y)


def written_by_itself(self: Any, y: Tensor, z: Tensor) -> Any:
    """A product, of which elements that are not chosen may have no gradient."""
    mask = z > 0
    y[mask] = y[mask] * z[mask]
    return self.b(y)


def inverted(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z > 0
    z[mask] = 1 / z[mask]
    return self.b(z)


def added_to_what_changes(self: Any, y: Tensor, z: Tensor) -> Any:
    mask = z > 0
    taken = z[mask]
    z.mul_(2)
    y[mask] = taken + 1
    return self.b(y)


OTHER_USES = [
    written_by_itself,
    inverted,
    added_to_what_changes,
    into_a_layer,
    counted,
    returned,
    changed_before_it_is_written,
    of_another_mask,
    of_another_size,
]


@pytest.mark.parametrize("body", OTHER_USES, ids=lambda body: body.__name__)
def test_other_uses_do_not_trace(body: Any) -> None:
    """Their sizes are not known; the layers are pruned as scopes at best."""
    assert [scope.path for scope in graphprune.capture(masked(body), (X,)).scopes] == ["a", "c", "b"]


def test_gradients_are_those_of_the_model() -> None:
    model = masked(added_to)
    slim = graphprune.capture(model, (X,)).module
    (model(X) ** 2).sum().backward()
    (slim(X) ** 2).sum().backward()
    for name, parameter in model.named_parameters():
        grad = slim.get_parameter(name).grad
        assert grad is not None and parameter.grad is not None and max_error(grad, parameter.grad) < 1e-12


def test_the_reason_says_what_is_not_known() -> None:
    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0]

    with pytest.raises(TraceError, match="how many elements a mask selects depends on values"):
        graphprune.capture(Whole(), (X,))
