"""A checkpoint of several gigabytes pruned by a process that may have a fraction of it, killed once on the way.

    python docs/benchmarks/large/stream.py [FOLDER]        (needs graphprune[transformers], Linux, and about 10 GB in FOLDER)

Makes a Llama-shaped checkpoint in shards, of random weights; runs ``graphprune prune-checkpoint`` on it under ``RLIMIT_DATA``, with
which the system refuses a process more private memory (heap, stacks and private mappings, the libraries' own included); kills
it with SIGKILL once a file of the output is whole; and runs the same command again. Peak memory is the largest private resident
size (``RssAnon``) that was seen, every 20 ms: the libraries' code, which is mapped from files, is not in it. A twin of a few
megabytes, pruned by the same command, is loaded by transformers and compared with the model pruned in memory.
Results go to ``stream.json`` beside this file; README.md has them as a table.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig

import graphprune
from graphprune.streaming import Entry, usual_inputs
from graphprune.streaming.folder import build
from graphprune.streaming.shards import write_shard

RESULTS = Path(__file__).with_name("stream.json")
LIMIT = 2 * 2**30
_PERIOD = 999_983  # a prime: no multiple of it is a width
LARGE = LlamaConfig(
    hidden_size=4096,
    num_hidden_layers=20,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=11008,
    vocab_size=32000,
    max_position_embeddings=4096,
    dtype="bfloat16",
)
TWIN = LlamaConfig(
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    intermediate_size=640,
    vocab_size=1000,
    max_position_embeddings=128,
    dtype="bfloat16",
)


def make(folder: Path, config: LlamaConfig, shards: int) -> list[Entry]:
    """Write a checkpoint of random weights as ``save_pretrained`` lays it out, one tensor at a time; returns its tensors."""
    folder.mkdir()
    given = {**config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    state = build(given).state_dict()
    names = list(state)
    numbers = torch.empty(_PERIOD, dtype=torch.bfloat16).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    entries, count = [], -(-len(names) // shards)
    for index in range(shards):
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = [Entry(name, file, torch.bfloat16, tuple(state[name].shape)) for name in names[index * count : (index + 1) * count]]
        write_shard(folder / file, part, {"format": "pt"}, lambda name: _filled(state[name].shape, numbers))
        entries += part
    index_file = {"metadata": {}, "weight_map": {entry.name: entry.shard for entry in entries}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    (folder / "config.json").write_text(json.dumps(given))
    return entries


def _filled(shape: torch.Size, numbers: torch.Tensor) -> torch.Tensor:
    """Random numbers again and again, scaled by the fan-in: quick to make, and no two rows are alike."""
    if len(shape) < 2:
        return torch.ones(shape, dtype=torch.bfloat16)
    count = shape.numel()
    repeated = numbers.repeat(-(-count // len(numbers)))[:count].view(shape)
    return repeated.mul_(shape[1] ** -0.5)


@dataclass
class Run:
    """A run of the command. peak: the largest private resident size that was seen, bytes."""

    seconds: float
    peak: int
    code: int
    output: dict[str, Any]


def run(folder: Path, out: Path, limit: int, kill: Callable[[], bool] = lambda: False) -> Run:
    """Prune a checkpoint in a process with so many bytes of private memory; kill: asked whether it is time to."""
    options = ["prune-checkpoint", str(folder), "-o", str(out), "--target", "channels=50%", "--json"]
    command = [sys.executable, "-m", "graphprune", *options]
    begin, peak = time.perf_counter(), 0
    limited = lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # noqa: E731
    with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=limited, text=True) as process:
        while process.poll() is None:
            peak = max(peak, _private(process.pid))
            if kill():
                process.send_signal(signal.SIGKILL)
            time.sleep(0.02)
        assert process.stdout is not None
        text = process.stdout.read()
    return Run(time.perf_counter() - begin, peak, process.returncode, json.loads(text) if process.returncode == 0 else {})


def _private(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def twin_agrees(folder: Path) -> tuple[Run, float]:
    """Prune a small twin by the same command, load it with transformers, and compare its outputs with those of the model that was
    pruned in memory: the run, and the largest difference, relative to the largest output."""
    make(folder / "twin", TWIN, 3)
    done = run(folder / "twin", folder / "slim-twin", LIMIT)
    assert done.code == 0
    full = transformers.AutoModelForCausalLM.from_pretrained(folder / "twin").eval()
    full.config.use_cache = False
    slim = transformers.AutoModelForCausalLM.from_pretrained(folder / "slim-twin").eval()
    expected = graphprune.prune(full, usual_inputs(full), target="channels=50%", ranking="local", verify=False).model
    ids = torch.arange(32).reshape(2, 16)
    with torch.no_grad():
        wanted = expected(input_ids=ids)["logits"]
        return done, float((slim(ids).logits - wanted).abs().max() / wanted.abs().max())


def main() -> None:
    """Make, prune, kill, resume, compare, write down, clean up."""
    place = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    try:
        twin, difference = twin_agrees(place)
        entries = make(place / "full", LARGE, 8)
        out = place / "slim"
        first = run(place / "full", out, LIMIT, kill=lambda: any(out.glob("model-*")))
        assert first.code == -signal.SIGKILL, first
        second = run(place / "full", out, LIMIT)
        assert second.code == 0 and second.output["resumed"] >= 1, second
        result = {
            "machine": f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, "
            f"{os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)",
            "checkpoint_bytes": sum(entry.nbytes for entry in entries),
            "largest_tensor_bytes": max(entry.nbytes for entry in entries),
            "largest_file_bytes": max(path.stat().st_size for path in (place / "full").glob("*.safetensors")),
            "limit_bytes": LIMIT,
            "twin": asdict(twin) | {"output": None},
            "killed": asdict(first) | {"output": None},
            "resumed": asdict(second) | {"output": second.output["resumed"]},
            "slim_bytes": second.output["after"]["disk_bytes"],
            "config": second.output["config"]["changes"],
            "twin_difference": difference,
        }
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
