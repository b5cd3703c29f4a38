"""The models of the benchmark: residual networks (option A), VGG-16 with batch norm and MobileNetV2, for 32x32 images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
import torchvision
from cifar_resnet import resnet20, resnet56
from torch import nn

_VGG16: Final = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)


def vgg16_bn() -> nn.Module:
    """VGG-16 with batch norm and a single linear layer, as all papers on CIFAR take it."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in _VGG16:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def mobilenet_v2() -> nn.Module:
    """torchvision's MobileNetV2, with the strides of the first two reductions taken out for 32x32 images."""
    model = torchvision.models.mobilenet_v2(num_classes=10)
    model.features[0][0].stride = (1, 1)
    model.features[2].conv[1][0].stride = (1, 1)
    return model


MODELS: Final[Mapping[str, Callable[[], nn.Module]]] = {
    "resnet20": resnet20,
    "resnet56": resnet56,
    "vgg16_bn": vgg16_bn,
    "mobilenet_v2": mobilenet_v2,
}


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Weights of akamaster/pytorch_resnet_cifar10: under ``state_dict``, with names that begin with ``module.``."""
    found = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in found.items()})
