"""For how many classes a channel matters: the indicator of class-aware pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from graphprune.channels.groups import Groups
from graphprune.kernels.activation_attention import activation_attention
from graphprune.statistic import Observer, Place, Statistic, Tap


@dataclass(frozen=True)
class ClassIndicators(Statistic):
    """``Q[k, y, x] = sum over classes of the mean over a class's samples of [|a * dL/da| > tau]``, for each channel and position.

    samples: of each class, in each process. tau: absolute; 0 asks whether the loss depends on the element at all. relative: tau
    times the median of |a * dL/da| over a class's samples in the layer. Source: class-aware pruning (DATE 2024), the score before
    its maximum over positions.
    """

    gradients: ClassVar[bool] = True

    at: Place = "produced"
    samples: int = 10
    tau: float = 0.0
    relative: bool = False

    @property
    def place(self) -> Place:
        """Where activations are looked at."""
        return self.at

    @property
    def per_class(self) -> int:
        """Samples of each class."""
        return self.samples

    @property
    def splits(self) -> bool:
        """Not with a median over the samples of a class."""
        return not self.relative

    def observer(self, groups: Groups) -> Observer:
        """What measures it; keys are (node, axis, name) with the names ``reach`` and ``taylor``."""
        return _ClassIndicators(self)


class _ClassIndicators(Observer):
    def __init__(self, statistic: ClassIndicators) -> None:
        super().__init__()
        self._statistic = statistic

    def see_gradient(self, tap: Tap, activation: Tensor, gradient: Tensor) -> None:
        """Add one class."""
        tau = self._statistic.tau
        if self._statistic.relative:
            tau *= float((activation * gradient).abs().median())
        found = activation_attention(activation, gradient, tau=tau)
        assert found.indicator is not None and found.taylor_abs is not None
        samples, channels = activation.shape[:2]
        self.totals.add((tap.node, tap.axis, "reach"), found.indicator.reshape(channels, -1).double() * (self.share / samples))
        self.totals.add((tap.node, tap.axis, "taylor"), found.taylor_abs.double() * (self.share * channels / activation.numel()))
