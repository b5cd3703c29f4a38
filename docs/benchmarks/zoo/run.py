"""Twelve torchvision models cut to half of every group, and everything that must hold of the results.

    pip install graphprune
    python run.py              # all models, two criteria each; exit code 1 if anything fails
    python run.py resnet50     # some of them; the published rows of the others stay

Every model has random weights (seed 0) and input 1x3x224x224, and is pruned with ``target="channels=50%"`` and
``ranking="local"`` by the criteria ``random`` and ``l2``, each model in a process of its own. For both results:
  - it equals the masked original, with random values for every tensor that is constant in a fresh model (normalisation
    statistics above all: means of zero and variances of one would hide errors);
  - every group keeps half of its units, within one unit and 1 % of its width (groups of odd width keep one more than
    their half, wide ones make up for it);
  - reported parameters and MACs, before and after, are those counted on the models (``numel`` and torch's flop counter);
  - ``torch.compile(fullgraph=True, backend="eager")`` runs and equals eager, bit for bit, at another batch size;
  - saved and loaded, every tensor and output is bit-identical;
  - it can be pruned once more in the same way, with the same checks of proof and counts;
  - no more of the original's parameters is left than torch-pruning leaves, even with those counted in full that the
    forward pass does not use and the slim model does not carry.
The peer's figures were measured apart: torch-pruning 1.6.1, pruning ratio 0.5, local ranking, the same models.
Results go to ``results.json`` and ``README.md`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[2]))  # a clone that is not installed
import graphprune  # noqa: E402

RESULTS = HERE / "results.json"
CRITERIA = ("random", "l2")
EXAMPLE = (1, 3, 224, 224)
#: Share of the parameters that torch-pruning 1.6.1 leaves; None where it fails.
PEER: dict[str, float | None] = {
    "resnet50": 0.271,
    "mobilenet_v2": 0.349,
    "densenet121": 0.285,
    "efficientnet_b0": 0.322,
    "googlenet": 0.638,
    "regnet_y_400mf": 0.277,
    "resnext50_32x4d": 0.271,
    "squeezenet1_1": 0.355,
    "convnext_tiny": 0.260,
    "mnasnet1_0": 0.335,
    "deeplabv3_resnet50": 0.250,
    "shufflenet_v2_x1_0": None,
}


def build(name: str) -> nn.Module:
    """A torchvision model with random weights, in eval mode."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
    options |= {"weights_backbone": None} if "deeplab" in name else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model.eval()


def outputs(model: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    """All tensors of the model's output."""
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor)]


def identical(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two lists of tensors are the same, bit for bit."""
    return len(one) == len(other) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


def parameters(model: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def counted_macs(model: nn.Module) -> int:
    """Multiply-accumulates of one forward pass, by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        outputs(model, torch.zeros(EXAMPLE))
    return int(counter.get_total_flops()) // 2


def recounted(original: nn.Module, result: graphprune.PruneResult) -> bool:
    """Whether reported parameters and MACs are those of the models. Unused tensors do not count as the original's."""
    before, after, unused = result.report.before, result.report.after, set(result.report.unused)
    used = sum(p.numel() for name, p in original.named_parameters() if name not in unused)
    reported = (before.parameters, before.macs, after.parameters, after.macs)
    return reported == (used, counted_macs(original), parameters(result.model), counted_macs(result.model))


def compiles(model: nn.Module, x: Tensor) -> bool:
    """Whether the model compiles into one graph that equals eager."""
    torch.compiler.reset()
    return identical(outputs(torch.compile(model, fullgraph=True, backend="eager"), x), outputs(model, x))


def survives_storage(result: graphprune.PruneResult, x: Tensor) -> bool:
    """Whether a saved and loaded artifact has the same tensors and outputs."""
    with tempfile.TemporaryDirectory() as folder:
        graphprune.save(result, Path(folder) / "slim.safetensors")
        loaded = graphprune.load(Path(folder) / "slim.safetensors")
    mine, theirs = result.model.state_dict(), loaded.state_dict()
    same = mine.keys() == theirs.keys() and all(identical([mine[name]], [theirs[name]]) for name in mine)
    return same and identical(outputs(result.model, x), outputs(loaded, x))


def left_with_unused(row: dict[str, Any]) -> float:
    """Share of the original's parameters that would be left if those that the forward pass does not use were kept whole."""
    used = row["left_all"] / row["left_used"]
    return float(row["left_all"] + 1 - used)


def halved(widths: dict[str, tuple[int, int]]) -> bool:
    """Whether every group keeps half of its units, within one unit and 1 %."""
    return all(abs(kept - full / 2) <= max(1.0, 0.01 * full) for full, kept in widths.values())


def try_model(name: str) -> dict[str, Any]:
    """Prune one model by every criterion and check the results."""
    return {criterion: try_criterion(build(name), name, criterion) for criterion in CRITERIA}


def try_criterion(model: nn.Module, name: str, criterion: str) -> dict[str, Any]:
    """Figures and checks of one pruning."""
    how: dict[str, Any] = {"target": "channels=50%", "ranking": "local", "criterion": criterion}
    x = torch.randn(2, *EXAMPLE[1:], generator=torch.Generator().manual_seed(1))
    result = graphprune.prune(model, torch.zeros(EXAMPLE), **how)
    twice = graphprune.prune(result.model, torch.zeros(EXAMPLE), **how)
    report, again = result.report, twice.report.verification
    proof, widths, peer = report.verification, dict(report.widths), PEER[name]
    assert proof is not None and again is not None
    row: dict[str, Any] = {
        "operators": report.groups.trace.operators,
        "groups": len(widths),
        "units": sum(full for full, _ in widths.values()),
        "exactly_half": sum(2 * kept == full for full, kept in widths.values()),
        "left_used": report.after.parameters / report.before.parameters,
        "left_all": report.after.parameters / parameters(model),
        "left_macs": report.after.macs / report.before.macs,
        "unused": len(report.unused),
        "error": proof.error,
        "compared": proof.compared,
        "randomised": proof.randomised,
        "error_twice": again.error,
        "left_twice": twice.report.after.parameters / report.before.parameters,
    }
    row["checks"] = {
        "verified": proof.passed and proof.error < 1e-4,
        "halved": halved(widths),
        "recounted": recounted(model, result),
        "compiled": compiles(result.model, x),
        "stored": survives_storage(result, x),
        "twice": again.passed and again.error < 1e-4 and recounted(result.model, twice),
        "peer": peer is None or round(left_with_unused(row), 3) <= peer,
    }
    return row


def in_process(name: str, threads: int) -> dict[str, Any]:
    """The rows of one model, made in a process of its own; the last line of its error where it fails."""
    command = [sys.executable, __file__, "--one", "--threads", str(threads), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def failures(rows: dict[str, Any]) -> list[str]:
    """What failed in the rows of one model."""
    if "failed" in rows:
        return [rows["failed"]]
    return [f"{criterion}: {check}" for criterion, row in rows.items() for check, passed in row["checks"].items() if not passed]


def publish(results: dict[str, Any]) -> None:
    """Write results.json and the README beside this file."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    models = results["models"]
    good = [rows for rows in models.values() if "failed" not in rows]
    failed = sum(bool(failures(rows)) for rows in models.values())
    worst = max((row[key] for rows in good for row in rows.values() for key in ("error", "error_twice")), default=0.0)
    lines = [
        "# Zoo: half of every group, verified",
        "",
        "Made by `run.py` beside this page, which says how, and what each check is. " + results["machine"],
        "",
        f"**{len(models) - failed} of {len(models)} models pass every check.** Largest relative error against the masked original "
        f"over all of them, pruned once and twice, by two criteria: {worst:.1e}.",
        "",
        "| model | operators | groups | exactly half | parameters left | of all | with unused | peer | MACs left | left, twice "
        "| error, random | error, l2 | tensors compared | recounted | compiled | stored | twice |",
        "| --- |" + " ---: |" * 12 + " --- |" * 4,
    ]
    for name, rows in models.items():
        if "failed" in rows:
            lines.append(f"| {name} | **failed**: {rows['failed']} |" + " |" * 15)
            continue
        row, random = rows["l2"], rows["random"]
        peer = "fails" if PEER[name] is None else f"{PEER[name]:.3f}"
        passed = {check: all(r["checks"][check] for r in rows.values()) for check in row["checks"]}
        lines.append(
            f"| {name} | {row['operators']} | {row['groups']} | {row['exactly_half']} | {row['left_used']:.3f} "
            f"| {row['left_all']:.3f} | {left_with_unused(row):.3f} | {peer}{'' if passed['peer'] else ' **less**'} "
            f"| {row['left_macs']:.3f} | {row['left_twice']:.3f} | {random['error']:.1e} | {row['error']:.1e} | {row['compared']} |"
            + "".join(f" {'yes' if passed[check] else '**no**'} |" for check in ("recounted", "compiled", "stored", "twice"))
        )
    lines += [
        "",
        "- operators: ATen calls that the analysis saw. groups: sets of coupled channels that can shrink. exactly half: groups",
        "  that kept exactly half of their units; the others are of odd width, keep one unit more, or make up for those.",
        "- parameters left: of those that the forward pass uses. of all: of all parameters of the original; the slim model does",
        "  not carry the unused ones (the auxiliary heads of googlenet). with unused: of all, if it did carry them.",
        "- peer: torch-pruning 1.6.1 at ratio 0.5 with local ranking, of all parameters, measured apart. It keeps what the forward",
        "  pass does not use: to be compared with the column before it.",
        "- left, twice: after pruning the slim model once more in the same way. These shares are the same for both criteria.",
    ]
    (HERE / "README.md").write_text("\n".join(lines) + "\n")


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    """Run models and update the published results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="; ".join(PEER))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", action="store_true", help="run one model in this process and print its rows")
    options = parser.parse_args()
    unknown = next((name for name in options.models if name not in PEER), None)
    if unknown is not None:
        parser.error(f"{unknown} is not in this benchmark; choose from {', '.join(PEER)}")
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(try_model(options.models[0])))
        return 0
    known = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
    versions = f"graphprune {graphprune.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    machine = f"{versions}, Python {platform.python_version()}, {options.threads} thread(s) of {processor()}."
    for name in options.models or PEER:
        known[name] = in_process(name, options.threads)
        wrong = failures(known[name])
        print(f"{name:20}", "; ".join(wrong) or f"ok, {known[name]['l2']['left_used']:.3f} left", flush=True)
        publish({"machine": machine, "models": {model: known[model] for model in PEER if model in known}})
    return 1 if any(failures(rows) for rows in known.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
