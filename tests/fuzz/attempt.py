"""One network from its seed to what came of it; a module of its own, which the processes of several jobs can import."""

from __future__ import annotations

import torch

from tests.fuzz.check import Outcome, check
from tests.fuzz.generate import generate
from tests.fuzz.shrink import shrink
from tests.fuzz.spec import Spec


def attempt(seed: int) -> tuple[Outcome, Spec]:
    """Check the network of a seed; a failing one comes back shrunk."""
    torch.set_num_threads(1)
    spec = generate(seed)
    outcome = check(spec)
    return outcome, shrink(spec, outcome) if outcome.failure else spec
