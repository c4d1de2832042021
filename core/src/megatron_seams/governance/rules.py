"""The rules of the gate: each takes a case and yields verdicts; :data:`RULES` lists them all."""

import datetime
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import attrs
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from megatron_seams.errors import (
    ClaimDiffers,
    CodeownersInvalid,
    NoProvider,
    NotAllowed,
    NothingChecked,
    OwnedElsewhere,
    Refusal,
    SeamsError,
    Superseded,
    Unwritten,
    WorkspaceInvalid,
)
from megatron_seams.governance.codeowners import LOCATIONS, Codeowners
from megatron_seams.governance.justified import committed_recipes, unjustified
from megatron_seams.governance.ownership import ownership_faults, skipped_lines
from megatron_seams.governance.receipts import committed_receipts, recipe_now
from megatron_seams.governance.reviews import review_due
from megatron_seams.governance.scope import Scope
from megatron_seams.governance.workspace import TABLE, Workspace
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import load_recipe
from megatron_seams.records.receipt import read_receipt
from megatron_seams.records.verify import verify
from megatron_seams.seams.manifest import MANIFEST
from megatron_seams.seams.removal import how_to_remove
from megatron_seams.seams.seam import Seam

Severity = Literal["error", "warning"]


@attrs.frozen(kw_only=True)
class Verdict:
    """A finding and its severity.

    Attributes:
        severity: ``error``, which fails the gate, or ``warning``.
        finding: The fault.
    """

    severity: Severity
    finding: SeamsError


@attrs.frozen(kw_only=True)
class Case:
    """The values that every rule reads.

    Attributes:
        environment: The Megatron and the seams.
        workspace: The workspace whose policy applies.
        codeowners: The CODEOWNERS file; None without one.
        folders: Seam name -> the folders of its source, in the tree of CODEOWNERS.
        today: The day that decides which dates have passed.
        whole: Whether the seams are all that the workspace's recipes may use.
        scope: What is looked at.
        beside: Installed seams that are not checked.
    """

    environment: Environment
    workspace: Workspace
    codeowners: Codeowners | None
    folders: Mapping[str, tuple[Path, ...]]
    today: datetime.date
    whole: bool
    scope: Scope
    beside: tuple[Seam, ...]

    @property
    def own(self) -> tuple[Seam, ...]:
        """The seams that this workspace answers for: all but the external ones."""
        external = self.workspace.policy.external
        return tuple(seam for seam in self.environment.discovery.seams if seam.name not in external)


def _nothing(case: Case) -> Iterator[Verdict]:
    """A gate that has nothing to look at."""
    if case.scope.empty:
        where = case.workspace.root or Path.cwd()
        finding = NothingChecked(
            asked=f"something to check in {where}",
            found="no seam, no recipe and no receipt",
            next="run this in the workspace or name its folder, in an environment that has its "
            f"seams; recipes and receipts elsewhere are listed in [tool.{TABLE}.holds]",
            subject=where.name,
        )
        yield Verdict(severity="warning", finding=finding)


def _findings(case: Case) -> Iterator[Verdict]:
    """Every finding of the environment; its notes are warnings."""
    for finding in case.environment.findings:
        noted = finding in case.environment.notes
        yield Verdict(severity="warning" if noted else "error", finding=finding)


def _superseded(case: Case) -> Iterator[Verdict]:
    """A superseded seam, which may stay only for releases that still need it."""
    policy = case.workspace.policy
    for seam in case.environment.discovery.seams:
        by = case.environment.superseded_by(seam)
        version = case.environment.surface.version
        if by is None or version is None:
            continue
        needed = _needed_on(seam, version, case.workspace)
        goes = how_to_remove(seam, case.environment.distributions)
        finding = Superseded(
            asked=f"{seam.claim} on megatron-core {version}",
            found=f"superseded: {by} in this Megatron; "
            + (
                f"kept for the releases of {policy.megatron_core} that need it"
                if needed
                else "no release that is used here needs it"
                if policy.range
                else "no [policy] megatron-core says that an older release is still used"
            ),
            next=f"{'once none of them does, ' if needed else ''}{goes}",
            subject=seam.name,
            file=str(seam.directory / MANIFEST),
            key="upstream",
        )
        yield Verdict(severity="warning" if needed else "error", finding=finding)


def _needed_on(seam: Seam, version: Version, workspace: Workspace) -> bool:
    """Whether the workspace's range has a release that the seam supports and upstream does not.

    Upstream has the block from the manifest's ``native-since`` on; without that key, from the
    release of this Megatron, ``version``, on.
    """
    if workspace.policy.range is None:
        return False
    since = seam.manifest.upstream.native_since or f"{version.major}.{version.minor}"
    before = SpecifierSet(f"<{since}")
    wanted = workspace.policy.range & seam.manifest.requires.range & before
    return not wanted.is_unsatisfiable()


def _claims(case: Case) -> Iterator[Verdict]:
    """A manifest's ``native-since`` that is not true of this Megatron."""
    version = case.environment.surface.version
    for seam in case.environment.discovery.seams:
        since = seam.manifest.upstream.native_since
        if since is None or version is None:
            continue
        shipped = case.environment.superseded_by(seam) is not None
        claimed = SpecifierSet(f">={since}").contains(version, prereleases=True)
        if shipped != claimed:
            found = "builds it all the same" if shipped else "does not build it"
            finding = ClaimDiffers(
                asked=f"{seam.claim}: native since {since}",
                found=f"megatron-core {version} {found}",
                next=f"{seam.owner} corrects [upstream] native-since in seam.toml",
                subject=seam.name,
                file=str(seam.directory / MANIFEST),
                key="upstream.native-since",
            )
            yield Verdict(severity="error", finding=finding)


def _reviews(case: Case) -> Iterator[Verdict]:
    """A seam whose review date has passed, or is near."""
    for seam in case.environment.discovery.seams:
        finding = review_due(seam, case.today)
        if finding is not None:
            passed = seam.manifest.seam.review_by < case.today
            yield Verdict(severity="error" if passed else "warning", finding=finding)


def _external(case: Case) -> Iterator[Verdict]:
    """An external seam that is not installed, or whose source is here."""
    if not case.whole:
        return
    known = case.environment.discovery.names
    for name in case.workspace.policy.external:
        if name in case.folders:
            wrong = f"its source is {case.folders[name][0]}"
            advice = "take it out, so that its owner is checked"
        elif name not in known:
            wrong = "no such seam is installed here"
            advice = "install the distribution that provides it, or take it out"
        else:
            continue
        finding = WorkspaceInvalid(
            asked=f"{name!r} as a seam of another workspace",
            found=wrong,
            next=advice,
            subject=name,
            file=str(case.workspace.file),
            key=f"tool.{TABLE}.policy.external",
        )
        yield Verdict(severity="error", finding=finding)


def _unwritten(case: Case) -> Iterator[Verdict]:
    """Texts of a manifest that its author has still to write."""
    for seam in case.own:
        for key, text in _texts(attrs.asdict(seam.manifest)):
            if text.strip().casefold().startswith(_PLACEHOLDER):
                finding = Unwritten(
                    asked=f"{key} of {seam.claim}",
                    found=repr(text),
                    next=f"{seam.owner} writes it",
                    subject=seam.name,
                    file=str(seam.directory / MANIFEST),
                    key=key,
                )
                yield Verdict(severity="warning", finding=finding)


#: How the scaffold's texts begin.
_PLACEHOLDER: Final = "to be written"


def _texts(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a manifest with its key, ``seam.summary``."""
    for name, value in table.items():
        key = f"{prefix}{name.replace('_', '-')}"
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, Mapping):
            yield from _texts(value, f"{key}.")


def _owners(case: Case) -> Iterator[Verdict]:
    """Files of a seam that CODEOWNERS does not give to the manifest's owner."""
    required = case.workspace.policy.require_codeowners
    strict: Severity = "error" if required else "warning"
    if case.codeowners is None:
        if required or (case.workspace.root and case.own):
            finding = CodeownersInvalid(
                asked="the file that says who owns which seam",
                found=f"there is no {', '.join(LOCATIONS[:-1])} or {LOCATIONS[-1]}",
                next="write one, or name where it is",
                file=str(case.workspace.file) if case.workspace.file else None,
                key=f"tool.{TABLE}.policy.require-codeowners" if required else None,
            )
            yield Verdict(severity=strict, finding=finding)
        return
    for skipped in skipped_lines(case.codeowners):
        yield Verdict(severity="warning", finding=skipped)
    for seam in case.own:
        for fault in ownership_faults(seam, case.codeowners, case.folders):
            elsewhere = isinstance(fault, OwnedElsewhere)
            yield Verdict(severity=strict if elsewhere else "error", finding=fault)


def _allowed(case: Case) -> Iterator[Verdict]:
    """An installed seam that an allowlist leaves out, and that is therefore never chosen."""
    for seam in case.environment.discovery.seams:
        against = case.environment.allowlist.against(seam.name)
        if against is not None:
            finding = NotAllowed(
                asked=f"{seam.claim} as a candidate",
                found=against,
                next="uninstall it, or allow it there",
                subject=seam.name,
                file=str(seam.directory / MANIFEST),
                key="seam.name",
            )
            yield Verdict(severity="warning", finding=finding)


def _committed(case: Case) -> Iterator[Verdict]:
    """Committed recipes that no longer resolve, and receipts that no longer verify."""
    if not case.whole or case.environment.faults:
        return  # without a readable Megatron, which is a finding of its own, there is no plan
    for find in (_recipe_faults, _receipt_faults):
        for finding in find(case.environment, case.workspace, case.today):
            yield Verdict(severity="error", finding=_with_external(finding, case.beside))


def _with_external(finding: SeamsError, beside: tuple[Seam, ...]) -> SeamsError:
    """A missing provider that is installed, and not named as external, with that next step."""
    missing = isinstance(finding, NoProvider)
    names = [seam.name for seam in beside if missing and seam.family == finding.subject]
    if not names:
        return finding
    listed = ", ".join(f'"{name}"' for name in names)
    return attrs.evolve(
        finding,
        found=f"{finding.found}; of another workspace, and so not looked at: {listed}",
        next=f"add {listed} to [tool.{TABLE}.policy] external",
    )


def _recipe_faults(
    environment: Environment, workspace: Workspace, today: datetime.date
) -> Iterator[SeamsError]:
    """The reasons why recipes do not resolve, and recipes that should be refused and resolve."""
    try:
        refused = set(workspace.committed("refused")) if workspace.holds.refused else set()
        recipes = sorted(refused.union(workspace.committed("recipes")))
    except WorkspaceInvalid as fault:
        yield fault
        return
    for file in recipes:
        reasons = tuple(_refusals(file, environment, today))
        if file not in refused:
            yield from reasons
        elif not reasons:
            yield WorkspaceInvalid(
                asked=f"{file.name} as a recipe that is refused",
                found="it resolves",
                next=f"take it out of [tool.{TABLE}.holds] refused",
                subject=file.name,
                file=str(workspace.file),
                key=f"tool.{TABLE}.holds.refused",
            )


def _refusals(file: Path, environment: Environment, today: datetime.date) -> Iterator[SeamsError]:
    try:
        resolve(load_recipe(file), environment, today=today)
    except Refusal as refusal:
        for reason in refusal.reasons:
            # A reason that names layers is about the pattern, unless it has a key of its own.
            key = reason.key or ("model.pattern" if reason.positions else None)
            asked = reason.asked if reason.file else f"{file.name}: {reason.asked}"
            yield attrs.evolve(reason, asked=asked, file=reason.file or str(file), key=key)


def _justified(case: Case) -> Iterator[Verdict]:
    """Experiments of committed recipes without a reason, and reasons whose date is past or near.

    Of a receipt whose recipe is not committed, the recipe inside it is judged.
    """
    if not case.whole:
        return
    recipes = dict(committed_recipes(case.workspace))
    named = [(file.stem, recipe) for file, recipe in recipes.items()]
    alone = {
        file: kept
        for file, kept in committed_receipts(case.workspace)
        if recipe_now(file, kept, named) is None
    }
    for file, recipe in (*recipes.items(), *alone.items()):
        kept = file in alone
        for finding, error in unjustified(file, recipe, case.environment, case.today, kept=kept):
            yield Verdict(severity="error" if error else "warning", finding=finding)


def _receipt_faults(
    environment: Environment, workspace: Workspace, today: datetime.date
) -> Iterator[SeamsError]:
    """Every difference of a committed receipt from this environment, and from its recipe."""
    recipes = [(file.stem, recipe) for file, recipe in committed_recipes(workspace)]
    try:
        receipts = tuple(workspace.committed("receipts"))
    except WorkspaceInvalid as fault:
        yield fault
        return
    for file in receipts:
        try:
            _, kept = read_receipt(file)
            now = recipe_now(file, kept, recipes)
            differences = verify(
                file,
                environment,
                today=today,
                recipe=now,
                hold_software=workspace.policy.hold_software,
                runs_here=False,
            )
        except SeamsError as unreadable:
            differences = (unreadable,)
        for difference in differences:
            yield attrs.evolve(difference, file=difference.file or str(file))


RULES: Final[tuple[Callable[[Case], Iterator[Verdict]], ...]] = (
    _nothing,
    _findings,
    _superseded,
    _claims,
    _reviews,
    _unwritten,
    _external,
    _owners,
    _allowed,
    _committed,
    _justified,
)
