"""What can go wrong, as a small tree of typed errors.

Each message is one or two sentences: what happened, where, and what to do. The command line maps the two branches
to its exit codes (:class:`UsageError` to 2, :class:`CheckError` to 1) and prints a traceback only with ``--debug``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic import ValidationError

_LONG: Final = re.compile(r"\S{400,}")
_LONGEST: Final = 500  # characters of a line of another library
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _escaped(match: re.Match[str]) -> str:
    return repr(match[0])[1:-1]


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "; check the spelling.") -> str:
    """The end of a sentence about a name that is not known: those that are nearest. otherwise: the end where none is near.

    >>> f"There is no layer conv11{did_you_mean('conv11', ['conv1', 'conv2', 'head'])}"
    "There is no layer conv11; did you mean 'conv1' or 'conv2'?"
    """
    near = get_close_matches(str(name), list(known), n=3)  # a user may give anything for a name
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else otherwise


def unknown(kind: str, name: str, known: Iterable[str], title: str) -> str:
    """A message for a name that is not known, with the nearest ones and the list.

    >>> unknown("pass", "selct", ["score", "select"], "Passes")
    "There is no pass 'selct'; did you mean 'select'? Passes: score, select."
    """
    choices = list(known)
    return f"There is no {kind} {name!r}{did_you_mean(name, choices, '.')} {title}: {', '.join(choices) or 'none'}."


class GraphpruneError(Exception):
    """Base class of every error that graphprune raises on purpose.

    Messages quote names that come from files. They stay one line: control characters are shown as escapes, long words are cut, and
    so is the traceback that torch.fx appends to what passes through its interpreter.
    """

    def __str__(self) -> str:
        line = _CONTROL.sub(_escaped, super().__str__().partition("\n\n")[0].strip())
        return _LONG.sub(lambda word: f"{word[0][:80]}...{word[0][-40:]}", line)


class UsageError(GraphpruneError):
    """Bad usage or bad input: nothing was computed and nothing was written."""


class NamesNothing(UsageError):
    """A pattern that names nothing of the model. pattern: as it was given."""

    def __init__(self, message: str, pattern: str) -> None:
        super().__init__(message)
        self.pattern = pattern


class CheckError(GraphpruneError):
    """A check failed or a target was missed."""


class CaptureError(UsageError):
    """The model cannot be captured as a graph with these example inputs."""


class TraceError(CaptureError):
    """The model's own forward does not trace. where: the module or function in which it fails. reason: both, without advice."""

    def __init__(self, message: str, where: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.where = where
        self.reason = reason


class PlanError(UsageError):
    """A pruning plan does not fit the model, or contradicts itself."""


class ArtifactError(UsageError):
    """A file is not a graphprune artifact, or is damaged, or asks for something that is not allowed."""


class LatencyError(UsageError):
    """A latency table cannot be read, is of another model or device, or is not finished."""


class RunError(UsageError):
    """A run cannot be recorded, or what is recorded is damaged or of another run."""


class DivergedError(UsageError):
    """Training gave a loss or weights that are infinite or NaN."""


class PipelineError(UsageError):
    """A pipeline names an unknown pass or option, or puts passes in an order that cannot work."""


class TargetError(CheckError):
    """A budget cannot be met; the message says how far the model can go and what stands in the way."""


class VerificationError(CheckError):
    """The slim model does not compute what the masked original computes."""


class DeviceError(CheckError):
    """The device failed while something was measured on it; what was measured before is kept."""


class MemoryShortError(CheckError):
    """A batch of calibration data, or what is made of the data, does not fit into memory. samples: how many the batch has."""

    def __init__(self, message: str, samples: int = 0) -> None:
        super().__init__(message)
        self.samples = samples


class RewriteError(CheckError):
    """A plan cannot be carried out on the graph."""


class PassContractError(GraphpruneError):
    """A pass broke its own declaration (undeclared analysis, wrong result type): a defect of the pass, not of the input."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, to go into a sentence: cut to a readable length, without a full stop. Its type where it
    has no text. Of an error that torch brings from another process or thread, that of the error there."""
    lines = str(error).strip().splitlines()
    if len(lines) > 2 and lines[1].startswith("Original Traceback"):
        lines = [line for line in lines[2:] if not line.startswith(" ")] or lines
    line = lines[0].rstrip(".: ") if lines else type(error).__name__
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def typed_line(error: BaseException) -> str:
    """The type of an error and its :func:`first_line`.

    >>> typed_line(KeyError("conv1")), typed_line(AssertionError())
    ("KeyError: 'conv1'", 'AssertionError')
    """
    kind, line = type(error).__name__, first_line(error)
    return line if line == kind or line.startswith(f"{kind}:") else f"{kind}: {line}"


def first_problem(error: ValidationError, whole: str = "the top level") -> tuple[str, str]:
    """Where validated data are wrong first, and how, without a full stop. whole: the place that is no part of them."""
    first = error.errors()[0]
    return ".".join(map(str, first["loc"])) or whole, first["msg"].removeprefix("Value error, ").rstrip(".")
