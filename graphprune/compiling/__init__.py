"""Pruning inside ``torch.compile``: a Dynamo backend that runs analysis, selection and rewrite on Dynamo's own graphs."""

from graphprune.compiling.backend import Backend, compile_backend

__all__ = ["Backend", "compile_backend"]
