"""Meanings of the names in a piece of upstream's source: each is imported once, from its home."""

import ast
import builtins
from collections.abc import Mapping
from typing import Final

from megatron_seams.upstream.ast_queries import bindings, classes, functions, is_docstring
from megatron_seams.upstream.known_functions import KNOWN
from megatron_seams.upstream.source import SourceFile

_BUILTINS: Final = frozenset(dir(builtins))
#: Names that forms rely on -> their modules; any other must be one of Megatron-Core's.
_HOMES: Final[Mapping[str, str]] = {
    "nn": "torch",
    "nullcontext": "contextlib",
    "partial": "functools",
    "dataclass": "dataclasses",
    "deepcopy": "copy",
    "build_module": "megatron.core.transformer.spec_utils",
    "get_fp8_context": "megatron.core.fp8_utils",
    "get_fp4_context": "megatron.core.fp4_utils",
    "annotate_first_last_layer": "megatron.core.transformer.cuda_graphs",
}
#: Modules that may be imported whole.
_WHOLE: Final = ("copy", "math", "torch")


def check_names(file: SourceFile, function: ast.FunctionDef, renamed: str | None = None) -> None:
    """Check that every name that a function reads means what it says; annotations are passed over.

    Args:
        file: The file.
        function: A function or method in it.
        renamed: The one name that may be imported under another.

    Raises:
        SurfaceUnknown: A name may mean something else.
    """
    nodes = list(ast.walk(function))
    own = bindings(nodes)
    skipped = {
        id(part)
        for node in nodes
        for note in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if note is not None
        for part in ast.walk(note)
    }
    used = {
        part.id: part.lineno
        for part in nodes
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load) and id(part) not in skipped
    }
    known = _imported(file)
    for name, line in used.items():
        if own[name]:
            fine = name not in _BUILTINS and name not in known
        elif name in _BUILTINS:
            fine = file.bound[name] == 0
        elif name == renamed:
            fine = file.bound[name] == 1
        else:
            fine = file.bound[name] == 1 and (name in known or _is_made(file, name))
        file.require(fine, f"line {line}: {name} may mean something else")


def _is_made(file: SourceFile, name: str) -> bool:
    """Whether the top level of a file defines a name: a known function, or a plain class."""
    if functions(file.tree.body, name):
        return name in KNOWN
    made = [cls for cls in classes(file.tree.body, name) if cls.name == name]
    for cls in made:
        check_class(file, cls)
    return bool(made)


def _imported(file: SourceFile) -> set[str]:
    """The names that the top level of a file imports under their own, from where they belong."""
    found: set[str] = set()
    for node in file.tree.body:
        match node:
            case ast.ImportFrom(module=str(module), level=0, names=names):
                found |= {
                    alias.name
                    for alias in names
                    if alias.asname is None and _belongs(alias.name, module)
                }
            case ast.Import(names=names):
                found |= {alias.name for alias in names if alias.asname is None} & {*_WHOLE}
    return found


def _belongs(name: str, module: str) -> bool:
    if name in _HOMES:
        return module == _HOMES[name]
    return module in ("typing", "torch") or module.partition(".")[0] == "megatron"


def check_top_level(file: SourceFile) -> None:
    """Check that nothing but imports, definitions and aliases happens when a file is imported.

    Raises:
        SurfaceUnknown: Something does.
    """
    for node in file.tree.body:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.ClassDef():
                continue
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name() | ast.Constant()):
                known = file.bound[name] == 1
            case ast.Try(body=body, handlers=handlers, orelse=[], finalbody=[]):
                parts = [*body, *(part for handler in handlers for part in handler.body)]
                known = all(_is_plain(part) for part in parts)
            case _:
                known = is_docstring(node)
        file.require(known, f"line {node.lineno} is not understood")


def _is_plain(node: ast.stmt) -> bool:
    """Whether a statement imports, or notes in a constant whether that succeeded."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Pass():
            return True
        case ast.Assign(targets=[ast.Name()], value=ast.Constant()):
            return True
    return False


#: Attributes of a stack that a class may not define in another way.
_OWN: Final = frozenset({"layers", "config", "submodules", "apply"})


def check_class(file: SourceFile, node: ast.ClassDef) -> None:
    """Check that a class derives from Megatron's own alone, and that instances are plain.

    Raises:
        SurfaceUnknown: Something else may decide what its instances are.
    """
    known = _imported(file)
    for base in node.bases:
        fine = isinstance(base, ast.Name) and base.id in known and file.bound[base.id] == 1
        file.require(fine, f"{node.name} derives from {ast.unparse(base)}")
    decorators = {ast.unparse(part) for part in node.decorator_list}
    file.require(
        not node.keywords
        and decorators <= {"dataclass"}
        and (not decorators or ("dataclass" in known and file.bound["dataclass"] == 1)),
        f"{node.name} is not a plain class",
    )
    made = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    special = {name for name in made if name.startswith("__")} - {"__init__", "__call__"}
    taken = special | (made & _OWN)
    file.require(not taken, f"{node.name} defines {', '.join(sorted(taken))} by itself")
