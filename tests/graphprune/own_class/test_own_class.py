"""Slim models of the original's own class: its code runs the slim layers, or the layers stay as they are, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from graphprune.errors import ArtifactError, RewriteError
from tests.graphprune.own_class.keeping import IMAGE, pruned, reasons


class Net(nn.Module):
    """A residual net with a method of its own, and a list of layers that is no module list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.names = ["stem", "body"]

    def features(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        return x + self.body(x)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x).mean((2, 3)))

    def loss(self, x: Tensor, y: Tensor) -> Any:
        return F.cross_entropy(self(x), y)


def test_the_slim_model_is_of_the_class_with_its_methods() -> None:
    """It computes what the slim graph computes, at other sizes too, and its own methods work."""
    model = Net()
    result = pruned(model)
    slim = result.model
    assert type(slim) is Net and slim.stem.out_channels == 4 and slim.head.in_features == 4
    assert model.stem.out_channels == 8  # the original is not changed
    other = torch.randn(5, 3, 8, 8)
    assert torch.equal(slim(other), result.graph(other))
    slim.loss(IMAGE, torch.tensor([0, 1])).backward()
    assert slim.features(IMAGE).shape[1] == 4


def test_it_shares_its_layers_with_the_graph(tmp_path: Path) -> None:
    """What is trained is what is saved; a file loads as a graph, and into the class."""
    model = Net()
    result = pruned(model)
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(0.5)
    assert torch.equal(result.model(IMAGE), result.graph(IMAGE))
    graphprune.save(result, tmp_path / "slim.safetensors")
    own = graphprune.load(tmp_path / "slim.safetensors", model)
    assert type(own) is Net
    assert torch.equal(own(IMAGE), result.model(IMAGE))
    assert torch.equal(graphprune.load(tmp_path / "slim.safetensors")(IMAGE), result.model(IMAGE))


def test_a_file_of_a_model_that_keeps_its_class_goes_with_that_model_only(tmp_path: Path) -> None:
    """Another model is refused; a file that keeps no class is a graph whatever is given."""
    graphprune.save(pruned(Net()), tmp_path / "slim.safetensors")
    with pytest.raises(ArtifactError, match="does not go with this Sequential"):
        graphprune.load(tmp_path / "slim.safetensors", nn.Sequential(nn.Linear(2, 2)))
    graphprune.save(pruned(Net(), keep_class=False), tmp_path / "graph.safetensors")
    assert isinstance(graphprune.load(tmp_path / "graph.safetensors", Net()), torch.fx.GraphModule)


class States(nn.Module):
    """Its code states the width of one layer, and not that of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6 * 256, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.second(self.first(x))
        return self.head(x.reshape(x.shape[0], 6 * 256))


def test_a_width_that_the_code_states_stays_with_the_line() -> None:
    """The rest is pruned. Without keep_class both are."""
    slim = pruned(States())
    assert (slim.model.first.out_channels, slim.model.second.out_channels) == (4, 6)
    (reason,) = [text for text in reasons(slim) if "own code" in text]
    assert "reshape" in reason and "test_own_class.py:" in reason
    free = pruned(States(), keep_class=False)
    assert free.graph.get_submodule("second").out_channels == 3


def test_tied_and_bare_parameters_are_shared() -> None:
    """A parameter under two names, and one that the code reads itself, are those of the graph, tied as before."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix = nn.Embedding(10, 8), nn.Linear(8, 8)
            self.shift = nn.Parameter(torch.randn(8))
            self.readout = nn.Linear(8, 10, bias=False)
            self.readout.weight = self.table.weight

        def forward(self, x: Tensor) -> Any:
            return self.readout(self.mix(self.table(x)) + self.shift + self.table(x))

    result = pruned(Tied(), torch.tensor([[1, 2, 3]]))
    slim = result.model
    assert slim.readout.weight is slim.table.weight
    assert slim.shift.shape == (4,)
    assert torch.equal(slim(torch.tensor([[4, 5]])), result.graph(torch.tensor([[4, 5]])))


def test_a_plan_that_the_code_cannot_follow_is_refused() -> None:
    """A plan made without it may cut what the code states."""
    plan = pruned(States(), keep_class=False).plan
    with pytest.raises(RewriteError, match="The code of States cannot follow this plan"):
        graphprune.apply_plan(States().eval(), IMAGE, plan, keep_class=True)


def test_weights_that_hooks_compute_are_copied() -> None:
    """Those of the older weight norm are attributes with a history, until the model runs without gradients."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.utils.weight_norm(nn.Conv2d(3, 8, 1)), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x).relu())

    result = pruned(Normed())
    assert result.report.widths == {"a.weight_v": (8, 4)}
    assert torch.equal(result.model(IMAGE), result.graph(IMAGE))


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    """With what to do."""

    class Alone(Net):
        def __deepcopy__(self, memo: dict[int, Any]) -> Alone:
            raise TypeError("there is only one")

    with pytest.raises(RewriteError, match=r"cannot be copied .TypeError: there is only one.*Leave out keep_class"):
        pruned(Alone())


def test_scopes_keep_their_classes(tmp_path: Path) -> None:
    """A model that does not trace as a whole: the classes of its parts stay, too."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.out = Net(), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Any:
            y = self.net(x)
            return self.out(y) if y.sum() > 0 else -self.out(y)

    model = Whole().eval()
    result = pruned(model)
    assert type(result.model) is Whole and type(result.model.net) is Net and result.model.net.stem.out_channels == 4
    graphprune.save(result, tmp_path / "slim.safetensors")
    assert torch.equal(graphprune.load(tmp_path / "slim.safetensors", model)(IMAGE), result.model(IMAGE))


class Agent(nn.Module):
    """Returns an action that it draws, in eval mode too, and how likely that was."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.actor = nn.Linear(6, 16), nn.Linear(16, 64)

    def forward(self, x: Tensor) -> Any:
        found = torch.distributions.Categorical(logits=self.actor(self.body(x).relu()))
        action = found.sample()
        return action, found.log_prob(action)


def test_what_draws_in_eval_mode_is_compared_by_the_same_draws() -> None:
    model = Agent()
    state = torch.get_rng_state()
    found = pruned(model, torch.ones(4, 6))
    assert type(found.model) is Agent and found.report.widths == {"body": (16, 8)}
    assert torch.equal(torch.get_rng_state(), state)
