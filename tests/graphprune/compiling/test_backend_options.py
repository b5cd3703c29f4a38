"""Options of the backend: which go together, and the modes of the inner one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import fx, nn

import graphprune
from graphprune.errors import UsageError
from tests.graphprune.compiling.test_backend import Broken


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


@pytest.mark.parametrize(
    ("selection", "widths", "warns"),
    [
        ({"keep": {"a": "25%"}}, [4, 16], []),
        ({"keep": {"c": "25%"}}, [16, 4], ["'c'"]),  # said of the first part, which the second one answers
        ({"keep": {"[bc]": "25%"}}, [16, 4], ["'[bc]'"]),  # b is passed on, and stays
        ({"keep": {"a": "25%", "c": 8, "e": 2}}, [4, 8], ["'c', 'e'", "'e'"]),
        ({"target": "channels=50%", "keep": {"c": "25%"}}, [8, 4], ["'c'"]),
        ({"keep": {"c": "50%"}, "exclude": ["a.weight[0]", "e"]}, [16, 8], ["'c', 'e'", "'e'"]),
        ({"keep": {"e": 2}}, [16, 16], ["'e'", "'e'"]),
    ],
)
def test_over_a_graph_break_a_pattern_names_something_of_one_part(
    selection: dict[str, Any], widths: list[int], warns: list[str]
) -> None:
    torch.manual_seed(0)
    model, x = Broken().double().eval(), torch.randn(3, 6, dtype=torch.float64)
    selection = dict(selection)
    backend = graphprune.Backend(target=selection.pop("target", None), inner="eager", selection=selection)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    with warnings.catch_warnings(record=True) as said, torch.no_grad():
        warnings.simplefilter("always")
        compiled(x)
    found = {name: len(kept[0]) for plan in backend.plans for name, kept in plan.kept.items() if 0 in kept}
    assert [found.get("a.weight", 16), found.get("c.weight", 16)] == widths
    texts = [str(one.message) for one in said if "nor had a graph before" in str(one.message)]
    assert [text.partition("to which ")[2].partition(" applies")[0] for text in texts] == warns


def test_in_a_whole_graph_a_pattern_that_names_nothing_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    for selection in ({"keep": {"9": "50%"}}, {"exclude": ["9"]}):
        torch._dynamo.reset()
        backend = graphprune.Backend(target="channels=50%", inner="eager", selection=selection)
        with pytest.raises(Exception, match="='9' matches no"):
            torch.compile(model, backend=backend)(torch.randn(2, 4))


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
