"""Pruning and ``torch.compile``: a Dynamo backend that prunes Dynamo's own graphs, and masks that compile once."""

from graphprune.compiling.backend import Backend, compile_backend
from graphprune.compiling.fx_passes import FxPass
from graphprune.compiling.masked import Masked, masked

__all__ = ["Backend", "FxPass", "Masked", "compile_backend", "masked"]
