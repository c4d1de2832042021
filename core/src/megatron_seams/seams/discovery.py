"""Discovery: every seam that is installed, judged against the others."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import attrs

from megatron_seams.base.distributions import Installed, installed, normalized
from megatron_seams.errors import DuplicateName, FamilyConflict, SeamsError
from megatron_seams.families import BUILT_IN, Family, Kind
from megatron_seams.seams.claims import Claim, ManifestFile, claims_of, open_installed, read_seam
from megatron_seams.seams.manifest import MANIFEST
from megatron_seams.seams.seam import BrokenSeam, Seam

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Discovery:
    """The installed seams.

    Attributes:
        seams: The usable seams, by name.
        broken: The others, by name and distribution.
        families: All families: core's, and those that the seams introduce.
    """

    seams: tuple[Seam, ...] = ()
    broken: tuple[BrokenSeam, ...] = ()
    families: tuple[Family, ...] = tuple(BUILT_IN.values())

    @functools.cached_property
    def by_family(self) -> Mapping[str, tuple[Seam, ...]]:
        """Family -> its seams, by name."""
        return _grouped((seam.family, seam) for seam in self.seams)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every seam, usable or broken."""
        return (*(seam.name for seam in self.seams), *(seam.name for seam in self.broken))

    @property
    def findings(self) -> tuple[SeamsError, ...]:
        """Every fault of every broken seam; one that several share is given once."""
        return tuple(dict.fromkeys(fault for seam in self.broken for fault in seam.faults))


def discover(projects: Iterable[Installed] | None = None) -> Discovery:
    """Find every installed seam, in an order that does not depend on that of installation.

    Args:
        projects: The installed distributions, where the caller has listed them.
    """
    return gather(read_installed(projects))


def read_installed(projects: Iterable[Installed] | None = None) -> Iterator[Seam | BrokenSeam]:
    """Every installed seam, read by itself; ``projects`` as for :func:`discover`."""
    claims = [
        (claim, project)
        for project in (installed() if projects is None else projects)
        for claim in claims_of(project)
    ]
    # All files first: seam by seam, parsing between file accesses, takes a third longer.
    files = [
        open_installed(claim, project) if isinstance(claim, Claim) else claim
        for claim, project in claims
    ]
    yield from (read_seam(it) if isinstance(it, ManifestFile) else it for it in files)


def gather(found: Iterable[Seam | BrokenSeam]) -> Discovery:
    """Judge seams that were read one by one against one another.

    A name that several have, and a family that they give different meanings, make all of them
    broken: none can be chosen between.
    """
    ordered = sorted(found, key=lambda it: (it.name, normalized(it.distribution), it.version))
    duplicates = _duplicates(ordered)
    named = [_with_fault(it, duplicates.get(it.name)) for it in ordered]
    introduced = _introduced(named)
    families = _families(introduced)
    judged = [
        _with_fault(it, _family_fault(it, introduced.get(it.family, {}), families))
        if isinstance(it, Seam)
        else it
        for it in named
    ]
    broken = (it for it in judged if isinstance(it, BrokenSeam))
    return Discovery(
        seams=tuple(it for it in judged if isinstance(it, Seam)),
        broken=tuple(sorted(broken, key=lambda it: (it.name, it.distribution))),
        families=tuple(families.values()),
    )


def _with_fault(seam: Seam | BrokenSeam, fault: SeamsError | None) -> Seam | BrokenSeam:
    """The seam itself, or a broken one where there is a fault with it."""
    if fault is None or seam.package is None:
        return seam
    return BrokenSeam(
        name=seam.name,
        package=seam.package,
        distribution=seam.distribution,
        version=seam.version,
        faults=(fault, *(seam.faults if isinstance(seam, BrokenSeam) else ())),
        manifest=seam.manifest,
    )


def _grouped(pairs: Iterable[tuple[str, T]]) -> dict[str, tuple[T, ...]]:
    groups: dict[str, list[T]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return {key: tuple(values) for key, values in groups.items()}


# --- names ------------------------------------------------------------------------------------


def _duplicates(seams: Iterable[Seam | BrokenSeam]) -> dict[str, DuplicateName]:
    """Name -> the fault that several claim it.

    A distribution that stands on the path twice is listed once, so two claims are two
    distributions, or one with a stale record or a name twice.
    """
    claimants = _grouped((it.name, it) for it in seams if it.package is not None)
    return {name: _duplicate(name, them) for name, them in claimants.items() if len(them) > 1}


def _duplicate(name: str, claimants: tuple[Seam | BrokenSeam, ...]) -> DuplicateName:
    listed = [f"{it.distribution} {it.version} ({it.package}{_place(it)})" for it in claimants]
    file = next((str(it.directory / MANIFEST) for it in claimants if isinstance(it, Seam)), None)
    fault = DuplicateName(
        asked=f"one distribution for the seam name {name!r}",
        found=f"it is claimed by {' and '.join(listed)}",
        next="uninstall all but one, or ask an owner to rename the seam",
        subject=name,
        file=file,
        key="seam.name" if file else None,
    )
    if len({normalized(it.distribution) for it in claimants}) > 1:
        return fault
    # An installer that removes one removes the package as well, which both have.
    own = claimants[0].distribution
    return attrs.evolve(fault, next=f"reinstall {own}, or delete the records that are stale")


def _place(seam: Seam | BrokenSeam) -> str:
    """The place of a seam's record, where it is installed."""
    project = seam.installed if isinstance(seam, Seam) else None
    return f", {project.place}" if project else ""


# --- families ---------------------------------------------------------------------------------

#: What a manifest says a family is: its summary and kind.
_Meaning = tuple[str, Kind]
_Meanings = Mapping[_Meaning, Sequence[Seam]]


def _introduced(seams: Iterable[Seam | BrokenSeam]) -> Mapping[str, _Meanings]:
    """Family -> each meaning that a manifest gives it, with the seams that do."""
    found: dict[str, dict[_Meaning, list[Seam]]] = {}
    for seam in seams:
        if isinstance(seam, Seam) and seam.manifest.family is not None:
            meaning = (seam.manifest.family.summary, seam.manifest.kind)
            found.setdefault(seam.family, {}).setdefault(meaning, []).append(seam)
    return found


def _families(introduced: Mapping[str, _Meanings]) -> Mapping[str, Family]:
    """Core's families, and each that manifests introduce with one meaning."""
    families = dict(BUILT_IN)
    for name, meanings in introduced.items():
        if name not in BUILT_IN and len(meanings) == 1:
            ((summary, kind),) = meanings
            families[name] = Family(name=name, summary=summary, kind=kind)
    return families


def _family_fault(
    seam: Seam, meanings: _Meanings, families: Mapping[str, Family]
) -> FamilyConflict | None:
    """Why it is unclear what family a seam builds; None if it is clear.

    Args:
        seam: The seam.
        meanings: What manifests say its family is.
        families: The families that are clear.
    """
    if seam.manifest.family is not None and seam.family in BUILT_IN:
        found = f"core already knows it: {BUILT_IN[seam.family].summary}"
        advice = "remove the [family] table from the manifest"
    elif len(meanings) > 1:
        found = " and ".join(
            f"{claimant.claim} says {summary!r}"
            for (summary, _), claimants in sorted(meanings.items(), key=lambda it: it[0])
            for claimant in claimants
        )
        advice = "agree on one meaning, or rename one of the families"
    elif seam.family not in families:
        found = "no manifest introduces it and core does not know it"
        advice = "add a [family] table with its name and a summary to the manifest"
    elif families[seam.family].kind != seam.manifest.kind:
        found = f"the family is a {families[seam.family].kind}"
        advice = "declare [carrier] for a block and [feature] for a feature"
    else:
        return None
    return FamilyConflict(
        asked=f"family {seam.family!r} for {seam.claim}",
        found=found,
        next=f"{advice}; ask {seam.owner}",
        subject=seam.name,
    )
