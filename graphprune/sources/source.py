"""The value that every kind of source produces."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from graphprune.ir.program import Inputs


@dataclass(frozen=True)
class Source:
    """A model ready to be captured.

    model: the module, with its weights.
    text: what the user wrote, for records and messages.
    default_input: shape of the one tensor the model usually takes, with its batch axis; None when nobody knows.
    inputs: example inputs that came with the model (exported programs, artifacts, models of several inputs).
    """

    model: nn.Module
    text: str
    default_input: tuple[int, ...] | None = None
    inputs: Inputs | None = None
