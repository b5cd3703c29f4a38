"""Writing files so that a reader sees the old content or the new, never a part of either; reading them with errors that help."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from graphprune.errors import GraphpruneError, UsageError, first_line, first_problem
from graphprune.text import size as readable

LARGEST_TEXT: Final = 2**28
"""Bytes of a text that is read whole. A plan for a model of 70 billion parameters has a quarter of that."""

_ROOM: Final = 2**28
_MOST_EXPANDED: Final = 200
"""Archives may hold so many bytes, or so many times their own size: deflate shrinks constant data a thousandfold."""
_UNFINISHED: Final = ".tmp"
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, a quota, a limit on the size of files


def check_writable(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Raise UsageError where a file of this name could not be written; made to be called before anything is computed.

    folder: a new folder is meant, which replaces nothing but an empty one.
    """
    target = Path(path)
    home = target.parent
    if not home.is_dir():
        raise UsageError(f"Cannot write {target}: the folder {home} does not exist. Create it or choose another path.")
    if folder and target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"Cannot write the folder {target}: it exists. Remove it, or choose another path.")
    if target.is_dir() and not folder:
        raise UsageError(f"Cannot write {target}: it is a folder. Add a file name.")
    if not os.access(home, os.W_OK | os.X_OK):
        raise UsageError(f"Cannot write {target}: the folder {home} is not writable. Choose another path.")
    if target.exists() and not os.access(target, os.W_OK):
        raise UsageError(f"Cannot write {target}: the file exists and is read-only. Choose another path.")


@contextmanager
def atomic_write(path: str | os.PathLike[str], size: int = 0) -> Iterator[Path]:
    """A temporary path in the folder of ``path``, which becomes ``path`` when the block ends well and vanishes when it does not.

    size: bytes that will be written, where that is known; nothing is begun where the disk has less room. The content is on the
    disk (fsync) before the name changes. A process that is killed leaves the temporary file, which :func:`remove_unfinished` knows
    by its name. Raises UsageError where the path cannot be written, or the disk is full.
    """
    target = Path(path)
    check_writable(target)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{_UNFINISHED}")
    with explained(target, size):
        try:
            if shutil.disk_usage(target.parent).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the umask decides who may read it
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
            _sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file, atomically; text as UTF-8. Raises UsageError where the path cannot be written, or the disk is full."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_write(path, len(data)) as temporary:
        temporary.write_bytes(data)


@contextmanager
def explained(target: Path, size: int = 0) -> Iterator[None]:
    """What the system refuses while a file, of so many bytes, is written in the block becomes a UsageError that says what to do.

    Errors about files elsewhere, which the block reads, stay as they are.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)).parent != target.parent:
            raise
        if error.errno not in _FULL:
            raise UsageError(f"Cannot write {target}: {error.strerror or error}. See to that, or choose another path.") from error
        free = shutil.disk_usage(target.parent).free
        takes = f" ({readable(size)})" if size else ""
        raise UsageError(
            f"Cannot write {target}{takes}: {error.strerror}, {readable(free)} free. Make room, and run the same command again."
        ) from error


def remove_unfinished(place: Path) -> None:
    """Delete what processes that were killed left of files that they were writing: of a file of this name, or anywhere in a folder.

    Only for one who has the place to itself: see :func:`graphprune.claims.claimed`.
    """
    found = place.rglob(f".*{_UNFINISHED}") if place.is_dir() else place.parent.glob(f".{glob.escape(place.name)}.*{_UNFINISHED}")
    for path in list(found):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_text(path: str | os.PathLike[str], what: str, raises: type[GraphpruneError]) -> str:
    """The text of a file. what: it should be, such as ``plan``.

    Raises the error that is given where it cannot be read, is larger than any such file, or is no file but a device.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise raises(f"Cannot read the {what} {path}: it is no file. Check the path.")
        if os.path.getsize(path) > LARGEST_TEXT:
            raise raises(f"Cannot read the {what} {path}: it has over {LARGEST_TEXT >> 20} MiB. Check the path.")
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise raises(f"Cannot read the {what} {path}: {error.strerror or error}. Check the path.") from error
    except ValueError as error:  # no UTF-8, or a name that no file can have
        raise raises(f"Cannot read the {what} {path}: it is no text ({first_line(error)}). Check the path.") from error


def parse_text(text: str, name: str, what: str, remedy: str, raises: type[GraphpruneError]) -> Any:
    """What JSON text stands for. name: of the text. what: it should be. remedy: a sentence. Raises the error that is given."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise raises(f"{name} is no valid {what}: {first_line(error)}. {remedy}") from error


def check_archive(path: str | os.PathLike[str]) -> None:
    """Raise UsageError for a zip file that would take up many times its size in memory. Others may be no zip files at all."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    if size > max(_ROOM, _MOST_EXPANDED * os.path.getsize(path)):
        raise UsageError(f"{path} would expand to {size / 1e9:.1f} GB, as archives do that are made to fill memory. Do not use it.")


class Saved(BaseModel):
    """Data with a JSON file of their own.

    what, remedy, raises: what a file should be, such as "plan", a sentence on what to do where it is not, and the error of that.
    Subclasses name BaseModel as a base of their own, which linters look for.

    >>> class Note(Saved, what="note", remedy="Write it anew."):
    ...     text: str
    >>> Note.parse('{"text": "conv1 first"}', "note.json")
    Note(text='conv1 first')
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    _what: ClassVar[str]
    _remedy: ClassVar[str]
    _raises: ClassVar[type[GraphpruneError]]

    def __init_subclass__(cls, *, what: str, remedy: str, raises: type[GraphpruneError] = UsageError, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        cls._what, cls._remedy, cls._raises = what, remedy, raises

    def save(self, path: str | Path) -> None:
        """Write the data as JSON, atomically. Raises UsageError where the path cannot be written."""
        write_whole(path, self.model_dump_json(indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what was saved. Raises a UsageError, such as PlanError for plans, when the file cannot be read or is none."""
        return cls.parse(read_text(path, cls._what, cls._raises), str(path))

    @classmethod
    def parse(cls, text: str, name: str = "The text") -> Self:
        """Read the data from JSON text. name: of the text. Raises an error that names the first thing that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            place, problem = first_problem(error)
            raise cls._raises(f"{name} is no valid {cls._what}: {problem} at {place}. {cls._remedy}") from error


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
