"""Questions about a syntax tree that the readers of upstream's source ask."""

import ast
from collections import Counter
from collections.abc import Iterable, Iterator

#: Nodes with no node below them: more than half of a tree.
_ENDS = frozenset({ast.Name, ast.Constant, ast.alias})
#: Nodes that bind a name, in whatever way.
_BINDERS = frozenset(
    {
        *(ast.Name, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.arg, ast.alias),
        *(ast.ExceptHandler, ast.MatchAs, ast.MatchStar, ast.MatchMapping),
        *(ast.Global, ast.Nonlocal),
    }
)


def walk(top: ast.AST) -> list[ast.AST]:
    """``top`` and every node below it, breadth first: :func:`ast.walk` in a third of its time.

    Left out is what has no parts and stands in one place only: the context of a name (``ctx``) and
    an operator (``op``).
    """
    nodes = [top]
    for node in nodes:  # which grows meanwhile
        if type(node) in _ENDS:
            continue
        for field in node._fields:
            below = getattr(node, field, None)
            if isinstance(below, list):
                nodes += [part for part in below if isinstance(part, ast.AST)]
            elif isinstance(below, ast.AST) and below._fields:
                nodes.append(below)
    return nodes


def bindings(nodes: Iterable[ast.AST]) -> Counter[str]:
    """How often each name is bound among ``nodes``, in whatever way and scope.

    A name that is bound once means one thing wherever it stands; ``*`` counts star imports, after
    which no name does.
    """
    return Counter(name for node in nodes if type(node) in _BINDERS for name in _bound(node))


def _bound(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            yield name
        case ast.Name():
            pass
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.arg(arg=name):
            yield name
        case ast.alias(name=name, asname=alias):
            yield alias or name.partition(".")[0]
        case ast.ExceptHandler(name=str(name)):
            yield name
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)):
            yield name
        case ast.Global(names=names) | ast.Nonlocal(names=names):
            yield from names


def own_nodes(body: Iterable[ast.stmt]) -> Iterator[ast.AST]:
    """The nodes of a class's body, without what is inside its methods."""
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield node
        else:
            yield from walk(node)


def mentions(node: ast.AST, name: str) -> bool:
    """Whether a name stands anywhere below ``node``."""
    return any(isinstance(part, ast.Name) and part.id == name for part in walk(node))


def imported(tree: ast.Module, module: str) -> dict[str, str]:
    """What the top of a file imports from ``module``: the name there -> the name here."""
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
    """The classes among the statements of a body whose names end so."""
    return [node for node in body if isinstance(node, ast.ClassDef) and node.name.endswith(suffix)]


def module_of(path: str) -> str:
    """The dotted name of a file inside ``megatron``."""
    return "megatron." + path.removesuffix(".py").replace("/", ".")


def path_of(module: str) -> str:
    """The file inside ``megatron`` of a dotted name; the inverse of :func:`module_of`."""
    return module.removeprefix("megatron.").replace(".", "/") + ".py"
