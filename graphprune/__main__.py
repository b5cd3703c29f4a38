"""``python -m graphprune`` and the ``graphprune`` script are the command line."""

from __future__ import annotations

import atexit
import os
import signal
import sys


def main() -> int:
    """Run the command line on the process's arguments and return its exit code.

    The command line is imported here, so that Ctrl-C while that lasts ends as it does later: one line, exit code 130.
    """
    try:
        from graphprune.cli import main as command

        code = command()
    except KeyboardInterrupt:
        sys.stderr.write("graphprune: interrupted.\n")
        code = 130
    if code == 130:  # who is in a hurry presses Ctrl-C twice, and the interpreter takes a moment to end
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        _end(code)
    return code


def _end(code: int) -> None:
    """End one of several processes here and now, after all that was registered for the end.

    torch's threads for sharded models outlive the process group: the interpreter, taking itself apart, was ended by an abort in one
    run of four, after everything was written.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
