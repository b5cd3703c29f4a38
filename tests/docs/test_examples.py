"""The scripts of docs/examples do what the pages say of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

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
    found = example.models(x, y, steps=80)
    assert list(found) == ["as it is", "pruned", "quantised", "pruned and quantised"]
    accuracies = {name: example.accuracy(model, x, y) for name, model in found.items()}
    assert min(accuracies.values()) > 0.9
    for name in ("quantised", "pruned and quantised"):
        assert any(tensor.dtype == torch.int8 for _, tensor in found[name].named_buffers()), name
    assert found["pruned"].get_submodule("stem").out_channels < found["as it is"].stem.out_channels
