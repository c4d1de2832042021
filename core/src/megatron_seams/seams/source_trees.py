"""Seams that are not installed: those of a source tree, and those of a wheel.

Only text is read: nothing is built, installed, unpacked or imported.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

from megatron_seams.base.archives import ArchiveError, Wheel
from megatron_seams.base.distributions import MAX_BYTES as METADATA_BYTES
from megatron_seams.base.distributions import Installed, Metadata
from megatron_seams.base.files import files_below, in_words, read_file, real_path
from megatron_seams.base.toml import MAX_BYTES as TOML_BYTES
from megatron_seams.base.toml import TomlError, read_toml
from megatron_seams.errors import EntryPointInvalid, ManifestMissing, ManifestUnreadable, SeamsError
from megatron_seams.seams.claims import (
    GROUP,
    Claim,
    ManifestFile,
    claims_of,
    guarded,
    missing,
    open_manifest,
    parts_of,
    read_seam,
    unreadable,
)
from megatron_seams.seams.discovery import Discovery, gather
from megatron_seams.seams.manifest import MANIFEST, MAX_BYTES
from megatron_seams.seams.seam import BrokenSeam, Seam

_PROJECT = "pyproject.toml"
_POINTS = f"project.entry-points.{GROUP}"
#: What names an entry point's group in the files that setuptools read before there was a standard
#: place for it: a key of ``setup.cfg``, a key of a dictionary in ``setup.py``.
_OLDER = {
    "setup.cfg": re.compile(rf"^{GROUP}\s*=".encode(), flags=re.MULTILINE),
    "setup.py": re.compile(rf"""["']{GROUP}["']\s*:""".encode()),
}


def discover_in(
    paths: Iterable[Path],
    *,
    workspace: Path | None = None,
    installed: Iterable[Seam | BrokenSeam] = (),
) -> Discovery:
    """Find the seams of source trees and wheels, in an order that the arguments do not change.

    Args:
        paths: A folder is searched for projects, at any depth; a file is a wheel.
        workspace: The one of these folders that may have no seam of its own.
        installed: Installed seams to judge together with those found; one of a name that is found
            here too is left out.
    """
    named = {real_path(path) for path in paths}
    # A folder inside another one that is named is searched with it.
    inner = {path for path in named if path.is_dir() and not named.isdisjoint(path.parents)}
    own = None if workspace is None else workspace.resolve()
    found = [seam for path in sorted(named - inner) for seam in _seams_in(path, own)]
    names = {seam.name for seam in found}
    return gather([*found, *(seam for seam in installed if seam.name not in names)])


def _seams_in(path: Path, workspace: Path | None) -> tuple[Seam | BrokenSeam, ...]:
    found = tuple(_wheel(path) if path.is_file() else _tree(path))
    if found or path == workspace:
        return found
    fault = ManifestMissing(
        asked=f"the seams of {path}",
        found=f"no project or wheel in it has an entry point of the group {GROUP}"
        if path.exists()
        else "there is no such folder or file",
        next="name a plugin's folder or wheel, or leave it out to check what is installed",
        subject=path.name,
        file=str(path),
    )
    return (BrokenSeam(name=path.name, distribution=path.name, version="", faults=(fault,)),)


# --- a wheel ----------------------------------------------------------------------------------


def _wheel(path: Path) -> Iterator[Seam | BrokenSeam]:
    claim = Claim(name=path.name, package="", distribution=path.name, version="")
    try:
        with Wheel(path) as archive:
            tops = sorted({name.partition("/")[0] for name in archive.names})
            for top in tops:
                if not top.endswith(".dist-info"):
                    continue

                def read(name: str, top: str = top) -> bytes | None:
                    return archive.read(f"{top}/{name}", METADATA_BYTES)

                metadata = Metadata(read, str(path))
                project = Installed(record=top, root=str(path), distribution=metadata)
                for found in claims_of(project):
                    yield _in_wheel(found, path, archive) if isinstance(found, Claim) else found
    except (ArchiveError, OSError) as error:
        yield claim.broken(
            _of_source(unreadable(claim, path, f"it is no wheel: {in_words(error)}"))
        )


def _in_wheel(claim: Claim, path: Path, archive: Wheel) -> Seam | BrokenSeam:
    def read() -> ManifestFile:
        parts = parts_of(claim)
        name = "/".join([*parts, MANIFEST])
        try:
            data = archive.read(name, MAX_BYTES)
        except ArchiveError as error:
            raise unreadable(claim, path, str(error)) from error
        if data is None:
            raise missing(claim, f"{path.name} holds no {name}")
        return ManifestFile(claim=claim, folder=path.joinpath(*parts), data=data)

    return _read(claim, read)


def _read(claim: Claim, read: Callable[[], ManifestFile]) -> Seam | BrokenSeam:
    found = guarded(claim, read)
    if isinstance(found, ManifestFile):
        return read_seam(found)
    return attrs.evolve(found, faults=tuple(map(_of_source, found.faults)))


# --- a source tree ----------------------------------------------------------------------------


def _tree(root: Path) -> Iterator[Seam | BrokenSeam]:
    for file in files_below(root):
        if file.name == _PROJECT:
            yield from _project(file)
        elif (older := _OLDER.get(file.name)) and older.search(_bytes(file)):
            yield _elsewhere(file)


def _bytes(file: Path) -> bytes:
    try:
        return read_file(file, TOML_BYTES)
    except OSError:  # it is no project's, or its pyproject.toml is as unreadable
        return b""


def _project(file: Path) -> Iterator[Seam | BrokenSeam]:
    """The seams of the project that a ``pyproject.toml`` describes."""
    data = b""
    try:
        data = read_file(file, TOML_BYTES)
        project = read_toml(data)
    except (OSError, TomlError) as error:
        # One that cannot be read matters only if it may be a plugin's.
        if not data or GROUP.encode() in data:
            yield _damaged(file, in_words(error))
        return
    if GROUP in _table_at(project, "tool", "poetry", "plugins"):
        yield _elsewhere(file)
    about = _table_at(project, "project")
    points = _table_at(about, "entry-points").get(GROUP)
    if points is None:
        return
    name, version = about.get("name"), about.get("version", "of no fixed version")
    if not isinstance(name, str) or not isinstance(version, str) or not isinstance(points, dict):
        found = "[project] needs a name and, if any, a version as text; entry points are a table"
        yield _damaged(file, found, key=_POINTS)
        return
    for seam, package in points.items():
        if isinstance(package, str):
            claim = Claim(name=seam, package=package, distribution=name, version=version)
            yield _in_tree(claim, file.parent, project)
        else:
            fault = _entry_point_fault(
                file, seam, f"expected a package's name, found {package!r:.60}", f"{_POINTS}.{seam}"
            )
            yield BrokenSeam(name=seam, distribution=name, version=version, faults=(fault,))


def _in_tree(claim: Claim, folder: Path, project: dict[str, Any]) -> Seam | BrokenSeam:
    def read() -> ManifestFile:
        parts = parts_of(claim)
        roots = (root for root in _roots(folder, project) if (root / parts[0]).is_dir())
        root = next(roots, None)
        if root is None:
            raise missing(claim, f"{folder} has no folder of package {parts[0]!r}")
        package = root.joinpath(*parts)
        if not (package / MANIFEST).exists():
            raise missing(claim, f"{package} holds no {MANIFEST}")
        return open_manifest(claim, package)

    return _read(claim, read)


def _roots(folder: Path, project: dict[str, Any]) -> Iterator[Path]:
    """Where a project's packages may lie: as its build backend is told, else as is usual."""
    setuptools = _table_at(project, "tool", "setuptools")
    wheel = _table_at(project, "tool", "hatch", "build", "targets", "wheel")
    told: list[str | Path] = [
        *(Path(package).parent for package in _texts(wheel.get("packages"))),
        *_texts(list(_table_at(setuptools, "package-dir").values())),
        *_texts(_table_at(setuptools, "packages", "find").get("where")),
    ]
    yield from (folder / root for root in (*told, "src", "."))


def _table_at(table: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The table inside a table; empty where there is none."""
    for key in keys:
        value = table.get(key)
        table = value if isinstance(value, dict) else {}
    return table


def _texts(value: Any) -> list[str]:
    return [part for part in value if isinstance(part, str)] if isinstance(value, list) else []


# --- faults -----------------------------------------------------------------------------------


def _of_source(fault: SeamsError) -> SeamsError:
    """The fault of an installed seam as that of one that is not, which nobody can reinstall."""
    if isinstance(fault, ManifestMissing | ManifestUnreadable):
        advice = "correct the project, and build what is to be installed anew"
        return attrs.evolve(fault, next=advice)
    return fault


def _damaged(file: Path, found: str, *, key: str | None = None) -> BrokenSeam:
    """A project whose entry points cannot be read."""
    name = file.parent.name
    fault = _entry_point_fault(file, name, found, key)
    return BrokenSeam(name=name, distribution=str(file), version="", faults=(fault,))


def _elsewhere(file: Path) -> BrokenSeam:
    """A project whose entry points only a build would tell."""
    where = f"[tool.poetry.plugins] of {_PROJECT}" if file.name == _PROJECT else file.name
    damaged = _damaged(file, f"its entry points of the group {GROUP} stand in {where}")
    advice = f"move them to [{_POINTS}] of {_PROJECT}, or build the wheel and name that"
    return attrs.evolve(
        damaged, faults=tuple(attrs.evolve(fault, next=advice) for fault in damaged.faults)
    )


def _entry_point_fault(file: Path, subject: str, found: str, key: str | None) -> EntryPointInvalid:
    return EntryPointInvalid(
        asked=f"the seams of {file}",
        found=found,
        next=f"correct [project.entry-points.{GROUP}]",
        subject=subject,
        file=str(file),
        key=key,
    )
