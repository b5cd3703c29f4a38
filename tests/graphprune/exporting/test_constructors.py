"""Constructor calls make the layers that they are written for, or there is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth

from graphprune.errors import ArtifactError
from graphprune.exporting.constructors import call_of

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "nn.Conv2d(3, 4, (3, 3))": lambda: nn.Conv2d(3, 4, 3),
    "nn.Conv2d(4, 4, (3, 5), stride=(2, 2), groups=2, bias=False, padding_mode='circular')": lambda: nn.Conv2d(
        4, 4, (3, 5), 2, groups=2, bias=False, padding_mode="circular"
    ),
    "nn.Linear(3, 2, dtype=torch.float64)": lambda: nn.Linear(3, 2).double(),
    "nn.BatchNorm2d(4, momentum=None, affine=False)": lambda: nn.BatchNorm2d(4, momentum=None, affine=False),
    "nn.LayerNorm((4,), elementwise_affine=False)": lambda: nn.LayerNorm(4, elementwise_affine=False),
    "nn.GRU(3, 4, num_layers=2, dropout=0.1)": lambda: nn.GRU(3, 4, 2, dropout=0.1),
    "nn.RNN(3, 4, nonlinearity='relu')": lambda: nn.RNN(3, 4, nonlinearity="relu"),
    "nn.MultiheadAttention(8, 2, batch_first=True)": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    "nn.Embedding(9, 4, padding_idx=1)": lambda: nn.Embedding(9, 4, padding_idx=1),
    "nn.ReLU(inplace=True)": lambda: nn.ReLU(inplace=True),
    "torchvision.ops.StochasticDepth(0.2, 'row')": lambda: StochasticDepth(0.2, "row"),
}


@pytest.mark.parametrize("text", LAYERS)
def test_calls_are_those_that_people_write(text: str) -> None:
    torch.manual_seed(0)
    assert call_of(LAYERS[text]()) == text


def test_a_layer_that_no_call_makes_is_refused() -> None:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(ArtifactError, match="no call of Linear"):
        call_of(layer)


def test_a_path_leads_to_the_class_though_a_function_hides_its_module() -> None:
    """``torchvision.ops.stochastic_depth`` is a module and, as an attribute, a function."""
    made = eval(call_of(StochasticDepth(0.2, "row")), {"torchvision": torchvision})
    assert type(made) is StochasticDepth


def test_what_others_note_on_a_layer_does_not_matter() -> None:
    layer = nn.Linear(3, 2)
    layer._is_initialised = True  # type: ignore[assignment]
    assert call_of(layer) == "nn.Linear(3, 2)"
