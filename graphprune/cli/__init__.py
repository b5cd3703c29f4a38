"""The command line: ``graphprune demo | inspect | score | profile | sweep | prune | prune-checkpoint | run | recipe | apply |
verify | compare | diff | export | passes``.

Nothing here imports torch before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from graphprune.cli import (
    apply,
    compare,
    demo,
    diff,
    export,
    inspect,
    passes,
    profile,
    prune,
    prune_checkpoint,
    recipe,
    run,
    score,
    sweep,
    verify,
)
from graphprune.cli.errors import run as answer
from graphprune.cli.options import Version

app = typer.Typer(
    name="graphprune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS = (
    *(demo, inspect, score, profile, sweep, prune, prune_checkpoint, run, recipe, apply),
    *(verify, compare, diff, export, passes),
)
for module in _COMMANDS:
    app.command(module.__name__.rpartition(".")[2].replace("_", "-"))(module.command)


@app.callback()
def _graphprune(version: Version = False) -> None:
    """Make PyTorch models smaller: structured pruning, verified. `graphprune COMMAND --help` says more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 a check failed or a target was missed, 2 bad usage or input.

    arguments: without the program's name; those of the process by default.
    """
    return answer(app, list(sys.argv[1:] if arguments is None else arguments))
