"""Models too large to build with values: their parameters on the meta device, and a copy of reduced depth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from graphprune.streaming.shorter import fill, shorten

__all__ = ["fill", "parameters_on_meta", "shorten"]


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built within hold parameters without values; their buffers, which may be computed, are real."""
    usual = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        usual(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = usual  # type: ignore[method-assign]
