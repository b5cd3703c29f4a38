"""The allow-list lets in what computes on tensors and keeps out the rest, also in a torch that is newer than this test."""

from __future__ import annotations

import math
import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from graphprune.artifact import targets
from graphprune.errors import ArtifactError
from graphprune.ir.train_mode import add_in_train_mode

ALLOWED: list[Any] = [
    torch.relu,
    torch.flatten,
    torch.einsum,
    torch._assert,
    torch.functional.split,
    torch.fft.rfft2,
    torch.linalg.vector_norm,
    torch.special.i0e,
    F.relu,
    F.max_pool2d,
    F.avg_pool2d,
    F.scaled_dot_product_attention,
    torch._C._nn.pad_sequence,
    torch._weight_norm,
    operator.getitem,
    math.sqrt,
    getattr,
    int,
    torch.ops.aten.add.Tensor,
    torch.ops.aten.relu.default,
    torch.ops.aten.relu,
    torch.ops.aten._unsafe_view.default,
    torchvision.ops.nms,
    torch.ops.torchvision.nms.default,
    torchvision.models.swin_transformer.shifted_window_attention,
    add_in_train_mode,
]


@pytest.mark.parametrize("function", ALLOWED, ids=range(len(ALLOWED)))
def test_name_and_function_are_inverse(function: Any) -> None:
    assert targets.find_function(targets.function_name(function)) is function


@pytest.mark.parametrize(
    "function",
    [eval, exec, open, print, torch.load, torch.save, torch.compile, torch.from_file, torch.set_num_threads, ALLOWED.append],
    ids=lambda function: function.__name__,
)
def test_other_functions_have_no_name(function: Any) -> None:
    with pytest.raises(ArtifactError, match="is not among those that an artifact may call"):
        targets.function_name(function)


def test_no_table_reaches_files_processes_or_code() -> None:
    """By name over everything that is let in, whichever rule let it in."""
    suspicious = {
        "file",
        "load",
        "save",
        "import",
        "compile",
        "exec",
        "system",
        "open",
        "fork",
        "thread",
        "threads",
        "storage",
        "ptr",
        "hook",
        "pickle",
        "eval",
    }
    names = {name for home in targets._TABLES for name in targets._table(home)} | targets.methods()
    assert [name for name in sorted(names) if suspicious & set(name.split("_"))] == []
    assert not any(name.startswith("_") for name in targets.methods())
    assert not any(name.startswith("_") for name in targets.ATTRIBUTES)


def test_module_classes_are_those_of_torch_nn_and_build_no_network_of_processes() -> None:
    classes = targets.modules()
    assert classes["Conv2d"] is nn.Conv2d and "DataParallel" not in classes and "LazyLinear" not in classes
    assert all(kind.__module__.startswith(("torch.nn.modules.", "torchvision.ops.")) for kind in classes.values())
    assert not any(kind.__module__.startswith("torchvision") and "conv" in name.lower() for name, kind in classes.items())


@pytest.mark.parametrize(
    "text", ["record:", "record:A", "record:A()", "record:A(b,b)", "record:A(__class__)", "record:A(b=print())", "record:A.b(c)",
             "record:A(to_tuple)", "record:class(b)", "record:A(" + ",".join(f"f{one}" for one in range(300)) + ")"]
)  # fmt: skip
def test_records_of_strange_names_are_refused(text: str) -> None:
    with pytest.raises(ArtifactError):
        targets.find_function(text)


def test_a_record_has_the_fields_of_its_name_and_no_code() -> None:
    record = targets.find_function("record:Output(loss,logits)")
    assert (
        targets.find_function("record:Output(loss,logits)") is record
        and targets.function_name(record) == "record:Output(loss,logits)"
    )
    assert dict(record(logits=1)) == {"logits": 1} and record(logits=1).loss is None
    with pytest.raises(TypeError):
        record(other=1)
