"""What the description of an exported program may say before torch reads it.

``torch.export.load`` evaluates texts of the file as Python: the expressions of sizes by sympy, the checks of inputs by ``exec``. It
looks up functions by any path below ``torch``, imports modules that the structure of the inputs names, and fx writes names into
the source that it compiles. So every text of the description is checked here, by the key under which torch reads it:
expressions against a small grammar, functions against a list, names as names. A key that is not known holds a plain name.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from graphprune.artifact.targets import in_programs, words
from graphprune.artifact.values import shorten
from graphprune.errors import ArtifactError

_LONGEST: Final = 100_000
_PLAIN: Final = re.compile(r"[\w.+-]{0,1000}", re.ASCII)
_IDENTIFIER: Final = re.compile(r"(?:[A-Za-z_]\w{0,1000})?", re.ASCII)
"""Names of nodes and arguments; of inputs without a name it is empty. Python refuses keywords, which some operators take."""

_SYMBOL: Final = re.compile(r"[A-Za-z_]{0,40}[0-9]{0,6}", re.ASCII)
"""Names of sizes. torch counts up to the number in one, so it must not be large."""

_NAMED: Final = words(
    "tensor_values sym_int_values sym_bool_values sym_float_values custom_obj_values opset_version "
    "treespec_namedtuple_fields as_string_to_argument config"
)
"""Keys whose values are tables by name."""


def check_program(program: Any) -> None:
    """Check the JSON of an exported program. Raises ArtifactError naming the first thing that it may not hold."""
    _walk(program)


def check_text(text: Any) -> None:
    """Check that a text is a plain name, with dots or without. Raises ArtifactError."""
    if type(text) is not str or not _PLAIN.fullmatch(text):
        raise ArtifactError(f"the name {shorten(text)}")


def _walk(value: Any) -> None:
    """Every text below a value, wherever it is: what torch does not read does no harm, and is checked as well."""
    if type(value) is dict:
        for key, item in value.items():
            check_text(key)
            _CHECKS.get(key, _walk)(item)
    elif type(value) is list:
        _each(_walk, value)
    elif type(value) is str:
        check_text(value)


def _each(check: Callable[[Any], None], values: Iterable[Any]) -> None:
    for value in values:
        check(value)


def _texts(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """A check of one text, for a text or a list of them."""
    return lambda value: _each(check, value if type(value) is list else () if value is None else (value,))


def _walk_named(table: Any) -> None:
    for name, item in _dict(table).items():
        check_text(name)
        _walk(item)


def _symbols(table: Any) -> None:
    for name, item in _dict(table).items():
        if not _SYMBOL.fullmatch(name):
            raise ArtifactError(f"the size {shorten(name)}")
        _walk(item)


def _dict(value: Any) -> Mapping[str, Any]:
    if type(value) is not dict:
        raise ArtifactError(f"the table {shorten(value)}")
    return value


def _inert(value: Any) -> None:
    """Texts that nothing evaluates: stack traces and the like, and constants, which fx writes as literals."""
    for text in value.values() if type(value) is dict else value if type(value) is list else (value,):
        if type(text) is not str:
            raise ArtifactError(f"the text {shorten(text)}")


def _function(text: Any) -> None:
    if type(text) is not str or not in_programs(text):
        raise ArtifactError(f"the function {shorten(text)}")


def _name(text: Any) -> None:
    if type(text) is not str or not _IDENTIFIER.fullmatch(text):
        raise ArtifactError(f"the name {shorten(text)}")


def _structure(text: Any) -> None:
    """A pytree as text: no type that imports what its context names, and no enum, which is imported too."""
    pending = json.loads(text)[1:] if type(text) is str else [text]
    while pending:
        part = _dict(pending.pop())
        if part.get("type") == "collections.defaultdict" or not isinstance(part.get("context"), (str, type(None))):
            raise ArtifactError(f"the structure {shorten(part.get('type'))}")
        context = json.loads(part.get("context") or "null")
        _walk(context)
        if "__enum__" in json.dumps(context):
            raise ArtifactError(f"the structure {shorten(context)}")
        pending += list(part.get("children_spec") or ())


_CHECKS: Final[Mapping[str, Callable[[Any], None]]] = {
    **dict.fromkeys(_NAMED, _walk_named),
    "range_constraints": _symbols,
    "expr_str": lambda text: check_expression(text),
    "guards_code": _texts(lambda text: check_expression(text)),
    "target": _function,
    "as_operator": _function,
    "in_spec": _structure,
    "out_spec": _structure,
    "as_string": _inert,
    "as_strings": _inert,
    "metadata": _inert,
    "name": _texts(_name),
    "as_name": _texts(_name),
    "forward_arg_names": _texts(_name),
}


# -- expressions ---------------------------------------------------------------------------------------------------------------

_FUNCTIONS: Final = words(
    "Symbol Dummy Integer Float Rational Add Mul Pow Abs Max Min Mod And Or Not Eq Ne Lt Le Gt Ge Equality "
    "Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan Piecewise ExprCondPair Tuple floor ceiling "
    "FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv FloatTrueDiv IntTrueDiv "
    "IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity "
    "PowByNatural FloatPow LShift RShift cast_symbool_to_symint_guardless max min abs int float bool round"
)
_POWERS: Final = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_MEMBERS: Final = words(
    "math.floor math.ceil math.trunc math.sqrt math.isnan math.inf math.nan torch.sym_max torch.sym_min "
    "torch.sym_not torch.sym_float torch.sym_int torch.sym_ite torch.sym_sum"
)
_READ: Final = frozenset({"size", "stride", "storage_offset", "dim", "numel"})
"""Methods of inputs, without arguments."""

_CONSTANTS: Final = frozenset({"true", "false", "oo", "int_oo", "zoo", "nan", "inf", "L"})
_PIECES: Final = (
    ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Subscript, ast.IfExp, ast.Tuple, ast.List, ast.keyword,
    ast.boolop, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context,
)  # fmt: skip
"""Parts of expressions that are fine where all below them is."""

_LARGEST_POWER: Final = 8
_LARGEST_NUMBER: Final = 2**64


def check_expression(text: Any) -> None:
    """Check that a text is arithmetic on sizes, as sympy and torch's guards write it. Raises ArtifactError.

    >>> check_expression("FloorDiv(Symbol('s53', integer=True), Integer(2))")
    >>> check_expression("L['x'].size()[0] % 2 == 0")
    >>> check_expression("__import__('os').system('ls')")
    Traceback (most recent call last):
    ...
    graphprune.errors.ArtifactError: the expression "__import__('os').system('ls')"
    """
    try:
        fine = type(text) is str and len(text) <= _LONGEST and "\n" not in text
        fine = fine and all(map(_allowed, _nodes(ast.parse(text, mode="eval"))))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # of the parser, whose stack is limited
        fine = False
    if not fine:
        raise ArtifactError(f"the expression {shorten(text)}")


def _nodes(tree: ast.AST) -> Iterable[ast.AST]:
    """All parts, but for the names of functions and members, which their calls and attributes are judged by."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            children.remove(node.func)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            children.remove(node.func)
            children += [] if _member(node.func) in _MEMBERS else [node.func.value]
        elif isinstance(node, ast.Attribute):
            children = []
        pending += children


def _allowed(node: ast.AST) -> bool:
    judge = _JUDGES.get(type(node))
    return isinstance(node, _PIECES) if judge is None else judge(node)


def _member(node: ast.Attribute) -> str:
    return f"{node.value.id}.{node.attr}" if isinstance(node.value, ast.Name) else ""


def _call(node: ast.Call) -> bool:
    if isinstance(node.func, ast.Attribute):
        reads = node.func.attr in _READ and not node.args and isinstance(node.func.value, ast.Subscript)
        return (reads or _member(node.func) in _MEMBERS) and not node.keywords
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    return name in _FUNCTIONS and (name not in _POWERS or (len(node.args) == 2 and _power(*node.args)))


def _binary(node: ast.BinOp) -> bool:
    return not isinstance(node.op, (ast.Pow, ast.LShift)) or _power(node.left, node.right)


def _power(base: ast.expr, exponent: ast.expr) -> bool:
    """Whether a power is one of a small number: of a power it could be as large as the memory."""
    if isinstance(exponent, ast.Call) and len(exponent.args) == 1:
        exponent = exponent.args[0]
    if isinstance(exponent, ast.UnaryOp):
        exponent = exponent.operand
    value = exponent.value if isinstance(exponent, ast.Constant) else None
    return isinstance(value, (int, float)) and abs(value) <= _LARGEST_POWER and not any(map(_is_power, ast.walk(base)))


def _is_power(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, (ast.Pow, ast.LShift))
    return isinstance(node, ast.Name) and node.id in _POWERS


def _constant(node: ast.Constant) -> bool:
    if type(node.value) is str:
        return _PLAIN.fullmatch(node.value) is not None
    return node.value is None or type(node.value) in (bool, float) or (type(node.value) is int and node.value <= _LARGEST_NUMBER)


_JUDGES: Final[Mapping[type[ast.AST], Callable[[Any], bool]]] = {
    ast.Call: _call,
    ast.BinOp: _binary,
    ast.Constant: _constant,
    ast.Attribute: lambda node: _member(node) in _MEMBERS,
    ast.Name: lambda node: node.id in _CONSTANTS or bool(_SYMBOL.fullmatch(node.id) and node.id[-1:].isdigit()),
}
