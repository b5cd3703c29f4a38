"""What the code of a model holds to its width: checks, numbers that a width enters, and what its train mode does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.errors import RewriteError
from tests.graphprune.own_class.keeping import pruned, reasons


def test_recurrent_layers_run_in_train_mode() -> None:
    """Their class checks its input by a number of its own."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.lstm, self.head = nn.Linear(4, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.lstm(self.first(x))[0])

    result = pruned(Recurrent(), torch.randn(2, 5, 4))
    slim = result.model
    assert (slim.lstm.input_size, slim.lstm.hidden_size, slim.head.in_features) == (4, 3, 3)
    slim.train()(torch.randn(3, 7, 4)).sum().backward()


class Asserts(nn.Module):
    """Its code checks a width of its own in Python, which no graph shows."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if x.shape[-1] != self.width:
            raise ValueError(f"expected {self.width} features")
        return self.head(self.second(x))


def test_a_check_in_python_keeps_its_width() -> None:
    """The code would raise; the layer after the check is pruned."""
    result = pruned(Asserts(), torch.randn(2, 4))
    assert (result.model.first.out_features, result.model.second.out_features) == (8, 4)
    assert any("expected 8 features" in text for text in reasons(result))


class Scaled(nn.Module):
    """Its code computes with a width, silently."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        return self.head(self.second(x / math.sqrt(x.shape[-1])))


def test_a_number_that_a_width_enters_keeps_it() -> None:
    """The graph pins the number; the code could not."""
    result = pruned(Scaled(), torch.randn(2, 4))
    assert (result.model.first.out_features, result.model.second.out_features) == (8, 4)
    assert any("truediv" in text for text in reasons(result))


class Boxed(Scaled):
    """As a tensor, which no operator shows the value of."""

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        return self.head(self.second(x / torch.sqrt(torch.tensor(x.shape[-1]))))


class Noted(Scaled):
    """As a constant, of a number that Python has made plain."""

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        return self.head(self.second(x + torch.tensor([float(str(x.shape[-1]))])))


@pytest.mark.parametrize("kind", [Boxed, Noted])
def test_a_number_in_a_tensor_keeps_its_width(kind: type[nn.Module]) -> None:
    """The scale of torchvision's RAFT is such a one: the operators are the same, and the numbers would not be."""
    result = pruned(kind(), torch.randn(2, 4))
    given = torch.randn(3, 4)
    assert (result.model.first.out_features, result.model.second.out_features) == (8, 4)
    assert torch.equal(result.model(given), result.graph(given))
    plan = pruned(kind(), torch.randn(2, 4), keep_class=False).plan
    with pytest.raises(RewriteError, match="cannot follow this plan"):
        graphprune.apply_plan(kind().eval(), torch.randn(2, 4), plan, keep_class=True)


class Auxiliary(nn.Module):
    """A head that only train mode has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head, self.aux = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        out = self.head(self.second(x))
        return (out, self.aux(x)) if self.training else out


def test_what_only_train_mode_reads_stays_wide() -> None:
    """The auxiliary head goes on to work when the slim model is trained."""
    result = pruned(Auxiliary(), torch.randn(2, 4))
    slim = result.model.train()
    assert (slim.first.out_features, slim.second.out_features) == (8, 4)
    out, aux = slim(torch.randn(2, 4))
    (out.sum() + aux.sum()).backward()
    assert any("in train mode" in text for text in reasons(result))


class Masking(nn.Module):
    """Train mode looks at data, and writes a parameter of its own into a hidden layer: as wav2vec 2.0 masks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.masked = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.training:
            mask = torch.rand(len(x)) < 0.5 + float(x.sum() * 0)
            x[mask] = self.masked
        return self.head(self.second(x))


def test_train_mode_that_looks_at_data_is_tried_on_data() -> None:
    """The user's random numbers are those that they would have been."""
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    model = Masking()
    torch.manual_seed(3)
    slim = pruned(model, torch.ones(6, 4)).model.train()
    assert torch.equal(torch.rand(4), expected)
    assert (slim.first.out_features, slim.second.out_features) == (8, 4)
    slim(torch.randn(6, 4)).sum().backward()


class Blind(Masking):
    """The same without a look at data: on the meta device any shape of what is written would do."""

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.training:
            x[torch.rand(len(x), device=x.device) < 0.5] = self.masked
        return self.head(self.second(x))


def test_what_train_mode_writes_through_a_mask_has_to_fit() -> None:
    """Whether the mask that is drawn selects something or not."""
    slim = pruned(Blind(), torch.ones(6, 4)).model.train()
    assert (slim.first.out_features, slim.second.out_features) == (8, 4)
    slim(torch.randn(6, 4)).sum().backward()
