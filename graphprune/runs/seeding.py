"""Random numbers of a run: every epoch has its own seed, so that an epoch is the same whenever it is done."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derived(*parts: int | str) -> int:
    """A seed that depends on all parts and nothing else; 0 to 2^31 - 1."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed torch (on all devices), numpy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
