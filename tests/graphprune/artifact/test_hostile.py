"""Damaged and hostile files give one ArtifactError that names the file, run nothing and write nothing.

The hostile files carry a valid checksum: whoever makes one computes it too.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from graphprune.artifact import read_artifact, write_artifact
from graphprune.artifact.file import digest
from graphprune.errors import ArtifactError
from graphprune.ir.program import Inputs
from graphprune.tracing import capture

SENTINEL = "graphprune_sentinel"
CODE = f"__import__('os').system('touch {SENTINEL}')"
Parts = dict[str, Any]
X = {"node": "x"}


class Net(nn.Module):
    """Has a node of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.body(x)) * self.scale
        return y.reshape(x.shape[0], -1)


@pytest.fixture(autouse=True)
def _clean_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    x = torch.zeros(2, 4)
    write_artifact(path, capture(Net().eval(), x).module, plan="{}", inputs=Inputs((x,)), provenance={"source": "test"})
    return path


def refused(path: Path, match: str = "") -> None:
    """The file gives one sentence with its name and a remedy; the folder is as it was."""
    before = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    with pytest.raises(ArtifactError, match=rf"(?s){match}") as caught:
        read_artifact(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.endswith(".") and ";" in message, message
    assert "\n" not in message and len(message) < 700, message
    assert not Path(SENTINEL).exists()
    assert {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()} == before


def tamper(path: Path, change: Callable[[Parts, dict[str, torch.Tensor]], Any]) -> None:
    """Change the JSON parts and tensors of an artifact and seal it again."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as handle:
        metadata = dict(handle.metadata())
    names = ("graph", "modules", "tensors", "inputs", "provenance")
    parts: Parts = {name: json.loads(metadata[name]) for name in names}
    change(parts, tensors)
    metadata |= {name: json.dumps(value) for name, value in parts.items() if name in names}
    metadata |= parts.get("metadata", {})
    metadata["digest"] = digest(metadata, tensors)
    save_file(tensors, path, metadata)


def node(parts: Parts, op: str) -> dict[str, Any]:
    return next(item for item in parts["graph"] if item["op"] == op)


def module(parts: Parts, path: str) -> dict[str, Any]:
    return next(item for item in parts["modules"] if item["path"] == path)


RECURRENT = {"class": "LSTM", "attributes": {"_flat_weights_names": ["forward"], "_all_weights": [["weight"]]}}


def in_node(op: str, /, **changes: Any) -> Callable[[Parts, Any], Any]:
    return lambda parts, _: node(parts, op).update(changes)


def in_module(path: str, /, **changes: Any) -> Callable[[Parts, Any], Any]:
    return lambda parts, _: module(parts, path).update(changes)


def call(target: str, /, *args: Any, **kwargs: Any) -> Callable[[Parts, Any], Any]:
    return in_node("call_function", target=target, args=list(args), kwargs=kwargs)


def attribute(name: str, value: Any) -> Callable[[Parts, Any], Any]:
    return lambda parts, _: module(parts, "body.0")["attributes"].update({name: value})


def entry(**changes: Any) -> Callable[[Parts, Any], Any]:
    return lambda parts, _: parts["tensors"]["scale"].update(changes)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"tuple": [value]}
    return value


def child(path: str) -> Callable[[Parts, Any], Any]:
    return lambda parts, _: parts["modules"].append({**module(parts, "body.1"), "path": path})


def default_from_node(parts: Parts, _: Any) -> None:
    parts["graph"].insert(1, {**parts["graph"][0], "name": "z", "target": "z", "args": [X]})


def example(*shapes: list[int]) -> Callable[[Parts, Any], Any]:
    args = [{"tensor": {"shape": shape, "dtype": {"dtype": "float32"}}} for shape in shapes]
    return lambda parts, _: parts["inputs"].update(args=args)


def integers(items: Any, *, dtype: str = "int8") -> Callable[[Parts, Any], Any]:
    args = [{"tensor": {"shape": [2], "dtype": {"dtype": dtype}, "integers": items}}]
    return lambda parts, _: parts["inputs"].update(args=args)


def cycle(parts: Parts, _: Any) -> None:
    """x.y is the root's body, and body.z is x."""
    blank = {"class": "Module", "training": True, "attributes": {}, "parameters": {}, "buffers": {}}
    parts["modules"] += [{"path": "x", **blank}, {"path": "x.y", "same_as": "body"}, {"path": "body.z", "same_as": "x"}]


def forward_reference(parts: Parts, _: Any) -> None:
    node(parts, "call_module")["args"] = [{"node": parts["graph"][-2]["name"]}]


HOSTILE: dict[str, tuple[Callable[[Parts, dict[str, torch.Tensor]], Any], str]] = {
    "os.system": (call("os.system", f"touch {SENTINEL}"), "os.system"),
    "posix.system": (call("posix.system", f"touch {SENTINEL}"), "posix.system"),
    "builtins.eval": (call("builtins.eval", CODE), "builtins.eval"),
    "builtins.__import__": (call("builtins.__import__", "os"), "__import__"),
    "operator.attrgetter": (call("operator.attrgetter", "__class__"), "attrgetter"),
    "operator.methodcaller": (call("operator.methodcaller", "tofile", SENTINEL), "methodcaller"),
    "torch.load": (call("torch.load", "x.pt"), "torch.load"),
    "torch.save": (call("torch.save", X, SENTINEL), "torch.save"),
    "torch.from_file": (call("torch.from_file", "/etc/passwd", False, 8), "from_file"),
    "torch.hub.load": (call("torch.hub.load", "a/b", "c"), "hub.load"),
    "torch.ops.load_library": (call("torch.ops.load_library", "evil.so"), "load_library"),
    "aten from_file": (call("aten::from_file", "/etc/passwd"), "from_file"),
    "aten set_": (call("aten::set_.source_Tensor", X, X), "set_"),
    "other namespace": (call("image::read_file", "/etc/passwd"), "read_file"),
    "overload dunder": (call("aten::add.__class__", X), "__class__"),
    "nested module path": (call("torch.nn.functional.torch.load", "x.pt"), "torch.load"),
    "getattr dunder": (call("builtins.getattr", X, "__class__"), "__class__"),
    "getattr grad_fn": (call("builtins.getattr", X, "grad_fn"), "grad_fn"),
    "getattr with code": (call("builtins.getattr", X, f"shape,{CODE}"), "not allowed"),
    "getattr of a constant": (call("builtins.getattr", "text", "shape"), "not allowed"),
    "getattr name from a node": (call("builtins.getattr", X, X), "not allowed"),
    "getattr with a default": (call("builtins.getattr", X, "shape", None), "not allowed"),
    "tofile": (in_node("call_method", target="tofile", args=[X, SENTINEL]), "tofile"),
    "dunder method": (in_node("call_method", target="__reduce__"), "__reduce__"),
    "method with code": (in_node("call_method", target=f"reshape({CODE})"), "method"),
    "method of a constant": (in_node("call_method", args=["text", 1]), "on a tensor"),
    "node name with code": (in_node("call_module", name=f"a; {CODE}; b"), "not a plain identifier"),
    "node name with newline": (in_node("call_module", name="a\n"), "not a plain identifier"),
    "node name keyword": (in_node("call_module", name="lambda"), "not a plain identifier"),
    "node name twice": (in_node("call_module", name="x"), "twice"),
    "unicode node name": (in_node("call_module", name="\uff41"), "not a plain identifier"),
    "argument with code": (in_node("placeholder", target=f"x={CODE}"), "not a plain identifier"),
    "argument self": (in_node("placeholder", target="self"), "malformed"),
    "keyword with code": (call("torch.relu", X, **{f"a={CODE}, b": 1}), "not a plain identifier"),
    "default from a node": (default_from_node, "malformed"),
    "path with code": (in_node("get_attr", target=f"scale, {CODE}"), "no parameter"),
    "path to a class": (in_node("get_attr", target="body.__class__"), "no parameter"),
    "missing module": (in_node("call_module", target="body.7"), "does not exist"),
    "root called": (in_node("call_module", target=""), "does not exist"),
    "unknown operation": (in_node("call_module", op="exec"), "unknown operation"),
    "forward reference": (forward_reference, "does not come before"),
    "self reference": (in_node("get_attr", name="s", args=[{"node": "s"}]), "does not come before"),
    "two outputs": (lambda parts, _: parts["graph"].append(parts["graph"][-1]), "one output"),
    "no output": (lambda parts, _: parts["graph"].pop(), "one output"),
    "empty graph": (lambda parts, _: parts["graph"].clear(), "one output"),
    "graph of another type": (lambda parts, _: parts.update(graph="abc"), "list of nodes"),
    "node of another type": (lambda parts, _: parts["graph"].insert(0, 3), "not a JSON dict"),
    "unknown tag": (call("torch.relu", {"object": "os"}), "unknown form"),
    "two tags": (call("torch.relu", {"node": "x", "tuple": []}), "unknown form"),
    "function as argument": (call("torch.relu", {"function": "torch.relu"}), "unknown form"),
    "device with code": (call("torch.relu", {"device": f"cpu'){CODE}"}), "not a device"),
    "dtype with code": (call("torch.relu", {"dtype": CODE}), "not a torch.dtype"),
    "float with code": (call("torch.relu", {"float": CODE}), "not inf"),
    "reserved text": (call("torch.relu", X, "# COUNTER: 1"), "reserved"),
    "nested value": (call("torch.relu", nested(100)), "nested"),
    "too deep for JSON": (lambda parts, _: parts.update(metadata={"graph": "[" * 100_000}), "not JSON"),
    "huge number": (lambda parts, _: parts.update(metadata={"graph": "[" + "9" * 10_000 + "]"}), "not JSON"),
    "no number": (lambda parts, _: parts.update(metadata={"graph": "[NaN]"}), "not JSON"),
    "too few operands": (call("operator.add"), "does not compile"),
    "assignment to a constant": (call("operator.iadd", 1, 2), "does not compile"),
    "class outside the list": (in_module("body.0", **{"class": "DataParallel"}), "DataParallel"),
    "class by path": (in_module("body.0", **{"class": "torch.nn.Linear"}), "class"),
    "root class with code": (in_module("", **{"class": f"A:\n {CODE}"}), "not a plain identifier"),
    "attribute forward": (attribute("forward", 1), "would hide"),
    "attribute __class__": (attribute("__class__", 1), "would hide"),
    "attribute _forward_hooks": (attribute("_forward_hooks", {"dict": [[1, 2]]}), "would hide"),
    "attribute _compiled_call_impl": (attribute("_compiled_call_impl", {"function": "torch.relu"}), "would hide"),
    "attribute over a parameter": (lambda parts, _: module(parts, "body.0")["attributes"].update(weight=1), "twice"),
    "attribute with code": (attribute(f"a; {CODE}", 1), "not a plain identifier"),
    "attribute bad function": (attribute("act", {"function": "os.system"}), "os.system"),
    "attributes on the root": (in_module("", attributes={"a": 1}), "root has attributes"),
    "child hides a method": (child("body.forward"), "would hide"),
    "child with code": (child(f"body.{CODE}"), "no parent|identifier"),
    "child with a quote": (child('body.2"'), "identifier"),
    "child without parent": (child("gone.a"), "no parent"),
    "module cycle": (cycle, "no parent"),
    "module inside itself": (lambda parts, _: parts["modules"].append({"path": "body.9", "same_as": "body"}), "to be the same as"),
    "module that is the root": (lambda parts, _: parts["modules"].append({"path": "z", "same_as": ""}), "to be the same as"),
    "no modules": (lambda parts, _: parts["modules"].clear(), "root"),
    "recurrent weights": (in_module("body.1", **RECURRENT), "recurrent"),
    "recurrent weights of another type": (
        in_module("body.1", **{"class": "GRU", "attributes": {"_all_weights": 1}}),
        "list of weights",
    ),
    "range without steps": (call("torch.relu", X, {"range": [0, 1, 0]}), "steps of zero"),
    "missing tensor": (lambda parts, tensors: tensors.pop("scale"), "scale"),
    "extra tensor": (lambda parts, tensors: tensors.update(more=torch.ones(1)), "more"),
    "tensor of no module": (lambda parts, _: module(parts, "")["parameters"].clear(), "belongs to no module"),
    "wrong shape": (entry(shape=[2, 2]), "its table says"),
    "absurd shape": (entry(shape=[2**62, 2**62]), "its table says"),
    "wrong dtype": (entry(dtype={"dtype": "float64"}), "its table says"),
    "absurd stride": (entry(stride=[2**50]), "strides"),
    "overlapping stride": (entry(stride=[0]), "strides"),
    "parameter that is none": (entry(parameter=False), "is none"),
    "inputs that are absurd together": (example([2**30, 2], [2**30, 2]), "impossible"),
    "absurd input": (example([2**31] * 3), "impossible"),
    "negative input": (example([-1]), "impossible"),
    "fewer integers than elements": (integers([1]), "other contents"),
    "integers that are none": (integers([1, 0.5]), "other contents"),
    "integers that are no list": (integers({"range": [0, 2, 1]}), "integers"),
    "integers of a fractional input": (integers([1, 2], dtype="float32"), "other contents"),
    "integers that do not fit": (integers([1, 2**40]), "impossible integer"),
    "plan is not JSON": (lambda parts, _: parts.update(metadata={"plan": "{"}), "'plan' is not JSON"),
    "provenance is not text": (lambda parts, _: parts.update(provenance={"a": 1}), "provenance"),
    "wrong version": (lambda parts, _: parts.update(metadata={"graphprune": "99"}), "version '99'"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_and_nothing_runs(name: str, sound: Path) -> None:
    change, message = HOSTILE[name]
    tamper(sound, change)
    refused(sound, message)


def test_an_untouched_file_survives_the_tampering_helper(sound: Path) -> None:
    """The negative twin of all cases above: sealing again without a change loads."""
    tamper(sound, lambda parts, tensors: None)
    assert read_artifact(sound).module(torch.zeros(2, 4)).shape == (2, 4)


def test_truncated_file_is_refused_at_every_length(sound: Path) -> None:
    whole = sound.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(whole) - 1):
        sound.write_bytes(whole[:length])
        refused(sound, "safetensors|checksum")


def test_every_flipped_byte_is_noticed(sound: Path) -> None:
    """Bytes over the whole file, the length field, the header and the tensors: each damage is refused, whatever it hits."""
    whole = sound.read_bytes()
    for place in [*range(8), *range(8, len(whole), 97), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x04
        if damaged[place : place + 1].isspace() and whole[place : place + 1].isspace():
            continue  # white space between JSON tokens says nothing
        sound.write_bytes(damaged)
        refused(sound)


def test_files_of_other_kinds_are_told_apart(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {SENTINEL}",)

    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    refused(path, "is a pickle")
    torch.save(Bomb(), path)
    refused(path, "a zip file")
    save_file({"a": torch.zeros(2)}, path)
    refused(path, "not a graphprune artifact; if it holds weights")
    save_file({"a": torch.zeros(2)}, path, {"graphprune": "1"})
    refused(path, "checksum")
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}" * 50)
    refused(path, "safetensors")
    path.write_text("hello")
    refused(path, "safetensors")
    refused(tmp_path / "gone.safetensors", "is not a file")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "is not a file")


def test_a_renamed_artifact_loads(sound: Path) -> None:
    sound.rename(sound.with_name("model.bin"))
    assert read_artifact(sound.with_name("model.bin")).plan == "{}"
