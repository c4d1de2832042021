"""Seams that are not installed: those of a source tree, and those of a wheel.

Only text is read: nothing is built, installed, unpacked or imported.
"""

import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import attrs
import importlib_metadata

from megatron_seams.base.distributions import Installed, normalized
from megatron_seams.base.files import files_below, read_at_most
from megatron_seams.base.toml import TomlError, read_toml
from megatron_seams.errors import EntryPointInvalid, ManifestMissing, SeamsError
from megatron_seams.seams.discovery import (
    GROUP,
    MANIFEST,
    BrokenSeam,
    Claim,
    Discovery,
    broken_seam,
    claims_of,
    gather,
    missing_manifest,
    not_a_package,
    read_seam,
    unreadable,
)
from megatron_seams.seams.seam import MAX_BYTES, Seam

_PROJECT = "pyproject.toml"
#: What names an entry point's group in the files that setuptools read before there was a standard
#: place for it: a key of ``setup.cfg``, a key of a dictionary in ``setup.py``.
_OLDER = {
    "setup.cfg": re.compile(rf"^{GROUP}\s*=".encode(), flags=re.MULTILINE),
    "setup.py": re.compile(rf"""["']{GROUP}["']\s*:""".encode()),
}
_MEND = "mend the project, and build what is to be installed anew"
_Read = tuple[Claim, Seam | BrokenSeam]


def discover_in(paths: Iterable[Path]) -> Discovery:
    """Find the seams of source trees and wheels, in an order that the arguments do not change.

    Args:
        paths: A folder is searched for projects, at any depth; a file is a wheel.
    """
    read: list[_Read] = []
    lost: list[BrokenSeam] = []
    named = {path.resolve() for path in paths}
    # A folder inside another one that is named is searched with it.
    inner = {path for path in named if path.is_dir() and not named.isdisjoint(path.parents)}
    for path in sorted(named - inner):
        before = len(read) + len(lost)
        read += _wheel(path, lost) if path.is_file() else _tree(path, lost)
        if len(read) + len(lost) == before:
            lost.append(_none_in(path))
    read.sort(key=lambda one: (one[0].name, normalized(one[0].distribution), one[0].version))
    return gather(read, lost)


def _not_there(claim: Claim, found: str) -> ManifestMissing:
    return attrs.evolve(missing_manifest(claim, found), next=_MEND)


def _unread(claim: Claim, file: Path, found: str) -> SeamsError:
    return attrs.evolve(unreadable(claim, file, found), next=_MEND)


def _none_in(path: Path) -> BrokenSeam:
    fault = ManifestMissing(
        asked=f"the seams of {path}",
        found=f"no project or wheel in it has an entry point of the group {GROUP}",
        next="name a plugin's folder or wheel, or leave it out to check what is installed",
        subject=path.name,
        file=str(path),
    )
    return BrokenSeam(name=path.name, distribution=path.name, version="", faults=(fault,))


# --- a wheel ----------------------------------------------------------------------------------


def _wheel(path: Path, lost: list[BrokenSeam]) -> Iterator[_Read]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            tops = sorted({name.partition("/")[0] for name in names})
            projects = [
                Installed(record=top, root=str(path), distribution=_distribution(archive, top))
                for top in tops
                if top.endswith(".dist-info")
            ]
            for claim, _ in claims_of(projects, lost):
                yield claim, _in_wheel(claim, path, archive, names)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        no = Claim(name=path.name, package="", distribution=path.name, version="")
        lost.append(broken_seam(no, [_unread(no, path, f"it is no wheel: {error}")]))


def _distribution(archive: zipfile.ZipFile, record: str) -> importlib_metadata.Distribution:
    # A path inside an archive has every method of the interface; its annotations are narrower.
    folder = cast("Any", zipfile.Path(archive, f"{record}/"))
    return importlib_metadata.PathDistribution(folder)


def _in_wheel(
    claim: Claim, path: Path, archive: zipfile.ZipFile, names: set[str]
) -> Seam | BrokenSeam:
    parts = claim.package.split(".")
    if not all(part.isidentifier() for part in parts):
        return broken_seam(claim, [not_a_package(claim)])
    name = "/".join([*parts, MANIFEST])
    if name not in names:
        return broken_seam(claim, [_not_there(claim, f"{path.name} holds no {name}")])
    with archive.open(name) as stream:
        return read_seam(claim, stream.read(MAX_BYTES + 1), path.joinpath(*parts))


# --- a source tree ----------------------------------------------------------------------------


def _tree(root: Path, lost: list[BrokenSeam]) -> Iterator[_Read]:
    for file in files_below(root):
        if file.name == _PROJECT:
            project = _project(file, lost)
            for claim in _claims(project, file, lost):
                yield claim, _in_tree(claim, file.parent, project)
        elif (older := _OLDER.get(file.name)) and older.search(_bytes(file)):
            lost.append(_elsewhere(file))


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it is no project's, or its pyproject.toml is as unreadable
        return b""


def _elsewhere(file: Path) -> BrokenSeam:
    """The fault of a project whose entry points only a build would tell."""
    claim = Claim(name=file.parent.name, package="", distribution=str(file), version="")
    where = f"[tool.poetry.plugins] of {_PROJECT}" if file.name == _PROJECT else file.name
    found = f"its entry points of the group {GROUP} stand in {where}"
    fault = attrs.evolve(
        _project_fault(claim, file, found, None),
        next=f"move them to [project.entry-points.{GROUP}] of {_PROJECT}, or build the wheel and "
        "name that",
    )
    return broken_seam(claim, [fault])


def _project(file: Path, lost: list[BrokenSeam]) -> dict[str, Any]:
    """A ``pyproject.toml``; one that cannot be read matters only if it may be a plugin's."""
    data = b""
    try:
        data = file.read_bytes()
        return read_toml(data)
    except (OSError, TomlError) as error:
        if not data or GROUP.encode() in data:
            claim = Claim(name=file.parent.name, package="", distribution=str(file), version="")
            lost.append(broken_seam(claim, [_project_fault(claim, file, str(error), None)]))
        return {}


def _claims(project: dict[str, Any], file: Path, lost: list[BrokenSeam]) -> Iterator[Claim]:
    about = project.get("project", {})
    poetry = _table(_table(_table(project.get("tool")).get("poetry")).get("plugins"))
    if GROUP in poetry:
        lost.append(_elsewhere(file))
    points = _table(_table(about).get("entry-points")).get(GROUP)
    if points is None:
        return
    name = _table(about).get("name")
    version = _table(about).get("version", "of no fixed version")
    key = f"project.entry-points.{GROUP}"
    if not isinstance(name, str) or not isinstance(version, str) or not isinstance(points, dict):
        claim = Claim(name=file.parent.name, package="", distribution=str(file), version="")
        found = "[project] needs a name and, if any, a version as text; entry points are a table"
        lost.append(broken_seam(claim, [_project_fault(claim, file, found, key)]))
        return
    for seam, package in points.items():
        claim = Claim(name=seam, package=str(package), distribution=name, version=version)
        if isinstance(package, str):
            yield claim
        else:
            found = f"expected a package's name, found {package!r:.60}"
            fault = _project_fault(claim, file, found, f"{key}.{seam}")
            lost.append(broken_seam(claim, [fault]))


def _project_fault(claim: Claim, file: Path, found: str, key: str | None) -> EntryPointInvalid:
    return EntryPointInvalid(
        asked=f"the seams of {file}",
        found=found,
        next=f"correct [project.entry-points.{GROUP}]",
        subject=claim.name,
        file=str(file),
        key=key,
    )


def _in_tree(claim: Claim, folder: Path, project: dict[str, Any]) -> Seam | BrokenSeam:
    parts = claim.package.split(".")
    if not all(part.isidentifier() for part in parts):
        return broken_seam(claim, [not_a_package(claim)])
    package = next(
        (root.joinpath(*parts) for root in _roots(folder, project) if (root / parts[0]).is_dir()),
        None,
    )
    if package is None:
        return broken_seam(
            claim, [_not_there(claim, f"{folder} has no folder of package {parts[0]!r}")]
        )
    file = package / MANIFEST
    if not file.is_file():
        return broken_seam(claim, [_not_there(claim, f"{package} holds no {MANIFEST}")])
    if not file.resolve().is_relative_to(package.resolve()):
        found = f"it is a link to {file.resolve()}, outside its package"
        return broken_seam(claim, [_unread(claim, file, found)])
    try:
        data = read_at_most(file, MAX_BYTES + 1)
    except OSError as error:
        return broken_seam(claim, [_unread(claim, file, str(error))])
    return read_seam(claim, data, package)


def _roots(folder: Path, project: dict[str, Any]) -> Iterator[Path]:
    """Where a project's packages may lie: as its build backend is told, else as is usual."""
    tool = _table(project.get("tool"))
    hatch = _table(tool.get("hatch"))
    for part in ("build", "targets", "wheel"):
        hatch = _table(hatch.get(part))
    setuptools = _table(tool.get("setuptools"))
    told: list[str | Path] = [
        *(Path(package).parent for package in _texts(hatch.get("packages"))),
        *_texts(list(_table(setuptools.get("package-dir")).values())),
        *_texts(_table(_table(setuptools.get("packages")).get("find")).get("where")),
    ]
    yield from (folder / root for root in (*told, "src", "."))


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [part for part in value if isinstance(part, str)] if isinstance(value, list) else []
