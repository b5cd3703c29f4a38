"""Output classes, as models of transformers return them, come back from a file by the names of their fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import graphprune


@dataclass
class Output(dict[str, Any]):
    """An output class, as those of transformers are: its fields are attributes, and those that are set are items."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden: Any = None

    def __post_init__(self) -> None:
        self.update({name: value for name, value in vars(self).items() if value is not None})


class Returns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Output:
        hidden = self.first(x).relu()
        return Output(logits=self.last(hidden), hidden=(hidden.sum(1), [hidden.mean(1)]))

    def best(self, x: Tensor) -> Tensor:
        return torch.argmax(self(x).logits, 1)


def test_an_output_class_is_kept_by_the_names_of_its_fields(tmp_path: Path) -> None:
    model, x = Returns().double().eval(), torch.randn(5, 4, dtype=torch.float64)
    result = graphprune.prune(model, x, target="channels=50%")
    path = tmp_path / "a.safetensors"
    graphprune.save(result, path)
    loaded: Any = graphprune.load(path)
    wanted: Any = result.model(x)
    found: Any = loaded(x)
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.hidden[1][0], wanted.hidden[1][0])
    assert found.loss is None and list(found) == list(wanted) == ["logits", "hidden"]
    assert found["logits"] is found[0] is found.logits and len(found[:2]) == len(found.to_tuple()) == 2
    assert graphprune.verify(model, loaded, result.plan, x).passed
    graphprune.save(loaded, tmp_path / "b.safetensors", like=path)
    again = graphprune.prune(graphprune.load(tmp_path / "b.safetensors"), x, target="channels=50%")
    graphprune.save(again, path)
    assert torch.equal(graphprune.load(path)(x).logits, again.model(x).logits)
    compiled: Any = torch.compile(loaded, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x).logits, found.logits)
    assert torch.equal(torch.export.export(loaded, (x,)).module()(x).logits, found.logits) and isinstance(found, dict)


def test_a_model_that_keeps_its_class_returns_its_own_output_class(tmp_path: Path) -> None:
    model, x = Returns(), torch.randn(5, 4)
    result = graphprune.prune(model, x, target="channels=50%", keep_class=True)
    graphprune.save(result, tmp_path / "a.safetensors")
    own = graphprune.load(tmp_path / "a.safetensors", Returns())
    assert isinstance(own, Returns) and isinstance(own(x), Output)
    assert isinstance(result.model, Returns) and torch.equal(own.best(x), result.model.best(x))
