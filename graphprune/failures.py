"""What the machine refuses, told from the errors that it is reported by: memory that is out, a worker process that died."""

from __future__ import annotations

from typing import Final

_NO_MEMORY: Final = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
_WORKER: Final = "DataLoader worker"


def memory_is_out(error: BaseException) -> bool:
    """Whether an error says that memory is out, of the machine or of a device. torch says so in several ways.

    >>> memory_is_out(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."))
    True
    >>> memory_is_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def worker_is_lost(error: BaseException) -> bool:
    """Whether an error says that a process which reads data for a DataLoader ended by itself.

    torch raises it in the process that trains, wherever that is just then.
    """
    return isinstance(error, RuntimeError) and _WORKER in str(error)


def lost_worker(error: BaseException) -> str:
    """What to say of such an error: what torch says, and what to do."""
    said = str(error)
    reason = said[said.index(_WORKER) :].partition(". ")[0].rstrip(".: ")
    return f"A process that reads data died ({reason}). Look at its own messages, give it more memory, or read with fewer workers."
