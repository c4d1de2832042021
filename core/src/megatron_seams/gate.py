"""The gate: what a workspace must not carry on with, and what it should know.

A rule takes the environment and the workspace and gives verdicts; :data:`RULES` lists them all.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import attrs
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from megatron_seams.environment import Environment
from megatron_seams.errors import ClaimDiffers, ExitCode, SeamsError, Superseded
from megatron_seams.retirement import retirement
from megatron_seams.seam import Seam
from megatron_seams.workspace import Workspace

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
        """As ``check --json`` prints it."""
        return {
            "schema": SCHEMA,
            "passed": self.exit_code is ExitCode.OK,
            "verdicts": [
                {"severity": one.severity, **one.finding.to_dict()} for one in self.verdicts
            ],
        }


def check(environment: Environment, workspace: Workspace) -> Gate:
    """Every verdict of every rule."""
    verdicts = [verdict for rule in RULES for verdict in rule(environment, workspace)]
    return Gate(verdicts=tuple(sorted(verdicts, key=lambda one: one.severity != "error")))


def _findings(environment: Environment, workspace: Workspace) -> Iterator[Verdict]:
    """What is wrong in the environment; a seam that is superseded is in no wrong range."""
    del workspace
    for finding in environment.findings:
        noted = finding in environment.notes
        yield Verdict(severity="warning" if noted else "error", finding=finding)


def _superseded(environment: Environment, workspace: Workspace) -> Iterator[Verdict]:
    """A seam that native Megatron replaces is kept only for releases that still need it."""
    for seam in environment.discovery.seams:
        by = environment.superseded_by(seam)
        version = environment.surface.version
        if by is None or version is None:
            continue
        needed = _needed_on(seam, version, workspace)
        finding = Superseded(
            asked=f"{seam.claim} on megatron-core {version}",
            found=f"superseded: {by} in this Megatron; "
            + (
                f"kept for the releases of {workspace.policy.megatron_core} that need it"
                if needed
                else "no release that is used here needs it"
                if workspace.policy.range
                else "no [policy] megatron-core says that an older release is still used"
            ),
            next=f"{'once none of them does, ' if needed else ''}{retirement(seam)} "
            "(docs/delete-a-seam.md)",
            subject=seam.name,
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


def _claims(environment: Environment, workspace: Workspace) -> Iterator[Verdict]:
    """What a manifest says of upstream holds for the Megatron in hand."""
    del workspace
    version = environment.surface.version
    for seam in environment.discovery.seams:
        since = seam.manifest.upstream.native_since
        if since is None or version is None:
            continue
        shipped = environment.superseded_by(seam) is not None
        claimed = SpecifierSet(f">={since}").contains(version, prereleases=True)
        if shipped != claimed:
            found = "builds it all the same" if shipped else "does not build it"
            finding = ClaimDiffers(
                asked=f"{seam.claim}: native since {since}",
                found=f"megatron-core {version} {found}",
                next=f"{seam.owner} corrects [upstream] native-since in seam.toml",
                subject=seam.name,
                file=str(seam.directory / "seam.toml"),
                key="upstream.native-since",
            )
            yield Verdict(severity="error", finding=finding)


RULES: Final[tuple[Callable[[Environment, Workspace], Iterator[Verdict]], ...]] = (
    _findings,
    _superseded,
    _claims,
)
