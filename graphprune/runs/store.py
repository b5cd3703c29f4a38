"""Snapshots: the weights and the training state of stages, in files or in memory, dropped when no stage refers to them."""

from __future__ import annotations

import io
import pickle
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from graphprune.errors import RunError, UsageError, first_line
from graphprune.files import check_archive, explained, write_whole

_KINDS: Final = {"weights": dict, "done": int, "accuracies": list}  # of the parts of a content


class Snapshot:
    """A name in a store, which forgets the content once nothing refers to the snapshot any more.

    This is safe when a run is repeated up to where it was killed: the same code lets go of the same snapshots, and steps that are
    on record read none.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self.name = store, name
        weakref.finalize(self, store.forget, name).atexit = False  # the last stages of an unfinished run are needed again

    def load(self) -> Mapping[str, Any]:
        """``weights``: a state_dict. ``training``: what the training loop returned last, or None."""
        return self._store.read(self.name)

    def fill(self, model: nn.Module, content: Mapping[str, Any] | None = None) -> None:
        """Give a model the weights of this snapshot, or of a content that followed it. Raises RunError where they do not fit."""
        weights = (content or self.load())["weights"]
        try:
            model.load_state_dict(weights)
        except Exception as error:  # whatever else than tensors by name a damaged file holds
            raise RunError(
                f"The snapshot {self.name} does not hold the weights of its {type(model).__name__}. Start anew in another folder."
            ) from error


class Store:
    """Snapshots by name. folder: where their files go; None keeps them in memory. write: as for a journal."""

    def __init__(self, folder: Path | None, *, write: bool = True) -> None:
        self._folder, self._write = folder, write
        self._kept: dict[str, bytes] = {}
        self._held: weakref.WeakValueDictionary[str, Snapshot] = weakref.WeakValueDictionary()
        self._forgets = True

    def known(self, name: str) -> Snapshot:
        """The snapshot of a name that was written before, perhaps by an earlier process; one object while it lasts."""
        found = self._held.get(name)
        if found is None:
            found = self._held[name] = Snapshot(self, name)
        return found

    def keep_all(self) -> None:
        """From now on snapshots are kept when nothing refers to them: the run has failed, and is to go on later."""
        self._forgets = False

    def forget(self, name: str) -> None:
        """Drop what no stage refers to any more."""
        if self._forgets and name not in self._held:
            self.drop(name)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Store a content under a name until :meth:`drop`; in a file, atomically.

        Raises UsageError where there is no room, or the content is none that could be read back.
        """
        stream = io.BytesIO()  # in memory first: torch aborts the process on a full disk
        try:
            torch.save(dict(content), stream)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UsageError(_not_kept(content, first_line(error))) from error
        stream.seek(0)
        if code := torch.serialization.get_unsafe_globals_in_checkpoint(stream):
            raise UsageError(_not_kept(content, f"it holds {', '.join(sorted(code)[:3])}, which are read by running code"))
        if self._folder is None:
            self._kept[name] = stream.getvalue()
        elif self._write:
            with explained(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(name), stream.getvalue())

    def has(self, name: str) -> bool:
        """Whether there is a content under this name."""
        return name in self._kept if self._folder is None else self._path(name).exists()

    def read(self, name: str) -> Mapping[str, Any]:
        """A content: ``weights`` and ``training``, and what else was written. Raises RunError where it is missing or damaged."""
        source = io.BytesIO(self._kept[name]) if self._folder is None else self._path(name)
        try:
            return _content(source)
        except Exception as error:  # the reader raises whatever the damaged bytes lead to
            reason = first_line(error)
            raise RunError(f"{source} is missing or damaged: {reason}. Start anew in another folder.") from error

    def drop(self, name: str) -> None:
        """Forget a content, if it is there."""
        self._kept.pop(name, None)
        if self._folder is not None and self._write:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.pt"


def _not_kept(content: Mapping[str, Any], why: str) -> str:
    what = "the state of the model" if content.get("training") is None else "what train returned"
    return (
        f"The run cannot keep {what}: {why}. It takes numbers, texts and tensors, in dicts and lists: the state_dict() of an "
        "optimiser, float(value) for a number of numpy."
    )


def _content(source: Path | io.BytesIO) -> Mapping[str, Any]:
    if isinstance(source, Path):
        if not source.is_file():
            raise RunError("it is no file")
        check_archive(source)
    found = torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not {"weights", "training"} <= found.keys():
        raise RunError("it holds no weights with the state of a training")
    wrong = next((name for name, kind in _KINDS.items() if not isinstance(found.get(name, kind()), kind)), None)
    if wrong is not None:
        raise RunError(f"what it calls {wrong} is {type(found[wrong]).__name__}")
    return found
