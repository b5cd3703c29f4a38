"""From exceptions to exit codes and to one or two sentences on standard error."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import typer
from typer.core import TyperGroup

from graphprune.errors import GraphpruneError, PassContractError, UsageError
from graphprune.failures import lost_worker, memory_is_out, worker_is_lost

DONE: Final = 0
FAILED: Final = 1
BAD_USAGE: Final = 2
INTERRUPTED: Final = 130

# The base of all complaints about arguments, of typer's own click or of the click package, whichever this typer has.
_BadArguments = typer.BadParameter.__mro__[1]


class Interrupted(Exception):
    """The user, or who manages the machine, wants the command to end; the notes say how to go on."""


class Commands(TyperGroup):
    """The commands, which an interruption leaves as :class:`Interrupted`: typer takes a KeyboardInterrupt for an answer."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _with_notes(Interrupted(), error) from error


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run an application and return the exit code. Everything it raises ends as a short message on standard error.

    SIGTERM, by which schedulers and torchrun end a process, interrupts as Ctrl-C does.
    """
    command = typer.main.get_command(app)
    try:
        with _terminable():
            return int(command.main(list(arguments), prog_name="graphprune", standalone_mode=False) or DONE)
    except KeyboardInterrupt:  # before the command began, or after it
        return _interrupted(Interrupted())
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        return _answer(error)


@contextmanager
def going_on(out: Path | None) -> Iterator[None]:
    """An interruption of the block says that what was found is in a file, and how to go on from there."""
    try:
        yield
    except KeyboardInterrupt as error:
        if out is not None and out.exists():
            error.add_note(f"What was found so far is in {out}; the same command goes on from there.")
        raise


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises a KeyboardInterrupt while the block runs, so that files are put away and the terminal is put right."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _with_notes(error: Exception, source: BaseException) -> Exception:
    for note in getattr(source, "__notes__", ()):
        error.add_note(note)
    return error


def _answer(error: Exception) -> int:
    for fits, answer in _ANSWERS:
        if isinstance(error, fits) if isinstance(fits, type) else fits(error):
            return answer(error)
    return _defect(error)


def _bad_arguments(error: Exception) -> int:
    text = str(getattr(error, "format_message", error.__str__)())
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" or context is None:
        sys.stderr.write(f"{text}\n" if text else "")  # the message is the help, unless typer has printed it already
        return BAD_USAGE
    return _say(f"error: {text if text.endswith(('.', '?')) else f'{text}.'} See `{context.command_path} --help`.", BAD_USAGE)


def _deliberate(error: Exception) -> int:
    return _say(_sentences(error), BAD_USAGE if isinstance(error, UsageError) else FAILED)


def _interrupted(error: Exception) -> int:
    return _say(" ".join(["interrupted.", *getattr(error, "__notes__", ())]), INTERRUPTED)


def _out_of_memory(error: Exception) -> int:
    return _say("error: out of memory. Give a smaller --input, or use a machine with more memory.", FAILED)


def _lost_worker(error: Exception) -> int:
    return _say(f"error: {lost_worker(error)}", BAD_USAGE)


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


_ANSWERS: Final[tuple[tuple[type[BaseException] | Callable[[Exception], bool], Callable[[Exception], int]], ...]] = (
    (Interrupted, _interrupted),
    (typer.Abort, _interrupted),
    (_BadArguments, _bad_arguments),
    (PassContractError, _defect),
    (GraphpruneError, _deliberate),
    (memory_is_out, _out_of_memory),
    (worker_is_lost, _lost_worker),
    (OSError, _system),
)


def _sentences(error: Exception) -> str:
    """The message and the notes on it."""
    return "\n".join([f"error: {error}", *getattr(error, "__notes__", ())])


def _say(text: str, code: int) -> int:
    sys.stderr.write(f"graphprune: {text}\n")
    return code
