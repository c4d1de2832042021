"""Upstream's functions, followed statement by statement on known values.

Nothing is concluded from an unknown value: both branches of a test that is not known are
followed as if each may have been taken, and what they assign is unknown afterwards unless it is
what it was. Only an assertion that surely fails, or a ``raise`` that is surely reached, is a fault.
"""

import ast
import contextlib
from collections.abc import Iterator
from typing import Any

import attrs

from megatron_seams.upstream.config_fields import UNREAD, ClassReader
from megatron_seams.upstream.programs.calls import Calls, ReturnedError, StoppedError, forget
from megatron_seams.upstream.programs.values import (
    Defined,
    Origin,
    Outside,
    Record,
    Table,
    Value,
    iterated,
    same,
    truth,
    unpacked,
)


@attrs.frozen
class Fault:
    """An assertion that fails, or an error that is raised.

    Attributes:
        message: What upstream says; the condition where it says nothing.
        origin: The inputs that it depends on.
    """

    message: str
    origin: Origin


class _LoopError(Exception):
    """A loop's body was left by ``break`` or ``continue``."""

    def __init__(self, *, ends: bool) -> None:
        self.ends = ends
        super().__init__()


class Interpreter(Calls):
    """Follows functions, and keeps the faults that they surely run into.

    Args:
        reader: Of the Megatron.
    """

    def __init__(self, reader: ClassReader) -> None:
        super().__init__(reader)
        self.faults: list[Fault] = []

    def run(self, function: Defined, *given: Any, owner: Defined | None = None) -> Value:
        """Follow a function from its beginning.

        Args:
            function: The function.
            *given: Its positional arguments; a :class:`Record` is changed as the function does.
            owner: The class that it is a method of.

        Returns:
            Its result; UNREAD if that is not known or it does not come to its end.
        """
        try:
            return self.called(function, [Value(value) for value in given], {}, owner)
        except StoppedError:
            return Value(UNREAD)

    def follow(self, body: list[ast.stmt]) -> None:
        """Follow statements, in the frame of their function."""
        for statement in body:
            follow = getattr(self, f"_do_{type(statement).__name__}", self._do_unknown)
            outer, self._read = self._read, Origin()
            try:
                follow(statement)
            finally:
                self._read = outer

    def _do_unknown(self, node: ast.stmt) -> None:
        """A statement that is not followed: everything that it may assign is unknown."""
        with self._unsure():
            for part in ast.walk(node):
                if isinstance(part, ast.Name | ast.Attribute | ast.Subscript) and isinstance(
                    part.ctx, ast.Store | ast.Del
                ):
                    self.store(part, Value(UNREAD))

    def _do_Pass(self, node: ast.stmt) -> None:  # noqa: N802
        del node

    _do_Global = _do_Nonlocal = _do_Pass  # noqa: N815

    def _do_Expr(self, node: ast.Expr) -> None:  # noqa: N802
        self._value(node.value)

    def _do_Assign(self, node: ast.Assign) -> None:  # noqa: N802
        value = self._isolated(node.value)
        for target in node.targets:
            self.store(target, value)

    def _do_AnnAssign(self, node: ast.AnnAssign) -> None:  # noqa: N802
        if node.value is not None:
            self.store(node.target, self._isolated(node.value))

    def _do_AugAssign(self, node: ast.AugAssign) -> None:  # noqa: N802
        joined = ast.BinOp(left=_loaded(node.target), op=node.op, right=node.value)
        self.store(node.target, self._isolated(joined))

    def _do_Delete(self, node: ast.Delete) -> None:  # noqa: N802
        for target in node.targets:
            owner = self._value(target.value) if isinstance(target, ast.Attribute) else None
            if isinstance(owner, Record) and isinstance(target, ast.Attribute):
                if self._frame.unsure:
                    owner.values[target.attr] = Value(UNREAD)
                else:
                    owner.values.pop(target.attr, None)
            else:
                self.store(target, Value(UNREAD))

    def _do_Import(self, node: ast.Import) -> None:  # noqa: N802
        for alias in node.names:
            name = alias.name if alias.asname else alias.name.split(".")[0]
            self._frame.names[alias.asname or name] = Value(Outside(name))

    def _do_ImportFrom(self, node: ast.ImportFrom) -> None:  # noqa: N802
        for alias in node.names:
            name = alias.asname or alias.name
            self._frame.names.pop(name, None)
            self._frame.imports[name] = node

    def _do_Assert(self, node: ast.Assert) -> None:  # noqa: N802
        test = self._isolated(node.test)
        if truth(test.value) is False and not self._frame.unsure:
            message = self._value(node.msg) if node.msg else UNREAD
            text = message if isinstance(message, str) else ast.unparse(node.test)
            self.faults.append(Fault(text, test.origin | self._frame.under))

    def _do_Raise(self, node: ast.Raise) -> None:  # noqa: N802
        if self._frame.unsure:
            return
        message: Any = UNREAD
        if isinstance(node.exc, ast.Call) and node.exc.args:
            message = self._value(node.exc.args[0])
        text = message if isinstance(message, str) else ast.unparse(node)
        self.faults.append(Fault(text, self._frame.under))
        raise StoppedError

    def _do_Return(self, node: ast.Return) -> None:  # noqa: N802
        value = self._isolated(node.value)
        value = Value(value.value, value.origin | self._frame.under.as_control())
        if self._frame.unsure:
            # It may have returned here: what follows may not be executed.
            self._frame.unsure += 1
            self._frame.returned = Value(UNREAD, value.origin)
            return
        self._frame.returned = value
        raise ReturnedError

    def _do_If(self, node: ast.If) -> None:  # noqa: N802
        test = self._isolated(node.test)
        found = truth(test.value)
        with self._under(test.origin):
            if found is not UNREAD:
                self.follow(node.body if found else node.orelse)
                return
            with self._unsure():
                self.follow(node.body)
                self.follow(node.orelse)

    def _do_For(self, node: ast.For) -> None:  # noqa: N802
        over = self._isolated(node.iter)
        values = iterated(over.value)
        with self._under(over.origin), contextlib.ExitStack() as uncertain:
            if values is None:
                uncertain.enter_context(self._unsure())
            for value in [UNREAD] if values is None else values:
                self.store(node.target, Value(value, over.origin))
                try:
                    self.follow(node.body)
                except _LoopError as left:
                    if left.ends:
                        return
            self.follow(node.orelse)

    def _do_While(self, node: ast.While) -> None:  # noqa: N802
        with self._unsure():
            self.follow(node.body)

    def _do_Break(self, node: ast.stmt) -> None:  # noqa: N802
        if not self._frame.unsure:
            raise _LoopError(ends=isinstance(node, ast.Break))
        self._frame.unsure += 1  # for good: what follows in the loop may not be executed

    _do_Continue = _do_Break  # noqa: N815

    def _do_With(self, node: ast.With) -> None:  # noqa: N802
        for item in node.items:
            if item.optional_vars is not None:
                self.store(item.optional_vars, Value(UNREAD))
        self.follow(node.body)

    def _do_Try(self, node: ast.Try) -> None:  # noqa: N802
        with self._unsure():
            self.follow(node.body)
            for handler in node.handlers:
                self.follow(handler.body)
            self.follow(node.orelse)
        self.follow(node.finalbody)

    # --- stores ------------------------------------------------------------------------------

    def store(self, target: ast.expr, value: Value) -> None:
        """Assign to a name, an attribute or a key, or to several."""
        match target:
            case ast.Name(id=name):
                before = self._frame.names.get(name)
                self._frame.names[name] = self._joined(before, value)
            case ast.Attribute(value=owner, attr=name):
                holder = self._value(owner)
                if isinstance(holder, Record) and not isinstance(holder, Table):
                    self.put(holder, name, value)
            case ast.Subscript(value=owner, slice=index):
                holder, key = self._value(owner), self._value(index)
                if isinstance(holder, Table) and isinstance(key, str | int | None):
                    self.put(holder, key, value)
                elif isinstance(holder, Table):
                    forget(holder)
                elif isinstance(holder, list | set):
                    self.store(owner, Value(UNREAD))
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                for part, each in unpacked(elts, value):
                    self.store(part, each)

    def put(self, holder: Record, name: Any, value: Value) -> None:
        """Assign an attribute or a key; unknown afterwards where it may not be executed."""
        holder.values[name] = self._joined(holder.values.get(name), value)

    def _joined(self, before: Value | None, value: Value) -> Value:
        origin = value.origin | self._frame.under.as_control()
        if not self._frame.unsure:
            return Value(value.value, origin)
        if before is not None and same(before.value, value.value) is True:
            return Value(before.value, before.origin | origin)
        return Value(UNREAD, origin | (before.origin if before else Origin()))

    @contextlib.contextmanager
    def _unsure(self) -> Iterator[None]:
        self._frame.unsure += 1
        try:
            yield
        finally:
            self._frame.unsure -= 1

    @contextlib.contextmanager
    def _under(self, origin: Origin) -> Iterator[None]:
        outer = self._frame.under
        self._frame.under = outer | origin
        try:
            yield
        finally:
            self._frame.under = outer


def _loaded(target: ast.expr) -> ast.expr:
    match target:
        case ast.Name(id=name):
            return ast.Name(id=name, ctx=ast.Load())
        case ast.Attribute(value=owner, attr=name):
            return ast.Attribute(value=owner, attr=name, ctx=ast.Load())
        case ast.Subscript(value=owner, slice=index):
            return ast.Subscript(value=owner, slice=index, ctx=ast.Load())
    return target
