"""The gate: what a workspace must not carry on with, and what it should know."""

import datetime
import hashlib
from typing import Any, Final

import attrs

from megatron_seams.base.toml import with_line
from megatron_seams.errors import ExitCode, SeamsError
from megatron_seams.governance.codeowners import Codeowners
from megatron_seams.governance.ownership import seam_folders, source_of
from megatron_seams.governance.rules import RULES, Case, Verdict
from megatron_seams.governance.workspace import TABLE, Workspace
from megatron_seams.planning.environment import Environment
from megatron_seams.seams.manifest import MANIFEST

SCHEMA: Final = 1


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
