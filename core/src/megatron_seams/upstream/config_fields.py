"""The fields of upstream's dataclasses, read from their source with everything they inherit."""

import ast
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Final

import attrs

from megatron_seams.upstream.ast_queries import is_docstring, module_of
from megatron_seams.upstream.source import MegatronSource


class Unread(Enum):
    """The value of what the source does not spell out."""

    UNREAD = "unread"


UNREAD: Final = Unread.UNREAD


class NotUnderstoodError(Exception):
    """A piece of source of an unknown shape; its message says which."""


@attrs.frozen(kw_only=True)
class Located:
    """A class, and the file inside ``megatron`` that defines it."""

    path: str
    node: ast.ClassDef


@attrs.frozen(kw_only=True)
class ConfigField:
    """One field of a dataclass.

    Attributes:
        name: Its name.
        annotation: Its type, as written.
        path: The file that it is written in, where the names in ``annotation`` are looked up.
        default: Its default value; UNREAD if it has none or is no literal.
        expression: What gives the default value; None if it has none.
        init: Whether the constructor takes it.
        argparse: The keywords that its metadata passes to the argument parser -> their expressions.
    """

    name: str
    annotation: ast.expr
    path: str
    default: Any
    expression: ast.expr | None
    init: bool
    argparse: Mapping[str, ast.expr]


class ClassReader:
    """Finds classes by their names in files, through imports, and reads each file once."""

    def __init__(self, source: MegatronSource) -> None:
        self._source = source
        self._trees: dict[str, ast.Module | None] = {}
        self._bindings: dict[str, Mapping[str, list[ast.stmt]]] = {}
        self._fields: dict[ast.ClassDef, dict[str, ConfigField]] = {}

    def tree(self, path: str) -> ast.Module | None:
        """The syntax tree of a file, or None if there is no such file.

        Raises:
            SurfaceUnknown: It is not Python that this interpreter can read.
        """
        if path not in self._trees:
            self._trees[path] = self._source.parse(path)
        return self._trees[path]

    def find(self, path: str, name: str) -> Located | None:
        """The class called ``name`` at the top level of a file; None if it cannot be told."""
        match self.definition(path, name):
            case where, ast.ClassDef() as node:
                return Located(path=where, node=node)
        return None

    def definition(self, path: str, name: str) -> tuple[str, ast.stmt] | None:
        """The statement that binds a name at the top of a file, and the file that it is in.

        Imports from Megatron itself are followed; one from elsewhere is the statement. None if
        there is no such statement, or so many that which one counts cannot be told.
        """
        visited: set[tuple[str, str]] = set()
        while (path, name) not in visited:
            visited.add((path, name))
            match self._binding(path).get(name, []):
                case [ast.ImportFrom() as node]:
                    target = self.imported(path, node)
                    if target is None:
                        return path, node
                    path, name = target, _original(node, name)
                case [node]:
                    return path, node
                case _:
                    return None
        return None

    def binds(self, path: str, name: str) -> bool:
        """Whether a statement at the top of a file may bind a name."""
        return name in self._binding(path)

    def _binding(self, path: str) -> Mapping[str, list[ast.stmt]]:
        if path not in self._bindings:
            found: dict[str, list[ast.stmt]] = {}
            tree = self.tree(path)
            for node in tree.body if tree else []:
                for name in _binds(node):
                    found.setdefault(name, []).append(node)
            self._bindings[path] = found
        return self._bindings[path]

    def imported(self, path: str, node: ast.ImportFrom) -> str | None:
        """The file that an import in the file at ``path`` takes names from; None if unknown."""
        parts = module_of(path).removesuffix(".__init__").split(".")
        if node.level:
            # One dot is the folder that the file is in: for a package, the package itself.
            up = node.level - 1 if path.endswith("__init__.py") else node.level
            parts = parts[: len(parts) - up]
            parts += node.module.split(".") if node.module else []
        else:
            parts = (node.module or "").split(".")
        if parts[0] != "megatron":
            return None
        inside = "/".join(parts[1:])
        candidates = (f"{inside}.py", f"{inside}/__init__.py")
        return next((file for file in candidates if self._is_there(file)), None)

    def _is_there(self, path: str) -> bool:
        if path in self._trees:
            return self._trees[path] is not None
        return self._source.read(path) is not None

    def fields(self, located: Located) -> dict[str, ConfigField]:
        """The fields of a dataclass in order, inherited ones first, as ``dataclasses.fields``.

        Raises:
            NotUnderstoodError: It, or a class that it inherits from, is not a plain dataclass.
        """
        if located.node in self._fields:
            return dict(self._fields[located.node])
        found: dict[str, ConfigField] = {}
        for base in reversed(located.node.bases):
            if isinstance(base, ast.Name) and base.id == "object":
                continue
            above = self.find(located.path, base.id) if isinstance(base, ast.Name) else None
            if above is None:
                message = f"{located.node.name} inherits from {ast.unparse(base)}"
                raise NotUnderstoodError(message)
            found |= self.fields(above)
        if self._is_dataclass(located):
            # Updating a dictionary keeps the place of a field that is declared once more.
            found |= {field.name: field for field in _own_fields(located)}
        self._fields[located.node] = found
        return dict(found)

    def _is_dataclass(self, located: Located) -> bool:
        """Whether a class is a dataclass, rather than a plain class.

        Raises:
            NotUnderstoodError: It is made by something else.
        """
        decorators = [
            ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)
            for decorator in located.node.decorator_list
        ]
        made = [name for name in decorators if not self._only_marks(located.path, name)]
        other = [name for name in made if name not in ("dataclass", "dataclasses.dataclass")]
        if other or located.node.keywords:
            by = ", ".join(other) or "keywords of its class statement"
            message = f"{located.node.name} is made by {by}"
            raise NotUnderstoodError(message)
        return bool(made)

    def _only_marks(self, path: str, name: str) -> bool:
        """Whether a decorator sets a mark on a class and returns it, as upstream's for new APIs."""
        tree = self.tree(path)
        match [node for node in tree.body if name in _binds(node)] if tree else []:
            case [ast.ImportFrom() as node]:
                home = self.imported(path, node)
                defining = self.tree(home) if home else None
                known = [it for it in defining.body if name in _binds(it)] if defining else []
            case known:
                pass
        match known:
            case [ast.FunctionDef(args=ast.arguments(args=[given]), decorator_list=[]) as function]:
                body = [node for node in function.body if not is_docstring(node)]
                return [ast.unparse(node) for node in body] == [
                    f"{given.arg}._{name} = True",
                    f"return {given.arg}",
                ]
        return False

    def members(self, path: str, name: str) -> tuple[str, ...] | None:
        """The names of an enumeration's members; None if ``name`` is no enumeration."""
        located = self.find(path, name)
        if located is None or not any(
            ast.unparse(base) in ("Enum", "enum.Enum") for base in located.node.bases
        ):
            return None
        return tuple(
            target.id
            for node in located.node.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        )


def literal(node: ast.expr | None) -> Any:
    """The value that an expression spells out, or UNREAD."""
    if node is None:
        return UNREAD
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNREAD


def _binds(node: ast.stmt) -> set[str]:
    """The names that a statement at the top level of a file may bind."""
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            return {name}
        case ast.ImportFrom(names=names) | ast.Import(names=names):
            return {alias.asname or alias.name.partition(".")[0] for alias in names}
        case _:
            return {
                part.id
                for part in ast.walk(node)
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            } | {
                alias.asname or alias.name
                for part in ast.walk(node)
                if isinstance(part, ast.ImportFrom)
                for alias in part.names
            }


def _original(node: ast.ImportFrom, name: str) -> str:
    """The name that is imported as ``name``."""
    return next(alias.name for alias in node.names if (alias.asname or alias.name) == name)


def _own_fields(located: Located) -> Iterator[ConfigField]:
    for node in located.node.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                if ast.unparse(annotation).rpartition(".")[2].startswith(("ClassVar", "InitVar")):
                    continue
                yield _field(name, annotation, value, located.path)
            case ast.If() | ast.For() | ast.While() | ast.With() | ast.Try():
                message = f"{located.node.name} declares fields under a condition"
                raise NotUnderstoodError(message)


def _field(name: str, annotation: ast.expr, value: ast.expr | None, path: str) -> ConfigField:
    default, init = value, True
    argparse: Mapping[str, ast.expr] = {}
    match value:
        case ast.Call(func=ast.Name(id="field") | ast.Attribute(attr="field"), args=[]):
            given = {keyword.arg: keyword.value for keyword in value.keywords}
            default = _made(given["default_factory"]) if "default_factory" in given else None
            default = given.get("default", default)
            init = literal(given["init"]) if "init" in given else True
            argparse = _metadata(name, given.get("metadata"))
            if None in given or not isinstance(init, bool):
                message = f"field {name} is {ast.unparse(value)}"
                raise NotUnderstoodError(message)
    return ConfigField(
        name=name,
        annotation=annotation,
        path=path,
        default=literal(default),
        expression=default,
        init=init,
        argparse=argparse,
    )


def _made(factory: ast.expr) -> ast.expr | None:
    """The expression for what a default factory returns; None if that is unknown."""
    match factory:
        case ast.Name(id="list"):
            return ast.List(elts=[], ctx=ast.Load())
        case ast.Lambda(body=body):
            return body
    return None


def _metadata(name: str, node: ast.expr | None) -> Mapping[str, ast.expr]:
    """The keywords that the field ``name`` passes to the argument parser -> their expressions."""
    found: Mapping[str, ast.expr] = {}
    for key, value in _items(name, node):
        if key == "argparse_meta":
            found = dict(_items(name, value))
    return found


def _items(name: str, node: ast.expr | None) -> Iterator[tuple[str, ast.expr]]:
    """The keys and values of a dictionary in the metadata of the field ``name``."""
    match node:
        case None:
            return
        case ast.Dict(keys=keys, values=values):
            for key, value in zip(keys, values, strict=True):
                if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                    message = f"field {name} has metadata {ast.unparse(node)}"
                    raise NotUnderstoodError(message)
                yield key.value, value
        case _:
            message = f"field {name} has metadata {ast.unparse(node)}"
            raise NotUnderstoodError(message)
