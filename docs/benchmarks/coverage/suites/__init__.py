"""The models of the coverage benchmark: named suites of cases, each library imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from suites.case import Case

__all__ = ["SUITES", "Case", "chosen", "load"]

#: Every suite: the library, and the function of its module here that lists the keys, ``library:model``.
SUITES = {
    "torchvision": ("torchvision", "names"),
    "timm": ("timm", "smallest"),
    "timm-all": ("timm", "names"),
    "transformers": ("transformers", "names"),
    "model-type": ("model_types", "names"),
}
_USUAL = ("torchvision", "timm", "transformers")
_MODULES = {library: library for library in _USUAL} | {"model-type": "model_types"}


def load(key: str) -> Case:
    """The case of a key such as ``torchvision:resnet50``. Raises KeyError for an unknown library or model."""
    library, _, name = key.partition(":")
    if library not in _MODULES:
        raise KeyError(key)
    case: Case = _module(_MODULES[library]).case(name)
    return case


def keys(suite: str) -> list[str]:
    """The keys of a suite."""
    library, listing = SUITES[suite]
    found: list[str] = getattr(_module(library), listing)()
    return found


def chosen(words: Sequence[str]) -> list[str]:
    """The keys that words name: suites, keys, or bare model names of any suite; the usual suites for no words.

    Raises KeyError for a word that names nothing.
    """
    found = [key for word in words or _USUAL for key in _meant(word)]
    return list(dict.fromkeys(found))


def _meant(word: str) -> list[str]:
    if word in SUITES:
        return keys(word)
    for suite in SUITES:
        known = [key for key in keys(suite) if word in (key, key.partition(":")[2])]
        if known:
            return known
    raise KeyError(word)


def _module(library: str) -> Any:
    return import_module(f"suites.{library}")
