"""Slim and masked models, and the backend, under Inductor on a device; and what is exported from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import graphprune
from graphprune.errors import VerificationError
from graphprune.exporting import export_model
from graphprune.ir.program import Inputs
from tests.gpu.devices import everywhere, on_gpu
from tests.gpu.nets import made


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@on_gpu
@pytest.mark.parametrize("name", ["mobilenet_v2", "vit"])
def test_a_slim_model_compiles_whole(name: str, device: str) -> None:
    model, x = made(name, device)
    slim = graphprune.prune(model, x, target="channels=60%").model.eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(slim, fullgraph=True)(x), slim(x), rtol=1e-2, atol=1e-2)


@on_gpu
def test_the_backend_prunes_what_inductor_compiles(device: str) -> None:
    model, x = made("vit", device)
    by_hand = graphprune.prune(model, x, target="channels=50%", ranking="local")
    backend = graphprune.Backend(plan=by_hand.plan)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend)(x), by_hand.model.eval()(x), rtol=1e-2, atol=1e-2)
    assert len(backend.plans) == 1


@on_gpu
def test_masks_are_trained_compiled_and_rewritten(device: str) -> None:
    model, x = made("vit", device)
    masks = graphprune.masked(model, x)
    plan = masks.run("score,select{channels=50%}").plan
    assert plan is not None
    masks.set(plan)
    compiled = torch.compile(masks, fullgraph=True)
    torch.testing.assert_close(compiled(x), masks(x), rtol=1e-2, atol=1e-2)
    compiled(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.device.type == device for p in model.parameters() if p.requires_grad)


@everywhere
def test_masks_say_what_the_slim_model_says(device: str) -> None:
    model, x = made("resnet18", device, torch.float64)
    masks = graphprune.masked(model, x)
    plan = masks.run("score,select{channels=50%}").plan
    assert plan is not None
    masks.set(plan)
    slim = masks.rewrite().model.eval()
    torch.testing.assert_close(masks.eval()(x), slim(x), rtol=1e-8, atol=1e-8)


@everywhere
def test_the_backend_without_a_compiler_is_the_plan_by_hand(device: str) -> None:
    model, x = made("vit", device, torch.float64)
    by_hand = graphprune.prune(model, x, target="channels=50%", ranking="local")
    backend = graphprune.Backend(plan=by_hand.plan, inner="eager")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend)(x), by_hand.model.eval()(x), rtol=1e-8, atol=1e-8)


@on_gpu
@pytest.mark.parametrize("name", ["resnet18"])
def test_a_slim_model_is_exported_and_checked_on_its_device(name: str, device: str, tmp_path: Path) -> None:
    model, x = made(name, device)
    graph = graphprune.prune(model, x, target="channels=25%").graph
    exported = export_model(graph, Inputs((x,)), tmp_path / "model.pt2")
    assert exported.batches and exported.error is not None and (tmp_path / "model.pt2").exists()


@on_gpu
def test_a_compiled_package_is_checked_in_a_process_of_its_own_or_is_not_written(device: str, tmp_path: Path) -> None:
    """torch 2.11 wrote packages on a GPU that it could not load: its loader ended the process."""
    model, x = (
        torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU()).to(device).eval(),
        torch.randn(2, 3, 8, 8, device=device),
    )
    graph = graphprune.prune(model, x, target="channels=50%").graph
    path = tmp_path / "model.aot.pt2"
    try:
        assert export_model(graph, Inputs((x,)), path, format="aot").error is not None and path.exists()
    except VerificationError as error:
        assert "SIGSEGV" in str(error) and not path.exists()
