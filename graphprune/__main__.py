"""``python -m graphprune`` and the ``graphprune`` script are the command line."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line on the process's arguments and return its exit code.

    The command line is imported here, so that Ctrl-C while that lasts ends as it does later: one line, exit code 130.
    """
    try:
        from graphprune.cli import main as command

        return command()
    except KeyboardInterrupt:
        sys.stderr.write("graphprune: interrupted.\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
