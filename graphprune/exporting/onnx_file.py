"""ONNX files, run by onnxruntime where that is installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from graphprune.errors import UsageError, first_line
from graphprune.exporting.checking import Exported, Job, check, run_here
from graphprune.exporting.program import exported
from graphprune.files import write_whole
from graphprune.ir.program import Inputs
from graphprune.ir.twins import undisturbed
from graphprune.quiet import quiet
from graphprune.text import listed


def write_onnx(job: Job) -> Exported:
    """Write an ONNX file. Raises UsageError where packages are missing, or an operator has no conversion."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UsageError(f"Export to ONNX needs {' and '.join(missing)}. Install graphprune[onnx].")
    program = exported(job)
    try:
        with quiet():
            converted = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:  # whatever an operator without a conversion raises
        raise UsageError(f"torch.onnx cannot write this model: {first_line(error)}. Export it to .pt2 instead.") from error
    assert converted is not None
    changed = _changed(job)
    model = converted.model_proto
    if job.dynamic:
        _name_sizes(model.graph, job)
    content: bytes = model.SerializeToString()
    found = Exported(note="It was not run: onnxruntime is not installed")
    if find_spec("onnxruntime") is not None:
        found = check(job, run_here(_session(content)), keeps_state=False)
    write_whole(job.path, content)
    note = f"ONNX keeps no state: what calls change ({listed(changed)}) stays as it is now" if changed else ""
    return replace(found, note=". ".join(filter(None, (found.note, note))))


def _changed(job: Job) -> list[str]:
    """The buffers that a call changes in eval mode."""
    before = {name: buffer.clone() for name, buffer in job.module.named_buffers()}
    with undisturbed(job.module):
        job.module(*job.inputs.args, **job.inputs.kwargs)
        return [name for name, buffer in job.module.named_buffers() if not torch.equal(before[name], buffer)]


def _name_sizes(graph: Any, job: Job) -> None:
    """Give sizes that may be any the names that people know: ``batch``, and that of an input with the axis."""
    names: dict[str, str] = {}
    tensors = [name for name, value in job.by_name().items() if isinstance(value, Tensor)]
    for value, name in zip(graph.input, tensors, strict=True):
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.dim_param:
                names.setdefault(size.dim_param, f"{name}_{axis}" if axis else "batch")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda match: names.get(match[0], match[0]), size.dim_param)


def _session(content: bytes) -> Callable[[Inputs], list[Tensor]]:
    """A session on the CPU, with as many threads as PyTorch has, so that times compare."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has its own kinds
        raise UsageError(
            f"onnxruntime cannot run this model on the CPU: {first_line(error)}. Of bfloat16 it has few operators: take float16 or "
            "float32, or export to .pt2."
        ) from error
    names = [each.name for each in session.get_inputs()]

    def run(given: Inputs) -> list[Tensor]:
        leaves = [leaf for leaf in tree_leaves((given.args, dict(given.kwargs))) if isinstance(leaf, Tensor)]
        values = {name: leaf.numpy(force=True) for name, leaf in zip(names, leaves, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, values)]

    return run
