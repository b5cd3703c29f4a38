"""Models on a device are pruned there, as they are on the CPU, and proved whatever the precision of products is set to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import graphprune
from tests.gpu.devices import everywhere, on
from tests.gpu.nets import NAMES, made


@pytest.fixture
def _coarse() -> Iterator[None]:
    """Products of float32 in TF32, which a proof must not see."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def _proved(result: graphprune.PruneResult) -> float:
    proof = result.report.verification
    assert proof is not None and proof.passed
    return proof.error


@everywhere
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("_coarse")
def test_the_plan_is_that_of_the_cpu_and_the_slim_model_stays_where_the_model_is(name: str, device: str) -> None:
    """Errors of TF32 would be a thousandth."""
    (model, x), (twin, y) = made(name, device), made(name)
    result = graphprune.prune(model, x, target="channels=60%")
    assert _proved(result) < 2e-5
    assert result.plan.kept == graphprune.prune(twin, y, target="channels=60%", verify=False).plan.kept
    assert on(result.model, device) and on(model, device)
    assert result.model(x).device.type == device and bool(result.model(x).isfinite().all())


@everywhere
@pytest.mark.parametrize("criterion", ["l1", "lamp", "sp-lamp", "fpgm", "euclidean", "cosine", "bn-scale"])
def test_criteria_of_weights_plan_the_same_everywhere(criterion: str, device: str) -> None:
    kept = []
    for where in (device, "cpu"):
        model, x = made("mobilenet_v2", where)
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.data = torch.rand(norm.num_features, generator=torch.Generator().manual_seed(norm.num_features)).to(where)
        kept.append(graphprune.prune(model, x, criterion=criterion, target="channels=50%", verify=False).plan.kept)
    ours, theirs = (
        {(name, axis, unit) for name, axes in one.items() for axis, units in axes.items() for unit in units} for one in kept
    )
    assert len(ours ^ theirs) <= 0.002 * len(theirs)  # scores that are equal to rounding may change places


@everywhere
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_is_kept_and_proved(name: str, dtype: torch.dtype, device: str) -> None:
    if device == "cpu" and name == "mobilenet_v2":
        pytest.skip("slow convolutions in half precision")
    model, x = made(name, device, dtype)
    result = graphprune.prune(model, x, target="channels=60%")
    _proved(result)
    assert on(result.model, device) and {p.dtype for p in result.model.parameters()} == {dtype}


@everywhere
@pytest.mark.parametrize("policy", ["whole", "head_dim"])
def test_heads_go_whole_or_in_part(policy: str, device: str) -> None:
    model, x = made("vit", device)
    _proved(graphprune.prune(model, x, target="channels=50%", ranking="local", policy={"heads": policy}))


@everywhere
def test_a_wrong_slim_model_is_found(device: str) -> None:
    model, x = made("resnet18", device)
    result = graphprune.prune(model, x, target="channels=60%")
    with torch.no_grad():
        result.model.get_parameter("layer3.0.conv1.weight")[0, 0, 0, 0] += 1
    assert not graphprune.verify(model, result.model, result.plan, x).passed


@everywhere
def test_a_file_goes_from_device_to_device(device: str, tmp_path: Any) -> None:
    model, x = made("vit", device)
    result = graphprune.prune(model, x, target="channels=60%")
    graphprune.save(result, tmp_path / "slim.safetensors")
    loaded = graphprune.load(tmp_path / "slim.safetensors").eval()
    torch.testing.assert_close(loaded.to(device)(x), result.model.eval()(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(loaded.cpu()(x.cpu()), result.model(x).cpu(), rtol=1e-2, atol=1e-2)
