"""Where a megatron-core's source text comes from: the one in hand, a folder, a wheel, an sdist.

Only text is read; nothing of Megatron is imported.
"""

import ast
import functools
import importlib.machinery
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import attrs
from packaging.version import InvalidVersion, Version

from megatron_seams.base.distributions import Installed, installed, named
from megatron_seams.base.toml import read_toml
from megatron_seams.errors import MegatronDiffers, MegatronMissing, SeamsError, SurfaceUnknown
from megatron_seams.upstream.ast_queries import bindings, walk

DISTRIBUTION = "megatron-core"
VERSION = "core/package_info.py"
#: What describes a distribution: in a wheel or an installation, in an sdist, in a checkout.
RECORD, METADATA, PKG_INFO, PROJECT = "megatron_core-", "METADATA", "PKG-INFO", "pyproject.toml"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class MegatronSource:
    """The source text of one megatron-core.

    Attributes:
        origin: The folder or archive, for messages.
        read: Path inside ``megatron`` -> its bytes, or None if there is no such file.
        about: What lies beside ``megatron`` and describes the distribution: file name -> its bytes.
    """

    origin: str
    read: Callable[[str], bytes | None]
    about: Callable[[], Mapping[str, bytes]] = dict

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
        try:
            tree = ast.parse(data)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise unknown_shape(self.origin, f"megatron/{path}: {error}") from error
        return SourceFile(origin=self.origin, path=path, data=data, tree=tree)

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
        try:
            text = ".".join(str(parts[name]) for name in ("MAJOR", "MINOR", "PATCH"))
            return Version(text + str(parts["PRE_RELEASE"]))
        except (KeyError, InvalidVersion) as error:
            raise unknown_shape(
                self.origin, f"package_info.py states no version that can be read ({error})"
            ) from error

    def requires_python(self) -> str | None:
        """The Pythons that it is for, ">=3.12"; None where its metadata is not there to say."""
        import email

        for name, data in self.about().items():
            try:
                if name == PROJECT:
                    said = read_toml(data).get("project", {}).get("requires-python")
                else:
                    said = email.message_from_bytes(data)["Requires-Python"]
            except (ValueError, AttributeError):  # not TOML, not UTF-8, or another table
                continue
            if isinstance(said, str):
                return said
        return None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class SourceFile:
    """One file of a Megatron's source.

    Attributes:
        origin: The Megatron that it is of.
        path: Where it is inside ``megatron``.
        data: Its bytes.
        tree: Its syntax tree.
    """

    origin: str
    path: str
    data: bytes
    tree: ast.Module

    @functools.cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node of the tree, breadth first."""
        return tuple(walk(self.tree))

    @functools.cached_property
    def bound(self) -> Counter[str]:
        """How often each name is bound in it."""
        return bindings(self.nodes)

    def hold(self, known: bool, otherwise: str) -> None:
        """Go on only if this is so.

        Raises:
            SurfaceUnknown: It is not, and ``otherwise`` says what is there.
        """
        if not known:
            raise unknown_shape(self.origin, f"{otherwise} (megatron/{self.path})")


def unknown_shape(origin: str, what: str) -> SurfaceUnknown:
    """The fault of a source that is not of a known shape."""
    return SurfaceUnknown(
        asked=f"the native surface of the megatron-core at {origin}",
        found=what,
        next="use a megatron-core whose hybrid stack this version reads, or a newer "
        "megatron-seams; until then nothing is native",
        subject=DISTRIBUTION,
        file=origin,
    )


def in_hand(
    projects: Iterable[Installed] | None = None,
) -> tuple[MegatronSource | None, tuple[SeamsError, ...]]:
    """The Megatron that ``import megatron.core`` would load, found without importing it.

    Args:
        projects: What is installed, where that was listed before.

    Returns:
        The source or None, and the finding that an installed distribution is another one.
    """
    found = _importable()
    if found is None:
        return None, ()
    source = _folder(found)
    return source, _differs(source, found, installed() if projects is None else projects)


def missing() -> MegatronMissing:
    """The fault of an environment without any Megatron."""
    return MegatronMissing(
        asked="the megatron-core in hand",
        found="`import megatron.core` would fail: nothing is native",
        next="install it (pip install 'megatron-seams[megatron]'), or plan against a wheel or a "
        "folder that holds one",
        subject=DISTRIBUTION,
    )


def open_source(path: Path) -> MegatronSource:
    """The megatron-core in a folder (checkout, site-packages, ``--target``), wheel or sdist.

    Raises:
        MegatronMissing: There is none in it.
    """
    if path.is_dir():
        for folder in (path / "megatron", path, path.parent):
            if (folder / VERSION).is_file():
                return _folder(folder)
    elif path.is_file():
        from megatron_seams.upstream.archives import open_archive

        if (source := open_archive(path)) is not None:
            return source
    raise MegatronMissing(
        asked=f"the megatron-core at {path}",
        found="no folder, wheel or sdist with megatron/core in it",
        next="name a wheel, an sdist, a checkout or an installation folder",
        subject=DISTRIBUTION,
        file=str(path),
    )


def _importable() -> Path | None:
    # `megatron` is a namespace package: several folders may contribute, and the first of them that
    # has `core` is the one an import takes. Asking for "megatron.core" directly would import the
    # parent; asking the path finder with the parent's locations does not.
    try:
        parent = importlib.util.find_spec("megatron")
    except ValueError:
        return None
    if parent is None or parent.submodule_search_locations is None:
        return None
    locations = list(parent.submodule_search_locations)
    spec = importlib.machinery.PathFinder.find_spec("megatron.core", locations)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent.parent


def _differs(
    source: MegatronSource, found: Path, projects: Iterable[Installed]
) -> tuple[SeamsError, ...]:
    known = next((it for it in named(DISTRIBUTION, projects) if it.identity), None)
    if known is None or known.identity is None:
        return ()
    folder = known.file("megatron")
    roots = [folder, *known.editable_roots()]
    if any(found.resolve().is_relative_to(root.resolve()) for root in roots):
        return ()
    try:
        version = str(source.version())
    except SurfaceUnknown:  # said by itself, when its surface is read
        version = "a version that cannot be read"
    return (
        MegatronDiffers(
            asked="one megatron-core",
            found=f"`import megatron.core` loads {version} from {found / 'core'}, and the "
            f"installed distribution is {known.identity[1]} at {folder}",
            next="plan and train with the first (it is what runs), or take it off PYTHONPATH",
            subject=DISTRIBUTION,
        ),
    )


def _folder(folder: Path) -> MegatronSource:
    def read(path: str) -> bytes | None:
        file = folder / path
        return file.read_bytes() if file.is_file() else None

    def about() -> dict[str, bytes]:
        beside = folder.parent
        described = [*beside.glob(f"{RECORD}*.dist-info/{METADATA}")]
        # Two records are two installations in one folder: which is this one's cannot be told.
        files = described if len(described) == 1 else [beside / PKG_INFO, beside / PROJECT]
        return {file.name: file.read_bytes() for file in files if file.is_file()}

    return MegatronSource(origin=str(folder), read=read, about=about)
