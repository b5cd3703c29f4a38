"""The methods and their controls on CIFAR-10, at the same MACs and with the same training.

    pip install "graphprune[train,plot]"
    python run.py --data cifar10.npz --protocol full --model resnet56 --seeds 3        # needs a GPU; trains everything here
    python run.py --data cifar10.npz --protocol short --weights resnet20.th            # minutes for each row on a CPU
    python run.py --data cifar10.npz --protocol full --minutes 8                       # a slice: stops, and goes on when called
    again python run.py --publish                                                            # README.md and the picture from the
    rows

``--data`` is an npz file with ``x_train, y_train, x_test, y_test`` (uint8 images [N, 3, 32, 32]).

Protocols (``protocols.py``): ``full`` trains the dense model for 200 epochs, with 5,000 training images set apart for every
decision, and gives each method the same schedule and number of epochs after its last cut; ``short`` starts from a trained
checkpoint, with few epochs on a part of the images, and says so in its table. Every row is one run of ``graphprune.methods`` in a
folder of its own, so that this script can be stopped at any time, even by ``kill -9``; finished rows are in ``results.jsonl``.

A row has: MACs and parameters of the slim model as a share of the dense one's (counted, not nominal), test accuracy after the last
epoch of the dense and the slim model, the epochs that were trained on the way, and the seconds. The test images are used once, at
the end.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import graphprune
from graphprune.files import atomic_write
from graphprune.methods import METHODS
from graphprune.runs import Round
from graphprune.runs.history import Silent
from graphprune.training import Trainer, load_training_data

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "resnet56_cifar10")]
import models  # noqa: E402
import page  # noqa: E402
from protocols import PROTOCOLS, Protocol, Row  # noqa: E402

RESULTS = HERE / "results.jsonl"


class _OutOfTime(BaseException):
    """The slice is over; what is recorded stays."""


class _Watch(Silent):
    """Prints rounds, and ends the slice when its time is up."""

    def __init__(self, title: str, deadline: float) -> None:
        self._title, self._deadline = title, deadline

    def working(self, what: str, number: int) -> None:
        """A step begins."""
        self._check()

    def epoch(self, done: int, total: int) -> None:
        """An epoch is over."""
        print(f"{time.strftime('%H:%M:%S')} {self._title}: epoch {done}/{total}", flush=True)
        self._check()

    def round(self, row: Round, *, repeated: bool) -> None:
        """A round is over."""
        if not repeated:
            print(
                f"{time.strftime('%H:%M:%S')} {self._title}: {row.status}, accuracy {row.accuracy}, MACs {row.macs:,}", flush=True
            )

    def _check(self) -> None:
        if time.monotonic() > self._deadline:
            raise _OutOfTime


def dense_model(row: Row, protocol: Protocol, options: argparse.Namespace, deadline: float) -> nn.Module:
    """The model that a row's method begins with: from a checkpoint, trained here once for each seed, or fresh."""
    torch.manual_seed(row.seed)
    model = models.MODELS[row.model]()
    if options.weights is not None:
        models.load_checkpoint(model, options.weights)
    elif protocol.dense_epochs and row.trained:
        trainer = _trainer(protocol, options, row.seed, dense=True)
        folder = options.folder / f"{protocol.name}-{row.model}-dense-{row.seed}"
        watch = _Watch(f"{row.model} dense, seed {row.seed}", deadline)
        how: dict[str, Any] = {
            "train": trainer.train,
            "evaluate": trainer.evaluate,
            "folder": folder,
            "seed": row.seed,
            "watch": watch,
        }
        result = METHODS["iterative"](
            model, _example(options), target="macs=100%", trained=False, epochs=protocol.dense_epochs, final_epochs=0, **how
        )
        model.load_state_dict(result.model.state_dict())
    return model.to(options.device)


def _example(options: argparse.Namespace) -> torch.Tensor:
    return torch.zeros(1, 3, 32, 32, device=options.device)


def _trainer(protocol: Protocol, options: argparse.Namespace, seed: int, *, dense: bool = False) -> Trainer:
    data = load_training_data(str(options.data), prepare="cifar", validation=protocol.validation, seed=seed)
    data = protocol.limited(data)
    settings = protocol.dense_training if dense else protocol.training
    return Trainer(data, settings, device=options.device)


def finished(row: Row, protocol: Protocol, options: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """Run a method to its end; its row."""
    start = time.monotonic()
    model = dense_model(row, protocol, options, deadline)
    trainer = _trainer(protocol, options, row.seed)
    result = METHODS[row.method](
        model,
        _example(options),
        train=trainer.train,
        evaluate=trainer.evaluate,
        data=trainer.data.calibration(protocol.calibration, seed=row.seed),
        folder=options.folder / f"{protocol.name}-{row.key}",
        seed=row.seed,
        watch=_Watch(row.key, deadline),
        epochs=protocol.epochs,
        **row.options,
    )
    dense = model if row.trained else dense_model(replace(row, trained=True), protocol, options, deadline)
    before, after = result.pruned.report.before, result.pruned.report.after
    last = result.rounds[-1]
    return {
        "key": row.key,
        "protocol": protocol.name,
        "model": row.model,
        "method": row.title,
        "seed": row.seed,
        "target": row.target,
        "macs": after.macs / before.macs,
        "params": after.parameters / before.parameters,
        "dense_test": trainer.test(dense),
        "test": trainer.test(result.model),
        "validation": last.accuracy,
        "best_validation": last.best,
        "epochs": last.epochs,
        "rounds": len(result.rounds),
        "proved": result.pruned.report.verification is not None and result.pruned.report.verification.passed,
        "seconds_of_last_slice": round(time.monotonic() - start),
        "device": torch.cuda.get_device_name()
        if torch.device(options.device).type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "made_with": f"graphprune {graphprune.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }


def known() -> dict[tuple[str, str], dict[str, Any]]:
    """Rows that are finished, by protocol and key."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {(row["protocol"], row["key"]): row for row in map(json.loads, lines)}


def wanted(options: argparse.Namespace) -> Iterator[tuple[Row, Protocol]]:
    """What is to be done: seed by seed, so that a table is whole early."""
    protocol = PROTOCOLS[options.protocol]
    for seed in range(options.seeds):
        for row in protocol.rows(options.model, seed):
            if not options.only or any(text in row.key for text in options.only):
                yield row, protocol


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="rows whose key holds one of these texts")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as an npz file")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="short")
    parser.add_argument("--model", choices=models.MODELS, default="resnet20")
    parser.add_argument("--weights", type=Path, help="a trained checkpoint to begin with, instead of training the dense model")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long; the next call goes on")
    parser.add_argument("--folder", type=Path, default=HERE / "runs", help="where runs are recorded")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--publish", action="store_true", help="write the page from the rows, and stop")
    return parser.parse_args()


def main() -> int:
    """Do what is asked for; exit code 3 where there is more to do."""
    options = arguments()
    if options.publish:
        page.publish(list(known().values()))
        return 0
    if options.data is None:
        raise SystemExit("Give --data cifar10.npz.")
    deadline = time.monotonic() + 60 * options.minutes
    for row, protocol in wanted(options):
        if (protocol.name, row.key) in known():
            continue
        try:
            found = finished(row, protocol, options, deadline)
        except _OutOfTime:
            print("The time of this slice is up. Run the same command again to go on.")
            return 3
        rows = [*known().values(), found]
        with atomic_write(RESULTS) as temporary:
            temporary.write_text("".join(json.dumps(one) + "\n" for one in rows))
        page.publish(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
