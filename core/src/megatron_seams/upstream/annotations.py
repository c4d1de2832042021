"""The types of upstream's settings, read from the annotations in its source.

A recipe's value has the annotated type or it is refused before anything is built from it. An
annotation that is not understood checks nothing.
"""

import ast
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs

from megatron_seams.upstream.config_fields import UNREAD, ClassReader, literal

#: The spellings of torch's types in a recipe: torch's own names, and those of upstream's flags.
DTYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "float32": "float32",
        "bfloat16": "bfloat16",
        "float16": "float16",
        "fp32": "float32",
        "bf16": "bfloat16",
        "fp16": "float16",
    }
)

_PLAIN: Final[Mapping[str, tuple[type, ...]]] = MappingProxyType(
    {"bool": (bool,), "int": (int,), "float": (float, int), "str": (str,)}
)
_EXPECTED: Final = MappingProxyType(
    {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
)


@attrs.frozen(kw_only=True)
class ValueType:
    """The values that an annotation allows.

    Attributes:
        kind: ``bool``, ``int``, ``float``, ``str``; ``choice`` (one of ``names``); ``enum`` (a name
            of a member); ``dtype``; ``function``; ``none``; ``list`` and ``tuple`` of ``parts``;
            ``union`` of ``parts``.
        names: The choices or the members.
        enum: The enumeration's name and the file of the annotation, for ``enum``.
        parts: One for a list; those of a tuple or a union in order.
    """

    kind: str
    names: tuple[Any, ...] = ()
    enum: tuple[str, str] | None = None
    parts: tuple["ValueType", ...] = ()

    @property
    def expected(self) -> str:
        """The values that a recipe may give, in words."""
        match self.kind:
            case "choice" | "enum":
                return f"one of {', '.join(map(str, self.names))}"
            case "dtype":
                return f"one of {', '.join(DTYPES)}"
            case "function":
                return "a function, which no recipe spells"
            case "list":
                return f"a list, each {self.parts[0].expected}"
            case "tuple":
                return f"a list of {len(self.parts)}: {', '.join(p.expected for p in self.parts)}"
            case "union":
                expected = [part.expected for part in self.parts if part.kind != "none"]
                return " or ".join(dict.fromkeys(expected))
        return _EXPECTED.get(self.kind, "left out")

    def accepts(self, value: Any) -> bool:
        """Whether a recipe's value is of this type; nothing is converted."""
        match self.kind:
            case "choice":
                return any(type(name) is type(value) and name == value for name in self.names)
            case "enum":
                return isinstance(value, str) and value in self.names
            case "dtype":
                return isinstance(value, str) and value in DTYPES
            case "list":
                return isinstance(value, list | tuple) and all(map(self.parts[0].accepts, value))
            case "tuple":
                return (
                    isinstance(value, list | tuple)
                    and len(value) == len(self.parts)
                    and all(p.accepts(v) for p, v in zip(self.parts, value, strict=True))
                )
            case "union":
                return any(part.accepts(value) for part in self.parts)
        # bool is a kind of int to Python, and to nobody who reads a recipe.
        return type(value) in _PLAIN.get(self.kind, ())

    def named(self, kind: str, value: Any) -> "ValueType | None":
        """The part that is the first to take a value by name, if it is of ``kind``."""
        if self.kind == "union":
            taking = [part for part in self.parts if part.accepts(value)]
            return taking[0].named(kind, value) if taking else None
        return self if self.kind == kind and self.accepts(value) else None


def value_type(node: ast.expr | None, path: str, reader: ClassReader) -> ValueType | None:
    """The type that an annotation in the file at ``path`` stands for; None if not understood."""
    match node:
        case ast.Constant(value=None):
            return ValueType(kind="none")
        case ast.Constant(value=str() as text):
            try:
                return value_type(ast.parse(text, mode="eval").body, path, reader)
            except SyntaxError:
                return None
        case ast.Name(id=name) if name in _PLAIN:
            return ValueType(kind=name)
        case ast.Name(id="list" | "List"):
            return None
        case ast.Name(id=name) if (members := reader.members(path, name)) is not None:
            return ValueType(kind="enum", names=members, enum=(path, name))
        case ast.Name() | ast.Attribute():
            last = ast.unparse(node)
            kinds = {"Callable": "function", "torch.dtype": "dtype"}
            return ValueType(kind=kinds[last]) if last in kinds else None
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _union([left, right], path, reader)
        case ast.Subscript(value=value, slice=inner):
            return _generic(ast.unparse(value).rpartition(".")[2], inner, path, reader)
    return None


def _generic(name: str, inner: ast.expr, path: str, reader: ClassReader) -> ValueType | None:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    match name:
        case "Optional":
            return _union([inner, ast.Constant(value=None)], path, reader)
        case "Union":
            return _union(parts, path, reader)
        case "Callable":
            return ValueType(kind="function")
        case "Literal":
            choices = tuple(literal(part) for part in parts)
            return None if UNREAD in choices else ValueType(kind="choice", names=choices)
        case "list" | "List":
            element = value_type(inner, path, reader)
            return element and ValueType(kind="list", parts=(element,))
        case "tuple" | "Tuple":
            found = [value_type(part, path, reader) for part in parts]
            known = tuple(part for part in found if part is not None)
            return ValueType(kind="tuple", parts=known) if len(known) == len(found) else None
    return None


def _union(nodes: list[ast.expr], path: str, reader: ClassReader) -> ValueType | None:
    """A union of which every part is understood: what one is not may accept anything."""
    found = [value_type(node, path, reader) for node in nodes]
    known = tuple(part for part in found if part is not None)
    return ValueType(kind="union", parts=known) if len(known) == len(found) else None
