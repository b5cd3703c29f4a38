"""Mutators of formats that hold tensors and graphs: files that are sound to the last byte, and lie."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from random import Random
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch

from graphprune.artifact.file import digest
from tests.hostile.mutate import join_safetensors, mutate_tree, split_safetensors, text_of
from tests.hostile.payloads import NAMES

_PARTS: Final = ("graph", "modules", "tensors", "inputs", "provenance", "plan")


def _hostile_node(graph: Any, random: Random) -> None:
    """A node that refers to itself or to later ones, calls what it should not, or holds what is absurd."""
    node = random.choice(graph)
    later = {"node": random.choice(graph)["name"]}
    name = random.choice(NAMES)
    values = (
        {"node": node["name"]},
        later,
        {"size": [10**12] * 3},
        {"range": [0, 10**18, 1]},
        {"dtype": name},
        {"device": name},
        name,
    )
    node.update(
        random.choice(
            (
                {"op": "call_function", "target": name, "args": ["touch x"]},
                {"op": "call_method", "target": name, "args": [later]},
                {"op": "call_module", "target": name},
                {"op": "get_attr", "target": name, "args": [], "kwargs": {}},
                {"args": [random.choice(values)]},
                {"args": [random.choice(values), random.choice(values)]},
                {"name": name},
                {"kwargs": {name: 1}},
                {"op": name},
            )
        )
    )  # fmt: skip


def _attributes(tree: Any, random: Random) -> Any:
    """Attributes that a model has and a file must not set, or that no model of this size has."""
    values: Any = (0, -1, 1, 10**18, [0], [1, 10**9], [], [[1]], True, "x", None)
    for _ in range(random.choice((1, 2))):
        path = random.choice(("", "up", "down", "none.such", *NAMES))
        name = random.choice(("heads", "training", "in_features", "_modules", "forward", "__dict__", "__class__", *NAMES))
        tree.setdefault(path, {})[name] = random.choice(values)
    return tree


def artifact_changed(data: bytes, random: Random) -> bytes:
    """A part of the graph, the modules or the tables changed; the file is sealed again, as anybody can compute its digest."""
    header, body = split_safetensors(data)
    metadata = header["__metadata__"]
    part = random.choice(("graph", "graph", *_PARTS))
    tree = json.loads(metadata[part])
    if part == "graph" and random.random() < 0.5:
        _hostile_node(tree, random)
    elif part == "inputs" and random.random() < 0.3:
        tree["args"] = [{"tensor": {"shape": [2**30], "dtype": {"dtype": "float64"}}}] * random.choice((1, 4))
    elif part == "provenance" and random.random() < 0.5:
        tree[random.choice(("source", "scopes", "eval_only", "attributes"))] = random.choice((*NAMES, "[]", '[{"path": "a"}]'))
    elif part == "provenance" and "attributes" in tree:
        tree["attributes"] = text_of(random.choice((_attributes, mutate_tree))(json.loads(tree["attributes"]), random))
    else:
        tree = mutate_tree(tree, random)
    metadata[part] = text_of(tree)
    metadata["digest"] = digest(metadata, safetensors.torch.load(data))
    return join_safetensors(header, body)


# -- state dicts -----------------------------------------------------------------------------------------------------------------


def _around(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = {"state_dict": value}
    return value


def _circle() -> Any:
    circle: dict[str, Any] = {}
    circle["state_dict"] = circle
    return circle


def _tensors(shape: torch.Size, random: Random) -> Any:
    """Something in the place of a tensor of this shape."""
    return random.choice(
        (
            lambda: torch.zeros(1).expand(10**12),
            lambda: torch.zeros(()).expand(shape),
            lambda: torch.zeros(shape).to_sparse(),
            lambda: torch.zeros(shape, dtype=torch.complex64),
            lambda: torch.zeros(shape, dtype=torch.int8),
            lambda: torch.zeros(shape, dtype=torch.bool),
            lambda: torch.zeros(shape, dtype=torch.float8_e4m3fn),
            lambda: torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8),
            lambda: torch.zeros(shape, device="meta"),
            lambda: torch.full(shape, float("nan")),
            lambda: torch.zeros(*shape, 2),
            lambda: torch.nn.Parameter(torch.ones(shape)),
            lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
            lambda: [1, 2],
            lambda: None,
            lambda: "text",
            lambda: 3,
        )
    )()  # fmt: skip


def weights_changed(data: bytes, random: Random) -> bytes:
    """A checkpoint of torch with other tensors, names or wrapping."""
    state: dict[Any, Any] = dict(torch.load(io.BytesIO(data), weights_only=True))
    name = random.choice(list(state))
    action = random.randrange(8)
    if action <= 3:
        state[name] = _tensors(state[name].shape, random)
    elif action == 4:
        state[random.choice((5, None, "", (1, 2), "a" * 10_000, f"module.{name}", "more"))] = state.pop(name)
    elif action == 5:
        del state[name]
    content = random.choice(
        (state, state, state, _around(state, random.choice((1, 3, 200))), [state], {"epoch": 1, "model": state})
    )
    stream = io.BytesIO()
    torch.save(content if action != 7 else _circle(), stream, _use_new_zipfile_serialization=random.random() < 0.7)
    return stream.getvalue()


def snapshot_changed(data: bytes, random: Random) -> bytes:
    """A snapshot of a run with other weights or parts."""
    content: dict[Any, Any] = dict(torch.load(io.BytesIO(data), weights_only=True))
    part = random.choice(list(content))
    if random.random() < 0.7:
        name = random.choice(list(content["weights"]))
        content["weights"][name] = _tensors(content["weights"][name].shape, random)
    else:
        content[part] = random.choice((None, 3, "text", [], {}, {5: 1}, {"state": {}, "param_groups": []}, content))
    if random.random() < 0.1:
        del content[part]
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


# -- arrays ----------------------------------------------------------------------------------------------------------------------


def _npy(header: str, body: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body


def _member(random: Random) -> bytes:
    """One array, or what says that it is one."""
    shape = random.choice(
        ("(1000000000000,)", "(8, 1, 8, 8)", "(-1,)", "(8,", "()", f"({'1,' * 200})", "(2305843009213693952, 8)", "(8,)")
    )
    dtype = random.choice(("|O", "<f4", "|u1", ">i8", "<c16", "|V0", "[('a', '<f4')]", "<U9", "<M8[s]", "x", "<f2", "|b1", "<i2"))
    fortran = random.choice(("True", "False", "__import__('os').system('touch graphprune_canary')"))
    quoted = dtype if dtype.startswith("[") else repr(dtype)
    return _npy(
        f"{{'descr': {quoted}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n", random.randbytes(random.choice((0, 64, 2048)))
    )


def arrays_changed(data: bytes, random: Random) -> bytes:
    """An npz file with other arrays in it."""
    with np.load(io.BytesIO(data)) as found:
        arrays = dict(found)
    name = random.choice(list(arrays))
    whole = arrays[name]
    others: list[Any] = [
        whole.astype(object), whole[:0], whole[:1], whole.T, whole.astype("S4"), whole.astype(bool), whole.astype(">f8"),
        whole * -1 - 5,
        np.asfortranarray(whole), np.full(whole.shape, np.nan), np.array("text"), whole.astype("U9"), whole.astype(np.float16),
        np.zeros(()),
        whole + 10**9, np.broadcast_to(whole.reshape(-1)[:1], (8, 10**4)),
    ]  # fmt: skip
    stream = io.BytesIO()
    arrays[name] = random.choice(others)
    (np.savez if random.random() < 0.7 else np.savez_compressed)(stream, allow_pickle=True, **arrays)
    if random.random() < 0.5:
        return stream.getvalue()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in arrays:
            archive.writestr(f"{each}.npy", _member(random))
    return made.getvalue()
