"""Tensors of a module that are loaded when they are asked for: from a checkpoint, or from where a model keeps its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from copy import copy
from typing import Final

import torch
from torch import Tensor, nn

from graphprune.ir.twins import named_tensors

_CPU: Final = torch.device("cpu")


class Weights(Mapping[str, Tensor]):
    """The tensors of a module by name, each loaded when it is asked for and kept by nobody. Parameters come as parameters.

    module: has the names, and the values of what is not loaded. load: gives the values of a tensor by name, or None for one that
    is the module's own. device: where tensors are loaded to. together: all processes of ``torch.distributed`` have a
    part of each tensor, and must ask for the same ones in the same order.

    >>> module = nn.Linear(2, 1, bias=False, device="meta")
    >>> Weights(module, lambda name: torch.ones(1, 2))["weight"].tolist()
    [[1.0, 1.0]]
    """

    def __init__(
        self,
        module: nn.Module,
        load: Callable[[str], Tensor | None],
        *,
        device: torch.device = _CPU,
        together: bool = False,
    ) -> None:
        self._own = named_tensors(module)
        self._load = load
        self.device = device
        self.together = together

    def __getitem__(self, name: str) -> Tensor:
        own = self._own[name]
        value = self._load(name)
        if value is None:
            return own
        return nn.Parameter(value, requires_grad=False) if isinstance(own, nn.Parameter) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)

    def sliced(self, module: nn.Module, kept: Mapping[str, Mapping[int, list[int]]]) -> Weights:
        """The weights of a module with slices of these. kept: by name, the indices that stay of each axis that loses some."""

        def load(name: str) -> Tensor | None:
            if name not in self._own:
                return None
            value = self[name].detach()
            for axis, indices in kept.get(name, {}).items():
                value = value.index_select(axis, torch.tensor(indices, device=value.device))
            return value

        return Weights(module, load, device=self.device, together=self.together)

    def changed(self, module: nn.Module, others: Mapping[str, Tensor]) -> Weights:
        """Those of a copy of the module, to be written into, with others in place of some, those included that come later."""

        def load(name: str) -> Tensor | None:
            if name in others:
                return others[name].to(self.device)
            value = self._load(name)
            return None if value is None else value.detach().clone()

        return Weights(module, load, device=self.device, together=self.together)

    def widened(self, dtypes: Collection[torch.dtype]) -> Weights:
        """The same weights, in float32 where they are of some narrower dtypes."""

        def load(name: str) -> Tensor | None:
            value = self._load(name)
            return value.float() if value is not None and value.dtype in dtypes else value

        result = copy(self)
        result._load = load
        return result if dtypes else self

    def some(self, names: Iterable[str]) -> Mapping[str, Tensor]:
        """Those of some names, detached, each loaded when it is asked for."""
        return _Some(self, list(names))


class _Some(Mapping[str, Tensor]):
    def __init__(self, weights: Weights, names: list[str]) -> None:
        self._weights, self._names = weights, names

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name].detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
