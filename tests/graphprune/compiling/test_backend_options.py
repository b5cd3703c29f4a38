"""Options of the backend: which go together, and the modes of the inner one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

import graphprune
from graphprune.errors import UsageError


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "a plan or a target"),
        ({"target": "macs=50%", "plan": "x.json"}, "a plan or a target"),
        ({"target": "macs=50%", "criterium": "l2"}, "no option 'criterium'"),
        ({"target": "macs=50%", "data": []}, "no option 'data'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        graphprune.compile_backend(fx.GraphModule(nn.Module(), fx.Graph()), [], options=options)


def test_what_stays_of_some_layers_needs_no_target() -> None:
    model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    backend = graphprune.Backend(inner="eager", selection={"keep": {"0": "25%"}})
    torch._dynamo.reset()
    torch.compile(model, backend=backend)(x)
    assert [(len(plan.kept["0.weight"][0]), "2.weight" in plan.kept, plan.keep) for plan in backend.plans] == [
        (4, True, {"0": "25%"})
    ]
    assert 0 not in backend.plans[0].kept["2.weight"]
    with pytest.raises(UsageError, match="a plan or a target"):
        graphprune.Backend(selection={"keep": {}})


def test_a_mode_is_that_of_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def inductor(module: fx.GraphModule, examples: Any, **options: Any) -> Any:
        given.append(options)
        return module.forward

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: inductor)
    model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(2, 4)
    for own, mode in ((None, "max-autotune"), ("max-autotune", None)):
        torch._dynamo.reset()
        torch.compile(model, backend=graphprune.Backend(target="macs=50%", mode=own), mode=mode)(x)
    assert given[0] == given[1] and given[0]["config_patches"]["max_autotune"]
    with pytest.raises(UsageError, match="is none of the inner backend"):
        graphprune.Backend(target="macs=50%", inner="eager", mode="max-autotune")(fx.GraphModule(nn.Module(), fx.Graph()), [])
    with pytest.raises(UsageError, match="Write options="):
        graphprune.compile_backend(fx.GraphModule(nn.Module(), fx.Graph()), [], mode="max-autotune")
