"""The compiler's passes, one per file, imported as ``graphprune.passes``."""

if __name__ != "graphprune.passes":
    __path__ = []  # from a checkout's top folder, where libraries that look for a package of this name find it empty
