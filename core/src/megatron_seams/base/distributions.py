"""The distributions that an import could load, and what each of them says of itself.

All of it is read from the files that an installer leaves. A record that cannot be read is damage to
report, and never a reason to stop reading: an interrupted uninstallation of some other distribution
has nothing to do with this one.

importlib_metadata judges everything that is out of the ordinary: a path that is not a folder, a
finder of somebody's own, entry points that are not plain lines. What is ordinary is read here in
the same way (tests/test_installed.py holds the two together), since loading it and asking it for
each of an environment's hundreds of distributions would take longer than reading them.
"""

import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import attrs

from megatron_seams.base.files import read_text

if TYPE_CHECKING:
    from importlib_metadata import Distribution

_RECORDS = (".dist-info", ".egg-info")


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Installed:
    """One distribution.

    Attributes:
        record: The name of the folder that describes it, ``acme_kda-1.0.dist-info``.
        root: The folder that it is installed in.
        read: A file of the record -> its text, or None without it. Raises OSError or ValueError
            where the file is there and cannot be read.
    """

    record: str
    root: str
    read: Callable[[str], str | None]

    @property
    def key(self) -> str:
        """What tells it from the others: its name, by its record's, which costs no reading."""
        called = self.record.removesuffix(".egg-info").removesuffix(".dist-info")
        return normalized(called.partition("-")[0])

    @property
    def identity(self) -> tuple[str, str] | None:
        """Name and version; None where the metadata does not say them."""
        try:
            name, version = _headers(self.read, "name", "version")
        except (OSError, ValueError):  # not to be read, or not text
            return None
        return (name, version) if name and version else None

    def entry_points(self, group: str) -> tuple[tuple[str, str], ...] | str:
        """Name and value of its entry points of a group, or why they cannot be read.

        A file that does not speak of the group is another's to find fault with.
        """
        try:
            text = self.read("entry_points.txt") or ""
            # A search tells the few that matter from the others, which are then not parsed.
            return _entry_points(text, group) if group in text else ()
        except Exception as error:  # noqa: BLE001 - whatever its reader makes of a damaged file
            return f"{type(error).__name__}: {error}"

    def file(self, path: str) -> Path:
        """Where a file of it was installed, whether or not it is there."""
        return Path(self.root, path)

    def recorded(self) -> str | None:
        """Its list of installed files, one a line; None without one that can be read."""
        try:
            return self.read("RECORD")
        except (OSError, ValueError):
            return None

    def editable_roots(self) -> list[Path]:
        """The project's folder if it is installed editable, by PEP 610's record; else none."""
        try:
            record = json.loads(self.read("direct_url.json") or "{}")
            if not record.get("dir_info", {}).get("editable"):
                return []
            return [Path(unquote(urlsplit(record["url"]).path))]
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            return []  # a damaged record makes nothing editable


def _headers(read: Callable[[str], str | None], *names: str) -> list[str]:
    """The headers of its metadata, by their names in lower case; empty where there is none.

    The parser for electronic mail, which others use, reads every line of it.
    """
    found: dict[str, str] = {}
    for line in (read("METADATA") or read("PKG-INFO") or read("") or "").splitlines():
        name, colon, value = line.partition(":")
        name = name.lower()
        if name in names:
            found.setdefault(name, value.strip())
        elif not colon and not line[:1].isspace():
            break  # the end of the headers
        if len(found) == len(names):
            break
    return [found.get(name, "") for name in names]


def _entry_points(text: str, group: str) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    section = None
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            section = line.strip("[]")
            continue
        name, equals, value = line.partition("=")
        if not equals:
            return _judged(text, group)
        if section == group:
            found.append((name.strip(), value.strip()))
    return tuple(found)


def _judged(text: str, group: str) -> tuple[tuple[str, str], ...]:
    from importlib_metadata import Distribution

    class OfText(Distribution):
        def read_text(self, filename: object) -> str | None:  # noqa: ARG002 - it has one file
            return text

        def locate_file(self, path: str | os.PathLike[str]) -> Path:
            return Path(path)

    return tuple((it.name, it.value) for it in OfText().entry_points if it.group == group)


def installed() -> Iterator[Installed]:
    """Every distribution that an import could load, each once, in the order of the path.

    A distribution that stands in a later folder of the path again is hidden by the first. Two
    records of one distribution in *one* folder are both given: one of them is stale, and which one
    cannot be told.
    """
    folders: dict[str, str] = {}
    real: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for project in _listed():
        key, root = project.key, project.root
        folder = real.get(root) or real.setdefault(root, os.path.realpath(root))
        if folders.setdefault(key, folder) == folder and (key, project.record) not in seen:
            seen.add((key, project.record))
            yield project


def named(name: str, projects: Iterable[Installed]) -> Iterator[Installed]:
    """Those of one name, however it is spelled."""
    wanted = normalized(name)
    return (project for project in projects if project.key == wanted)


def _listed() -> Iterator[Installed]:
    """The records in the folders of the path, and what others find elsewhere."""
    if not all(_is_ordinary(finder) for finder in sys.meta_path):
        yield from _asked()
        return
    for entry in map(str, sys.path):  # somebody may have put a Path there
        try:
            # An .egg is a folder or an archive that is a distribution and holds none.
            names = None if entry.lower().endswith(".egg") else os.listdir(entry or os.curdir)
        except NotADirectoryError:
            names = None
        except OSError:
            continue
        if names is None:
            yield from _asked(path=[entry])
            continue
        root = entry or os.curdir
        for name in names:
            if name[-5:].lower() == "-info" and name.lower().endswith(_RECORDS):
                read = functools.partial(_read, f"{root}/{name}")
                yield Installed(record=name, root=root, read=read)


def _is_ordinary(finder: Any) -> bool:
    """Whether a finder of modules finds no distributions but those in the folders of the path."""
    return (
        finder is PathFinder
        or not hasattr(finder, "find_distributions")
        or type(finder).__module__ == "importlib_metadata"
    )


def _read(folder: str, name: str) -> str | None:
    try:
        # An ``.egg-info`` may be one file, which is read by the name of nothing.
        return read_text(f"{folder}/{name}" if name else folder)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
        return None


def _asked(**context: Any) -> Iterator[Installed]:
    """What importlib_metadata finds."""
    import importlib_metadata

    for found in importlib_metadata.distributions(**context):
        # What is read from an installation is a Distribution; the annotation is its interface.
        distribution = cast("Distribution", found)
        path = getattr(distribution, "_path", None)
        yield Installed(
            record=path.name if path else f"{distribution.name}-{distribution.version}",
            root=str(distribution.locate_file("")),
            read=distribution.read_text,
        )


def normalized(name: str) -> str:
    """The one spelling of a distribution's name by PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
