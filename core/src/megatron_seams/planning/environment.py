"""The environment that a plan is made in: one Megatron and the installed seams, read once."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs
from packaging.version import Version

from megatron_seams.base.distributions import Installed, by_name, installed
from megatron_seams.base.versions import contains
from megatron_seams.errors import SeamsError, SurfaceUnknown, WrongMegatron
from megatron_seams.families import Family
from megatron_seams.seams.allowlist import Allowlist, operators_allowlist
from megatron_seams.seams.discovery import Discovery, discover
from megatron_seams.seams.manifest import MANIFEST
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.locate import importable_megatron, megatron_missing, open_megatron
from megatron_seams.upstream.source import MegatronSource, unknown_shape
from megatron_seams.upstream.surface import NativeSurface, read_surface

if TYPE_CHECKING:
    from megatron_seams.upstream.settings import NativeSettings

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Environment:
    """One Megatron, and the seams beside it.

    Attributes:
        surface: The layers that the Megatron builds; none where it is missing or unreadable.
        discovery: The seams.
        source: The Megatron's source; None where there is none.
        faults: The reasons why nothing is native, if so; they are reported before all others.
        notes: Findings about a Megatron that is usable all the same.
        allowlist: The seams that may be used; the others are listed but never chosen.
        projects: The installed distributions, where they were listed.
    """

    surface: NativeSurface
    discovery: Discovery
    source: MegatronSource | None = None
    faults: tuple[SeamsError, ...] = ()
    notes: tuple[SeamsError, ...] = ()
    allowlist: Allowlist = attrs.field(factory=Allowlist)
    projects: tuple[Installed, ...] | None = None

    @functools.cached_property
    def findings(self) -> tuple[SeamsError, ...]:
        """All faults and notes, the gravest first."""
        return (*self.faults, *self.notes, *self.discovery.findings, *self.misfits.values())

    @functools.cached_property
    def misfits(self) -> Mapping[str, WrongMegatron]:
        """Name of each installed seam whose version range excludes this Megatron -> the fault."""
        judged = {seam.name: self.out_of_range(seam) for seam in self.discovery.seams}
        return {name: fault for name, fault in judged.items() if fault is not None}

    @functools.cached_property
    def distributions(self) -> Mapping[str, tuple[Installed, ...]]:
        """Normalized name -> its installed distributions: several where a record is stale."""
        return by_name(installed() if self.projects is None else self.projects)

    @functools.cached_property
    def families(self) -> Mapping[str, Family]:
        """All known families by name."""
        return {family.name: family for family in self.discovery.families}

    def settings(self) -> "NativeSettings":
        """The Megatron's configuration fields and flags; read when first asked for.

        Raises:
            SurfaceUnknown: They are in a file that cannot be read.
        """
        return _settings_of(self.source)

    def superseded_by(self, seam: Seam) -> str | None:
        """The symbol, field or flag of this Megatron that retires ``seam``, in words, or None.

        A field or flag that cannot be read retires nothing: the seam then stays a release too long.
        """
        upstream = seam.manifest.upstream
        if upstream.symbol_name is not None:
            symbol = self.surface.of_constant(upstream.symbol_name)
            return f"native {symbol.symbol!r}" if symbol else None
        if upstream.accepts is None:
            return None
        try:
            settings = self.settings()
        except SurfaceUnknown:
            return None
        if upstream.config_field is not None:
            known = upstream.config_field in settings.config_fields
            return f"native option {upstream.config_field}" if known else None
        return f"native {upstream.flag}" if upstream.flag in settings.flags else None

    def out_of_range(self, seam: Seam) -> WrongMegatron | None:
        """The fault that the version range of ``seam`` excludes this Megatron; None if it does not.

        A superseded seam is never out of range: it has nothing left to build here.
        """
        version = self.surface.version
        wanted = seam.manifest.requires.megatron_core
        if version is None or contains(wanted, version):
            return None
        if self.superseded_by(seam) is not None:
            return None
        found = f"its manifest requires megatron-core {wanted}"
        if version.is_prerelease and contains(wanted, Version(version.base_version)):
            found += f"; {version} is a pre-release, which comes before {version.base_version}"
        return WrongMegatron(
            asked=f"{seam.claim} on megatron-core {version}",
            found=found,
            next=f"install a release of {seam.distribution} for megatron-core {version}, or ask "
            f"{seam.owner}",
            subject=seam.name,
            file=str(seam.directory / MANIFEST),
            key="requires.megatron-core",
        )


@functools.lru_cache(maxsize=4)
def _settings_of(source: MegatronSource | None) -> "NativeSettings":
    # Imported when they are read, which a listing seldom does (tests/test_light.py).
    from megatron_seams.upstream.settings import NativeSettings, read_settings

    # Environments that differ in their seams alone have one source.
    return _understood(read_settings, source) if source else NativeSettings()


def _understood(read: Callable[[MegatronSource], T], source: MegatronSource) -> T:
    """A reader's result from Megatron's source; whatever it raises is a SurfaceUnknown.

    Raises:
        SurfaceUnknown: The source is of a shape that this reader does not know.
    """
    try:
        return read(source)
    except SeamsError:
        raise
    except Exception as error:  # the source may be anything, and no reader knows everything
        found = f"reading it fails with {type(error).__name__}: {error!s:.200}"
        raise unknown_shape(source.origin, found) from error


def read_environment(
    megatron: Path | str | None = None, *, discovery: Discovery | None = None
) -> Environment:
    """Read the Megatron that would be imported, or the one at ``megatron``, and the seams.

    Args:
        megatron: A wheel, sdist or folder.
        discovery: Seams to use instead of the installed ones.

    Raises:
        MegatronMissing: ``megatron`` was given and holds none.
    """
    notes: tuple[SeamsError, ...] = ()
    source: MegatronSource | None
    projects = tuple(installed())
    if megatron is not None:
        source = open_megatron(Path(megatron))
    else:
        source, notes = importable_megatron(projects)
    found = Environment(
        surface=NativeSurface(),
        discovery=discover(projects) if discovery is None else discovery,
        source=source,
        notes=notes,
        allowlist=operators_allowlist(),
        projects=projects,
    )
    if source is None:
        return attrs.evolve(found, faults=(megatron_missing(),))
    try:
        surface = _understood(read_surface, source)
    except SurfaceUnknown as fault:
        return attrs.evolve(found, surface=NativeSurface(origin=source.origin), faults=(fault,))
    claimed = {seam.manifest.upstream.symbol_name for seam in found.discovery.seams}
    unmapped = tuple(note for note in surface.unmapped() if note.subject not in claimed)
    return attrs.evolve(found, surface=surface, notes=(*notes, *unmapped))
