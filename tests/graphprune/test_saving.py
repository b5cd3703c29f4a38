"""Files of slim models as they are used after a pruning: trained, loaded, trained and saved again."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.artifact import read_artifact
from graphprune.errors import ArtifactError, CaptureError, UsageError

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Tied(nn.Module):
    """Two blocks in a list, one weight in two places, and a forward that looks at data if asked to."""

    def __init__(self, picky: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2))
        self.get_submodule("blocks.1.2").bias = self.get_parameter("blocks.0.2.bias")
        self.picky = picky

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
            if self.picky and x.sum() > 1e9:
                return x
        return x


def _saved(tmp_path: Path, picky: bool = False, **options: Any) -> tuple[graphprune.PruneResult, Path]:
    torch.manual_seed(0)
    result = graphprune.prune(Tied(picky), X, target="params=60%", **options)
    path = tmp_path / "slim.safetensors"
    graphprune.save(result, path)
    return result, path


@pytest.mark.parametrize("kind", ["graph", "class", "parts"])
def test_a_loaded_model_that_was_trained_is_saved_again(kind: str, tmp_path: Path) -> None:
    """The file then has the new weights, ties and dtypes, and the plan and all else of the old one."""
    result, path = _saved(tmp_path, picky=kind == "parts", keep_class=kind == "class")
    original = () if kind == "graph" else (Tied(kind == "parts"),)
    slim = graphprune.load(path, *original)
    weight, bias = slim.get_parameter("blocks.0.0.weight").requires_grad_(False), slim.get_parameter("blocks.0.2.bias")
    with torch.no_grad():
        weight.add_(1.0)
        bias.add_(2.0)
    graphprune.save(nn.DataParallel(slim.double()), tmp_path / "new.safetensors", like=path)
    again = graphprune.load(tmp_path / "new.safetensors", *original)
    assert torch.equal(again(X.double()), slim(X.double())) and not torch.equal(
        again(X.double()), result.model.double()(X.double())
    )
    assert again.get_parameter("blocks.0.2.bias") is again.get_parameter("blocks.1.2.bias")
    assert not weight.requires_grad and bias.requires_grad
    assert read_artifact(tmp_path / "new.safetensors").plan == read_artifact(path).plan != ""


def test_a_model_alone_and_a_file_of_another_one_are_refused(tmp_path: Path) -> None:
    result, path = _saved(tmp_path)
    with pytest.raises(UsageError, match=r"not its model, and this is a Tied.*like=\.\.\."):
        graphprune.save(result.model, tmp_path / "new.safetensors")
    with pytest.raises(ArtifactError, match="is not the file of this Tied, whose weights have other names or shapes"):
        graphprune.save(Tied(), tmp_path / "new.safetensors", like=path)
    with pytest.raises(CaptureError, match=r"got str\. Load it"):
        graphprune.save("slim.safetensors", tmp_path / "new.safetensors", like=path)  # type: ignore[arg-type]
    assert not (tmp_path / "new.safetensors").exists()
    with pytest.raises(UsageError, match="the path of a slim model, got Tied"):
        graphprune.load(Tied())  # type: ignore[call-overload]


def test_a_wrapped_model_is_saved_again_as_what_it_wraps(tmp_path: Path) -> None:
    result, path = _saved(tmp_path)
    graphprune.save(nn.DataParallel(result.model), tmp_path / "new.safetensors", like=path)
    for name, tensor in graphprune.load(tmp_path / "new.safetensors").state_dict().items():
        assert torch.equal(tensor, result.model.state_dict()[name])


@pytest.mark.parametrize("name", ["slim.pt", "slim.pth", "slim"])
def test_a_name_that_tells_of_another_format_is_refused(name: str, tmp_path: Path) -> None:
    """torch.load would take such a file for a pickle."""
    result, path = _saved(tmp_path)
    with pytest.raises(UsageError, match=r"End it in \.safetensors, or in \.pt2"):
        graphprune.save(result, tmp_path / name)
    with pytest.raises(UsageError, match=r"Write a \.safetensors file"):
        graphprune.save(result.model, tmp_path / "slim.pt2", like=path)


def test_blocks_are_found_by_number_as_in_the_original(tmp_path: Path) -> None:
    result, path = _saved(tmp_path)
    for slim in (result.model, graphprune.load(path), pickle.loads(pickle.dumps(result.model)), copy.deepcopy(result.model)):
        blocks: Any = slim.blocks
        assert len(blocks) == 2 and [block[0].in_features for block in blocks] == [8, 8]
        assert blocks[0][2] is slim.get_submodule("blocks.0.2")


def test_numbers_that_leave_gaps_make_no_list() -> None:
    """By number another layer than the original's would be found there."""

    class Skips(Tied):
        def forward(self, x: Tensor) -> Any:
            return self.blocks[1](x)

    slim: Any = graphprune.capture(Skips(), X).module
    assert type(slim.blocks) is nn.Module and type(slim.blocks.get_submodule("1")) is nn.ModuleList


@pytest.mark.filterwarnings("ignore")  # scripting is deprecated
def test_a_model_that_was_scripted_is_saved(tmp_path: Path) -> None:
    """torch.jit.script leaves attributes of its own in the layers that it reads."""
    result, _ = _saved(tmp_path)
    torch.jit.script(result.model)
    graphprune.save(result, tmp_path / "scripted.safetensors")
    assert torch.equal(graphprune.load(tmp_path / "scripted.safetensors")(X), result.model(X))


def test_a_result_says_what_of_it_pickles(tmp_path: Path) -> None:
    result, _ = _saved(tmp_path)
    with pytest.raises(UsageError, match=r"Pickle result\.model and result\.plan, or write the result with graphprune\.save"):
        pickle.dumps(result)
    model, plan = pickle.loads(pickle.dumps((result.model, result.plan)))
    assert torch.equal(model(X), result.model(X)) and plan == result.plan
    assert torch.equal(copy.deepcopy(result).model(X), result.model(X))
