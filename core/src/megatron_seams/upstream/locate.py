"""Where a Megatron is: the one that Python would import, or the one that a path names."""

import contextlib
import importlib.machinery
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from megatron_seams.base.distributions import Installed, installed, named
from megatron_seams.base.files import in_words, read_file
from megatron_seams.errors import MegatronDiffers, MegatronMissing, SeamsError, SurfaceUnknown
from megatron_seams.upstream.archives import open_archive
from megatron_seams.upstream.source import (
    DISTRIBUTION,
    MAX_BYTES,
    METADATA,
    PKG_INFO,
    PROJECT,
    RECORD,
    VERSION,
    MegatronSource,
    unknown_shape,
)


def importable_megatron(
    projects: Iterable[Installed] | None = None,
) -> tuple[MegatronSource | None, tuple[SeamsError, ...]]:
    """The Megatron that ``import megatron.core`` would load, found without importing it.

    Args:
        projects: The installed distributions, where the caller has listed them.

    Returns:
        The source or None, and a finding if the installed distribution is another Megatron.
    """
    folder = _importable_folder()
    if folder is None:
        return None, ()
    source = _open_folder(folder)
    return source, _differs(source, folder, installed() if projects is None else projects)


def open_megatron(path: Path) -> MegatronSource:
    """The megatron-core in a folder (checkout, site-packages, ``--target``), wheel or sdist.

    Raises:
        MegatronMissing: There is none in it.
    """
    found = "no folder, wheel or sdist with megatron/core in it"
    try:
        if not path.exists():
            found = "there is no such file or folder"
        if path.is_dir():
            for folder in (path / "megatron", path, path.parent):
                if (folder / VERSION).is_file():
                    return _open_folder(folder)
        elif path.is_file() and (source := open_archive(path)) is not None:
            return source
    except OSError as error:  # its name is too long, or it may not be looked at
        found = in_words(error)
    raise MegatronMissing(
        asked=f"the megatron-core at {path}",
        found=found,
        next="name a wheel, an sdist, a checkout or an installation folder",
        subject=DISTRIBUTION,
        file=str(path),
    )


def megatron_missing() -> MegatronMissing:
    """The fault of an environment without any Megatron, or where another package hides it."""
    other = _shadowing_package()
    if other is not None:
        return MegatronMissing(
            asked="a megatron-core that can be imported",
            found=f"`import megatron.core` would fail: the package `megatron` at {other} comes "
            "first on the path, has no `core`, and shadows every other `megatron`: nothing is "
            "native",
            next=f"take {other.parent} off the path (PYTHONPATH, or the working directory), or "
            "plan against a wheel or a folder by --megatron",
            subject=DISTRIBUTION,
            file=str(other),
        )
    return MegatronMissing(
        asked="a megatron-core that can be imported",
        found="`import megatron.core` would fail: nothing is native",
        next="install it (pip install 'megatron-seams[megatron]'), or plan against a wheel or a "
        "folder that holds one",
        subject=DISTRIBUTION,
    )


def _importable_folder() -> Path | None:
    """The folder ``megatron`` whose ``core`` an import would load."""
    # `megatron` is a namespace package: several folders may contribute, and the first of them that
    # has `core` is the one an import takes. Asking for "megatron.core" directly would import the
    # parent; asking the path finder with the parent's locations does not.
    try:
        parent = importlib.util.find_spec("megatron")
        if parent is None or parent.submodule_search_locations is None:
            return None
        locations = list(parent.submodule_search_locations)
        spec = importlib.machinery.PathFinder.find_spec("megatron.core", locations)
        return None if spec is None or spec.origin is None else Path(spec.origin).parent.parent
    except Exception:  # noqa: BLE001 - a finder is another package's code; an import would fail too
        return None


def _shadowing_package() -> Path | None:
    """A regular package `megatron`, to which no other folder on the path adds; None if none is."""
    try:
        parent = importlib.util.find_spec("megatron")
        return None if parent is None or parent.origin is None else Path(parent.origin).parent
    except Exception:  # noqa: BLE001 - likewise
        return None


def _differs(
    source: MegatronSource, folder: Path, projects: Iterable[Installed]
) -> tuple[SeamsError, ...]:
    """The finding that the installed distribution is not the source that would be imported."""
    known = next((it for it in named(DISTRIBUTION, projects) if it.identity), None)
    if known is None or known.identity is None:
        return ()
    own = known.file("megatron")
    roots = [own, *known.editable_roots()]
    if any(folder.resolve().is_relative_to(root.resolve()) for root in roots):
        return ()
    try:
        version = str(source.version())
    except SurfaceUnknown:  # a fault of its own where the surface is read
        version = "a version that cannot be read"
    return (
        MegatronDiffers(
            asked="one megatron-core",
            found=f"`import megatron.core` loads {version} from {folder / 'core'}, and the "
            f"installed distribution is {known.identity[1]} at {own}",
            next="plan and train with the first (it is what runs), or take it off PYTHONPATH",
            subject=DISTRIBUTION,
        ),
    )


def _open_folder(folder: Path) -> MegatronSource:
    """The source in a folder ``megatron``."""

    def read(path: str) -> bytes | None:
        try:
            return read_file(folder / path, MAX_BYTES)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise unknown_shape(str(folder), f"{path} cannot be read: {in_words(error)}") from error

    def metadata() -> dict[str, bytes]:
        beside = folder.parent
        described = [*beside.glob(f"{RECORD}*.dist-info/{METADATA}")]
        # Two records are two installations in one folder: which is this one's cannot be told.
        files = described if len(described) == 1 else [beside / PKG_INFO, beside / PROJECT]
        found: dict[str, bytes] = {}
        for file in files:
            with contextlib.suppress(OSError):  # what they say is missed, and no more
                found[file.name] = read_file(file, MAX_BYTES)
        return found

    return MegatronSource(origin=str(folder), read=read, metadata=metadata)
