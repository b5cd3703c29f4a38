"""The models of timm: all names, or the smallest model of each family (a module of timm.models)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from suites.case import Case

SMALLEST = Path(__file__).with_name("timm_smallest.json")


def names() -> list[str]:
    """Keys of all of timm's models."""
    return [f"timm:{name}" for name in timm.list_models(module="")]


def smallest() -> list[str]:
    """Keys of the smallest model of each family, as :func:`pick` found them."""
    return [f"timm:{name}" for name in json.loads(SMALLEST.read_text()).values()]


def pick() -> dict[str, str]:
    """The model with the fewest parameters of each family, counted on the meta device; takes minutes.

    timm's own ``test_`` models, made to be tiny and not to be used, do not count.
    """
    picked: dict[str, str] = {}
    for family in timm.list_modules():
        sizes = {name: _size(name) for name in timm.list_models(module=family) if not name.startswith("test_")}
        picked[family] = min(sizes, key=lambda name: (sizes[name], name))
    return picked


def case(name: str) -> Case:
    """A timm model and its inputs."""
    return Case(f"timm:{name}", lambda: _build(name), lambda: _inputs(name))


def _build(name: str) -> nn.Module:
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model.eval()


def _inputs(name: str) -> Tensor:
    config: Any = timm.get_pretrained_cfg(name)
    return torch.rand((1, *config.input_size), generator=torch.Generator().manual_seed(0))


def _size(name: str) -> float:
    try:
        with torch.device("meta"):
            model: nn.Module = timm.create_model(name, pretrained=False)
    except Exception:  # a few constructors compute with the values of tensors
        model = timm.create_model(name, pretrained=False)
    return sum(parameter.numel() for parameter in model.parameters())
