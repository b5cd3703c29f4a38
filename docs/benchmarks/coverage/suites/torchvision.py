"""All models of torchvision's list, with inputs of the right kind for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, list_models

from suites.case import Case

#: Input shapes by the start of the name; the first that fits counts. Video clips are as small as the models accept.
_SHAPES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("inception", (1, 3, 299, 299)),
    ("r3d", (1, 3, 4, 56, 56)),
    ("mc3", (1, 3, 4, 56, 56)),
    ("r2plus1d", (1, 3, 4, 56, 56)),
    ("s3d", (1, 3, 16, 224, 224)),
    ("mvit", (1, 3, 16, 224, 224)),
    ("swin3d", (1, 3, 16, 112, 112)),
    ("raft", (1, 3, 128, 128)),
    ("", (1, 3, 224, 224)),
)
#: What marks a detector: these take a list of images of any sizes.
_DETECTORS = ("rcnn_", "retinanet_", "fcos_", "ssd300_", "ssdlite320_")
_IMAGES = ((3, 160, 200), (3, 192, 160))


def names() -> list[str]:
    """Keys of all of torchvision's models."""
    return [f"torchvision:{name}" for name in list_models()]


def case(name: str) -> Case:
    """A torchvision model and its inputs."""
    return Case(f"torchvision:{name}", lambda: _build(name), lambda: _inputs(name))


def _detector(name: str) -> bool:
    return any(mark in name for mark in _DETECTORS)


def _build(name: str) -> nn.Module:
    model: nn.Module = get_model(name, weights=None, **_options(name))
    return model.eval()


def _options(name: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if name.startswith("quantized_"):
        options["quantize"] = False
    if "googlenet" in name or "inception" in name:
        options["init_weights"] = False  # the usual initialisation of layers will do, and is quick
    if _detector(name) or name.startswith(("deeplab", "fcn", "lraspp")):
        options["weights_backbone"] = None
    if _detector(name) and "ssd" not in name:
        options |= {"min_size": 160, "max_size": 224}  # what images are resized to: the same model on fewer pixels
    return options


def _inputs(name: str) -> Any:
    generator = torch.Generator().manual_seed(0)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=generator)

    if _detector(name):
        return ([random(shape) for shape in _IMAGES],)
    kind = name.removeprefix("quantized_")
    shape = next(shape for start, shape in _SHAPES if kind.startswith(start))
    return (random(shape), random(shape)) if kind.startswith("raft") else random(shape)
