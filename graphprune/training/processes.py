"""One process or many: devices, process groups and exchanges of the built-in loop, by Hugging Face accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from graphprune.errors import UsageError
from graphprune.training.sharding import shard

_OTHERS: Final = ("DEEPSPEED", "MEGATRON_LM")  # ways to launch that need the loop to be theirs


class Processes:
    """The processes that train together: those of ``torchrun`` or ``accelerate launch``, else this one alone.

    device: where this process computes; None: the accelerator that there is, else the CPU. shard: divide models among them, as
    ``accelerate launch --use_fsdp`` asks for, too. Raises UsageError when accelerate is not installed, or was launched for
    something that the built-in loop does not do.
    """

    def __init__(self, device: torch.device | str | None = None, *, shard: bool = False) -> None:
        try:
            from accelerate import PartialState
        except ModuleNotFoundError as error:
            raise UsageError(
                "The built-in training loop needs accelerate, which is not installed. "
                "Install it with: pip install 'graphprune[train]', or give a loop of your own."
            ) from error
        other = next(filter(_launched_with, _OTHERS), None)
        if other is not None:
            raise UsageError(f"The built-in loop was launched with {other}, which it does not use. Give a loop of your own.")
        on_cpu = not torch.accelerator.is_available() if device is None else torch.device(device).type == "cpu"
        state: Any = PartialState(cpu=on_cpu)
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if state.num_processes != launched:
            raise UsageError(
                f"{launched} processes were launched, but accelerate was set up before for {state.num_processes}. "
                "Make the Trainer first, on the same kind of device."
            )
        self.count: int = state.num_processes
        self.index: int = state.process_index
        self.device = torch.device(device) if device is not None else torch.device(state.device)
        self.sharded = self.count > 1 and (shard or _launched_with("FSDP"))

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model for training: its gradients are averaged over the processes. A sharded one is a copy."""
        if self.sharded:
            return shard(model, self.device)
        if self.count == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        devices = None if self.device.type == "cpu" else [self.device]
        return DistributedDataParallel(model, device_ids=devices)

    @contextmanager
    def apart(self, seed: int) -> Iterator[None]:
        """A block in which the processes draw different random numbers, by a common seed; one process alone goes on as it was."""
        devices = [] if self.device.type == "cpu" else [self.device]
        with torch.random.fork_rng(devices, enabled=self.count > 1, device_type=self.device.type):
            if self.count > 1:
                torch.manual_seed(seed + self.index)
            yield

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same on each."""
        if self.count == 1:
            return values
        from accelerate.utils import gather

        found: Tensor = gather(values[None])
        return found.sum(0)

    def of_first(self, values: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the first process."""
        if self.count > 1:
            from accelerate.utils import broadcast

            for value in values:
                value.copy_(broadcast(value.clone()))


def _launched_with(name: str) -> bool:
    """Whether ``accelerate launch`` was told to use something."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"
