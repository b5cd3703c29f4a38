"""Wrong rules on purpose: small changes to the syntax tree of a module, found from its source."""

from __future__ import annotations

import ast
import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import unwrap
from operator import attrgetter
from pathlib import Path
from random import Random
from types import CodeType
from typing import Any, Final, NamedTuple, TypeAlias

ROOT: Final = Path(__file__).resolve().parents[2]

#: What is mutated: the rules of all operators, and the algebra that they write into.
TARGETS: Final = (
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "passes/analysis/rules").glob("[a-z]*.py")),
    "graphprune/channels/labels.py",
    "graphprune/channels/shuffles.py",
)

_NOTES: Final = {"tie", "match", "freeze", "freeze_inputs", "note_statistics", "scalar", "set_value", "narrow_value"}
_ARITHMETIC: Final[dict[type[ast.operator], ast.operator]] = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.Mult: ast.FloorDiv(),
    ast.FloorDiv: ast.Mult(),
    ast.Mod: ast.FloorDiv(),
    ast.BitAnd: ast.BitOr(),
    ast.BitOr: ast.BitAnd(),
}


@dataclass(frozen=True)
class Mutation:
    """One change: file (relative to the root), function (``Class.method``), the place of the node in the walk of the file's
    functions, and what is done there. lines: first and last of the statement, or of its head. number: of those that read alike.
    """

    file: str
    function: str
    place: int
    kind: str
    lines: tuple[int, int]
    text: str
    number: int = 1

    def __str__(self) -> str:
        repeat = f" ({self.number})" if self.number > 1 else ""
        return f"{self.file}: {self.function}: {self.kind}: {self.text}{repeat}"


#: Changes a shallow copy of a node, or says None where it does not apply.
Change: TypeAlias = Callable[[ast.AST], ast.AST | None]


def _called(node: ast.AST) -> str:
    """Name of the method that a node calls, or ""."""
    return node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""


def _drop_note(node: ast.AST) -> ast.AST | None:
    """A tie, a freeze or a constant is not written down."""
    return ast.Pass() if isinstance(node, ast.Expr) and _called(node.value) in _NOTES else None


def _forget_labels(node: ast.AST) -> ast.AST | None:
    """An output has no labels."""
    if not (isinstance(node, ast.Call) and _called(node) == "set" and node.args and not isinstance(node.args[0], ast.Tuple)):
        return None
    node.args = [ast.Tuple([], ast.Load()), *node.args[1:]]
    return node


def _keep_whole(node: ast.AST) -> ast.AST | None:
    """A field that must be restricted to some axes is not."""
    return node.args[0] if isinstance(node, ast.Call) and _called(node) == "restrict" else None


def _negate(node: ast.AST) -> ast.AST | None:
    """A condition is turned round."""
    if not isinstance(node, (ast.If, ast.IfExp)):
        return None
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return node


def _shift(node: ast.AST) -> ast.AST | None:
    """An axis, an offset or a count is another one."""
    if not isinstance(node, ast.Constant) or type(node.value) is not int:
        return None
    return ast.Constant(1 if node.value == 0 else node.value - 1)


def _arithmetic(node: ast.AST) -> ast.AST | None:
    """A sum is a difference, a product a quotient, a union an intersection."""
    if not isinstance(node, ast.BinOp) or type(node.op) not in _ARITHMETIC or isinstance(node.left, ast.List):
        return None
    node.op = _ARITHMETIC[type(node.op)]
    return node


def _exchange(node: ast.AST) -> ast.AST | None:
    """Labels are tiled where they are to be repeated, and the other way round."""
    other = {"repeat": "tile", "tile": "repeat", "flip": "copy"}
    if _called(node) not in other:
        return None
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    if not isinstance(node.func.value, ast.Name) or node.func.value.id != "np":
        return None
    name = other[node.func.attr]
    node.func = ast.Attribute(node.func.value, name, ast.Load())
    node.args = node.args[:1] if name == "copy" else node.args[:2]
    return node


KINDS: Final[dict[str, Change]] = {
    "a note dropped": _drop_note,
    "labels forgotten": _forget_labels,
    "not restricted": _keep_whole,
    "condition negated": _negate,
    "number shifted": _shift,
    "arithmetic changed": _arithmetic,
    "repeats exchanged": _exchange,
}


class _Site(NamedTuple):
    node: ast.AST
    function: str
    lines: tuple[int, int]


def _sites(tree: ast.Module) -> list[_Site]:
    """All nodes inside functions, in a fixed order; decorators and annotations are no part of what a rule does."""
    found: list[_Site] = []
    for outer in tree.body:
        prefix = f"{outer.name}." if isinstance(outer, ast.ClassDef) else ""
        for function in outer.body if isinstance(outer, ast.ClassDef) else [outer]:
            if isinstance(function, ast.FunctionDef):
                for statement in function.body:
                    found += [_Site(node, prefix + function.name, lines) for node, lines in _inside(statement, (0, 0))]
    return found


def _inside(node: ast.AST, lines: tuple[int, int]) -> Iterator[tuple[ast.AST, tuple[int, int]]]:
    """A node and all below it, each with the lines of its statement; of one that has a body, those of its head."""
    if isinstance(node, ast.stmt):
        body: list[ast.stmt] = getattr(node, "body", [])
        lines = node.lineno, body[0].lineno - 1 if body else (node.end_lineno or node.lineno)
    yield node, lines
    for child in ast.iter_child_nodes(node):
        if isinstance(node, ast.AnnAssign) and child is node.annotation:
            continue
        yield from _inside(child, lines)


def mutations(file: str) -> Iterator[Mutation]:
    """Every mutation of a file."""
    seen: Counter[tuple[str, str, str]] = Counter()
    for place, (node, function, lines) in enumerate(_sites(ast.parse((ROOT / file).read_text()))):
        for kind, change in KINDS.items():
            if change(copy.copy(node)) is not None:
                text = ast.unparse(node).split("\n")[0][:100]
                seen[function, kind, text] += 1
                yield Mutation(file, function, place, kind, lines, text, seen[function, kind, text])


class _Replace(ast.NodeTransformer):
    """Puts one node in the place of another, wherever that is in the tree."""

    def __init__(self, node: ast.AST, by: ast.AST) -> None:
        self.node, self.by = node, by

    def visit(self, node: ast.AST) -> ast.AST:
        return self.by if node is self.node else self.generic_visit(node)


def mutated(mutation: Mutation) -> ast.Module:
    """The tree of the file with this change."""
    tree = ast.parse((ROOT / mutation.file).read_text())
    node = _sites(tree)[mutation.place].node
    changed = KINDS[mutation.kind](copy.copy(node))
    assert changed is not None
    _Replace(node, ast.copy_location(changed, node)).visit(tree)
    return ast.fix_missing_locations(tree)


def module_name(file: str) -> str:
    """The name that a file is imported by."""
    dotted = file.removesuffix(".py").replace("/", ".")
    return dotted if dotted.startswith("graphprune.") else f"graphprune.{dotted}"


def install(mutation: Mutation) -> None:
    """Change the function where it is, in this process: whoever holds it, holds the changed one from now on."""
    module = compile(mutated(mutation), str(ROOT / mutation.file), "exec")
    found: Any = attrgetter(mutation.function)(sys.modules[module_name(mutation.file)])
    function: Any = found.fget if isinstance(found, property) else found
    if hasattr(function, "cache_clear"):
        function.cache_clear()
    unwrap(function).__code__ = _code(module, mutation.function)


def _code(inside: CodeType, name: str) -> CodeType:
    """The code of a function of a compiled module."""
    nested = [item for item in inside.co_consts if isinstance(item, CodeType)]
    own = next((code for code in nested if code.co_qualname == name), None)
    return own or _code(next(code for code in nested if code.co_qualname == name.partition(".")[0]), name)


def sample(number: int, seed: int) -> list[Mutation]:
    """A random choice of mutations, each kind in each file equally likely to come first."""
    random = Random(seed)
    bags: dict[tuple[str, str], list[Mutation]] = {}
    for file in TARGETS:
        for mutation in mutations(file):
            bags.setdefault((mutation.file, mutation.kind), []).append(mutation)
    for bag in bags.values():
        random.shuffle(bag)
    order: list[Mutation] = []
    while bags and len(order) < number:
        keys = list(bags)
        random.shuffle(keys)
        for key in keys:
            order.append(bags[key].pop())
            if not bags[key]:
                del bags[key]
    return order[:number]
