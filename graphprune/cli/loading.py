"""From the arguments of a command to a model, example inputs, and places to write to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphprune.calibration import Calibration
from graphprune.claims import claimed
from graphprune.cli import options
from graphprune.cli.output import Output
from graphprune.devices import check_device
from graphprune.errors import UsageError, unknown
from graphprune.files import check_writable
from graphprune.ir.program import Inputs
from graphprune.passes.calibration.supply import SYNTHETIC
from graphprune.pipeline.policy import CHOICES
from graphprune.sources import Source, example_inputs, load_calibration, load_source
from graphprune.sources.images import Images, load_images

FORMATS = {".safetensors": "artifact", ".pt2": "exported program"}


@dataclass(frozen=True)
class Job:
    """What a command works on.

    source: the model. inputs: example inputs. images: to measure the accuracy on, if any. scopes: the submodules that are to
    be pruned, if the user named any. calibration: data for criteria and compensation, if any, which follow the model to its
    device; ``synthetic`` for data that are yet to be made. device: where the model, the inputs and the batches of images are.
    """

    source: Source
    inputs: Inputs
    images: Images | None = None
    scopes: tuple[str, ...] = ()
    calibration: Calibration | str | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Request(options.Model, options.Limits, options.Calibration, options.Accuracy):
    """What names a model and all that goes with it, as the user gave it."""

    source: str
    device: str = "cpu"

    @classmethod
    def of(cls, source: str, *sets: Any, **more: Any) -> Request:
        """A request from the sets of options that a command takes."""
        return cls(source, **{name: value for one in sets for name, value in vars(one).items()}, **more)

    def open(self, output: Output, known: Inputs | None = None) -> Job:
        """Load the model and the images, on the device. Raises UsageError for whatever is wrong with them.

        known: example inputs to take where the source brings none and the user gave none.
        """
        if self.data is None and self.calibrate is None and (self.mean or self.std):
            raise UsageError("--mean and --std scale the images of --data and --calibrate. Add one of them.")
        check_device(self.device)
        with output.task(f"Loading {self.source}"):
            images = None if self.data is None else replace(load_images(self.data, self.mean, self.std), device=self.device)
            source = load_source(self.source, weights=self.weights, trust_pickle=self.trust_pickle, seed=self.seed)
            if source.inputs is None and source.default_input is None:
                source = replace(source, inputs=known, default_input=None if images is None else (1, *images.shape))
            inputs = example_inputs(source, self.shape, seed=self.seed)
            calibration = self._calibration(inputs)
            if self.device != "cpu":  # where models are loaded
                source, inputs = replace(source, model=source.model.to(self.device)), inputs.to(self.device)
            return Job(source, inputs, images, tuple(self.scopes or ()), calibration, self.device)

    def _calibration(self, inputs: Inputs) -> Calibration | str | None:
        if self.calibrate is None or self.calibrate == SYNTHETIC:
            return self.calibrate
        return load_calibration(self.calibrate, samples=self.samples, mean=self.mean, std=self.std, like=inputs, seed=self.seed)

    @property
    def files(self) -> list[Path]:
        """The files that are read, which must not be written over."""
        named = (Path(self.source), self.weights, self.data, None if self.calibrate is None else Path(self.calibrate))
        within = Path(self.source).iterdir() if self.source and Path(self.source).is_dir() else ()
        return [path for path in (*named, *within) if path is not None and path.is_file()]


@contextmanager
def writing(outputs: Sequence[Path | None], inputs: Sequence[Path]) -> Iterator[None]:
    """Have files to oneself while the block runs, once they are checked as :func:`check_outputs` does. Raises UsageError."""
    check_outputs(outputs, inputs)
    with claimed(*(path for path in outputs if path is not None)):
        yield


def check_outputs(outputs: Sequence[Path | None], inputs: Sequence[Path], *, folder: bool = False) -> None:
    """Check, before anything is computed, that files (or a folder) can be written and are neither inputs nor one another.

    Raises UsageError.
    """
    seen: dict[Path, str] = {path.resolve(): "is an input of this command" for path in inputs}
    for path in outputs:
        if path is not None:
            check_writable(path, folder=folder)
            if path.resolve() in seen:
                raise UsageError(f"Cannot write {path}: it {seen[path.resolve()]}. Choose another path.")
            seen[path.resolve()] = "is to hold another result"


def check_format(path: Path, more: Mapping[str, str] = {}) -> None:
    """Raise UsageError unless the name's ending says which format to write. more: endings beside those of models."""
    formats = {**FORMATS, **more}
    if path.suffix not in formats:
        known = [f"{ending} ({what})" for ending, what in formats.items()]
        raise UsageError(
            f"Cannot tell the format of {path} from its name. End it in {', '.join(known[:-1])} or {known[-1]}; "
            "`graphprune export` makes others of that."
        )


def parse_policy(choices: Sequence[str] | None) -> dict[str, str]:
    """Policies from ``name=choice`` and ``name@site=choice``. Raises UsageError for other forms and names."""
    found = {}
    for text in choices or ():
        name, equals, choice = text.partition("=")
        if not equals:
            raise UsageError(f"--policy {text} has no '='. Write it as name=choice; `graphprune passes` lists them.")
        if name.partition("@")[0] not in CHOICES:
            raise UsageError(unknown("policy", name, CHOICES, "Policies"))
        found[name] = choice
    return found
