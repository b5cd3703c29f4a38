"""The commands, with the examples under the help of each: lines that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rich.markup import escape

#: Lines by command, in the order in which --help lists them, without ``graphprune`` and the command's name.
EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "demo": ("", "--out digits --quiet"),
    "inspect": (
        "torchvision:resnet50",
        "torchvision:resnet50 --why layer3.0.conv1",
        "torchvision:vit_b_16 --graph groups.svg",
        "my_code.models:net --input 1x3x64x64 --weights weights.pt",
    ),
    "score": (
        "torchvision:resnet18 --criterion l1 --plot scores.png",
        "torchvision:resnet18 --criterion taylor --calibrate images/",
    ),
    "sensitivity": (
        "my_code.models:net --weights weights.pt --data test.npz -o sensitivity.json",
        "my_code.models:net --data test.npz -o s.json --ratio 0.5 --plot curves.svg",
    ),
    "profile": ("torchvision:resnet18 --batch 8 -o latency.json",),
    "sweep": ("torchvision:resnet18 --way global --way knapsack -o front.json",),
    "prune": (
        "torchvision:resnet50 --target macs=50% -o slim.safetensors",
        "timm:resnet18 --target params=4M --criterion lamp -o plan.json",
        "my_code.models:net --input 1x3x64x64 --exclude head -o slim.pt2",
    ),
    "prune-checkpoint": ("my-llama/ --target params=60% -o my-smaller-llama",),
    "run": (
        "iterative my_code.models:net --data digits --target macs=50% -o out",
        "recipe.toml -o out",
    ),
    "recipe": ("", "--show iterative"),
    "apply": ("torchvision:resnet50 plan.json -o slim.safetensors",),
    "verify": ("torchvision:resnet50 slim.safetensors",),
    "compare": ("torchvision:resnet50 slim.safetensors --batch 1 --batch 32",),
    "diff": ("plan_a.json plan_b.json", "slim_a.safetensors slim_b.safetensors --json"),
    "report": ("slim.safetensors --against torchvision:resnet50 -o report.html", "runs/ -o report.html"),
    "export": ("slim.safetensors -o slim.onnx", "slim.safetensors -o slim.pt2 --static"),
    "passes": ("",),
}


def epilog(command: str) -> str:
    """What stands under the help of a command; typer starts a new line at each empty one."""
    lines = [f"graphprune {command} {line}".rstrip() for line in EXAMPLES[command]]
    return "\n\n".join(["Examples:" if len(lines) > 1 else "Example:", *(f"[dim]$[/dim] {escape(line)}" for line in lines)])
