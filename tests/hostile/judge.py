"""What may come of a file: it is read and usable, or it is refused in one or two sentences. Nothing else."""

from __future__ import annotations

import contextlib
import io
import resource
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from graphprune.cli import main
from graphprune.errors import GraphpruneError, PassContractError
from tests.hostile.kinds import KINDS, Kind
from tests.hostile.mutate import Placed
from tests.hostile.payloads import CANARY

MEMORY: Final = 2**30
"""Bytes that reading one file may take beyond what the process had: no file here is larger than a megabyte."""

_LONGEST: Final = 2_000
_EVENTS: Final = frozenset(
    {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "urllib.Request"}
)
_seen: list[str] = []


@dataclass(frozen=True)
class Outcome:
    """What came of a file. verdict: ``read``, ``refused`` or ``defect``; defect: what is wrong, in a line."""

    kind: str
    number: int
    verdict: str
    defect: str = ""


def watch() -> None:
    """From now on the process notes what runs commands, opens connections or looks for the module of the canary."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS or (event == "import" and arguments[0] == CANARY):
            _seen.append(f"{event} {arguments[0]}"[:200])

    sys.addaudithook(note)


def mutated(kind: Kind, seeds: Path, random: Random) -> bytes | Placed:
    """A file of a kind, after one mutation or two."""
    content: bytes | Placed = (seeds / kind.file).read_bytes()
    for _ in range(random.choice((1, 1, 1, 2))):
        if isinstance(content, bytes) and content:
            with contextlib.suppress(Exception):
                content = random.choice(kind.mutators)(content, random)  # one that no longer knows the format leaves it
    return content


def seeds_of(name: str, folder: Path) -> Path:
    """The folder with the sound files of a kind, made when it is first asked for."""
    made = folder / name
    if not made.exists():
        made.mkdir(parents=True)
        KINDS[name].make(made)
    return made


def put(content: bytes | Placed, path: Path) -> None:
    """Write a mutated file."""
    path.unlink()
    path.write_bytes(content) if isinstance(content, bytes) else content.put(path)


def attempt(name: str, number: int, seeds: Path, keep: Path | None = None) -> Outcome:
    """Make the file of a number, read it, and say what came of it. keep: a folder for those that are defects."""
    random, kind = Random(f"{name} {number}"), KINDS[name]
    content = mutated(kind, seeds_of(name, seeds), random)
    command = bool(kind.command) and random.random() < 0.1
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text) / "here"
        shutil.copytree(seeds / name, folder)
        put(content, folder / kind.file)
        verdict, defect = judged(kind, folder, command=command)
    if defect and keep is not None and isinstance(content, bytes):
        keep.mkdir(exist_ok=True)
        (keep / f"{name}-{number}{Path(kind.file).suffix}").write_bytes(content)
    return Outcome(name, number, verdict, defect)


def judged(kind: Kind, folder: Path, *, command: bool = False) -> tuple[str, str]:
    """Read the file in a folder; the verdict and the defect."""
    before, had = _listed(folder), _peak()
    _seen.clear()
    with contextlib.chdir(folder):
        verdict, defect = _by_command(kind) if command else _by_reader(kind, folder)
    if any(folder.parent.rglob(CANARY)) or _seen:
        return "defect", f"code of the file ran: {'; '.join(_seen) or CANARY}"
    if _peak() - had > MEMORY:
        return "defect", f"{(_peak() - had) >> 20} MiB of memory were taken"
    if verdict == "refused" and not kind.writes and _listed(folder) != before:
        return "defect", "a file was changed or left over"
    return verdict, defect


def _by_reader(kind: Kind, folder: Path) -> tuple[str, str]:
    try:
        kind.read(folder)
    except PassContractError as error:
        return "defect", repr(error)[:500]
    except GraphpruneError as error:
        return _sentences(str(error))
    except Exception as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        place = "" if frame is None else f" at {Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}"
        return "defect", f"{type(error).__name__}: {str(error)[:300]}{place}"
    return "read", ""


def _by_command(kind: Kind) -> tuple[str, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(list(kind.command))
    text = said.getvalue().strip()
    if code == 0 or (code == 1 and not text):  # two plans differ
        return "read", ""
    if not text.startswith("graphprune: error: ") or "defect of graphprune" in text or "out of memory" in text:
        return "defect", f"exit code {code}: {text[:300]}"
    return _sentences(text)


def _sentences(text: str) -> tuple[str, str]:
    """One or two sentences on one line, and no longer than one reads."""
    if not text or "\n" in text or len(text) > _LONGEST or text[-1] not in ".!?)`":
        return "defect", f"no sentence of the right length ({len(text)}): {text[:300]!r}"
    return "refused", ""


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _listed(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_size if not path.is_dir() else 0) for path in folder.rglob("*"))
