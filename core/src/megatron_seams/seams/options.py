"""``[options]`` of a manifest: a seam's options as data, which a recipe's are checked by.

A type is written as Python writes one (``int``, ``list[int]``, ``int | str``, ``Literal["a"]``). It
is read here, never evaluated.
"""

import ast
import datetime
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, Union, get_args, get_origin

import attrs
from attrs import field

from megatron_seams.base.structure import KeyFault, faults_of, key_of, types_of
from megatron_seams.base.validators import sentence
from megatron_seams.base.value_types import Reader, reader_of

#: The names that a type is made of.
_NAMES: Final[Mapping[str, Any]] = {
    "any": Any,
    "bool": bool,
    "date": datetime.date,
    "datetime": datetime.datetime,
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "str": str,
    "time": datetime.time,
}
_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]*\Z")


def _type(_: Any, __: Any, value: str) -> None:
    type_of(value)


@attrs.frozen(kw_only=True)
class Option:
    """``[options.KEY]``: a key of a recipe's ``[seams.NAME]``.

    Attributes:
        type: Its type, in Python's spelling: `bool`, `int`, `float`, `str`, `date`, `time`,
            `datetime`, `any`, `list[int]`, `list[int, str]` for an array of two, `dict[str, int]`,
            `int | str`, `Literal["a", "b"]`.
        default: Its value where a recipe leaves it out; without one the seam finds it itself.
        required: Whether a recipe must have it.
        summary: One sentence: what it sets, with its unit.
    """

    type: str = field(validator=_type)
    default: Any = None
    required: bool = False
    summary: str = field(validator=sentence)

    def __attrs_post_init__(self) -> None:
        """Check the keys against one another."""
        if self.default is None:
            return
        if self.required:
            message = "a required option has no default"
            raise ValueError(message)
        self.read(self.default)

    @property
    def read(self) -> Reader:
        """Gives the option's value for one of a recipe, or raises what is wrong with it."""
        return reader_of(type_of(self.type), lambda value, _: value)


def keys_are_options(_: Any, __: Any, value: Mapping[str, Option] | None) -> None:
    """Hold the names of options to keys that a field of a class can have."""
    for key in value or ():
        if not _KEY.match(key):
            message = f"expected an option named like head-dim, found {key!r}"
            raise ValueError(message)


def option_faults(options: Mapping[str, Option], given: Mapping[str, Any]) -> Iterator[KeyFault]:
    """The faults of a recipe's options, by the table of the seam's manifest."""
    for key in sorted(given.keys() - options.keys()):
        known = ", ".join(options) or "none"
        yield KeyFault(key, f"unknown key; known here: {known}")
    for key, option in options.items():
        if key in given:
            try:
                option.read(given[key])
            except Exception as error:  # noqa: BLE001 - whatever is raised becomes a named fault
                yield from faults_of(error, key)
        elif option.required:
            yield KeyFault(key, "required, and missing")


# --- types ------------------------------------------------------------------------------------


def type_of(text: str) -> Any:
    """The type that a manifest writes.

    Raises:
        ValueError: It writes none.
    """
    try:
        return _read(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, TypeError) as error:
        message = (
            f"expected a type like int, list[int], int | str or Literal['a', 'b']; found {text!r}"
        )
        raise ValueError(message) from error


def _read(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return Union[_read(left), _read(right)]  # noqa: UP007 - of two values, not two names
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            values = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return Literal[tuple(_literal(it) for it in values)]
        case ast.Subscript(value=ast.Name(id="list"), slice=ast.Tuple(elts=items)):
            return tuple[tuple(_read(it) for it in items)]  # type: ignore[misc] # computed
        case ast.Subscript(value=ast.Name(id="list"), slice=inner):
            return list[_read(inner)]  # type: ignore[misc] # computed
        case ast.Subscript(
            value=ast.Name(id="dict"), slice=ast.Tuple(elts=[ast.Name(id="str"), inner])
        ):
            return dict[str, _read(inner)]  # type: ignore[misc] # computed
    message = f"{ast.unparse(node)} is no type of an option"
    raise ValueError(message)


def _literal(node: ast.expr) -> bool | int | str:
    match node:
        case ast.Constant(value=bool() | int() | str() as value):
            return value
    message = f"{ast.unparse(node)} is no value that a type can name"
    raise ValueError(message)


# --- the class of a seam's options ------------------------------------------------------------


def class_differences(options: Mapping[str, Option], cls: type) -> Iterator[str]:
    """Every way in which a manifest's table and the attrs class of the options differ.

    ``None`` in the class stands for an option that the seam finds itself where it is left out.
    """
    types = types_of(cls)
    fields = {key_of(it.name): it for it in attrs.fields(cls) if it.init}
    for key in sorted(fields.keys() - options.keys()):
        yield f"{key}: the class has it, and [options] does not"
    for key, option in options.items():
        if key not in fields:
            yield f"{key}: [options] has it, and the class does not"
            continue
        found = fields[key]
        meant, written = spelled(types[found.name]), spelled(type_of(option.type))
        if meant != written:
            yield f"{key}: [options] says {written}, and the class {meant}"
        required = found.default is attrs.NOTHING
        if required != option.required:
            yield f"{key}: {'the class requires it' if required else 'the class has a default'}"
        default = _default(found)
        if _plain(default) != option.default:
            declared = "no default" if option.default is None else f"the default {option.default!r}"
            yield f"{key}: [options] has {declared}, and the class {default!r}"


def spelled(kind: Any) -> str:
    """A type as a manifest writes it; of an optional one, what it is where it is there."""
    origin, arguments = get_origin(kind), get_args(kind)
    names = {of: name for name, of in _NAMES.items()}
    if kind in names:
        return names[kind]
    if attrs.has(kind):
        return "dict[str, any]"
    if origin is Literal:
        return f"Literal[{', '.join(sorted(map(repr, arguments)))}]"
    if origin in (list, tuple, set, frozenset) or "Sequence" in str(origin):
        items = [spelled(it) for it in arguments if it is not Ellipsis]
        return f"list[{', '.join(items)}]"
    if origin is dict or "Mapping" in str(origin):
        return f"dict[str, {spelled(arguments[1])}]"
    if arguments:
        parts = sorted(spelled(it) for it in arguments if it is not type(None))
        return " | ".join(parts)
    return str(kind)


def _default(found: "attrs.Attribute[Any]") -> Any:
    """The default of a field; None where there is none, or where it follows from other fields."""
    default = found.default
    factory = getattr(default, "factory", None)
    if factory is not None:
        return None if getattr(default, "takes_self", False) else factory()
    return None if default is attrs.NOTHING else default


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value
