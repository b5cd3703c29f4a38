"""The output of a pruned checkpoint: a folder that says whose it is, so that a run that was ended goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from torch import Tensor

from graphprune.claims import claimed_folder
from graphprune.errors import UsageError
from graphprune.files import Saved, atomic_write, write_whole
from graphprune.plans.plan import Plan
from graphprune.streaming.checkpoint import Checkpoint
from graphprune.streaming.configs import Fit
from graphprune.streaming.folder import CONFIG
from graphprune.streaming.header import Entry
from graphprune.streaming.shards import check_space, in_order, is_finished, write_shard
from graphprune.streaming.weights import Matched

PLAN: Final = "plan.json"
STATE: Final = "graphprune.json"
_COPIED: Final = frozenset({".json", ".txt", ".model", ".jinja"})  # tokenisers and generation settings

#: Told what is being done, how many bytes of it are done, and how many there are.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


class _State(Saved, BaseModel, what="state of a run", remedy="Give a new folder."):
    """What an unfinished output belongs to. request: digest of the checkpoint and of all options."""

    request: str


def digest(*parts: Any) -> str:
    """What tells apart things that JSON can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def plan_of(folder: Path, request: str) -> Plan | None:
    """The plan of an unfinished run of the same request. Raises UsageError where the folder cannot take the output."""
    if not folder.parent.is_dir():
        raise UsageError(f"Cannot write {folder}: the folder {folder.parent} does not exist. Create it or choose another path.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"Cannot write {folder}: it is a file. Give a new folder.")
    if not folder.exists() or not any(not path.name.startswith(".") for path in folder.iterdir()):
        return None
    if not (folder / STATE).is_file():
        raise UsageError(f"Cannot write {folder}: it is not empty, and holds no unfinished run. Give a new folder.")
    state = _State.load(folder / STATE)
    if state.request != request:
        raise UsageError(f"{folder} holds the run of another checkpoint or of other options. Give a new folder, or delete it.")
    return Plan.load(folder / PLAN) if (folder / PLAN).exists() else None


class Writing:
    """The output: plan, shards, settings, and last of all what makes it a checkpoint.

    others: tensors, by their names in the model, that are written in the place of the plan's slices.
    """

    def __init__(
        self,
        folder: Path,
        matched: Matched,
        plan: Plan,
        entries: Mapping[str, Entry],
        progress: Progress,
        others: Mapping[str, Tensor],
    ) -> None:
        self.folder = folder
        self.shards = matched.checkpoint.shards
        self._matched = matched
        self._plan = plan
        self._entries = entries
        self._progress = progress
        self._others = others
        self._total = sum(entry.nbytes for entry in entries.values())
        self._done = 0

    def run(self, request: str, fit: Fit | None, *, weights: bool) -> int:
        """Write all of it; returns how many shards were there already. Raises UsageError where there is no room."""
        source = self._matched.checkpoint
        texts = {"graphprune": digest(self._plan.model_dump_json(), request)}
        listed = {name: in_order([self._entries[entry.name] for entry in found]) for name, found in self.shards.items()}
        metadata = {name: {**source.headers[name].metadata, "format": "pt", **texts} for name in listed}
        left = [name for name in listed if not is_finished(self.folder / name, listed[name], metadata[name])]
        if weights:
            check_space(self.folder.parent, sum(entry.nbytes for name in left for entry in listed[name]))
        with claimed_folder(self.folder):
            return self._write(request, fit, listed, metadata, left, weights=weights)

    def _write(
        self,
        request: str,
        fit: Fit | None,
        listed: Mapping[str, Sequence[Entry]],
        metadata: Mapping[str, Mapping[str, str]],
        left: Sequence[str],
        *,
        weights: bool,
    ) -> int:
        _State(request=request).save(self.folder / STATE)
        self._plan.save(self.folder / PLAN)
        if not weights:
            return 0
        self._done = sum(entry.nbytes for name in listed if name not in left for entry in listed[name])
        for name in left:
            write_shard(self.folder / name, listed[name], metadata[name], self._slice)
        self._settings(self._matched.checkpoint, fit)
        return len(listed) - len(left)

    def _slice(self, name: str) -> Any:
        self._progress("Writing", self._done, self._total)
        self._done += self._entries[name].nbytes
        other = next((own for own in self._matched.names[name] if own in self._others), None)
        if other is None:
            return self._matched.slice(self._plan, name)
        return self._matched.part_of(self._plan, name, self._others[other])

    def _settings(self, source: Checkpoint, fit: Fit | None) -> None:
        for path in () if fit is None else source.folder.iterdir():  # what lies beside a file may be anything
            weights = path.name.endswith(".index.json") or path.name in (CONFIG, PLAN, STATE)
            if path.is_file() and path.suffix in _COPIED and not weights:
                with atomic_write(self.folder / path.name) as temporary:
                    shutil.copyfile(path, temporary)
        if fit is not None and fit.config is not None:
            _write_json(self.folder / CONFIG, fit.config)
        if source.index is not None:
            listed = {name: entry.shard for name, entry in source.entries.items()}
            _write_json(self.folder / source.index.name, {"metadata": {"total_size": self._total}, "weight_map": listed})


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
