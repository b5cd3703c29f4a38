"""Top-1 accuracy of a classifier on a file of labelled images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphprune.cli.output import Output
from graphprune.errors import UsageError, first_line
from graphprune.ir.twins import in_mode
from graphprune.sources.images import Images


def top1(model: nn.Module, images: Images, output: Output, text: str = "Measuring the accuracy") -> float:
    """Share of the images whose largest output is at their label, in eval mode; the model's mode is restored.

    Raises UsageError when the model does not take the images, is no classifier of them, or has no such labels.
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.get_default_dtype() if parameter is None else parameter.dtype
    right = 0
    with in_mode(model, False), torch.no_grad(), output.task(text, total=len(images.y)) as task:
        for x, y in images.batches(dtype):
            scores = _outputs(model, x, images)
            _check_labels(scores, y, images)
            right += int((scores.argmax(1) == y).sum())
            task.advance(len(y))
    return right / len(images.y)


def _outputs(model: nn.Module, x: Tensor, images: Images) -> Tensor:
    try:
        scores = model(x)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise UsageError(
            f"The model does not take the images {list(images.shape)} of {images.name}: {first_line(error)}. "
            "Store them as the model takes them, channels first."
        ) from error
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != len(x):
        shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UsageError(
            f"Top-1 accuracy needs an output of shape (images, classes), and the model's is {shape}. Leave out --data."
        )
    return scores


def _check_labels(scores: Tensor, y: Tensor, images: Images) -> None:
    classes = scores.shape[1]
    if int(y.min()) < 0 or int(y.max()) >= classes:
        wrong = int(y.min()) if int(y.min()) < 0 else int(y.max())
        raise UsageError(
            f"{images.name} has the label {wrong}, but the model has {classes} classes, counted from 0. Use labels of this model."
        )
