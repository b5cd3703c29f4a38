"""Run in two processes: a sharded model is pruned in each, and what came of it goes to the folder that is named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

import graphprune
from graphprune.errors import GraphpruneError
from graphprune.placement import placement_of
from tests.graphprune.streaming.nets import INPUTS, Net

TARGET = "channels=50%"
CRITERIA = ["l2", "attention", "obs"]


def make(tied: bool = True) -> Net:
    """The same model in each process."""
    torch.manual_seed(0)
    return Net(tied=tied).double().eval()


def batches() -> list[Tensor]:
    """Three to one process and two to the other, of several sizes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 40, (size, 6), generator=generator) for size in (3, 1, 2, 1, 4)]


def crowd() -> tuple[nn.Module, Tensor, list[Tensor]]:
    """A model whose activations have several entries for each sample along their first axis, its input, and batches of which only
    one process has one with two samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Unflatten(0, (-1, 5))).double()
    return model.eval(), torch.randn(2, 5, 4).double(), [torch.randn(size, 5, 4).double() for size in (2, 1, 1, 1)]


def shard(model: nn.Module, *parts: str) -> nn.Module:
    """Divide a model, and some of its modules by themselves."""
    mesh = init_device_mesh("cpu", (2,))
    for part in parts:
        fully_shard(model.get_submodule(part), mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def found(result: graphprune.PruneResult, x: Tensor, folder: Path) -> dict[str, Any]:
    """What can be compared with a pruning in one process."""
    assert all(isinstance(parameter, DTensor) for parameter in result.model.parameters())
    held = sum(p.to_local().numel() for p in result.model.parameters() if isinstance(p, DTensor))
    result.model(x).square().sum().backward()  # it trains
    gradients = [p.grad.full_tensor() for p in result.model.parameters() if isinstance(p.grad, DTensor)]
    graphprune.save(result, folder / f"slim{torch.distributed.get_rank()}.safetensors")
    verification = result.report.verification
    assert verification is not None
    return {
        "kept": result.plan.kept,
        "output": result.model(x).detach(),
        "held": held,
        "gradients": len(gradients),
        "proved": [verification.passed, verification.error, verification.compared],
    }


def refused(model: nn.Module, **how: Any) -> str:
    """What a pruning says."""
    try:
        graphprune.prune(model, INPUTS, target=TARGET, **how)
    except GraphpruneError as error:
        return str(error)
    return ""


def main(rank: int, folder: Path) -> None:
    """Write what this process has."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    own = [batch for index, batch in enumerate(batches()) if index % 2 == rank]
    results: dict[str, Any] = {}
    for criterion in CRITERIA:
        model = shard(make(), "blocks.0", "blocks.1.up", "blocks.3")
        model(INPUTS)  # leaves the root's parameters whole
        pruned = graphprune.prune(model, INPUTS, target=TARGET, criterion=criterion, data=own)
        results[criterion] = found(pruned, INPUTS, folder)
        results[criterion]["again"] = graphprune.prune(pruned.model, INPUTS, target=TARGET).plan.kept
    model, x, data = crowd()
    pruned = graphprune.prune(shard(model, "1"), x, target=TARGET, criterion="variance", data=data[2 * rank : 2 * rank + 2])
    results["crowd"] = found(pruned, x, folder)
    model = shard(make())
    placement = placement_of(model)
    assert placement is not None
    weights = placement.weights(placement.plain)
    results["original"] = all(torch.equal(whole, weights[name]) for name, whole in make().named_parameters())
    parallel = make(tied=False)
    mesh = init_device_mesh("cpu", (2,))
    parallel.head.weight = nn.Parameter(distribute_tensor(parallel.head.weight.detach(), mesh, [Replicate()]))
    results["refused"] = [refused(model, criterion="taylor", data=own), refused(parallel)]
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]))
