"""The trained ResNet-56 for CIFAR-10 through the command line, and what the criteria and rankings keep of its accuracy.

    pip install graphprune matplotlib
    python run.py --data cifar10.npz --weights resnet56.th                           # the whole way, on the test images
    python run.py compare --data cifar10.npz --weights resnet56.th --small resnet20.th    # criteria, on training images

``--data`` is an npz file with ``x_train, y_train, x_test, y_test`` (uint8 images [N, 3, 32, 32]). The weights are those
of the public repository akamaster/pytorch_resnet_cifar10; the architecture is ``cifar_resnet.py`` beside this file.

Without a part: ``graphprune prune --target macs=50% --criterion l2`` in a process of its own, then
  - a fresh process, in which ``cifar_resnet`` cannot even be found, loads the artifact and classifies all test images;
  - ``graphprune verify`` proves the artifact against the masked original;
  - ``graphprune apply`` carries out the plan again, and every tensor and the graph of both artifacts are compared;
  - MACs are counted on the slim model by ``torch.utils.flop_counter``, and once more on a model that keeps the last unit
    that was removed: that one must be over the target, so the slim model is within one unit of it.
The script exits with 1 if any of this fails. No fine-tuning, and no statistics are estimated anew.

``compare``: one-shot pruning of ResNet-20 and ResNet-56 by every ranking, reduction and normalisation to 75, 60 and 50 %
of the MACs. It is for choosing defaults, so it looks at 2,000 *training* images (fixed seed), never at the test set.
Results go to ``results.json``, ``README.md`` and ``compare.png`` beside this file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[2]))  # a clone that is not installed
import graphprune  # noqa: E402

RESULTS = HERE / "results.json"
SOURCE = "cifar_resnet:resnet56"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 128  # as the command line does, so that both measure the same sums in the same order
EXAMPLE = (1, 3, 32, 32)

RANKINGS = ("global", "local", "isomorphic")
#: criterion, reduction, normalise, seeds
CONFIGURATIONS = (
    ("l2", "l2", "none", (0,)),
    ("l2", "l2", "max", (0,)),
    ("l2", "sum", "none", (0,)),
    ("l2", "mean", "none", (0,)),
    ("l2", "sum", "max", (0,)),
    ("l2", "mean", "mean", (0,)),
    ("l1", "l2", "none", (0,)),
    ("random", "l2", "none", (0, 1)),
)
TARGETS = (75, 60, 50)
HELD_OUT = 2000


def images(data: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (uint8) and labels of one part of the data set."""
    with np.load(data) as arrays:
        return torch.from_numpy(arrays[f"x_{part}"]), torch.from_numpy(arrays[f"y_{part}"]).long()


def correct(model: nn.Module, x: Tensor, y: Tensor, batch: int = BATCH) -> int:
    """How many images a model classifies rightly."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    right = 0
    with torch.inference_mode():
        for start in range(0, len(y), batch):
            scores = model((x[start : start + batch] / 255 - mean) / std)
            right += int((scores.argmax(1) == y[start : start + batch]).sum())
    return right


def counted_macs(model: nn.Module) -> int:
    """Multiply-accumulates for one image, by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(EXAMPLE))
    return int(counter.get_total_flops()) // 2


def build(name: str, weights: Path) -> nn.Module:
    """A CIFAR ResNet with its trained weights, in eval mode."""
    import cifar_resnet

    model: nn.Module = getattr(cifar_resnet, name)()
    state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model.eval()


def python(arguments: list[str], folder: Path, threads: int) -> dict[str, Any]:
    """Run Python in a folder and read the JSON that it prints."""
    path = str(Path(graphprune.__file__).parents[1])  # children use the same graphprune, and find nothing else by it
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments[:4])} ... failed with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def command(arguments: list[str], shown: list[str], threads: int) -> dict[str, Any]:
    """Run ``graphprune`` beside cifar_resnet.py; note the command line, with file names instead of paths."""
    shown.append("graphprune " + " ".join(Path(a).name if os.sep in a else a for a in arguments))
    print(shown[-1], flush=True)
    return python(["-m", "graphprune", *arguments, "--json"], HERE, threads)


def measure(data: Path, artifact: Path) -> dict[str, Any]:
    """In a process that knows nothing of the architecture: the artifact's accuracy on the test images, and its MACs."""
    model = graphprune.load(artifact).eval()
    x, y = images(data, "test")
    right = correct(model, x, y)
    unknown = importlib.util.find_spec("cifar_resnet") is None and "cifar_resnet" not in sys.modules
    return {"correct": right, "images": len(y), "macs": counted_macs(model), "class_unknown": unknown}


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of an artifact, read by safetensors alone."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def same_tensors(one: Path, other: Path) -> int:
    """Number of tensors of two artifacts, or 0 if any of them, or the graph, differs."""
    (a, about_a), (b, about_b) = contents(one), contents(other)
    equal = a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)
    equal = equal and all(about_a[part] == about_b[part] for part in ("graph", "modules", "tensors"))
    return len(a) if equal else 0


def one_unit_fewer(model: nn.Module, plan: graphprune.Plan) -> tuple[int, int]:
    """MACs, counted on the model itself, with the last removed unit kept; and how many units the plan removes."""
    from graphprune.passes.analysis.channels import ChannelGroups
    from graphprune.passes.scoring.score import ScorePass, latest
    from graphprune.passes.selection.ranking import rank
    from graphprune.passes.selection.select import SelectPass
    from graphprune.pipeline.analysis_manager import AnalysisManager
    from graphprune.pipeline.pass_manager import PassManager
    from graphprune.pipeline.text import parse_pipeline
    from graphprune.plans.plan import kept_units, make_plan

    steps = parse_pipeline(plan.pipeline)
    select = next(step for step in steps if isinstance(step, SelectPass))
    program = graphprune.capture(model, torch.zeros(EXAMPLE))
    program = PassManager([step for step in steps if isinstance(step, ScorePass)]).run(program)
    groups = AnalysisManager().get(program, ChannelGroups())
    floors = np.full(len(groups.prunable), select.min_channels, dtype=np.int64)
    order = rank(latest(program.scores).values, groups, select.ranking, floors).units
    kept = kept_units(plan, groups)
    gone = np.flatnonzero(~kept.units)
    if set(gone.tolist()) != set(order[: gone.size].tolist()):
        raise SystemExit("the plan does not remove the units that come first in the ranking")
    kept.units[order[gone.size - 1]] = True
    wider = graphprune.apply_plan(model, torch.zeros(EXAMPLE), make_plan(program.module, groups, kept))
    return counted_macs(wider.model), int(gone.size)


def whole_way(data: Path, weights: Path, threads: int) -> dict[str, Any]:
    """Prune by the command line and check everything that the command says."""
    shown: list[str] = []
    scale = [f"--{name}={','.join(f'{v:g}' for v in values)}" for name, values in (("mean", MEAN), ("std", STD))]
    model = build("resnet56", weights)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slim, again, plan = folder / "slim.safetensors", folder / "again.safetensors", folder / "plan.json"
        load = [SOURCE, "--weights", str(weights)]
        how = ["--target", "macs=50%", "--criterion", "l2", "--data", str(data), *scale]
        pruned = command(["prune", *load, *how, "-o", str(slim), "--plan", str(plan)], shown, threads)
        verified = command(["verify", *load, str(slim)], shown, threads)
        command(["apply", *load, str(plan), "--input", "1x3x32x32", "-o", str(again)], shown, threads)
        tensors = same_tensors(slim, again)
        script = str(Path(__file__).resolve())
        print("fresh process: accuracy of the artifact", flush=True)
        options = ["--data", str(data), "--weights", str(slim), "--threads", str(threads)]
        fresh = python(["-P", script, "measure", *options], folder, threads)
        fewer, removed = one_unit_fewer(model, graphprune.Plan.load(plan))
        sizes = {"weights": pruned["before"]["disk_bytes"], "artifact": slim.stat().st_size}
    before, after, accuracy = pruned["before"], pruned["after"], pruned["accuracy"]
    target = before["macs"] / 2
    checks = {
        "prune proved the result against the masked original": pruned["verification"]["passed"],
        "verify proved the artifact": verified["verification"]["passed"],
        "largest relative error under 1e-4": max(pruned["verification"]["error"], verified["verification"]["error"]) < 1e-4,
        "all test images were used": fresh["images"] == accuracy["images"] == 10_000,
        "the fresh process could not import the model class": fresh["class_unknown"],
        "the fresh process measured the printed accuracy": fresh["correct"] == round(accuracy["after"] * accuracy["images"]),
        "apply made a bit-identical artifact": tensors > 0,
        "reported MACs of the original are counted ones": before["macs"] == counted_macs(model),
        "reported MACs of the slim model are counted ones": after["macs"] == fresh["macs"],
        "MACs meet the target": after["macs"] <= target,
        "one unit fewer would miss the target": fewer > target,
    }
    for text, passed in checks.items():
        print("ok    " if passed else "FAILED", text, flush=True)
    return {
        "commands": shown,
        "accuracy": accuracy,
        "fresh_process_correct": fresh["correct"],
        "before": before,
        "after": after,
        "bytes": sizes,
        "units_removed": removed,
        "macs_one_unit_fewer": fewer,
        "verification": {"prune": pruned["verification"], "verify": verified["verification"]},
        "tensors_identical": tensors,
        "widths": pruned["widths"],
        "checks": checks,
    }


def compare(data: Path, weights: dict[str, Path]) -> dict[str, Any]:
    """Accuracy on held-out training images for every ranking, configuration and target."""
    x, y = images(data, "train")
    chosen = torch.from_numpy(np.random.default_rng(0).choice(len(y), HELD_OUT, replace=False))
    x, y = x[chosen], y[chosen]
    rows: list[dict[str, Any]] = []
    originals = {}
    for name, file in weights.items():
        model = build(name, file)
        originals[name] = correct(model, x, y) / len(y)
        print(name, originals[name], flush=True)
        for criterion, reduction, normalise, seeds in CONFIGURATIONS:
            how = {"criterion": criterion, "reduction": reduction, "normalise": normalise}
            for ranking in RANKINGS:
                for target in TARGETS:
                    options: dict[str, Any] = {**how, "ranking": ranking, "target": f"macs={target}%"}
                    pruned = [graphprune.prune(model, torch.zeros(EXAMPLE), seed=s, verify=False, **options) for s in seeds]
                    accuracy = statistics.fmean(correct(result.model, x, y) / len(y) for result in pruned)
                    rows.append({"model": name, **how, "ranking": ranking, "macs": target, "accuracy": accuracy})
                print(name, *how.values(), ranking, [row["accuracy"] for row in rows[-len(TARGETS) :]], flush=True)
    return {"images": HELD_OUT, "originals": originals, "rows": rows}


def label(row: dict[str, Any]) -> str:
    """A configuration as text."""
    if row["criterion"] == "random":
        return "random (mean of 2 seeds)"
    return f"{row['criterion']}, {row['reduction']}, {row['normalise']}"


def draw(results: dict[str, Any]) -> None:
    """One panel for each model and ranking, one line for each configuration."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models, labels = list(results["originals"]), list(dict.fromkeys(label(row) for row in results["rows"]))
    figure, axes = pyplot.subplots(len(models), len(RANKINGS), figsize=(10, 6), sharex=True, sharey=True, squeeze=False)
    for model, line in zip(models, axes, strict=True):
        for ranking, panel in zip(RANKINGS, line, strict=True):
            for number, text in enumerate(labels):
                mine = [r for r in results["rows"] if (r["model"], r["ranking"], label(r)) == (model, ranking, text)]
                style = {"color": "0.5", "linestyle": "--"} if text.startswith("random") else {"color": f"C{number}"}
                panel.plot([r["macs"] for r in mine], [100 * r["accuracy"] for r in mine], marker="o", ms=4, label=text, **style)
            panel.set_title(f"{model}, {ranking} ranking", fontsize=10)
            panel.grid(alpha=0.3)
    axes[0][0].invert_xaxis()
    axes[0][0].set_xticks(TARGETS)
    figure.supxlabel("MACs that remain, %", fontsize=10)
    figure.supylabel(f"accuracy on {results['images']:,} training images, %, one-shot, no fine-tuning", fontsize=10)
    handles, texts = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, texts, title="criterion, reduction, normalise", loc="outside right center", fontsize=8, title_fontsize=8)
    figure.set_layout_engine("constrained")
    figure.savefig(HERE / "compare.png", dpi=88)


def job_lines(job: dict[str, Any]) -> list[str]:
    """The first part of the page."""
    before, after, accuracy, size = job["before"], job["after"], job["accuracy"], job["bytes"]
    target = before["macs"] / 2
    proof = job["verification"]["verify"]
    shares = [
        ("parameters", before["parameters"], after["parameters"]),
        ("MACs", before["macs"], after["macs"]),
        ("bytes of weights", before["weight_bytes"], after["weight_bytes"]),
        ("bytes of the file (the original's: of its weights)", size["weights"], size["artifact"]),
    ]
    return [
        "## Half the MACs, through the command line",
        "",
        job["machine"],
        "",
        "```sh",
        *job["commands"],
        "```",
        "",
        "| | original | slim | remains |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {text} | {old:,} | {new:,} | {new / old:.2%} |" for text, old, new in shares),
        f"| top-1 accuracy, {accuracy['images']:,} test images, no fine-tuning "
        f"| {accuracy['before']:.2%} | {accuracy['after']:.2%} | |",
        "",
        f"- The target is {target:,.0f} MACs; {job['units_removed']} units went. With the last of them put back (the model "
        f"rewritten and counted again) there would be {job['macs_one_unit_fewer']:,} MACs, over the target.",
        f"- Equal to the masked original: largest relative error {proof['error']:.1e} over {proof['compared']} tensors.",
        f"- `apply` made the same artifact: {job['tensors_identical']} tensors, all bit-identical, and the same graph.",
        f"- A fresh process that has no `cifar_resnet` loaded the artifact and classified {job['fresh_process_correct']:,} of "
        f"{accuracy['images']:,} test images rightly, as `prune` had printed.",
        "",
        "| checked by the script | |",
        "| --- | --- |",
        *(f"| {text} | {'yes' if passed else '**no**'} |" for text, passed in job["checks"].items()),
        "",
    ]


def compare_lines(results: dict[str, Any]) -> list[str]:
    """The second part of the page."""
    models = list(results["originals"])
    columns = [(model, target) for model in models for target in TARGETS]
    table: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for row in results["rows"]:
        table.setdefault((row["ranking"], label(row)), {})[row["model"], row["macs"]] = row["accuracy"]
    best = {column: max(cells[column] for cells in table.values()) for column in columns}
    originals = " and ".join(f"{name} {value:.1%}" for name, value in results["originals"].items())
    return [
        "## Criteria and rankings, one-shot, no fine-tuning",
        "",
        results["machine"],
        "",
        f"Top-1 accuracy on {results['images']:,} **training** images (fixed seed), %, by what remains of the MACs. The originals: "
        f"{originals}. These figures are for choosing defaults: they are no test accuracies, and say nothing of what fine-tuning "
        "would recover. Best by the mean of the columns first. Under local ranking only the order within a group counts, which a "
        "normalisation does not change: those lines coincide.",
        "",
        "![Accuracy against MACs for every configuration](compare.png)",
        "",
        "| ranking | criterion, reduction, normalise |" + "".join(f" {m} {t} % |" for m, t in columns) + " mean |",
        "| --- | --- |" + " ---: |" * (len(columns) + 1),
        *(
            f"| {ranking} | {text} |"
            + "".join(f" {'**' * (cells[c] == best[c])}{100 * cells[c]:.1f}{'**' * (cells[c] == best[c])} |" for c in columns)
            + f" {100 * statistics.fmean(cells.values()):.1f} |"
            for (ranking, text), cells in sorted(table.items(), key=lambda item: -statistics.fmean(item[1].values()))
        ),
        "",
    ]


def publish(part: str, found: dict[str, Any], threads: int) -> None:
    """Update results.json, the page and the figure beside this file."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    versions = f"graphprune {graphprune.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    results[part] = found | {"machine": f"{versions}, {threads} threads of {processor()}."}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    lines = ["# ResNet-56 on CIFAR-10", "", "Made by `run.py` beside this page, which says how.", ""]
    lines += job_lines(results["job"]) if "job" in results else []
    if "compare" in results:
        lines += compare_lines(results["compare"])
        draw(results["compare"])
    (HERE / "README.md").write_text("\n".join(lines).rstrip() + "\n")


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    """Run one part and update the published results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("job", "compare", "measure"), default="job")
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an npz file")
    parser.add_argument("--weights", type=Path, required=True, help="weights of ResNet-56 (measure: an artifact)")
    parser.add_argument("--small", type=Path, help="weights of ResNet-20, for compare")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, weights = options.data.resolve(), options.weights.resolve()
    if options.part == "measure":
        print(json.dumps(measure(data, weights)))
        return 0
    if options.part == "compare":
        small = {"resnet20": options.small.resolve()} if options.small else {}
        found = compare(data, {**small, "resnet56": weights})
    else:
        found = whole_way(data, weights, options.threads)
    publish(options.part, found, options.threads)
    return 0 if all(found.get("checks", {}).values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
