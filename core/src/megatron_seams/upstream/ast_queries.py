"""Questions about a syntax tree that the readers of upstream's source ask."""

import ast
from collections import Counter
from collections.abc import Iterable, Iterator

#: Kind of node -> its field with the name, or the names, that it binds.
_BINDING_FIELDS = {
    ast.FunctionDef: "name",
    ast.AsyncFunctionDef: "name",
    ast.ClassDef: "name",
    ast.arg: "arg",
    ast.ExceptHandler: "name",
    ast.MatchAs: "name",
    ast.MatchStar: "name",
    ast.MatchMapping: "rest",
    ast.Global: "names",
    ast.Nonlocal: "names",
}


def bindings(nodes: Iterable[ast.AST]) -> Counter[str]:
    """How often each name is bound among ``nodes``, in whatever way and scope.

    A name that is bound once means one thing wherever it stands; ``*`` counts star imports, after
    which no name does.
    """
    return Counter(name for node in nodes for name in _bound_by(node))


def _bound_by(node: ast.AST) -> Iterable[str]:
    """The names that one node binds, without those that nodes below it bind."""
    if isinstance(node, ast.Name):
        return () if isinstance(node.ctx, ast.Load) else (node.id,)
    if isinstance(node, ast.alias):
        return (node.asname or node.name.partition(".")[0],)
    field = _BINDING_FIELDS.get(type(node))
    bound: str | list[str] | None = getattr(node, field) if field else None
    if bound is None:
        return ()
    return bound if isinstance(bound, list) else (bound,)


def own_nodes(body: Iterable[ast.stmt]) -> Iterator[ast.AST]:
    """The nodes of a class's body, without those inside its methods."""
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield node
        else:
            yield from ast.walk(node)


def mentions(node: ast.AST, name: str) -> bool:
    """Whether a name stands anywhere in ``node``."""
    return any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))


def imported(tree: ast.Module, module: str) -> dict[str, str]:
    """The names that the top level of a file imports from ``module``: name there -> name here."""
    return {
        alias.name: alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == module and node.level == 0
        for alias in node.names
    }


def is_docstring(node: ast.stmt) -> bool:
    """Whether a statement is a bare literal."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def functions(body: Iterable[ast.stmt], *names: str) -> list[ast.FunctionDef]:
    """The functions among the statements of a body that have one of ``names``."""
    return [node for node in body if isinstance(node, ast.FunctionDef) and node.name in names]


def classes(body: Iterable[ast.stmt], suffix: str) -> list[ast.ClassDef]:
    """The classes among the statements of a body whose names end in ``suffix``."""
    return [node for node in body if isinstance(node, ast.ClassDef) and node.name.endswith(suffix)]


def module_of(path: str) -> str:
    """The dotted name of a file inside ``megatron``: ``core/a.py`` -> ``megatron.core.a``."""
    return "megatron." + path.removesuffix(".py").replace("/", ".")


def path_of(module: str) -> str:
    """The file inside ``megatron`` of a dotted name; the inverse of :func:`module_of`."""
    return module.removeprefix("megatron.").replace(".", "/") + ".py"
