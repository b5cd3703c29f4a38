"""The operators on a GPU: first the tests, then their speed against the device's measured ceilings and plain PyTorch.

    python docs/benchmarks/gpu/run.py --out DIR

Writes ``results.json`` and ``table.md`` to DIR; the page beside this script says how everything is measured. Without a CUDA GPU,
or where a test fails, there are no figures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE), str(ROOT)]

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BIG, BIG_PAIR = (256, 64, 112, 112), (128, 256, 56, 56)
# shape, dtype, layout; "padded" leaves the border out, as a view.
PLAIN = [(BIG, dtype, layout) for dtype in (torch.float32, torch.bfloat16) for layout in LAYOUTS]
PLAIN += [(BIG, torch.float16, "contiguous"), ((256, 64, 110, 110), torch.bfloat16, "padded")]
PAIRS = [(BIG_PAIR, dtype, layout) for dtype in (torch.float32, torch.bfloat16) for layout in LAYOUTS]
SAMPLES = 32  # of the ResNet-50 activations
WORKERS = 8  # processes that compile
_MARKED = re.compile("mark.gpu|tests.gpu.devices")  # of files with tests for a GPU


def main() -> None:
    """Gate, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--skip-tests", action="store_true", help="measure only; figures for the page need the tests")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a CUDA GPU, and torch sees none: nothing was measured.")
    if not options.skip_tests:
        marked = [str(path) for path in sorted(ROOT.glob("tests/**/test_*.py")) if _MARKED.search(path.read_text())]
        gate = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "8", "-q", "--tb=short", "-p", "no:cacheprovider", *marked]
        if subprocess.run(gate, cwd=ROOT, check=False).returncode:
            raise SystemExit("A GPU test failed: nothing was measured.")
    started = time.perf_counter()
    prepare()
    results = measure()
    results |= {"tested": not options.skip_tests, "measuring_seconds": round(time.perf_counter() - started)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "table.md").write_text(table(results))
    print((options.out / "table.md").read_text())


def cases() -> list[tuple[tuple[int, ...], torch.dtype, str, int, bool]]:
    """Shape, dtype, layout, how often it counts in the sum over ResNet-50, and whether there is a gradient."""
    from contenders import resnet50_activations

    model = resnet50_activations(SAMPLES).items()
    singles = [(*case, 1, pair) for pair, group in ((False, PLAIN), (True, PAIRS)) for case in group]
    return [*singles, *((shape, torch.float32, "contiguous", count, False) for shape, count in model)]


def prepare() -> None:
    """Compile everything in several processes, so that measuring finds it in the caches on disk."""
    processes = [get_context("spawn").Process(target=compile_some, args=(part,)) for part in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def compile_some(part: int) -> None:
    """Run one in so many of the cases."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    import contenders

    from graphprune.kernels.activation_attention import activation_attention

    for shape, dtype, layout, _, pair in cases()[part::WORKERS]:
        tensors = activations(shape, dtype, layout, pair)
        activation_attention(*tensors, tau=contenders.TAU if pair else None)
        eager = contenders.statistics_with_gradient if pair else contenders.statistics
        torch.compile(eager, fullgraph=True, dynamic=False)(*tensors)
        del tensors
        torch.cuda.empty_cache()


def measure() -> dict[str, Any]:
    """All figures, and what they were measured on."""
    import triton
    from timing import ceilings

    torch.manual_seed(0)
    torch._dynamo.config.cache_size_limit = 64
    device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    results: dict[str, Any] = device | {"ceilings": ceilings(), "attention": [], "similarity": []}
    print(results, flush=True)
    read = results["ceilings"]["read_bytes"]
    for case in cases():
        results["attention"].append(attention(*case, read))
        print(results["attention"][-1], flush=True)
        torch.cuda.empty_cache()
    for row in similarities(results["ceilings"]):
        results["similarity"].append(row)
        print(row, flush=True)
    return results


def activations(shape: tuple[int, ...], dtype: torch.dtype, layout: str, pair: bool) -> tuple[Tensor, ...]:
    """An activation as after ReLU, and a gradient if asked for, in a layout."""

    def make() -> Tensor:
        if layout == "padded":
            n, c, h, w = shape
            return torch.empty(n, c, h + 2, w + 2, device="cuda", dtype=dtype).normal_()[:, :, 1:-1, 1:-1]
        return torch.empty(shape, device="cuda", dtype=dtype).normal_().contiguous(memory_format=LAYOUTS[layout])

    return (make().relu_(), make()) if pair else (make().relu_(),)


def attention(shape: tuple[int, ...], dtype: torch.dtype, layout: str, count: int, pair: bool, read: float) -> dict[str, Any]:
    """Ours, eager and compiled on one shape; count is how often it counts in a sum over a model."""
    import contenders
    from timing import CACHE, called_seconds, device_seconds

    from graphprune.kernels.activation_attention import activation_attention

    eager = contenders.statistics_with_gradient if pair else contenders.statistics

    def ours(*tensors: Tensor) -> Any:
        return activation_attention(*tensors, tau=contenders.TAU if pair else None)

    nbytes = math.prod(shape) * dtype.itemsize * (1 + pair)
    inputs = [activations(shape, dtype, layout, pair) for _ in range(-(-CACHE // nbytes))]
    calls = {"ours": ours, "eager": eager, "compiled": torch.compile(eager, fullgraph=True, dynamic=False)}
    for mine, theirs in zip((value for value in ours(*inputs[0]) if value is not None), eager(*inputs[0]), strict=True):
        torch.testing.assert_close(mine, theirs.to(mine.dtype), rtol=1e-3, atol=1e-2)
    seconds = {name: device_seconds(call, inputs) for name, call in calls.items()}
    called = {name: called_seconds(call, inputs[0]) for name, call in calls.items()}
    moved = nbytes + (shape[0] * shape[1] + math.prod(shape[1:])) * 4 * pair
    return {
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "layout": layout,
        "gradient": pair,
        "count": count,
        "bytes": moved,
        "seconds": seconds,
        "called_seconds": called,
        "share_of_read": moved / seconds["ours"] / read,
    }


def similarities(ceilings: dict[str, float]) -> list[dict[str, Any]]:
    """One large matrix, and all layers of ResNet-50."""
    from contenders import resnet50_filters

    large = [torch.randn(8192, 4608, device="cuda")]
    model = [torch.randn(shape, device="cuda") for shape in resnet50_filters()]
    rows = [similarity("8192 x 4608", large, precision, ceilings, compiled=True) for precision in ("highest", "high")]
    return [*rows, *(similarity("ResNet-50, 53 matrices", model, precision, ceilings) for precision in ("highest", "high"))]


def similarity(
    name: str, matrices: list[Tensor], precision: Any, ceilings: dict[str, float], compiled: bool = False
) -> dict[str, Any]:
    """Ours in a precision against torch.cdist, with and without TF32, and against a compiled product of matrices."""
    import contenders
    from timing import called_seconds, event_seconds, peak_bytes

    from graphprune.kernels.channel_similarity import channel_similarity

    def ours() -> Any:
        return channel_similarity(matrices, precision=precision)

    def cdist() -> Any:
        return contenders.cdist(matrices)

    seconds, called, memory = {}, {}, {}
    for label, call in (("ours", ours), ("cdist", cdist)):
        seconds[label], called[label], memory[label] = event_seconds(call), called_seconds(call, (), 5), peak_bytes(call)
    error = {"ours": worst(matrices, [row.euclidean for row in ours()]), "cdist": worst(matrices, [row[0] for row in cdist()])}
    torch.backends.cuda.matmul.allow_tf32 = True
    seconds["cdist_tf32"], error["cdist_tf32"] = event_seconds(cdist), worst(matrices, [row[0] for row in cdist()])
    torch.backends.cuda.matmul.allow_tf32 = False
    if compiled:
        fused = torch.compile(contenders.products, fullgraph=True, dynamic=False)
        seconds["compiled"] = event_seconds(lambda: fused(matrices))
    pairs = sum(len(matrix) * (len(matrix) - 1) // 2 * matrix.shape[1] for matrix in matrices)
    operations = 2 * pairs * (3 if precision == "highest" else 1)
    return {
        "name": name,
        "precision": precision,
        "operations": operations,
        "input_bytes": sum(matrix.nbytes for matrix in matrices),
        "seconds": seconds,
        "called_seconds": called,
        "peak_bytes": memory,
        "largest_relative_error": error,
        "share_of_matmul": operations / seconds["ours"] / ceilings["matmul_float16"],
    }


def worst(matrices: list[Tensor], means: list[Tensor]) -> float:
    """Largest relative error of mean distances, against float64."""
    errors = []
    for matrix, mean in zip(matrices, means, strict=True):
        rows = matrix.double()
        rows -= rows.mean(0)
        square = (rows * rows).sum(1)
        exact = (square[:, None] + square - 2 * rows @ rows.T).clamp_(min=0).sqrt_().fill_diagonal_(0).sum(1) / (len(rows) - 1)
        errors.append(float(((mean - exact).abs() / exact).max()))
    return max(errors)


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    limits = results["ceilings"]
    rates = ", ".join(f"{name} {limits[f'matmul_{name}'] / 1e12:.0f}" for name in ("float16", "tf32", "float32"))
    lines = [
        f"# Measured on {results['device']}",
        "",
        f"torch {results['torch']}, triton {results['triton']}. Read {limits['read_bytes'] / 1e9:.0f} GB/s, copy "
        f"{limits['copy_bytes'] / 1e9:.0f} GB/s (bytes read and written), matrix products in TFLOP/s: {rates}."
        + ("" if results["tested"] else " **The tests did not run with it: see the page.**"),
        "",
        "## activation_attention",
        "",
        "| input | bytes | ours | of read | eager | compiled | eager / ours | compiled / ours | call: ours | eager | compiled |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(attention_row(row) for row in results["attention"]),
        attention_row(whole_model(results)),
        "",
        "## channel_similarity",
        "",
        "| input | precision | ours | of matmul | cdist | cdist, TF32 | compiled | cdist / ours | memory: ours | cdist "
        "| error: ours | cdist | cdist, TF32 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(similarity_row(row) for row in results["similarity"]),
    ]
    return "\n".join(lines) + "\n"


def whole_model(results: dict[str, Any]) -> dict[str, Any]:
    """The sum over ResNet-50's activations."""
    rows = [row for row in results["attention"] if row["shape"][0] == SAMPLES]
    total: dict[str, Any] = {
        "label": f"ResNet-50's 53, {SAMPLES} images, float32",
        "bytes": sum(r["count"] * r["bytes"] for r in rows),
    }
    for key in ("seconds", "called_seconds"):
        total[key] = {name: sum(row["count"] * row[key][name] for row in rows) for name in rows[0][key]}
    return total | {"share_of_read": total["bytes"] / total["seconds"]["ours"] / results["ceilings"]["read_bytes"]}


def attention_row(row: dict[str, Any]) -> str:
    """A line of the first table; times in microseconds."""
    label = row.get("label") or " x ".join(map(str, row["shape"])) + f" {row['dtype']} {row['layout']}" + (
        ", gradient" if row["gradient"] else ""
    )
    ours, eager, compiled = (row["seconds"][name] for name in ("ours", "eager", "compiled"))
    cells = [label, f"{row['bytes'] / 1e6:.0f} MB", micro(ours), f"{row['share_of_read']:.0%}", micro(eager), micro(compiled)]
    cells += [
        f"{eager / ours:.1f}x",
        f"{compiled / ours:.2f}x",
        *(micro(row["called_seconds"][k]) for k in ("ours", "eager", "compiled")),
    ]
    return "| " + " | ".join(cells) + " |"


def similarity_row(row: dict[str, Any]) -> str:
    """A line of the second table."""
    seconds, memory, error = row["seconds"], row["peak_bytes"], row["largest_relative_error"]
    cells = [row["name"], row["precision"], micro(seconds["ours"]), f"{row['share_of_matmul']:.0%}", micro(seconds["cdist"])]
    cells += [micro(seconds["cdist_tf32"]), micro(seconds["compiled"]) if "compiled" in seconds else "-"]
    cells += [f"{seconds['cdist'] / seconds['ours']:.1f}x", *(f"{memory[k] / 1e6:.0f} MB" for k in ("ours", "cdist"))]
    return "| " + " | ".join([*cells, *(f"{error[key]:.0e}" for key in ("ours", "cdist", "cdist_tf32"))]) + " |"


def micro(seconds: float) -> str:
    """Microseconds."""
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-4 else f"{seconds * 1e6:.0f} us"


if __name__ == "__main__":
    main()
