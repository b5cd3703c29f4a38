"""Pruning of checkpoints that are larger than the memory: scored and cut one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from torch import nn

from graphprune.api import selection_pass
from graphprune.claims import claimed_folder
from graphprune.cost import Costs
from graphprune.errors import UsageError
from graphprune.files import atomic_write, load_json, save_json, write_whole
from graphprune.observers import Observer
from graphprune.pass_base import Pass
from graphprune.pass_manager import PassManager
from graphprune.passes.analysis.channels import ChannelsPass
from graphprune.passes.rewrite.rewrite import RewritePass
from graphprune.passes.scoring.expression import parse_criterion
from graphprune.passes.scoring.score import ScorePass
from graphprune.passes.selection.target import split_target
from graphprune.pipeline_text import format_pipeline
from graphprune.plan import Plan, fingerprint
from graphprune.program import Inputs, Program
from graphprune.streaming.checkpoint import Checkpoint, Entry, open_checkpoint
from graphprune.streaming.configs import Config, Fit
from graphprune.streaming.folder import CONFIG, fit_config
from graphprune.streaming.proof import Proof, prove
from graphprune.streaming.shards import check_space, in_order, is_finished, write_shard
from graphprune.streaming.weights import Matched, Values, match
from graphprune.tape import run_graph
from graphprune.tracing import capture, normalise_inputs

PLAN: Final = "plan.json"
STATE: Final = "graphprune.json"
_INSTEAD: Final = "Use l2, l1, lamp or bn-scale."
_COPIED: Final = frozenset({".json", ".txt", ".model", ".jinja"})  # tokenisers and generation settings

#: Told what is being done, how many bytes of it are done, and how many there are.
Progress = Callable[[str, int, int], None]


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


class _State(BaseModel):
    """What an unfinished output belongs to. request: digest of the checkpoint and of all options."""

    model_config = ConfigDict(extra="forbid")

    request: str


@dataclass(frozen=True)
class CheckpointReport:
    """What a pruning of a checkpoint did.

    plan: the decision. before, after: costs at the example inputs. widths: units of every prunable group, before and after.
    bytes_before, bytes_after: of all tensors. shards: the files of the output, and resumed: how many of them an earlier run had
    finished; both empty and 0 where only the plan was wanted. tensors: how many of the slim graph have the shapes that the plan
    leaves. proof: what was proved on numbers. config: the changed config, or why there is none; None where the model has none.
    """

    plan: Plan = field(repr=False)
    before: Costs
    after: Costs
    widths: Mapping[str, tuple[int, int]] = field(repr=False)
    bytes_before: int
    bytes_after: int
    shards: tuple[str, ...]
    resumed: int
    tensors: int
    proof: Proof
    config: Fit | None


def prune_checkpoint(
    model: nn.Module,
    example_inputs: Any,
    checkpoint: str | Path,
    out: str | Path,
    *,
    target: str | Mapping[str, float | str] = "macs=50%",
    criterion: str = "l2",
    reduction: str = "default",
    normalise: str = "max",
    share: str = "none",
    select: str = "select",
    ranking: str = "local",
    round_to: int = 1,
    min_channels: int = 1,
    max_ratio: float = 1.0,
    exclude: Sequence[str] = (),
    policy: Mapping[str, str] | None = None,
    seed: int = 0,
    verify: bool = True,
    proof_bytes: int = 2**30,
    plan_only: bool = False,
    config: Config | None = None,
    observers: Sequence[Observer] = (),
    progress: Progress = _silent,
) -> CheckpointReport:
    """Prune a safetensors checkpoint that need not fit into memory. Nothing of it is changed.

    At no time are more than a few tensors in memory: one, its slice, and its powers while it is scored. The output has the same
    shards under the same names. A run that was ended goes on where it was when it is started again with the same arguments.

    model: its parameters on the meta device (``with torch.device("meta"): ...``). example_inputs: as for :func:`graphprune.prune`.
    checkpoint: a folder, an index, or a single file. out: a folder, which is made. The slim weights go there, the plan as
        ``plan.json``, and, with a config, what the folder has of tokenisers and settings.
    ranking: ``local`` by default, which gives alike layers the same widths, so that a config can say them.
    verify: prove the plan on a copy of reduced depth with random weights (float32), where that takes at most ``proof_bytes``.
    plan_only: write the plan and no weights. config: that of transformers which the model was built from; the changed one is
        written where there is one.
    The other options are those of :func:`graphprune.prune`. Criteria must stream, as ``l1``, ``l2``, ``lamp`` and ``bn-scale``.

    Raises UsageError for a checkpoint that is damaged or is not the model's, for options that are no good, and for an output folder
    that holds something else, before anything is written; and what a pruning raises.
    """
    passes = _passes(
        ChannelsPass(exclude=tuple(exclude), policy=dict(policy or {})),
        ScorePass(criterion=criterion, reduction=reduction, normalise=normalise, share=share, seed=seed),
        selection_pass(
            select, ranking, {"round_to": round_to, "min_channels": min_channels, "max_ratio": max_ratio, **_targets(target)}
        ),
    )
    matched = match(model, open_checkpoint(checkpoint))
    inputs, folder = normalise_inputs(example_inputs), Path(out)
    request = _digest(format_pipeline(passes, defaults=True), inputs.describe(), fingerprint(model), matched.checkpoint.identity())
    known = _plan_of(folder, request)
    done = _pruned(model, inputs, matched, passes, known, observers, progress)
    assert done.plan is not None and done.record is not None
    plan = known or done.plan.model_copy(update={"pipeline": format_pipeline(passes, defaults=True)})
    entries = matched.slim(plan)
    checked = {name: entries[entry.name] for name, entry in matched.entries.items()}
    tensors = _check_shapes(done, checked)
    proof = prove(model, inputs, plan, most=proof_bytes, seed=seed) if verify else Proof(None, note="verify=False")
    fit = None if config is None else fit_config(config, done, inputs, entries, checked)
    writing = _Writing(folder, matched, plan, entries, progress)
    resumed = writing.run(request, fit, weights=not plan_only)
    return CheckpointReport(
        plan,
        done.record.before,
        done.record.after,
        done.record.widths,
        sum(entry.nbytes for entry in matched.checkpoint.entries.values()),
        sum(entry.nbytes for entry in entries.values()),
        () if plan_only else tuple(writing.shards),
        resumed,
        tensors,
        proof,
        fit,
    )


def _targets(target: str | Mapping[str, float | str]) -> dict[str, float | str]:
    targets: dict[str, Any] = dict([split_target(target)]) if isinstance(target, str) else dict(target)
    if "latency" in targets:
        raise UsageError("A latency target needs the whole model on a device. Use macs, params, weight_bytes, memory or channels.")
    return targets


def _passes(channels: ChannelsPass, score: ScorePass, selection: Pass) -> list[Pass]:
    """The passes, if the criterion can be read from a stream."""
    for term in parse_criterion(score.criterion):
        if term.needs:
            raise UsageError(f"{term.criterion.name} runs the model on data, for which it must fit into memory. {_INSTEAD}")
        if not term.criterion.streams:
            raise UsageError(f"{term.criterion.name} compares weights of several tensors, which are read one by one. {_INSTEAD}")
    return [channels, score, selection, RewritePass()]


def _pruned(
    model: nn.Module,
    inputs: Inputs,
    matched: Matched,
    passes: Sequence[Pass],
    known: Plan | None,
    observers: Sequence[Observer],
    progress: Progress,
) -> Program:
    """The slim graph, on the meta device."""
    program = capture(model, inputs)
    if program.scopes:
        raise UsageError(f"{type(model).__name__} does not trace as a whole, and scopes are not streamed. Use graphprune.prune.")
    if known is not None:
        return PassManager([RewritePass()], observers).run(program.with_(plan=known, policy=known.policy))
    total = sum(entry.nbytes for entry in matched.checkpoint.entries.values())
    read = [0]

    def watch(name: str) -> None:
        read[0] += matched.entries[name].nbytes
        progress("Scoring", read[0], max(total, read[0]))

    return PassManager(passes, observers).run(program.with_(weights=Values(program.module, matched, watch)))


def _check_shapes(done: Program, checked: Mapping[str, Entry]) -> int:
    """How many tensors of the slim graph have the shape that will be written; the graph also runs on them, on the meta device."""
    found = [(name, tensor) for name, tensor in done.tensors.items() if name in checked]
    for name, tensor in found:
        assert tuple(tensor.shape) == checked[name].shape, f"{name} is {list(tensor.shape)} in the slim graph, not {checked[name]}"
    run_graph(done)
    return len(found)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _plan_of(folder: Path, request: str) -> Plan | None:
    """The plan of an unfinished run of the same request. Raises UsageError where the folder cannot take the output."""
    if not folder.parent.is_dir():
        raise UsageError(f"Cannot write {folder}: the folder {folder.parent} does not exist. Create it or choose another path.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"Cannot write {folder}: it is a file. Give a new folder.")
    if not folder.exists() or not any(not path.name.startswith(".") for path in folder.iterdir()):
        return None
    if not (folder / STATE).is_file():
        raise UsageError(f"Cannot write {folder}: it is not empty, and holds no unfinished run. Give a new folder.")
    state = load_json(_State, folder / STATE, "state of a run", "Give a new folder.", UsageError)
    if state.request != request:
        raise UsageError(f"{folder} holds the run of another checkpoint or of other options. Give a new folder, or delete it.")
    return Plan.load(folder / PLAN) if (folder / PLAN).exists() else None


class _Writing:
    """The output: plan, shards, settings, and last of all what makes it a checkpoint."""

    def __init__(self, folder: Path, matched: Matched, plan: Plan, entries: Mapping[str, Entry], progress: Progress) -> None:
        self.folder = folder
        self.shards = matched.checkpoint.shards
        self._matched = matched
        self._plan = plan
        self._entries = entries
        self._progress = progress
        self._total = sum(entry.nbytes for entry in entries.values())
        self._done = 0

    def run(self, request: str, fit: Fit | None, *, weights: bool) -> int:
        """Write all of it; returns how many shards were there already. Raises UsageError where there is no room."""
        source = self._matched.checkpoint
        texts = {"graphprune": _digest(self._plan.model_dump_json(), request)}
        listed = {name: in_order([self._entries[entry.name] for entry in found]) for name, found in self.shards.items()}
        metadata = {name: {**source.metadata[name], "format": "pt", **texts} for name in listed}
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
        save_json(_State(request=request), self.folder / STATE)
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
        return self._matched.slice(self._plan, name)

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
