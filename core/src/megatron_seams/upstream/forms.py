"""Forms of statements: text that a piece of upstream's source either has or has not.

A form is written as Python. A name in capitals in it stands for any one name, the same wherever it
recurs; every other name, literal and keyword stands for itself. ``self.GIVEN = GIVEN`` is the form
of ``self.pre_process = pre_process``, and not of ``self.pre_process = post_process``.
"""

import ast
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, TypeVar

import attrs

from megatron_seams.upstream.ast_queries import is_docstring

T = TypeVar("T", bound=ast.AST)

#: Functions that only write to a log.
_LOGS: Final = frozenset({"log_single_rank", "log_on_each_pipeline_stage"})


@attrs.frozen(kw_only=True)
class Form:
    """One form.

    Attributes:
        text: How it is written.
        node: The statement that it is.
    """

    text: str
    node: ast.stmt = attrs.field(repr=False)

    def match(self, statement: ast.stmt) -> Mapping[str, str] | None:
        """The bindings of the names in capitals; None if the statement is of another form."""
        found = first_match(statement, [self])
        return found and found[1]


def form(text: str) -> Form:
    """The form that ``text`` spells: one statement."""
    (node,) = ast.parse(text).body
    return Form(text=text, node=node)


def first_match(statement: ast.stmt, forms: Sequence[Form]) -> tuple[int, Mapping[str, str]] | None:
    """The first form that a statement is of: its index, and what its names in capitals stand for.

    Returns:
        None if it is of none of them.
    """
    for index, known in enumerate(forms):
        names: dict[str, str] = {}
        if _same(known.node, statement, names):
            return index, names
    return None


def _same(wanted: Any, found: Any, names: dict[str, str]) -> bool:
    """Whether two trees are the same but for the names in capitals, which are collected."""
    if isinstance(wanted, ast.Assert):  # without its message
        return isinstance(found, ast.Assert) and _same(wanted.test, found.test, names)
    if isinstance(wanted, ast.Assign) and isinstance(found, ast.AnnAssign):  # without its type
        return _same((wanted.targets, wanted.value), ([found.target], found.value), names)
    if isinstance(wanted, ast.AST):
        if type(wanted) is not type(found):
            return False
        return all(
            _same(getattr(wanted, field, None), getattr(found, field, None), names)
            for field in wanted._fields
            if field not in ("ctx", "type_comment")
        )
    if isinstance(wanted, list | tuple):
        return (
            isinstance(found, list | tuple)
            and len(wanted) == len(found)
            and all(_same(*pair, names) for pair in zip(wanted, found, strict=True))
        )
    if isinstance(wanted, str) and isinstance(found, str) and wanted.isupper():
        return names.setdefault(wanted, found) == found
    return type(wanted) is type(found) and bool(wanted == found)


def digest(node: ast.stmt, without: Collection[ast.If] = ()) -> str:
    """The form of a whole function or class, as 16 hexadecimal digits.

    Two have the same one if they differ at most in docstrings, annotations and messages.

    Args:
        node: The function or class.
        without: Statements in it that are read by themselves and are no part of its form.
    """
    plain = _Plain(without).visit(node)
    return hashlib.sha256(ast.unparse(plain).encode()).hexdigest()[:16]


class _Copying(ast.NodeTransformer):
    """Makes another tree, and leaves the one that it visits as it is."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """A node of what the parts become."""
        return super().generic_visit(_copied(node)) if node._fields else node


def _copied(node: T) -> T:
    """Another node of the same parts, whose lists may be changed."""
    found = type(node).__new__(type(node))
    for key, part in vars(node).items():
        vars(found)[key] = [*part] if isinstance(part, list) else part
    return found


class _Plain(_Copying):
    """Takes docstrings, annotations, messages and the words of log entries out of a tree.

    Args:
        without: Statements that are left out.
    """

    def __init__(self, without: Collection[ast.If]) -> None:
        self._without = without

    def visit_If(self, node: ast.If) -> ast.AST | None:
        """A statement, unless it is left out."""
        return None if node in self._without else self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """A node of what its parts become; a body that is emptied becomes ``pass``."""
        if isinstance(node, ast.expr):  # has none of all that
            return node
        found = super().generic_visit(node)
        if isinstance(found, (ast.FunctionDef, ast.ClassDef, ast.If)) and not found.body:
            found.body = [ast.Pass()]
        return found

    def visit_arg(self, node: ast.arg) -> ast.arg:
        """A parameter without its annotation."""
        found = _copied(node)
        found.annotation = None
        return found

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """A function without its return annotation."""
        found = _copied(node)
        found.returns = None
        return self.generic_visit(found)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        """An assignment without its annotation; a declaration keeps its name."""
        if node.value is None:
            return ast.Expr(value=node.target)
        return ast.Assign(targets=[node.target], value=node.value, lineno=node.lineno)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """An expression, unless it is a docstring; of a log entry, all but the words."""
        if is_docstring(node):
            return None
        match node.value:
            case ast.Call(func=ast.Name(id=name)) as call if name in _LOGS:
                return ast.Expr(value=_Wordless().visit(call))
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        """An exception without its message."""
        match node.exc:
            case ast.Call(func=ast.Name() as kind):
                return ast.Raise(exc=kind, cause=node.cause)
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        """An assertion without its message."""
        return ast.Assert(test=node.test, msg=None)


class _Wordless(_Copying):
    """Takes the words out of formatted text and leaves what is computed for it."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """The values of a formatted text."""
        values = [part for part in node.values if isinstance(part, ast.FormattedValue)]
        return ast.Tuple(elts=[part.value for part in values], ctx=ast.Load())

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        """A literal; of a text, that it is one."""
        return ast.Constant(value="") if isinstance(node.value, str) else node
