"""The model of ``graphprune demo``, a small CNN for images of 8x8 pixels, and its training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphprune.cli.output import Task
from graphprune.sources.images import Images

_BATCH = 64


class _Residual(nn.Module):
    """``relu(x + f(x))``: the channels of x and of f are coupled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, channels, h, w) in and out."""
        return functional.relu(x + self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))))


class _Separable(nn.Module):
    """A depthwise convolution, whose channels are those of its input, and a pointwise one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, inputs, h, w) and (n, outputs, h, w)."""
        return functional.relu(self.bn(self.pointwise(self.depthwise(x))))


class SmallCNN(nn.Module):
    """A classifier of (n, 1, 8, 8) with a residual block, a depthwise convolution and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.block = _Residual(32)
        self.wide = _Separable(32, 48)
        self.narrow = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 1, 8, 8) and (n, 10)."""
        x = self.block(functional.relu(self.bn(self.stem(x))))
        x = functional.max_pool2d(x, 2)
        x = torch.cat([self.wide(x), functional.relu(self.narrow(x))], dim=1)
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def small_cnn() -> nn.Module:
    """A freshly initialised :class:`SmallCNN`; a model source, ``graphprune.cli.digits:small_cnn``."""
    return SmallCNN()


def train(model: nn.Module, images: Images, epochs: int, rate: float, seed: int, task: Task) -> None:
    """Train in place with Adam and a one-cycle schedule, and leave the model in eval mode. seed: of the order of the images."""
    x, y = torch.from_numpy(images.x), torch.from_numpy(images.y)
    generator = torch.Generator().manual_seed(seed)
    steps = -(-len(y) // _BATCH)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(y), generator=generator), _BATCH):
            optimiser.zero_grad()
            torch.autograd.backward(functional.cross_entropy(model(x[batch]), y[batch]))
            optimiser.step()
            schedule.step()
        task.advance()
    model.eval()
