"""Scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels in 10 classes, shipped with the package."""

from __future__ import annotations

from typing import Final

import numpy as np

from graphprune.errors import UsageError
from graphprune.sources.images import Images

_HELD_OUT: Final = 450


def load_digits() -> tuple[Images, Images]:
    """Training and held-out images, float32 of shape (n, 1, 8, 8) between 0 and 1; the split is always the same.

    Raises UsageError when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled
    except ModuleNotFoundError as error:
        raise UsageError(
            "The digits come with scikit-learn, which is not installed. Install it with: pip install 'graphprune[demo]'."
        ) from error
    images, labels = bundled(return_X_y=True)
    x = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:_HELD_OUT], order[_HELD_OUT:]
    return Images(x[train], labels[train].astype(np.int64), "digits"), Images(
        x[test], labels[test].astype(np.int64), "held-out digits"
    )
