"""Small changes of Python source by a generator: one each, and the same ones for one seed."""

import ast
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

#: Operators and what a change puts for them.
_OPERATORS: Final[dict[type[ast.AST], type[ast.AST]]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
}
#: Changes one place of a function in place.
Edit = Callable[[ast.FunctionDef], None]


def changes(text: str, functions: set[str], count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Changes of functions and methods, evenly drawn from all kinds.

    Args:
        text: A module's source.
        functions: The names of those that are changed.
        count: How many changes to make.
        seed: Of the draw.

    Yields:
        The change in words, and the whole module with it; it is still Python.
    """
    tree = ast.parse(text)
    draw = random.Random(seed)  # noqa: S311  # nothing secret
    kinds: dict[str, list[tuple[str, str, Edit]]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            for kind, where, edit in _edits(node, draw):
                kinds.setdefault(kind, []).append((node.name, where, edit))
    for edits in kinds.values():
        draw.shuffle(edits)
    seen = {ast.unparse(tree)}
    while count and any(kinds.values()):
        for kind in sorted(kinds):
            if not kinds[kind] or not count:
                continue
            name, where, edit = kinds[kind].pop()
            copied = ast.parse(text)
            function = next(
                node
                for node in ast.walk(copied)
                if isinstance(node, ast.FunctionDef) and node.name == name
            )
            edit(function)
            changed = ast.unparse(ast.fix_missing_locations(copied))
            if changed not in seen and _compiles(changed):
                seen.add(changed)
                count -= 1
                yield f"{kind} in {name}, {where}", changed


def _edits(function: ast.FunctionDef, draw: random.Random) -> Iterator[tuple[str, str, Edit]]:
    """Every change of a function: its kind, where it is, and what makes it."""
    nodes = list(ast.walk(function))
    names = sorted(
        {node.id for node in nodes if isinstance(node, ast.Name)}
        | {argument.arg for argument in function.args.args}
    )
    attributes = sorted({node.attr for node in nodes if isinstance(node, ast.Attribute)})
    keywords = sorted({node.arg for node in nodes if isinstance(node, ast.keyword) and node.arg})
    # Docstrings and annotations: nothing that a constructor does.
    aside = {
        id(part)
        for node in nodes
        for expression in (
            node.value if isinstance(node, ast.Expr) else None,
            getattr(node, "annotation", None),
            getattr(node, "returns", None),
        )
        if isinstance(expression, ast.expr) and not isinstance(expression, ast.Call)
        for part in ast.walk(expression)
    }
    for at, node in enumerate(nodes):
        if id(node) in aside:
            continue
        where = f"line {getattr(node, 'lineno', function.lineno)}"
        for field in ("body", "orelse"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                yield from _of_block(at, field, block, where)
        match node:
            case ast.Constant():
                yield "constant", where, _sets(at, "value", _another(node.value))
            case ast.Name(id=old):
                yield "name", where, _sets(at, "id", _other(names, old, draw))
            case ast.Attribute(attr=old):
                yield "attribute", where, _sets(at, "attr", _other(attributes, old, draw))
            case ast.keyword(arg=str(old)):
                yield "keyword", where, _sets(at, "arg", _other(keywords, old, draw))
            case ast.Compare(ops=[operator]) if type(operator) in _OPERATORS:
                yield "comparison", where, _sets(at, "ops", [_OPERATORS[type(operator)]()])
            case ast.BoolOp() | ast.BinOp() if type(node.op) in _OPERATORS:
                yield "operator", where, _sets(at, "op", _OPERATORS[type(node.op)]())
            case ast.Call(keywords=[_, *_]):
                yield "keyword left out", where, _leaves_out(at, draw.randrange(len(node.keywords)))
            case ast.Subscript(slice=ast.Slice()):
                yield "slice", where, _sets(at, "slice", ast.Slice(upper=ast.Constant(value=1)))
            case ast.arguments(defaults=[_, *_]):
                yield "default", where, _default(at, draw.randrange(len(node.defaults)))
            case ast.For():
                yield "slice", where, _of_iter(at)


def _compiles(text: str) -> bool:
    """Whether a module's text is Python: a keyword that is given twice, say, is found only here."""
    try:
        compile(text, "changed", "exec")
    except SyntaxError:
        return False
    return True


def _of_block(
    at: int, field: str, block: list[ast.stmt], where: str
) -> Iterator[tuple[str, str, Edit]]:
    """Statements left out, repeated and exchanged."""
    for index, statement in enumerate(block):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        where = f"line {statement.lineno}"
        yield "left out", where, _block(at, field, index, lambda _one, _two: [])
        yield "repeated", where, _block(at, field, index, lambda one, _two: [one, one])
        if index + 1 < len(block):
            yield "exchanged", where, _block(at, field, index, lambda one, two: [two, one], 2)


def _block(at: int, field: str, index: int, make: Callable[..., list[Any]], many: int = 1) -> Edit:
    def edit(function: ast.FunctionDef) -> None:
        block = getattr(list(ast.walk(function))[at], field)
        pair = [*block[index : index + 2], None][:2]
        block[index : index + many] = make(*pair)
        if not block and field == "body":
            block.append(ast.Pass())

    return edit


def _sets(at: int, field: str, value: Any) -> Edit:
    return lambda function: setattr(list(ast.walk(function))[at], field, value)


def _leaves_out(at: int, index: int) -> Edit:
    def edit(function: ast.FunctionDef) -> None:
        call = list(ast.walk(function))[at]
        assert isinstance(call, ast.Call)
        del call.keywords[index]

    return edit


def _default(at: int, index: int) -> Edit:
    def edit(function: ast.FunctionDef) -> None:
        given = list(ast.walk(function))[at]
        assert isinstance(given, ast.arguments)
        given.defaults[index] = ast.Constant(value=1)

    return edit


def _of_iter(at: int) -> Edit:
    def edit(function: ast.FunctionDef) -> None:
        loop = list(ast.walk(function))[at]
        assert isinstance(loop, ast.For)
        loop.iter = ast.Subscript(
            value=ast.Call(func=ast.Name(id="list"), args=[loop.iter], keywords=[]),
            slice=ast.Slice(lower=ast.Constant(value=1)),
        )

    return edit


def _another(value: Any) -> Any:
    """A constant that is not ``value``, of its type where there is one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}M" if isinstance(value, str) else 0


def _other(names: list[str], old: str, draw: random.Random) -> str:
    return draw.choice([name for name in names if name != old] or [f"{old}_"])
