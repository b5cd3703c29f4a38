"""Operators with kernels of their own, one folder each, imported as ``graphprune.kernels``."""

if __name__ != "graphprune.kernels":
    __path__ = []  # from a checkout's top folder, where libraries that look for a package of this name find it empty
