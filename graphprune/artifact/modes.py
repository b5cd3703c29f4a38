"""What of a model does not follow train mode, in an artifact: the graph alone does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import TypeAdapter, ValidationError
from torch import fx, nn

from graphprune.errors import ArtifactError

EVAL_ONLY: Final = "eval_only"
"""The entry of an artifact's provenance, and of the ``meta`` of the graph module that is read from it."""

_REASONS: Final = TypeAdapter(dict[str, str])


def describe_modes(eval_only: Mapping[str, str]) -> dict[str, str]:
    """Modules that keep their behaviour of eval mode, with the reason, as an entry of the provenance; none where all follow."""
    return {EVAL_ONLY: _REASONS.dump_json(dict(eval_only)).decode()} if eval_only else {}


def modes_in(provenance: Mapping[str, str]) -> dict[str, str]:
    """What :func:`describe_modes` wrote. Raises ArtifactError."""
    try:
        return _REASONS.validate_json(provenance.get(EVAL_ONLY, "{}"))
    except ValidationError as error:
        raise ArtifactError("the list of what does not follow train mode is damaged") from error


def noted_modes(module: nn.Module) -> Mapping[str, str]:
    """What a model that was read from an artifact is known not to follow; empty for any other."""
    return dict(getattr(module, "meta", {}).get(EVAL_ONLY, {})) if isinstance(module, fx.GraphModule) else {}
