"""The names that the proof's code can give its checks, found in its source.

A name is what `check`, `counted`, `reported` and `broken` get second. Constants, assignments of the function around the
call, and arguments at its own call sites are followed; `…` stands for what only a run decides.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import truecast.proof

MAKERS = frozenset({"check", "counted", "reported", "broken"})
NAME_PLACE = 1
ANYTHING = "…"
DEPTH = 4
"""Calls that are followed back."""

Function = ast.FunctionDef


@dataclass(frozen=True)
class Sources:
    """Every module of the proof, parsed."""

    modules: tuple[ast.Module, ...]

    @classmethod
    def read(cls) -> Sources:
        folder = Path(truecast.proof.__file__).parent
        return cls(tuple(ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))))

    @cached_property
    def constants(self) -> dict[str, dict[str, list[ast.expr]]]:
        """What names are assigned outside functions, by the number of the module."""
        return {str(number): _assigned(_outside(module)) for number, module in enumerate(self.modules)}

    def functions(self) -> Iterator[tuple[str, Function]]:
        for number, module in enumerate(self.modules):
            for node in ast.walk(module):
                if isinstance(node, Function):
                    yield str(number), node

    def names(self) -> set[str]:
        """All names of checks."""
        found: set[str] = set()
        for module, function in self.functions():
            for call in () if _makes(function) else _calls(function, MAKERS):
                found |= self.texts(call.args[NAME_PLACE], module, function, DEPTH)
        return found

    def texts(self, node: ast.expr, module: str, function: Function, depth: int) -> set[str]:
        """What an expression may be, as texts."""
        if isinstance(node, ast.Constant):
            return {str(node.value)}
        if isinstance(node, ast.JoinedStr):
            parts = [self.texts(part, module, function, depth) for part in node.values]
            return {"".join(combined) for combined in product(*parts)}
        if isinstance(node, ast.FormattedValue | ast.Subscript):
            return self.texts(node.value, module, function, depth)
        if isinstance(node, ast.Tuple | ast.IfExp):
            children = node.elts if isinstance(node, ast.Tuple) else [node.body, node.orelse]
            return {text for child in children for text in self.texts(child, module, function, depth)}
        return self._named(node.id, module, function, depth) if isinstance(node, ast.Name) else {ANYTHING}

    def _named(self, name: str, module: str, function: Function, depth: int) -> set[str]:
        parameters = [argument.arg for argument in function.args.args]
        values = _assigned(function.body).get(name) or self.constants[module].get(name) or self._imported(name)
        if not values and name in parameters and depth:
            return self._given(function, parameters.index(name), depth - 1) or {ANYTHING}
        return {text for value in values for text in self.texts(value, module, function, depth)} or {ANYTHING}

    def _imported(self, name: str) -> list[ast.expr]:
        """What a constant of another module is assigned."""
        return next((found[name] for found in self.constants.values() if name.isupper() and name in found), [])

    def _given(self, function: Function, place: int, depth: int) -> set[str]:
        """What the callers of a function give as one of its arguments."""
        calls = ((m, f, call) for m, f in self.functions() for call in _calls(f, {function.name}))
        return {
            text
            for module, caller, call in calls
            if len(call.args) > place
            for text in self.texts(call.args[place], module, caller, depth)
        }


def _makes(function: Function) -> bool:
    """Whether a function is one of those that are given the name of a check, behind its tier."""
    return function.name in MAKERS and [argument.arg for argument in function.args.args[:2]] == ["tier", "name"]


def _outside(module: ast.Module) -> list[ast.stmt]:
    return [statement for statement in module.body if isinstance(statement, ast.Assign)]


def _calls(function: Function, names: frozenset[str] | set[str]) -> Iterator[ast.Call]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node


def _assigned(body: list[ast.stmt]) -> dict[str, list[ast.expr]]:
    """The values that names are assigned, those of pairs apart."""
    found: dict[str, list[ast.expr]] = {}
    for node in (inner for statement in body for inner in ast.walk(statement) if isinstance(inner, ast.Assign)):
        (target,) = node.targets[:1]
        pairs = [(target, node.value)]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=True))
        for name, value in pairs:
            if isinstance(name, ast.Name):
                found.setdefault(name.id, []).append(value)
    return found
