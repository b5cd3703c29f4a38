"""Operators with kernels of their own, one folder each, imported as ``graphprune.kernels``."""

if __name__ != "graphprune.kernels":
    raise ImportError(f"This folder is the package graphprune.kernels, but was imported as {__name__}. Import graphprune.kernels.")
