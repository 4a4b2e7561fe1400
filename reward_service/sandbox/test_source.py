"""Tests as source: which names are whose, and what is changed in them before they run, so that what they say of values
holds for what stands for the code's objects. Rests on what the tests' author wrote and on nothing that the code says.
Standard library alone."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rollcall.reward_service.sandbox.plain_values import PLAIN_ATTRIBUTES, PLAIN_METHODS
from rollcall.reward_service.sandbox.raised import STAND_INS
from rollcall.reward_service.sandbox.solution_proxy import Words, same

_CLASS = re.compile(
    r"[A-Z](\w*[a-z]\w*)?"
)  # as PEP 8 has it; a function of the code can be named so too, but not by itself
_SAME = "__code_is"


def used(*trees: ast.Module) -> set[str]:
    """Names that somebody must define, and that are no builtins."""
    names = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return {name for name in names if not hasattr(builtins, name) and not name.startswith("__")}


def defined(tree: ast.Module) -> set[str]:
    """Names that its own imports, functions and classes bind. (An assignment may well wrap what the code defines.)"""
    return set(_defined(tree.body))


def _defined(body: list[Any]) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name.partition(".")[0]) for alias in node.names)
        else:
            for inner in ("body", "orelse", "finalbody", "handlers"):
                yield from _defined(getattr(node, inner, []))


def stubs(preamble: ast.Module) -> set[str]:
    """Functions that the preamble leaves to the code: without a body."""
    return {
        node.name
        for node in preamble.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and all(_says_nothing(each) for each in node.body)
    }


def _says_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Raise):
        raised = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def modules(names: set[str], *trees: ast.Module) -> dict[str, types.ModuleType]:
    """Names that stand for modules of the standard library, though nothing imports them: all that is asked of them is
    in there."""
    found = {}
    for name in names & sys.stdlib_module_names:
        asked = {
            node.attr
            for tree in trees
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
        }
        if asked:
            module = importlib.import_module(name)
            if all(hasattr(module, attribute) for attribute in asked):
                found[name] = module
    return found


def words(preamble: ast.Module) -> Words:
    """Attributes of plain values and of the preamble's classes; and methods, but for those without a body, which are
    for the code to define."""
    attributes, methods = set(PLAIN_ATTRIBUTES), set(PLAIN_METHODS)
    for kind in (node for node in ast.walk(preamble) if isinstance(node, ast.ClassDef)):
        for node in ast.walk(kind):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if not all(_says_nothing(each) for each in node.body):
                    methods.add(node.name)
                    attributes.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                attributes.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                attributes.add(node.target.id)
    return Words(frozenset(attributes), frozenset(methods))


def makers(names: set[str], words: Words, *trees: ast.Module) -> set[str]:
    """Names that tests call to get an object of the code's own: those of classes, and those of functions whose result
    they go on to use as no plain value can be."""
    found = {name for name in names if _CLASS.fullmatch(name) and "_" not in name}
    nodes = [node for tree in trees for node in ast.walk(tree)]
    objects = {
        node.value.id
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr not in words.attributes
    }
    for node in nodes:
        made = isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.func
        if isinstance(made, ast.Name) and isinstance(node, ast.Assign):
            found |= {made.id for target in node.targets if isinstance(target, ast.Name) and target.id in objects}
    return found & names


class _Fitted(ast.NodeTransformer):
    """`is` asks whether two stand for the same; who expects StopIteration expects its stand-in as well."""

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) > 1 or not isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            return node
        if any(isinstance(each, ast.Constant) for each in (node.left, *node.comparators)):
            return node
        asked: ast.expr = ast.Call(ast.Name(_SAME, ast.Load()), [node.left, node.comparators[0]], [])
        if isinstance(node.ops[0], ast.IsNot):
            asked = ast.UnaryOp(ast.Not(), asked)
        return ast.copy_location(asked, node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        node.type = _widened(node.type) if node.type is not None else None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        node.args = [_widened(argument) for argument in node.args]
        return node


def _widened(kinds: ast.expr) -> ast.expr:
    several = kinds.elts if isinstance(kinds, ast.Tuple) else [kinds]
    named = [kind.id for kind in several if isinstance(kind, ast.Name) and kind.id in STAND_INS]
    if not named:
        return kinds
    extra = [ast.Name(f"__code_{name}", ast.Load()) for name in named]
    return ast.copy_location(ast.Tuple([*several, *extra], ast.Load()), kinds)


def fitted(tests: ast.Module) -> ast.Module:
    """To be run with `FITTINGS` among its names."""
    changed: ast.Module = _Fitted().visit(tests)
    return ast.fix_missing_locations(changed)


FITTINGS: Mapping[str, Callable[..., Any]] = {
    _SAME: same,
    **{f"__code_{name}": kind for name, kind in STAND_INS.items()},
}
