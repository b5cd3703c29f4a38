"""Writing files so that a reader sees the old content or the new, never a part of either; reading them with errors that help."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from graphprune.errors import GraphpruneError, UsageError
from graphprune.text import size as readable

Data = TypeVar("Data", bound=BaseModel)

_UNFINISHED: Final = ".tmp"
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, a quota, a limit on the size of files


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise UsageError where a file of this name could not be written; made to be called before anything is computed."""
    target = Path(path)
    folder = target.parent
    if not folder.is_dir():
        raise UsageError(f"Cannot write {target}: the folder {folder} does not exist. Create it or choose another path.")
    if target.is_dir():
        raise UsageError(f"Cannot write {target}: it is a folder. Add a file name.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"Cannot write {target}: the folder {folder} is not writable. Choose another path.")
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


def save_json(data: BaseModel, path: str | os.PathLike[str]) -> None:
    """Write data as JSON, atomically. Raises UsageError where the path cannot be written."""
    write_whole(path, data.model_dump_json(indent=1))


def load_json(kind: type[Data], path: str | os.PathLike[str], what: str, remedy: str, raises: type[GraphpruneError]) -> Data:
    """Read data that was written as JSON. what, remedy, raises: as for :func:`parse_json`, also for files that cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise raises(f"Cannot read the {what} {path}: {error}.") from error
    return parse_json(kind, text, str(path), what, remedy, raises)


def parse_json(kind: type[Data], text: str, name: str, what: str, remedy: str, raises: type[GraphpruneError]) -> Data:
    """Data from JSON text. name: of the text. what: it should be, such as ``plan``. remedy: a sentence.

    Raises the error that is given, naming the first thing that is wrong.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the top level"
        raise raises(f"{name} is no valid {what}: {first['msg']} at {place}. {remedy}") from error


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
