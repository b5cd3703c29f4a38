"""The allow-list: which functions, operators, methods, attributes and module classes a file may name.

Names are looked up in tables made here from libraries that graphprune depends on; nothing is imported and no attribute is
followed because a file says so. A new torch brings its new operators along by the rules below, which let in what
computes on tensors and keep out what touches files, memory, processes or code.
"""

from __future__ import annotations

import builtins
import importlib
import math
import operator
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import BuiltinFunctionType, FunctionType
from typing import Any, NoReturn

import torch
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket
from torchvision import ops

from graphprune.artifact.records import find_record, is_record, record_name
from graphprune.artifact.values import shorten
from graphprune.errors import ArtifactError
from graphprune.ir.handed import handed_over
from graphprune.ir.train_mode import add_in_train_mode

Table = Mapping[str, Callable[..., Any]]


def words(text: str) -> frozenset[str]:
    """A set of names, from text that holds them with spaces between."""
    return frozenset(text.split())


ATTRIBUTES = words(
    "shape dtype device layout ndim itemsize nbytes T mT H mH real imag data requires_grad is_cuda is_cpu is_meta is_sparse "
    "is_quantized is_nested values indices"
)
"""What ``getattr`` may read from a value."""

_DENIED = words(
    "numpy tofile register_hook register_post_accumulate_grad_hook apply_ map_ map2_ share_memory_ is_shared pin_memory "
    "data_ptr const_data_ptr storage untyped_storage storage_type storage_offset set_ resize resize_ resize_as resize_as_ "
    "resize_as_sparse_ sparse_resize_ sparse_resize_and_clear_ backward retain_grad record_stream module_load as_subclass new "
    "reinforce rename rename_ refine_names from_file save load"
)
"""Methods and operators that reach files, raw memory, hooks or Python code, whatever else lets them in."""

_OPERATORS = words(
    "abs add and_ contains eq floordiv ge getitem gt index inv invert is_ is_not le lshift lt matmul mod mul ne neg not_ or_ "
    "pos pow rshift setitem sub truediv truth xor iadd iand ifloordiv ilshift imatmul imod imul ior ipow irshift isub itruediv ixor"
)
_BUILTINS = words("getattr len int float bool complex abs min max sum round pow divmod tuple list range slice all any")
_TORCH_EXTRAS = words(
    "_assert _assert_async sym_int sym_float sym_max sym_min sym_not sym_sqrt sym_ite is_tensor _weight_norm _pack_padded_sequence "
    "_pad_packed_sequence"
)
_ATEN_PRIVATE = words(
    "_unsafe_view _to_copy _softmax _log_softmax _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async _assert_scalar _assert_tensor_metadata _conj _reshape_alias"
)
_TORCHVISION_MODELS: Mapping[str, str] = {
    "torchvision.models.swin_transformer": "_patch_merging_pad _get_relative_position_bias shifted_window_attention",
    "torchvision.models.video.swin_transformer": (
        "_get_window_and_shift_size _get_relative_position_bias _compute_pad_size_3d _compute_attention_mask_3d "
        "shifted_window_attention_3d"
    ),
    "torchvision.models.video.mvit": "_unsqueeze _squeeze _add_rel_pos _add_shortcut",
}
"""Functions of torchvision's models that torchvision itself keeps whole when it is traced (``torch.fx.wrap``)."""

_NAMESPACES: Mapping[str, str] = {
    "aten": "torch",
    "torchvision": "torchvision",
    "graphprune": "graphprune.kernels",
    "transformers": "transformers.integrations.moe",
}
"""Operator namespaces, and the library whose import registers each."""

_OVERLOAD = re.compile(r"([a-z]+)::([A-Za-z_][A-Za-z0-9_]*)(?:\.([A-Za-z_][A-Za-z0-9_]*))?", re.ASCII)


def _torch() -> Table:
    """Public functions of ``torch`` that are ATen operators, and its Python compositions of them."""
    public = {name: value for name, value in vars(torch).items() if not name.startswith("_") and name not in _DENIED}
    builtin = {name: value for name, value in public.items() if isinstance(value, BuiltinFunctionType)}
    table = {name: value for name, value in builtin.items() if hasattr(torch.ops.aten, name)}
    table |= {name: public[name] for name in torch.functional.__all__ if name in public}
    return table | {name: vars(torch)[name] for name in _TORCH_EXTRAS if name in vars(torch)}


def _torch_module(home: str) -> Table:
    """Functions of ``torch.fft`` and its like that are ATen operators."""
    return {name: value for name, value in vars(_library(home)).items() if name[0] != "_" and _is_aten(value)}


def _is_aten(value: Any) -> bool:
    return isinstance(value, BuiltinFunctionType) and value.__name__ not in _DENIED and hasattr(torch.ops.aten, value.__name__)


def _functional() -> Table:
    names = {name: value for name, value in vars(nn.functional).items() if not name.startswith("_")}
    homes = ("torch", "torch._C._nn", "torch.nn.functional")
    return {
        name: value
        for name, value in names.items()
        if isinstance(value, (FunctionType, BuiltinFunctionType)) and getattr(value, "__module__", None) in homes
    }


def _torchvision_ops() -> Table:
    ops = _library("torchvision.ops")
    return {name: vars(ops)[name] for name in ops.__all__ if isinstance(vars(ops)[name], FunctionType)}


def _library(name: str) -> Any:
    """Import a library named in this file (never in an artifact)."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ArtifactError(f"it needs {name}, which cannot be imported here") from error


def _picked(module: str, names: str) -> Table:
    home = vars(_library(module))
    return {name: home[name] for name in names.split() if name in home}


_TABLES: Mapping[str, Callable[[], Table]] = {
    "torch": _torch,
    "torch.nn.functional": _functional,
    **{home: partial(_torch_module, home) for home in ("torch.fft", "torch.linalg", "torch.special")},
    "torch._C._nn": partial(_torch_module, "torch._C._nn"),
    "operator": lambda: {name: vars(operator)[name] for name in _OPERATORS},
    "builtins": lambda: {name: vars(builtins)[name] for name in _BUILTINS},
    "math": lambda: {name: value for name, value in vars(math).items() if isinstance(value, BuiltinFunctionType)},
    "torchvision.ops": _torchvision_ops,
    "graphprune.ir.train_mode": lambda: {"add_in_train_mode": add_in_train_mode},
    "graphprune.ir.handed": lambda: {"handed_over": handed_over},
    **{module: partial(_picked, module, names) for module, names in _TORCHVISION_MODELS.items()},
}


@cache
def _table(home: str) -> Table:
    return _TABLES[home]()


@cache
def _names(homes: tuple[str, ...]) -> Mapping[Any, str]:
    """Function -> name; where a function has several, the first table's."""
    return {value: f"{home}.{name}" for home in reversed(homes) for name, value in _table(home).items()}


def function_name(target: Any) -> str:
    """The name under which a function or operator is written. Raises ArtifactError when the allow-list does not have it."""
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        name = _operator_name(target)
        return name if _find_operator(name) is target else _refuse(name)
    if is_record(target):
        return record_name(target)
    loaded = tuple(home for home in _TABLES if home in sys.modules)
    own = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', type(target).__name__)}"
    return _names(loaded).get(target) or _refuse(own)


def _operator_name(target: OpOverload | OpOverloadPacket) -> str:
    if isinstance(target, OpOverload):
        return f"{_operator_name(target.overloadpacket)}.{target._overloadname}"
    return str(target._qualified_op_name)


def find_function(name: Any) -> Callable[..., Any]:
    """The function or operator of a name. Raises ArtifactError when the allow-list does not have it."""
    if type(name) is not str:
        _refuse(name)
    if name.startswith("record:"):
        return find_record(name)
    if "::" in name:
        return _find_operator(name)
    home, _, short = name.rpartition(".")
    if home not in _TABLES or short not in _table(home):
        _refuse(name)
    return _table(home)[short]


def _refuse(name: Any) -> NoReturn:
    raise ArtifactError(f"the function {shorten(name)} is not among those that an artifact may call")


def _find_operator(name: str) -> OpOverload | OpOverloadPacket:
    match = _OVERLOAD.fullmatch(name)
    if match is None or match[1] not in _NAMESPACES or not _operator_allowed(match[1], match[2]):
        _refuse(name)
    _library(_NAMESPACES[match[1]])
    packet = getattr(getattr(torch.ops, match[1]), match[2], None)
    if not isinstance(packet, OpOverloadPacket):
        _refuse(name)
    overloads: dict[str, OpOverload] = {each: getattr(packet, each) for each in packet.overloads()}
    if match[3] not in {None, *overloads} or not any(map(_on_tensors, overloads.values())):
        _refuse(name)
    return packet if match[3] is None else overloads[match[3]]


_EXPORTED = re.compile(r"torch\.ops\.([a-z_]+)\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)
_EXPORTED_SCALARS = words("sym_constrain_range sym_constrain_range_for_size _assert_scalar")
_EXPORTED_BLOCKS = words("wrap_with_set_grad_enabled wrap_with_autocast cond while_loop map_impl scan associative_scan")
_EXPORTED_FUNCTIONS: Mapping[str, frozenset[str]] = {
    "_operator": _OPERATORS,
    "math": frozenset(name for name, value in vars(math).items() if isinstance(value, BuiltinFunctionType)),
    "torch": words("sym_int sym_float sym_max sym_min sym_not sym_ite sym_sum _sym_sqrt"),
}


def in_programs(text: str) -> bool:
    """Whether an exported program may call what it names like this (``torch.ops.aten.add.Tensor``, ``_operator.mul``).

    Private ATen operators are allowed here, since torch.export decomposes into some of them.
    """
    match = _EXPORTED.fullmatch(text)
    if match is None:
        home, _, name = text.rpartition(".")
        return name in _EXPORTED_FUNCTIONS.get(home, ()) or (home == "torch.ops.higher_order" and name in _EXPORTED_BLOCKS)
    space, name, overload = match.groups()
    if space not in _NAMESPACES or name in _DENIED or name.startswith("__"):
        return False
    _library(_NAMESPACES[space])
    packet = getattr(getattr(torch.ops, space), name, None)
    if not isinstance(packet, OpOverloadPacket) or overload not in packet.overloads():
        return False
    return name in _EXPORTED_SCALARS or any(_on_tensors(getattr(packet, each)) for each in packet.overloads())


def _operator_allowed(namespace: str, name: str) -> bool:
    return name not in _DENIED and (not name.startswith("_") or (namespace == "aten" and name in _ATEN_PRIVATE))


def _on_tensors(overload: OpOverload) -> bool:
    schema = overload._schema
    return any("Tensor" in str(item.type) for item in (*schema.arguments, *schema.returns))


@cache
def methods() -> frozenset[str]:
    """Names of the tensor methods that a graph may call."""
    public = [name for name in dir(torch.Tensor) if not name.startswith("_") and name not in _DENIED]
    return frozenset(name for name in public if callable(getattr(torch.Tensor, name)))


@cache
def modules() -> Mapping[str, type[nn.Module]]:
    """The module classes that an artifact may hold, by their name in ``torch.nn`` (a few are torchvision's)."""
    table: dict[str, type[nn.Module]] = {
        name: value
        for name, value in vars(nn).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__.startswith("torch.nn.modules.")
    }
    for kind in (ops.StochasticDepth, ops.DropBlock2d, ops.DropBlock3d):  # no tensors in them, and a mode to follow
        table[kind.__name__] = kind
    table["NonDynamicallyQuantizableLinear"] = nn.modules.linear.NonDynamicallyQuantizableLinear  # inside MultiheadAttention
    return {name: value for name, value in table.items() if not name.startswith("Lazy") and value.__name__ == name}
