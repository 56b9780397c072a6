"""Python of the documents, checked without running it: names exist, and calls fit the functions that they call."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import typing
from typing import Any


def check(source: str) -> int:
    """How many calls were bound to a real signature. Raises where a name is missing or arguments do not fit."""
    checker = _Checker()
    checker.visit(ast.parse(source))
    return checker.bound


class _Checker(ast.NodeVisitor):
    """Follows imports, and what assigned names are instances of where a call says so."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.bound = 0

    def visit_Import(self, node: ast.Import) -> None:
        for each in node.names:
            module = importlib.import_module(each.name)
            self.names[each.asname or each.name.partition(".")[0]] = (
                module if each.asname else sys.modules[each.name.partition(".")[0]]
            )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = importlib.import_module(str(node.module))
        for each in node.names:
            self.names[each.asname or each.name] = getattr(module, each.name)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Name):
                made = self._made_by(node.value)
                self.names.pop(target.id, None)
                if made is not None:
                    self.names[target.id] = _Instance(made)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = self._value(node.func)
        if called is None or any(isinstance(each, ast.Starred) for each in node.args):
            return
        try:
            signature = inspect.signature(called)
        except (TypeError, ValueError):  # of builtins in C
            return
        keywords = {each.arg: None for each in node.keywords if each.arg}
        signature.bind(*[None] * len(node.args), **keywords)
        self.bound += 1

    def _value(self, node: ast.expr) -> Any:
        """What an expression of names and attributes is, or None. An attribute that is missing raises."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Call) and (made := self._made_by(node)) is not None:
            return _Instance(made)
        if not isinstance(node, ast.Attribute) or (owner := self._value(node.value)) is None:
            return None
        if isinstance(owner, _Instance):
            return owner.method(node.attr)
        return getattr(owner, node.attr)

    def _made_by(self, node: ast.expr) -> type | None:
        """The class that a call makes: the class itself, its ``from_…``, or what the function says it returns."""
        if not isinstance(node, ast.Call):
            return None
        called = self._value(node.func)
        if inspect.isclass(called):
            return called
        owner = self._value(node.func.value) if isinstance(node.func, ast.Attribute) else None
        if inspect.isclass(owner) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("from_"):
            return owner
        try:
            returned = typing.get_type_hints(called).get("return") if callable(called) else None
        except (NameError, TypeError):
            return None
        return returned if inspect.isclass(returned) and returned.__module__ != "builtins" else None


class _Instance:
    """An object of a class, of which only the class is known."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def method(self, name: str) -> Any:
        """A method without its ``self``; None for what the class alone does not tell, its instances' attributes."""
        found = getattr(self.kind, name, None)
        if not callable(found):
            return None
        return found if inspect.ismethod(found) else found.__get__(object(), self.kind)
