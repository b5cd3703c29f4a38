"""``graphprune demo``: the whole job on a model trained on the spot, offline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli import options
from graphprune.cli.output import Output
from graphprune.errors import UsageError
from graphprune.files import atomic_write, check_writable, write_whole

if TYPE_CHECKING:
    from torch import nn

    from graphprune.result import PruneResult
    from graphprune.sources.images import Images

_TARGET = "macs=50%"
_CRITERION = "l2"
_EPOCHS = 15
_TUNING_EPOCHS = 5
_SOURCE = "graphprune.cli.digits:small_cnn"
_FILES = {"model": "model.safetensors", "slim": "slim.safetensors", "plan": "plan.json", "data": "digits.npz"}

Folder = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the model, the slim model and the plan go.")]


def command(
    *,
    out: Folder = Path("graphprune-demo"),
    seed: options.Seed = 0,
    screen: options.Screen,
) -> None:
    """Train a small CNN on scikit-learn's digits, prune it, verify it, fine-tune it, and compare. Offline, under a minute."""
    _check_folder(out)
    from graphprune.sources.digits import load_digits

    with screen.output() as output:
        training, held_out = load_digits()
        output.say(f"Training a small CNN on {len(training.y):,} digits; {len(held_out.y):,} are held out to measure the accuracy.")
        model = _trained(training, seed, output)
        accuracy = {"trained": _accuracy(model, held_out, output)}
        output.say(f"Pruning to {_TARGET} by the {_CRITERION} norm of coupled channels.")
        accuracy["pruned"] = _accuracy(_pruned(model, seed, output).model, held_out, output)
        output.say("Compensating by least squares: each layer gets the weights that make up best for the inputs that it lost.")
        result = _pruned(model, seed, output, training)
        accuracy["compensated"] = _accuracy(result.model, held_out, output)
        _tune(result, training, seed, output)
        accuracy["fine-tuned"] = _accuracy(result.model, held_out, output)
        files = _save(out, model, result, training, held_out)
        _confirm(files["slim"], held_out, accuracy["fine-tuned"], output)
        _report(result, accuracy, files, output)


def _check_folder(out: Path) -> None:
    """Raise UsageError unless the folder exists or could be made, and the files in it may be written."""
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "is not writable" if nearest.is_dir() else "is a file"
        raise UsageError(f"Cannot write to the folder {out}: {nearest} {reason}. Choose another with --out DIR.")
    if nearest == out.absolute():
        for name in _FILES.values():
            check_writable(out / name)


def _trained(images: Images, seed: int, output: Output) -> nn.Module:
    import torch

    from graphprune.cli.digits import small_cnn, train

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = small_cnn()
    with output.task(f"Training, {_EPOCHS} epochs", total=_EPOCHS) as task:
        train(model, images, _EPOCHS, 1e-2, seed, task)
    return model


def _pruned(model: nn.Module, seed: int, output: Output, images: Images | None = None) -> PruneResult:
    """The slim model, compensated on images if there are any."""
    from dataclasses import replace

    import torch

    import graphprune
    from graphprune.cli.watching import PassProgress

    data = None if images is None else list(images.batches(torch.float32))
    compensate = None if images is None else "least-squares"
    with output.task("Pruning") as task:
        result = graphprune.prune(
            model,
            torch.zeros(1, 1, 8, 8),
            target=_TARGET,
            criterion=_CRITERION,
            data=data,
            compensate=compensate,
            seed=seed,
            observers=[PassProgress(task)],
        )
    return replace(result, source=_SOURCE)


def _tune(result: PruneResult, images: Images, seed: int, output: Output) -> None:
    from graphprune.cli.digits import train

    output.say(f"Fine-tuning the slim model for {_TUNING_EPOCHS} epochs.")
    with output.task(f"Fine-tuning, {_TUNING_EPOCHS} epochs", total=_TUNING_EPOCHS) as task:
        train(result.model, images, _TUNING_EPOCHS, 3e-3, seed + 1, task)


def _accuracy(model: nn.Module, images: Images, output: Output) -> float:
    from graphprune.cli.accuracy import top1

    return top1(model, images, output)


def _save(out: Path, model: nn.Module, result: PruneResult, training: Images, held_out: Images) -> dict[str, Path]:
    """Write everything to the folder, each file atomically."""
    import numpy as np
    from safetensors.torch import save

    import graphprune

    files = {kind: out / name for kind, name in _FILES.items()}
    out.mkdir(parents=True, exist_ok=True)
    write_whole(files["model"], save(model.state_dict()))
    graphprune.save(result, files["slim"])
    result.plan.save(files["plan"])
    with atomic_write(files["data"]) as temporary, temporary.open("wb") as stream:
        np.savez(stream, x_train=training.x, y_train=training.y, x_test=held_out.x, y_test=held_out.y)
    return files


def _confirm(path: Path, held_out: Images, expected: float, output: Output) -> None:
    """Load the artifact again; it must be as accurate as what was saved. Raises CheckError."""
    import graphprune
    from graphprune.errors import CheckError

    found = _accuracy(graphprune.load(path), held_out, output)
    if found != expected:
        raise CheckError(f"{path} has an accuracy of {found:.2%} when loaded again, and had {expected:.2%} when it was saved.")


def _report(result: PruneResult, accuracy: dict[str, float], files: dict[str, Path], output: Output) -> None:
    from graphprune.cli import tables

    report = result.report
    disk = (files["model"].stat().st_size, files["slim"].stat().st_size)
    data: dict[str, Any] = {
        "before": tables.cost_data(report.before) | {"disk_bytes": disk[0]},
        "after": tables.cost_data(report.after) | {"disk_bytes": disk[1]},
        "verification": tables.verification_data(report.verification),
        "accuracy": accuracy,
        "files": {name: str(path) for name, path in files.items()},
    }
    output.data(data)
    table = tables.plain_table("", "#accuracy", title="Top-1 accuracy on the held-out digits")
    for stage, value in accuracy.items():
        table.add_row(stage, f"{value:.2%}")
    output.show(tables.before_after(report.before, report.after, disk, result.inputs.describe()), table)
    if output.verbose:
        output.show(tables.widths_table(report.widths))
    output.say(tables.verification_line(report.verification))
    output.say(
        f"Written to {files['slim'].parent}: {', '.join(path.name for path in files.values())}. Loaded again: the same accuracy."
    )
    output.say(f"Load it with: {tables.load_hint(str(files['slim']))}")
    again = f"{_SOURCE} --weights {files['model']} --input 1x1x8x8"
    output.say("Try next:")
    output.say(f"  graphprune inspect {_SOURCE} --input 1x1x8x8")
    output.say(f"  graphprune score {again} --criterion taylor --calibrate {files['data']}")
    digits = f"--calibrate {files['data']} --data {files['data']}"
    output.say(f"  graphprune prune {again} --target macs=30% --compensate least-squares {digits} -o slim.safetensors")
