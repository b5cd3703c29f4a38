"""Folders of Python source and weights: for people who want to read and change a slim model, and to depend on torch alone.

Unlike fx's ``to_folder`` the folder holds no pickle: every layer is written as its constructor.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors.torch import save_file
from torch import Tensor, fx

from graphprune.artifact.graph_data import decode_graph, encode_graph
from graphprune.artifact.module_data import decode_modules, encode_modules
from graphprune.artifact.tensors import TensorTable, restore
from graphprune.errors import ArtifactError
from graphprune.exporting.checking import Exported, Job, Ran, check
from graphprune.exporting.fresh import run_fresh
from graphprune.exporting.source_code import source_of
from graphprune.ir.program import Inputs


def write_folder(job: Job) -> Exported:
    """Write ``module.py``, ``model.safetensors``, ``README.md`` and, where there is one, ``plan.json``.

    Holds what an artifact holds. Raises ArtifactError for a layer or a function that cannot be written.
    """
    try:
        module = _plain(job.module)
        source = source_of(module, _on_cpu(job.inputs))
    except ArtifactError as error:
        raise ArtifactError(f"Cannot write {job.path} as Python source: {error}. Export it with --format pt2.") from error
    weights = {name: tensor.detach().contiguous() for name, tensor in _named(module)}
    with _atomic_folder(job.path) as folder:
        (folder / "module.py").write_text(source, encoding="utf-8")
        (folder / "README.md").write_text(
            _README.format(name=type(module).__name__, inputs=job.inputs.describe()), encoding="utf-8"
        )
        if job.plan is not None:
            (folder / "plan.json").write_text(job.plan, encoding="utf-8")
        save_file(weights, folder / "model.safetensors")

        def run(cases: Sequence[Inputs]) -> Ran:
            return run_fresh("folder", folder, [_on_cpu(case) for case in cases], job.path)

        return check(job, run)


_README = """# {name}

A model that graphprune wrote: `module.py` is its source and `model.safetensors` its weights. It needs torch and safetensors
(and torchvision where the source imports it). Example inputs: {inputs}.

With this folder on Python's path, or as the current one:

```python
from module import load

model = load()
```
"""


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """A copy on the CPU of layers of torch.nn and functions that an artifact may hold. Raises ArtifactError for others."""
    table = TensorTable()
    modules, graph = encode_modules(module, table), encode_graph(module.graph)
    tensors = {name: tensor.cpu() for name, tensor in table.tensors.items()}
    result = decode_modules(modules, restore(table.facts, tensors))
    result.graph = decode_graph(graph, result)
    return result.eval()


def _named(module: fx.GraphModule) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, tied ones under the first of their names."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _on_cpu(inputs: Inputs) -> Inputs:
    def moved(leaf: Any) -> Any:
        return leaf.cpu() if isinstance(leaf, Tensor) else leaf

    return inputs.map(moved)


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, which becomes ``path`` when the block ends well and vanishes when it does not."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
