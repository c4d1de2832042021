"""Calls in upstream's programs: its own functions followed, Python's on known values."""

import ast
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from packaging.version import InvalidVersion, Version

from megatron_seams.upstream.config_fields import UNREAD
from megatron_seams.upstream.programs import builtin
from megatron_seams.upstream.programs.expressions import Expressions, Frame, fields_of
from megatron_seams.upstream.programs.values import (
    Closure,
    Defined,
    Outside,
    Record,
    Table,
    Value,
    known,
)

#: Calls nested deeper than this are not followed: a recursion whose end is not known.
_DEEPEST: Final = 12
#: Decorators that leave a function what it is.
_TRANSPARENT: Final = (
    *("cache", "functools.cache", "lru_cache", "functools.lru_cache"),
    *("staticmethod", "override", "typing.override"),
)


def _torch_is_newer(asked: Any) -> Any:
    """Whether torch is at least ``asked``: known of what every Megatron with a trainer needs."""
    try:
        return True if Version(asked) <= _OLDEST_TORCH else UNREAD
    except (InvalidVersion, TypeError):
        return UNREAD


_OLDEST_TORCH: Final = Version("2.0")
#: Upstream's questions about the machine whose answer is the same on every one.
_SAME_EVERYWHERE: Final[Mapping[str, Callable[[Any], Any]]] = MappingProxyType(
    {"is_torch_min_version": _torch_is_newer}
)


class StoppedError(Exception):
    """The program has raised an error or left the process."""


class ReturnedError(Exception):
    """The function has returned."""


class Calls(Expressions):
    """Evaluates calls; how the body of a function is followed is left to the interpreter."""

    _depth = 0

    def follow(self, body: list[ast.stmt]) -> None:
        """Follow the statements of a function.

        Raises:
            ReturnedError: At its end by ``return``.
            StoppedError: It does not come to its end.
        """
        raise NotImplementedError

    def store(self, target: ast.expr, value: Value) -> None:
        """Assign to a name, an attribute or a key."""
        raise NotImplementedError

    def put(self, holder: Record, name: Any, value: Value) -> None:
        """Assign an attribute or a key of an object."""
        raise NotImplementedError

    def called(
        self,
        function: Defined,
        positional: list[Value],
        keywords: Mapping[str, Value],
        owner: Defined | None = None,
    ) -> Value:
        """The result of a function of Megatron's, with its effects on the arguments."""
        node = function.node
        if not isinstance(node, ast.FunctionDef) or self._depth >= _DEEPEST:
            return Value(UNREAD)
        outer, frame = self._frame, Frame(path=function.path, names={}, owner=owner)
        frame.unsure, frame.under = outer.unsure, outer.under
        self._parameters(frame, node.args, positional, keywords)
        self._frame, self._depth = frame, self._depth + 1
        try:
            self.follow(node.body)
        except ReturnedError:
            pass
        finally:
            self._frame, self._depth = outer, self._depth - 1
        if not all(_transparent(decorator) for decorator in node.decorator_list):
            return Value(UNREAD)
        return frame.returned or Value(None)

    def _parameters(
        self,
        frame: Frame,
        named: ast.arguments,
        positional: list[Value],
        keywords: Mapping[str, Value],
    ) -> None:
        names = [argument.arg for argument in (*named.posonlyargs, *named.args)]
        defaults = dict(zip(reversed(names), reversed(named.defaults), strict=False))
        only = [argument.arg for argument in named.kwonlyargs]
        defaults |= {
            name: default
            for name, default in zip(only, named.kw_defaults, strict=True)
            if default is not None
        }
        outer, self._frame = self._frame, frame
        try:
            for name in (*names, *only):
                default = defaults.get(name)
                frame.names[name] = self._isolated(default) if default else Value(UNREAD)
        finally:
            self._frame = outer
        frame.names |= dict(zip(names, positional, strict=False))
        frame.names |= {name: value for name, value in keywords.items() if name in frame.names}
        for rest in (named.vararg, named.kwarg):
            if rest is not None:
                frame.names[rest.arg] = Value(UNREAD)

    def _Call(self, node: ast.Call) -> Any:  # noqa: N802  # named for the node
        match node.func:
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
                return self._super(name)
            case ast.Attribute(value=owner, attr=name):
                found = self._method(owner, name, node)
                if found is not NotImplemented:
                    return found
        function = self._value(node.func)
        positional = [self._isolated(argument) for argument in node.args]
        keywords = {k.arg: self._isolated(k.value) for k in node.keywords if k.arg is not None}
        spread = [self._value(k.value) for k in node.keywords if k.arg is None]
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        match function:
            case Defined(name=name) if name in _SAME_EVERYWHERE and len(positional) == 1:
                return _SAME_EVERYWHERE[name](positional[0].value)
            case Defined(node=ast.FunctionDef()) if not starred and not spread:
                result = self.called(function, positional, keywords)
                self._read |= result.origin
                return result.value
            case Defined(node=ast.ClassDef()) if not starred and not positional:
                return _made(function, keywords, spread)
        for value in (*positional, *keywords.values()):
            self._read |= value.origin
        if starred or spread:
            return UNREAD
        return self._outside(function, positional, keywords)

    def _super(self, name: str) -> Any:
        owner, this = self._frame.owner, self._frame.names.get("self")
        if owner is None or not isinstance(owner.node, ast.ClassDef):
            return UNREAD
        for base in owner.node.bases:
            above = self.top_level(owner.path, base.id) if isinstance(base, ast.Name) else None
            if this is not None and isinstance(above, Defined):
                found = method_of(self, above, name)
                if found is not None:
                    return self.called(found[1], [this], {}, found[0]).value
        return UNREAD

    def _method(self, owner: ast.expr, name: str, node: ast.Call) -> Any:
        """A method of a plain value or a table; NotImplemented if the callee is none."""
        value = self._value(owner)
        if isinstance(value, Outside | Defined) or (
            isinstance(value, Record) and not isinstance(value, Table)
        ):
            return NotImplemented
        given = [self._value(argument) for argument in node.args]
        given_names = {k.arg: self._value(k.value) for k in node.keywords}
        if name in builtin.CHANGING and isinstance(value, list | set | Table):
            return self._change(owner, value, name, given)
        return UNREAD if given_names else builtin.method(value, name, given)

    def _change(self, target: ast.expr, value: Any, name: str, given: list[Any]) -> Any:
        """A method that changes what it is called on."""
        match value, name, given:
            case Table(), "pop", [key, *default] if known(key):
                before = value.values.get(key, Value(UNREAD if default == [] else default[0]))
                if self._frame.unsure:
                    value.values[key] = Value(UNREAD)
                else:
                    value.values.pop(key, None)
                return before.value
            case Table(), _, _:
                forget(value)
                return UNREAD
        changed = value.copy()
        try:
            getattr(changed, name)(*given)
        except Exception:  # noqa: BLE001  # whatever the program would have raised here
            changed = UNREAD
        self.store(target, Value(changed if known(given) else UNREAD, self._read))
        return UNREAD

    def _outside(
        self, function: Any, positional: list[Value], keywords: Mapping[str, Value]
    ) -> Any:
        given = [value.value for value in positional]
        match function, given:
            case Outside(name="exit" | "sys.exit"), _:
                if not self._frame.unsure:
                    raise StoppedError
            case Outside(name="hasattr"), [Record() as owner, str() as name]:
                return owner.has(name)
            case Outside(name="getattr"), [Record() as owner, str() as name, *default]:
                if owner.has(name) is False and default:
                    return default[0]
                return self._note(owner.read(name))
            case Outside(name="setattr"), [Record() as owner, name, value]:
                if isinstance(name, str):
                    self.put(owner, name, Value(value, positional[2].origin))
                else:
                    forget(owner)
            case Outside(name="dataclasses.fields"), [Defined() as cls]:
                found = fields_of(self._reader, cls)
                return UNREAD if found is None else found
            case Closure(node=node, names=names), _ if not keywords:
                return self._closure(function, node, names, positional)
            case Outside(name=name), _ if not keywords:
                return builtin.call(name, given)
        return UNREAD

    def _closure(
        self, made: Closure, node: ast.Lambda, names: Mapping[str, Value], given: list[Value]
    ) -> Any:
        outer, self._frame = self._frame, Frame(path=made.path, names=dict(names))
        try:
            self._parameters(self._frame, node.args, given, {})
            return self._value(node.body)
        finally:
            self._frame = outer


def method_of(interpreter: Expressions, cls: Defined, name: str) -> tuple[Defined, Defined] | None:
    """A method with the class that defines it: ``cls`` itself or the nearest above; else None."""
    if not isinstance(cls.node, ast.ClassDef):
        return None
    for statement in cls.node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            return cls, Defined(path=cls.path, name=name, node=statement)
    for base in cls.node.bases:
        above = interpreter.top_level(cls.path, base.id) if isinstance(base, ast.Name) else None
        found = method_of(interpreter, above, name) if isinstance(above, Defined) else None
        if found is not None:
            return found
    return None


def _made(cls: Defined, keywords: Mapping[str, Value], spread: list[Any]) -> Any:
    """The object that a class makes of keywords, with nothing but what it was given."""
    values: dict[Any, Value] = {}
    for table in spread:
        if not isinstance(table, Table) or not table.closed:
            return UNREAD
        values |= table.values
    return Record({**values, **keywords}, cls=cls, closed=False)


def forget(record: Record) -> None:
    """Leave nothing known of an object's attributes or a table's keys."""
    record.closed = False
    record.values.update({name: Value(UNREAD) for name in record.values})


def _transparent(decorator: ast.expr) -> bool:
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(function) in _TRANSPARENT
