"""Training in a process group of a device: parameters divided by FSDP2, gradients exchanged by DDP, totals of calibration."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import graphprune
from graphprune.training import sharding
from tests.gpu.devices import everywhere
from tests.gpu.nets import made


@pytest.fixture
def _group(device: str, tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    if not dist.is_available():
        pytest.skip("needs torch.distributed")
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _slim(device: str) -> tuple[nn.Module, Tensor]:
    model, x = made("vit", device)
    return graphprune.prune(model, x, target="channels=60%").model, x


def _step(model: nn.Module, x: Tensor) -> torch.optim.Optimizer:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(x).square().mean().backward()
    optimiser.step()
    return optimiser


@everywhere
@pytest.mark.usefixtures("_group")
def test_a_divided_slim_model_trains_as_the_whole_one_and_comes_back(device: str) -> None:
    slim, x = _slim(device)
    whole, back = copy.deepcopy(slim), copy.deepcopy(slim)
    divided = sharding.shard(slim, torch.device(device))
    _step(whole, x)
    optimiser = _step(divided, x)
    sharding.put_back(back, divided)
    for (name, wanted), found in zip(whole.named_parameters(), back.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4, msg=name)
    state = sharding.optimiser_state(optimiser)
    assert all(t.device.type == "cpu" for entry in state["state"].values() for t in entry.values() if t.dim())
    sharding.load_optimiser_state(optimiser, state)


@everywhere
@pytest.mark.usefixtures("_group")
def test_a_slim_model_trains_in_data_parallel(device: str) -> None:
    slim, x = _slim(device)
    whole = copy.deepcopy(slim)
    parallel = DistributedDataParallel(slim, device_ids=None if device == "cpu" else [torch.device(device)])
    _step(parallel, x)
    _step(whole, x)
    for wanted, found in zip(whole.parameters(), slim.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
