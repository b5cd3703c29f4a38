"""The compiler's passes, one per file, imported as ``graphprune.passes``."""

if __name__ != "graphprune.passes":
    raise ImportError(f"This folder is the package graphprune.passes, but was imported as {__name__}. Import graphprune.passes.")
