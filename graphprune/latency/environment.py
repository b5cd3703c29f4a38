"""What a latency was measured in: times of one environment say nothing about another."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from graphprune.devices import check_device

_WHAT: Final = {
    "device": "device",
    "name": "device name",
    "dtype": "dtype",
    "layout": "memory layout",
    "torch": "torch version",
    "threads": "number of threads",
    "compile": "compile mode",
}


class Environment(BaseModel):
    """Where and how a model runs.

    device: ``cpu`` or ``cuda``. name: of the processor or the card. dtype: of most parameters. layout: ``contiguous`` or
    ``channels_last``. threads: of torch on the CPU, 0 on a GPU. compile: ``eager`` or ``compile`` (torch.compile).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    device: Literal["cpu", "cuda"]
    name: str
    dtype: str
    layout: str
    torch: str
    threads: int
    compile: Literal["eager", "compile"] = "eager"

    def difference(self, other: Environment) -> str:
        """The first difference in words, this one's value first; empty where there is none."""
        for field, what in _WHAT.items():
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                return f"the {what} is {mine} here and {theirs} there"
        return ""


def environment_of(module: nn.Module, device: str = "cpu", *, compile: bool = False) -> Environment:
    """The environment that a model would run in. Raises UsageError for a device that does not exist here."""
    check_device(device)
    return Environment(
        device="cuda" if device == "cuda" else "cpu",
        name=torch.cuda.get_device_name() if device == "cuda" else _processor(),
        dtype=_dtype(module),
        layout=_layout(module),
        torch=str(torch.__version__),
        threads=torch.get_num_threads() if device == "cpu" else 0,
        compile="compile" if compile else "eager",
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named and named[0] else platform.processor() or platform.machine()


def _dtype(module: nn.Module) -> str:
    sizes: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    most: Any = max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)
    return str(most).removeprefix("torch.")


def _layout(module: nn.Module) -> str:
    """Channels-last where some four-dimensional parameter is laid out so and not contiguous."""
    last = any(p.dim() == 4 and not p.is_contiguous() for p in module.parameters())
    return "channels_last" if last else "contiguous"
