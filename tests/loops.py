"""A small real training loop for tests: scikit-learn's digits, SGD with momentum, a linear schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from graphprune.calibration import Calibration

INPUT = (1, 1, 8, 8)


def digits(dtype: torch.dtype = torch.float32, count: int = 900) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and validation images of shape (n, 1, 8, 8) and labels."""
    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x / 16, dtype=dtype).reshape(-1, 1, 8, 8), torch.tensor(y)
    return images[:count], labels[:count], images[count : count + 400], labels[count : count + 400]


class Residual(nn.Module):
    """A stem, a residual block and a classifier of (n, 1, 8, 8)."""

    def __init__(self, width: int = 12, inner: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 1, 8, 8) and (n, 10)."""
        x = functional.relu(self.bn(self.stem(x)))
        y = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(x + self.bn2(self.conv2(y)))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


@dataclass
class DigitsLoop:
    """``train`` and ``evaluate`` as methods want them. epochs: of the schedule. trained: the epochs of every call, in order."""

    epochs: int
    dtype: torch.dtype = torch.float32
    rate: float = 0.2
    count: int = 900
    trained: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x, self.y, self.x_val, self.y_val = digits(self.dtype, self.count)

    def train(self, model: nn.Module, epochs: range, state: Any, /, **extras: nn.Module) -> Any:
        """SGD with momentum; the learning rate falls linearly over the schedule."""
        optimiser = torch.optim.SGD(model.named_parameters(), lr=self.rate, momentum=0.9, weight_decay=1e-4)
        if state is not None:
            optimiser.load_state_dict(state["optimiser"])
        model.train()
        for epoch in epochs:
            self.trained.append(epoch)
            for group in optimiser.param_groups:
                group["lr"] = self.rate * (1 - epoch / self.epochs)
            for index in torch.randperm(len(self.x)).split(64):
                optimiser.zero_grad()
                self.loss(model, index, extras.get("teacher")).backward()
                optimiser.step()
        return {"optimiser": optimiser.state_dict()}

    def loss(self, model: nn.Module, index: Tensor, teacher: nn.Module | None) -> Tensor:
        """Cross-entropy, with the mean squared distance to a teacher's scores."""
        scores = model(self.x[index])
        loss = functional.cross_entropy(scores, self.y[index])
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher(self.x[index])
            loss = loss + 0.1 * functional.mse_loss(scores, wanted)
        return loss

    def evaluate(self, model: nn.Module, /) -> float:
        """Top-1 accuracy on the validation images."""
        model.eval()
        with torch.no_grad():
            return float((model(self.x_val).argmax(1) == self.y_val).double().mean())

    @property
    def data(self) -> Calibration:
        """The first 300 training images."""
        return Calibration([(self.x[a : a + 100], self.y[a : a + 100]) for a in (0, 100, 200)])
