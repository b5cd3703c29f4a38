"""The distillation loss is the weighted sum that it says, with gradients as large as those of the task."""

from __future__ import annotations

import pytest
import torch

from graphprune.training.distillation import distilled


def test_the_loss_is_the_definition_position_by_position() -> None:
    logits, teacher = torch.randn(2, 5, 7, 3, dtype=torch.float64)
    p, q = ((values / 2.0).softmax(1) for values in (teacher, logits))
    divergence = sum(float(p[i, c, k] * (p[i, c, k] / q[i, c, k]).log()) for i in range(5) for c in range(7) for k in range(3)) / 15
    found = distilled(torch.tensor(1.5, dtype=torch.float64), logits, teacher, weight=0.3, temperature=2.0)
    assert float(found) == pytest.approx(0.7 * 1.5 + 0.3 * 4 * divergence, rel=1e-12)


def test_a_student_that_agrees_has_no_gradient_from_the_teacher() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = distilled(torch.zeros((), dtype=torch.float64), logits, logits.detach(), weight=1.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)
