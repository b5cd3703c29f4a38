"""Where code reads the widths that it states: of its module or of a layer, in one line or in several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphprune.errors import TargetError
from tests.graphprune.own_class.keeping import pruned


class Recurrent(nn.Module):
    """A recurrent layer that begins with zeros, as many as it says itself; a number of the model is the same by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = 8
        self.rnn, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 2)

    def start(self, batch: int) -> Tensor:
        """The first state."""
        return torch.zeros(1, batch, self.rnn.hidden_size)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.rnn(x, self.start(x.size(0)))[0])


class ByName(Recurrent):
    def start(self, batch: int) -> Tensor:
        width = self.rnn.hidden_size
        layers = 1
        return torch.zeros(layers, batch, width)


class InLines(Recurrent):
    def start(self, batch: int) -> Tensor:
        return torch.zeros(
            (1, batch, self.rnn.hidden_size),
            requires_grad=True,
        )


class Stating(Recurrent):
    def start(self, batch: int) -> Tensor:
        return torch.zeros(1, batch, 2**3)


@pytest.mark.parametrize("kind", [Recurrent, ByName, InLines])
def test_a_state_as_wide_as_a_layer_says_follows(kind: type[Recurrent]) -> None:
    slim: Any = pruned(kind(), torch.randn(2, 5, 6)).model
    assert (slim.rnn.hidden_size, slim.head.in_features, slim.classes) == (4, 4, 8)
    assert slim(torch.randn(3, 4, 6)).shape == (3, 4, 2)


def test_a_state_as_wide_as_the_code_says_stays() -> None:
    with pytest.raises(TargetError, match="the model keeps its class, and its own code"):
        pruned(Stating(), torch.randn(2, 5, 6))


class Own(nn.Conv2d):
    """A convolution with code of its own."""

    def forward(self, x: Tensor) -> Any:
        return F.conv2d(x, self.weight, self.bias)


class Words(nn.Module):
    """A kernel as wide as an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kernel = nn.Embedding(9, 6), Own(1, 2, (2, 6))

    def forward(self, x: Tensor) -> Any:
        return self.kernel(self.words(x).unsqueeze(1)).amax((2, 3))


def test_a_kernel_says_how_wide_it_is() -> None:
    slim: Any = pruned(Words(), torch.randint(0, 9, (2, 5))).model
    assert slim.words.embedding_dim == 3 and slim.kernel.kernel_size == (2, 3)
