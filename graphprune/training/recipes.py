"""Named trainings: the schedules of the papers whose methods are here, and short ones for trying out."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from graphprune.errors import UsageError, unknown
from graphprune.training.settings import Training

#: By name. Where a paper and its code differ, what the code does; methods that start or go on elsewhere run parts of them.
RECIPES: Final[Mapping[str, Training]] = MappingProxyType(
    {
        # LAASP (arXiv 2506.20152): ResNet-20 to 110, VGG-16, and ResNet and MobileNetV2 on ImageNet.
        "laasp-cifar": Training(epochs=200, schedule="step", milestones=(60, 120, 160, 190)),
        "laasp-vgg": Training(epochs=160, batch_size=256, schedule="step", milestones=(40, 80, 120), gamma=0.2),
        "laasp-imagenet": Training(epochs=100, batch_size=256, weight_decay=1e-4, schedule="step", milestones=(30, 60, 90)),
        # Class-aware pruning (arXiv 2312.05875): the defaults of the authors' training function, whose first step is at epoch 30.
        "class-aware": Training(epochs=10, lr=0.01, nesterov=False, schedule="constant"),
        # SP-LAMP: the base model, and the training of each stage.
        "sp-lamp-base": Training(epochs=240, batch_size=64, nesterov=False, schedule="step", milestones=(120, 180)),
        "sp-lamp-stage": Training(epochs=10, lr=0.01, nesterov=False, schedule="constant"),
        # Adaptive activation-based pruning (AISTATS 2023).
        "adaptive-cifar": Training(
            epochs=182, batch_size=512, nesterov=False, weight_decay=2e-4, decay_norms=False, schedule="step", milestones=(91, 136)
        ),
        "adaptive-vgg": Training(epochs=240, batch_size=64, lr=0.05, nesterov=False, schedule="step", milestones=(150, 180, 210)),
        "adaptive-mobilenet": Training(
            epochs=300, batch_size=512, nesterov=False, weight_decay=4e-5, schedule="step", milestones=(150, 225)
        ),
        "adaptive-imagenet": Training(
            epochs=90,
            batch_size=256,
            lr=0.256,
            nesterov=False,
            weight_decay=1e-4,
            schedule="step",
            milestones=(30, 60, 80),
            warmup=5,
        ),
        # Ours: 30 epochs on CIFAR, and the digits of scikit-learn in seconds.
        "cifar-short": Training(epochs=30, lr=0.2, batch_size=128, schedule="onecycle"),
        "digits": Training(epochs=10, optimiser="adamw", lr=0.01, batch_size=64, weight_decay=0.01, schedule="onecycle"),
    }
)


def recipe(name: str) -> Training:
    """A named training. Raises UsageError for an unknown name.

    >>> recipe("laasp-cifar").learning_rate(60)
    0.010000000000000002
    """
    found = RECIPES.get(name)
    if found is None:
        raise UsageError(unknown("training recipe", name, RECIPES, "Recipes"))
    return found
