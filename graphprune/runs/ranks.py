"""The processes of a distributed run: one writes, all agree."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from graphprune.errors import RunError

T = TypeVar("T")


def launched() -> int:
    """The number of this process by what launched it, before the processes have met; 0 for a run that is not distributed."""
    return int(os.environ.get("RANK", "0"))


def meet() -> tuple[int, int]:
    """Join the processes that torchrun, accelerate or the like launched, to compute on CPUs; the number of this one, and how many
    there are: (0, 1) for a run that is not distributed."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    dist.init_process_group("gloo", timeout=timedelta(days=1))  # some have more to do than others
    return dist.get_rank(), dist.get_world_size()


def rank() -> int:
    """The number of this process; 0 for a run that is not distributed."""
    return dist.get_rank() if _distributed() else 0


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _distributed() else 1


def shared(value: T) -> T:
    """The first process's value, in all of them."""
    if not _distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def agreed(text: str, what: str) -> None:
    """Raise RunError unless all processes have the same text."""
    if not _distributed():
        return
    digests: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, hashlib.sha256(text.encode()).hexdigest())
    if len(set(digests)) > 1:
        raise RunError(f"The processes of this run do not agree on {what}. Give all of them the same model, data and seed.")


def together() -> None:
    """Wait for all processes."""
    if _distributed():
        dist.barrier()


def leave() -> None:
    """Part from the other processes at the end of a run: their threads, left to the interpreter's exit, may end it in an abort."""
    if _distributed():
        dist.destroy_process_group()


def lost(error: Exception) -> bool:
    """Whether an error says that another process went away."""
    return _distributed() and (isinstance(error, dist.DistError) or "gloo" in str(error) or "closed by peer" in str(error))


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
