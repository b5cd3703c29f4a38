"""The tensors of a graph that runs node by node, there or loaded while a node runs, and what becomes of those that are changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, fx

from graphprune.files import explained
from graphprune.ir.twins import named_tensors
from graphprune.ir.weights import Weights
from graphprune.passes.calibration.loading import loaded


class Filed(Mapping[str, Tensor]):
    """Tensors by name, each in a file of the temporary folder as long as this object is there; they are read to the CPU.

    Raises UsageError where the folder has no room for one.
    """

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="graphprune-")
        self._files: dict[str, tuple[Path, torch.dtype, torch.Size]] = {}

    def __getitem__(self, name: str) -> Tensor:
        path, dtype, shape = self._files[name]
        return torch.from_numpy(np.fromfile(path, np.uint8)).view(dtype).reshape(shape)

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        path = self._files[name][0] if name in self._files else Path(self._folder.name) / str(len(self._files))
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        with explained(path, tensor.nbytes):
            path.write_bytes(values.data)
        self._files[name] = path, tensor.dtype, tensor.shape

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class LiveTensors:
    """The tensors of a graph that runs node by node, by name, with values.

    module: what runs. weights: where its values are loaded from while a node runs; None where it has them. A tensor that is itself
    the value of a node (``get_attr``) is there until its last reader has run. written: takes what :meth:`keep` is given, and is
    what ``weights`` look into first.
    """

    def __init__(self, module: fx.GraphModule, weights: Weights | None, written: Filed | None = None) -> None:
        self._module, self._weights, self._written = module, weights, written
        self._own = named_tensors(module)
        self._names: dict[int, list[str]] = {}
        for name, tensor in self._own.items():
            self._names.setdefault(id(tensor), []).append(name)
        self._here: dict[str, Tensor] = {}
        self._order = {node: number for number, node in enumerate(module.graph.nodes)}
        self._leaving: dict[fx.Node, list[str]] = defaultdict(list)

    @contextmanager
    def during(self, node: fx.Node) -> Iterator[None]:
        """A block in which a node can run."""
        with loaded(self._weights, self._module, [node]) as values:
            found = {name: value for key, value in values.items() for name in self._names[key]}
            self._here |= found
            last = max(node.users, key=self._order.__getitem__, default=node) if node.op == "get_attr" else node
            self._leaving[last] += found
            yield
        for name in self._leaving.pop(node, ()):
            self._here.pop(name, None)

    def __getitem__(self, name: str) -> Tensor:
        """A tensor, to be read and, while a node that reads it runs, to be written into."""
        own = self._own[name]
        if self._weights is None or not own.is_meta:
            return own
        return self._here[name] if name in self._here else self._weights[name]

    def keep(self, name: str, tensor: Tensor) -> None:
        """Nodes that run from now on find this tensor under a name, which has been changed."""
        if self._written is not None:
            for other in self._names[id(self._own[name])]:
                self._written[other] = tensor
