"""The gate: what a workspace must not carry on with, and what it should know.

A rule takes a :class:`Case` and gives verdicts; :data:`RULES` lists them all.
"""

import datetime
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import attrs
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from megatron_seams.base.toml import with_line
from megatron_seams.errors import (
    ClaimDiffers,
    CodeownersInvalid,
    ExitCode,
    NotAllowed,
    OwnedElsewhere,
    SeamsError,
    Superseded,
)
from megatron_seams.governance.codeowners import LOCATIONS, Codeowners
from megatron_seams.governance.ownership import (
    ownership_faults,
    review_due,
    seam_folders,
    skipped_lines,
    source_of,
)
from megatron_seams.governance.rules import receipt_faults, recipe_faults
from megatron_seams.governance.workspace import TABLE, Workspace
from megatron_seams.planning.environment import Environment
from megatron_seams.seams.discovery import MANIFEST
from megatron_seams.seams.removal import retirement
from megatron_seams.seams.seam import Seam

SCHEMA: Final = 1

Severity = Literal["error", "warning"]


@attrs.frozen(kw_only=True)
class Verdict:
    """A finding and its weight.

    Attributes:
        severity: Whether it fails the gate.
        finding: What was found.
    """

    severity: Severity
    finding: SeamsError


@attrs.frozen(kw_only=True)
class Gate:
    """All verdicts, errors first."""

    verdicts: tuple[Verdict, ...]

    @property
    def exit_code(self) -> ExitCode:
        """0 if nothing but warnings, 1 if there are errors, 3 without a Megatron to judge by."""
        errors = [one.finding for one in self.verdicts if one.severity == "error"]
        if any(error.exit_code is ExitCode.ENVIRONMENT for error in errors):
            return ExitCode.ENVIRONMENT
        return ExitCode.FINDINGS if errors else ExitCode.OK

    def to_dict(self) -> dict[str, Any]:
        """As ``check --format json`` prints it."""
        return {
            "schema": SCHEMA,
            "passed": self.exit_code is ExitCode.OK,
            "verdicts": [
                {"severity": one.severity, **one.finding.to_dict()} for one in self.verdicts
            ],
        }


@attrs.frozen(kw_only=True)
class Case:
    """What is judged.

    Attributes:
        environment: The Megatron and the seams.
        workspace: Whose policy holds.
        codeowners: The file that says who owns which path; None without one.
        folders: Seam name -> the folders of that file's tree that hold its source.
        today: The day on which dates are judged.
        whole: Whether the seams are all that the workspace's recipes may use.
    """

    environment: Environment
    workspace: Workspace
    codeowners: Codeowners | None
    folders: Mapping[str, tuple[Path, ...]]
    today: datetime.date
    whole: bool


def check(
    environment: Environment,
    workspace: Workspace,
    *,
    codeowners: Codeowners | None = None,
    today: datetime.date | None = None,
    whole: bool = True,
) -> Gate:
    """Every verdict of every rule.

    Args:
        environment: The Megatron and the seams to judge.
        workspace: Whose policy holds.
        codeowners: The file that owners are held to.
        today: The day on which dates are judged; the system's by default.
        whole: Whether recipes and receipts are to be held to these seams.
    """
    root = codeowners.root if codeowners else workspace.root
    allowlist = environment.allowlist.narrowed(
        f"[tool.{TABLE}.policy] allow", workspace.policy.allow
    )
    case = Case(
        environment=attrs.evolve(environment, allowlist=allowlist),
        workspace=workspace,
        codeowners=codeowners,
        folders=seam_folders(root) if root else {},
        today=today or datetime.date.today(),
        whole=whole,
    )
    verdicts = [
        attrs.evolve(verdict, finding=with_line(_at_source(verdict.finding, case)))
        for rule in RULES
        for verdict in rule(case)
    ]
    return Gate(verdicts=tuple(sorted(verdicts, key=lambda one: one.severity != "error")))


def _at_source(finding: SeamsError, case: Case) -> SeamsError:
    """A finding in an installed manifest, shown in the very same manifest of the tree."""
    seams = {seam.name: seam for seam in case.environment.discovery.seams}
    seam = seams.get(finding.subject)
    if seam is None or finding.file != str(seam.directory / MANIFEST):
        return finding
    for folder in source_of(seam, case.folders):
        file = folder / MANIFEST
        if hashlib.sha256(file.read_bytes()).hexdigest() == seam.manifest_digest:
            return attrs.evolve(finding, file=str(folder / MANIFEST))
    return finding


def _findings(case: Case) -> Iterator[Verdict]:
    """What is wrong in the environment; a seam that is superseded is in no wrong range."""
    for finding in case.environment.findings:
        noted = finding in case.environment.notes
        yield Verdict(severity="warning" if noted else "error", finding=finding)


def _superseded(case: Case) -> Iterator[Verdict]:
    """A seam that native Megatron replaces is kept only for releases that still need it."""
    policy = case.workspace.policy
    for seam in case.environment.discovery.seams:
        by = case.environment.superseded_by(seam)
        version = case.environment.surface.version
        if by is None or version is None:
            continue
        needed = _needed_on(seam, version, case.workspace)
        goes = retirement(seam, case.environment.projects)
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
            next=f"{'once none of them does, ' if needed else ''}{goes} (docs/delete-a-seam.md)",
            subject=seam.name,
            file=str(seam.directory / MANIFEST),
            key="upstream",
        )
        yield Verdict(severity="warning" if needed else "error", finding=finding)


def _needed_on(seam: Seam, hand: Version, workspace: Workspace) -> bool:
    """Whether the workspace's range has a release that the seam supports and upstream does not.

    The manifest's ``native-since`` says where upstream begins; without it, the releases before the
    one in hand are taken to be without.
    """
    if workspace.policy.range is None:
        return False
    since = seam.manifest.upstream.native_since or f"{hand.major}.{hand.minor}"
    before = SpecifierSet(f"<{since}")
    wanted = workspace.policy.range & seam.manifest.requires.range & before
    return not wanted.is_unsatisfiable()


def _claims(case: Case) -> Iterator[Verdict]:
    """What a manifest says of upstream holds for the Megatron in hand."""
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
    """An owner says in time why a seam is still here."""
    for seam in case.environment.discovery.seams:
        finding = review_due(seam, case.today)
        if finding is not None:
            passed = seam.manifest.seam.review_by < case.today
            yield Verdict(severity="error" if passed else "warning", finding=finding)


def _owners(case: Case) -> Iterator[Verdict]:
    """The owner in a manifest owns the seam's files in CODEOWNERS."""
    required = case.workspace.policy.require_codeowners
    strict: Severity = "error" if required else "warning"
    if case.codeowners is None:
        if required or (case.workspace.root and case.environment.discovery.seams):
            finding = CodeownersInvalid(
                asked="the file that says who owns which seam",
                found=f"there is no {', '.join(LOCATIONS[:-1])} or {LOCATIONS[-1]}",
                next="write one, or name it with --codeowners",
                file=str(case.workspace.file) if case.workspace.file else None,
                key=f"tool.{TABLE}.policy.require-codeowners" if required else None,
            )
            yield Verdict(severity=strict, finding=finding)
        return
    for skipped in skipped_lines(case.codeowners):
        yield Verdict(severity="warning", finding=skipped)
    for seam in case.environment.discovery.seams:
        for fault in ownership_faults(seam, case.codeowners, case.folders):
            elsewhere = isinstance(fault, OwnedElsewhere)
            yield Verdict(severity=strict if elsewhere else "error", finding=fault)


def _allowed(case: Case) -> Iterator[Verdict]:
    """A seam that is installed and may not be used is no candidate, and is said to be none."""
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
    """Every recipe still resolves and every receipt still verifies."""
    if not case.whole or case.environment.faults:
        return  # without a Megatron that can be read no plan can be made, which is said already
    for find in (recipe_faults, receipt_faults):
        for finding in find(case.environment, case.workspace, case.today):
            yield Verdict(severity="error", finding=finding)


RULES: Final[tuple[Callable[[Case], Iterator[Verdict]], ...]] = (
    _findings,
    _superseded,
    _claims,
    _reviews,
    _owners,
    _allowed,
    _committed,
)
