"""Models that keep their class, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import graphprune

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def pruned(model: nn.Module, inputs: Any = IMAGE, **how: Any) -> Any:
    """The result of taking half of every group; the class stays."""
    usual: dict[str, Any] = {"target": "channels=50%", "ranking": "local", "keep_class": True}
    return graphprune.prune(model.eval(), inputs, **(usual | how))


def reasons(result: Any) -> list[str]:
    """Why what is frozen is."""
    return [group.reason.text for group in result.groups.frozen if group.reason is not None]
