"""The source text of one megatron-core, and its files as syntax trees.

Only text is read; nothing of Megatron is imported.
"""

import ast
import email
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import attrs
from packaging.version import Version

from megatron_seams.base.toml import TomlError, read_toml
from megatron_seams.base.versions import is_version
from megatron_seams.errors import SurfaceUnknown
from megatron_seams.upstream.ast_queries import bindings

DISTRIBUTION = "megatron-core"
#: A larger file is none of Megatron's, whose largest has a quarter; nor is one that is nested more
#: deeply than this, four times what theirs are.
MAX_BYTES: Final = 1024 * 1024
_MAX_DEPTH: Final = 100
#: The file that states the version.
VERSION = "core/package_info.py"
#: The file that describes a distribution: in a wheel or an installation, in an sdist, in a
#: checkout. The first lies in a folder whose name begins with RECORD.
METADATA, PKG_INFO, PROJECT = "METADATA", "PKG-INFO", "pyproject.toml"
RECORD = "megatron_core-"


@attrs.frozen(kw_only=True, eq=False)
class MegatronSource:
    """The source text of one megatron-core, as it was opened: two openings are two sources.

    Attributes:
        origin: The folder or archive, for messages.
        read: Path inside ``megatron`` -> its bytes, or None if there is no such file.
        metadata: The files beside ``megatron`` that describe the distribution: name -> bytes.
    """

    origin: str
    read: Callable[[str], bytes | None] = attrs.field(repr=False)
    metadata: Callable[[], Mapping[str, bytes]] = attrs.field(default=dict, repr=False)

    def parse(self, path: str) -> ast.Module | None:
        """The syntax tree of a file, or None if there is no such file.

        Raises:
            SurfaceUnknown: It is not Python that this interpreter can read.
        """
        file = self.file(path)
        return file.tree if file else None

    def file(self, path: str) -> "SourceFile | None":
        """A file with its syntax tree, or None if there is no such file.

        Raises:
            SurfaceUnknown: It is not Python that this interpreter can read.
        """
        data = self.read(path)
        if data is None:
            return None
        if len(data) > MAX_BYTES:
            raise unknown_shape(self.origin, f"megatron/{path} has more than {MAX_BYTES:,} bytes")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # of escapes and the like, which are not ours to say
                tree = ast.parse(data)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise unknown_shape(self.origin, f"megatron/{path}: {error!s:.200}") from error
        nodes = _nodes(tree, _MAX_DEPTH)
        if nodes is None:
            found = f"megatron/{path} is nested more than {_MAX_DEPTH} deep"
            raise unknown_shape(self.origin, found)
        return SourceFile(origin=self.origin, path=path, data=data, tree=tree, nodes=nodes)

    def version(self) -> Version:
        """The version that ``package_info.py`` states.

        Its own ``__version__`` runs git; the four constants are what it is made of.

        Raises:
            SurfaceUnknown: The file is missing or states no version in the known form.
        """
        tree = self.parse(VERSION)
        if tree is None:
            raise unknown_shape(self.origin, f"megatron/{VERSION} is not there")
        parts = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        named = ("MAJOR", "MINOR", "PATCH", "PRE_RELEASE")
        stated = {name: _digits(parts.get(name)) for name in named}
        missing = [name for name, value in stated.items() if value is None]
        text = "{}.{}.{}{}".format(*stated.values())
        if missing or not is_version(text):
            why = f"{', '.join(missing)}: no number or text" if missing else f"{text:.200}"
            raise unknown_shape(
                self.origin, f"package_info.py states no version that can be read ({why})"
            )
        return Version(text)

    def requires_python(self) -> str | None:
        """The Pythons that it supports, ``>=3.12``; None where no metadata states them."""
        for name, data in self.metadata().items():
            try:
                if name == PROJECT:
                    stated = read_toml(data).get("project", {}).get("requires-python")
                else:
                    stated = email.message_from_bytes(data)["Requires-Python"]
            except (TomlError, AttributeError, ValueError):  # unreadable, or `project` is no table
                continue
            if isinstance(stated, str):
                return stated
        return None


def _digits(value: object) -> str | None:
    """A constant as text; None for one that is no part of a version, or has too many digits."""
    try:
        return str(value) if isinstance(value, int | str) else None
    except ValueError:
        return None


def _nodes(tree: ast.AST, most: int) -> tuple[ast.AST, ...] | None:
    """Every node of a tree, breadth first; None where it is nested more deeply than ``most``.

    What reads a tree goes down by calling itself.
    """
    level, found = [tree], [tree]
    for _ in range(most):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return tuple(found)
        found += level
    return None


@attrs.frozen(kw_only=True)
class SourceFile:
    """One file of a Megatron's source.

    Attributes:
        origin: The Megatron that it belongs to.
        path: Where it is inside ``megatron``.
        data: Its bytes.
        tree: Its syntax tree.
        nodes: Every node of the tree, breadth first.
    """

    origin: str
    path: str
    data: bytes = attrs.field(repr=False)
    tree: ast.Module = attrs.field(repr=False)
    nodes: tuple[ast.AST, ...] = attrs.field(repr=False)

    @functools.cached_property
    def bound(self) -> Counter[str]:
        """How often each name is bound in the file (see :func:`bindings`)."""
        return bindings(self.nodes)

    def require(self, known: bool, otherwise: str) -> None:
        """Stop reading unless the source is of the known shape.

        Args:
            known: Whether the source is of that shape.
            otherwise: The shape that it has instead, in words.

        Raises:
            SurfaceUnknown: ``known`` is False.
        """
        if not known:
            raise self.unknown(otherwise)

    def unknown(self, found: str) -> SurfaceUnknown:
        """The fault that the file is not of a known shape; ``found`` says what is there."""
        return unknown_shape(self.origin, f"{found} (megatron/{self.path})")


def unknown_shape(origin: str, found: str) -> SurfaceUnknown:
    """The fault of a source that is not of a known shape.

    Args:
        origin: The Megatron.
        found: The shape that it has instead, in words.
    """
    return SurfaceUnknown(
        asked=f"the native surface of the megatron-core at {origin}",
        found=found,
        next="use a megatron-core whose hybrid stack this version reads, or a newer "
        "megatron-seams; until then nothing is native",
        subject=DISTRIBUTION,
        file=origin,
    )
