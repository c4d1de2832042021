"""The installed distributions, read so that a damaged one does not hide the others.

``importlib_metadata`` gives up on all entry points for one file that it cannot read: a leftover of
an interrupted uninstallation, say, in a project that has nothing to do with this one.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

import attrs
import importlib_metadata
from importlib_metadata import Distribution, EntryPoint, PathDistribution
from packaging.utils import canonicalize_name

from megatron_seams.files import read_text


@attrs.frozen(kw_only=True)
class Installed:
    """One distribution.

    Attributes:
        record: The name of the folder that describes it, ``acme_kda-1.0.dist-info``.
        distribution: Its files.
        root: The folder that it is installed in.
    """

    record: str
    distribution: Distribution
    root: str

    @property
    def identity(self) -> tuple[str, str] | None:
        """Name and version; None where the metadata does not say them."""
        try:
            name, version = _headers(self.distribution, "name", "version")
        except (OSError, ValueError):  # not to be read, or not text
            return None
        return (name, version) if name and version else None

    def entry_points(self, group: str) -> tuple[EntryPoint, ...] | str:
        """Its entry points of a group, or why they cannot be read; none if that is another's."""
        try:
            if not self._may_claim(group):
                return ()
            return tuple(e for e in self.distribution.entry_points if e.group == group)
        except Exception as error:  # noqa: BLE001 - whatever its reader makes of a damaged file
            return f"{type(error).__name__}: {error}"

    def file(self, path: str) -> Path:
        """Where a file of it was installed, whether or not it is there."""
        return Path(self.root, path)

    def recorded(self) -> str | None:
        """Its list of installed files, one a line; None without one that can be read."""
        try:
            return self.distribution.read_text("RECORD")
        except (OSError, ValueError):
            return None

    def _may_claim(self, group: str) -> bool:
        # A search tells the few that matter from the others, which are then not parsed. A file that
        # cannot be read raises: it cannot be told, so it is not passed over.
        return group in (self.distribution.read_text("entry_points.txt") or "")


class _OnDisk(PathDistribution):
    """A distribution whose record is a folder, read without a detour through ``pathlib``.

    That detour costs more than the reading, and an environment has hundreds of distributions.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._folder = str(path)

    def read_text(self, filename: str | os.PathLike[str]) -> str | None:
        """The text of a file of the record; None without it."""
        if not filename:  # an ``.egg-info`` that is one file is read by itself
            return super().read_text(filename)
        try:
            return read_text(f"{self._folder}/{filename}")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
            return None


def _headers(distribution: Distribution, *names: str) -> list[str]:
    """The headers of its metadata, by their names in lower case; empty where there is none.

    Its own parser is the one for electronic mail, which reads every line of it.
    """
    read = distribution.read_text
    found: dict[str, str] = {}
    for line in (read("METADATA") or read("PKG-INFO") or read("") or "").splitlines():
        name, colon, value = line.partition(":")
        if not colon and not line[:1].isspace():
            break  # the end of the headers
        found.setdefault(name.lower(), value.strip())
        if all(name in found for name in names):
            break
    return [found.get(name, "") for name in names]


def installed(name: str | None = None) -> Iterator[Installed]:
    """Every distribution that an import could load, each once, in the order of the path.

    A distribution that stands in a later folder of the path again is hidden by the first. Two
    records of one distribution in *one* folder are both given: one of them is stale, and which one
    cannot be told.

    Args:
        name: Give only this one; the metadata of the others is then not read.
    """
    wanted = None if name is None else _key(name)
    folders: dict[str, str] = {}
    real: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for found in importlib_metadata.distributions():
        # What is read from an installation is a Distribution; the annotation is its interface.
        distribution = cast("Distribution", found)
        path = getattr(distribution, "_path", None)
        if type(distribution) is PathDistribution and isinstance(path, Path):
            distribution = _OnDisk(path)
            root, record = os.path.split(str(path))
        else:
            root = str(distribution.locate_file(""))
            record = str(path.name) if path else f"{distribution.name}-{distribution.version}"
        # The folder's name is enough to tell distributions apart, and costs no reading.
        key = _key(record.partition("-")[0])
        folder = real.get(root) or real.setdefault(root, os.path.realpath(root))
        if folders.setdefault(key, folder) == folder and (key, record) not in seen:
            seen.add((key, record))
            if wanted in (None, key):
                yield Installed(record=record, distribution=distribution, root=root)


def _key(name: str) -> str:
    return canonicalize_name(name.removesuffix(".egg-info").removesuffix(".dist-info"))


def editable_roots(distribution: Distribution) -> list[Path]:
    """The project folder of an editable installation, by PEP 610's record; empty for others."""
    try:
        record = json.loads(distribution.read_text("direct_url.json") or "{}")
        if not record.get("dir_info", {}).get("editable"):
            return []
        return [Path(unquote(urlsplit(record["url"]).path))]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return []  # a damaged record makes nothing editable
