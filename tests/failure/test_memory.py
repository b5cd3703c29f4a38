"""Memory that is out while data run through the model: smaller batches with the same result, or an error that says where."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import graphprune
from graphprune.calibration import Calibration, default_loss
from graphprune.errors import MemoryShortError
from graphprune.passes.analysis.channels import ChannelsPass
from graphprune.passes.scoring.score import ScorePass
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.pass_manager import PassManager
from tests.failure.commands import COMMANDS
from tests.failure.conftest import Whole
from tests.failure.processes import left, run

CRITERIA = ["taylor", "fisher", "attention", "mean-activation", "variance", "apoz", "rank", "class-aware"]


class Net(nn.Module):
    """Convolutions and a classifier, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(20, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 2, 6, 6) and (n, 3)."""
        return self.classified(self.b(torch.relu(self.a(x))))

    def classified(self, x: Tensor) -> Tensor:
        """From (n, 5, 2, 2) to (n, 3)."""
        found: Tensor = self.head(torch.relu(x).flatten(1))
        return found


class Joint(Net):
    """Takes the mean of its batch away, so that samples depend on one another."""

    def forward(self, x: Tensor) -> Tensor:
        """As before."""
        x = torch.relu(self.a(x))
        return self.classified(self.b(x - x.mean(0, keepdim=True)))


def hungry(original: Callable[..., Tensor], most: int, seen: list[int] | None = None) -> Callable[..., Tensor]:
    """A layer's function that runs out of memory on more than so many samples; those that are tried are listed."""

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not x.is_meta:
            if seen is not None:
                seen.append(len(x))
            if len(x) > most:
                raise torch.OutOfMemoryError(f"Tried to allocate {len(x)} GiB.")
        return original(x, *args, **kwargs)

    return call


@contextmanager
def short(most: int, seen: list[int] | None = None) -> Iterator[None]:
    """All layers are hungry for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("linear", "conv2d"):
            patch.setattr(functional, name, hungry(getattr(functional, name), most, seen))
        yield


def scores(model: nn.Module, criterion: str, data: Calibration) -> Tensor:
    program = graphprune.capture(model, torch.zeros(2, 2, 6, 6, dtype=torch.float64)).with_(calibration=data)
    done = PassManager([ChannelsPass(), ScorePass(criterion=criterion)]).run(program, AnalysisManager())
    return torch.tensor(next(iter(done.scores.values())).values)


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(0)
    x = torch.randn(sum(sizes), 2, 6, 6, generator=made, dtype=torch.float64)
    y = torch.arange(sum(sizes)) % 3
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("most", [3, 2])
def test_scores_are_the_same_on_batches_that_fit(criterion: str, most: int) -> None:
    torch.manual_seed(0)
    model, seen = Net(), list[int]()
    whole = scores(model, criterion, Calibration(batches(8, 7)))
    with short(most, seen):
        found = scores(model, criterion, Calibration(batches(8, 7)))
    assert max(seen) > most, "memory was out at first"
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=0, equal_nan=True)


def hungry_loss(output: Tensor, target: Tensor) -> Tensor:
    """A loss for which there is memory in the check of two samples alone, that is without gradients."""
    if output.requires_grad:
        raise torch.OutOfMemoryError("Tried to allocate 1 GiB.")
    return default_loss(output, target)


def test_memory_that_is_out_on_the_way_back_is_the_same() -> None:
    torch.manual_seed(0)
    model = Net()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if len(output) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return default_loss(output, target)

    found = scores(model, "taylor", Calibration(batches(8, 7), loss=loss))
    torch.testing.assert_close(found, scores(model, "taylor", Calibration(batches(8, 7))), rtol=1e-12, atol=0, equal_nan=True)


def test_one_sample_that_does_not_fit_is_an_error_naming_layer_and_sizes() -> None:
    with short(0), pytest.raises(MemoryShortError) as error:
        scores(Net(), "variance", Calibration(batches(1, 1), name="my data"))
    said = str(error.value)
    assert "Out of memory at module a, on my data (float64[1x2x6x6]): Tried to allocate 1 GiB." in said
    assert said.endswith("One sample is too much.")


def test_smaller_batches_that_do_not_fit_either_are_named() -> None:
    data = Calibration(batches(8, 7), loss=hungry_loss)
    with pytest.raises(MemoryShortError, match=r"One sample is too much\. Batches of 8 samples were tried first\."):
        scores(Net(), "taylor", data)


def test_samples_of_which_no_two_fit_are_not_split_unasked() -> None:
    with short(1), pytest.raises(MemoryShortError, match="Nor do two samples fit"):
        scores(Net(), "variance", Calibration(batches(8, 7)))
    with short(1):
        assert scores(Net(), "variance", Calibration(batches(1, 1))).isfinite().any()


def test_a_model_that_mixes_samples_is_not_split() -> None:
    data = Calibration(batches(8, 7))
    with short(4), pytest.raises(MemoryShortError, match=r"depends on the others of its batch, so that it was not split"):
        scores(Joint(), "variance", data)
    with short(8):
        assert scores(Joint(), "variance", data).isfinite().any()


def test_a_loss_that_is_no_mean_over_samples_is_not_split() -> None:
    data = Calibration(batches(8, 7), loss=lambda output, target: output.square().sum())
    with short(4), pytest.raises(MemoryShortError, match="so that it was not split"):
        scores(Net(), "taylor", data)
    with short(4):
        assert scores(Net(), "variance", data).isfinite().any(), "a criterion of activations does not ask for it"


def test_a_median_over_samples_is_not_split() -> None:
    with short(2), pytest.raises(MemoryShortError, match="ClassIndicators looks at all samples of a batch together"):
        scores(Net(), "class-aware(relative=true)", Calibration(batches(8, 7)))


def test_a_criterion_that_runs_all_batches_together_names_the_layer() -> None:
    with short(4), pytest.raises(MemoryShortError, match=r"Out of memory at module a, .* Give smaller batches, or fewer samples"):
        scores(Net(), "obs", Calibration(batches(8, 7)))


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(graphprune.GraphpruneError, match="does not run on the calibration data"):
        scores(Net(), "variance", Calibration([torch.zeros(4, 3, 6, 6, dtype=torch.float64)]))


@dataclass(frozen=True)
class Short:
    """A fault: layers take no more than so many samples at once."""

    most: int

    def __call__(self) -> None:
        """From now on."""
        functional.linear = hungry(functional.linear, self.most)


def test_a_command_ends_as_one_with_memory_enough(tmp_path: Path, whole: Whole) -> None:
    """Scores differ by the rounding of float32, which changes no choice here."""
    ran = run(COMMANDS["prune"].line(), tmp_path, Short(5))
    assert ran.code == 0, ran.out
    kept = [json.loads(text["plan.json"])["kept"] for text in (COMMANDS["prune"].result(tmp_path), whole("prune"))]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_cannot_go_on_says_so_in_a_line(name: str, tmp_path: Path) -> None:
    training = name == "run"  # there one sample is tried first
    ran = run(COMMANDS[name].line(), tmp_path, Short(8 if training else 0))
    assert ran.code == (2 if training else 1), ran.out
    said = [line for line in ran.out.splitlines() if line.startswith("graphprune: ")]
    assert len(said) == 1 and said[0].startswith("graphprune: error: ") and "out of memory" in said[0].lower()
    assert "defect" not in ran.out and not {path for path in left(tmp_path) if Path(path).name.startswith(".")}
