"""Import graphprune from a clone that is not installed, without leaving the clone's top folder on the import path.

There it would hide packages of other makers: transformers looks for one called ``kernels``.
"""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[3])

sys.path.append(_ROOT)
import graphprune  # noqa: E402, F401

sys.path.remove(_ROOT)
