"""Distillation: a loss against the dense model's outputs ("Distilling the Knowledge in a Neural Network", arXiv 1503.02531)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distilled(task: Tensor, logits: Tensor, teacher: Tensor, *, weight: float = 0.5, temperature: float = 4.0) -> Tensor:
    """``(1 - weight) * task + weight * temperature^2 * KL(teacher || student)``, both softened by the temperature.

    task: the mean loss of the batch. logits, teacher: shape (batch, classes, ...), classes along axis 1; the teacher's should carry
    no gradient. Returns a scalar: the mean over the batch and all positions.

    >>> import torch
    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> distilled(torch.tensor(3.0), logits, logits).item()
    1.5
    """
    student, target = (F.log_softmax(values / temperature, dim=1) for values in (logits, teacher))
    divergence = F.kl_div(student, target, reduction="sum", log_target=True) * logits.shape[1] / logits.numel()
    return (1 - weight) * task + weight * temperature**2 * divergence
