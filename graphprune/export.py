"""Models for other runtimes: torch.export programs and ONNX, with a batch of any size, checked against the model after writing."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

from graphprune.artifact import write_artifact
from graphprune.errors import UsageError, VerificationError, first_line
from graphprune.files import atomic_write, check_writable
from graphprune.latency.batch import batch_of, with_batch
from graphprune.program import Inputs
from graphprune.quiet import quiet
from graphprune.verification import TOLERANCE

_BATCH: Final = 2  # of the example: torch.export takes a size of 1 for a constant
_SLACK: Final = 10  # other runtimes add up in another order


def export_model(module: fx.GraphModule, inputs: Inputs, path: str | Path, *, dynamic: bool = True, plan: str | None = None) -> str:
    """Write a captured or slim model for another runtime, and run what was written on random inputs, at several batches.

    inputs: example inputs. path: ``.pt2`` (torch.export), ``.onnx`` (needs the packages onnx and onnxscript; run here where
        onnxruntime is) or ``.safetensors`` (graphprune's own).
    dynamic: the leading size, which all inputs must share, may be any; otherwise sizes are those of the example.
    plan: JSON text to go with the model, where the format has a place for it.

    Returns what was checked, in words. Atomic. Raises UsageError for another ending, for inputs without a shared leading size, and
    where the format cannot say what the model does, and VerificationError where what was written computes something else.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise UsageError(f"Cannot tell the format of {path} from its name. End it in {', '.join(FORMATS)}.")
    check_writable(target)
    mode = module.training
    module.eval()
    try:
        with torch.no_grad():
            return FORMATS[target.suffix](module, _examples(inputs) if dynamic else inputs, target, dynamic, plan)
    finally:
        module.train(mode)


def _examples(inputs: Inputs) -> Inputs:
    return with_batch(inputs, max(_BATCH, batch_of(inputs)))


def _safetensors(module: fx.GraphModule, inputs: Inputs, path: Path, dynamic: bool, plan: str | None) -> str:
    write_artifact(path, module, plan=plan, inputs=inputs)
    return "It was read back before it was written"


def _pt2(module: fx.GraphModule, inputs: Inputs, path: Path, dynamic: bool, plan: str | None) -> str:
    program = _exported(module, inputs, dynamic)
    stream = io.BytesIO()  # in memory first: torch aborts the process on a full disk
    torch.export.save(program, stream, extra_files={} if plan is None else {"plan.json": plan})
    stream.seek(0)
    loaded = torch.export.load(stream).module()
    found = _check(module, inputs, dynamic, lambda given: loaded(*given.args, **given.kwargs), path)
    with atomic_write(path) as temporary:
        temporary.write_bytes(stream.getvalue())
    return found


def _onnx(module: fx.GraphModule, inputs: Inputs, path: Path, dynamic: bool, plan: str | None) -> str:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UsageError(f"Export to ONNX needs {' and '.join(missing)}. Install graphprune[onnx].")
    program = _exported(module, inputs, dynamic)
    try:
        with quiet():
            converted = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:  # whatever an operator without a conversion raises
        raise UsageError(f"torch.onnx cannot write this model: {first_line(error)} Export it to .pt2 instead.") from error
    assert converted is not None
    content: bytes = converted.model_proto.SerializeToString()
    found = "It was not run: onnxruntime is not installed"
    if find_spec("onnxruntime") is not None:
        found = _check(module, inputs, dynamic, _session(content), path)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return found


def _session(content: bytes) -> Callable[[Inputs], list[Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(given: Inputs) -> list[Tensor]:
        leaves = [leaf for leaf in tree_leaves((given.args, dict(given.kwargs))) if isinstance(leaf, Tensor)]
        values = {name: leaf.numpy() for name, leaf in zip(names, leaves, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, values)]

    return run


#: Endings of what can be written.
FORMATS: Final[Mapping[str, Callable[[fx.GraphModule, Inputs, Path, bool, str | None], str]]] = {
    ".pt2": _pt2,
    ".onnx": _onnx,
    ".safetensors": _safetensors,
}


def _exported(module: fx.GraphModule, inputs: Inputs, dynamic: bool) -> ExportedProgram:
    batch = Dim.DYNAMIC  # of any range that the model takes; a size that it fixes is an error
    sizes = inputs.map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) else None)
    names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    shapes = dict(zip(names, sizes.args, strict=False)) | dict(sizes.kwargs)
    try:
        with quiet():
            return torch.export.export(module, inputs.args, dict(inputs.kwargs), dynamic_shapes=shapes if dynamic else None)
    except Exception as error:  # torch.export raises many kinds
        remedy = "Try --static (dynamic=False), for the sizes of the example alone." if dynamic else "Write a .safetensors file."
        raise UsageError(f"torch.export cannot follow this model: {first_line(error)}. {remedy}") from error


def _check(module: fx.GraphModule, inputs: Inputs, dynamic: bool, run: Callable[[Inputs], Any], path: Path) -> str:
    """Compare what was written with the model. Raises VerificationError."""
    generator = torch.Generator().manual_seed(0)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return torch.randn(leaf.shape, generator=generator, dtype=torch.float32).to(leaf.dtype)

    worst, tolerance = 0.0, TOLERANCE[torch.float64]
    batches = [batch_of(inputs), batch_of(inputs) + 1, 1] if dynamic else [None]
    for batch in batches:
        given = (inputs if batch is None else with_batch(inputs, batch)).map(drawn)
        wanted, found = (_tensors(result) for result in (module(*given.args, **given.kwargs), run(given)))
        if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
            raise VerificationError(f"{path} is not written: its outputs have other shapes than the model's at {given.describe()}.")
        for reference, tensor in zip(wanted, found, strict=True):
            tolerance = max(tolerance, _SLACK * TOLERANCE.get(reference.dtype, 0.0))
            scale = max(float(reference.abs().max()), 1e-12) if reference.numel() else 1.0
            worst = max(worst, float((reference.double() - tensor.double()).abs().max()) / scale if reference.numel() else 0.0)
    if not worst <= tolerance:
        raise VerificationError(f"{path} is not written: its outputs are off by {worst:.1e} (relative; tolerance {tolerance:.0e}).")
    at = "" if not dynamic else f" at batches {', '.join(map(str, sorted(one for one in batches if one is not None)))}"
    return f"It was run{at}: largest relative error {worst:.1e}"


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
