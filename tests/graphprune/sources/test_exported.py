"""Exported programs of strangers: torch would evaluate what they say, so what is not plain is refused before torch reads it."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from graphprune.errors import ArtifactError, UsageError
from graphprune.sources import load_source
from graphprune.sources.program_checks import check_expression, check_program

MARK = "graphprune_mark"
CODE = f"__import__('os').system('touch {MARK}')"
Parts = dict[str, bytes]
Program = dict[str, Any]


class Net(nn.Module):
    """A size that stays variable, so that the file holds expressions and guards."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.body(x).reshape(x.shape[0] // 2, 2, 4).sum(1)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "net.pt2"
    program = torch.export.export(Net(), (torch.ones(4, 4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, path)
    return path.read_bytes()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _rebuilt(sound: bytes, path: Path, change: Callable[[Parts], Any]) -> str:
    """The archive with its parts changed, under the same names."""
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        root = archive.namelist()[0].partition("/")[0]
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w") as made:
        for name, content in parts.items():
            made.writestr(f"{root}/{name}", content)
    return str(path)


def _program(change: Callable[[Program], Any]) -> Callable[[Parts], None]:
    def changed(parts: Parts) -> None:
        program = json.loads(parts["models/model.json"])
        change(program)
        parts["models/model.json"] = json.dumps(program).encode()

    return changed


def _graph(program: Program) -> Any:
    return program["graph_module"]["graph"]


def _expression(text: str) -> Callable[[Parts], None]:
    def change(program: Program) -> None:
        next(iter(_graph(program)["sym_int_values"].values()))["as_expr"]["expr_str"] = text

    return _program(change)


def _target(text: str) -> Callable[[Parts], None]:
    return _program(lambda program: _graph(program)["nodes"][0].update(target=text))


def _spec(kind: str, context: Any) -> Callable[[Parts], None]:
    text = json.dumps([1, {"type": kind, "context": context, "children_spec": []}])
    return _program(lambda program: program["graph_module"]["module_call_graph"][0]["signature"].update(out_spec=text))


def _opaque(parts: Parts) -> None:
    """An object that torch unpickles whatever its entry says of pickles."""
    parts["data/constants/opaque_obj_0"] = pickle.dumps(_Runs())
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
    parts["data/constants/model_constants_config.json"] = json.dumps({"config": {"k": entry}}).encode()


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, (MARK, "w")


HOSTILE: dict[str, Callable[[Parts], Any]] = {
    "an expression": _expression(CODE),
    "an expression inside another": _expression(f"Symbol('s0') + {CODE}"),
    "an endless number": _expression("Pow(Integer(10), Pow(Integer(10), Integer(8)))"),
    "a guard": _program(lambda program: program["guards_code"].append(CODE)),
    "a function": _target("torch.os.system"),
    "a function of torch that loads": _target("torch.hub.load"),
    "an operator that reads files": _target("torch.ops.aten.from_file.default"),
    "an operator that does not exist": _target("torch.ops.aten.no_such.default"),
    "a node that is named like code": _program(lambda program: _graph(program)["nodes"][0].update(name=f"a; {CODE}")),
    "an argument that is named like code": _program(
        lambda program: program["graph_module"]["module_call_graph"][0]["signature"].update(forward_arg_names=[f"x={CODE}"])
    ),
    "a size that torch counts up to": _program(lambda program: program["range_constraints"].update(u999999999999={})),
    "an enum to import": _spec("builtins.dict", json.dumps([{"__enum__": True, "fqn": f"{MARK}:E", "name": "A"}])),
    "a factory to import": _spec(
        "collections.defaultdict", {"default_factory_module": MARK, "default_factory_name": "x", "dict_context": []}
    ),
    "an object": _opaque,
    "a library": lambda parts: parts.update({"data/aotinductor/model/a.so": b"x"}),
    "another program": lambda parts: parts.update({"models/other.json": b"{}"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_program_with_what_can_run_is_refused_and_nothing_runs(name: str, sound: bytes, here: Path) -> None:
    path = _rebuilt(sound, here / "evil.pt2", HOSTILE[name])
    with pytest.raises(UsageError) as caught:
        load_source(path)
    message = str(caught.value)
    assert "can run any code" in message and "--trust-pickle" in message and "\n" not in message
    assert not (here / MARK).exists()


def test_the_sound_program_is_read(sound: bytes, here: Path) -> None:
    """Negative twin: rebuilt without a change it loads, and takes other sizes."""
    source = load_source(_rebuilt(sound, here / "net.pt2", lambda parts: None))
    assert source.model(torch.ones(6, 4))["out"].shape == (3, 4)


def test_what_is_refused_would_have_run(sound: bytes, here: Path) -> None:
    """And the danger is real: trusted, torch evaluates the expression."""
    with pytest.raises(UsageError, match="cannot be read"):
        load_source(_rebuilt(sound, here / "evil.pt2", HOSTILE["an expression"]), trust_pickle=True)
    assert (here / MARK).exists()


def test_a_part_that_comes_twice_is_refused(sound: bytes, here: Path) -> None:
    """Readers disagree on which one counts."""
    path = _rebuilt(sound, here / "net.pt2", lambda parts: parts.update({"MODELS/model.json": parts["models/model.json"]}))
    with pytest.raises(UsageError, match="the part"):
        load_source(path)


def test_values_that_the_file_does_not_hold_are_not_made_up(sound: bytes, here: Path) -> None:
    """torch makes zeros of any size for an empty part."""

    def hollow(parts: Parts) -> None:
        name = "data/weights/model_weights_config.json"
        config = json.loads(parts[name])
        entry = next(iter(config["config"].values()))
        entry["tensor_meta"]["sizes"] = [{"as_int": 10**10}]
        parts[f"data/weights/{entry['path_name']}"] = b""
        parts[name] = json.dumps(config).encode()

    with pytest.raises(UsageError, match="damaged"):
        load_source(_rebuilt(sound, here / "net.pt2", hollow))


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "FloorDiv(Symbol('s53', positive=True, integer=True), Integer(2))",
        "Max(1, s0)*Pow(s1, Integer(2)) - 3",
        "(64*L['x'].size()[2]) % (16*(L['x'].size()[2] // 2)) == 0",
        "L['args'][0].stride()[1] != 1 and not math.isnan(L['scale'])",
    ],
)
def test_arithmetic_on_sizes_passes(text: str) -> None:
    check_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        CODE,
        "exec('1')",
        "L.__class__",
        "().__class__.__bases__[0]",
        "L['x'].size().__class__",
        "L['x'].tofile('a')",
        "math.__loader__",
        "[a for a in L]",
        "lambda: 1",
        "f'{L}'",
        "(s0 := 1)",
        "2**10**10",
        "Pow(2, s0)",
        "LShift(1, 10**9)",
        "s999999999999",
        'S("a b")',
        "Symbol('a' 'b\"c')",
        "open('a')",
        "L[\"x'); evil('\"]",
        "(" * 500 + ")" * 500,
        "*L",
        "await L",
        "",
        3,
    ],
)
def test_what_is_no_arithmetic_on_sizes_does_not(text: Any) -> None:
    with pytest.raises(ArtifactError, match="the expression"):
        check_expression(text)


def test_names_chosen_by_the_file_hide_no_text_from_the_check() -> None:
    """A tensor may be called metadata, or expr_str."""
    for name in ("metadata", "as_string", "expr_str"):
        check_program({"tensor_values": {name: {"sizes": [{"as_int": 3}]}}})
        with pytest.raises(ArtifactError):
            check_program({"tensor_values": {name: {"sizes": [{"as_expr": {"expr_str": CODE}}]}}})


def test_machine_code_of_aotinductor_is_named_as_such(here: Path) -> None:
    with zipfile.ZipFile(here / "net.pt2", "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/data/aotinductor/model/net.wrapper.so", "")
    for trusted in (False, True):
        with pytest.raises(UsageError, match="is machine code of AOTInductor, which has no layers"):
            load_source("net.pt2", trust_pickle=trusted)
