"""The process that loads and runs what was written; started by its path, so it imports nothing of graphprune."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from statistics import median
from timeit import Timer
from typing import Any

import torch


def _aot(path: Path) -> Any:
    from torch._inductor import aoti_load_package

    return aoti_load_package(str(path))


def _folder(path: Path) -> Any:
    sys.path.insert(0, str(path))
    return importlib.import_module("module").load()


_LOADERS = {"aot": _aot, "folder": _folder}


def main(kind: str, written: str, given: str, made: str) -> None:
    """Run the cases of a file, and save their outputs and the time of the first."""
    sys.modules["graphprune"] = None  # type: ignore[assignment]
    sys.dont_write_bytecode = True
    task: dict[str, Any] = torch.load(given, weights_only=True)
    torch.set_num_threads(task["threads"])
    with torch.no_grad():
        model = _LOADERS[kind](Path(written))
        coarse, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
        outputs = [_tensors(model(*args, **kwargs)) for args, kwargs in task["cases"]]
        torch.backends.cudnn.allow_tf32 = coarse
        args, kwargs = task["cases"][0]

        def call() -> None:
            model(*args, **kwargs)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()

        timer = Timer(call)
        count = min(1000, max(1, round(task["seconds"] / max(timer.timeit(1), 1e-9))))
        ms = 1000 * median(timer.repeat(task["turns"], count)) / count
    torch.save({"outputs": outputs, "ms": ms}, made)


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


if __name__ == "__main__":
    main(*sys.argv[1:])
