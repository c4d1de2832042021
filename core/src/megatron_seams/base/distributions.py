"""The distributions that an import could load, and what their metadata says.

Everything is read from the files that an installer leaves. A record that cannot be read is reported
and never stops the reading of others: an uninstallation that was interrupted says nothing about the
distributions beside it.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

import attrs
import importlib_metadata
from importlib_metadata import Distribution


@attrs.frozen(kw_only=True)
class Installed:
    """One distribution.

    Attributes:
        record: The name of the folder or file that describes it, ``acme_kda-1.0.dist-info``.
        root: The folder that it is installed in.
        distribution: The reader of its metadata, which compares by identity alone.
    """

    record: str
    root: str
    distribution: Distribution = attrs.field(eq=False, repr=False)

    @property
    def key(self) -> str:
        """Its normalized name: by its record, which need not be opened, else by its metadata."""
        path = Path(self.record)
        if path.suffix.lower() in (".dist-info", ".egg-info"):
            return normalized(path.stem.partition("-")[0])
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
            if group not in (self.distribution.read_text("entry_points.txt") or ""):
                return ()
            found = self.distribution.entry_points
            return tuple((entry.name, entry.value) for entry in found if entry.group == group)
        except Exception as error:  # noqa: BLE001 - whatever its reader raises on a damaged file
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

    def editable_roots(self) -> list[Path]:
        """The project's folder if it is installed editable, by PEP 610's record; else none."""
        try:
            record = json.loads(self.distribution.read_text("direct_url.json") or "{}")
            if not record.get("dir_info", {}).get("editable"):
                return []
            return [Path(unquote(urlsplit(record["url"]).path))]
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            return []  # a damaged record makes nothing editable


def installed() -> Iterator[Installed]:
    """Every distribution that an import could load, each once, in the order of the path.

    A distribution that stands in a later folder of the path again is hidden by the first. Two
    records of one distribution in *one* folder are both given: one of them is stale, and which one
    cannot be told.
    """
    folders: dict[str, Path] = {}
    real: dict[str, Path] = {}  # one folder holds hundreds of distributions
    seen: set[tuple[str, str]] = set()
    for found in importlib_metadata.distributions():
        distribution = cast("Distribution", found)  # the annotation is its protocol
        # Those of importlib_metadata's own finder have the path of their record. To ask for names
        # instead would parse the metadata of every distribution.
        path = getattr(distribution, "_path", None)
        project = Installed(
            record=path.name if path else "-".join(_identity(distribution) or ("unknown",)),
            root=str(distribution.locate_file("")),
            distribution=distribution,
        )
        if project.root not in real:
            real[project.root] = Path(project.root).resolve()
        key, folder = project.key, real[project.root]
        if folders.setdefault(key, folder) == folder and (key, project.record) not in seen:
            seen.add((key, project.record))
            yield project


def named(name: str, projects: Iterable[Installed]) -> Iterator[Installed]:
    """Those of one name, however it is spelled."""
    wanted = normalized(name)
    return (project for project in projects if project.key == wanted)


def normalized(name: str) -> str:
    """The one spelling of a distribution's name by PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _identity(distribution: Distribution) -> tuple[str, str] | None:
    try:
        metadata = distribution.metadata
        name, version = metadata.get("Name"), metadata.get("Version")
    except Exception:  # noqa: BLE001 - no metadata, or whatever its reader raises on a damaged one
        return None
    return (name, version) if name and version else None
