"""The command line of one Megatron, read from the source of its argument parser.

The calls are followed from the function that makes the parser, and only unconditional ones count: a
function that nothing calls adds no flag, and neither does one whose package may not be installed.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import attrs

from megatron_seams.upstream.ast_queries import is_docstring
from megatron_seams.upstream.config_fields import (
    UNREAD,
    ClassReader,
    Located,
    NotUnderstoodError,
    literal,
)
from megatron_seams.upstream.flags import ARGUMENTS, Flag, of_call, of_field
from megatron_seams.upstream.source import MegatronSource

_ENTRY: Final = "add_megatron_arguments"
_GROUPS: Final = ("add_argument_group", "add_mutually_exclusive_group")

#: SHA-256 of the words (see :func:`_words`) of upstream's ``ArgumentGroupFactory``, from 0.16 to
#: main of 2026-08. With other words its rules may be others, and its flags are unknown.
_FACTORY_RULES: Final = "e90f71fb661490ec3aa50bb1f918b810f20229ca5eff0d2cae57cf698e293ce4"


@attrs.frozen(kw_only=True)
class CommandLine:
    """The flags of one Megatron.

    Attributes:
        flags: Spelling -> flag, for all spellings.
        unread: Why there may be further flags, one sentence each.
    """

    flags: Mapping[str, Flag] = attrs.field(factory=dict)
    unread: tuple[str, ...] = ()


def read_command_line(source: MegatronSource, reader: ClassReader) -> CommandLine:
    """Read the flags.

    Args:
        source: The Megatron.
        reader: The reader of its classes.

    Raises:
        SurfaceUnknown: A file is not Python that this interpreter can read.
    """
    tree = reader.tree(ARGUMENTS)
    if tree is None:
        return CommandLine(unread=(f"megatron/{ARGUMENTS} is not in {source.origin}",))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if _ENTRY not in functions:
        return CommandLine(unread=(f"megatron/{ARGUMENTS} has no {_ENTRY}",))
    walk = _Walk(functions, reader)
    try:
        walk.function(_ENTRY)
    except NotUnderstoodError as error:
        return CommandLine(unread=(f"megatron/{ARGUMENTS}: {error}",))
    flags: dict[str, Flag] = {}
    twice: set[str] = set()
    for flag in walk.flags:
        twice |= flags.keys() & set(flag.names)
        flags |= dict.fromkeys(flag.names, flag)
    # argparse takes no name twice: of two declarations at least one was misread.
    doubted = {name for name in twice for name in flags[name].names}
    return CommandLine(
        flags={name: flag for name, flag in flags.items() if name not in doubted},
        unread=(*walk.unread, *(f"{name} is declared twice" for name in sorted(twice))),
    )


class _Walk:
    """Follows the parser through the functions that add flags to it, and collects the flags."""

    def __init__(self, functions: Mapping[str, ast.FunctionDef], reader: ClassReader) -> None:
        self._functions = functions
        self._reader = reader
        self.flags: list[Flag] = []
        self.unread: list[str] = []

    def function(self, name: str) -> None:
        """Follow one function.

        Raises:
            NotUnderstoodError: It does something to the parser itself that may change any flag.
        """
        node = self._functions[name]
        if len(node.args.args) != 1 or node.decorator_list:
            message = f"{name} takes more than the parser"
            raise NotUnderstoodError(message)
        scope = _Scope(name, node.args.args[0].arg)
        before = len(self.flags)
        for statement in node.body:
            self._statement(statement, scope)
        if scope.lost:
            del self.flags[before:]
            self.unread.append(f"{name}: {scope.lost}")

    def _statement(self, node: ast.stmt, scope: "_Scope") -> None:
        match node:
            case ast.Pass():
                return
            case ast.Return(value=ast.Name()):
                return
            case ast.ImportFrom() as statement:
                scope.imports |= {alias.asname or alias.name: statement for alias in node.names}
                return
            case ast.If(body=body, orelse=orelse) if not scope.touched(node.test):
                self._conditional([*body, *orelse], scope)
                return
            case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=final):
                caught = [part for handler in handlers for part in handler.body]
                self._conditional([*body, *caught, *orelse, *final], scope)
                return
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                if self._call(call, scope, name):
                    return
            case ast.Expr(value=ast.Tuple(elts=elts)):
                if all(isinstance(e, ast.Call) and self._call(e, scope, None) for e in elts):
                    return
            case ast.Expr(value=ast.Call() as call):
                if self._call(call, scope, None):
                    return
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if (
                not scope.touched(value) and literal(value) is not UNREAD
            ):
                scope.forget(node)
                scope.values[name] = literal(value)
                return
        if is_docstring(node):
            return
        if any(isinstance(part, ast.Name) and part.id == scope.parser for part in ast.walk(node)):
            message = f"{scope.name}: {ast.unparse(node)[:80]}"
            raise NotUnderstoodError(message)
        if scope.touched(node):
            scope.lost = ast.unparse(node)[:80]
        scope.forget(node)

    def _conditional(self, body: Iterable[ast.stmt], scope: "_Scope") -> None:
        """Follow statements under a condition; flags that they add are reported as unread."""
        before = len(self.flags)
        for node in body:
            self._statement(node, scope)
        for flag in self.flags[before:]:
            self.unread.append(f"{scope.name}: {flag.names[0]} is there under a condition")
        del self.flags[before:]

    def _call(self, call: ast.Call, scope: "_Scope", bound: str | None) -> bool:
        """Follow one call whose value is bound to a name or dropped; False if not understood."""
        match call.func, call.args:
            case ast.Name(id=name), [ast.Name(id=given)] if (
                given == scope.parser and name in self._functions and bound in (given, None)
            ):
                self.function(name)
                return not call.keywords
            case ast.Attribute(value=ast.Name(id=owner), attr=attr), _ if (
                attr in _GROUPS and scope.holds(owner) and bound not in (None, scope.parser)
            ):
                scope.groups.add(str(bound))
                return True
            case ast.Attribute(value=ast.Name(id=owner), attr="add_argument"), _ if scope.holds(
                owner
            ):
                try:
                    self.flags.append(of_call(call))
                except NotUnderstoodError as error:
                    self.unread.append(f"{scope.name}: {error}")
                return True
            case ast.Attribute(value=owner, attr="build_group"), [ast.Name(id=given), *_] if (
                given == scope.parser and bound != scope.parser
            ):
                self._build_group(owner, scope)
                if bound is not None:
                    scope.groups.add(bound)
                return True
            case ast.Name(id=name), [ast.Name(), *_] if (
                bound is not None and name[0].isupper() and not scope.touched(call)
            ):
                made = _factory(call, scope)
                scope.forget(ast.Name(id=bound))
                scope.factories[bound] = made
                return True
        return False

    def _build_group(self, owner: ast.expr, scope: "_Scope") -> None:
        """Add the flags that a factory makes of a dataclass."""
        made = scope.factories.get(owner.id) if isinstance(owner, ast.Name) else None
        if isinstance(owner, ast.Call):
            made = _factory(owner, scope)
        try:
            self._generate(made, scope)
        except NotUnderstoodError as error:
            self.unread.append(f"{scope.name}: {error}")

    def _generate(self, made: "_Factory | None", scope: "_Scope") -> None:
        if made is None:
            message = "the flags of a factory that is not made in a known way"
            raise NotUnderstoodError(message)
        if not _follows_the_rules(self._class(made.name, scope)):
            message = f"{made.name} makes flags by rules that are not known"
            raise NotUnderstoodError(message)
        located = self._class(made.dataclass, scope)
        if located is None:
            message = f"the flags of {made.dataclass}, which is not to be found"
            raise NotUnderstoodError(message)
        for field in self._reader.fields(located).values():
            if field.init and field.name not in made.exclude:
                try:
                    self.flags.append(of_field(field, self._reader))
                except NotUnderstoodError as error:
                    self.unread.append(f"{scope.name}: {error}")

    def _class(self, name: str, scope: "_Scope") -> Located | None:
        """The class called ``name`` in a function, by the function's own imports first."""
        statement = scope.imports.get(name)
        if statement is None:
            return self._reader.find(ARGUMENTS, name)
        path = self._reader.imported(ARGUMENTS, statement)
        original = next(a.name for a in statement.names if (a.asname or a.name) == name)
        return self._reader.find(path, original) if path else None


class _Scope:
    """The names of one function, as far as it has been followed.

    Attributes:
        name: The function.
        parser: Its name for the parser.
        groups: Its names for groups of arguments.
        factories: Its names for factories; None where one was made in an unknown way.
        values: Its names for literals -> their values.
        imports: The names that it imports -> the statement.
        lost: The statement whose effect on its groups is unknown; empty without one.
    """

    def __init__(self, name: str, parser: str) -> None:
        self.name = name
        self.parser = parser
        self.groups: set[str] = set()
        self.factories: dict[str, _Factory | None] = {}
        self.values: dict[str, Any] = {}
        self.imports: dict[str, ast.ImportFrom] = {}
        self.lost = ""

    def holds(self, name: str) -> bool:
        """Whether a name is the parser or one of its groups."""
        return name == self.parser or name in self.groups

    def touched(self, node: ast.AST) -> bool:
        """Whether the parser or a group is mentioned anywhere in ``node``."""
        return any(isinstance(part, ast.Name) and self.holds(part.id) for part in ast.walk(node))

    def forget(self, node: ast.AST) -> None:
        """Drop what is known of the names in a statement, which may have changed them."""
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                self.values.pop(part.id, None)
                self.factories.pop(part.id, None)


@attrs.frozen(kw_only=True)
class _Factory:
    """A call of upstream's factory: its name, the dataclass and the fields that are left out."""

    name: str
    dataclass: str
    exclude: tuple[str, ...]


def _factory(call: ast.Call, scope: _Scope) -> _Factory | None:
    """The factory that a call makes; None if it is called in an unknown way."""
    match call:
        case ast.Call(func=ast.Name(id=name), args=[ast.Name(id=given)], keywords=[]):
            return _Factory(name=name, dataclass=given, exclude=())
        case ast.Call(
            func=ast.Name(id=name),
            args=[ast.Name(id=given)],
            keywords=[ast.keyword(arg="exclude", value=value)],
        ):
            exclude = literal(value)
            if isinstance(value, ast.Name):
                exclude = scope.values.get(value.id)
            if isinstance(exclude, list):
                return _Factory(name=name, dataclass=given, exclude=tuple(exclude))
    return None


def _follows_the_rules(factory: Located | None) -> bool:
    """Whether a factory makes flags by the rules that :func:`of_field` follows."""
    if factory is None:
        return False
    text = " ".join(_words(factory.node))
    return hashlib.sha256(text.encode()).hexdigest() == _FACTORY_RULES


def _words(node: ast.AST) -> Iterator[str]:
    """Names, constants and operators of a class in their order, the same for every Python version.

    Messages (f-strings, docstrings) and the method that reads docstrings for the help are left out.
    """
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef(name="_get_field_docstrings") | ast.JoinedStr():
                continue
            case ast.Expr() if is_docstring(child):
                continue
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word):
                yield word
            case ast.keyword(arg=str(word)) | ast.FunctionDef(name=word):
                yield word
            case ast.Constant(value=value):
                yield repr(value)
            case ast.stmt() | ast.operator() | ast.cmpop() | ast.boolop() | ast.unaryop():
                yield type(child).__name__
        yield from _words(child)
