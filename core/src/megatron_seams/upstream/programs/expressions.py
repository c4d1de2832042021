"""Expressions of upstream's programs, evaluated on known values."""

import ast
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import attrs

from megatron_seams.upstream.config_fields import (
    UNREAD,
    ClassReader,
    NotUnderstoodError,
    literal,
)
from megatron_seams.upstream.programs import builtin
from megatron_seams.upstream.programs.values import (
    Closure,
    Defined,
    Member,
    Origin,
    Outside,
    Record,
    Table,
    Value,
    contains,
    copied,
    iterated,
    known,
    same,
    truth,
    unpacked,
)

#: Names that no file has to import.
_BUILTINS: Final = frozenset(
    {"abs", "all", "any", "bool", "dict", "enumerate", "exit", "float", "getattr", "hasattr", "int"}
    | {"isinstance", "len", "list", "max", "min", "print", "range", "round", "set", "setattr"}
    | {"sorted", "str", "sum", "super", "tuple", "zip"}
)


@attrs.define(eq=False)
class Frame:
    """The names of one function while it is followed.

    Attributes:
        path: The file that the function is in.
        names: Local name -> value.
        imports: Local name -> the statement that imports it.
        owner: The class that the function is a method of.
        unsure: How many enclosing statements may or may not be executed.
        under: What decided that the present statement is executed.
        returned: What it returned, once it has.
    """

    path: str
    names: dict[str, Value]
    imports: dict[str, ast.ImportFrom] = attrs.field(factory=dict)
    owner: Defined | None = None
    unsure: int = 0
    under: Origin = attrs.field(factory=Origin)
    returned: Value | None = None


class Expressions:
    """Evaluates expressions in the frame of the function that is followed.

    Args:
        reader: Of the Megatron.
    """

    def __init__(self, reader: ClassReader) -> None:
        self._reader = reader
        self._frame = Frame(path="", names={})
        self._read = Origin()
        self._classes: dict[Defined, Mapping[str, Value]] = {}
        self._constants: dict[ast.expr, Any] = {}

    # --- what is read ------------------------------------------------------------------------

    def _isolated(self, node: ast.expr | None) -> Value:
        """An expression's value with the inputs that it alone reads."""
        outer, self._read = self._read, Origin()
        try:
            value = self._value(node) if node is not None else None
            return Value(value, self._read)
        finally:
            self._read = outer

    def _note(self, value: Value) -> Any:
        self._read |= value.origin
        if value.value is None:
            self._read |= Origin(unset=value.origin.data)
        return value.value

    def _value(self, node: ast.expr) -> Any:
        evaluate: Callable[[Any], Any] | None = getattr(self, f"_{type(node).__name__}", None)
        return evaluate(node) if evaluate is not None else UNREAD

    # --- names -------------------------------------------------------------------------------

    def _Name(self, node: ast.Name) -> Any:  # noqa: N802  # named for the node
        frame, name = self._frame, node.id
        if name in frame.names:
            return self._note(frame.names[name])
        if name in frame.imports:
            return self.imported(frame.path, frame.imports[name], name)
        return self.top_level(frame.path, name)

    def top_level(self, path: str, name: str) -> Any:
        """The value of a name at the top of a file."""
        found = self._reader.definition(path, name)
        match found:
            case None if self._reader.binds(path, name):
                return UNREAD
            case None:
                return Outside(name) if name in _BUILTINS else UNREAD
            case where, ast.ClassDef() | ast.FunctionDef() as node:
                return Defined(path=where, name=node.name, node=node)
            case where, ast.ImportFrom() as node:
                return self.imported(where, node, name)
            case _, ast.Import() as node:
                alias = next(a for a in node.names if name in (a.asname, a.name.split(".")[0]))
                return Outside(alias.name if alias.asname else name)
            case where, ast.Assign(targets=[ast.Name()], value=value):
                return self.constant(where, value)
            case where, ast.AnnAssign(target=ast.Name(), value=ast.expr() as value):
                return self.constant(where, value)
        return UNREAD

    def constant(self, path: str, expression: ast.expr | None) -> Any:
        """The value of an expression at the top of a file; UNREAD for None and for a call."""
        if expression is None or isinstance(expression, ast.Call):
            return UNREAD
        if expression not in self._constants:
            self._constants[expression] = UNREAD  # for one that mentions itself
            outer, self._frame = self._frame, Frame(path=path, names={})
            try:
                self._constants[expression] = self._isolated(expression).value
            finally:
                self._frame = outer
        return copied(self._constants[expression])

    def imported(self, path: str, node: ast.ImportFrom, name: str) -> Any:
        """The value that an import statement in the file at ``path`` binds a name to."""
        original = next(a.name for a in node.names if name in (a.asname, a.name))
        target = self._reader.imported(path, node)
        if target is not None:
            return self.top_level(target, original)
        if node.level or (node.module or "").split(".")[0] == "megatron":
            return UNREAD
        return Outside(f"{node.module}.{original}")

    def _Attribute(self, node: ast.Attribute) -> Any:  # noqa: N802
        owner = self._value(node.value)
        match owner:
            case Table():
                return UNREAD
            case Record():
                return self._note(owner.read(node.attr))
            case Outside(name=name):
                return Outside(f"{name}.{node.attr}")
            case Defined(node=ast.ClassDef()):
                return self.class_attribute(owner, node.attr)
            case Member(text=text) if node.attr == "name":
                return owner.name
            case Member(text=text) if node.attr == "value" and text is not None:
                return text
        return UNREAD

    def class_attribute(self, cls: Defined, name: str) -> Any:
        """A member of an enumeration, or what the body of a class assigns."""
        members = self._reader.members(cls.path, cls.name) or ()
        if name in members:
            return self._member(cls, name)
        if cls not in self._classes:
            self._classes[cls] = self._class_body(cls)
        return self._classes[cls].get(name, Value(UNREAD)).value

    def _member(self, cls: Defined, name: str) -> Member:
        assert isinstance(cls.node, ast.ClassDef)  # noqa: S101  # for mypy: members() found it
        strings = any(ast.unparse(base) in ("str", "StrEnum") for base in cls.node.bases)
        text = next(
            (
                literal(statement.value)
                for statement in cls.node.body
                if isinstance(statement, ast.Assign)
                and any(isinstance(t, ast.Name) and t.id == name for t in statement.targets)
            ),
            None,
        )
        return Member(cls, name, text if strings and isinstance(text, str) else None)

    def _class_body(self, cls: Defined) -> Mapping[str, Value]:
        outer, self._frame = self._frame, Frame(path=cls.path, names={})
        try:
            for statement in cls.node.body:
                match statement:
                    case ast.Assign(targets=[ast.Name(id=name)], value=value):
                        self._frame.names[name] = self._isolated(value)
            return self._frame.names
        finally:
            self._frame = outer

    # --- literals ----------------------------------------------------------------------------

    def _Constant(self, node: ast.Constant) -> Any:  # noqa: N802
        return node.value

    def _List(self, node: ast.List) -> Any:  # noqa: N802
        return self._elements(node.elts)

    def _Tuple(self, node: ast.Tuple) -> Any:  # noqa: N802
        found = self._elements(node.elts)
        return found if found is UNREAD else tuple(found)

    def _Set(self, node: ast.Set) -> Any:  # noqa: N802
        found = self._elements(node.elts)
        return set(found) if known(found) and not any(map(_nested, found)) else UNREAD

    def _elements(self, nodes: list[ast.expr]) -> Any:
        if any(isinstance(node, ast.Starred) for node in nodes):
            return UNREAD
        return [self._value(node) for node in nodes]

    def _Dict(self, node: ast.Dict) -> Any:  # noqa: N802
        made = Table({})
        for key, value in zip(node.keys, node.values, strict=True):
            name = UNREAD if key is None else self._value(key)
            if not known(name) or _nested(name):
                made.closed = False
                self._value(value)
            else:
                made.values[name] = self._isolated(value)
        return made

    def _JoinedStr(self, node: ast.JoinedStr) -> str:  # noqa: N802
        parts = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                value = self._value(part.value)
                plain = isinstance(value, str | int | float) or value is None
                shown = builtin.computed(str, value) if plain else UNREAD
                parts.append(ast.unparse(part.value) if shown is UNREAD else shown)
            elif isinstance(part, ast.Constant):
                parts.append(str(part.value))
        return "".join(parts)

    def _Lambda(self, node: ast.Lambda) -> Any:  # noqa: N802
        return Closure(path=self._frame.path, node=node, names=dict(self._frame.names))

    # --- operators ---------------------------------------------------------------------------

    def _UnaryOp(self, node: ast.UnaryOp) -> Any:  # noqa: N802
        value = self._value(node.operand)
        if isinstance(node.op, ast.Not):
            found = truth(value)
            return UNREAD if found is UNREAD else not found
        function = builtin.UNARY.get(type(node.op).__name__)
        return builtin.computed(function, value) if function else UNREAD

    def _BinOp(self, node: ast.BinOp) -> Any:  # noqa: N802
        function = builtin.BINARY.get(type(node.op).__name__)
        left, right = self._value(node.left), self._value(node.right)
        return builtin.computed(function, left, right) if function else UNREAD

    def _BoolOp(self, node: ast.BoolOp) -> Any:  # noqa: N802
        decides = isinstance(node.op, ast.Or)  # the truth that ends it
        unread = False
        value: Any = not decides
        for part in node.values:
            value = self._value(part)
            found = truth(value)
            unread = unread or found is UNREAD
            if found is decides:
                return decides if unread else value
        return UNREAD if unread else value

    def _IfExp(self, node: ast.IfExp) -> Any:  # noqa: N802
        test = self._isolated(node.test)
        self._read |= test.origin.as_control()
        found = truth(test.value)
        if found is UNREAD:
            one, other = self._value(node.body), self._value(node.orelse)
            return one if same(one, other) is True else UNREAD
        return self._value(node.body if found else node.orelse)

    def _Compare(self, node: ast.Compare) -> Any:  # noqa: N802
        left = self._value(node.left)
        found: Any = True
        for operator, comparator in zip(node.ops, node.comparators, strict=True):
            right = self._value(comparator)
            one = self._compared(type(operator).__name__, left, right)
            if one is False:
                return False
            found = UNREAD if one is UNREAD else found
            left = right
        return found

    def _compared(self, operator: str, left: Any, right: Any) -> Any:
        match operator:
            case "Eq" | "Is":
                return same(left, right)
            case "NotEq" | "IsNot":
                found = same(left, right)
                return UNREAD if found is UNREAD else not found
            case "In":
                return contains(right, left)
            case "NotIn":
                found = contains(right, left)
                return UNREAD if found is UNREAD else not found
        return builtin.computed(builtin.ORDERED[operator], left, right)

    def _Subscript(self, node: ast.Subscript) -> Any:  # noqa: N802
        owner = self._value(node.value)
        if isinstance(node.slice, ast.Slice):
            given = node.slice
            ends = [self._value(end) if end else None for end in (given.lower, given.upper)]
            if given.step is None and isinstance(owner, str | list | tuple):
                plain = all(end is None or isinstance(end, int) for end in ends)
                return owner[ends[0] : ends[1]] if plain else UNREAD
            return UNREAD
        key = self._value(node.slice)
        match owner:
            case Table() if known(key) and not _nested(key):
                return self._note(owner.read(key))
            case str() | list() | tuple() if isinstance(key, int):
                return owner[key] if -len(owner) <= key < len(owner) else UNREAD
            case Defined(node=ast.ClassDef()) if isinstance(key, str):
                members = self._reader.members(owner.path, owner.name) or ()
                return self._member(owner, key) if key in members else UNREAD
        return UNREAD

    # --- comprehensions ----------------------------------------------------------------------

    def _ListComp(self, node: ast.ListComp) -> Any:  # noqa: N802
        return self._comprehension(node.generators, node.elt)

    def _GeneratorExp(self, node: ast.GeneratorExp) -> Any:  # noqa: N802
        return self._comprehension(node.generators, node.elt)

    def _SetComp(self, node: ast.SetComp) -> Any:  # noqa: N802
        found = self._comprehension(node.generators, node.elt)
        return set(found) if known(found) and not any(map(_nested, found)) else UNREAD

    def _comprehension(self, generators: list[ast.comprehension], element: ast.expr) -> Any:
        if not generators:
            return [self._value(element)]
        first, *rest = generators
        values = iterated(self._value(first.iter))
        if values is None:
            return UNREAD
        found: list[Any] = []
        with self._scope():
            for value in values:
                self.bind(first.target, Value(value))
                kept = [truth(self._value(test)) for test in first.ifs]
                if False in kept:
                    continue
                more = UNREAD if UNREAD in kept else self._comprehension(rest, element)
                if more is UNREAD:
                    return UNREAD
                found += more
        return found

    @contextlib.contextmanager
    def _scope(self) -> Iterator[None]:
        outer = dict(self._frame.names)
        try:
            yield
        finally:
            self._frame.names = outer

    def bind(self, target: ast.expr, value: Value) -> None:
        """Bind the names of a target that is no attribute and no subscript."""
        match target:
            case ast.Name(id=name):
                self._frame.names[name] = value
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                for part, each in unpacked(elts, value):
                    self.bind(part, each)


def fields_of(reader: ClassReader, cls: Defined) -> list[Record] | None:
    """The result of ``dataclasses.fields`` for a class; None if it is not understood."""
    located = reader.find(cls.path, cls.name)
    try:
        found = reader.fields(located) if located else None
    except NotUnderstoodError:
        return None
    if not found:
        return None
    return [Record({"name": Value(name)}, cls=cls, closed=False) for name in found]


def _nested(value: Any) -> bool:
    return isinstance(value, list | set | dict | Record)
