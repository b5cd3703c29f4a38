"""What is done to images before a model sees them: named recipes of normalisation and augmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from graphprune.errors import UsageError, unknown


@dataclass(frozen=True)
class Preparation:
    """How images are prepared.

    mean, std: per channel, of pixels between 0 and 1; empty: as they are. flip: half of the training images mirrored, left and
    right. pad: training images shifted by up to so many pixels either way, black coming in. size: of files, in pixels: training
    images are a random part of the picture, of 8 to 100 % of it, others the middle of it, 7/8 wide; 0: as they are.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    flip: bool = False
    pad: int = 0
    size: int = 0

    def normaliser(self, device: torch.device, axes: int) -> Callable[[Tensor], Tensor]:
        """What makes images of shape (n, channels, ...), with so many axes, float32 and normal; bytes are divided by 255."""
        shape = (-1, *[1] * (axes - 2))
        # Made once: a copy to the device in each batch would wait for all that it still computes.
        mean, std = (torch.tensor(values, device=device).view(shape) if values else None for values in (self.mean, self.std))

        def normalise(x: Tensor) -> Tensor:
            x = x.float().div_(255) if x.dtype == torch.uint8 else x.float()
            x = x if mean is None else x - mean
            return x if std is None else x / std

        return normalise

    def augmented(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Images of shape (n, channels, height, width), each changed by a draw of its own. generator: on the device of x."""
        if self.pad:
            x = _shifted(x, self.pad, generator)
        if self.flip:
            mirrored = torch.rand(len(x), generator=generator, device=x.device) < 0.5
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
        return x

    def transform(self, augment: bool) -> Any:
        """The same for one picture of a file, as a transform of torchvision: PIL image in, float32 tensor out."""
        from torchvision import transforms as t

        steps: list[Any] = []
        if self.size:
            whole = [t.Resize(round(self.size * 8 / 7)), t.CenterCrop(self.size)]
            steps += [t.RandomResizedCrop(self.size)] if augment else whole
        if augment and self.pad:
            steps.append(t.RandomCrop(self.size, padding=self.pad) if self.size else _ShiftedPicture(self.pad))
        if augment and self.flip:
            steps.append(t.RandomHorizontalFlip())
        steps.append(t.ToTensor())
        if self.mean or self.std:
            steps.append(t.Normalize(self.mean or (0.0,) * len(self.std), self.std or (1.0,) * len(self.mean)))
        return t.Compose(steps)


#: By name. ``cifar``: the means and deviations of CIFAR-10.
PREPARATIONS: Final[Mapping[str, Preparation]] = MappingProxyType(
    {
        "none": Preparation(),
        "cifar": Preparation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), flip=True, pad=4),
        "imagenet": Preparation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), flip=True, size=224),
    }
)


def preparation(name: str) -> Preparation:
    """A named preparation. Raises UsageError for an unknown name."""
    found = PREPARATIONS.get(name)
    if found is None:
        raise UsageError(unknown("preparation of images", name, PREPARATIONS, "Preparations"))
    return found


def _shifted(x: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    count, _, height, width = x.shape
    top, left = torch.randint(2 * pad + 1, (2, count, 1), generator=generator, device=x.device)
    rows, columns = (start + torch.arange(size, device=x.device) for start, size in ((top, height), (left, width)))
    index = torch.arange(count, device=x.device).view(-1, 1, 1)
    # The indexed axes come first, the channels between them last.
    return F.pad(x, (pad,) * 4)[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class _ShiftedPicture:
    """Shift by up to ``pad`` pixels; a class, so that processes that load data can be started with it."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, picture: Any) -> Any:
        from torchvision.transforms import RandomCrop

        return RandomCrop((picture.height, picture.width), padding=self.pad)(picture)
