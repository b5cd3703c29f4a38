"""ONNX files, run by onnxruntime where that is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from graphprune.errors import UsageError, first_line
from graphprune.exporting.checking import Exported, Job, check, run_here
from graphprune.exporting.program import exported
from graphprune.files import write_whole
from graphprune.ir.program import Inputs
from graphprune.quiet import quiet


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
    content: bytes = converted.model_proto.SerializeToString()
    found = Exported(note="It was not run: onnxruntime is not installed")
    if find_spec("onnxruntime") is not None:
        found = check(job, run_here(_session(content)))
    write_whole(job.path, content)
    return found


def _session(content: bytes) -> Callable[[Inputs], list[Tensor]]:
    """A session on the CPU, with as many threads as PyTorch has, so that times compare."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(given: Inputs) -> list[Tensor]:
        leaves = [leaf for leaf in tree_leaves((given.args, dict(given.kwargs))) if isinstance(leaf, Tensor)]
        values = {name: leaf.numpy(force=True) for name, leaf in zip(names, leaves, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, values)]

    return run
