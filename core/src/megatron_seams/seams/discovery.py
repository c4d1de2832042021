"""Finding the installed seams without importing any of them.

An entry point of the group ``megatron_seams`` only names a package. Its manifest is looked up on
disk, and must lie in the distribution that made the claim: the same name in the working directory
would otherwise win an import, and the audit would describe code that does not run.
"""

import functools
import hashlib
import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from megatron_seams.base.distributions import Installed, installed, normalized
from megatron_seams.base.files import read_at_most
from megatron_seams.errors import (
    DuplicateName,
    EntryPointInvalid,
    FamilyConflict,
    ManifestMissing,
    ManifestUnreadable,
    SeamsError,
    Shadowed,
)
from megatron_seams.families import BUILT_IN, Family
from megatron_seams.seams.seam import MAX_BYTES, Manifest, Seam, parse_manifest

GROUP = "megatron_seams"
MANIFEST = "seam.toml"


@attrs.frozen(kw_only=True)
class BrokenSeam:
    """An entry point that names no usable seam.

    Attributes:
        name: The entry point's name.
        distribution: Who claims it.
        version: That distribution's version.
        faults: What is wrong, all of it.
        manifest: What could be read of it, so that a message can say which family is affected.
    """

    name: str
    distribution: str
    version: str
    faults: tuple[SeamsError, ...]
    manifest: Manifest | None = None


@attrs.frozen(kw_only=True)
class Discovery:
    """What is installed.

    Attributes:
        seams: The seams with a valid, unambiguous claim, by name.
        broken: The others, by name and distribution.
        families: All families: core's, and those that the seams introduce.
    """

    seams: tuple[Seam, ...] = ()
    broken: tuple[BrokenSeam, ...] = ()
    families: tuple[Family, ...] = tuple(BUILT_IN.values())

    @functools.cached_property
    def by_family(self) -> Mapping[str, tuple[Seam, ...]]:
        """Family -> its seams, by name."""
        found: dict[str, list[Seam]] = {}
        for seam in self.seams:
            found.setdefault(seam.family, []).append(seam)
        return {family: tuple(seams) for family, seams in found.items()}

    @property
    def findings(self) -> tuple[SeamsError, ...]:
        """Every fault of every broken seam; one that several share is given once."""
        return tuple(dict.fromkeys(fault for seam in self.broken for fault in seam.faults))


@attrs.frozen(kw_only=True)
class Claim:
    """An entry point: who says that which package is a seam of which name."""

    name: str
    package: str
    distribution: str
    version: str

    @property
    def by(self) -> str:
        """The claimant, as messages name it."""
        return f"{self.distribution} {self.version}".strip()


def discover(projects: Iterable[Installed] | None = None) -> Discovery:
    """Find every installed seam, in an order that no installation order changes.

    Args:
        projects: What is installed, where that was listed before.
    """
    broken: list[BrokenSeam] = []
    claims = claims_of(installed() if projects is None else projects, broken)
    return gather([(claim, _read(claim, project)) for claim, project in claims], broken)


def gather(
    claims: Sequence[tuple[Claim, Seam | BrokenSeam]], lost: Iterable[BrokenSeam]
) -> Discovery:
    """Judge claims that have been read against one another.

    Args:
        claims: Each with its seam, or with what is wrong with it, by name and distribution.
        lost: What could not be read so far that it makes a claim.
    """
    seams: list[Seam] = []
    broken = list(lost)
    contested = _contested(claims)
    for claim, seam in claims:
        if claim.name in contested:
            others = seam.faults if isinstance(seam, BrokenSeam) else ()
            seam = broken_seam(claim, (contested[claim.name], *others), seam.manifest)
        if isinstance(seam, BrokenSeam):
            broken.append(seam)
        else:
            seams.append(seam)
    return _with_families(seams, broken)


def claims_of(
    projects: Iterable[Installed], broken: list[BrokenSeam]
) -> list[tuple[Claim, Installed]]:
    """All claims and who makes them, by name and distribution.

    Those of damaged installations go to ``broken``.
    """
    claims: list[tuple[Claim, Installed]] = []
    for project in projects:
        entries = project.entry_points(GROUP)
        if not entries:
            continue
        name, version = project.identity or (project.record, "")
        if isinstance(entries, str):
            claim = Claim(name=name, package="", distribution=name, version=version)
            found = f"its entry_points.txt cannot be read: {entries}"
            broken.append(broken_seam(claim, [_damaged(claim, found)]))
            continue
        for seam, package in entries:
            claim = Claim(name=seam, package=package, distribution=name, version=version)
            if version:
                claims.append((claim, project))
            else:
                fault = _damaged(claim, f"{name} has no METADATA that says what it is")
                broken.append(broken_seam(claim, [fault]))
    return sorted(
        claims, key=lambda it: (it[0].name, normalized(it[0].distribution), it[0].version)
    )


def _damaged(claim: Claim, found: str) -> EntryPointInvalid:
    return EntryPointInvalid(
        asked=f"the seams of {claim.by}",
        found=found,
        next="reinstall the distribution, or delete what is left of it",
        subject=claim.name,
    )


def _contested(
    claims: Iterable[tuple[Claim, Seam | BrokenSeam]],
) -> dict[str, DuplicateName]:
    # A distribution that stands on the path twice is given once, so two claims are two
    # distributions, or one with a stale record or a name twice; none can be chosen between.
    by_name: dict[str, list[tuple[Claim, Seam | BrokenSeam]]] = {}
    for claim, seam in claims:
        by_name.setdefault(claim.name, []).append((claim, seam))
    return {name: _duplicate(name, both) for name, both in by_name.items() if len(both) > 1}


def _duplicate(name: str, claims: list[tuple[Claim, Seam | BrokenSeam]]) -> DuplicateName:
    listed = " and ".join(f"{claim.by} ({claim.package})" for claim, _ in claims)
    file = next((str(it.directory / MANIFEST) for _, it in claims if isinstance(it, Seam)), None)
    return DuplicateName(
        asked=f"one distribution for the seam name {name!r}",
        found=f"it is claimed by {listed}",
        next="uninstall all but one, or ask an owner to rename the seam",
        subject=name,
        file=file,
        key="seam.name" if file else None,
    )


def broken_seam(
    claim: Claim, faults: Iterable[SeamsError], manifest: Manifest | None = None
) -> BrokenSeam:
    """A claim that names no usable seam."""
    return BrokenSeam(
        name=claim.name,
        distribution=claim.distribution,
        version=claim.version,
        faults=tuple(faults),
        manifest=manifest,
    )


def _read(claim: Claim, project: Installed) -> Seam | BrokenSeam:
    """One claim, as a seam or as what is wrong with it."""
    located = _locate(claim, project)
    if isinstance(located, SeamsError):
        return broken_seam(claim, [located])
    try:
        # One byte more than allowed is enough to know that it is too large.
        data = read_at_most(Path(located, MANIFEST), MAX_BYTES + 1)
    except OSError as error:
        return broken_seam(claim, [unreadable(claim, Path(located, MANIFEST), str(error))])
    return read_seam(claim, data, located)


def read_seam(claim: Claim, data: bytes, folder: Path | str) -> Seam | BrokenSeam:
    """The seam that a manifest's bytes declare, or what is wrong with it.

    Args:
        claim: Who says so.
        data: The manifest.
        folder: The package that it lies in.
    """
    file = f"{folder}/{MANIFEST}"
    manifest, faults = parse_manifest(data, file=file)
    if manifest is None:
        asked = f"of seam {claim.name!r} ({claim.by})"
        return broken_seam(
            claim,
            [attrs.evolve(it, asked=f"{it.asked}, {asked}", subject=claim.name) for it in faults],
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
        return broken_seam(claim, [fault], manifest)
    return Seam(
        manifest=manifest,
        package=claim.package,
        distribution=claim.distribution,
        version=claim.version,
        directory=Path(folder),
        manifest_digest=hashlib.sha256(data).hexdigest(),
    )


def unreadable(claim: Claim, file: Path, found: str) -> SeamsError:
    """The fault of a manifest that is there and cannot be read."""
    return ManifestUnreadable(
        asked=f"the manifest of seam {claim.name!r} ({claim.by})",
        found=found,
        next=f"reinstall {claim.distribution}",
        subject=claim.name,
        file=str(file),
    )


def _locate(claim: Claim, project: Installed) -> str | SeamsError:
    """The folder of the claimed package, if it belongs to the claiming distribution."""
    parts = claim.package.split(".")
    if not all(part.isidentifier() for part in parts):
        return not_a_package(claim)
    # Only the top-level name is asked for: find_spec of a dotted one imports its parent.
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ValueError, ImportError):
        spec = None
    if spec is None:
        return missing_manifest(claim, f"there is no package {parts[0]!r}")
    if not spec.submodule_search_locations:
        if project.file(parts[0]).is_dir():
            return _shadowed(claim, Path(spec.origin or parts[0]))
        return missing_manifest(claim, f"{parts[0]!r} is a module and not a package")
    # A namespace package has several folders; an import takes the first that holds the package.
    folder, *others = [os.path.join(it, *parts[1:]) for it in spec.submodule_search_locations]
    for other in (folder, *others) if others else ():
        if os.path.isfile(f"{other}/__init__.py"):
            folder = other
            break
    file = f"{folder}/{MANIFEST}"
    present = os.path.isfile(file)
    if not _belongs(folder, present, project, "/".join(parts)):
        if not os.path.isdir(folder):
            return missing_manifest(claim, f"there is no package {claim.package!r}")
        return _shadowed(claim, Path(folder))
    if not present:
        return missing_manifest(claim, f"{folder} holds no {MANIFEST}")
    if os.path.islink(file):
        real = Path(file).resolve()
        if not real.is_relative_to(Path(folder).resolve()):
            found = f"it is a link to {real}, outside its package"
            return unreadable(claim, Path(file), found)
    return folder


def not_a_package(claim: Claim) -> EntryPointInvalid:
    """The fault of an entry point that names something else than a dotted package."""
    return EntryPointInvalid(
        asked=f"the package of seam {claim.name!r} ({claim.by})",
        found=f"the entry point names {claim.package!r}, which is not a package",
        next="name the package that holds seam.toml, without an attribute",
        subject=claim.name,
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


def missing_manifest(claim: Claim, found: str) -> ManifestMissing:
    """The fault of a claim without a manifest."""
    return ManifestMissing(
        asked=f"the manifest of seam {claim.name!r} ({claim.by})",
        found=found,
        next=f"reinstall {claim.distribution}, or uninstall what is left of it",
        subject=claim.name,
    )


def _belongs(folder: str, present: bool, project: Installed, package: str) -> bool:
    """Whether a distribution installed a package, by its record or as an editable project.

    Args:
        folder: Where an import finds the package.
        present: Whether the manifest is in it.
        project: The distribution.
        package: The package's place in it, ``acme_seams/kda``.
    """
    own = f"{project.root}/{package}"
    if folder == own or os.path.realpath(folder) == os.path.realpath(own):
        record = project.recorded()
        # Without a record (an egg-info in a source tree) the place is all there is to go by. A
        # package that was built without its manifest is still this distribution's, and its
        # manifest missing.
        wanted = f"{package}/{MANIFEST}," if present else f"{package}/"
        if record is None or record.startswith(wanted) or f"\n{wanted}" in record:
            return True
    roots = project.editable_roots()
    return any(Path(folder).resolve().is_relative_to(root.resolve()) for root in roots)


def _with_families(seams: list[Seam], broken: list[BrokenSeam]) -> Discovery:
    """Add the families that manifests introduce; a seam whose family is unclear is broken."""
    meanings: dict[str, dict[tuple[str, str], list[Seam]]] = {}
    for seam in seams:
        if seam.manifest.family is not None:
            meaning = (seam.manifest.family.summary, seam.manifest.kind)
            meanings.setdefault(seam.family, {}).setdefault(meaning, []).append(seam)
    families = dict(BUILT_IN)
    for name, claims in meanings.items():
        if name not in BUILT_IN and len(claims) == 1:
            ((summary, kind),) = claims
            families[name] = Family(
                name=name, summary=summary, kind="feature" if kind == "feature" else "block"
            )
    kept: list[Seam] = []
    for seam in seams:
        fault = _family_fault(seam, meanings.get(seam.family, {}), families)
        if fault is None:
            kept.append(seam)
        else:
            broken.append(
                BrokenSeam(
                    name=seam.name,
                    distribution=seam.distribution,
                    version=seam.version,
                    faults=(fault,),
                    manifest=seam.manifest,
                )
            )
    return Discovery(
        seams=tuple(sorted(kept, key=lambda seam: seam.name)),
        broken=tuple(sorted(broken, key=lambda seam: (seam.name, seam.distribution))),
        families=tuple(families.values()),
    )


def _family_fault(
    seam: Seam, claims: dict[tuple[str, str], list[Seam]], families: dict[str, Family]
) -> SeamsError | None:
    found = None
    if seam.manifest.family is not None and seam.family in BUILT_IN:
        found = f"core already knows it: {BUILT_IN[seam.family].summary}"
        advice = "remove the [family] table from the manifest"
    elif len(claims) > 1:
        found = " and ".join(
            f"{claimant.claim} says {summary!r}"
            for (summary, _), claimants in sorted(claims.items())
            for claimant in claimants
        )
        advice = "agree on one meaning, or rename one of the families"
    elif seam.family not in families:
        found = "no manifest introduces it and core does not know it"
        advice = "add a [family] table with its name and a summary to the manifest"
    elif families[seam.family].kind != seam.manifest.kind:
        found = f"the family is a {families[seam.family].kind}"
        advice = "declare [carrier] for a block and [feature] for a feature"
    if found is None:
        return None
    return FamilyConflict(
        asked=f"family {seam.family!r} for {seam.claim}",
        found=found,
        next=f"{advice}; ask {seam.owner}",
        subject=seam.name,
    )
