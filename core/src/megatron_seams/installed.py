"""The installed distributions, read so that a damaged one does not hide the others.

``importlib_metadata`` gives up on all entry points for one file that it cannot read: a leftover of
an interrupted uninstallation, say, in a project that has nothing to do with this one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

import attrs
import importlib_metadata
from importlib_metadata import Distribution, EntryPoint
from packaging.utils import canonicalize_name


@attrs.frozen(kw_only=True)
class Installed:
    """One distribution.

    Attributes:
        record: The name of the folder that describes it, ``acme_kda-1.0.dist-info``.
        distribution: Its files.
    """

    record: str
    distribution: Distribution

    @property
    def identity(self) -> tuple[str, str] | None:
        """Name and version; None where the metadata does not say them."""
        try:
            name, version = self.distribution.metadata["Name"], self.distribution.version
        except Exception:  # noqa: BLE001 - missing, not text, or without the two keys
            return None
        return (name, version) if name and version else None

    def entry_points(self, group: str) -> tuple[EntryPoint, ...] | str:
        """Its entry points of a group, or why they cannot be read; none if that is another's."""
        try:
            return tuple(e for e in self.distribution.entry_points if e.group == group)
        except Exception as error:  # noqa: BLE001 - whatever its reader makes of a damaged file
            return f"{type(error).__name__}: {error}" if self._may_claim(group) else ()

    def file(self, path: str) -> Path:
        """Where a file of it was installed, whether or not it is there."""
        return Path(str(self.distribution.locate_file(path)))

    def recorded(self) -> list[str] | None:
        """The lines of its list of installed files; None without one that can be read."""
        try:
            text = self.distribution.read_text("RECORD")
        except (OSError, ValueError):
            return None
        return None if text is None else text.splitlines()

    def _may_claim(self, group: str) -> bool:
        try:
            return f"[{group}]" in (self.distribution.read_text("entry_points.txt") or "")
        except (OSError, ValueError):
            return True  # it cannot be told, so it is not passed over


def installed(name: str | None = None) -> Iterator[Installed]:
    """Every distribution that an import could load, each once, in the order of the path.

    A distribution that stands in a later folder of the path again is hidden by the first. Two
    records of one distribution in *one* folder are both given: one of them is stale, and which one
    cannot be told.

    Args:
        name: Give only this one; the metadata of the others is then not read.
    """
    wanted = None if name is None else _key(name)
    folders: dict[str, Path] = {}
    seen: set[tuple[str, str]] = set()
    for found in importlib_metadata.distributions():
        # What is read from an installation is a Distribution; the annotation is its interface.
        distribution = cast("Distribution", found)
        record = _record_name(distribution)
        # The folder's name is enough to tell distributions apart, and costs no reading.
        key = _key(record.partition("-")[0])
        folder = Path(str(distribution.locate_file(""))).resolve()
        if folders.setdefault(key, folder) == folder and (key, record) not in seen:
            seen.add((key, record))
            if wanted in (None, key):
                yield Installed(record=record, distribution=distribution)


def _key(name: str) -> str:
    return canonicalize_name(name.removesuffix(".egg-info").removesuffix(".dist-info"))


def _record_name(distribution: Distribution) -> str:
    """``acme_kda-1.0.dist-info``; of a distribution that is not a folder, its name and version."""
    path = getattr(distribution, "_path", None)
    return str(path.name) if path else f"{distribution.name}-{distribution.version}"


def editable_roots(distribution: Distribution) -> list[Path]:
    """The project folder of an editable installation, by PEP 610's record; empty for others."""
    try:
        record = json.loads(distribution.read_text("direct_url.json") or "{}")
        if not record.get("dir_info", {}).get("editable"):
            return []
        return [Path(unquote(urlsplit(record["url"]).path))]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return []  # a damaged record makes nothing editable
