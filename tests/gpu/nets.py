"""Small models of each kind, with weights that are the same in every call."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn


class Recurrent(nn.Module):
    """Two LSTM layers and a classifier of (n, 7, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 7, 12) and (n, 10)."""
        scores: Tensor = self.head(self.lstm(x)[0][:, -1])
        return scores


def _vit() -> nn.Module:
    model: nn.Module = torchvision.models.VisionTransformer(
        32, 8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=10
    )
    nn.init.normal_(model.get_parameter("heads.head.weight"))  # zeros in torchvision
    return model


_MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), (1, 3, 64, 64)),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(weights=None), (1, 3, 64, 64)),
    "vit": (_vit, (1, 3, 32, 32)),
    "lstm": (Recurrent, (2, 7, 12)),
}
NAMES = tuple(_MODELS)


def made(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """A model in eval mode, and its input."""
    build, shape = _MODELS[name]
    torch.manual_seed(0)
    return build().eval().to(device, dtype), torch.randn(shape).to(device, dtype)
