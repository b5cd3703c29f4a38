"""The result of a verification, and the tolerances by dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from graphprune.errors import VerificationError

#: Largest relative error that rounding explains. One table for the whole project; never widened at a call site.
TOLERANCE: Final[Mapping[torch.dtype, float]] = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
}


@dataclass(frozen=True)
class Verification:
    """The slim model against the masked original.

    error: largest relative error over all graph nodes and outputs, ``max |slim - reference| / max |reference|`` of each.
    tolerance: from the model's dtype. compared: tensors compared. randomised: tensors that were constant (fresh
    normalisation statistics, scales of one or zero) and were given random values in both models, because constants hide
    errors. failure: what differs first, or "".
    """

    error: float
    tolerance: float
    compared: int
    randomised: int
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether the slim model computes what the masked original computes."""
        return not self.failure

    def check(self) -> Verification:
        """Raise VerificationError with the failure, or return self."""
        if self.failure:
            raise VerificationError(self.failure)
        return self
