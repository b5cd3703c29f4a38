"""The scripts of docs/examples do what the pages say of them."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

NO_COMPILER = shutil.which(os.environ.get("CXX", "g++")) is None
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def _example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_slim_model_is_quantised_like_any_other() -> None:
    pytest.importorskip("torchao", reason="needs torchao")
    example = _example("quantised_digits")
    x, y = example.digits()
    rest = x[example.TRAIN :], y[example.TRAIN :]
    found = example.models(x, y, steps=80)
    assert list(found) == ["as it is", "pruned", "quantised", "pruned and quantised"]
    accuracies = {name: example.accuracy(model, *rest) for name, model in found.items()}
    assert min(accuracies.values()) > 0.9
    for name in ("quantised", "pruned and quantised"):
        constants = [attrgetter(node.target)(found[name]) for node in found[name].graph.nodes if node.op == "get_attr"]
        assert any(tensor.dtype == torch.int8 for tensor in constants), name
    assert found["pruned"].get_submodule("stem").out_channels < found["as it is"].stem.out_channels


@pytest.mark.skipif(NO_COMPILER or platform.machine() != "x86_64", reason="needs a C++ compiler and an x86 processor")
def test_a_slim_quantised_model_compiles_to_int8_kernels() -> None:
    pytest.importorskip("torchao", reason="needs torchao")
    example = _example("quantised_digits")
    x, y = example.digits()
    model, batch = example.models(x, y, steps=1)["pruned and quantised"], x[example.TRAIN :]
    run = example.compiled(model, batch)
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = run(batch)
    operators = {event.key for event in profile.key_averages()}
    assert any("qconv" in name for name in operators), operators
    assert not any("aten::convolution" in name for name in operators), operators
    with torch.no_grad():
        torch.testing.assert_close(found, model(batch), rtol=0.05, atol=0.05)
