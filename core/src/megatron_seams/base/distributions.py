"""The distributions that an import could load, and what their metadata says.

Everything is read from the files that an installer leaves. A record that cannot be read is reported
and never stops the reading of others: an uninstallation that was interrupted says nothing about the
distributions beside it.
"""

import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

import attrs
import importlib_metadata
from importlib_metadata import Distribution
from packaging.version import InvalidVersion, Version

from megatron_seams.base.files import read_file, real_path

#: The size of the largest file of metadata that is read; a list of installed files is the longest.
MAX_BYTES: Final = 32 * 1024 * 1024
#: A distribution with more entry points of one group is no distribution.
_MOST_POINTS: Final = 1000
#: The names that pip takes for those of distributions; `~name` is what it leaves of a removal.
_NAME: Final = re.compile(r"[A-Z0-9]([A-Z0-9._-]{0,198}[A-Z0-9])?", re.IGNORECASE)
_LONGEST_VERSION: Final = 100


class Metadata(Distribution):
    """The metadata of a distribution, whose files are read up to a size.

    Args:
        read: File of the record -> its bytes, None where there is none; raises OSError.
        root: The folder or archive that the distribution is in.
    """

    def __init__(self, read: Callable[[str], bytes | None], root: str) -> None:
        self._read = read
        self._root = root

    def read_text(self, filename: str) -> str | None:
        """A file of the record as text; None where there is none."""
        data = self._read(filename)
        return None if data is None else data.decode("utf-8")

    def locate_file(self, path: str | os.PathLike[str]) -> Any:
        """Where a file of the distribution was installed."""
        return Path(self._root, path)


@attrs.frozen(kw_only=True)
class Installed:
    """One distribution.

    Attributes:
        record: The name of the folder or file that describes it, ``acme_kda-1.0.dist-info``.
        root: The folder that it is installed in.
        distribution: The reader of its metadata, which compares by identity alone.
        hides: Records of it in later folders, which this one hides from every reader.
        fault: Why nothing of it can be read, not even where it is.
    """

    record: str
    root: str
    distribution: Distribution = attrs.field(eq=False, repr=False)
    hides: tuple["Installed", ...] = attrs.field(default=(), eq=False, repr=False)
    fault: str | None = None

    @property
    def key(self) -> str:
        """Its normalized name: by its record, which need not be opened, else by its metadata."""
        stem, _, kind = self.record.rpartition(".")
        if stem and kind.lower() in ("dist-info", "egg-info"):
            return normalized(stem.partition("-")[0])
        return normalized(self.identity[0] if self.identity else self.record)

    @property
    def identity(self) -> tuple[str, str] | None:
        """Name and version; None where its metadata cannot be read or lacks one of them."""
        return _identity(self.distribution)

    def entry_points(self, group: str) -> tuple[tuple[str, str], ...] | str:
        """Name and value of its entry points of a group, or why they cannot be read.

        A damaged file that does not mention the group is another package's to report.
        """
        try:
            text = self.distribution.read_text("entry_points.txt") or ""
            if group not in text:
                return ()
            found = Metadata(lambda _: text.encode(), self.root).entry_points
            points = tuple((entry.name, entry.value) for entry in found if entry.group == group)
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        except Exception:  # noqa: BLE001 - whatever its reader raises on a damaged file
            return "it is no list of `name = package` below the names of groups in brackets"
        if len(points) > _MOST_POINTS:
            return f"it has {len(points)} entry points of the group, more than {_MOST_POINTS}"
        return points

    def file(self, path: str) -> Path:
        """Where a file of it was installed, whether or not it is there."""
        return Path(self.root, path)

    def recorded(self) -> str | None:
        """Its list of installed files, one a line; None without one that can be read."""
        try:
            return self.distribution.read_text("RECORD")
        except Exception:  # noqa: BLE001 - of another finder's distribution it may be anything
            return None

    def editable_roots(self) -> list[Path]:
        """The project's folder if it is installed editable, by PEP 610's record; else none."""
        try:
            record = json.loads(self.distribution.read_text("direct_url.json") or "{}")
            if not record.get("dir_info", {}).get("editable"):
                return []
            path = unquote(urlsplit(record["url"]).path)
        except Exception:  # noqa: BLE001 - a damaged record makes nothing editable
            return []
        return [] if "\0" in path else [Path(path)]

    @property
    def place(self) -> Path:
        """The path of its record."""
        return Path(self.root, self.record)

    def is_newer_than(self, other: "Installed") -> bool:
        """Whether its version comes after another's; not where either says none."""
        if self.identity is None or other.identity is None:
            return False
        try:
            return Version(self.identity[1]) > Version(other.identity[1])
        except (InvalidVersion, ValueError):
            return False


def installed() -> Iterator[Installed]:
    """Every distribution that an import could load, each once, in the order of the path.

    A distribution that stands in a later folder of the path again is hidden by the first. Two
    records of one distribution in *one* folder are both given: one of them is stale, and which one
    cannot be told. What pip leaves of a removal, ``~name``, is none.
    """
    folders: dict[str, Path] = {}
    real: dict[str, Path] = {}  # one folder holds hundreds of distributions
    seen: set[tuple[str, str, Path]] = set()
    listed: list[Installed] = []
    hidden: dict[str, list[Installed]] = {}
    for project in _found():
        if project.root not in real:
            real[project.root] = real_path(Path(project.root))
        key, folder = project.key, real[project.root]
        if (key, project.record, folder) in seen:
            continue
        seen.add((key, project.record, folder))
        if folders.setdefault(key, folder) == folder:
            listed.append(project)
        else:
            hidden.setdefault(key, []).append(project)
    for project in listed:
        hides = hidden.get(project.key) if hidden else None
        yield attrs.evolve(project, hides=tuple(hides)) if hides else project


def _found() -> Iterator[Installed]:
    """Every record that the finders of this process give, in their order; one may be damaged."""
    context = importlib_metadata.DistributionFinder.Context()  # type: ignore[no-untyped-call]
    for finder in sys.meta_path:
        name = f"{type(finder).__module__}.{type(finder).__qualname__}"
        try:
            find = getattr(finder, "find_distributions", None)
            records = iter(() if find is None else find(context))
            # Not a for loop over the records: one that cannot be taken leaves those after it.
            while (record := next(records, None)) is not None:
                project = _guarded(record, name)
                if project is not None:
                    yield project
        except Exception as error:  # noqa: BLE001 - a finder is another package's code
            yield _unread(name, f"the finder {name} raises {raised(error)}")


def _guarded(record: Any, finder: str) -> Installed | None:
    try:
        return _project(cast("Distribution", record))  # its annotation is a protocol
    except Exception as error:  # noqa: BLE001 - likewise
        return _unread(finder, f"a distribution of the finder {finder} raises {raised(error)}")


def raised(error: Exception) -> str:
    """An error of another package's code, in words: its type, and its text if it has one."""
    try:
        return f"{type(error).__name__}: {error!s:.200}"
    except Exception:  # noqa: BLE001 - its text is that package's code as well
        return type(error).__name__


def _unread(name: str, fault: str) -> Installed:
    nothing = Metadata(lambda _: None, "")
    return Installed(record=name, root="", distribution=nothing, fault=fault)


def _project(distribution: Distribution) -> Installed | None:
    """A distribution of a finder; None where its record is what a removal has left."""
    # Those of importlib_metadata's own finder have the path of their record. To ask for names
    # instead would parse the metadata of every distribution.
    path = getattr(distribution, "_path", None)
    root = str(distribution.locate_file(""))
    if path is None:
        record = "-".join(_identity(distribution) or ("unknown",))
        return Installed(record=record, root=root, distribution=distribution)
    stem, dot, kind = path.name.rpartition(".")
    named = dot and kind.lower() in ("dist-info", "egg-info")
    if named and not _NAME.fullmatch(stem.partition("-")[0]):
        return None
    return Installed(
        record=path.name, root=root, distribution=Metadata(partial(_read_below, path), root)
    )


def _read_below(record: Any, name: str) -> bytes | None:
    """A record's file; a function of the module, so that ranks can be sent a plan with its seams.

    Args:
        record: The path of the record, on disk or in an archive.
        name: The file's.
    """
    file = record.joinpath(name)
    try:
        if isinstance(file, Path):
            return read_file(file, MAX_BYTES)
        with file.open("rb") as stream:
            data: bytes = stream.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, KeyError):
        return None
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MAX_BYTES:,} bytes", str(file))
    return data


def named(name: str, projects: Iterable[Installed]) -> Iterator[Installed]:
    """Those of one name, however it is spelled."""
    wanted = normalized(name)
    return (project for project in projects if project.key == wanted)


def by_name(projects: Iterable[Installed]) -> dict[str, tuple[Installed, ...]]:
    """Normalized name -> the distributions of that name, in their order; each is read once."""
    grouped: dict[str, list[Installed]] = {}
    for project in projects:
        grouped.setdefault(project.key, []).append(project)
    return {name: tuple(found) for name, found in grouped.items()}


def normalized(name: str) -> str:
    """The one spelling of a distribution's name by PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _identity(distribution: Distribution) -> tuple[str, str] | None:
    try:
        metadata = distribution.metadata
        name, version = metadata.get("Name"), metadata.get("Version")
        known = name and version and len(version) <= _LONGEST_VERSION and _NAME.fullmatch(name)
        return (str(name), str(version)) if known else None
    except Exception:  # noqa: BLE001 - no metadata, or whatever its reader raises on a damaged one
        return None
