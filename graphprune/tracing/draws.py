"""What is drawn at random besides tensors: numbers of ``random`` and of ``numpy.random``, which would be constants of a graph.

A floating-point number may be drawn and not be used, as layer drop does in eval mode; what uses it does not trace. Nor does what
draws anything else, such as a choice. What a forward draws after a seed of its own is the same in every call.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final, NoReturn

import numpy as np
import torch

from graphprune.randomness import numbers_own
from graphprune.tracing.sizes import SizeFloat
from graphprune.tracing.source import in_brackets, source_line
from graphprune.tracing.untraced import Untraceable

GENERATORS: Final = (random.Random, np.random.RandomState, np.random.Generator)
"""What numbers are drawn from."""

_SEEDS: Final = ("seed", "setstate", "set_state")
_OTHERS: Final = ("seed", "sample", "ranf")  # of numpy, which are no methods
_STATES: Final = ("getstate", "get_state")
_SEEDED: ContextVar[set[str] | None] = ContextVar("SEEDED", default=None)  # what the code that is traced has seeded


class Drawn(SizeFloat):
    """A number that was drawn: whoever asks where it comes from is about to use it."""

    refusal = ""

    @property
    def origin(self) -> NoReturn:  # type: ignore[override]
        """Nothing that a graph could say."""
        raise Untraceable(self.refusal)


@contextmanager
def draws_watched() -> Iterator[None]:
    """Within, nothing is seeded yet; afterwards the generators are as they were."""
    before = _SEEDED.set(set())
    try:
        with numbers_own():
            yield
    finally:
        _SEEDED.reset(before)


class Watched:
    """A generator that a module holds, whose draws are watched."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._generator, name)
        return _twin(name, found, f"{type(self._generator).__name__} {id(self._generator)}") if callable(found) else found


def _twin(name: str, function: Callable[..., Any], generator: str) -> Callable[..., Any]:
    return _seeding(function, generator) if name in _SEEDS else _drawing(function, name, generator)


def _drawing(function: Callable[..., Any], name: str, generator: str) -> Callable[..., Any]:
    """The function, with results that are not to be used."""

    @wraps(function, updated=())
    def draw(*args: Any, **kwargs: Any) -> Any:
        seeded = _SEEDED.get()
        drawn = function(*args, **kwargs)
        if seeded is None or generator in seeded or name in _STATES or not torch._C._is_torch_function_mode_enabled():
            return drawn
        refusal = (
            f"it draws numbers that are others in every call ({generator.partition(' ')[0]}.{name}{in_brackets(source_line())})"
        )
        if type(drawn) is not float:
            raise Untraceable(refusal)
        number = Drawn(drawn)
        number.refusal = refusal
        return number

    return draw


def _seeding(function: Callable[..., Any], generator: str) -> Callable[..., Any]:
    """The function, noting whether what is drawn next is left to chance."""

    @wraps(function, updated=())
    def seed(*args: Any, **kwargs: Any) -> Any:
        seeded = _SEEDED.get()
        if seeded is not None:
            fixed = function.__name__ == "seed" and any(value is not None for value in (*args, *kwargs.values()))
            (seeded.add if fixed else seeded.discard)(generator)
        return function(*args, **kwargs)

    return seed


def _unseeded(*args: Any, **kwargs: Any) -> Any:
    """``numpy.random.default_rng``, with a seed."""
    made = _DEFAULT_RNG(*args, **kwargs)
    return made if args or kwargs or _SEEDED.get() is None else Watched(made)


def _manual_seed(seed: Any) -> Any:
    """``torch.manual_seed``, which the calls of a graph do not."""
    if torch._C._is_torch_function_mode_enabled():
        raise Untraceable(f"it seeds torch's generator{in_brackets(source_line())}, which a graph does not")
    return _MANUAL_SEED(seed)


_DEFAULT_RNG: Final = np.random.default_rng
_MANUAL_SEED: Final = torch.manual_seed

TWINS: Final[dict[Any, dict[str, Callable[..., Any]]]] = {
    torch: {"manual_seed": _manual_seed},
    **{
        module: {
            name: _twin(name, function, module.__name__)
            for name, function in vars(module).items()
            if isinstance(getattr(function, "__self__", None), GENERATORS) or name in _OTHERS
        }
        for module in (random, np.random)
    },
}
"""Functions of modules that draw, and what stands for them while a model is traced, by their names."""
TWINS[np.random]["default_rng"] = _unseeded
