"""From exceptions to exit codes and to one or two sentences on standard error."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import typer

from graphprune.errors import GraphpruneError, PassContractError, UsageError

DONE: Final = 0
FAILED: Final = 1
BAD_USAGE: Final = 2
INTERRUPTED: Final = 130

# The base of all complaints about arguments, of typer's own click or of the click package, whichever this typer has.
_BadArguments = typer.BadParameter.__mro__[1]


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run an application and return the exit code. Everything it raises ends as a short message on standard error."""
    command = typer.main.get_command(app)
    try:
        return int(command.main(list(arguments), prog_name="graphprune", standalone_mode=False) or DONE)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        return _answer(error)


def _answer(error: Exception) -> int:
    for kind, answer in _ANSWERS:
        if isinstance(error, kind):
            return answer(error)
    return _defect(error)


def _bad_arguments(error: Exception) -> int:
    text = str(getattr(error, "format_message", error.__str__)())
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" or context is None:
        sys.stderr.write(f"{text}\n" if text else "")  # the message is the help, unless typer has printed it already
        return BAD_USAGE
    return _say(f"error: {text.rstrip('.')}. See `{context.command_path} --help`.", BAD_USAGE)


def _deliberate(error: Exception) -> int:
    return _say(_sentences(error), BAD_USAGE if isinstance(error, UsageError) else FAILED)


def _out_of_memory(error: Exception) -> int:
    return _say("error: out of memory. Give a smaller --input, or use a machine with more memory.", FAILED)


def _system(error: Exception) -> int:
    """The operating system refused something: a full disk, a file that vanished."""
    name = getattr(error, "filename", None)
    reason = getattr(error, "strerror", None) or str(error)
    return _say(f"error: {reason}{f': {name}' if name else ''}. See to that and run the command again.", FAILED)


def _defect(error: Exception) -> int:
    """An exception that nobody planned: keep its traceback in a file, for the report."""
    handle, name = tempfile.mkstemp(prefix="graphprune-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.writelines(traceback.format_exception(error))
    kind = type(error).__name__
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    return _say(
        f"error: this is a defect of graphprune ({kind}); the traceback is in {Path(name)}, and --debug prints it.{notes}", FAILED
    )


_ANSWERS: Final[tuple[tuple[type[BaseException], Callable[[Exception], int]], ...]] = (
    (_BadArguments, _bad_arguments),
    (PassContractError, _defect),
    (GraphpruneError, _deliberate),
    (MemoryError, _out_of_memory),
    (OSError, _system),
)


def _sentences(error: Exception) -> str:
    """The message (torch.fx appends a traceback to what passes through its interpreter) and the notes on it."""
    text = str(error).partition("\n\n")[0].strip()
    return "\n".join([f"error: {text}", *getattr(error, "__notes__", ())])


def _say(text: str, code: int) -> int:
    sys.stderr.write(f"graphprune: {text}\n")
    return code
