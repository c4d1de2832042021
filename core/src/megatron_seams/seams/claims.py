"""Claims: the entry points that say which package is a seam, read without importing it.

An entry point of the group ``megatron_seams`` only names a package. Its manifest is looked up on
disk, and must lie in the distribution that made the claim: a package of the same name in the
working directory would otherwise win an import, and the audit would describe code that does not
run.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import attrs

from megatron_seams.base.distributions import Installed, raised
from megatron_seams.base.files import in_words, read_at_most
from megatron_seams.errors import (
    EntryPointInvalid,
    ManifestMissing,
    ManifestUnreadable,
    SeamsError,
    Shadowed,
)
from megatron_seams.seams.manifest import MANIFEST, MAX_BYTES, Manifest, parse_manifest
from megatron_seams.seams.seam import BrokenSeam, Seam

T = TypeVar("T")

#: The group of entry points.
GROUP = "megatron_seams"
#: The characters of a seam's name, or of its package's: a file's name has no more.
_LONGEST = 255


@attrs.frozen(kw_only=True)
class Claim:
    """An entry point.

    Attributes:
        name: Its name, which is the seam's.
        package: The package that it names.
        distribution: The distribution that has it.
        version: That distribution's version; empty where it is not known.
    """

    name: str
    package: str
    distribution: str
    version: str

    @property
    def by(self) -> str:
        """The claimant, as messages name it."""
        return f"{self.distribution} {self.version}".strip()

    def broken(self, *faults: SeamsError, manifest: Manifest | None = None) -> BrokenSeam:
        """The seam that it names, which cannot be used."""
        return BrokenSeam(
            name=self.name,
            package=self.package,
            distribution=self.distribution,
            version=self.version,
            faults=faults,
            manifest=manifest,
        )


@attrs.frozen(kw_only=True)
class ManifestFile:
    """The manifest that a claim led to.

    Attributes:
        claim: The claim.
        folder: The package that it lies in.
        data: Its bytes, one more than allowed at most.
        project: The distribution; None where it is not installed.
    """

    claim: Claim
    folder: Path
    data: bytes = attrs.field(repr=False)
    project: Installed | None = None


def guarded(claim: Claim, read: Callable[[], T]) -> T | BrokenSeam:
    """The result of reading a claim; whatever is raised makes a broken seam of it, and no more.

    The files read are other people's: names of files in no encoding, finders that are code of
    another package, metadata that some tool has left half written. None of it may hide another
    seam.
    """
    try:
        return read()
    except SeamsError as fault:
        return claim.broken(fault)
    except RecursionError:
        found = "it is nested too deeply to be read"
    except Exception as error:  # noqa: BLE001 - the guard
        found = f"reading it fails with {raised(error)}"
    unread = ManifestUnreadable(
        asked=f"the manifest of seam {claim.name!r:.80} ({claim.by})",
        found=found,
        next=f"reinstall {claim.distribution}, or uninstall it; ask its owner if that does not "
        "help",
        subject=claim.name,
    )
    return claim.broken(unread)


def claims_of(project: Installed) -> tuple[Claim | BrokenSeam, ...]:
    """The claims of a distribution, those that its damaged metadata leaves unclear as broken."""
    if project.fault is not None:
        advice = "uninstall what puts it there, or repair it"
        return (_damaged(project.record, project.record, "", project.fault, advice),)
    return (*_claims(project), *(it for other in project.hides for it in _hidden(other, project)))


def _claims(project: Installed) -> Iterator[Claim | BrokenSeam]:
    entries = project.entry_points(GROUP)
    if not entries:
        return
    name, version = project.identity or (project.record, "")
    if isinstance(entries, str):
        found = f"its entry_points.txt cannot be read: {entries}"
        yield _damaged(name, name, version, found)
        return
    for seam, package in entries:
        if max(len(seam), len(package)) > _LONGEST:
            found = f"an entry point, {seam:.60} = {package:.60}..., is longer than a name can be"
            yield _damaged(f"{seam:.60}", name, version, found)
        elif version:
            yield Claim(name=seam, package=package, distribution=name, version=version)
        else:
            yield _damaged(seam, name, "", f"{name} has no METADATA that says what it is")


def _hidden(project: Installed, by: Installed) -> Iterator[BrokenSeam]:
    """The seams of a distribution that a record of it in an earlier folder hides.

    An earlier record of a newer version is an upgrade, which may have given a seam up.
    """
    entries = project.entry_points(GROUP)
    known = by.entry_points(GROUP)
    if isinstance(entries, str) or isinstance(known, str) or by.is_newer_than(project):
        return
    name, version = project.identity or (project.record, "")
    for seam, _ in sorted({*entries} - {*known}):
        what = f"says version {by.identity[1]}" if by.identity else "has no METADATA"
        found = (
            f"the record {by.place}, which comes first on the path and {what}, hides the one in "
            f"{project.root}"
        )
        advice = f"delete {by.place}, or reinstall {name} in that folder"
        yield _damaged(seam, name, version, found, advice)


def _damaged(
    name: str,
    distribution: str,
    version: str,
    found: str,
    advice: str = "",
) -> BrokenSeam:
    fault = EntryPointInvalid(
        asked=f"the seams of {distribution} {version}".strip(),
        found=found,
        next="reinstall the distribution, or delete what is left of it",
        subject=name,
    )
    if advice:
        fault = attrs.evolve(fault, next=advice)
    return BrokenSeam(name=name, distribution=distribution, version=version, faults=(fault,))


def open_installed(claim: Claim, project: Installed) -> ManifestFile | BrokenSeam:
    """The manifest of a claim of an installed distribution, or why there is none to read."""
    return guarded(claim, lambda: open_manifest(claim, _locate(claim, project), project))


def open_manifest(claim: Claim, folder: Path, project: Installed | None = None) -> ManifestFile:
    """The manifest in the folder of a claimed package.

    Args:
        claim: The claim.
        folder: The package's folder.
        project: The distribution; None where it is not installed. A link may lead from its package
            to the folders of an editable one: setuptools' strict mode installs a tree of links.

    Raises:
        ManifestUnreadable: It cannot be read, or is a link out of its package; a link may lead to
            any file of the machine.
    """
    file = folder / MANIFEST
    if file.is_symlink():
        target = file.resolve()
        roots = (folder, *(project.editable_roots() if project else ()))
        if not any(target.is_relative_to(root.resolve()) for root in roots):
            raise unreadable(claim, file, f"it is a link to {target}, outside its package")
    try:
        # One byte more than allowed is enough to know that it is too large.
        data = read_at_most(file, MAX_BYTES + 1)
    except OSError as error:
        raise unreadable(claim, file, in_words(error)) from error
    return ManifestFile(claim=claim, folder=folder, data=data, project=project)


def read_seam(found: ManifestFile) -> Seam | BrokenSeam:
    """The seam that a manifest declares, or what is wrong with it."""
    return guarded(found.claim, lambda: _seam(found))


def _seam(found: ManifestFile) -> Seam | BrokenSeam:
    claim, file = found.claim, str(found.folder / MANIFEST)
    manifest, faults = parse_manifest(found.data, file=file)
    if manifest is None:
        asked = f"of seam {claim.name!r} ({claim.by})"
        return claim.broken(
            *(attrs.evolve(it, asked=f"{it.asked}, {asked}", subject=claim.name) for it in faults)
        )
    if manifest.seam.name != claim.name:
        fault = EntryPointInvalid(
            asked=f"seam {claim.name!r}, as {claim.by} names it",
            found=f"its manifest calls itself {manifest.seam.name!r}",
            next="use one name in [project.entry-points.megatron_seams] and in seam.toml; "
            f"ask {manifest.seam.owner}",
            subject=claim.name,
            file=file,
            key="seam.name",
        )
        return claim.broken(fault, manifest=manifest)
    return Seam(
        manifest=manifest,
        package=claim.package,
        distribution=claim.distribution,
        version=claim.version,
        directory=found.folder,
        manifest_digest=hashlib.sha256(found.data).hexdigest(),
        installed=found.project,
    )


# --- where the package is ---------------------------------------------------------------------


def parts_of(claim: Claim) -> list[str]:
    """The parts of the claimed package's dotted name.

    Raises:
        EntryPointInvalid: It is no dotted name.
    """
    parts = claim.package.split(".")
    if not all(part.isidentifier() for part in parts):
        raise EntryPointInvalid(
            asked=f"the package of seam {claim.name!r} ({claim.by})",
            found=f"the entry point names {claim.package!r:.200}, which is not a package",
            next="name the package that holds seam.toml, without an attribute",
            subject=claim.name,
        )
    return parts


def _locate(claim: Claim, project: Installed) -> Path:
    """The folder of the claimed package, as an import would find it.

    Raises:
        EntryPointInvalid: The claim names no package.
        ManifestMissing: The package is not there, or has no manifest.
        Shadowed: An import would find a package that is not the distribution's.
    """
    top, *inner = parts_of(claim)
    # Only the top-level name is asked for: find_spec of a dotted one imports its parent.
    try:
        spec = importlib.util.find_spec(top)
    except (ValueError, ImportError):
        spec = None
    if spec is None:
        raise _not_importable(claim, top, project)
    if not spec.submodule_search_locations:
        if project.file(top).is_dir():
            raise _shadowed(claim, Path(spec.origin or top))
        found = f"{top!r} is a module and not a package"
        raise missing(claim, found)
    if Path(project.root).is_file():
        found = f"it is installed in the archive {project.root}, and seams are read from folders"
        raise attrs.evolve(missing(claim, found), next="install the wheel, or unpack the archive")
    folder, *others = [Path(it, *inner) for it in spec.submodule_search_locations]
    if others:  # of a namespace package; an import takes the first that holds the package
        holding = (it for it in (folder, *others) if (it / "__init__.py").is_file())
        folder = next(holding, folder)
    present = (folder / MANIFEST).is_file()
    if not _belongs(folder, present, project, "/".join([top, *inner])):
        if not folder.is_dir():
            found = f"there is no package {claim.package!r}"
            raise missing(claim, found)
        raise _shadowed(claim, folder)
    if not present:
        found = f"{folder} holds no {MANIFEST}"
        raise missing(claim, found)
    return folder


def _belongs(folder: Path, present: bool, project: Installed, package: str) -> bool:
    """Whether a distribution installed a package, by its record or as an editable project.

    Args:
        folder: Where an import finds the package.
        present: Whether the manifest is in it.
        project: The distribution.
        package: The package's place in it, ``acme_seams/kda``.
    """
    own = project.file(package)
    if folder == own or folder.resolve() == own.resolve():
        record = project.recorded()
        # Without a record (an egg-info in a source tree) the place is all there is to go by. A
        # package that was built without its manifest is still this distribution's, and its
        # manifest missing.
        wanted = f"{package}/{MANIFEST}," if present else f"{package}/"
        if record is None or f"\n{wanted}" in f"\n{record}":
            return True
    roots = project.editable_roots()
    return any(folder.resolve().is_relative_to(root.resolve()) for root in roots)


# --- faults -----------------------------------------------------------------------------------


def missing(claim: Claim, found: str) -> ManifestMissing:
    """The fault of a claim without a manifest."""
    return ManifestMissing(
        asked=f"the manifest of seam {claim.name!r} ({claim.by})",
        found=found,
        next=f"reinstall {claim.distribution}, or uninstall what is left of it",
        subject=claim.name,
    )


def _not_importable(claim: Claim, top: str, project: Installed) -> ManifestMissing:
    """The fault of a claim whose package no import would find."""
    fault = missing(claim, f"there is no package {top!r}")
    roots = [root for root in project.editable_roots() if root.is_dir()]
    if not roots:
        return fault
    return attrs.evolve(
        fault,
        found=f"{fault.found} on the path, and the project in {roots[0]} is installed as editable: "
        f"the .pth file in {project.root} that leads there is read in site folders alone",
        next=f"put the folder of {top} on PYTHONPATH, or install {claim.distribution} in an "
        "environment of its own",
    )


def unreadable(claim: Claim, file: Path, found: str) -> ManifestUnreadable:
    """The fault of a manifest that is there and cannot be read."""
    return ManifestUnreadable(
        asked=f"the manifest of seam {claim.name!r} ({claim.by})",
        found=found,
        next=f"reinstall {claim.distribution}",
        subject=claim.name,
        file=str(file),
    )


def _shadowed(claim: Claim, found: Path) -> Shadowed:
    return Shadowed(
        asked=f"package {claim.package!r} from {claim.by}",
        found=f"an import would load it from {found}, which is not part of that distribution",
        next="start from another working directory, take the folder off PYTHONPATH, or "
        f"reinstall {claim.distribution}",
        subject=claim.name,
        file=str(found),
    )
