"""The command line: ``graphprune COMMAND``, one module for each.

Nothing here imports torch before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from graphprune.cli.errors import Commands
from graphprune.cli.errors import run as answer
from graphprune.cli.examples import EXAMPLES, epilog
from graphprune.cli.expanding import expanded
from graphprune.cli.options import Version

app = typer.Typer(
    name="graphprune",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for name in EXAMPLES:  # each is the function ``command`` of the module of its name in this folder
    app.command(name, epilog=epilog(name))(expanded(import_module(f"{__name__}.{name.replace('-', '_')}").command))


@app.callback()
def _graphprune(version: Version = False) -> None:
    """Make PyTorch models smaller: structured pruning, verified. `graphprune COMMAND --help` says more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 a check failed or a target was missed, 2 bad usage or input.

    arguments: without the program's name; those of the process by default.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")  # frames and dots of a table are no reason to fail where the locale lacks them
    return answer(app, list(sys.argv[1:] if arguments is None else arguments))
