"""One process at a time writes to an output: whoever comes second is told who the first one is.

The claim is a lock of the operating system on a small hidden file beside the output, or in it where the output is a folder. It
ends with the process that holds it, however that ends, so that a lock file which a killed process left stands in nobody's way.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from graphprune.errors import UsageError
from graphprune.files import explained, remove_unfinished

_TAKEN: Final = {errno.EACCES, errno.EAGAIN}


@contextmanager
def claimed(*outputs: Path) -> Iterator[None]:
    """Have files and folders to oneself while the block runs. What killed processes left of writing there is deleted first.

    Also finds out, before anything is computed, whether the place takes a new file. Not to be nested for one output. Raises
    UsageError where another process has an output, naming it, and where nothing can be written there.
    """
    with ExitStack() as stack:
        for output in outputs:
            stack.enter_context(_held(output))
            remove_unfinished(output)
        yield


@contextmanager
def claimed_folder(folder: Path) -> Iterator[None]:
    """:func:`claimed` for a folder that may not exist yet; made here, it goes again if the block leaves nothing in it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with claimed(folder):
            yield
    finally:
        for path in made:
            with suppress(OSError):  # not empty
                path.rmdir()


@contextmanager
def _held(output: Path) -> Iterator[None]:
    path = output / ".lock" if output.is_dir() else output.with_name(f".{output.name}.lock")
    handle = _open(path, output)
    try:
        owner = f"process {os.getpid()} on {socket.gethostname()}".encode()
        with explained(output):
            os.ftruncate(handle, 0)
            os.write(handle, owner)
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is locked, so that nobody else's goes
        os.close(handle)


def _open(path: Path, output: Path) -> int:
    """A handle of the locked file that has this name."""
    while True:
        with explained(output):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _locked(handle):
            owner = os.read(handle, 200).decode(errors="replace") or "another process"
            os.close(handle)
            raise UsageError(f"{output} is being written by {owner}. Wait until it ends, or choose another path.")
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # the last owner removed the file between the two calls


def _locked(handle: int) -> bool:
    """Lock a file, or say that another process has it. File systems that know no locks, and Windows, grant every claim.

    The lock is of the process and not inherited by those that it forks, which may outlive it a little.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _TAKEN
    return True
