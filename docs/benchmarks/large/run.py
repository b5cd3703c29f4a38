"""Planning a Llama of 70 billion parameters on the meta device: time of each step and peak memory of the process.

python docs/benchmarks/large/run.py        (needs graphprune[transformers]; prints the rows of README.md's table)
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from transformers import LlamaConfig

from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.rewrite.rewrite import RewritePass
from graphprune.passes.selection.select import SelectPass
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.pass_manager import PassManager
from graphprune.scores import Scores
from graphprune.streaming.folder import build, usual_inputs
from graphprune.tracing import capture

T = TypeVar("T")
CONFIG = LlamaConfig(
    hidden_size=8192,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    intermediate_size=28672,
    vocab_size=128256,
    max_position_embeddings=8192,
)


def timed(what: str, step: Callable[[], T]) -> T:
    """Run a step and print its row."""
    begin = time.perf_counter()
    result = step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {what} | {time.perf_counter() - begin:.1f} s | {peak:.2f} GiB |", flush=True)
    return result


def main() -> None:
    """Build, capture, analyse, select and rewrite."""
    timed("start: libraries", lambda: None)
    model = timed("build the model from its config", lambda: build({**CONFIG.to_dict(), "architectures": ["LlamaForCausalLM"]}))
    model.to(torch.bfloat16)
    analyses = AnalysisManager()
    program = timed("capture", lambda: capture(model, usual_inputs(model)))
    groups = timed("channel groups", lambda: analyses.get(program, ChannelGroups))
    cost = timed("cost model", lambda: analyses.get(program, ModelCost))
    scores = Scores("random", np.random.default_rng(0).random(groups.unit_count))
    program = program.with_(scores={"random": scores})
    select = SelectPass(channels="50%", ranking="local")
    program = timed("select half of all channels", lambda: PassManager([select]).run(program, analyses))
    done = timed("rewrite the graph, and check its structure", lambda: PassManager([RewritePass()]).run(program, analyses))
    assert done.record is not None
    before = cost.costs(groups.widths).parameters
    print(f"\n{before / 1e9:.2f} billion parameters, {len(groups.prunable)} groups; {done.record.after.parameters / 1e9:.2f} left")


if __name__ == "__main__":
    main()
