"""A language model of a few lines, its checkpoints, and runs of it in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[3]
INPUTS = torch.zeros(2, 6, dtype=torch.int64)


class Block(nn.Module):
    """Layer norm, two linear layers and a residual."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        out: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return out


class Net(nn.Module):
    """Embeddings, blocks, and a head which may be tied to the embeddings. A buffer is part of the state, another is not."""

    def __init__(self, width: int = 16, hidden: int = 24, depth: int = 4, tokens: int = 40, tied: bool = True) -> None:
        super().__init__()
        self.shift: Tensor
        self.scale: Tensor
        self.embed = nn.Embedding(tokens, width)
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))
        self.head = nn.Linear(width, tokens, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of shape (batch, tokens, vocabulary)."""
        x = self.embed(ids) * self.scale + self.shift
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


def on_meta(**how: int | bool) -> Net:
    """The model without values, but for the buffer that is no part of the state."""
    with torch.device("meta"):
        net = Net(**how).eval()  # type: ignore[arg-type]
    net.scale = torch.ones(1, device="cpu")
    return net


def save_sharded(model: nn.Module, folder: Path, shards: int = 3) -> None:
    """Write a model's state as some files and an index, tied tensors once."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {id(value): (name, value) for name, value in reversed(model.state_dict(keep_vars=True).items())}
    tensors = {name: value.detach() for name, value in reversed(state.values())}
    names = list(tensors)
    size = -(-len(names) // shards)
    listed: dict[str, str] = {}
    for index in range(shards):
        part = {name: tensors[name].contiguous() for name in names[index * size : (index + 1) * size]}
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        save_file(part, folder / file, {"format": "pt"})
        listed |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))


def run_python(code: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, from this checkout."""
    setup = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    return subprocess.run([sys.executable, "-P", "-c", setup + code], capture_output=True, text=True, timeout=120, check=check)
